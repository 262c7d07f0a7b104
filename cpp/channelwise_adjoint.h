// The adjoint of layers whose channels do not mix, for kernels that fill vectors: lanes run along the kernel's rows, so
// that inputs are read as they lie, whatever the stride.
#pragma once

#include <memory>

#include "kernels/kernels.h"
#include "way.h"

namespace upscore {

// Null for any other layer.
template <typename T>
std::unique_ptr<Way<T>> channelwise_adjoint(const Layer& layer, const Kernels<T>& kernels, const T* w);

}  // namespace upscore
