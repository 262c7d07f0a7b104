"""The smallest net there is: one Deconvolution, and what it does to four numbers.

    python examples/caffe/deconvolution_by_hand.py

Every pixel stamps the 3x3 kernel of ones at twice its position; where stamps overlap, they add up.
"""

# ruff: noqa: C408  (dict(...) is how specifications are written)

import tempfile
from pathlib import Path

import numpy as np

import upscore.caffe as caffe
from upscore.caffe import layers as L


def specify():
    """The net as Python."""
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 1, 2, 2]))
    n.deconv = L.Deconvolution(
        n.data,
        convolution_param=dict(
            num_output=1, kernel_size=3, stride=2, bias_term=False, weight_filler=dict(type="constant", value=1)
        ),
    )
    return n


def run(folder):
    """Write the prototxt, load it, feed 1 2 3 4; returns the 5x5 output."""
    path = Path(folder) / "deconv.prototxt"
    path.write_text(str(specify().to_proto()))
    net = caffe.Net(str(path), caffe.TEST)
    image = np.array([[1, 2], [3, 4]], dtype=np.float32)
    net.blobs["data"].reshape(1, 1, *image.shape)
    net.blobs["data"].data[...] = image
    net.forward()
    return net.blobs["deconv"].data[0, 0].copy()


if __name__ == "__main__":
    print(specify().to_proto())
    with tempfile.TemporaryDirectory() as folder:
        print(run(folder))
