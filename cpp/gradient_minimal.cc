#include "gradient_minimal.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "execute.h"
#include "minimal_sets.h"
#include "scratch.h"

namespace upscore {
namespace {

constexpr i64 kSumBytes = 640 << 10;    // transformed gradients of a task
constexpr i64 kPanelBytes = 768 << 10;  // both operands of a tile, transformed
constexpr i64 kMostAcross = 64;         // sets of a row
constexpr i64 kMostSets = 256;          // in registers
constexpr i64 kFewSets = 12;            // that are worth a tile

// Cycles, for choosing; only their proportions matter.
constexpr double kSum = 4;         // a vector of sums to registers and back
constexpr double kAgainst = 0.87;  // the other ways take longer than they estimate
constexpr double kEnd = 6;         // a vector of sums transformed back, and of gradients written

template <typename T>
class Filtered final : public WeightGradient<T> {
 public:
  Filtered(const GradientInputs<T>& inputs, MinimalPacking packing)
      : in_(inputs), p_(std::move(packing)), lanes_(in_.kernels.lanes) {
    for (std::size_t a = 0; a < kAxes; ++a) {
      sets_[a] = plan_sets(in_.layer, in_.call, p_.axis[a], a);
      outputs_[a] = p_.axis[a].outputs();
      lines_[a] = p_.axis[a].lines();
      points_[a] = p_.axis[a].points();
    }
    for (i64 phase = 0; phase < p_.phases; ++phase) {
      first_place_.push_back(places_);
      for (i64 point = 0; point < p_.points; ++point) places_ += place(point, phase) >= 0;
    }
    first_place_.push_back(places_);
    for (i64 reach : sets_[2].reach) shift_.push_back(reach - sets_[2].reach[0]);
    line_of_.resize(static_cast<std::size_t>(p_.lines));
    for (i64 line = 0; line < p_.lines; ++line) line_of_[static_cast<std::size_t>(p_.line_place(line))] = line;
    cut();
  }

  bool usable() const { return this->tiles > 0; }

  void compute(i64 task, i64 first_tile, i64 last_tile, T* grad_w) const override {
    const Part part = part_of(task);
    const i64 sums = (last_place(part) - first_place(part)) * p_.taps * part.columns * part.width(lanes_);
    T* const sum = scratch<T>(static_cast<std::size_t>(sums + scratch_));
    std::fill_n(sum, sums, T(0));
    T *inputs = sum + sums, *gradient = inputs + inputs_, *turned = gradient + gradients_, *spare = turned + turned_;
    for (i64 tile = first_tile; tile < last_tile; ++tile) {
      const i64 left = tile % per_row_ * across_, row = tile / per_row_ * down_;
      const i64 count = std::min(across_, sets_[2].plan.positions - left), rows = std::min(down_, set_rows() - row);
      // Rows below each other lie near each other in memory; channels do not.
      auto each_row = [&](i64 channels, auto&& visit) {
        for (i64 v = 0; v * lanes_ < channels; ++v)
          for (i64 r = 0; r < rows; ++r) visit(v, Row{row + r, left, count, r * count, rows * count});
      };
      each_row(part.columns, [&](i64 v, const Row& at) { transform_inputs(part, at, v, turned, spare, inputs); });
      each_row(part.rows, [&](i64 v, const Row& at) { transform_gradient(part, at, v, turned, spare, gradient); });
      multiply(part, rows * count, inputs, gradient, sum);
    }
    transform_back(part, sum, inputs, grad_w);
  }

 private:
  // A part of the channels, and of the phases of the leading axes.
  struct Part {
    i64 group, row, rows, column, columns, lead, leads;
    i64 width(i64 lanes) const { return round_up(rows, lanes); }
  };
  // Sets next to each other: their row, counted over images and both leading axes, the first of them, their number, and
  // where they begin among all sets of the tile.
  struct Row {
    i64 number, left, count, place, all;
  };

  i64 place(i64 point, i64 phase) const { return p_.place[static_cast<std::size_t>(point * p_.phases + phase)]; }
  i64 all_leads() const { return in_.layer.stride[0] * in_.layer.stride[1]; }
  i64 first_place(const Part& part) const {
    return first_place_[static_cast<std::size_t>(part.lead * in_.layer.stride[2])];
  }
  i64 last_place(const Part& part) const {
    return first_place_[static_cast<std::size_t>((part.lead + part.leads) * in_.layer.stride[2])];
  }
  i64 set_rows() const { return in_.call.batch * sets_[0].plan.positions * sets_[1].plan.positions; }
  i64 input_span() const {  // inputs that a row of sets reads
    const std::vector<i64>& reach = sets_[2].reach;
    return (across_ - 1) * sets_[2].plan.in_step + reach.back() - reach.front() + 1;
  }

  // Channels, and phases of the leading axes, of a task; sets of a row, and rows, of a tile.
  struct Cut {
    i64 columns = 0, rows = 0, leads = 0, across = 0, down = 0;
  };
  i64 halved(i64 channels) const { return channels > lanes_ ? round_up(channels / 2, lanes_) : 0; }

  // Cycles of all tasks of one group.
  double cycles(const Cut& c) const {
    const Layer& layer = in_.layer;
    const i64 height = std::min<i64>(in_.kernels.tile_rows, lanes_), phases = c.leads * layer.stride[2];
    const auto axes = static_cast<double>(p_.filtered.size()), vectors = static_cast<double>(c.rows / lanes_);
    const auto all_sets = static_cast<double>(sets_[2].plan.positions * set_rows());
    const auto sets = static_cast<double>(c.across * c.down), across = static_cast<double>(c.across);
    const auto columns = static_cast<double>(round_up(std::min(c.columns, layer.cols), height));
    const double share = static_cast<double>(c.leads) / static_cast<double>(all_leads());
    const double places = static_cast<double>(places_ * p_.taps) * share;
    const double calls = columns / static_cast<double>(height) * std::ceil(vectors / 3);
    const double product = kProduct * (vectors == 1 ? 1.1 : 1) + kSum / sets;
    const double products = places * (columns * vectors * product + calls * kCall / sets);
    // What is turned, and its points, of a vector of channels.
    auto operand = [&](i64 rows, i64 step, i64 points) {
      const double numbers = static_cast<double>(rows * step * lanes_), lines = static_cast<double>(points) * axes;
      return numbers * kTurn + lines * kPass + (static_cast<double>(rows) + lines / 4) * kCall / across;
    };
    const double inputs =
        static_cast<double>(c.columns / lanes_) * operand(lines_[0] * lines_[1], sets_[2].plan.in_step, p_.lines);
    const double gradients =
        vectors * operand(c.leads * outputs_[0] * outputs_[1], sets_[2].plan.out_step, phases * p_.points);
    const i64 tasks = ceil_div(layer.cols, c.columns) * ceil_div(layer.rows, c.rows) * ceil_div(all_leads(), c.leads);
    return static_cast<double>(tasks) *
           ((products + inputs + gradients) * all_sets + places * columns * vectors * kEnd);
  }

  // The cheapest of the cuts into tasks and tiles that fit.
  void cut() {
    const Layer& layer = in_.layer;
    const i64 bytes = sizeof(T), positions = sets_[2].plan.positions, rows = set_rows(), vector = lanes_ * bytes;
    if (positions * rows == 0) return;
    // Sets of a row, whose inputs and gradients are turned together.
    const i64 reach = sets_[2].reach.back() - sets_[2].reach.front(), fit = kTurnedBytes / vector;
    const i64 input_rows = lines_[0] * lines_[1], gradient_rows = outputs_[0] * outputs_[1];
    if (reach > fit / input_rows) return;
    const i64 across =
        std::min({positions, kMostAcross, (fit / input_rows - reach - 1) / sets_[2].plan.in_step + 1,
                  fit / (gradient_rows * sets_[2].plan.out_step), kSpareBytes / (2 * vector * p_.lines)});
    if (across < 1) return;
    double least = std::numeric_limits<double>::infinity();
    Cut best;
    for (i64 leads = all_leads(); leads >= 1; leads = leads > 1 ? piece(all_leads(), leads - 1) : 0)
      for (i64 columns = round_up(layer.cols, lanes_); columns > 0; columns = halved(columns))
        for (i64 wide = round_up(layer.rows, lanes_); wide > 0; wide = halved(wide)) {
          const i64 sums = ceil_div(places_ * leads, all_leads()) * p_.taps * std::min(columns, layer.cols) * wide;
          const i64 set = p_.lines * columns + leads * layer.stride[2] * p_.points * wide;
          const i64 most = std::min({kPanelBytes / (set * bytes), kMostSets, positions * rows});
          if (sums > kSumBytes / bytes || most < 1) continue;
          Cut c{columns, wide, leads, piece(positions, std::min(across, most)), 1};
          c.down = piece(rows, std::clamp<i64>(most / c.across, 1, rows));
          if (c.across * c.down < std::min(kFewSets, positions * rows)) continue;
          const double all = cycles(c);
          if (all >= least) continue;
          least = all;
          best = c;
        }
    if (best.across == 0) return;
    columns_ = best.columns;
    rows_ = best.rows;
    leads_ = best.leads;
    across_ = best.across;
    down_ = best.down;
    per_row_ = ceil_div(positions, across_);
    column_parts_ = ceil_div(layer.cols, columns_);
    row_parts_ = ceil_div(layer.rows, rows_);
    lead_parts_ = ceil_div(all_leads(), leads_);
    const i64 all = across_ * down_;
    inputs_ =
        std::max(p_.lines * columns_ * all, (layer.taps() + kMostLines + 1) * rows_);  // used for weights in the end
    gradients_ = leads_ * layer.stride[2] * p_.points * rows_ * all;
    turned_ =
        std::max(lines_[0] * lines_[1] * input_span(), outputs_[0] * outputs_[1] * across_ * sets_[2].plan.out_step) *
        lanes_;
    scratch_ = inputs_ + gradients_ + turned_ + 2 * p_.lines * across_ * lanes_;
    this->tasks = layer.groups * column_parts_ * row_parts_ * lead_parts_;
    this->tiles = per_row_ * ceil_div(rows, down_);
    this->cost = kAgainst * least / static_cast<double>(in_.call.batch * in_.in_plane());
  }

  Part part_of(i64 task) const {
    Part part;
    part.lead = task % lead_parts_ * leads_;
    task /= lead_parts_;
    part.row = task % row_parts_ * rows_;
    task /= row_parts_;
    part.column = task % column_parts_ * columns_;
    part.group = task / column_parts_;
    part.rows = std::min(rows_, in_.layer.rows - part.row);
    part.columns = std::min(columns_, in_.layer.cols - part.column);
    part.leads = std::min(leads_, all_leads() - part.lead);
    return part;
  }

  // inputs[line][vector of columns][set][lane], of one of the vectors
  void transform_inputs(const Part& part, const Row& at, i64 v, T* turned, T* spare, T* inputs) const {
    const Layer& layer = in_.layer;
    const SetAxis &deep = sets_[0], &down = sets_[1], &across = sets_[2];
    const i64 vectors = ceil_div(part.columns, lanes_);
    const auto [image, z, y] = set_row(at.number, sets_[0].plan.positions, sets_[1].plan.positions);
    const Image<T> from = in_.input(image, part.group * layer.cols + part.column + v * lanes_);
    const i64 line = input_span() * lanes_;
    for (i64 i = 0; i < lines_[0] * lines_[1]; ++i)
      turn_row(in_.kernels, from, std::min(lanes_, part.columns - v * lanes_),
               z * deep.plan.in_step + deep.reach[static_cast<std::size_t>(i / lines_[1])],
               y * down.plan.in_step + down.reach[static_cast<std::size_t>(i % lines_[1])],
               at.left * across.plan.in_step + across.reach[0], input_span(), turned + i * line);
    const i64 step = across.plan.in_step * lanes_;
    transform_row(in_.kernels, p_, {lines_, lines_, lines_[1] * line, line, lanes_, step, shift_.data()}, turned,
                  at.count, spare, inputs + (v * at.all + at.place) * lanes_, vectors * at.all * lanes_, lanes_);
  }

  // gradient[phase][point][vector of rows][set][lane], of one of the vectors
  void transform_gradient(const Part& part, const Row& at, i64 v, T* turned, T* spare, T* gradient) const {
    const Layer& layer = in_.layer;
    const AxisPlan &deep = sets_[0].plan, &down = sets_[1].plan, &across = sets_[2].plan;
    const i64 pitch = ceil_div(part.rows, lanes_) * at.all * lanes_;
    const auto [image, z, y] = set_row(at.number, sets_[0].plan.positions, sets_[1].plan.positions);
    const Image<T> from = in_.gradient(image, part.group * layer.rows + part.row + v * lanes_);
    const i64 span = at.count * across.out_step, line = span * lanes_, phases = layer.stride[2];
    for (i64 lead = 0; lead < part.leads; ++lead) {
      const i64 rz = (part.lead + lead) / layer.stride[1], ry = (part.lead + lead) % layer.stride[1];
      for (i64 i = 0; i < outputs_[0] * outputs_[1]; ++i)
        turn_row(in_.kernels, from, std::min(lanes_, part.rows - v * lanes_),
                 deep.base + z * deep.out_step + i / outputs_[1] * layer.stride[0] + rz,
                 down.base + y * down.out_step + i % outputs_[1] * layer.stride[1] + ry,
                 across.base + at.left * across.out_step, span, turned + i * line);
      for (i64 phase = 0; phase < phases; ++phase)
        transform_row(
            in_.kernels, p_,
            {outputs_, points_, outputs_[1] * line, line, phases * lanes_, across.out_step * lanes_, shift_.data()},
            turned + phase * lanes_, at.count, spare,
            gradient + (lead * phases + phase) * p_.points * pitch + (v * at.all + at.place) * lanes_, pitch, lanes_);
    }
  }

  // sum[place][tap][column][row] += inputs * gradient
  void multiply(const Part& part, i64 sets, const T* inputs, const T* gradient, T* sum) const {
    const i64 width = part.width(lanes_), vectors = width / lanes_, column_vectors = ceil_div(part.columns, lanes_);
    const i64 height = std::min<i64>(in_.kernels.tile_rows, lanes_), phases = in_.layer.stride[2];
    const i64 none = 0;
    Product<T> p;
    p.w_tap_stride = 0;
    p.w_step = lanes_;
    p.x_offset = &none;
    p.x_stride = lanes_;
    p.x_vector = sets * lanes_;
    p.taps = 1;
    p.columns = sets;
    p.c_stride = width;
    p.accumulate = true;
    for (i64 phase = part.lead * phases; phase < (part.lead + part.leads) * phases; ++phase)
      for (i64 point = 0; point < p_.points; ++point) {
        if (place(point, phase) < 0) continue;
        const T* e = gradient + ((phase - part.lead * phases) * p_.points + point) * vectors * sets * lanes_;
        for (i64 tap = 0; tap < p_.taps; ++tap) {
          const i64 line = line_of_[static_cast<std::size_t>(point * p_.taps + tap)];
          T* to = sum + ((place(point, phase) - first_place(part)) * p_.taps + tap) * part.columns * width;
          for (i64 c = 0; c < part.columns; c += height) {
            const int h = static_cast<int>(std::min(height, part.columns - c));
            p.w = inputs + (line * column_vectors + c / lanes_) * sets * lanes_ + c % lanes_;
            p.x = e;
            p.c = to + c * width;
            multiply_vectors(in_.kernels, p, h, vectors);
          }
        }
      }
  }

  // To grad_w[column][row][tap].
  void transform_back(const Part& part, const T* sum, T* spare, T* grad_w) const {
    const Layer& layer = in_.layer;
    const i64 width = part.width(lanes_), taps = layer.taps(), phases = layer.stride[2];
    const i64 window = static_cast<i64>(p_.tap.size()) / p_.phases, pitch = part.columns * width;
    T *zeros = spare, *one = zeros + width, *all = one + kMostLines * width;
    std::fill_n(zeros, width, T(0));
    for (i64 c = 0; c < part.columns; ++c) {
      T* const out = grad_w + ((part.group * layer.cols + part.column + c) * layer.rows + part.row) * taps;
      for (i64 phase = part.lead * phases; phase < (part.lead + part.leads) * phases; ++phase) {
        // one[line or place of the window][row]
        for (i64 line = 0; line < p_.lines; ++line) {
          const auto [point, tap] = p_.line[static_cast<std::size_t>(line)];
          const i64 at = place(point, phase);
          std::copy_n(at < 0 ? zeros : sum + ((at - first_place(part)) * p_.taps + tap) * pitch + c * width, width,
                      one + line * width);
        }
        i64 size[kAxes] = {lines_[0], lines_[1], lines_[2]};
        for (std::size_t a : p_.filtered) {
          i64 outer = 1, inner = 1;
          for (std::size_t b = 0; b < a; ++b) outer *= size[b];
          for (std::size_t b = a + 1; b < kAxes; ++b) inner *= size[b];
          size[a] = p_.axis[a].window;
          for (i64 o = 0; o < outer; ++o)
            for (i64 i = 0; i < inner; ++i) {
              const T* four[4];
              for (i64 k = 0; k < 4; ++k) four[k] = one + ((o * 4 + k) * inner + i) * width;
              in_.kernels.transform_sums(four, width, static_cast<int>(size[a]),
                                         one + (o * size[a] * inner + i) * width, inner * width);
            }
        }
        for (i64 w = 0; w < window; ++w) {
          const i64 tap = p_.tap[static_cast<std::size_t>(phase * window + w)];
          if (tap >= 0) std::copy_n(one + w * width, width, all + tap * width);
        }
      }
      if (part.leads == all_leads()) {
        const RowPart row{0, 0, part.rows * taps, 0};
        in_.kernels.interleave(all, width, taps, &row, 1, nullptr, 0, out, false);
        continue;
      }
      for (i64 phase = part.lead * phases; phase < (part.lead + part.leads) * phases; ++phase)
        for (i64 w = 0; w < window; ++w) {
          const i64 tap = p_.tap[static_cast<std::size_t>(phase * window + w)];
          for (i64 r = 0; r < part.rows && tap >= 0; ++r) out[r * taps + tap] = all[tap * width + r];
        }
    }
  }

  const GradientInputs<T> in_;
  const MinimalPacking p_;
  const i64 lanes_;
  SetAxis sets_[kAxes];
  Size outputs_, lines_, points_;
  std::vector<i64> shift_;        // of the taps of the last axis, where it is not filtered
  std::vector<i64> first_place_;  // per phase, and of all at the end
  std::vector<i64> line_of_;      // per point and tap
  i64 places_ = 0;
  i64 columns_ = 0, rows_ = 0, leads_ = 0, across_ = 0, down_ = 0;  // of a task; of a tile
  i64 column_parts_ = 1, row_parts_ = 1, lead_parts_ = 1, per_row_ = 1;
  i64 inputs_ = 0, gradients_ = 0, turned_ = 0, scratch_ = 0;
};

}  // namespace

template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_minimal(const GradientInputs<T>& inputs) {
  if (inputs.call.batch == 0) return nullptr;
  auto packing = plan_minimal_packing(inputs.layer, target_of(inputs.kernels), false);
  if (!packing) return nullptr;
  auto products = std::make_unique<Filtered<T>>(inputs, std::move(*packing));
  if (!products->usable()) return nullptr;
  return products;
}

template std::unique_ptr<WeightGradient<float>> gradient_minimal<float>(const GradientInputs<float>&);
template std::unique_ptr<WeightGradient<double>> gradient_minimal<double>(const GradientInputs<double>&);

}  // namespace upscore
