"""How the weights of a system lie, said once: as a value that permutes, describes itself and writes its own code.

A layout is a string over ``i`` (input channels of a group), ``o`` (output channels of a group), ``k`` (all
spatial axes) and ``g`` (groups); letters in brackets share one axis. The normal layout is ``(gi)ok``,
TensorFlow's is ``koi``, OpenVINO's for groups is ``giok``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from upscore.dialects.layer import Array
from upscore.errors import ArgumentError

__all__ = ["NORMAL", "Layout"]


@dataclass(frozen=True)
class Layout:
    """The order of the axes of a weight, and whether its taps run backwards.

    >>> import numpy as np
    >>> weight = np.arange(24).reshape(2, 3, 4)              # c_in 2, c_out 3, kernel 4
    >>> Layout("koi", flip=True).write(weight).shape
    (4, 3, 2)
    >>> bool((Layout("koi", flip=True).read(Layout("koi", flip=True).write(weight)) == weight).all())
    True
    """

    axes: str
    flip: bool = False

    @property
    def grouped(self) -> bool:
        """Whether the layout has a place for more than one group."""
        return "g" in self.axes

    def _order(self, rank: int) -> tuple[int, ...]:
        """Axes of the ``(g, i, o, *k)`` array in this layout's order, ``g`` first where the layout lacks it."""
        places = {"g": [0], "i": [1], "o": [2], "k": [3 + axis for axis in range(rank)]}
        letters = [c for c in self.axes if c in places]
        return tuple(axis for c in ([] if self.grouped else ["g"]) + letters for axis in places[c])

    def write(self, weight: Array, groups: int = 1) -> Array:
        """A weight of the normal layout ``(c_in, c_out / groups, *kernel)`` in this one."""
        i, o, *kernel = weight.shape
        if groups > 1 and not self.grouped:
            raise ArgumentError("groups", f"1, for a weight of layout {self.axes}", groups, "groups=1")
        if self.flip:
            weight = np.flip(weight, tuple(range(2, weight.ndim)))
        full = weight.reshape(groups, i // groups, o, *kernel).transpose(self._order(len(kernel)))
        return np.ascontiguousarray(full.reshape(self._shape(groups, i // groups, o, kernel)))

    def read(self, weight: Array, groups: int = 1) -> Array:
        """A weight of this layout in the normal one."""
        weight = np.asarray(weight)
        rank = weight.ndim - len(self._letters()) + 1
        if rank < 1:
            expected = f"at least {len(self._letters())} axes, {self}"
            raise ArgumentError("weight", expected, f"shape {weight.shape}", "the array as the framework stores it")
        sizes = self._sizes(weight.shape, rank, groups)
        order = self._order(rank)
        kernel = sizes["k"]
        lengths = (groups, sizes["i"][0], sizes["o"][0], *kernel)
        full = weight.reshape(tuple(lengths[a] for a in order)).transpose(tuple(np.argsort(order)))
        normal = full.reshape(groups * sizes["i"][0], sizes["o"][0], *kernel)
        if self.flip:
            normal = np.flip(normal, tuple(range(2, normal.ndim)))
        return np.ascontiguousarray(normal)

    def _letters(self) -> list[str]:
        return [m[0].strip("()") for m in re.finditer(r"\([a-z]+\)|[a-z]", self.axes)]

    def _shape(self, groups: int, i: int, o: int, kernel: list[int]) -> tuple[int, ...]:
        of = {"g": groups, "i": i, "o": o}
        shape: list[int] = []
        for letters in self._letters():
            if letters == "k":
                shape += kernel
            else:
                shape.append(int(np.prod([of[c] for c in letters])))
        return tuple(shape)

    def _sizes(self, shape: tuple[int, ...], rank: int, groups: int) -> dict[str, tuple[int, ...]]:
        sizes: dict[str, tuple[int, ...]] = {}
        rest = list(shape)
        for letters in self._letters():
            taken, rest = (rest[:rank], rest[rank:]) if letters == "k" else (rest[:1], rest[1:])
            if letters == "g":
                if taken[0] != groups:
                    raise ArgumentError("weight", f"{groups} groups on its axis g", taken[0], f"groups={taken[0]}")
            elif letters == "k":
                sizes["k"] = tuple(taken)
            else:
                share = groups if "g" in letters else 1
                if taken[0] % share:
                    expected = f"a multiple of groups={groups} on axis ({letters})"
                    raise ArgumentError("weight", expected, f"shape {shape}", "groups=1")
                sizes[letters[-1]] = (taken[0] // share,)
        return sizes

    def code(self, name: str, shape: tuple[int, ...], groups: int = 1) -> str:
        """A NumPy expression that brings ``name``, an array of this normal ``shape``, into this layout."""
        i, o, *kernel = shape
        if self.flip:
            name += f"[:, :, {', '.join(['::-1'] * len(kernel))}]"
        order = self._order(len(kernel))
        if groups == 1 and "g" not in self._letters():
            order = tuple(a - 1 for a in order if a)
            return name if order == tuple(range(len(shape))) else f"{name}.transpose{order}"
        split = (groups, i // groups, o, *kernel)
        whole = self._shape(groups, i // groups, o, kernel)
        text = f"{name}.reshape{split}"
        text += f".transpose{order}" if order != tuple(range(len(split))) else ""
        return text if whole == tuple(split[a] for a in order) else f"{text}.reshape{whole}"

    def __str__(self) -> str:
        words = {"g": "groups", "i": "c_in", "o": "c_out", "k": "*kernel", "gi": "c_in", "go": "c_out"}
        grouped = {"i": "c_in/groups", "o": "c_out/groups"} if self.grouped else {}
        said = ", ".join(grouped.get(c, words[c]) for c in self._letters())
        return f"({said}){' with the taps flipped' if self.flip else ''}"


NORMAL = Layout("(gi)ok")
