"""Numbers as they are typed: ``4``, ``4,3`` for one per axis, ``1:2`` for a pair before and after."""

from __future__ import annotations

from typing import Annotated

import typer

from upscore.errors import ArgumentError
from upscore.geometry import Geometry

__all__ = [
    "AsJson",
    "Crop",
    "Dilation",
    "GeometryOptions",
    "OutputPadding",
    "Padding",
    "Rank",
    "Stride",
    "in_range",
    "numbers",
    "pairs_of",
]

# The options with which every command says a layer.
Stride = Annotated[str, typer.Option(help="Outputs per input.")]
Padding = Annotated[str | None, typer.Option(help="What is cut: 1, or 1,0:1 (before:after).")]
OutputPadding = Annotated[str | None, typer.Option(help="Outputs added after, as in PyTorch.")]
Dilation = Annotated[str, typer.Option(help="Outputs between taps.")]
Crop = Annotated[str | None, typer.Option(help="Instead of padding, of either sign: 1:2, or -1:0.")]
Rank = Annotated[int | None, typer.Option(help="Number of axes, if all are single numbers (2 if none is given).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

LARGEST = 2**63 - 1
MOST_AXES = 8


def numbers(option: str, text: str) -> tuple[int, ...]:
    """One number per axis, or a single one.

    >>> numbers("--kernel", "4,3")
    (4, 3)
    """
    return tuple(_number(option, item, text) for item in text.split(","))


def pairs_of(option: str, text: str) -> tuple[tuple[int, int], ...]:
    """One ``before:after`` pair per axis, or a single one; a plain number stands for both.

    >>> pairs_of("--crop", "1:2,-3")
    ((1, 2), (-3, -3))
    """
    found = []
    for item in text.split(","):
        ends = [_number(option, end, text) for end in item.split(":")]
        if len(ends) > 2:
            raise ArgumentError(option, "before:after pairs, separated by commas", repr(text), f"{option} 1:2")
        found.append((ends[0], ends[-1]))
    return tuple(found)


def _number(option: str, item: str, text: str) -> int:
    shown = repr(text if len(text) <= 40 else f"{text[:40]}...")
    digits = item.strip().removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        raise ArgumentError(option, "whole numbers, separated by commas", shown, f"{option} 4 or {option} 4,3")
    if len(digits) > len(str(LARGEST)) or int(digits) > LARGEST:
        raise ArgumentError(option, f"numbers up to {LARGEST}", shown, f"{option} 4")
    return int(item)


class GeometryOptions:
    """What was typed for one layer, understood together: the longest list says how many axes there are.

    Single numbers stand for every axis; where there are only single numbers it is an image, 2 axes.
    """

    def __init__(self, rank: int | None = None, **typed: str | None) -> None:
        self._values: dict[str, tuple[tuple[int, int], ...]] = {}
        for name, text in typed.items():
            if text is not None and name in ("padding", "crop"):
                self._values[name] = pairs_of(_option(name), text)
            elif text is not None:
                self._values[name] = tuple((number, number) for number in numbers(_option(name), text))
        longest = max(map(len, self._values.values()), default=1)
        self.rank = rank if rank is not None else longest if longest > 1 else 2
        if not 1 <= self.rank <= MOST_AXES:
            raise ArgumentError("--rank", f"1 to {MOST_AXES} axes", self.rank, "--rank 2")
        for name, values in self._values.items():
            if len(values) not in (1, self.rank):
                expected = f"one value, or {self.rank} of them (one per axis)"
                raise ArgumentError(
                    _option(name), expected, typed[name], f"{_option(name)} {typed[name]}".split(",")[0]
                )

    def ints(self, name: str) -> tuple[int, ...] | None:
        """One int per axis, or None where nothing was typed."""
        pairs = self.pairs(name)
        return None if pairs is None else tuple(before for before, _ in pairs)

    def pairs(self, name: str) -> tuple[tuple[int, int], ...] | None:
        """One pair per axis, or None where nothing was typed."""
        values = self._values.get(name)
        if values is None:
            return None
        return values * self.rank if len(values) == 1 else values

    def geometry(self, kernel: tuple[int, ...] | None = None) -> Geometry:
        """The layer; ``kernel`` is used where none was typed.

        Raises ArgumentError when there is no kernel, and for a crop next to a padding, which say the same.
        """
        kernel = self.ints("kernel") or kernel
        if kernel is None:
            raise ArgumentError("--kernel", "a kernel size", "none", "--kernel 4")
        stride, dilation = self.ints("stride") or 1, self.ints("dilation") or 1
        crop, padding, output_padding = self.pairs("crop"), self.pairs("padding"), self.ints("output_padding")
        if crop is None:
            return Geometry.from_padding(
                kernel,
                stride=stride,
                padding=padding or 0,
                output_padding=output_padding or 0,
                dilation=dilation,
                rank=self.rank,
            )
        if padding is not None or output_padding is not None:
            other = "--padding" if padding is not None else "--output-padding"
            raise ArgumentError("--crop", f"no {other} beside it", "both", "--crop 1:0, or --padding 1")
        return Geometry(kernel, stride, dilation, crop, rank=self.rank)


def in_range(name: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """``sizes``, or an ArgumentError where one does not fit in 64 bits and no program can have such an array."""
    if max(sizes) > LARGEST:
        raise ArgumentError(name, f"numbers that lead to a size up to {LARGEST}", max(sizes), f"{name} 4")
    return sizes


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
