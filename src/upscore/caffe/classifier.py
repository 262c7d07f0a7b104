"""``caffe.Classifier`` and ``caffe.Detector``: nets that take images and windows of images.

Interface after caffe/python/caffe/classifier.py and detector.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upscore.caffe import io, schema
from upscore.caffe.net import Net
from upscore.errors import ArgumentError

__all__ = ["Classifier", "Detector"]

Path = str | os.PathLike[str]


class _ImageNet(Net):
    """A net in the TEST phase with one image input, and the transformer before it."""

    def __init__(
        self,
        model_file: Path,
        pretrained_file: Path | None = None,
        mean: ArrayLike | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model_file, schema.TEST, weights=pretrained_file)
        if len(self.inputs) != 1:
            got = ", ".join(self.inputs) or "none"
            raise ArgumentError("model_file", "a net with one Input layer, for the image", got, "a deploy.prototxt")
        (name,) = self.inputs
        self.transformer = io.Transformer({name: self.blobs[name].shape})
        self.transformer.set_transpose(name, (2, 0, 1))
        if mean is not None:
            self.transformer.set_mean(name, mean)
        if input_scale is not None:
            self.transformer.set_input_scale(name, input_scale)
        if raw_scale is not None:
            self.transformer.set_raw_scale(name, raw_scale)
        if channel_swap is not None:
            self.transformer.set_channel_swap(name, channel_swap)
        self.crop_dims = self.blobs[name].shape[2:]

    def _predict(self, images: Iterable[NDArray[Any]]) -> NDArray[Any]:
        """The first output for each image."""
        (name,) = self.inputs
        batch = np.stack([self.transformer.preprocess(name, image) for image in images])
        return self.forward_all(None, **{name: batch})[self.outputs[0]]


class Classifier(_ImageNet):
    """A net that scores whole images.

    Args:
        model_file: the deploy prototxt, with one input.
        pretrained_file: the weights.
        image_dims: height and width to which images are resized before they are cropped to the net's input size.
        mean, input_scale, raw_scale, channel_swap: as in :class:`upscore.caffe.io.Transformer`.
    """

    def __init__(
        self,
        model_file: Path,
        pretrained_file: Path | None = None,
        image_dims: Sequence[int] | None = None,
        mean: ArrayLike | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model_file, pretrained_file, mean, input_scale, raw_scale, channel_swap)
        self.image_dims = tuple(image_dims) if image_dims else self.crop_dims

    def predict(self, inputs: Sequence[ArrayLike], oversample: bool = True) -> NDArray[Any]:
        """The net's first output for every ``(H, W, K)`` image, one row each.

        Args:
            inputs: images, as :func:`upscore.caffe.io.load_image` reads them.
            oversample: average over ten crops (corners, centre, mirrored) instead of taking the centre.
        """
        images = [io.resize_image(image, self.image_dims) for image in inputs]
        if oversample:
            found = self._predict(io.oversample(images, self.crop_dims))
            return np.asarray(found.reshape(len(images), 10, *found.shape[1:]).mean(1))
        (h, w), (top, left) = self.crop_dims, (_middle(self.image_dims[i], self.crop_dims[i]) for i in (0, 1))
        return self._predict(image[top : top + h, left : left + w] for image in images)


class Detector(_ImageNet):
    """A net that scores windows of images.

    Args:
        model_file: the deploy prototxt, with one input.
        pretrained_file: the weights.
        mean, input_scale, raw_scale, channel_swap: as in :class:`upscore.caffe.io.Transformer`.
    """

    def detect_windows(self, images_windows: Iterable[tuple[Path, ArrayLike]]) -> list[dict[str, Any]]:
        """Score windows: for each image file, rows of ``(ymin, xmin, ymax, xmax)`` in pixels.

        Returns:
            For each window a dict of ``window``, ``prediction`` and ``filename``.

        Raises:
            ArgumentError: for a window that holds no pixel of its image.
        """
        found, crops = [], []
        for filename, windows in images_windows:
            image = io.load_image(filename)
            for window in np.asarray(windows).reshape(-1, 4):
                top, left, bottom, right = (max(0, int(edge)) for edge in window)
                crop = image[top:bottom, left:right]
                if not crop.size:
                    expected = f"ymin, xmin, ymax, xmax within {image.shape[0]} x {image.shape[1]}"
                    raise ArgumentError("images_windows", expected, window.tolist(), "(0, 0, 10, 10)")
                found.append({"window": window, "filename": filename})
                crops.append(crop)
        if crops:
            for entry, prediction in zip(found, self._predict(crops), strict=True):
                entry["prediction"] = prediction
        return found


def _middle(size: int, crop: int) -> int:
    """Where a crop of this size begins in the middle."""
    return (size - crop) // 2
