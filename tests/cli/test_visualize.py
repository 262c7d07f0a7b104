"""``upscore visualize``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

from upscore.cli.main import app
from upscore.errors import ArgumentError, FileFormatError
from upscore.networks.segnet import SegNet

GOLDEN = Path(__file__).parents[1] / "golden/caffe"


def visualize(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["visualize", *map(str, words)], catch_exceptions=True)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i, size in enumerate([(24, 31, 3), (30, 20, 3), (26, 26, 3)]):
        Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("no photograph")
    return folder


class Small(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3))


def test_a_module_with_weights(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_file(SegNet().state_dict(), tmp_path / "w.safetensors")
    out = tmp_path / "maps.png"
    words = ["upscore.networks.segnet:SegNet", "conv2_1", "--images", photos, "-o", out]
    done = visualize(*words, "--weights", tmp_path / "w.safetensors", "--map", 5, "--map", 3, "--count", 2, "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["output"] == str(out)
    assert [m["map"] for m in facts["maps"]] == [5, 3]
    values = [a["value"] for a in facts["maps"][0]["activations"]]
    assert len(values) == 2
    assert values == sorted(values, reverse=True)
    assert {Path(a["image"]).parent for m in facts["maps"] for a in m["activations"]} == {photos}
    with Image.open(out) as picture:
        assert picture.size == (2 * 2 * 100 + 12, 2 * (200 + 20) + 4)


def test_an_exported_program_takes_its_own_size(photos: Path, tmp_path: Path) -> None:
    program = torch.export.export(Small().eval(), (torch.zeros(1, 3, 18, 22),))
    torch.export.save(program, tmp_path / "net.pt2")
    done = visualize(tmp_path / "net.pt2", "3", "--images", photos, "-o", tmp_path / "maps.png")
    assert done.exit_code == 0, done.exception
    assert "maps " in done.stdout
    assert "of 3, over 3 photographs" in done.stdout.replace("\n", " ")


def test_a_caffe_net(photos: Path, tmp_path: Path) -> None:
    net, weights = GOLDEN / "tiny_unet.prototxt", GOLDEN / "tiny_unet.caffemodel"
    words = [net, "LAYER", "--weights", weights, "--images", photos, "-o", tmp_path / "maps.png", "--json"]
    words[1] = "c2"
    done = visualize(*words)
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["maps"]
    again = visualize(*words)
    assert isinstance(again.exception, ArgumentError)
    assert "--output: expected a file that is not there yet" in str(again.exception)
    assert visualize(*words, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["net.prototxt", "conv"], ArgumentError, "--weights: expected the caffemodel of the prototxt, got none"),
        (["segnet", "conv"], ArgumentError, "MODEL: expected a .prototxt, a .pt2, or module:attribute, got 'segnet'"),
        (["no_such_module:Net", "conv"], ArgumentError, "No module named 'no_such_module'"),
        (["upscore.networks.vgg:DEPTHS", "conv"], ArgumentError, "what makes a torch.nn.Module, got tuple"),
        (["upscore.networks.segnet:SegNet", "conv9", "--weights", "none.pt"], FileNotFoundError, "none.pt"),
        (["none.pt2", "conv"], FileNotFoundError, "none.pt2: no such file"),
        (["upscore.networks.segnet:SegNet", "conv9"], ArgumentError, "layer: expected one of conv1_1"),
        (["a:b", "c", "--count", "0"], ArgumentError, "--count: expected at least 1, got 0"),
        (["upscore.networks.segnet:SegNet", "pool", "--size", "1"], ArgumentError, "--size: expected 2 numbers"),
        (["upscore.networks.segnet:SegNet", "pool", "--mean", "a"], ArgumentError, "--mean: expected 1 or 3 numbers"),
        (["upscore.networks.segnet:SegNet", "pool", "--std", "0"], ArgumentError, "--std: expected numbers other than"),
        (["upscore.networks.segnet:SegNet", "pool", "--order", "gbr"], ArgumentError, "--order: expected rgb or bgr"),
    ],
)
def test_errors(words: list[str], error: type[Exception], message: str, photos: Path, tmp_path: Path) -> None:
    done = visualize(*words, "--images", photos, "-o", tmp_path / "maps.png")
    assert isinstance(done.exception, error)
    assert message in str(done.exception)
    assert not (tmp_path / "maps.png").exists()


def test_folders_and_files_that_are_no_photographs(photos: Path, tmp_path: Path) -> None:
    words = ["upscore.networks.segnet:SegNet", "conv1_1", "-o", tmp_path / "maps.png", "--images"]
    assert "--images: expected a folder of photographs" in str(visualize(*words, tmp_path / "none").exception)
    (tmp_path / "empty").mkdir()
    assert "--images: expected a folder with files that end in" in str(visualize(*words, tmp_path / "empty").exception)
    (photos / "broken.png").write_bytes(b"\x89PNG no more")
    done = visualize(*words, photos)
    assert isinstance(done.exception, FileFormatError)
    assert "broken.png: not a photograph that can be read" in str(done.exception)
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    done = visualize(*words, photos, "--weights", tmp_path / "bad.safetensors")
    assert isinstance(done.exception, FileFormatError)
    assert "bad.safetensors: not weights of this network" in str(done.exception)
