"""The detection head over a pyramid: its order, its places, and that the commands it names say what it says."""

from __future__ import annotations

import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks.gradients import check
from torch import nn
from typer.testing import CliRunner

from upscore.cli.main import app

PATH = Path(__file__).parents[2] / "examples/pyramid_head.py"


@pytest.fixture(scope="module")
def example() -> Any:
    return type("Example", (), runpy.run_path(str(PATH)))


@pytest.mark.parametrize("size", [(375, 500), (256, 128), (33, 95)])
def test_the_commands_print_what_it_says(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [PATH.name, *map(str, size)])
    runpy.run_path(str(PATH), run_name="__main__")
    printed = capsys.readouterr().out
    claims = []
    for line in printed.split("\n\n")[1].splitlines():
        if "$ upscore " in line:
            words = shlex.split(line.partition("$ upscore ")[2])
            answer = CliRunner().invoke(app, words, catch_exceptions=False).stdout
        elif "cropped" not in line:
            assert line.strip() in answer
            claims.append(line)
    assert len(claims) == 2 * 2 + 2
    p3 = tuple(n // 2 // 2 // 2 for n in size)
    assert f"cropped to {p3[0]} x {p3[1]} from (1,1) on, to lie on C3" in printed
    assert "probability of 0.010 of every class" in printed


def test_a_picture_that_is_too_small(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [PATH.name, "31", "500"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(PATH), run_name="__main__")
    assert "expected a picture of at least 32 x 32, got 31 x 500" in capsys.readouterr().err


def test_rows_and_anchors_come_in_the_same_order(example: Any) -> None:
    n, h, w, outputs = 2, 3, 4, 5
    maps = torch.randn(n, example.ANCHORS * outputs, h, w)
    rows = example.as_rows(maps, outputs)
    at = example.coordinate_map([nn.Conv2d(1, 1, 3, stride=(8, 8), padding=1)])
    places = example.anchors(at, (h, w))
    row = 0
    for y in range(h):
        for x in range(w):
            for a in range(example.ANCHORS):
                assert torch.equal(rows[:, row], maps[:, a * outputs : (a + 1) * outputs, y, x])
                assert places[row, :2].tolist() == [8 * y, 8 * x]
                row += 1
    assert rows.shape == (n, row, outputs)


def test_the_papers_anchors(example: Any) -> None:
    for level, at in example.Pyramid(4).maps.items():
        shapes = example.anchors(at, (1, 1))[:, 2:]
        areas = [2 ** (level + 2) * 2 ** (k / 3) for k in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
        np.testing.assert_allclose(np.sqrt(shapes.prod(1)), areas)
        np.testing.assert_allclose(shapes[:, 0] / shapes[:, 1], [0.5, 1, 2] * 3)


@pytest.mark.parametrize("level", [3, 4, 5, 6, 7])
def test_cells_look_where_their_anchors_are(example: Any, level: int) -> None:
    """With positive, symmetric weights the gradient's centre of mass is the place that a cell looks at."""
    pyramid = example.Pyramid(2)
    with torch.no_grad():
        for name, parameter in pyramid.named_parameters():
            if not name.startswith("up."):
                parameter.fill_(0.1)
    x = torch.ones(1, 3, 800, 929, requires_grad=True)
    features = pyramid(x)[level]
    # Upsampled outputs look a little to either side by turns: the mean over all phases is where the map says.
    phases = 2 ** max(5 - level, 0)
    cell = [phases * (size // 2 // phases) for size in features.shape[2:]]
    block = features[0, 0, cell[0] : cell[0] + phases, cell[1] : cell[1] + phases]
    (grad,) = torch.autograd.grad(block.sum(), x)
    weight = grad[0].double().sum(0)
    assert weight[0].sum() == weight[-1].sum() == weight[:, 0].sum() == weight[:, -1].sum() == 0  # sees no border
    found = [float((weight.sum(1 - axis) * torch.arange(x.shape[2 + axis])).sum() / weight.sum()) for axis in (0, 1)]
    first = pyramid.maps[level](cell)
    last = pyramid.maps[level]([c + phases - 1 for c in cell])
    assert found == pytest.approx([float(a + b) / 2 for a, b in zip(first, last, strict=True)], abs=1e-3)


def test_one_head_for_all_levels(example: Any) -> None:
    torch.manual_seed(0)
    pyramid, head = example.Pyramid(8), example.Head(8, 7)
    levels = pyramid(torch.rand(2, 3, 70, 99))
    together = head(levels)
    apart = [head.last(head.body(levels[level])) for level in (3, 4, 5, 6, 7)]
    assert together.shape == (2, 9 * sum(m.shape[2] * m.shape[3] for m in apart), 7)
    begin = 0
    for maps in apart:
        count = 9 * maps.shape[2] * maps.shape[3]
        assert torch.equal(together[:, begin : begin + count], example.as_rows(maps, 7))
        begin += count


def test_gradients(example: Any) -> None:
    check(nn.Sequential(example.Pyramid(4), example.Head(4, 2)), 1, 3, 70, 99)
