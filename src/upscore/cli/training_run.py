"""What every ``upscore train`` shares: the folder of a run, its progress, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upscore.errors import ArgumentError

if TYPE_CHECKING:
    from upscore.training.trainer import Progress, Trainer

__all__ = ["Force", "Output", "Resume", "Seed", "Threads", "check_folder", "options", "run"]

Output = Annotated[Path, typer.Option("--output", "-o", help="The folder for checkpoints and the result.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run, to the same result.")]
Force = Annotated[bool, typer.Option("--force", help="Start anew in a folder that holds a run.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads: another number, other last bits.")]


def check_folder(output: Path, *, resume: bool, force: bool) -> None:
    """Raises ArgumentError when a run would be overwritten, or is not there to go on with."""
    checkpoint = output / "checkpoint.pt"
    if checkpoint.exists() and not (resume or force):
        raise ArgumentError("--output", "a folder without a run", output, "--resume to go on with it, or --force")
    if resume and not checkpoint.exists():
        raise ArgumentError("--resume", f"a checkpoint {checkpoint}", "no such file", "the command without --resume")


def options(words: list[str]) -> dict[str, Any]:
    """``["width=24", "upsampling=bilinear"]`` as values: JSON where it is, else the words themselves."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise ArgumentError("--option", "NAME=VALUE", repr(word), "--option width=24")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def run(trainer: Trainer, words: Callable[[float], str], scored: Callable[[Progress], None] | None = None) -> None:
    """Train with a progress bar, or a line for each scoring where there is no terminal; exit with 130 when stopped.

    ``words`` puts a score in words; ``scored`` is called after each scoring.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    steps = trainer.settings.steps
    console = Console(stderr=True, quiet=not trainer.leads)
    columns: list[Any] = [
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[score]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    with Bar(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=120) as bar:
        task = bar.add_task("", total=steps, completed=trainer.step, loss="-", score="")
        smooth: float | None = None

        def report(progress: Progress) -> None:
            nonlocal smooth
            smooth = progress.loss if smooth is None else 0.98 * smooth + 0.02 * progress.loss
            score = "" if progress.score is None else words(progress.score)
            bar.update(task, completed=progress.step, loss=f"{smooth:.5f}", score=score)
            if not progress.scored:
                return
            if not console.is_terminal:
                minutes = progress.seconds / 60
                left = minutes / progress.step * (steps - progress.step)
                console.print(
                    f"step {progress.step}: loss {smooth:.5f}, {score}, {minutes:.1f} min, {left:.0f} min left",
                    highlight=False,
                    soft_wrap=True,
                )
            if scored is not None:
                scored(progress)

        ended = trainer.run(report)
    if not ended:
        typer.echo(
            f"upscore: stopped after step {trainer.step} of {steps}, saved in {trainer.checkpoint}; "
            "the same command with --resume goes on",
            err=True,
        )
        raise typer.Exit(130)
