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
// output and writes it at once.
template <typename T>
class Writer {
 public:
  // `width` sums lie between one phase and the next, and `strips` phases of the leading axes from `first_strip` on
  // behind each other. With `channels` > 1 they are written next to each other, and their sums lie so too, within a
  // phase.
  Writer(const Kernels<T>& kernels, const Writing& writing, const AxisPlan* axis, const std::vector<Segment>& segments,
         i64 first_strip, i64 strips, i64 width, i64 image_pitch, T* staging, i64 channels = 1)
      : kernels_(kernels),
        writing_(writing),
        step_(axis[2].out_step * channels),
        width_(width),
        room_(writing.staging - step_ * kernels.lanes),
        staging_(staging),
        rows_(rows()) {
    rows_.clear();
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
        rows_.push_back({hollow ? -1 : strip * step_ * width + s.place, from * channels, to * channels,
                         s.batch * image_pitch + ((z * axis[1].out + y) * axis[2].out + x0 + from) * channels});
      }
    }
  }

  // `channel` is the output of this channel in image 0. The bias is that of each phase and channel, or, with `each` =
  // 0, of all, if any.
  void write(const T* sums, const T* bias, i64 each, T* channel) {
    for (const Row& row : rows_) {
      const T* src = row.source < 0 ? nullptr : sums + row.source;
      T* dst = channel + row.output;
      if (!src && !writing_.stream)
        kernels_.fill(bias ? *bias : T(0), row.to - row.from, dst);
      else if (!writing_.staged)
        interleave(src, row.from, row.to, bias, each, dst, false);
      else
        stage(src, row.from, row.to, bias, each, dst);
    }
    flush();
  }

 private:
  // Numbers [from, to) of a row of sums, interleaved, or of nothing but the bias, and where they go.
  struct Row {
    i64 source, from, to, output;
  };
  // A thread writes one tile after the other, and the memory of these is worth keeping.
  static std::vector<Row>& rows() {
    thread_local std::vector<Row> mine;
    return mine;
  }

  void stage(const T* src, i64 from, i64 to, const T* bias, i64 each, T* dst) {
    for (i64 e = from; e < to;) {
      if (dst != to_ + length_ || length_ >= room_ - step_ * kernels_.lanes) {
        flush();
        to_ = dst;
      }
      const i64 end = std::min(to, e + room_ - length_);
      interleave(src, e, end, bias, each, staging_ + length_, true);
      length_ += end - e;
      dst += end - e;
      e = end;
    }
  }

  void interleave(const T* src, i64 from, i64 to, const T* bias, i64 each, T* dst, bool excess) const {
    if (src)
      kernels_.interleave(src, width_, step_, from, to, bias, each, dst, excess);
    else
      kernels_.fill(bias ? *bias : T(0), to - from, dst);
  }

  void flush() {
    if (length_ == 0) return;
    if (writing_.stream)
      kernels_.stream(staging_, length_, to_);
    else
      std::copy_n(staging_, length_, to_);
    length_ = 0;
  }

  const Kernels<T>& kernels_;
  const Writing& writing_;
  const i64 step_, width_, room_;
  T* const staging_;
  std::vector<Row>& rows_;
  T* to_ = nullptr;
  i64 length_ = 0;
};

}  // namespace upscore
