#include "gradient_bf16.h"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "gradient_parts.h"
#include "plan.h"

namespace upscore {
namespace {

constexpr i64 kFewChannels = 12;           // too few for a tile
constexpr i64 kCopied = 4;                 // channels of the output's gradient that are copied and cut at once
constexpr i64 kTerms = 512;                // positions of a tile
constexpr i64 kGradientBytes = 640 << 10;  // of the parts of the output's gradient around one tile
constexpr i64 kInputBytes = 384 << 10;     // of those of inputs
constexpr i64 kSumBytes = 768 << 10;

// Cycles.
constexpr double kRun = 7;          // to begin with a line of a channel
constexpr double kCut = 0.8;        // a number of the output's gradient, copied and cut
constexpr double kCutApart = 0.95;  // where the stride leaves others between them
constexpr double kRounded = 1.4;    // an input

class MatrixUnit final : public GradientInParts {
 public:
  explicit MatrixUnit(const GradientInputs<float>& inputs) : GradientInParts(inputs) {
    const Layer& layer = in_.layer;
    if (taps_.beside[1] > kTerms || taps_.beside[2] > kTerms) return;
    i64 best_rows = 0, best_columns = 0;
    double least = std::numeric_limits<double>::infinity();
    for (i64 rows = kTwoTiles; rows <= round_up(std::min(layer.rows, kMostPartsChannels), kTwoTiles); rows += kTwoTiles)
      for (i64 columns = kTwoTiles; columns <= round_up(std::min(layer.cols, kMostPartsChannels), kTwoTiles);
           columns += kTwoTiles) {
        if (piece(layer.rows, rows) <= rows - kTwoTiles || piece(layer.cols, columns) <= columns - kTwoTiles) continue;
        if (layer.taps() * rows * sum_pitch(columns) * i64{sizeof(float)} > kSumBytes) continue;
        if (!fit_tile(rows, columns)) continue;
        const double cycles = cost_of_tile();
        if (cycles < least) least = cycles, best_rows = rows, best_columns = columns;
      }
    if (best_rows == 0 || !fit_tile(best_rows, best_columns)) return;
    tiles_.share(sizeof(float));
    settle(cost_of_tile());
  }

 private:
  Room room_of(const GradientTiles::Part& part) const override {
    constexpr i64 kBehind = kBf16Rows + 64;  // what copying may write beyond lines
    const i64 pitch = gradient_pitch(), terms = terms_of_tile();
    return {in_.layer.taps() * part.rows * sum_pitch(part.columns), kBf16Parts * part.rows * pitch / 2,
            round_up(part.columns, kBf16Rows) * terms * kBf16Parts / 2,
            std::max(kCopied * pitch, kBf16Rows * terms) + kBehind};
  }

  // A line holds the positions of a row, and those beside it that taps reach; a plane, those of one residue of the
  // stride, or one tap of the first axis.
  i64 line() const { return tiles_.across + taps_.beside[2]; }
  i64 places() const { return tiles_.images * (tiles_.down + taps_.beside[1]) * line(); }
  i64 plane() const { return round_up(places(), kBf16Terms); }
  i64 terms_of_tile() const { return round_up(places() - taps_.beside[1] * line() - taps_.beside[2], kBf16Terms); }
  // Numbers of a channel: an odd number of cache lines, and zeros behind the last that may be read.
  i64 gradient_pitch() const { return ((taps_.planes() * plane() + 2 * kBf16Terms) / kBf16Terms | 1) * kBf16Terms; }

  // An odd number of cache lines of sums.
  static i64 sum_pitch(i64 columns) { return (ceil_div(columns, kBf16Rows) | 1) * kBf16Rows; }

  // The largest tile for so many channels.
  bool fit_tile(i64 rows, i64 columns) {
    const Call& call = in_.call;
    tiles_.row_chunk = std::min(rows, in_.layer.rows);
    tiles_.column_chunk = std::min(columns, in_.layer.cols);
    tiles_.down = tiles_.images = 1;
    auto fits = [&] {
      return terms_of_tile() <= kTerms + kBf16Terms && rows * gradient_pitch() * kBf16Bytes <= kGradientBytes &&
             columns * terms_of_tile() * kBf16Bytes <= kInputBytes;
    };
    for (tiles_.across = std::min(call.in[2], kTerms); !fits(); tiles_.across = ceil_div(tiles_.across, 2))
      if (tiles_.across == 1) return false;
    tiles_.across = piece(call.in[2], tiles_.across);
    if (tiles_.across < call.in[2]) return true;
    grow(tiles_.down, call.in[1], fits);
    if (tiles_.down == call.in[1] && call.in[0] == 1) grow(tiles_.images, call.batch, fits);
    return true;
  }

  // Per position and group.
  double cost_of_tile() const {
    const Layer& layer = in_.layer;
    auto number = [](i64 n) { return static_cast<double>(n); };
    const double positions = number(tiles_.across * tiles_.down * tiles_.images);
    const bool shifted = taps_.beside[1] + taps_.beside[2] > 0;
    const double products = parts_product_cycles(layer.rows, layer.cols, shifted) *
                                number(layer.taps() * ceil_div(terms_of_tile(), kBf16Terms)) +
                            kAddedSum * number(layer.taps() * layer.rows * round_up(layer.cols, kBf16Rows));
    const double lines = number(tiles_.images * (tiles_.down + taps_.beside[1]));
    const double gradient = number(tiles_.column_chunks() * layer.rows * taps_.planes()) *
                            ((layer.stride[2] > 1 ? kCutApart : kCut) * number(plane()) + kRun * lines);
    const double input = number(tiles_.row_chunks() * layer.cols) * (kRounded * number(terms_of_tile()) + kRun * lines);
    return (products + gradient + input) / positions;
  }

  // gradient[part][channel][plane][image][row][column], zeros outside of the output.
  void cut_gradient(const GradientTiles::Part& part, const GradientTiles::Tile& at, float* lines,
                    std::uint32_t* gradient) const override {
    const Layer& layer = in_.layer;
    const Size& out = in_.call.out;
    const i64 pitch = gradient_pitch(), image = layer.groups * layer.rows * in_.out_plane();
    thread_local std::vector<Run> runs;
    runs.clear();
    i64 place = 0;
    auto first = [&](std::size_t a) { return at.first[a] * layer.stride[a] - in_.call.lo[a]; };
    for (i64 tap = 0; tap < layer.kernel[0]; ++tap)
      for (const TapPlanes::Residue& down : taps_.residues[1])
        for (const TapPlanes::Residue& across : taps_.residues[2]) {
          for (i64 n = 0; n < tiles_.images; ++n)
            for (i64 r = 0; r < tiles_.down + taps_.beside[1]; ++r, place += line()) {
              const i64 z = first(0) + tap * layer.dilation[0], y = first(1) + r * layer.stride[1] + down.at;
              const i64 x = first(2) + across.at, step = layer.stride[2];
              const bool exists = n < at.images && z >= 0 && z < out[0] && y >= 0 && y < out[1];
              const i64 skip = exists ? std::clamp<i64>(ceil_div(-x, step), 0, line()) : line();
              const i64 stop = exists ? std::clamp<i64>(ceil_div(out[2] - x, step), skip, line()) : line();
              add_line(place, line(), skip, stop, (at.image + n) * image + (z * out[1] + y) * out[2] + x + skip * step,
                       runs);
            }
          if (plane() > places()) add_run({place, plane() - places(), Run::kZeros}, runs);
          place += plane() - places();
        }
    add_run({place, pitch - place, Run::kZeros}, runs);
    const float* const end = in_.grad_y + in_.call.batch * image;
    for (i64 row = 0; row < part.rows; row += kCopied) {
      const i64 here = std::min(kCopied, part.rows - row);
      in_.kernels.copy_runs(in_.grad_y + (part.group * layer.rows + part.row + row) * in_.out_plane(), end,
                            in_.out_plane(), here, layer.stride[2], runs.data(), static_cast<i64>(runs.size()), pitch,
                            lines);
      for (i64 r = 0; r < here; ++r)
        in_.kernels.bf16->cut_row(lines + r * pitch, pitch,
                                  reinterpret_cast<std::uint16_t*>(gradient) + (row + r) * pitch, part.rows * pitch);
    }
  }

  // inputs[tile of channels][block of terms][part][pair of terms][channel], zeros beside the positions.
  void round_inputs(const GradientTiles::Part& part, const GradientTiles::Tile& at, float* lines,
                    std::uint32_t* inputs) const override {
    const Layer& layer = in_.layer;
    const Size& in = in_.call.in;
    const i64 image = layer.groups * layer.cols * in_.in_plane(), terms = terms_of_tile();
    thread_local std::vector<Run> runs;
    runs.clear();
    i64 place = 0;
    for (i64 n = 0; n < tiles_.images; ++n)
      for (i64 r = 0; r < tiles_.down + taps_.beside[1] && place < terms; ++r, place += line())
        add_line(place, std::min(line(), terms - place), 0, n < at.images && r < at.down ? at.across : 0,
                 (at.image + n) * image + (at.first[0] * in[1] + at.first[1] + r) * in[2] + at.first[2], runs);
    if (place < terms) add_run({place, terms - place, Run::kZeros}, runs);
    const float* const end = in_.x + in_.call.batch * image;
    for (i64 c = 0; c < part.columns; c += kBf16Rows, inputs += kBf16Rows * terms * kBf16Parts / 2) {
      const i64 here = std::min<i64>(kBf16Rows, part.columns - c);
      in_.kernels.copy_runs(in_.x + (part.group * layer.cols + part.column + c) * in_.in_plane(), end, in_.in_plane(),
                            here, 1, runs.data(), static_cast<i64>(runs.size()), terms, lines);
      in_.kernels.bf16->round_rows(lines, terms, here, terms / kBf16Terms, inputs);
    }
  }

  // sum[row][tap][column]
  void multiply(const GradientTiles::Part& part, const std::uint32_t* gradient, const std::uint32_t* input,
                bool accumulate, float* sum) const override {
    const i64 blocks = terms_of_tile() / kBf16Terms;
    i64 w_offset[kMostPartsTaps];
    for (i64 tap = 0; tap < in_.layer.taps(); ++tap) w_offset[tap] = taps_.place_of(tap, plane(), line());
    Bf16Product p{};
    p.w_row = gradient_pitch();
    p.w_offset = w_offset;
    p.x = input;
    p.x_part = kBf16Rows * kBf16Terms / 2;
    p.x_block = kBf16Parts * p.x_part;
    p.x_vector = blocks * p.x_block;
    p.blocks = blocks;
    p.vectors = ceil_div(part.columns, kBf16Rows);
    p.accumulate = accumulate;
    multiply_taps(p, gradient, part.rows, sum_pitch(part.columns), sum);
  }

  // sum[row][tap][column] -> grad_w[column][row][tap]
  void put(const GradientTiles::Part& part, const float* sum, float* grad_w) const override {
    const i64 taps = in_.layer.taps(), lanes = in_.kernels.lanes, width = sum_pitch(part.columns);
    const i64 all = in_.layer.rows * taps, here = part.rows * taps, whole = here / lanes * lanes;
    float* const out = grad_w + (part.group * in_.layer.cols + part.column) * all + part.row * taps;
    if (whole > 0) in_.kernels.transpose(sum, sum + here * width, width, whole, part.columns, nullptr, out, all);
    for (i64 c = 0; c < part.columns; ++c)
      for (i64 i = whole; i < here; ++i) out[c * all + i] = sum[i * width + c];
  }
};

}  // namespace

template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_bf16(const GradientInputs<T>& inputs) {
  if constexpr (std::is_same_v<T, float>) {
    if (!has_gradient_in_parts(inputs, kFewChannels) || inputs.call.reads_last || inputs.call.writes_last)
      return nullptr;
    return usable_in_parts<MatrixUnit>(inputs);
  }
  return nullptr;
}

template std::unique_ptr<WeightGradient<float>> gradient_bf16<float>(const GradientInputs<float>&);
template std::unique_ptr<WeightGradient<double>> gradient_bf16<double>(const GradientInputs<double>&);

}  // namespace upscore
