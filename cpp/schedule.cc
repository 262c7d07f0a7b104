#include "schedule.h"

#include <algorithm>
#include <numeric>
#include <sstream>
#include <tuple>

#include "channel_lanes.h"
#include "threads.h"

namespace upscore {
namespace {

constexpr double kSerialWork = 6e6;   // multiplications, or as long, below which waking another thread costs more
constexpr i64 kMaxVectors = 12;       // vectors of positions in a tile
constexpr i64 kNearPanel = 30 << 10;  // bytes
constexpr i64 kFewRows = 32;          // rows of products up to which copying counts:
constexpr i64 kFewInputs = 16;        // or inputs of a product
constexpr i64 kMaxVectorsOfFewRows = 64;
constexpr i64 kMostAcross = 65;   // tiles next to each other, unless rows are longer
constexpr i64 kStaging = 4096;    // numbers put together before they are written
constexpr i64 kTallWindow = 256;  // input rows; more come from a dilation, and most of them no tap reads
constexpr i64 kMostGroups = 32;   // in a task
constexpr i64 kShortRow = 48;     // positions in a row below which rows are put together
constexpr double kFilled = 0.7;   // share of vectors that a row fills, below which phases are interleaved across rows
constexpr i64 kTogether = 64 << 10;  // bytes of a channel then

// Cycles, for choosing between tiles.
constexpr double kPick = 2;  // for every step between the inputs that are picked out for it
constexpr double kWeightByte = 1 / 24.0;
constexpr double kBf16Shifted = 0.38;  // where taps read at shifts, within cache lines
constexpr double kBf16Weight = 0.25, kFarBf16Weight = 0.8;
constexpr i64 kNearWeights = 1 << 20;              // bytes of them that stay in a core's cache
constexpr double kCutPlaces = 5, kPutPlaces = 12;  // where rows are positions: a vector of inputs, of outputs
constexpr double kCutFew = 10, kPutFew = 6;        // the same of few columns
constexpr double kCutFewApart = 20;                // that do not follow each other
constexpr double kTurnedInput = 4;                 // channels first
constexpr double kFused = 0.85;   // of the estimate for phases in one product, which are faster than it says
constexpr double kTurned = 0.5;   // an output of a small map, more than one that is written by rows
constexpr double kJoined = 1.05;  // times as much, where sums cannot be written straight from registers

class Scheduler {
 public:
  Scheduler(const Layer& layer, const Call& call, const Packing& packing, const Target& target, const Team& team)
      : layer_(layer), call_(call), packing_(packing), target_(target), lanes_(target.lanes), team_(team) {}

  Schedule build() {
    lay_out_axes();
    find_offsets();
    share_work();
    choose_tile();
    cut_reductions();
    if (call_.reads_last == call_.writes_last && !packing_.bf16)
      s_.channel_lanes = plan_channel_lanes(layer_, call_, packing_, target_, s_, enough_);
    if (s_.channel_lanes) {
      s_.cycles = s_.channel_lanes->cycles;
      if (call_.reads_last)
        s_.writing = plan_writing(s_.axis, call_.batch * layer_.groups * layer_.rows, 1, 0, target_);
      const double all = s_.channel_lanes->cycles * static_cast<double>(layer_.groups);
      s_.threads = std::max(s_.threads, team_.share(all / Cycles::serial));
      s_.why = explain_channel_lanes(layer_, target_, s_);
    } else {
      s_.cycles = cost_.all() * static_cast<double>(s_.positions * layer_.cols) / static_cast<double>(lanes_);
      choose_chunks();
      explain();
    }
    return std::move(s_);
  }

 private:
  void lay_out_axes() {
    s_.positions = call_.batch;
    for (std::size_t a = 0; a < kAxes; ++a) {
      s_.axis[a] = plan_axis(call_.in[a], call_.out[a], layer_.kernel[a], layer_.stride[a], layer_.dilation[a],
                             call_.lo[a], layer_.transposed, packing_.fused);
      s_.positions *= s_.axis[a].positions;
    }
    step_ = s_.axis[2].out_step;
    strips_ = packing_.phases / step_;
  }

  template <typename Visit>
  void each_phase(Visit&& visit) const {
    for (std::size_t z = 0; z < s_.axis[0].phases.size(); ++z)
      for (std::size_t y = 0; y < s_.axis[1].phases.size(); ++y)
        for (std::size_t x = 0; x < s_.axis[2].phases.size(); ++x) {
          visit(z, y, x);
          if (packing_.fused) return;  // all have the same window
        }
  }

  // The distinct offsets in the order in which every phase's taps come: falling for a transposed layer. Phases and
  // taps are those of each axis, combined, and so is the window.
  void find_offsets() {
    const i64 sign = layer_.transposed ? -1 : 1;
    std::vector<i64> values[kAxes];
    for (std::size_t a = 0; a < kAxes; ++a) {
      for (const AxisPhase& phase : s_.axis[a].phases)
        values[a].insert(values[a].end(), phase.offset.begin(), phase.offset.end());
      std::sort(values[a].begin(), values[a].end(), [sign](i64 p, i64 q) { return sign * p < sign * q; });
      values[a].erase(std::unique(values[a].begin(), values[a].end()), values[a].end());
    }
    auto place = [&](std::size_t a, i64 offset) {
      const auto at = std::lower_bound(values[a].begin(), values[a].end(), offset,
                                       [sign](i64 p, i64 q) { return sign * p < sign * q; });
      return at - values[a].begin();
    };
    const i64 down = static_cast<i64>(values[1].size()), across = static_cast<i64>(values[2].size());
    for (i64 z : values[0])
      for (i64 y : values[1])
        for (i64 x : values[2]) offsets_.push_back({z, y, x});
    each_phase([&](std::size_t z, std::size_t y, std::size_t x) {
      PhaseTaps phase;
      for (i64 oz : s_.axis[0].phases[z].offset)
        for (i64 oy : s_.axis[1].phases[y].offset)
          for (i64 ox : s_.axis[2].phases[x].offset)
            phase.offset_of.push_back((place(0, oz) * down + place(1, oy)) * across + place(2, ox));
      taps_ += static_cast<i64>(phase.offset_of.size());
      if (!packing_.fused && layer_.transposed) {
        const i64 at[kAxes] = {static_cast<i64>(z), static_cast<i64>(y), static_cast<i64>(x)};
        for (std::size_t a = 0; a < kAxes; ++a) {
          const i64 stride = layer_.stride[a], shifted = at[a] + call_.lo[a];
          phase.packed_class = phase.packed_class * stride + (shifted - floor_div(shifted, stride) * stride);
        }
      }
      most_taps_ = std::max(most_taps_, static_cast<i64>(phase.offset_of.size()));
      s_.phases.push_back(std::move(phase));
    });
    // Where phases have few taps in a wide window, their many columns leave room for fewer places.
    const i64 fit = Limits::panel_bytes / (packing_.columns * lanes_ * target_.number_bytes);
    const i64 most = packing_.bf16 ? Limits::terms / terms_of_tile() : Limits::offsets;
    places_ = std::clamp<i64>(static_cast<i64>(offsets_.size()), 1, std::min(most, fit));
  }

  void share_work() {
    const double places = static_cast<double>(offsets_.size()) * Cycles::copy / Cycles::product;
    const double work = static_cast<double>(s_.positions * layer_.groups * layer_.cols) *
                        (static_cast<double>(layer_.rows * layer_.taps()) + places);
    s_.threads = team_.share(work / kSerialWork);
    enough_ = s_.threads == 1 ? 1 : 4 * s_.threads;
    align_ =
        packing_.fused ? packing_.tile_rows / std::gcd<i64>(packing_.tile_rows, packing_.phases) : packing_.tile_rows;
    if (packing_.positions)
      align_ = 2 * kBf16Rows;
    else if (packing_.bf16)
      align_ = 2 * kBf16Rows / std::gcd(i64{2 * kBf16Rows}, packing_.fused ? packing_.phases : 1);
    else if (call_.writes_last)
      align_ = layer_.rows;
    // Where weights come from afar, a tile may have all positions, and tasks share the channels.
    s_.far_weights = packing_.bf16 && layer_.cols * packing_.per_column * kBf16Bytes > kNearWeights;
    parts_ = layer_.groups * (s_.far_weights ? ceil_div(layer_.rows, align_) : 1);
  }

  // Of a tap, that six products add; of few columns, three products.
  i64 terms_of_tile() const { return packing_.few ? kBf16Few : kBf16Terms; }

  // Most vectors of positions whose sums fit, for the fewest channels and strips that a task can have.
  i64 most_vectors() const {
    const i64 least = std::min(align_, layer_.rows) * (packing_.fused ? packing_.phases : step_);
    const bool few =
        layer_.rows * (packing_.fused ? packing_.phases : 1) <= kFewRows || packing_.columns * places_ <= kFewInputs;
    if (packing_.bf16)
      return std::clamp<i64>(Limits::sum_bytes / (least * lanes_ * target_.number_bytes), 1, kMaxVectorsOfFewRows);
    // A panel that all rows read may as well stay in the first-level cache, if tiles do not become narrow.
    const i64 widest = target_.vectors(packing_.tile_rows);
    const i64 near = kNearPanel / (packing_.columns * places_ * lanes_ * target_.number_bytes) / widest * widest;
    const i64 most = few ? kMaxVectorsOfFewRows : near < 2 * widest ? kMaxVectors : std::min(near, kMaxVectors);
    return std::clamp<i64>(Limits::sum_bytes / (least * lanes_ * target_.number_bytes), 1, most);
  }
  bool panel_fits(i64 lines, i64 width) const {
    if (packing_.bf16) return panel_size(lines, width) * target_.number_bytes <= Limits::bf16_bytes;
    return lines * packing_.columns * width * target_.number_bytes <= Limits::panel_bytes;
  }
  // Of a panel with its bfloat16 parts, in numbers.
  i64 panel_size(i64 lines, i64 width) const { return plain_size(lines, width) + parts_size(lines, width); }
  i64 plain_size(i64 lines, i64 width) const {
    if (packing_.positions && call_.reads_last) return 0;
    return round_up(lines * std::min(packing_.columns, kBf16Terms) * width + 2 * lanes_, lanes_);
  }
  i64 parts_size(i64 lines, i64 width) const {
    if (packing_.few) return bf16_places(lines * width) * kBf16Terms;
    if (packing_.positions) return bf16_places(lines * width) * round_up(packing_.columns, kBf16Terms) * kBf16Parts / 2;
    return bf16_pitch(lines * width) * round_up(packing_.columns, kBf16Terms) / 2 * kBf16Parts + 2 * lanes_;
  }

  // Cycles per useful vector of positions and input channel.
  struct Cost {
    double products = 0, copies = 0;
    double all() const { return products + copies; }
  };
  // Of a tile of so many vectors, and rows, for which so many vectors are copied, in so many rows.
  Cost cost(i64 vectors, double rows, double used_vectors, double copied_vectors, double copied_rows,
            bool shifted) const {
    const i64 step = s_.axis[2].in_step;
    const double strided = step == 1 ? 0 : kPick * static_cast<double>(std::min(step, lanes_));
    const bool in_place = packing_.positions && call_.reads_last;
    const double cut_places = !packing_.few ? kCutPlaces : step == 1 ? kCutFew : kCutFewApart;
    const double cut = packing_.positions ? cut_places + kTurnedInput : packing_.bf16 ? Cycles::cut : 0;
    const double copy = in_place ? cut_places : Cycles::copy + strided + cut;
    // Every chunk of a tile copies its inputs again.
    const auto [chunk, strips] = most_of_task(vectors * lanes_);
    const double chunks = packing_.bf16 && !s_.far_weights
                              ? static_cast<double>(ceil_div(layer_.rows, chunk) * ceil_div(strips_, strips))
                              : 1;
    const double copies = chunks * (copy * copied_vectors + Cycles::begin * copied_rows);
    const double pieces = Cycles::piece * rows * static_cast<double>(layer_.rows * packing_.phases);
    return {(products(vectors, shifted) + (Cycles::task + pieces) / static_cast<double>(layer_.cols)) / used_vectors,
            copies / used_vectors};
  }
  // Per input channel, in a tile of so many vectors.
  double products(i64 vectors, bool shifted) const {
    const i64 of_class = (packing_.positions ? packing_.rows : layer_.rows) * (packing_.fused ? packing_.phases : 1);
    if (!packing_.bf16)
      return static_cast<double>(taps_ * of_class) *
             (Cycles::product * static_cast<double>(vectors) + kWeightByte * target_.number_bytes);
    const double filled =
        static_cast<double>(layer_.cols) / static_cast<double>(round_up(layer_.cols, terms_of_tile()));
    const double each = shifted && !packing_.positions ? kBf16Shifted : Cycles::bf16_product;
    const double weight = each * static_cast<double>(packing_.positions ? vectors : round_up(vectors, 2)) +
                          (s_.far_weights ? kFarBf16Weight : kBf16Weight);
    const double written = packing_.positions ? (packing_.few ? kPutFew : kPutPlaces) *
                                                    static_cast<double>(packing_.rows * packing_.phases * vectors) /
                                                    static_cast<double>(layer_.cols)
                                              : 0;
    return static_cast<double>(taps_ * round_up(of_class, kBf16Rows)) * weight / filled + written;
  }

  void choose_tile() {
    const i64 row = s_.axis[2].positions, column = s_.axis[1].positions, most = most_vectors();
    s_.tile = {lanes_, 1, lanes_, 0, 1, 1};
    if (s_.positions == 0) {
      s_.window = plain_window(offsets_);
      return;
    }
    const i64 row_vectors = ceil_div(row, lanes_);

    // A run across rows, which wastes no lanes but copies the inputs once per offset.
    i64 vectors = most;
    while (vectors > 1 && !panel_fits(places_, vectors * lanes_)) --vectors;
    const i64 widest = target_.vectors(packing_.tile_rows);
    if (vectors > widest) vectors -= vectors % widest;
    while (vectors > widest && ceil_div(s_.positions, vectors * lanes_) * parts_ < enough_) vectors -= widest;
    const i64 runs = ceil_div(s_.positions, vectors * lanes_);
    vectors = ceil_div(ceil_div(s_.positions, runs), lanes_);
    const double used = static_cast<double>(s_.positions) / static_cast<double>(runs * lanes_);
    // Where a row ends in a vector, another run begins; one whose inputs are picked out takes long to begin.
    const double rows = static_cast<double>(vectors * lanes_) / static_cast<double>(row);
    const double places = static_cast<double>(offsets_.size()), begin = s_.axis[2].in_step == 1 ? 1 : 3;
    const double sides = s_.axis[2].phases[0].offset.size() > 1 ? 2 : 1;  // a short row often has zeros beside it
    cost_ =
        cost(vectors, rows, used, places * (static_cast<double>(vectors) + begin * rows), places * rows * sides, false);
    s_.tile = {vectors * lanes_, 1, vectors * lanes_, ceil_div(s_.positions, vectors * lanes_), 1, 1};
    s_.window = plain_window(offsets_);

    // A rectangle of rows, which copies the inputs once per line.
    const RowLines lines(offsets_, s_.axis);
    i64 best_rows = 0, best_wide = 0;
    bool best_joined = false;
    auto consider = [&](i64 rows, i64 across, bool joined) {
      const i64 wide = ceil_div(row_vectors, across), length = (joined ? row : wide * lanes_) + lines.extra();
      const i64 vectors = joined ? ceil_div(rows * length - lines.extra(), lanes_) : rows * wide;
      if (vectors > most) return false;
      const i64 all = lines.count(rows);
      const i64 at_once = rows > 1 ? all : std::min(all, places_ + 2 * (s_.axis[2].in_step - 1));
      if (!panel_fits(at_once, length)) return false;
      const i64 down = ceil_div(column, rows), across_now = ceil_div(row_vectors, wide);
      const i64 tiles = down * across_now * (s_.positions / (row * column));
      if (tiles * parts_ < enough_ && vectors > widest) return false;
      const double filled = static_cast<double>(row * column) / static_cast<double>(down * across_now * lanes_);
      Cost c = cost(vectors, static_cast<double>(rows), filled, static_cast<double>(all * ceil_div(length, lanes_)),
                    static_cast<double>(all), lines.extra() > 0);
      if (joined) c.products *= kJoined;
      if (c.all() < cost_.all()) {
        cost_ = c;
        best_rows = ceil_div(column, down);
        best_wide = wide;
        best_joined = joined;
      }
      return true;
    };
    const i64 tallest = lines.height() > kTallWindow ? 1 : column;
    const i64 fewest = ceil_div(row_vectors, most);  // tiles next to each other
    for (i64 across = fewest; across <= std::min(row_vectors, std::max(fewest, kMostAcross)); ++across)
      for (i64 rows = 1; rows <= tallest && consider(rows, across, false); ++rows) {
      }
    if (row % lanes_ != 0)
      for (i64 rows = 2; rows <= tallest && consider(rows, 1, true); ++rows) {
      }
    if (best_rows == 0) return;
    s_.window = lines.window(offsets_, best_rows);
    s_.window.joined = best_joined;
    s_.tile.positions = best_joined ? row : best_wide * lanes_;
    s_.tile.rows = best_rows;
    s_.tile.width = best_joined ? round_up(best_rows * (row + s_.window.extra) - s_.window.extra, lanes_)
                                : best_rows * s_.tile.positions;
    s_.tile.per_row = ceil_div(row, best_wide * lanes_);
    s_.tile.per_column = ceil_div(column, best_rows);
    s_.tile.count = s_.tile.per_row * s_.tile.per_column * (s_.positions / (row * column));
  }

  void cut_reductions() {
    const i64 window = static_cast<i64>(offsets_.size());
    lines_ = 1;
    for (i64 c = 0; c < layer_.cols; c += packing_.columns)
      for (i64 o = 0; o < std::max<i64>(window, 1); o += places_) {
        const i64 end = std::min(o + places_, window);
        const auto [first, last] = s_.window.lines_of(o, end);
        s_.reductions.push_back({o, end, c, std::min(c + packing_.columns, layer_.cols), first, last});
        lines_ = std::max(lines_, last - first);
      }
  }

  // Whether sums wait in memory.
  bool keeps_sums() const {
    return !packing_.positions || !call_.writes_last || layer_.cols > packing_.columns ||
           static_cast<i64>(offsets_.size()) > places_;
  }

  // The sums of a task hold some channels times some strips; a strip is all phases of the last axis for one
  // phase of the others. So many of both at most, if a tile is so wide.
  std::pair<i64, i64> most_of_task(i64 width) const {
    const i64 all = round_up(layer_.rows, align_);
    if (!keeps_sums()) return {all, strips_};
    const i64 room = Limits::sum_bytes / (width * target_.number_bytes * step_);
    i64 strips = packing_.fused ? strips_ : std::clamp<i64>(room / align_, 1, strips_);
    strips = ceil_div(strips_, ceil_div(strips_, strips));
    return {std::clamp<i64>(room / strips / align_ * align_, align_, all), strips};
  }

  void choose_chunks() {
    std::tie(s_.chunk, s_.strips) = most_of_task(s_.tile.width);
    auto tasks = [&] {
      return s_.tile.count * layer_.groups * ceil_div(layer_.rows, s_.chunk) * ceil_div(strips_, s_.strips);
    };
    // Every chunk of a tile copies its inputs again.
    const i64 wanted = cost_.copies > cost_.products / 16 ? std::min<i64>(s_.threads, enough_) : enough_;
    while (s_.chunk > align_ && tasks() < wanted) s_.chunk = std::max(align_, s_.chunk / 2 / align_ * align_);
    if (s_.chunk >= layer_.rows && s_.strips == strips_)
      s_.groups = std::clamp<i64>(tasks() / enough_, 1, std::min(layer_.groups, kMostGroups));

    const i64 line = s_.tile.positions + s_.window.extra;
    if (packing_.bf16) s_.parts = plain_size(lines_, line);
    s_.panel =
        packing_.bf16 ? panel_size(lines_, line) : round_up(lines_ * packing_.columns * line + 2 * lanes_, lanes_);
    const i64 chunk = packing_.positions ? sums_pitch(s_.chunk) : std::min(s_.chunk, layer_.rows);
    s_.sums = keeps_sums() ? chunk * s_.strips * step_ * s_.tile.width + kStaging : 0;  // reads may pass the end
    const i64 channels = layer_.groups * layer_.rows;
    s_.writing = plan_writing(s_.axis, call_.batch * channels, call_.writes_last ? channels : 1,
                              s_.strips * step_ * s_.tile.width, target_);
    find_hollow_strips();
  }

  // A kernel smaller than the stride leaves phases without taps.
  void find_hollow_strips() {
    std::vector<char>& hollow = s_.writing.hollow;
    if (packing_.fused || call_.writes_last) return;
    for (auto phase = s_.phases.begin(); phase != s_.phases.end(); phase += step_)
      hollow.push_back(std::all_of(phase, phase + step_, [](const PhaseTaps& p) { return p.offset_of.empty(); }));
    if (std::find(hollow.begin(), hollow.end(), 1) == hollow.end()) hollow.clear();
  }

  void explain() {
    const i64 window = static_cast<i64>(offsets_.size());
    std::ostringstream why;
    why << (layer_.transposed ? "transposed convolution" : "convolution") << ": " << packing_.phases
        << (packing_.phases == 1 ? " phase, " : " phases, ")
        << (packing_.fused ? "fused into one product because they share a window of "
                           : "each with its own taps in a window of ")
        << window << (window == 1 ? " input; " : " inputs; ");
    if (packing_.bf16)
      why << (packing_.few ? "three products of pairs" : "six products")
          << " of bfloat16 parts by the matrix unit, in tiles of " << kBf16Rows
          << (packing_.positions ? " positions x " : " rows x ") << lanes_
          << (packing_.positions ? " rows x " : " positions x ") << kBf16Terms << " columns; a task computes ";
    else
      why << "register tiles of " << packing_.tile_rows << " rows x " << target_.vectors(packing_.tile_rows)
          << " vectors of " << lanes_ << " positions; a task computes ";
    if (s_.window.by_rows)
      why << s_.tile.rows << " x " << s_.tile.positions << " positions, their inputs copied once per row, which "
          << (s_.window.joined ? "vectors run across, " : "is long enough to fill vectors, ");
    else
      why << s_.tile.positions << " positions across rows, their inputs copied once per window place because rows "
          << "are too short to fill vectors, ";
    why << "and " << std::min(s_.chunk, layer_.rows) << " of " << layer_.rows << " channels; at most "
        << packing_.columns * std::min(most_taps_, places_) << " terms are summed in registers; the output is "
        << (s_.writing.stream ? "larger than the caches and written past them; " : "written through the caches; ")
        << say_threads(s_.threads);
    s_.why = why.str();
  }

  const Layer& layer_;
  const Call& call_;
  const Packing& packing_;
  const Target& target_;
  const i64 lanes_;
  const Team team_;
  Schedule s_;
  std::vector<Size> offsets_;
  i64 step_ = 1, strips_ = 1, taps_ = 0, most_taps_ = 1, places_ = 1, enough_ = 1, align_ = 1, lines_ = 1;
  i64 parts_ = 1;  // groups, and parts of their channels, that a tile's tasks can be cut to at most
  Cost cost_;      // of the tile
};

}  // namespace

ReducedTaps reduced_taps(const Window& window, const PhaseTaps& phase, const Reduction& r, i64 line) {
  const auto begin = std::lower_bound(phase.offset_of.begin(), phase.offset_of.end(), r.offset_first);
  const auto end = std::lower_bound(begin, phase.offset_of.end(), r.offset_last);
  ReducedTaps taps;
  taps.first = begin - phase.offset_of.begin();
  taps.count = end - begin;
  std::transform(begin, end, taps.place, [&](i64 offset) {
    const auto at = static_cast<std::size_t>(offset);
    return (window.line_of[at] - r.line_first) * line + window.shift_of[at];
  });
  return taps;
}

Writing plan_writing(const AxisPlan* axis, i64 channels, i64 together, i64 sums, const Target& target) {
  Writing w;
  const i64 row = axis[2].positions, filled = round_up(row, target.lanes);
  const bool small = sums > 0 && sums * target.number_bytes <= kTogether;
  if (together == 1 && axis[2].out_step > 1 && small &&
      static_cast<double>(row) < kFilled * static_cast<double>(filled))
    w.together = sums + axis[2].out_step * target.lanes;
  w.stream = channels * axis[0].out * axis[1].out * axis[2].out * target.number_bytes > Limits::stream_bytes;
  w.staged = w.stream || (row * together < kShortRow && w.together == 0);
  w.staging = kStaging + (together > 1 ? 4 * together : 16) * axis[2].out_step * target.lanes + w.together;
  return w;
}

Schedule plan_schedule(const Layer& layer, const Call& call, const Packing& packing, const Target& target,
                       const Team& team) {
  return Scheduler(layer, call, packing, target, team).build();
}

Schedule plan_direct(const Layer& layer, const Call& call, const Packing& any, const std::optional<Packing>& vectors,
                     const Target& target, const Team& team) {
  Schedule direct = plan_schedule(layer, call, any, target, team);
  if (!vectors || call.reads_last || call.writes_last) return direct;
  Schedule lanes = plan_schedule(layer, call, *vectors, target, team);
  if (!lanes.channel_lanes) return direct;
  auto faster = [&](const Schedule& one, const Schedule& other, i64 batch) {
    double cycles = one.cycles;
    if (!one.channel_lanes->rectangle)
      cycles += kTurned * static_cast<double>(batch * call.out[0] * call.out[1] * call.out[2] * vectors->rows);
    return cycles < other.cycles;
  };
  if (!any.fused) return faster(lanes, direct, call.batch) ? lanes : direct;
  // Phases in one product are summed in other blocks: neither batch nor threads may change the bits.
  const Call image{1, call.in, call.out, call.lo};
  Schedule fused = plan_schedule(layer, image, any, target, {});
  fused.cycles *= kFused;
  return faster(plan_schedule(layer, image, *vectors, target, {}), fused, 1) ? lanes : direct;
}

double direct_cycles(const Layer& layer, const Call& call, const Target& target) {
  const Packing vectors = plan_packing(layer, target, Order::kVectors);
  return plan_direct(layer, call, plan_packing(layer, target, order_of(call)), vectors, target, {}).cycles;
}

}  // namespace upscore
