"""``upscore train fcn32s``, then ``fcn16s`` and ``fcn8s`` from it: each stage goes on from the one before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from upscore import filters
from upscore.cli.main import app

CLASSES = {"names": ["ground", "square"], "colours": [[0, 0, 0], [255, 0, 0]], "void": 255}
HOW = (
    "--option width=2 --option padding=1 --option dropout=0 --crops 64x96 --scale 1 1 --light 0 --batch 4 --steps 40 "
    "--rate 0.003 --warmup 5 --average 0.9 --score-every 40 --save-every 40 --threads 1"
)


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright squares of 16 pixels, half the stride of FCN-32s, anywhere on dark ground."""
    root = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for part, count in (("train", 16), ("val", 8)):
        for kind in ("images", "labels"):
            (root / part / kind).mkdir(parents=True)
        for i in range(count):
            labels = np.zeros((64, 96), np.uint8)
            for _ in range(3):
                y, x = rng.integers(0, 48), rng.integers(0, 80)
                labels[y : y + 16, x : x + 16] = 1
            picture = np.where(labels[..., None], 200, 60) + rng.normal(0, 10, (64, 96, 3))
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(root / part / "images" / f"{i}.png")
            Image.fromarray(labels).save(root / part / "labels" / f"{i}.png")
    (root / "classes.json").write_text(json.dumps(CLASSES))
    return root


def train(folder: Path, name: str, run: str, *words: str) -> tuple[dict[str, Tensor], float]:
    """The weights and the mean IoU of a run."""
    command = ["train", name, "--data", str(folder), "--classes", str(folder / "classes.json"), *HOW.split()]
    result = CliRunner().invoke(app, [*command, "-o", str(folder / run), *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    card = json.loads((folder / run / f"{name}.json").read_text())
    return load_file(folder / run / f"{name}.safetensors"), card["validation"]["mean IoU"]


def test_in_stages(folder: Path) -> None:
    _, coarse = train(folder, "fcn32s", "32")
    _, middle = train(folder, "fcn16s", "16", "--from", str(folder / "32" / "checkpoint.pt"))
    weights, fine = train(folder, "fcn8s", "8", "--from", str(folder / "16" / "fcn16s.safetensors"))
    assert fine > middle + 0.05 > coarse + 0.1
    assert weights["score_pool4.weight"].any()
    assert weights["score_pool3.weight"].any()
    bilinear = torch.from_numpy(filters.bilinear(8)).float()
    torch.testing.assert_close(weights["upscore8.weight"], bilinear.expand(2, 1, 16, 16), rtol=0, atol=0)


def test_at_once(folder: Path) -> None:
    options = ("--option", "skip_scales=[0.01, 0.0001]", "--option", "learned=true", "--score-every", "20")
    weights, _ = train(folder, "fcn8s", "at-once", *options)
    first, last = json.loads((folder / "at-once" / "history.json").read_text())
    assert last["loss"] < first["loss"]
    bilinear = torch.from_numpy(filters.bilinear(8)).float()
    assert 0 < (weights["upscore8.weight"] - bilinear).abs().max() < 0.2  # what was bilinear at first has learned
