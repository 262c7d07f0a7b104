// How the gradient of the weights is cut where it is a product over positions: into channels of a task, and tiles.
#pragma once

#include <algorithm>
#include <limits>

#include "plan.h"
#include "weight_gradient.h"

namespace upscore {

constexpr double kTurnedSum = 0.7;       // cycles to turn a number of the gradient
constexpr i64 kLines = Limits::offsets;  // rows of positions in a tile
constexpr i64 kFewest = 4;               // numbers that are broadcast at once: fewer products wait for each other

// Of them, so many: channels come in powers of two, and cache lines.
constexpr i64 fitting_channels(i64 vectors, i64 registers) { return std::min<i64>(registers / vectors, kMaxPositions); }

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

  // Smaller tiles than fit, of fewer rows or positions, if threads share them better.
  void share(i64 number_bytes) {
    constexpr double kBegin = 10;  // positions that a tile costs
    i64& length = down > 1 ? down : across;
    const i64 all = down > 1 ? call.in[1] : call.in[2];
    double soonest = std::numeric_limits<double>::infinity();
    i64 best = length;
    for (const i64 fits = length; length >= 1 && 4 * length >= fits; length = piece(all, length) - 1) {
      length = piece(all, length);
      const double filled = static_cast<double>(round_up(all, length)) / static_cast<double>(all);
      const double time = cut_slices(layer, call, number_bytes, parts(), tiles()).time * filled *
                          (1 + kBegin / static_cast<double>(across * down * images));
      if (time < soonest) soonest = time, best = length;
    }
    length = best;
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

// An operand that lies channels last.
template <typename T>
struct Operand {
  const T* first;  // of the input, at the tile's first position; of the gradient, at the first place of the image
  i64 pixel;       // from one position to the next
  i64 channels;    // of a part; whole vectors of them where lanes run along them
  i64 together;    // channels that are broadcast, or vectors, in a register tile
  i64 vector = 0;  // from one vector to the next
};

// Nothing is copied: tap by tap, for the positions that it brings to places that exist, channels of one operand are
// broadcast to vectors of the other's. sum[tap*tap_pitch + channel*pitch + lane] is added to. The rows of the tile's
// positions are at `line`.
template <typename T>
void multiply_in_place(const Kernels<T>& kernels, const GradientTiles& tiles, const GradientTiles::Tile& at,
                       const Operand<T>& input, const Operand<T>& gradient, bool along_inputs, const i64* line,
                       i64 tap_pitch, i64 pitch, T* sum) {
  const Operand<T>&vectors = along_inputs ? input : gradient, &numbers = along_inputs ? gradient : input;
  const i64 lanes = kernels.lanes, step = tiles.layer.stride[2] * gradient.pixel;
  i64 c_offset[kMaxPositions];
  const T* x = nullptr;
  ChannelProduct<T> p;
  p.w_tile_stride = vectors.vector;
  p.w_step = along_inputs ? input.pixel : step;
  p.x = &x;
  p.x_stride = along_inputs ? step : input.pixel;
  p.c_offset = c_offset;
  p.accumulate = true;
  p.bias = nullptr;
  for (i64 tap = 0; tap < tiles.layer.taps(); ++tap) {
    const GradientTiles::Meeting met = tiles.meeting(at, tap, line, input.pixel, gradient.pixel);
    if (met.rows == 0) continue;
    p.taps = met.rows;
    p.columns = met.positions;
    p.w_offset = along_inputs ? met.input : met.gradient;
    p.x_tap = along_inputs ? met.gradient : met.input;
    (along_inputs ? p.x_ahead : p.w_ahead) = met.ahead;
    for (i64 c = 0; c < vectors.channels; c += vectors.together * lanes) {
      p.w = vectors.first + c / lanes * vectors.vector;
      p.c = sum + tap * tap_pitch + c;
      const i64 here = std::min(vectors.together, (vectors.channels - c) / lanes);
      for (i64 n = 0; n < numbers.channels; n += numbers.together) {
        const i64 count = std::min(numbers.together, numbers.channels - n);
        for (i64 q = 0; q < count; ++q) c_offset[q] = (n + q) * pitch;
        x = numbers.first + n;
        kernels.plane_product[here][count](p);
      }
    }
  }
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
