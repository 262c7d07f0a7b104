"""What a finished run leaves behind: weights, their card, and an input with its output to replay."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from upscore._version import __version__
from upscore.files import replacing
from upscore.networks import WEIGHTS, find
from upscore.networks.classes import normalised

__all__ = ["commit", "example_luma", "example_street", "machine", "pack", "write"]


def example_luma(height: int = 24, width: int = 36) -> Tensor:
    """A small picture drawn by formula, ``(1, 1, H, W)`` in [0, 1]: rings, a slanted edge, a gradient."""
    y = torch.arange(height, dtype=torch.float64)[:, None]
    x = torch.arange(width, dtype=torch.float64)[None, :]
    rings = torch.cos((x**2 + y**2) / 40)
    edge = (2 * y - x > 10).to(torch.float64)
    return (0.5 + 0.2 * rings + 0.2 * edge * (x / width) - 0.1 * edge).float()[None, None]


def example_street(height: int = 48, width: int = 64) -> Tensor:
    """A small street drawn by formula, normalised ``(1, 3, H, W)``: sky over houses over a road to the horizon."""
    y = torch.arange(height, dtype=torch.float64)[:, None] / height
    x = torch.arange(width, dtype=torch.float64)[None, :] / width
    road = (y > 0.5) & ((x - 0.5).abs() < y - 0.45)
    house = (y < 0.6) & ((x - 0.5).abs() > 0.2 + 0.1 * torch.cos(40 * x).round())
    grey = torch.where(road, 90.0, torch.where(house, 120 + 40 * torch.cos(60 * y), 220 - 60 * y))
    tint = torch.tensor([1.0, 0.95, 1.05], dtype=torch.float64)[:, None, None]
    return normalised((grey * tint).round()[None])


def machine() -> str:
    """The processor and the number of threads, in words."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or a processor without a name: the architecture will do
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def commit() -> str:
    """The commit of the source tree this runs from, or the version where there is no repository."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return f"upscore {__version__}"
    return done.stdout.strip()


def write(
    folder: Path,
    name: str,
    network: nn.Module,
    facts: dict[str, Any],
    *,
    example: Tensor | None = None,
    half: bool = False,
) -> list[Path]:
    """Write ``name``.safetensors, .json and .pair.safetensors into ``folder``; ``facts`` go into the card.

    ``example`` is the input to replay (a picture's luma without it). With ``half`` the kernels are stored as float16,
    in half the room; biases and statistics are not. The network is left with the weights that are stored.
    """
    made = {"commit": commit(), "date": datetime.now(timezone.utc).date().isoformat(), "machine": machine()}
    parameters = sum(parameter.numel() for parameter in network.parameters())
    card = {"name": name, "parameters": parameters, **made, **facts}
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    if half:
        weights = {key: value.half() if value.dim() > 1 else value for key, value in weights.items()}
        network.load_state_dict(weights)
    example = example_luma() if example is None else example
    network.eval()
    with torch.inference_mode():
        pair = {"input": example, "output": network(example)}
    files = [folder / f"{name}{suffix}" for suffix in (".safetensors", ".pair.safetensors", ".json")]
    for path, tensors in ((files[0], weights), (files[1], pair)):
        with replacing(path) as temporary:
            save_file(tensors, temporary)
    with replacing(files[2]) as temporary:
        temporary.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return files


def pack(name: str, run: Path, facts: dict[str, Any], folder: Path = WEIGHTS) -> list[Path]:
    """Bundle the network that ``upscore train`` left in the folder ``run``: its card there, and ``facts`` on top."""
    network = find(name)
    card = json.loads((run / f"{name}.json").read_text(encoding="utf-8"))
    example = example_street() if network.classes is not None else None
    weights = network.load(run / f"{name}.safetensors")
    return write(folder, name, weights, {**card, **facts}, example=example, half=network.classes is not None)
