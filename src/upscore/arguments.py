"""Numbers as callers pass them, one or several, made one per axis. Standard library only."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence, Sized

from upscore.errors import ArgumentError, ArgumentTypeError

__all__ = ["Ints", "Pairs", "integer", "pairs", "per_axis", "rank_of"]

Ints = int | Sequence[int]
Pairs = int | Sequence[int] | Sequence[tuple[int, int]]


def integer(name: str, value: object, least: int | None) -> int:
    """``value`` as a Python int, or an error naming ``name``."""
    expected = "an integer" if least is None else f"an integer of at least {least}"
    example = f"{name}={max(least or 0, 1)}"
    if isinstance(value, bool):
        raise ArgumentTypeError(name, expected, repr(value), example)
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentTypeError(name, expected, repr(value), example) from None
    if least is not None and number < least:
        raise ArgumentError(name, expected, number, example)
    return number


def _many(value: object) -> tuple[object, ...] | None:
    """The elements of ``value``, or None where it is a single thing (a 0-d array and a string are)."""
    if isinstance(value, str) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        return None
    return tuple(value)


def rank_of(*given: object) -> int:
    """How many axes the first of ``given`` that has several values speaks of; 1 if none does."""
    lengths = (len(v) for v in given if isinstance(v, Sized) and not isinstance(v, str) and getattr(v, "ndim", 1) != 0)
    return next(lengths, 1)


def per_axis(name: str, value: Ints, rank: int, *, least: int | None = None) -> tuple[int, ...]:
    """One integer per axis from an int (used for every axis) or a sequence of ``rank`` ints.

    >>> per_axis("stride", 2, rank=3)
    (2, 2, 2)
    """
    values = _many(value)
    if values is None:
        return (integer(name, value, least),) * rank
    if len(values) != rank:
        example = f"{name}={(max(least or 0, 1),) * rank}"
        raise ArgumentError(name, f"one integer, or {rank} of them (one per axis)", values, example)
    return tuple(integer(name, v, least) for v in values)


def pairs(name: str, value: Pairs, rank: int, *, least: int | None = None) -> tuple[tuple[int, int], ...]:
    """A ``(before, after)`` pair per axis from an int, one int per axis, or one pair per axis.

    >>> pairs("padding", (1, 2), rank=2)
    ((1, 1), (2, 2))
    >>> pairs("padding", ((0, 1), (2, 3)), rank=2)
    ((0, 1), (2, 3))
    """
    values = _many(value)
    if values is None:
        values = (integer(name, value, least),) * rank
    if len(values) != rank:
        expected = f"one integer, {rank} integers, or {rank} (before, after) pairs"
        raise ArgumentError(name, expected, values, f"{name}={((0, 1),) * rank}")
    result = []
    for v in values:
        both = _many(v)
        if both is None:
            both = (v, v)
        if len(both) != 2:
            raise ArgumentError(name, "pairs (before, after)", v, f"{name}={((0, 1),) * rank}")
        result.append((integer(name, both[0], least), integer(name, both[1], least)))
    return tuple(result)
