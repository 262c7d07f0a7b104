#include "pack.h"

#include <algorithm>

#include "kernels/kernels.h"
#include "threads.h"

namespace upscore {

namespace {

struct Row {
  i64 channel, phase;
};
Row split(const Layer& layer, const Packing& packing, i64 phases, i64 row) {
  if (packing.by_phase) return {row % layer.rows, row / layer.rows};
  return {row / phases, row % phases};
}

// The packed weights of one group and one block of rows, in all classes. Columns are the outer loop, because
// then the weights are read nearly in the order in which they lie.
template <typename T>
void pack_rows(const Layer& layer, const Packing& packing, i64 first, i64 phases, const T* w, T* packed) {
  const i64 taps = layer.taps();
  const i64 row_stride = layer.transposed ? taps : layer.cols * taps;
  const i64 column_stride = layer.transposed ? layer.rows * taps : taps;
  const i64 height = std::min<i64>(packing.tile_rows, layer.rows * phases - first);
  const T* source[kMaxPackedRows];
  for (i64 column = 0; column < layer.cols; ++column) {
    const i64 block = column / packing.columns * packing.columns;
    const i64 columns = std::min(packing.columns, layer.cols - block);
    for (i64 r = 0; r < height; ++r)
      source[r] = w + split(layer, packing, phases, first + r).channel * row_stride + column * column_stride;
    for (const PhaseClass& c : packing.classes) {
      T* to = packed + block * packing.per_column + (c.weights + first * c.taps) * columns + (column - block) * height;
      if (phases == 1) {
        for (i64 place = 0; place < c.taps; ++place, to += columns * height) {
          const i64 tap = c.tap[static_cast<std::size_t>(place)];
          for (i64 r = 0; r < height; ++r) to[r] = source[r][tap];
        }
      } else {
        for (i64 place = 0; place < c.taps; ++place, to += columns * height)
          for (i64 r = 0; r < height; ++r) {
            const i64 phase = split(layer, packing, phases, first + r).phase;
            const i64 tap = c.tap[static_cast<std::size_t>(phase * c.taps + place)];
            to[r] = tap < 0 ? T(0) : source[r][tap];
          }
      }
    }
  }
}

}  // namespace

template <typename T>
void pack_weights(const Layer& layer, const Packing& packing, int threads, const T* w, T* packed) {
  const i64 phases = packing.classes[0].phases, blocks = ceil_div(layer.rows * phases, packing.tile_rows);
  const i64 group = layer.rows * layer.cols * layer.taps();
  if (layer.groups * group < (1 << 16)) threads = 1;
  parallel_for(layer.groups * blocks, threads, [&](i64 task) {
    const i64 g = task / blocks;
    pack_rows(layer, packing, task % blocks * packing.tile_rows, phases, w + g * group,
              packed + g * packing.per_column * layer.cols);
  });
}

template <typename T>
void unpack_weights(const Layer& layer, const Packing& packing, const T* packed, T* w) {
  const i64 taps = layer.taps(), group = layer.rows * layer.cols * taps;
  const i64 row_stride = layer.transposed ? taps : layer.cols * taps;
  const i64 column_stride = layer.transposed ? layer.rows * taps : taps;
  for (i64 g = 0; g < layer.groups; ++g, w += group)
    for (i64 block = 0; block < layer.cols; block += packing.columns) {
      const i64 columns = std::min(packing.columns, layer.cols - block);
      for (const PhaseClass& c : packing.classes)
        for (i64 first = 0; first < layer.rows * c.phases; first += packing.tile_rows) {
          const i64 height = std::min<i64>(packing.tile_rows, layer.rows * c.phases - first);
          for (i64 place = 0; place < c.taps; ++place)
            for (i64 column = block; column < block + columns; ++column)
              for (i64 r = first; r < first + height; ++r, ++packed) {
                const Row row = split(layer, packing, c.phases, r);
                const i64 tap = c.tap[static_cast<std::size_t>(row.phase * c.taps + place)];
                if (tap >= 0) w[row.channel * row_stride + column * column_stride + tap] = *packed;
              }
        }
    }
}

#define UPSCORE_INSTANTIATE(T)                                                    \
  template void pack_weights<T>(const Layer&, const Packing&, int, const T*, T*); \
  template void unpack_weights<T>(const Layer&, const Packing&, const T*, T*);
UPSCORE_INSTANTIATE(float)
UPSCORE_INSTANTIATE(double)

}  // namespace upscore
