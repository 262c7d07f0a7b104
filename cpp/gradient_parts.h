// What both ways have in common by which a matrix unit computes the gradient of the weights: the output's gradient, in
// bfloat16 parts, is split into planes, by residues of the stride and taps of the first axis; of each tile both
// operands are cut into parts and multiplied, tap by tap.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "gradient_tiles.h"
#include "scratch.h"

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

// A way, of which the layout is its own.
class GradientInParts : public WeightGradient<float> {
 public:
  bool usable() const { return usable_; }

  void compute(i64 task, i64 first_tile, i64 last_tile, float* grad_w) const final {
    const GradientTiles::Part part = tiles_.part(task);
    const Room room = room_of(part);
    float* const sum = scratch<float>(static_cast<std::size_t>(room.sums + room.gradient + room.input + room.lines));
    auto* const gradient = reinterpret_cast<std::uint32_t*>(sum + room.sums);
    auto* const input = gradient + room.gradient;
    float* const lines = sum + room.sums + room.gradient + room.input;
    for (i64 tile = first_tile; tile < last_tile; ++tile) {
      const GradientTiles::Tile at = tiles_.tile(tile);
      cut_gradient(part, at, lines, gradient);
      round_inputs(part, at, lines, input);
      multiply(part, gradient, input, tile > first_tile, sum);
    }
    in_.kernels.bf16->use(0);
    if (first_tile == last_tile) std::fill_n(sum, room.sums, 0.0f);
    put(part, sum, grad_w);
  }

 protected:
  // Words that a task needs: its sums, parts of both operands, and lines of these before they are cut.
  struct Room {
    i64 sums, gradient, input, lines;
  };

  explicit GradientInParts(const GradientInputs<float>& inputs)
      : in_(inputs), tiles_(in_.layer, in_.call), taps_(in_.layer) {}

  virtual Room room_of(const GradientTiles::Part& part) const = 0;
  virtual void cut_gradient(const GradientTiles::Part& part, const GradientTiles::Tile& at, float* lines,
                            std::uint32_t* gradient) const = 0;
  virtual void round_inputs(const GradientTiles::Part& part, const GradientTiles::Tile& at, float* lines,
                            std::uint32_t* input) const = 0;
  virtual void multiply(const GradientTiles::Part& part, const std::uint32_t* gradient, const std::uint32_t* input,
                        bool accumulate, float* sum) const = 0;
  virtual void put(const GradientTiles::Part& part, const float* sum, float* grad_w) const = 0;

  // With tiles as they are now, which take so many cycles per position and group.
  void settle(double cycles) {
    usable_ = true;
    tasks = tiles_.parts();
    tiles = tiles_.tiles();
    cost = cycles + kTurnedSum * in_.numbers_per_position();
  }

  // sum[channel][tap][other channel], `width` of these: of so many channels, whose numbers lie `p.w_row` apart, with
  // the other operand, which `p` has, as it has the offsets of both.
  void multiply_taps(Bf16Product p, const std::uint32_t* operand, i64 channels, i64 width, float* sum) const {
    const i64 taps = in_.layer.taps(), none = 0;
    i64 c_offset[kMostPartsTaps];
    for (i64 tap = 0; tap < taps; ++tap) c_offset[tap] = tap * width;
    p.w_tile = kBf16Rows * p.w_row;
    p.w_part = channels * p.w_row;
    p.w_block = kBf16Terms;
    p.x_row = kBf16Rows;
    p.x_tap = p.w_tap = &none;
    p.taps = 1;
    p.products = taps;
    p.c_offset = c_offset;
    p.c_stride = taps * width;
    for (i64 channel = 0; channel < channels; channel += kTwoTiles) {
      p.rows = static_cast<int>(std::min(kTwoTiles, channels - channel));
      in_.kernels.bf16->use(p.rows);
      p.w = reinterpret_cast<const std::uint16_t*>(operand) + channel * p.w_row;
      p.c = sum + channel * p.c_stride;
      in_.kernels.bf16->product(p);
    }
  }

  const GradientInputs<float> in_;
  GradientTiles tiles_;
  const TapPlanes taps_;

 private:
  bool usable_ = false;
};

// Whether the matrix unit can be used, with so many channels at least.
template <typename T>
bool has_gradient_in_parts(const GradientInputs<T>& in, i64 fewest) {
  return in.kernels.bf16 && in.call.batch > 0 && in.in_plane() > 0 && in.layer.rows >= fewest &&
         in.layer.cols >= fewest && in.layer.taps() <= kMostPartsTaps;
}

// A way, where tiles fit.
template <typename Way, typename T>
std::unique_ptr<WeightGradient<T>> usable_in_parts(const GradientInputs<T>& inputs) {
  auto way = std::make_unique<Way>(inputs);
  if (!way->usable()) return nullptr;
  return way;
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
