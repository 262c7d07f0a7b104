#include "weight_gradient.h"

#include <algorithm>
#include <memory>

#include "gradient_channels.h"
#include "gradient_channelwise.h"
#include "gradient_inputs.h"
#include "gradient_minimal.h"
#include "gradient_planes.h"
#include "gradient_taps.h"
#include "scratch.h"
#include "threads.h"

namespace upscore {
namespace {

constexpr i64 kSliceBytes = 2 << 20;  // of partial gradients, where there are too few tasks otherwise
constexpr i64 kTasks = 16;
constexpr i64 kAdded = 4096;             // numbers of a slice that are added at once: they stay in a core's first cache
constexpr i64 kSerialSums = 1 << 17;     // below which waking another thread costs more
constexpr double kSerialCycles = 2e5;    // below which waking another thread costs more
constexpr double kFilteredCycles = 1e6;  // below which finding out about minimal filtering does

}  // namespace

template <typename T>
void weight_gradient(const Layer& layer, const Call& call, const Kernels<T>& kernels, Method method, const Team& team,
                     const T* x, const T* grad_y, T* grad_w) {
  const GradientInputs<T> inputs{layer, call, kernels, x, grad_y};
  std::unique_ptr<WeightGradient<T>> way = gradient_taps(inputs);
  for (auto other : {gradient_channels<T>, gradient_channelwise<T>, gradient_planes<T>, gradient_inputs<T>})
    if (auto another = other(inputs); another && another->cost < way->cost) way = std::move(another);
  const double positions = static_cast<double>(call.batch * layer.groups * inputs.in_plane());
  const bool worth = method == Method::kFastest && way->cost * positions > kFilteredCycles;
  if (worth || method == Method::kFiltered)
    if (auto filtered = gradient_minimal(inputs); filtered && (!worth || filtered->cost < way->cost))
      way = std::move(filtered);
  const i64 size = layer.groups * layer.rows * layer.cols * layer.taps();
  // Few tasks: the tiles are shared out as well, each slice into an array of its own, added in order.
  const i64 affordable = kSliceBytes / (size * static_cast<i64>(sizeof(T))) + 1;
  const i64 slices = std::max<i64>(1, std::min({ceil_div(kTasks, way->tasks), affordable, way->tiles}));
  const int threads = team.share(way->cost * positions / kSerialCycles);
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
