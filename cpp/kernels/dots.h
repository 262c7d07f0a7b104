// Tiles of dot products along positions: the gradient of the weights.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace upscore::UPSCORE_ISA {

template <typename T>
inline T horizontal_sum(Vector<T> v) {
  T sums[kLanes<T>];
  store(sums, v);
  for (int width = kLanes<T> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
  return sums[0];
}

// `length` is a multiple of the lanes: panels are padded with zeros.
template <typename T, int MR, int NR>
void dots(const Dots<T>& d) {
  constexpr int L = kLanes<T>;
  Vector<T> acc[MR][NR] = {};
  for (i64 k = 0; k < d.length; k += L) {
    Vector<T> b[NR];
#pragma GCC unroll 8
    for (int q = 0; q < NR; ++q) b[q] = load(d.b + q * d.stride + k);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const Vector<T> a = load(d.a + r * d.stride + k);
#pragma GCC unroll 8
      for (int q = 0; q < NR; ++q) acc[r][q] += a * b[q];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int q = 0; q < NR; ++q) d.out[r * d.out_stride + q] += horizontal_sum<T>(acc[r][q]);
}

template <typename T, int MR, int NR>
void fill_dots(Kernels<T>& k) {
  if constexpr (MR <= kDotRows) {
    if constexpr (NR <= kDotColumns) {
      k.dots[MR][NR] = dots<T, MR, NR>;
      fill_dots<T, MR, NR + 1>(k);
    } else {
      fill_dots<T, MR + 1, 1>(k);
    }
  }
}

}  // namespace upscore::UPSCORE_ISA
