// Products by the matrix unit of weights and lines of inputs, both in bfloat16 parts: inputs are cut into parts while
// those before them are multiplied.
#pragma once

#include <vector>

#include "kernels/kernels.h"

namespace upscore {

// Weights are [vector of rows][block of 32 columns][part][row][column]: numbers of a vector, and one made of
// plain[column][row].
i64 parts_of_vector(i64 columns);
void round_vector(const Bf16Kernels& kernels, const float* plain, i64 columns, std::uint16_t* to);

// The first column of a line's first input, and where its product with the first row is put.
struct PartsLine {
  const float* x;
  float* c;
};

// `pitch` numbers lie from one column of inputs to the next, or with `last` from one input to the next; or each column
// where `offset` says, and up to a vector more of them is read. `c_stride` from one row of sums to the next.
struct PartsProduct {
  const Bf16Kernels& kernels;
  i64 columns, pitch;
  bool last;
  const i64* offset;
  i64 c_stride;
};

// c[row][i] of so many vectors of rows, for i < length, of every line; up to a vector more of each row is written.
// There is room for two panels, of so many words each.
i64 parts_panel(i64 columns);
constexpr i64 kMostPartsColumns = 1536;  // whose panels leave room for others in a core's cache
void multiply_in_parts(const PartsProduct& product, const std::uint16_t* weights, i64 vectors,
                       const std::vector<PartsLine>& lines, i64 length, std::uint32_t* panels);

}  // namespace upscore
