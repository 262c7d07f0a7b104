"""A photo through a Caffe net: prepared the way Caffe's programs do it, and the result as an image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from upscore.caffe import prototxt, schema
from upscore.caffe.caffemodel import read_mean
from upscore.caffe.graph import Graph
from upscore.caffe.modules import LayerError
from upscore.errors import ArgumentError

__all__ = ["IMAGENET_MEAN", "ImageNet", "ImageResult", "palette", "run_image"]

IMAGENET_MEAN = (104.00698793, 116.66876762, 122.67891434)
"""Blue, green, red: what the nets that start from ImageNet's, FCN among them, subtract."""


@dataclass
class ImageResult:
    """What came out.

    Attributes:
        image: a class map with the PASCAL palette (mode P), or a picture (mode L or RGB).
        blob: the name of the blob that it was made from.
        classes: for a class map, how many pixels each class has.
    """

    image: Image.Image
    blob: str
    classes: dict[int, int] | None = None


Mean = str | os.PathLike[str] | float | Sequence[float]


class ImageNet:
    """A net for photos, prepared as Caffe's own programs do it: BGR, 0 to 255, minus the mean, times ``scale``.

    The net takes the photo's size if it can; if not, the photo is resized to the net's and the result back.
    A blob of 1 or 3 channels is taken for a picture (the preparation is undone), one of others for scores, whose
    largest is the class; that of an ArgMax layer for classes.

    Args:
        net: the prototxt.
        weights: the caffemodel, binary or HDF5.
        mean: one number, one per channel in the net's order, or a file (``.binaryproto``, ``.npy``), whose channels
            are averaged when it has another size.
        scale: what the difference is multiplied by; 1/255 for nets of values from 0 to 1.
        order: ``"bgr"`` or ``"rgb"``, of the channels.
        output: the blob to look at; the net's last one by default.
        lenient: warn of unknown fields in the prototxt instead of stopping.

    Raises:
        ArgumentError, FileFormatError, LayerError: naming what does not fit.
    """

    def __init__(
        self,
        net: str | os.PathLike[str],
        weights: str | os.PathLike[str],
        *,
        mean: Mean = IMAGENET_MEAN,
        scale: float = 1.0,
        order: str = "bgr",
        output: str | None = None,
        lenient: bool = False,
    ) -> None:
        if order not in ("bgr", "rgb"):
            raise ArgumentError("order", "'bgr' or 'rgb'", repr(order), "order='bgr'")
        if scale == 0:
            raise ArgumentError("scale", "any number but 0", scale, "scale=1")
        self.graph = Graph(prototxt.read(net, schema.NetParameter(), lenient=lenient))
        self.graph.load(weights)
        self.graph.for_inference()
        self.mean, self.scale, self.order = mean, scale, order
        self.input, self.output = _input(self.graph), _output(self.graph, output)
        self._own = self.graph.shapes[self.input]

    def __call__(self, image: str | os.PathLike[str] | Image.Image) -> ImageResult:
        """Run one photo, a path or an open image."""
        picture = image if isinstance(image, Image.Image) else Image.open(image)
        channels = self._own[1]
        picture = picture.convert("L" if channels == 1 else "RGB")
        given = picture.resize(self._size(picture.size), Image.Resampling.BILINEAR)
        x = np.asarray(given, np.float32).reshape(given.height, given.width, channels)
        if self.order == "bgr":
            x = x[..., ::-1]
        offset = _mean(self.mean, channels, given.size)
        x = (x.transpose(2, 0, 1) - offset) * np.float32(self.scale)
        with torch.no_grad():
            blobs = self.graph({self.input: torch.from_numpy(np.ascontiguousarray(x[None]))}, keep=[self.output])
        found = blobs[self.output].numpy()
        resized = given.size != picture.size
        return _as_image(self.graph, self.output, found, picture.size, offset, self.scale, self.order, resized)

    def _size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The photo's own size if the net can take it, else the net's, as (width, height)."""
        try:
            self.graph.reshape({self.input: (1, self._own[1], size[1], size[0])})
        except LayerError:
            return self._own[3], self._own[2]
        return size


def run_image(
    net: str | os.PathLike[str],
    weights: str | os.PathLike[str],
    image: str | os.PathLike[str] | Image.Image,
    **settings: Any,
) -> ImageResult:
    """Run one photo through a net: ``ImageNet(net, weights, **settings)(image)``."""
    return ImageNet(net, weights, **settings)(image)


def _input(graph: Graph) -> str:
    images = [name for name in graph.inputs if len(graph.shapes[name]) == 4 and graph.shapes[name][1] in (1, 3)]
    if not images:
        shapes = ", ".join(f"{name} {graph.shapes[name]}" for name in graph.inputs)
        raise ArgumentError("net", "an input (N, 1 or 3, H, W) for an image", shapes or "none", "a deploy.prototxt")
    return images[0]


def _output(graph: Graph, wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in graph.shapes:
            raise ArgumentError("output", "a blob of the net", repr(wanted), ", ".join(graph.outputs))
        return wanted
    maps = [name for name in graph.outputs if len(graph.shapes[name]) == 4]
    if not maps:
        raise ArgumentError("output", "a blob of 4 axes", ", ".join(graph.outputs), "output='score'")
    return maps[-1]


def _mean(mean: Any, channels: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """The mean as ``(C, 1, 1)``, or ``(C, H, W)`` where a file has the image's size."""
    found: Any
    if isinstance(mean, (str, os.PathLike)):
        found = read_mean(Path(mean))
        found = found.reshape(found.shape[-3:]) if found.ndim >= 3 else found.reshape(-1, 1, 1)
        if found.shape[1:] not in ((1, 1), size[::-1]):
            found = found.mean((1, 2), keepdims=True)
    else:
        found = np.asarray(mean, np.float32).reshape(-1, 1, 1)
        if found.shape[0] == 3 and channels == 1:
            found = found.mean(0, keepdims=True)
    if found.shape[0] not in (1, channels):
        raise ArgumentError("mean", f"1 or {channels} numbers", found.shape[0], "mean=0")
    return np.asarray(found, np.float32)


def _as_image(
    graph: Graph,
    blob: str,
    found: Any,
    size: tuple[int, int],
    offset: Any,
    scale: float,
    order: str,
    resized: bool,
) -> ImageResult:
    if found.ndim != 4:
        raise ArgumentError("output", "a blob (N, C, H, W)", f"{blob} of shape {found.shape}", "output='score'")
    is_classes = any(layer.type == "ArgMax" and blob in layer.tops for layer in graph.layers)
    if is_classes or found.shape[1] not in (1, 3):
        classes = (found[0, 0] if is_classes else found[0].argmax(0)).astype(np.uint8)
        made = Image.fromarray(classes)
        made.putpalette(palette())
        counts = {int(c): int(n) for c, n in zip(*np.unique(classes, return_counts=True), strict=True)}
        return ImageResult(made.resize(size, Image.Resampling.NEAREST) if resized else made, blob, counts)
    undo = offset if offset.shape[1:] in ((1, 1), found.shape[2:]) else offset.mean((1, 2), keepdims=True)
    if undo.shape[0] not in (1, found.shape[1]):
        undo = undo.mean(0, keepdims=True)
    pixels: NDArray[Any] = np.clip(np.rint(found[0] / np.float32(scale) + undo), 0, 255).astype(np.uint8)
    pixels = pixels.transpose(1, 2, 0)
    if order == "bgr":
        pixels = pixels[..., ::-1]
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    return ImageResult(picture.resize(size, Image.Resampling.BICUBIC) if resized else picture, blob)


def palette() -> bytes:
    """The colours of PASCAL VOC's class maps, 256 of 3 bytes: the bits of the class number, spread over RGB.

    Source: VOC development kit, VOClabelcolormap.m.

    >>> [tuple(palette()[3 * c : 3 * c + 3]) for c in (0, 1, 15, 255)]
    [(0, 0, 0), (128, 0, 0), (192, 128, 128), (224, 224, 192)]
    """
    colours = np.zeros((256, 3), np.uint8)
    classes = np.arange(256)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((classes >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours.tobytes()
