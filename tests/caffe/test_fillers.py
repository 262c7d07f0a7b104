"""Fillers: moments and bounds that follow from their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Caffe side runs on torch")
pytest.importorskip("google.protobuf", reason="the Caffe side reads protobuf")

from upscore.caffe import schema  # noqa: E402
from upscore.caffe.fillers import fill  # noqa: E402
from upscore.errors import FileFormatError  # noqa: E402

SHAPE = (40, 30, 5, 4)  # fan in 600, fan out 800


def filled(shape: tuple[int, ...] = SHAPE, **fields: object) -> np.ndarray:
    torch.manual_seed(1)
    return fill(torch.zeros(shape), schema.FillerParameter(**fields)).numpy()


def test_constant() -> None:
    assert (filled(type="constant", value=0.25) == 0.25).all()
    assert (filled() == 0).all(), "the default fills with zeros"


def test_uniform_and_gaussian() -> None:
    x = filled(type="uniform", min=-1, max=3)
    assert -1 <= x.min() < -0.99
    assert 2.99 < x.max() <= 3
    x = filled(type="gaussian", mean=2, std=0.5)
    assert abs(x.mean() - 2) < 0.01
    assert abs(x.std() - 0.5) < 0.01


def test_sparse_gaussian_keeps_sparse_of_axis_0() -> None:
    x = filled(type="gaussian", std=1, sparse=10)
    assert abs((x != 0).mean() - 10 / 40) < 0.02


def test_positive_unitball_rows_sum_to_1() -> None:
    x = filled(type="positive_unitball")
    np.testing.assert_allclose(x.reshape(40, -1).sum(1), 1, rtol=1e-5)
    assert (x >= 0).all()


@pytest.mark.parametrize(("norm", "fan"), [("FAN_IN", 600), ("FAN_OUT", 800), ("AVERAGE", 700)])
def test_xavier_and_msra(norm: str, fan: int) -> None:
    which = schema.FillerParameter.VarianceNorm.Value(norm)
    bound = math.sqrt(3 / fan)
    x = filled(type="xavier", variance_norm=which)
    assert 0.99 * bound < np.abs(x).max() <= bound * (1 + 1e-6)
    assert abs(filled(type="msra", variance_norm=which).std() / math.sqrt(2 / fan) - 1) < 0.02


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 8, 64])
def test_bilinear_upsampling_keeps_a_constant_inside(kernel: int) -> None:
    factor = math.ceil(kernel / 2)
    x = filled((2, 3, kernel, kernel), type="bilinear")
    assert (x == x[:1, :1]).all(), "every channel pair is filled"
    if kernel % 2 == 0:
        ones = torch.ones(1, 1, 6, 6)
        up = torch.nn.functional.conv_transpose2d(ones, torch.from_numpy(x[:1, :1].copy()), stride=factor)
        np.testing.assert_allclose(up[0, 0, kernel:-kernel, kernel:-kernel].numpy(), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "fields", "message"),
    [
        ((3,), {"type": "magic"}, "filler: 'magic' is unknown; known are constant, uniform, gaussian"),
        (
            (1, 1, 3, 4),
            {"type": "bilinear"},
            r"expected a square two-dimensional kernel \(C, C, k, k\), got \(1, 1, 3, 4\)",
        ),
        ((1, 1, 3), {"type": "bilinear"}, "expected a square two-dimensional kernel"),
        ((3,), {"type": "uniform", "min": 2, "max": 1}, r"expected min <= max, got min 2.0 and max 1.0"),
        ((3,), {"type": "gaussian", "std": math.nan}, "expected std >= 0, got nan"),
    ],
)
def test_errors(shape: tuple[int, ...], fields: dict[str, object], message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        filled(shape, **fields)


def test_on_meta_nothing_is_filled() -> None:
    blob = torch.zeros(3, device="meta")
    assert fill(blob, schema.FillerParameter(type="xavier")) is blob
