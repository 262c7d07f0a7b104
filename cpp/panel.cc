#include "panel.h"

#include <algorithm>

namespace upscore {

void split_tile(const AxisPlan* axis, i64 first, i64 last, std::vector<Segment>& segments) {
  segments.clear();
  const i64 nx = axis[2].positions, ny = axis[1].positions, nz = axis[0].positions;
  for (i64 p = first; p < last;) {
    const i64 row = p / nx, x = p % nx;
    const i64 length = std::min(nx - x, last - p);
    segments.push_back({row / (ny * nz), {row / ny % nz, row % ny, x}, length, p - first});
    p += length;
  }
}

template <typename T>
void PanelSource<T>::set_tile(const std::vector<Segment>& segments, i64 batch_stride) {
  segments_ = &segments;
  batch_stride_ = batch_stride;
  built_first_ = built_last_ = -1;
}

// The runs of one offset: where inputs are copied from, and where there are none.
template <typename T>
void PanelSource<T>::index_offset(i64 offset) {
  const Size& o = offsets_[static_cast<std::size_t>(offset)];
  run_begin_.push_back(runs_.size());
  i64 filled = 0;
  for (const Segment& s : *segments_) {
    const i64 z = s.at[0] * axis_[0].in_step + o[0], y = s.at[1] * axis_[1].in_step + o[1];
    filled = s.place + s.length;
    if (z < 0 || z >= axis_[0].in || y < 0 || y >= axis_[1].in) {
      runs_.push_back({s.place, s.length, -1});
      continue;
    }
    const i64 step = axis_[2].in_step, start = s.at[2] * step + o[2];
    const i64 skip = std::clamp<i64>(ceil_div(-start, step), 0, s.length);
    const i64 stop = std::clamp<i64>(ceil_div(axis_[2].in - start, step), skip, s.length);
    if (skip > 0) runs_.push_back({s.place, skip, -1});
    if (stop > skip)
      runs_.push_back({s.place + skip, stop - skip,
                       s.batch * batch_stride_ + (z * axis_[1].in + y) * axis_[2].in + start + skip * step});
    if (stop < s.length) runs_.push_back({s.place + stop, s.length - stop, -1});
  }
  if (filled < tile_) runs_.push_back({filled, tile_ - filled, -1});
}

template <typename T>
void PanelSource<T>::fill(const T* x, i64 channel_stride, const Reduction& r, T* panel) {
  const i64 step = axis_[2].in_step;
  if (r.offset_first != built_first_ || r.offset_last != built_last_) {
    runs_.clear();
    run_begin_.clear();
    for (i64 o = r.offset_first; o < r.offset_last; ++o) index_offset(o);
    run_begin_.push_back(runs_.size());
    built_first_ = r.offset_first;
    built_last_ = r.offset_last;
    if (indexed_) {
      index_.assign(static_cast<std::size_t>((r.offset_last - r.offset_first) * tile_), -1);
      for (std::size_t o = 0; o + 1 < run_begin_.size(); ++o)
        for (std::size_t i = run_begin_[o]; i < run_begin_[o + 1]; ++i)
          if (runs_[i].source >= 0)
            for (i64 k = 0; k < runs_[i].length; ++k)
              index_[o * static_cast<std::size_t>(tile_) + static_cast<std::size_t>(runs_[i].place + k)] =
                  static_cast<std::int32_t>(runs_[i].source + k * step);
    }
  }
  x += r.column_first * channel_stride;
  const i64 columns = r.column_last - r.column_first;
  if (indexed_) {
    kernels_.gather(x, channel_stride, columns, index_.data(), static_cast<i64>(index_.size()), panel);
    return;
  }
  for (i64 column = 0; column < columns; ++column, x += channel_stride)
    for (std::size_t o = 0; o + 1 < run_begin_.size(); ++o, panel += tile_)
      for (std::size_t i = run_begin_[o]; i < run_begin_[o + 1]; ++i) {
        const Run& run = runs_[i];
        if (run.source < 0)
          std::fill_n(panel + run.place, run.length, T(0));
        else
          kernels_.copy(x + run.source, step, run.length, panel + run.place);
      }
}

template class PanelSource<float>;
template class PanelSource<double>;

}  // namespace upscore
