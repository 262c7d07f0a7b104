// Layers of large strides, where lanes run along what lies together in an output row: the phases of the last axis, and
// the channels, too, channels last. Sums are written where they belong, straight from the registers.
#pragma once

#include <memory>

#include "kernels/kernels.h"
#include "way.h"

namespace upscore {

// Null where the phases (times the channels, with `last`) do not fill vectors, or where other ways are faster; minimal
// filtering is, if it can be chosen (`filtered`), but for few input channels.
template <typename T>
std::unique_ptr<Way<T>> phase_lanes(const Layer& layer, const Kernels<T>& kernels, const T* w, bool last,
                                    bool filtered);

}  // namespace upscore
