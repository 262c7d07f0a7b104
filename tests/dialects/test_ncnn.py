"""ncnn: drawn layers against ncnn itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dialects.oracles import Case, assert_same, check_reads_and_writes, code_cases, draw_examples, integers
from hypothesis import strategies as st

from upscore.dialects import Layer, RefusalError, ncnn
from upscore.errors import ArgumentError
from upscore.geometry import Geometry

engine = pytest.importorskip("ncnn", reason="ncnn is the oracle here")

# the numbers of ncnn's parameters, height before width and depth first
IDS: dict[int, dict[str, tuple[int, ...]]] = {
    1: {"k": (1,), "d": (2,), "s": (3,), "lo": (4,), "hi": (15,), "more": (18,)},
    2: {"k": (11, 1), "d": (12, 2), "s": (13, 3), "lo": (14, 4), "hi": (16, 15), "more": (19, 18)},
    3: {
        "k": (21, 11, 1), "d": (22, 12, 2), "s": (23, 13, 3), "lo": (24, 14, 4), "hi": (17, 16, 15),
        "more": (20, 19, 18),
    },
}  # fmt: skip


@st.composite
def layers(draw: st.DrawFn) -> Case:
    rank = draw(st.sampled_from((1, 2, 2, 2, 3)))
    axes = []
    for _ in range(rank):
        k, s, d = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.sampled_from((1, 1, 2)))
        e = d * (k - 1) + 1
        axes.append(
            (k, d, s, draw(st.integers(0, e // 2)), draw(st.integers(0, (e - 1) // 2)), draw(st.integers(0, s)))
        )
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    i, o = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    seed = draw(st.integers(0, 2**32 - 1))
    kernel = [axis[0] for axis in axes]
    weights = {"weight_data": integers(seed, groups * o, i, *kernel)}
    bias = draw(st.booleans())
    if bias:
        weights["bias_data"] = integers(seed, groups * o)
    parameters: dict[Any, Any] = {
        "type": f"Deconvolution{'DepthWise' if groups > 1 else ''}{'' if rank == 2 else f'{rank}D'}",
        0: groups * o,
        5: int(bias),
        6: weights["weight_data"].size,
    }
    if groups > 1:
        parameters[7] = groups
    for name, values in zip(("k", "d", "s", "lo", "hi", "more"), zip(*axes, strict=True), strict=True):
        parameters.update(zip(IDS[rank][name], values, strict=True))
    if rank == 2 and groups == 1 and draw(st.booleans()):
        size = [draw(st.integers(2, 4)) for _ in range(rank)]
        parameters.update({4: draw(st.sampled_from((-233, -234))), 18: 0, 19: 0})
        for j in (14, 15, 16):
            parameters[j] = parameters[4]
        full = [(n - 1) * s + d * (k - 1) + 1 for n, (k, d, s, *_) in zip(size, axes, strict=True)]
        parameters[21], parameters[20] = (f - draw(st.integers(0, k // 2)) for f, k in zip(full, kernel, strict=True))
        return Case(parameters, weights, integers(seed, 1, groups * i, *size), {"input_size": size})
    size = [draw(st.integers(2, 4)) for _ in range(rank)]
    return Case(parameters, weights, integers(seed, 1, groups * i, *size))


@pytest.fixture
def run(tmp_path: Path) -> Any:
    def one(case: Case) -> Any:
        p = dict(case.parameters)
        kind = p.pop("type")
        said = " ".join(f"{k}={v}" for k, v in p.items())
        (tmp_path / "layer.param").write_text(f"7767517\n2 2\nInput in 0 1 x\n{kind} up 1 1 x y {said}\n")
        (tmp_path / "layer.bin").write_bytes(bytes(4) + b"".join(w.tobytes() for w in case.weights.values()))
        net = engine.Net()
        net.opt.num_threads = 1
        net.opt.use_vulkan_compute = False
        for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
            setattr(net.opt, f"use_{name}", False)
        assert net.load_param(str(tmp_path / "layer.param")) == 0
        assert net.load_model(str(tmp_path / "layer.bin")) == 0
        extractor = net.create_extractor()
        extractor.input("x", engine.Mat(np.ascontiguousarray(case.x[0])).clone())
        status, y = extractor.extract("y")
        return np.array(y)[None] if status == 0 else f"ncnn answers {status}"

    return one


def test_five_hundred_layers(run: Any) -> None:
    check_reads_and_writes("ncnn", draw_examples(layers()), lambda cases: [run(case) for case in cases])


def test_run_and_code() -> None:
    for layer, x, text in code_cases("ncnn", 60):
        assert_same(ncnn.run(layer, x), layer, x, text)
        assert ncnn.read(text, c_in=layer.c_in) == layer.without_weights()


def test_a_line_of_a_param_file() -> None:
    line = "DeconvolutionDepthWise up 1 1 a b 0=6 1=4 11=3 3=2 4=1 14=0 5=1 6=144 7=2"
    layer = ncnn.read(line)
    assert layer.geometry == Geometry((3, 4), (2, 2), 1, ((0, 0), (1, 1)))
    assert (layer.c_in, layer.c_out, layer.groups, layer.has_bias) == (4, 6, 2, True)


def test_an_output_size_counts_only_with_the_same_pads() -> None:
    """ncnn reads output_w only where the pads are -233 or -234; with others it would fail while running."""
    said = {0: 1, 1: 3, 3: 2, 20: 6, 21: 6}
    with pytest.raises(ArgumentError, match=r"4 \(pad_left\): expected -233 or -234 where an output size is set"):
        ncnn.read(said, c_in=1, input_size=3)
    upper, lower = (ncnn.read({**said, 4: pad}, c_in=1, input_size=3).geometry.crop[0] for pad in (-233, -234))
    assert (upper, lower) == ((0, 1), (1, 0))


def test_what_ncnn_does_not_take() -> None:
    with pytest.raises(ArgumentError, match=r"9 \(activation_type\): expected 0: apply it after the layer, got 1"):
        ncnn.read({0: 1, 1: 3, 9: 1}, c_in=1)
    with pytest.raises(ArgumentError, match=r"line: expected a Deconvolution line of a \.param file, got 'Convolution"):
        ncnn.read("Convolution up 1 1 x y 0=1")
    for line in (
        "Deconvolution up 1 1 x y 0=a",
        "Deconvolution up 1 one x y",
        "Deconvolution up 1 1 x y 0",
        "Deconvolution a 1 1 x y 0=inf",
    ):
        with pytest.raises(ArgumentError, match="line: expected number=number after the names of the blobs"):
            ncnn.read(line)
    with pytest.raises(ArgumentError, match="parameters: expected names that ncnn has, got 33"):
        ncnn.read({0: 1, 1: 3, 33: 1}, c_in=1)
    with pytest.raises(ArgumentError, match=r"20 \(output_w\): expected a size of at most \(7, 7\), got \(8, 8\)"):
        ncnn.read({0: 1, 1: 3, 3: 2, 4: -233, 20: 8, 21: 8}, c_in=1, input_size=3)
    with pytest.raises(RefusalError, match="pad_left, pad_top: expected at least 0"):
        ncnn.write(Layer(Geometry(3, 2, 1, ((-1, 0), (0, 0))), 1, 1))
