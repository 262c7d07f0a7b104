// The transposed convolution as its definition says it, stamp by stamp: for strides so large that a table of phases
// would not fit.
#pragma once

#include <memory>

#include "way.h"

namespace upscore {

// Null for other layers.
template <typename T>
std::unique_ptr<Way<T>> scatter(const Layer& layer, const T* w);

}  // namespace upscore
