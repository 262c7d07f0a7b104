#include "gradient_dots.h"

#include <algorithm>
#include <vector>

#include "panel.h"
#include "scratch.h"

namespace upscore {
namespace {

constexpr i64 kDotLength = 1024;  // positions in a tile
constexpr i64 kPanelRows = 64;    // rows of each of the two panels

template <typename T>
class Dotted final : public WeightGradient<T> {
 public:
  explicit Dotted(const GradientInputs<T>& inputs) : in_(inputs) {
    const Layer& layer = in_.layer;
    const Call& call = in_.call;
    positions_ = call.batch;
    for (std::size_t a = 0; a < kAxes; ++a) {
      window_[a] = plan_axis(call.out[a], call.in[a], layer.kernel[a], layer.stride[a], layer.dilation[a], call.lo[a],
                             false, false);
      plain_[a] = plan_axis(call.in[a], call.in[a], 1, 1, 1, 0, false, false);
      positions_ *= call.in[a];
    }
    std::vector<Size> offsets;
    for (i64 z : window_[0].phases[0].offset)
      for (i64 y : window_[1].phases[0].offset)
        for (i64 x : window_[2].phases[0].offset) offsets.push_back({z, y, x});
    taps_of_y_ = plain_window(std::move(offsets));
    taps_ = layer.taps();
    places_ = std::min(taps_, kPanelRows);
    tap_chunks_ = ceil_div(taps_, places_);
    // Several channels share a panel only when it holds all their taps: then its rows lie as grad_w does.
    row_chunk_ = tap_chunks_ > 1 ? 1 : std::min(layer.rows, std::max<i64>(1, kPanelRows / places_));
    column_chunk_ = std::min(layer.cols, kPanelRows);
    row_chunks_ = ceil_div(layer.rows, row_chunk_);
    column_chunks_ = ceil_div(layer.cols, column_chunk_);
    const i64 lanes = in_.kernels.lanes;
    tile_ = std::min(kDotLength, ceil_div(std::max<i64>(positions_, 1), lanes) * lanes);
    this->tiles = ceil_div(positions_, tile_);
    this->tasks = layer.groups * row_chunks_ * column_chunks_ * tap_chunks_;
  }

  void compute(i64 task, i64 first_tile, i64 last_tile, T* grad_w) const override {
    const Layer& layer = in_.layer;
    const Call& call = in_.call;
    const Kernels<T>& kernels = in_.kernels;
    const i64 tap_chunk = task % tap_chunks_;
    task /= tap_chunks_;
    const i64 row0 = task % row_chunks_ * row_chunk_;
    task /= row_chunks_;
    const i64 column0 = task % column_chunks_ * column_chunk_;
    const i64 group = task / column_chunks_;
    const i64 rows = std::min(row_chunk_, layer.rows - row0);
    const i64 columns = std::min(column_chunk_, layer.cols - column0);
    const Reduction window{tap_chunk * places_, std::min((tap_chunk + 1) * places_, taps_), row0, row0 + rows};
    const i64 b_rows = rows * (window.offset_last - window.offset_first);
    const T* x = in_.x + group * layer.cols * in_.in_plane();
    const T* grad_y = in_.grad_y + group * layer.rows * in_.out_plane();
    T* out = grad_w + (group * layer.cols + column0) * layer.rows * taps_ + row0 * taps_ + window.offset_first;
    const i64 x_batch = layer.groups * layer.cols * in_.in_plane();
    const i64 y_batch = layer.groups * layer.rows * in_.out_plane();

    T* a = scratch<T>(static_cast<std::size_t>((columns + b_rows) * tile_ + kernels.lanes));
    std::vector<Segment> segments;
    for (i64 tile = first_tile; tile < last_tile; ++tile) {
      const i64 first = tile * tile_, last = std::min(first + tile_, positions_);
      const i64 width = ceil_div(last - first, kernels.lanes) * kernels.lanes;
      T* b = a + columns * width;
      split_tile(plain_, first, last, segments);
      PanelSource<T>(plain_, here_, kernels, segments, x_batch, width)
          .fill(x, in_.x + call.batch * x_batch, in_.in_plane(), {0, 1, column0, column0 + columns}, a);
      PanelSource<T>(window_, taps_of_y_, kernels, segments, y_batch, width)
          .fill(grad_y, in_.grad_y + call.batch * y_batch, in_.out_plane(), window, b);
      for (i64 c = 0; c < columns; c += kDotRows)
        for (i64 r = 0; r < b_rows; r += kDotColumns) {
          const auto height = std::min<i64>(kDotRows, columns - c);
          const auto breadth = std::min<i64>(kDotColumns, b_rows - r);
          kernels.dots[height][breadth](
              {a + c * width, b + r * width, width, width, out + c * layer.rows * taps_ + r, layer.rows * taps_});
        }
    }
  }

 private:
  const GradientInputs<T> in_;
  AxisPlan window_[kAxes], plain_[kAxes];
  Window taps_of_y_;
  const Window here_ = plain_window({{0, 0, 0}});
  i64 positions_ = 0, taps_ = 0, places_ = 0, tap_chunks_ = 0, row_chunk_ = 0, column_chunk_ = 0, row_chunks_ = 0,
      column_chunks_ = 0, tile_ = 0;
};

}  // namespace

template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_dots(const GradientInputs<T>& inputs) {
  return std::make_unique<Dotted<T>>(inputs);
}

template std::unique_ptr<WeightGradient<float>> gradient_dots<float>(const GradientInputs<float>&);
template std::unique_ptr<WeightGradient<double>> gradient_dots<double>(const GradientInputs<double>&);

}  // namespace upscore
