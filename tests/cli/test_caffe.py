"""``upscore caffe`` and ``upscore run`` with a Caffe model, as a user types them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the Caffe side runs on torch")
pytest.importorskip("google.protobuf", reason="the Caffe side reads protobuf")

from PIL import Image

GOLDEN = Path(__file__).parents[1] / "golden" / "caffe"
NET, WEIGHTS = GOLDEN / "tiny_unet.prototxt", GOLDEN / "tiny_unet.caffemodel"


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def upscore(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Done]:
    """The command, in this process and in an empty folder; 100 columns wide."""

    def run(*words: object) -> Done:
        from upscore.cli.main import main

        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "argv", ["upscore", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return Done(int(left.value.code or 0), said.out, said.err)

    return run


def test_show(upscore: Callable[..., Done]) -> None:
    done = upscore("caffe", "show", NET, WEIGHTS)
    assert done.returncode == 0, done.stderr
    assert "11 layers, 354 parameters" in done.stdout
    assert "the weights fit, all of them" in done.stdout
    row = next(line.split() for line in done.stdout.splitlines() if line.startswith("up "))
    assert row == ["up", "Deconvolution", "c2", "up", "2x3x12x10", "195", "14x14", "1"]


def test_show_as_json_with_another_input(upscore: Callable[..., Done]) -> None:
    done = upscore("caffe", "show", NET, "--json", "--input", "data=1,1,20,30", "--input", "target=1,2,20,30")
    said = json.loads(done.stdout)
    assert said["parameters"] == 354
    up = next(layer for layer in said["layers"] if layer["name"] == "up")
    assert (up["shapes"], up["receptive_field"]) == ([[1, 3, 20, 30]], "14x14")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "none.prototxt"), "No such file"),
        (("show", NET, GOLDEN / "tiny_unet.npz"), "is the file complete, and of this kind?"),
        (("show", NET, "--input", "data=1,x"), "--input: expected a name and sizes, got 'data=1,x'"),
        (("convert", NET, WEIGHTS, "-o", "x.pt"), "--output: expected a name that ends in .onnx"),
        (("convert", NET, WEIGHTS, "-o", WEIGHTS), "expected a file that is not there yet"),
        (("convert", NET, WEIGHTS, "-o", "x.safetensors"), "has no plain torch source; convert to .onnx"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    upscore: Callable[..., Done], words: tuple[object, ...], message: str, tmp_path: Path
) -> None:
    done = upscore("caffe", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_lenient(upscore: Callable[..., Done], tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(NET.read_text() + 'layer { name: "x" type: "Power" bottom: "up" top: "x" odd_param { a: 1 } }\n')
    strict, lenient = upscore("caffe", "show", path), upscore("caffe", "show", path, "--lenient")
    assert "line 14: LayerParameter has no field odd_param" in strict.stderr
    assert (lenient.returncode, "passing over LayerParameter.odd_param" in lenient.stderr) == (0, True)


def test_convert_between_caffes_formats(upscore: Callable[..., Done], tmp_path: Path) -> None:
    from upscore.caffe import caffemodel

    assert upscore("caffe", "convert", NET, WEIGHTS, "-o", tmp_path / "n.h5").returncode == 0
    assert upscore("caffe", "convert", NET, tmp_path / "n.h5", "-o", tmp_path / "n.caffemodel").returncode == 0
    before, after = caffemodel.read(WEIGHTS), caffemodel.read(tmp_path / "n.caffemodel")
    blobs = [[b for layer in layers for b in layer.blobs] for layers in (before, after)]
    assert len(blobs[0]) == 9
    for one, other in zip(*blobs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_program(upscore: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "eval.py").write_text("import caffe, sys\nprint(caffe.TEST, sys.argv[1:])")
    done = upscore("caffe", "eval.py", "--weights", "x")
    assert done.stdout == "1 ['--weights', 'x']\n", done.stderr


@pytest.fixture
def segmenter(tmp_path: Path) -> tuple[Path, Path]:
    from upscore.caffe import prototxt, schema
    from upscore.caffe.graph import Graph

    net = tmp_path / "deploy.prototxt"
    net.write_text("""input: "data" input_dim: 1 input_dim: 3 input_dim: 16 input_dim: 16
    layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 5 kernel_size: 3
      pad: 1 stride: 2 weight_filler { type: "xavier" } } }
    layer { name: "u" type: "Deconvolution" bottom: "c" top: "u" convolution_param { num_output: 5 group: 5
      kernel_size: 4 stride: 2 pad: 1 bias_term: false weight_filler { type: "bilinear" } } }""")
    Graph(prototxt.read(net, schema.NetParameter())).save(tmp_path / "net.caffemodel")
    return net, tmp_path / "net.caffemodel"


def test_run_with_a_caffe_model(upscore: Callable[..., Done], segmenter: tuple[Path, Path], tmp_path: Path) -> None:
    from upscore.caffe.image import run_image

    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (14, 20, 3), dtype=np.uint8))
    photo.save(tmp_path / "photo.png")
    words = ("--mean", "10,20,30", "--scale", "0.5", "--order", "rgb")
    done = upscore("run", *segmenter, tmp_path / "photo.png", "-o", tmp_path / "out.png", *words)
    assert done.returncode == 0, done.stderr
    made = Image.open(tmp_path / "out.png")
    expected = run_image(*segmenter, photo, mean=[10, 20, 30], scale=0.5, order="rgb")
    assert made.mode == "P"
    np.testing.assert_array_equal(np.asarray(made), np.asarray(expected.image))
    assert "from u; classes" in done.stdout


def test_run_without_weights(upscore: Callable[..., Done], segmenter: tuple[Path, Path], tmp_path: Path) -> None:
    done = upscore("run", segmenter[0], tmp_path / "photo.png", "-o", tmp_path / "out.png")
    assert done.returncode == 2
    assert "NETWORK: expected the weights after the prototxt, got " in done.stderr
