// Channels that do not mix: lanes run along the output row, so results need no interleaving.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "vector.h"

namespace upscore::UPSCORE_ISA {

// What recurs along the row, and is not the same for every vector: nothing, the biases, or the weights as well.
enum class Recurring { kNothing, kBias, kWeights };

// U vectors of sums from i on; kTaps: known to the compiler, or 0.
template <typename T, int kTaps, Recurring kWhat>
class StencilSums {
 public:
  static constexpr int L = kLanes<T>;
  static constexpr bool kSame = kWhat != Recurring::kWeights;
  explicit StencilSums(const Stencil<T>& s) : s_(s), phase_(s.phase) {
    for (int tap = 0; tap < kTaps; ++tap) {
      w_[tap] = s.w + tap * s.w_pitch;
      x_[tap] = s.x[tap] + s.first;
      weight_[tap] = load(w_[tap] + first_weight());
    }
    bias_ = load(s.bias + phase_);
  }
  template <int U>
  void next(i64 i, Vector<T>* sums) {
    i64 phase[U];
    for (int u = 0; u < U; ++u) {
      sums[u] = Vector<T>{};
      phase[u] = phase_;
      phase_ += s_.turn;
      if (phase_ >= s_.step) phase_ -= s_.step;
    }
    if constexpr (kTaps > 0) {
#pragma GCC unroll 4
      for (int tap = 0; tap < kTaps; ++tap)
        for (int u = 0; u < U; ++u)
          sums[u] += load(x_[tap] + i + u * L) * (kSame ? weight_[tap] : load(w_[tap] + phase[u]));
    } else {
      const T* w = s_.w;
      for (i64 tap = 0; tap < s_.taps; ++tap, w += s_.w_pitch) {
        const T* const x = s_.x[tap] + s_.first + i;
        if constexpr (kSame) {
          const Vector<T> weight = load(w + first_weight());
          for (int u = 0; u < U; ++u) sums[u] += load(x + u * L) * weight;
        } else {
          for (int u = 0; u < U; ++u) sums[u] += load(x + u * L) * load(w + phase[u]);
        }
      }
    }
    for (int u = 0; u < U; ++u) sums[u] += kWhat == Recurring::kNothing ? bias_ : load(s_.bias + phase[u]);
  }

 private:
  i64 first_weight() const { return kWhat == Recurring::kBias ? 0 : s_.phase; }

  const Stencil<T> s_;  // stores might change what lies in memory, as far as a compiler knows
  i64 phase_;
  const T *w_[kTaps + 1], *x_[kTaps + 1];
  Vector<T> weight_[kTaps + 1], bias_;
};

template <typename T, int kTaps, Recurring kWhat>
void stencil_row(const Stencil<T>& s) {
  constexpr int L = kLanes<T>, U = kTaps > 0 ? 1 : 4;
  const i64 head = s.head, length = s.length;
  T *const out = s.out, *const rest = s.rest;
  const bool past_caches = s.past_caches;
  StencilSums<T, kTaps, kWhat> row(s);
  const auto put = [&](i64 i, Vector<T> v) { past_caches ? store_past_caches(out + i, v) : store(out + i, v); };
  Vector<T> sums[U];
  i64 i = 0;
  if (head > 0) {
    row.template next<1>(0, sums);
    sums[0] = lane_numbers<T>() < static_cast<LaneIndex<T>>(head) ? load(rest) : sums[0];
    if (length < L) return store(rest, sums[0]);
    put(0, sums[0]);
    i = L;
  }
  for (; i + U * L <= length; i += U * L) {
    row.template next<U>(i, sums);
    for (int u = 0; u < U; ++u) put(i + u * L, sums[u]);
  }
  if constexpr (U > 1)
    for (; i + L <= length; i += L) {
      row.template next<1>(i, sums);
      put(i, sums[0]);
    }
  if (i == length) return;
  row.template next<1>(i, sums);
  store(rest, sums[0]);
}

template <typename T, int kTaps>
void stencil_of(const Stencil<T>& s) {
  s.turn == 0 ? stencil_row<T, kTaps, Recurring::kNothing>(s)
  : s.alike   ? stencil_row<T, kTaps, Recurring::kBias>(s)
              : stencil_row<T, kTaps, Recurring::kWeights>(s);
}

template <typename T>
void stencil(const Stencil<T>& s) {
  switch (s.taps) {
    case 1:
      return stencil_of<T, 1>(s);
    case 2:
      return stencil_of<T, 2>(s);
    case 4:
      return stencil_of<T, 4>(s);
    default:
      return stencil_of<T, 0>(s);
  }
}

// dst[i*step + e] = src[i] for i < count, e < step.
template <typename T>
void repeat(const T* src, i64 count, i64 step, T* dst) {
  constexpr int L = kLanes<T>;
  if (step >= L || count < L) {
    for (i64 i = 0; i < count; ++i, dst += step)
      for (i64 e = 0; e < step; e += L) store(dst + e, src[i] - Vector<T>{});
    return;
  }
  // Whole vectors; the inputs of the last ones are found among the last ones that make a vector.
  using Lane = LaneIndex<T>;
  const Lane inverse = static_cast<Lane>((1 << 16) / step + 1);
  Lane phase = 0;
  for (i64 o = 0, i = 0; o < count * step; o += L, i += L / step) {
    if (phase >= step) {
      phase -= static_cast<Lane>(step);
      ++i;
    }
    const i64 from = std::min(i, count - L);
    const Index<T> index = ((lane_numbers<T>() + phase) * inverse >> 16) + static_cast<Lane>(i - from);
    store(dst + o, __builtin_shuffle(load(src + from), index));
    phase += static_cast<Lane>(L % step);
  }
}

// dst[(i*times + t)*channels + c] = src[i*channels + c] for i < count, t < times, c < channels.
template <typename T>
void repeat_pixels(const T* src, i64 count, i64 channels, i64 times, T* dst) {
  constexpr int L = kLanes<T>;
  for (; count > 0; --count, src += channels)
    for (i64 t = 0; t < times; ++t, dst += channels)
      for (i64 c = 0; c < channels; c += L) store(dst + c, load(src + c));
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
  for (i64 repeat = 0, shift = 0; repeat < s.repeats; ++repeat, shift += s.x_step, out += s.channels)
    for (i64 i = 0; i < s.channels; i += L) {
      Vector<T> sum{};
      if constexpr (kTaps > 0) {
#pragma GCC unroll 4
        for (int tap = 0; tap < kTaps; ++tap) sum += load(x[tap] + shift + i) * load(w[tap] + i);
      } else {
        for (i64 tap = 0; tap < s.taps; ++tap) sum += load(s.x[tap] + shift + i) * load(s.w[tap] + i);
      }
      store(out + i, sum + load(s.bias + i));
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
