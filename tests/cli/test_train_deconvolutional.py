"""``upscore train deconvolutional-network``: from a folder of photographs to a network and its pictures."""

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
from upscore.errors import ArgumentError, FileFormatError
from upscore.networks.deconvolutional import DeconvolutionalNetwork
from upscore.training.deconvolutional import Learning


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
        noise = np.random.default_rng(i).integers(0, 256, (44, 52, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return folder


def train(photos: Path, output: Path, *words: str) -> Result:
    small = "--filters 4,5 --size 5,3 --crops 5 --crop 20 --rounds 4 --save-every 2 --threads 1 --sparsity 0.3"
    command = ["train", "deconvolutional-network", "--photos", str(photos), "-o", str(output), *small.split(), *words]
    return CliRunner().invoke(app, command)


def test_a_run_leaves_a_network_its_card_and_pictures(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = train(photos, folder, "--fan-in", "2")
    assert result.exit_code == 0, result.exception
    assert "5 squares of 20 x 20 pixels from 3 photographs" in result.stdout
    assert "layer 2, round 4: objective" in result.stderr
    network = DeconvolutionalNetwork.load(folder / "deconvolutional-network.safetensors")
    assert network.options == {"filters": [4, 5], "size": [5, 3], "sparsity": [0.3, 0.3], "channels": 1, "fan_in": 2}
    card = json.loads((folder / "deconvolutional-network.json").read_text())
    history = json.loads((folder / "history.json").read_text())
    assert [entry["objective"] for entry in card["layers"]] == [history[3]["objective"], history[7]["objective"]]
    assert card["data"] == "5 squares from 3 photographs of the folder photos"
    for name, size in (("filters-1", (200, 53)), ("filters-2", (234, 50)), ("reconstructions", (76, 114))):
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.size == size
        assert f"wrote {folder / name}.png" in result.stdout


def test_a_stopped_run_goes_on_to_the_same_weights(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(photos, whole).exit_code == 0
    one_round = Learning._one_round

    def interrupted(self: Learning, report: object) -> None:
        one_round(self, report)  # type: ignore[arg-type]
        if len(self.history) == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Learning, "_one_round", interrupted)
    stopped = train(photos, parts)
    assert stopped.exit_code == 130
    assert "stopped after round 1 of 4 of layer 2, saved in" in stopped.stderr
    assert "the same command with --resume goes on" in stopped.stderr
    assert [path.name for path in parts.iterdir()] == ["checkpoint.pt"]
    monkeypatch.setattr(Learning, "_one_round", one_round)
    assert train(photos, parts, "--resume").exit_code == 0
    ours, theirs = (folder / "deconvolutional-network.safetensors" for folder in (parts, whole))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_run_is_not_overwritten(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train(photos, folder, "--rounds", "1").exit_code == 0
    again = train(photos, folder)
    assert isinstance(again.exception, ArgumentError)
    assert "--output: expected a folder without a run" in str(again.exception)
    assert train(photos, folder, "--force").exit_code == 0
    other = train(photos, folder, "--resume", "--seed", "3")
    assert "seed: expected 0, as the run began, got 3; for example seed=0" in str(other.exception)
    (photos / "3.png").write_bytes((photos / "0.png").read_bytes())
    assert "photos: expected '" in str(train(photos, folder, "--resume").exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--sparsity", "much"],
            "--sparsity: expected numbers, separated by commas, got 'much'; for example --sparsity 0.5",
        ),
        (["--filters", "4;5"], "--filters: expected whole numbers, separated by commas, got '4;5'"),
        (["--sparsity", "1,2,3"], "sparsity: expected one, or one for each of the 2 layers, got [1.0, 2.0, 3.0]"),
        (["--crop", "23"], "photos: expected photographs of 23 x 23 pixels or more after scaling by 0.5"),
    ],
)
def test_options_that_cannot_work_are_named(photos: Path, tmp_path: Path, words: list[str], message: str) -> None:
    result = train(photos, tmp_path / "run", *words)
    assert isinstance(result.exception, ArgumentError)
    assert str(result.exception).startswith(message)
    assert not (tmp_path / "run").exists()


def test_a_broken_photograph_is_named_before_anything_is_written(photos: Path, tmp_path: Path) -> None:
    (photos / "1.png").write_bytes((photos / "1.png").read_bytes()[:900])
    result = train(photos, tmp_path / "run")
    assert isinstance(result.exception, FileFormatError)
    assert "1.png: not a picture that can be read" in str(result.exception)
    assert not (tmp_path / "run").exists()
