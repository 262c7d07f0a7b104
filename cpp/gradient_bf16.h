// The gradient of the weights by a matrix unit: products of bfloat16 parts, terms over positions.
#pragma once

#include <memory>

#include "weight_gradient.h"

namespace upscore {

// Null without a matrix unit, for few channels, for large kernels, and where either operand lies channels last.
template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_bf16(const GradientInputs<T>& inputs);

}  // namespace upscore
