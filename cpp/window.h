// Which inputs a tile of positions reads, and how a panel holds them.
#pragma once

#include <map>
#include <set>
#include <utility>
#include <vector>

#include "geometry.h"

namespace upscore {

// The window as a panel holds it. A line is a copy of the inputs under a tile at one offset.
// By rows: a tile is a rectangle of `rows` rows; offsets that differ by whole steps along the last axis alone share a
// line, which is `extra` longer than the tile and read at a shift; row r reads r lines further on. Rows may be joined:
// vectors then run on from one into the next, over the `extra` places between them.
// Otherwise a tile runs on across the ends of rows, and every offset has a line of its own.
struct Window {
  std::vector<Size> offsets;  // distinct input offsets, in the order of the taps
  std::vector<Size> lines;
  std::vector<i64> line_of, shift_of;  // per offset
  bool by_rows = false;
  bool joined = false;
  i64 rows = 1;
  i64 extra = 0;

  // The lines [first, last) that a range of offsets reads.
  std::pair<i64, i64> lines_of(i64 offset_first, i64 offset_last) const;
};

Window plain_window(std::vector<Size> offsets);

// The lines of a window by rows: those of one row are where its taps read; several rows share all that any of them can
// read, so that the row below finds its own one line further on.
class RowLines {
 public:
  RowLines(const std::vector<Size>& offsets, const AxisPlan* axis);

  i64 count(i64 rows) const { return rows == 1 ? of_one_row_ : beside_ + rows * static_cast<i64>(blocks_.size()); }
  i64 extra() const { return extra_; }
  i64 height() const { return height_; }

  Window window(std::vector<Size> offsets, i64 rows) const;

 private:
  static i64 residue(i64 offset, i64 step) { return offset - floor_div(offset, step) * step; }

  i64 down_, across_, low_ = 0, extra_ = 0, height_ = 0, of_one_row_ = 0, beside_ = 0;
  std::set<Size> blocks_;                     // plane, residues of row and column
  std::map<i64, std::pair<i64, i64>> reach_;  // per residue of the rows, the first and last that are read
};

}  // namespace upscore
