// A way of its own to compute some layers, with weights packed for it.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "geometry.h"
#include "threads.h"

namespace upscore {

template <typename T>
class Way {
 public:
  virtual ~Way() = default;
  // Whether it can be called so: any call channels first, unless it says otherwise.
  virtual bool takes(const Call& call) const { return !call.reads_last && !call.writes_last; }
  // Whether the layer needs no other way, for calls that it does not take.
  virtual bool alone() const { return true; }
  // y (batch, groups*rows, *out) = layer(x (batch, groups*cols, *in)) + bias (groups*rows, or null).
  virtual void execute(const Call& call, const Team& team, const T* bias, const T* x, T* y) const = 0;
  virtual std::string why(const Call& call, const Team& team) const = 0;
  virtual std::size_t size() const = 0;  // of the packed weights, in numbers
};

// The bias of each group, if any, with zeros up to `padded` channels of it.
template <typename T>
std::vector<T> whole_vectors(const T* bias, i64 groups, i64 rows, i64 padded) {
  std::vector<T> all(static_cast<std::size_t>(bias ? groups * padded : 0));
  for (i64 group = 0; bias && group < groups; ++group)
    std::copy_n(bias + group * rows, rows, all.data() + group * padded);
  return all;
}

}  // namespace upscore
