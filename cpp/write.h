// From sums to the output: phases (and channels, channels last) interleaved, bias added, every number written once.
#pragma once

#include <algorithm>
#include <vector>

#include "panel.h"

namespace upscore {

// The bias of each phase and channel, where channels are written next to each other.
template <typename T>
std::vector<T> bias_of_phases(const T* bias, i64 channels, i64 phases) {
  std::vector<T> all(static_cast<std::size_t>(channels * phases));
  for (i64 i = 0; bias && i < channels * phases; ++i) all[static_cast<std::size_t>(i)] = bias[i % channels];
  return all;
}

// Writes rows of one channel, or of all of them, channels last; staged, it puts together what lies together in the
// output and writes it at once. Short rows are interleaved all at once, with what lies between them.
template <typename T>
class Writer {
 public:
  // `width` sums lie between one phase and the next, and `strips` phases of the leading axes from `first_strip` on
  // behind each other. With `channels` > 1 they are written next to each other, and their sums lie so too, within a
  // phase. If `interleaved`, the phases of the last axis alternate already, with the bias.
  Writer(const Kernels<T>& kernels, const Writing& writing, const AxisPlan* axis, const std::vector<Segment>& segments,
         i64 first_strip, i64 strips, i64 width, i64 image_pitch, T* staging, i64 channels = 1,
         bool interleaved = false)
      : kernels_(kernels),
        writing_(writing),
        step_(axis[2].out_step * channels),
        width_(width),
        interleaved_(interleaved),
        room_(writing.staging - writing.together - step_ * kernels.lanes),
        staging_(staging),
        together_(staging + writing.staging - writing.together),
        rows_(kept().rows),
        blocks_(kept().blocks),
        strips_(kept().strips) {
    rows_.clear();
    blocks_.clear();
    strips_.clear();
    const i64 all = (segments.back().place + segments.back().length) * axis[2].out_step;  // of a strip
    if (!interleaved && writing.together > 0 && writing.hollow.empty() &&
        all * strips + step_ * kernels.lanes <= writing.together)
      for (i64 strip = 0; strip < strips; ++strip) strips_.push_back({strip * step_ * width, 0, all, strip * all});
    for (const Segment& s : segments) {
      const i64 x0 = axis[2].base + s.at[2] * axis[2].out_step;
      const i64 from = std::max<i64>(0, -x0), to = std::min(s.length * axis[2].out_step, axis[2].out - x0);
      if (from >= to) continue;
      for (i64 strip = 0; strip < strips; ++strip) {
        const i64 rz = (first_strip + strip) / axis[1].out_step, ry = (first_strip + strip) % axis[1].out_step;
        const i64 z = axis[0].base + s.at[0] * axis[0].out_step + rz,
                  y = axis[1].base + s.at[1] * axis[1].out_step + ry;
        if (z < 0 || z >= axis[0].out || y < 0 || y >= axis[1].out) continue;
        const bool hollow = !writing_.hollow.empty() && writing_.hollow[static_cast<std::size_t>(first_strip + strip)];
        const i64 pitch = strips_.empty() ? step_ * width : all;
        const i64 source = strip * pitch + s.place * (strips_.empty() && !interleaved ? 1 : step_);
        add({hollow ? -1 : source, from * channels, to * channels,
             s.batch * image_pitch + ((z * axis[1].out + y) * axis[2].out + x0 + from) * channels});
      }
    }
  }

  // `channel` is the output of this channel in image 0. The bias is that of each phase and channel, or, with `each` =
  // 0, of all, if any.
  void write(const T* sums, const T* bias, i64 each, T* channel) const {
    if (!strips_.empty())
      kernels_.interleave(sums, width_, step_, strips_.data(), static_cast<i64>(strips_.size()), bias, each, together_,
                          true);
    auto put = [&](const RowPart* rows, i64 count, T* to, bool excess) {
      if (interleaved_)
        kernels_.copy_rows(sums, rows, count, to);
      else if (strips_.empty())
        kernels_.interleave(sums, width_, step_, rows, count, bias, each, to, excess);
      else
        kernels_.copy_rows(together_, rows, count, to);
    };
    const RowPart* rows = rows_.data();
    if (!writing_.staged) return put(rows, static_cast<i64>(rows_.size()), channel, false);
    for (const Block& block : blocks_) {
      const T* from = staging_;
      if (interleaved_ && block.rows == 1)
        from = sums + rows->source + rows->first;
      else
        put(rows, block.rows, staging_, true);
      rows += block.rows;
      if (writing_.stream)
        kernels_.stream(from, block.length, channel + block.output);
      else
        std::copy_n(from, block.length, channel + block.output);
    }
  }

 private:
  // Rows, or parts of them, that lie behind each other in the output.
  struct Block {
    i64 rows, length, output;
  };
  // A thread writes one tile after the other, and the memory of these is worth keeping.
  struct Lists {
    std::vector<RowPart> rows, strips;
    std::vector<Block> blocks;
  };
  static Lists& kept() {
    thread_local Lists mine;
    return mine;
  }

  // A row whose place is that in the output.
  void add(RowPart row) {
    if (!writing_.staged) {
      rows_.push_back(row);
      return;
    }
    while (row.first < row.last) {
      if (blocks_.empty() || row.place != blocks_.back().output + blocks_.back().length ||
          blocks_.back().length >= room_ - step_ * kernels_.lanes)
        blocks_.push_back({0, 0, row.place});
      Block& block = blocks_.back();
      const i64 end = std::min(row.last, row.first + room_ - block.length), length = end - row.first;
      rows_.push_back({row.source, row.first, end, block.length});
      ++block.rows;
      block.length += length;
      row.first = end;
      row.place += length;
    }
  }

  const Kernels<T>& kernels_;
  const Writing& writing_;
  const i64 step_, width_;
  const bool interleaved_;
  const i64 room_;
  T *const staging_, *const together_;
  std::vector<RowPart>& rows_;
  std::vector<Block>& blocks_;
  std::vector<RowPart>& strips_;  // if any, they are interleaved as a whole, and rows copied out of them
};

}  // namespace upscore
