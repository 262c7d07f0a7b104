#include "gradient_inputs.h"

#include <algorithm>
#include <vector>

#include "gradient_tiles.h"
#include "plan.h"
#include "scratch.h"
#include "turn.h"

namespace upscore {
namespace {

constexpr i64 kGradientBytes = 448 << 10;  // of the output's gradient around one tile
constexpr i64 kPositions = 256;            // of a tile
constexpr i64 kColumns = 192;              // input channels of a task
constexpr double kPartial = 1.25;  // times as much, where channels do not fill vectors: or it is chosen too often
constexpr i64 kAhead = 8 << 10;    // bytes that are fetched ahead, where inputs are read as they lie

template <typename T>
class Broadcast final : public WeightGradient<T> {
 public:
  explicit Broadcast(const GradientInputs<T>& inputs) : in_(inputs), tiles_(in_.layer, in_.call) {
    const Layer& layer = in_.layer;
    const Call& call = in_.call;
    const i64 lanes = in_.kernels.lanes, bytes = sizeof(T);
    taps_ = layer.taps();
    tiles_.column_chunk = round_up(piece(layer.cols, std::max(kColumns / lanes * lanes, lanes)), lanes);
    if (taps_ > Limits::sum_bytes / (tiles_.column_chunk * bytes)) return;
    tiles_.row_chunk = std::min(layer.rows, Limits::sum_bytes / (taps_ * tiles_.column_chunk * bytes));

    // The tile: positions of one row, then rows, then images, while the gradient around them fits.
    for (std::size_t a = 0; a < kAxes; ++a)
      if (layer.dilation[a] > kGradientBytes / layer.kernel[a]) return;
    const i64 high_extent = tiles_.extent(1), wide_extent = tiles_.extent(2);
    const i64 all = kGradientBytes / (bytes * layer.kernel[0]);
    for (;; tiles_.row_chunk = ceil_div(tiles_.row_chunk, 2)) {
      const i64 room = all / tiles_.row_chunk;
      if (high_extent > room || wide_extent > room / high_extent) {
        if (tiles_.row_chunk == 1) return;
        continue;
      }
      tiles_.across = piece(
          call.in[2], std::min({call.in[2], kPositions, (room / high_extent - wide_extent) / layer.stride[2] + 1}));
      const i64 high = room / tiles_.wide();
      tiles_.down = piece(call.in[1], std::min({call.in[1], std::max<i64>(1, kPositions / tiles_.across),
                                                (high - high_extent) / layer.stride[1] + 1, kLines}));
      tiles_.images = std::clamp<i64>(std::min({room / (tiles_.wide() * tiles_.tall()),
                                                kPositions / (tiles_.across * tiles_.down), kLines / tiles_.down}),
                                      1, call.batch);
      // Fewer channels at once rather than a few positions.
      if (tiles_.row_chunk == 1 || tiles_.across * tiles_.down * tiles_.images >=
                                       std::min<i64>(kPositions / 4, call.batch * call.in[1] * call.in[2]))
        break;
    }
    tiles_.row_chunk = piece(layer.rows, tiles_.row_chunk);
    tiles_.share(bytes);
    this->tasks = tiles_.parts();
    this->tiles = tiles_.tiles();

    const Size& kernel = layer.kernel;
    for (i64 tap = 0; tap < taps_; ++tap)
      tap_offset_.push_back(
          (tap / (kernel[1] * kernel[2]) * tiles_.tall() + tap / kernel[2] % kernel[1] * layer.dilation[1]) *
              tiles_.wide() +
          tap % kernel[2] * layer.dilation[2]);
    vectors_ = round_up(piece(tiles_.column_chunk, kMaxRowVectors * lanes), lanes) / lanes;
    products_ = fitting_channels(vectors_, in_.kernels.registers);
    const double terms = static_cast<double>(tiles_.across * tiles_.down * tiles_.images);
    auto products = [&](i64 numbers, i64 most) {
      const i64 calls = ceil_div(numbers, most) * tiles_.row_chunks() * ceil_div(layer.cols, vectors_ * lanes);
      return static_cast<double>(calls) * product_cycles(vectors_, most, terms);
    };
    const double other =
        static_cast<double>(tiles_.row_chunks() * layer.cols) / 2 + kTurnedSum * in_.numbers_per_position();
    const double gradient = static_cast<double>(tiles_.row_chunk * tiles_.row_chunks() * tiles_.column_chunks() *
                                                tiles_.images * layer.kernel[0]) *
                            static_cast<double>(tiles_.tall() * tiles_.wide()) / terms;
    this->cost = (layer.cols % lanes == 0 ? 1.05 : kPartial) *
                 (products(tiles_.row_chunk * taps_, products_) + gradient / 6 + other);
    if (call.reads_last && call.writes_last && tiles_.row_chunk >= kFewest) {
      const i64 most = piece(tiles_.row_chunk, products_);
      const double filled = static_cast<double>(ceil_div(layer.cols, lanes)) /
                            static_cast<double>(round_up(ceil_div(layer.cols, lanes), vectors_));
      const double cost = static_cast<double>(taps_) * products(tiles_.row_chunk, most) * filled + other;
      if (cost < this->cost) {
        in_place_ = true;
        products_ = most;
        this->cost = cost;
      }
    }
    usable_ = true;
  }

  bool usable() const { return usable_; }

  void compute(i64 task, i64 first_tile, i64 last_tile, T* grad_w) const override {
    const Layer& layer = in_.layer;
    const Part part = tiles_.part(task);
    const i64 lanes = in_.kernels.lanes, width = width_of(part);
    const i64 gradients = in_place_ ? 0 : part.rows * tiles_.images * layer.kernel[0] * tiles_.tall() * tiles_.wide();
    const i64 sums = part.rows * taps_ * width;
    T* sum = scratch<T>(static_cast<std::size_t>(
        sums + gradients + tiles_.images * tiles_.down * tiles_.across * width + in_.kernels.tile_rows * lanes));
    T* gradient = sum + sums;
    T* inputs = gradient + gradients;
    std::fill_n(sum, sums, T(0));
    for (i64 tile = first_tile; tile < last_tile; ++tile) {
      const Tile at = tiles_.tile(tile);
      const Vectors vectors = find_inputs(part, at, inputs);
      if (in_place_) {
        const Image<T> image = in_.gradient(at.image, part.group * layer.rows + part.row);
        multiply_in_place<T>(
            in_.kernels, tiles_, at, {vectors.first, vectors.position, width, vectors_, vectors.vector},
            {image.first, image.pixel, part.rows, products_}, true, vectors.line, width, taps_ * width, sum);
        continue;
      }
      copy_gradient(part, at, gradient);
      multiply(part, at, vectors, gradient, sum);
    }
    // sum[row][tap][column] -> grad_w[column][row][tap]
    const i64 all = layer.rows * taps_, here = part.rows * taps_, whole = here / lanes * lanes;
    T* out = grad_w + (part.group * layer.cols + part.column) * all + part.row * taps_;
    if (whole > 0) in_.kernels.transpose(sum, sum + sums, width, whole, part.columns, nullptr, out, all);
    for (i64 c = 0; c < part.columns; ++c)
      for (i64 i = whole; i < here; ++i) out[c * all + i] = sum[i * width + c];
  }

 private:
  using Part = GradientTiles::Part;
  using Tile = GradientTiles::Tile;

  i64 width_of(const Part& part) const { return round_up(part.columns, in_.kernels.lanes); }

  // Inputs of a tile, vector by vector of channels: turned, or channels last, where they lie.
  struct Vectors {
    const T* first;
    i64 position, vector;  // from one to the next
    i64 line[kLines];      // where the rows of positions are
  };

  Vectors find_inputs(const Part& part, const Tile& at, T* turned) const {
    const Size& size = in_.call.in;
    const Image<T> image = in_.input(at.image, part.group * in_.layer.cols + part.column);
    const i64 lanes = in_.kernels.lanes, all = at.images * at.down * at.across;
    const i64 position = (at.first[0] * size[1] + at.first[1]) * size[2] + at.first[2];
    const i64 last = (at.images - 1) * in_.in_plane() + position + (at.down - 1) * size[2] + at.across - 1;
    // Whole vectors are read of every position, but none that ends behind the last channel of the last one.
    if (in_.call.reads_last && last * image.pixel + width_of(part) <= image.end - image.first) {
      Vectors here{image.first + position * image.pixel, image.pixel, lanes, {}};
      tiles_.find_rows(at, image.pixel, here.line);
      return here;
    }
    turn_inputs<true>(in_, part, at, lanes, turned, [&](const T* source, const T* end, i64 columns, i64 length, T* to) {
      if (image.pixel == 0)
        return in_.kernels.transpose(source, end, in_.in_plane(), columns, length, nullptr, to, lanes);
      copy_pixels(source, image.pixel, columns, length, lanes, to);
    });
    Vectors here{turned, lanes, all * lanes, {}};
    for (i64 line = 0; line < at.images * at.down; ++line) here.line[line] = line * at.across * lanes;
    return here;
  }

  // gradient[channel][image][tap of the first axis][row][column]: all that the tile's taps can reach, zeros outside of
  // the output.
  void copy_gradient(const Part& part, const Tile& at, T* gradient) const {
    const Layer& layer = in_.layer;
    const Size& out = in_.call.out;
    const i64 x0 = at.first[2] * layer.stride[2] - in_.call.lo[2], y0 = at.first[1] * layer.stride[1] - in_.call.lo[1];
    const i64 width = tiles_.wide(), skip = std::clamp<i64>(-x0, 0, width),
              stop = std::clamp<i64>(out[2] - x0, skip, width);
    const i64 channel = part.group * layer.rows + part.row, slabs = tiles_.images * layer.kernel[0] * tiles_.tall();
    i64 line = 0;  // of all of a channel
    for (i64 n = 0; n < at.images; ++n) {
      const Image<T> image = in_.gradient(at.image + n, channel);
      for (i64 tz = 0; tz < layer.kernel[0]; ++tz) {
        const i64 z = at.first[0] * layer.stride[0] + tz * layer.dilation[0] - in_.call.lo[0];
        for (i64 y = 0; y < tiles_.tall(); ++y, ++line) {
          if (y % layer.stride[1] >= tiles_.extent(1)) continue;  // no tap reads it
          T* const to = gradient + line * width;
          const bool exists = z >= 0 && z < out[0] && y0 + y >= 0 && y0 + y < out[1] && skip < stop;
          const T* const from = image.first + (exists ? (z * out[1] + y0 + y) * out[2] + x0 + skip : 0) * image.step();
          for (i64 row = 0; row < part.rows; ++row) {
            T* const here = to + row * slabs * width;
            std::fill_n(here, exists ? skip : width, T(0));
            if (!exists) continue;
            if (image.pixel == 0) std::copy_n(from + row * in_.out_plane(), stop - skip, here + skip);
            std::fill_n(here + stop, width - stop, T(0));
          }
          if (exists && image.pixel > 0)
            turn_outputs(in_.kernels, from, image.end, image.pixel, stop - skip, part.rows, to + skip, slabs * width);
        }
      }
    }
  }

  void multiply(const Part& part, const Tile& at, const Vectors& inputs, const T* gradient, T* sum) const {
    const Layer& layer = in_.layer;
    const i64 width = tiles_.wide(), slab = tiles_.tall() * width, lanes = in_.kernels.lanes;
    const i64 lines = at.images * at.down, all = part.rows * taps_, columns = width_of(part);
    i64 x_tap[kLines], c_offset[kMaxPositions];
    const T* x[kMaxPositions];
    for (i64 n = 0; n < at.images; ++n)
      for (i64 r = 0; r < at.down; ++r)
        x_tap[n * at.down + r] = n * layer.kernel[0] * slab + r * layer.stride[1] * width;
    const bool apart = inputs.position != lanes;
    const auto& kernel = apart ? in_.kernels.apart_product : in_.kernels.channel_product;
    ChannelProduct<T> p;
    p.w_tile_stride = inputs.vector;
    p.w_step = inputs.position;
    p.w_offset = inputs.line;
    p.x = x;
    p.x_step = 0;
    p.x_tap = x_tap;
    p.x_stride = layer.stride[2];
    p.taps = lines;
    p.columns = at.across;
    p.c_offset = c_offset;
    p.accumulate = true;
    p.bias = nullptr;
    for (i64 first = 0; first < all; first += products_) {
      const i64 count = std::min(products_, all - first);
      for (i64 q = 0; q < count; ++q) {
        const i64 row = (first + q) / taps_, tap = (first + q) % taps_;
        x[q] = gradient + row * tiles_.images * layer.kernel[0] * slab + tap_offset_[static_cast<std::size_t>(tap)];
        c_offset[q] = (first + q) * columns;
      }
      for (i64 c = 0; c < columns; c += vectors_ * lanes) {
        p.w = inputs.first + c / lanes * inputs.vector;
        if (apart) {
          p.ahead = reinterpret_cast<const char*>(p.w) + kAhead;
          p.ahead_step = inputs.position * i64{sizeof(T)};
        }
        p.c = sum + c;
        kernel[std::min(vectors_, (columns - c) / lanes)][count](p);
      }
    }
  }

  const GradientInputs<T> in_;
  GradientTiles tiles_;
  bool in_place_ = false;  // the gradient is read as it lies
  i64 taps_ = 1, vectors_ = 1, products_ = 1;
  std::vector<i64> tap_offset_;
  bool usable_ = false;
};

}  // namespace

template <typename T>
std::unique_ptr<WeightGradient<T>> gradient_inputs(const GradientInputs<T>& inputs) {
  if (inputs.call.batch == 0 || inputs.in_plane() == 0) return nullptr;
  auto products = std::make_unique<Broadcast<T>>(inputs);
  if (!products->usable()) return nullptr;
  return products;
}

template std::unique_ptr<WeightGradient<float>> gradient_inputs<float>(const GradientInputs<float>&);
template std::unique_ptr<WeightGradient<double>> gradient_inputs<double>(const GradientInputs<double>&);

}  // namespace upscore
