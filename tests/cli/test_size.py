"""``upscore size``."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from upscore.cli.main import app
from upscore.errors import ArgumentError


def size(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["size", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--input 16 --kernel 64 --stride 32", "16 x 16 -> 544 x 544"),
        ("--input 2 --kernel 3 --stride 2 --padding 0:1", "2 x 2 -> 4 x 4"),
        ("--input 10,12 --kernel 4,3 --stride 2 --padding 1,0:1", "10 x 12 -> 20 x 24"),
        ("--input 5 --kernel 3 --stride 2 --padding 1 --output-padding 1,0", "5 x 5 -> 10 x 9"),
        ("--input 5 --kernel 3,2 --dilation 2,3 --rank 2", "5 x 5 -> 9 x 8"),
        ("--input 5 --kernel 3 --crop -1:2 --rank 1", "5 -> 6"),
        ("--input 2,3,4 --kernel 2 --stride 2", "2 x 3 x 4 -> 4 x 6 x 8"),
        ("--adjoint --input 227 --kernel 11 --stride 4", "227 x 227 -> 55 x 55"),
        ("--adjoint --input 5 --kernel 3 --stride 2", "5 x 5 -> 2 x 2"),
        ("--input 16 --kernel 1000000000000 --stride 32", "16 x 16 -> 1000000000480 x 1000000000480"),
    ],
)
def test_sizes(arguments, expected) -> None:
    assert size(*arguments.split()) == expected + "\n"


def test_json() -> None:
    found = json.loads(size("--input", "16,3", "--kernel", "64,2", "--stride", "32,1", "--json"))
    assert found == {"input": [16, 3], "output": [544, 4], "adjoint": False}


def test_solve_lists_the_layers_and_marks_the_bilinear_one() -> None:
    text = size("--solve", "--input", "8,9", "--output", "16,18", "--stride", "2")
    assert "8 x 9 -> 16 x 18 at stride 2 x 2" in text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert rows == [
        ["2 x 2", "0 x 0", "0 x 0", "0:0,0:0", ""],
        ["3 x 3", "1 x 1", "1 x 1", "1:0,1:0", ""],
        ["4 x 4", "1 x 1", "0 x 0", "1:1,1:1", "bilinear"],
    ]


def test_solve_as_json() -> None:
    arguments = "--solve --input 8 --output 24 --stride 3 --max-kernel 5 --rank 1 --json"
    found = json.loads(size(*arguments.split()))
    assert (found["input"], found["output"]) == ([8], [24])
    assert [s["kernel"] for s in found["solutions"]] == [[3], [4], [5]]
    assert found["solutions"][-1] == {
        "kernel": [5],
        "padding": [1],
        "output_padding": [0],
        "crop": [[1, 1]],
        "bilinear": True,
    }


def test_help_has_examples() -> None:
    assert "upscore size --solve --input 8 --output 16 --stride 2" in size("--help")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--input 4", "--kernel: expected a kernel size, got none; for example --kernel 4"),
        (
            "--input 4x --kernel 3",
            "--input: expected whole numbers, separated by commas, got '4x'; for example --input 4 or --input 4,3",
        ),
        (
            "--input 4 --kernel 3 --padding 1:2:3",
            "--padding: expected before:after pairs, separated by commas, got '1:2:3'; for example --padding 1:2",
        ),
        (
            "--input 4 --kernel 3,,3",
            "--kernel: expected whole numbers, separated by commas, got '3,,3'; for example --kernel 4 or --kernel 4,3",
        ),
        (
            "--input 3,4,5 --kernel 3,3",
            "--kernel: expected one value, or 3 of them (one per axis), got 3,3; for example --kernel 3",
        ),
        ("--input 4 --kernel 3 --rank 0", "--rank: expected 1 to 8 axes, got 0; for example --rank 2"),
        (
            "--input 4 --kernel 3 --crop 1 --padding 1",
            "--crop: expected no --padding beside it, got both; for example --crop 1:0, or --padding 1",
        ),
        (
            "--input 99999999999999999999 --kernel 3",
            "--input: expected numbers up to 9223372036854775807, got '99999999999999999999'; for example --input 4",
        ),
        (
            "--input 5 --kernel 9223372036854775808",
            "--kernel: expected numbers up to 9223372036854775807, got '9223372036854775808'; for example --kernel 4",
        ),
        (
            "--input 9223372036854775807 --kernel 3 --stride 4",
            "--input: expected numbers that lead to a size up to 9223372036854775807, got 36893488147419103227; "
            "for example --input 4",
        ),
        (
            f"--input {'9' * 5000} --kernel 3",
            f"--input: expected numbers up to 9223372036854775807, got '{'9' * 40}...'; for example --input 4",
        ),
        ("--input 4 --kernel -3", "kernel: expected an integer of at least 1, got -3; for example kernel=1"),
        (
            "--solve --input 4 --stride 2",
            "--output: expected the size to reach, got none; for example --output 32",
        ),
        (
            "--solve --input 4 --output 8 --stride 2 --kernel 4",
            "--kernel: expected nothing, because --solve finds it, got 4; for example --solve --stride 2",
        ),
        (
            "--input 4 --kernel 3 --output 8",
            "--output: expected --solve beside it, got 8; for example --solve --output 8",
        ),
        (
            "--solve --input 3 --output 9 --stride 1000000000",
            "max_kernel: expected a bound that leaves at most 10000 answers, got 1000000001; "
            "for example max_kernel=1000000000",
        ),
    ],
)
def test_what_cannot_work_is_named(arguments, message) -> None:
    result = CliRunner().invoke(app, ["size", *arguments.split()])
    assert isinstance(result.exception, ArgumentError)
    assert str(result.exception) == message


def test_errors_are_one_line_and_exit_code_2(monkeypatch, capsys) -> None:
    from upscore.cli.main import main

    monkeypatch.setattr("sys.argv", ["upscore", "size", "--input", "4"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "upscore: --kernel: expected a kernel size, got none; for example --kernel 4\n"
