"""Protobuf's binary format, read where it lies: a mapped file is walked field by field and its floats are views.

Caffe's models are hundreds of megabytes of packed floats in a thin shell. Walking the shell takes no memory for
them, and every length is checked against what encloses it before it is believed.

Source: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from upscore.errors import FileFormatError

__all__ = ["Field", "Floats", "Reader", "length_delimited", "open_reader", "tag", "varint"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_FIELDS = 100_000
_MOST_AXES = 32  # kMaxBlobAxes of Caffe's blob.hpp


class Field(NamedTuple):
    """One field: its number, its wire type, and its value (varint) or where its bytes begin and end."""

    number: int
    wire: int
    start: int
    end: int

    @property
    def value(self) -> int:
        """Of a varint: its value, which is kept as ``start``."""
        return self.start


@dataclass
class Floats:
    """Numbers gathered from one or several fields, packed or not, as views until they are asked for."""

    parts: list[NDArray[np.generic]] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(p.size for p in self.parts)

    def array(self) -> NDArray[np.float32]:
        """All of them as float32: a view of the file where one packed field holds them."""
        if len(self.parts) == 1 and self.parts[0].dtype == np.dtype("<f4"):
            return self.parts[0]  # type: ignore[return-value]
        with np.errstate(over="ignore"):  # a double beyond float32 is infinity there
            return np.concatenate([p.astype(np.float32) for p in self.parts] or [np.zeros(0, np.float32)])


class Reader:
    """A buffer of protobuf messages, and what an error should call it."""

    def __init__(self, buffer: mmap.mmap | bytes, where: str) -> None:
        self.buffer, self.where, self._seen = buffer, where, 0

    def error(self, text: str, at: int) -> FileFormatError:
        """The error to raise at a byte position."""
        return FileFormatError(f"{self.where}, byte {at}: {text}; is the file complete, and of this kind?")

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message that lies between two positions.

        Raises:
            FileFormatError: for a length that reaches beyond the message, an unknown wire type, or more fields in
                all than any model has.
        """
        at = start
        while at < end:
            self._seen += 1
            if self._seen > _MOST_FIELDS:
                raise self.error(f"more than {_MOST_FIELDS} fields, which no net has", at)
            begin = at
            key, at = self._varint(at, end)
            number, wire = key >> 3, key & 7
            if wire == _VARINT:
                value, at = self._varint(at, end)
                yield Field(number, wire, value, at)
                continue
            if wire == _BYTES:
                length, at = self._varint(at, end)
            elif wire in (_FIXED64, _FIXED32):
                length = 8 if wire == _FIXED64 else 4
            else:
                raise self.error(f"wire type {wire} is none of Caffe's", begin)
            if number == 0 or length > end - at:
                raise self.error(f"field {number} claims {length} bytes where {end - at} are left", begin)
            yield Field(number, wire, at, at + length)
            at += length

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise self.error("the message ends inside a number", at)
            byte = self.buffer[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & (2**64 - 1), at
        raise self.error("a number of more than 10 bytes", at)

    def text(self, found: Field) -> str:
        """The field as a string; what is not UTF-8 is replaced."""
        return self._bytes(found).decode("utf-8", errors="replace")

    def _bytes(self, found: Field) -> bytes:
        if found.wire != _BYTES:
            raise self.error(f"field {found.number} should hold bytes", found.start)
        return self.buffer[found.start : found.end]

    def integers(self, found: Field) -> list[int]:
        """A repeated int64 field, packed or not, at most as many as a blob has axes."""
        if found.wire == _VARINT:
            return [_signed(found.value)]
        values: list[int] = []
        at = found.start
        while at < found.end:
            value, at = self._varint(at, found.end)
            values.append(_signed(value))
            if len(values) > _MOST_AXES:
                raise self.error(f"a shape of more than {_MOST_AXES} axes", found.start)
        return values

    def numbers(self, found: Field, into: Floats, dtype: str) -> None:
        """Gather a field of a repeated float or double, packed or not."""
        size = np.dtype(dtype).itemsize
        if (found.end - found.start) % size or found.wire not in (_BYTES, _FIXED32 if size == 4 else _FIXED64):
            raise self.error(f"field {found.number} should hold numbers of {size} bytes", found.start)
        count = (found.end - found.start) // size
        if count:
            into.parts.append(np.frombuffer(self.buffer, dtype, count, found.start))

    def blob(self, found: Field, what: str) -> tuple[NDArray[np.float32], bool]:
        """A ``BlobProto`` as an array, and whether its shape is the old one of four numbers.

        Raises:
            FileFormatError: when its shape and the count of its numbers do not agree.
        """
        self._bytes_only(found)
        single, double = Floats(), Floats()
        shape: list[int] | None = None
        old = {1: 0, 2: 0, 3: 0, 4: 0}
        for part in self.fields(found.start, found.end):
            if part.number == 5:
                self.numbers(part, single, "<f4")
            elif part.number == 8:
                self.numbers(part, double, "<f8")
            elif part.number == 7:
                self._bytes_only(part)
                dims = [d for f in self.fields(part.start, part.end) if f.number == 1 for d in self.integers(f)]
                shape = dims if shape is None else [*shape, *dims]
            elif part.number in old and part.wire == _VARINT:
                old[part.number] = _signed(part.value)
        numbers = double if len(double) else single
        legacy = shape is None and any(old.values())
        sizes = list(old.values()) if legacy else shape if shape is not None else [len(numbers)]
        if any(n < 0 for n in sizes) or len(sizes) > _MOST_AXES or math.prod(sizes) != len(numbers):
            raise self.error(f"{what} claims the shape {tuple(sizes)} but holds {len(numbers)} numbers", found.start)
        return numbers.array().reshape(sizes), legacy

    def _bytes_only(self, found: Field) -> None:
        if found.wire != _BYTES:
            raise self.error(f"field {found.number} should hold a message", found.start)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def open_reader(path: str | os.PathLike[str]) -> Reader:
    """Map a file for reading.

    Raises:
        OSError: when it cannot be opened.
        FileFormatError: when it is empty.
    """
    with Path(path).open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise FileFormatError(f"{path}: the file is empty")
        return Reader(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), str(path))


def varint(value: int) -> bytes:
    """A non-negative number as a varint.

    >>> varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(number: int, length: int) -> bytes:
    """What comes before ``length`` bytes of field ``number``."""
    return varint(number << 3 | _BYTES) + varint(length)


def length_delimited(number: int, body: bytes) -> bytes:
    """A whole field of bytes.

    >>> length_delimited(1, b"up").hex()
    '0a027570'
    """
    return tag(number, len(body)) + body
