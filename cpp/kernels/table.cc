// The table of this instruction set.
#include "bf16_lines.h"
#include "channel_product.h"
#include "dots.h"
#include "interleave.h"
#include "kernels.h"
#include "minimal.h"
#include "panel.h"
#include "product.h"
#include "stencil.h"

namespace upscore::UPSCORE_ISA {
namespace {

#define UPSCORE_TEXT_(x) #x
#define UPSCORE_TEXT(x) UPSCORE_TEXT_(x)

template <typename T>
Kernels<T> table() {
  Kernels<T> k{};
  k.lanes = kLanes<T>;
  k.registers = UPSCORE_REGISTERS;
  k.tile_rows = UPSCORE_TILE_ROWS;
  fill_products<T, 1, 1>(k);
  fill_channel_products<T, 1, 1>(k);
  k.interleave = interleave<T>;
  k.copy_rows = copy_rows<T>;
  k.stencil = stencil<T>;
  k.pixel_stencil = pixel_stencil<T>;
  k.repeat = repeat<T>;
  k.repeat_pixels = repeat_pixels<T>;
  k.transpose = transpose<T>;
  k.unfold = unfold<T>;
  k.dots = dots<T>;
  k.weigh = weigh<T>;
  k.add_rows = add_rows<T>;
  k.fill = fill<T>;
  k.stream = stream<T>;
  k.transform_rows = transform_rows<T>;
  k.transform_sets[1] = transform_sets<T, 1>;
  k.transform_sets[2] = transform_sets<T, 2>;
  k.transform_sets[3] = transform_sets<T, 3>;
  k.transform_sets[4] = transform_sets<T, 4>;
  k.transform_sums = transform_sums<T>;
  k.transform_outputs = transform_outputs<T>;
  k.copy_runs = copy_runs<T>;
  return k;
}

}  // namespace

const IsaKernels& kernels() {
  static const IsaKernels all = {UPSCORE_TEXT(UPSCORE_ISA_NAME), table<float>(), table<double>()};
  return all;
}

#if defined(UPSCORE_AMX) && UPSCORE_VECTOR_BYTES == 64
// The same, and the matrix unit.
const IsaKernels& amx_kernels() {
  static const IsaKernels all = [] {
    IsaKernels k = kernels();
    k.name = "amx";
    k.f32.bf16 = bf16_kernels();
    return k;
  }();
  return all;
}
#endif

}  // namespace upscore::UPSCORE_ISA
