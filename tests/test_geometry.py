"""The normal form: sizes, phases, overlap, receptive field, solve and the coordinate map."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upscore.errors import ArgumentError, ArgumentTypeError
from upscore.geometry import Geometry, pairs, per_axis


def taps_by_definition(n: int, k: int, s: int, d: int, lo: int, hi: int) -> list[list[tuple[int, int]]]:
    """For every output position of one axis, the (input, tap) pairs that land on it: the definition, read aloud."""
    m = (n - 1) * s + d * (k - 1) + 1 - lo - hi
    return [[(i, t) for i, t in product(range(n), range(k)) if i * s + t * d - lo == y] for y in range(m)]


@st.composite
def axes(draw):
    """n, k, s, d, lo, hi of one axis with an output of at least one position."""
    n, k, s, d = (draw(st.integers(1, high)) for high in (6, 6, 5, 4))
    full = (n - 1) * s + d * (k - 1) + 1
    lo = draw(st.integers(-4, full + 1))
    return n, k, s, d, lo, draw(st.integers(-4, full - 1 - lo))


@given(st.lists(axes(), min_size=1, max_size=3))
def test_phases_are_the_taps_of_the_definition(layer) -> None:
    n, k, s, d, lo, hi = zip(*layer, strict=True)
    g = Geometry(k, s, d, tuple(zip(lo, hi, strict=True)))
    by_residue = {phase.residue: phase for phase in g.phases()}
    assert list(by_residue) == list(product(*map(range, s)))
    for axis, numbers in enumerate(layer):
        assert [p.residue[0] for p in g.axis_phases(axis)] == list(range(s[axis]))
        for y, expected in enumerate(taps_by_definition(*numbers)):
            q, residue = divmod(y + lo[axis], s[axis])
            phase = by_residue[tuple(residue if a == axis else 0 for a in range(g.rank))]
            met = [(q - b, t) for t, b in zip(phase.taps[axis], phase.shifts[axis], strict=True)]
            assert sorted((i, t) for i, t in met if 0 <= i < n[axis]) == expected
    for phase in g.phases():
        assert phase.count == np.prod([len(taps) for taps in phase.taps])
    assert sum(phase.count for phase in g.phases()) == np.prod(k)


@given(st.lists(axes(), min_size=1, max_size=3))
def test_overlap_and_receptive_field_count_the_taps_of_the_definition(layer) -> None:
    n, k, s, d, lo, hi = zip(*layer, strict=True)
    g = Geometry(k, s, d, tuple(zip(lo, hi, strict=True)))
    assert g.overlap(n) == tuple(tuple(map(len, taps_by_definition(*numbers))) for numbers in layer)
    for axis, numbers in enumerate(layer):
        many = taps_by_definition(2 * numbers[1] * numbers[3] + 1, *numbers[1:4], 0, 0)  # enough for an interior
        middle = [many[y] for y in range(len(many) // 2 // s[axis] * s[axis], len(many))][: s[axis]]
        assert g.overlap()[axis] == tuple(len(taps) for taps in middle)
        spans = [max(i for i, _ in taps) - min(i for i, _ in taps) + 1 for taps in middle if taps]
        assert g.receptive_field()[axis] == max(spans)


@given(st.lists(axes(), min_size=1, max_size=3))
def test_sizes_go_forth_and_back(layer) -> None:
    n, k, s, d, lo, hi = zip(*layer, strict=True)
    g = Geometry(k, s, d, tuple(zip(lo, hi, strict=True)))
    m = g.output_size(n)
    assert m == tuple(len(taps_by_definition(*numbers)) for numbers in layer)
    for more in range(max(s)):  # up to a stride more, the convolution rounds down to the same input
        if all(more < si for si in s):
            assert g.adjoint_size([mi + more for mi in m]) == n
    wanted = tuple(mi + 3 for mi in m)
    assert g.with_output_size(n, wanted).output_size(n) == wanted
    assert [c[0] for c in g.with_output_size(n, wanted).crop] == list(lo)


@given(
    st.tuples(*[st.integers(1, 7)] * 2),
    st.tuples(*[st.integers(1, 5)] * 2),
    st.tuples(*[st.integers(1, 4)] * 2),
    st.tuples(*[st.integers(1, 3)] * 2),
    st.data(),
)
def test_from_padding_gives_torchs_sizes(n, k, s, d, data) -> None:
    full = [(ni - 1) * si + di * (ki - 1) + 1 for ni, ki, si, di in zip(n, k, s, d, strict=True)]
    padding = tuple(data.draw(st.integers(0, (f - 1) // 2)) for f in full)
    output_padding = tuple(data.draw(st.integers(0, max(si, di) - 1)) for si, di in zip(s, d, strict=True))
    g = Geometry.from_padding(k, stride=s, padding=padding, output_padding=output_padding, dilation=d)
    layer = torch.nn.ConvTranspose2d(1, 1, k, s, padding, output_padding, dilation=d)
    assert g.output_size(n) == layer(torch.zeros(1, 1, *n)).shape[2:]
    assert g.symmetric() == (padding, output_padding)


# solve


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 30), st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=2
    ),
    st.one_of(st.none(), st.integers(1, 12)),
)
def test_every_answer_gives_the_size_and_the_smallest_comes_first(asked, max_kernel) -> None:
    n, m, s, d = zip(*asked, strict=True)
    try:
        answers = Geometry.solve(input=n, output=m, stride=s, dilation=d, max_kernel=max_kernel)
    except ArgumentError as error:
        assert max_kernel is not None
        # The error's own proposal works.
        enough = int(str(error).rsplit("max_kernel=", 1)[1])
        assert enough > max_kernel
        assert Geometry.solve(input=n, output=m, stride=s, dilation=d, max_kernel=enough)
        return
    kernels = [answer.geometry.kernel for answer in answers]
    assert len(set(kernels)) == len(kernels)
    assert [np.prod(k) for k in kernels] == sorted(np.prod(k) for k in kernels)
    for answer in answers:
        g = answer.geometry
        assert (g.stride, g.dilation, g.output_size(n)) == (s, d, m)
        for (lo, hi), si, di in zip(g.crop, s, d, strict=True):
            assert lo - hi in (0, 1) or (lo == 0 and 0 < -hi < max(si, di))
        if max_kernel is not None:
            assert max(g.kernel) <= max_kernel
        if answer.padding is not None:
            said = Geometry.from_padding(
                g.kernel, stride=s, padding=answer.padding, output_padding=answer.output_padding, dilation=d
            )
            assert said == g


@given(st.integers(1, 6), st.integers(1, 25), st.integers(1, 4), st.integers(1, 12))
def test_solve_leaves_no_kernel_out(n, m, s, most) -> None:
    """Against trying every kernel and every crop that PyTorch can say."""
    tried = set()
    for k, p, op in product(range(1, most + 1), range(20), range(s)):
        if (
            2 * p <= (n - 1) * s + k + op
            and Geometry(k, s, crop=((p, p - op),)).extent[0] + (n - 1) * s + op - 2 * p == m
        ):
            tried.add(k)
    unbroken = {k for k in tried if k >= s} or tried
    try:
        answers = Geometry.solve(input=n, output=m, stride=s, max_kernel=most)
    except ArgumentError:
        assert not tried
        return
    found = [a.geometry.kernel[0] for a in answers]
    # For s = 1 PyTorch has no output_padding, so a crop of odd total is an answer that only pairs can say.
    assert [k for k in found if s > 1 or (n - 1 + k - m) % 2 == 0] == sorted(unbroken)


@pytest.mark.parametrize("factor", [2, 3, 4, 5, 8, 16, 32])
def test_the_bilinear_kernel_is_marked_once(factor: int) -> None:
    answers = Geometry.solve(input=(7, 9), output=(7 * factor, 9 * factor), stride=factor)
    (marked,) = [a for a in answers if a.bilinear]
    assert (marked.geometry.kernel, marked.padding) == ((2 * factor - factor % 2,) * 2, (-(-(factor - 1) // 2),) * 2)
    assert marked.output_padding == (0, 0)


def test_each_axis_is_solved_on_its_own_unless_they_ask_the_same() -> None:
    square = Geometry.solve(input=(5, 7), output=(10, 14), stride=2)
    assert [a.geometry.kernel for a in square] == [(2, 2), (3, 3), (4, 4)]
    oblong = Geometry.solve(input=(5, 4), output=(20, 12), stride=(4, 3))
    assert [a.geometry.kernel for a in oblong if a.bilinear] == [(8, 5)]
    assert oblong[0].geometry.kernel == (4, 3)
    dilated = Geometry.solve(input=(5, 5), output=(10, 10), stride=2, dilation=(1, 3))
    assert not any(a.bilinear for a in dilated)


def test_solve_says_what_pytorch_cannot_say() -> None:
    (first, *_) = Geometry.solve(input=5, output=4, stride=1, max_kernel=1)
    assert (first.geometry.crop, first.padding, first.output_padding) == (((1, 0),), None, None)


# Numbers from the threads


def test_the_sizes_of_the_threads() -> None:
    assert Geometry((64, 64), 32).output_size((16, 16)) == (544, 544)
    assert Geometry((64, 64), 32).overlap() == ((2,) * 32,) * 2
    assert sum(count > 0 for count in Geometry(3, 32).overlap()[0]) == 3
    assert Geometry(3, 2).adjoint_size(5) == (2,)
    assert Geometry(3, 2).output_size(2) == (5,)
    assert Geometry(3, 2).adjoint_size(7) == (3,)
    assert Geometry(3, 2).output_size(3) == (7,)
    assert Geometry(11, 4).adjoint_size(227) == (55,)


def test_the_sizes_of_the_voc_fcns() -> None:
    """A 500 x 500 image: (conv1_1 pads 100); Caffe's pools round up, which is a crop of -1 where needed."""
    size = Geometry(3, 1, crop=100).adjoint_size(500)[0]
    pools = []
    for _ in range(5):
        size = -(-(size - 2) // 2) + 1
        pools.append(size)
    assert pools == [349, 175, 88, 44, 22]
    assert Geometry(7, 1).adjoint_size(22) == (16,)
    assert [
        Geometry(k, s).output_size(n)[0]
        for k, s, n in ((64, 32, 16), (4, 2, 16), (32, 16, 34), (4, 2, 34), (16, 8, 70))
    ] == [
        544,
        34,
        560,
        70,
        568,
    ]


# What is taken, and what is refused


def test_what_counts_as_one_number_and_as_several() -> None:
    assert Geometry(kernel=np.array(3), stride=np.int32(2)) == Geometry(3, 2)
    assert Geometry(np.array([3, 4])) == Geometry((3, 4)) == Geometry([3, 4])
    assert Geometry(3, crop=((1, 2),)).rank == 1
    assert Geometry(3, crop=(1, 2)).crop == ((1, 1), (2, 2))
    assert Geometry(3, 2, rank=3) == Geometry((3, 3, 3), (2, 2, 2))
    assert Geometry(torch.Size([3, 4]), 2).rank == 2
    assert per_axis("size", (n for n in (1, 2)), 2) == (1, 2)
    assert pairs("padding", [1, (2, 3)], 2) == ((1, 1), (2, 3))


def test_it_is_a_value() -> None:
    g = Geometry((3, 4), 2)
    assert {g: "kept"}[Geometry([3, 4], (2, 2))] == "kept"
    with pytest.raises(AttributeError):
        g.kernel = (1, 1)


def test_huge_numbers_are_exact_and_do_not_hang() -> None:
    g = Geometry(10**12, 10**9, dilation=7)
    assert g.output_size(10**15) == ((10**15 - 1) * 10**9 + 7 * (10**12 - 1) + 1,)
    assert g.adjoint_size(g.output_size(10**15)) == (10**15,)
    assert g.receptive_field() == (6994,)  # taps 10**9 apart: 1000 of them, 7 inputs from one to the next
    assert Geometry(64, 32).receptive_field() == (2,)


BAD = [
    (lambda: Geometry(0), "kernel: expected an integer of at least 1, got 0; for example kernel=1"),
    (lambda: Geometry((3, -1)), "kernel: expected an integer of at least 1, got -1; for example kernel=1"),
    (
        lambda: Geometry((3, 3), stride=(2, 2, 2)),
        "stride: expected one integer, or 2 of them (one per axis), got (2, 2, 2); for example stride=(1, 1)",
    ),
    (lambda: Geometry(3, 0), "stride: expected an integer of at least 1, got 0; for example stride=1"),
    (lambda: Geometry(3, dilation=0), "dilation: expected an integer of at least 1, got 0; for example dilation=1"),
    (lambda: Geometry(()), "rank: expected an integer of at least 1, got 0; for example rank=1"),
    (
        lambda: Geometry((3, 4), crop=(1, 2, 3)),
        "crop: expected one integer, 2 integers, or 2 (before, after) pairs, got (1, 2, 3); "
        "for example crop=((0, 1), (0, 1))",
    ),
    (
        lambda: Geometry((3, 4), crop=((1, 2, 3), 0)),
        "crop: expected pairs (before, after), got (1, 2, 3); for example crop=((0, 1), (0, 1))",
    ),
    (
        lambda: Geometry((3, 4), crop=((), 0)),
        "crop: expected pairs (before, after), got (); for example crop=((0, 1), (0, 1))",
    ),
    (
        lambda: Geometry.from_padding(3, padding=-1),
        "padding: expected an integer of at least 0, got -1; for example padding=1",
    ),
    (
        lambda: Geometry.from_padding((4, 3), stride=(3, 2), output_padding=(2, 2)),
        "output_padding: expected less than the larger of stride 2 and dilation 1, got 2; "
        "for example output_padding=1, or output_size= for any size",
    ),
    (
        lambda: Geometry(3, 2, crop=((3, 2),)).output_size(2),
        "padding: expected a crop that leaves an output of at least 1 from an input of 2, "
        "got 3 before and 2 after, which leaves 0; for example a crop of 4 in all",
    ),
    (
        lambda: Geometry((3, 5), 2, crop=((0, 0), (1, 0))).adjoint_size((3, 3)),
        "output: expected a padded size of at least the kernel's extent 5, got 3 + 1 + 0 = 4; "
        "for example a size of 4 or a padding of 1",
    ),
    (lambda: Geometry(3).output_size(0), "input: expected an integer of at least 1, got 0; for example input=1"),
    (
        lambda: Geometry((3, 3)).adjoint_size((5,)),
        "output: expected one integer, or 2 of them (one per axis), got (5,); for example output=(1, 1)",
    ),
    (
        lambda: Geometry.solve(input=(5, 4), output=(10, 90), stride=2, max_kernel=4),
        "output: expected a size that stride (2, 2) reaches from (5, 4) with a kernel of at most 4, got (10, 90); "
        "for example output=(10, 8), or max_kernel=83",
    ),
    (
        lambda: Geometry.solve(input=5, output=10, stride=10**9),
        "max_kernel: expected a bound that leaves at most 10000 answers, got 1000000001; "
        "for example max_kernel=1000000000",
    ),
    (
        lambda: Geometry(10**12).overlap(),
        "kernel: expected at most 4194304 phases, taps or positions to list, got 1000000000000; for example kernel=2",
    ),
    (
        lambda: Geometry((3, 3), 4096).phases(),
        "stride: expected at most 4194304 phases, taps or positions to list, got 16777216; for example stride=2",
    ),
    (
        lambda: Geometry(3, 2).overlap(10**10),
        "input: expected at most 4194304 phases, taps or positions to list, got 20000000001; for example input=2",
    ),
]


@pytest.mark.parametrize(("attempt", "message"), BAD, ids=[m.split(":")[0] + str(i) for i, (_, m) in enumerate(BAD)])
def test_what_cannot_work_is_named(attempt, message) -> None:
    with pytest.raises(ArgumentError) as error:
        attempt()
    assert str(error.value) == message


@pytest.mark.parametrize("value", ["3", 3.0, None, True, np.array(2.5), ("3", 3)])
def test_what_is_no_integer_is_a_type_error(value) -> None:
    with pytest.raises(
        ArgumentTypeError, match=r"kernel: expected an integer of at least 1, got .*; for example kernel=1"
    ):
        Geometry(value, rank=2)
