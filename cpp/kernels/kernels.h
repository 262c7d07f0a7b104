// The inner loops, as a table per instruction set and number type. One source each, compiled once per
// instruction set; the table is chosen once, at the top.
#pragma once

#include <cstdint>

#include "../geometry.h"

namespace upscore {

constexpr int kMaxTileRows = 8;
constexpr int kMaxTileVectors = 6;

// c[r][v] (+)= sum over taps and columns of w[tap][column][r] * x[x_offset[tap] + column*x_stride + v].
template <typename T>
struct Product {
  const T* w;
  i64 w_tap_stride;
  const T* x;
  const i64* x_offset;
  i64 x_stride;
  i64 taps, columns;
  T* c;
  i64 c_stride;
  bool accumulate;
};
template <typename T>
using ProductKernel = void (*)(const Product<T>&);

// out[r*out_stride + q] += sum over k in [0, length) of a[r*stride + k] * b[q*stride + k].
template <typename T>
struct Dots {
  const T *a, *b;
  i64 stride, length;
  T* out;
  i64 out_stride;
};
template <typename T>
using DotsKernel = void (*)(const Dots<T>&);

constexpr int kDotRows = 4, kDotColumns = 4;

template <typename T>
struct Kernels {
  int lanes;             // numbers in a vector
  int tile_rows;         // rows of the widest product tile
  int registers;         // accumulators that a tile may use
  ProductKernel<T> product[kMaxTileRows + 1][kMaxTileVectors + 1];
  DotsKernel<T> dots[kDotRows + 1][kDotColumns + 1];

  // dst[e - first] = src[(e % step)*pitch + e / step] + bias for e in [first, last).
  void (*interleave)(const T* src, i64 pitch, i64 step, i64 first, i64 last, T bias, T* dst);
  // panel[c*count + i] = index[i] < 0 ? 0 : x[c*x_stride + index[i]].
  void (*gather)(const T* x, i64 x_stride, i64 columns, const std::int32_t* index, i64 count, T* panel);
  // dst[i] = src[i*step] for i in [0, length).
  void (*copy)(const T* src, i64 step, i64 length, T* dst);
};

struct IsaKernels {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
};

// One per instruction set that this library was built for. Functions, not objects: nothing of an
// instruction set may run before it has been chosen.
namespace isa_baseline { const IsaKernels& kernels(); }
#if defined(__x86_64__)
namespace isa_avx2 { const IsaKernels& kernels(); }
namespace isa_avx512 { const IsaKernels& kernels(); }
#endif

}  // namespace upscore
