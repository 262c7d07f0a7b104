// The register-tiled product: MR rows of weights (broadcast) by NV vectors of positions. Terms are added
// in the same order in every tile shape, so the bits of a result do not depend on how work was cut.
#pragma once

#include "interleave.h"
#include "kernels.h"
#include "vector.h"

namespace upscore::UPSCORE_ISA {

constexpr int kPrefetchWeights = 8192;  // bytes ahead: weights are read once, in order, often from memory

// The sums of a tile, in registers.
template <typename T, int MR, int NV>
inline __attribute__((always_inline)) void sum_products(const Product<T>& p, Vector<T> (&acc)[MR][NV]) {
  for (i64 tap = 0; tap < p.taps; ++tap) {
    const T* x = p.x + p.x_offset[tap];
    const T* w = p.w + tap * p.w_tap_stride;
    for (i64 column = 0; column < p.columns; ++column) {
      __builtin_prefetch(w + kPrefetchWeights / sizeof(T));
      Vector<T> xv[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) xv[v] = load(x + v * p.x_vector);
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) acc[r][v] += w[r] * xv[v];
      x += p.x_stride;
      w += MR;
    }
  }
}

template <typename T, int MR, int NV>
void product(const Product<T>& p) {
  constexpr int L = kLanes<T>;
  Vector<T> acc[MR][NV] = {};
  sum_products<T, MR, NV>(p, acc);
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      T* c = p.c + r * p.c_stride + v * L;
      store(c, p.accumulate ? load(c) + acc[r][v] : acc[r][v]);
    }
}

// The same with the last terms: every two rows alternate in a row of the output.
template <typename T, int MR, int NV>
void product_pairs(const Product<T>& p, const OutputRows<T>& out) {
  constexpr int L = kLanes<T>;
  constexpr auto lanes = std::make_integer_sequence<int, L>{};
  Vector<T> acc[MR][NV] = {};
  sum_products<T, MR, NV>(p, acc);
#pragma GCC unroll 8
  for (int r = 0; r < MR; r += 2)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      T* to = out.vector[v] + out.row[r / 2];
      Vector<T> a = acc[r][v], b = acc[r + 1][v];
      if (p.accumulate) {
        const T* c = p.c + r * p.c_stride + v * L;
        a += load(c);
        b += load(c + p.c_stride);
      }
      a += out.bias[r / 2];
      b += out.bias[r / 2];
      const Vector<T> low = zip_low<T>(a, b, lanes), high = zip_high<T>(a, b, lanes);
      if (out.past_caches) {
        store_past_caches(to, low);
        store_past_caches(to + L, high);
      } else {
        store(to, low);
        store(to + L, high);
      }
    }
}

template <typename T, int MR, int NV>
void fill_products(Kernels<T>& k) {
  if constexpr (MR <= kMaxTileRows) {
    if constexpr (NV <= most_vectors(MR, UPSCORE_REGISTERS)) {
      k.product[MR][NV] = product<T, MR, NV>;
      if constexpr (MR % 2 == 0) k.product_pairs[MR][NV] = product_pairs<T, MR, NV>;
      fill_products<T, MR, NV + 1>(k);
    } else {
      fill_products<T, MR + 1, 1>(k);
    }
  }
}

}  // namespace upscore::UPSCORE_ISA
