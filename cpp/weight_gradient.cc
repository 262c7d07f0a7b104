#include "weight_gradient.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "gradient_bf16.h"
#include "gradient_channels.h"
#include "gradient_channelwise.h"
#include "gradient_inputs.h"
#include "gradient_minimal.h"
#include "gradient_pairs.h"
#include "gradient_planes.h"
#include "gradient_taps.h"
#include "remembered.h"
#include "scratch.h"
#include "threads.h"
#include "turn.h"

namespace upscore {
namespace {

constexpr i64 kSliceBytes = 2 << 20;  // of partial gradients, where there are too few tasks otherwise
constexpr i64 kTasks = 16;
constexpr i64 kAdded = 4096;             // numbers of a slice that are added at once: they stay in a core's first cache
constexpr i64 kSerialSums = 1 << 17;     // below which waking another thread costs more
constexpr double kSerialCycles = 2e5;    // below which waking another thread costs more
constexpr double kFilteredCycles = 1e6;  // below which finding out about minimal filtering does
constexpr double kProduct = 0.04;        // cycles of a term of a gradient
constexpr double kThreadCycles = 5e5;    // that are worth a thread
constexpr double kSlice = 60;            // positions that it takes as long to multiply as to add a slice
constexpr double kTurned = 1.2;          // cycles to turn a number before

template <typename T>
using Make = std::unique_ptr<WeightGradient<T>> (*)(const GradientInputs<T>&);
// Those that read channels first alone are the first ones, and those that only the fastest of may be the last.
template <typename T>
constexpr Make<T> kWays[] = {gradient_taps<T>,   gradient_channelwise<T>, gradient_planes<T>, gradient_channels<T>,
                             gradient_inputs<T>, gradient_bf16<T>,        gradient_pairs<T>,  gradient_minimal<T>};
constexpr std::size_t kFirst = 3, kBf16 = 5, kPairs = 6, kFiltered = 7;

// What estimates leave out, as measured: that short rows of positions are begun with, and have as much beside them,
// where taps overlap; as if they were so much longer.
constexpr double kShortRow[] = {3, 5, 5, 2, 5, 0, 0, 2};
constexpr double kFilteredLonger = 1.05, kFilteredLongerLast = 0.9;  // times
constexpr double kPairsLonger = 0.93, kPairsLongerLast = 0.78;       // times
constexpr double kBf16Begin = 6e4;                                   // cycles of a call

// One of them, and what it costs.
struct Chosen {
  std::size_t way;
  double cost = std::numeric_limits<double>::infinity();
};

template <typename T>
Chosen fastest(const GradientInputs<T>& inputs, Method method) {
  const Call& call = inputs.call;
  Chosen best{};
  const bool last = call.reads_last || call.writes_last;
  const bool overlap = (inputs.layer.kernel[2] - 1) * inputs.layer.dilation[2] >= inputs.layer.stride[2];
  auto consider = [&](std::size_t way, double limit) {
    const auto made = kWays<T>[way](inputs);
    if (!made) return false;
    double cost = made->cost * cut_slices(inputs.layer, call, sizeof(T), made->tasks, made->tiles).time;
    if (overlap) cost *= 1 + kShortRow[way] / static_cast<double>(call.in[2]);
    if (way == kFiltered) cost *= last ? kFilteredLongerLast : kFilteredLonger;
    if (way == kPairs) cost *= last ? kPairsLongerLast : kPairsLonger;
    if (way == kBf16 || way == kPairs) cost += kBf16Begin / inputs.positions();
    if (cost >= limit) return false;
    best = {way, cost};
    return true;
  };
  const double any = std::numeric_limits<double>::infinity();
  for (std::size_t way = last ? kFirst : 0; way < kBf16; ++way) consider(way, best.cost);
  if (method == Method::kBf16 || method == Method::kFastest) {
    double limit = method == Method::kBf16 ? any : best.cost;
    for (const std::size_t way : {kBf16, kPairs})
      if (consider(way, limit)) limit = best.cost;
  }
  if (method == Method::kFastest && best.cost < any && best.cost * inputs.positions() > kFilteredCycles)
    consider(kFiltered, best.cost);
  if (method == Method::kFiltered) consider(kFiltered, any);
  return best;
}

Call channels_first(const Call& call) { return {call.batch, call.in, call.out, call.lo}; }

// The way to take, of this call or of one whose arrays are turned before.
struct Choice {
  std::size_t way;
  bool turned;
};
// What it depends on.
struct Question {
  Layer layer;
  Call call;
  const void* kernels;
  Method method;
  bool operator==(const Question&) const = default;
};

template <typename T>
Choice choose(const GradientInputs<T>& inputs, Method method) {
  const auto& [layer, call, kernels, x, grad_y] = inputs;
  const Chosen here = fastest(inputs, method);
  if (!call.reads_last && !call.writes_last) return {here.way, false};
  const Call first = channels_first(call);
  const Chosen other = fastest(GradientInputs<T>{layer, first, kernels, x, grad_y}, method);
  const double numbers = static_cast<double>(call.batch * layer.groups) *
                         static_cast<double>(call.reads_last * layer.cols * inputs.in_plane() +
                                             call.writes_last * layer.rows * inputs.out_plane());
  const bool sooner = here.cost * inputs.positions() <= other.cost * inputs.positions() + kTurned * numbers;
  return {here.way, !sooner};
}

// How much longer than its share the last of so many threads takes, which do not begin together: turns of the longest
// slices; or, of many that differ, part of one.
double uneven(i64 threads, i64 tasks, i64 tiles, i64 slices) {
  constexpr double kLate = 0.1, kTail = 0.35;
  const i64 all = tasks * slices;
  const double longest = static_cast<double>(ceil_div(tiles, slices) * threads) / static_cast<double>(tasks * tiles);
  const double turns = longest * static_cast<double>(ceil_div(all, threads));
  return (all < 3 * threads ? turns : std::min(turns, 1 + kTail * longest)) + kLate * longest;
}

}  // namespace

Slices cut_slices(const Layer& layer, const Call& call, i64 number_bytes, i64 tasks, i64 tiles) {
  const i64 size = layer.groups * layer.rows * layer.cols * layer.taps();
  const double positions = static_cast<double>(call.batch * call.in[0] * call.in[1] * call.in[2]);
  const double cycles = positions * static_cast<double>(size) * kProduct;
  const i64 affordable = kSliceBytes / (size * number_bytes) + 1;
  const i64 most_threads = cycles > 8 * kThreadCycles ? 8 : cycles > 4 * kThreadCycles ? 4 : 2;
  Slices best{1, std::numeric_limits<double>::infinity()};
  for (i64 count = std::max<i64>(1, std::min({ceil_div(kTasks, tasks), affordable, tiles})); count > 0; --count) {
    double all = 0, counts = 0;
    for (i64 threads = 2; threads <= most_threads; threads *= 2, ++counts) all += uneven(threads, tasks, tiles, count);
    const double time = all / counts * (1 + kSlice / positions * static_cast<double>(count - 1));
    if (time < best.time) best = {count, time};
  }
  return best;
}

template <typename T>
void weight_gradient(const Layer& layer, const Call& call, const Kernels<T>& kernels, Method method, const Team& team,
                     const T* x, const T* grad_y, T* grad_w) {
  const GradientInputs<T> inputs{layer, call, kernels, x, grad_y};
  const Choice choice = remembered(Question{layer, call, &kernels, method}, [&] { return choose(inputs, method); });
  if (choice.turned) {
    Buffer<T> inputs_first, gradients_first;
    if (call.reads_last)
      x = turned(kernels, team.threads, call.batch, inputs.in_plane(), layer.groups * layer.cols, x, inputs_first);
    if (call.writes_last)
      grad_y = turned(kernels, team.threads, call.batch, inputs.out_plane(), layer.groups * layer.rows, grad_y,
                      gradients_first);
    return weight_gradient(layer, channels_first(call), kernels, method, team, x, grad_y, grad_w);
  }
  const std::unique_ptr<WeightGradient<T>> way = kWays<T>[choice.way](inputs);
  const i64 size = layer.groups * layer.rows * layer.cols * layer.taps();
  const i64 slices = cut_slices(layer, call, sizeof(T), way->tasks, way->tiles).count;
  const int threads = team.share(way->cost * inputs.positions() / kSerialCycles);
  Buffer<T> partial;
  if (slices > 1) partial.allocate(static_cast<std::size_t>((slices - 1) * size));
  parallel_for(way->tasks * slices, threads, [&](i64 task) {
    const i64 slice = task % slices;
    way->compute(task / slices, slice * way->tiles / slices, (slice + 1) * way->tiles / slices,
                 slice ? partial.data() + (slice - 1) * size : grad_w);
  });
  if (slices == 1) return;
  parallel_for(ceil_div(size, kAdded), (slices - 1) * size < kSerialSums ? 1 : threads, [&](i64 task) {
    const i64 first = task * kAdded, count = std::min(kAdded, size - first);
    T* const to = grad_w + first;
    for (const T* from = partial.data() + first; from < partial.data() + partial.size(); from += size)
      for (i64 i = 0; i < count; ++i) to[i] += from[i];
  });
}

template void weight_gradient<float>(const Layer&, const Call&, const Kernels<float>&, Method, const Team&,
                                     const float*, const float*, float*);
template void weight_gradient<double>(const Layer&, const Call&, const Kernels<double>&, Method, const Team&,
                                      const double*, const double*, double*);

}  // namespace upscore
