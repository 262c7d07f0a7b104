"""VGG-16's convolutions and where their weights come from.

Layers after Simonyan and Zisserman 2015, "Very deep convolutional networks for large-scale image recognition",
configuration D; names are Caffe's, ``conv1_1`` to ``conv5_3``, ``fc6`` and ``fc7``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from upscore.errors import ArgumentError

__all__ = ["DEPTHS", "FACTORS", "from_torchvision", "load", "names"]

DEPTHS = (2, 2, 3, 3, 3)
"""Convolutions before each of the five poolings."""
FACTORS = (1, 2, 4, 8, 8)
"""Channels of each stage, in units of the first's 64."""
_TORCHVISION = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def names(stage: int) -> list[str]:
    """Caffe's names of the convolutions of a stage, counted from 1.

    >>> names(3)
    ['conv3_1', 'conv3_2', 'conv3_3']
    """
    return [f"conv{stage}_{i}" for i in range(1, DEPTHS[stage - 1] + 1)]


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """A ``state_dict`` of torchvision's ``vgg16`` by Caffe's names, as :func:`load` takes it.

    ``features.N`` are the convolutions, ``classifier.0`` and ``classifier.3`` fc6 and fc7. torchvision's weights
    expect RGB from 0 to 1, normalised; Caffe's expect BGR from 0 to 255 minus the mean.

    Raises:
        ArgumentError: when a tensor is missing.
    """
    ours = [name for stage in range(1, 6) for name in names(stage)]
    theirs = [f"features.{n}" for n in _TORCHVISION]
    found = {}
    for name, key in zip([*ours, "fc6", "fc7"], [*theirs, "classifier.0", "classifier.3"], strict=True):
        missing = [f"{key}.{end}" for end in ("weight", "bias") if f"{key}.{end}" not in state]
        if missing:
            got = f"no {missing[0]!r}"
            raise ArgumentError("state", "a state_dict of torchvision's vgg16", got, "vgg16().state_dict()")
        found[name] = [state[f"{key}.weight"], state[f"{key}.bias"]]
    return found


@torch.no_grad()
def load(network: nn.Module, blobs: Mapping[str, Sequence[Any]]) -> list[str]:
    """Copy ``blobs`` (weight and bias by layer name, arrays or tensors) into the layers of these names.

    ``{layer.name: layer.blobs for layer in upscore.caffe.caffemodel.read(path)}`` are a Caffe model's. Fully
    connected weights become convolutions: the numbers are the same in the same order. Layers that the network does
    not have are left out.

    Returns:
        The names of the network's layers that ``blobs`` does not have; they keep what they hold.

    Raises:
        ArgumentError: when a layer's blobs do not fit, and then nothing has been changed.
    """
    copies, missing = [], []
    for name, layer in network.named_children():
        parameters = list(layer.parameters(recurse=False))
        if not parameters:
            continue
        if name not in blobs:
            missing.append(name)
            continue
        if len(blobs[name]) != len(parameters):
            expected = f"{len(parameters)} for layer {name!r}, one for each parameter"
            raise ArgumentError("blobs", expected, len(blobs[name]), f"{{{name!r}: [weight]}}")
        for parameter, blob in zip(parameters, blobs[name], strict=True):
            copies.append((parameter, _fitting(name, parameter, torch.as_tensor(blob))))
    for parameter, value in copies:
        parameter.copy_(value)
    return missing


def _fitting(name: str, parameter: Tensor, blob: Tensor) -> Tensor:
    if blob.shape == parameter.shape:
        return blob
    wanted = tuple(parameter.shape)
    # Caffe's InnerProduct is (out, in), or (1, 1, out, in) in old files; old biases are (1, 1, 1, out).
    flat = [n for n in blob.shape if n != 1]
    rows = [n for n in (parameter.shape[0], parameter[0].numel()) if n != 1]
    if flat == rows and blob.numel() == parameter.numel():
        return blob.reshape(wanted)
    # A transposed convolution that upsamples every channel alone, written as one that could mix them.
    if blob.dim() == 4 and blob.shape[0] == blob.shape[1] == wanted[0] and wanted[1:] == (1, *blob.shape[2:]):
        each = torch.arange(wanted[0])
        own = blob[each, each]
        if torch.count_nonzero(blob) == torch.count_nonzero(own):
            return own[:, None]
        got = "one that mixes channels"
        raise ArgumentError("blobs", f"a weight of {name!r} without mixing of channels", got, "channelwise=False")
    raise ArgumentError("blobs", f"shape {wanted} for layer {name!r}", tuple(blob.shape), f"torch.zeros{wanted}")
