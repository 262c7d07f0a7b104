// The adjoint by minimal filtering (minimal.h), for one call: phases of its input are what input channels were.
#pragma once

#include <memory>

#include "minimal.h"
#include "way.h"

namespace upscore {

// Null for layers that are not adjoints, where no axis can be filtered, nothing fits, or the direct way is expected to
// be faster, or takes `limit` cycles, for weights that are packed for this call alone. Neither the threads nor channels
// last change the bits.
template <typename T>
std::unique_ptr<Way<T>> minimal_adjoint(const Layer& layer, const Call& call, const Kernels<T>& kernels, const T* w,
                                        int threads, Method method, double limit);

}  // namespace upscore
