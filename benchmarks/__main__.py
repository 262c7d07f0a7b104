"""The command ``python -m benchmarks``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import backward, machine, peers, report
from benchmarks.layers import select
from benchmarks.race import Settings
from benchmarks.race import race as run_race

RESULTS = Path(__file__).parent / "results"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(width=None if Console().is_terminal else 260)

Rows = Annotated[str, typer.Option(help="Only layers whose name or group contains one of these comma-separated words.")]
Rounds = Annotated[int, typer.Option(min=2, help="How often every engine has its turn.")]
Seconds = Annotated[float, typer.Option(help="How long one turn lasts.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of every engine.")]
Out = Annotated[Path | None, typer.Option(help="Where to write the result; benchmarks/results/<what>.json if absent.")]


def _run(what: str, rows: str, engines: str, settings: Settings, out: Path | None) -> None:
    known = backward if settings.backward else peers
    names = [name.strip() for name in engines.split(",") if name.strip()] or list(known.ENGINES)
    unknown = [name for name in names if name not in known.ENGINES]
    if unknown:
        raise typer.BadParameter(f"no engine is called {unknown}; they are: {', '.join(known.ENGINES)}")
    layers = select(rows)
    ours = next((name for name in names if name in known.OURS), names[0])
    rivals = [name for name in names if name in known.PEERS and name != ours]
    described, limits = machine.describe(settings.threads), machine.roofline(settings.threads)
    results = list(run_race(layers, names, settings))
    limits = machine.best_roofline(limits, machine.roofline(settings.threads))
    for row in results:
        report.complete(row, limits, ours, rivals, settings.backward)
    result = {
        "what": what,
        "machine": described,
        "settings": {"rounds": settings.rounds, "seconds": settings.seconds, "ours": ours, "engines": names},
        "roofline": limits,
        "rows": results,
        "summary": report.summarise(results, ours, rivals),
    }
    report.show(result, console)
    if out is None and (rows or engines):
        console.print("a part of the race: not written (use --out to keep it)")
        return
    path = out or RESULTS / f"{what}.json"
    report.save(result, path)
    console.print(f"wrote {path}")


@app.command()
def race(
    rows: Rows = "",
    engines: Annotated[str, typer.Option(help="Only these, comma-separated; the first is ours.")] = "",
    rounds: Rounds = 15,
    seconds: Seconds = 0.04,
    threads: Threads = 2,
    out: Out = None,
) -> None:
    """Race the forward pass against the other engines.

    For example: python -m benchmarks race --rows dcgan,unet --engines upscore,torch --rounds 5
    """
    _run("forward", rows, engines, Settings(rounds, seconds, threads), out)


@app.command("backward")
def race_backward(
    rows: Rows = "",
    engines: Annotated[str, typer.Option(help="Only these, comma-separated; the first is ours.")] = "",
    rounds: Rounds = 15,
    seconds: Seconds = 0.04,
    threads: Threads = 2,
    out: Out = None,
) -> None:
    """Race the gradients of input and weight against torch's."""
    _run("backward", rows, engines, Settings(rounds, seconds, threads, backward=True), out)


@app.command()
def networks(
    only: Annotated[str, typer.Option(help="Only networks whose name contains one of these words.")] = "",
    rounds: Rounds = 11,
    threads: Threads = 2,
    out: Out = None,
) -> None:
    """Race whole networks: upscore.accelerate(model) against the model as it is, and training steps."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported
    from benchmarks.networks import race as run_networks

    described = machine.describe(threads)
    rows = []
    view = Table(title="milliseconds of a whole network, median ± half the distance of the quartiles")
    view.add_column("network")
    for name in ("torch", "upscore", "torch/ours"):
        view.add_column(name, justify="right")
    with console.status("racing") as status:
        for row in run_networks([w.strip().lower() for w in only.split(",") if w.strip()], rounds, threads):
            status.update(f"{row['network']}: {row['torch_over_ours']:.2f}")
            rows.append(row)
            cells = [f"{e['ms']:.4g} ±{(e['high_ms'] - e['low_ms']) / 2:.1g}" for e in (row["torch"], row["upscore"])]
            view.add_row(row["network"], *cells, f"{row['torch_over_ours']:.2f}")
    console.print(view)
    if out is None and only:
        console.print("a part of the race: not written (use --out to keep it)")
        return
    path = out or RESULTS / "networks.json"
    report.save({"what": "networks", "machine": described, "settings": {"rounds": rounds}, "rows": rows}, path)
    console.print(f"wrote {path}")


@app.command("plot")
def plot_race(
    result: Annotated[Path, typer.Argument(help="A file that the race wrote.")] = RESULTS / "forward.json",
    out: Annotated[Path, typer.Option(help="The picture.")] = RESULTS.parents[1] / "docs" / "images" / "race.png",
) -> None:
    """Draw the race as a picture."""
    from benchmarks.plot import plot

    plot(json.loads(result.read_text()), out)
    console.print(f"wrote {out}")


if __name__ == "__main__":
    machine.with_malloc()
    app()
