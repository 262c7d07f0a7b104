// Float32 numbers as sums of three bfloat16 ones, in the orders in which the matrix unit reads them: inputs cut into
// parts, weights rounded to them, sums turned to where they belong.
#pragma once

#include <algorithm>

#include "interleave.h"
#include "kernels.h"
#include "vector.h"

#if defined(UPSCORE_AMX) && UPSCORE_VECTOR_BYTES == 64

namespace upscore::UPSCORE_ISA {

using Words = std::uint32_t __attribute__((vector_size(UPSCORE_VECTOR_BYTES)));
constexpr std::uint32_t kHigh = 0xffff0000;  // what of a float is a bfloat16

// The first numbers of a vector, at most all, at least none.
inline __mmask16 first_lanes(i64 count) {
  return static_cast<__mmask16>((1u << std::clamp<i64>(count, 0, kLanes<float>)) - 1);
}
inline Vector<float> load_part(const float* from, i64 count) {
  return reinterpret_cast<Vector<float>>(_mm512_maskz_loadu_ps(first_lanes(count), from));
}
inline void store_part(float* to, Vector<float> v, i64 count) {
  _mm512_mask_storeu_ps(to, first_lanes(count), reinterpret_cast<__m512>(v));
}

// The part of a float that is a bfloat16: cut off, or rounded, unless to infinity, so that what is left out of products
// has either sign.
template <bool Rounded>
inline Words high_part(Vector<float> v) {
  const Words bits = reinterpret_cast<Words>(v);
  if constexpr (!Rounded) return bits & kHigh;
  const Words carry = reinterpret_cast<Words>((bits & 0x7fffffff) < 0x7f7f8000) & 0x8000;
  return (bits + carry) & kHigh;
}

// How a part of two vectors becomes one of words of two numbers: number by number, or one vector behind the other.
struct Pairs {
  Words operator()(Words low, Words high) const { return (low >> 16) | high; }
};
struct Neighbours {
  using Halves = std::uint16_t __attribute__((vector_size(UPSCORE_VECTOR_BYTES)));
  template <int... I>
  static Words join(Words first, Words then, std::integer_sequence<int, I...>) {
    constexpr Halves pick = {static_cast<std::uint16_t>(2 * I + 1)...};
    return reinterpret_cast<Words>(
        __builtin_shuffle(reinterpret_cast<Halves>(first), reinterpret_cast<Halves>(then), pick));
  }
  Words operator()(Words first, Words then) const {
    return join(first, then, std::make_integer_sequence<int, 2 * kLanes<float>>{});
  }
};

// The parts of two vectors, the largest first.
template <bool Rounded, typename Join>
inline void split(Vector<float> a, Vector<float> b, Words (&part)[kBf16Parts]) {
#pragma GCC unroll 3
  for (int i = 0; i < kBf16Parts; ++i) {
    const Words of_a = high_part<Rounded>(a), of_b = high_part<Rounded>(b);
    part[i] = Join()(of_a, of_b);
    a -= reinterpret_cast<Vector<float>>(of_a);
    b -= reinterpret_cast<Vector<float>>(of_b);
  }
}

// dst[part][pair][i] of rows 2*pair and 2*pair + 1, `pitch` words from one pair to the next: of 32 rows, of which there
// are `rows`; the others are zeros.
template <bool Rounded>
inline void split_panel(const float* src, i64 src_pitch, i64 rows, i64 length, std::uint32_t* dst, i64 pitch) {
  constexpr int L = kLanes<float>;
  for (i64 pair = 0; pair < kBf16Terms / 2; ++pair, src += 2 * src_pitch, dst += pitch) {
    const bool low = 2 * pair < rows, high = 2 * pair + 1 < rows;
    for (i64 i = 0; i < length; i += L) {
      Words part[kBf16Parts] = {};
      if (low) split<Rounded, Pairs>(load(src + i), high ? load(src + src_pitch + i) : Vector<float>{}, part);
#pragma GCC unroll 3
      for (int p = 0; p < kBf16Parts; ++p)
        std::memcpy(dst + p * (kBf16Terms / 2) * pitch + i, &part[p], sizeof part[p]);
    }
  }
}

// A tile of weights, [column][16 rows], to three of [row][32 columns], `apart` numbers from one to the next; zeros
// where there are no more columns.
inline void round_weights(const float* src, i64 columns, std::uint16_t* dst, i64 apart) {
  constexpr int L = kLanes<float>;
  Vector<float> words[kBf16Parts][L], turned[L];
  for (i64 pair = 0; pair < kBf16Terms / 2; ++pair, src += 2 * L) {
    Words part[kBf16Parts] = {};
    if (2 * pair < columns)
      split<true, Pairs>(load(src), 2 * pair + 1 < columns ? load(src + L) : Vector<float>{}, part);
    for (int p = 0; p < kBf16Parts; ++p) words[p][pair] = reinterpret_cast<Vector<float>>(part[p]);
  }
  for (int p = 0; p < kBf16Parts; ++p) {
    zip<float, L>(words[p], turned);
    for (int r = 0; r < L; ++r) std::memcpy(dst + p * apart + r * kBf16Terms, &turned[r], sizeof turned[r]);
  }
}

inline void cut_places(const float* src, i64 step, i64 places, i64 columns, std::uint16_t* dst, i64 part_pitch,
                       i64 block_pitch) {
  constexpr int L = kLanes<float>;
  for (; places > 0; --places, src += step, dst += kBf16Terms) {
    std::uint16_t* to = dst;
    for (i64 c = 0; c < columns; c += kBf16Terms, to += block_pitch) {
      const bool whole = c + kBf16Terms <= columns;
      Words part[kBf16Parts];
      split<false, Neighbours>(whole ? load(src + c) : load_part(src + c, columns - c),
                               whole ? load(src + c + L) : load_part(src + c + L, columns - c - L), part);
#pragma GCC unroll 3
      for (int p = 0; p < kBf16Parts; ++p) std::memcpy(to + p * part_pitch, &part[p], sizeof part[p]);
    }
  }
}

// A vector of each of 16 rows, of which there are `rows`, `pitch` apart, turned; the others are zeros.
inline void load_turned(const float* from, i64 pitch, i64 rows, Vector<float> (&out)[kLanes<float>]) {
  Vector<float> in[kLanes<float>];
  for (int r = 0; r < kLanes<float>; ++r) in[r] = r < rows ? load(from + r * pitch) : Vector<float>{};
  zip<float, kLanes<float>>(in, out);
}

inline void cut_turned(const float* src, i64 src_pitch, i64 rows, i64 places, std::uint16_t* dst, i64 part_pitch) {
  constexpr int L = kLanes<float>;
  for (i64 i = 0; i < places; i += L, dst += L * kBf16Terms) {
    Vector<float> low[L], high[L];
    load_turned(src + i, src_pitch, rows, low);
    load_turned(src + L * src_pitch + i, src_pitch, rows - L, high);
    for (int place = 0; place < L; ++place) {
      Words part[kBf16Parts];
      split<false, Neighbours>(low[place], high[place], part);
      for (int p = 0; p < kBf16Parts; ++p)
        std::memcpy(dst + p * part_pitch + place * kBf16Terms, &part[p], sizeof part[p]);
    }
  }
}

// Low and high parts of few columns, and high and middle ones.
inline void split_few(Vector<float> v, Words (&line)[2]) {
  Words part[kBf16Parts];
  for (Words& p : part) {
    p = high_part<false>(v);
    v -= reinterpret_cast<Vector<float>>(p);
  }
  line[0] = Neighbours()(part[2], part[0]);
  line[1] = Neighbours()(part[0], part[1]);
}

inline void cut_few_places(const float* src, i64 step, i64 places, i64 columns, std::uint16_t* dst, i64 line_pitch) {
  for (; places > 0; --places, src += step, dst += kBf16Terms) {
    Words line[2];
    split_few(load_part(src, columns), line);
    for (int i = 0; i < 2; ++i) std::memcpy(dst + i * line_pitch, &line[i], sizeof line[i]);
  }
}

inline void cut_few_turned(const float* src, i64 src_pitch, i64 rows, i64 places, std::uint16_t* dst, i64 line_pitch) {
  constexpr int L = kLanes<float>;
  for (i64 i = 0; i < places; i += L, dst += L * kBf16Terms) {
    Vector<float> out[L];
    load_turned(src + i, src_pitch, rows, out);
    for (int place = 0; place < L; ++place) {
      Words line[2];
      split_few(out[place], line);
      for (int l = 0; l < 2; ++l) std::memcpy(dst + l * line_pitch + place * kBf16Terms, &line[l], sizeof line[l]);
    }
  }
}

inline void round_few(const float* src, i64 src_pitch, i64 rows, std::uint32_t* dst) {
  constexpr int L = kLanes<float>;
  constexpr i64 kPairs = kBf16Few / 2;
  std::uint32_t parts[kBf16Parts * kBf16Tile / 2];
  split_panel<true>(src, src_pitch, rows, L, parts, L);
  for (const int part : {0, 2, 1, 0, 0, 1}) {
    std::memcpy(dst, parts + part * kBf16Tile / 2, kPairs * L * sizeof *dst);
    dst += kPairs * L;
  }
}

inline void put_turned(const float* src, i64 src_pitch, i64 length, i64 rows, const float* bias, float* dst,
                       i64 dst_pitch, bool past_caches) {
  constexpr int L = kLanes<float>;
  for (i64 i = 0; i < length; i += L) {
    Vector<float> out[L];
    load_turned(src + i * src_pitch, src_pitch, length - i, out);
    for (i64 r = 0; r < rows; ++r) {
      const Vector<float> v = bias ? out[r] + bias[r] : out[r];
      float* const to = dst + r * dst_pitch + i;
      if (i + L > length)
        store_part(to, v, length - i);
      else if (past_caches)
        store_past_caches(to, v);
      else
        store(to, v);
    }
  }
}

// dst[part*apart + i] for i < length, in whole pairs of vectors.
inline void cut_row(const float* src, i64 length, std::uint16_t* dst, i64 apart) {
  for (i64 i = 0; i < length; i += kBf16Terms) {
    Words part[kBf16Parts];
    split<false, Neighbours>(load(src + i), load(src + i + kLanes<float>), part);
    for (int p = 0; p < kBf16Parts; ++p) std::memcpy(dst + p * apart + i, &part[p], sizeof part[p]);
  }
}

inline void round_rows(const float* src, i64 src_pitch, i64 rows, i64 blocks, std::uint32_t* dst) {
  constexpr int L = kLanes<float>;
  Vector<float> words[kBf16Parts][L], turned[L];
  for (i64 block = 0; block < blocks; ++block, src += kBf16Terms)
    for (int r = 0; r < L; ++r) {
      Words part[kBf16Parts] = {};
      const float* const row = src + r * src_pitch;
      if (r < rows) split<true, Neighbours>(load(row), load(row + L), part);
      for (int p = 0; p < kBf16Parts; ++p) words[p][r] = reinterpret_cast<Vector<float>>(part[p]);
      if (r + 1 < L) continue;
      for (int p = 0; p < kBf16Parts; ++p) {
        zip<float, L>(words[p], turned);
        for (int i = 0; i < L; ++i, dst += L) std::memcpy(dst, &turned[i], sizeof turned[i]);
      }
    }
}

inline void cut_pairs(const float* first, const float* second, i64 step, i64 places, i64 columns, std::uint32_t* dst,
                      i64 vector_pitch, i64 part_pitch) {
  constexpr int L = kLanes<float>;
  const float* const rows[2] = {first, second};
  for (i64 c = 0; c < columns; c += L, dst += vector_pitch) {
    const __mmask16 lanes = first_lanes(columns - c);
    for (i64 place = 0; place < places; ++place) {
      Vector<float> pair[2] = {};
      for (int i = 0; i < 2; ++i)
        if (rows[i])
          pair[i] = reinterpret_cast<Vector<float>>(_mm512_maskz_loadu_ps(lanes, rows[i] + place * step + c));
      Words part[kBf16Parts];
      split<false, Pairs>(pair[0], pair[1], part);
#pragma GCC unroll 3
      for (int p = 0; p < kBf16Parts; ++p) std::memcpy(dst + p * part_pitch + place * L, &part[p], sizeof part[p]);
    }
  }
}

inline void round_pair(const float* first, const float* second, i64 length, std::uint32_t* dst, i64 part_pitch) {
  constexpr int L = kLanes<float>;
  for (i64 i = 0; i < length; i += L) {
    Words part[kBf16Parts];
    split<true, Pairs>(load(first + i), load(second + i), part);
    for (int p = 0; p < kBf16Parts; ++p) std::memcpy(dst + p * part_pitch + i, &part[p], sizeof part[p]);
  }
}

}  // namespace upscore::UPSCORE_ISA

#endif
