// The gradient of the weights where channels do not mix: lanes along the positions of a row, one product a tap.
#pragma once

#include <memory>

#include "weight_gradient.h"

namespace upscore {

// Nothing where channels mix, or where the rows that a position's taps span would be out of proportion.
template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_channelwise(const GradientInputs<T>& inputs);

}  // namespace upscore
