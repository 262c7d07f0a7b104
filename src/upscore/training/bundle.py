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

__all__ = ["commit", "example_luma", "machine", "write"]


def example_luma(height: int = 24, width: int = 36) -> Tensor:
    """A small picture drawn by formula, ``(1, 1, H, W)`` in [0, 1]: rings, a slanted edge, a gradient."""
    y = torch.arange(height, dtype=torch.float64)[:, None]
    x = torch.arange(width, dtype=torch.float64)[None, :]
    rings = torch.cos((x**2 + y**2) / 40)
    edge = (2 * y - x > 10).to(torch.float64)
    return (0.5 + 0.2 * rings + 0.2 * edge * (x / width) - 0.1 * edge).float()[None, None]


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


def write(folder: Path, name: str, network: nn.Module, facts: dict[str, Any]) -> list[Path]:
    """Write ``name``.safetensors, .json and .pair.safetensors into ``folder``; ``facts`` go into the card."""
    card = {
        "name": name,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        **facts,
        "commit": commit(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(),
    }
    example = example_luma()
    network.eval()
    with torch.inference_mode():
        pair = {"input": example, "output": network(example)}
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    files = [folder / f"{name}{suffix}" for suffix in (".safetensors", ".pair.safetensors", ".json")]
    for path, tensors in ((files[0], weights), (files[1], pair)):
        with replacing(path) as temporary:
            save_file(tensors, temporary)
    with replacing(files[2]) as temporary:
        temporary.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return files
