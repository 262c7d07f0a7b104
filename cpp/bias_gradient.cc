#include "bias_gradient.h"

#include <algorithm>
#include <vector>

#include "threads.h"

namespace upscore {
namespace {

constexpr i64 kPart = 1 << 16;        // numbers of a task
constexpr i64 kRun = 1 << 10;         // numbers added before their sum goes to a double
constexpr i64 kSums = 32;             // side by side, which a compiler makes vectors of
constexpr i64 kSerialWork = 1 << 18;  // numbers below which waking another thread costs more

template <typename T>
double sum(const T* x, i64 count) {
  double total = 0;
  for (i64 first = 0; first < count; first += kRun) {
    const i64 last = std::min(first + kRun, count), whole = first + (last - first) / kSums * kSums;
    T sums[kSums] = {};
    for (i64 i = first; i < whole; i += kSums)
      for (i64 s = 0; s < kSums; ++s) sums[s] += x[i + s];
    for (i64 i = whole; i < last; ++i) sums[i - whole] += x[i];
    for (const T s : sums) total += static_cast<double>(s);
  }
  return total;
}

}  // namespace

template <typename T>
void bias_gradient(int threads, i64 batch, i64 channels, i64 plane, const T* grad_y, T* grad_bias) {
  const i64 parts = ceil_div(plane, kPart);
  std::vector<double> sums(static_cast<std::size_t>(channels * parts));
  if (batch * channels * plane < kSerialWork) threads = 1;
  parallel_for(channels * parts, threads, [&](i64 task) {
    const i64 c = task / parts, first = task % parts * kPart, count = std::min(kPart, plane - first);
    double total = 0;
    for (i64 n = 0; n < batch; ++n) total += sum(grad_y + (n * channels + c) * plane + first, count);
    sums[static_cast<std::size_t>(task)] = total;
  });
  for (i64 c = 0; c < channels; ++c) {
    double total = 0;
    for (i64 p = 0; p < parts; ++p) total += sums[static_cast<std::size_t>(c * parts + p)];
    grad_bias[c] = static_cast<T>(total);
  }
}

template void bias_gradient<float>(int, i64, i64, i64, const float*, float*);
template void bias_gradient<double>(int, i64, i64, i64, const double*, double*);

}  // namespace upscore
