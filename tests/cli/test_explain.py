"""``upscore explain``."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

import upscore as up
from upscore import filters
from upscore.cli.main import app
from upscore.errors import ArgumentError, FileFormatError


def explain(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["explain", *arguments], catch_exceptions=False, env={"COLUMNS": "120"})
    assert result.exit_code == 0
    return result.stdout


def test_the_layer_that_gave_the_name() -> None:
    text = explain("--input", "16", "--kernel", "64", "--stride", "32")
    for line in ("(16 - 1)*32 + 1*(64 - 1) + 1 - 0 - 0 = 544", "2 x 2 inputs", "a kernel of 3 would touch only 3"):
        assert line in text


def test_same_padding_in_letters() -> None:
    text = explain("--input", "2", "--kernel", "3", "--stride", "2", "--crop", "0:1")
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "a*w7+c*w1 a*w8+c*w2 a*w9+b*w7+c*w3+d*w1 b*w8+d*w2" in rows
    assert [row for row in rows if row in ("1 1 3 2", "4 4 10 6", "3 3 7 4")] == [
        "1 1 3 2",
        "1 1 3 2",
        "4 4 10 6",
        "3 3 7 4",
    ]


def test_json_is_all_of_it() -> None:
    found = json.loads(explain("--input", "5,7", "--kernel", "4,3", "--stride", "2,1", "--padding", "1,0:2", "--json"))
    assert [axis["output"] for axis in found["sizes"]] == [10, 7]
    assert found["geometry"]["crop"] == [[1, 1], [0, 2]]
    assert [row["taps"] for row in found["phases"][0]] == [[0, 2], [1, 3]]
    assert found["checkerboard"]["verdict"] == "equal overlap"
    assert found["definitions"] is None


@pytest.mark.parametrize("kind", ["npy", "safetensors", "two tensors", "bilinear"])
def test_weights_from_a_file(kind, tmp_path) -> None:
    w = filters.channelwise(filters.bilinear((2, 3)), 4).astype(np.float32)
    arguments = []
    if kind == "npy":
        np.save(tmp_path / "w.npy", w)
        arguments = [str(tmp_path / "w.npy")]
    elif kind == "safetensors":
        save_file({"up.weight": w}, tmp_path / "w.safetensors")
        arguments = [str(tmp_path / "w.safetensors")]
    elif kind == "two tensors":
        save_file({"up.weight": w, "up.bias": np.zeros(4, np.float32)}, tmp_path / "w.safetensors")
        arguments = [str(tmp_path / "w.safetensors"), "--tensor", "up.weight"]
    else:
        arguments = ["bilinear"]
    found = json.loads(explain("--stride", "2,3", "--padding", "1", "--weights", *arguments, "--json"))
    assert found["geometry"]["kernel"] == [4, 5]
    assert found["checkerboard"]["verdict"] == "even"
    assert len(found["checkerboard"]["gains"]) == 6


def test_the_engine_says_how_it_would_run_it() -> None:
    arguments = "--input 9,7 --kernel 4 --stride 2 --padding 1 --channels 8:6 --groups 2 --json"
    found = json.loads(explain(*arguments.split()))["engine"]
    assert (found["channels"], found["groups"]) == ([8, 6], 2)
    weights = np.zeros((8, 3, 4, 4), np.float32)
    layer = up.plan(weights, stride=2, padding=1, groups=2)
    layer(np.zeros((1, 8, 9, 7), np.float32))
    assert found["why"] == layer.why
    assert "8 -> 6 channels in 2 groups, float32" in explain(*arguments.split()[:-1])


def test_help_has_examples() -> None:
    assert "upscore explain --input 16 --kernel 64 --stride 32" in explain("--help")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ("", ArgumentError, "--kernel: expected a kernel size, got none; for example --kernel 4"),
        (
            "--input 16 --kernel 1000000000000",
            ArgumentError,
            "kernel: expected at most 4096 per axis, to explain it, got 1000000000000; for example kernel=4",
        ),
        (
            "--input 9000000000000000000 --kernel 4 --stride 2",
            ArgumentError,
            "--input: expected numbers that lead to a size up to 9223372036854775807, got 18000000000000000002; "
            "for example --input 4",
        ),
        (
            "--kernel 4 --channels 6:4 --groups 3",
            ArgumentError,
            "channels: expected multiples of the groups, 3, got 6 in and 4 out; for example 3 in and 3 out",
        ),
        (
            "--weights w.txt",
            ArgumentError,
            "--weights: expected a .npy or .safetensors file, or bilinear, got w.txt; for example --weights layer.npy",
        ),
        (
            "--weights bilinear --stride 100000",
            ArgumentError,
            "--stride: expected a bilinear kernel of at most 4194304 taps, got 100000,100000; for example --stride 32",
        ),
        (
            "--weights {}/line.npy",
            ArgumentError,
            "--weights: expected a kernel of 2 axes or a weight (C_in, C_out/groups, and 2 more), "
            "got shape (1, 1, 4) in {}/line.npy; for example --rank 1",
        ),
        (
            "--weights {}/two.safetensors",
            ArgumentError,
            "--tensor: expected one of a, b, got None; for example --tensor a",
        ),
        (
            "--weights {}/words.npy",
            FileFormatError,
            "{}/words.npy: expected an array of real numbers, got <U4",
        ),
    ],
)
def test_what_cannot_work_is_named(arguments, error, message, tmp_path) -> None:
    np.save(tmp_path / "line.npy", np.ones((1, 1, 4)))
    np.save(tmp_path / "words.npy", np.array(["four"]))
    save_file({"a": np.ones(3), "b": np.ones(3)}, tmp_path / "two.safetensors")
    result = CliRunner().invoke(app, ["explain", *arguments.replace("{}", str(tmp_path)).split()])
    assert isinstance(result.exception, error)
    assert str(result.exception) == message.replace("{}", str(tmp_path))


@pytest.mark.parametrize("name", ["broken.npy", "empty.npy", "broken.safetensors", "pickled.npy"])
def test_files_that_hold_something_else(name, tmp_path) -> None:
    path = tmp_path / name
    path.write_bytes(b"" if name.startswith("empty") else b"\xff\xff\xff\xff\xff\xff\xff\x7f not this")
    if name.startswith("pickled"):
        np.save(path, np.array([{}], object), allow_pickle=True)
    result = CliRunner().invoke(app, ["explain", "--weights", str(path)])
    assert isinstance(result.exception, FileFormatError)
    assert str(result.exception).startswith(f"{path}: not a ")


def test_a_missing_file_is_an_os_error(tmp_path) -> None:
    for name in ("none.npy", "none.safetensors"):
        result = CliRunner().invoke(app, ["explain", "--weights", str(tmp_path / name)])
        assert isinstance(result.exception, FileNotFoundError)
