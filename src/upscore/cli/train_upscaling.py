"""``upscore train upscale-x2``: learn to double the size of photographs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from upscore.cli.training_run import Force, Output, Resume, Seed, Threads, check_folder, run
from upscore.errors import MissingDependencyError

__all__ = ["train"]

EXAMPLES = """
Examples:\n
  upscore train upscale-x2 --data photos -o runs/x2\n
  upscore train upscale-x2 --data photos -o runs/x2 --resume\n
  upscore run upscale-x2 --weights runs/x2/upscale-x2.safetensors photo.jpg -o big.png
"""


def train(
    data: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The folder of photographs.")],
    output: Output,
    resume: Resume = False,
    force: Force = False,
    start: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Weights to start from (.safetensors).")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimiser.")] = 24000,
    rate: Annotated[float, typer.Option(min=0, help="The highest learning rate.")] = 4e-3,
    batch: Annotated[int, typer.Option(min=1, help="Patches in a step.")] = 16,
    patch: Annotated[int, typer.Option(min=4, help="Side of a patch, in pixels of the small picture.")] = 48,
    score_every: Annotated[int, typer.Option(min=1, help="Steps between scorings.")] = 1000,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 1000,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """A network that doubles the size of photographs. Ctrl-C saves; --resume goes on to the same result.

    Some photographs are kept apart and only scored: those of upscore's own list where the folder has them, else
    every twentieth.
    """
    from upscore.networks import find

    chosen = find("upscale-x2")
    check_folder(output, resume=resume, force=force)
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
    run(trainer, lambda score: f"{score:.3f} dB ({score - bicubic:+.3f})")
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
