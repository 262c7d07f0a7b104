#include <algorithm>
#include <cmath>
#include <numeric>
#include <sstream>
#include <tuple>
#include <utility>

#include "fold.h"
#include "parts.h"
#include "threads.h"

namespace upscore {
namespace {

constexpr i64 kMostTaps = 4096;
constexpr i64 kMostPlaces = 1 << 26;   // of an image, with the zeros between rows
constexpr i64 kAllRowBytes = 2 << 20;  // of all rows of an image that threads share
constexpr i64 kPartsOfThread = 2;
constexpr i64 kSeveral = 8;     // small images, for which it is to be worth as well
constexpr i64 kTogether = 512;  // places of images that are computed together
constexpr i64 kFewColumns = 8;  // input channels of a group whose sums are not worth to be put down
// Where output channels fill vectors, the direct way is faster than its estimate, and folding by the matrix unit
// slower.
constexpr double kManyRows = 1.1, kManyRowsOfParts = 1.4;
// With lanes along inputs: so much sooner than estimates say minimal filtering of few columns is done, and what does
// not overlap.
constexpr double kFilteredSooner = 1.18, kApartSooner = 1.25;
constexpr i64 kFewFiltered = 128;
constexpr i64 kMostColumns = 4096;        // input channels of a group
constexpr i64 kMostChannels = 32;         // of a unit
constexpr double kFilled = 0.92;          // share of a unit's vectors that is enough
constexpr i64 kSumBytes = 384 << 10;      // of a task's outputs
constexpr i64 kLastSumBytes = 768 << 10;  // of all channels, where they are written next to each other
constexpr i64 kRowBytes = 640 << 10;      // of the rows that are folded together
constexpr i64 kStretchesOfThread = 4;     // of bands, at most;
constexpr i64 kTried = 8;                 // so many counts of them
constexpr i64 kPanelBytes = 192 << 10;    // of inputs
constexpr i64 kMostSpan = 2048;           // places of their products, with the zeros between rows
constexpr i64 kMostPositions = 192;       // multiplied together
constexpr i64 kLineVectors = 9;           // of inputs that are copied at a time, where they lie in lines
constexpr i64 kNearBytes = 32 << 10;      // of inputs that stay in a first-level cache
constexpr i64 kNearSets = 64;             // of it, and lines of each
constexpr i64 kNearLines = 8;
constexpr i64 kSmall = 64;  // positions of an image of which several may be computed together

// Cycles that no other way takes.
constexpr double kWait = 1;       // for the weights of a column
constexpr double kCall = 40;      // to begin with a register tile
constexpr double kTurn = 0.45;    // to turn a number
constexpr double kAdd = 2;        // to add a vector
constexpr double kAddBegin = 10;  // to begin with a phase
constexpr double kSecond = 2500;  // for threads to meet once more
constexpr double kAgain = 3;      // to fetch a column's inputs again that others have driven out of a cache
constexpr double kLineCopy = 2;   // to copy a vector, where inputs lie in lines
constexpr double kLineTurn = 3;   // to turn one, channels last
constexpr double kOdd = 0.4;      // as much of a vector of inputs more takes a row with an odd number of them
constexpr i64 kAligned = 2;       // vectors of inputs that a row has
constexpr double kKeep = 4;       // a vector of contributions for the next band, against products by the matrix unit
constexpr double kNotNear = 1.1;  // times as long, where inputs come from the second-level cache again and again

}  // namespace

std::optional<FoldPacking> plan_fold_packing(const Layer& layer, const Target& target) {
  if (!layer.transposed || layer.rows * layer.cols == 1 || layer.cols > kMostColumns) return {};
  for (i64 kernel : layer.kernel)
    if (kernel > kMostTaps) return {};
  if (layer.kernel[0] * layer.kernel[1] > kMostTaps || layer.taps() > kMostTaps) return {};
  FoldPacking p;
  double best = 0;
  for (i64 channels = 1; channels <= std::min(layer.rows, kMostChannels); ++channels) {
    const i64 rows = channels * layer.taps();
    const double filled = static_cast<double>(rows) / static_cast<double>(round_up(rows, target.lanes));
    if (filled <= best) continue;
    best = filled;
    p.channels = channels;
    if (filled >= kFilled) break;
  }
  p.vectors = ceil_div(p.channels * layer.taps(), target.lanes);
  p.units = ceil_div(layer.rows, p.channels);
  return p;
}

namespace {

// What the matrix unit takes for the products of an image's inputs, and what it takes to cut these into parts.
std::pair<double, double> parts_cycles(const Layer& layer, const Call& call, const FoldPacking& packing,
                                       const Target& target) {
  const i64 row = ceil_div(call.in[2], i64{target.lanes});
  const double lines = static_cast<double>(call.in[0] * call.in[1]), cut = lines * static_cast<double>(row);
  const double multiplied = cut + (row % 2 > 0 ? kOdd * lines : 0);
  const double rows = static_cast<double>(packing.units * packing.vectors * kBf16Rows);
  const double columns = static_cast<double>(round_up(layer.cols, kBf16Terms));
  return {multiplied * rows * columns * Cycles::bf16_product, cut * static_cast<double>(layer.cols) * Cycles::cut};
}

// What does not depend on how many images are computed together. Nothing for images that are too large.
struct FoldLayout {
  FoldSchedule s;
  i64 phases = 1;
  i64 lowest = 0, highest = 0;   // shifts
  bool flat = true;              // nothing to be read along the axes that have but one position
  double products = 0, cut = 0;  // cycles of an image by the matrix unit
};
std::optional<FoldLayout> lay_out(const Layer& layer, const Call& call, const FoldPacking& packing,
                                  const Target& target) {
  FoldLayout layout;
  FoldSchedule& s = layout.s;
  // By the matrix unit, if that takes less than vectors do: whatever the batch, the bands and how inputs lie.
  if (target.bf16 && layer.cols <= kMostPartsColumns) {
    std::tie(layout.products, layout.cut) = parts_cycles(layer, call, packing, target);
    const double inputs = static_cast<double>(call.in[0] * call.in[1]) * static_cast<double>(call.in[2]);
    const double rows = static_cast<double>(packing.units * packing.channels * layer.taps());
    const double vectors = rows * static_cast<double>(layer.cols) * Cycles::product * inputs / target.lanes;
    if (layout.products + layout.cut < vectors) s.bf16 = parts_panel(layer.cols);
  }
  i64 places = 1;  // of what comes after the axis
  Size farthest;   // input, from an output's position
  for (std::size_t a = kAxes; a-- > 0;) {
    s.axis[a] =
        plan_axis(call.in[a], call.out[a], layer.kernel[a], layer.stride[a], layer.dilation[a], call.lo[a], true, true);
    const i64 in = call.in[a], positions = s.axis[a].positions;
    farthest[a] = floor_div(call.lo[a], layer.stride[a]);
    const i64 nearest = farthest[a] - (layer.kernel[a] - 1) * layer.dilation[a] / layer.stride[a];
    // Zeros behind a row serve the next one, too.
    const i64 beside = std::max({i64{0}, -nearest, positions - 1 + farthest[a] - (in - 1)});
    i64 room = std::max(in + beside, positions);
    // Rows of an image begin on vectors.
    if (s.bf16 > 0 && a + 1 == kAxes && in >= kAligned * target.lanes) room = round_up(room, i64{target.lanes});
    if (in == 0 || positions == 0 || room > kMostPlaces || layer.stride[a] > kMostPlaces) return {};
    s.pitch[a] = places;
    places *= room;
    if (in > 1 || positions > 1) {
      s.along = a;
      s.nearest = nearest;
      s.farthest = farthest[a];
    }
    layout.phases *= layer.stride[a];
    if (places > kMostPlaces || layout.phases > kMostPlaces) return {};
  }
  s.image = places;
  for (std::size_t a = 0; a < s.along; ++a) layout.flat = layout.flat && layer.kernel[a] == 1 && farthest[a] == 0;
  for (i64 z = 0; z < layer.kernel[0]; ++z)
    for (i64 y = 0; y < layer.kernel[1]; ++y)
      for (i64 x = 0; x < layer.kernel[2]; ++x) {
        const i64 at[kAxes] = {z, y, x};
        FoldSchedule::Tap tap{0, 0};
        for (std::size_t a = 0; a < kAxes; ++a) {
          const i64 reach = at[a] * layer.dilation[a];
          tap.phase = tap.phase * layer.stride[a] + reach % layer.stride[a];
          tap.shift += (farthest[a] - reach / layer.stride[a]) * s.pitch[a];
        }
        layout.lowest = std::min(layout.lowest, tap.shift);
        layout.highest = std::max(layout.highest, tap.shift);
        s.taps.push_back(tap);
      }
  return layout;
}

// Of so many images, or bands of so many positions of one, or none where they do not fit.
class FoldScheduler {
 public:
  FoldScheduler(const Layer& layer, const Call& call, const FoldPacking& packing, const Target& target,
                const FoldLayout& layout, i64 images, i64 band, i64 stretch)
      : layer_(layer), call_(call), packing_(packing), target_(target), phases_(layout.phases), s_(layout.s) {
    const i64 lanes = target.lanes, bytes = target.number_bytes, positions = s_.axis[s_.along].positions;
    const i64 pitch = s_.pitch[s_.along];
    banded_ = band < positions;
    s_.images = images;
    s_.band = band;
    s_.stretch = stretch;
    s_.places = banded_ ? (band + s_.farthest) * pitch : (images - 1) * s_.image + call.in[0] * s_.pitch[0];
    s_.width = round_up((images - 1) * s_.image + band * pitch, lanes);
    s_.before = before_of(layout, target);
    s_.row = s_.before + round_up(std::max(s_.places, s_.width + layout.highest), lanes) + lanes;
    if (s_.bf16 > 0) s_.row = (s_.row / lanes | 1) * lanes;  // in other sets of a cache than those next to it
    unit_sums_ = packing.channels * phases_ * s_.width * bytes;
    const i64 all = packing.units * packing.vectors;
    s_.together = std::min(kRowBytes / (s_.row * lanes * bytes), all);
    if (banded_) {
      s_.units = packing.units;
      if (s_.together < all) s_.together = 0;
    }
    if (!fits()) return;
    s_.vectors = std::min<i64>(s_.together, kMaxRowVectors);
    if (!banded_) s_.together = s_.together / s_.vectors * s_.vectors;
    s_.positions = fitting_positions(s_.vectors, target.registers);

    const i64 row = call.in[2], rows = images * call.in[0] * call.in[1];
    const i64 most = std::min(kMostPositions, std::max<i64>(kPanelBytes / (layer.cols * bytes), s_.positions));
    s_.across = row <= most ? row : piece(row, most);
    s_.rows = row <= most ? std::min(most / row, rows) : 1;
    while (s_.rows > 1 && span() > kMostSpan) s_.rows /= 2;
    s_.in_place = images == 1 || call.reads_last || s_.bf16 > 0;
    if (s_.bf16 > 0) {
      products_ = static_cast<double>(images) * layout.products;
      cut_ = static_cast<double>(images) * layout.cut;
      return;
    }
    products_ = all_products();
    if (images > 1) return;
    const auto [lines, time] = plan_lines();
    if (time >= (call.reads_last || stay_near(s_.positions) ? products_ : all_products(kAgain))) return;
    s_.lines = lines;
    products_ = time;
  }

  // The most positions of a band whose rows and sums fit; 0 where there is none.
  static i64 most_positions(const FoldPacking& packing, const Target& target, const FoldLayout& layout) {
    if (!layout.flat) return 0;
    const FoldSchedule& s = layout.s;
    const i64 pitch = s.pitch[s.along], units = packing.units * target.number_bytes;
    const i64 row = kRowBytes / (units * packing.vectors * target.lanes) - before_of(layout, target) -
                    std::max(s.farthest * pitch, layout.highest) - 3 * target.lanes;
    const i64 width = kSumBytes / (units * packing.channels * layout.phases) - target.lanes;
    return std::max<i64>(std::min(row, width) / pitch, 0);
  }

  bool fits() const {
    if (s_.band < 1 || s_.together < 1 || unit_sums_ > kSumBytes) return false;
    const i64 all = banded_ || (call_.writes_last && s_.images > 1) ? packing_.units * unit_sums_ : 0;
    return all <= kLastSumBytes && span() <= kMostSpan;
  }

  // How often inputs are cut or copied, for so many units.
  i64 passes(i64 units) const { return ceil_div(units * packing_.vectors, s_.together); }

  // Of all images, and so many units.
  double cycles(i64 units) const {
    const i64 high = s_.images * call_.in[0] * call_.in[1], wide = call_.in[2], lanes = target_.lanes;
    const double cols = static_cast<double>(layer_.cols);
    const double taps = static_cast<double>(packing_.channels * layer_.taps());
    const double lines = static_cast<double>(s_.images * s_.axis[0].positions * s_.axis[1].positions);
    const double sums = static_cast<double>(banded_ ? s_.image : s_.width);  // of a phase
    const double unit = taps * (sums / static_cast<double>(lanes) * kAdd) +
                        static_cast<double>(packing_.channels * phases_) * (kAddBegin + Cycles::piece * lines);
    double all = static_cast<double>(units) * (products_ / static_cast<double>(packing_.units) + unit) + Cycles::task;
    all += cut_ * static_cast<double>(passes(units));
    if (s_.bf16 > 0 && banded_) {
      const double kept =
          static_cast<double>(s_.before + s_.farthest * s_.pitch[s_.along]) / static_cast<double>(lanes);
      all += kKeep * kept * taps * static_cast<double>(units) *
             static_cast<double>(ceil_div(s_.axis[s_.along].positions, s_.band));
    }
    if (!s_.in_place) {
      const double pieces = static_cast<double>(ceil_div(wide, s_.across) * ceil_div(high, s_.rows));
      const double copied = static_cast<double>(s_.rows * s_.across) / static_cast<double>(lanes);
      const double runs = static_cast<double>(std::min(s_.images, s_.rows));
      all += pieces * cols * (Cycles::begin * runs + Cycles::copy * copied) * static_cast<double>(passes(units));
    }
    return all;
  }

  // The fastest count of units for a task, or one image by all threads in turn, and how long a call takes.
  double share(int threads) {
    if (banded_) return share_bands(threads);
    double least = 0;
    const i64 most = std::clamp<i64>(kSumBytes / unit_sums_, 1, packing_.units), fit = most * packing_.channels;
    for (i64 units = call_.writes_last ? packing_.units : most; units >= 1; --units) {
      const i64 tasks = ceil_div(packing_.units, units) * layer_.groups * ceil_div(call_.batch, s_.images);
      const double time = turns(tasks, threads) * cycles(units);
      if (least == 0 || time < least) {
        least = time;
        s_.units = units;
      }
      if (call_.writes_last) break;
    }
    if (threads == 1 || layer_.groups * call_.batch > 1) return least;
    const i64 vectors = packing_.units * packing_.vectors;
    // Every share of the rows copies the inputs.
    const i64 share = ceil_div(vectors, s_.in_place && !s_.bf16 ? kPartsOfThread * threads : threads);
    const double part = turns(ceil_div(vectors, share), threads) * static_cast<double>(share);
    const double once = cycles(packing_.units) - cut_ * static_cast<double>(passes(packing_.units));
    const double time =
        once * part / static_cast<double>(vectors) + cut_ * turns(ceil_div(vectors, share), threads) + kSecond;
    if (vectors * target_.lanes * s_.row * target_.number_bytes > kAllRowBytes || time >= least) return least;
    s_.in_turn = true;
    s_.together = vectors;
    s_.share = share;
    const i64 strips = layer_.stride[0] * layer_.stride[1], wanted = kPartsOfThread * threads;
    s_.channels = call_.writes_last ? layer_.rows : std::min(ceil_div(layer_.rows, wanted), fit);
    s_.strips = ceil_div(strips, std::min(strips, ceil_div(wanted, ceil_div(layer_.rows, s_.channels))));
    return time;
  }

  double share_bands(int threads) const {
    const i64 stretches = ceil_div(s_.axis[s_.along].positions, s_.stretch), images = layer_.groups * call_.batch;
    // What a stretch reads that another one reads as well.
    const double again = static_cast<double>(s_.stretch + s_.farthest - s_.nearest) / static_cast<double>(s_.stretch);
    const double all = cycles(packing_.units) * (stretches > 1 ? again : 1);
    return turns(images * stretches, threads) * all / static_cast<double>(stretches);
  }

  FoldSchedule finish(int threads) {
    const i64 lanes = target_.lanes, images = s_.images;
    s_.threads = threads;
    s_.panel = s_.in_place ? 0 : layer_.cols * s_.rows * s_.across + 2 * lanes;
    s_.products = (span() + 2 * lanes) * (s_.vectors + 1) * lanes;
    if (s_.lines) {
      s_.panel = layer_.cols * s_.lines->inputs + 2 * lanes;
      s_.products = 0;
    }
    if (s_.bf16 > 0) {
      s_.panel = 2 * s_.bf16;
      s_.products = 0;
    }
    s_.writing = plan_writing(s_.axis, call_.batch * layer_.groups * layer_.rows, call_.writes_last ? layer_.rows : 1,
                              phases_ * s_.width, target_);
    std::ostringstream why;
    why << "transposed convolution: " << layer_.taps() << (layer_.taps() == 1 ? " tap" : " taps")
        << ", folded because the map is small or outputs are few: lanes run along "
        << (s_.lines || s_.bf16 ? "inputs" : "the taps of output channels")
        << (s_.bf16 ? ", products of bfloat16 parts by the matrix unit" : "")
        << ", what an input adds through each tap is computed first, and added where it overlaps; ";
    if (s_.in_turn)
      why << "all threads compute " << s_.share << " of " << s_.together << " vectors of taps at a time, then fold";
    else
      why << "a task computes " << std::min(s_.units * packing_.channels, layer_.rows) << " of " << layer_.rows
          << (layer_.rows == 1 ? " channel of " : " channels of ") << images << (images == 1 ? " image" : " images");
    constexpr const char* kOf[kAxes] = {" planes of", " rows of", ""};
    if (banded_) why << ", " << s_.band << kOf[s_.along] << " positions at a time";
    why << "; " << say_threads(threads);
    s_.why = why.str();
    return std::move(s_);
  }

 private:
  // Zeros or inputs of the band before.
  static i64 before_of(const FoldLayout& layout, const Target& target) {
    return round_up(std::max(-layout.lowest, -layout.s.nearest * layout.s.pitch[layout.s.along]), target.lanes);
  }

  // What the products of all images take, with lanes along taps, and turning them.
  double all_products(double again = 0) const {
    const i64 inputs = s_.images * call_.in[0] * call_.in[1] * call_.in[2], units = packing_.units;
    const double p = static_cast<double>(piece(s_.rows * s_.across, s_.positions));
    const double v = static_cast<double>(s_.vectors), cols = static_cast<double>(layer_.cols);
    const double tile = cols * (std::max({Cycles::product * p * v, 0.5 * (p + v), 4.0}) + kWait + again) + kCall;
    const double turned = static_cast<double>(units * packing_.channels * layer_.taps()) *
                          static_cast<double>(banded_ ? s_.image : s_.places);
    return static_cast<double>(units * packing_.vectors) * std::ceil(static_cast<double>(inputs) / p) / v * tile +
           turned * kTurn;
  }

  // Whether so many inputs from one place of every channel on stay in a first-level cache until they are read again.
  bool stay_near(i64 inputs) const {
    constexpr i64 line = 64;
    const i64 plane = call_.in[0] * call_.in[1] * call_.in[2] * target_.number_bytes;
    const i64 lines = inputs * target_.number_bytes / line + 1;
    const i64 sets = std::min(kNearSets, kNearSets * line / std::gcd(plane, kNearSets * line) * lines);
    return layer_.cols * lines <= kNearLines * sets;
  }

  // The same with lanes along inputs. These are copied where lines at one place of all channels would drive each other
  // out of a cache, and turned where channels are last.
  std::pair<FoldSchedule::Lines, double> plan_lines() const {
    const i64 lanes = target_.lanes, wide = call_.in[2], high = call_.in[0] * call_.in[1];
    const i64 most = target_.registers >= 3 * kMaxTileRows ? kMaxTileRows : kMaxTileRows / 2;
    FoldSchedule::Lines l{};
    l.taps = most;
    l.vectors = std::min(target_.registers / most, ceil_div(wide, lanes));
    l.in_place = !call_.reads_last && stay_near(l.vectors * lanes);
    const i64 fit = kPanelBytes / (layer_.cols * target_.number_bytes * lanes);  // vectors
    l.inputs = (l.in_place ? l.vectors : std::clamp<i64>(fit, l.vectors, kLineVectors)) * lanes;
    l.inputs = round_up(piece(wide, l.inputs), lanes);
    const double vectors = static_cast<double>(ceil_div(wide, lanes)), lines = static_cast<double>(high);
    const double cols = static_cast<double>(layer_.cols);
    double time = 0;  // of a vector of inputs
    for (i64 left = packing_.channels * layer_.taps(); left > 0; left -= lanes) {
      const i64 taps = std::min(left, lanes), height = piece(taps, l.taps);
      const double h = static_cast<double>(height), v = static_cast<double>(l.vectors);
      const double tile = cols * (std::max(Cycles::product * h * v, 0.5 * (h + v)) + kWait) + kCall;
      time += static_cast<double>(ceil_div(taps, height)) / v * tile;
    }
    if (layer_.cols * l.inputs * target_.number_bytes > kNearBytes) time *= kNotNear;
    time *= static_cast<double>(packing_.units);
    if (call_.reads_last)
      time += cols * kLineTurn;
    else if (!l.in_place)
      time += cols * (kLineCopy + Cycles::begin * static_cast<double>(lanes) / static_cast<double>(l.inputs));
    return {l, time * vectors * lines};
  }

  // At most so many places have the inputs that are multiplied together, with the zeros between and behind them.
  i64 span() const {
    const i64 planes = s_.rows / call_.in[1] + 1, between = s_.pitch[0] - call_.in[1] * s_.pitch[1];
    const i64 images = planes / call_.in[0] + 1, apart = s_.image - call_.in[0] * s_.pitch[0];
    return s_.rows * (s_.across + s_.pitch[1] - call_.in[2]) + planes * between + images * apart;
  }

  const Layer& layer_;
  const Call& call_;
  const FoldPacking& packing_;
  const Target& target_;
  const i64 phases_;
  FoldSchedule s_;
  double products_ = 0;  // what those of all images take
  double cut_ = 0;       // and to cut their inputs into parts
  i64 unit_sums_ = 0;    // bytes
  bool banded_ = false;  // of bands, that is
};

}  // namespace

std::optional<FoldSchedule> plan_fold(const Layer& layer, const Call& call, const FoldPacking& packing,
                                      const Target& target, const Team& team) {
  if (call.batch == 0) return {};
  const std::optional<FoldLayout> layout = lay_out(layer, call, packing, target);
  if (!layout) return {};
  const i64 positions = layout->s.axis[layout->s.along].positions, all_images = layer.groups * call.batch;
  std::optional<FoldScheduler> best(std::in_place, layer, call, packing, target, *layout, 1, positions, positions);
  const bool whole = best->fits();
  const i64 most = std::min(FoldScheduler::most_positions(packing, target, *layout), positions - 1);
  if (!whole && most < 1) return {};
  // Stretches of so many bands; these are alike.
  auto cut = [&](i64 stretches) {
    const i64 stretch = ceil_div(positions, stretches), band = piece(stretch, most);
    return FoldScheduler(layer, call, packing, target, *layout, 1, band, round_up(stretch, band));
  };
  if (!whole) best.emplace(cut(1));
  if (!best->fits()) return {};
  const int threads = team.share(best->cycles(packing.units) * static_cast<double>(all_images) / Cycles::serial);
  double least = best->share(threads);
  auto consider = [&](FoldScheduler other) {
    if (!other.fits()) return false;
    const double time = other.share(threads);
    if (time < least) {
      least = time;
      best.emplace(std::move(other));
    }
    return true;
  };
  const bool again = layout->s.bf16 > 0 && best->passes(packing.units) > 1;
  if ((threads > 1 || again) && most >= 1) {
    const i64 wanted = std::min(ceil_div(kStretchesOfThread * threads, all_images), positions);
    for (i64 stretches = again ? 1 : 2; stretches <= wanted; stretches += ceil_div(wanted, kTried))
      consider(cut(stretches));
  }
  for (i64 images = 2; whole && images <= call.batch && images * layout->s.image <= kTogether; images *= 2)
    if (!consider({layer, call, packing, target, *layout, piece(call.batch, images), positions, positions})) break;
  FoldSchedule s = best->finish(threads);
  s.cycles = least / static_cast<double>(layer.groups);
  return s;
}

namespace {

bool overlaps(const Layer& layer) {
  bool any = false;
  for (std::size_t a = 0; a < kAxes; ++a) any |= (layer.kernel[a] - 1) * layer.dilation[a] >= layer.stride[a];
  return any;
}

}  // namespace

bool worth_folding(const Layer& layer, const Call& call, const FoldPacking& packing, const Target& target, double limit,
                   bool filtered) {
  if (layer.cols < kFewColumns) return false;
  // Nothing overlaps: the direct way does as many products, and writes them where they belong.
  if (call.reads_last && layer.rows % target.lanes == 0 && !overlaps(layer)) return false;
  Call some{1, call.in, call.out, call.lo, call.reads_last, call.writes_last};
  const std::optional<FoldSchedule> image = plan_fold(layer, some, packing, target, {});
  if (!image) return false;
  if (layer.rows >= target.lanes) limit /= image->bf16 > 0 ? kManyRowsOfParts : kManyRows;
  if (image->lines && filtered && layer.cols < kFewFiltered) limit /= kFilteredSooner;
  if (image->lines && !overlaps(layer)) limit /= kApartSooner;
  if (call.in[0] * call.in[1] * call.in[2] > kSmall) return image->cycles < limit;
  some.batch = kSeveral;
  return image->cycles * plan_fold(layer, some, packing, target, {})->cycles <
         limit * direct_cycles(layer, some, target);
}

bool writes_last(const Layer& layer, const FoldPacking& packing, const FoldSchedule& schedule, const Target& target) {
  i64 phases = 1;
  for (i64 stride : layer.stride) phases *= stride;
  return layer.groups == 1 && layer.rows * layer.stride[2] <= Limits::together &&
         packing.units * packing.channels * phases * schedule.width * target.number_bytes <= kLastSumBytes;
}

}  // namespace upscore
