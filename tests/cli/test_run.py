"""``upscore run``: files, folders, globs; what it refuses and what it survives."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from upscore.cli.main import app
from upscore.errors import ArgumentError, FileFormatError, UpscoreError


def run(*words: str | Path | int) -> Result:
    return CliRunner().invoke(app, ["run", "upscale-x2", *map(str, words)], catch_exceptions=True)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two pictures, one of them deeper down, and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (8, 11, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a.png")
    Image.fromarray(noise[:6]).save(folder / "deeper" / "b.jpg")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_a_file(photos: Path, tmp_path: Path) -> None:
    result = run(photos / "a.png", "-o", tmp_path / "big.png")
    assert result.exit_code == 0
    assert str(tmp_path / "big.png") in result.stdout
    assert "22 x 16" in result.stdout
    with Image.open(tmp_path / "big.png") as image:
        assert (image.size, image.mode) == ((22, 16), "RGB")


@pytest.mark.parametrize(
    ("words", "options", "written"),
    [
        (["."], [], ["a_x2.png", "deeper/b_x2.jpg"]),
        (["."], ["--format", "tif"], ["a_x2.tif", "deeper/b_x2.tif"]),
        (["*.png", "deeper/b.jpg"], [], ["a_x2.png", "b_x2.jpg"]),
        (["**/*.jpg"], ["--format", ".webp"], ["b_x2.webp"]),
    ],
)
def test_folders_and_globs(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    options: list[str],
    written: list[str],
) -> None:
    monkeypatch.chdir(photos)
    out = tmp_path / "out"
    result = run(*words, "-o", out, "--json", *options)
    assert result.exit_code == 0
    assert [done["output"] for done in json.loads(result.stdout)] == [str(out / name) for name in written]
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.*")) == sorted(written)


def test_a_broken_picture_does_not_stop_the_others(photos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((photos / "deeper" / "b.jpg").read_bytes()[:400])
    result = run(broken, tmp_path / "none.png", photos / "a.png", "-o", tmp_path / "out", "--json")
    assert result.exit_code == 1
    damaged, missing, done = json.loads(result.stdout)
    assert "broken.jpg: a damaged picture" in damaged["error"]
    assert missing["error"] == f"{tmp_path / 'none.png'}: no such file"
    assert (done["width"], done["height"], done["channels"], done["bits"], done["notes"]) == (22, 16, 3, 8, [])
    assert "upscore: " in result.stderr
    assert os.listdir(tmp_path / "out") == ["a_x2.png"]


def street(*words: str | Path | int) -> Result:
    return CliRunner().invoke(app, ["run", "street", *map(str, words)], catch_exceptions=True)


def test_classes_are_drawn_or_written(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = street(photos, "-o", out, "--json", "--side", 64)
    assert result.exit_code == 0
    drawn = json.loads(result.stdout)
    assert [done["output"] for done in drawn] == [str(out / "a_classes.png"), str(out / "deeper" / "b_classes.jpg")]
    assert all(sum(done["classes"].values()) == pytest.approx(1, abs=1e-3) for done in drawn)
    assert street(photos, "-o", out, "--labels", "--side", 64).exit_code == 0
    assert sorted(p.name for p in out.rglob("*_labels*")) == ["a_labels.png", "b_labels.png"]
    for size, name in (((11, 8), "a_labels.png"), ((11, 6), "deeper/b_labels.png")):
        with Image.open(out / name) as image:
            assert (image.size, image.mode) == (size, "P")
            assert set(np.unique(np.asarray(image))) <= set(range(11))


def test_labels_are_those_of_the_network(photos: Path, tmp_path: Path) -> None:
    """The command folds, accelerates and lays out anew; the network as it was trained is the oracle."""
    import torch

    from upscore.networks import find
    from upscore.networks.classes import normalised

    assert street(photos / "a.png", "-o", tmp_path / "l.png", "--labels", "--side", 11).exit_code == 0
    with Image.open(photos / "a.png") as image, Image.open(tmp_path / "l.png") as labels:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        assert np.array_equal(np.asarray(labels), find("street").load()(normalised(pixels))[0].argmax(0))


def refused(result: Result, kind: type[UpscoreError] = ArgumentError) -> str:
    assert isinstance(result.exception, kind)
    return str(result.exception)


def test_files_are_replaced_only_by_force(photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "big.png"
    target.write_text("precious")
    assert refused(run(photos / "a.png", "-o", target)) == (
        f"--output: expected a file that does not exist, got {target}; for example --force to replace it"
    )
    assert target.read_text() == "precious"
    assert run(photos / "a.png", "-o", target, "--force").exit_code == 0
    with Image.open(target) as image:
        assert image.size == (22, 16)


def test_what_cannot_be_is_said(photos: Path, tmp_path: Path) -> None:
    a, out = photos / "a.png", tmp_path / "out"
    assert "PICTURE: expected at least one picture" in refused(run("-o", out))
    assert "PICTURE: expected a glob that matches files" in refused(run(tmp_path / "*.gif", "-o", out))
    assert "--output: expected a file other than the picture itself" in refused(run(a, "-o", a, "--force"))
    assert "--output: expected a place of its own" in refused(run(a, a, "-o", out))
    assert "--output: expected a folder, because there are several" in refused(run(a, photos / "deeper", "-o", a))
    (tmp_path / "empty").mkdir()
    assert "PICTURE: expected a folder with pictures" in refused(run(tmp_path / "empty", "-o", out))
    weights = photos / "notes.txt"
    assert "not weights of the network upscale-x2" in refused(run(a, "-o", out, "--weights", weights), FileFormatError)
    assert refused(run(a, "-o", out, "--labels")) == (
        "--labels: expected a bundled network that tells classes, got 'upscale-x2'; for example upscore run street"
    )
    assert "--side: expected a bundled network that tells classes" in refused(run(a, "-o", out, "--side", 64))
    unknown = CliRunner().invoke(app, ["run", "upscale-x9", str(a), "-o", str(out)])
    assert "network: expected one of" in refused(unknown)
    assert run(a, "-o", tmp_path / "big.gif").exit_code == 1
    assert not out.exists()
    assert not list(tmp_path.glob(".big*"))
