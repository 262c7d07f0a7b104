// Channels of one image, in arrays that have channels first or last.
#pragma once

#include <algorithm>

#include "kernels/kernels.h"

namespace upscore {

template <typename T>
struct Image {
  const T *first, *end;  // of these channels; of all images
  Size size;
  i64 pixel;  // 0 with channels first; otherwise from one position to the next

  i64 plane() const { return size[0] * size[1] * size[2]; }
  i64 step() const { return pixel ? pixel : 1; }  // from one position to the next
};

template <typename T>
Image<T> image_of(const T* x, i64 batch, i64 channels, const Size& size, bool last, i64 image, i64 channel) {
  const i64 plane = size[0] * size[1] * size[2];
  return {x + image * channels * plane + channel * (last ? 1 : plane), x + batch * channels * plane, size,
          last ? channels : 0};
}

// `count` positions whose `channels` lie next to each other, `pixel` numbers apart: to[position][width], zeros behind
// the channels.
template <typename T>
void copy_pixels(const T* from, i64 pixel, i64 channels, i64 count, i64 width, T* to) {
  if (pixel == channels && width == channels) {
    std::copy_n(from, count * channels, to);
    return;
  }
  for (i64 i = 0; i < count; ++i, from += pixel, to += width)
    std::fill(std::copy_n(from, channels, to), to + width, T(0));
}

// `count` positions of a row from x on, with `channels` channels, up to a vector of them: to[position][lane], zeros for
// what is outside.
template <typename T>
void turn_row(const Kernels<T>& kernels, const Image<T>& image, i64 channels, i64 z, i64 y, i64 x, i64 count, T* to) {
  const Size& size = image.size;
  const i64 lanes = kernels.lanes;
  const bool exists = z >= 0 && z < size[0] && y >= 0 && y < size[1];
  const i64 skip = exists ? std::clamp<i64>(-x, 0, count) : count;
  const i64 stop = exists ? std::clamp<i64>(size[2] - x, skip, count) : count;
  std::fill_n(to, skip * lanes, T(0));
  std::fill_n(to + stop * lanes, (count - stop) * lanes, T(0));
  if (stop == skip) return;
  to += skip * lanes;
  const T* const from = image.first + ((z * size[1] + y) * size[2] + x + skip) * image.step();
  if (image.pixel == 0) {
    kernels.transpose(from, image.end, image.plane(), channels, stop - skip, nullptr, to, lanes);
  } else if (channels == lanes) {
    kernels.transform_sets[1](from, 0, image.pixel, stop - skip, to, 0, lanes);
  } else {
    copy_pixels(from, image.pixel, channels, stop - skip, lanes, to);
  }
}

}  // namespace upscore
