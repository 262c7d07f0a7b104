#include "gradient_channelwise.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <vector>

#include "plan.h"
#include "scratch.h"

namespace upscore {
namespace {

constexpr i64 kAcross = 1024;          // positions of a row in a tile
constexpr i64 kLineBytes = 192 << 10;  // of the gradient's rows that a position's taps read
constexpr i64 kMostTaps = 1 << 13;     // of a channel
constexpr i64 kMostExtent = 1 << 20;

template <typename T>
class Dotted final : public WeightGradient<T> {
 public:
  explicit Dotted(const GradientInputs<T>& inputs) : in_(inputs) {
    const Layer& layer = in_.layer;
    const Call& call = in_.call;
    if (layer.rows != 1 || layer.cols != 1 || layer.taps() > kMostTaps) return;
    lanes_ = in_.kernels.lanes;
    for (std::size_t a = 0; a < kAxes; ++a) {
      if (layer.dilation[a] > kMostExtent / layer.kernel[a]) return;
      extent_[a] = (layer.kernel[a] - 1) * layer.dilation[a] + 1;
    }
    across_ = piece(call.in[2], std::min(call.in[2], kAcross));
    find_lines();
    if (extent_[0] > kLineBytes / (line_ * i64{sizeof(T)})) return;
    if (extent_[1] > kLineBytes / (line_ * i64{sizeof(T)}) / extent_[0]) return;
    const i64 vectors = ceil_div(across_, lanes_);
    down_ = piece(call.in[1], std::clamp<i64>(Limits::terms / vectors, 1, call.in[1]));
    per_row_ = ceil_div(call.in[2], across_);
    per_column_ = ceil_div(call.in[1], down_);
    this->tasks = layer.groups;
    this->tiles = call.batch * call.in[0] * per_row_ * per_column_;
    const double taps = static_cast<double>(layer.taps()), rows = taps / static_cast<double>(layer.kernel[2]);
    const double copies = static_cast<double>(layer.stride[0] * layer.stride[1]) * static_cast<double>(line_) / 8 + 40;
    this->cost = (taps * static_cast<double>(vectors) + 20 * rows + taps + copies) / static_cast<double>(across_) +
                 taps * static_cast<double>(lanes_) / static_cast<double>(across_ * down_);
    usable_ = true;
  }

  bool usable() const { return usable_; }

  void compute(i64 task, i64 first_tile, i64 last_tile, T* grad_w) const override {
    const i64 taps = in_.layer.taps(), lines = extent_[0] * extent_[1];
    const i64 width = round_up(across_, lanes_);
    T* sums = scratch<T>(static_cast<std::size_t>(taps * lanes_ + width + lines * line_ + lanes_));
    T* x = sums + taps * lanes_;
    T* held = x + width;
    std::vector<i64> numbers(static_cast<std::size_t>(lines));
    T* out = grad_w + task * taps;
    std::fill_n(out, taps, T(0));
    for (i64 tile = first_tile; tile < last_tile; ++tile) {
      std::fill_n(sums, taps * lanes_, T(0));
      std::fill(numbers.begin(), numbers.end(), -1);
      sum_tile(task, tile, sums, x, held, numbers);
      for (i64 t = 0; t < taps; ++t) out[t] += std::accumulate(sums + t * lanes_, sums + (t + 1) * lanes_, T(0));
    }
  }

 private:
  // A row of the gradient is kept as one line for each residue of the stride that a tap has: what tap t multiplies
  // with position i is line[place_[t] + i].
  void find_lines() {
    const Layer& layer = in_.layer;
    const i64 step = layer.stride[2];
    std::map<i64, std::size_t> line_of;  // by residue
    for (i64 t = 0; t < layer.kernel[2]; ++t) {
      const i64 at = t * layer.dilation[2] - in_.call.lo[2];
      const auto [line, is_new] = line_of.emplace(at - floor_div(at, step) * step, lines_.size());
      if (is_new) lines_.push_back({0, 0, at});
      lines_[line->second].length = (at - lines_[line->second].first) / step + across_;
    }
    for (Line& line : lines_) {
      line.place = line_;
      line_ += round_up(line.length, lanes_) + lanes_;
    }
    for (i64 t = 0; t < layer.kernel[2]; ++t) {
      const i64 at = t * layer.dilation[2] - in_.call.lo[2];
      const Line& line = lines_[line_of[at - floor_div(at, step) * step]];
      place_.push_back(line.place + (at - line.first) / step);
    }
  }

  // Which of a line's numbers, for positions from x on, lie inside of the gradient.
  void cut_runs(i64 x, std::vector<Run>& runs) const {
    const i64 step = in_.layer.stride[2];
    runs.clear();
    for (const Line& line : lines_) {
      const i64 first = x * step + line.first;
      const i64 skip = std::clamp<i64>(ceil_div(-first, step), 0, line.length);
      const i64 stop = std::clamp<i64>(ceil_div(in_.call.out[2] - first, step), skip, line.length);
      add_line(line.place, line.length, skip, stop, first + skip * step, runs);
    }
  }

  void sum_tile(i64 channel, i64 tile, T* sums, T* x, T* held, std::vector<i64>& numbers) const {
    const Layer& layer = in_.layer;
    const Size &in = in_.call.in, &out = in_.call.out;
    const i64 x0 = tile % per_row_ * across_, y0 = tile / per_row_ % per_column_ * down_;
    const i64 z = tile / (per_row_ * per_column_) % in[0], image = tile / (per_row_ * per_column_ * in[0]);
    const i64 count = std::min(across_, in[2] - x0), plane = image * layer.groups + channel;
    const T* const grad = in_.grad_y + plane * in_.out_plane();
    const T* const end = in_.grad_y + in_.call.batch * layer.groups * in_.out_plane();
    std::vector<Run> runs;
    cut_runs(x0, runs);
    for (i64 y = y0; y < std::min(y0 + down_, in[1]); ++y) {
      std::copy_n(in_.x + plane * in_.in_plane() + (z * in[1] + y) * in[2] + x0, count, x);
      for (i64 tz = 0; tz < layer.kernel[0]; ++tz)
        for (i64 ty = 0; ty < layer.kernel[1]; ++ty) {
          const i64 oz = z * layer.stride[0] + tz * layer.dilation[0] - in_.call.lo[0];
          const i64 oy = y * layer.stride[1] + ty * layer.dilation[1] - in_.call.lo[1];
          if (oz < 0 || oz >= out[0] || oy < 0 || oy >= out[1]) continue;
          const i64 slot = oz % extent_[0] * extent_[1] + oy % extent_[1], number = oz * out[1] + oy;
          T* const lines = held + slot * line_;
          if (numbers[static_cast<std::size_t>(slot)] != number) {
            numbers[static_cast<std::size_t>(slot)] = number;
            in_.kernels.copy_runs(grad + number * out[2], end, 0, 1, layer.stride[2], runs.data(),
                                  static_cast<i64>(runs.size()), line_, lines);
          }
          in_.kernels.dots(x, count, lines, place_.data(), layer.kernel[2],
                           sums + (tz * layer.kernel[1] + ty) * layer.kernel[2] * lanes_);
        }
    }
  }

  struct Line {
    i64 place, length, first;  // first: where the first position's number is in the gradient's row
  };

  const GradientInputs<T> in_;
  i64 lanes_ = 1, across_ = 1, down_ = 1, per_row_ = 1, per_column_ = 1, line_ = 0;
  Size extent_{1, 1, 1};
  std::vector<Line> lines_;
  std::vector<i64> place_;  // per tap of the last axis
  bool usable_ = false;
};

}  // namespace

template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_channelwise(const GradientInputs<T>& inputs) {
  if (inputs.call.batch == 0 || inputs.in_plane() == 0) return nullptr;
  auto dots = std::make_unique<Dotted<T>>(inputs);
  if (!dots->usable()) return nullptr;
  return dots;
}

template std::unique_ptr<WeightGradient<float>> gradient_channelwise<float>(const GradientInputs<float>&);
template std::unique_ptr<WeightGradient<double>> gradient_channelwise<double>(const GradientInputs<double>&);

}  // namespace upscore
