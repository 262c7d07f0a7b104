"""Learning the filters of a deconvolutional network from photographs alone, layer by layer.

Each layer's objective, summed over all pictures, is minimised over maps and filters together (Zeiler et al. 2010,
section 3, alternate between the two). A round is one proximal gradient step of all maps, then one of the filters,
both from points extrapolated along the last round: block coordinate descent as in Xu and Yin 2013, "A block
coordinate descent method for regularized multiconvex optimization", section 2. Steps are as long as the curvature
along them allows. A round that would raise the objective is undone and extrapolation starts anew; so it falls from the
first round to the last. Filters begin as pieces of what is observed.
"""

from __future__ import annotations

import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from upscore.errors import ArgumentError
from upscore.files import replacing
from upscore.networks.deconvolutional import CHUNK, STEPS, DeconvolutionalLayer, DeconvolutionalNetwork, unit
from upscore.networks.proximal import L1
from upscore.training.trainer import CHECKPOINT, load

__all__ = ["Learning", "Round", "Settings", "pieces"]

_EASE, _TIGHTEN = 0.8, 1.25
"""Each round tries steps longer by the one; a step that the curvature along it forbids is shortened by the other."""


@dataclass(frozen=True)
class Settings:
    """How to learn: rounds a layer, then ``final_steps`` of inference for the maps that the next layer learns from.

    ``seed`` decides with which pieces of the pictures the filters begin.
    """

    rounds: int = 120
    final_steps: int = STEPS
    save_every: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Round:
    """What a round of a layer (both counted from 1) came to, over all pictures."""

    layer: int
    number: int
    objective: float
    density: float
    """The fraction of the maps that is not zero."""
    snr: float
    """The layer's signal against what its maps leave unexplained, in dB."""
    seconds: float


class Learning:
    """Learns ``network`` from ``images`` (N, C, H, W) in ``folder``; see ``run``."""

    def __init__(self, network: DeconvolutionalNetwork, images: Tensor, settings: Settings, folder: Path) -> None:
        self.network, self.images, self.settings, self.folder = network, images, settings, folder
        self.history: list[Round] = []
        self.seconds = 0.0
        self._stop = False
        self._enter(0, images)

    @torch.no_grad()
    def _enter(self, number: int, observed: Tensor) -> None:
        """Begin to learn a layer from ``observed``: its filters are pieces of it, its maps zero."""
        self.number, self.observed, self.round = number, observed, 0
        layer, (count, _, height, width) = self.layer, observed.shape
        if min(height, width) < layer.size:
            expected = f"pictures of at least {layer.size} x {layer.size} pixels, the size of a filter"
            raise ArgumentError("images", expected, f"{height} x {width}", f"torch.randn(9, 1, {9 * layer.size}, 99)")
        layer.weight.copy_(pieces(layer, observed, torch.Generator().manual_seed(self.settings.seed + number)))
        strongest = max(float(layer.analyze(observed[part]).abs().max()) for part in self._parts())
        if 0 < strongest <= layer.sparsity:
            expected = f"less than {strongest:.3g} in layer {number + 1}: from there on all maps are zero"
            raise ArgumentError("sparsity", expected, layer.sparsity, f"sparsity={strongest / 4:.2g}")
        grow = layer.size - 1
        self.maps = observed.new_zeros(count, layer.filters, height + grow, width + grow)
        self.past_maps, self.past_filters = self.maps.clone(), layer.weight.clone()
        self.momentum = self.filter_curvature = self.map_curvature = 1.0
        self.objective = float(observed.square().sum(dtype=torch.float64)) / 2

    @property
    def layer(self) -> DeconvolutionalLayer:
        """The layer that is learning."""
        return self.network.layers[self.number]

    @property
    def done(self) -> bool:
        return self.number == len(self.network.layers) - 1 and self.round == self.settings.rounds

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    def run(self, report: Callable[[Round], None] = lambda _: None) -> bool:
        """Learn to the end, or to Ctrl-C: then the round under way is finished and saved, and the answer is False."""
        self.folder.mkdir(parents=True, exist_ok=True)
        before = signal.signal(signal.SIGINT, self._ask_to_stop)
        try:
            while not (self.done or self._stop):
                self._one_round(report)
                if self.round % self.settings.save_every == 0:
                    self.save()
            self.save()
        finally:
            signal.signal(signal.SIGINT, before)
        return self.done

    def _ask_to_stop(self, _signal: int, _frame: FrameType | None) -> None:
        if self._stop:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        self._stop = True

    @torch.no_grad()
    def _one_round(self, report: Callable[[Round], None]) -> None:
        began = time.monotonic()
        if self.round == self.settings.rounds:
            self._ascend()
        following = (1 + math.sqrt(1 + 4 * self.momentum**2)) / 2
        ahead = (self.momentum - 1) / following
        before = self.layer.weight.clone()
        self._step_maps(ahead)
        error = self._step_filters(before + ahead * (before - self.past_filters))
        objective = error / 2 + self._penalty()
        if objective < self.objective:
            self.objective, self.past_filters, self.momentum = objective, before, following
        else:
            # Undone: what was past is present again, and the next round starts from it without momentum.
            self.maps.copy_(self.past_maps)
            self.layer.weight.copy_(before)
            self.past_filters, self.momentum = before, 1.0
        self.round += 1
        if self.round == self.settings.rounds:
            self._stretch()
        self.seconds += (seconds := time.monotonic() - began)
        self.history.append(self._summary(seconds))
        report(self.history[-1])

    def _step_maps(self, ahead: float) -> None:
        """A proximal gradient step from ``maps + ahead * (maps - past_maps)``; ``maps`` become ``past_maps``."""
        layer, penalty = self.layer, L1(self.layer.sparsity)
        self.map_curvature *= _EASE
        for part in self._parts():
            point = torch.lerp(self.past_maps[part], self.maps[part], 1 + ahead)
            gradient = layer.analyze(layer.synthesize(point) - self.observed[part])
            while True:
                step = 1 / self.map_curvature
                moved = penalty.proximal(torch.add(point, gradient, alpha=-step), step)
                change = moved - point
                if _power([layer.synthesize(change)]) <= self.map_curvature * _power([change]):
                    break
                self.map_curvature *= _TIGHTEN
            self.past_maps[part] = moved
        self.maps, self.past_maps = self.past_maps, self.maps

    def _step_filters(self, point: Tensor) -> float:
        """A gradient step of the filters from ``point``, into the ball of radius 1; the squared error afterwards."""
        layer = self.layer
        errors = [layer.synthesize(self.maps[part], point) - self.observed[part] for part in self._parts()]
        gradient = sum(layer.correlate(self.maps[part], e) for part, e in zip(self._parts(), errors, strict=True))
        self.filter_curvature *= _EASE
        while True:
            moved = point - gradient / self.filter_curvature
            moved /= moved.flatten(1).norm(dim=1).clamp_min(1)[:, None, None, None]
            step = moved - point
            changes = [layer.synthesize(self.maps[part], step) for part in self._parts()]
            if _power(changes) <= self.filter_curvature * _power([step]):
                break
            self.filter_curvature *= _TIGHTEN
        layer.weight.copy_(moved)
        return _power([error + change for error, change in zip(errors, changes, strict=True)])

    def _stretch(self) -> None:
        """Every filter to length 1 and its map shrunk by as much: the same signal by smaller maps."""
        length = self.layer.weight.flatten(1).norm(dim=1)
        self.maps *= length[:, None, None]
        self.layer.weight.copy_(unit(self.layer.weight))
        self.objective = self._error() / 2 + self._penalty()

    def _ascend(self) -> None:
        """On to the next layer: its signal is this one's maps, inferred with care."""
        self.maps = self.layer.infer(self.observed, steps=self.settings.final_steps, start=self.maps)
        self._enter(self.number + 1, self.maps)

    def _parts(self) -> Iterator[slice]:
        return (slice(first, first + CHUNK) for first in range(0, len(self.observed), CHUNK))

    def _error(self) -> float:
        return _power(self.layer.synthesize(self.maps[part]) - self.observed[part] for part in self._parts())

    def _penalty(self) -> float:
        penalty = L1(self.layer.sparsity)
        return float(sum(penalty.value(self.maps[part]).sum() for part in self._parts()))

    def _summary(self, seconds: float) -> Round:
        power, error = _power([self.observed]), 2 * (self.objective - self._penalty())
        return Round(
            layer=self.number + 1,
            number=self.round,
            objective=self.objective,
            density=int(self.maps.count_nonzero()) / self.maps.numel(),
            snr=10 * math.log10(power / error) if power > 0 and error > 0 else 0.0,
            seconds=seconds,
        )

    def _identity(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.images.numpy().tobytes()).hexdigest()[:16]
        return {**self.network.options, **asdict(self.settings), "photos": digest}

    def save(self) -> None:
        """Write the checkpoint; the one before stays whole until the new one is. Maps are stored sparse."""
        state = {
            "identity": self._identity(),
            "threads": torch.get_num_threads(),
            "network": self.network.state_dict(),
            "past_filters": self.past_filters,
            "maps": _packed(self.maps),
            "past_maps": _packed(self.past_maps),
            "observed": _packed(self.observed) if self.number else None,
            "history": [asdict(entry) for entry in self.history],
            **{name: getattr(self, name) for name in _SCALARS},
        }
        with replacing(self.checkpoint) as temporary:
            torch.save(state, temporary)

    def resume(self) -> None:
        """Continue from the folder's checkpoint, to the same bits. Raises ArgumentError when it is of another run.

        torch is set to the number of threads that the run was saved with: sums of another split differ in last bits.
        """
        state = load(self.checkpoint)
        theirs = state["identity"]
        for key, ours in self._identity().items():
            if ours != theirs.get(key):
                expected = f"{theirs.get(key)!r}, as the run began"
                raise ArgumentError(key, expected, repr(ours), f"{key}={theirs.get(key)!r}")
        torch.set_num_threads(state["threads"])
        self.network.load_state_dict(state["network"])
        for name in _SCALARS:
            setattr(self, name, state[name])
        self.observed = _unpacked(state["observed"]) if self.number else self.images
        self.maps, self.past_maps = _unpacked(state["maps"]), _unpacked(state["past_maps"])
        self.past_filters = state["past_filters"]
        self.history = [Round(**entry) for entry in state["history"]]


def pieces(layer: DeconvolutionalLayer, observed: Tensor, generator: torch.Generator) -> Tensor:
    """Filters for ``layer``: pieces of ``observed`` (N, C, H, W) at random, likelier where there is more power.

    What a filter is not connected to is left out, of its power too. Where there is no power at all, the layer's
    filters stay.
    """
    size, found = layer.size, layer.weight.clone()
    power = torch.nn.functional.avg_pool2d(observed.square(), size, stride=1)
    for filter_, connected in zip(found, layer.connections, strict=True):
        own = (power * connected[:, None, None]).sum(1)
        # The largest of u^(1/w) is a draw by the weights w: Efraimidis and Spirakis 2006, "Weighted random sampling".
        chance = torch.rand(own.shape, generator=generator).log() / own.clamp_min(1e-30)
        n, y, x = (int(i) for i in torch.unravel_index(chance.argmax(), own.shape))
        if own[n, y, x] > 0:
            filter_.copy_(observed[n, :, y : y + size, x : x + size] * connected[:, None, None])
    return unit(found)


_SCALARS = ("number", "round", "momentum", "filter_curvature", "map_curvature", "objective", "seconds")


def _power(signals: Iterator[Tensor] | list[Tensor]) -> float:
    """The sum of squares of all of them."""
    return sum(float(each.square().sum(dtype=torch.float64)) for each in signals)


def _packed(maps: Tensor) -> dict[str, Any]:
    flat = maps.flatten()
    places = flat.nonzero()[:, 0]
    return {"shape": list(maps.shape), "places": places, "values": flat[places]}


def _unpacked(packed: dict[str, Any]) -> Tensor:
    values: Tensor = packed["values"]
    flat = values.new_zeros(math.prod(packed["shape"]))
    flat[packed["places"]] = values
    return flat.reshape(packed["shape"])
