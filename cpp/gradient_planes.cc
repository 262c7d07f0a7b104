#include "gradient_planes.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "channel_planes.h"
#include "plan.h"
#include "scratch.h"

namespace upscore {
namespace {

constexpr i64 kSumBytes = 256 << 10;  // of a task
constexpr i64 kChannels = 8;          // of a task, which share what is found out about the only tile
constexpr i64 kTasks = 16;
constexpr i64 kShortRow = 40;

template <typename T>
class Joined final : public WeightGradient<T> {
 public:
  explicit Joined(const GradientInputs<T>& inputs)
      : in_(inputs),
        planes_(inputs.layer, inputs.call.in, inputs.call.out, inputs.call.lo, inputs.kernels.lanes, sizeof(T)) {
    const Layer& layer = in_.layer;
    const i64 lanes = in_.kernels.lanes, taps = layer.taps();
    const i64 fit = kSumBytes / (taps * lanes * static_cast<i64>(sizeof(T)));
    const i64 most = planes_.tiles() == 1 ? kChannels : 1;  // memory is read in order
    channels_ = std::clamp<i64>(std::min(fit, layer.groups / kTasks), 1, most);
    this->tasks = ceil_div(layer.groups, channels_);
    this->tiles = in_.call.batch * planes_.tiles();
    const ChannelTile tile = planes_.tile(0);
    const double vectors = static_cast<double>(planes_.count(tile)) / static_cast<double>(lanes) + 1;
    const double copies = static_cast<double>(planes_.size()) / 8;
    this->cost = (static_cast<double>(taps) * (vectors + 1) + copies) / static_cast<double>(tile.down * tile.across);
  }

  void compute(i64 task, i64 first_tile, i64 last_tile, T* grad_w) const override {
    const i64 lanes = in_.kernels.lanes, taps = in_.layer.taps(), pitch = planes_.pitch();
    const i64 first = task * channels_, channels = std::min(channels_, in_.layer.groups - first);
    const i64 rows = planes_.count(planes_.tile(0)) + lanes, size = planes_.size() + lanes;
    T* const sums = scratch<T>(static_cast<std::size_t>(channels * taps * lanes + rows + size));
    T *const x = sums + channels * taps * lanes, *const split = x + rows;
    T* const out = grad_w + first * taps;
    std::fill_n(out, channels * taps, T(0));
    std::fill_n(sums, channels * taps * lanes, T(0));
    std::vector<Run> runs;
    i64 known = -1, summed = 0;  // the tile whose runs these are; terms of each lane
    auto add = [&] {
      for (i64 i = 0; i < channels * taps; ++i)
        out[i] += std::accumulate(sums + i * lanes, sums + (i + 1) * lanes, T(0));
      std::fill_n(sums, channels * taps * lanes, T(0));
      summed = 0;
    };
    const Size& in = in_.call.in;
    for (i64 index = first_tile; index < last_tile; ++index) {
      const i64 image = index / planes_.tiles(), number = index % planes_.tiles();
      const ChannelTile tile = planes_.tile(number);
      const i64 count = planes_.count(tile);
      if (known != number) planes_.find_runs(tile, runs);
      known = number;
      if (summed + count / lanes > Limits::terms) add();
      summed += count / lanes + 1;
      for (i64 c = 0; c < channels; ++c) {
        const i64 channel = image * in_.layer.groups + first + c;
        planes_.copy(in_.kernels, runs, in_.grad_y + channel * in_.out_plane(),
                     in_.grad_y + in_.call.batch * in_.layer.groups * in_.out_plane(), split);
        const T* from =
            in_.x + channel * in_.in_plane() + (tile.first[0] * in[1] + tile.first[1]) * in[2] + tile.first[2];
        // As they lie, if that is so and a vector more can be read; otherwise with zeros between the rows.
        const bool joined = (pitch == in[2] && tile.across == in[2]) || tile.down == 1;
        if (!joined || in_.x + in_.call.batch * in_.layer.groups * in_.in_plane() - from < count + lanes) {
          for (i64 row = 0; row < tile.down; ++row) {
            std::copy_n(from + row * in[2], tile.across, x + row * pitch);
            std::fill_n(x + row * pitch + tile.across, row + 1 < tile.down ? pitch - tile.across : 0, T(0));
          }
          from = x;
        }
        in_.kernels.dots(from, count, split, planes_.place().data(), taps, sums + c * taps * lanes);
      }
    }
    add();
  }

 private:
  const GradientInputs<T> in_;
  const ChannelPlanes planes_;
  i64 channels_ = 1;
};

}  // namespace

template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_planes(const GradientInputs<T>& inputs) {
  const Layer& layer = inputs.layer;
  if (inputs.call.batch == 0 || inputs.in_plane() == 0 || layer.rows != 1 || layer.cols != 1) return nullptr;
  if (inputs.call.in[2] > kShortRow || layer.taps() > Limits::terms ||
      !ChannelPlanes::usable(layer, inputs.kernels.lanes, sizeof(T)))
    return nullptr;
  return std::make_unique<Joined<T>>(inputs);
}

template std::unique_ptr<WeightGradient<float>> gradient_planes<float>(const GradientInputs<float>&);
template std::unique_ptr<WeightGradient<double>> gradient_planes<double>(const GradientInputs<double>&);

}  // namespace upscore
