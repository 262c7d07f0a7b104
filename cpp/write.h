// From sums to the output: phases (and channels, channels last) interleaved, bias added, every number written once.
#pragma once

#include <algorithm>
#include <vector>

#include "panel.h"

namespace upscore {

// Writes rows of one channel, or of all of them, channels last; staged, it puts together what lies together in the
// output and writes it at once.
template <typename T>
class Writer {
 public:
  // With `channels` > 1 they are written next to each other, and their sums lie so too, within a phase.
  Writer(const Kernels<T>& kernels, const Writing& writing, i64 step, T* staging, i64 channels = 1)
      : kernels_(kernels),
        writing_(writing),
        room_(writing.staging - step * channels * kernels.lanes),
        staging_(staging),
        channels_(channels) {}

  // `width` sums lie between one phase and the next, and `strips` phases of the leading axes from `first_strip` on
  // behind each other; `channel` is the output of this channel in image 0. The bias is that of each phase and channel,
  // or, with `each` = 0, of all.
  void write(const AxisPlan* axis, const std::vector<Segment>& segments, i64 first_strip, i64 strips, const T* sums,
             i64 width, const T* bias, i64 each, T* channel, i64 image_pitch) {
    const i64 steps[kAxes] = {axis[0].out_step, axis[1].out_step, axis[2].out_step};
    for (const Segment& s : segments) {
      T* image = channel + s.batch * image_pitch;
      const i64 x0 = axis[2].base + s.at[2] * steps[2];
      const i64 from = std::max<i64>(0, -x0), to = std::min(s.length * steps[2], axis[2].out - x0);
      if (from >= to) continue;
      for (i64 strip = 0; strip < strips; ++strip) {
        const i64 rz = (first_strip + strip) / steps[1], ry = (first_strip + strip) % steps[1];
        const i64 z = axis[0].base + s.at[0] * steps[0] + rz, y = axis[1].base + s.at[1] * steps[1] + ry;
        if (z < 0 || z >= axis[0].out || y < 0 || y >= axis[1].out) continue;
        const bool hollow = !writing_.hollow.empty() && writing_.hollow[static_cast<std::size_t>(first_strip + strip)];
        put(hollow ? nullptr : sums + strip * steps[2] * channels_ * width + s.place, width, steps[2] * channels_,
            from * channels_, to * channels_, bias, each,
            image + ((z * axis[1].out + y) * axis[2].out + x0 + from) * channels_);
      }
    }
    flush();
  }

 private:
  void put(const T* src, i64 pitch, i64 step, i64 from, i64 to, const T* bias, i64 each, T* dst) {
    if (!writing_.stream && !src) return kernels_.fill(*bias, to - from, dst);
    if (!writing_.staged) return interleave(src, pitch, step, from, to, bias, each, dst, false);
    for (i64 e = from; e < to;) {
      if (dst != to_ + length_ || length_ >= room_ - step * kernels_.lanes) {
        flush();
        to_ = dst;
      }
      const i64 end = std::min(to, e + room_ - length_);
      interleave(src, pitch, step, e, end, bias, each, staging_ + length_, true);
      length_ += end - e;
      dst += end - e;
      e = end;
    }
  }

  void interleave(const T* src, i64 pitch, i64 step, i64 from, i64 to, const T* bias, i64 each, T* dst,
                  bool excess) const {
    if (src)
      kernels_.interleave(src, pitch, step, from, to, bias, each, dst, excess);
    else
      kernels_.fill(*bias, to - from, dst);
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
  const i64 room_;
  T* const staging_;
  const i64 channels_;
  T* to_ = nullptr;
  i64 length_ = 0;
};

}  // namespace upscore
