#include "gradient_pairs.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "gradient_parts.h"
#include "plan.h"

namespace upscore {
namespace {

constexpr i64 kFewChannels = 8;            // too few for a tile
constexpr i64 kMostStride = 4096;          // along rows
constexpr i64 kMostAcross = 256;           // positions of a line
constexpr i64 kMostLines = 64;             // of a tile
constexpr i64 kGradientBytes = 640 << 10;  // of the parts of the output's gradient around one tile
constexpr i64 kInputBytes = 320 << 10;     // of those of inputs
constexpr i64 kSumBytes = 640 << 10;
constexpr i64 kLineBytes = 256 << 10;  // of lines that are turned, or not rounded yet
constexpr i64 kFarBytes = 4 << 20;

// Cycles.
constexpr double kCut = 22;       // two vectors of the output's gradient
constexpr double kCutFar = 44;    // that come from memory, channels last
constexpr double kTurned = 0.8;   // a number of it, channels first
constexpr double kTurnedFar = 2;  // that comes from memory
constexpr double kRounded = 1.8;  // an input

class Pairs final : public GradientInParts {
 public:
  explicit Pairs(const GradientInputs<float>& inputs) : GradientInParts(inputs) {
    const Layer& layer = in_.layer;
    for (const TapPlanes::Residue& r : taps_.residues[2]) widest_ = std::max(widest_, r.at);
    if (taps_.beside[1] > kMostLines || taps_.beside[2] > kMostAcross) return;
    far_ = in_.call.batch * layer.groups * layer.rows * in_.out_plane() * i64{sizeof(float)} > kFarBytes;
    if (in_.call.in[1] == 1 && taps_.beside[1] == 0) pieces_ = 2;
    i64 best[3] = {};
    double least = std::numeric_limits<double>::infinity();
    for (i64 rows = kTwoTiles; rows < 2 * std::min(layer.rows, kMostPartsChannels) || rows == kTwoTiles; rows *= 2)
      for (i64 columns = kTwoTiles; columns < 2 * std::min(layer.cols, kMostPartsChannels) || columns == kTwoTiles;
           columns *= 2) {
        double before = std::numeric_limits<double>::infinity();
        for (i64 across = std::min(in_.call.in[2], pieces_ * kMostAcross); across > 0; across /= 2) {
          if (!fit_tile(rows, columns, across)) continue;
          const double cycles = cost_of_tile();
          if (cycles > before) break;
          before = cycles;
          if (cycles < least) {
            least = cycles;
            best[0] = rows;
            best[1] = columns;
            best[2] = across;
          }
        }
      }
    if (best[0] == 0 || !fit_tile(best[0], best[1], best[2])) return;
    tiles_.share(sizeof(float));
    make_even();
    settle(cost_of_tile());
  }

 private:
  Room room_of(const GradientTiles::Part& part) const override {
    return {part.columns * in_.layer.taps() * width(part.rows),
            ceil_div(part.rows, kBf16Rows) * kBf16Parts * part_pitch(), kBf16Parts * part.columns * input_pitch(),
            std::max(turned_lines(), input_lines())};
  }

  // Of the output's gradient, where a line's first place would be, if it exists, and along the row.
  struct Row {
    const float* from;
    i64 first;
  };

  // A line holds the positions of a row, or of each half of the only one, and those beside it that taps reach; those of
  // the second half are the others of pairs. A plane holds those of one residue of the stride, or one tap of the first
  // axis.
  i64 span() const { return ceil_div(tiles_.across, pieces_); }
  i64 line() const { return span() + taps_.beside[2]; }
  i64 lines_of_image() const { return tiles_.down * pieces_ + taps_.beside[1]; }
  i64 half() const { return ceil_div(tiles_.images * lines_of_image() - taps_.beside[1], 2); }
  i64 pairs() const { return round_up(half() * line() - taps_.beside[2], kBf16Rows); }
  i64 plane() const { return pairs() + taps_.beside[1] * line() + taps_.beside[2]; }
  // In words; all but one of them an odd number of cache lines.
  i64 part_pitch() const { return (taps_.planes() * plane() | 1) * kBf16Rows; }
  i64 input_pitch() const { return (pairs() / kBf16Rows | 1) * kBf16Rows; }
  static i64 width(i64 rows) { return (ceil_div(rows, kBf16Rows) | 1) * kBf16Rows; }
  // Numbers: of two rows of the output's gradient, turned, and of inputs before they are rounded.
  i64 across_turned() const { return (line() - 1) * in_.layer.stride[2] + widest_ + 1; }
  i64 turned_pitch() const { return round_up(tiles_.row_chunk, kBf16Rows); }
  i64 turned_lines() const { return in_.call.writes_last ? 0 : 2 * across_turned() * turned_pitch(); }
  i64 input_lines() const { return kBf16Rows * (2 * pairs() + kBf16Rows); }

  // The tallest tile for so many channels, so wide at most.
  bool fit_tile(i64 rows, i64 columns, i64 across) {
    const Call& call = in_.call;
    tiles_.row_chunk = std::min(rows, in_.layer.rows);
    tiles_.column_chunk = std::min(columns, in_.layer.cols);
    tiles_.images = 1;
    tiles_.down = std::min<i64>(2, call.in[1]);
    tiles_.across = piece(call.in[2], across);
    auto fits = [&] {
      const i64 vectors = ceil_div(tiles_.row_chunk, kBf16Rows);
      return half() <= kMostLines && vectors * kBf16Parts * part_pitch() * 4 <= kGradientBytes &&
             tiles_.column_chunk * kBf16Parts * input_pitch() * 4 <= kInputBytes &&
             std::max(turned_lines(), input_lines()) * 4 <= kLineBytes;
    };
    if (tiles_.column_chunk * in_.layer.taps() * width(tiles_.row_chunk) * 4 > kSumBytes || !fits()) return false;
    grow(tiles_.down, call.in[1], fits);
    make_even();
    if (tiles_.down == call.in[1] && tiles_.across == call.in[2] && call.in[0] == 1)
      grow(tiles_.images, call.batch, fits);
    return tiles_.down * tiles_.images * pieces_ > 1;
  }

  void make_even() {
    if (tiles_.down > 1 && tiles_.down < in_.call.in[1]) tiles_.down = tiles_.down / 2 * 2;
  }

  // Per position and group.
  double cost_of_tile() const {
    const Layer& layer = in_.layer;
    auto number = [](i64 n) { return static_cast<double>(n); };
    const i64 vectors = ceil_div(layer.rows, kBf16Rows);
    const double products =
        parts_product_cycles(layer.cols, layer.rows, false) * number(layer.taps() * pairs() / kBf16Rows);
    const double sums = kAddedSum * number(layer.taps() * layer.cols * vectors * kBf16Rows);
    i64 lines = 0;
    for (const TapPlanes::Residue& r : taps_.residues[1]) lines += half() + r.beside;
    lines *= layer.kernel[0] * tiles_.column_chunks();
    double gradient =
        (far_ && in_.call.writes_last ? kCutFar : kCut) * number(lines * vectors * line() * taps_.count(2));
    if (!in_.call.writes_last)
      gradient += (far_ ? kTurnedFar : kTurned) * number(2 * lines * across_turned() * layer.rows);
    const double input = kRounded * number(tiles_.row_chunks() * layer.cols * 2 * pairs());
    return (products + sums + gradient + input) / number(tiles_.across * tiles_.down * tiles_.images);
  }

  // gradient[vector of channels][part][plane][line][position][channel] of this line and the one half of them later,
  // zeros outside of the output.
  void cut_gradient(const GradientTiles::Part& part, const GradientTiles::Tile& at, float* turned,
                    std::uint32_t* gradient) const override {
    const Layer& layer = in_.layer;
    const Size &out = in_.call.out, &lo = in_.call.lo;
    const i64 vectors = ceil_div(part.rows, kBf16Rows), vector_pitch = kBf16Parts * part_pitch();
    auto clear = [&](std::uint32_t* to, i64 places) {
      for (i64 v = 0; v < vectors; ++v)
        for (i64 p = 0; p < kBf16Parts; ++p)
          std::fill_n(to + v * vector_pitch + p * part_pitch(), places * kBf16Rows, 0u);
    };
    const i64 step = layer.stride[2], pixel = in_.call.writes_last ? layer.groups * layer.rows : turned_pitch();
    std::uint32_t* of_plane = gradient;
    for (i64 tap = 0; tap < layer.kernel[0]; ++tap)
      for (const TapPlanes::Residue& down : taps_.residues[1]) {
        const i64 z = at.first[0] * layer.stride[0] + tap * layer.dilation[0] - lo[0], lines = half() + down.beside;
        auto row_of = [&](i64 index, float* turned_row) {
          const i64 n = index / lines_of_image(), r = index % lines_of_image();
          const i64 y = (at.first[1] + r / pieces_) * layer.stride[1] + down.at - lo[1];
          const i64 first = (at.first[2] + r % pieces_ * span()) * step - lo[2];
          if (n >= at.images || z < 0 || z >= out[0] || y < 0 || y >= out[1]) return Row{nullptr, first};
          const Image<float> image = in_.gradient(at.image + n, part.group * layer.rows + part.row);
          const float* const row = image.first + (z * out[1] + y) * out[2] * image.step();
          if (in_.call.writes_last) return Row{row + first * image.step(), first};
          const i64 begin = std::max<i64>(first, 0), end = std::min(first + across_turned(), out[2]);
          if (begin < end)
            in_.kernels.transpose(row + begin, image.end, in_.out_plane(), part.rows, end - begin, nullptr,
                                  turned_row + (begin - first) * turned_pitch(), turned_pitch());
          return Row{turned_row, first};
        };
        float* const other = turned + across_turned() * turned_pitch();
        for (i64 q = 0; q < lines; ++q) {
          const Row rows[2] = {row_of(q, turned), row_of(q + half(), other)};
          std::uint32_t* to = of_plane + q * line() * kBf16Rows;
          for (const TapPlanes::Residue& across : taps_.residues[2]) {
            // Of each row, the places [begin, end) exist.
            i64 begin[2] = {}, end[2] = {}, cut[6] = {0, line()};
            for (int i = 0; i < 2; ++i) {
              const i64 x = rows[i].first + across.at;
              if (rows[i].from) begin[i] = std::clamp<i64>(ceil_div(-x, step), 0, line());
              if (rows[i].from) end[i] = std::clamp<i64>(ceil_div(out[2] - x, step), begin[i], line());
              cut[2 + i] = begin[i];
              cut[4 + i] = end[i];
            }
            std::sort(std::begin(cut), std::end(cut));
            for (int i = 0; i + 1 < 6; ++i) {
              auto from = [&](int row) {
                const bool inside = begin[row] <= cut[i] && cut[i + 1] <= end[row];
                return inside ? rows[row].from + (across.at + cut[i] * step) * pixel : nullptr;
              };
              if (cut[i] < cut[i + 1])
                in_.kernels.bf16->cut_pairs(from(0), from(1), step * pixel, cut[i + 1] - cut[i], part.rows,
                                            to + cut[i] * kBf16Rows, vector_pitch, part_pitch());
            }
            if (q + 1 == lines)  // what blocks of terms read besides
              clear(to + line() * kBf16Rows, pairs() + down.beside * line() + taps_.beside[2] - lines * line());
            to += plane() * kBf16Rows;
          }
        }
        of_plane += taps_.count(2) * plane() * kBf16Rows;
      }
  }

  // inputs[part][channel][line][position], as pairs, zeros beside the positions.
  void round_inputs(const GradientTiles::Part& part, const GradientTiles::Tile& at, float* lines,
                    std::uint32_t* inputs) const override {
    const Layer& layer = in_.layer;
    const Size& in = in_.call.in;
    const i64 pitch = 2 * pairs() + kBf16Rows;
    for (i64 c = 0; c < part.columns; c += kBf16Rows) {
      const i64 here = std::min<i64>(kBf16Rows, part.columns - c);
      std::fill_n(lines, here * pitch, 0.0f);
      for (i64 n = 0; n < at.images; ++n) {
        const Image<float> image = in_.input(at.image + n, part.group * layer.cols + part.column + c);
        for (i64 r = 0; r < at.down * pieces_; ++r) {
          const i64 index = n * lines_of_image() + r, across = r % pieces_ * span();
          const i64 place = index < half() ? index * line() : pairs() + (index - half()) * line();
          const i64 position = ((at.first[0] * in[1] + at.first[1] + r / pieces_) * in[2]) + at.first[2] + across;
          const i64 length = std::min(span(), at.across - across);
          if (length <= 0) continue;
          const float* const from = image.first + position * image.step();
          if (in_.call.reads_last)
            in_.kernels.transpose(from, image.end, image.step(), length, here, nullptr, lines + place, pitch);
          else
            for (i64 i = 0; i < here; ++i) std::copy_n(from + i * in_.in_plane(), length, lines + place + i * pitch);
        }
      }
      for (i64 i = 0; i < here; ++i)
        in_.kernels.bf16->round_pair(lines + i * pitch, lines + i * pitch + pairs(), pairs(),
                                     inputs + (c + i) * input_pitch(), part.columns * input_pitch());
    }
  }

  // sum[column][tap][row]
  void multiply(const GradientTiles::Part& part, const std::uint32_t* gradient, const std::uint32_t* input,
                bool accumulate, float* sum) const override {
    i64 w_offset[kMostPartsTaps] = {}, x_offset[kMostPartsTaps];
    for (i64 tap = 0; tap < in_.layer.taps(); ++tap) x_offset[tap] = taps_.place_of(tap, plane(), line()) * kBf16Rows;
    Bf16Product p{};
    p.w_row = 2 * input_pitch();
    p.w_offset = w_offset;
    p.x = gradient;
    p.x_offset = x_offset;
    p.x_part = part_pitch();
    p.x_vector = kBf16Parts * part_pitch();
    p.x_block = kBf16Rows * kBf16Rows;
    p.blocks = pairs() / kBf16Rows;
    p.vectors = ceil_div(part.rows, kBf16Rows);
    p.accumulate = accumulate;
    multiply_taps(p, input, part.columns, width(part.rows), sum);
  }

  // sum[column][tap][row] -> grad_w[column][row][tap]
  void put(const GradientTiles::Part& part, const float* sum, float* grad_w) const override {
    const Layer& layer = in_.layer;
    const i64 taps = layer.taps(), across = width(part.rows);
    const RowPart whole{0, 0, part.rows * taps, 0};
    for (i64 c = 0; c < part.columns; ++c, sum += taps * across) {
      float* const to = grad_w + ((part.group * layer.cols + part.column + c) * layer.rows + part.row) * taps;
      in_.kernels.interleave(sum, across, taps, &whole, 1, nullptr, 0, to, false);
    }
  }

  i64 widest_ = 0;    // residue along rows
  i64 pieces_ = 1;    // of a row
  bool far_ = false;  // the output's gradient does not stay in a core's cache
};

}  // namespace

template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_pairs(const GradientInputs<T>& inputs) {
  if constexpr (std::is_same_v<T, float>) {
    if (!has_gradient_in_parts(inputs, kFewChannels) || inputs.layer.stride[2] > kMostStride) return nullptr;
    return usable_in_parts<Pairs>(inputs);
  }
  return nullptr;
}

template std::unique_ptr<WeightGradient<float>> gradient_pairs<float>(const GradientInputs<float>&);
template std::unique_ptr<WeightGradient<double>> gradient_pairs<double>(const GradientInputs<double>&);

}  // namespace upscore
