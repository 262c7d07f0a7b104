// Layers whose channels do not mix (groups = channels in = channels out), where lanes run along the output's rows.
#pragma once

#include <memory>
#include <vector>

#include "kernels/kernels.h"
#include "way.h"

namespace upscore {

// The kernels from each channel to itself, where all others are zero (FCN's bilinear upscores); else nothing.
template <typename T>
std::vector<T> diagonal_of(const Layer& layer, const T* w);

// Null where the layer's channels mix, or where it is as good as any other layer: channels first where a row has one
// phase or many taps, and channels last (`last`) where there are too few channels for a vector, unless the stride fills
// it. Not `fastest`: channels first only where the stride is a multiple of the lanes.
template <typename T>
std::unique_ptr<Way<T>> channelwise(const Layer& layer, const Kernels<T>& kernels, const T* w, bool last, bool fastest);

}  // namespace upscore
