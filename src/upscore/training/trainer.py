"""A training loop that can be stopped at any moment and continued to the same bits.

The loop knows nothing of pictures: a ``Task`` brings the network, the batches, the loss and the score. All that the
next step depends on (weights, optimiser, moving average, step number) is in one checkpoint file, written through a
temporary file, and all that is random follows from the seed and the step's number; so an interrupted and resumed run
ends with the weights of an uninterrupted one on the same machine.

A step adds up the gradients of ``accumulate`` batches in each of the processes. Which batches those are depends on the
seed and the step alone: two processes do what one does that accumulates two batches.
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

import numpy as np
import torch
from torch import Tensor, nn

from upscore.errors import ArgumentError, FileFormatError, UpscoreError
from upscore.files import replacing
from upscore.training.processes import Processes
from upscore.training.settings import Settings

__all__ = ["Progress", "Task", "Trainer", "load"]

CHECKPOINT = "checkpoint.pt"


class Task(Protocol):
    """What is trained: a network, where its batches come from, what it is blamed and praised for."""

    @property
    def network(self) -> nn.Module:
        """What is trained; it is changed in place."""

    def batch(self, generator: torch.Generator, done: float) -> Any:
        """The next batch; all that is random comes from ``generator``; the fraction ``done`` of the run is behind."""

    def loss(self, batch: Any, done: float) -> Tensor:
        """What to minimise, the mean over the batch."""

    def score(self, network: nn.Module) -> Mapping[str, float]:
        """How good ``network`` is on the held-out data, by name; the first number decides, and more is better."""

    def describe(self) -> Mapping[str, Any]:
        """What identifies the task (data, network), compared on resuming."""


@dataclass(frozen=True)
class Progress:
    """What a run tells after every step: ``score`` and ``best`` are None before the first scoring.

    ``scored`` has all numbers of the scoring that ended this step, and is empty where none did.
    """

    step: int
    loss: float
    rate: float
    score: float | None
    best: float | None
    seconds: float
    scored: Mapping[str, float]


class Trainer:
    """Trains ``task`` in ``folder``; see ``run``."""

    def __init__(
        self,
        task: Task,
        settings: Settings,
        folder: Path,
        processes: Processes = Processes(),  # noqa: B008 (frozen)
    ) -> None:
        self.task, self.settings, self.folder, self.processes = task, settings, folder, processes
        self.network = task.network
        self.optimizer = settings.optimizer_for(self.network)
        self.device = next(self.network.parameters()).device.type
        self.scaler = torch.amp.GradScaler(self.device, enabled=settings.precision == "float16")
        self.average = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.best = {name: value.clone() for name, value in self.average.items()}
        self.best_score: float | None = None
        self.last_score: float | None = None
        self.history: list[dict[str, float]] = []
        self.step = 0
        self.seconds = 0.0
        self._losses = 0.0
        self._stop = False

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    @property
    def leads(self) -> bool:
        """Whether this process scores, saves and reports."""
        return self.processes.rank == 0

    @property
    def stale(self) -> bool:
        """Whether the last ``patience`` scorings brought nothing better: time to end early."""
        scores = [entry["score"] for entry in self.history]
        return 0 < self.settings.patience <= len(scores) - 1 - int(np.argmax(scores)) if scores else False

    def run(self, report: Callable[[Progress], None] = lambda _: None) -> bool:
        """Train to the end, or to Ctrl-C: then the step under way is finished and saved, and the answer is False."""
        self.folder.mkdir(parents=True, exist_ok=True)
        before = signal.signal(signal.SIGINT, self._ask_to_stop)
        stop = ended = self._over()
        try:
            while not stop:
                self._one_step(report)
                ended = self._over()
                stop = self.processes.any(ended or self._stop)
            self.save()
        finally:
            signal.signal(signal.SIGINT, before)
        return ended

    def _over(self) -> bool:
        return self.processes.any(self.step == self.settings.steps or self.stale)

    def _ask_to_stop(self, _signal: int, _frame: FrameType | None) -> None:
        if self._stop:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        self._stop = True

    def _one_step(self, report: Callable[[Progress], None]) -> None:
        began = time.monotonic()
        settings = self.settings
        rate = settings.rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._gradients()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self._losses += loss
        keep = min(settings.decay, self.step / (self.step + 10))
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - keep)
            else:
                self.average[name].copy_(value)
        scores: Mapping[str, float] = {}
        if self.leads and (self.step % settings.score_every == 0 or self.step == settings.steps):
            scores = self._score()
        self.seconds += time.monotonic() - began
        if scores:
            self._remember(scores, rate)
        if self.step % settings.save_every == 0:
            self.save()
        if self.leads:
            report(Progress(self.step, loss, rate, self.last_score, self.best_score, self.seconds, scores))

    def _gradients(self) -> float:
        """Leave the gradients of a step's batches in the parameters; the mean loss of those of this process."""
        settings, total, done = self.settings, 0.0, self.step / self.settings.steps
        self.optimizer.zero_grad()
        for part in range(settings.accumulate):
            number = (self.step * settings.accumulate + part) * self.processes.count + self.processes.rank
            seed = int(np.random.SeedSequence((abs(settings.seed), number)).generate_state(1, np.uint64)[0] >> 1)
            torch.manual_seed(seed)  # what the network itself draws, as dropout does
            batch = self.task.batch(torch.Generator().manual_seed(seed), done)
            dtype = getattr(torch, settings.precision)
            with torch.autocast(self.device, dtype, enabled=dtype != torch.float32):
                loss = self.task.loss(batch, done)
            value = loss.item()
            if not math.isfinite(value):
                raise UpscoreError(
                    f"the loss is {value} in step {self.step + 1}, and nothing good can come of it: "
                    f"the last checkpoint stays; start anew with a lower rate than {settings.rate:g}"
                )
            total += value / settings.accumulate
            self.scaler.scale(loss / settings.accumulate).backward()  # type: ignore[no-untyped-call]
        self.processes.mean_gradients(self.network.parameters())
        return total

    def _score(self) -> Mapping[str, float]:
        present = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        self.network.eval()
        with torch.inference_mode():
            scores = self.task.score(self.network)
        self.network.train()
        self.network.load_state_dict(present)
        return scores

    def _remember(self, scores: Mapping[str, float], rate: float) -> None:
        self.last_score = next(iter(scores.values()))
        since = self.step - (int(self.history[-1]["step"]) if self.history else 0)
        facts = {"step": self.step, "seconds": self.seconds, "rate": rate, "loss": self._losses / since}
        self.history.append({**facts, "score": self.last_score, **scores})
        self._losses = 0.0
        if self.best_score is None or self.last_score > self.best_score:
            self.best_score = self.last_score
            self.best = {name: value.clone() for name, value in self.average.items()}

    def _identity(self) -> dict[str, Any]:
        settings = {**asdict(self.settings), "processes": self.processes.count}
        return {"settings": settings, "task": dict(self.task.describe())}

    def save(self) -> None:
        """Write the checkpoint; the one before stays whole until the new one is.

        Raises UpscoreError when it cannot be written, on a full disk for example.
        """
        if not self.leads:
            return
        state = {
            "identity": self._identity(),
            "threads": torch.get_num_threads(),
            "step": self.step,
            "seconds": self.seconds,
            "losses": self._losses,
            "history": self.history,
            "network": self.network.state_dict(),
            "average": self.average,
            "best": self.best,
            "best_score": self.best_score,
            "last_score": self.last_score,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        try:
            with replacing(self.checkpoint) as temporary:
                torch.save(state, temporary)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            stays = "the one before it stays; with --resume the run goes on from there"
            raise UpscoreError(f"{self.checkpoint}: step {self.step} cannot be saved ({error}); {stays}") from error

    def resume(self) -> None:
        """Continue from the folder's checkpoint. Raises ArgumentError when it is of a different run.

        torch is set to the number of threads that the run was saved with: sums of another split differ in last bits.
        """
        state = load(self.checkpoint)
        ours, theirs = self._identity(), state["identity"]
        for part in ours:
            for key in sorted({*ours[part], *theirs[part]}):
                if ours[part].get(key) != theirs[part].get(key):
                    got, expected = ours[part].get(key), theirs[part].get(key)
                    raise ArgumentError(key, f"{expected!r}, as the run began", repr(got), f"{key}={expected!r}")
        torch.set_num_threads(state["threads"])
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for own, saved in ((self.average, state["average"]), (self.best, state["best"])):
            for name, value in own.items():
                value.copy_(saved[name])
        self.best_score, self.last_score = state["best_score"], state["last_score"]
        self.history, self._losses = state["history"], state["losses"]
        self.step, self.seconds = state["step"], state["seconds"]


def load(checkpoint: Path) -> dict[str, Any]:
    """The state in a checkpoint. Raises FileFormatError where it is none, and FileNotFoundError."""
    try:
        state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise FileFormatError(f"{checkpoint}: not a checkpoint that training wrote ({error})") from error
    return state
