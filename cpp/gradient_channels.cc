#include "gradient_channels.h"

#include <algorithm>

#include "plan.h"
#include "scratch.h"

namespace upscore {
namespace {

constexpr i64 kGradientBytes = 512 << 10;  // of the output's gradient, channels last, around one tile
constexpr i64 kColumns = 256;              // input channels of a task
constexpr i64 kLines = 64;                 // rows of positions in a tile

template <typename T>
class Multiplied final : public WeightGradient<T> {
 public:
  explicit Multiplied(const GradientInputs<T>& inputs) : in_(inputs) {
    const Layer& layer = in_.layer;
    const Call& call = in_.call;
    const i64 lanes = in_.kernels.lanes, bytes = sizeof(T);
    const i64 widest = in_.kernels.registers / in_.kernels.tile_rows;
    const i64 vectors = ceil_div(layer.rows, lanes);
    vectors_ = ceil_div(vectors, ceil_div(vectors, widest));
    taps_ = layer.taps();
    for (std::size_t a = 0; a < kAxes; ++a) extent_[a] = (layer.kernel[a] - 1) * layer.dilation[a] + 1;
    // The tile: positions of one row, then rows, then images, while the gradient around them fits and the terms
    // summed in registers are few enough to be exact.
    for (;; --vectors_) {
      if (vectors_ == 0) return;
      const i64 room = kGradientBytes / (vectors_ * lanes * bytes * layer.kernel[0]);
      if (extent_[2] > room || extent_[1] > room / extent_[2]) continue;
      across_ = std::min({call.in[2], Limits::terms / 2, (room / extent_[1] - extent_[2]) / layer.stride[2] + 1});
      across_ = ceil_div(call.in[2], ceil_div(call.in[2], across_));
      const i64 high = room / wide();
      down_ = std::min(
          {call.in[1], std::max<i64>(1, Limits::terms / across_), (high - extent_[1]) / layer.stride[1] + 1, kLines});
      down_ = ceil_div(call.in[1], ceil_div(call.in[1], down_));
      images_ = std::clamp<i64>(std::min({room / (wide() * tall()), Limits::terms / (across_ * down_), kLines / down_}),
                                1, std::max<i64>(call.batch, 1));
      break;
    }
    const i64 step = in_.kernels.tile_rows;
    const i64 columns = Limits::sum_bytes / (taps_ * vectors_ * lanes * bytes) / step * step;
    if (columns < step) return;
    column_chunk_ = std::min({kColumns, columns, ceil_div(layer.cols, step) * step});
    column_chunks_ = ceil_div(layer.cols, column_chunk_);
    row_chunk_ = vectors_ * lanes;
    row_chunks_ = ceil_div(layer.rows, row_chunk_);
    this->tasks = layer.groups * column_chunks_ * row_chunks_;
    tiles_across_ = ceil_div(call.in[2], across_);
    tiles_down_ = ceil_div(call.in[1], down_);
    this->tiles = ceil_div(call.batch, images_) * call.in[0] * tiles_down_ * tiles_across_;
    const double columns_read = static_cast<double>(ceil_div(layer.cols, step) * step);
    const double outputs = static_cast<double>(layer.stride[0]) * static_cast<double>(layer.stride[1]) *
                           static_cast<double>(layer.stride[2]);
    const double product = vectors_ == 1 ? 0.56 : 0.5;  // a single vector waits for its loads
    this->cost = columns_read * static_cast<double>(taps_ * row_chunks_ * vectors_) * product +
                 static_cast<double>(column_chunks_ * row_chunks_ * row_chunk_) * outputs / 3 +
                 static_cast<double>(row_chunks_ * layer.cols) / 2;
    usable_ = true;
  }

  bool usable() const { return usable_; }

  void compute(i64 task, i64 first_tile, i64 last_tile, T* grad_w) const override {
    const Layer& layer = in_.layer;
    Part part;
    part.row = task % row_chunks_ * row_chunk_;
    task /= row_chunks_;
    part.column = task % column_chunks_ * column_chunk_;
    part.group = task / column_chunks_;
    part.rows = std::min(row_chunk_, layer.rows - part.row);
    part.columns = std::min(column_chunk_, layer.cols - part.column);
    part.width = ceil_div(part.rows, in_.kernels.lanes) * in_.kernels.lanes;

    const i64 gradients = images_ * layer.kernel[0] * tall() * wide() * part.width;
    const i64 sums = taps_ * part.columns * part.width;
    T* gradient = scratch<T>(static_cast<std::size_t>(gradients + sums + images_ * down_ * across_ * part.columns +
                                                      in_.kernels.tile_rows * in_.kernels.lanes));
    T* sum = gradient + gradients;
    T* inputs = sum + sums;
    std::fill_n(sum, sums, T(0));
    for (i64 tile = first_tile; tile < last_tile; ++tile) {
      Place at;
      i64 rest = tile;
      at.first[2] = rest % tiles_across_ * across_;
      rest /= tiles_across_;
      at.first[1] = rest % tiles_down_ * down_;
      rest /= tiles_down_;
      at.first[0] = rest % in_.call.in[0];
      at.image = rest / in_.call.in[0] * images_;
      at.images = std::min(images_, in_.call.batch - at.image);
      at.across = std::min(across_, in_.call.in[2] - at.first[2]);
      at.down = std::min(down_, in_.call.in[1] - at.first[1]);
      turn_gradient(part, at, gradient);
      turn_inputs(part, at, inputs);
      multiply(part, at, inputs, gradient, sum);
    }
    // sum[tap][column][row] -> grad_w[column][row][tap]
    for (i64 c = 0; c < part.columns; ++c) {
      T* out = grad_w + (((part.group * layer.cols + part.column + c) * layer.rows) + part.row) * taps_;
      const T* from = sum + c * part.width;
      const i64 pitch = part.columns * part.width;
      if (taps_ % in_.kernels.lanes == 0) {
        in_.kernels.transpose(from, sum + sums, pitch, taps_, part.rows, nullptr, out, taps_);
        continue;
      }
      for (i64 r = 0; r < part.rows; ++r)
        for (i64 t = 0; t < taps_; ++t) out[r * taps_ + t] = from[t * pitch + r];
    }
  }

 private:
  struct Part {
    i64 group, row, rows, column, columns, width;
  };
  struct Place {
    Size first;  // position
    i64 image, images, down, across;
  };

  i64 wide() const { return (across_ - 1) * in_.layer.stride[2] + extent_[2]; }
  i64 tall() const { return (down_ - 1) * in_.layer.stride[1] + extent_[1]; }

  // gradient[image][tap of the first axis][row][column][channel]: all that the tile's taps can reach, zeros
  // outside of the output.
  void turn_gradient(const Part& part, const Place& at, T* gradient) const {
    const Layer& layer = in_.layer;
    const Size& out = in_.call.out;
    const i64 x0 = at.first[2] * layer.stride[2] - in_.call.lo[2], y0 = at.first[1] * layer.stride[1] - in_.call.lo[1];
    const T* const end = in_.grad_y + in_.call.batch * layer.groups * layer.rows * in_.out_plane();
    const i64 line = wide() * part.width;
    const i64 skip = std::clamp<i64>(-x0, 0, wide()), stop = std::clamp<i64>(out[2] - x0, skip, wide());
    for (i64 n = 0; n < at.images; ++n)
      for (i64 tz = 0; tz < layer.kernel[0]; ++tz) {
        const i64 z = at.first[0] * layer.stride[0] + tz * layer.dilation[0] - in_.call.lo[0];
        for (i64 y = y0; y < y0 + tall(); ++y, gradient += line) {
          if (z < 0 || z >= out[0] || y < 0 || y >= out[1]) {
            std::fill_n(gradient, line, T(0));
            continue;
          }
          const i64 channel = ((at.image + n) * layer.groups + part.group) * layer.rows + part.row;
          std::fill_n(gradient, skip * part.width, T(0));
          std::fill_n(gradient + stop * part.width, (wide() - stop) * part.width, T(0));
          in_.kernels.transpose(in_.grad_y + channel * in_.out_plane() + (z * out[1] + y) * out[2] + x0 + skip, end,
                                in_.out_plane(), part.rows, stop - skip, nullptr, gradient + skip * part.width,
                                part.width);
        }
      }
  }

  // inputs[block of columns][image][row][position][column]
  void turn_inputs(const Part& part, const Place& at, T* inputs) const {
    const T zero = 0;
    const Size& size = in_.call.in;
    const T* const end = in_.x + in_.call.batch * in_.layer.groups * in_.layer.cols * in_.in_plane();
    const bool joined = at.across == size[2];  // whole rows lie one behind the other
    const i64 lines = joined ? 1 : at.down, length = joined ? at.down * at.across : at.across;
    for (i64 c = 0; c < part.columns; c += in_.kernels.tile_rows) {
      const i64 height = std::min<i64>(in_.kernels.tile_rows, part.columns - c);
      for (i64 n = 0; n < at.images; ++n)
        for (i64 r = 0; r < lines; ++r, inputs += length * height) {
          const i64 channel = ((at.image + n) * in_.layer.groups + part.group) * in_.layer.cols + part.column + c;
          const T* source =
              in_.x + channel * in_.in_plane() + (at.first[0] * size[1] + at.first[1] + r) * size[2] + at.first[2];
          const bool excess = end - source >= (height - 1) * in_.in_plane() + length + in_.kernels.lanes;
          in_.kernels.interleave(source, in_.in_plane(), height, 0, height * length, &zero, 0, inputs, excess);
        }
    }
  }

  void multiply(const Part& part, const Place& at, const T* inputs, const T* gradient, T* sum) const {
    const Layer& layer = in_.layer;
    const i64 line = wide() * part.width, slab = tall() * line;
    i64 offset[kLines];
    for (i64 n = 0; n < at.images; ++n)
      for (i64 r = 0; r < at.down; ++r)
        offset[n * at.down + r] = n * layer.kernel[0] * slab + r * layer.stride[1] * line;
    const i64 lines = at.images * at.down;
    for (i64 c = 0; c < part.columns; c += in_.kernels.tile_rows) {
      const i64 height = std::min<i64>(in_.kernels.tile_rows, part.columns - c);
      Product<T> p;
      p.w = inputs + c * lines * at.across;
      p.w_tap_stride = at.across * height;
      p.x_offset = offset;
      p.x_stride = layer.stride[2] * part.width;
      p.x_vector = in_.kernels.lanes;
      p.taps = lines;
      p.columns = at.across;
      p.c_stride = part.width;
      p.accumulate = true;
      i64 tap = 0;
      for (i64 tz = 0; tz < layer.kernel[0]; ++tz)
        for (i64 ty = 0; ty < layer.kernel[1]; ++ty)
          for (i64 tx = 0; tx < layer.kernel[2]; ++tx, ++tap) {
            p.x = gradient + tz * slab + ty * layer.dilation[1] * line + tx * layer.dilation[2] * part.width;
            p.c = sum + (tap * part.columns + c) * part.width;
            in_.kernels.product[height][part.width / in_.kernels.lanes](p);
          }
    }
  }

  const GradientInputs<T> in_;
  i64 vectors_ = 1, taps_ = 1, across_ = 1, down_ = 1, images_ = 1, column_chunk_ = 1, column_chunks_ = 1,
      row_chunk_ = 1, row_chunks_ = 1, tiles_across_ = 1, tiles_down_ = 1;
  Size extent_{1, 1, 1};
  bool usable_ = false;
};

}  // namespace

template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_channels(const GradientInputs<T>& inputs) {
  if (inputs.call.batch == 0) return nullptr;
  auto products = std::make_unique<Multiplied<T>>(inputs);
  if (!products->usable()) return nullptr;
  return products;
}

template std::unique_ptr<WeightGradient<float>> gradient_channels<float>(const GradientInputs<float>&);
template std::unique_ptr<WeightGradient<double>> gradient_channels<double>(const GradientInputs<double>&);

}  // namespace upscore
