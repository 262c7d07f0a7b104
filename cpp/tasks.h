// The tasks of a call, and their order.
#pragma once

#include "geometry.h"

namespace upscore {

// A task has a tile of positions, of some groups, and a part of their channels.
struct Task {
  i64 tile, group, part;
};

// Every thread begins with tasks that follow each other. So that what it reads again stays in its caches, and no two
// write next to each other, threads have groups of their own; then, of weights and inputs, a part of what is larger.
// Channels last, groups and small parts lie next to each other at every place, and tiles come first.
class Tasks {
 public:
  Tasks(const Layer& layer, const Call& call, i64 tiles, i64 groups, i64 parts)
      : tiles_(tiles),
        groups_(groups),
        parts_(parts),
        together_(call.writes_last && (groups > 1 || layer.rows < kApart * parts)),
        own_part_(layer.rows * layer.taps() > call.batch * call.in[0] * call.in[1] * call.in[2]) {}

  i64 count() const { return tiles_ * groups_ * parts_; }

  Task operator[](i64 index) const {
    if (together_) return {index / parts_ / groups_, index / parts_ % groups_, index % parts_};
    const i64 of_group = index % (tiles_ * parts_), group = index / (tiles_ * parts_);
    if (own_part_) return {of_group % tiles_, group, of_group / tiles_};
    return {of_group / parts_, group, of_group % parts_};
  }

 private:
  static constexpr i64 kApart = 64;  // channels that lie far enough apart

  i64 tiles_, groups_, parts_;
  bool together_, own_part_;
};

}  // namespace upscore
