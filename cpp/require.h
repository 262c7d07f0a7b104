// What a caller has to see to; Python's errors, which name the argument, come before.
#pragma once

#include <stdexcept>

namespace upscore {

inline void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

}  // namespace upscore
