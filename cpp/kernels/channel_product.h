// The product with lanes along output channels: NV vectors of weights by P positions, whose inputs are broadcast.
// Terms are added in the order of product.h: the bits are the same.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace upscore::UPSCORE_ISA {

constexpr int kSecondLevel = 2;  // cache: where what comes from memory is fetched to

// Columns that are multiplied together: two save loads of addresses, for which registers are short, too, but take
// vectors for their weights.
template <int NV, int P>
constexpr int kColumns = UPSCORE_REGISTERS >= 24 && NV * P <= UPSCORE_REGISTERS ? 2 : 1;

template <typename T, int NV, int P>
inline __attribute__((always_inline)) void put_sums(const ChannelProduct<T>& p, Vector<T> (&acc)[P][NV]) {
  constexpr int L = kLanes<T>;
  T* const c = p.c;
  const i64 next = L + p.c_gap;
  i64 at[P];  // stores might change what lies in memory, as far as a compiler knows
  for (int q = 0; q < P; ++q) at[q] = p.c_offset[q];
  auto each = [&](auto&& visit) {
#pragma GCC unroll 12
    for (int q = 0; q < P; ++q)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) visit(c + at[q] + v * next, acc[q][v], v);
  };
  if (p.accumulate) each([](T* to, Vector<T>& sum, int) { sum = load(to) + sum; });
  if (p.bias) {
    Vector<T> bias[NV];
    for (int v = 0; v < NV; ++v) bias[v] = load(p.bias + v * L);
    each([&](T*, Vector<T>& sum, int v) { sum += bias[v]; });
  }
  if (p.past_caches)
    each([](T* to, Vector<T>& sum, int) { store_past_caches(to, sum); });
  else
    each([](T* to, Vector<T>& sum, int) { store(to, sum); });
}

template <typename T, int NV, int P, bool Apart>
void channel_product(const ChannelProduct<T>& p) {
  constexpr int C = kColumns<NV, P>;
  const i64 step = Apart ? p.w_step : kLanes<T>;
  Vector<T> acc[P][NV] = {};
  const char* ahead = p.ahead ? p.ahead : reinterpret_cast<const char*>(p.w);
  for (i64 tap = 0; tap < p.taps; ++tap) {
    const T* w = p.w + p.w_offset[tap];
    const T* const* places = p.x + tap * p.x_step;
    const T* x[P];
#pragma GCC unroll 12
    for (int q = 0; q < P; ++q) x[q] = places[q] + p.x_tap[tap];
    i64 at = 0;
    for (i64 column = 0; column < p.columns; column += C, w += C * step) {
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c, ahead += p.ahead_step) __builtin_prefetch(ahead, 0, kSecondLevel);
      Vector<T> rows[C][NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v)
#pragma GCC unroll 2
        for (int c = 0; c < C; ++c)  // behind the last column nothing may lie
          rows[c][v] = load_for<T, P>(w + v * p.w_tile_stride + (column + c < p.columns ? c * step : 0));
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
  put_sums<T, NV, P>(p, acc);
}

template <typename T>
constexpr i64 kLine = 64 / i64{sizeof(T)};  // numbers in a cache line
constexpr i64 kTapsAhead = 2;               // whose inputs are fetched to the first-level one
constexpr int kColumnsAhead = 64;           // fetched there from the second-level cache

// With tiles of a vector, and columns next to each other, of positions that lie `x_pitch` apart: few of them take an
// address of their own, and no register has to be fetched back in between.
template <typename T, int NV, int P>
void line_product(const ChannelProduct<T>& p) {
  constexpr int kNear = 4, kFar = (P + kNear - 1) / kNear;
  Vector<T> acc[P][NV] = {};
  const i64 pitch = p.x_pitch, pitch3 = 3 * pitch, tile = p.w_tile_stride;
  const char* ahead = p.ahead ? p.ahead : reinterpret_cast<const char*>(p.w);
  for (i64 tap = 0; tap < p.taps; ++tap) {
    const T* w = p.w + p.w_offset[tap];
    const T* x[kFar];
    for (int f = 0; f < kFar; ++f) x[f] = p.x[0] + p.x_tap[tap] + f * kNear * pitch;
    i64 step = p.ahead_step, back = 0;
    if (p.x_far) {  // a cache line of each position, of so many columns at a time
      const i64 then = tap + kTapsAhead;
      const T* next = p.x[0] + (then < p.taps ? p.x_tap[then] : p.x_tap[then % p.taps] + P * pitch);
      ahead = reinterpret_cast<const char*>(next);
      step = pitch * i64{sizeof(T)};
      back = 64 - kLine<T> * step;
    }
    for (i64 column = 0; column < p.columns;) {
      for (const i64 end = column + kLine<T> < p.columns ? column + kLine<T> : p.columns; column < end;
           ++column, w += kLanes<T>, ahead += step) {
        __builtin_prefetch(ahead, 0, 3);
        Vector<T> rows[NV];
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          rows[v] = load_for<T, P>(w + v * tile);
          __builtin_prefetch(w + v * tile + kColumnsAhead * kLanes<T>);
        }
#pragma GCC unroll 12
        for (int q = 0; q < P; ++q) {
          const T* at = x[q / kNear];
          const T input = q % kNear == 3 ? at[pitch3] : at[q % kNear * pitch];
#pragma GCC unroll 8
          for (int v = 0; v < NV; ++v) acc[q][v] += input * rows[v];
        }
#pragma GCC unroll 4
        for (int f = 0; f < kFar; ++f) ++x[f];
      }
      ahead += back;
    }
  }
  put_sums<T, NV, P>(p, acc);
}

// The same, of positions that lie next to each other, and columns apart; those of the weights, too, with `w_step`.
template <typename T, int NV, int P>
void plane_product(const ChannelProduct<T>& p) {
  Vector<T> acc[P][NV] = {};
  const i64 tile = p.w_tile_stride, stride = p.x_stride, step = p.w_step ? p.w_step : kLanes<T>;
  const i64 w_ahead = p.w_ahead ? p.w_ahead : kColumnsAhead * kLanes<T>;
  const char* ahead = p.ahead ? p.ahead : reinterpret_cast<const char*>(p.w);
  for (i64 tap = 0; tap < p.taps; ++tap) {
    const T *w = p.w + p.w_offset[tap], *x = p.x[0] + p.x_tap[tap];
    for (i64 column = 0; column < p.columns; ++column, w += step, x += stride, ahead += p.ahead_step) {
      __builtin_prefetch(ahead, 0, kSecondLevel);
      Vector<T> rows[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        rows[v] = load_for<T, P>(w + v * tile);
        __builtin_prefetch(w + v * tile + w_ahead);
      }
      __builtin_prefetch(x + p.x_ahead);
#pragma GCC unroll 12
      for (int q = 0; q < P; ++q)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) acc[q][v] += x[q] * rows[v];
    }
  }
  put_sums<T, NV, P>(p, acc);
}

template <typename T, int NV, int P>
void fill_channel_products(Kernels<T>& k) {
  if constexpr (NV <= kMaxRowVectors) {
    if constexpr (P <= fitting_positions(NV, UPSCORE_REGISTERS)) {
      k.channel_product[NV][P] = channel_product<T, NV, P, false>;
      k.apart_product[NV][P] = channel_product<T, NV, P, true>;
      k.line_product[NV][P] = line_product<T, NV, P>;
      k.plane_product[NV][P] = plane_product<T, NV, P>;
      fill_channel_products<T, NV, P + 1>(k);
    } else {
      fill_channel_products<T, NV + 1, 1>(k);
    }
  }
}

}  // namespace upscore::UPSCORE_ISA
