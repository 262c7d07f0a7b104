"""Errors as torch raises them: a RuntimeError where shapes do not fit, a TypeError where types do not."""

from __future__ import annotations

from upscore.errors import ArgumentError

__all__ = ["ShapeError", "as_torch"]


class ShapeError(ArgumentError, RuntimeError):
    """An :class:`ArgumentError` that is also the RuntimeError that torch's own operator raises."""


def as_torch(error: ArgumentError) -> ArgumentError:
    """``error`` as the kind that torch raises in its place; the message stays."""
    if isinstance(error, (TypeError, RuntimeError)):
        return error
    return ShapeError(error.argument, error.expected, error.got, error.example)
