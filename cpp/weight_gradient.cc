// grad_w[ci][co][t] = sum over batch and inputs of x[ci][i] * grad_y[co][i*stride + t*dilation - lo]: tiles of
// dot products along positions. The cut into tiles and slices depends on the sizes alone, so the order of
// additions, and with it the bits, does not depend on the number of threads.
#include <algorithm>
#include <vector>

#include "execute.h"
#include "panel.h"
#include "scratch.h"
#include "threads.h"

namespace upscore {
namespace {

constexpr i64 kDotLength = 1024;        // positions in a tile
constexpr i64 kPanelRows = 64;          // rows of each of the two panels
constexpr i64 kSliceBytes = 4 << 20;    // of partial gradients, when there are too few tasks otherwise
constexpr i64 kTasks = 16;

template <typename T>
class WeightGradient {
 public:
  WeightGradient(const Layer& layer, const Call& call, const Kernels<T>& kernels, int threads, const T* x,
                 const T* grad_y, T* grad_w)
      : layer_(layer), call_(call), kernels_(kernels), threads_(threads), x_(x), grad_y_(grad_y),
        grad_w_(grad_w) {
    positions_ = call.batch;
    for (std::size_t a = 0; a < kAxes; ++a) {
      window_[a] = plan_axis(call.out[a], call.in[a], layer.kernel[a], layer.stride[a], layer.dilation[a],
                             call.lo[a], false, false);
      plain_[a] = plan_axis(call.in[a], call.in[a], 1, 1, 1, 0, false, false);
      positions_ *= call.in[a];
    }
    std::vector<Size> offsets;
    for (i64 z : window_[0].phases[0].offset)
      for (i64 y : window_[1].phases[0].offset)
        for (i64 x_at : window_[2].phases[0].offset) offsets.push_back({z, y, x_at});
    taps_of_y_ = plain_window(std::move(offsets));
    taps_ = layer.taps();
    places_ = std::min(taps_, kPanelRows);
    tap_chunks_ = ceil_div(taps_, places_);
    // Several channels share a panel only when it holds all their taps: then its rows lie as grad_w does.
    row_chunk_ = tap_chunks_ > 1 ? 1 : std::min(layer.rows, std::max<i64>(1, kPanelRows / places_));
    column_chunk_ = std::min(layer.cols, kPanelRows);
    row_chunks_ = ceil_div(layer.rows, row_chunk_);
    column_chunks_ = ceil_div(layer.cols, column_chunk_);
    tile_ = std::min(kDotLength, ceil_div(std::max<i64>(positions_, 1), kernels.lanes) * kernels.lanes);
    tiles_ = ceil_div(positions_, tile_);
    const i64 size = layer.groups * layer.rows * layer.cols * taps_;
    const i64 tasks = layer.groups * row_chunks_ * column_chunks_ * tap_chunks_;
    const i64 affordable = std::max<i64>(1, kSliceBytes / (size * static_cast<i64>(sizeof(T))));
    slices_ = std::clamp<i64>(std::min({ceil_div(kTasks, tasks), affordable, tiles_}), 1, kTasks);
    tasks_ = tasks;
    size_ = size;
    const i64 work = positions_ * size;
    if (work < (1 << 19)) threads_ = 1;
  }

  void run() {
    std::fill_n(grad_w_, size_, T(0));
    partial_.assign(static_cast<std::size_t>((slices_ - 1) * size_), T(0));
    parallel_for(tasks_ * slices_, threads_, [this](i64 task) { compute(task); });
    for (i64 s = 1; s < slices_; ++s) {
      const T* part = partial_.data() + (s - 1) * size_;
      for (i64 i = 0; i < size_; ++i) grad_w_[i] += part[i];
    }
  }

 private:
  void compute(i64 task) {
    const i64 slice = task % slices_;
    task /= slices_;
    const i64 tap_chunk = task % tap_chunks_;
    task /= tap_chunks_;
    const i64 row0 = task % row_chunks_ * row_chunk_;
    task /= row_chunks_;
    const i64 column0 = task % column_chunks_ * column_chunk_;
    const i64 group = task / column_chunks_;
    const i64 rows = std::min(row_chunk_, layer_.rows - row0);
    const i64 columns = std::min(column_chunk_, layer_.cols - column0);
    const Reduction window{tap_chunk * places_, std::min((tap_chunk + 1) * places_, taps_), row0, row0 + rows};
    const i64 b_rows = rows * (window.offset_last - window.offset_first);

    const i64 in_plane = call_.in[0] * call_.in[1] * call_.in[2];
    const i64 out_plane = call_.out[0] * call_.out[1] * call_.out[2];
    const T* x = x_ + group * layer_.cols * in_plane;
    const T* grad_y = grad_y_ + group * layer_.rows * out_plane;
    T* out = (slice ? partial_.data() + (slice - 1) * size_ : grad_w_) +
             (group * layer_.cols + column0) * layer_.rows * taps_ + row0 * taps_ + window.offset_first;

    T* a = scratch<T>(static_cast<std::size_t>((columns + b_rows) * tile_ + kernels_.lanes));
    thread_local std::vector<Segment> segments;
    for (i64 tile = slice * tiles_ / slices_; tile < (slice + 1) * tiles_ / slices_; ++tile) {
      const i64 first = tile * tile_, last = std::min(first + tile_, positions_);
      const i64 width = ceil_div(last - first, kernels_.lanes) * kernels_.lanes;
      T* b = a + columns * width;
      split_tile(plain_, first, last, segments);
      const i64 x_batch = layer_.groups * layer_.cols * in_plane, y_batch = layer_.groups * layer_.rows * out_plane;
      PanelSource<T>(plain_, here_, kernels_, segments, x_batch, width)
          .fill(x, x_ + call_.batch * x_batch, in_plane, {0, 1, column0, column0 + columns}, a);
      PanelSource<T>(window_, taps_of_y_, kernels_, segments, y_batch, width)
          .fill(grad_y, grad_y_ + call_.batch * y_batch, out_plane, window, b);
      for (i64 c = 0; c < columns; c += kDotRows)
        for (i64 r = 0; r < b_rows; r += kDotColumns) {
          const auto height = std::min<i64>(kDotRows, columns - c), breadth = std::min<i64>(kDotColumns, b_rows - r);
          kernels_.dots[height][breadth](
              {a + c * width, b + r * width, width, width, out + c * layer_.rows * taps_ + r, layer_.rows * taps_});
        }
    }
  }

  const Layer& layer_;
  const Call& call_;
  const Kernels<T>& kernels_;
  int threads_;
  const T *x_, *grad_y_;
  T* grad_w_;
  AxisPlan window_[kAxes], plain_[kAxes];
  Window taps_of_y_;
  const Window here_ = plain_window({{0, 0, 0}});
  std::vector<T> partial_;
  i64 positions_ = 0, taps_ = 0, places_ = 0, tap_chunks_ = 0, row_chunk_ = 0, column_chunk_ = 0, row_chunks_ = 0,
      column_chunks_ = 0, tile_ = 0, tiles_ = 0, slices_ = 1, tasks_ = 0, size_ = 0;
};

}  // namespace

template <typename T>
void weight_gradient(const Layer& layer, const Call& call, const Kernels<T>& kernels, int threads, const T* x,
                     const T* grad_y, T* grad_w) {
  WeightGradient<T>(layer, call, kernels, threads, x, grad_y, grad_w).run();
}

template void weight_gradient<float>(const Layer&, const Call&, const Kernels<float>&, int, const float*,
                                     const float*, float*);
template void weight_gradient<double>(const Layer&, const Call&, const Kernels<double>&, int, const double*,
                                      const double*, double*);

}  // namespace upscore
