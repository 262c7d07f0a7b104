"""upscore size --dialect."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from upscore.cli.main import app
from upscore.dialects import SYSTEMS, RefusalError
from upscore.errors import ArgumentError

RUNNER = CliRunner()


def run(*words: str) -> str:
    result = RUNNER.invoke(app, ["size", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_formula_of_a_system_with_its_own_parameters() -> None:
    text = run("--dialect", "keras", "--input", "16,10", "kernel_size=3,4", "strides=2", "padding=valid")
    assert text.splitlines() == [
        "Keras: strides*(n - 1) + extent + output_padding",
        "  2*(16 - 1) + 3 + 0 = 33",
        "  2*(10 - 1) + 4 + 0 = 22",
    ]


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_understands_a_plain_layer(system: str) -> None:
    said = json.loads(
        run("--dialect", system, "--kernel", "4", "--stride", "2", "--padding", "1", "--input", "5,7", "--json")
    )
    assert said["output"] == [10, 14]
    assert [eval(numbers, {}) for numbers in said["numbers"]] == [10, 14]


@pytest.mark.parametrize("system", SYSTEMS)
def test_which_parameters_give_500_from_16_at_stride_32(system: str) -> None:
    said = json.loads(
        run("--dialect", system, "--solve", "--input", "16", "--output", "500", "--stride", "32", "--json")
    )
    assert said["solutions"]
    assert all(s["parameters"] for s in said["solutions"])


def test_solutions_are_listed_in_the_systems_words() -> None:
    lines = run("--dialect", "caffe", "--solve", "--input", "8", "--output", "16", "--stride", "2").splitlines()
    assert lines[-1].endswith("kernel_size=[4]  stride=[2]  pad=[1]  (bilinear)")


def test_what_cannot_be_asked() -> None:
    with pytest.raises(ArgumentError, match="--dialect: expected the system whose parameters these are, got None"):
        run("--input", "16", "kernel_size=4")
    with pytest.raises(ArgumentError, match="--output: expected the size to reach, got none"):
        run("--dialect", "caffe", "--solve", "--input", "16", "--stride", "2")
    with pytest.raises(RefusalError, match="Caffe cannot say this layer: pad"):
        run("--dialect", "caffe", "--input", "16", "--kernel", "3", "--stride", "2", "--crop", "0:1")
    with pytest.raises(ArgumentError, match="system: expected one of caffe"):
        run("--dialect", "mxnet", "--input", "16", "--kernel", "3")
