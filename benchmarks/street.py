"""The street network at camera size: upscore's layers, torch's, and bilinear interpolation, in turns in one process.

    python -m benchmarks.street

Every way gets its best: normalisations folded into the kernels, inference mode, and each memory format. In "bilinear"
the transposed convolutions are replaced by 1x1 convolutions and torch's interpolation. Weights are random, which does
not change the time; upscore's scores must equal torch's.
"""

from __future__ import annotations

import copy
import os
import random
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

RESULT = Path(__file__).parent / "results" / "street.json"
SIZE = (360, 480)
TOLERANCE = 1e-5


def _ways() -> dict[str, Any]:
    """The networks, ready to run, by name."""
    import torch

    from upscore import nn
    from upscore.networks.street import Street

    torch.manual_seed(0)
    learned, bilinear = Street().fold(), Street(upsampling="bilinear").fold()
    for module in bilinear.modules():
        if isinstance(module, torch.nn.Sequential) and isinstance(module[-1], torch.nn.ConvTranspose2d):
            module[-1] = torch.nn.Upsample(scale_factor=2, mode="bilinear")
    ways: dict[str, Any] = {}
    for name, layout in (("", torch.contiguous_format), (", channels last", torch.channels_last)):
        for way, network in (("torch", learned), ("bilinear", bilinear)):
            ways[way + name] = copy.deepcopy(network).to(memory_format=layout)  # type: ignore[call-overload]
        ways["upscore" + name] = nn.accelerate(copy.deepcopy(ways["torch" + name]))
    return ways


def measure(rounds: int, threads: int) -> list[dict[str, Any]]:
    """A row for each way: milliseconds a picture (median, quartiles, minimum) and pictures a second."""
    import torch

    import upscore

    torch.set_num_threads(threads)
    upscore.cpu.set_threads(threads)
    ways = _ways()
    picture = torch.randn(1, 3, *SIZE)
    inputs = {name: picture.to(memory_format=torch.channels_last) if "last" in name else picture for name in ways}
    samples: dict[str, list[float]] = {name: [] for name in ways}
    shuffle = random.Random(0)
    with torch.inference_mode():
        outputs = {name: network(inputs[name]) for name, network in ways.items()}
        for name, output in outputs.items():
            difference = float((output - outputs["torch"]).norm() / outputs["torch"].norm())
            if "bilinear" not in name and not difference < TOLERANCE:
                raise ValueError(f"{name} differs from torch by {difference:.1e}, at most {TOLERANCE}")
        for _ in range(rounds):
            turn = list(ways)
            shuffle.shuffle(turn)
            for name in turn:
                start = time.perf_counter()
                ways[name](inputs[name])
                samples[name].append(1e3 * (time.perf_counter() - start))
    rows: list[dict[str, Any]] = []
    for name, taken in sorted(samples.items(), key=lambda item: statistics.median(item[1])):
        low, middle, high = statistics.quantiles(taken, n=4, method="inclusive")
        times = {"ms": middle, "low_ms": low, "high_ms": high, "min_ms": min(taken)}
        rows.append({"way": name, **times, "fps": 1e3 / middle})
    return rows


def main(
    rounds: Annotated[int, typer.Option(min=2, help="How often every way has its turn.")] = 101,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every way.")] = 2,
    out: Annotated[Path, typer.Option(help="Where to write the result.")] = RESULT,
) -> None:
    """Pictures of 480 x 360 a second through the street network."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported
    from benchmarks import machine, report

    described = machine.describe(threads)
    rows = measure(rounds, threads)
    view = Table(title=f"the street network, {SIZE[1]} x {SIZE[0]}, {threads} threads")
    for heading in ("way", "ms", "quartiles", "pictures a second"):
        view.add_column(heading, justify="left" if heading == "way" else "right")
    for row in rows:
        quartiles = f"{row['low_ms']:.1f} to {row['high_ms']:.1f}"
        view.add_row(row["way"], f"{row['ms']:.1f}", quartiles, f"{row['fps']:.1f}")
    Console().print(view)
    report.save({"what": "street", "machine": described, "settings": {"rounds": rounds}, "rows": rows}, out)
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
