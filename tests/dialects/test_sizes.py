"""Size formulas with numbers in them, and the parameters that reach a size."""

from __future__ import annotations

import pytest
from dialects.oracles import many_layers

from upscore.dialects import SYSTEMS, RefusalError, get
from upscore.dialects.sizes import size_formula, solve
from upscore.errors import ArgumentError


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_numbers_in_the_formula_make_the_size(system: str) -> None:
    shown = 0
    for layer, x in many_layers():
        try:
            answer = size_formula(system, layer, x.shape[2:])
        except RefusalError:
            continue
        assert answer.system == get(system).SYSTEM
        assert tuple(eval(said, {}) for said in answer.numbers) == answer.size == layer.output_size(x.shape[2:])
        assert not any(letter.isalpha() for said in answer.numbers for letter in said)
        assert str(answer).count("\n") == layer.rank
        shown += 1
    assert shown >= 5


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(("n", "m", "s"), [(16, 500, 32), (7, 14, 2), ((5, 4), (10, 13), (2, 3))])
def test_solutions_reach_the_size_in_the_systems_own_words(system: str, n: object, m: object, s: object) -> None:
    answers = solve(system, input=n, output=m, stride=s)  # type: ignore[arg-type]
    assert answers
    wanted = m if isinstance(m, tuple) else (m, m)
    for answer in answers:
        written = answer.written
        assert written.is_one_layer
        layer = get(system).read(written.parameters, c_in=1, input_size=written.input_size)
        assert layer.output_size(n) == wanted  # type: ignore[arg-type]
        assert layer.geometry == answer.geometry


def test_the_odd_position_is_cut_where_the_system_cuts_it() -> None:
    by_kernel = {a.geometry.kernel: a.geometry.crop for a in solve("keras", input=7, output=14, stride=2)}
    assert by_kernel[(3, 3)] == ((0, 1), (0, 1))
    by_kernel = {a.geometry.kernel: a.geometry.crop for a in solve("pytorch", input=7, output=14, stride=2)}
    assert by_kernel[(3, 3)] == ((1, 0), (1, 0))
    assert (3, 3) not in {a.geometry.kernel for a in solve("caffe", input=7, output=14, stride=2)}


def test_fcn32s_in_caffe() -> None:
    answers = solve("caffe", input=16, output=544, stride=32)
    assert [(a.geometry.kernel, a.written.parameters.get("pad")) for a in answers][-1] == ((64, 64), None)


def test_sizes_that_nothing_reaches() -> None:
    with pytest.raises(ArgumentError, match="output: expected a size that stride"):
        solve("caffe", input=16, output=900, stride=32, max_kernel=64)
    with pytest.raises(RefusalError, match="Lasagne cannot say this layer: rank: expected 2 spatial axes, got 3"):
        solve("lasagne", input=(4, 4, 4), output=(8, 8, 8), stride=2)
    with pytest.raises(ArgumentError, match=r"system: expected one of caffe, tensorflow, .*, got 'mxnet'"):
        solve("mxnet", input=4, output=8, stride=2)
