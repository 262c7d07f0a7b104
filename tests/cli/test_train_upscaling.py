"""``upscore train upscale-x2``: a few steps, stopped and continued."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from upscore.cli.main import app
from upscore.errors import ArgumentError
from upscore.training.trainer import Trainer


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (70, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return folder


def train(photos: Path, output: Path, *words: str) -> Result:
    small = [
        "--steps",
        "6",
        "--batch",
        "2",
        "--patch",
        "4",
        "--score-every",
        "2",
        "--save-every",
        "2",
        "--threads",
        "1",
    ]
    return CliRunner().invoke(app, ["train", "upscale-x2", "--data", str(photos), "-o", str(output), *small, *words])


def test_a_stopped_run_goes_on_to_the_same_weights(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = train(photos, whole)
    assert result.exit_code == 0, result.exception
    assert "2 photographs to learn from, 1 to score" in result.stdout
    assert "step 6: loss" in result.stderr
    card = json.loads((whole / "upscale-x2.json").read_text())
    assert card["psnr"]["gain"] == pytest.approx(card["psnr"]["network"] - card["psnr"]["bicubic"], abs=2e-3)

    step = Trainer._one_step

    def interrupted(self: Trainer, report: object) -> None:
        step(self, report)  # type: ignore[arg-type]
        if self.step == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "_one_step", interrupted)
    stopped = train(photos, parts)
    assert stopped.exit_code == 130
    assert "stopped after step 3 of 6, saved in" in stopped.stderr
    assert "the same command with --resume goes on" in stopped.stderr
    monkeypatch.setattr(Trainer, "_one_step", step)
    assert train(photos, parts, "--resume").exit_code == 0
    for name in ("upscale-x2.safetensors", "upscale-x2.pair.safetensors"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()

    big = tmp_path / "big.png"
    weights = str(whole / "upscale-x2.safetensors")
    used = ["run", "upscale-x2", "--weights", weights, str(photos / "0.png"), "-o", str(big)]
    assert CliRunner().invoke(app, used).exit_code == 0
    with Image.open(big) as image:
        assert image.size == (128, 140)
    started = train(photos, tmp_path / "more", "--start", weights, "--rate", "0")
    assert started.exit_code == 0
    assert json.loads((tmp_path / "more" / "upscale-x2.json").read_text())["psnr"] == card["psnr"]


def test_a_run_is_neither_lost_nor_invented(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    lost = train(photos, folder, "--resume")
    assert isinstance(lost.exception, ArgumentError)
    assert "--resume: expected a checkpoint" in str(lost.exception)
    folder.mkdir()
    (folder / "checkpoint.pt").write_bytes(b"")
    again = train(photos, folder)
    assert isinstance(again.exception, ArgumentError)
    assert "--output: expected a folder without a run" in str(again.exception)
