#include "channelwise_adjoint.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "channel_planes.h"
#include "plan.h"
#include "scratch.h"
#include "threads.h"

namespace upscore {
namespace {

constexpr i64 kSums = 1 << 16;       // of a task
constexpr i64 kAcross = 1024;        // outputs of a row in a task
constexpr double kSerialWork = 1e6;  // multiplications below which waking another thread costs more
constexpr i64 kMostReach = 1 << 16;  // of the outputs of a task, along a row of inputs

int useful_threads(const Layer& layer, const Call& call, const Team& team) {
  const double outputs = static_cast<double>(call.batch * layer.groups * call.out[0] * call.out[1] * call.out[2]);
  return team.share(outputs * static_cast<double>(layer.taps()) / kSerialWork);
}

// Of a row of outputs, counted over both leading axes: visit(row of the kernel, row of inputs) for all that are inside.
template <typename Visit>
void each_line(const Layer& layer, const Call& call, i64 row, Visit&& visit) {
  for (i64 tz = 0; tz < layer.kernel[0]; ++tz)
    for (i64 ty = 0; ty < layer.kernel[1]; ++ty) {
      const i64 z = row / call.out[1] * layer.stride[0] + tz * layer.dilation[0] - call.lo[0];
      const i64 y = row % call.out[1] * layer.stride[1] + ty * layer.dilation[1] - call.lo[1];
      if (z < 0 || z >= call.in[0] || y < 0 || y >= call.in[1]) continue;
      visit(tz * layer.kernel[1] + ty, z * call.in[1] + y);
    }
}

template <typename T>
class ChannelwiseAdjoint final : public Way<T> {
 public:
  ChannelwiseAdjoint(const Layer& layer, const Kernels<T>& kernels, const T* w)
      : layer_(layer),
        kernels_(&kernels),
        weights_(static_cast<std::size_t>(layer.groups * layer.taps() + kernels.lanes)) {
    std::copy_n(w, layer.groups * layer.taps(), weights_.data());
  }

  void execute(const Call& call, const Team& team, const T* bias, const T* x, T* y) const override;
  std::string why(const Call& call, const Team& team) const override;
  std::size_t size() const override { return weights_.size(); }

 private:
  // Rows [first, last) of one image and channel, counted over both leading axes; columns [left, right).
  void rows(const Call& call, i64 image, i64 first, i64 last, i64 left, i64 right, T bias, const T* x, T* y) const;

  Layer layer_;
  const Kernels<T>* kernels_ = nullptr;
  std::vector<T> weights_;  // as they come, and a vector more
};

template <typename T>
void ChannelwiseAdjoint<T>::execute(const Call& call, const Team& team, const T* bias, const T* x, T* y) const {
  const i64 lanes = kernels_->lanes, all_rows = call.out[0] * call.out[1], images = call.batch * layer_.groups;
  const int threads = useful_threads(layer_, call, team);
  const i64 reach = (kMostReach - layer_.kernel[2]) / layer_.stride[2] + 1;
  const i64 across = piece(call.out[2], std::min({call.out[2], kAcross, reach}));
  i64 down = piece(all_rows, std::clamp<i64>(kSums / (across * lanes), 1, all_rows));
  const i64 wide = ceil_div(call.out[2], across);
  if (images * wide < 4 * threads) down = std::min(down, ceil_div(all_rows, ceil_div(4 * threads, images * wide)));
  const i64 tall = ceil_div(all_rows, down);
  parallel_for(images * tall * wide, threads, [&](i64 task) {
    const i64 left = task % wide * across, first = task / wide % tall * down, image = task / (wide * tall);
    rows(call, image, first, std::min(first + down, all_rows), left, std::min(left + across, call.out[2]),
         bias ? bias[image % layer_.groups] : T(0), x, y);
  });
}

template <typename T>
void ChannelwiseAdjoint<T>::rows(const Call& call, i64 image, i64 first, i64 last, i64 left, i64 right, T bias,
                                 const T* x, T* y) const {
  const i64 lanes = kernels_->lanes, count = right - left, step = layer_.stride[2], kernel = layer_.kernel[2];
  const i64 start = left * step - call.lo[2], length = (count - 1) * step + kernel;
  const i64 skip = std::clamp<i64>(-start, 0, length), stop = std::clamp<i64>(call.in[2] - start, skip, length);
  const i64 plane = call.in[0] * call.in[1] * call.in[2];
  const T* const end = x + call.batch * layer_.groups * plane;
  x += image * plane;
  y += (image * call.out[0] * call.out[1] + first) * call.out[2] + left;

  const i64 sums_of_row = count * lanes, size = (last - first) * sums_of_row;
  T* sums = scratch<T>(static_cast<std::size_t>(size + length + lanes));
  T* line = sums + size;
  kernels_->fill(T(0), size + length + lanes, sums);
  std::vector<i64> place;
  for (i64 j = 0; j < count; ++j) place.push_back(j * step);
  const T* const w = weights_.data() + image % layer_.groups * layer_.taps();
  for (i64 row = first; row < last; ++row)
    each_line(layer_, call, row, [&](i64 of_kernel, i64 of_inputs) {
      const T* const inside = x + of_inputs * call.in[2] + start + skip;
      const bool as_it_lies = stop - skip == length && end - inside >= length + lanes;
      if (!as_it_lies) std::copy_n(inside, stop - skip, line + skip);  // zeros beside it
      kernels_->dots(w + of_kernel * kernel, kernel, as_it_lies ? inside : line, place.data(), count,
                     sums + (row - first) * sums_of_row);
    });
  for (i64 row = first; row < last; ++row, y += call.out[2])
    for (i64 j = 0; j < count; ++j, sums += lanes) y[j] = std::accumulate(sums, sums + lanes, T(0)) + bias;
}

template <typename T>
std::string ChannelwiseAdjoint<T>::why(const Call& call, const Team& team) const {
  return "convolution: channels do not mix and kernels fill vectors, so lanes run along the kernel's rows; " +
         say_threads(useful_threads(layer_, call, team));
}

// The same for other kernels: lanes run along positions, whose inputs are split into planes.
template <typename T>
class PlanesAdjoint final : public Way<T> {
 public:
  PlanesAdjoint(const Layer& layer, const Kernels<T>& kernels, const T* w)
      : layer_(layer), kernels_(kernels), weights_(w, w + layer.groups * layer.taps()) {}

  std::size_t size() const override { return weights_.size(); }
  std::string why(const Call& call, const Team& team) const override {
    return "convolution: channels do not mix, so lanes run along positions, from one row into the next; "
           "inputs are split by the residues of the strides; " +
           say_threads(useful_threads(layer_, call, team));
  }

  void execute(const Call& call, const Team& team, const T* bias, const T* x, T* y) const override {
    const ChannelPlanes planes(layer_, call.out, call.in, call.lo, kernels_.lanes, sizeof(T));
    const i64 images = call.batch * layer_.groups, tiles = planes.tiles(), taps = layer_.taps();
    const i64 in = call.in[0] * call.in[1] * call.in[2], out = call.out[0] * call.out[1] * call.out[2];
    const int threads = useful_threads(layer_, call, team);
    // A task is some channels of a tile, which come from the same places.
    const i64 some = std::clamp<i64>(images * tiles / (i64{kTasks} * threads), 1, std::min(images, i64{kChannels}));
    const i64 parts = ceil_div(images, some);
    parallel_for(parts * tiles, threads, [&](i64 task) {
      const ChannelTile tile = planes.tile(task / parts);
      thread_local std::vector<Run> runs;
      planes.find_runs(tile, runs);
      const i64 count = planes.count(tile), first = task % parts * some;
      T* const split = scratch<T>(static_cast<std::size_t>(planes.size() + count + 2 * kernels_.lanes));
      T* const sums = split + planes.size() + kernels_.lanes;
      for (i64 image = first; image < std::min(first + some, images); ++image) {
        const i64 channel = image % layer_.groups;
        planes.copy(kernels_, runs, x + image * in, x + images * in, split);
        kernels_.weigh(weights_.data() + channel * taps, taps, split, planes.place().data(), count,
                       bias ? bias[channel] : T(0), sums);
        T* to = y + image * out + (tile.first[0] * call.out[1] + tile.first[1]) * call.out[2] + tile.first[2];
        for (i64 row = 0; row < tile.down; ++row)
          std::copy_n(sums + row * planes.pitch(), tile.across, to + row * call.out[2]);
      }
    });
  }

 private:
  static constexpr int kTasks = 8, kChannels = 64;

  const Layer layer_;
  const Kernels<T>& kernels_;
  const std::vector<T> weights_;
};

// The same channels last: lanes run along the channels of one position after the other, and inputs are read where they
// lie. Weights are [tap][channel].
template <typename T>
class PixelsAdjoint final : public Way<T> {
 public:
  PixelsAdjoint(const Layer& layer, const Kernels<T>& kernels, const T* w)
      : layer_(layer),
        kernels_(kernels),
        padded_(round_up(layer.groups, kernels.lanes)),
        weights_(static_cast<std::size_t>(layer.taps() * layer.groups + kernels.lanes)) {
    for (i64 channel = 0; channel < layer.groups; ++channel)
      for (i64 tap = 0; tap < layer.taps(); ++tap)
        weights_[static_cast<std::size_t>(tap * layer.groups + channel)] = w[channel * layer.taps() + tap];
  }

  bool takes(const Call& call) const override { return call.reads_last && call.writes_last; }
  std::size_t size() const override { return weights_.size(); }
  std::string why(const Call& call, const Team& team) const override {
    return "convolution, channels last: channels do not mix, so lanes run along the channels of one position after the "
           "other; " +
           say_threads(useful_threads(layer_, call, team));
  }

  void execute(const Call& call, const Team& team, const T* bias, const T* x, T* y) const override {
    const std::vector<T> biases = bias ? whole_vectors(bias, 1, layer_.groups, padded_) : std::vector<T>(padded_);
    const int threads = useful_threads(layer_, call, team);
    const i64 rows = call.batch * call.out[0] * call.out[1], blocks = std::min<i64>(rows, i64{kTasks} * threads);
    parallel_for(blocks, threads, [&](i64 task) {
      for (i64 row = task * rows / blocks; row < (task + 1) * rows / blocks; ++row)
        compute(call, row, biases.data(), x, y);
    });
  }

 private:
  static constexpr int kTasks = 4;

  // A row of outputs, counted over batch and leading axes.
  void compute(const Call& call, i64 row, const T* biases, const T* x, T* y) const {
    const i64 channels = layer_.groups, step = layer_.stride[2] * channels, far = layer_.dilation[2] * channels;
    const i64 depth = call.in[0] * call.in[1] * call.in[2] * channels, width = call.out[2];
    const T* const end = x + call.batch * depth;
    T* const out = y + row * width * channels;
    thread_local std::vector<const T*> all_weights, lines;  // of the taps whose rows exist; the lines' first inputs
    all_weights.clear();
    lines.clear();
    const i64 rows = call.out[0] * call.out[1];
    each_line(layer_, call, row % rows, [&](i64 of_kernel, i64 of_inputs) {
      all_weights.push_back(weights_.data() + of_kernel * layer_.kernel[2] * channels);
      lines.push_back(x + row / rows * depth + of_inputs * call.in[2] * channels);
    });

    thread_local std::vector<const T*> weights, inputs;
    T* const spare = scratch<T>(static_cast<std::size_t>(2 * padded_));
    PixelStencil<T> s;
    s.bias = biases;
    s.channels = channels;
    s.x_step = step;
    // Positions from `at` on, whose taps [first, last) along the row are inside.
    auto positions = [&](i64 at, i64 count, i64 first, i64 last, T* to) {
      weights.clear();
      inputs.clear();
      for (std::size_t line = 0; line < lines.size(); ++line)
        for (i64 tap = first; tap < last; ++tap) {
          const T* from = lines[line] + (at * layer_.stride[2] - call.lo[2]) * channels + tap * far;
          weights.push_back(all_weights[line] + tap * channels);
          if (end - from < padded_) {  // the last pixel of all
            std::copy_n(from, channels, spare + padded_);
            from = spare + padded_;
          }
          inputs.push_back(from);
        }
      s.taps = static_cast<i64>(inputs.size());
      s.w = weights.data();
      s.x = inputs.data();
      s.repeats = count;
      s.out = to;
      kernels_.pixel_stencil(s);
    };
    const i64 taps = layer_.kernel[2], stride = layer_.stride[2], spread = layer_.dilation[2];
    // Those whose taps are all inside; but the last one, if its vectors may reach behind the input or the row.
    const i64 alone = padded_ > channels;
    const i64 left = std::clamp<i64>(ceil_div(call.lo[2], stride), 0, width);
    const i64 inside = floor_div(call.in[2] - 1 + call.lo[2] - (taps - 1) * spread, stride) + 1;
    const i64 right = std::clamp<i64>(std::min(inside, width) - alone, left, width);
    for (i64 at = 0; at < width; ++at) {
      if (at == left && right > left) {
        positions(left, right - left, 0, taps, out + left * channels);
        at = right;
        if (at == width) break;
      }
      const i64 first = std::clamp<i64>(ceil_div(call.lo[2] - at * stride, spread), 0, taps);
      const i64 last = std::clamp<i64>(ceil_div(call.in[2] + call.lo[2] - at * stride, spread), first, taps);
      positions(at, 1, first, last, spare);
      std::copy_n(spare, channels, out + at * channels);
    }
  }

  const Layer layer_;
  const Kernels<T>& kernels_;
  const i64 padded_;
  std::vector<T> weights_;
};

}  // namespace

template <typename T>
std::unique_ptr<Way<T>> channelwise_adjoint(const Layer& layer, const Kernels<T>& kernels, const T* w, bool last) {
  if (layer.transposed || layer.rows != 1 || layer.cols != 1) return nullptr;
  const i64 furthest = std::max(layer.stride[2], layer.dilation[2]);
  if (last && 2 * layer.groups >= kernels.lanes && layer.taps() <= Limits::terms && furthest <= kMostReach)
    return std::make_unique<PixelsAdjoint<T>>(layer, kernels, w);
  if (layer.kernel[2] >= kernels.lanes && layer.kernel[2] <= kMostReach && layer.dilation[2] == 1)
    return std::make_unique<ChannelwiseAdjoint<T>>(layer, kernels, w);
  if (layer.taps() > Limits::terms || !ChannelPlanes::usable(layer, kernels.lanes, sizeof(T))) return nullptr;
  return std::make_unique<PlanesAdjoint<T>>(layer, kernels, w);
}

template std::unique_ptr<Way<float>> channelwise_adjoint(const Layer&, const Kernels<float>&, const float*, bool);
template std::unique_ptr<Way<double>> channelwise_adjoint(const Layer&, const Kernels<double>&, const double*, bool);

}  // namespace upscore
