// Products of float32 numbers by the matrix unit (AMX), which multiplies bfloat16 and adds in float32. A float32 number
// is the sum of three bfloat16 ones, exactly: 24 bits are three times 8. Of the nine products of two such sums the six
// larger ones are added; the others are less than a rounding (Henry, Tang, Heinecke 2019, arXiv:1904.06376).
#pragma once

#include <algorithm>

#include "bf16_parts.h"
#include "product.h"

#if defined(UPSCORE_AMX) && UPSCORE_VECTOR_BYTES == 64

namespace upscore::UPSCORE_ISA {

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
      : p_(p), steps_(static_cast<int>(std::max<i64>(p.steps(), 1))), row_(p.rows) {}
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
