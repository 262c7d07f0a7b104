"""The registry."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from upscore import dialects
from upscore.errors import ArgumentError

FRAMEWORKS = (
    "torch", "tensorflow", "keras", "jax", "flax", "haiku", "onnx", "onnxruntime", "openvino", "ncnn", "scipy",
    "theano", "lasagne", "caffe",
)  # fmt: skip


def test_no_framework_is_imported_until_it_is_asked_for() -> None:
    """Every system reads, writes, gives code and formula without one; run alone imports, and only its own."""
    program = f"""
import sys
import numpy as np
from upscore import dialects
from upscore.dialects import refusals, sizes
from upscore.geometry import Geometry
layer = dialects.Layer(Geometry(4, 2, 1, 1, rank=2), 1, 1).filled()
for name in dialects.SYSTEMS:
    written = dialects.get(name).write(layer, input_size=3)
    assert dialects.read_back(written) == layer
    assert dialects.get(name).code(layer)
    assert sizes.size_formula(name, layer, 3).size == (6, 6)
found = [m for m in {FRAMEWORKS!r} if m in sys.modules]
assert not found, found
dialects.signal.run(layer, np.ones((1, 1, 3, 3), np.float32))
found = [m for m in {FRAMEWORKS!r} if m in sys.modules]
assert found == ["scipy"], found
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", dialects.SYSTEMS)
def test_every_system_offers_the_same_verbs(name: str) -> None:
    module = dialects.get(name)
    template = dialects.caffe
    for verb in ("read", "write", "code", "formula"):
        mine, theirs = (inspect.signature(getattr(m, verb)).parameters for m in (module, template))
        assert [p for p in mine if p != "backend"] == list(theirs), verb
        assert getattr(module, verb).__doc__


def test_names() -> None:
    assert dialects.get("torch") is dialects.get("PyTorch") is dialects.pytorch
    assert dialects.get("tf") is dialects.tensorflow
    with pytest.raises(ArgumentError, match=r"system: expected one of caffe, .*signal, got 'mxnet'"):
        dialects.get("mxnet")
