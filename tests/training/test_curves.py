"""Without the libraries that draw, the error says which extra brings them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from upscore.errors import MissingDependencyError
from upscore.training import curves
from upscore.training.tensorboard import Board


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"drawing curves needs .* matplotlib, .* 'upscore\[train\]'"):
        curves.draw([{"step": 1, "loss": 1.0, "rate": 1.0, "score": 0.0}], tmp_path / "curves.svg")


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"--tensorboard needs .* tensorboard, .* 'upscore\[train\]'"):
        Board(tmp_path)
