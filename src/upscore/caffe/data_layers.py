"""Data layers that read: HDF5Data, ImageData, and the forks' ImageSegData and DenseImageData, for nets that train.

A net in the pycaffe interface reads from the ``source`` of such a layer where that file exists, one batch before each
pass. Semantics after BVLC Caffe's hdf5_data_layer.cpp, image_data_layer.cpp and data_transformer.cpp, and, for pairs
of images, SegNet's dense_image_data_layer.cpp. Random numbers come from torch's generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from upscore.caffe import caffemodel, schema
from upscore.caffe.io import load_image, resize_image
from upscore.errors import FileFormatError

__all__ = ["Arrays", "batches"]

Arrays = dict[str, NDArray[Any]]


_PARAMETERS = {
    "HDF5Data": "hdf5_data_param",
    "ImageData": "image_data_param",
    "ImageSegData": "image_data_param",
    "DenseImageData": "dense_image_data_param",
}


def batches(param: Any, phase: int) -> Iterator[Arrays] | None:
    """Endless batches of a data layer, as arrays by top; None for layers of other types or without their source.

    Raises:
        FileFormatError: when first asked for a batch, if the files do not hold what the layer says.
    """
    if param.type not in _PARAMETERS:
        return None
    p = getattr(param, _PARAMETERS[param.type])
    if not Path(p.source).is_file():
        return None
    return _hdf5(param) if param.type == "HDF5Data" else _images(param, p, phase)


def _lines(source: str) -> list[str]:
    lines = [line.strip() for line in Path(source).read_text().splitlines() if line.strip()]
    if not lines:
        raise FileFormatError(f"{source}: expected the name of a file on each line, got an empty file")
    return lines


def _in_turn(count: int, shuffle: bool) -> Iterator[int]:
    """The numbers below ``count``, again and again, in another order each time if shuffled."""
    while True:
        yield from torch.randperm(count).tolist() if shuffle else range(count)


def _random(below: int) -> int:
    return int(torch.randint(below, ()))


def _hdf5(param: Any) -> Iterator[Arrays]:
    """Rows of the datasets that are called as the tops are, file after file."""
    import h5py  # type: ignore[import-untyped]

    p, names = param.hdf5_data_param, list(param.top)
    files = _lines(p.source)

    def rows() -> Iterator[list[NDArray[Any]]]:
        for index in _in_turn(len(files), p.shuffle):
            with h5py.File(files[index], "r") as file:
                missing = [name for name in names if name not in file]
                if missing:
                    held = ", ".join(file)
                    raise FileFormatError(f"{files[index]}: expected a dataset {missing[0]!r}, got {held}")
                arrays = [np.asarray(file[name][()], dtype=np.float32) for name in names]
            counts = {len(array) for array in arrays}
            if len(counts) != 1 or 0 in counts:
                shapes = ", ".join(str(array.shape) for array in arrays)
                raise FileFormatError(f"{files[index]}: expected datasets of as many rows, got shapes {shapes}")
            count = counts.pop()
            for row in torch.randperm(count).tolist() if p.shuffle else range(count):
                yield [array[row] for array in arrays]

    return _gathered(rows(), names, p.batch_size, p.source)


def _images(param: Any, p: Any, phase: int) -> Iterator[Arrays]:
    """Images and what is said of them: a number, or (for segmentation) an image of labels."""
    pixels = param.type == "ImageSegData" and p.label_type == schema.ImageDataParameter.PIXEL
    dense = pixels or param.type == "DenseImageData"
    lines = _lines(p.source)
    transform = _Transform(param.transform_param, phase)

    def rows() -> Iterator[list[NDArray[Any]]]:
        order = _in_turn(len(lines), p.shuffle)
        for _ in range(_random(p.rand_skip) if p.rand_skip else 0):
            next(order)
        for index in order:
            name, _, said = lines[index].rpartition(" ")
            if not name:
                wanted = "an image and its labels" if dense else "an image and a number"
                raise FileFormatError(f"{p.source}: expected {wanted} on each line, got {lines[index]!r}")
            image = _load(p, name, color=p.is_color)
            if not dense:
                yield [transform(image)[0], np.array(said, dtype=np.float32)]
                continue
            labels = _load(p, said, color=False, order=0) / getattr(p, "label_divide_factor", 1)
            if labels.shape[1:] != image.shape[1:]:
                sizes = f"{image.shape[1:]} and {labels.shape[1:]}"
                raise FileFormatError(f"{p.source}: expected images and labels of one size, got {sizes} for {name}")
            yield list(transform(image, labels))

    return _gathered(rows(), list(param.top), p.batch_size, p.source)


def _load(p: Any, name: str, *, color: bool, order: int = 1) -> NDArray[np.float32]:
    """An image as ``(K, H, W)`` in 0 to 255, BGR, resized where the layer says so."""
    image = load_image(p.root_folder + name.strip(), color=color) * np.float32(255)
    if p.new_height and p.new_width:
        image = resize_image(image, (p.new_height, p.new_width), interp_order=order)
    blob: NDArray[np.float32] = np.rint(image[:, :, ::-1].transpose(2, 0, 1))
    return blob


class _Transform:
    """Crop (anywhere in training, in the middle at test), mirror, minus the mean, times the scale."""

    def __init__(self, p: Any, phase: int) -> None:
        self._p, self._phase = p, phase
        self._mean = np.array(list(p.mean_value) or [0.0], dtype=np.float32)[:, np.newaxis, np.newaxis]
        if p.mean_file:
            mean = caffemodel.read_mean(p.mean_file)
            self._mean = mean.reshape(mean.shape[-3:])

    def __call__(self, image: NDArray[Any], *labels: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """The image transformed, and label images cropped and mirrored with it."""
        mean = np.broadcast_to(self._mean, image.shape) if self._mean.shape[1:] == (1, 1) else self._mean
        if mean.shape != image.shape:
            raise FileFormatError(f"{self._p.mean_file}: expected a mean of shape {image.shape}, got {mean.shape}")
        planes: Sequence[NDArray[Any]] = ((image - mean) * np.float32(self._p.scale), *labels)
        crop = self._p.crop_size
        if crop:
            room = [size - crop for size in image.shape[1:]]
            if min(room) < 0:
                raise FileFormatError(
                    f"crop_size: expected at most the size {image.shape[1:]} of the image, got {crop}"
                )
            training = self._phase == schema.TRAIN
            y, x = (_random(r + 1) if training else r // 2 for r in room)
            planes = [plane[:, y : y + crop, x : x + crop] for plane in planes]
        if self._p.mirror and _random(2):
            planes = [plane[:, :, ::-1] for plane in planes]
        return tuple(planes)


def _gathered(rows: Iterator[list[NDArray[Any]]], names: Sequence[str], size: int, source: str) -> Iterator[Arrays]:
    """Rows by the batch."""
    while True:
        columns = list(zip(*(next(rows) for _ in range(max(1, size))), strict=True))
        for column in columns:
            shapes = {np.shape(value) for value in column}
            if len(shapes) > 1:
                raise FileFormatError(
                    f"{source}: expected items of one size in a batch, got {sorted(shapes)}; "
                    "resize them (new_height, new_width), crop them (crop_size), or use batch_size: 1"
                )
        yield {name: np.stack(column).astype(np.float32) for name, column in zip(names, columns, strict=False)}
