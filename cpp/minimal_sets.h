// Minimal filtering with lanes along channels, of arrays that have channels first: rows of sets are turned, a vector of
// channels at a time, and transformed.
#pragma once

#include <algorithm>

#include "kernels/kernels.h"
#include "minimal.h"

namespace upscore {

// Where a row of numbers comes from: channels of one image.
template <typename T>
struct Image {
  const T *first, *end;  // of this image's channels; of all images
  Size size;
  i64 pixel;  // 0 with channels first; otherwise from one position to the next
};

// `count` numbers of a row from x on, `channels` of them up to a vector, to vectors; zeros for what is outside.
template <typename T>
void turn_row(const Kernels<T>& kernels, const Image<T>& image, i64 channels, i64 z, i64 y, i64 x, i64 count, T* to) {
  const Size& size = image.size;
  const i64 lanes = kernels.lanes;
  const bool exists = z >= 0 && z < size[0] && y >= 0 && y < size[1];
  const i64 skip = exists ? std::clamp<i64>(-x, 0, count) : count;
  const i64 stop = exists ? std::clamp<i64>(size[2] - x, skip, count) : count;
  const i64 position = (z * size[1] + y) * size[2] + x + skip;
  std::fill_n(to, skip * lanes, T(0));
  if (stop > skip && image.pixel == 0) {
    kernels.transpose(image.first + position, image.end, size[0] * size[1] * size[2], channels, stop - skip, nullptr,
                      to + skip * lanes, lanes);
  } else if (stop > skip && channels == lanes) {
    kernels.transform_sets[1](image.first + position * image.pixel, 0, image.pixel, stop - skip, to + skip * lanes, 0,
                              lanes);
  } else {
    for (i64 i = skip; i < stop; ++i) {
      std::copy_n(image.first + (position + i - skip) * image.pixel, channels, to + i * lanes);
      std::fill(to + i * lanes + channels, to + (i + 1) * lanes, T(0));
    }
  }
  std::fill_n(to + stop * lanes, (count - stop) * lanes, T(0));
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
