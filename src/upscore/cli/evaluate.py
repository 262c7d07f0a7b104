"""``upscore evaluate``: how good a network that segments is on labelled pictures."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upscore import networks
from upscore.cli.training_run import options
from upscore.errors import ArgumentError, FileFormatError, MissingDependencyError
from upscore.networks.classes import CAMVID, Classes

if TYPE_CHECKING:
    from torch import nn

    from upscore.training.confusion import Confusion

__all__ = ["evaluate"]

EXAMPLES = """
Examples:\n
  upscore evaluate street --data camvid/val\n
  upscore evaluate runs/street/checkpoint.pt --data camvid/val --json\n
  upscore evaluate street --weights runs/street/street.safetensors --data camvid/val
"""


def evaluate(
    network: Annotated[str, typer.Argument(help="A network's name, or a checkpoint of upscore train (.pt).")],
    data: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The folder with images and labels.")],
    weights: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Weights of the named network (.safetensors).")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the network that --weights are of.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="JSON with names, colours and void; CamVid's without it."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a network that segments: pixel accuracy, mean accuracy, mean IoU and frequency weighted IoU.

    DATA has pictures in images and labels of the same names in labels. A checkpoint is measured with the best weights
    of its run so far.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise MissingDependencyError("torch", "upscore evaluate", "torch") from None
    from rich.console import Console
    from rich.progress import Progress

    from upscore.training import labelled
    from upscore.training.segmentation import measure

    if threads is not None:
        torch.set_num_threads(threads)
    table = CAMVID if classes is None else Classes.read(classes)
    found = _network(network, weights, options(option or []), table).to(device).eval().requires_grad_(False)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("reading", total=1.0)
        pictures = labelled.read(data, table, lambda done: bar.update(task, completed=done))
        bar.reset(task, description="measuring")
        began = time.monotonic()
        confusion = measure(found, pictures, table, lambda done: bar.update(task, completed=done))
    seconds = time.monotonic() - began
    if as_json:
        typer.echo(json.dumps(_facts(confusion, table, network, len(pictures), seconds), indent=2))
    else:
        _show(confusion, table)


def _network(name: str, weights: Path | None, chosen: dict[str, Any], table: Classes) -> nn.Module:
    """The bundled network of that name, one with ``weights``, or the best one of a checkpoint."""
    from upscore.training.networks import NETWORKS, begin_from, build
    from upscore.training.trainer import load

    if name in NETWORKS and weights is not None:
        network = build(name, len(table), chosen)
        begin_from(network, weights)
        return network
    if weights is not None:
        raise ArgumentError("network", f"one of {', '.join(NETWORKS)}, with --weights", repr(name), "street")
    if name in networks.names() and networks.find(name).kind == "segment":
        return networks.find(name).load()
    path = Path(name)
    if not path.is_file():
        expected = "the name of a bundled network that segments, or a checkpoint of upscore train"
        raise ArgumentError("network", expected, repr(name), "runs/street/checkpoint.pt")
    state = load(path)
    run = state.get("identity", {}).get("task", {})
    if "network" not in run:
        raise FileFormatError(f"{path}: not a checkpoint of a network that segments")
    if run["classes"] != list(table.names):
        expected = f"the classes that {path} was trained on ({', '.join(run['classes'])})"
        raise ArgumentError("--classes", expected, ", ".join(table.names), "--classes classes.json")
    network = build(run["network"], len(table), run["options"])
    network.load_state_dict(state["best"])
    return network


def _facts(confusion: Confusion, table: Classes, network: str, pictures: int, seconds: float) -> dict[str, Any]:
    return {
        "network": network,
        "pictures": pictures,
        **confusion.metrics(),
        "IoU": dict(zip(table.names, _or_none(confusion.iou.tolist()), strict=True)),
        "accuracy": dict(zip(table.names, _or_none(confusion.accuracy.tolist()), strict=True)),
        "confusion": confusion.counts.tolist(),
        "seconds": round(seconds, 2),
    }


def _or_none(values: list[float]) -> list[float | None]:
    """NaN, which JSON has not, is null."""
    return [None if value != value else value for value in values]


def _show(confusion: Confusion, table: Classes) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    for heading in ("class", "share of pixels", "accuracy", "IoU"):
        shown.add_column(heading, justify="left" if heading == "class" else "right")
    shares = confusion.counts.sum(1) / max(1, confusion.counts.sum())
    for name, *values in zip(table.names, shares, confusion.accuracy, confusion.iou, strict=True):
        shown.add_row(name, *("-" if value != value else f"{100 * value:.1f} %" for value in values))
    console = Console()
    console.print(shown)
    for name, value in confusion.metrics().items():
        console.print(f"{name}: [bold]{100 * value:.2f} %[/bold]", highlight=False)
