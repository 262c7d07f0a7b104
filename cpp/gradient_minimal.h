// The gradient of the weights by minimal filtering (minimal.h): the taps are what a window of inputs gives, filtered
// with outputs' gradients instead of weights. As many products are saved, and both operands are transformed.
#pragma once

#include <memory>

#include "weight_gradient.h"

namespace upscore {

// Null where no axis can be filtered, or nothing fits.
template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_minimal(const GradientInputs<T>& inputs);

}  // namespace upscore
