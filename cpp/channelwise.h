// Layers whose channels do not mix (groups = channels in = channels out), where lanes run along the output itself:
// phases of a wide stride, and channels last.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace upscore {

// The kernels from each channel to itself, where all others are zero (FCN's bilinear upscores); else nothing.
template <typename T>
std::vector<T> diagonal_of(const Layer& layer, const T* w);

// Weights in the order in which output rows meet them: [channel][phase of the leading axes][their
// taps][shift][residue], and for channels last [phase of the leading axes][their taps][shift][residue][channel].
template <typename T>
class Channelwise {
 public:
  // Nothing where the layer's channels mix, or where it is as good as any other layer: channels first unless the stride
  // is a multiple of the lanes, and channels last where there are too few channels for a vector.
  static std::optional<Channelwise> pack(const Layer& layer, const Kernels<T>& kernels, const T* w, bool last);

  // Input and output both channels first or, where channels_last(), both channels last.
  void execute(const Call& call, int threads, const T* bias, const T* x, T* y) const;
  bool channels_last() const { return pixels_; }
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

  Layer layer_;                         // one group a channel
  bool rows_ = false, pixels_ = false;  // channels first, last
  const Kernels<T>* kernels_ = nullptr;
  i64 channel_size_ = 0;
  std::vector<i64> shift_;
  std::vector<RowPhase> phases_;  // by residue of the leading axes
  std::vector<T> weights_, pixel_weights_;
};

}  // namespace upscore
