"""``upscore train street`` and the other networks that segment: learn the classes of pictures' pixels."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upscore.cli.training_run import Force, Output, Resume, Seed, Threads, check_folder, options, run
from upscore.errors import ArgumentError, MissingDependencyError
from upscore.networks.classes import CAMVID, Classes

if TYPE_CHECKING:
    from upscore.training.segmentation import Segmentation
    from upscore.training.tensorboard import Board
    from upscore.training.trainer import Trainer

__all__ = ["EXAMPLES", "train"]

EXAMPLES = """
Examples:\n
  upscore train street --data camvid -o runs/street\n
  upscore train street --data camvid -o runs/street --resume\n
  upscore train street --data camvid -o runs/fixed --option upsampling=bilinear --steps 500\n
  upscore train fcn32s --data camvid -o runs/32s --from vgg16.pth\n
  upscore train fcn16s --data camvid -o runs/16s --from runs/32s/checkpoint.pt\n
  torchrun --nproc-per-node 2 -m upscore train street --data camvid -o runs/street
"""


def train(
    ctx: typer.Context,
    data: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="The folder with {train,val}/{images,labels}.")
    ],
    output: Output,
    resume: Resume = False,
    force: Force = False,
    start: Annotated[
        Path | None,
        typer.Option("--from", exists=True, dir_okay=False, help="Weights or a checkpoint to start from."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the network: width=24.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="JSON with names, colours and void; CamVid's without it."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimiser.")] = 9000,
    batch: Annotated[int, typer.Option(min=1, help="Views in a batch.")] = 8,
    crops: Annotated[
        str, typer.Option(help="Height x width of views; several take equal shares of the run.")
    ] = "256x320,256x320,352x480",
    scale: Annotated[tuple[float, float], typer.Option(min=0, help="Least and greatest scale of views.")] = (0.65, 1.8),
    light: Annotated[float, typer.Option(min=0, max=0.99, help="How much light and colours vary.")] = 0.3,
    balance: Annotated[str, typer.Option(help="Weights of the classes: none, root, median or enet.")] = "root",
    smoothing: Annotated[float, typer.Option(min=0, max=0.99, help="Smoothing of the labels.")] = 0.0,
    lovasz: Annotated[float, typer.Option(min=0, help="Weight of the Lovász loss.")] = 0.5,
    optimizer: Annotated[str, typer.Option(help="adamw, adam or sgd.")] = "adamw",
    rate: Annotated[float, typer.Option(min=0, help="The highest learning rate.")] = 2e-3,
    momentum: Annotated[float, typer.Option(min=0, max=1, help="Of sgd.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(min=0, help="Of kernels.")] = 0.05,
    schedule: Annotated[str, typer.Option(help="How the rate falls: cosine, poly or step.")] = "cosine",
    warmup: Annotated[int, typer.Option(min=0, help="Steps in which the rate rises.")] = 200,
    average: Annotated[float, typer.Option(min=0, max=1, help="What the moving average of weights keeps.")] = 0.998,
    clip: Annotated[float, typer.Option(min=0, help="The greatest norm of gradients.")] = 5.0,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches in a step.")] = 1,
    precision: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto, the fastest.")] = "auto",
    patience: Annotated[int, typer.Option(min=0, help="End after so many scorings without a best; 0: never.")] = 0,
    score_every: Annotated[int, typer.Option(min=1, help="Steps between scorings.")] = 450,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 150,
    seed: Seed = 0,
    threads: Threads = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write events for TensorBoard, too.")] = False,
) -> None:
    """A network that tells the classes of pixels. Ctrl-C saves; --resume goes on to the same result.

    DATA has pictures in train/images and val/images, and labels of the same names in train/labels and val/labels:
    pictures of one channel that hold the numbers of the classes. The weights that are best on val are kept.
    """
    check_folder(output, resume=resume, force=force)
    try:
        import torch
    except ModuleNotFoundError:
        raise MissingDependencyError("torch", "upscore train", "torch") from None
    from upscore.training import labelled
    from upscore.training.augmentation import Augmentation
    from upscore.training.networks import begin_from, build
    from upscore.training.processes import join
    from upscore.training.segmentation import Recipe, Segmentation
    from upscore.training.settings import Settings, fastest
    from upscore.training.tensorboard import Board
    from upscore.training.trainer import Trainer

    name, chosen = str(ctx.info_name), options(option or [])
    if threads is not None:
        torch.set_num_threads(threads)
    table = CAMVID if classes is None else Classes.read(classes)
    recipe = Recipe(
        batch_size=batch,
        crops=_sizes(crops),
        augmentation=Augmentation(scale=scale, light=light),
        balance=balance,
        smoothing=smoothing,
        lovasz=lovasz,
    )
    settings = Settings(
        steps=steps,
        rate=rate,
        optimizer=optimizer,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup=warmup,
        decay=average,
        clip=clip,
        accumulate=accumulate,
        precision=fastest(device) if precision == "auto" else precision,
        patience=patience,
        score_every=score_every,
        save_every=save_every,
        seed=seed,
    )
    torch.manual_seed(seed)
    network = build(name, len(table), chosen)
    if start is not None:
        begin_from(network, start)
    processes = join(device)
    pictures = {part: labelled.read(data / part, table) for part in ("train", "val")}
    task = Segmentation(
        network.to(device), table, pictures["train"], pictures["val"], recipe, {"network": name, "options": chosen}
    )
    trainer = Trainer(task, settings, output, processes)
    if resume:
        trainer.resume()
    if trainer.leads:
        typer.echo(f"{len(task.train)} pictures to learn from, {len(task.validation)} to score")
    board = Board(output / "tensorboard", trainer.step) if tensorboard and trainer.leads else None
    run(trainer, lambda score: f"mean IoU {100 * score:.2f} %", lambda _: _draw(trainer, task, board))
    if trainer.leads:
        network.load_state_dict(trainer.best)
        _write(trainer, task, name, data)


def _draw(trainer: Trainer, task: Segmentation, board: Board | None) -> None:
    """Curves and pictures of the best network so far, into the run's folder."""
    from upscore.training import curves, predictions

    if board is not None:
        board.write(trainer.history[-1])

    curves.write(trainer.history, trainer.folder / "history.json")
    with contextlib.suppress(MissingDependencyError):  # history.json has the numbers
        curves.draw(trainer.history, trainer.folder / "curves.svg")
    if trainer.best_score != trainer.last_score:
        return
    present = {key: value.clone() for key, value in task.network.state_dict().items()}
    task.network.load_state_dict(trainer.best)
    shown = predictions.spread(task.validation, 6)
    predictions.draw(task.network, shown, task.classes, trainer.folder / "predictions.png")
    task.network.load_state_dict(present)


def _write(trainer: Trainer, task: Segmentation, name: str, data: Path) -> None:
    """The best weights and what is known about them."""
    import torch
    from safetensors.torch import save_file

    from upscore.files import replacing
    from upscore.training import bundle
    from upscore.training.segmentation import measure

    task.network.eval()
    with torch.inference_mode():
        confusion = measure(task.network, task.validation, task.classes)
    card: dict[str, Any] = {
        "name": name,
        "parameters": sum(parameter.numel() for parameter in task.network.parameters()),
        "data": f"{len(task.train)} pictures of {data.name}/train, chosen on {len(task.validation)} of {data.name}/val",
        "command": "upscore " + " ".join(sys.argv[1:]),
        "steps": trainer.step,
        "minutes": round(trainer.seconds / 60, 1),
        "validation": {key: round(value, 4) for key, value in confusion.metrics().items()},
        "validation IoU": {
            key: round(float(value), 4) for key, value in zip(task.classes.names, confusion.iou, strict=True)
        },
        "commit": bundle.commit(),
        "machine": bundle.machine(),
    }
    weights = {key: value.contiguous().cpu() for key, value in task.network.state_dict().items()}
    paths = [trainer.folder / f"{name}{suffix}" for suffix in (".safetensors", ".json")]
    with replacing(paths[0]) as temporary:
        save_file(weights, temporary)
    with replacing(paths[1]) as temporary:
        temporary.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in paths:
        typer.echo(f"wrote {path}")


def _sizes(words: str) -> tuple[tuple[int, int], ...]:
    try:
        sizes = tuple((int(h), int(w)) for h, w in (word.split("x") for word in words.split(",")))
    except ValueError:
        sizes = ()
    if not sizes or min(min(size) for size in sizes) < 1:
        raise ArgumentError("--crops", "sizes as HxW, separated by commas", repr(words), "--crops 256x320,352x480")
    return sizes
