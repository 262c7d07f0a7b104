// Layers whose channels do not mix (groups = channels in = channels out): nearly all of the time goes into
// writing the output, so each row is computed along its lanes and written once.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace upscore {

// Weights in the order in which output rows meet them:
// [channel][phase of the leading axes][their taps][shift][period * lanes],
// and for channels last [phase of the leading axes][their taps][shift][residue][channel].
template <typename T>
class Channelwise {
 public:
  // Nothing where the layer's channels mix or its table of weights would be out of proportion. Channels do not
  // mix either where all weights between different ones are zero (FCN's bilinear upscores).
  static std::optional<Channelwise> pack(const Layer& layer, const Kernels<T>& kernels, const T* w);

  // Input and output both channels first or both channels last, to the same bits; the latter where channels_last().
  void execute(const Call& call, int threads, const T* bias, const T* x, T* y) const;
  // Whether there are enough channels to fill vectors with.
  bool channels_last() const { return 2 * layer_.groups >= kernels_->lanes; }
  std::string why(const Call& call, int threads) const;
  std::size_t size() const { return weights_.size() + pixel_weights_.size(); }

 private:
  struct RowTap {
    i64 z, y;  // offsets of the input row
  };
  struct RowPhase {
    std::vector<RowTap> taps;
    i64 weights;  // within a channel
  };
  // The inputs of one output row: per tap of its phase, the number of an input row, or -1 where there is none.
  const RowPhase& find_inputs(const Call& call, i64 row, std::vector<i64>& inputs) const;

  int useful_threads(const Call& call, int threads) const;
  void rows(const Call& call, i64 image, i64 channel, i64 first, i64 last, T bias, const T* x, T* y) const;
  void pixel_rows(const Call& call, i64 image, i64 first, i64 last, const T* bias, const T* x, T* y) const;

  Layer layer_;            // one group a channel
  bool diagonal_ = false;  // found in dense weights
  const Kernels<T>* kernels_ = nullptr;
  i64 period_ = 1, channel_size_ = 0;
  std::vector<i64> shift_, first_;
  std::vector<LaneIndex<T>> index_;
  std::vector<RowPhase> phases_;  // by residue of the leading axes
  std::vector<T> weights_, pixel_weights_;
};

}  // namespace upscore
