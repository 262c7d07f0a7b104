"""FCN-32s, 16s and 8s as specifications: the crop offsets work themselves out.

    python examples/caffe/fcn.py 8 --width 8

Long, Shelhamer and Darrell, "Fully convolutional networks for semantic segmentation" (CVPR 2015), on VGG-16
(Simonyan and Zisserman 2014). ``width`` is the number of channels of the first layers: 64 is the real net, small
numbers are quick.
"""

# ruff: noqa: C408  (dict(...) is how specifications are written)

import argparse
import tempfile
from pathlib import Path

import numpy as np

import upscore.caffe as caffe
from upscore import filters
from upscore.caffe import layers as L
from upscore.caffe import params as P
from upscore.caffe.coord_map import crop

CLASSES = 21
LEARN = [dict(lr_mult=1, decay_mult=1), dict(lr_mult=2, decay_mult=0)]
FREEZE = [dict(lr_mult=0)]


def conv(bottom, channels, kernel=3, pad=1):
    return L.Convolution(
        bottom, kernel_size=kernel, pad=pad, num_output=channels, param=LEARN, weight_filler=dict(type="msra")
    )


def vgg16(n, width, pad):
    """The convolutions of VGG-16 on ``n.data``; the first pads by ``pad``. Returns the last pooling."""
    top = n.data
    for block, (count, channels) in enumerate([(2, 1), (2, 2), (3, 4), (3, 8), (3, 8)], 1):
        for index in range(1, count + 1):
            top = conv(top, width * channels, pad=pad if (block, index) == (1, 1) else 1)
            n[f"conv{block}_{index}"] = top
            top = n[f"relu{block}_{index}"] = L.ReLU(top, in_place=True)
        top = n[f"pool{block}"] = L.Pooling(top, pool=P.Pooling.MAX, kernel_size=2, stride=2)
    return top


def classifier(width, size=(224, 224), dense=False):
    """VGG-16 up to fc7: fully connected, as it was trained, or ``dense``, as convolutions over an image of any size."""
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 3, *size]))
    top = vgg16(n, width, pad=1)
    for name, kernel in (("fc6", 7), ("fc7", 1)):
        if dense:
            n[name] = conv(top, 64 * width, kernel, pad=0)
        else:
            n[name] = L.InnerProduct(top, num_output=64 * width, weight_filler=dict(type="msra"))
        top = n[name.replace("fc", "relu")] = L.ReLU(n[name], in_place=True)
    return n.to_proto()


def upscore(bottom, factor):
    """The layer that upscales scores: 2 x factor wide, bilinear after surgery, not learning."""
    return L.Deconvolution(
        bottom,
        convolution_param=dict(num_output=CLASSES, kernel_size=2 * factor, stride=factor, bias_term=False),
        param=FREEZE,
    )


def fcn(stride, width=64, size=(500, 500), pad=100, loss=True):
    """FCN-32s, 16s or 8s for images of this size."""
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 3, *size]))
    pool5 = vgg16(n, width, pad)
    n.fc6 = conv(pool5, 64 * width, kernel=7, pad=0)
    n.relu6 = L.ReLU(n.fc6, in_place=True)
    n.drop6 = L.Dropout(n.relu6, dropout_ratio=0.5, in_place=True)
    n.fc7 = conv(n.drop6, 64 * width, kernel=1, pad=0)
    n.relu7 = L.ReLU(n.fc7, in_place=True)
    n.drop7 = L.Dropout(n.relu7, dropout_ratio=0.5, in_place=True)
    n.score_fr = conv(n.drop7, CLASSES, kernel=1, pad=0)
    if stride == 32:
        n.upscore = upscore(n.score_fr, 32)
        n.score = crop(n.upscore, n.data)
    else:
        n.upscore2 = upscore(n.score_fr, 2)
        n.score_pool4 = conv(n.pool4, CLASSES, kernel=1, pad=0)
        n.score_pool4c = crop(n.score_pool4, n.upscore2)
        n.fuse_pool4 = L.Eltwise(n.upscore2, n.score_pool4c, operation=P.Eltwise.SUM)
        if stride == 16:
            n.upscore16 = upscore(n.fuse_pool4, 16)
            n.score = crop(n.upscore16, n.data)
        else:
            n.upscore_pool4 = upscore(n.fuse_pool4, 2)
            n.score_pool3 = conv(n.pool3, CLASSES, kernel=1, pad=0)
            n.score_pool3c = crop(n.score_pool3, n.upscore_pool4)
            n.fuse_pool3 = L.Eltwise(n.upscore_pool4, n.score_pool3c, operation=P.Eltwise.SUM)
            n.upscore8 = upscore(n.fuse_pool3, 8)
            n.score = crop(n.upscore8, n.data)
    if loss:
        n.label = L.Input(shape=dict(dim=[1, 1, *size]))
        n.loss = L.SoftmaxWithLoss(n.score, n.label, loss_param=dict(normalize=False, ignore_label=255))
    return n.to_proto()


def crop_offsets(net):
    """The offset of every Crop layer of a NetParameter, in order."""
    return [layer.crop_param.offset[0] for layer in net.layer if layer.type == "Crop"]


def interpolate(net):
    """Surgery: bilinear kernels, channel by channel, into every layer called up-something."""
    for name in (name for name in net.params if "up" in name):
        weight = net.params[name][0].data
        channels, _, kernel, _ = weight.shape
        weight[...] = 0
        weight[range(channels), range(channels)] = filters.bilinear(kernel // 2)


def transplant(net, source):
    """Surgery: the weights of a classifier, its fully connected layers reshaped into convolutions."""
    for name in source.params:
        if name in net.params:
            for mine, theirs in zip(net.params[name], source.params[name], strict=True):
                mine.data.flat = theirs.data.flat


def solver_for(folder, net, **fields):
    """An SGD solver that trains this net as the FCNs were: one image, high momentum, unnormalised loss."""
    folder = Path(folder)
    (folder / "train.prototxt").write_text(str(net))
    settings = dict(base_lr=1e-10, momentum=0.99, weight_decay=0.0005, lr_policy='"fixed"') | fields
    text = "\n".join(f"{name}: {value}" for name, value in settings.items())
    (folder / "solver.prototxt").write_text(f'train_net: "{folder / "train.prototxt"}"\n{text}\n')
    return caffe.SGDSolver(str(folder / "solver.prototxt"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stride", type=int, choices=(8, 16, 32), nargs="?", default=8)
    parser.add_argument("--width", type=int, default=8, help="channels of the first layers (64 is the real net)")
    parser.add_argument("--size", type=int, nargs=2, default=(500, 500), help="height and width of the image")
    arguments = parser.parse_args()
    spec = fcn(arguments.stride, arguments.width, tuple(arguments.size))
    print("crop offsets:", *crop_offsets(spec))
    with tempfile.TemporaryDirectory() as folder:
        solver = solver_for(folder, spec)
    interpolate(solver.net)
    solver.net.blobs["data"].data[...] = np.random.default_rng(0).normal(0, 50, solver.net.blobs["data"].data.shape)
    solver.net.blobs["label"].data[...] = 255  # nobody looked at the border
    solver.net.blobs["label"].data[..., 9:-9, 9:-9] = 15
    solver.step(1)
    for name, blob in solver.net.blobs.items():
        print(f"{name:16} {blob.data.shape}")


if __name__ == "__main__":
    main()
