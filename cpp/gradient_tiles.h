// How the gradient of the weights is cut where it is a product over positions: into channels of a task, and tiles.
#pragma once

#include <algorithm>

#include "weight_gradient.h"

namespace upscore {

constexpr double kTurnedSum = 0.7;  // cycles to turn a number of the gradient

struct GradientTiles {
  struct Part {
    i64 group, row, rows, column, columns;  // output and input channels
  };
  struct Tile {
    Size first;  // position
    i64 image, images, down, across;
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

  const Layer& layer;
  const Call& call;
  i64 across = 1, down = 1, images = 1;  // of a tile
  i64 row_chunk = 1, column_chunk = 1;   // of a part
};

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
