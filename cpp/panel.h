// A panel: for a tile of positions, the inputs that a range of window offsets and channels reads.
#pragma once

#include <vector>

#include "kernels/kernels.h"
#include "schedule.h"

namespace upscore {

// A run of positions along the last axis, within one tile.
struct Segment {
  i64 batch;
  Size at;  // position of its first element
  i64 length;
  i64 place;  // where it begins in the tile
};

// The segments of the positions [first, last), counted over batch and axes.
void split_tile(const AxisPlan* axis, i64 first, i64 last, std::vector<Segment>& segments);

// The segments of a rectangle of rows, each of which begins a vector unless they are joined.
void split_rectangle(const AxisPlan* axis, const Tile& tile, const Window& window, i64 index, i64 lanes,
                     std::vector<Segment>& segments);

// Those of a task's tile, and how they lie: in so many rows of so many places.
struct Segments {
  std::vector<Segment>& all;
  i64 rows = 1, row = 0;
};
Segments split_task(const Schedule& schedule, i64 tile, i64 lanes);

// Fills panels of one tile whose lines are `width` positions wide.
template <typename T>
class PanelSource {
 public:
  PanelSource(const AxisPlan* axis, const Window& window, const Kernels<T>& kernels,
              const std::vector<Segment>& segments, i64 batch_stride, i64 width, i64 pixel = 1)
      : axis_(axis),
        window_(window),
        kernels_(kernels),
        segments_(segments),
        batch_stride_(batch_stride),
        width_(width),
        line_(width + window.extra),
        pixel_(pixel),
        runs_(lists().runs),
        line_runs_(lists().line_runs) {}

  // panel[column - column_first][line of the reduction][width + extra]; `x` points at channel 0 of the group,
  // `x_end` behind the last number of the whole input. With channels last, `pixel` numbers lie between neighbouring
  // positions, batch_stride counts positions, and channels lie next to each other.
  void fill(const T* x, const T* x_end, i64 channel_stride, const Reduction& r, T* panel);
  i64 line() const { return line_; }
  // Where the panel of a reduction comes from, at its first column, and its places; after find_runs, or fill.
  void find_runs(const Reduction& r);
  const std::vector<Run>& runs() const { return runs_; }
  i64 places() const { return begin_; }

 private:
  // A thread fills one panel after the other, and the memory of these is worth keeping.
  struct Lists {
    std::vector<Run> runs, line_runs;
  };
  static Lists& lists() {
    thread_local Lists mine;
    return mine;
  }

  void add_line(const Size& offset);
  void merge_runs();
  void turn_runs(const T* x, const T* x_end, i64 columns, T* panel) const;

  const AxisPlan* axis_;
  const Window& window_;
  const Kernels<T>& kernels_;
  const std::vector<Segment>& segments_;
  i64 batch_stride_, width_, line_, pixel_;
  i64 built_first_ = -1, built_last_ = -1, begin_ = 0;
  std::vector<Run>&runs_, &line_runs_;
};

// Of a task's inputs, as they lie in a call.
template <typename T>
PanelSource<T> source_of(const Layer& layer, const Call& call, const Schedule& schedule, const Kernels<T>& kernels,
                         const Segments& segments) {
  const i64 plane = call.in[0] * call.in[1] * call.in[2], channels = layer.groups * layer.cols;
  return {schedule.axis,
          schedule.window,
          kernels,
          segments.all,
          call.reads_last ? plane : channels * plane,
          schedule.window.joined ? segments.all[0].length : segments.row,
          call.reads_last ? channels : 1};
}

}  // namespace upscore
