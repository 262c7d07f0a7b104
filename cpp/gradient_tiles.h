// How the gradient of the weights is cut where it is a product over positions: into channels of a task, and tiles.
#pragma once

#include <algorithm>

#include "plan.h"
#include "weight_gradient.h"

namespace upscore {

constexpr double kTurnedSum = 0.7;       // cycles to turn a number of the gradient
constexpr i64 kLines = Limits::offsets;  // rows of positions in a tile
constexpr i64 kFewest = 4;               // numbers that are broadcast at once: fewer products wait for each other

struct GradientTiles {
  struct Part {
    i64 group, row, rows, column, columns;  // output and input channels
  };
  struct Tile {
    Size first;  // position
    i64 image, images, down, across;
  };

  // What of a tile's positions a tap brings to places inside of the output: so many of some rows; where the first one
  // of each is, and the place that it comes to; and how far from there what will be read next lies.
  struct Meeting {
    i64 positions = 0, rows = 0, ahead = 0;
    i64 input[kLines], gradient[kLines];
  };

  GradientTiles(const Layer& of_layer, const Call& of_call) : layer(of_layer), call(of_call) {}

  i64 row_chunks() const { return ceil_div(layer.rows, row_chunk); }
  i64 column_chunks() const { return ceil_div(layer.cols, column_chunk); }
  i64 parts() const { return layer.groups * column_chunks() * row_chunks(); }
  i64 tiles() const {
    return ceil_div(call.batch, images) * call.in[0] * ceil_div(call.in[1], down) * ceil_div(call.in[2], across);
  }

  // Of the output's gradient: what taps span, and all that those of a tile reach.
  i64 extent(std::size_t a) const { return (layer.kernel[a] - 1) * layer.dilation[a] + 1; }
  i64 wide() const { return (across - 1) * layer.stride[2] + extent(2); }
  i64 tall() const { return (down - 1) * layer.stride[1] + extent(1); }

  Part part(i64 index) const {
    Part part;
    part.row = index % row_chunks() * row_chunk;
    index /= row_chunks();
    part.column = index % column_chunks() * column_chunk;
    part.group = index / column_chunks();
    part.rows = std::min(row_chunk, layer.rows - part.row);
    part.columns = std::min(column_chunk, layer.cols - part.column);
    return part;
  }

  Tile tile(i64 index) const {
    Tile at;
    at.first[2] = index % ceil_div(call.in[2], across) * across;
    index /= ceil_div(call.in[2], across);
    at.first[1] = index % ceil_div(call.in[1], down) * down;
    index /= ceil_div(call.in[1], down);
    at.first[0] = index % call.in[0];
    at.image = index / call.in[0] * images;
    at.images = std::min(images, call.batch - at.image);
    at.across = std::min(across, call.in[2] - at.first[2]);
    at.down = std::min(down, call.in[1] - at.first[1]);
    return at;
  }

  // Channels last, counted in numbers: the tile's rows are at `line`, positions and pixels so far from each other.
  Meeting meeting(const Tile& at, i64 tap, const i64* line, i64 position, i64 pixel) const {
    const Size& out = call.out;
    const Size of = place_of(tap);
    auto place = [&](std::size_t a, i64 i) { return (at.first[a] + i) * layer.stride[a] + of[a] - call.lo[a]; };
    const i64 z = place(0, 0), x = place(2, 0), stride = layer.stride[2];
    const i64 first = std::max<i64>(0, ceil_div(-x, stride)), end = std::min(at.across, ceil_div(out[2] - x, stride));
    Meeting met;
    if (z < 0 || z >= out[0] || first >= end) return met;
    met.positions = end - first;
    met.ahead = next_place(at, tap) * pixel;
    for (i64 n = 0; n < at.images; ++n)
      for (i64 r = 0; r < at.down; ++r, ++line) {
        const i64 y = place(1, r);
        if (y < 0 || y >= out[1]) continue;
        met.input[met.rows] = *line + first * position;
        met.gradient[met.rows++] = (((n * out[0] + z) * out[1] + y) * out[2] + x + first * stride) * pixel;
      }
    return met;
  }

  // Where the rows of a tile begin, from its first position on, in numbers, channels last.
  void find_rows(const Tile& at, i64 pixel, i64* row) const {
    for (i64 n = 0; n < at.images; ++n)
      for (i64 r = 0; r < at.down; ++r) *row++ = (n * call.in[0] * call.in[1] + r) * call.in[2] * pixel;
  }

  const Layer& layer;
  const Call& call;
  i64 across = 1, down = 1, images = 1;  // of a tile
  i64 row_chunk = 1, column_chunk = 1;   // of a part

 private:
  Size place_of(i64 tap) const {
    const Size& kernel = layer.kernel;
    return {tap / (kernel[1] * kernel[2]) * layer.dilation[0], tap / kernel[2] % kernel[1] * layer.dilation[1],
            tap % kernel[2] * layer.dilation[2]};
  }

  // From a place that a tap brings a position to, to that of the next tap; after the last one, of the next tile.
  i64 next_place(const Tile& at, i64 tap) const {
    const Size& out = call.out;
    auto place = [&](i64 t) {
      const Size of = place_of(t);
      return (of[0] * out[1] + of[1]) * out[2] + of[2];
    };
    if (tap + 1 < layer.taps()) return place(tap + 1) - place(tap);
    if (at.images > 1) return at.images * out[0] * out[1] * out[2] - place(tap);
    return (at.across < call.in[2] ? at.across * layer.stride[2] : at.down * layer.stride[1] * out[2]) - place(tap);
  }
};

// Cycles per position to multiply so many vectors with so many numbers each; sums are added to memory after `terms`.
inline double product_cycles(i64 vectors, i64 numbers, double terms) {
  const double v = static_cast<double>(vectors), p = static_cast<double>(numbers);
  return std::max(0.5 * p * v, 0.5 * (p + 2 * v)) + (40 + 2 * p * v) / terms;
}

// inputs[block of columns][image][row][position][column], by turn(source, end, columns, length, to) for every stretch
// of positions that lie behind each other; nothing at or after `end` may be read. `Whole`, the last block takes as much
// room as the others.
template <bool Whole, typename T, typename Turn>
void turn_inputs(const GradientInputs<T>& in, const GradientTiles::Part& part, const GradientTiles::Tile& at, i64 block,
                 T* inputs, Turn&& turn) {
  const Size& size = in.call.in;
  const bool joined = at.across == size[2];
  const i64 lines = joined ? 1 : at.down, length = joined ? at.down * at.across : at.across;
  for (i64 c = 0; c < part.columns; c += block) {
    const i64 columns = std::min(block, part.columns - c);
    for (i64 n = 0; n < at.images; ++n) {
      const Image<T> image = in.input(at.image + n, part.group * in.layer.cols + part.column + c);
      for (i64 r = 0; r < lines; ++r, inputs += length * (Whole ? block : columns)) {
        const i64 position = (at.first[0] * size[1] + at.first[1] + r) * size[2] + at.first[2];
        turn(image.first + position * image.step(), image.end, columns, length, inputs);
      }
    }
  }
}

}  // namespace upscore
