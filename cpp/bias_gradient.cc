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

// The sums of so many parts of each channel: sums[part][channel] -> grad_bias[channel].
template <typename T>
void add_parts(const std::vector<double>& sums, i64 parts, i64 channels, T* grad_bias) {
  for (i64 c = 0; c < channels; ++c) {
    double total = 0;
    for (i64 p = 0; p < parts; ++p) total += sums[static_cast<std::size_t>(p * channels + c)];
    grad_bias[c] = static_cast<T>(total);
  }
}

// Whole pixels, several side by side where one does not fill vectors.
template <typename T>
void sum_pixels(const T* x, i64 pixels, i64 channels, double* totals) {
  const i64 together = ceil_div(2 * kSums, channels), line = together * channels;
  std::vector<T> sums(static_cast<std::size_t>(line));
  for (i64 first = 0; first < pixels; first += kRun) {
    const i64 count = std::min(kRun, pixels - first) * channels;
    std::fill(sums.begin(), sums.end(), T(0));
    for (i64 i = 0; i < count; i += line) {
      const i64 here = std::min(line, count - i);
      for (i64 s = 0; s < here; ++s) sums[static_cast<std::size_t>(s)] += x[first * channels + i + s];
    }
    for (i64 s = 0; s < line; ++s) totals[s % channels] += static_cast<double>(sums[static_cast<std::size_t>(s)]);
  }
}

}  // namespace

template <typename T>
void bias_gradient(int threads, i64 batch, i64 channels, i64 plane, bool last, const T* grad_y, T* grad_bias) {
  if (batch * channels * plane < kSerialWork) threads = 1;
  if (last) {
    const i64 pixels = batch * plane, part = std::max<i64>(kPart / channels, 1), parts = ceil_div(pixels, part);
    std::vector<double> sums(static_cast<std::size_t>(parts * channels));
    parallel_for(parts, threads, [&](i64 p) {
      sum_pixels(grad_y + p * part * channels, std::min(part, pixels - p * part), channels, sums.data() + p * channels);
    });
    return add_parts(sums, parts, channels, grad_bias);
  }
  const i64 parts = ceil_div(plane, kPart);
  std::vector<double> sums(static_cast<std::size_t>(channels * parts));
  parallel_for(channels * parts, threads, [&](i64 task) {
    const i64 c = task / parts, first = task % parts * kPart, count = std::min(kPart, plane - first);
    double total = 0;
    for (i64 n = 0; n < batch; ++n) total += sum(grad_y + (n * channels + c) * plane + first, count);
    sums[static_cast<std::size_t>(task % parts * channels + c)] = total;
  });
  add_parts(sums, parts, channels, grad_bias);
}

template void bias_gradient<float>(int, i64, i64, i64, bool, const float*, float*);
template void bias_gradient<double>(int, i64, i64, i64, bool, const double*, double*);

}  // namespace upscore
