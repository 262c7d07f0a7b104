"""How to train: the optimiser, the schedule of its rate, and what is done to gradients and weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from upscore.errors import ArgumentError

__all__ = ["OPTIMIZERS", "PRECISIONS", "SCHEDULES", "Settings", "fastest"]

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("cosine", "poly", "step")
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Settings:
    """The optimiser's settings; gradients are clipped to the norm ``clip``, weights have a moving average.

    The rate rises over ``warmup`` steps and falls to zero by the ``schedule``: along half a cosine; as the power 0.9
    of what is left ("poly": Chen et al. 2017, "DeepLab"); or to a tenth after half of the steps and to a hundredth
    after three quarters ("step").

    ``weight_decay`` holds for kernels alone, not for biases and normalisations. A step adds up the gradients of
    ``accumulate`` batches. ``precision`` is what the network computes in (weights and sums stay float32). After
    ``patience`` scorings without a new best the run ends; 0 is never.

    Raises:
        ArgumentError: naming the setting that cannot work.
    """

    steps: int
    rate: float = 4e-3
    optimizer: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: int = 500
    decay: float = 0.999
    clip: float = 0.05
    accumulate: int = 1
    precision: str = "float32"
    patience: int = 0
    score_every: int = 1000
    save_every: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            got = getattr(self, name)
            if got not in known:
                raise ArgumentError(name, f"one of {', '.join(known)}", repr(got), f"{name}={known[0]!r}")
        for name in ("steps", "accumulate", "score_every", "save_every"):
            if getattr(self, name) < 1:
                raise ArgumentError(name, "at least 1", getattr(self, name), f"{name}=1")

    def rate_at(self, step: int) -> float:
        """The learning rate of a step.

        >>> settings = Settings(steps=100, rate=1.0, warmup=10)
        >>> [round(settings.rate_at(step), 3) for step in (0, 9, 55, 100)]
        [0.1, 0.98, 0.422, 0.0]
        >>> [round(Settings(steps=100, rate=1.0, warmup=1, schedule="poly").rate_at(step), 3) for step in (0, 50, 99)]
        [1.0, 0.536, 0.016]
        >>> [Settings(steps=100, rate=1.0, warmup=1, schedule="step").rate_at(step) for step in (49, 50, 99)]
        [1.0, 0.1, 0.01]
        """
        done = step / self.steps
        fall = {
            "cosine": (1 + math.cos(math.pi * done)) / 2,
            "poly": math.pow(1 - done, 0.9),
            "step": 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01,
        }
        return self.rate * min(1, (step + 1) / max(1, self.warmup)) * fall[self.schedule]

    def optimizer_for(self, network: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of the network's parameters that can be learned; kernels are those of two axes or more."""
        learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in learned if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.rate, momentum=self.momentum)
        kind = torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.Adam
        return kind(groups, lr=self.rate)


def fastest(device: str) -> str:
    """The precision that is quickest on ``device``: bfloat16 with instructions for it, else float32 (GPUs: float16)."""
    if torch.device(device).type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bfloat16" if known() else "float32"
