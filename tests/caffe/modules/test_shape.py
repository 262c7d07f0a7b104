"""Layers that move elements, beyond the golden numbers, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Caffe side runs on torch")

Build = Callable[..., Any]


def bilinear_with_aligned_corners(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Each output pixel by the definition of DeepLab's interp.cpp: input coordinate i (n - 1) / (m - 1)."""
    top = np.zeros((*x.shape[:2], *size))
    for i, j in np.ndindex(*size):
        at = [k * (n - 1) / (m - 1) if m > 1 else 0.0 for k, n, m in zip((i, j), x.shape[2:], size, strict=True)]
        low = [int(a) for a in at]
        high = [min(a + 1, n - 1) for a, n in zip(low, x.shape[2:], strict=True)]
        v, h = at[0] - low[0], at[1] - low[1]
        top[..., i, j] = (1 - v) * ((1 - h) * x[..., low[0], low[1]] + h * x[..., low[0], high[1]]) + v * (
            (1 - h) * x[..., high[0], low[1]] + h * x[..., high[0], high[1]]
        )
    return top


@pytest.mark.parametrize(
    ("fields", "size", "cut"),
    [
        ("height: 9 width: 13", (9, 13), (0, 0)),
        ("zoom_factor: 3", (13, 19), (0, 0)),
        ("shrink_factor: 2", (3, 4), (0, 0)),
        ("shrink_factor: 2 zoom_factor: 4", (9, 13), (0, 0)),
        ("pad_beg: -1 pad_end: -2 zoom_factor: 2", (3, 7), (1, 2)),
        ("height: 1 width: 1", (1, 1), (0, 0)),
    ],
)
def test_interp(one_layer: Build, fields: str, size: tuple[int, int], cut: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 7)).astype(np.float32)
    graph = one_layer("Interp", f"interp_param {{ {fields} }}", [x.shape])
    inner = x[:, :, cut[0] : 5 - cut[1], cut[0] : 7 - cut[1]]
    top = graph(torch.from_numpy(x))["t0"].numpy()
    assert graph.shapes["t0"] == top.shape
    np.testing.assert_allclose(top, bilinear_with_aligned_corners(inner, size), rtol=1e-5, atol=1e-6)


def test_interp_to_a_second_bottom(one_layer: Build) -> None:
    assert one_layer("Interp", "", [(1, 2, 5, 7), (1, 9, 20, 31)]).shapes["t0"] == (1, 2, 20, 31)


def test_crop_center_cuts_both_ends(one_layer: Build) -> None:
    x = torch.randn(2, 3, 8, 9)
    graph = one_layer("CropCenter", "crop_center_param { crop_size: [0, 1, 2, 3] }", [(2, 3, 8, 9)])
    assert torch.equal(graph(x)["t0"], x[:, 1:2, 2:6, 3:6])


def test_permute_split_tile_and_silence(one_layer: Build) -> None:
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(
        one_layer("Permute", "permute_param { order: 0 order: 2 }", [x.shape])(x)["t0"], x.permute(0, 2, 1, 3)
    )
    split = one_layer("Split", "", [x.shape], tops=3)(x)
    assert all(torch.equal(split[f"t{i}"], x) for i in range(3))
    tiled = one_layer("Tile", "tile_param { axis: -1 tiles: 2 }", [x.shape])(x)["t0"]
    assert torch.equal(tiled, x.repeat(1, 1, 1, 2))
    assert set(one_layer("Silence", "", [x.shape, x.shape], tops=0)({"b0": x, "b1": x})) == {"b0", "b1"}


@pytest.mark.parametrize(
    ("fields", "old", "new"),
    [
        ("shape { dim: 2 dim: 4 } axis: 1", (2, 8), (2, 2, 4)),
        ("shape { dim: 2 dim: 4 } axis: -2", (2, 8), (2, 2, 4)),
        ("shape { dim: 1 } num_axes: 0", (2, 8), (1, 2, 8)),
        ("shape { dim: 1 } axis: -1 num_axes: 0", (2, 8), (2, 8, 1)),
        ("shape { dim: 1 dim: 2 } num_axes: 1", (2, 8), (1, 2, 8)),
        ("shape { dim: 0 dim: -1 dim: 4 }", (2, 8), (2, 2, 4)),
        ("shape { dim: -1 }", (2, 3, 4), (24,)),
    ],
)
def test_reshape(one_layer: Build, fields: str, old: tuple[int, ...], new: tuple[int, ...]) -> None:
    graph = one_layer("Reshape", f"reshape_param {{ {fields} }}", [old])
    assert graph.shapes["t0"] == tuple(graph(torch.zeros(old))["t0"].shape)
    assert graph.shapes["t0"] == new


@pytest.mark.parametrize(
    ("kind", "fields", "shapes", "tops", "message"),
    [
        (
            "Reshape",
            "reshape_param { shape { dim: 3 dim: 5 } }",
            [(2, 8)],
            1,
            "expected a shape of 16 elements like the bottom",
        ),
        ("Reshape", "reshape_param { shape { dim: -1 dim: -1 } }", [(2, 8)], 1, "dim: expected at most one -1"),
        (
            "Reshape",
            "reshape_param { shape { dim: 2 dim: 8 dim: 0 } }",
            [(2, 8)],
            1,
            "dim: 0 copies the bottom's axis 2",
        ),
        (
            "Reshape",
            "reshape_param { axis: 3 }",
            [(2, 8)],
            1,
            "expected axis 3 and num_axes -1 within the bottom's 2 axes",
        ),
        ("Concat", "", [(2, 3, 4), (2, 3, 5)], 1, "expected bottoms that differ along axis 1 only"),
        (
            "Concat",
            "concat_param { axis: 1 concat_dim: 1 }",
            [(2, 3)],
            1,
            "expected axis or the older concat_dim, got both",
        ),
        ("Slice", "", [(2, 5)], 2, "expected a size that 2 tops divide, got 5; give slice_point"),
        (
            "Slice",
            "slice_param { slice_point: 4 slice_point: 2 }",
            [(2, 5)],
            3,
            "slice_point: expected 2 rising numbers within 5",
        ),
        (
            "Crop",
            "crop_param { offset: 3 }",
            [(1, 1, 5, 5), (1, 1, 2, 3)],
            1,
            "axis 3: expected offset 3 and the reference's size 3",
        ),
        ("Crop", "crop_param { offset: 1 offset: 1 offset: 1 }", [(1, 1, 5, 5), (1, 1, 2, 3)], 1, "1 or 2 offsets"),
        (
            "CropCenter",
            "crop_center_param { crop_size: 1 }",
            [(1, 1, 5, 5)],
            1,
            "crop_size: expected 4 numbers that leave",
        ),
        ("Flatten", "flatten_param { axis: 2 end_axis: 1 }", [(1, 2, 3)], 1, "expected axis <= end_axis, got 2 and 1"),
        (
            "Permute",
            "permute_param { order: 1 order: 1 }",
            [(1, 2)],
            1,
            r"order: expected different axes of 2, got \[1, 1\]",
        ),
        ("Tile", "tile_param { tiles: 0 }", [(1, 2)], 1, "tiles: expected at least 1, got 0"),
        ("Interp", "", [(1, 2, 3, 4)], 1, "expected height and width, zoom_factor, shrink_factor, or a second bottom"),
        ("Interp", "interp_param { pad_beg: 1 }", [(1, 2, 3, 4)], 1, "expected pads of 0 or less"),
        ("Eltwise", "", [(1, 2), (2, 1)], 1, r"expected bottoms of one shape, got \(1, 2\) and, as bottom 1, \(2, 1\)"),
        (
            "Eltwise",
            "eltwise_param { coeff: 1 }",
            [(1, 2), (1, 2)],
            1,
            "coeff: expected one for each of 2 bottoms of a SUM",
        ),
        ("Scale", "scale_param { num_axes: 3 }", [(1, 2, 3)], 1, "num_axes: expected at most 2 from axis 1 on, got 3"),
        ("Scale", "", [(1, 2, 3), (3,)], 1, r"expected \(3,\) to lie over the bottom \(1, 2, 3\) from axis 1 on"),
        ("Axpy", "", [(1, 2, 2, 1), (1, 2, 3, 3), (1, 2, 3, 3)], 1, r"expected a \(N, C, 1, 1\), x and y of one shape"),
    ],
)
def test_errors(
    one_layer: Build, kind: str, fields: str, shapes: list[tuple[int, ...]], tops: int, message: str
) -> None:
    from upscore.caffe.modules import LayerError

    with pytest.raises(LayerError, match=f"layer 'layer' .*{message}"):
        one_layer(kind, fields, shapes, tops)


def test_axpy(one_layer: Build) -> None:
    a, x, y = torch.randn(2, 3, 1, 1), torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    graph = one_layer("Axpy", "", [a.shape, x.shape, y.shape])
    expected = a.numpy() * x.numpy() + y.numpy()
    np.testing.assert_allclose(graph({"b0": a, "b1": x, "b2": y})["t0"].numpy(), expected, rtol=1e-6)
