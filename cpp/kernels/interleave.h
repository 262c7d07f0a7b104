// From one buffer per phase to the output row in which the phases alternate.
#pragma once

#include <utility>

#include "kernels.h"
#include "vector.h"

namespace upscore::UPSCORE_ISA {

template <typename T, int... I>
inline Vector<T> zip_low(Vector<T> a, Vector<T> b, std::integer_sequence<int, I...>) {
  constexpr Index<T> pick = {(I / 2 + (I % 2) * kLanes<T>)...};
  return __builtin_shuffle(a, b, pick);
}
template <typename T, int... I>
inline Vector<T> zip_high(Vector<T> a, Vector<T> b, std::integer_sequence<int, I...>) {
  constexpr Index<T> pick = {(I / 2 + kLanes<T> / 2 + (I % 2) * kLanes<T>)...};
  return __builtin_shuffle(a, b, pick);
}

// The vectors of a[0..S) zipped: out[v] holds elements v*L .. of the interleaved run. S a power of two.
template <typename T, int S>
inline void zip(const Vector<T>* in, Vector<T>* out) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>{};
  if constexpr (S == 1) {
    out[0] = in[0];
  } else {
    Vector<T> even[S / 2], odd[S / 2], low[S / 2], high[S / 2];
    for (int i = 0; i < S / 2; ++i) {
      even[i] = in[2 * i];
      odd[i] = in[2 * i + 1];
    }
    zip<T, S / 2>(even, low);
    zip<T, S / 2>(odd, high);
    for (int i = 0; i < S / 2; ++i) {
      out[2 * i] = zip_low<T>(low[i], high[i], lanes);
      out[2 * i + 1] = zip_high<T>(low[i], high[i], lanes);
    }
  }
}

template <typename T, int S>
void interleave_power(const T* src, i64 pitch, i64 first, i64 last, T bias, T* dst) {
  constexpr int L = kLanes<T>;
  i64 e = first;
  for (; e < last && e % S != 0; ++e) *dst++ = src[(e % S) * pitch + e / S] + bias;
  for (; e + S * L <= last; e += S * L, dst += S * L) {
    Vector<T> in[S], out[S];
    for (int r = 0; r < S; ++r) in[r] = load(src + r * pitch + e / S) + bias;
    zip<T, S>(in, out);
    for (int v = 0; v < S; ++v) store(dst + v * L, out[v]);
  }
  for (; e < last; ++e) *dst++ = src[(e % S) * pitch + e / S] + bias;
}

template <typename T>
void interleave(const T* src, i64 pitch, i64 step, i64 first, i64 last, T bias, T* dst) {
  switch (step) {
    case 1:
      for (i64 e = first; e < last; ++e) dst[e - first] = src[e] + bias;
      return;
    case 2: return interleave_power<T, 2>(src, pitch, first, last, bias, dst);
    case 4: return interleave_power<T, 4>(src, pitch, first, last, bias, dst);
    case 8: return interleave_power<T, 8>(src, pitch, first, last, bias, dst);
    default: break;
  }
  i64 e = first, q = first / step, r = first % step;
  while (e < last) {
    const i64 run = step - r < last - e ? step - r : last - e;
    for (i64 i = 0; i < run; ++i) dst[i] = src[(r + i) * pitch + q] + bias;
    dst += run;
    e += run;
    r = 0;
    ++q;
  }
}

}  // namespace upscore::UPSCORE_ISA
