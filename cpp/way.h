// A way of its own to compute some layers, with weights packed for it.
#pragma once

#include <string>

#include "geometry.h"

namespace upscore {

template <typename T>
class Way {
 public:
  virtual ~Way() = default;
  // Whether it can be called so: any call channels first, unless it says otherwise.
  virtual bool takes(const Call& call) const { return !call.reads_last && !call.writes_last; }
  // y (batch, groups*rows, *out) = layer(x (batch, groups*cols, *in)) + bias (groups*rows, or null).
  virtual void execute(const Call& call, int threads, const T* bias, const T* x, T* y) const = 0;
  virtual std::string why(const Call& call, int threads) const = 0;
  virtual std::size_t size() const = 0;  // of the packed weights, in numbers
};

}  // namespace upscore
