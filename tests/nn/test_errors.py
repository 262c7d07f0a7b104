"""Errors of torch's kinds that keep upscore's message."""

from __future__ import annotations

import builtins
import pickle
import sys
from typing import Any

import pytest

from upscore.errors import ArgumentError, ArgumentTypeError, MissingDependencyError
from upscore.nn.errors import ShapeError, as_torch


def test_as_torch_keeps_the_message_and_the_kind() -> None:
    error = as_torch(ArgumentError("stride", "an integer of at least 1", 0, "stride=2"))
    assert isinstance(error, RuntimeError)
    assert isinstance(error, ValueError)
    assert str(error) == "stride: expected an integer of at least 1, got 0; for example stride=2"
    assert as_torch(error) is error
    other = ArgumentTypeError("stride", "an integer", "a", "stride=2")
    assert as_torch(other) is other


def test_shape_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ShapeError("input", "4 channels", 3, "input[:, :3]")))
    assert isinstance(error, ShapeError)
    assert (error.argument, error.got) == ("input", 3)


def test_without_torch_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n == "upscore.nn" or n.startswith("upscore.nn.")]:
        monkeypatch.delitem(sys.modules, name)
    original = builtins.__import__

    def without_torch(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "torch":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    import upscore

    monkeypatch.delattr(upscore, "nn", raising=False)
    with pytest.raises(MissingDependencyError, match=r"upscore.nn needs the package torch.*upscore\[torch\]"):
        upscore.accelerate  # noqa: B018
