#include "channel_lanes.h"

#include <algorithm>

#include "panel.h"
#include "scratch.h"
#include "tasks.h"
#include "threads.h"
#include "turn.h"

namespace upscore {
namespace {

constexpr i64 kOwnCaches = 1 << 20;  // bytes of inputs that a core's own caches may hold

template <typename T>
class Computation {
 public:
  Computation(const Layer& layer, const Call& call, const Packing& packing, const Schedule& schedule,
              const Kernels<T>& kernels, const T* packed, const T* bias, const T* x, T* y)
      : layer_(layer),
        call_(call),
        packing_(packing),
        schedule_(schedule),
        map_(*schedule.channel_lanes),
        kernels_(kernels),
        packed_(packed),
        bias_(bias),
        x_(x),
        x_end_(x + call.batch * layer.groups * layer.cols * call.in[0] * call.in[1] * call.in[2]),
        y_(y),
        plane_(call.in[0] * call.in[1] * call.in[2]),
        out_plane_(call.out[0] * call.out[1] * call.out[2]),
        in_channels_(layer.groups * layer.cols),
        out_channels_(layer.groups * layer.rows),
        staged_(map_.last && packing.rows > layer.rows),
        far_((x_end_ - x) * i64{sizeof(T)} >= kOwnCaches) {}

  // Output channels [first_row, first_row + rows) of one group, of one part of the outputs.
  void compute(i64 part, i64 group, i64 first_row, i64 rows) {
    group_ = group;
    first_row_ = first_row;
    rows_ = rows;
    place(part);
    padded_ = round_up(rows, kernels_.lanes);
    // Not a power of two: rows that are turned together lie in different cache sets.
    pitch_ = map_.last ? padded_ : padded_ + kernels_.lanes;
    panel_ = scratch<T>(static_cast<std::size_t>(map_.panel + map_.sums));
    sums_ = panel_ + map_.panel;
    panel_first_ = panel_last_ = 0;
    if (map_.last) std::fill_n(panel_, map_.panel, T(0));
    cut();
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      const Block& block = blocks_[i];
      if (!map_.last && block.reduction->column_last > panel_last_) copy_inputs(block.reduction->column_first);
      fetch_ahead(block, i + 1 < blocks_.size() ? &blocks_[i + 1] : nullptr);
      if (map_.run) multiply_run(block);
      for (const ChannelLanes::Group& group : map_.groups[block.phase]) multiply(group, block);
    }
    if (staged_)
      write_run();
    else if (!map_.last)
      write();
  }

 private:
  // Weights that are multiplied one after the other, in the order in which they lie.
  struct Block {
    const Reduction* reduction;
    std::size_t phase;
    i64 row, rows;
    const T* weights;
    i64 size;
  };

  void place(i64 part) {
    first_ = {0, 0, 0};
    images_ = 1;
    if (map_.run) {
      split_tile(schedule_.axis, part * map_.run, std::min((part + 1) * map_.run, schedule_.positions), segments_);
      return;
    }
    if (!map_.rectangle) {
      image_ = part * map_.images;
      images_ = std::min(map_.images, call_.batch - image_);
      return;
    }
    const ChannelLanes::Rectangle& r = *map_.rectangle;
    first_[2] = part % r.per_row * r.across;
    part /= r.per_row;
    first_[1] = part % r.per_column * r.down;
    part /= r.per_column;
    first_[0] = part % call_.out[0];
    image_ = part / call_.out[0];
  }

  void cut() {
    blocks_.clear();
    const i64 most = map_.vectors * kernels_.lanes;
    for (const Reduction& r : schedule_.reductions)
      for (std::size_t phase = 0; phase < map_.groups.size(); ++phase) {
        if (map_.groups[phase].empty() && !map_.run) continue;
        const PhaseClass& c = taps_of(phase);
        const i64 columns = r.column_last - r.column_first;
        for (i64 row = 0; row < padded_; row += most) {
          const i64 rows = std::min(most, padded_ - row);
          const T* weights = packed_ + (group_ * layer_.cols + r.column_first) * packing_.per_column +
                             (c.weights + (first_row_ + row) * c.taps) * columns;
          blocks_.push_back({&r, phase, row, rows, weights, rows * c.taps * columns});
        }
      }
  }

  // The panel, from a column on: as many of them as it holds.
  void copy_inputs(i64 first) {
    panel_first_ = first;
    panel_last_ = std::min(first + map_.columns, layer_.cols);
    const T* x = x_ + ((image_ * layer_.groups + group_) * layer_.cols + first) * plane_;
    if (map_.rectangle)
      copy_rectangle(x, panel_last_ - first);
    else
      copy_images(x, panel_last_ - first);
  }

  // panel[input][column][image], with zeros behind the inputs if need be. Whole vectors are written: beyond a column
  // with the next one's place, beyond the last one with what is between the inputs.
  void copy_images(const T* x, i64 columns) {
    const i64 next = layer_.groups * layer_.cols * plane_;
    input_pitch_ = columns * map_.image_pitch + kernels_.lanes;
    if (map_.image_pitch == 1) {
      kernels_.transpose(x, x_end_, plane_, columns, plane_, nullptr, panel_, input_pitch_);
    } else {
      for (i64 c = 0; c < columns; ++c)
        kernels_.transpose(x + c * plane_, x_end_, next, images_, plane_, nullptr, panel_ + c * map_.image_pitch,
                           input_pitch_);
    }
    if (map_.zeros) std::fill_n(panel_ + plane_ * input_pitch_, input_pitch_, T(0));
  }

  // panel[tap of the first axis][row][input][column], zeros outside.
  void copy_rectangle(const T* x, i64 columns) {
    const Size &in = call_.in, &inputs = map_.rectangle->inputs;
    input_pitch_ = round_up(columns, kernels_.lanes) + kernels_.lanes;
    Size from;
    for (std::size_t a = 0; a < kAxes; ++a) from[a] = first_[a] * schedule_.axis[a].in_step + map_.rectangle->first[a];
    const i64 skip = std::clamp<i64>(-from[2], 0, inputs[2]), stop = std::clamp<i64>(in[2] - from[2], skip, inputs[2]);
    T* line = panel_;
    for (i64 tap = 0; tap < inputs[0]; ++tap)
      for (i64 row = 0; row < inputs[1]; ++row, line += inputs[2] * input_pitch_) {
        const i64 z = from[0] + tap * layer_.dilation[0], y = from[1] + row;
        if (z < 0 || z >= in[0] || y < 0 || y >= in[1] || skip == stop) {
          kernels_.fill(T(0), inputs[2] * input_pitch_, line);
          continue;
        }
        kernels_.fill(T(0), skip * input_pitch_, line);
        kernels_.transpose(x + (z * in[1] + y) * in[2] + from[2] + skip, x_end_, plane_, columns, stop - skip, nullptr,
                           line + skip * input_pitch_, input_pitch_);
        kernels_.fill(T(0), (inputs[2] - stop) * input_pitch_, line + stop * input_pitch_);
      }
  }

  // While one block is multiplied, the next one is fetched from memory.
  void fetch_ahead(const Block& block, const Block* next) {
    ahead_ = reinterpret_cast<const char*>(next ? next->weights : block.weights);
    ahead_step_ = 0;
    if (!next) return;
    i64 terms = 0;
    if (map_.run) terms = ceil_div(map_.run, map_.positions) * taps_of(block.phase).taps;
    for (const ChannelLanes::Group& group : map_.groups[block.phase])
      terms += ceil_div(static_cast<i64>(group.outputs.size()) * images_, map_.positions) *
               static_cast<i64>(group.taps.size());
    terms *= block.reduction->column_last - block.reduction->column_first;
    if (terms > 0) ahead_step_ = ceil_div(next->size * static_cast<i64>(sizeof(T)), terms);
  }

  const PhaseClass& taps_of(std::size_t phase) const {
    return packing_.classes[static_cast<std::size_t>(schedule_.phases[phase].packed_class)];
  }
  bool is_first(const Block& block) const { return block.reduction == &schedule_.reductions.front(); }
  bool is_last(const Block& block) const { return block.reduction == &schedule_.reductions.back(); }

  // What all products of a block share; `taps` of the phase, in `tap`.
  struct Taps {
    i64 taps = 0;
    i64 tap[Limits::offsets];
    i64 w_offset[Limits::offsets], x_tap[Limits::offsets] = {};
  };
  ChannelProduct<T> product_of(const Block& block, Taps& taps) const {
    const Reduction& r = *block.reduction;
    const i64 columns = r.column_last - r.column_first;
    for (i64 t = 0; t < taps.taps; ++t) taps.w_offset[t] = taps.tap[t] * columns * packing_.tile_rows;
    ChannelProduct<T> p;
    p.w = block.weights;
    p.w_tile_stride = taps_of(block.phase).taps * columns * packing_.tile_rows;
    p.w_offset = taps.w_offset;
    p.x_tap = taps.x_tap;
    p.x_stride = map_.last ? 1 : map_.image_pitch;
    p.taps = taps.taps;
    p.columns = columns;
    p.c = map_.last && !staged_ ? y_ + group_ * layer_.rows + first_row_ + block.row : sums_ + block.row;
    p.accumulate = !is_first(block);
    p.bias = bias_ && is_last(block) ? bias_ + group_ * layer_.rows + first_row_ + block.row : nullptr;
    p.past_caches = map_.last && !staged_ && schedule_.writing.stream && schedule_.reductions.size() == 1 &&
                    lies_on_vector(y_, kernels_);
    return p;
  }

  void run_product(ChannelProduct<T>& p, const Block& block, i64 count) {
    p.ahead = ahead_;
    p.ahead_step = ahead_step_;
    ahead_ += p.taps * p.columns * ahead_step_;
    (p.x_pitch ? kernels_.line_product : kernels_.channel_product)[block.rows / kernels_.lanes][count](p);
  }

  void multiply(const ChannelLanes::Group& group, const Block& block) {
    const Reduction& r = *block.reduction;
    const PhaseTaps& phase = schedule_.phases[block.phase];
    const i64 all_taps = static_cast<i64>(group.taps.size());
    const bool regular = !group.shift.empty();
    const i64 input = map_.last ? in_channels_ : input_pitch_, image_pitch = map_.last ? plane_ * in_channels_ : 1;
    Taps taps;
    i64 first = all_taps;  // of this reduction
    for (i64 t = 0; t < all_taps; ++t) {
      const i64 tap = group.taps[static_cast<std::size_t>(t)], offset = phase.offset_of[static_cast<std::size_t>(tap)];
      if (offset < r.offset_first || offset >= r.offset_last) continue;
      first = std::min(first, t);
      taps.tap[taps.taps] = tap;
      if (regular) taps.x_tap[taps.taps] = group.inputs[static_cast<std::size_t>(t)] * input;
      ++taps.taps;
    }
    ChannelProduct<T> p = product_of(block, taps);
    if (p.taps == 0 && p.accumulate && !p.bias) return;
    const T* const inputs = map_.last ? x_ + image_ * image_pitch + group_ * layer_.cols + r.column_first
                                      : panel_ + (r.column_first - panel_first_) * map_.image_pitch;
    const T* x[Limits::offsets * kMaxPositions];
    i64 c_offset[kMaxPositions];
    p.x = x;
    p.c_offset = c_offset;
    if (map_.rectangle) {  // rows of positions in a line
      const i64 across = map_.rectangle->across, most = piece(across, map_.positions);
      p.x_step = 0;
      p.x_pitch = schedule_.axis[2].in_step * input;
      for (i64 row = 0; row < map_.outputs; row += across)
        for (i64 begin = row; begin < row + across; begin += most) {
          const i64 count = std::min(most, row + across - begin);
          x[0] = inputs + group.shift[static_cast<std::size_t>(begin)] * input;
          for (i64 q = 0; q < count; ++q) c_offset[q] = (begin + q) * pitch_;
          run_product(p, block, count);
        }
      return;
    }
    // Positions are counted over outputs and, within them, images.
    const i64 all = static_cast<i64>(group.outputs.size()) * images_;
    for (i64 begin = 0, most = piece(all, map_.positions); begin < all; begin += most) {
      const i64 count = std::min(most, all - begin);
      for (i64 q = 0; q < count; ++q) {
        const auto output = static_cast<std::size_t>((begin + q) / images_);
        const i64 image = (begin + q) % images_;
        c_offset[q] = map_.last ? ((image_ + image) * out_plane_ + group.outputs[output]) * out_channels_
                                : (image * map_.outputs + group.outputs[output]) * pitch_;
        if (regular) {
          x[q] = inputs + group.shift[output] * input + image * image_pitch;
          continue;
        }
        const i64* from = &group.inputs[output * static_cast<std::size_t>(all_taps) + static_cast<std::size_t>(first)];
        for (i64 t = 0; t < p.taps; ++t)
          x[t * count + q] = map_.last && from[t] == plane_ ? panel_ : inputs + from[t] * input + image * image_pitch;
      }
      p.x_step = regular ? 0 : count;
      run_product(p, block, count);
    }
  }

  // A run of positions, channels last. Most lie in a line and read at the same distances; those at borders, with zeros
  // for what lies outside, and those left over are multiplied together.
  void multiply_run(const Block& block) {
    const Reduction& r = *block.reduction;
    const PhaseTaps& phase = schedule_.phases[block.phase];
    const AxisPlan* axis = schedule_.axis;
    Taps taps;
    const Size* offset[Limits::offsets];
    for (i64 t = 0; t < static_cast<i64>(phase.offset_of.size()); ++t) {
      const i64 at = phase.offset_of[static_cast<std::size_t>(t)];
      if (at < r.offset_first || at >= r.offset_last) continue;
      offset[taps.taps] = &schedule_.window.offsets[static_cast<std::size_t>(at)];
      taps.tap[taps.taps++] = t;
    }
    ChannelProduct<T> p = product_of(block, taps);
    if (p.taps == 0 && p.accumulate && !p.bias) return;
    const i64 taps_of_phase = p.taps, *const w_offset = p.w_offset, rest = static_cast<i64>(block.phase);
    const Size residue = residue_of(rest);
    const T *apart[Limits::offsets * kMaxPositions], *first;
    i64 c_apart[kMaxPositions], c_line[kMaxPositions], count = 0;
    auto flush = [&] {
      p.taps = taps_of_phase;
      p.w_offset = w_offset;
      p.x = apart;
      p.x_tap = taps.x_tap;  // zeros
      p.x_step = kMaxPositions;
      p.x_pitch = 0;
      p.c_offset = c_apart;
      if (count > 0) run_product(p, block, count);
      count = 0;
    };
    const i64 step = axis[2].in_step, most = map_.positions;
    const T* const inputs = x_ + group_ * layer_.cols + r.column_first;
    i64 w_here[Limits::offsets], x_here[Limits::offsets];
    for (const Segment& s : segments_) {
      const i64 length = outputs_of(s, residue);
      if (length == 0) continue;
      // Of the taps whose row of inputs exists: where in it, and of all pixels, the first position reads. The others
      // add nothing.
      i64 start[Limits::offsets], pixel[Limits::offsets], nth[Limits::offsets], row = -1, here_taps = 0;
      i64 inside = 0, end = length;  // where none of them reads outside
      for (i64 t = 0; t < taps_of_phase; ++t) {
        const Size& o = *offset[t];
        if (t == 0 || o[0] != (*offset[t - 1])[0] || o[1] != (*offset[t - 1])[1]) {
          const i64 z = s.at[0] * axis[0].in_step + o[0], y = s.at[1] * axis[1].in_step + o[1];
          const bool exists = z >= 0 && z < axis[0].in && y >= 0 && y < axis[1].in;
          row = exists ? ((s.batch * axis[0].in + z) * axis[1].in + y) * axis[2].in : -1;
        }
        nth[t] = row < 0 ? -1 : here_taps;
        if (row < 0) continue;
        const i64 first_read = s.at[2] * step + o[2], last_read = first_read + (length - 1) * step;
        if (first_read < 0) inside = std::max(inside, std::min(ceil_div(-first_read, step), length));
        if (last_read >= axis[2].in) end = std::min(end, ceil_div(axis[2].in - first_read, step));
        w_here[here_taps] = w_offset[t];
        pixel[here_taps] = row + first_read;
        start[here_taps++] = first_read;
      }
      if (inside < end)
        for (i64 t = 0; t < here_taps; ++t) x_here[t] = (pixel[t] - pixel[0]) * in_channels_;
      const i64 c = staged_ ? sum_of(s.place, rest) : place_of(s, residue);
      const i64 c_step = staged_ ? sum_of(1, 0) : axis[2].out_step * out_channels_;
      // Those inside are cut into equal tiles, or full ones, if equal ones would be narrow.
      const i64 wide = inside < end ? piece(end - inside, most) : most;
      const bool equal = 4 * wide >= 3 * most;
      for (i64 i = 0; i < length;) {
        const i64 here = i < inside ? 0 : equal ? std::min(wide, end - i) : most;
        if (here > 0 && i + here <= end) {
          p.taps = here_taps;
          p.w_offset = w_here;
          p.x_step = 0;
          p.x_pitch = step * in_channels_;
          p.x_far = far_ && block.phase == 0 && block.row == 0;  // others find them in a cache
          p.c_offset = c_line;
          p.x = &first;
          p.x_tap = x_here;
          first = here_taps ? inputs + (pixel[0] + i * step) * in_channels_ : panel_;
          for (i64 q = 0; q < here; ++q) c_line[q] = c + (i + q) * c_step;
          run_product(p, block, here);
          i += here;
          continue;
        }
        for (i64 t = 0; t < taps_of_phase; ++t) {
          const i64 n = nth[t], at = n < 0 ? -1 : start[n] + i * step;
          const bool inside_row = at >= 0 && at < axis[2].in;
          apart[t * kMaxPositions + count] = inside_row ? inputs + (pixel[n] + i * step) * in_channels_ : panel_;
        }
        c_apart[count] = c + i * c_step;
        ++i;
        if (++count == most) flush();
      }
    }
    flush();
  }

  Size residue_of(i64 phase) const {
    const AxisPlan* axis = schedule_.axis;
    return {phase / (axis[2].out_step * axis[1].out_step), phase / axis[2].out_step % axis[1].out_step,
            phase % axis[2].out_step};
  }

  // Where the first of a segment's outputs of a phase lies, channels last.
  i64 place_of(const Segment& s, const Size& residue) const {
    const AxisPlan* axis = schedule_.axis;
    return (((s.batch * axis[0].out + s.at[0] * axis[0].out_step + residue[0]) * axis[1].out +
             s.at[1] * axis[1].out_step + residue[1]) *
                axis[2].out +
            s.at[2] * axis[2].out_step + residue[2]) *
           out_channels_;
  }

  // And where a position's output of a phase is summed, if it waits there.
  i64 sum_of(i64 position, i64 phase) const {
    return (position * static_cast<i64>(schedule_.phases.size()) + phase) * pitch_;
  }

  // How many of a segment's positions have an output in this phase.
  i64 outputs_of(const Segment& s, const Size& residue) const {
    const AxisPlan* axis = schedule_.axis;
    for (std::size_t a = 0; a < 2; ++a)
      if (s.at[a] * axis[a].out_step + residue[a] >= axis[a].out) return 0;
    return std::clamp<i64>(ceil_div(axis[2].out - residue[2], axis[2].out_step) - s.at[2], 0, s.length);
  }

  // From [position][phase][channel, in whole vectors] to where they belong, channels last.
  void write_run() {
    T* const y = y_ + group_ * layer_.rows + first_row_;
    parts_.clear();
    for (const Segment& s : segments_)
      for (i64 phase = 0; phase < static_cast<i64>(schedule_.phases.size()); ++phase) {
        const Size residue = residue_of(phase);
        const i64 to = place_of(s, residue);
        for (i64 i = 0, count = outputs_of(s, residue); i < count; ++i)
          parts_.push_back({sum_of(s.place + i, phase), 0, rows_, to + i * schedule_.axis[2].out_step * out_channels_});
      }
    kernels_.copy_rows(sums_, parts_.data(), static_cast<i64>(parts_.size()), y);
  }

  // From [image or row][output][channel] to [channel][output].
  void write() const {
    for (i64 image = 0; image < images_; ++image) {
      const i64 channel = ((image_ + image) * layer_.groups + group_) * layer_.rows + first_row_;
      const T* sums = sums_ + image * map_.outputs * pitch_;
      if (!map_.rectangle) {
        turn(sums, map_.outputs, y_ + channel * out_plane_);
        continue;
      }
      const ChannelLanes::Rectangle& r = *map_.rectangle;
      const i64 across = std::min(r.across, call_.out[2] - first_[2]),
                down = std::min(r.down, call_.out[1] - first_[1]);
      T* y = y_ + channel * out_plane_ + (first_[0] * call_.out[1] + first_[1]) * call_.out[2] + first_[2];
      if (across == call_.out[2]) {  // whole rows lie one behind the other
        turn(sums, down * across, y);
        continue;
      }
      for (i64 row = 0; row < down; ++row) turn(sums + row * r.across * pitch_, across, y + row * call_.out[2]);
    }
  }

  // [output][channel] to [channel][output]
  void turn(const T* from, i64 outputs, T* to) const {
    turn_outputs(kernels_, from, sums_ + map_.sums, pitch_, outputs, rows_, to, out_plane_);
  }

  const Layer& layer_;
  const Call& call_;
  const Packing& packing_;
  const Schedule& schedule_;
  const ChannelLanes& map_;
  const Kernels<T>& kernels_;
  const T *const packed_, *const bias_, *const x_, *const x_end_;
  T* const y_;
  const i64 plane_, out_plane_, in_channels_, out_channels_;
  const bool staged_;  // channels last, by way of sums: whole vectors of channels would reach into the next outputs
  const bool far_;     // inputs come from a cache that cores share, or from memory
  Size first_{};
  i64 image_ = 0, images_ = 1;
  i64 group_ = 0, first_row_ = 0, rows_ = 0, padded_ = 0, pitch_ = 0, input_pitch_ = 0, panel_first_ = 0,
      panel_last_ = 0;
  T *panel_ = nullptr, *sums_ = nullptr;
  const char* ahead_ = nullptr;
  i64 ahead_step_ = 0;
  std::vector<Block> blocks_;
  std::vector<Segment> segments_;
  std::vector<RowPart> parts_;
};

}  // namespace

template <typename T>
void execute_channel_lanes(const Layer& layer, const Call& call, const Packing& packing, const Schedule& schedule,
                           const Kernels<T>& kernels, const T* packed, const T* bias, const T* x, T* y) {
  const ChannelLanes& map = *schedule.channel_lanes;
  const Tasks tasks(layer, call, map.parts, layer.groups, ceil_div(layer.rows, map.chunk));
  parallel_for(tasks.count(), schedule.threads, [&](i64 index) {
    const auto [part, group, chunk] = tasks[index];
    const i64 row = chunk * map.chunk;
    Computation<T>(layer, call, packing, schedule, kernels, packed, bias, x, y)
        .compute(part, group, row, std::min(map.chunk, layer.rows - row));
  });
}

#define UPSCORE_INSTANTIATE(T)                                                                       \
  template void execute_channel_lanes<T>(const Layer&, const Call&, const Packing&, const Schedule&, \
                                         const Kernels<T>&, const T*, const T*, const T*, T*);
UPSCORE_INSTANTIATE(float)
UPSCORE_INSTANTIATE(double)

}  // namespace upscore
