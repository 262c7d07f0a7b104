"""The scripts around the example photograph do what they say."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


def script(monkeypatch: pytest.MonkeyPatch, name: str, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_before_and_after(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script(monkeypatch, "before_after.py", "-o", tmp_path / "deeper" / "both.png")
    with Image.open(tmp_path / "deeper" / "both.png") as sheet:
        pixels = np.asarray(sheet.convert("L"), dtype=float)[30:]
    before, after = pixels[:, : pixels.shape[1] // 2 - 4], pixels[:, pixels.shape[1] // 2 + 4 :]
    assert before.shape == after.shape
    # The same view, and sharper: neighbours differ more.
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.98
    assert np.abs(np.diff(after)).mean() > 1.1 * np.abs(np.diff(before)).mean()


def test_psnr(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Image.open(EXAMPLES / "photo.png") as photo:
        photo.crop((0, 60, 81, 160)).save(tmp_path / "detail.png")
    script(monkeypatch, "psnr.py", tmp_path, "--all")
    mean = capsys.readouterr().out.splitlines()[-1]
    assert mean.startswith("mean of 1: bicubic ")
    assert float(mean.split()[-2]) > 0.5
