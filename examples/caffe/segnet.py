"""SegNet: every pooling remembers where its maxima stood, and the way up puts the values back there.

    python examples/caffe/segnet.py --width 8

Badrinarayanan, Kendall and Cipolla, "SegNet" (2015). ``width`` is the number of channels of the first layers (64 in
the real net). At 360 x 480 pooling rounds up (45 rows become 23), so those layers are told the size to go back to.
"""

# ruff: noqa: C408  (dict(...) is how specifications are written)

import argparse
import tempfile
from pathlib import Path

import numpy as np

import upscore.caffe as caffe
from upscore.caffe import layers as L
from upscore.caffe import params as P

CLASSES = 11
BLOCKS = [(2, 1), (2, 2), (3, 4), (3, 8), (3, 8)]
"""Convolutions, and channels as a multiple of the width, of each block of the encoder."""


def unit(n, name, bottom, channels):
    """Convolution, BN in inference mode (a scale and a shift), ReLU, the last two in place."""
    n[name] = L.Convolution(bottom, num_output=channels, kernel_size=3, pad=1, weight_filler=dict(type="msra"))
    n[f"{name}_bn"] = L.BN(
        n[name],
        bn_mode=P.BN.INFERENCE,
        scale_filler=dict(type="constant", value=1),
        shift_filler=dict(type="constant", value=0.001),
        in_place=True,
    )
    n[f"{name}_relu"] = L.ReLU(n[f"{name}_bn"], in_place=True)
    return n[f"{name}_relu"]


def segnet(width=64, size=(360, 480), blocks=5):
    """The net for images of this size; fewer blocks make a smaller one."""
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 3, *size]))
    top, sizes = n.data, []
    for block, (count, channels) in enumerate(BLOCKS[:blocks], 1):
        for index in range(1, count + 1):
            top = unit(n, f"conv{block}_{index}", top, width * channels)
        n[f"pool{block}"], n[f"pool{block}_mask"] = L.Pooling(top, pool=P.Pooling.MAX, kernel_size=2, stride=2, ntop=2)
        top = n[f"pool{block}"]
        sizes.append(size)
        size = tuple(-(-s // 2) for s in size)
    for block in range(blocks, 0, -1):
        count, _ = BLOCKS[block - 1]
        height, width_ = sizes[block - 1]
        even = height % 2 == width_ % 2 == 0
        goal = dict(scale=2) if even else dict(upsample_h=height, upsample_w=width_)
        top = n[f"upsample{block}"] = L.Upsample(top, n[f"pool{block}_mask"], **goal)
        for index in range(count, 0, -1):
            narrower = BLOCKS[max(block - 2, 0)][1] if index == 1 else BLOCKS[block - 1][1]
            if (block, index) == (1, 1):
                top = n.score = L.Convolution(top, num_output=CLASSES, kernel_size=3, pad=1)
            else:
                top = unit(n, f"conv{block}_{index}_D", top, width * narrower)
    n.prob = L.Softmax(n.score)
    return n.to_proto()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=8, help="channels of the first layers (64 is the real net)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "segnet.prototxt"
        path.write_text(str(segnet(arguments.width)))
        net = caffe.Net(str(path), caffe.TEST)
    net.blobs["data"].data[...] = np.random.default_rng(0).normal(0, 50, net.blobs["data"].data.shape)
    net.forward()
    for name, blob in net.blobs.items():
        print(f"{name:16} {blob.data.shape}")


if __name__ == "__main__":
    main()
