"""A run's numbers for TensorBoard, where it is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from upscore.errors import MissingDependencyError

__all__ = ["Board"]


class Board:
    """Writes scalars into ``folder`` for ``tensorboard --logdir``; what was written after ``step`` is forgotten."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            raise MissingDependencyError("tensorboard", "--tensorboard", "train") from None
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, entry: Mapping[str, float]) -> None:
        """One entry of a trainer's history."""
        for name, value in entry.items():
            if name not in ("step", "seconds", "score"):
                self._writer.add_scalar(name.replace(" ", "-"), value, int(entry["step"]))
        self._writer.flush()
