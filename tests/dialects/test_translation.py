"""Between systems: every ordered pair, and refusals."""

from __future__ import annotations

import itertools
import pickle
from functools import lru_cache

import pytest
from dialects.oracles import many_layers

from upscore.dialects import SYSTEMS, Layer, RefusalError, caffe, get, read_back
from upscore.dialects.translation import build, check, say_crop, take_weights
from upscore.errors import ArgumentError
from upscore.geometry import Geometry

# Layers that many systems can say, and one of every kind that some cannot.
COMMON = [
    Layer(Geometry(4, 2, 1, 1, rank=2), 3, 2, has_bias=True),
    Layer(Geometry((4, 3), (2, 1), 1, ((1, 1), (1, 1))), 2, 3),
    Layer(Geometry((3, 5), 2, 1, ((0, 1), (1, 2))), 2, 2, has_bias=True),
    Layer(Geometry((2, 3), (2, 3), 1, 0), 4, 3),
    Layer(Geometry((3, 2), 2, 1, ((1, 0), (0, 0))), 1, 2, has_bias=True),
    Layer(Geometry((1, 2), 3, 1, ((0, -2), (0, -1))), 2, 2),
]


@lru_cache(maxsize=1)
def layers() -> tuple[Layer, ...]:
    return (*(layer.filled(i) for i, layer in enumerate(COMMON)), *(layer for layer, _ in many_layers()[:120]))


def attempt(system: str, layer: Layer) -> Layer | RefusalError:
    """The layer, through the system and back, or why not."""
    try:
        return read_back(get(system).write(layer))
    except RefusalError as refusal:
        return refusal


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(SYSTEMS, 2)))
def test_from_one_system_to_another_and_back(first: str, second: str) -> None:
    """Normal form, A, normal form, B, normal form: the identity, or a refusal that names the system and the closest."""
    passed = 0
    for layer in layers():
        system, found = first, attempt(first, layer)
        if isinstance(found, Layer):
            assert found == layer
            system, found = second, attempt(second, found)
        if isinstance(found, Layer):
            assert found == layer
            passed += 1
            continue
        said = f"{found.argument}: expected {found.expected}, got {found.got}"
        assert str(found) == f"{get(system).SYSTEM} cannot say this layer: {said}; closest: {found.closest}"
        assert all((found.argument, found.expected, str(found.got), found.closest))
    assert passed >= 1


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_is_allowed_to_crop_reads_back_too(system: str) -> None:
    said = 0
    for layer in layers():
        try:
            written = get(system).write(layer, allow_crop=True)
        except RefusalError:
            continue
        assert read_back(written) == layer
        said += 1
    assert said >= len(COMMON) - 1


@pytest.mark.parametrize("system", SYSTEMS)
def test_an_input_size_changes_what_is_written_but_not_what_is_said(system: str) -> None:
    layer = COMMON[0].filled()
    written = get(system).write(layer, input_size=(5, 7))
    assert written.input_size in (None, (5, 7))
    assert read_back(written) == layer


def test_a_refusal_can_be_pickled() -> None:
    with pytest.raises(RefusalError) as caught:
        caffe.write(COMMON[2])
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.system, copy.closest) == (str(caught.value), "Caffe", caught.value.closest)


def test_a_crop_in_words() -> None:
    assert say_crop(((1, 0),)) == "cut 1 before on axis 0"
    assert say_crop(((1, -2), (1, -2))) == "cut 1 before and add 2 after on every axis"
    assert say_crop(((0, 0), (0, 3))) == "cut 3 after on axis 1"


def test_a_misspelt_parameter_is_no_default() -> None:
    with pytest.raises(ArgumentError, match="parameters: expected names that X has, got b, c; for example a"):
        check("X", {"a": 1, "c": 2, "b": 3}, {"a"})


def test_weights_by_their_names() -> None:
    layout = caffe.write(COMMON[0]).layout
    assert take_weights(None, ("w", "b"), layout, 1) == (None, None)
    with pytest.raises(ArgumentError, match="weights: expected the keys 'w' and perhaps 'b', got"):
        take_weights({"b": COMMON[0].filled().bias}, ("w", "b"), layout, 1)  # type: ignore[dict-item]


def test_channels_that_nothing_says() -> None:
    with pytest.raises(ArgumentError, match="c_out: expected the number of channels, where no weights are given"):
        build(Geometry(3), (None, None), c_in=1, c_out=None, groups=1, has_bias=False)
