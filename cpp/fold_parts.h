// Folding by the matrix unit: what every input adds through each tap, from bfloat16 parts of both.
#pragma once

#include <vector>

#include "fold.h"

namespace upscore {

// Numbers of a vector of taps, of all columns, in parts: [block of 32 columns][part][tap][column].
i64 parts_of_vector(const Layer& layer);

// Weights (groups * cols, rows, taps) as [group][unit][vector], these as above.
template <typename T>
void pack_fold_parts(const Layer& layer, const FoldPacking& packing, const Kernels<T>& kernels, const Target& target,
                     int threads, const T* w, std::uint16_t* packed);

// A row of a map: the first column of its first input, and where what that adds through the first tap is put.
struct FoldLine {
  const float* x;
  float* c;
};

// `pitch` numbers lie from one column of inputs to the next, or channels last from one input to the next; `c_stride`
// from one tap's contributions to those of the next.
struct FoldProduct {
  const Bf16Kernels& kernels;
  i64 columns, pitch;
  bool last;
  i64 c_stride;
};

// c[tap][i] of so many vectors of taps, for i < length, of every line; up to a vector more of each row is written.
// There is room for two panels, of so many words each.
i64 fold_panel(i64 columns);
void multiply_parts_of(const FoldProduct& product, const std::uint16_t* weights, i64 vectors,
                       const std::vector<FoldLine>& lines, i64 length, std::uint32_t* panels);

}  // namespace upscore
