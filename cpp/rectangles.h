// Tasks of some rows of outputs, so many of each row.
#pragma once

#include <algorithm>

#include "geometry.h"

namespace upscore {

// The outputs of a task, from the first one on: of an image, a group, and a part of its channels.
struct Rectangle {
  i64 image, group, part, across, down;
  Size at;
};

class Rectangles {
 public:
  Rectangles(const Call& call, i64 across, i64 down, i64 groups, i64 parts = 1)
      : call_(call),
        across_(across),
        down_(down),
        groups_(groups),
        parts_(parts),
        per_row_(ceil_div(call.out[2], across)),
        per_column_(ceil_div(call.out[1], down)) {}

  i64 count() const { return call_.batch * call_.out[0] * per_column_ * per_row_ * groups_ * parts_; }

  Rectangle operator[](i64 task) const {
    Rectangle r{};
    r.part = task % parts_;
    task /= parts_;
    r.group = task % groups_;
    task /= groups_;
    r.at[2] = task % per_row_ * across_;
    task /= per_row_;
    r.at[1] = task % per_column_ * down_;
    task /= per_column_;
    r.at[0] = task % call_.out[0];
    r.image = task / call_.out[0];
    r.across = std::min(across_, call_.out[2] - r.at[2]);
    r.down = std::min(down_, call_.out[1] - r.at[1]);
    return r;
  }

 private:
  const Call& call_;
  const i64 across_, down_, groups_, parts_, per_row_, per_column_;
};

}  // namespace upscore
