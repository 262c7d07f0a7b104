"""``from upscore.caffe import layers as L``: one function per layer type, for :class:`upscore.caffe.NetSpec`.

This module's name belongs to pycaffe's interface; the torch modules behind the layer types live elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upscore.caffe.net_spec import Function, Top


def __getattr__(name: str) -> Callable[..., Function | Top | tuple[Top, ...]]:
    """The function that makes a layer of type ``name`` from its bottoms and its fields."""
    if not name[:1].isupper():  # every layer type is; tools probe modules for names that are not
        raise AttributeError(f"{name!r} is no layer type: those begin with a capital, for example L.Convolution")
    from upscore.caffe.net_spec import make_layer

    def layer(*bottoms: Top, **fields: Any) -> Function | Top | tuple[Top, ...]:
        return make_layer(name, bottoms, fields)

    layer.__name__ = layer.__qualname__ = name
    layer.__doc__ = f"A {name} layer with these bottoms and these fields of its prototxt."
    return layer
