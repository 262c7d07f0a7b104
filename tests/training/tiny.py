"""A tiny task for the trainer, and a run of it to be interrupted: ``python tiny.py FOLDER``."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upscore.training.settings import Settings
from upscore.training.trainer import Trainer

SETTINGS = Settings(steps=60, rate=1e-2, warmup=5, score_every=7, save_every=4, seed=3)


class Tiny:
    """Learn a line; ``pause`` is how long a batch takes. Not ``normalised``, samples do not see each other."""

    def __init__(self, pause: float = 0.0, *, normalised: bool = True) -> None:
        torch.manual_seed(0)
        middle = nn.BatchNorm1d(5) if normalised else nn.Dropout(0.1)
        self.network = nn.Sequential(nn.Linear(3, 5), middle, nn.Linear(5, 1))
        self.pause = pause

    def batch(self, generator: torch.Generator, done: float) -> Tensor:
        time.sleep(self.pause)
        return torch.rand(8, 3, generator=generator)

    def loss(self, batch: Tensor, done: float) -> Tensor:
        loss: Tensor = (self.network(batch) - batch.sum(1, keepdim=True)).square().mean() * (1 + done)
        return loss

    def score(self, network: nn.Module) -> Mapping[str, float]:
        batch = torch.ones(4, 3)
        return {"error": -float((network(batch).detach() - 3).square().mean())}

    def describe(self) -> Mapping[str, Any]:
        return {"inputs": 3}


if __name__ == "__main__":
    torch.set_num_threads(1)
    finished = Trainer(Tiny(pause=0.05), SETTINGS, Path(sys.argv[1])).run()
    sys.exit(0 if finished else 130)
