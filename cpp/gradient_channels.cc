#include "gradient_channels.h"

#include <algorithm>

#include "gradient_tiles.h"
#include "plan.h"
#include "scratch.h"

namespace upscore {
namespace {

constexpr i64 kGradientBytes = 512 << 10;  // of the output's gradient, channels last, around one tile
constexpr i64 kColumns = 256;              // input channels of a task
constexpr double kPartial = 1.08;          // times as much, joined, where channels do not fill vectors

template <typename T>
class Multiplied final : public WeightGradient<T> {
 public:
  // Vectors are channels of one tap; or, `joined`, of all taps of a row, which lie behind each other if no room is left
  // between pixels.
  Multiplied(const GradientInputs<T>& inputs, bool joined) : in_(inputs), tiles_(in_.layer, in_.call) {
    const Layer& layer = in_.layer;
    const Call& call = in_.call;
    const i64 lanes = in_.kernels.lanes, bytes = sizeof(T);
    const i64 widest = in_.kernels.registers / in_.kernels.tile_rows;
    const i64 vectors = ceil_div(layer.rows, lanes);
    vectors_ = ceil_div(vectors, ceil_div(vectors, widest));
    taps_ = layer.taps();
    if (joined) {
      // A vector is turned, and what is too much of it is written over by the next pixel.
      if (layer.kernel[2] == 1 || layer.dilation[2] > 1 || vectors > 1) return;
      joined_ = layer.kernel[2];
    }
    const i64 high_extent = tiles_.extent(1), wide_extent = tiles_.extent(2);
    // The tile: positions of one row, then rows, then images, while the gradient around them fits and the terms
    // summed in registers are few enough to be exact.
    for (;; --vectors_) {
      if (vectors_ == 0) return;
      tiles_.row_chunk = joined ? layer.rows : vectors_ * lanes;
      const i64 room = kGradientBytes / (tiles_.row_chunk * bytes * layer.kernel[0]);
      if (wide_extent > room || high_extent > room / wide_extent) continue;
      tiles_.across =
          std::min({call.in[2], Limits::terms / 2, (room / high_extent - wide_extent) / layer.stride[2] + 1});
      tiles_.across = ceil_div(call.in[2], ceil_div(call.in[2], tiles_.across));
      const i64 high = room / tiles_.wide();
      tiles_.down = std::min({call.in[1], std::max<i64>(1, Limits::terms / tiles_.across),
                              (high - high_extent) / layer.stride[1] + 1, kLines});
      tiles_.down = ceil_div(call.in[1], ceil_div(call.in[1], tiles_.down));
      tiles_.images = std::clamp<i64>(std::min({room / (tiles_.wide() * tiles_.tall()),
                                                Limits::terms / (tiles_.across * tiles_.down), kLines / tiles_.down}),
                                      1, std::max<i64>(call.batch, 1));
      break;
    }
    const i64 step = in_.kernels.tile_rows;
    const i64 run = round_up(joined_ * tiles_.row_chunk, lanes);  // numbers
    const i64 columns = Limits::sum_bytes / (taps_ / joined_ * run * bytes) / step * step;
    if (columns < step) return;
    tiles_.column_chunk = std::min({kColumns, columns, ceil_div(layer.cols, step) * step});
    tiles_.share(bytes);
    this->tasks = tiles_.parts();
    this->tiles = tiles_.tiles();
    const double columns_read = static_cast<double>(ceil_div(layer.cols, step) * step);
    const double outputs = static_cast<double>(layer.stride[0]) * static_cast<double>(layer.stride[1]) *
                           static_cast<double>(layer.stride[2]);
    const double product = run == lanes ? 0.56 : 0.5;            // a single vector waits for its loads
    const double input = joined && call.reads_last ? 1.5 : 0.5;  // to copy one
    const double sum = (joined ? 3 : 1) * kTurnedSum;            // a column's taps are put together first
    this->cost = columns_read * static_cast<double>(taps_ / joined_ * tiles_.row_chunks() * run / lanes) * product +
                 static_cast<double>(tiles_.column_chunks() * tiles_.row_chunks() * vectors_ * lanes) * outputs / 3 +
                 static_cast<double>(tiles_.row_chunks() * layer.cols) * input + sum * in_.numbers_per_position();
    if (joined && layer.rows % lanes != 0) this->cost *= kPartial;
    usable_ = true;
    if (joined || !call.reads_last || !call.writes_last || layer.rows % lanes != 0 || layer.cols < kFewest) return;
    products_ = piece(tiles_.column_chunk, fitting_channels(vectors_, in_.kernels.registers));
    const i64 calls = taps_ * tiles_.row_chunks() * ceil_div(layer.cols, products_);
    const double terms = static_cast<double>(tiles_.across * tiles_.down * tiles_.images);
    const double cost = static_cast<double>(calls) * product_cycles(vectors_, products_, terms) +
                        kTurnedSum * in_.numbers_per_position();
    in_place_ = cost < this->cost;
    if (in_place_) this->cost = cost;
  }

  bool usable() const { return usable_; }

  void compute(i64 task, i64 first_tile, i64 last_tile, T* grad_w) const override {
    const Layer& layer = in_.layer;
    const Part part = tiles_.part(task);
    const i64 width = width_of(part), run = run_of(part), lanes = in_.kernels.lanes;
    const i64 gradients =
        in_place_ ? 0 : tiles_.images * layer.kernel[0] * tiles_.tall() * tiles_.wide() * width + lanes;
    const i64 sums = taps_ / joined_ * part.columns * run;
    const i64 copied = std::max(tiles_.images * tiles_.down * tiles_.across * part.columns,
                                joined_ > 1 ? taps_ * part.rows : 0);  // inputs; a column's weights in the end
    T* gradient = scratch<T>(static_cast<std::size_t>(gradients + sums + copied + in_.kernels.tile_rows * lanes));
    T* sum = gradient + gradients;
    T* inputs = sum + sums;
    std::fill_n(sum, sums, T(0));
    for (i64 tile = first_tile; tile < last_tile; ++tile) {
      const Tile at = tiles_.tile(tile);
      if (in_place_) {
        multiply_as_they_lie(part, at, sum);
        continue;
      }
      turn_gradient(part, at, gradient);
      turn_inputs<false>(in_, part, at, i64{in_.kernels.tile_rows}, inputs,
                         [&](const T* source, const T* end, i64 columns, i64 length, T* to) {
                           if (in_.call.reads_last)
                             return copy_pixels(source, layer.groups * layer.cols, columns, length, columns, to);
                           const bool excess =
                               end - source >= (columns - 1) * in_.in_plane() + length + in_.kernels.lanes;
                           const RowPart row{0, 0, columns * length, 0};
                           in_.kernels.interleave(source, in_.in_plane(), columns, &row, 1, nullptr, 0, to, excess);
                         });
      multiply(part, at, inputs, gradient, sum);
    }
    // sum[tap][column][row], or [row of taps][column][tap][row] -> grad_w[column][row][tap]
    for (i64 c = 0; c < part.columns; ++c) {
      T* out = grad_w + (((part.group * layer.cols + part.column + c) * layer.rows) + part.row) * taps_;
      const T *from = sum + c * run, *end = sum + sums;
      i64 pitch = part.columns * run;
      if (joined_ > 1) {
        for (i64 tap = 0; tap < taps_; tap += joined_)
          std::copy_n(from + tap / joined_ * pitch, joined_ * part.rows, inputs + tap * part.rows);
        from = inputs, end = inputs + taps_ * part.rows, pitch = part.rows;
      }
      // The last taps that do not fill a vector are turned together with some before them. Where there are fewer, a
      // vector is written nevertheless, and the next row writes over what is too much: the last ones are turned by
      // hand.
      auto turn = [&](i64 tap, i64 count, i64 rows) {
        if (rows > 0) in_.kernels.transpose(from + tap * pitch, end, pitch, count, rows, nullptr, out + tap, taps_);
      };
      const i64 rows = taps_ < lanes ? std::max<i64>(part.rows - ceil_div(lanes, taps_), 0) : part.rows;
      turn(0, taps_ < lanes ? taps_ : taps_ / lanes * lanes, rows);
      if (taps_ > lanes && taps_ % lanes > 0) turn(taps_ - lanes, lanes, rows);
      for (i64 r = rows; r < part.rows; ++r)
        for (i64 t = 0; t < taps_; ++t) out[r * taps_ + t] = from[t * pitch + r];
    }
  }

 private:
  using Part = GradientTiles::Part;
  using Tile = GradientTiles::Tile;

  // From one pixel of the turned gradient to the next, and what is multiplied together, in whole vectors.
  i64 width_of(const Part& part) const { return joined_ > 1 ? part.rows : round_up(part.rows, in_.kernels.lanes); }
  i64 run_of(const Part& part) const { return round_up(joined_ * part.rows, in_.kernels.lanes); }

  // gradient[image][tap of the first axis][row][column][channel]: all that the tile's taps can reach, zeros
  // outside of the output.
  void turn_gradient(const Part& part, const Tile& at, T* gradient) const {
    const Layer& layer = in_.layer;
    const Size& out = in_.call.out;
    const i64 x0 = at.first[2] * layer.stride[2] - in_.call.lo[2], y0 = at.first[1] * layer.stride[1] - in_.call.lo[1];
    const i64 width = width_of(part), line = tiles_.wide() * width;
    const i64 skip = std::clamp<i64>(-x0, 0, tiles_.wide()), stop = std::clamp<i64>(out[2] - x0, skip, tiles_.wide());
    for (i64 n = 0; n < at.images; ++n)
      for (i64 tz = 0; tz < layer.kernel[0]; ++tz) {
        const i64 z = at.first[0] * layer.stride[0] + tz * layer.dilation[0] - in_.call.lo[0];
        for (i64 y = y0; y < y0 + tiles_.tall(); ++y, gradient += line) {
          if (z < 0 || z >= out[0] || y < 0 || y >= out[1]) {
            std::fill_n(gradient, line, T(0));
            continue;
          }
          const Image<T> image = in_.gradient(at.image + n, part.group * layer.rows + part.row);
          const T* const from = image.first + ((z * out[1] + y) * out[2] + x0 + skip) * image.step();
          T* const to = gradient + skip * width;
          std::fill_n(gradient, skip * width, T(0));
          std::fill_n(gradient + stop * width, (tiles_.wide() - stop) * width, T(0));
          if (image.pixel == 0)
            in_.kernels.transpose(from, image.end, in_.out_plane(), part.rows, stop - skip, nullptr, to, width);
          else
            copy_pixels(from, image.pixel, part.rows, stop - skip, width, to);
        }
      }
  }

  void multiply(const Part& part, const Tile& at, const T* inputs, const T* gradient, T* sum) const {
    const Layer& layer = in_.layer;
    const i64 width = width_of(part), run = run_of(part), line = tiles_.wide() * width, slab = tiles_.tall() * line;
    i64 offset[kLines];
    for (i64 n = 0; n < at.images; ++n)
      for (i64 r = 0; r < at.down; ++r)
        offset[n * at.down + r] = n * layer.kernel[0] * slab + r * layer.stride[1] * line;
    const i64 lines = at.images * at.down, lanes = in_.kernels.lanes;
    for (i64 c = 0; c < part.columns; c += in_.kernels.tile_rows) {
      const int height = static_cast<int>(std::min<i64>(in_.kernels.tile_rows, part.columns - c));
      Product<T> p;
      p.w = inputs + c * lines * at.across;
      p.w_tap_stride = at.across * height;
      p.w_step = height;
      p.x_offset = offset;
      p.x_stride = layer.stride[2] * width;
      p.x_vector = lanes;
      p.taps = lines;
      p.columns = at.across;
      p.c_stride = run;
      p.accumulate = true;
      T* to = sum + c * run;
      for (i64 tz = 0; tz < layer.kernel[0]; ++tz)
        for (i64 ty = 0; ty < layer.kernel[1]; ++ty)
          for (i64 tx = 0; tx < layer.kernel[2]; tx += joined_, to += part.columns * run) {
            p.x = gradient + tz * slab + ty * layer.dilation[1] * line + tx * layer.dilation[2] * width;
            p.c = to;
            multiply_vectors(in_.kernels, p, height, run / lanes);
          }
    }
  }

  // With lanes along the channels of the output's gradient, channels of inputs broadcast.
  void multiply_as_they_lie(const Part& part, const Tile& at, T* sum) const {
    const Size& in = in_.call.in;
    const i64 width = width_of(part);
    const Image<T> input = in_.input(at.image, part.group * in_.layer.cols + part.column);
    const Image<T> gradient = in_.gradient(at.image, part.group * in_.layer.rows + part.row);
    const T* const first = input.first + ((at.first[0] * in[1] + at.first[1]) * in[2] + at.first[2]) * input.pixel;
    i64 line[kLines];
    tiles_.find_rows(at, input.pixel, line);
    multiply_in_place<T>(in_.kernels, tiles_, at, {first, input.pixel, part.columns, products_},
                         {gradient.first, gradient.pixel, width, vectors_, in_.kernels.lanes}, false, line,
                         part.columns * width, width, sum);
  }

  const GradientInputs<T> in_;
  GradientTiles tiles_;
  bool in_place_ = false;  // both operands are read as they lie
  i64 vectors_ = 1, taps_ = 1, products_ = 1;
  i64 joined_ = 1;  // taps whose channels are multiplied together
  bool usable_ = false;
};

}  // namespace

template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_channels(const GradientInputs<T>& inputs) {
  if (inputs.call.batch == 0) return nullptr;
  std::unique_ptr<Multiplied<T>> best;
  for (const bool joined : {false, true}) {
    auto products = std::make_unique<Multiplied<T>>(inputs, joined);
    if (products->usable() && (!best || products->cost < best->cost)) best = std::move(products);
  }
  return best;
}

template std::unique_ptr<WeightGradient<float>> gradient_channels<float>(const GradientInputs<float>&);
template std::unique_ptr<WeightGradient<double>> gradient_channels<double>(const GradientInputs<double>&);

}  // namespace upscore
