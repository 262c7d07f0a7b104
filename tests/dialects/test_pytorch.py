"""PyTorch: drawn layers against ``torch.nn.functional``, and the module that ``code`` builds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from dialects.oracles import Case, assert_same, check_reads_and_writes, code_cases, draw_examples, integers
from hypothesis import strategies as st

from upscore.dialects import Layer, RefusalError, pytorch
from upscore.errors import ArgumentError
from upscore.geometry import Geometry

torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Layers of a few numbers: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@st.composite
def calls(draw: st.DrawFn) -> Case:
    rank = draw(st.sampled_from((1, 2, 2, 3)))
    size = [draw(st.integers(1, 4)) for _ in range(rank)]
    kernel = [draw(st.integers(1, 4)) for _ in range(rank)]
    stride = [draw(st.integers(1, 3)) for _ in range(rank)]
    dilation = [draw(st.sampled_from((1, 1, 2, 3))) for _ in range(rank)]
    padding = [draw(st.integers(0, d * (k - 1) // 2)) for k, d in zip(kernel, dilation, strict=True)]
    more = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    c_in, c_out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    seed = draw(st.integers(0, 2**32 - 1))
    weights = {"weight": integers(seed, c_in, c_out // groups, *kernel)}
    if draw(st.booleans()):
        weights["bias"] = integers(seed, c_out)
    parameters: dict[str, Any] = {
        "in_channels": c_in,
        "out_channels": c_out,
        "kernel_size": tuple(kernel),
        "stride": tuple(stride),
        "padding": tuple(padding),
        "dilation": tuple(dilation),
        "groups": groups,
        "bias": "bias" in weights,
    }
    if draw(st.booleans()) and all(p < s for p, s in zip(more, stride, strict=True)):
        full = Geometry.from_padding(
            kernel, stride=stride, padding=padding, output_padding=more, dilation=dilation, rank=rank
        )
        parameters["output_size"] = full.output_size(size)
    else:
        parameters["output_padding"] = tuple(more)
    return Case(parameters, weights, integers(seed, 2, c_in, *size), {"input_size": size})


def run_module(case: Case) -> np.ndarray:
    arguments = dict(case.parameters)
    size = arguments.pop("output_size", None)
    module = getattr(torch.nn, f"ConvTranspose{case.x.ndim - 2}d")(**arguments)
    module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in case.weights.items()})
    with torch.no_grad():
        return module(torch.from_numpy(case.x), **({} if size is None else {"output_size": size})).numpy()


def test_five_hundred_layers() -> None:
    check_reads_and_writes("pytorch", draw_examples(calls()), lambda cases: [run_module(case) for case in cases])


def test_code_runs_slices_and_pads_included() -> None:
    cases = code_cases("pytorch", 60)
    assert any("pad(" in text for _, _, text in cases)
    assert any("y[:" in text for _, _, text in cases)
    for layer, x, text in cases:
        assert_same(pytorch.run(layer, x), layer, x, text)


def test_a_module_is_read_as_it_is() -> None:
    module = torch.nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), output_padding=(1, 0), groups=2)
    layer = pytorch.read(module)
    assert layer.geometry == Geometry((3, 2), (2, 1), 1, ((1, 0), (0, 0)))
    assert layer.groups == 2
    assert np.array_equal(layer.weight, module.weight.detach().numpy())
    assert np.array_equal(layer.bias, module.bias.detach().numpy())


def test_a_convolution_is_not_read_as_its_transpose() -> None:
    with pytest.raises(ArgumentError, match=r"module: expected a torch.nn.ConvTranspose, got Conv2d"):
        pytorch.read(torch.nn.Conv2d(1, 1, 3))


def test_same_cannot_be_said_and_the_message_says_what_can() -> None:
    same = Layer(Geometry(3, 2, 1, ((0, 1), (1, 2)), rank=2), 2, 3)
    with pytest.raises(RefusalError, match=r"PyTorch cannot say this layer: padding: .* closest: padding=\(0, 1\)"):
        pytorch.write(same)
    written = pytorch.write(same, allow_crop=True)
    assert written.parameters["padding"] == (0, 1)
    assert written.crop == ((0, 1), (0, 1))


def test_output_padding_uncovers_and_does_not_fill() -> None:
    """With padding 1 and output padding 1 the last row is computed; it is no row of zeros."""
    layer = Layer.from_weight(
        Geometry.from_padding(3, stride=2, padding=1, output_padding=1, rank=2), np.ones((1, 1, 3, 3), np.float32)
    )
    y = pytorch.run(layer, np.ones((1, 1, 2, 3), np.float32))
    assert (y[0, 0, -1] == [1, 2, 1, 2, 1, 1]).all()


def test_double_weights_stay_double() -> None:
    weight = np.full((1, 1, 2, 3), 1 / 3)
    layer = Layer.from_weight(Geometry((2, 3), 2), weight)
    assert pytorch.run(layer, np.ones((1, 1, 1, 1)))[0, 0, 0, 0] == 1 / 3


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"kernel_size": 3, "output_padding": 1}, "output_padding: expected less than the larger of stride 1"),
        ({"kernel_size": 3, "padding": "same"}, "padding: expected an integer"),
        ({"kernel_size": 3, "padding": (-1, 0)}, "padding: expected an integer of at least 0, got -1"),
        ({"kernel_size": 3, "strides": 2}, "parameters: expected names that PyTorch has, got strides"),
        ({"stride": 2}, "kernel_size: expected an integer, or one per axis, got none"),
        ({"kernel_size": 3, "padding_mode": "reflect"}, "padding_mode: expected 'zeros'"),
        ({"kernel_size": 3, "stride": 2, "output_size": 9}, "input_size: expected the input's size"),
    ],
)
def test_what_pytorch_does_not_take(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        pytorch.read({"in_channels": 1, "out_channels": 1, **parameters})


def test_an_output_size_out_of_reach() -> None:
    said = {"in_channels": 1, "out_channels": 1, "kernel_size": 3, "stride": 2, "output_size": (9, 12)}
    with pytest.raises(ArgumentError, match=r"output_size: expected a size from \(9, 9\) to \(10, 10\), got \(9, 12\)"):
        pytorch.read(said, input_size=4)
