#include "pack.h"

#include <algorithm>

#include "scratch.h"
#include "threads.h"

namespace upscore {

namespace {

constexpr i64 kTurned = 256;           // weights of a row that are turned at once
constexpr i64 kManyWeights = 1 << 22;  // of a group, which come from memory

// From one row, and one column, of plain weights to the next.
struct Strides {
  i64 row, column;
};
Strides strides_of(const Layer& layer) {
  const i64 taps = layer.taps();
  return layer.transposed ? Strides{taps, layer.rows * taps} : Strides{layer.cols * taps, taps};
}

struct Row {
  i64 channel, phase;
};
Row split(const Layer& layer, const Packing& packing, i64 phases, i64 row) {
  if (packing.by_phase) return {row % layer.rows, row / layer.rows};
  return {row / phases, row % phases};
}

template <typename T, int Count>
void copy(const T* from, i64 step, T* to) {
  for (int i = 0; i < Count; ++i) to[i] = from[i * step];
}

// The packed weights of one group and one block of rows, in all classes.
template <typename T>
class PackedRows {
 public:
  PackedRows(const Layer& layer, const Packing& packing, const Kernels<T>& kernels, i64 first, const T* w, const T* end,
             T* packed)
      : layer_(layer),
        packing_(packing),
        kernels_(kernels),
        first_(first),
        phases_(packing.classes[0].phases),
        taps_(layer.taps()),
        stride_(strides_of(layer)),
        height_(std::min<i64>(packing.tile_rows, packing.rows * phases_ - first)),
        exist_(std::min(height_, layer.rows * phases_ - first)),
        w_(w),
        end_(end),
        packed_(packed) {
    for (i64 r = 0; r < exist_; ++r) rows_[r] = split(layer, packing, phases_, first + r);
  }

  void pack() const {
    const bool in_a_line = stride_.column == taps_, many = layer_.rows * layer_.cols * taps_ > kManyWeights;
    if (phases_ == 1 && taps_ <= kTurned && in_a_line != many)  // as measured: memory wants few streams
      turn(in_a_line ? kTurned / taps_ : 1, many && height_ % kernels_.lanes == 0);
    else
      gather();
  }

 private:
  // Where the weights of a class and a block of columns begin, of these rows.
  T* place_of(const PhaseClass& c, i64 block, i64 columns) const {
    return packed_ + block * packing_.per_column + (c.weights + first_ * c.taps) * columns;
  }

  // Rows are channels: the weights of some columns are turned together, which gives [column][tap][row].
  void turn(i64 together, bool past_caches) const {
    const i64 pitch = round_up(height_, kernels_.lanes);
    T* const turned = scratch<T>(static_cast<std::size_t>(together * taps_ * pitch));
    for (i64 block = 0; block < layer_.cols; block += packing_.columns) {
      const i64 columns = std::min(packing_.columns, layer_.cols - block);
      for (i64 column = 0; column < columns; column += together) {
        const i64 count = std::min(together, columns - column);
        const T* from = w_ + first_ * stride_.row + (block + column) * stride_.column;
        kernels_.transpose(from, end_, stride_.row, exist_, count * taps_, nullptr, turned, pitch);
        auto put = [&](const T* row, T* to) {
          past_caches ? kernels_.stream(row, height_, to) : copy_rows(row, 1, to);
        };
        for (const PhaseClass& c : packing_.classes) {
          T* to = place_of(c, block, columns) + column * height_;
          for (i64 place = 0; place < c.taps; ++place, to += columns * height_)
            for (i64 i = 0; i < count; ++i)
              put(turned + (i * taps_ + c.tap[static_cast<std::size_t>(place)]) * pitch, to + i * height_);
        }
      }
    }
  }

  void copy_rows(const T* from, i64 step, T* to) const {
    if (height_ == 16) return copy<T, 16>(from, step, to);
    if (height_ == 8) return copy<T, 8>(from, step, to);
    for (i64 r = 0; r < height_; ++r) to[r] = from[r * step];
  }

  // Rows are channels and phases, which have taps of their own. Columns are the outer loop, because then the weights
  // are read nearly in the order in which they lie.
  void gather() const {
    std::vector<i64> sources;  // of each class, place and row; -1 for zeros
    for (const PhaseClass& c : packing_.classes)
      for (i64 place = 0; place < c.taps; ++place)
        for (i64 r = 0; r < height_; ++r) {
          const i64 phase = phases_ == 1 ? 0 : rows_[r].phase;
          const i64 tap = r < exist_ ? c.tap[static_cast<std::size_t>(phase * c.taps + place)] : -1;
          sources.push_back(tap < 0 ? -1 : rows_[r].channel * stride_.row + tap);
        }
    bool in_a_line = true;  // all rows of a place
    for (std::size_t i = 0; i < sources.size(); ++i) {
      const bool first = i % static_cast<std::size_t>(height_) == 0;
      in_a_line = in_a_line && sources[i] >= 0 && (first || sources[i] == sources[i - 1] + 1);
    }
    for (i64 column = 0; column < layer_.cols; ++column) {
      const i64 block = column / packing_.columns * packing_.columns;
      const i64 columns = std::min(packing_.columns, layer_.cols - block);
      const T* const from = w_ + column * stride_.column;
      const i64* source = sources.data();
      for (const PhaseClass& c : packing_.classes) {
        T* to = place_of(c, block, columns) + (column - block) * height_;
        for (i64 place = 0; place < c.taps; ++place, to += columns * height_, source += height_) {
          if (in_a_line)
            copy_rows(from + *source, 1, to);
          else if (phases_ == 1 && exist_ == height_)
            copy_rows(from + *source, stride_.row, to);
          else
            for (i64 r = 0; r < height_; ++r) to[r] = source[r] < 0 ? T(0) : from[source[r]];
        }
      }
    }
  }

  const Layer& layer_;
  const Packing& packing_;
  const Kernels<T>& kernels_;
  const i64 first_, phases_, taps_;
  const Strides stride_;
  const i64 height_, exist_;  // rows of the tile, and those of the layer among them
  const T *const w_, *const end_;
  T* const packed_;
  Row rows_[kMaxPackedRows];
};

}  // namespace

template <typename T>
void pack_weights(const Layer& layer, const Packing& packing, const Kernels<T>& kernels, int threads, const T* w,
                  T* packed) {
  const i64 phases = packing.classes[0].phases, blocks = ceil_div(packing.rows * phases, packing.tile_rows);
  const i64 group = layer.rows * layer.cols * layer.taps();
  if (layer.groups * group < (1 << 16)) threads = 1;
  parallel_for(layer.groups * blocks, threads, [&](i64 task) {
    const i64 g = task / blocks;
    PackedRows<T>(layer, packing, kernels, task % blocks * packing.tile_rows, w + g * group, w + layer.groups * group,
                  packed + g * packing.per_column * layer.cols)
        .pack();
  });
}

template <typename T>
void unpack_weights(const Layer& layer, const Packing& packing, const T* packed, T* w) {
  const i64 taps = layer.taps(), group = layer.rows * layer.cols * taps;
  const Strides stride = strides_of(layer);
  for (i64 g = 0; g < layer.groups; ++g, w += group)
    for (i64 block = 0; block < layer.cols; block += packing.columns) {
      const i64 columns = std::min(packing.columns, layer.cols - block);
      for (const PhaseClass& c : packing.classes)
        for (i64 first = 0; first < packing.rows * c.phases; first += packing.tile_rows) {
          const i64 height = std::min<i64>(packing.tile_rows, packing.rows * c.phases - first);
          for (i64 place = 0; place < c.taps; ++place)
            for (i64 column = block; column < block + columns; ++column)
              for (i64 r = first; r < first + height; ++r, ++packed) {
                if (r >= layer.rows * c.phases) continue;
                const Row row = split(layer, packing, c.phases, r);
                const i64 tap = c.tap[static_cast<std::size_t>(row.phase * c.taps + place)];
                if (tap >= 0) w[row.channel * stride.row + column * stride.column + tap] = *packed;
              }
        }
    }
}

i64 bf16_weights(const Layer& layer, const Packing& packing) {
  return layer.groups * round_up(layer.cols, kBf16Terms) * packing.per_column * kBf16Parts;
}

namespace {

// For tiles of positions, one vector of rows and 32 columns of them.
class PackedVector {
 public:
  PackedVector(const Layer& layer, const Packing& packing, const Kernels<float>& kernels, const float* w,
               const float* end)
      : layer_(layer),
        packing_(packing),
        kernels_(kernels),
        taps_(layer.taps()),
        stride_(strides_of(layer)),
        w_(w),
        end_(end) {}

  void pack(i64 vector, i64 block, std::uint16_t* packed) const {
    const i64 row = vector * kBf16Rows, column = block * kBf16Terms;
    const i64 rows = std::min<i64>(kBf16Rows, layer_.rows - row), columns = std::min(kBf16Terms, layer_.cols - column);
    for (i64 first = 0; first < taps_; first += kTurned) {
      const i64 count = std::min(kTurned, taps_ - first);
      float* const turned = scratch<float>(static_cast<std::size_t>(kBf16Terms * count * kBf16Rows));
      const float* from = w_ + row * stride_.row + column * stride_.column + first;
      if (stride_.column == count)
        kernels_.transpose(from, end_, stride_.row, rows, columns * count, nullptr, turned, kBf16Rows);
      else
        for (i64 c = 0; c < columns; ++c)
          kernels_.transpose(from + c * stride_.column, end_, stride_.row, rows, count, nullptr,
                             turned + c * count * kBf16Rows, kBf16Rows);
      put(turned, first, count, columns, vector, block, packed);
    }
  }

 private:
  // turned[column][tap][row], of the taps from `first` on, to every phase that has them.
  void put(const float* turned, i64 first, i64 count, i64 columns, i64 vector, i64 block, std::uint16_t* packed) const {
    const i64 padded = round_up(layer_.cols, kBf16Terms), vectors = packing_.rows / kBf16Rows;
    for (const PhaseClass& c : packing_.classes)
      for (i64 phase = 0; phase < c.phases; ++phase)
        for (i64 place = 0; place < c.taps; ++place) {
          const i64 tap = c.tap[static_cast<std::size_t>(phase * c.taps + place)];
          const i64 before = (c.weights + (phase * vectors + vector) * kBf16Rows * c.taps) * padded;
          std::uint16_t* const to = packed + (before + (block * c.taps + place) * kBf16Tile) * kBf16Parts;
          const float* const from = turned + (tap - first) * kBf16Rows;
          auto* const words = reinterpret_cast<std::uint32_t*>(to);
          if (tap >= first && tap < first + count)
            packing_.few ? kernels_.bf16->round_few(from, count * kBf16Rows, columns, words)
                         : kernels_.bf16->round_pairs(from, count * kBf16Rows, columns, kBf16Rows, words, kBf16Rows);
          else if (tap < 0 && first == 0)
            std::fill_n(to, kBf16Tile * kBf16Parts, std::uint16_t{0});
        }
  }

  const Layer& layer_;
  const Packing& packing_;
  const Kernels<float>& kernels_;
  const i64 taps_;
  const Strides stride_;
  const float *const w_, *const end_;
};

void pack_positions(const Layer& layer, const Packing& packing, const Kernels<float>& kernels, int threads,
                    const float* w, std::uint16_t* packed) {
  const i64 vectors = packing.rows / kBf16Rows, blocks = ceil_div(layer.cols, kBf16Terms);
  const i64 group = layer.rows * layer.cols * layer.taps(), size = bf16_weights(layer, packing) / layer.groups;
  if (layer.groups * group < (1 << 16)) threads = 1;
  parallel_for(layer.groups * vectors * blocks, threads, [&](i64 task) {
    const i64 g = task / (vectors * blocks);
    PackedVector(layer, packing, kernels, w + g * group, w + layer.groups * group)
        .pack(task / blocks % vectors, task % blocks, packed + g * size);
  });
}

}  // namespace

template <typename T>
void pack_bf16(const Layer& layer, const Packing& packing, const Kernels<T>& kernels, int threads, const T* w,
               std::uint16_t* packed) {
  if constexpr (std::is_same_v<T, float>) {
    if (packing.positions) return pack_positions(layer, packing, kernels, threads, w, packed);
    Buffer<T> plain;
    plain.allocate(static_cast<std::size_t>(layer.groups * layer.cols * packing.per_column));
    pack_weights(layer, packing, kernels, threads, w, plain.data());
    const i64 phases = packing.classes[0].phases, rows = packing.rows * phases, pairs = ceil_div(rows, 2 * kBf16Rows);
    const i64 blocks = ceil_div(layer.cols, packing.columns);
    if (plain.size() < (1 << 16)) threads = 1;
    parallel_for(layer.groups * blocks * pairs, threads, [&](i64 task) {
      const i64 group = task / pairs / blocks, first = task / pairs % blocks * packing.columns;
      const i64 row = task % pairs * 2 * kBf16Rows, tiles = std::min<i64>(2, (rows - row) / kBf16Rows);
      const i64 columns = std::min(packing.columns, layer.cols - first), padded = round_up(columns, kBf16Terms);
      const T* const from = plain.data() + (group * layer.cols + first) * packing.per_column;
      std::uint16_t* const to =
          packed + (group * round_up(layer.cols, kBf16Terms) + first) * packing.per_column * kBf16Parts;
      for (const PhaseClass& c : packing.classes) {
        std::uint16_t* tile = to + (c.weights + row * c.taps) * padded * kBf16Parts;
        for (i64 column = 0; column < columns; column += kBf16Terms)
          for (i64 tap = 0; tap < c.taps; ++tap, tile += (kBf16Parts - 1) * tiles * kBf16Tile)
            for (i64 t = 0; t < tiles; ++t, tile += kBf16Tile)
              kernels.bf16->round(
                  from + (c.weights + (row + t * kBf16Rows) * c.taps) * columns + (tap * columns + column) * kBf16Rows,
                  columns - column, tile, tiles * kBf16Tile);
      }
    });
  }
}

#define UPSCORE_INSTANTIATE(T)                                                                                \
  template void pack_weights<T>(const Layer&, const Packing&, const Kernels<T>&, int, const T*, T*);          \
  template void pack_bf16<T>(const Layer&, const Packing&, const Kernels<T>&, int, const T*, std::uint16_t*); \
  template void unpack_weights<T>(const Layer&, const Packing&, const T*, T*);
UPSCORE_INSTANTIATE(float)
UPSCORE_INSTANTIATE(double)

}  // namespace upscore
