"""DeconvNet, in the syntax of its time: unpooling to the places of the maxima, then deconvolution.

    python examples/caffe/deconvnet.py --width 4

Noh, Hong and Han, "Learning deconvolution network for semantic segmentation" (2015). Its prototxts are of the V1
kind, ``layers { type: UNPOOLING ... }``, and load as they are; :func:`modern` writes the same net in today's words.
``width`` is the number of channels of the first layers (64 in the real net), ``size`` a multiple of 32.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import upscore.caffe as caffe

CLASSES = 21
BLOCKS = [(2, 1), (2, 2), (3, 4), (3, 8), (3, 8)]
"""Convolutions, and channels as a multiple of the width, of each block on the way down."""

BN = (
    "bn_param { scale_filler { type: 'constant' value: 1 } shift_filler { type: 'constant' value: 0.001 } "
    "bn_mode: INFERENCE }"
)


class Syntax(NamedTuple):
    """What differs between the generations of prototxt."""

    layer: str
    type: Callable[[str], str]
    rates: str


V1 = Syntax("layers", str.upper, "blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0")
TODAY = Syntax("layer", '"{}"'.format, "param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }")


def write(syntax, width, size, blocks=5):
    """The prototxt of the net in one of the two syntaxes; fewer blocks make a smaller net."""
    text = [f'name: "DeconvNet" input: "data" input_dim: 1 input_dim: 3 input_dim: {size} input_dim: {size}']

    def layer(kind, name, bottoms, tops, fields=""):
        names = " ".join([f'bottom: "{b}"' for b in bottoms] + [f'top: "{t}"' for t in tops])
        text.append(f'{syntax.layer} {{ name: "{name}" type: {syntax.type(kind)} {names} {fields} }}')

    def unit(kind, name, bottom, channels, kernel=3, pad=1):
        """A (de)convolution with BN and ReLU in place; returns its top."""
        size = f"num_output: {channels} kernel_size: {kernel} pad: {pad}"
        fields = f"{syntax.rates} convolution_param {{ {size} weight_filler {{ type: 'msra' }} }}"
        layer(kind, name, [bottom], [name], fields)
        layer("BN", f"bn_{name}", [name], [name], BN)
        layer("ReLU", f"relu_{name}", [name], [name])
        return name

    top = "data"
    for block, (count, channels) in enumerate(BLOCKS[:blocks], 1):
        for index in range(1, count + 1):
            top = unit("Convolution", f"conv{block}_{index}", top, width * channels)
        names = [f"pool{block}", f"pool{block}_mask"]
        layer("Pooling", names[0], [top], names, "pooling_param { pool: MAX kernel_size: 2 stride: 2 }")
        top = names[0]
    smallest = size >> blocks
    top = unit("Convolution", "fc6", top, 64 * width, smallest, 0)
    top = unit("Convolution", "fc7", top, 64 * width, 1, 0)
    top = unit("Deconvolution", "fc6-deconv", top, width * BLOCKS[blocks - 1][1], smallest, 0)
    for block in range(blocks, 0, -1):
        count, channels = BLOCKS[block - 1]
        goal = size >> (block - 1)
        fields = f"unpooling_param {{ unpool: MAX kernel_size: 2 stride: 2 unpool_size: {goal} }}"
        layer("Unpooling", f"unpool{block}", [top, f"pool{block}_mask"], [f"unpool{block}"], fields)
        top = f"unpool{block}"
        for index in range(1, count + 1):
            narrower = BLOCKS[max(block - 2, 0)][1] if index == count else channels
            top = unit("Deconvolution", f"deconv{block}_{index}", top, width * narrower)
    score = f"convolution_param {{ num_output: {CLASSES} kernel_size: 1 weight_filler {{ type: 'msra' }} }}"
    layer("Convolution", "seg-score", [top], ["seg-score"], score)
    return "\n".join(text) + "\n"


def v1(width=64, size=224, blocks=5):
    """The net as the authors published such nets."""
    return write(V1, width, size, blocks)


def modern(width=64, size=224, blocks=5):
    """The same net in today's syntax."""
    return write(TODAY, width, size, blocks)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=4, help="channels of the first layers (64 is the real net)")
    parser.add_argument("--size", type=int, default=224, help="height and width of the image, a multiple of 32")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deconvnet.prototxt"
        path.write_text(v1(arguments.width, arguments.size))
        net = caffe.Net(str(path), caffe.TEST)
    net.blobs["data"].data[...] = np.random.default_rng(0).normal(0, 50, net.blobs["data"].data.shape)
    net.forward()
    for name, blob in net.blobs.items():
        print(f"{name:16} {blob.data.shape}")


if __name__ == "__main__":
    main()
