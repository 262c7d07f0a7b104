// The gradient of the weights where channels do not mix and rows are short: lanes along positions, from one row into
// the next, one product a tap.
#pragma once

#include <memory>

#include "weight_gradient.h"

namespace upscore {

// Nothing where channels mix, or where longer rows fill vectors well enough.
template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_planes(const GradientInputs<T>& inputs);

}  // namespace upscore
