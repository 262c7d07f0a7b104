#include "parts.h"

#include <algorithm>

#include "plan.h"

namespace upscore {
namespace {

constexpr i64 kWeights = kBf16Parts * kBf16Tile;         // of a tile
constexpr i64 kInputs = kBf16Terms;                      // of a panel
constexpr i64 kMostBlocks = Limits::terms / kBf16Terms;  // of columns that are added in tiles

i64 blocks_of(i64 columns) { return ceil_div(columns, kBf16Terms); }

}  // namespace

i64 parts_of_vector(i64 columns) { return blocks_of(columns) * kWeights; }
i64 parts_panel(i64 columns) { return blocks_of(columns) * kBf16Parts * kBf16Terms / 2 * kInputs; }

void round_vector(const Bf16Kernels& kernels, const float* plain, i64 columns, std::uint16_t* to) {
  for (i64 column = 0; column < columns; column += kBf16Terms, to += kWeights)
    kernels.round(plain + column * kBf16Rows, columns - column, to, kBf16Tile);
}

void multiply_in_parts(const PartsProduct& product, const std::uint16_t* weights, i64 vectors,
                       const std::vector<PartsLine>& lines, i64 length, std::uint32_t* panels) {
  const i64 blocks = blocks_of(product.columns), per_line = ceil_div(length, kInputs), none = 0;
  const i64 all = static_cast<i64>(lines.size()) * per_line, terms = vectors * blocks;
  if (all == 0) return;
  alignas(64) float turned[kBf16Rows * kBf16Rows];
  auto inputs = [&](i64 number) {
    const i64 i = number % per_line * kInputs;
    const float* const x =
        lines[static_cast<std::size_t>(number / per_line)].x + i * (product.last ? product.pitch : 1);
    const i64 ahead = kInputs * (product.last ? product.pitch : 2);
    return Bf16Cut{x,     product.pitch,  product.columns, std::min(kInputs, length - i),
                   ahead, product.offset, product.last,    panels + number % 2 * parts_panel(product.columns),
                   turned};
  };
  Bf16Product p{};
  p.w_tap = p.x_tap = p.w_offset = p.c_offset = &none;
  p.w_row = kBf16Terms;
  p.w_part = kBf16Tile;
  p.w_block = kWeights;
  p.w_tile = blocks * kWeights;
  p.x_row = kBf16Rows;
  p.x_vector = kBf16Tile / 2;
  p.taps = p.products = 1;
  p.c_stride = product.c_stride;
  product.kernels.use(2 * kBf16Rows);
  Bf16Cut here = inputs(0);
  product.kernels.cut_units(here, here.units());
  for (i64 number = 0; number < all; ++number) {
    const bool more = number + 1 < all;
    Bf16Cut next = more ? inputs(number + 1) : here;
    const i64 units = more ? next.units() : 0;  // of which each product cuts its share
    p.vectors = here.vectors();
    p.x_part = p.vectors * p.x_vector;
    p.x_block = kBf16Parts * p.x_part;
    float* const c = lines[static_cast<std::size_t>(number / per_line)].c + number % per_line * kInputs;
    for (i64 v = 0; v < vectors; v += 2) {
      const i64 tiles = std::min<i64>(2, vectors - v);
      p.rows = static_cast<int>(tiles * kBf16Rows);
      p.c = c + v * kBf16Rows * product.c_stride;
      for (i64 block = 0; block < blocks; block += kMostBlocks) {
        p.blocks = std::min(kMostBlocks, blocks - block);
        p.w = weights + (v * blocks + block) * kWeights;
        p.x = here.panel + block * p.x_block;
        p.accumulate = block > 0;
        const i64 begin = v * blocks + tiles * block, end = begin + tiles * p.blocks;
        product.kernels.product_and_cut(p, next, units * end / terms - units * begin / terms);
      }
    }
    here = next;
  }
  product.kernels.use(0);
}

}  // namespace upscore
