#include "channel_planes.h"

#include <algorithm>

namespace upscore {
namespace {

constexpr i64 kPlaneBytes = 32 << 10;       // of a tile: they stay in the first-level cache
constexpr i64 kMostPlaneBytes = 512 << 10;  // in any case
constexpr i64 kFewTwice = 6;                // rows of a tile, if they fit, for each line that the next splits again

}  // namespace

std::vector<ChannelPlanes::Residue> ChannelPlanes::residues(i64 kernel, i64 stride, i64 dilation) {
  std::vector<Residue> all;
  for (i64 t = 0; t < kernel; ++t) {
    const i64 residue = t * dilation % stride, step = t * dilation / stride;
    auto at = std::find_if(all.begin(), all.end(), [&](const Residue& r) { return r.residue == residue; });
    if (at == all.end())
      all.push_back({residue, step, step});
    else
      at->high = step;
  }
  return all;
}

ChannelPlanes::ChannelPlanes(const Layer& layer, const Size& coarse, const Size& dense, const Size& lo, i64 lanes,
                             i64 bytes)
    : kernel_(layer.kernel),
      stride_(layer.stride),
      dilation_(layer.dilation),
      coarse_(coarse),
      dense_(dense),
      lo_(lo),
      rows_(residues(layer.kernel[1], layer.stride[1], layer.dilation[1])),
      columns_(residues(layer.kernel[2], layer.stride[2], layer.dilation[2])) {
  i64 high = low_ = columns_[0].low;
  for (const Residue& c : columns_) {
    low_ = std::min(low_, c.low);
    high = std::max(high, c.high);
  }
  extra_ = high - low_;
  const i64 most = kMostPlaneBytes / bytes;
  i64 beside = 0;  // lines of all residues beyond one for each row
  for (const Residue& r : rows_) {
    if (r.high - r.low > most) return;
    beside += r.high - r.low;
  }
  const auto rows = static_cast<i64>(rows_.size()), columns = static_cast<i64>(columns_.size());
  across_ = piece(coarse[2], std::min(coarse[2], kAcross));
  if (extra_ > most || kernel_[0] > most || (beside + rows) > most / (kernel_[0] * columns * pitch())) return;
  // Few of the lines of a tile are to be those of the next as well.
  const i64 line = bytes * kernel_[0] * columns * pitch(), fit = (kPlaneBytes / line - beside) / rows;
  const i64 tall = std::min(kFewTwice * beside / rows, (kMostPlaneBytes / line - beside) / rows);
  down_ = piece(coarse[1], std::clamp<i64>(std::max(fit, tall), 1, coarse[1]));
  const i64 plane = pitch() * columns;  // of a line of all columns' residues
  size_ = kernel_[0] * (beside + rows * down_) * plane + lanes;

  for (i64 tz = 0; tz < kernel_[0]; ++tz)
    for (i64 ty = 0; ty < kernel_[1]; ++ty)
      for (i64 tx = 0; tx < kernel_[2]; ++tx) {
        i64 at = tz * (beside + rows * down_) * plane;
        const i64 y = ty * dilation_[1], x = tx * dilation_[2];
        for (const Residue& r : rows_) {
          const i64 lines = down_ + r.high - r.low;
          if (r.residue != y % stride_[1]) {
            at += lines * plane;
            continue;
          }
          for (const Residue& c : columns_) {
            if (c.residue == x % stride_[2]) break;
            at += lines * pitch();
          }
          at += (y / stride_[1] - r.low) * pitch() + x / stride_[2] - low_;
          break;
        }
        place_.push_back(at);
      }
}

ChannelTile ChannelPlanes::tile(i64 index) const {
  ChannelTile tile;
  const i64 per_row = ceil_div(coarse_[2], across_), per_column = ceil_div(coarse_[1], down_);
  tile.first = {index / (per_row * per_column), index / per_row % per_column * down_, index % per_row * across_};
  tile.down = std::min(down_, coarse_[1] - tile.first[1]);
  tile.across = std::min(across_, coarse_[2] - tile.first[2]);
  return tile;
}

void ChannelPlanes::find_runs(const ChannelTile& tile, std::vector<Run>& runs) const {
  // Per residue of the columns, which numbers of a line are inside, and the first of them.
  struct Inside {
    i64 skip, stop, first;
  };
  thread_local std::vector<Inside> inside;
  inside.clear();
  for (const Residue& c : columns_) {
    const i64 x = (tile.first[2] + low_) * stride_[2] + c.residue - lo_[2];
    const i64 skip = std::clamp<i64>(ceil_div(-x, stride_[2]), 0, pitch());
    inside.push_back(
        {skip, std::clamp<i64>(ceil_div(dense_[2] - x, stride_[2]), skip, pitch()), x + skip * stride_[2]});
  }
  runs.clear();
  i64 place = 0;
  for (i64 tz = 0; tz < kernel_[0]; ++tz) {
    const i64 z = tile.first[0] * stride_[0] + tz * dilation_[0] - lo_[0];
    for (const Residue& r : rows_)
      for (const Inside& c : inside) {
        i64 y = (tile.first[1] + r.low) * stride_[1] + r.residue - lo_[1];
        for (i64 line = 0; line < down_ + r.high - r.low; ++line, place += pitch(), y += stride_[1]) {
          const bool exists = z >= 0 && z < dense_[0] && y >= 0 && y < dense_[1];
          const i64 skip = exists ? c.skip : pitch(), stop = exists ? c.stop : pitch();
          add_line(place, pitch(), skip, stop, (z * dense_[1] + y) * dense_[2] + c.first, runs);
        }
      }
  }
}

}  // namespace upscore
