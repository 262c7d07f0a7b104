#include "panel.h"

#include <algorithm>

namespace upscore {

void split_tile(const AxisPlan* axis, i64 first, i64 last, std::vector<Segment>& segments) {
  segments.clear();
  const i64 nx = axis[2].positions, ny = axis[1].positions, nz = axis[0].positions, row = first / nx;
  Segment s{row / (ny * nz), {row / ny % nz, row % ny, first % nx}, 0, 0};
  while (first + s.place < last) {
    s.length = std::min(nx - s.at[2], last - first - s.place);
    segments.push_back(s);
    s.place += s.length;
    s.at[2] = 0;
    if (++s.at[1] < ny) continue;
    s.at[1] = 0;
    if (++s.at[0] < nz) continue;
    s.at[0] = 0;
    ++s.batch;
  }
}

void split_rectangle(const AxisPlan* axis, const Tile& tile, const Window& window, i64 index, i64 lanes,
                     std::vector<Segment>& segments) {
  segments.clear();
  const i64 x = index % tile.per_row * tile.positions;
  index /= tile.per_row;
  const i64 y = index % tile.per_column * tile.rows;
  index /= tile.per_column;
  const i64 length = std::min(tile.positions, axis[2].positions - x);
  const i64 rows = std::min(tile.rows, axis[1].positions - y);
  const i64 pitch = window.joined ? length + window.extra : round_up(length, lanes);
  for (i64 r = 0; r < rows; ++r)
    segments.push_back({index / axis[0].positions, {index % axis[0].positions, y + r, x}, length, r * pitch});
}

// A last tile may be smaller.
Segments split_task(const Schedule& schedule, i64 tile, i64 lanes) {
  thread_local std::vector<Segment> all;
  Segments segments{all};
  const bool by_rows = schedule.window.by_rows;
  if (by_rows)
    split_rectangle(schedule.axis, schedule.tile, schedule.window, tile, lanes, all);
  else
    split_tile(schedule.axis, tile * schedule.tile.positions,
               std::min((tile + 1) * schedule.tile.positions, schedule.positions), all);
  if (by_rows && !schedule.window.joined) {
    segments.rows = static_cast<i64>(all.size());
    segments.row = round_up(all[0].length, lanes);
  } else {
    segments.row = round_up(all.back().place + all.back().length, lanes);
  }
  return segments;
}

// Where the inputs of one line are copied from, and where there are none.
template <typename T>
void PanelSource<T>::add_line(const Size& offset) {
  i64 filled = begin_;
  line_runs_.clear();
  for (const Segment& s : segments_) {
    const i64 z = s.at[0] * axis_[0].in_step + offset[0], y = s.at[1] * axis_[1].in_step + offset[1];
    // By rows, a line is that of the first row alone, and goes on behind it.
    const i64 length = window_.by_rows ? line_ : s.length, place = begin_ + s.place;
    const i64 step = axis_[2].in_step, start = s.at[2] * step + offset[2];
    const bool inside = z >= 0 && z < axis_[0].in && y >= 0 && y < axis_[1].in;
    // Most runs lie inside: no divisions then.
    i64 skip = inside ? 0 : length, stop = length;
    if (inside && start < 0) skip = std::min(ceil_div(-start, step), length);
    if (inside && start + (length - 1) * step >= axis_[2].in)
      stop = std::clamp<i64>(ceil_div(axis_[2].in - start, step), skip, length);
    if (skip > 0) line_runs_.push_back({place, skip, Run::kZeros});
    if (stop > skip)
      line_runs_.push_back({place + skip, stop - skip,
                            s.batch * batch_stride_ + (z * axis_[1].in + y) * axis_[2].in + start + skip * step});
    if (stop < length) line_runs_.push_back({place + stop, length - stop, Run::kZeros});
    filled = place + length;
    if (window_.by_rows) break;
  }
  if (filled < begin_ + line_) line_runs_.push_back({filled, begin_ + line_ - filled, Run::kZeros});
  merge_runs();
  begin_ += line_;
}

// Rows that lie one behind the other are copied at once, with the few places between them zeroed afterwards.
template <typename T>
void PanelSource<T>::merge_runs() {
  constexpr i64 kSmallHole = 8;
  for (std::size_t i = 0; i < line_runs_.size();) {
    Run run = line_runs_[i++];
    add_run(run, runs_);
    if (run.source < 0 || axis_[2].in_step != 1) continue;
    const std::size_t at = runs_.size() - 1;
    for (;;) {
      std::size_t next = i;
      while (next < line_runs_.size() && line_runs_[next].source < 0 && line_runs_[next].length <= kSmallHole) ++next;
      if (next == line_runs_.size() || line_runs_[next].source < 0) break;
      const Run& other = line_runs_[next];
      if (other.source - other.place != run.source - run.place) break;
      for (; i < next; ++i) runs_.push_back({line_runs_[i].place, line_runs_[i].length, Run::kHole});
      runs_[at].length = other.place + other.length - run.place;
      ++i;
    }
  }
}

template <typename T>
void PanelSource<T>::find_runs(const Reduction& r) {
  if (r.line_first == built_first_ && r.line_last == built_last_) return;
  runs_.clear();
  begin_ = 0;
  for (i64 l = r.line_first; l < r.line_last; ++l) add_line(window_.lines[static_cast<std::size_t>(l)]);
  built_first_ = r.line_first;
  built_last_ = r.line_last;
}

template <typename T>
void PanelSource<T>::fill(const T* x, const T* x_end, i64 channel_stride, const Reduction& r, T* panel) {
  find_runs(r);
  if (pixel_ > 1) return turn_runs(x + r.column_first, x_end, r.column_last - r.column_first, panel);
  kernels_.copy_runs(x + r.column_first * channel_stride, x_end, channel_stride, r.column_last - r.column_first,
                     axis_[2].in_step, runs_.data(), static_cast<i64>(runs_.size()), begin_, panel);
}

// Of channels-last inputs. Runs are written in whole vectors, and the next ones write over the excess; what would reach
// into the next column is copied by hand.
template <typename T>
void PanelSource<T>::turn_runs(const T* x, const T* x_end, i64 columns, T* panel) const {
  const i64 pitch = pixel_ * axis_[2].in_step;
  for (const Run& run : runs_) {
    T* to = panel + run.place;
    if (run.source < 0) {
      for (i64 c = 0; c < columns; ++c) std::fill_n(to + c * begin_, run.length, T(0));
      continue;
    }
    const T* from = x + run.source * pixel_;
    const i64 lanes = kernels_.lanes, fits = run.place + ceil_div(run.length, lanes) * lanes <= begin_;
    const i64 whole = fits ? run.length : run.length / lanes * lanes;
    if (whole > 0) kernels_.transpose(from, x_end, pitch, whole, columns, nullptr, to, begin_);
    for (i64 c = 0; c < columns; ++c) {
      for (i64 i = whole; i < run.length; ++i) to[c * begin_ + i] = from[i * pitch + c];
      std::fill_n(to + c * begin_ + run.length, run.zeros, T(0));
    }
  }
}

template class PanelSource<float>;
template class PanelSource<double>;

}  // namespace upscore
