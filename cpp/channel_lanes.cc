#include "channel_lanes.h"

#include <algorithm>

#include "scratch.h"
#include "threads.h"

namespace upscore {
namespace {

template <typename T>
class Task {
 public:
  Task(const Layer& layer, const Call& call, const Packing& packing, const Schedule& schedule,
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
        out_plane_(call.out[0] * call.out[1] * call.out[2]) {}

  // Output channels [first_row, first_row + rows) of one group, of one part of the outputs.
  void compute(i64 part, i64 group, i64 first_row, i64 rows) {
    group_ = group;
    first_row_ = first_row;
    rows_ = rows;
    place(part);
    pitch_ = rows + kernels_.lanes;  // not a power of two: rows that are turned together lie in different cache sets
    panel_ = scratch<T>(static_cast<std::size_t>(map_.panel + map_.sums));
    sums_ = panel_ + map_.panel;
    panel_first_ = panel_last_ = 0;
    cut();
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      const Block& block = blocks_[i];
      const Reduction& r = *block.reduction;
      const bool first = block.reduction == &schedule_.reductions.front();
      if (r.column_last > panel_last_) copy_inputs(r.column_first);
      fetch_ahead(block, i + 1 < blocks_.size() ? &blocks_[i + 1] : nullptr);
      for (const ChannelLanes::Group& group : map_.groups[block.phase])
        multiply(group, block, !first, &r == &schedule_.reductions.back());
    }
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
        if (map_.groups[phase].empty()) continue;
        const PhaseClass& c = packing_.classes[static_cast<std::size_t>(schedule_.phases[phase].packed_class)];
        const i64 columns = r.column_last - r.column_first;
        for (i64 row = 0; row < rows_; row += most) {
          const i64 rows = std::min(most, rows_ - row);
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
    for (std::size_t a = 0; a < kAxes; ++a)
      from[a] = first_[a] * layer_.stride[a] + schedule_.axis[a].phases[0].offset[0];
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
    for (const ChannelLanes::Group& group : map_.groups[block.phase])
      terms += ceil_div(static_cast<i64>(group.outputs.size()) * images_, map_.positions) *
               static_cast<i64>(group.taps.size());
    terms *= block.reduction->column_last - block.reduction->column_first;
    if (terms > 0) ahead_step_ = ceil_div(next->size * static_cast<i64>(sizeof(T)), terms);
  }

  void multiply(const ChannelLanes::Group& group, const Block& block, bool accumulate, bool last_terms) {
    const Reduction& r = *block.reduction;
    const PhaseTaps& phase = schedule_.phases[block.phase];
    const PhaseClass& c = packing_.classes[static_cast<std::size_t>(phase.packed_class)];
    const i64 columns = r.column_last - r.column_first, all_taps = static_cast<i64>(group.taps.size());
    i64 first = 0, last = all_taps;  // taps of this reduction
    auto offset = [&](i64 tap) {
      return phase.offset_of[static_cast<std::size_t>(group.taps[static_cast<std::size_t>(tap)])];
    };
    while (first < last && offset(first) < r.offset_first) ++first;
    while (last > first && offset(last - 1) >= r.offset_last) --last;
    const T* bias = bias_ && last_terms ? bias_ + group_ * layer_.rows + first_row_ + block.row : nullptr;
    if (first == last && accumulate && !bias) return;

    const bool regular = !group.shift.empty();
    i64 w_offset[Limits::offsets], x_tap[Limits::offsets] = {}, x_offset[Limits::offsets * kMaxPositions],
                                   c_offset[kMaxPositions];
    for (i64 t = first; t < last; ++t) {
      w_offset[t - first] = group.taps[static_cast<std::size_t>(t)] * columns * packing_.tile_rows;
      if (regular) x_tap[t - first] = group.inputs[static_cast<std::size_t>(t)] * input_pitch_;
    }
    ChannelProduct<T> p;
    p.w = block.weights;
    p.w_tile_stride = c.taps * columns * packing_.tile_rows;
    p.w_offset = w_offset;
    p.x = panel_ + (r.column_first - panel_first_) * map_.image_pitch;
    p.x_tap = x_tap;
    p.x_offset = x_offset;
    p.x_stride = map_.image_pitch;
    p.taps = last - first;
    p.columns = columns;
    p.c = sums_ + block.row;
    p.c_offset = c_offset;
    p.accumulate = accumulate;
    p.bias = bias;
    // Positions are counted over outputs and, within them, images.
    const i64 all = static_cast<i64>(group.outputs.size()) * images_;
    for (i64 begin = 0, most = piece(all, map_.positions); begin < all; begin += most) {
      const i64 count = std::min(most, all - begin);
      for (i64 q = 0; q < count; ++q) {
        const i64 output = (begin + q) / images_, image = (begin + q) % images_;
        c_offset[q] = (image * map_.outputs + group.outputs[static_cast<std::size_t>(output)]) * pitch_;
        if (regular) {
          x_offset[q] = group.shift[static_cast<std::size_t>(output)] * input_pitch_ + image;
          continue;
        }
        for (i64 t = first; t < last; ++t)
          x_offset[(t - first) * count + q] =
              group.inputs[static_cast<std::size_t>(output * all_taps + t)] * input_pitch_ + image;
      }
      p.x_offset_step = regular ? 0 : count;
      p.ahead = ahead_;
      p.ahead_step = ahead_step_;
      ahead_ += p.taps * columns * ahead_step_;
      kernels_.channel_product[block.rows / kernels_.lanes][count](p);
    }
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
    const i64 lanes = kernels_.lanes, whole = outputs / lanes * lanes;
    const T* const end = sums_ + map_.sums;
    if (whole > 0) kernels_.transpose(from, end, pitch_, whole, rows_, nullptr, to, out_plane_);
    if (whole == outputs) return;
    if (whole > 0) {  // the last vector overlaps the one before
      kernels_.transpose(from + (outputs - lanes) * pitch_, end, pitch_, lanes, rows_, nullptr, to + outputs - lanes,
                         out_plane_);
      return;
    }
    for (i64 row = 0; row < rows_; ++row)
      for (i64 output = 0; output < outputs; ++output) to[row * out_plane_ + output] = from[output * pitch_ + row];
  }

  const Layer& layer_;
  const Call& call_;
  const Packing& packing_;
  const Schedule& schedule_;
  const ChannelLanes& map_;
  const Kernels<T>& kernels_;
  const T *const packed_, *const bias_, *const x_, *const x_end_;
  T* const y_;
  const i64 plane_, out_plane_;
  Size first_{};
  i64 image_ = 0, images_ = 1;
  i64 group_ = 0, first_row_ = 0, rows_ = 0, pitch_ = 0, input_pitch_ = 0, panel_first_ = 0, panel_last_ = 0;
  T *panel_ = nullptr, *sums_ = nullptr;
  const char* ahead_ = nullptr;
  i64 ahead_step_ = 0;
  std::vector<Block> blocks_;
};

}  // namespace

template <typename T>
void execute_channel_lanes(const Layer& layer, const Call& call, const Packing& packing, const Schedule& schedule,
                           const Kernels<T>& kernels, const T* packed, const T* bias, const T* x, T* y) {
  const ChannelLanes& map = *schedule.channel_lanes;
  const i64 chunks = ceil_div(layer.rows, map.chunk);
  parallel_for(map.parts * layer.groups * chunks, schedule.threads, [&](i64 task) {
    const i64 row = task % chunks * map.chunk, group = task / chunks % layer.groups;
    Task<T>(layer, call, packing, schedule, kernels, packed, bias, x, y)
        .compute(task / chunks / layer.groups, group, row, std::min(map.chunk, layer.rows - row));
  });
}

#define UPSCORE_INSTANTIATE(T)                                                                       \
  template void execute_channel_lanes<T>(const Layer&, const Call&, const Packing&, const Schedule&, \
                                         const Kernels<T>&, const T*, const T*, const T*, T*);
UPSCORE_INSTANTIATE(float)
UPSCORE_INSTANTIATE(double)

}  // namespace upscore
