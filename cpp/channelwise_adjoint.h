// The adjoint of layers whose channels do not mix, for kernels that fill vectors: lanes run along the kernel's rows, so
// that inputs are read as they lie, whatever the stride.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace upscore {

template <typename T>
class ChannelwiseAdjoint {
 public:
  // Nothing for any other layer.
  static std::optional<ChannelwiseAdjoint> pack(const Layer& layer, const Kernels<T>& kernels, const T* w);

  void execute(const Call& call, int threads, const T* bias, const T* x, T* y) const;
  std::string why(const Call& call, int threads) const;
  std::size_t size() const { return weights_.size(); }

 private:
  // Rows [first, last) of one image and channel, counted over both leading axes; columns [left, right).
  void rows(const Call& call, i64 image, i64 first, i64 last, i64 left, i64 right, T bias, const T* x, T* y) const;
  int useful_threads(const Call& call, int threads) const;

  Layer layer_;
  const Kernels<T>* kernels_ = nullptr;
  std::vector<T> weights_;  // as they come, and a vector more
};

}  // namespace upscore
