"""Every layer against the numbers of Caffe itself, forward and backward: see tests/golden/caffe/README.md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Caffe side runs on torch")
pytest.importorskip("google.protobuf", reason="the Caffe side reads protobuf")

from upscore.caffe import prototxt, schema  # noqa: E402
from upscore.caffe.graph import Graph  # noqa: E402

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "caffe" / "layers.npz")
CASES = sorted({key.split("/")[0] for key in GOLDEN.files})
NOT_CAFFES = {("reshape", "bottom0_diff")}  # the README says why


def _case(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    arrays = {key.split("/")[1]: GOLDEN[key] for key in GOLDEN.files if key.startswith(f"{name}/")}
    return json.loads(str(arrays["meta"])), arrays


def _agree(got: torch.Tensor | None, expected: np.ndarray, exact: bool, what: str) -> None:
    found = np.zeros_like(expected) if got is None else got.detach().numpy()
    assert found.shape == expected.shape, what
    if exact:
        np.testing.assert_array_equal(found, expected, err_msg=what)
    else:
        finite = np.abs(expected[np.isfinite(expected)]).max(initial=0)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * finite, err_msg=what)


def test_all_cases_are_there() -> None:
    assert len(CASES) == 166


@pytest.mark.parametrize("name", CASES)
def test_layer_computes_what_caffe_computes(name: str) -> None:
    meta, golden = _case(name)
    phase = {"TRAIN": schema.TRAIN, "TEST": schema.TEST}[meta["phase"]]
    graph = Graph(prototxt.read(str(golden["prototxt"]), schema.NetParameter()), phase)
    layer = graph.layers[-1]
    exact = meta["data"] == "integer"
    parameters = [golden[f"param{j}"] for j in range(len(layer.module.blobs))]
    assert f"param{len(parameters)}" not in golden, "a blob is missing"
    for blob, value in zip(layer.module.blobs, parameters, strict=True):
        assert tuple(blob.shape) == value.shape
        blob.data.copy_(torch.from_numpy(value))

    bottoms = [torch.from_numpy(golden[f"bottom{i}"]).requires_grad_() for i in range(len(layer.bottoms))]
    tops = layer.module(*bottoms)
    for i, top in enumerate(tops):
        assert tuple(top.shape) == graph.shapes[layer.tops[i]], "reshape and forward disagree"
        _agree(top, golden[f"top{i}"], exact, f"top{i}")
    for j, blob in enumerate(layer.module.blobs):
        if f"param{j}_after" in golden:
            _agree(blob, golden[f"param{j}_after"], exact, f"param{j}_after")

    if not meta["backward"]:
        return
    wanted = {f"bottom{i}_diff": x for i, x in enumerate(bottoms)}
    wanted |= {f"param{j}_diff": b for j, b in enumerate(layer.module.blobs) if b.requires_grad}
    given = [(top, torch.from_numpy(golden[f"top{i}_diff"])) for i, top in enumerate(tops) if top.requires_grad]
    found = [None] * len(wanted)
    if given:
        found = torch.autograd.grad(
            [top for top, _ in given], list(wanted.values()), [g for _, g in given], allow_unused=True
        )
    for (what, _), gradient in zip(wanted.items(), found, strict=True):
        if (name, what) not in NOT_CAFFES:
            _agree(gradient, golden[what], exact, what)


@pytest.mark.parametrize("name", [name for name in CASES if "bilinear" in name])
def test_bilinear_filler_fills_as_caffe(name: str) -> None:
    _, golden = _case(name)
    graph = Graph(prototxt.read(str(golden["prototxt"]), schema.NetParameter()))
    np.testing.assert_array_equal(graph.layers[-1].module.blobs[0].detach().numpy(), golden["param0"])
