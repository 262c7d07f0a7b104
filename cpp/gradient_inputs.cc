#include "gradient_inputs.h"

#include <algorithm>
#include <vector>

#include "plan.h"
#include "scratch.h"

namespace upscore {
namespace {

constexpr i64 kGradientBytes = 448 << 10;  // of the output's gradient around one tile
constexpr i64 kPositions = 256;            // of a tile
constexpr i64 kColumns = 192;              // input channels of a task
constexpr i64 kLines = Limits::offsets;    // rows of positions in a tile

template <typename T>
class Broadcast final : public WeightGradient<T> {
 public:
  explicit Broadcast(const GradientInputs<T>& inputs) : in_(inputs) {
    const Layer& layer = in_.layer;
    const Call& call = in_.call;
    const i64 lanes = in_.kernels.lanes, bytes = sizeof(T);
    if (layer.cols % lanes != 0) return;
    taps_ = layer.taps();
    column_chunk_ = round_up(piece(layer.cols, std::max(kColumns / lanes * lanes, lanes)), lanes);
    if (taps_ > Limits::sum_bytes / (column_chunk_ * bytes)) return;
    row_chunk_ = std::min(layer.rows, Limits::sum_bytes / (taps_ * column_chunk_ * bytes));

    // The tile: positions of one row, then rows, then images, while the gradient around them fits.
    for (std::size_t a = 0; a < kAxes; ++a) {
      if (layer.dilation[a] > kGradientBytes / layer.kernel[a]) return;
      extent_[a] = (layer.kernel[a] - 1) * layer.dilation[a] + 1;
    }
    const i64 all = kGradientBytes / (bytes * layer.kernel[0]);
    for (;; row_chunk_ = ceil_div(row_chunk_, 2)) {
      const i64 room = all / row_chunk_;
      if (extent_[1] > room || extent_[2] > room / extent_[1]) {
        if (row_chunk_ == 1) return;
        continue;
      }
      across_ =
          piece(call.in[2], std::min({call.in[2], kPositions, (room / extent_[1] - extent_[2]) / layer.stride[2] + 1}));
      const i64 high = room / wide();
      down_ = piece(call.in[1], std::min({call.in[1], std::max<i64>(1, kPositions / across_),
                                          (high - extent_[1]) / layer.stride[1] + 1, kLines}));
      images_ = std::clamp<i64>(std::min({room / (wide() * tall()), kPositions / (across_ * down_), kLines / down_}), 1,
                                call.batch);
      // Fewer channels at once rather than a few positions.
      if (row_chunk_ == 1 ||
          across_ * down_ * images_ >= std::min<i64>(kPositions / 4, call.batch * call.in[1] * call.in[2]))
        break;
    }
    row_chunk_ = piece(layer.rows, row_chunk_);
    column_chunks_ = ceil_div(layer.cols, column_chunk_);
    row_chunks_ = ceil_div(layer.rows, row_chunk_);
    this->tasks = layer.groups * column_chunks_ * row_chunks_;
    tiles_across_ = ceil_div(call.in[2], across_);
    tiles_down_ = ceil_div(call.in[1], down_);
    this->tiles = ceil_div(call.batch, images_) * call.in[0] * tiles_down_ * tiles_across_;

    const Size& kernel = layer.kernel;
    for (i64 tap = 0; tap < taps_; ++tap)
      tap_offset_.push_back((tap / (kernel[1] * kernel[2]) * tall() + tap / kernel[2] % kernel[1] * layer.dilation[1]) *
                                wide() +
                            tap % kernel[2] * layer.dilation[2]);
    vectors_ = round_up(piece(column_chunk_, kMaxRowVectors * lanes), lanes) / lanes;
    products_ = std::min<i64>(kMaxPositions, in_.kernels.registers / vectors_);
    const double terms = static_cast<double>(across_ * down_ * images_), v = static_cast<double>(vectors_),
                 p = static_cast<double>(products_);
    const double calls = static_cast<double>(ceil_div(row_chunk_ * taps_, products_) * row_chunks_ *
                                             ceil_div(layer.cols, vectors_ * lanes));
    const double gradient = static_cast<double>(row_chunk_ * row_chunks_ * column_chunks_ * images_ * layer.kernel[0]) *
                            static_cast<double>(tall() * wide()) / terms;
    this->cost = 1.05 * (calls * (std::max(0.5 * p * v, 0.5 * (p + 2 * v)) + (40 + 2 * p * v) / terms) + gradient / 6 +
                         static_cast<double>(row_chunks_ * layer.cols) / 2);
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

    const i64 gradients = part.rows * images_ * layer.kernel[0] * tall() * wide();
    const i64 sums = part.rows * taps_ * part.columns;
    T* sum = scratch<T>(static_cast<std::size_t>(sums + gradients + images_ * down_ * across_ * part.columns +
                                                 in_.kernels.tile_rows * in_.kernels.lanes));
    T* gradient = sum + sums;
    T* inputs = gradient + gradients;
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
      copy_gradient(part, at, gradient);
      turn_inputs(part, at, inputs);
      multiply(part, at, inputs, gradient, sum);
    }
    // sum[row][tap][column] -> grad_w[column][row][tap]
    const i64 all = layer.rows * taps_, here = part.rows * taps_, whole = here / in_.kernels.lanes * in_.kernels.lanes;
    T* out = grad_w + (part.group * layer.cols + part.column) * all + part.row * taps_;
    if (whole > 0) in_.kernels.transpose(sum, sum + sums, part.columns, whole, part.columns, nullptr, out, all);
    for (i64 c = 0; c < part.columns; ++c)
      for (i64 i = whole; i < here; ++i) out[c * all + i] = sum[i * part.columns + c];
  }

 private:
  struct Part {
    i64 group, row, rows, column, columns;
  };
  struct Place {
    Size first;  // position
    i64 image, images, down, across;
  };

  i64 wide() const { return (across_ - 1) * in_.layer.stride[2] + extent_[2]; }
  i64 tall() const { return (down_ - 1) * in_.layer.stride[1] + extent_[1]; }

  // gradient[channel][image][tap of the first axis][row][column]: all that the tile's taps can reach, zeros outside of
  // the output.
  void copy_gradient(const Part& part, const Place& at, T* gradient) const {
    const Layer& layer = in_.layer;
    const Size& out = in_.call.out;
    const i64 x0 = at.first[2] * layer.stride[2] - in_.call.lo[2], y0 = at.first[1] * layer.stride[1] - in_.call.lo[1];
    const i64 width = wide(), skip = std::clamp<i64>(-x0, 0, width), stop = std::clamp<i64>(out[2] - x0, skip, width);
    for (i64 row = 0; row < part.rows; ++row)
      for (i64 n = 0; n < at.images; ++n) {
        const i64 channel = ((at.image + n) * layer.groups + part.group) * layer.rows + part.row + row;
        T* to = gradient + (row * images_ + n) * layer.kernel[0] * tall() * width;
        for (i64 tz = 0; tz < layer.kernel[0]; ++tz) {
          const i64 z = at.first[0] * layer.stride[0] + tz * layer.dilation[0] - in_.call.lo[0];
          for (i64 y = y0; y < y0 + tall(); ++y, to += width) {
            if (z < 0 || z >= out[0] || y < 0 || y >= out[1] || skip == stop) {
              std::fill_n(to, width, T(0));
              continue;
            }
            const T* from = in_.grad_y + channel * in_.out_plane() + (z * out[1] + y) * out[2] + x0;
            std::fill_n(to, skip, T(0));
            std::copy(from + skip, from + stop, to + skip);
            std::fill_n(to + stop, width - stop, T(0));
          }
        }
      }
  }

  // inputs[block of columns][image][row][position][column]
  void turn_inputs(const Part& part, const Place& at, T* inputs) const {
    const Size& size = in_.call.in;
    const T* const end = in_.x + in_.call.batch * in_.layer.groups * in_.layer.cols * in_.in_plane();
    const bool joined = at.across == size[2];  // whole rows lie one behind the other
    const i64 lines = joined ? 1 : at.down, length = joined ? at.down * at.across : at.across;
    const i64 lanes = in_.kernels.lanes;
    for (i64 c = 0; c < part.columns; c += lanes)
      for (i64 n = 0; n < at.images; ++n)
        for (i64 r = 0; r < lines; ++r, inputs += length * lanes) {
          const i64 channel = ((at.image + n) * in_.layer.groups + part.group) * in_.layer.cols + part.column + c;
          const T* source =
              in_.x + channel * in_.in_plane() + (at.first[0] * size[1] + at.first[1] + r) * size[2] + at.first[2];
          in_.kernels.transpose(source, end, in_.in_plane(), lanes, length, nullptr, inputs, lanes);
        }
  }

  void multiply(const Part& part, const Place& at, const T* inputs, const T* gradient, T* sum) const {
    const Layer& layer = in_.layer;
    const i64 width = wide(), slab = tall() * width, lanes = in_.kernels.lanes;
    const i64 lines = at.images * at.down, all = part.rows * taps_;
    i64 w_offset[kLines], x_tap[kLines], c_offset[kMaxPositions];
    const T* x[kMaxPositions];
    for (i64 n = 0; n < at.images; ++n)
      for (i64 r = 0; r < at.down; ++r) {
        w_offset[n * at.down + r] = (n * at.down + r) * at.across * lanes;
        x_tap[n * at.down + r] = n * layer.kernel[0] * slab + r * layer.stride[1] * width;
      }
    ChannelProduct<T> p;
    p.w_tile_stride = lines * at.across * lanes;
    p.w_offset = w_offset;
    p.x = x;
    p.x_step = 0;
    p.x_tap = x_tap;
    p.x_stride = layer.stride[2];
    p.taps = lines;
    p.columns = at.across;
    p.c_offset = c_offset;
    p.accumulate = true;
    p.bias = nullptr;
    p.ahead = reinterpret_cast<const char*>(inputs);
    p.ahead_step = 0;
    for (i64 first = 0; first < all; first += products_) {
      const i64 count = std::min(products_, all - first);
      for (i64 q = 0; q < count; ++q) {
        const i64 row = (first + q) / taps_, tap = (first + q) % taps_;
        x[q] = gradient + row * images_ * layer.kernel[0] * slab + tap_offset_[static_cast<std::size_t>(tap)];
        c_offset[q] = (first + q) * part.columns;
      }
      for (i64 c = 0; c < part.columns; c += vectors_ * lanes) {
        p.w = inputs + c * lines * at.across;
        p.c = sum + c;
        in_.kernels.vector_product[std::min(vectors_, (part.columns - c) / lanes)][count](p);
      }
    }
  }

  const GradientInputs<T> in_;
  i64 taps_ = 1, across_ = 1, down_ = 1, images_ = 1, column_chunk_ = 1, column_chunks_ = 1, row_chunk_ = 1,
      row_chunks_ = 1, tiles_across_ = 1, tiles_down_ = 1, vectors_ = 1, products_ = 1;
  Size extent_{1, 1, 1};
  std::vector<i64> tap_offset_;
  bool usable_ = false;
};

}  // namespace

template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_inputs(const GradientInputs<T>& inputs) {
  if (inputs.call.batch == 0 || inputs.in_plane() == 0) return nullptr;
  auto products = std::make_unique<Broadcast<T>>(inputs);
  if (!products->usable()) return nullptr;
  return products;
}

template std::unique_ptr<WeightGradient<float>> gradient_inputs<float>(const GradientInputs<float>&);
template std::unique_ptr<WeightGradient<double>> gradient_inputs<double>(const GradientInputs<double>&);

}  // namespace upscore
