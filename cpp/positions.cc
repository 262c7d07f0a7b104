#include "positions.h"

#include <algorithm>

#include "panel.h"
#include "scratch.h"
#include "tasks.h"
#include "threads.h"

namespace upscore {
namespace {

constexpr i64 kMost = 2 * kBf16Rows;  // positions of a product
constexpr i64 kTapWords = kBf16Parts * kBf16Tile / 2;

class Execution {
 public:
  Execution(const Layer& layer, const Call& call, const Packing& packing, const Schedule& schedule,
            const Kernels<float>& kernels, const float* packed, const float* bias, const float* x, float* y)
      : layer_(layer),
        call_(call),
        packing_(packing),
        schedule_(schedule),
        kernels_(kernels),
        packed_(reinterpret_cast<const std::uint32_t*>(packed)),
        bias_(bias),
        x_(x),
        y_(y),
        padded_(round_up(layer.cols, kBf16Terms)),
        step_(schedule.axis[2].out_step),
        pitch_(sums_pitch(schedule.chunk)),
        past_caches_(schedule.writing.stream && lies_on_vector(y, kernels) &&
                     (call.writes_last ? layer.rows : call.out[2]) % kernels.lanes == 0) {}

  void run() {
    const Parts parts(layer_, call_, packing_, schedule_);
    parallel_for(parts.count(), schedule_.threads, [&](i64 index) { compute(parts.tile(index), parts[index]); });
  }

 private:
  // Positions of a product: the first's place in the tile, and in a line of the panel; so many, those of the second
  // tile so much further on.
  struct Rows {
    i64 place, from, count, tile;
  };
  // Where the first phase's output of a place is, if there is one.
  struct Place {
    bool exists = false;
    i64 number = 0;  // in the output, where there is one
    Size at{};
  };
  // Vectors of weights that have taps in common: of one phase, or of all of them, fused.
  struct Vectors {
    i64 first, count;  // of the first phase
    const std::uint32_t* weights;
    i64 pitch, block;  // words from one vector to the next, and from 32 columns
    const i64* taps;   // places in the panel
    i64 tap_count;
    i64 phase, phases;
    i64 sums;  // of the first place, if they are kept
  };
  struct Lists {
    std::vector<Rows> rows;
    std::vector<Place> places;
    std::vector<Bf16Channels> channels, all_channels;  // of one phase, and of all from the first one's places on
    std::vector<Vectors> vectors;
    std::vector<i64> taps;
  };

  void compute(i64 tile, const Part& part) const {
    thread_local Lists lists;
    const Segments segments = split_task(schedule_, tile, kernels_.lanes);
    if (call_.writes_last) find_places(segments, lists.places);
    PanelSource<float> source = source_of(layer_, call_, schedule_, kernels_, segments);
    find_rows(segments, source.line(), lists.rows);
    float* const panel = scratch<float>(static_cast<std::size_t>(schedule_.panel + schedule_.sums));
    float* const sums = panel + schedule_.panel;
    const i64 width = segments.rows * segments.row;
    for (Part one = part; one.group < part.group + part.groups; ++one.group) {
      find_channels(one, lists);
      for (std::size_t i = 0; i < schedule_.reductions.size(); ++i) {
        const Reduction& r = schedule_.reductions[i];
        if (i == 0 || !r.same_inputs(schedule_.reductions[i - 1]))
          call_.reads_last ? fill(source, one.group, r, panel) : turn(source, one.group, r, panel);
        find_vectors(source, one, r, width, lists);
        multiply(source, r, i > 0, call_.writes_last && i + 1 == schedule_.reductions.size(), lists, panel, sums);
      }
      if (!call_.writes_last) put(segments, one, width, sums);
    }
    kernels_.bf16->use(0);
  }

  void find_places(const Segments& segments, std::vector<Place>& places) const {
    const AxisPlan* axis = schedule_.axis;
    places.assign(static_cast<std::size_t>(segments.rows * segments.row), {});
    for (const Segment& s : segments.all) {
      Size first;
      for (std::size_t a = 0; a < kAxes; ++a) first[a] = axis[a].base + s.at[a] * axis[a].out_step;
      const i64 number = number_of({s.batch * axis[0].out + first[0], first[1], first[2]});
      const i64 step = number_of({0, 0, axis[2].out_step});
      // Number by number: copies of what has just been written in parts would wait for it.
      for (i64 i = 0; i < s.length; ++i) {
        Place& place = places[static_cast<std::size_t>(s.place + i)];
        place.exists = true;
        place.at[0] = first[0];
        place.at[1] = first[1];
        place.at[2] = first[2] + i * axis[2].out_step;
        place.number = number + i * step;
      }
    }
  }

  void find_rows(const Segments& segments, i64 line, std::vector<Rows>& rows) const {
    rows.clear();
    auto add = [&](i64 place, i64 from, i64 length) {
      for (i64 i = 0; i < length; i += kMost)
        rows.push_back({place + i, from + i, std::min(kMost, length - i), i64{kBf16Rows}});
    };
    if (segments.rows == 1) return add(0, 0, segments.all.back().place + segments.all.back().length);
    const i64 length = segments.all[0].length;
    // Two rows of a tile each are taken together.
    const i64 step = segments.row == kBf16Rows ? 2 : 1;
    for (i64 r = 0; r < segments.rows; r += step)
      if (step == 2 && r + 1 < segments.rows)
        rows.push_back({r * segments.row, r * line, kBf16Rows + length, line});
      else
        add(r * segments.row, r * line, length);
  }

  void find_channels(const Part& part, Lists& lists) const {
    const i64 first = part.group * layer_.rows + part.first_row;
    lists.channels.clear();
    for (i64 row = 0; row < part.rows; row += kBf16Rows)
      lists.channels.push_back({first + row, static_cast<int>(std::min<i64>(kBf16Rows, part.rows - row)),
                                bias_ ? bias_ + first + row : nullptr});
    lists.all_channels.clear();
    if (!packing_.fused) return;
    for (i64 phase = 0; phase < packing_.phases; ++phase) {
      const Size at = place_of(phase);
      for (Bf16Channels c : lists.channels) {
        c.place += number_of(at);
        lists.all_channels.push_back(c);
      }
    }
  }

  Size place_of(i64 phase) const {
    const AxisPlan* axis = schedule_.axis;
    return {phase / (axis[1].out_step * axis[2].out_step), phase / axis[2].out_step % axis[1].out_step,
            phase % axis[2].out_step};
  }

  // From the output's first number, or from a place to that of a phase.
  i64 number_of(const Size& at) const {
    const AxisPlan* axis = schedule_.axis;
    return ((at[0] * axis[1].out + at[1]) * axis[2].out + at[2]) * layer_.groups * layer_.rows;
  }

  std::uint16_t* parts_of(float* panel) const { return reinterpret_cast<std::uint16_t*>(panel + schedule_.parts); }

  // parts[block of 32 columns][part][place][column], or lines of two parts of few columns
  void fill(PanelSource<float>& source, i64 group, const Reduction& r, float* panel) const {
    source.find_runs(r);
    const i64 columns = r.column_last - r.column_first, pixel = layer_.groups * layer_.cols;
    const i64 part = bf16_places(source.places()) * kBf16Terms, step = schedule_.axis[2].in_step * pixel;
    std::uint16_t* const parts = parts_of(panel);
    auto clear = [&](i64 place, i64 count) {
      for (i64 i = 0; i < (packing_.few ? 2 : ceil_div(columns, kBf16Terms) * kBf16Parts); ++i)
        std::fill_n(parts + i * part + place * kBf16Terms, count * kBf16Terms, std::uint16_t{0});
    };
    for (const Run& run : source.runs()) {
      if (run.source < 0) {
        clear(run.place, run.length);
        continue;
      }
      const float* const from = x_ + run.source * pixel + group * layer_.cols + r.column_first;
      std::uint16_t* const to = parts + run.place * kBf16Terms;
      packing_.few ? kernels_.bf16->cut_few_places(from, step, run.length, columns, to, part)
                   : kernels_.bf16->cut_places(from, step, run.length, columns, to, part, kBf16Parts * part);
      if (run.zeros > 0) clear(run.place + run.length, run.zeros);
    }
  }

  // The same of inputs channels first.
  void turn(PanelSource<float>& source, i64 group, const Reduction& r, float* panel) const {
    const i64 plane = call_.in[0] * call_.in[1] * call_.in[2];
    const float* const end = x_ + call_.batch * layer_.groups * layer_.cols * plane;
    std::uint16_t* to = parts_of(panel);
    Reduction block = r;
    for (i64 c = r.column_first; c < r.column_last; c += kBf16Terms) {
      block.column_first = c;
      block.column_last = std::min(c + kBf16Terms, r.column_last);
      source.fill(x_ + group * layer_.cols * plane, end, plane, block, panel);
      const i64 places = source.places(), part = bf16_places(places) * kBf16Terms;
      (packing_.few ? kernels_.bf16->cut_few_turned : kernels_.bf16->cut_turned)(panel, places, block.column_last - c,
                                                                                 places, to, part);
      to += kBf16Parts * part;
    }
  }

  // Weights that do not stay in a core's cache are read once for all positions, few vectors at a time.
  void find_vectors(const PanelSource<float>& source, const Part& part, const Reduction& r, i64 width,
                    Lists& lists) const {
    const i64 of_phase = static_cast<i64>(lists.channels.size());
    const i64 first_phase = packing_.fused ? 0 : part.first_strip * step_;
    const i64 phases = packing_.fused ? 1 : part.strips * step_, together = packing_.fused ? packing_.phases : 1;
    lists.vectors.clear();
    lists.taps.resize(static_cast<std::size_t>(phases * Limits::offsets));
    for (i64 i = 0; i < phases; ++i) {
      const PhaseTaps& phase = schedule_.phases[static_cast<std::size_t>(first_phase + i)];
      const PhaseClass& c = packing_.classes[static_cast<std::size_t>(phase.packed_class)];
      const ReducedTaps reduced = reduced_taps(schedule_.window, phase, r, source.line());
      i64* const taps = lists.taps.data() + i * Limits::offsets;
      for (i64 tap = 0; tap < reduced.count; ++tap) taps[tap] = reduced.place[tap] * kBf16Terms;
      Vectors v{};
      v.pitch = c.taps * padded_ / kBf16Terms * kTapWords;
      v.block = c.taps * kTapWords;
      v.taps = taps;
      v.tap_count = reduced.count;
      const i64 all = packing_.rows / kBf16Rows;  // vectors of a phase
      const std::uint32_t* const weights =
          packed_ + (part.group * packing_.per_column + c.weights) * padded_ * kBf16Parts / 2 +
          part.first_row / kBf16Rows * v.pitch + (r.column_first / kBf16Terms * c.taps + reduced.first) * kTapWords;
      // Phases follow each other, if a task has all vectors of them.
      const bool whole = of_phase == all && !schedule_.far_weights && schedule_.sums == 0;
      for (i64 k = 0; k < together; k += v.phases) {
        v.phase = first_phase + i + k;
        v.phases = whole ? together : 1;
        const i64 count = v.phases * of_phase, at_once = schedule_.far_weights ? 2 : count;
        for (v.first = 0; v.first < count; v.first += at_once) {
          const i64 strip = v.phase / step_ - part.first_strip;
          v.count = std::min(at_once, count - v.first);
          v.weights = weights + (k * all + v.first) * v.pitch;
          v.sums = (strip * width * step_ + v.phase % step_) * pitch_ + v.first * kBf16Rows;
          lists.vectors.push_back(v);
        }
      }
    }
  }

  // Sums are [phase of the leading axes][place][phase of the last][channel], if they are kept; with `last` they are
  // written to the output.
  void multiply(const PanelSource<float>& source, const Reduction& r, bool accumulate, bool last, const Lists& lists,
                float* panel, float* sums) const {
    const i64 none = 0;
    i64 x_tap[Limits::offsets];
    for (i64 tap = 0; tap < Limits::offsets; ++tap) x_tap[tap] = tap * kTapWords;
    Bf16Product p{};
    p.w_row = kBf16Terms;
    p.w_part = bf16_places(source.places()) * kBf16Terms;
    p.w_block = kBf16Parts * p.w_part;
    p.x_row = kBf16Rows;
    p.x_part = kBf16Tile / 2;
    p.x_tap = x_tap;
    p.few = packing_.few;
    p.blocks = ceil_div(r.column_last - r.column_first, kBf16Terms);
    p.c_stride = step_ * pitch_;
    p.accumulate = accumulate;
    p.products = 1;
    p.w_offset = p.c_offset = &none;
    auto multiply_one = [&](const Rows& rows, const Vectors& v) {
      p.w = parts_of(panel) + rows.from * kBf16Terms;
      p.w_tap = v.taps;
      p.w_tile = rows.tile * kBf16Terms;
      if (p.rows != rows.count) {
        p.rows = static_cast<int>(rows.count);
        kernels_.bf16->use(p.rows);
      }
      p.x = v.weights;
      p.x_vector = v.pitch;
      p.x_block = v.block;
      p.taps = v.tap_count;
      p.vectors = v.count;
      p.c = schedule_.sums > 0 ? sums + v.sums + rows.place * p.c_stride : sums;
      last ? write(p, rows, v, lists) : kernels_.bf16->product(p);
    };
    // The inputs of a product stay in the first-level cache, or its weights.
    if (schedule_.far_weights) {
      for (const Vectors& v : lists.vectors)
        for (const Rows& rows : lists.rows) multiply_one(rows, v);
    } else {
      for (const Rows& rows : lists.rows)
        for (const Vectors& v : lists.vectors) multiply_one(rows, v);
    }
  }

  // The products with the last terms, to the output: phases together if all of their places exist.
  void write(Bf16Product& p, const Rows& rows, const Vectors& v, const Lists& lists) const {
    const i64 of_phase = static_cast<i64>(lists.channels.size());
    float* row[kMost];
    const Place* const places = lists.places.data() + rows.place;
    const bool together = v.phases > 1 && [&] {
      const AxisPlan* axis = schedule_.axis;
      return std::all_of(places, places + rows.count, [&](const Place& place) {
        bool inside = true;
        for (std::size_t a = 0; a < kAxes; ++a)
          inside = inside && place.at[a] >= 0 && place.at[a] + axis[a].out_step <= axis[a].out;
        return inside || !place.exists;
      });
    }();
    for (i64 k = 0; k < (together ? 1 : v.phases); ++k) {
      find_outputs(places, rows.count, v.phase + k, row);
      const Bf16Places to{row, (together ? lists.all_channels.data() : lists.channels.data()) + v.first, past_caches_};
      p.places = &to;
      if (!together && v.phases > 1) p.vectors = of_phase;
      kernels_.bf16->product(p);
      p.x += of_phase * p.x_vector;
    }
    p.places = nullptr;
  }

  void find_outputs(const Place* places, i64 count, i64 phase, float** row) const {
    const AxisPlan* axis = schedule_.axis;
    const Size add = place_of(phase);
    const i64 more = number_of(add);
    for (i64 i = 0; i < count; ++i) {
      const Place& place = places[i];
      bool inside = place.exists;
      for (std::size_t a = 0; a < kAxes; ++a) {
        const i64 at = place.at[a] + add[a];
        inside = inside && at >= 0 && at < axis[a].out;
      }
      row[i] = inside ? y_ + place.number + more : nullptr;
    }
  }

  // Channels first: sums are turned, a vector of channels at a time.
  void put(const Segments& segments, const Part& part, i64 width, const float* sums) const {
    const AxisPlan* axis = schedule_.axis;
    const i64 plane = axis[0].out * axis[1].out * axis[2].out;
    for (i64 c = 0; c < part.rows; c += kBf16Rows) {
      const i64 channel = part.group * layer_.rows + part.first_row + c;
      for (const Segment& s : segments.all)
        for (i64 strip = 0; strip < part.strips; ++strip) {
          const Size phase = place_of((part.first_strip + strip) * step_);
          const i64 z = axis[0].base + s.at[0] * axis[0].out_step + phase[0];
          const i64 y = axis[1].base + s.at[1] * axis[1].out_step + phase[1], x = axis[2].base + s.at[2] * step_;
          if (z < 0 || z >= axis[0].out || y < 0 || y >= axis[1].out) continue;
          const i64 first = std::max<i64>(0, -x), last = std::min(s.length * step_, axis[2].out - x);
          if (first >= last) continue;
          const i64 row = ((s.batch * layer_.groups * layer_.rows + channel) * axis[0].out + z) * axis[1].out + y;
          const bool on_vectors = (x + first) % kernels_.lanes == 0;
          kernels_.bf16->put_turned(sums + ((strip * width + s.place) * step_ + first) * pitch_ + c, pitch_,
                                    last - first, std::min<i64>(kBf16Rows, part.rows - c),
                                    bias_ ? bias_ + channel : nullptr, y_ + row * axis[2].out + x + first, plane,
                                    past_caches_ && on_vectors);
        }
    }
  }

  const Layer& layer_;
  const Call& call_;
  const Packing& packing_;
  const Schedule& schedule_;
  const Kernels<float>& kernels_;
  const std::uint32_t* packed_;
  const float *bias_, *x_;
  float* y_;
  const i64 padded_, step_, pitch_;  // pitch of sums, from one number along a row to the next
  const bool past_caches_;
};

}  // namespace

void execute_positions(const Layer& layer, const Call& call, const Packing& packing, const Schedule& schedule,
                       const Kernels<float>& kernels, const float* packed, const float* bias, const float* x,
                       float* y) {
  Execution(layer, call, packing, schedule, kernels, packed, bias, x, y).run();
}

}  // namespace upscore
