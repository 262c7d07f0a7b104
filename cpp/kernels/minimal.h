// The two transforms of minimal filtering at the points 0, 1, -1 and infinity; sums and differences only.
#pragma once

#include "kernels.h"
#include "panel.h"
#include "vector.h"

namespace upscore::UPSCORE_ISA {

// The four points d0 - d2, d1 + d2, d2 - d1, d1 - d3 of four inputs.
template <typename T>
inline void store_points(Vector<T> d0, Vector<T> d1, Vector<T> d2, Vector<T> d3, T* dst, i64 dst_pitch) {
  store(dst, d0 - d2);
  store(dst + dst_pitch, d1 + d2);
  store(dst + 2 * dst_pitch, d2 - d1);
  store(dst + 3 * dst_pitch, d1 - d3);
}

// The lanes `first`, `first` + step, ... of consecutive numbers.
template <typename T, int kStep>
inline Vector<T> every(const T* p) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>{};
  if constexpr (kStep == 2)
    return even_lanes<T>(load(p), load(p + kLanes<T>), lanes);
  else
    return third_lanes<T>(load(p), load(p + kLanes<T>), load(p + 2 * kLanes<T>), lanes);
}

// Tiles of four inputs, `kStep` apart, along a row of which the first tile's first input is at x. With `kEdge` only
// those from `first` to `last` are inside; the others are read, but taken as zeros. With `kFar` those that are `ahead`
// are fetched meanwhile.
template <typename T, int kStep, bool kEdge, bool kFar>
void transform_row(const T* x, i64 ahead, i64 tiles, i64 first, i64 last, T* dst, i64 dst_pitch) {
  Index<T> at = lane_numbers<T>() * LaneIndex<T>{kStep};
  const auto low = static_cast<LaneIndex<T>>(first), high = static_cast<LaneIndex<T>>(last);
  auto inside = [&](Vector<T> v, LaneIndex<T> k) {
    if constexpr (kEdge) return ((at + k >= low) & (at + k < high)) ? v : Vector<T>{};
    return v;
  };
  for (i64 i = 0; i < tiles; i += kLanes<T>) {
    const T* p = x + kStep * i;
    if constexpr (kFar)
      for (int j = 0; j < kStep; ++j) __builtin_prefetch(p + ahead + j * kLanes<T>);
    const Vector<T> d0 = inside(every<T, kStep>(p), 0), d1 = inside(every<T, kStep>(p + 1), 1);
    const Vector<T> d2 = inside(every<T, kStep>(p + 2), 2), d3 = inside(every<T, kStep>(p + 3), 3);
    store_points<T>(d0, d1, d2, d3, dst + i, dst_pitch);
    at += static_cast<LaneIndex<T>>(kStep * kLanes<T>);
  }
}

template <typename T, int kStep, bool kFar>
void transform_run(const T* x_begin, const T* x, const T* x_end, i64 ahead, const TileRun& run, T* to, i64 dst_pitch) {
  constexpr int L = kLanes<T>;
  const i64 read = (run.tiles + L - 1) / L * L * kStep + 3;  // with what whole vectors read in excess
  const i64 end = run.before + run.inside;
  const T* from = x + run.source - run.before;
  if (x_begin - x <= run.source - run.before && read <= x_end - from) {
    if constexpr (!kFar)
      for (i64 i = 0; i < end; i += L) __builtin_prefetch(from + ahead + i);
    if (run.before == 0 && end >= (run.tiles - 1) * kStep + 4)
      transform_row<T, kStep, false, kFar>(from, ahead, run.tiles, 0, 0, to, dst_pitch);
    else
      transform_row<T, kStep, true, kFar>(from, ahead, run.tiles, run.before, end, to, dst_pitch);
  } else {
    T row[kMostTileInputs] = {};
    for (i64 i = run.before; i < end; ++i) row[i] = from[i];
    transform_row<T, kStep, false, false>(row, 0, run.tiles, 0, 0, to, dst_pitch);
  }
}

// Inputs of one channel, tiles along the last axis, `step` apart, transformed along it; see kernels.h.
template <typename T>
void transform_rows(const T* x_begin, const T* x, const T* x_end, i64 ahead, bool far, i64 step, const TileRun* runs,
                    i64 count, T* dst, i64 dst_pitch) {
  const auto one = step == 2 ? (far ? transform_run<T, 2, true> : transform_run<T, 2, false>)
                             : (far ? transform_run<T, 3, true> : transform_run<T, 3, false>);
  for (const TileRun* run = runs; run != runs + count; ++run)
    one(x_begin, x, x_end, ahead, *run, dst + run->place, dst_pitch);
}

// Sets of vectors, in place if dst is src: four inputs as above; two or three taps g to (g0, (g0 + g1 + g2)/2, (g0 - g1
// + g2)/2, g2), without g1 of two; one as it is.
template <typename T, int kNumbers>
void transform_sets(const T* src, i64 pitch, i64 step, i64 sets, T* dst, i64 dst_pitch, i64 dst_step) {
  for (i64 i = 0; i < sets; ++i, src += step, dst += dst_step) {
    const Vector<T> first = load(src);
    if constexpr (kNumbers == 1) {
      store(dst, first);
    } else if constexpr (kNumbers == 4) {
      store_points<T>(first, load(src + pitch), load(src + 2 * pitch), load(src + 3 * pitch), dst, dst_pitch);
    } else {
      const Vector<T> middle = load(src + pitch), last = load(src + (kNumbers - 1) * pitch);
      const Vector<T> even = (kNumbers == 3 ? first + last : first) * T(0.5), odd = middle * T(0.5);
      store(dst, first);
      store(dst + dst_pitch, even + odd);
      store(dst + 2 * dst_pitch, even - odd);
      store(dst + 3 * dst_pitch, last);
    }
  }
}

// dst = (s0 + s1 + s2, s1 - s2, s1 + s2 - s3) for three outputs, (s0 + s1 + s2, s1 - s2 - s3) for two.
template <typename T>
void transform_sums(const T* const* src, i64 length, int outputs, T* dst, i64 dst_pitch) {
  const T *const p0 = src[0], *const p1 = src[1], *const p2 = src[2], *const p3 = src[3];
  for (i64 i = 0; i < length; i += kLanes<T>) {
    const Vector<T> s1 = load(p1 + i), s2 = load(p2 + i), s3 = load(p3 + i);
    const Vector<T> both = s1 + s2, difference = s1 - s2;
    store(dst + i, load(p0 + i) + both);
    if (outputs == 2) {
      store(dst + dst_pitch + i, difference - s3);
    } else {
      store(dst + dst_pitch + i, difference);
      store(dst + 2 * dst_pitch + i, both - s3);
    }
  }
}

// The same for `count` sets, with the bias, where every output belongs, if anywhere.
template <typename T>
void transform_outputs(const T* const* src, i64 src_step, i64 count, i64 length, int outputs, const T* bias,
                       T* const* dst, i64 dst_step, bool past_caches) {
  const T *p0 = src[0], *p1 = src[1], *p2 = src[2], *p3 = src[3];
  T *d0 = dst[0], *d1 = dst[1], *d2 = outputs == 3 ? dst[2] : nullptr;
  auto put = [&](T* to, i64 i, Vector<T> v) {
    if (!to) return;
    if (bias) v += load(bias + i);
    if (past_caches)
      store_past_caches(to + i, v);
    else
      store(to + i, v);
  };
  for (i64 set = 0; set < count; ++set) {
    for (i64 i = 0; i < length; i += kLanes<T>) {
      const Vector<T> s1 = load(p1 + i), s2 = load(p2 + i), s3 = load(p3 + i);
      const Vector<T> both = s1 + s2, difference = s1 - s2;
      put(d0, i, load(p0 + i) + both);
      if (outputs == 2) {
        put(d1, i, difference - s3);
      } else {
        put(d1, i, difference);
        put(d2, i, both - s3);
      }
    }
    p0 += src_step, p1 += src_step, p2 += src_step, p3 += src_step;
    if (d0) d0 += dst_step;
    if (d1) d1 += dst_step;
    if (d2) d2 += dst_step;
  }
}

}  // namespace upscore::UPSCORE_ISA
