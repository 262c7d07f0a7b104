// Copying inputs into the panels that the products read.
#pragma once

#include "interleave.h"
#include "kernels.h"
#include "vector.h"

namespace upscore::UPSCORE_ISA {

template <typename T, int... I>
inline Vector<T> even_lanes(Vector<T> a, Vector<T> b, std::integer_sequence<int, I...>) {
  constexpr Index<T> pick = {(2 * I)...};
  return __builtin_shuffle(a, b, pick);
}

// Every third lane of three vectors.
template <typename T, int... I>
inline Vector<T> third_lanes(Vector<T> a, Vector<T> b, Vector<T> c, std::integer_sequence<int, I...>) {
  constexpr int L = kLanes<T>;
  constexpr Index<T> from_a_and_b = {(3 * I < 2 * L ? 3 * I : 0)...};
  constexpr Index<T> then_c = {(3 * I < 2 * L ? I : 3 * I - L)...};
  return __builtin_shuffle(__builtin_shuffle(a, b, from_a_and_b), c, then_c);
}

// dst[i] = src[i*S] for i < length, in whole vectors.
template <typename T, int S, int... I>
inline void pick_every(const T* src, i64 length, T* dst, std::integer_sequence<int, I...>) {
  constexpr int L = kLanes<T>;
  constexpr Index<T> at = {(I * S % L)...};
  constexpr Index<T> from = {(I * S / L)...};
  for (i64 i = 0; i < length; i += L, src += S * L) {
    Vector<T> out = __builtin_shuffle(load(src), at);
    for (int v = 1; v < S; ++v) out = from == v ? __builtin_shuffle(load(src + v * L), at) : out;
    store(dst + i, out);
  }
}

template <typename T>
inline void copy_every(const T* src, i64 step, i64 length, T* dst) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>{};
  switch (step) {
    case 2:
      for (i64 i = 0; i < length; i += kLanes<T>)
        store(dst + i, even_lanes<T>(load(src + 2 * i), load(src + 2 * i + kLanes<T>), lanes));
      return;
    case 3:
      return pick_every<T, 3>(src, length, dst, lanes);
    case 4:
      return pick_every<T, 4>(src, length, dst, lanes);
    case 5:
      return pick_every<T, 5>(src, length, dst, lanes);
    case 6:
      return pick_every<T, 6>(src, length, dst, lanes);
    case 8:
      return pick_every<T, 8>(src, length, dst, lanes);
    default:
      for (i64 i = 0; i < length; ++i) dst[i] = src[i * step];
  }
}

constexpr i64 kPrefetchColumns = 4;

// Whole vectors are copied where a run ends inside one; the next run, or the next column, writes over the excess.
template <typename T>
void copy_runs(const T* x, const T* x_end, i64 x_stride, i64 columns, i64 step, const Run* runs, i64 count, i64 pitch,
               T* panel) {
  constexpr int L = kLanes<T>;
  // Runs are short and lie a plane apart: no prefetcher sees them coming.
  const i64 ahead = kPrefetchColumns * x_stride;
  for (i64 c = 0; c < columns; ++c, x += x_stride, panel += pitch)
    for (const Run* run = runs; run != runs + count; ++run) {
      T* to = panel + run->place;
      if (run->source == Run::kHole) {
        for (i64 i = 0; i < run->length; ++i) to[i] = T(0);
        continue;
      }
      if (run->source == Run::kZeros) {
        for (i64 i = 0; i < run->length; i += L) store(to + i, Vector<T>{});
        continue;
      }
      const T* from = x + run->source;
      const i64 whole = (run->length + L - 1) / L * L;
      if (step == 1 && whole <= x_end - from) {
        for (i64 i = 0; i < whole; i += L) {
          __builtin_prefetch(from + ahead + i);
          store(to + i, load(from + i));
        }
      } else if (step > 1 && step * whole <= x_end - from) {
        if (step == 2)  // of which every cache line is read
          for (i64 i = 0; i < step * whole; i += L) __builtin_prefetch(from + ahead + i);
        copy_every(from, step, run->length, to);
      } else {
        for (i64 i = 0; i < run->length; ++i) to[i] = from[i * step];
      }
      for (i64 i = 0; i < run->zeros; i += L) store(to + run->length + i, Vector<T>{});
    }
}

// dst[i*dst_pitch + c] = src[c*src_pitch + i] for c < channels, i < length; zeros up to a whole vector of channels.
template <typename T>
void transpose(const T* src, const T* src_end, i64 src_pitch, i64 channels, i64 length, const T* bias, T* dst,
               i64 dst_pitch) {
  constexpr int L = kLanes<T>;
  for (i64 c = 0; c < channels; c += L, src += L * src_pitch, dst += L) {
    const i64 count = channels - c < L ? channels - c : L;
    const Vector<T> added = bias ? load(bias + c) : Vector<T>{};
    // The last block overlaps the one before; a short row is read beyond its end where there is something to read.
    for (i64 i = 0; i < length; i = i + 2 * L <= length || i + L >= length ? i + L : length - L) {
      const i64 rows = length - i < L ? length - i : L;
      if (rows < L && src_end - src < (count - 1) * src_pitch + i + L) {
        for (i64 r = i; r < length; ++r)
          for (i64 j = 0; j < L; ++j) dst[r * dst_pitch + j] = (j < count ? src[j * src_pitch + r] : T(0)) + added[j];
        break;
      }
      Vector<T> in[L], out[L];
      for (i64 j = 0; j < L; ++j) in[j] = j < count ? load(src + j * src_pitch + i) : Vector<T>{};
      zip<T, L>(in, out);
      for (i64 j = 0; j < rows; ++j) store(dst + (i + j) * dst_pitch, out[j] + added);
    }
  }
}

// dst[i*dst_pitch + j] = src[i*step + j*spread] for i < positions, j < length.
template <typename T>
void unfold(const T* src, i64 step, i64 spread, i64 positions, i64 length, T* dst, i64 dst_pitch) {
  constexpr int L = kLanes<T>;
  for (i64 i = 0; i < positions; ++i, src += step, dst += dst_pitch)
    if (spread == 1)
      for (i64 j = 0; j < length; j += L) store(dst + j, load(src + j));
    else
      for (i64 j = 0; j < length; ++j) dst[j] = src[j * spread];
}

template <typename T>
void stream(const T* src, i64 length, T* dst) {
  constexpr int L = kLanes<T>;
  i64 i = 0;
  for (; i < length && reinterpret_cast<std::uintptr_t>(dst + i) % sizeof(Vector<T>) != 0; ++i) dst[i] = src[i];
  for (; i + L <= length; i += L) store_past_caches(dst + i, load(src + i));
  for (; i < length; ++i) dst[i] = src[i];
}

}  // namespace upscore::UPSCORE_ISA
