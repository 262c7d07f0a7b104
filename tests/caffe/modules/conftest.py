"""A net of one layer, from its type, its fields and the shapes of its bottoms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def one_layer() -> Callable[..., Any]:
    """``one_layer(type, fields, shapes, tops=1, phase=TEST)``: bottoms are b0, b1, ..., tops t0, t1, ..."""
    pytest.importorskip("torch", reason="the Caffe side runs on torch")
    pytest.importorskip("google.protobuf", reason="the Caffe side reads protobuf")
    from upscore.caffe import prototxt, schema
    from upscore.caffe.graph import Graph

    def build(kind: str, fields: str, shapes: list[tuple[int, ...]], tops: int = 1, phase: int = schema.TEST) -> Graph:
        lines = []
        for i, shape in enumerate(shapes):
            dims = " ".join(f"dim: {n}" for n in shape)
            lines.append(f'layer {{ name: "b{i}" type: "Input" top: "b{i}" input_param {{ shape {{ {dims} }} }} }}')
        bottoms = " ".join(f'bottom: "b{i}"' for i in range(len(shapes)))
        names = " ".join(f'top: "t{i}"' for i in range(tops))
        lines.append(f'layer {{ name: "layer" type: "{kind}" {bottoms} {names} {fields} }}')
        return Graph(prototxt.read("\n".join(lines) + "\n", schema.NetParameter()), phase)

    return build
