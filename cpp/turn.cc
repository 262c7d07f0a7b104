#include "turn.h"

#include <algorithm>

#include "threads.h"

namespace upscore {
namespace {

constexpr i64 kRows = 128, kColumns = 64;  // of a task: what it writes stays in the first-level cache until it is whole
constexpr i64 kSerialWork = 1 << 17;       // numbers below which waking another thread costs more

}  // namespace

template <typename T>
void turn(const Kernels<T>& kernels, int threads, i64 batch, i64 rows, i64 columns, const T* src, T* dst) {
  if (batch * rows * columns < kSerialWork) threads = 1;
  const i64 down = ceil_div(rows, kRows), across = ceil_div(columns, kColumns);
  parallel_for(batch * down * across, threads, [&](i64 task) {
    const i64 image = task / (down * across), first = task % down * kRows, last = std::min(first + kRows, rows);
    const i64 column = task / down % across * kColumns, end = std::min(column + kColumns, columns);
    const T* from = src + image * rows * columns;
    T* to = dst + image * rows * columns;
    // The kernel writes whole vectors; the rows that do not fill one are turned by hand.
    const i64 whole = first + (last - first) / kernels.lanes * kernels.lanes;
    if (whole > first)
      kernels.transpose(from + first * columns + column, src + batch * rows * columns, columns, whole - first,
                        end - column, nullptr, to + column * rows + first, rows);
    for (i64 c = column; c < end; ++c)
      for (i64 r = whole; r < last; ++r) to[c * rows + r] = from[r * columns + c];
  });
}

template <typename T>
void turn_outputs(const Kernels<T>& kernels, const T* from, const T* end, i64 pitch, i64 outputs, i64 rows, T* to,
                  i64 plane) {
  const i64 lanes = kernels.lanes, whole = outputs / lanes * lanes;
  if (whole == 0) {
    for (i64 row = 0; row < rows; ++row)
      for (i64 output = 0; output < outputs; ++output) to[row * plane + output] = from[output * pitch + row];
    return;
  }
  // A vector of rows at a time, so that few streams are written. The last vector of outputs overlaps the one before.
  for (i64 row = 0; row < rows; row += lanes) {
    const i64 here = std::min(lanes, rows - row);
    kernels.transpose(from + row, end, pitch, whole, here, nullptr, to + row * plane, plane);
    if (whole < outputs)
      kernels.transpose(from + (outputs - lanes) * pitch + row, end, pitch, lanes, here, nullptr,
                        to + row * plane + outputs - lanes, plane);
  }
}

template void turn_outputs<float>(const Kernels<float>&, const float*, const float*, i64, i64, i64, float*, i64);
template void turn_outputs<double>(const Kernels<double>&, const double*, const double*, i64, i64, i64, double*, i64);
template void turn<float>(const Kernels<float>&, int, i64, i64, i64, const float*, float*);
template void turn<double>(const Kernels<double>&, int, i64, i64, i64, const double*, double*);

}  // namespace upscore
