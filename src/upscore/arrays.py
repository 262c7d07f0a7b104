"""What comes in decides what goes out: arrays of every kind in, NumPy inside, the same kind out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upscore.errors import ArgumentTypeError

__all__ = ["Array", "Restore", "read", "read_integers", "wrap_as"]

Array = NDArray[Any]
Restore = Callable[[Array], Any]

_NATIVE = (np.dtype(np.float32), np.dtype(np.float64))


def read(name: str, value: Any) -> tuple[Array, Restore]:
    """``value`` as a contiguous float32 or float64 array, and what turns a result into its kind and dtype.

    float16 and bfloat16 become float32 here, and float16 and bfloat16 again in the result.

    Raises:
        ArgumentTypeError: if it is not an array, cannot be shared on the CPU, or holds other numbers.
    """
    if type(value) is np.ndarray and value.dtype in _NATIVE and value.flags.c_contiguous and value.flags.aligned:
        return value, _identity
    if not isinstance(value, np.ndarray) and str(getattr(value, "dtype", "")).endswith("bfloat16"):
        return _read_bfloat16(name, value)
    array, wrap = _view(name, value), wrap_as(value)
    dtype = array.dtype.newbyteorder("=")
    if dtype == np.float32 or dtype == np.float64:
        return _contiguous(array, dtype), wrap
    if dtype == np.float16 or dtype.name == "bfloat16":
        return _contiguous(array, np.dtype(np.float32)), lambda y: wrap(y.astype(dtype))
    raise ArgumentTypeError(
        name, "float32, float64, float16 or bfloat16 numbers", dtype.name, f"{name}.astype('float32')"
    )


def read_integers(name: str, value: Any) -> NDArray[np.int64]:
    """``value`` as a contiguous int64 array.

    Raises:
        ArgumentTypeError: if it is not an array, cannot be shared on the CPU, or holds other numbers.
    """
    array = _view(name, value)
    if array.dtype.kind not in "iu":
        raise ArgumentTypeError(name, "integers", array.dtype.name, f"{name}.astype('int64')")
    return _contiguous(array, np.dtype(np.int64))


def wrap_as(value: Any) -> Restore:
    """What turns a NumPy array into the kind of array that ``value`` is; NumPy stays where the kind has no way."""
    back = None if isinstance(value, np.ndarray) else getattr(_home(value), "from_dlpack", None)
    return _identity if back is None else back


def _identity(y: Array) -> Any:
    return y


def _contiguous(array: Array, dtype: np.dtype[Any]) -> Array:
    """What the engine reads: dense, each number at a multiple of its size, no subclass."""
    return np.require(array, dtype, ["C", "A", "E"])


def _home(value: Any) -> Any:
    """The module in which ``value``'s kind keeps ``from_dlpack``."""
    package = type(value).__module__.partition(".")[0]
    return sys.modules.get("jax.numpy" if package.startswith("jax") else package)


def _view(name: str, value: Any) -> Array:
    """``value`` as a NumPy array, of the same memory where it is not one."""
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "__dlpack__"):
        raise ArgumentTypeError(name, "a NumPy or DLPack array", type(value).__name__, f"numpy.asarray({name})")
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ArgumentTypeError(
            name,
            "an array that DLPack can share on the CPU",
            f"one that cannot be shared ({error})",
            f"{name}.detach().cpu()",
        ) from error


def _read_bfloat16(name: str, value: Any) -> tuple[Array, Restore]:
    """NumPy's DLPack reader knows no bfloat16: the array's own library converts, both ways."""
    if hasattr(value, "float"):  # torch
        array, wrap = read(name, value.float())
        return array, lambda y: wrap(y).to(value.dtype)
    array, wrap = read(name, value.astype("float32"))
    return array, lambda y: wrap(y).astype(value.dtype)
