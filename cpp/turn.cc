#include "turn.h"

#include <algorithm>

#include "threads.h"

namespace upscore {
namespace {

constexpr i64 kRows = 64;             // of a task
constexpr i64 kSerialWork = 1 << 17;  // numbers below which waking another thread costs more

}  // namespace

template <typename T>
void turn(const Kernels<T>& kernels, int threads, i64 batch, i64 rows, i64 columns, const T* src, T* dst) {
  if (batch * rows * columns < kSerialWork) threads = 1;
  const i64 blocks = ceil_div(rows, kRows);
  parallel_for(batch * blocks, threads, [&](i64 task) {
    const i64 image = task / blocks, first = task % blocks * kRows, last = std::min(first + kRows, rows);
    const T* from = src + image * rows * columns;
    T* to = dst + image * rows * columns;
    // The kernel writes whole vectors; the rows that do not fill one are turned by hand.
    const i64 whole = first + (last - first) / kernels.lanes * kernels.lanes;
    if (whole > first)
      kernels.transpose(from + first * columns, src + batch * rows * columns, columns, whole - first, columns, nullptr,
                        to + first, rows);
    for (i64 c = 0; c < columns; ++c)
      for (i64 r = whole; r < last; ++r) to[c * rows + r] = from[r * columns + c];
  });
}

template void turn<float>(const Kernels<float>&, int, i64, i64, i64, const float*, float*);
template void turn<double>(const Kernels<double>&, int, i64, i64, i64, const double*, double*);

}  // namespace upscore
