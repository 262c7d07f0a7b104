// The tasks of a call, and their order.
#pragma once

#include <algorithm>

#include "schedule.h"

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

// What of the output a task of a schedule computes, besides its tile of positions.
struct Part {
  i64 group, groups, first_row, rows, first_strip, strips;
};

class Parts {
 public:
  Parts(const Layer& layer, const Call& call, const Packing& packing, const Schedule& schedule)
      : layer_(layer),
        schedule_(schedule),
        strips_(packing.phases / schedule.axis[2].out_step),
        bands_(ceil_div(strips_, schedule.strips)),
        tasks_(layer, call, schedule.tile.count, ceil_div(layer.groups, schedule.groups),
               ceil_div(layer.rows, schedule.chunk) * bands_) {}

  i64 count() const { return tasks_.count(); }
  i64 tile(i64 index) const { return tasks_[index].tile; }
  Part operator[](i64 index) const {
    const Task task = tasks_[index];
    Part part;
    part.first_strip = task.part % bands_ * schedule_.strips;
    part.strips = std::min(schedule_.strips, strips_ - part.first_strip);
    part.first_row = task.part / bands_ * schedule_.chunk;
    part.rows = std::min(schedule_.chunk, layer_.rows - part.first_row);
    part.group = task.group * schedule_.groups;
    part.groups = std::min(schedule_.groups, layer_.groups - part.group);
    return part;
  }

 private:
  const Layer& layer_;
  const Schedule& schedule_;
  const i64 strips_, bands_;
  const Tasks tasks_;
};

}  // namespace upscore
