"""What ``upscore run`` runs: something that turns one picture into another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Finder", "Options", "Runner"]


@dataclass(frozen=True)
class Options:
    """What the user asked of the runner."""

    weights: Path | None
    quality: int
    mean: str | None = None
    scale: float = 1.0
    order: str = "bgr"
    blob: str | None = None
    labels: bool = False
    side: int | None = None


class Runner(Protocol):
    """Turns one picture into another."""

    ending: str
    """What is put after the stem of a picture's name when the output is a folder: ``_x2``."""

    form: str | None
    """The format that has to be written, if there is only one."""

    def __call__(self, source: Path, target: Path, tick: Callable[[float], None]) -> dict[str, Any]:
        """Write ``target``, telling ``tick`` the fraction done; what there is to say about it, for ``--json``."""


Finder = Callable[[list[str], Options], tuple[Runner, list[str]] | None]
