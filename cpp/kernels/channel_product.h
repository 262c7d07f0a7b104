// The product with lanes along output channels: NV vectors of weights by P positions, whose inputs are broadcast.
// Terms are added in the order of product.h: the bits are the same.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace upscore::UPSCORE_ISA {

// The weights of kColumns columns: `w` has tiles of UPSCORE_TILE_ROWS rows. Where a tile is half a vector, two tiles
// and two columns are loaded together.
template <typename T>
constexpr int kColumns = UPSCORE_TILE_ROWS < kLanes<T> ? 2 : 1;

template <typename T, int NV>
inline void load_rows(const T* w, i64 tile_stride, Vector<T> (&rows)[kColumns<T>][NV]) {
  constexpr int L = kLanes<T>, R = UPSCORE_TILE_ROWS;
  constexpr auto lanes = std::make_integer_sequence<int, L>{};
  static_assert(R % L == 0 || 2 * R == L);
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    if constexpr (R >= L) {
      rows[0][v] = load(w + v / (R / L) * tile_stride + v % (R / L) * L);
    } else {
      const Vector<T> a = load(w + 2 * v * tile_stride), b = load(w + (2 * v + 1) * tile_stride);
      rows[0][v] = low_halves<T>(a, b, lanes);
      rows[1][v] = high_halves<T>(a, b, lanes);
    }
  }
}

template <typename T, int NV, int P>
void channel_product(const ChannelProduct<T>& p) {
  constexpr int L = kLanes<T>, C = kColumns<T>;
  Vector<T> acc[P][NV] = {};
  const char* ahead = p.ahead;
  for (i64 tap = 0; tap < p.taps; ++tap) {
    const T* w = p.w + p.w_offset[tap];
    const T *const inputs = p.x + p.x_tap[tap], *x[P];
    const i64* offset = p.x_offset + tap * p.x_offset_step;
#pragma GCC unroll 12
    for (int q = 0; q < P; ++q) x[q] = inputs + offset[q];
    i64 at = 0;
    for (i64 column = 0; column < p.columns; column += C, w += C * UPSCORE_TILE_ROWS) {
#pragma GCC unroll 8
      for (int v = 0; v < C * NV; ++v) __builtin_prefetch(ahead + 64 * v);
      ahead += C * p.ahead_step;
      Vector<T> rows[C][NV];
      load_rows<T, NV>(w, p.w_tile_stride, rows);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c, at += p.x_stride) {
        if (c > 0 && column + c == p.columns) break;
#pragma GCC unroll 12
        for (int q = 0; q < P; ++q)
#pragma GCC unroll 8
          for (int v = 0; v < NV; ++v) acc[q][v] += x[q][at] * rows[c][v];
      }
    }
  }
#pragma GCC unroll 12
  for (int q = 0; q < P; ++q)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      T* c = p.c + p.c_offset[q] + v * L;
      Vector<T> sum = p.accumulate ? load(c) + acc[q][v] : acc[q][v];
      if (p.bias) sum += load(p.bias + v * L);
      store(c, sum);
    }
}

template <typename T, int NV, int P>
void fill_channel_products(Kernels<T>& k) {
  if constexpr (NV <= kMaxRowVectors) {
    if constexpr (P <= kMaxPositions && NV * P <= UPSCORE_REGISTERS) {
      k.channel_product[NV][P] = channel_product<T, NV, P>;
      fill_channel_products<T, NV, P + 1>(k);
    } else {
      fill_channel_products<T, NV + 1, 1>(k);
    }
  }
}

}  // namespace upscore::UPSCORE_ISA
