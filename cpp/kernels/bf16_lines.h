// Products by the matrix unit of weights and lines of inputs: while it multiplies some of these, the processor cuts the
// next ones into parts.
#pragma once

#include "bf16.h"

#if defined(UPSCORE_AMX) && UPSCORE_VECTOR_BYTES == 64

namespace upscore::UPSCORE_ISA {

// So many lines, `pitch` apart, and of each so many numbers; zeros for the others.
template <int Lines>
inline __attribute__((always_inline)) void load_lines(const float* from, i64 pitch, i64 count, i64 length, i64 ahead,
                                                      Vector<float> (&lines)[Lines]) {
  constexpr int L = kLanes<float>;
  if (count >= Lines && length >= L) {
#pragma GCC unroll 16
    for (int i = 0; i < Lines; ++i) {
      lines[i] = load(from + i * pitch);
      __builtin_prefetch(from + i * pitch + ahead, 0, 2);
    }
  } else {
    for (int i = 0; i < Lines; ++i) lines[i] = i < count ? load_part(from + i * pitch, length) : Vector<float>{};
  }
}

inline void turn_places(const Bf16Cut& cut) {
  constexpr int L = kLanes<float>;
  Vector<float> in[L], out[L];
  load_lines(cut.x + cut.vector * L * cut.pitch + cut.column, cut.pitch, cut.places - cut.vector * L,
             cut.columns - cut.column, cut.ahead, in);
  zip<float, L>(in, out);
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) store(cut.turned + i * L, out[i]);
}

inline __attribute__((always_inline)) void cut_unit(Bf16Cut& cut) {
  constexpr int L = kLanes<float>, kColumns = 4;
  const i64 vectors = cut.vectors(), column = cut.column;
  const int step = cut.last ? static_cast<int>(cut.step) - 1 : static_cast<int>(cut.step);
  if (step < 0) {
    turn_places(cut);
  } else {
    Vector<float> lines[kColumns];
    if (cut.last) {
#pragma GCC unroll 4
      for (int i = 0; i < kColumns; ++i) lines[i] = load(cut.turned + (step * kColumns + i) * L);
    } else if (const i64 first = column + step * kColumns; cut.offset) {
      const float* const from = cut.x + cut.vector * L;
#pragma GCC unroll 4
      for (int i = 0; i < kColumns; ++i)
        lines[i] = first + i < cut.columns ? load(from + cut.offset[first + i]) : Vector<float>{};
    } else {
      load_lines(cut.x + first * cut.pitch + cut.vector * L, cut.pitch, cut.columns - first,
                 cut.places - cut.vector * L, cut.ahead, lines);
    }
    std::uint32_t* to = cut.panel + (column / kBf16Terms * kBf16Parts * vectors + cut.vector) * L * L +
                        (column % kBf16Terms + step * kColumns) / 2 * L;
#pragma GCC unroll 2
    for (int i = 0; i < kColumns; i += 2, to += L) {
      Words part[kBf16Parts];
      split<false, Pairs>(lines[i], lines[i + 1], part);
#pragma GCC unroll 3
      for (int p = 0; p < kBf16Parts; ++p) std::memcpy(to + p * vectors * L * L, &part[p], sizeof part[p]);
    }
  }
  if (++cut.step < cut.steps()) return;
  cut.step = 0;
  if (++cut.vector < vectors) return;
  cut.vector = 0;
  cut.column += L;
}

inline void cut_units(Bf16Cut& cut, i64 units) {
  for (; units > 0; --units) cut_unit(cut);
}

// So many units, a share of them at each of so many steps: after a few more the matrix unit would have to wait.
class Cutting {
 public:
  Cutting(Bf16Cut& cut, i64 units, i64 steps) : cut_(cut), units_(units), steps_(steps) {}
  void operator()() {
    for (due_ += units_; due_ >= steps_; due_ -= steps_) cut_unit(cut_);
  }

 private:
  Bf16Cut& cut_;
  i64 due_ = 0;
  const i64 units_, steps_;
};

template <int R, int V>
inline void product_of_tiles(const Bf16Product& p, Cutting& meanwhile) {
  using Tiles = Bf16Tiles<R, V>;
  constexpr i64 L = Tiles::L;
  Ahead none(p, 0, 1);
  Tiles::begin();
  Tiles::add_products(p, p.w, p.x, none, meanwhile);
  if (!p.accumulate) return Tiles::end(p.c, p.c_stride);
  alignas(64) float sums[R * kBf16Rows * V * L];
  Tiles::end(sums, V * L);
  for (i64 row = 0; row < R * kBf16Rows; ++row)
    for (i64 v = 0; v < V; ++v) {
      float* const c = p.c + row * p.c_stride + v * L;
      store(c, load(c) + load(sums + (row * V + v) * L));
    }
}

inline void product_and_cut(const Bf16Product& p, Bf16Cut& next, i64 units) {
  Cutting meanwhile(next, units, p.steps());
  if (p.rows > kBf16Rows)
    p.vectors == 2 ? product_of_tiles<2, 2>(p, meanwhile) : product_of_tiles<2, 1>(p, meanwhile);
  else
    p.vectors == 2 ? product_of_tiles<1, 2>(p, meanwhile) : product_of_tiles<1, 1>(p, meanwhile);
}

inline const Bf16Kernels* bf16_kernels() {
  static constexpr Bf16Kernels all = {split_panel<false>, split_panel<true>, cut_places,    cut_turned, cut_few_places,
                                      cut_few_turned,     round_few,         put_turned,    cut_row,    round_rows,
                                      cut_pairs,          round_pair,        round_weights, use_tiles,  bf16_product,
                                      cut_units,          product_and_cut};
  return &all;
}

}  // namespace upscore::UPSCORE_ISA

#endif
