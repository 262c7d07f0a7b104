#include "pack.h"

#include <algorithm>

namespace upscore {

template <typename T>
void pack_weights(const Layer& layer, const Packing& packing, const T* w, T* packed) {
  const i64 taps = layer.taps();
  const i64 row_stride = layer.transposed ? taps : layer.cols * taps;
  const i64 column_stride = layer.transposed ? layer.rows * taps : taps;
  for (i64 g = 0; g < layer.groups; ++g, w += layer.rows * layer.cols * taps)
    for (i64 column0 = 0; column0 < layer.cols; column0 += packing.columns) {
      const i64 column1 = std::min(column0 + packing.columns, layer.cols);
      for (const PhaseClass& c : packing.classes)
        for (i64 first = 0, rows = layer.rows * c.phases; first < rows; first += packing.tile_rows) {
          const i64 last = std::min(first + packing.tile_rows, rows);
          for (i64 place = 0; place < c.taps; ++place)
            for (i64 column = column0; column < column1; ++column)
              for (i64 row = first; row < last; ++row) {
                const i64 tap = c.tap[static_cast<std::size_t>(row % c.phases * c.taps + place)];
                *packed++ = tap < 0 ? T(0) : w[row / c.phases * row_stride + column * column_stride + tap];
              }
        }
    }
}

template void pack_weights<float>(const Layer&, const Packing&, const float*, float*);
template void pack_weights<double>(const Layer&, const Packing&, const double*, double*);

}  // namespace upscore
