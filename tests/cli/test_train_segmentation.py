"""``upscore train street`` and ``upscore evaluate``: a few steps, killed and continued, and measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from training import streets
from typer.testing import CliRunner, Result

from upscore.cli.main import app
from upscore.errors import ArgumentError, FileFormatError
from upscore.networks.street import Street
from upscore.training.trainer import Trainer

WORDS = [
    *("--option", "width=2", "--batch", "2", "--crops", "24x32,32x48", "--average", "0.5", "--threads", "1"),
    *("--steps", "8", "--warmup", "2", "--score-every", "4", "--save-every", "2"),
]


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return streets.write(tmp_path_factory.mktemp("streets"))


def command(data: Path, output: Path, *words: str, network: str = "street") -> list[str]:
    tables = ["--data", str(data), "--classes", str(data / "classes.json"), "-o", str(output)]
    return ["train", network, *tables, *WORDS, *words]


def invoke(words: list[str]) -> Result:
    return CliRunner().invoke(app, words)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = invoke(command(data, folder, "--tensorboard"))
    assert result.exit_code == 0, result.exception
    assert "4 pictures to learn from, 2 to score" in result.stdout
    assert "step 8: loss" in result.stderr
    assert "mean IoU" in result.stderr
    return folder


def test_a_run_leaves_weights_a_card_curves_and_pictures(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} == {
        *("checkpoint.pt", "street.safetensors", "street.json", "history.json", "curves.svg", "predictions.png"),
        "tensorboard",
    }
    card = json.loads((whole / "street.json").read_text())
    history = json.loads((whole / "history.json").read_text())
    assert card["steps"] == 8
    assert card["data"].startswith("4 pictures of streets")
    assert card["validation"]["mean IoU"] == round(max(entry["mean IoU"] for entry in history), 4)
    assert set(card["validation IoU"]) == {"red", "green", "blue"}
    Street(3, width=2).load_state_dict(load_file(whole / "street.safetensors"))
    with Image.open(whole / "predictions.png") as sheet:
        assert sheet.size == (3 * 56, 2 * 42)


def test_tensorboard_finds_the_history(whole: Path) -> None:
    events = pytest.importorskip("tensorboard.compat.proto.event_pb2", reason="tensorboard is not installed")
    found: dict[str, dict[int, float]] = {}
    for path in (whole / "tensorboard").iterdir():
        stream = path.read_bytes()
        while stream:  # records: length, checksum of it, data, checksum of them
            length = int.from_bytes(stream[:8], "little")
            event = events.Event.FromString(stream[12 : 12 + length])
            for value in event.summary.value:
                numbers = value.tensor.float_val or [value.simple_value]
                found.setdefault(value.tag, {})[event.step] = numbers[0]
            stream = stream[12 + length + 4 :]
    for entry in json.loads((whole / "history.json").read_text()):
        for tag, name in (("mean-IoU", "mean IoU"), ("loss", "loss"), ("rate", "rate")):
            assert found[tag][entry["step"]] == pytest.approx(entry[name], rel=1e-6)


def same_result(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in ("street.safetensors",))


def test_a_run_stopped_by_ctrl_c_ends_with_the_same_weights(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._one_step

    def interrupted(self: Trainer, report: Any) -> None:
        step(self, report)
        if self.step == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "_one_step", interrupted)
    stopped = invoke(command(data, tmp_path / "run"))
    assert stopped.exit_code == 130
    assert "stopped after step 3 of 8, saved in" in stopped.stderr
    monkeypatch.setattr(Trainer, "_one_step", step)
    resumed = invoke(command(data, tmp_path / "run", "--resume"))
    assert resumed.exit_code == 0, resumed.exception
    assert same_result(tmp_path / "run", whole)


def test_a_killed_run_ends_with_the_same_weights(data: Path, whole: Path, tmp_path: Path) -> None:
    slow = "import sys, time; from upscore.training.trainer import Trainer; from upscore.cli.main import main\n"
    slow += "step = Trainer._one_step\n"
    slow += "Trainer._one_step = lambda self, report: (step(self, report), time.sleep(0.2))\n"
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", slow + "main()", *command(data, tmp_path / "run")], env=one_thread)
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert child.poll() is None
        time.sleep(0.02)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    resumed = invoke(command(data, tmp_path / "run", "--resume"))
    assert resumed.exit_code == 0, resumed.exception
    assert same_result(tmp_path / "run", whole)


@pytest.mark.parametrize("words", [["street", "--weights", "street.safetensors"], ["checkpoint.pt"]])
def test_evaluating_measures_what_the_card_says(data: Path, whole: Path, words: list[str]) -> None:
    network = [str(whole / word) if "." in word else word for word in words]
    if words[0] == "street":  # its width is not the default's
        state = load_file(whole / "street.safetensors")
        with pytest.raises(RuntimeError, match="size mismatch"):
            Street(3).load_state_dict(state)
        refused = invoke(["evaluate", *network, "--data", str(data / "val"), "--classes", str(data / "classes.json")])
        assert isinstance(refused.exception, FileFormatError)
        assert "not weights that Street can begin from" in str(refused.exception)
        network += ["--option", "width=2"]
    asked = ["evaluate", *network, "--data", str(data / "val"), "--classes", str(data / "classes.json")]
    result = invoke([*asked, "--json"])
    assert result.exit_code == 0, result.exception
    facts, card = json.loads(result.stdout), json.loads((whole / "street.json").read_text())
    assert {name: round(facts[name], 4) for name in card["validation"]} == card["validation"]
    assert {name: round(iou, 4) for name, iou in facts["IoU"].items()} == card["validation IoU"]
    assert facts["pictures"] == 2
    shown = invoke(asked)
    assert f"mean IoU: {100 * facts['mean IoU']:.2f} %" in shown.stdout
    assert all(name in shown.stdout for name in ("red", "green", "blue", "share of pixels"))


def test_training_begins_from_a_checkpoint(data: Path, whole: Path, tmp_path: Path) -> None:
    words = ["--from", str(whole / "checkpoint.pt"), "--rate", "0", "--average", "0", "--steps", "1", "--force"]
    begun = invoke(command(data, tmp_path / "run", *words))
    assert begun.exit_code == 0, begun.exception
    before, after = (load_file(folder / "street.safetensors") for folder in (whole, tmp_path / "run"))
    for name, value in before.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(after[name], value), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--option", "depth=3"], r"option: expected one of width, .*, got 'depth'; for example --option width=..."),
        (["--option", "width"], r"--option: expected NAME=VALUE, got 'width'; for example --option width=24"),
        (["--crops", "32"], r"--crops: expected sizes as HxW, separated by commas, got '32'; for example"),
        (["--scale", "2", "1"], r"scale: expected two positive numbers, the smaller first"),
        (["--optimizer", "lion"], r"optimizer: expected one of adam, adamw, sgd, got 'lion'"),
        (["--balance", "fair"], r"balance: expected one of none, enet, median, root, got 'fair'"),
        (["--resume"], r"--resume: expected a checkpoint .*checkpoint.pt, got no such file"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(data: Path, tmp_path: Path, words: list[str], message: str) -> None:
    refused = invoke(command(data, tmp_path / "run", *words))
    with pytest.raises(ArgumentError, match=message):
        raise refused.exception or AssertionError(refused.stdout)
    assert not (tmp_path / "run").exists()


def test_bad_labels_are_named_before_the_run(tmp_path: Path) -> None:
    data = streets.write(tmp_path / "data")
    Image.new("L", (56, 40), 9).save(data / "val" / "labels" / "100.png")
    refused = invoke(command(data, tmp_path / "run"))
    with pytest.raises(FileFormatError, match=r"val/labels/100.png: labels are 0 to 2, or 3 where there is no class"):
        raise refused.exception or AssertionError(refused.stdout)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["nowhere"],
            r"network: expected the name of a bundled network that segments, or a checkpoint of upscore train",
        ),
        (
            ["upscale-x2", "--weights", "classes.json"],
            r"network: expected one of street, .*, with --weights, got 'upsc",
        ),
        (["classes.json"], r"classes.json: not a checkpoint that training wrote"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(data)
    refused = invoke(["evaluate", *words, "--data", "val"])
    with pytest.raises((ArgumentError, FileFormatError), match=message):
        raise refused.exception or AssertionError(refused.stdout)


def test_a_checkpoint_of_other_classes_is_refused(data: Path, whole: Path) -> None:
    refused = invoke(["evaluate", str(whole / "checkpoint.pt"), "--data", str(data / "val")])
    with pytest.raises(
        ArgumentError, match=r"--classes: expected the classes that .* was trained on \(red, green, blue"
    ):
        raise refused.exception or AssertionError(refused.stdout)
