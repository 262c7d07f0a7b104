// The two transforms of minimal filtering at the points 0, 1, -1 and infinity; sums and differences only.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace upscore::UPSCORE_ISA {

// dst = (d0 - d2, d1 + d2, d2 - d1, d1 - d3) of four lines d; in place if dst is src. Whole vectors are written.
template <typename T>
void transform_inputs(const T* src, i64 src_pitch, i64 length, T* dst, i64 dst_pitch) {
  for (i64 i = 0; i < length; i += kLanes<T>) {
    const Vector<T> d0 = load(src + i), d1 = load(src + src_pitch + i);
    const Vector<T> d2 = load(src + 2 * src_pitch + i), d3 = load(src + 3 * src_pitch + i);
    store(dst + i, d0 - d2);
    store(dst + dst_pitch + i, d1 + d2);
    store(dst + 2 * dst_pitch + i, d2 - d1);
    store(dst + 3 * dst_pitch + i, d1 - d3);
  }
}

// dst = (s0 + s1 + s2, s1 - s2, s1 + s2 - s3) for three outputs, (s0 + s1 + s2, s1 - s2 - s3) for two.
template <typename T>
void transform_sums(const T* const* src, i64 length, int outputs, T* dst, i64 dst_pitch) {
  for (i64 i = 0; i < length; i += kLanes<T>) {
    const Vector<T> s1 = load(src[1] + i), s2 = load(src[2] + i), s3 = load(src[3] + i);
    const Vector<T> both = s1 + s2, difference = s1 - s2;
    store(dst + i, load(src[0] + i) + both);
    if (outputs == 2) {
      store(dst + dst_pitch + i, difference - s3);
    } else {
      store(dst + dst_pitch + i, difference);
      store(dst + 2 * dst_pitch + i, both - s3);
    }
  }
}

}  // namespace upscore::UPSCORE_ISA
