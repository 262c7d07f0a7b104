"""``upscore train``: train a network on a folder of one's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upscore.errors import ArgumentError, MissingDependencyError

if TYPE_CHECKING:
    from upscore.training.trainer import Progress, Trainer

__all__ = ["train"]

EXAMPLES = """
Examples:\n
  upscore train upscale-x2 --data photos -o runs/x2\n
  upscore train upscale-x2 --data photos -o runs/x2 --resume\n
  upscore run upscale-x2 --weights runs/x2/upscale-x2.safetensors photo.jpg -o big.png
"""


def train(
    network: Annotated[str, typer.Argument(help="The network: upscale-x2.")],
    data: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The folder of photographs.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for checkpoints and the result.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run, to the same result.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Start anew in a folder that holds a run.")] = False,
    start: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Weights to start from (.safetensors).")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimiser.")] = 24000,
    rate: Annotated[float, typer.Option(min=0, help="The highest learning rate.")] = 4e-3,
    batch: Annotated[int, typer.Option(min=1, help="Patches in a step.")] = 16,
    patch: Annotated[int, typer.Option(min=4, help="Side of a patch, in pixels of the small picture.")] = 48,
    score_every: Annotated[int, typer.Option(min=1, help="Steps between scorings.")] = 1000,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads: another number, other last bits.")] = None,
) -> None:
    """Train a network on photographs. Ctrl-C saves; --resume goes on to the same result.

    Some photographs are kept apart and only scored: those of upscore's own list where the folder has them, else
    every twentieth.
    """
    from upscore.networks import find

    chosen = find(network)
    if chosen.kind != "upscale":
        raise ArgumentError("network", "a network that upscore train can train", repr(network), "upscale-x2")
    checkpoint = output / "checkpoint.pt"
    if checkpoint.exists() and not (resume or force):
        raise ArgumentError("--output", "a folder without a run", output, "--resume to go on with it, or --force")
    if resume and not checkpoint.exists():
        raise ArgumentError("--resume", f"a checkpoint {checkpoint}", "no such file", "the command without --resume")
    try:
        import torch
    except ModuleNotFoundError:
        raise MissingDependencyError("torch", "upscore train", "torch") from None
    from upscore.training import bundle
    from upscore.training.settings import Settings
    from upscore.training.trainer import Trainer
    from upscore.training.upscaling import CROP, Upscaling

    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    fresh = chosen.load(start).requires_grad_(True).train() if start is not None else chosen.build()
    task = Upscaling(data, fresh, batch_size=batch, patch=patch)  # type: ignore[arg-type]
    settings = Settings(steps=steps, rate=rate, score_every=score_every, save_every=save_every, seed=seed)
    trainer = Trainer(task, settings, output)
    if resume:
        trainer.resume()
    bicubic = task.bicubic_score()
    typer.echo(
        f"{len(task.names)} photographs to learn from, {len(task.validation)} to score; "
        f"bicubic interpolation has {bicubic:.2f} dB"
    )
    if not _run(trainer, bicubic):
        typer.echo(
            f"upscore: stopped after step {trainer.step} of {steps}, saved in {checkpoint}; "
            "the same command with --resume goes on",
            err=True,
        )
        raise typer.Exit(130)
    facts = {
        "summary": chosen.summary,
        "data": f"{len(task.names)} photographs of the folder {data.name}, {len(task.validation)} held out",
        "command": "upscore " + " ".join(sys.argv[1:]),
        "minutes": round(trainer.seconds / 60, 1),
        "psnr": {
            "what": f"mean over the held-out photographs, Y of BT.601, {CROP} border pixels left out, 8 bits",
            "network": round(trainer.best_score or 0.0, 3),
            "bicubic": round(bicubic, 3),
            "gain": round((trainer.best_score or 0.0) - bicubic, 3),
        },
    }
    fresh.load_state_dict(trainer.best)
    for path in bundle.write(output, chosen.name, fresh, facts):
        typer.echo(f"wrote {path}")


def _run(trainer: Trainer, bicubic: float) -> bool:
    """Train with a progress bar (a line per scoring where there is no terminal); whether the end was reached."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
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
        task = bar.add_task("", total=trainer.settings.steps, completed=trainer.step, loss="-", score="")
        smooth: float | None = None

        def report(progress: Progress) -> None:
            nonlocal smooth
            smooth = progress.loss if smooth is None else 0.98 * smooth + 0.02 * progress.loss
            score = "" if progress.score is None else f"{progress.score:.3f} dB ({progress.score - bicubic:+.3f})"
            bar.update(task, completed=progress.step, loss=f"{smooth:.5f}", score=score)
            scored = progress.step % trainer.settings.score_every == 0 or progress.step == trainer.settings.steps
            if scored and not console.is_terminal:
                minutes = progress.seconds / 60
                left = minutes / progress.step * (trainer.settings.steps - progress.step)
                console.print(
                    f"step {progress.step}: loss {smooth:.5f}, {score}, {minutes:.1f} min, {left:.0f} min left",
                    highlight=False,
                    soft_wrap=True,
                )

        return trainer.run(report)
