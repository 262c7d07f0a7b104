"""Whole networks, ours against torch's own layers, turn by turn in one process."""

from __future__ import annotations

import copy
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

import upscore
from benchmarks.zoo import NETWORKS, TRAINED, Network

TOLERANCE = 1e-5

Step = Callable[[], torch.Tensor]


def _inference(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Step:
    model.eval()

    def step() -> torch.Tensor:
        with torch.inference_mode():
            return model(*inputs)  # type: ignore[no-any-return]

    return step


def _training(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Step:
    """Forward, backward and an optimizer's step of zero length, so that every step is the same; returns gradients."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        model(*inputs).square().mean().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        optimizer.step()
        return torch.cat(gradients)

    return step


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def _measure(network: Network, make: Callable[..., Step], rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = network.build()
    inputs = tuple(torch.randn(shape) for shape in network.inputs)
    steps = {"torch": make(copy.deepcopy(model), inputs)}
    steps["upscore"] = make(upscore.accelerate(copy.deepcopy(model).eval()), inputs)
    difference = _difference(steps["upscore"](), steps["torch"]())
    if not difference < TOLERANCE:
        raise ValueError(f"{network.name}: the accelerated network differs by {difference:.1e}, at most {TOLERANCE}")
    samples: dict[str, list[float]] = {name: [] for name in steps}
    shuffle = random.Random(network.name)
    for _ in range(rounds):
        turn = list(steps)
        shuffle.shuffle(turn)
        for name in turn:
            start = time.perf_counter()
            steps[name]()
            samples[name].append(time.perf_counter() - start)
    row: dict[str, Any] = {"network": network.name, "inputs": network.inputs, "difference": difference}
    for name, taken in samples.items():
        low, middle, high = (q * 1e3 for q in statistics.quantiles(taken, n=4, method="inclusive"))
        row[name] = {"ms": middle, "low_ms": low, "high_ms": high, "min_ms": min(taken) * 1e3, "rounds": rounds}
    row["torch_over_ours"] = row["torch"]["ms"] / row["upscore"]["ms"]
    row["torch_over_ours_by_minimum"] = row["torch"]["min_ms"] / row["upscore"]["min_ms"]
    return row


def race(words: list[str], rounds: int, threads: int) -> Iterator[dict[str, Any]]:
    """A row for each network whose name contains one of the words."""
    torch.set_num_threads(threads)
    upscore.cpu.set_threads(threads)
    for networks, make in ((NETWORKS, _inference), (TRAINED, _training)):
        for network in networks:
            if not words or any(word in network.name.lower() for word in words):
                yield _measure(network, make, rounds)
