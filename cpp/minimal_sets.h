// Minimal filtering with lanes along channels: rows of sets are turned, a vector of channels at a time, and
// transformed.
#pragma once

#include <algorithm>

#include "image.h"
#include "minimal.h"

namespace upscore {

constexpr i64 kTurnedBytes = 192 << 10;  // what a row of sets reads, one vector of channels, channels last
constexpr i64 kSpareBytes = 192 << 10;   // the same, while it is transformed

// Cycles, for choosing; only their proportions matter.
constexpr double kProduct = 0.54;  // a vector times a number, added
constexpr double kTurn = 0.7;      // a number
constexpr double kPass = 2.5;      // a vector transformed along an axis
constexpr double kCall = 30;       // of a kernel

// A row of sets, counted over images and both leading axes, of which there are so many in an image.
struct SetRow {
  i64 image, z, y;
};
inline SetRow set_row(i64 number, i64 deep, i64 down) {
  return {number / (down * deep), number / down % deep, number % down};
}

// The numbers of sets that lie in a row, and the points or taps that they become, per axis; from one to the next.
struct SetNumbers {
  Size count, points;
  i64 z_pitch, y_pitch, x_pitch;
  i64 step;          // from set to set
  const i64* shift;  // per tap of the last axis, if that is not filtered: where it is read, in x_pitch
};

// to[point * pitch + set * set_pitch], a vector each. `spare` has room for two vectors of each set and point.
template <typename T>
void transform_row(const Kernels<T>& kernels, const MinimalPacking& packing, const SetNumbers& n, const T* from,
                   i64 sets, T* spare, T* to, i64 pitch, i64 set_pitch) {
  const i64 lanes = kernels.lanes, length = sets * lanes;
  const bool deep = packing.axis[0].filtered, down = packing.axis[1].filtered;
  const i64 mx = n.points[2], my = n.points[1], last = n.count[0] * n.count[1] * mx;
  T *a = deep || down ? spare : to, *b = deep && down ? spare + std::max(last, n.count[0] * my * mx) * length : to;
  const i64 a_pitch = deep || down ? length : pitch, a_set = deep || down ? lanes : set_pitch;
  const i64 b_pitch = deep ? length : pitch, b_set = deep ? lanes : set_pitch;
  for (i64 z = 0; z < n.count[0]; ++z)
    for (i64 y = 0; y < n.count[1]; ++y) {
      const T* row = from + z * n.z_pitch + y * n.y_pitch;
      T* dst = a + (z * n.count[1] + y) * mx * a_pitch;
      if (packing.axis[2].filtered)
        kernels.transform_sets[n.count[2]](row, n.x_pitch, n.step, sets, dst, a_pitch, a_set);
      else
        for (i64 x = 0; x < mx; ++x)
          kernels.transform_sets[1](row + n.shift[x] * n.x_pitch, 0, n.step, sets, dst + x * a_pitch, 0, a_set);
    }
  if (down)
    for (i64 z = 0; z < n.count[0]; ++z)
      for (i64 x = 0; x < mx; ++x)
        kernels.transform_sets[n.count[1]](a + (z * n.count[1] * mx + x) * length, mx * length, lanes, sets,
                                           b + (z * my * mx + x) * b_pitch, mx * b_pitch, b_set);
  if (deep)
    for (i64 i = 0; i < my * mx; ++i)
      kernels.transform_sets[n.count[0]]((down ? b : a) + i * length, my * mx * length, lanes, sets, to + i * pitch,
                                         my * mx * pitch, set_pitch);
}

}  // namespace upscore
