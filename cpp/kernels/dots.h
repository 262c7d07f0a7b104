// Rows weighed and added; products of one row with several others, summed lane by lane.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace upscore::UPSCORE_ISA {

template <typename T, int N>
void some_dots(const T* x, i64 count, const T* lines, const i64* place, T* sums) {
  constexpr int L = kLanes<T>;
  Vector<T> sum[N];
  const T* line[N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    sum[n] = load(sums + n * L);
    line[n] = lines + place[n];
  }
  i64 i = 0;
  for (; i + L <= count; i += L) {
    const Vector<T> a = load(x + i);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sum[n] += a * load(line[n] + i);
  }
  if (i < count) {  // what lies beyond may be no number
    const auto inside = lane_numbers<T>() < static_cast<LaneIndex<T>>(count - i);
    const Vector<T> zeros{}, a = inside ? load(x + i) : zeros;
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sum[n] += a * (inside ? load(line[n] + i) : zeros);
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) store(sums + n * L, sum[n]);
}

// For t < taps: sums[t*lanes + l] += x[i] * lines[place[t] + i] for i < count, i % lanes = l.
template <typename T>
void dots(const T* x, i64 count, const T* lines, const i64* place, i64 taps, T* sums) {
  constexpr int L = kLanes<T>;
  i64 t = 0;
  for (; t + 8 <= taps; t += 8) some_dots<T, 8>(x, count, lines, place + t, sums + t * L);
  for (; t + 4 <= taps; t += 4) some_dots<T, 4>(x, count, lines, place + t, sums + t * L);
  for (; t < taps; ++t) some_dots<T, 1>(x, count, lines, place + t, sums + t * L);
}

// out[i] = bias + sum over taps of w[t] * lines[place[t] + i] for i < count, in whole vectors.
template <typename T>
void weigh(const T* w, i64 taps, const T* lines, const i64* place, i64 count, T bias, T* out) {
  constexpr int L = kLanes<T>, N = 8;
  i64 i = 0;
  for (; i + N * L <= count; i += N * L) {
    Vector<T> sum[N] = {};
    for (i64 t = 0; t < taps; ++t)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[n] += w[t] * load(lines + place[t] + i + n * L);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) store(out + i + n * L, sum[n] + bias);
  }
  for (; i < count; i += L) {
    Vector<T> sum = {};
    for (i64 t = 0; t < taps; ++t) sum += w[t] * load(lines + place[t] + i);
    store(out + i, sum + bias);
  }
}

// dst[i] = sum over rows of rows[r][i], after what is there with `accumulate`, for i < length, in whole vectors.
template <typename T>
void add_rows(const T* const* rows, i64 count, i64 length, bool accumulate, T* dst) {
  constexpr int L = kLanes<T>, N = 4;
  auto piece = [&]<int n>(i64 i, std::integral_constant<int, n>) {
    Vector<T> sum[n] = {};
    i64 r = 0;
    const T* const first = accumulate || count == 0 ? dst : rows[r++];
    if (accumulate || count > 0)
#pragma GCC unroll 4
      for (int k = 0; k < n; ++k) sum[k] = load(first + i + k * L);
    for (; r < count; ++r)
#pragma GCC unroll 4
      for (int k = 0; k < n; ++k) sum[k] += load(rows[r] + i + k * L);
#pragma GCC unroll 4
    for (int k = 0; k < n; ++k) store(dst + i + k * L, sum[k]);
  };
  i64 i = 0;
  for (; i + N * L <= length; i += N * L) piece(i, std::integral_constant<int, N>{});
  for (; i < length; i += L) piece(i, std::integral_constant<int, 1>{});
}

}  // namespace upscore::UPSCORE_ISA
