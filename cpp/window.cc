#include "window.h"

#include <algorithm>
#include <numeric>

namespace upscore {

Window plain_window(std::vector<Size> offsets) {
  Window w;
  w.lines = offsets;
  w.shift_of.assign(offsets.size(), 0);
  w.line_of.resize(offsets.size());
  std::iota(w.line_of.begin(), w.line_of.end(), 0);
  w.offsets = std::move(offsets);
  return w;
}

std::pair<i64, i64> Window::lines_of(i64 offset_first, i64 offset_last) const {
  if (rows > 1) return {0, static_cast<i64>(lines.size())};
  if (offset_first >= offset_last) return {0, 0};
  const auto [low, high] = std::minmax_element(line_of.begin() + offset_first, line_of.begin() + offset_last);
  return {*low, *high + 1};
}

RowLines::RowLines(const std::vector<Size>& offsets, const AxisPlan* axis)
    : down_(axis[1].in_step), across_(axis[2].in_step) {
  if (offsets.empty()) return;
  low_ = floor_div(offsets[0][2], across_);
  i64 high = low_, top = offsets[0][1], bottom = top;
  std::set<Size> rows;
  for (const Size& o : offsets) {
    low_ = std::min(low_, floor_div(o[2], across_));
    high = std::max(high, floor_div(o[2], across_));
    top = std::min(top, o[1]);
    bottom = std::max(bottom, o[1]);
    rows.insert({o[0], o[1], residue(o[2], across_)});
    blocks_.insert({o[0], residue(o[1], down_), residue(o[2], across_)});
    auto& [first, last] = reach_.emplace(residue(o[1], down_), std::pair(o[1], o[1])).first->second;
    first = std::min(first, o[1]);
    last = std::max(last, o[1]);
  }
  extra_ = high - low_;
  height_ = bottom - top;
  of_one_row_ = static_cast<i64>(rows.size());
  for (const Size& block : blocks_) {
    const auto& [first, last] = reach_.at(block[1]);
    beside_ += (last - first) / down_;
  }
}

Window RowLines::window(std::vector<Size> offsets, i64 rows) const {
  Window w;
  w.by_rows = true;
  w.rows = rows;
  w.extra = extra_;
  std::map<Size, i64> index;  // of lines
  auto add = [&](i64 z, i64 y, i64 x) {
    const auto [at, fresh] = index.emplace(Size{z, y, x}, static_cast<i64>(w.lines.size()));
    if (fresh) w.lines.push_back({z, y, low_ * across_ + x});
    return at->second;
  };
  if (rows > 1)
    for (const Size& block : blocks_) {
      const auto& [first, last] = reach_.at(block[1]);
      for (i64 y = first; y < last + rows * down_; y += down_) add(block[0], y, block[2]);
    }
  for (const Size& o : offsets) {
    w.line_of.push_back(add(o[0], o[1], residue(o[2], across_)));
    w.shift_of.push_back(floor_div(o[2], across_) - low_);
  }
  w.offsets = std::move(offsets);
  return w;
}

}  // namespace upscore
