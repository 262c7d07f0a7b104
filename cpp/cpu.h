// Which instruction sets this machine has, which one runs, and how to force one.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace upscore {

// Names that this build and this machine both have, widest last; the first is the baseline.
std::vector<std::string> available_isas();
std::string active_isa();
// Throws std::invalid_argument for a name that is not available.
void force_isa(const std::string& name);

const IsaKernels& active_kernels();

template <typename T>
const Kernels<T>& active_table();

}  // namespace upscore
