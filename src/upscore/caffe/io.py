"""Images into blobs and back: pycaffe's ``caffe.io``.

Images are ``(H, W, K)`` float arrays in [0, 1] with channels in the order RGB; blobs are ``(K, H, W)``, and what a
model wants between the two (mean, scale, channel order) is said to a :class:`Transformer`. Needs Pillow to read
images and torch to resize them. Interface after caffe/python/caffe/io.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upscore.errors import ArgumentError, FileFormatError

__all__ = [
    "Transformer",
    "array_to_blobproto",
    "array_to_datum",
    "arraylist_to_blobprotovector_str",
    "blobproto_to_array",
    "blobprotovector_str_to_arraylist",
    "datum_to_array",
    "load_image",
    "oversample",
    "resize_image",
]

Array = NDArray[Any]


def __getattr__(name: str) -> Any:
    # Programs say caffe.io.caffe_pb2.BlobProto(): pycaffe's module happens to have it.
    if name == "caffe_pb2":
        from upscore.caffe.proto import caffe_pb2

        return caffe_pb2
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


_LUMINANCE = np.array([0.2125, 0.7154, 0.0721], dtype=np.float32)
"""The weights of R, G and B in grey (ITU-R BT.709, as skimage.color.rgb2gray, which pycaffe uses)."""


def blobproto_to_array(blob: Any, return_diff: bool = False) -> Array:
    """The numbers of a ``BlobProto`` (or its gradient) in its shape, new or legacy (num, channels, height, width).

    Raises:
        FileFormatError: when the numbers do not fill the shape.
    """
    single, double = (blob.diff, blob.double_diff) if return_diff else (blob.data, blob.double_data)
    values = np.array(double, dtype=np.float64) if len(double) else np.array(single, dtype=np.float32)
    legacy = any(blob.HasField(f) for f in ("num", "channels", "height", "width"))
    if blob.HasField("shape") or not legacy:
        shape = tuple(blob.shape.dim) if blob.HasField("shape") else values.shape
    else:
        shape = (blob.num, blob.channels, blob.height, blob.width)
    wanted = 1
    for size in shape:
        wanted *= size
    if wanted != values.size or any(size < 0 for size in shape):
        raise FileFormatError(f"a blob says shape {shape}, which is {wanted} numbers, and holds {values.size}")
    return values.reshape(shape)


def array_to_blobproto(arr: ArrayLike, diff: ArrayLike | None = None) -> Any:
    """A ``BlobProto`` of the array's shape and numbers (as float32), and its gradient's.

    >>> blobproto_to_array(array_to_blobproto([[1.0, 2.0, 3.0]])).shape
    (1, 3)
    """
    from upscore.caffe import schema

    blob = schema.BlobProto()
    array = np.asarray(arr)
    blob.shape.dim.extend(array.shape)
    blob.data.extend(array.astype(float).ravel().tolist())
    if diff is not None:
        gradient = np.asarray(diff)
        if gradient.shape != array.shape:
            raise ArgumentError("diff", f"the shape of the array, {array.shape}", gradient.shape, "diff=None")
        blob.diff.extend(gradient.astype(float).ravel().tolist())
    return blob


def arraylist_to_blobprotovector_str(arraylist: Sequence[ArrayLike]) -> bytes:
    """Arrays as the bytes of a ``BlobProtoVector``."""
    from upscore.caffe import schema

    return bytes(schema.BlobProtoVector(blobs=[array_to_blobproto(a) for a in arraylist]).SerializeToString())


def blobprotovector_str_to_arraylist(text: bytes) -> list[Array]:
    """The arrays in the bytes of a ``BlobProtoVector``."""
    from upscore.caffe import schema

    return [blobproto_to_array(blob) for blob in schema.BlobProtoVector.FromString(text).blobs]


def array_to_datum(arr: ArrayLike, label: int | None = None) -> Any:
    """A ``Datum`` of a ``(K, H, W)`` array: bytes for uint8, floats for all else.

    Raises:
        ArgumentError: when the array does not have three axes.
    """
    from upscore.caffe import schema

    array = np.asarray(arr)
    if array.ndim != 3:
        raise ArgumentError("arr", "three axes (channels, height, width)", f"shape {array.shape}", "arr[np.newaxis]")
    datum = schema.Datum(channels=array.shape[0], height=array.shape[1], width=array.shape[2])
    if array.dtype == np.uint8:
        datum.data = array.tobytes()
    else:
        datum.float_data.extend(array.astype(float).ravel().tolist())
    if label is not None:
        datum.label = label
    return datum


def datum_to_array(datum: Any) -> Array:
    """The ``(K, H, W)`` array in a ``Datum``: uint8 or float. Encoded images (JPEG, PNG) are decoded, as BGR.

    Raises:
        FileFormatError: when the numbers do not fill the shape.
    """
    if datum.encoded:
        import io

        pixels = _open(io.BytesIO(datum.data), color=datum.channels != 1)
        return np.ascontiguousarray(pixels[:, :, ::-1].transpose(2, 0, 1))
    values = np.frombuffer(datum.data, dtype=np.uint8) if datum.data else np.array(datum.float_data, dtype=float)
    shape = (datum.channels, datum.height, datum.width)
    if values.size != shape[0] * shape[1] * shape[2]:
        raise FileFormatError(f"a datum says shape {shape} and holds {values.size} numbers")
    return values.reshape(shape).copy()


def _open(file: Any, *, color: bool) -> Array:
    """An image file as ``(H, W, 3)`` or ``(H, W, 1)``: uint8, uint16, or float in [0, 1] (grey made from colour)."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):  # 16 bit (or float) grey, which convert would clip
                grey = np.asarray(image)
                grey = grey if image.mode == "F" else grey.clip(0, 65535).astype(np.uint16)
            elif image.mode in ("1", "L", "LA"):
                grey = np.asarray(image.convert("L"))
            else:
                rgb = np.asarray(image.convert("RGB"))
                return rgb if color else (_unit(rgb) @ _LUMINANCE)[:, :, np.newaxis]
    except UnidentifiedImageError:
        raise FileFormatError(f"{file} is no image that can be read") from None
    return np.repeat(grey[:, :, np.newaxis], 3 if color else 1, axis=2)


def _unit(pixels: Array) -> Array:
    """Pixels as float32 in [0, 1]."""
    if pixels.dtype.kind != "u":
        return pixels.astype(np.float32)
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def load_image(filename: str | os.PathLike[str], color: bool = True) -> NDArray[np.float32]:
    """An image file as a float32 array in [0, 1]: ``(H, W, 3)`` in the order RGB, or ``(H, W, 1)``.

    Grey files become colour by repetition, colour files grey by luminance; an alpha channel is dropped.

    Raises:
        FileFormatError: when the file is no image.
    """
    return _unit(_open(filename, color=color))


def resize_image(im: ArrayLike, new_dims: Sequence[int], interp_order: int = 1) -> NDArray[np.float32]:
    """An ``(H, W, K)`` image at ``new_dims = (height, width)``, float32.

    Images of one or three channels keep their borders (pixel *centres* move to half-pixel positions); arrays of
    other depth keep their corner pixels. Shrinking does not smooth first. So does pycaffe with the scikit-image and
    SciPy of 2015, but for the outermost half pixel of an enlarged image: that is repeated here, and was mixed with
    the image's smallest value there.

    Args:
        im: the image.
        new_dims: the new height and width.
        interp_order: 0 for the nearest pixel, 1 for bilinear, 3 for bicubic.

    Raises:
        ArgumentError: for another order or an array that does not have three axes.

    >>> resize_image(np.array([[[0.0], [1.0]]]), (1, 4))[0, :, 0].tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    import torch
    from torch.nn import functional

    modes = {0: "nearest-exact", 1: "bilinear", 3: "bicubic"}
    if interp_order not in modes:
        raise ArgumentError("interp_order", "0, 1 or 3", interp_order, "interp_order=1")
    image = np.asarray(im, dtype=np.float32)
    if image.ndim != 3:
        raise ArgumentError(
            "im", "three axes (height, width, channels)", f"shape {image.shape}", "im[:, :, np.newaxis]"
        )
    size = tuple(int(n) for n in new_dims)
    corners = None if interp_order == 0 else image.shape[2] not in (1, 3)
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    resized = functional.interpolate(planes, size=size, mode=modes[interp_order], align_corners=corners)
    return np.ascontiguousarray(resized[0].numpy().transpose(1, 2, 0))


def oversample(images: Sequence[ArrayLike], crop_dims: Sequence[int]) -> NDArray[np.float32]:
    """The four corners, the centre, and the mirror images of those five, of every ``(H, W, K)`` image.

    Returns:
        ``(10 * len(images), *crop_dims, K)``: top left, top right, bottom left, bottom right, centre, then mirrored.

    Raises:
        ArgumentError: when a crop is larger than an image.
    """
    h, w = (int(n) for n in crop_dims)
    crops = []
    for image in (np.asarray(i, dtype=np.float32) for i in images):
        down, right = image.shape[0] - h, image.shape[1] - w
        if down < 0 or right < 0:
            got = f"{h} x {w} of an image of {image.shape[0]} x {image.shape[1]}"
            raise ArgumentError("crop_dims", "at most the size of the image", got, f"crop_dims={image.shape[:2]}")
        corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
        five = [image[y : y + h, x : x + w] for y, x in corners]
        crops += five + [crop[:, ::-1] for crop in five]
    return np.stack(crops)


class Transformer:
    """Turns images into what a net's input wants, and back.

    In order: resize, transpose, swap channels, times the raw scale, minus the mean, times the input scale. Each
    step happens only where it has been set, per input.

    Args:
        inputs: the name of each input and the shape of its blob, ``(N, K, H, W)``.

    >>> t = Transformer({"data": (1, 3, 2, 2)})
    >>> t.set_transpose("data", (2, 0, 1))
    >>> t.set_channel_swap("data", (2, 1, 0))
    >>> t.set_raw_scale("data", 255)
    >>> t.preprocess("data", np.ones((2, 2, 3)))[:, 0, 0].tolist()
    [255.0, 255.0, 255.0]
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]]) -> None:
        self.inputs = {name: tuple(int(n) for n in shape) for name, shape in inputs.items()}
        self.transpose: dict[str, tuple[int, ...]] = {}
        self.channel_swap: dict[str, tuple[int, ...]] = {}
        self.raw_scale: dict[str, float] = {}
        self.mean: dict[str, Array] = {}
        self.input_scale: dict[str, float] = {}

    def _check(self, in_: str) -> tuple[int, ...]:
        if in_ not in self.inputs:
            known = ", ".join(self.inputs)
            raise ArgumentError("in_", f"one of the inputs {known}", repr(in_), repr(next(iter(self.inputs), "data")))
        return self.inputs[in_]

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """The axes of the image that become the blob's: ``(2, 0, 1)`` from H x W x K to K x H x W."""
        axes = len(self._check(in_)) - 1
        if sorted(order) != list(range(axes)):
            raise ArgumentError("order", f"an order of the axes 0 to {axes - 1}", tuple(order), "order=(2, 0, 1)")
        self.transpose[in_] = tuple(order)

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """Where each channel of the blob comes from: ``(2, 1, 0)`` from RGB to Caffe's BGR."""
        channels = self._check(in_)[1]
        if len(order) != channels:
            raise ArgumentError("order", f"one number for each of the {channels} channels", tuple(order), "(2, 1, 0)")
        self.channel_swap[in_] = tuple(order)

    def set_raw_scale(self, in_: str, scale: float) -> None:
        """The factor before the mean is subtracted: 255 for models trained on [0, 255]."""
        self._check(in_)
        self.raw_scale[in_] = scale

    def set_mean(self, in_: str, mean: ArrayLike) -> None:
        """What is subtracted: one number per channel, or an image ``(K, h, w)`` (resized where it must be)."""
        shape = self._check(in_)
        array = np.asarray(mean, dtype=np.float32)
        if array.ndim == 1:
            array = array[:, np.newaxis, np.newaxis]
        elif array.ndim == 2:
            array = array[np.newaxis]
        if array.ndim != 3 or array.shape[0] not in (1, shape[1]):
            expected = f"{shape[1]} numbers, or an image with as many channels"
            raise ArgumentError("mean", expected, f"shape {np.shape(mean)}", f"mean=np.zeros({shape[1]})")
        if array.shape[1:] not in ((1, 1), shape[2:]):
            array = resize_image(array.transpose(1, 2, 0), shape[2:]).transpose(2, 0, 1)
        self.mean[in_] = array

    def set_input_scale(self, in_: str, scale: float) -> None:
        """The factor after the mean has been subtracted."""
        self._check(in_)
        self.input_scale[in_] = scale

    def preprocess(self, in_: str, data: ArrayLike) -> NDArray[np.float32]:
        """The image as one item of the input's batch, ``(K, H, W)``."""
        size = self._check(in_)[2:]
        image = np.array(data, dtype=np.float32)
        if image.shape[:2] != size:
            image = resize_image(image, size)
        if in_ in self.transpose:
            image = image.transpose(self.transpose[in_])
        if in_ in self.channel_swap:
            image = image[list(self.channel_swap[in_])]
        image = image * np.float32(self.raw_scale.get(in_, 1))
        if in_ in self.mean:
            image = image - self.mean[in_]
        return np.ascontiguousarray(image * np.float32(self.input_scale.get(in_, 1)))

    def deprocess(self, in_: str, data: ArrayLike) -> NDArray[np.float32]:
        """One item of the batch, ``(K, H, W)`` or ``(1, K, H, W)``, as the image it came from (but for its size)."""
        axes = len(self._check(in_)) - 1
        image = np.asarray(data, dtype=np.float32)
        if image.ndim == axes + 1 and image.shape[0] == 1:
            image = image[0]
        if image.ndim != axes:
            raise ArgumentError("data", f"one item of the batch, {axes} axes", f"shape {image.shape}", "data[0]")
        if in_ in self.input_scale:
            image = image / np.float32(self.input_scale[in_])
        if in_ in self.mean:
            image = image + self.mean[in_]
        if in_ in self.raw_scale:
            image = image / np.float32(self.raw_scale[in_])
        if in_ in self.channel_swap:
            image = image[np.argsort(self.channel_swap[in_])]
        if in_ in self.transpose:
            image = image.transpose(np.argsort(self.transpose[in_]))
        return np.ascontiguousarray(image)
