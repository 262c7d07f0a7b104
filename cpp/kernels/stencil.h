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

}  // namespace upscore::UPSCORE_ISA
