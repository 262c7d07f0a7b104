// Layers whose channels do not mix (groups = channels in = channels out): nearly all of the time goes into
// writing the output, so each row is computed along its lanes and written once.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace upscore {

// Weights in the order in which output rows meet them:
// [channel][phase of the leading axes][their taps][shift][period * lanes].
template <typename T>
class Channelwise {
 public:
  // Nothing where the layer's channels mix or its table of weights would be out of proportion. Channels do not
  // mix either where all weights between different ones are zero (FCN's bilinear upscores).
  static std::optional<Channelwise> pack(const Layer& layer, const Kernels<T>& kernels, const T* w);

  void execute(const Call& call, int threads, const T* bias, const T* x, T* y) const;
  std::string why(const Call& call, int threads) const;
  std::size_t size() const { return weights_.size(); }

 private:
  struct RowTap {
    i64 z, y;  // offsets of the input row
  };
  struct RowPhase {
    std::vector<RowTap> taps;
    i64 weights;  // within a channel
  };

  int useful_threads(const Call& call, int threads) const;
  void rows(const Call& call, i64 image, i64 channel, i64 first, i64 last, T bias, const T* x, T* y) const;

  Layer layer_;            // one group a channel
  bool diagonal_ = false;  // found in dense weights
  const Kernels<T>* kernels_ = nullptr;
  i64 period_ = 1, channel_size_ = 0;
  std::vector<i64> shift_, first_;
  std::vector<LaneIndex<T>> index_;
  std::vector<RowPhase> phases_;  // by residue of the leading axes
  std::vector<T> weights_;
};

}  // namespace upscore
