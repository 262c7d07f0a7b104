// One channel at a time: lanes run along the output row, so results need no interleaving.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace upscore::UPSCORE_ISA {

template <typename T>
void stencil(const Stencil<T>& s) {
  constexpr int L = kLanes<T>, U = kStencilVectors;
  const Stencil<T> here = s;  // stores might change what lies in memory, as far as a compiler knows
  i64 next = 0, first = 0;    // input and phase of the next vector
  for (i64 o = 0; o < here.vectors; o += U) {
    Vector<T> sum[U];
    i64 input[U], phase[U];
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
      sum[u] = Vector<T>{};
      input[u] = next;
      phase[u] = first;
      first += L;
      if (first == here.step) {
        first = 0;
        ++next;
      }
    }
    for (i64 tap = 0; tap < here.taps; ++tap) {
      const T *x = here.x[tap], *w = here.w + tap * here.step;
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) sum[u] += x[input[u]] * load(w + phase[u]);
    }
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) store(here.out + (o + u) * L, sum[u] + here.bias);
  }
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
  T* out = s.out;
  for (i64 repeat = 0, shift = 0; repeat < s.repeats; ++repeat, shift += s.x_step, out += s.length)
    for (i64 i = 0, c = 0; i < s.length; i += L) {
      Vector<T> sum{};
      if constexpr (kTaps > 0) {
#pragma GCC unroll 4
        for (int tap = 0; tap < kTaps; ++tap) sum += load(x[tap] + shift + c) * load(w[tap] + i);
      } else {
        for (i64 tap = 0; tap < s.taps; ++tap) sum += load(s.x[tap] + shift + c) * load(s.w[tap] + i);
      }
      store(out + i, sum + load(s.bias + c));
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
