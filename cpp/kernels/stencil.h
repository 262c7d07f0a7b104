// One channel at a time: lanes run along the output row, whatever the stride, so results need no interleaving.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace upscore::UPSCORE_ISA {

// kOne: the stride is a multiple of the lanes, so a vector of outputs meets one input per tap.
template <typename T, bool kOne>
void stencil_row(const Stencil<T>& s) {
  constexpr int L = kLanes<T>, U = kStencilVectors;
  i64 base = 0, part = 0;
  for (i64 o = 0; o < s.vectors; o += U) {
    Vector<T> sum[U];
    Index<T> index[U];
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
      sum[u] = Vector<T>{} + s.bias;
      if constexpr (!kOne) std::memcpy(&index[u], s.index + (part + u) * L, sizeof index[u]);
    }
    const T* w = s.w + part * L;
    for (i64 tap = 0; tap < s.taps; ++tap, w += s.period * L) {
      const T* from = s.x[tap] + base;
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) {
        const T* x = from + s.first[part + u];
        if constexpr (kOne)
          sum[u] += x[0] * load(w + u * L);
        else
          sum[u] += __builtin_shuffle(load(x), index[u]) * load(w + u * L);
      }
    }
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) store(s.out + (o + u) * L, sum[u]);
    part += U;
    if (part == s.period) {
      part = 0;
      base += s.period_inputs;
    }
  }
}

template <typename T>
void stencil(const Stencil<T>& s) {
  if (s.step % kLanes<T> == 0)
    stencil_row<T, true>(s);
  else
    stencil_row<T, false>(s);
}

// kTaps: known to the compiler, which keeps their addresses in registers; or 0.
template <typename T, int kTaps>
void pixels(const PixelStencil<T>& s) {
  constexpr int L = kLanes<T>;
  const T *w[kTaps + 1], *x[kTaps + 1];
  for (int tap = 0; tap < kTaps; ++tap) {
    w[tap] = s.w[tap];
    x[tap] = s.x[tap];
  }
  for (i64 i = 0, c = 0; i < s.length; i += L) {
    Vector<T> sum = load(s.bias + c);
    if constexpr (kTaps > 0) {
#pragma GCC unroll 4
      for (int tap = 0; tap < kTaps; ++tap) sum += load(x[tap] + c) * load(w[tap] + i);
    } else {
      for (i64 tap = 0; tap < s.taps; ++tap) sum += load(s.x[tap] + c) * load(s.w[tap] + i);
    }
    store(s.out + i, sum);
    for (c += L; c >= s.channels;) c -= s.channels;
  }
}

template <typename T>
void pixel_stencil(const PixelStencil<T>& s) {
  switch (s.taps) {
    case 1:
      return pixels<T, 1>(s);
    case 2:
      return pixels<T, 2>(s);
    case 4:
      return pixels<T, 4>(s);
    default:
      return pixels<T, 0>(s);
  }
}

}  // namespace upscore::UPSCORE_ISA
