#include "fold.h"

#include <algorithm>

#include "panel.h"
#include "parts.h"
#include "scratch.h"
#include "threads.h"
#include "turn.h"
#include "write.h"

namespace upscore {
namespace {

constexpr i64 kSlack = 4096;             // reads may pass the end
constexpr i64 kFarInputs = 1 << 20;      // bytes that do not come from a core's own caches
constexpr i64 kSerialPacking = 1 << 16;  // numbers below which one thread packs

template <typename T>
class Execution {
 public:
  Execution(const Layer& layer, const Call& call, const FoldPacking& packing, const FoldSchedule& schedule,
            const Kernels<T>& kernels, const T* packed, const T* bias, const T* x, T* y)
      : layer_(layer),
        call_(call),
        packing_(packing),
        s_(schedule),
        kernels_(kernels),
        lanes_(kernels.lanes),
        plane_(call.in[0] * call.in[1] * call.in[2]),
        out_plane_(call.out[0] * call.out[1] * call.out[2]),
        far_(call.batch * layer.groups * layer.cols * plane_ * i64{sizeof(T)} >= kFarInputs),
        packed_(packed),
        bias_(bias),
        x_(x),
        y_(y),
        taps_of_(static_cast<std::size_t>(strips() * schedule.axis[2].out_step)) {
    for (std::size_t tap = 0; tap < s_.taps.size(); ++tap)
      taps_of_[static_cast<std::size_t>(s_.taps[tap].phase)].push_back(static_cast<i64>(tap));
    if (call.writes_last) biases_ = bias_of_phases(bias, layer.rows, s_.axis[2].out_step);
  }

  void run() {
    if (s_.in_turn) return run_in_turn();
    const i64 parts = ceil_div(packing_.units, s_.units), stretches = ceil_div(positions(), s_.stretch);
    parallel_for(ceil_div(call_.batch, s_.images) * layer_.groups * parts * stretches, s_.threads, [&](i64 task) {
      const i64 begin = task % stretches * s_.stretch, end = std::min(begin + s_.stretch, positions());
      const i64 share = task / stretches;
      const i64 image = share / parts / layer_.groups * s_.images, unit = share % parts * s_.units;
      const i64 units = std::min(s_.units, packing_.units - unit), first = unit * packing_.channels;
      Part part{image,
                std::min(s_.images, call_.batch - image),
                share / parts % layer_.groups,
                first,
                std::min(units * packing_.channels, layer_.rows - first),
                0,
                strips(),
                begin,
                0};
      const i64 before = s_.panel + s_.products, of_rows = s_.together * lanes_ * s_.row;
      T* const memory = scratch<T>(static_cast<std::size_t>(before + of_rows + sums_size(part) + s_.writing.staging));
      T *const rows = memory + before, *const sums = rows + of_rows;
      const i64 last = (unit + units) * packing_.vectors;
      for (; part.begin < end; part.begin += s_.band) {
        part.positions = std::min(s_.band, end - part.begin);
        const i64 kept = part.begin > begin ? keep(rows) : 0;
        for (i64 v = unit * packing_.vectors; v < last; v += s_.together) {
          const i64 here = std::min(s_.together, last - v);
          compute(part, memory, v, here, kept, rows);
          add(part, rows, v * lanes_, (v + here) * lanes_, sums);
        }
        write(part, sums);
      }
    });
  }

 private:
  // Channels and strips of some images, or of a band of one.
  struct Part {
    i64 image, images, group, channel, channels, strip, strips, begin, positions;
  };

  i64 positions() const { return s_.axis[s_.along].positions; }

  i64 strips() const { return s_.axis[0].out_step * s_.axis[1].out_step; }
  i64 sums_size(const Part& part) const {
    return part.channels * part.strips * s_.axis[2].out_step * s_.width + kSlack;
  }

  void run_in_turn() {
    Buffer<T> rows;
    rows.allocate(static_cast<std::size_t>(s_.together * lanes_ * s_.row));
    const Part all{0, 1, 0, 0, layer_.rows, 0, strips(), 0, positions()};
    parallel_for(ceil_div(s_.together, s_.share), s_.threads, [&](i64 task) {
      const i64 first = task * s_.share;
      T* const memory = scratch<T>(static_cast<std::size_t>(s_.panel + s_.products));
      compute(all, memory, first, std::min(s_.share, s_.together - first), 0, rows.data() + first * lanes_ * s_.row);
    });
    const i64 bands = ceil_div(strips(), s_.strips);
    parallel_for(ceil_div(layer_.rows, s_.channels) * bands, s_.threads, [&](i64 task) {
      Part part = all;
      part.strip = task % bands * s_.strips;
      part.strips = std::min(s_.strips, strips() - part.strip);
      part.channel = task / bands * s_.channels;
      part.channels = std::min(s_.channels, layer_.rows - part.channel);
      T* const sums = scratch<T>(static_cast<std::size_t>(sums_size(part) + s_.writing.staging));
      add(part, rows.data(), 0, s_.together * lanes_, sums);
      write(part, sums);
    });
  }

  // The inputs of a part: rows of all axes but the last, of all images, and of each the inputs [first, last).
  struct Region {
    i64 row, rows, first, last;
    i64 end;  // of their places, zeros behind rows included
  };
  // Inputs that are multiplied together: so many of each of some rows, the place of the first, and where their places
  // end, zeros included.
  struct Inputs {
    i64 row, rows, x, across;
    i64 place, end;
  };

  // All inputs; of a band, those that it reads, without those that were `kept` from the band before.
  Region region_of(const Part& part, bool kept) const {
    const i64 high = call_.in[1], wide = call_.in[2];
    if (s_.band == positions())
      return {0, part.images * call_.in[0] * high, 0, wide, (part.images - 1) * s_.image + call_.in[0] * s_.pitch[0]};
    const i64 in = call_.in[s_.along];
    const i64 first = std::clamp<i64>(part.begin + (kept ? s_.farthest : s_.nearest), 0, in);
    const i64 last = std::clamp<i64>(part.begin + part.positions + s_.farthest, first, in);
    const i64 end = (last - part.begin) * s_.pitch[s_.along];
    if (s_.along == kAxes - 1) return {0, last > first, first, last, end};
    const i64 rows = s_.along == 0 ? high : 1;
    return {first * rows, (last - first) * rows, 0, wide, end};
  }

  // Of an input, all axes but the last as one.
  i64 place_of(const Part& part, i64 row, i64 x) const {
    const i64 high = call_.in[1], deep = call_.in[0];
    return row / (high * deep) * s_.image + row / high % deep * s_.pitch[0] + row % high * s_.pitch[1] + x -
           part.begin * s_.pitch[s_.along];
  }

  // Moves what the next band needs to the beginning of the rows: of each that which its tap reads. How many numbers it
  // has there, with what it does not read.
  i64 keep(T* rows) const {
    const i64 pitch = s_.pitch[s_.along], kept = s_.before + s_.farthest * pitch, unit = packing_.vectors * lanes_;
    if (kept <= 0) return 0;
    for (i64 r = 0; r < s_.together * lanes_; ++r, rows += s_.row) {
      if (r % unit >= packing_.channels * layer_.taps()) continue;
      const i64 first = s_.before + s_.taps[static_cast<std::size_t>(r % unit % layer_.taps())].shift;
      if (first < kept) std::copy_n(rows + s_.band * pitch + first, kept - first, rows + first);
    }
    return kept;
  }

  // rows[row][before + place] for so many vectors of rows of the group, with zeros around them; the first numbers of
  // each are `kept`.
  void compute(const Part& part, T* memory, i64 first, i64 count, i64 kept, T* rows) const {
    const Region region = region_of(part, kept > 0);
    const i64 begin = s_.before + (region.rows > 0 ? place_of(part, region.row, region.first) : region.end);
    const i64 end = std::max(kept, s_.before + region.end);
    for (i64 r = 0; r < count * lanes_; ++r)
      if (begin > kept) std::fill_n(rows + r * s_.row + kept, begin - kept, T(0));
    if (s_.bf16 || s_.lines) {
      s_.bf16 ? multiply_parts(part, region, memory, first, count, rows)
              : multiply_lines(part, region, memory, first, count, rows);
      separate_lines(part, region, count, rows);
    } else {
      each_inputs(part, region,
                  [&](const Inputs& inputs) { multiply(part, inputs, memory, memory + s_.panel, first, count, rows); });
    }
    for (i64 r = 0; r < count * lanes_; ++r) std::fill_n(rows + r * s_.row + end, s_.row - end, T(0));
  }

  template <typename Visit>
  void each_inputs(const Part& part, const Region& region, Visit&& visit) const {
    const i64 high = region.row + region.rows;
    for (i64 row = region.row; row < high; row += s_.rows)
      for (i64 x = region.first; x < region.last; x += s_.across) {
        const i64 last = std::min(row + s_.rows, high), stop = std::min(x + s_.across, region.last);
        const i64 place = place_of(part, row, x);
        visit(Inputs{row, last - row, x, stop - x, place,
                     stop < region.last ? place + stop - x
                     : last == high     ? region.end
                                        : place_of(part, last, 0)});
      }
  }

  // Of a vector of rows of the group, and those that follow.
  const T* weights_of(const Part& part, i64 first) const {
    return packed_ + (part.group * packing_.units * packing_.vectors + first) * layer_.cols * lanes_;
  }

  // Of a region whose inputs lie in lines: contributions are written where they belong.
  void multiply_lines(const Part& part, const Region& region, T* panel, i64 first, i64 count, T* rows) const {
    const i64 wide = region.last - region.first, all = s_.lines->inputs;
    for (i64 row = region.row; row < region.row + region.rows; ++row) {
      const i64 place = s_.before + place_of(part, row, region.first);
      for (i64 i = 0; i < wide; i += all)
        multiply_line(part, row * call_.in[2] + region.first + i, std::min(all, wide - i), panel, first, count,
                      rows + place + i);
    }
  }

  // Zeros behind each line.
  void separate_lines(const Part& part, const Region& region, i64 count, T* rows) const {
    const i64 wide = region.last - region.first, last = region.row + region.rows - 1;
    for (i64 row = region.row; row <= last; ++row) {
      const i64 end = s_.before + place_of(part, row, region.first) + wide;
      const i64 next = s_.before + (row < last ? place_of(part, row + 1, region.first) : region.end);
      for (i64 r = 0; r < count * lanes_; ++r) std::fill(rows + r * s_.row + end, rows + r * s_.row + next, T(0));
    }
  }

  // Of so many inputs from one of a channel on; up to a vector more of each row is written.
  void multiply_line(const Part& part, i64 input, i64 inputs, T* panel, i64 first, i64 count, T* rows) const {
    const i64 columns = layer_.groups * layer_.cols, first_column = part.group * layer_.cols;
    const i64 whole = round_up(inputs, lanes_);
    const T* const behind = x_ + call_.batch * columns * plane_;
    const T* const x = call_.reads_last ? x_ + (part.image * plane_ + input) * columns + first_column
                                        : x_ + (part.image * columns + first_column) * plane_ + input;
    const bool in_place = s_.lines->in_place && behind - x >= (layer_.cols - 1) * plane_ + whole;
    if (call_.reads_last) {
      kernels_.transpose(x, behind, columns, inputs, layer_.cols, nullptr, panel, whole);
    } else if (!in_place) {
      const Run run{0, inputs, input};
      kernels_.copy_runs(x - input, behind, plane_, layer_.cols, 1, &run, 1, whole, panel);
    }
    const i64 none = 0, unit_rows = packing_.channels * layer_.taps();
    const T* ahead = nullptr;  // the tile after the next one, or that of inputs copied next, is fetched meanwhile, once
    Product<T> p{};
    p.w_step = lanes_;
    p.x_offset = &none;
    p.x_stride = in_place ? plane_ : whole;
    p.x_vector = lanes_;
    p.taps = 1;
    p.c_stride = s_.row;
    const T* const weights = weights_of(part, first);
    for (i64 i = 0; i < inputs; i += s_.lines->vectors * lanes_) {
      const i64 vectors = std::min(s_.lines->vectors, ceil_div(inputs - i, lanes_));
      p.ahead_stride = call_.reads_last ? vectors * lanes_ : plane_;
      for (i64 v = 0; v < count; ++v) {
        const i64 taps = std::min(unit_rows - (first + v) % packing_.vectors * lanes_, lanes_);
        for (i64 tap = 0, most = piece(taps, s_.lines->taps); tap < taps; tap += most) {
          const i64 height = std::min(most, taps - tap);
          for (i64 column = 0; column < layer_.cols; column += Limits::terms) {
            p.columns = std::min(Limits::terms, layer_.cols - column);
            p.accumulate = column > 0;
            p.w = weights + (v * layer_.cols + column) * lanes_ + tap;
            p.x = (in_place ? x : panel) + column * p.x_stride + i;
            p.c = rows + (v * lanes_ + tap) * s_.row + i;
            ahead = call_.reads_last ? x + (inputs + i) * columns + column * p.ahead_stride
                                     : x + column * plane_ + i + (in_place ? 2 * vectors * lanes_ : inputs);
            p.ahead_tile = far_ && v == 0 && tap == 0;
            p.ahead = p.ahead_tile ? &ahead : nullptr;
            kernels_.product[height][vectors](p);
          }
        }
      }
    }
  }

  // Of a region, by the matrix unit.
  void multiply_parts(const Part& part, const Region& region, T* memory, i64 first, i64 count, T* rows) const {
    if constexpr (std::is_same_v<T, float>) {
      thread_local std::vector<PartsLine> lines;
      lines.clear();
      const i64 columns = layer_.groups * layer_.cols, first_column = part.group * layer_.cols;
      const i64 of_image = call_.in[0] * call_.in[1], apart = call_.reads_last ? columns : 1;
      const T* const x = x_ + part.image * columns * plane_ + first_column * (call_.reads_last ? 1 : plane_);
      for (i64 row = region.row; row < region.row + region.rows; ++row) {
        const i64 input = row % of_image * call_.in[2] + region.first;
        lines.push_back({x + row / of_image * columns * plane_ + input * apart,
                         rows + s_.before + place_of(part, row, region.first)});
      }
      const i64 vector = part.group * packing_.units * packing_.vectors + first;
      multiply_in_parts(
          {*kernels_.bf16, layer_.cols, call_.reads_last ? columns : plane_, call_.reads_last, nullptr, s_.row},
          reinterpret_cast<const std::uint16_t*>(packed_) + vector * parts_of_vector(layer_.cols), count, lines,
          region.last - region.first, reinterpret_cast<std::uint32_t*>(memory));
    }
  }

  // Of these inputs.
  void multiply(const Part& part, const Inputs& inputs, T* panel, T* products, i64 first, i64 count, T* rows) const {
    thread_local std::vector<i64> mine;
    std::vector<i64>& offsets = mine;  // of the products of each input; where they are kept is asked once
    const i64 pitch = (s_.vectors + 1) * lanes_, columns = layer_.groups * layer_.cols;
    offsets.clear();
    i64 place = inputs.place;  // up to which there are products, or zeros
    for (i64 row = inputs.row; row < inputs.row + inputs.rows; ++row) {
      const i64 here = place_of(part, row, inputs.x);
      std::fill(products + (place - inputs.place) * pitch, products + (here - inputs.place) * pitch, T(0));
      for (i64 i = 0; i < inputs.across; ++i) offsets.push_back((here + i - inputs.place) * pitch);
      place = here + inputs.across;
    }
    std::fill(products + (place - inputs.place) * pitch, products + (inputs.end - inputs.place) * pitch, T(0));

    const i64 first_column = part.group * layer_.cols;
    const i64 first_input = inputs.row * call_.in[2] + inputs.x, count_inputs = inputs.rows * inputs.across;
    const T* x = call_.reads_last ? x_ + (part.image * plane_ + first_input) * columns + first_column
                                  : x_ + (part.image * columns + first_column) * plane_;
    const T* const behind = x + first_input + count_inputs;  // channels first
    i64 column_pitch = call_.reads_last ? 1 : plane_;
    if (!s_.in_place) {
      copy(first_input, count_inputs, x, panel);
      x = panel;
      column_pitch = count_inputs;
    } else if (!call_.reads_last) {
      x += first_input;
    }
    const i64 none = 0;
    const T* from = nullptr;
    ChannelProduct<T> p{};
    p.w_tile_stride = layer_.cols * lanes_;
    p.w_offset = p.x_tap = &none;
    p.x = &from;
    p.x_stride = column_pitch;
    p.x_pitch = columns;
    p.taps = 1;
    p.c = products;
    const T* const weights = weights_of(part, first);
    for (i64 v = 0, most_vectors = piece(count, s_.vectors); v < count; v += most_vectors) {
      const i64 vectors = std::min(most_vectors, count - v);
      for (i64 column = 0; column < layer_.cols; column += Limits::terms) {
        p.columns = std::min(Limits::terms, layer_.cols - column);
        p.w = weights + (v * layer_.cols + column) * lanes_;
        p.accumulate = column > 0;
        const i64 most = piece(count_inputs, fitting_positions(vectors, kernels_.registers));
        for (i64 i = 0; i < count_inputs; i += most) {
          const i64 here = std::min(most, count_inputs - i);
          from = x + column * column_pitch + i * (call_.reads_last ? columns : 1);
          p.c_offset = offsets.data() + i;
          // What comes after these inputs is fetched meanwhile, once: the same places of the next ones; or, channels
          // last, what lies some pixels further on.
          p.ahead = nullptr;
          p.ahead_step = 0;
          if (far_ && v == 0) {
            const T* const next = call_.reads_last ? from + 2 * here * columns : behind + column * plane_ + i;
            p.ahead = reinterpret_cast<const char*>(next);
            p.ahead_step = (call_.reads_last ? here : plane_) * i64{sizeof(T)};
          }
          (call_.reads_last ? kernels_.line_product : kernels_.plane_product)[vectors][here](p);
        }
      }
      // Whole vectors of places: those behind the last are written again.
      turn_outputs(kernels_, products, products + s_.products, pitch, round_up(inputs.end - inputs.place, lanes_),
                   vectors * lanes_, rows + v * lanes_ * s_.row + s_.before + inputs.place, s_.row);
    }
  }

  // panel[column][input]
  void copy(i64 first, i64 count, const T* x, T* panel) const {
    thread_local std::vector<Run> runs;
    runs.clear();
    const i64 columns = layer_.groups * layer_.cols, last = first + count;
    for (i64 i = first; i < last;) {
      const i64 image = i / plane_, stop = std::min(last, (image + 1) * plane_);
      runs.push_back({i - first, stop - i, image * columns * plane_ + i % plane_});
      i = stop;
    }
    kernels_.copy_runs(x, x_ + call_.batch * columns * plane_, plane_, layer_.cols, 1, runs.data(),
                       static_cast<i64>(runs.size()), count, panel);
  }

  // Where a phase of one of the part's channels is summed.
  i64 sum_of(const Part& part, i64 channel, i64 phase) const {
    const i64 first = part.strip * s_.axis[2].out_step, phases = part.strips * s_.axis[2].out_step;
    return (call_.writes_last ? (phase - first) * part.channels + channel : channel * phases + phase - first) *
           s_.width;
  }

  // Adds the rows [first, last) of the group to the sums, those of a phase in the order of their taps.
  void add(const Part& part, const T* rows, i64 first, i64 last, T* sums) const {
    thread_local std::vector<const T*> here;
    const i64 step = s_.axis[2].out_step, unit_rows = packing_.vectors * lanes_;
    for (i64 channel = 0; channel < part.channels; ++channel) {
      const i64 of_group = part.channel + channel, unit = of_group / packing_.channels * unit_rows;
      if (unit >= last || unit + unit_rows <= first) continue;
      const i64 begin = unit + of_group % packing_.channels * layer_.taps();
      for (i64 phase = part.strip * step; phase < (part.strip + part.strips) * step; ++phase) {
        const std::vector<i64>& taps = taps_of_[static_cast<std::size_t>(phase)];
        here.clear();
        for (const i64 tap : taps)
          if (const i64 row = begin + tap; row >= first && row < last)
            here.push_back(rows + (row - first) * s_.row + s_.before + s_.taps[static_cast<std::size_t>(tap)].shift);
        // Without taps there are zeros; what is there comes from rows before these.
        const bool none = taps.empty() && begin >= first;
        if (here.empty() && !none) continue;
        kernels_.add_rows(here.data(), static_cast<i64>(here.size()), s_.width, !none && begin + taps[0] < first,
                          sums + sum_of(part, channel, phase));
      }
    }
  }

  void write(const Part& part, T* sums) const {
    const AxisPlan* axis = s_.axis;
    thread_local std::vector<Segment> segments;
    segments.clear();
    Size first{0, 0, 0}, last{axis[0].positions, axis[1].positions, axis[2].positions};
    first[s_.along] = part.begin;
    last[s_.along] = part.begin + part.positions;
    const i64 begin = part.begin * s_.pitch[s_.along];
    for (i64 image = 0; image < part.images; ++image)
      for (i64 z = first[0]; z < last[0]; ++z)
        for (i64 y = first[1]; y < last[1]; ++y)
          segments.push_back({part.image + image,
                              {z, y, first[2]},
                              last[2] - first[2],
                              image * s_.image + z * s_.pitch[0] + y * s_.pitch[1] + first[2] - begin});
    const Writer<T> writer(kernels_, s_.writing, axis, segments, part.strip, part.strips, s_.width,
                           layer_.groups * layer_.rows * out_plane_, sums + sums_size(part),
                           call_.writes_last ? layer_.rows : 1);
    if (call_.writes_last) return writer.write(sums, biases_.data(), 1, y_);
    for (i64 c = 0; c < part.channels; ++c) {
      const i64 channel = part.group * layer_.rows + part.channel + c;
      writer.write(sums + sum_of(part, c, part.strip * axis[2].out_step), bias_ ? bias_ + channel : nullptr, 0,
                   y_ + channel * out_plane_);
    }
  }

  const Layer& layer_;
  const Call& call_;
  const FoldPacking& packing_;
  const FoldSchedule& s_;
  const Kernels<T>& kernels_;
  const i64 lanes_, plane_, out_plane_;
  const bool far_;
  const T *const packed_, *const bias_, *const x_;
  T* const y_;
  std::vector<std::vector<i64>> taps_of_;  // a phase
  std::vector<T> biases_;                  // per phase of the last axis and channel, channels last
};

}  // namespace

template <typename T>
void pack_fold(const Layer& layer, const FoldPacking& packing, const Target& target, int threads, const T* w,
               T* packed) {
  const i64 lanes = target.lanes, taps = layer.taps(), of_column = layer.rows * taps;
  const i64 vectors = packing.units * packing.vectors;
  if (layer.groups * layer.cols * of_column < kSerialPacking) threads = 1;
  parallel_for(layer.groups * vectors, threads, [&](i64 task) {
    const i64 unit = task % vectors / packing.vectors, row = task % vectors % packing.vectors * lanes;
    const i64 first = unit * packing.channels * taps + row;  // of the taps of all channels
    const i64 last = std::min((unit + 1) * packing.channels * taps, of_column);
    const i64 here = std::clamp<i64>(last - first, 0, lanes);
    const T* from = w + task / vectors * layer.cols * of_column + first;
    T* to = packed + task * layer.cols * lanes;
    for (i64 column = 0; column < layer.cols; ++column, from += of_column, to += lanes) {
      std::copy_n(from, here, to);
      std::fill(to + here, to + lanes, T(0));
    }
  });
}

template <typename T>
void pack_fold_parts(const Layer& layer, const FoldPacking& packing, const Kernels<T>& kernels, const Target& target,
                     int threads, const T* w, std::uint16_t* packed) {
  if constexpr (std::is_same_v<T, float>) {
    const i64 vectors = layer.groups * packing.units * packing.vectors, size = layer.cols * target.lanes;
    Buffer<T> plain;
    plain.allocate(static_cast<std::size_t>(vectors * size));
    pack_fold(layer, packing, target, threads, w, plain.data());
    parallel_for(vectors, vectors * size < kSerialPacking ? 1 : threads, [&](i64 vector) {
      round_vector(*kernels.bf16, plain.data() + vector * size, layer.cols,
                   packed + vector * parts_of_vector(layer.cols));
    });
  }
}

template <typename T>
void execute_fold(const Layer& layer, const Call& call, const FoldPacking& packing, const FoldSchedule& schedule,
                  const Kernels<T>& kernels, const T* packed, const T* bias, const T* x, T* y) {
  Execution<T>(layer, call, packing, schedule, kernels, packed, bias, x, y).run();
}

#define UPSCORE_INSTANTIATE(T)                                                                                         \
  template void pack_fold_parts<T>(const Layer&, const FoldPacking&, const Kernels<T>&, const Target&, int, const T*,  \
                                   std::uint16_t*);                                                                    \
  template void pack_fold<T>(const Layer&, const FoldPacking&, const Target&, int, const T*, T*);                      \
  template void execute_fold<T>(const Layer&, const Call&, const FoldPacking&, const FoldSchedule&, const Kernels<T>&, \
                                const T*, const T*, const T*, T*);
UPSCORE_INSTANTIATE(float)
UPSCORE_INSTANTIATE(double)

}  // namespace upscore
