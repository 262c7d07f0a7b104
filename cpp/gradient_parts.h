// What both ways have in common by which a matrix unit computes the gradient of the weights: the output's gradient, in
// bfloat16 parts, is split into planes, by residues of the stride and taps of the first axis.
#pragma once

#include <algorithm>
#include <vector>

#include "gradient_tiles.h"

namespace upscore {

constexpr i64 kTwoTiles = 2 * kBf16Rows;  // channels that are multiplied together
constexpr i64 kMostPartsChannels = 256;   // of a task
constexpr i64 kMostPartsTaps = 256;       // of a layer
constexpr double kAddedSum = 0.15;        // cycles to add a sum to that of other tiles

struct TapPlanes {
  // Of a stride, that taps come to, and how far from a tile's positions they reach then.
  struct Residue {
    i64 at, beside;
  };

  explicit TapPlanes(const Layer& of_layer) : layer(of_layer) {
    for (std::size_t a = 1; a < kAxes; ++a)
      for (i64 tap = 0; tap < layer.kernel[a]; ++tap) {
        const i64 at = tap * layer.dilation[a], reach = at / layer.stride[a];
        const i64 index = index_of(a, at);
        if (index == count(a)) residues[a].push_back({at % layer.stride[a], 0});
        Residue& residue = residues[a][static_cast<std::size_t>(index)];
        residue.beside = std::max(residue.beside, reach);
        beside[a] = std::max(beside[a], reach);
      }
  }

  i64 count(std::size_t axis) const { return static_cast<i64>(residues[axis].size()); }
  i64 planes() const { return layer.kernel[0] * count(1) * count(2); }

  // What a tap reads for a tile's first position, where planes and their lines have so many places.
  i64 place_of(i64 tap, i64 plane, i64 line) const {
    const i64 across = tap % layer.kernel[2] * layer.dilation[2];
    const i64 down = tap / layer.kernel[2] % layer.kernel[1] * layer.dilation[1];
    const i64 first = tap / (layer.kernel[1] * layer.kernel[2]) * count(1);
    const i64 index = (first + index_of(1, down)) * count(2) + index_of(2, across);
    return index * plane + down / layer.stride[1] * line + across / layer.stride[2];
  }

  const Layer& layer;
  std::vector<Residue> residues[kAxes];
  i64 beside[kAxes] = {};  // positions beside a tile's that taps reach

 private:
  i64 index_of(std::size_t axis, i64 at) const {
    const auto same = [&](const Residue& r) { return r.at == at % layer.stride[axis]; };
    return std::find_if(residues[axis].begin(), residues[axis].end(), same) - residues[axis].begin();
  }
};

// Whether the matrix unit can be used, with so many channels at least.
template <typename T>
bool has_gradient_in_parts(const GradientInputs<T>& in, i64 fewest) {
  return in.kernels.bf16 && in.call.batch > 0 && in.in_plane() > 0 && in.layer.rows >= fewest &&
         in.layer.cols >= fewest && in.layer.taps() <= kMostPartsTaps;
}

// Cycles of a tap's products of so many rows and columns, of 32 terms; rows of tiles may begin within cache lines.
inline double parts_product_cycles(i64 rows, i64 columns, bool shifted) {
  constexpr double kProduct = 9;    // a row with 16 columns
  constexpr double kWait = 36;      // rows of products, before the next ones may be added to the same sums
  constexpr double kShifted = 4.6;  // a row that begins within a cache line, for one or two products
  const i64 vectors = ceil_div(columns, kBf16Rows);
  double cycles = 0;
  for (i64 row = 0; row < rows; row += kTwoTiles) {
    const i64 here = std::min(kTwoTiles, rows - row), passes = ceil_div(vectors, here > kBf16Rows ? 2 : 3);
    cycles += kProduct * std::max(static_cast<double>(here * vectors), kWait * static_cast<double>(passes));
    if (shifted) cycles += kShifted * static_cast<double>(here * passes);
  }
  return cycles;
}

// A size as large as fits, at most so large, and such that pieces of that are even.
template <typename Fits>
void grow(i64& size, i64 most, Fits&& fits) {
  while (size < most && (++size, fits())) {
  }
  if (!fits()) --size;
  size = piece(most, size);
}

}  // namespace upscore
