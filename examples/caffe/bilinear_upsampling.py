"""Bilinear upsampling as a Deconvolution that does not learn: the template of Caffe's filler documentation.

    python examples/caffe/bilinear_upsampling.py 4

For a factor f the kernel is 2f - f % 2, the stride f and the pad ceil((f - 1) / 2); one group per channel and
lr_mult 0 keep it what it is while the layer below it learns.
"""

import math
import sys
import tempfile
from pathlib import Path

import numpy as np

import upscore.caffe as caffe

TEMPLATE = """
layer {
  name: "upsample" type: "Deconvolution" bottom: "{{bottom_name}}" top: "{{top_name}}"
  convolution_param {
    kernel_size: {{2 * factor - factor % 2}} stride: {{factor}}
    num_output: {{C}} group: {{C}}
    pad: {{ceil((factor - 1) / 2.)}}
    weight_filler: { type: "bilinear" } bias_term: false
  }
  param { lr_mult: 0 decay_mult: 0 }
}
"""


def fill_in(template, **values):
    """The template with every ``{{expression}}`` replaced by its value."""
    pieces = template.split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        expression, rest = piece.split("}}", 1)
        filled.append(str(eval(expression, {"ceil": math.ceil}, values)) + rest)
    return "".join(filled)


def net_text(factor, channels, height, width):
    """A 1x1 convolution that learns, the upsampling, and a target of the large size."""
    upsample = fill_in(TEMPLATE, factor=factor, C=channels, bottom_name="score", top_name="large")
    large = (factor * height, factor * width)
    return f"""
name: "bilinear"
layer {{ name: "data" type: "Input" top: "data"
  input_param {{ shape {{ dim: 2 dim: 3 dim: {height} dim: {width} }} }} }}
layer {{ name: "target" type: "Input" top: "target"
  input_param {{ shape {{ dim: 2 dim: {channels} dim: {large[0]} dim: {large[1]} }} }} }}
layer {{ name: "score" type: "Convolution" bottom: "data" top: "score"
  convolution_param {{ num_output: {channels} kernel_size: 1 weight_filler {{ type: "xavier" }} }} }}
{upsample}
layer {{ name: "loss" type: "EuclideanLoss" bottom: "large" bottom: "target" top: "loss" }}
"""


def train(folder, factor, channels=3, height=6, width=5, steps=20):
    """A solver after some steps on random numbers, and the upsampling's weights before them."""
    folder = Path(folder)
    (folder / "net.prototxt").write_text(net_text(factor, channels, height, width))
    (folder / "solver.prototxt").write_text(
        f'net: "{folder / "net.prototxt"}" base_lr: 1e-4 momentum: 0.9 weight_decay: 0.01 lr_policy: "fixed"'
    )
    solver = caffe.SGDSolver(str(folder / "solver.prototxt"))
    before = solver.net.params["upsample"][0].data.copy()
    random = np.random.default_rng(0)
    for name in ("data", "target"):
        blob = solver.net.blobs[name]
        blob.data[...] = random.standard_normal(blob.data.shape)
    solver.step(steps)
    return solver, before


if __name__ == "__main__":
    factor = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    with tempfile.TemporaryDirectory() as folder:
        solver, before = train(folder, factor)
    net = solver.net
    print(f"{net.blobs['score'].data.shape} -> {net.blobs['large'].data.shape}")
    print("the kernel:\n", before[0, 0])
    print("unchanged after", solver.iter, "steps:", np.array_equal(before, net.params["upsample"][0].data))
