"""Programs written for pycaffe, unchanged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the Caffe side runs on torch")
pytest.importorskip("google.protobuf", reason="the Caffe side reads protobuf")

from upscore.caffe import script

PROGRAM = """
import sys
from pathlib import Path
import numpy as np
import caffe
import caffe.io
from caffe import layers as L, params as P
from caffe.proto import caffe_pb2
from caffe.coord_map import crop
import helper

assert caffe is sys.modules["upscore.caffe"] and caffe.io is sys.modules["upscore.caffe.io"]
n = caffe.NetSpec()
n.data = L.Input(shape=dict(dim=[1, 1, 2, 2]))
n.deconv = L.Deconvolution(n.data, convolution_param=dict(num_output=1, kernel_size=3, stride=2, bias_term=False,
                                                          weight_filler=dict(type="constant", value=1)))
path = Path(__file__).with_name("net.prototxt")
path.write_text(str(n.to_proto()))
net = caffe.Net(str(path), caffe.TEST)
net.blobs["data"].data[...] = 1
net.forward()
Path(__file__).with_name("result").write_text(f"{net.blobs['deconv'].data.sum()} {sys.argv[1:]} {__name__} {helper.x}")
"""


def test_a_program_gets_upscore_as_caffe(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "helper.py").write_text("import caffe\nx = caffe.TEST")
    argv, paths = list(sys.argv), list(sys.path)
    script.run(tmp_path / "program.py", ["--a", "b"])
    assert (tmp_path / "result").read_text() == "36.0 ['--a', 'b'] __main__ 1"
    assert (sys.argv, sys.path) == (argv, paths)
    assert not [name for name in sys.modules if name.split(".")[0] == "caffe"]
    sys.modules.pop("helper", None)


def test_an_installed_caffe_comes_back_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    real = types.ModuleType("caffe")
    monkeypatch.setitem(sys.modules, "caffe", real)
    with script.as_caffe():
        import caffe

        assert caffe is sys.modules["upscore.caffe"]
        with pytest.raises(ModuleNotFoundError):
            import caffe.nothing
    assert sys.modules["caffe"] is real
