// Products of float32 numbers by the matrix unit (AMX), which multiplies bfloat16 and adds in float32. A float32 number
// is the sum of three bfloat16 ones, exactly: 24 bits are three times 8. Of the nine products of two such sums the six
// larger ones are added; the others are less than a rounding (Henry, Tang, Heinecke 2019, arXiv:1904.06376).
#pragma once

#include <algorithm>

#include "kernels.h"
#include "product.h"
#include "vector.h"

#if defined(UPSCORE_AMX) && UPSCORE_VECTOR_BYTES == 64

namespace upscore::UPSCORE_ISA {

using Words = std::uint32_t __attribute__((vector_size(UPSCORE_VECTOR_BYTES)));
constexpr std::uint32_t kHigh = 0xffff0000;  // what of a float is a bfloat16

// Tiles are named by constants. The first hold sums; then come rows of weights and positions of inputs.
template <int Tile>
inline void load_tile(const void* from, i64 stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
inline void store_tile(void* to, i64 stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
}
template <int Sum, int W, int X>
inline void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(W), "i"(X));
}

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

inline void cut_turned(const float* src, i64 src_pitch, i64 rows, i64 places, std::uint16_t* dst, i64 part_pitch) {
  constexpr int L = kLanes<float>;
  for (i64 i = 0; i < places; i += L, dst += L * kBf16Terms) {
    Vector<float> in[L], low[L], high[L];
    for (int r = 0; r < L; ++r) in[r] = r < rows ? load(src + r * src_pitch + i) : Vector<float>{};
    zip<float, L>(in, low);
    for (int r = 0; r < L; ++r) in[r] = r + L < rows ? load(src + (r + L) * src_pitch + i) : Vector<float>{};
    zip<float, L>(in, high);
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
    Vector<float> in[L], out[L];
    for (int r = 0; r < L; ++r) in[r] = r < rows ? load(src + r * src_pitch + i) : Vector<float>{};
    zip<float, L>(in, out);
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
    Vector<float> in[L], out[L];
    for (i64 j = 0; j < L; ++j) in[j] = i + j < length ? load(src + (i + j) * src_pitch) : Vector<float>{};
    zip<float, L>(in, out);
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

// Makes this thread's tiles ready for products of so many rows, 1 to 32; or gives them up.
inline void use_tiles(int rows) {
  struct alignas(64) {
    std::uint8_t palette = 1, start = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {};
    std::uint8_t rows[16] = {};
  } tiles;
  if (rows == 0) {
    asm volatile("tilerelease" ::: "memory");
    return;
  }
  const bool two = rows > kBf16Rows;
  for (int t = 0; t < 8; ++t) {
    tiles.bytes[t] = 64;
    tiles.rows[t] = kBf16Rows;
  }
  if (two) {
    tiles.rows[2] = tiles.rows[3] = tiles.rows[5] = static_cast<std::uint8_t>(rows - kBf16Rows);
  } else {
    for (int t = 0; t < 5; ++t) tiles.rows[t] = static_cast<std::uint8_t>(rows);
  }
  asm volatile("ldtilecfg %0" ::"m"(tiles));
}

// The weights of the next rows are fetched while those of this one are multiplied, block by block of positions.
class Ahead {
 public:
  Ahead(const Bf16Product& p, i64 part, i64 blocks)
      : next_(p.w_next), lines_(next_ ? ceil_div(kBf16Parts * part, blocks * kLine) : 0) {}
  void fetch() {
    for (i64 i = 0; i < lines_; ++i, next_ += kLine) __builtin_prefetch(next_, 0, 2);
  }

 private:
  static constexpr i64 kLine = 32;  // numbers
  const std::uint16_t* next_;
  const i64 lines_;
};

// R tiles of rows by V of positions: sums in the first tiles, weights from 4 on, inputs in the last ones.
template <int R, int V>
struct Bf16Tiles {
  static constexpr int L = kLanes<float>, kWeights = 4, kInputs = R == 1 ? 5 : 6;
  static constexpr int sum(int row, int vector) { return R == 1 ? vector : 2 * row + vector; }

  template <int Row = 0>
  static void load_weights(const Bf16Product& p, const std::uint16_t* w) {
    load_tile<kWeights + Row>(w + Row * p.w_tile, p.w_row * i64{sizeof(*w)});
    if constexpr (Row + 1 < R) load_weights<Row + 1>(p, w);
  }
  template <int X = 0>
  static void load_inputs(const Bf16Product& p, const std::uint32_t* x) {
    load_tile<kInputs + X>(x + X * p.x_vector, p.x_row * i64{sizeof(*x)});
    if constexpr (X + 1 < V) load_inputs<X + 1>(p, x);
  }
  template <int I = 0>
  static void multiply() {
    multiply_tiles<sum(I / V, I % V), kWeights + I / V, kInputs + I % V>();
    if constexpr (I + 1 < R * V) multiply<I + 1>();
  }
  template <int I = 0>
  static void begin() {
    zero_tile<sum(I / V, I % V)>();
    if constexpr (I + 1 < R * V) begin<I + 1>();
  }
  template <int I = 0>
  static void end(float* c, i64 stride) {
    store_tile<sum(I / V, I % V)>(c + I / V * kBf16Rows * stride + I % V * L, stride * i64{sizeof(float)});
    if constexpr (I + 1 < R * V) end<I + 1>(c, stride);
  }

  // Every part of a block's weights and inputs with those that count; the least first. While the matrix unit is at it,
  // the processor does something else.
  template <typename Else>
  static void add_products(const Bf16Product& p, const std::uint16_t* weights, const std::uint32_t* x, Ahead& ahead,
                           Else& meanwhile) {
    for (i64 block = 0; block < p.blocks; ++block, x += p.x_block) {
      const std::uint16_t* const of_block = weights + block * p.w_block;
      for (i64 tap = 0; tap < p.taps; ++tap) {
        const std::uint16_t* const w = of_block + p.w_tap[tap];
        const std::uint32_t* const at = x + p.x_tap[tap];
        ahead.fetch();
        if (p.few) {
          load_weights(p, w);
          load_inputs(p, at);
          multiply();
          meanwhile();
          load_weights(p, w + p.w_part);
          load_inputs(p, at + p.x_part);
          multiply();
          meanwhile();
          load_inputs(p, at + 2 * p.x_part);
          multiply();
          meanwhile();
          continue;
        }
        load_weights(p, w + 2 * p.w_part);
        load_inputs(p, at);
        multiply();
        meanwhile();
        load_weights(p, w + p.w_part);
        multiply();
        meanwhile();
        load_inputs(p, at + p.x_part);
        multiply();
        meanwhile();
        load_weights(p, w);
        multiply();
        meanwhile();
        load_inputs(p, at + 2 * p.x_part);
        multiply();
        meanwhile();
        load_inputs(p, at);
        multiply();
        meanwhile();
      }
    }
  }
};

struct Nothing {
  void operator()() const {}
};

// Writes the sums of one block, some rows at a time, while those of the next are added up: to the sums before; as rows
// of the output, in pairs that alternate, or not; or each row to a place.
enum class To { kSums, kRows, kPairs, kPlaces };
template <To Where, bool PastCaches>
class LateRows {
 public:
  static constexpr int kPitch = 3 * kLanes<float>;

  explicit LateRows(const Bf16Product& p)
      : p_(p), steps_(static_cast<int>(std::max<i64>((p.few ? 3 : 6) * p.taps * p.blocks, 1))), row_(p.rows) {}
  ~LateRows() { write(p_.rows); }
  LateRows(const LateRows&) = delete;
  LateRows& operator=(const LateRows&) = delete;

  // Where sums of so many vectors from the first on are put; those before have been written.
  float* next_block(float* c, i64 first, int vectors) {
    write(p_.rows);
    c_ = c;
    sums_ = sums_ == all_[0] ? all_[1] : all_[0];
    vectors_ = vectors;
    for (int v = 0; v < vectors; ++v) {
      if constexpr (Where == To::kPlaces) {
        const auto [place, count, bias] = p_.places->vector[first + v];
        place_[v] = place;
        count_[v] = count;
        bias_[v] = bias ? load(bias) : Vector<float>{};
      } else if constexpr (Where != To::kSums) {
        vector_[v] = p_.out->vector[first + v];
      }
    }
    return sums_;
  }
  void begin() { row_ = due_ = 0; }

  // As many rows at each step, and no more: the matrix unit would have to wait.
  __attribute__((always_inline)) void operator()() {
    int end = row_;
    for (due_ += p_.rows; due_ >= steps_; due_ -= steps_) ++end;
    write(std::min(p_.rows, (end + kStep - 1) / kStep * kStep));
  }

 private:
  static constexpr int L = kLanes<float>, kStep = Where == To::kPairs ? 2 : 1;

  __attribute__((always_inline)) void write(int end) {
    if (vectors_ == 2 && (Where != To::kPlaces || (count_[0] == L && count_[1] == L)))
      for (; row_ < end; row_ += kStep) write_row<2>();
    else
      for (; row_ < end; row_ += kStep) write_row<0>();
  }

  // Of so many whole vectors; or of as many as there are, whole or not.
  template <int Vectors>
  __attribute__((always_inline)) void write_row() const {
    const int vectors = Vectors > 0 ? Vectors : vectors_;
    if constexpr (Where == To::kSums) {
      for (int v = 0; v < vectors; ++v) store(sums_before(row_, v), sum(row_, v));
    } else if constexpr (Where == To::kPlaces) {
      float* const to = p_.places->row[row_];
      if (!to) return;
      for (int v = 0; v < vectors; ++v) {
        const Vector<float> a = sum(row_, v) + bias_[v];
        if (Vectors > 0 || count_[v] == L)
          put<PastCaches, float>(to + place_[v], a);
        else
          store_part(to + place_[v], a, count_[v]);
      }
    } else {
      const auto [place, bias] = p_.out->row[row_ / kStep];
      for (int v = 0; v < vectors; ++v) {
        const Vector<float> a = sum(row_, v) + bias;
        if constexpr (Where == To::kRows)
          put<PastCaches, float>(vector_[v] + place, a);
        else
          put_pairs<PastCaches, float>(vector_[v] + place, a, sum(row_ + 1, v) + bias);
      }
    }
  }
  float* sums_before(int row, int v) const { return c_ + row * p_.c_stride + v * L; }
  Vector<float> sum(int row, int v) const {
    const Vector<float> s = load(sums_ + row * kPitch + v * L);
    return p_.accumulate ? s + load(sums_before(row, v)) : s;
  }

  alignas(64) float all_[2][2 * kBf16Rows * kPitch];
  const Bf16Product& p_;
  const int steps_;
  int row_, due_ = 0, vectors_ = 0;
  float* c_ = nullptr;
  float* sums_ = all_[0];
  // Of each vector: where it goes, so many numbers of it, and what is added to them.
  float* vector_[3];
  i64 place_[3], count_[3];
  Vector<float> bias_[3];
};

template <int R, int V, typename Late>
inline void bf16_tiles(const Bf16Product& p, i64 product, i64 first, Ahead& ahead, Late& late) {
  using Tiles = Bf16Tiles<R, V>;
  float* const c = p.c + p.c_offset[product] + first * Tiles::L;
  const std::uint32_t* const x = p.x + (p.x_offset ? p.x_offset[product] : 0) + first * p.x_vector;
  Tiles::begin();
  Tiles::add_products(p, p.w + p.w_offset[product], x, ahead, late);
  if constexpr (std::is_same_v<Late, Nothing>) {
    Tiles::end(c, p.c_stride);
  } else {
    Tiles::end(late.next_block(c, first, V), Late::kPitch);
    late.begin();
  }
}

template <typename Late>
inline void multiply_blocks(const Bf16Product& p, Late&& late) {
  const i64 wide = p.rows > kBf16Rows ? 2 : 3;
  Ahead ahead(p, (p.rows > kBf16Rows ? 2 : 1) * kBf16Tile, ceil_div(p.vectors, wide));
  for (i64 i = 0; i < p.products; ++i)
    for (i64 v = 0; v < p.vectors;) {
      const i64 n = next_vectors(p.vectors - v, wide);
      if (wide == 2)
        n == 2 ? bf16_tiles<2, 2>(p, i, v, ahead, late) : bf16_tiles<2, 1>(p, i, v, ahead, late);
      else
        n == 3   ? bf16_tiles<1, 3>(p, i, v, ahead, late)
        : n == 2 ? bf16_tiles<1, 2>(p, i, v, ahead, late)
                 : bf16_tiles<1, 1>(p, i, v, ahead, late);
      v += n;
    }
}

inline void bf16_product(const Bf16Product& p) {
  auto write = [&]<To Where>(bool past_caches) {
    past_caches ? multiply_blocks(p, LateRows<Where, true>(p)) : multiply_blocks(p, LateRows<Where, false>(p));
  };
  if (p.places) return write.template operator()<To::kPlaces>(p.places->past_caches);
  if (!p.out) return p.accumulate ? write.template operator()<To::kSums>(false) : multiply_blocks(p, Nothing{});
  if (p.pairs) return write.template operator()<To::kPairs>(p.out->past_caches);
  write.template operator()<To::kRows>(p.out->past_caches);
}

}  // namespace upscore::UPSCORE_ISA

#endif
