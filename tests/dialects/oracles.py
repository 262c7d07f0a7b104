"""Live oracles for the dialects: hundreds of drawn layers a system, computed by the system, compared bit for bit.

Weights and inputs are small integers, so every sum is exact in float32 and any order of adding gives the same bits.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from upscore.dialects import Layer, RefusalError, get
from upscore.geometry import Geometry
from upscore.reference import scatter

DRAWN = 500
"""Layers drawn per system."""


def needs(*packages: str) -> None:
    """Skip the module where an oracle is not installed; unlike importorskip this does not import it here."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is the oracle here and is not installed", allow_module_level=True)


@dataclass(frozen=True)
class Case:
    """A layer in a system's own terms, and an input for it."""

    parameters: dict[str, Any]
    weights: dict[str, np.ndarray]
    x: np.ndarray
    read: dict[str, Any] = field(default_factory=dict)
    """Further arguments of read(), ``input_size`` where it is needed."""


def integers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).integers(-4, 5, shape).astype(np.float32)


def draw_examples(strategy: st.SearchStrategy[Any], count: int = DRAWN) -> list[Any]:
    """``count`` different examples of a strategy, in one list, so that an oracle can take them as one batch."""
    found: list[Any] = []

    @settings(
        max_examples=count,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    assert len(found) >= count, f"only {len(found)} of {count} layers could be drawn"
    return found


def expected(layer: Layer, x: np.ndarray) -> np.ndarray:
    """The definition, in float64."""
    return scatter(x, layer.weight, layer.bias, geometry=layer.geometry, groups=layer.groups)


def assert_same(y: Any, layer: Layer, x: np.ndarray, what: object) -> None:
    assert not isinstance(y, str), f"{what}: {y}"
    wanted = expected(layer, x)
    assert y.shape == wanted.shape, f"{what}: shape {y.shape}, expected {wanted.shape} for {layer.geometry}"
    assert np.array_equal(y, wanted), f"{what}: values differ for {layer.geometry}"


Evaluate = Callable[[list[Case]], list[Any]]


WRITTEN = 5
"""One in so many layers is also computed as ``write`` says it; all of them are read back."""


def check_reads_and_writes(system: str, cases: list[Case], evaluate: Evaluate) -> None:
    """What ``read`` makes of each case computes what the system computes, and so does what ``write`` gives back."""
    dialect = get(system)
    layers = [dialect.read(case.parameters, case.weights, **case.read) for case in cases]
    back = []
    for case, layer in zip(cases, layers, strict=True):
        written = dialect.write(layer, input_size=case.x.shape[2:])
        assert dialect.read(written.parameters, written.weights, input_size=written.input_size) == layer
        back.append(Case(written.parameters, written.weights, case.x))
    some = slice(None, None, WRITTEN)
    outputs = evaluate(cases + back[some])
    for case, layer, y in zip(cases + back[some], layers + layers[some], outputs, strict=True):
        assert_same(y, layer, case.x, case.parameters)


@st.composite
def any_layers(draw: st.DrawFn, ranks: tuple[int, ...] = (1, 2, 3)) -> tuple[Layer, np.ndarray]:
    """Layers of the normal form with any crop, and an input each."""
    rank = draw(st.sampled_from(ranks))
    axes = []
    for _ in range(rank):
        k, s = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        d = draw(st.sampled_from((1, 1, 1, 2, 3)))
        e = d * (k - 1) + 1
        lo = draw(st.integers(-1, e // 2))
        axes.append((k, s, d, (lo, draw(st.integers(-2, e // 2)))))
    geometry = Geometry(*(tuple(v) for v in zip(*axes, strict=True)), rank=rank)
    groups = draw(st.sampled_from((1, 1, 2)))
    c_in, c_out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    seed = draw(st.integers(0, 2**32 - 1))
    layer = Layer(geometry, c_in, c_out, groups, has_bias=draw(st.booleans())).filled(seed)
    size = tuple(least + draw(st.integers(0, 2)) for least in layer.smallest_input())
    return layer, integers(seed, draw(st.integers(1, 2)), c_in, *size)


@lru_cache(maxsize=1)
def many_layers() -> tuple[tuple[Layer, np.ndarray], ...]:
    """Layers of every kind, the same for every system."""
    return tuple(draw_examples(any_layers(), 400))


def code_cases(system: str, count: int) -> list[tuple[Layer, np.ndarray, str]]:
    """Layers for which the system's ``code`` has an answer, with slices and pads where needed."""
    found = []
    for layer, x in many_layers():
        try:
            found.append((layer, x, get(system).code(layer)))
        except RefusalError:
            continue
        if len(found) == count:
            return found
    raise AssertionError(f"only {len(found)} layers that {system} can say")


def check_code(system: str, worker: Worker, count: int = 25) -> None:
    """Paste what ``code`` gives into the system, and compare."""
    cases = code_cases(system, count)
    jobs = []
    for layer, x, text in cases:
        names = {"x": x, "weight": np.array(layer.weight), "bias": layer.bias}
        jobs.append(("code", (text, names, "last")))
    for (layer, x, text), y in zip(cases, worker(jobs), strict=True):
        assert_same(y, layer, x, text)


class Worker:
    """A process in which frameworks run; see oracle_worker.py."""

    def __init__(self, backend: str, folder: Path) -> None:
        self.folder, self.count = folder, 0
        with (folder / "stderr.txt").open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("oracle_worker.py"))],
                env={**os.environ, "KERAS_BACKEND": backend},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    def __call__(self, requests: list[tuple[str, Any]]) -> list[Any]:
        self.count += 1
        path = self.folder / f"{self.count}.pickle"
        path.write_bytes(pickle.dumps(requests))
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(path, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer == "done\n", (self.folder / "stderr.txt").read_text(errors="replace")[-3000:]
        return list(pickle.loads(path.with_name(path.name + ".out").read_bytes()))

    def evaluate(self, system: str) -> Evaluate:
        return lambda cases: self([(system, (case.parameters, case.weights, case.x)) for case in cases])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
