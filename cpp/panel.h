// A panel: for a tile of positions, the inputs that a range of window offsets and channels reads.
#pragma once

#include <vector>

#include "kernels/kernels.h"
#include "plan.h"

namespace upscore {

// A run of positions along the last axis, within one tile.
struct Segment {
  i64 batch;
  Size at;        // position of its first element
  i64 length;
  i64 place;      // where it begins in the tile
};

void split_tile(const AxisPlan* axis, i64 first, i64 last, std::vector<Segment>& segments);

// Fills panels of one tile; `x` points at the first channel of the group of batch 0.
template <typename T>
class PanelSource {
 public:
  PanelSource(const AxisPlan* axis, const std::vector<Size>& offsets, const Kernels<T>& kernels, bool indexed,
              i64 tile)
      : axis_(axis), offsets_(offsets), kernels_(kernels), indexed_(indexed), tile_(tile) {}

  void set_tile(const std::vector<Segment>& segments, i64 batch_stride);
  // panel[(column - column_first) * offsets + (offset - offset_first)][tile]
  void fill(const T* x, i64 channel_stride, const Reduction& r, T* panel);

 private:
  struct Run {
    i64 place, length, source;  // source < 0: zeros
  };
  void index_offset(i64 offset);

  const AxisPlan* axis_;
  const std::vector<Size>& offsets_;
  const Kernels<T>& kernels_;
  bool indexed_;
  i64 tile_;
  const std::vector<Segment>* segments_ = nullptr;
  i64 batch_stride_ = 0;
  i64 built_first_ = -1, built_last_ = -1;
  std::vector<Run> runs_;
  std::vector<std::size_t> run_begin_;
  std::vector<std::int32_t> index_;
};

}  // namespace upscore
