"""What the transposed convolutions of the street network are worth: trained alike with others in their place.

    python -m benchmarks.ablation --data camvid -o runs/ablation

Every way of upsampling is trained from the same seeds, on the same views, for the same number of steps, at half the
resolution, by one thread. What counts is the mean IoU on the validation pictures when a run ends, not the best one on
the way. A run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks import machine, report
from upscore import conv_transpose, filters
from upscore.explain.checkerboard import checkerboard
from upscore.geometry import Geometry
from upscore.networks.classes import CAMVID
from upscore.networks.street import UPSAMPLINGS, Street
from upscore.training import labelled
from upscore.training.segmentation import Recipe, Segmentation
from upscore.training.settings import Settings
from upscore.training.trainer import Trainer

RESULT = Path(__file__).parent / "results" / "ablation.json"
ICNR = "pixel-shuffle, ICNR"
WAYS = (*UPSAMPLINGS, ICNR)
SIZE = (176, 240)
BATCH = 8


def halved(item: labelled.Labelled) -> labelled.Labelled:
    """A picture and its labels at half the resolution."""
    size = (item.picture.width // 2, item.picture.height // 2)
    picture = item.picture.resize(size, Image.Resampling.BOX)
    return labelled.Labelled(item.name, picture, item.labels.resize(size, Image.Resampling.NEAREST))


def build(how: str) -> Street:
    """The street network with this upsampling, fresh.

    Left to chance, the four channels that a pixel shuffle interleaves start as four different pictures. ICNR (Aitken
    et al. 2017, "Checkerboard artifact free sub-pixel convolution") starts them equal.
    """
    if how != ICNR:
        return Street(upsampling=how)  # type: ignore[arg-type]
    network = Street(upsampling="pixel-shuffle")
    for layer in upsamplings(network).values():
        weight = layer[0].weight  # type: ignore[index]
        with torch.no_grad():
            weight.copy_(weight[::4].repeat_interleave(4, dim=0))
    return network


def upsamplings(network: Street) -> dict[str, nn.Module]:
    """The layers that upsample, coarsest first."""
    ups = {"up8": network.up8.upscore, "up4": network.up4.upscore, "up2": network.up2.upscore}
    return {**ups, "upscore": network.upscore}


def as_transposed(layer: nn.Module) -> tuple[Geometry, np.ndarray[Any, Any]]:
    """The one transposed convolution that does what ``layer`` does, away from the border.

    Raises:
        ValueError: when it does not, as tried on random numbers.
    """
    parts = [m for m in layer.modules() if list(m.parameters(recurse=False))]
    weights = [m.weight.detach().double().numpy() for m in parts]
    # A convolution slides its kernel and a transposed one stamps it: flipped, and with input and output exchanged.
    stamped = [w[..., ::-1, ::-1].swapaxes(0, 1) for w in weights]
    shuffled = any(isinstance(m, nn.PixelShuffle) for m in layer.modules())
    if isinstance(parts[-1], nn.ConvTranspose2d):
        geometry, w = Geometry(4, 2, crop=1, rank=2), weights[-1]
        if len(parts) > 1:
            w = filters.compose_weights(stamped[0], w, stride=2, groups=w.shape[0])
    elif shuffled:
        geometry, small = Geometry(6, 2, crop=2, rank=2), stamped[0]
        c_in, channels = small.shape[:2]
        phases = small.reshape(c_in, channels // 4, 2, 2, 3, 3)
        w = phases.transpose(0, 1, 4, 2, 5, 3).reshape(c_in, channels // 4, 6, 6)
    else:
        repeat = filters.channelwise(filters.nearest(2), stamped[0].shape[0], groups=1)
        geometry, w = Geometry(4, 2, crop=1, rank=2), filters.compose_weights(repeat, stamped[0])
    x = np.random.default_rng(0).standard_normal((1, w.shape[0], 7, 9))
    with torch.inference_mode():
        expected = layer(torch.from_numpy(x).float()).numpy()
    found = conv_transpose(x, w, stride=2, padding=geometry.crop)
    inner = (..., slice(4, -4), slice(4, -4))
    if not np.allclose(found[inner], expected[inner], rtol=1e-4, atol=1e-5 * np.abs(expected).max()):
        raise ValueError(f"{layer} is not the transposed convolution it was taken for")
    return geometry, w


def unevenness(network: Street) -> dict[str, float]:
    """Of each upsampling's response to flat inputs, the part that alternates (``upscore explain``'s measure)."""
    found = {name: checkerboard(*as_transposed(layer)).unevenness for name, layer in upsamplings(network).items()}
    return {name: value for name, value in found.items() if value is not None}


def milliseconds(rounds: int) -> dict[str, dict[str, float]]:
    """CPU milliseconds of a training step (a batch at half resolution) and of a picture of 360 x 480, taking turns."""
    batch, labels = torch.randn(BATCH, 3, *SIZE), torch.randint(len(CAMVID), (BATCH, *SIZE))
    batch, picture = (x.to(memory_format=torch.channels_last) for x in (batch, torch.randn(1, 3, 360, 480)))
    networks = {how: build(how).to(memory_format=torch.channels_last) for how in WAYS}
    taken: dict[str, dict[str, list[float]]] = {how: {"step": [], "picture": []} for how in WAYS}
    for _ in range(rounds):
        for how, network in networks.items():
            began = time.process_time()
            F.cross_entropy(network.train()(batch), labels).backward()
            taken[how]["step"].append(time.process_time() - began)
            with torch.inference_mode():
                began = time.process_time()
                network.eval()(picture)
                taken[how]["picture"].append(time.process_time() - began)
    return {
        how: {what: 1e3 * statistics.median(times[1:]) for what, times in both.items()} for how, both in taken.items()
    }


def main(
    data: Annotated[Path, typer.Option(help="CamVid: train/ and val/, each with images/ and labels/.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the runs.")],
    steps: Annotated[int, typer.Option(min=1)] = 1200,
    seeds: Annotated[int, typer.Option(min=1, help="So many runs of each.")] = 2,
    rounds: Annotated[int, typer.Option(min=2, help="Of measuring time.")] = 15,
    out: Annotated[Path, typer.Option(help="Where to write the result.")] = RESULT,
) -> None:
    """Train, measure, write."""
    torch.set_num_threads(1)
    train, val = ([halved(item) for item in labelled.read(data / part, CAMVID)] for part in ("train", "val"))
    rows: dict[str, dict[str, Any]] = {how: {"mean IoU": [], "unevenness": []} for how in WAYS}
    for seed in range(seeds):
        for how in WAYS:
            torch.manual_seed(seed)
            network = build(how)
            recipe = Recipe(batch_size=BATCH, crops=(SIZE,), lovasz=0.5)
            task = Segmentation(network, CAMVID, train, val, recipe, {"upsampling": how})
            trainer = Trainer(task, settings(steps, seed), output / f"{how}-{seed}")
            if trainer.checkpoint.exists():
                trainer.resume()
            if not trainer.run():
                raise typer.Exit(130)
            network.load_state_dict(trainer.average)
            rows[how]["mean IoU"].append(trainer.history[-1]["mean IoU"])
            rows[how]["unevenness"].append(unevenness(network.eval()))
            rows[how]["parameters"] = sum(p.numel() for p in network.parameters())
            print(f"{how}, seed {seed}: {rows[how]['mean IoU'][-1]:.4f}, {trainer.seconds / 60:.1f} min", flush=True)
    for how, times in milliseconds(rounds).items():
        rows[how]["milliseconds"] = times
    result = {
        "what": "ablation of the street network's upsampling",
        "machine": machine.describe(1),
        "settings": {"steps": steps, "seeds": seeds, "batch": BATCH, "view": SIZE, "pictures": len(train)},
        "rows": rows,
    }
    report.save(result, out)
    show(result)


def settings(steps: int, seed: int) -> Settings:
    """How each is trained."""
    return Settings(
        steps=steps, rate=2e-3, optimizer="adamw", weight_decay=0.01, warmup=100, decay=0.99, clip=5.0,
        precision="bfloat16", score_every=max(1, steps // 2), save_every=100, seed=seed,
    )  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """The table."""
    view = Table("upsampling", "mean IoU of each seed", "parameters", "ms a step", "ms a picture", "unevenness")
    for how, row in result["rows"].items():
        worst = max(max(each.values()) for each in row["unevenness"])
        view.add_row(
            how, " ".join(f"{100 * value:.1f}" for value in row["mean IoU"]), f"{row['parameters']:,}",
            f"{row['milliseconds']['step']:.0f}", f"{row['milliseconds']['picture']:.0f}", f"{worst:.2g}",
        )  # fmt: skip
    Console().print(view)


if __name__ == "__main__":
    typer.run(main)
