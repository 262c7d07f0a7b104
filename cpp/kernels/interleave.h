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

// Whether a block of numbers can be written at e. The last block may overlap the one before it.
template <int kBlock, int S, typename T>
inline bool back_up(i64 first, i64 last, i64 limit, i64& e, T*& dst) {
  if (e + kBlock <= limit) return true;
  const i64 back = last / S * S - kBlock;
  if (back < first || back + kBlock <= e) return false;
  dst -= e - back;
  e = back;
  return true;
}

template <typename T, int S, typename Bias>
void interleave_power(const T* src, i64 pitch, i64 first, i64 last, Bias bias, T* dst, bool excess) {
  constexpr int L = kLanes<T>;
  const i64 limit = excess ? last + S * L - 1 : last;
  i64 e = first;
  for (; e < last && e % S != 0; ++e) *dst++ = src[(e % S) * pitch + e / S] + bias(e % S);
  for (; e < last && back_up<S * L, S>(first, last, limit, e, dst); e += S * L, dst += S * L) {
    Vector<T> in[S], out[S];
    for (int r = 0; r < S; ++r) in[r] = load(src + r * pitch + e / S) + bias(r);
    zip<T, S>(in, out);
    for (int v = 0; v < S; ++v) store(dst + v * L, out[v]);
  }
  for (; e < last; ++e) *dst++ = src[(e % S) * pitch + e / S] + bias(e % S);
}

// Three sources of units of P lanes, in turns: output O takes each unit from one of them.
template <typename T, int P, int O, int... I>
inline Vector<T> pick_units(const Vector<T>* in, i64 pitch, std::integer_sequence<int, I...>) {
  constexpr int L = kLanes<T>;
  constexpr Index<T> first_two = {
      ((O * L + I) / P % 3 == 1 ? L + (O * L + I) / (3 * P) * P + I % P : (O * L + I) / (3 * P) * P + I % P)...};
  constexpr Index<T> third = {((O * L + I) / P % 3 == 2 ? L + (O * L + I) / (3 * P) * P + I % P : I)...};
  return __builtin_shuffle(__builtin_shuffle(in[0], in[pitch], first_two), in[2 * pitch], third);
}

// Steps of three times a power of two: groups of P phases are zipped, then three groups take turns.
template <typename T, int P, typename Bias>
void interleave_triple(const T* src, i64 pitch, i64 first, i64 last, Bias bias, T* dst, bool excess) {
  constexpr int L = kLanes<T>, S = 3 * P;
  constexpr auto lanes = std::make_integer_sequence<int, L>{};
  const i64 limit = excess ? last + S * L - 1 : last;
  i64 e = first;
  for (; e < last && e % S != 0; ++e) *dst++ = src[(e % S) * pitch + e / S] + bias(e % S);
  for (; e < last && back_up<S * L, S>(first, last, limit, e, dst); e += S * L, dst += S * L) {
    Vector<T> in[P], zipped[S];
    for (int group = 0; group < 3; ++group) {
      for (int r = 0; r < P; ++r) in[r] = load(src + (group * P + r) * pitch + e / S) + bias(group * P + r);
      zip<T, P>(in, zipped + group * P);
    }
    for (int v = 0; v < P; ++v) {
      store(dst + (3 * v) * L, pick_units<T, P, 0>(zipped + v, P, lanes));
      store(dst + (3 * v + 1) * L, pick_units<T, P, 1>(zipped + v, P, lanes));
      store(dst + (3 * v + 2) * L, pick_units<T, P, 2>(zipped + v, P, lanes));
    }
  }
  for (; e < last; ++e) *dst++ = src[(e % S) * pitch + e / S] + bias(e % S);
}

// Any step from a vector's length on: blocks of phases are transposed; the last block overlaps the one before.
template <typename T, typename Bias>
void interleave_wide(const T* src, i64 pitch, i64 step, i64 first, i64 last, Bias bias, T* dst, bool excess) {
  constexpr int L = kLanes<T>;
  const i64 q_first = (first + step - 1) / step, q_last = last / step;
  auto one = [&](i64 e) { dst[e - first] = src[(e % step) * pitch + e / step] + bias(e % step); };
  if (q_first >= q_last || (!excess && q_first + L > q_last)) {
    for (i64 e = first; e < last; ++e) one(e);
    return;
  }
  for (i64 e = first; e < q_first * step; ++e) one(e);
  for (i64 q = q_first; q < q_last; q = excess || q + 2 * L <= q_last || q + L == q_last ? q + L : q_last - L)
    for (i64 block = 0; block < step; block += L) {
      const i64 r = block + L <= step ? block : step - L;
      Vector<T> in[L], out[L];
      for (int i = 0; i < L; ++i) in[i] = load(src + (r + i) * pitch + q) + bias(r + i);
      zip<T, L>(in, out);
      for (int i = 0; i < L; ++i) store(dst + (q + i) * step + r - first, out[i]);
    }
  for (i64 e = q_last * step; e < last; ++e) one(e);
}

// Steps that are not powers of two: every output vector picks from each phase.
template <typename T, int S, int O, int... I>
inline Vector<T> pick_phases(const Vector<T>* in, std::integer_sequence<int, I...>) {
  constexpr Index<T> at = {((O * kLanes<T> + I) / S)...};
  constexpr Index<T> phase = {((O * kLanes<T> + I) % S)...};
  Vector<T> out = __builtin_shuffle(in[0], at);
  for (int r = 1; r < S; ++r) out = phase == r ? __builtin_shuffle(in[r], at) : out;
  return out;
}

template <typename T, int S, int... O>
inline void interleave_block(const Vector<T>* in, T* dst, std::integer_sequence<int, O...>) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>{};
  (store(dst + O * kLanes<T>, pick_phases<T, S, O>(in, lanes)), ...);
}

template <typename T, int S, typename Bias>
void interleave_other(const T* src, i64 pitch, i64 first, i64 last, Bias bias, T* dst, bool excess) {
  constexpr int L = kLanes<T>;
  const i64 limit = excess ? last + S * L - 1 : last;
  i64 e = first;
  for (; e < last && e % S != 0; ++e) *dst++ = src[(e % S) * pitch + e / S] + bias(e % S);
  for (; e < last && back_up<S * L, S>(first, last, limit, e, dst); e += S * L, dst += S * L) {
    Vector<T> in[S];
    for (int r = 0; r < S; ++r) in[r] = load(src + r * pitch + e / S) + bias(r);
    interleave_block<T, S>(in, dst, std::make_integer_sequence<int, S>{});
  }
  for (; e < last; ++e) *dst++ = src[(e % S) * pitch + e / S] + bias(e % S);
}

template <typename T, typename Bias>
void interleave_with(const T* src, i64 pitch, i64 step, i64 first, i64 last, Bias bias, T* dst, bool excess) {
  switch (step) {
    case 1:
      for (i64 e = first; e < last; ++e) dst[e - first] = src[e] + bias(0);
      return;
    case 2:
      return interleave_power<T, 2>(src, pitch, first, last, bias, dst, excess);
    case 3:
      return interleave_triple<T, 1>(src, pitch, first, last, bias, dst, excess);
    case 4:
      return interleave_power<T, 4>(src, pitch, first, last, bias, dst, excess);
    case 5:
      return interleave_other<T, 5>(src, pitch, first, last, bias, dst, excess);
    case 6:
      return interleave_triple<T, 2>(src, pitch, first, last, bias, dst, excess);
    case 8:
      return interleave_power<T, 8>(src, pitch, first, last, bias, dst, excess);
    default:
      break;
  }
  if constexpr (kLanes<T> >= 4)
    if (step == 12) return interleave_triple<T, 4>(src, pitch, first, last, bias, dst, excess);
  if constexpr (kLanes<T> >= 8)
    if (step == 24) return interleave_triple<T, 8>(src, pitch, first, last, bias, dst, excess);
  if (step >= kLanes<T>) return interleave_wide(src, pitch, step, first, last, bias, dst, excess);
  i64 e = first, q = first / step, r = first % step;
  while (e < last) {
    const i64 run = step - r < last - e ? step - r : last - e;
    for (i64 i = 0; i < run; ++i) dst[i] = src[(r + i) * pitch + q] + bias(r + i);
    dst += run;
    e += run;
    r = 0;
    ++q;
  }
}

// One bias stays in a register.
template <typename T>
void interleave(const T* src, i64 pitch, i64 step, i64 first, i64 last, const T* bias, i64 each, T* dst, bool excess) {
  if (each == 0)
    interleave_with<T>(src, pitch, step, first, last, [one = bias ? *bias : T(0)](i64) { return one; }, dst, excess);
  else
    interleave_with<T>(src, pitch, step, first, last, [bias](i64 phase) { return bias[phase]; }, dst, excess);
}

}  // namespace upscore::UPSCORE_ISA
