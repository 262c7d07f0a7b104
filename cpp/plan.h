// What will be done and why, decided without doing it: pure functions of the layer and of the call's sizes.
#pragma once

#include <string>
#include <vector>

#include "geometry.h"

namespace upscore {

// What the kernels of an instruction set can hold.
struct Target {
  int lanes, tile_rows, registers, number_bytes;
  int vectors(int rows) const;  // widest tile, in vectors, for this many rows
};

// A set of output rows that read the same window: one phase, or all of them when fused.
struct PhaseClass {
  std::vector<i64> tap;  // flat kernel index per (row phase, window place); -1 is a structural zero
  i64 taps = 0;          // window places
  i64 phases = 1;        // phases that are rows of this class (1 unless fused)
  i64 weights = 0;       // packed weights of the classes before it, per column
};

// How the weights lie in memory, which is the order in which they are read:
// [group][block of columns][class][block of rows][tap][column][row]. Sizes do not matter.
struct Packing {
  bool fused = false;
  int tile_rows = 1;
  i64 phases = 1;   // of the whole layer: the product of the strides
  i64 columns = 1;  // in a block: with a class's taps, what is summed in registers in one go
  std::vector<PhaseClass> classes;
  i64 per_column = 0;  // packed numbers of one group and input channel
};

Packing plan_packing(const Layer& layer, const Target& target);

// A range of window offsets times a block of input channels: what is summed in registers in one go.
// Depends on the layer alone, so that the order of additions never depends on threads or tiles.
struct Reduction {
  i64 offset_first, offset_last;  // into Window::offsets
  i64 column_first, column_last;
};

// The window as a panel holds it. A line is a copy of the inputs under the tile at one offset. Where a tile
// lies in one row, offsets that differ along the last axis alone share a longer line, read at a shift.
struct Window {
  std::vector<Size> offsets;  // distinct input offsets, in the order of the taps
  std::vector<Size> lines;
  std::vector<i64> line_of, shift_of;  // per offset
  i64 extra = 0;                       // what a line is longer than the tile
  bool shared() const { return lines.size() < offsets.size(); }
};

Window plain_window(std::vector<Size> offsets);
Window shared_window(std::vector<Size> offsets);

struct PhaseTaps {
  i64 packed_class = 0;        // which PhaseClass of the packing
  std::vector<i64> offset_of;  // per tap, its index into Window::offsets; ascending
};

struct Schedule {
  AxisPlan axis[kAxes];
  Window window;
  std::vector<PhaseTaps> phases;
  std::vector<Reduction> reductions;
  bool by_rows = false;   // no tile crosses the end of a row
  i64 positions = 0;      // batch * positions of all axes
  i64 tile = 0;           // positions per task, a multiple of the lanes
  i64 tiles = 0;
  i64 chunk = 0;          // output channels per task
  i64 strips = 1;         // phases of the leading axes per task
  bool staged = false;    // rows are put together before they are written: they are short, or go past the caches
  bool stream = false;    // write past the caches
  i64 panel = 0, sums = 0, staging = 0;  // scratch per task, in numbers
  int threads = 1;
  std::string why;
};

Schedule plan_schedule(const Layer& layer, const Call& call, const Packing& packing, const Target& target,
                       int threads);

}  // namespace upscore
