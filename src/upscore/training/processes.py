"""One run by several processes, started by ``torchrun``: each computes gradients of batches of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Processes", "join"]


@dataclass(frozen=True)
class Processes:
    """``count`` processes, of which this is number ``rank``. Number 0 scores, saves and reports."""

    rank: int = 0
    count: int = 1

    def mean_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its mean over the processes."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients]) / self.count
        dist.all_reduce(flat)
        for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        flags = torch.tensor(int(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(flags)
        return bool(flags)


def join(device: torch.device | str = "cpu") -> Processes:
    """The processes that ``torchrun`` started, as its environment variables say; a single one without it."""
    if "WORLD_SIZE" not in os.environ:
        return Processes()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.device(device).type == "cuda" else "gloo")
    return Processes(dist.get_rank(), dist.get_world_size())
