// The dense side of a layer whose channels do not mix, split into planes by the residues of the strides: what a tap
// reads for neighbouring positions lies next to each other, and rows lie one behind the other, so that vectors run on
// from one row into the next.
#pragma once

#include <vector>

#include "kernels/kernels.h"

namespace upscore {

// Positions of the coarse side, of one image: rows below each other, of one index of the first axis.
struct ChannelTile {
  Size first;
  i64 down, across;
};

class ChannelPlanes {
 public:
  // For tiles of at most so many positions, of a layer whose coarse side has size `coarse` and whose dense side
  // `dense`, of which `lo` are cropped before.
  ChannelPlanes(const Layer& layer, const Size& coarse, const Size& dense, const Size& lo, i64 lanes, i64 bytes);

  // Whether they fit for calls of any size.
  static bool usable(const Layer& layer, i64 lanes, i64 bytes) {
    return ChannelPlanes(layer, {1, 1, kAcross}, {1, 1, 1}, {0, 0, 0}, lanes, bytes).down_ > 0;
  }
  i64 tiles() const { return coarse_[0] * ceil_div(coarse_[1], down_) * ceil_div(coarse_[2], across_); }
  ChannelTile tile(i64 index) const;
  i64 pitch() const { return across_ + extra_; }  // from one row of positions to the next
  i64 size() const { return size_; }              // numbers, with a vector to spare
  // From one row's first to the last row's last position.
  i64 count(const ChannelTile& tile) const { return (tile.down - 1) * pitch() + tile.across; }
  // What tap t reads for position (row, column) of a tile is number place[t] + row*pitch() + column.
  const std::vector<i64>& place() const { return place_; }

  // Where the planes of a tile come from, within a channel.
  void find_runs(const ChannelTile& tile, std::vector<Run>& runs) const;
  // The planes of one channel; nothing at or after `end` is read.
  template <typename T>
  void copy(const Kernels<T>& kernels, const std::vector<Run>& runs, const T* channel, const T* end, T* planes) const {
    kernels.copy_runs(channel, end, 0, 1, stride_[2], runs.data(), static_cast<i64>(runs.size()), size_, planes);
  }

 private:
  static constexpr i64 kAcross = 1024;  // positions of a tile's row

  struct Residue {
    i64 residue, low, high;  // steps of the taps that have it
  };
  static std::vector<Residue> residues(i64 kernel, i64 stride, i64 dilation);

  Size kernel_, stride_, dilation_, coarse_, dense_, lo_;
  i64 across_ = 0, down_ = 0, extra_ = 0, low_ = 0, size_ = 0;
  std::vector<Residue> rows_, columns_;
  std::vector<i64> place_;
};

}  // namespace upscore
