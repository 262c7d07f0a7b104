#include "gradient_taps.h"

#include <algorithm>
#include <vector>

#include "execute.h"
#include "plan.h"
#include "scratch.h"

namespace upscore {
namespace {

constexpr i64 kPositions = 256;                // of a tile
constexpr i64 kUnfoldedBytes = 448 << 10;      // of the output's gradient, unfolded
constexpr i64 kColumns = 256;                  // input channels of a task
constexpr i64 kBlocks = 8, kBlockVectors = 6;  // of taps: so many for threads to share, if they have so many vectors
constexpr double kPutSum = 0.25;               // cycles to put a number of the gradient where it belongs
constexpr i64 kLine = 128 << 10;               // numbers of a row of the gradient that are copied for their borders

template <typename T>
class Unfolded final : public WeightGradient<T> {
 public:
  explicit Unfolded(const GradientInputs<T>& inputs) : in_(inputs) {
    const Layer& layer = in_.layer;
    const Call& call = in_.call;
    lanes_ = in_.kernels.lanes;
    all_ = layer.rows * layer.taps();
    positions_ = call.batch * in_.in_plane();
    tile_ = std::clamp<i64>(positions_, 1, kPositions);
    const i64 vectors = ceil_div(all_, lanes_), room = kUnfoldedBytes / (tile_ * lanes_ * i64{sizeof(T)}) - 1;
    const i64 blocks = std::max(ceil_div(vectors, room), std::min(kBlocks, vectors / kBlockVectors));
    width_ = ceil_div(vectors, std::max<i64>(blocks, 1)) * lanes_;
    column_chunk_ = std::min(kColumns, layer.cols);
    blocks_ = ceil_div(all_, width_);
    column_chunks_ = ceil_div(layer.cols, column_chunk_);
    this->tasks = layer.groups * blocks_ * column_chunks_;
    this->tiles = ceil_div(positions_, tile_);
    const double columns = static_cast<double>(ceil_div(layer.cols, in_.kernels.tile_rows) * in_.kernels.tile_rows);
    const i64 copies = layer.dilation[2] == 1 ? ceil_div(layer.kernel[2], lanes_) : layer.kernel[2];
    this->cost = columns * static_cast<double>(vectors) / 2 +
                 6 * static_cast<double>(column_chunks_ * layer.rows * layer.taps() / layer.kernel[2] * copies) +
                 static_cast<double>(blocks_ * layer.cols) / 2 + kPutSum * in_.numbers_per_position();
  }

  void compute(i64 task, i64 first_tile, i64 last_tile, T* grad_w) const override {
    const Layer& layer = in_.layer;
    Part part;
    part.lane = task % blocks_ * width_;
    task /= blocks_;
    part.column = task % column_chunks_ * column_chunk_;
    part.group = task / column_chunks_;
    part.lanes = std::min(width_, all_ - part.lane);
    part.columns = std::min(column_chunk_, layer.cols - part.column);
    part.width = ceil_div(part.lanes, lanes_) * lanes_;
    part.pitch = part.width + lanes_;
    const std::vector<Piece> pieces = pieces_of(part);

    T* const out = grad_w + (part.group * layer.cols + part.column) * all_ + part.lane;
    const bool put = last_tile - first_tile == 1 && part.lanes == part.width;  // sums where they belong
    const i64 unfolded = tile_ * part.pitch, sums = put ? 0 : part.columns * part.width;
    const i64 pitch = put ? all_ : part.width;
    const i64 inputs = tile_ * part.columns + in_.kernels.tile_rows * lanes_;
    const i64 reach = reach_of(std::min(tile_, in_.call.in[2]), layer.kernel[2]);
    T* gradient = scratch<T>(static_cast<std::size_t>(unfolded + sums + inputs + std::min(reach, kLine) + lanes_));
    T* sum = put ? out : gradient + unfolded;
    T* turned = gradient + unfolded + sums;
    T* line = turned + inputs;
    if (part.lanes < part.width)  // lanes behind the last are multiplied too
      for (i64 p = 0; p < tile_; ++p)
        std::fill_n(gradient + p * part.pitch + part.lanes, part.width - part.lanes, T(0));
    if (first_tile == last_tile) std::fill_n(sum, sums, T(0));
    for (i64 tile = first_tile; tile < last_tile; ++tile) {
      const i64 first = tile * tile_, last = std::min(first + tile_, positions_);
      unfold_gradient(part, pieces, first, last, line, gradient);
      turn_inputs(part, first, last, turned);
      multiply(part, last - first, turned, gradient, tile > first_tile, sum, pitch);
    }
    if (put) return;
    for (i64 c = 0; c < part.columns; ++c) std::copy_n(sum + c * pitch, part.lanes, out + c * all_);
  }

 private:
  struct Part {
    i64 group, lane, lanes, column, columns, width, pitch;
  };
  // Taps of one row of one channel's kernel.
  struct Piece {
    i64 row;
    Size tap;
    i64 length, place;
  };

  // How much of a row of the gradient these many positions' taps span.
  i64 reach_of(i64 count, i64 length) const {
    return (count - 1) * in_.layer.stride[2] + (length - 1) * in_.layer.dilation[2] + 1;
  }

  std::vector<Piece> pieces_of(const Part& part) const {
    const Size& kernel = in_.layer.kernel;
    std::vector<Piece> pieces;
    for (i64 lane = part.lane; lane < part.lane + part.lanes;) {
      const i64 x = lane % kernel[2], line = lane / kernel[2];
      const i64 length = std::min(kernel[2] - x, part.lane + part.lanes - lane);
      pieces.push_back({line / (kernel[0] * kernel[1]),
                        {line / kernel[1] % kernel[0], line % kernel[1], x},
                        length,
                        lane - part.lane});
      lane += length;
    }
    return pieces;
  }

  // gradient[position][tap]: what each position's taps read, zeros outside of the output.
  void unfold_gradient(const Part& part, const std::vector<Piece>& pieces, i64 first, i64 last, T* line,
                       T* gradient) const {
    const Layer& layer = in_.layer;
    const Size &in = in_.call.in, &out = in_.call.out;
    const T* const end = in_.grad_y + in_.call.batch * layer.groups * layer.rows * in_.out_plane();
    for (i64 p = first; p < last;) {
      const i64 x = p % in[2], y = p / in[2] % in[1], z = p / (in[2] * in[1]) % in[0], n = p / in_.in_plane();
      const i64 count = std::min(in[2] - x, last - p);
      for (const Piece& piece : pieces) {
        const i64 oz = z * layer.stride[0] + piece.tap[0] * layer.dilation[0] - in_.call.lo[0];
        const i64 oy = y * layer.stride[1] + piece.tap[1] * layer.dilation[1] - in_.call.lo[1];
        const i64 ox = x * layer.stride[2] + piece.tap[2] * layer.dilation[2] - in_.call.lo[2];
        const i64 reach = reach_of(count, piece.length);
        const bool inside = oz >= 0 && oz < out[0] && oy >= 0 && oy < out[1];
        const T* row = in_.grad_y + ((n * layer.groups + part.group) * layer.rows + piece.row) * in_.out_plane() +
                       (oz * out[1] + oy) * out[2];
        T* unfolded = gradient + (p - first) * part.pitch + piece.place;
        if (reach > kLine) {  // steps far apart, most of them outside: one by one
          for (i64 c = 0; c < count; ++c)
            for (i64 t = 0; t < piece.length; ++t) {
              const i64 at = ox + c * layer.stride[2] + t * layer.dilation[2];
              unfolded[c * part.pitch + t] = inside && at >= 0 && at < out[2] ? row[at] : T(0);
            }
          continue;
        }
        const T* source = line;
        if (inside && ox >= 0 && ox + reach <= out[2] && end - row >= ox + reach + lanes_) {
          source = row + ox;
        } else {
          const i64 skip = inside ? std::clamp<i64>(-ox, 0, reach) : reach;
          const i64 stop = std::clamp<i64>(out[2] - ox, skip, reach);
          std::fill_n(line, skip, T(0));
          if (stop > skip) std::copy(row + ox + skip, row + ox + stop, line + skip);
          std::fill_n(line + stop, reach - stop, T(0));
        }
        in_.kernels.unfold(source, layer.stride[2], layer.dilation[2], count, piece.length, unfolded, part.pitch);
      }
      p += count;
    }
  }

  // inputs[block of columns][position][column]
  void turn_inputs(const Part& part, i64 first, i64 last, T* inputs) const {
    const i64 plane = in_.in_plane();
    const T* const end = in_.x + in_.call.batch * in_.layer.groups * in_.layer.cols * plane;
    for (i64 c = 0; c < part.columns; c += in_.kernels.tile_rows) {
      const i64 height = std::min<i64>(in_.kernels.tile_rows, part.columns - c);
      for (i64 p = first; p < last;) {
        const i64 count = std::min(plane - p % plane, last - p);
        const i64 channel = (p / plane * in_.layer.groups + part.group) * in_.layer.cols + part.column + c;
        const T* source = in_.x + channel * plane + p % plane;
        const bool excess = end - source >= (height - 1) * plane + count + lanes_;
        const RowPart row{0, 0, height * count, 0};
        in_.kernels.interleave(source, plane, height, &row, 1, nullptr, 0, inputs, excess);
        inputs += height * count;
        p += count;
      }
    }
  }

  void multiply(const Part& part, i64 positions, const T* inputs, const T* gradient, bool accumulate, T* sum,
                i64 pitch) const {
    const Target target = target_of(in_.kernels);
    const i64 vectors = part.width / lanes_, here = 0;
    const i64 widest = target.vectors(static_cast<int>(std::min<i64>(target.tile_rows, part.columns)));
    Product<T> p;
    p.w_tap_stride = 0;
    p.x_offset = &here;
    p.x_stride = part.pitch;
    p.x_vector = lanes_;
    p.taps = 1;
    p.columns = positions;
    p.c_stride = pitch;
    p.accumulate = accumulate;
    for (i64 v = 0; v < vectors; v += widest)
      for (i64 c = 0; c < part.columns; c += target.tile_rows) {
        const i64 height = std::min<i64>(target.tile_rows, part.columns - c);
        p.w = inputs + c * positions;
        p.w_step = height;
        p.x = gradient + v * lanes_;
        p.c = sum + c * pitch + v * lanes_;
        in_.kernels.product[height][std::min(widest, vectors - v)](p);
      }
  }

  const GradientInputs<T> in_;
  i64 lanes_ = 1, all_ = 1, positions_ = 0, tile_ = 1, width_ = 1, column_chunk_ = 1, blocks_ = 1, column_chunks_ = 1;
};

}  // namespace

template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_taps(const GradientInputs<T>& inputs) {
  return std::make_unique<Unfolded<T>>(inputs);
}

template std::unique_ptr<WeightGradient<float>> gradient_taps<float>(const GradientInputs<float>&);
template std::unique_ptr<WeightGradient<double>> gradient_taps<double>(const GradientInputs<double>&);

}  // namespace upscore
