// Weights in the order in which the kernels read them.
#pragma once

#include "kernels/kernels.h"
#include "plan.h"

namespace upscore {

// `w` is (groups * cols, rows, taps) for a transposed layer and (groups * rows, cols, taps) for its
// adjoint run as the transposed layer's gradient: both are the one array (C_in, C_out / groups, taps).
template <typename T>
void pack_weights(const Layer& layer, const Packing& packing, const Kernels<T>& kernels, int threads, const T* w,
                  T* packed);

// In bfloat16 parts: [group][block of columns][class][two tiles of rows][32 columns][tap][part][tile][row][column]; for
// tiles of positions [group][class][phase][vector of rows][32 columns][tap][part][pair of columns][row].
template <typename T>
void pack_bf16(const Layer& layer, const Packing& packing, const Kernels<T>& kernels, int threads, const T* w,
               std::uint16_t* packed);
// Their numbers.
i64 bf16_weights(const Layer& layer, const Packing& packing);

// The inverse of pack_weights.
template <typename T>
void unpack_weights(const Layer& layer, const Packing& packing, const T* packed, T* w);

}  // namespace upscore
