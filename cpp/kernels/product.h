// The register-tiled product: MR rows of weights (broadcast) by NV vectors of positions. Terms are added
// in the same order in every tile shape, so the bits of a result do not depend on how work was cut.
#pragma once

#include "interleave.h"
#include "kernels.h"
#include "vector.h"

namespace upscore::UPSCORE_ISA {

constexpr int kPrefetchWeights = 8192;  // bytes ahead: weights are read once, in order, often from memory

// The sums of a tile, in registers; what is fetched ahead are so many vectors.
template <typename T, int MR, int NV, int Ahead = 1>
inline __attribute__((always_inline)) void sum_products(const Product<T>& p, Vector<T> (&acc)[MR][NV]) {
  for (i64 tap = 0; tap < p.taps; ++tap) {
    const T* x = p.x + p.x_offset[tap];
    const T* w = p.w + tap * p.w_tap_stride;
    const T* ahead = p.ahead ? p.ahead[tap] : w + kPrefetchWeights / sizeof(T);
    const i64 ahead_stride = p.ahead ? p.ahead_stride : p.w_step;
    for (i64 column = 0; column < p.columns; ++column, ahead += ahead_stride) {
      for (int v = 0; v < Ahead; ++v) __builtin_prefetch(ahead + v * kLanes<T>, 0, 2);
      Vector<T> xv[NV];
#pragma GCC unroll 12
      for (int v = 0; v < NV; ++v) xv[v] = load_for<T, MR>(x + v * p.x_vector);
#pragma GCC unroll 12
      for (int r = 0; r < MR; ++r)
#pragma GCC unroll 12
        for (int v = 0; v < NV; ++v) acc[r][v] += w[r] * xv[v];
      x += p.x_stride;
      w += p.w_step;
    }
  }
}

// To what has been summed before.
template <typename T, int MR, int NV>
inline __attribute__((always_inline)) void add_sums(const Product<T>& p, Vector<T> (&acc)[MR][NV]) {
#pragma GCC unroll 12
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 12
    for (int v = 0; v < NV; ++v) acc[r][v] += load(p.c + r * p.c_stride + v * kLanes<T>);
}

template <typename T, int MR, int NV>
void product(const Product<T>& p) {
  constexpr int L = kLanes<T>;
  Vector<T> acc[MR][NV] = {};
  if (p.ahead_tile)
    sum_products<T, MR, NV, NV>(p, acc);
  else
    sum_products<T, MR, NV>(p, acc);
  T* const c = p.c;
  const i64 stride = p.c_stride;
  if (p.accumulate) add_sums<T, MR, NV>(p, acc);
#pragma GCC unroll 12
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 12
    for (int v = 0; v < NV; ++v) store(c + r * stride + v * L, acc[r][v]);
}

template <bool PastCaches, typename T>
inline void put(T* to, Vector<T> v) {
  if constexpr (PastCaches)
    store_past_caches(to, v);
  else
    store(to, v);
}

// In turn a number of each.
template <bool PastCaches, typename T>
inline void put_pairs(T* to, Vector<T> a, Vector<T> b) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>{};
  put<PastCaches, T>(to, zip_low<T>(a, b, lanes));
  put<PastCaches, T>(to + kLanes<T>, zip_high<T>(a, b, lanes));
}

// Every S rows of a tile alternate in a row of the output.
template <typename T, int MR, int NV, int S, bool PastCaches>
inline __attribute__((always_inline)) void write_rows(const OutputRows<T>& out, const Vector<T> (&acc)[MR][NV]) {
  T* vector[NV];  // stores might change what lies in memory, as far as a compiler knows
  for (int v = 0; v < NV; ++v) vector[v] = out.vector[v];
#pragma GCC unroll 12
  for (int r = 0; r < MR; r += S) {
    const auto [place, bias] = out.row[r / S];
#pragma GCC unroll 12
    for (int v = 0; v < NV; ++v) {
      T* to = vector[v] + place;
      const Vector<T> a = acc[r][v] + bias;
      if constexpr (S == 1)
        put<PastCaches, T>(to, a);
      else
        put_pairs<PastCaches, T>(to, a, acc[r + 1][v] + bias);
    }
  }
}

// A product with the last terms, for an output.
template <typename T, int MR, int NV, int S>
void product_to_output(const Product<T>& p, const OutputRows<T>& out) {
  Vector<T> acc[MR][NV] = {};
  sum_products<T, MR, NV>(p, acc);
  if (p.accumulate) add_sums<T, MR, NV>(p, acc);
  if (out.past_caches)
    write_rows<T, MR, NV, S, true>(out, acc);
  else
    write_rows<T, MR, NV, S, false>(out, acc);
}

template <typename T, int MR, int NV>
void fill_products(Kernels<T>& k) {
  if constexpr (MR <= kMaxTileRows) {
    if constexpr (NV <= most_vectors(MR, UPSCORE_REGISTERS)) {
      k.product[MR][NV] = product<T, MR, NV>;
      k.product_rows[MR][NV] = product_to_output<T, MR, NV, 1>;
      if constexpr (MR % 2 == 0) k.product_pairs[MR][NV] = product_to_output<T, MR, NV, 2>;
      fill_products<T, MR, NV + 1>(k);
    } else {
      fill_products<T, MR + 1, 1>(k);
    }
  }
}

}  // namespace upscore::UPSCORE_ISA
