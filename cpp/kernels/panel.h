// Copying inputs into the panels that the products read.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace upscore::UPSCORE_ISA {

template <typename T>
void gather(const T* x, i64 x_stride, i64 columns, const std::int32_t* index, i64 count, T* panel) {
  for (i64 c = 0; c < columns; ++c, x += x_stride, panel += count)
    for (i64 i = 0; i < count; ++i) {
      const std::int32_t at = index[i];
      const T value = x[at < 0 ? 0 : at];
      panel[i] = at < 0 ? T(0) : value;
    }
}

template <typename T>
void copy(const T* src, i64 step, i64 length, T* dst) {
  if (step == 1) {
    for (i64 i = 0; i < length; ++i) dst[i] = src[i];
  } else if (step == 2) {
    for (i64 i = 0; i < length; ++i) dst[i] = src[2 * i];
  } else {
    for (i64 i = 0; i < length; ++i) dst[i] = src[i * step];
  }
}

}  // namespace upscore::UPSCORE_ISA
