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

// Three vectors in turns: output O takes each lane from one of them.
template <typename T, int O, int... I>
inline Vector<T> zip_three(Vector<T> a, Vector<T> b, Vector<T> c, std::integer_sequence<int, I...>) {
  constexpr int L = kLanes<T>;
  constexpr Index<T> first_two = {((O * L + I) % 3 == 1 ? L + (O * L + I) / 3 : (O * L + I) / 3)...};
  constexpr Index<T> third = {((O * L + I) % 3 == 2 ? L + (O * L + I) / 3 : I)...};
  return __builtin_shuffle(__builtin_shuffle(a, b, first_two), c, third);
}

// S vectors in turns: output O picks from each of them.
template <typename T, int S, int O, int... I>
inline Vector<T> zip_prime(const Vector<T>* in, std::integer_sequence<int, I...>) {
  constexpr Index<T> at = {((O * kLanes<T> + I) / S)...};
  constexpr Index<T> from = {((O * kLanes<T> + I) % S)...};
  Vector<T> out = __builtin_shuffle(in[0], at);
  for (int r = 1; r < S; ++r) out = from == r ? __builtin_shuffle(in[r], at) : out;
  return out;
}
template <typename T, int S, typename Out, int... O>
inline void zip_primes(const Vector<T>* in, Out out, std::integer_sequence<int, O...>) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>{};
  ((out[O] = zip_prime<T, S, O>(in, lanes)), ...);
}

// Every `step`-th of some vectors.
template <typename In>
struct Every {
  const In& in;
  int step, first;
  auto operator[](int i) const { return in[step * i + first]; }
};

// The vectors of in[0..S) in turns: out[v] holds elements v*L .. of the interleaved run. Thirds, or halves, are zipped
// first, and then with each other.
template <typename T, int S, typename In, typename Out>
inline __attribute__((always_inline)) void zip(const In& in, Out out) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>{};
  constexpr int F = S % 3 == 0 ? 3 : 2, P = S / F;
  if constexpr (S == 1) {
    out[0] = in[0];
  } else if constexpr (S % F != 0) {
    Vector<T> all[S];
    for (int r = 0; r < S; ++r) all[r] = in[r];
    zip_primes<T, S>(all, out, std::make_integer_sequence<int, S>{});
  } else {
    Vector<T> part[F][P];
    for (int f = 0; f < F; ++f) zip<T, P>(Every<In>{in, F, f}, &part[f][0]);
    for (int i = 0; i < P; ++i)
      if constexpr (F == 2) {
        out[2 * i] = zip_low<T>(part[0][i], part[1][i], lanes);
        out[2 * i + 1] = zip_high<T>(part[0][i], part[1][i], lanes);
      } else {
        out[3 * i] = zip_three<T, 0>(part[0][i], part[1][i], part[2][i], lanes);
        out[3 * i + 1] = zip_three<T, 1>(part[0][i], part[1][i], part[2][i], lanes);
        out[3 * i + 2] = zip_three<T, 2>(part[0][i], part[1][i], part[2][i], lanes);
      }
  }
}

template <typename T>
void fill(T value, i64 length, T* dst) {
  constexpr int L = kLanes<T>;
  i64 i = 0;
  for (; i + L <= length; i += L) store(dst + i, Vector<T>{} + value);
  for (; i < length; ++i) dst[i] = value;
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

// The sums of each phase, from a position on.
template <typename T, typename Bias>
struct Phases {
  const T* src;
  i64 pitch;
  const Bias& bias;
  Vector<T> operator[](int r) const { return load(src + r * pitch) + bias(r); }
};

// Vectors that are stored one behind the other.
template <typename T>
struct Stores {
  struct Place {
    T* to;
    void operator=(Vector<T> v) const { store(to, v); }
  };
  T* dst;
  Place operator[](int v) const { return {dst + v * kLanes<T>}; }
};

template <typename T, int S, typename Bias>
void interleave_steps(const T* src, i64 pitch, i64 first, i64 last, Bias bias, T* dst, bool excess) {
  constexpr int L = kLanes<T>;
  const i64 limit = excess ? last + S * L - 1 : last;
  i64 e = first;
  for (; e < last && e % S != 0; ++e) *dst++ = src[(e % S) * pitch + e / S] + bias(e % S);
  for (; e < last && back_up<S * L, S>(first, last, limit, e, dst); e += S * L, dst += S * L) {
    zip<T, S>(Phases<T, Bias>{src + e / S, pitch, bias}, Stores<T>{dst});
  }
  for (; e < last; ++e) *dst++ = src[(e % S) * pitch + e / S] + bias(e % S);
}

constexpr i64 kManyPhases = 256;  // whose sums come from the second-level cache

// Any step from a vector's length on: blocks of phases and positions are transposed. Positions of several rows go
// together where their sums do; what a row lacks of its first and last one is left out. Without `excess` nothing is
// read behind the last one. With `Ahead` the next block's sums are fetched meanwhile.
template <typename T, typename Bias, bool Ahead>
class Transposed {
 public:
  Transposed(i64 pitch, i64 step, Bias bias, bool excess) : pitch_(pitch), step_(step), bias_(bias), excess_(excess) {}

  void add(const T* src, i64 first, i64 last, T* dst) {
    T* to = dst - first % step_;
    for (i64 q = first / step_, left = last - q * step_, skip = first % step_; left > 0; ++q, left -= step_, skip = 0) {
      const bool runs_on = src + q == from_ + count_;
      if (count_ == kLanes<T> || !runs_on) write();
      if (!runs_on) before_ = 0;
      if (count_ == 0) from_ = src + q;
      places_[count_++] = {to, skip, left < step_ ? left : step_};
      to += step_;
    }
  }

  void write() {
    constexpr int L = kLanes<T>;
    const int back = excess_ ? 0 : L - count_;
    if (back > before_) {
      for (int i = 0; i < count_; ++i)
        for (i64 r = places_[i].first; r < places_[i].last; ++r) places_[i].to[r] = from_[r * pitch_ + i] + bias_(r);
    } else {
      for (i64 block = 0; count_ > 0 && block < step_; block += L) {
        const i64 r = block + L <= step_ ? block : step_ - L;
        Vector<T> in[L], out[L];
        for (int i = 0; i < L; ++i) {
          in[i] = load(from_ - back + (r + i) * pitch_) + bias_(r + i);
          if constexpr (Ahead) __builtin_prefetch(from_ - back + (r + L + i) * pitch_);
        }
        zip<T, L>(in, out);
        for (int i = 0; i < count_; ++i) put(out[back + i], r, places_[i]);
      }
    }
    from_ += count_;
    before_ = count_;
    count_ = 0;
  }

 private:
  // Of a position: where its phases lie, and those that are wanted.
  struct Place {
    T* to;
    i64 first, last;
  };

  static void put(Vector<T> phases, i64 r, const Place& place) {
    constexpr int L = kLanes<T>;
    if (place.first <= r && r + L <= place.last) return store(place.to + r, phases);
    T some[L];
    store(some, phases);
    for (i64 p = place.first > r ? place.first : r; p < place.last && p < r + L; ++p) place.to[p] = some[p - r];
  }

  const i64 pitch_, step_;
  const Bias bias_;
  const bool excess_;
  const T* from_ = nullptr;
  int count_ = 0, before_ = 0;  // positions together, and those before them that can be read as well
  Place places_[kLanes<T>];
};

// Any other step, number by number.
template <typename T, typename Bias>
void interleave_any(const T* src, i64 pitch, i64 step, i64 first, i64 last, Bias bias, T* dst) {
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

template <typename T, typename Bias>
void interleave_with(const T* src, i64 pitch, i64 step, const RowPart* rows, i64 count, Bias bias, T* dst,
                     bool excess) {
  auto all = [&](auto one) {
    for (const RowPart* row = rows; row != rows + count; ++row)
      if (row->source < 0)
        fill(bias(0), row->last - row->first, dst + row->place);
      else
        one(src + row->source, row->first, row->last, dst + row->place);
  };
  if (step == 1)
    return all([&](const T* from, i64 first, i64 last, T* to) {
      for (i64 e = first; e < last; ++e) to[e - first] = from[e] + bias(0);
    });
  auto one_of = [&]<int... S>(std::integer_sequence<int, S...>) {
    return ((step == S && (all([&](const T* from, i64 first, i64 last, T* to) {
                             interleave_steps<T, S>(from, pitch, first, last, bias, to, excess);
                           }),
                           true)) ||
            ...);
  };
  if (one_of(std::integer_sequence<int, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 24>{})) return;
  if (step < kLanes<T>)
    return all(
        [&](const T* from, i64 first, i64 last, T* to) { interleave_any(from, pitch, step, first, last, bias, to); });
  auto transpose = [&](auto transposed) {
    all([&](const T* from, i64 first, i64 last, T* to) { transposed.add(from, first, last, to); });
    transposed.write();
  };
  if (step < kManyPhases)
    transpose(Transposed<T, Bias, false>(pitch, step, bias, excess));
  else
    transpose(Transposed<T, Bias, true>(pitch, step, bias, excess));
}

// One bias stays in a register.
template <typename T>
void interleave(const T* src, i64 pitch, i64 step, const RowPart* rows, i64 count, const T* bias, i64 each, T* dst,
                bool excess) {
  if (each == 0)
    interleave_with<T>(src, pitch, step, rows, count, [one = bias ? *bias : T(0)](i64) { return one; }, dst, excess);
  else
    interleave_with<T>(src, pitch, step, rows, count, [bias](i64 phase) { return bias[phase]; }, dst, excess);
}

// Pieces of kCount numbers, the last of which overlaps the one before; or pieces of half as many.
template <typename T, int kCount>
inline void copy_row(const T* src, i64 length, T* dst) {
  if constexpr (kCount == 1) {
    if (length > 0) *dst = *src;
  } else {
    if (length < kCount) return copy_row<T, kCount / 2>(src, length, dst);
    i64 i = 0;
    for (; i + kCount <= length; i += kCount) std::memcpy(dst + i, src + i, kCount * sizeof(T));
    if (i < length) std::memcpy(dst + length - kCount, src + length - kCount, kCount * sizeof(T));
  }
}

template <typename T>
void copy_rows(const T* src, const RowPart* rows, i64 count, T* dst) {
  for (const RowPart* row = rows; row != rows + count; ++row)
    copy_row<T, kLanes<T>>(src + row->source + row->first, row->last - row->first, dst + row->place);
}

}  // namespace upscore::UPSCORE_ISA
