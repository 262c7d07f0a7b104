"""A training loop that can be stopped at any moment and continued to the same bits.

The loop knows nothing of pictures: a ``Task`` brings the network, the batches, the loss and the score. All that the
next step depends on (weights, optimiser, moving average, random state, step number) is in one checkpoint file,
written through a temporary file; so an interrupted and resumed run ends with the weights of an uninterrupted
one on the same machine.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from upscore.errors import ArgumentError, FileFormatError
from upscore.files import replacing

__all__ = ["Progress", "Settings", "Task", "Trainer"]

CHECKPOINT = "checkpoint.pt"


class Task(Protocol):
    """What is trained: a network, where its batches come from, what it is blamed and praised for."""

    @property
    def network(self) -> nn.Module:
        """What is trained; it is changed in place."""

    def batch(self, generator: torch.Generator) -> Any:
        """The next batch; every random choice comes from ``generator``."""

    def loss(self, batch: Any, done: float) -> Tensor:
        """What to minimise; ``done`` is the fraction of the run behind us, for losses that change on the way."""

    def score(self, network: nn.Module) -> float:
        """How good ``network`` is on the held-out data; more is better."""

    def describe(self) -> Mapping[str, Any]:
        """What identifies the task (data, network), compared on resuming."""


@dataclass(frozen=True)
class Settings:
    """How to train: Adam, gradients clipped to the norm ``clip``, and a moving average of the weights.

    The rate rises over ``warmup`` steps and falls to zero along half a cosine.
    """

    steps: int
    rate: float = 4e-3
    warmup: int = 500
    decay: float = 0.999
    clip: float = 0.05
    score_every: int = 1000
    save_every: int = 1000
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """The learning rate of a step.

        >>> settings = Settings(steps=100, rate=1.0, warmup=10)
        >>> [round(settings.rate_at(step), 3) for step in (0, 9, 55, 100)]
        [0.1, 0.98, 0.422, 0.0]
        """
        return self.rate * min(1, (step + 1) / self.warmup) * (1 + math.cos(math.pi * step / self.steps)) / 2


@dataclass(frozen=True)
class Progress:
    """What a run tells after every step: ``score`` and ``best`` are None before the first scoring."""

    step: int
    loss: float
    score: float | None
    best: float | None
    seconds: float


class Trainer:
    """Trains ``task`` in ``folder``; see ``run``."""

    def __init__(self, task: Task, settings: Settings, folder: Path) -> None:
        self.task, self.settings, self.folder = task, settings, folder
        self.network = task.network
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=settings.rate)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.average = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.best = {name: value.clone() for name, value in self.average.items()}
        self.best_score: float | None = None
        self.last_score: float | None = None
        self.step = 0
        self.seconds = 0.0
        self._stop = False

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    def run(self, report: Callable[[Progress], None] = lambda _: None) -> bool:
        """Train to the end, or to Ctrl-C: then the step under way is finished and saved, and the answer is False."""
        self.folder.mkdir(parents=True, exist_ok=True)
        before = signal.signal(signal.SIGINT, self._ask_to_stop)
        try:
            while self.step < self.settings.steps and not self._stop:
                self._one_step(report)
            self.save()
        finally:
            signal.signal(signal.SIGINT, before)
        return self.step == self.settings.steps

    def _ask_to_stop(self, _signal: int, _frame: FrameType | None) -> None:
        if self._stop:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        self._stop = True

    def _one_step(self, report: Callable[[Progress], None]) -> None:
        began = time.monotonic()
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate_at(self.step)
        loss = self.task.loss(self.task.batch(self.generator), self.step / settings.steps)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        self.optimizer.step()
        self.step += 1
        keep = min(settings.decay, self.step / (self.step + 10))
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - keep)
            else:
                self.average[name].copy_(value)
        if self.step % settings.score_every == 0 or self.step == settings.steps:
            self._score()
        self.seconds += time.monotonic() - began
        if self.step % settings.save_every == 0:
            self.save()
        report(Progress(self.step, loss.item(), self.last_score, self.best_score, self.seconds))

    def _score(self) -> None:
        present = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        self.network.eval()
        with torch.inference_mode():
            self.last_score = self.task.score(self.network)
        self.network.train()
        self.network.load_state_dict(present)
        if self.best_score is None or self.last_score > self.best_score:
            self.best_score = self.last_score
            self.best = {name: value.clone() for name, value in self.average.items()}

    def _identity(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "task": dict(self.task.describe())}

    def save(self) -> None:
        """Write the checkpoint; the one before stays whole until the new one is."""
        state = {
            "identity": self._identity(),
            "threads": torch.get_num_threads(),
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "average": self.average,
            "best": self.best,
            "best_score": self.best_score,
            "last_score": self.last_score,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }
        with replacing(self.checkpoint) as temporary:
            torch.save(state, temporary)

    def resume(self) -> None:
        """Continue from the folder's checkpoint. Raises ArgumentError when it is of a different run.

        torch is set to the number of threads that the run was saved with: sums of another split differ in last bits.
        """
        try:
            state = torch.load(self.checkpoint, weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise FileFormatError(f"{self.checkpoint}: not a checkpoint that training wrote ({error})") from error
        ours, theirs = self._identity(), state["identity"]
        for part in ours:
            for key in sorted({*ours[part], *theirs[part]}):
                if ours[part].get(key) != theirs[part].get(key):
                    got, expected = ours[part].get(key), theirs[part].get(key)
                    raise ArgumentError(key, f"{expected!r}, as the run began", repr(got), f"{key}={expected!r}")
        torch.set_num_threads(state["threads"])
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.average, self.best = state["average"], state["best"]
        self.best_score, self.last_score = state["best_score"], state["last_score"]
        self.step, self.seconds = state["step"], state["seconds"]
