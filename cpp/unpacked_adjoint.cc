#include "unpacked_adjoint.h"

#include <algorithm>
#include <string>
#include <vector>

#include "buffer.h"
#include "schedule.h"
#include "scratch.h"
#include "threads.h"

namespace upscore {
namespace {

constexpr i64 kInputBytes = 1 << 20;  // unfolded, of all terms: they stay in the second-level cache
constexpr i64 kColumns = 64;          // whose weights are fetched together
constexpr i64 kSerialInputs = 1 << 14;
constexpr i64 kTasks = 4;  // of a thread

// Cycles, as fitted to 460 random layers: to find where a term of a position is read, and to put it down; a product,
// and one of a single vector; to write an output.
constexpr double kPlace = 4, kUnfold = 2.2, kProduct = 0.68, kSingle = 0.82, kWrite = 2.5;
// Of the other ways: to pack a weight, a product, to turn an output and an input.
constexpr double kPacked = 1.4, kOther = 0.76, kTurnedOutput = 0.73, kTurnedInput = 0.55;
constexpr double kBetter = 0.9;

i64 positions_of(const Call& call) { return call.batch * call.out[0] * call.out[1] * call.out[2]; }

// The others multiply no zeros around the input.
double share_inside(const Layer& layer, const Call& call) {
  double share = 1;
  for (std::size_t a = 0; a < kAxes; ++a) {
    i64 inside = 0;
    for (i64 tap = 0; tap < layer.kernel[a]; ++tap)
      for (i64 i = 0; i < call.out[a]; ++i) {
        const i64 from = i * layer.stride[a] + tap * layer.dilation[a] - call.lo[a];
        inside += from >= 0 && from < call.in[a];
      }
    share *= static_cast<double>(inside) / static_cast<double>(layer.kernel[a] * call.out[a]);
  }
  return share;
}

bool worth(const Layer& layer, const Call& call, i64 lanes) {
  const i64 positions = positions_of(call), vectors = ceil_div(positions, lanes), terms = layer.cols * layer.taps();
  const auto weights = static_cast<double>(layer.rows * terms), padded = static_cast<double>(vectors * lanes);
  const double unpacked = static_cast<double>(layer.taps()) * padded * kPlace +
                          static_cast<double>(terms) * padded * kUnfold +
                          weights * static_cast<double>(vectors) * (vectors == 1 ? kSingle : kProduct) +
                          static_cast<double>(layer.rows * positions) * kWrite;
  const double rows = static_cast<double>(round_up(layer.rows, lanes)), outputs = rows * static_cast<double>(positions);
  const double inputs = static_cast<double>(call.batch * layer.cols * call.in[0] * call.in[1] * call.in[2]);
  const double others =
      weights * kPacked +
      outputs * static_cast<double>(terms) * share_inside(layer, call) / static_cast<double>(lanes) * kOther +
      outputs * kTurnedOutput + inputs * kTurnedInput;
  return unpacked < kBetter * others;
}

template <typename T>
class UnpackedAdjoint final : public Way<T> {
 public:
  UnpackedAdjoint(const Layer& layer, const Call& call, const Kernels<T>& kernels, const T* w)
      : layer_(layer),
        kernels_(kernels),
        w_(w),
        terms_(layer.cols * layer.taps()),
        positions_(positions_of(call)),
        vectors_(ceil_div(positions_, kernels.lanes)),
        most_vectors_(piece(vectors_, kMaxRowVectors)),
        most_rows_(fitting_positions(most_vectors_, kernels.registers)) {}

  bool takes(const Call& call) const override { return positions_of(call) == positions_; }
  std::size_t size() const override { return 0; }

  std::string why(const Call&, const Team& team) const override {
    return "convolution on few positions: weights are read as they lie, lanes run along the " +
           std::to_string(positions_) + " positions, whose inputs are unfolded; " + say_threads(useful_threads(team));
  }

  void execute(const Call& call, const Team& team, const T* bias, const T* x, T* y) const override {
    const int threads = useful_threads(team);
    Buffer<T> inputs;
    inputs.allocate(static_cast<std::size_t>(vectors_ * terms_ * kernels_.lanes));
    const std::vector<i64> places = places_of(call);
    const i64 unfolded = layer_.taps() * vectors_ * kernels_.lanes;
    const int unfolding = unfolded * layer_.cols < kSerialInputs ? 1 : threads;
    parallel_for(layer_.cols, unfolding, [&](i64 column) { unfold(call, places, column, x, inputs.data()); });
    const i64 most = round_up(ceil_div(layer_.rows, threads == 1 ? 1 : kTasks * threads), most_rows_);
    parallel_for(ceil_div(layer_.rows, most), threads, [&](i64 task) {
      for (i64 row = task * most, last = std::min(row + most, layer_.rows); row < last; row += most_rows_)
        compute(call, row, std::min(most_rows_, last - row), inputs.data(), bias, y);
    });
  }

 private:
  int useful_threads(const Team& team) const {
    return team.share(static_cast<double>(layer_.rows * terms_ * vectors_) / Cycles::serial);
  }

  // Of each tap and position, where it reads an input channel, or -1 outside.
  std::vector<i64> places_of(const Call& call) const {
    const i64 pixel = call.reads_last ? layer_.cols : 1, padded = vectors_ * kernels_.lanes;
    const i64 plane = call.in[0] * call.in[1] * call.in[2];
    std::vector<i64> places(static_cast<std::size_t>(layer_.taps() * padded), -1);
    for (i64 tap = 0; tap < layer_.taps(); ++tap) {
      const Size at{tap / (layer_.kernel[1] * layer_.kernel[2]), tap / layer_.kernel[2] % layer_.kernel[1],
                    tap % layer_.kernel[2]};
      auto from = [&](std::size_t a, i64 i) { return i * layer_.stride[a] + at[a] * layer_.dilation[a] - call.lo[a]; };
      auto inside = [&](std::size_t a, i64 place) { return place >= 0 && place < call.in[a]; };
      i64* place = places.data() + tap * padded;
      for (i64 image = 0; image < call.batch; ++image)
        for (i64 i = 0; i < call.out[0]; ++i)
          for (i64 j = 0; j < call.out[1]; ++j) {
            const i64 z = from(0, i), y = from(1, j);
            const bool row = inside(0, z) && inside(1, y);
            const i64 first = image * layer_.cols * plane + (z * call.in[1] + y) * call.in[2] * pixel;
            for (i64 l = 0; l < call.out[2]; ++l, ++place)
              if (row && inside(2, from(2, l))) *place = first + from(2, l) * pixel;
          }
    }
    return places;
  }

  // inputs[vector of positions][column][tap][lane]
  void unfold(const Call& call, const std::vector<i64>& places, i64 column, const T* x, T* inputs) const {
    const T* const from = x + column * (call.reads_last ? 1 : call.in[0] * call.in[1] * call.in[2]);
    const i64 lanes = kernels_.lanes, taps = layer_.taps();
    const i64* place = places.data();
    for (i64 tap = 0; tap < taps; ++tap)
      for (i64 v = 0; v < vectors_; ++v) {
        T* const to = inputs + (v * terms_ + column * taps + tap) * lanes;
        for (i64 lane = 0; lane < lanes; ++lane, ++place) to[lane] = *place < 0 ? T(0) : from[*place];
      }
  }

  // Some output channels, of all positions.
  void compute(const Call& call, i64 row, i64 rows, const T* inputs, const T* bias, T* y) const {
    const i64 lanes = kernels_.lanes, pitch = vectors_ * lanes;
    T* const sums = scratch<T>(static_cast<std::size_t>(rows * pitch));
    constexpr i64 kMostTaps = Limits::terms / kColumns;
    i64 offset[kMostTaps], w_tap[kMostTaps], c_offset[kMaxPositions];
    for (i64 t = 0; t < kMostTaps; ++t) {
      offset[t] = t * kColumns * lanes;
      w_tap[t] = t * kColumns;
    }
    for (i64 q = 0; q < rows; ++q) c_offset[q] = q * pitch;
    const T* from;
    ChannelProduct<T> p;  // of inputs, to which weights are broadcast
    p.w_tile_stride = terms_ * lanes;
    p.w_offset = offset;
    p.x = &from;
    p.x_tap = w_tap;
    p.x_pitch = terms_;
    p.c_offset = c_offset;
    p.bias = nullptr;
    for (i64 term = 0; term < terms_; term += p.taps * p.columns) {
      p.columns = std::min(kColumns, terms_ - term);
      p.taps = std::min(kMostTaps, (terms_ - term) / p.columns);
      p.accumulate = term > 0;
      from = w_ + row * terms_ + term;
      for (i64 v = 0; v < vectors_; v += most_vectors_) {
        p.x_far = v == 0;
        p.w = inputs + (v * terms_ + term) * lanes;
        p.c = sums + v * lanes;
        kernels_.line_product[std::min(most_vectors_, vectors_ - v)][rows](p);
      }
    }
    const i64 plane = call.out[0] * call.out[1] * call.out[2];
    const i64 channel = call.writes_last ? 1 : plane, pixel = call.writes_last ? layer_.rows : 1;
    for (i64 r = 0; r < rows; ++r) {
      const T added = bias ? bias[row + r] : T(0);
      for (i64 image = 0; image < call.batch; ++image) {
        const T* const of_image = sums + r * pitch + image * plane;
        T* const to = y + image * layer_.rows * plane + (row + r) * channel;
        for (i64 i = 0; i < plane; ++i) to[i * pixel] = of_image[i] + added;
      }
    }
  }

  const Layer layer_;
  const Kernels<T>& kernels_;
  const T* const w_;
  const i64 terms_, positions_, vectors_, most_vectors_, most_rows_;  // terms of an output
};

}  // namespace

template <typename T>
std::unique_ptr<Way<T>> unpacked_adjoint(const Layer& layer, const Call& call, const Kernels<T>& kernels, const T* w) {
  const i64 positions = positions_of(call);
  if (layer.transposed || layer.groups != 1 || positions == 0) return nullptr;
  const i64 room = kInputBytes / (round_up(positions, kernels.lanes) * static_cast<i64>(sizeof(T)));
  if (layer.cols > room || layer.taps() > room / layer.cols) return nullptr;
  if (!worth(layer, call, kernels.lanes)) return nullptr;
  return std::make_unique<UnpackedAdjoint<T>>(layer, call, kernels, w);
}

#define UPSCORE_INSTANTIATE(T) \
  template std::unique_ptr<Way<T>> unpacked_adjoint<T>(const Layer&, const Call&, const Kernels<T>&, const T*);
UPSCORE_INSTANTIATE(float)
UPSCORE_INSTANTIATE(double)

}  // namespace upscore
