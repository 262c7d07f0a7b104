"""``upscore train deconvolutional-network``: learn filters that explain photographs, from nothing but photographs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upscore.cli.numbers import numbers
from upscore.cli.training_run import Force, Output, Resume, Seed, Threads, check_folder
from upscore.errors import ArgumentError, MissingDependencyError
from upscore.files import replacing

if TYPE_CHECKING:
    from upscore.training.deconvolutional import Learning, Round

__all__ = ["train"]

NAME = "deconvolutional-network"

EXAMPLES = """
Examples:\n
  upscore train deconvolutional-network --photos photos -o runs/dn\n
  upscore train deconvolutional-network --photos photos -o runs/dn --resume\n
  upscore train deconvolutional-network --photos photos -o runs/one --filters 24 --sparsity 0.5 --rounds 400
"""


def train(
    photos: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The folder of photographs.")],
    output: Output,
    resume: Resume = False,
    force: Force = False,
    filters: Annotated[str, typer.Option(help="Filters of each layer, from the lowest up.")] = "16,32",
    size: Annotated[str, typer.Option(help="Side of the filters, of all or of each layer.")] = "7",
    sparsity: Annotated[str, typer.Option(help="Weight of the maps' 1-norm, of all or of each layer.")] = "0.5,0.9",
    fan_in: Annotated[
        int | None, typer.Option(min=1, help="Maps of the layer below that an upper map reaches; all by default.")
    ] = None,
    crops: Annotated[int, typer.Option(min=1, help="Squares to learn from.")] = 40,
    crop: Annotated[int, typer.Option(min=1, help="Their side, in pixels.")] = 72,
    scale: Annotated[float, typer.Option(min=0.01, max=1, help="Photographs are made smaller by this first.")] = 0.5,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of learning a layer.")] = 120,
    save_every: Annotated[int, typer.Option(min=1, help="Rounds between checkpoints and lines of progress.")] = 20,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Filters whose sparse maps add up to photographs (Zeiler et al. 2010). Ctrl-C saves; --resume goes on.

    Photographs are made grey and of even contrast, and cut into squares. OUTPUT gets the network, its card and
    history, and pictures of the filters and of photographs as each layer says them.
    """
    check_folder(output, resume=resume, force=force)
    try:
        import torch
    except ModuleNotFoundError:
        raise MissingDependencyError("torch", "upscore train", "torch") from None
    from upscore.networks.deconvolutional import DeconvolutionalNetwork
    from upscore.training import contrast
    from upscore.training.deconvolutional import Learning, Settings

    if threads is not None:
        torch.set_num_threads(threads)
    network = DeconvolutionalNetwork(
        numbers("--filters", filters),
        size=_one_or_each(numbers("--size", size)),
        sparsity=_one_or_each(_decimals("--sparsity", sparsity)),
        fan_in=fan_in,
        seed=seed,
    )
    squares, names = contrast.crops(photos, count=crops, side=crop, scale=scale, seed=seed)
    learning = Learning(network, squares, Settings(rounds=rounds, save_every=save_every, seed=seed), output)
    if resume:
        learning.resume()
    typer.echo(f"{len(squares)} squares of {crop} x {crop} pixels from {len(set(names))} photographs")
    _learn(learning)
    facts = {"data": f"{len(squares)} squares from {len(set(names))} photographs of the folder {photos.name}"}
    for path in _write(learning, facts):
        typer.echo(f"wrote {path}")


def _learn(learning: Learning) -> None:
    """Learn with a progress bar, or a line per checkpoint where there is no terminal; exit with 130 when stopped."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    settings = learning.settings
    columns: list[Any] = [
        TextColumn("layer {task.fields[layer]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    layers = len(learning.network.layers)
    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=120) as bar:
        task = bar.add_task("", total=layers * settings.rounds, completed=len(learning.history), layer=1, words="")

        def report(entry: Round) -> None:
            words = f"objective {entry.objective:.0f}, {entry.density:.2%} of maps, {entry.snr:.2f} dB"
            bar.update(task, completed=len(learning.history), layer=entry.layer, words=words)
            if not console.is_terminal and entry.number % settings.save_every == 0:
                line = f"layer {entry.layer}, round {entry.number}: {words}, {learning.seconds / 60:.1f} min"
                console.print(line, highlight=False, soft_wrap=True)

        ended = learning.run(report)
    if not ended:
        typer.echo(
            f"upscore: stopped after round {learning.round} of {settings.rounds} of layer {learning.number + 1}, "
            f"saved in {learning.checkpoint}; the same command with --resume goes on",
            err=True,
        )
        raise typer.Exit(130)


def _write(learning: Learning, facts: dict[str, Any]) -> list[Path]:
    """The network, its card, its history and its pictures."""
    from upscore.training import bundle, filter_pictures

    network, folder = learning.network, learning.folder
    last = [entry for entry in learning.history if entry.number == learning.settings.rounds]
    card = {
        "name": NAME,
        **network.options,
        **facts,
        "command": "upscore " + " ".join(sys.argv[1:]),
        "minutes": round(learning.seconds / 60, 1),
        "layers": [{name: value for name, value in asdict(entry).items() if name != "seconds"} for entry in last],
        "commit": bundle.commit(),
        "machine": bundle.machine(),
    }
    network.save(folder / f"{NAME}.safetensors")
    texts = {f"{NAME}.json": card, "history.json": [asdict(entry) for entry in learning.history]}
    for name, content in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    pictures = {f"filters-{i + 1}.png": filter_pictures.filters(network, i) for i in range(len(network.layers))}
    pictures["reconstructions.png"] = filter_pictures.reconstructions(network, learning.images[:4])
    for name, picture in pictures.items():
        with replacing(folder / name) as temporary:
            picture.save(temporary)
    return [folder / name for name in (f"{NAME}.safetensors", *texts, *pictures)]


def _decimals(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(item) for item in text.split(","))
    except ValueError:
        raise ArgumentError(option, "numbers, separated by commas", repr(text), f"{option} 0.5,0.9") from None


def _one_or_each(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else values
