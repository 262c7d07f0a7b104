"""Deconvolutional networks against SPORCO's convolutional dictionary learning: the same pictures, the same objective.

    pip install sporco numexpr
    python -m benchmarks.deconvolutional --photos photos

SPORCO convolves on a torus; where a mask leaves out a border of a kernel less one, what is seen is the cropped
transposed convolution of upscore, so that its solvers with a mask minimise the very objective of upscore's layer (and
those without one another objective, on the torus). Whoever found them, filters and maps are put into upscore's
objective, which torch alone computes in float64. Everything runs in one thread, in float32, and time is that of the
processor, without the time in which objectives are computed for the table.

SPORCO: Wohlberg 2017, "SPORCO: A Python package for standard and convolutional sparse representations".
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import machine, report
from upscore.networks.deconvolutional import DeconvolutionalLayer, DeconvolutionalNetwork, unit
from upscore.networks.proximal import L1, minimize
from upscore.training.contrast import crops
from upscore.training.deconvolutional import Learning, Round, Settings

RESULT = Path(__file__).parent / "results" / "deconvolutional.json"
WITHIN = (0.1, 0.01, 0.001)
"""Inference is timed until the objective is within this of the least that anybody found."""

Numbers = NDArray[Any]


class Judged(NamedTuple):
    """What filters and maps come to, means over the pictures, and after how many seconds."""

    seconds: float
    objective: float
    psnr: float
    density: float


def judge(images: Tensor, filters: Tensor, maps: Tensor, sparsity: float, seconds: float) -> Judged:
    """The objective, the peak signal-to-noise ratio (the peak being a picture's range) and the maps' density."""
    assert filters.flatten(1).norm(dim=1).max() <= 1 + 1e-5
    made = F.conv_transpose2d(maps.double(), filters.double(), padding=filters.shape[-1] - 1)
    error = (made - images).square()
    objective = float(error.sum() / 2 + sparsity * maps.double().abs().sum()) / len(images)
    peak = images.amax((1, 2, 3)) - images.amin((1, 2, 3))
    psnr = 10 * (peak.square() / error.mean((1, 2, 3))).log10()
    return Judged(seconds, objective, float(psnr.mean()), float((maps != 0).double().mean()))


class OutOfTimeError(Exception):
    """The time is up."""


class Clock:
    """Processor seconds since it was made, but for those inside ``with clock.stopped()``."""

    def __init__(self) -> None:
        self.began = time.process_time()

    def __call__(self) -> float:
        return time.process_time() - self.began

    @contextlib.contextmanager
    def stopped(self) -> Iterator[float]:
        now = time.process_time()
        yield now - self.began
        self.began += time.process_time() - now


class SporcoProblem:
    """Pictures and a mask as SPORCO's solvers take them, and what they return as upscore has it."""

    def __init__(self, images: Tensor, size: int, *, masked: bool = True) -> None:
        border = size - 1 if masked else 0
        pad = (border, 0, border, 0)  # what wraps around falls into the border
        self.signal = np.ascontiguousarray(F.pad(images[:, 0], pad).permute(1, 2, 0).numpy())
        self.mask = np.ascontiguousarray(F.pad(torch.ones(images.shape[2:]), pad).numpy())[:, :, None, None]

    @staticmethod
    def filters_in(filters: Tensor) -> Numbers:
        return np.ascontiguousarray(filters[:, 0].permute(1, 2, 0).numpy())

    @staticmethod
    def filters_out(filters: Numbers) -> Tensor:
        size = filters.shape[0]
        return torch.from_numpy(filters.reshape(size, size, -1).copy()).permute(2, 0, 1)[:, None]

    @staticmethod
    def maps_out(maps: Numbers) -> Tensor:
        height, width, _, count, filters = maps.shape
        return torch.from_numpy(maps.reshape(height, width, count, filters).copy()).permute(2, 3, 0, 1)


def due(trace: list[Judged], seconds: float, budget: float) -> bool:
    """Whether to judge again: every hundredth of the budget, and when it is used up."""
    return not trace or seconds > min(trace[-1].seconds + budget / 100, budget)


# --- learning: name -> trace of what was judged, and the filters at the end ---


def learn_upscore(images: Tensor, learning: Learning, budget: float) -> tuple[list[Judged], Tensor]:
    layer = learning.layer
    trace: list[Judged] = []
    clock = Clock()

    def record(_: Round) -> None:
        with clock.stopped() as seconds:
            if due(trace, seconds, budget):
                trace.append(judge(images, layer.weight, learning.maps, layer.sparsity, seconds))
        if seconds > budget:
            raise OutOfTimeError

    with contextlib.suppress(OutOfTimeError):
        learning.run(record)
    return trace, layer.weight.detach().clone()


def learn_sporco(
    images: Tensor, layer: DeconvolutionalLayer, budget: float, x: tuple[str, float], d: tuple[str, float]
) -> tuple[list[Judged], Tensor]:
    """With a mask; ``x`` and ``d`` are the methods for maps and filters and their penalties, or first curvatures."""
    from sporco.dictlrn import cbpdndlmd
    from sporco.pgm.backtrack import BacktrackStandard

    problem = SporcoProblem(images, layer.size)
    trace: list[Judged] = []
    clock = Clock()

    def record(solver: Any) -> bool:
        with clock.stopped() as seconds:
            if due(trace, seconds, budget):
                filters, maps = problem.filters_out(solver.getdict()), problem.maps_out(solver.getcoef())
                trace.append(judge(images, filters, maps, layer.sparsity, seconds))
        return seconds > budget

    def inner(method: str, number: float) -> dict[str, Any]:
        return {"rho": number} if method != "pgm" else {"L": number, "Backtrack": BacktrackStandard()}

    options = cbpdndlmd.ConvBPDNMaskDictLearn.Options(
        {"MaxMainIter": 10**6, "Callback": record, "CBPDN": inner(*x), "CCMOD": inner(*d)}, xmethod=x[0], dmethod=d[0]
    )
    solver = cbpdndlmd.ConvBPDNMaskDictLearn(
        problem.filters_in(layer.weight), problem.signal, layer.sparsity, problem.mask, options,
        xmethod=x[0], dmethod=d[0], dimK=1,
    )  # fmt: skip
    return trace, problem.filters_out(solver.solve())


def learn_sporco_torus(images: Tensor, layer: DeconvolutionalLayer, budget: float, x: float, d: float) -> Tensor:
    """Without a mask, as it is mostly used (ADMM, consensus); the objective on the torus is another."""
    from sporco.dictlrn import cbpdndl

    problem = SporcoProblem(images, layer.size, masked=False)
    clock = Clock()
    options = cbpdndl.ConvBPDNDictLearn.Options(
        {"MaxMainIter": 10**6, "Callback": lambda _: clock() > budget, "CBPDN": {"rho": x}, "CCMOD": {"rho": d}},
        dmethod="cns",
    )
    solver = cbpdndl.ConvBPDNDictLearn(
        problem.filters_in(layer.weight), problem.signal, layer.sparsity, options, dmethod="cns", dimK=1
    )
    return problem.filters_out(solver.solve())


# --- inference for given filters ---


def infer_upscore(images: Tensor, layer: DeconvolutionalLayer, steps: int) -> list[Judged]:
    """The objective after every step, from ``minimize``; the last is judged as all others are."""
    parts, values = [], []
    clock = Clock()
    curvature = layer.curvature()
    for part in images.split(4):
        start = part.new_zeros(len(part), layer.filters, *(n + layer.size - 1 for n in part.shape[2:]))
        found = minimize(
            layer.synthesize, layer.analyze, part, L1(layer.sparsity), start, curvature=curvature, steps=steps
        )
        parts.append(found.x)
        values.append(found.values.sum(1))
    seconds = clock()
    last = judge(images, layer.weight, torch.cat(parts), layer.sparsity, seconds)
    objectives = (sum(values) / len(images)).tolist()  # type: ignore[union-attr]
    assert math.isclose(objectives[-1], last.objective, rel_tol=1e-5)
    return [last._replace(seconds=seconds * i / steps, objective=value) for i, value in enumerate(objectives)]


def infer_sporco(images: Tensor, layer: DeconvolutionalLayer, steps: int, *, penalty: float | None) -> list[Judged]:
    """By ADMM with that penalty, or by PGM (FISTA) with upscore's bound of the curvature."""
    from sporco.admm import cbpdn as admm
    from sporco.pgm import cbpdn as pgm

    problem = SporcoProblem(images, layer.size)
    trace: list[Judged] = []
    clock = Clock()

    def record(solver: Any) -> None:
        with clock.stopped() as seconds:
            trace.append(judge(images, layer.weight, problem.maps_out(solver.getcoef()), layer.sparsity, seconds))

    options = {"MaxMainIter": steps, "RelStopTol": 0.0, "Callback": record}
    arguments = (problem.filters_in(layer.weight), problem.signal, layer.sparsity, problem.mask)
    if penalty is None:
        options |= {"L": layer.curvature()}
        solver = pgm.ConvBPDNMask(*arguments, pgm.ConvBPDNMask.Options(options), dimK=1)
    else:
        options |= {"rho": penalty}
        solver = admm.ConvBPDNMaskDcpl(*arguments, admm.ConvBPDNMaskDcpl.Options(options), dimK=1)
    solver.solve()
    return trace


def reached(trace: list[Judged], goal: float) -> float | None:
    """Seconds until the objective was and stayed at ``goal`` or below."""
    late = [i for i, entry in enumerate(trace) if entry.objective > goal]
    first = late[-1] + 1 if late else 0
    return trace[first].seconds if first < len(trace) else None


def a_step(trace: list[Judged]) -> float:
    """Seconds of a step after the first."""
    return (trace[-1].seconds - trace[1].seconds) / (len(trace) - 2)


def at(trace: list[Judged], seconds: float) -> Judged:
    """The last entry that was there by then, or the first."""
    return max((entry for entry in trace if entry.seconds <= seconds), default=trace[0])


LEARNING: dict[str, tuple[tuple[str, float], tuple[str, float]]] = {
    "SPORCO ADMM 2, consensus 2": (("admm", 2.0), ("cns", 2.0)),
    "SPORCO ADMM 2, consensus 20": (("admm", 2.0), ("cns", 20.0)),
    "SPORCO ADMM 2, PGM": (("admm", 2.0), ("pgm", 50.0)),
    "SPORCO ADMM 10.5, consensus 0.2": (("admm", 10.5), ("cns", 0.2)),
    "SPORCO PGM, PGM": (("pgm", 36.0), ("pgm", 50.0)),
}
"""Methods for maps and filters: ADMM with its penalty, or PGM with its first curvature.

The fourth has the penalties of SPORCO's example of learning with a mask (20 sparsity + 0.5, and 0.2), the last those
of its example with PGM; the others were the best of a few short runs on the pictures to learn from.
"""
TURNS = 9
INFERENCE = {"SPORCO ADMM 2": 2.0, "SPORCO ADMM 5": 5.0, "SPORCO ADMM 0.5": 0.5, "SPORCO PGM": None}


def main(
    photos: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The folder of photographs.")],
    count: Annotated[int, typer.Option(help="Pictures to learn from, and as many others to infer.")] = 12,
    side: Annotated[int, typer.Option(help="Their side in pixels.")] = 96,
    filters: Annotated[int, typer.Option(help="How many.")] = 16,
    size: Annotated[int, typer.Option(help="Their side.")] = 7,
    sparsity: Annotated[float, typer.Option(help="Weight of the 1-norm.")] = 0.5,
    budget: Annotated[float, typer.Option(help="Processor seconds of learning, for each.")] = 30,
    out: Annotated[Path, typer.Option(help="Where to write the result.")] = RESULT,
) -> None:
    """Learn, then infer other pictures by the filters that upscore learned."""
    import numexpr
    import sporco.fft

    torch.set_num_threads(1)
    numexpr.set_num_threads(1)
    sporco.fft.pyfftw_threads = 1
    squares, names = crops(photos, count=2 * count, side=side, scale=0.5)
    assert len(set(names)) == len(names)
    images, others = squares.split(count)
    options = {"count": count, "side": side, "filters": filters, "size": size, "sparsity": sparsity, "budget": budget}
    with tempfile.TemporaryDirectory() as folder:
        network = DeconvolutionalNetwork((filters,), size=size, sparsity=sparsity)
        learning = Learning(network, images, Settings(rounds=10**6, save_every=10**6), Path(folder))
        layer = copy.deepcopy(learning.layer)
        runs = {"upscore": learn_upscore(images, learning, budget)}
    for name, (x, d) in LEARNING.items():
        runs[name] = learn_sporco(images, layer, budget, x, d)
    runs["SPORCO on the torus (ADMM, consensus)"] = [], learn_sporco_torus(images, layer, budget, 2.0, 20.0)
    learned: list[dict[str, Any]] = []
    for name, (trace, weight) in runs.items():
        layer.weight.copy_(unit(weight))
        new = judge(others, layer.weight, layer.infer(others, steps=300), sparsity, 0.0)
        parts = {f"after {share:g}": at(trace, share * budget)._asdict() for share in (0.1, 0.3, 1) if trace}
        learned.append({"name": name, **parts, "others": new._asdict()})
    layer.weight.copy_(runs["upscore"][1])
    least = infer_upscore(others, layer, 1500)[-1].objective
    traces = {"upscore": infer_upscore(others, layer, 200)}
    traces |= {name: infer_sporco(others, layer, 80, penalty=penalty) for name, penalty in INFERENCE.items()}
    turns: dict[str, list[float]] = {name: [] for name in traces}
    for _ in range(TURNS):
        turns["upscore"].append(a_step(infer_upscore(others, layer, 50)))
        for name, penalty in INFERENCE.items():
            turns[name].append(a_step(infer_sporco(others, layer, 10, penalty=penalty)))
    inferred = [
        {
            "name": name,
            "seconds a step": {"median": median(turns[name]), "least": min(turns[name]), "most": max(turns[name])},
            **{f"within {share:g}": reached(trace, least * (1 + share)) for share in WITHIN},
            "end": trace[-1]._asdict(),
        }
        for name, trace in traces.items()
    ]
    described = machine.describe(1)
    described["versions"]["sporco"] = importlib.metadata.version("sporco")
    report.save({"what": "deconvolutional", "machine": described, "settings": options,
                 "learning": learned, "inference": {"least": least, "rows": inferred}}, out)  # fmt: skip
    show(learned, inferred, Console(width=None if Console().is_terminal else 160))
    print(f"wrote {out}")


def show(learned: list[dict[str, Any]], inferred: list[dict[str, Any]], console: Console) -> None:
    """Both tables."""
    parts = [key for key in learned[0] if key.startswith("after")]
    table = Table("learning", *(f"objective {part}" for part in parts), "PSNR", "density", "other pictures")
    for row in learned:
        numbers = [f"{row[part]['objective']:.1f}" if part in row else "-" for part in parts]
        last = row.get(parts[-1])
        rest = [f"{last['psnr']:.2f}", f"{last['density']:.2%}"] if last else ["-", "-"]
        table.add_row(row["name"], *numbers, *rest, f"{row['others']['objective']:.1f}")
    console.print(table)
    table = Table("inference", "ms a step", *(f"s to {share:g}" for share in WITHIN), "objective", "PSNR", "density")
    for row in inferred:
        times = [row[f"within {share:g}"] for share in WITHIN]
        table.add_row(
            row["name"],
            "{median:.1f} ({least:.1f}-{most:.1f})".format(**{k: 1000 * v for k, v in row["seconds a step"].items()}),
            *("-" if seconds is None else f"{seconds:.2f}" for seconds in times),
            f"{row['end']['objective']:.2f}",
            f"{row['end']['psnr']:.2f}",
            f"{row['end']['density']:.2%}",
        )
    console.print(table)


if __name__ == "__main__":
    with torch.no_grad():
        typer.run(main)
