"""Deconvolutional networks: sparse maps whose transposed convolutions add up to the picture, layer upon layer.

Zeiler, Krishnan, Taylor and Fergus 2010, "Deconvolutional Networks" (CVPR). A layer explains a signal ``s`` of C
channels by K maps ``x`` and filters ``d``; with * the transposed convolution, cropped to the signal's size::

    objective(s, x) = 1/2 sum_c |sum_k x_k * d_kc - s_c|^2 + sparsity * sum_k |x_k|_1         |d_k| = 1

(section 3 there, with the weight on the other term). The maps are larger than the signal by a kernel less one, so
that every position of the signal lies under as many taps. The maps of one layer are the signal of the next.

The paper infers maps by continuation: auxiliary variables, split off by a quadratic term whose weight grows, and
conjugate gradients for the rest. Here it is monotone FISTA (:mod:`upscore.networks.proximal`): no schedule to
tune, an objective that never rises, and one transposed convolution and one convolution a step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from upscore.errors import ArgumentError, FileFormatError
from upscore.files import replacing
from upscore.networks.proximal import L1, minimize, total
from upscore.nn import functional as F
from upscore.nn import operators

__all__ = ["CHUNK", "STEPS", "DeconvolutionalLayer", "DeconvolutionalNetwork", "unit"]

STEPS = 100
"""Steps of inference: for filters learned from photographs, the objective is then within half a per cent of the least.
"""

CHUNK = 4
"""Pictures whose maps are worked on together: few, so that they stay in the processor's caches."""


def unit(filters: Tensor) -> Tensor:
    """Filters ``(K, C, *kernel)`` scaled to length 1; one that is zero stays zero."""
    length = filters.flatten(1).norm(dim=1).reshape(-1, *(1,) * (filters.dim() - 1))
    scaled: Tensor = filters / length.where(length > 0, 1.0)
    return scaled


class DeconvolutionalLayer(nn.Module):
    """One layer: ``filters`` maps that explain a signal of ``channels``, by square filters of side ``size``.

    ``weight`` is ``(K, C, size, size)``, what :func:`upscore.nn.functional.conv_transpose2d` takes, each filter of
    length 1. With ``fan_in`` a map reaches only that many of the channels; which, ``connections`` (K, C) says.
    """

    connections: Tensor

    def __init__(
        self,
        channels: int,
        filters: int,
        size: int = 7,
        *,
        sparsity: float,
        fan_in: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("filters", filters), ("size", size)):
            if value < 1:
                raise ArgumentError(name, "at least 1", value, f"{name}=7")
        if not (sparsity > 0 and math.isfinite(sparsity)):
            raise ArgumentError("sparsity", "a positive number", sparsity, "sparsity=0.5")
        if fan_in is not None and not 1 <= fan_in <= channels:
            raise ArgumentError("fan_in", f"1 to {channels}, the channels of the signal", fan_in, f"fan_in={channels}")
        self.channels, self.filters, self.size = channels, filters, size
        self.sparsity, self.fan_in = sparsity, fan_in
        connections = torch.ones(filters, channels, dtype=torch.bool)
        if fan_in is not None:
            connections = _spread(filters, channels, fan_in, generator)
        self.register_buffer("connections", connections)
        noise = torch.randn(filters, channels, size, size, generator=generator)
        self.weight = nn.Parameter(unit(noise * connections[:, :, None, None]), requires_grad=False)
        crop = [size - 1] * 2
        self._geometry = [1, 1], [1, 1], crop, crop, 1

    def synthesize(self, maps: Tensor, weight: Tensor | None = None) -> Tensor:
        """Maps ``(N, K, H + size - 1, W + size - 1)`` to the signal ``(N, C, H, W)`` that they add up to.

        ``weight``: other filters than the layer's own, ``(K, C, size, size)``.
        """
        return F.conv_transpose2d(maps, self.weight if weight is None else weight, padding=self.size - 1)

    def analyze(self, signal: Tensor) -> Tensor:
        """The adjoint of ``synthesize``, an ordinary convolution: signal ``(N, C, H, W)`` to maps."""
        y: Tensor = operators.input_gradient(signal, self.weight, *self._geometry)
        return y

    def correlate(self, maps: Tensor, signal: Tensor) -> Tensor:
        """The adjoint of ``synthesize`` in the filters, ``(K, C, size, size)``; zero where nothing is connected."""
        y: Tensor = operators.weight_gradient(maps, signal, [self.size] * 2, *self._geometry)
        return y * self.connections[:, :, None, None]

    def objective(self, signal: Tensor, maps: Tensor) -> Tensor:
        """What inference and learning minimise, for each picture: ``(N,)``, float64."""
        error = self.synthesize(maps) - self._checked(signal)
        return total(error.square()) / 2 + L1(self.sparsity).value(maps)

    def curvature(self) -> float:
        """A bound of the squared norm of ``synthesize``: the largest power of the filters over all frequencies.

        The power, the largest eigenvalue of a C x C matrix, is found on a grid of n x n frequencies. Between them it
        exceeds the grid's largest by at most ``1 / cos(pi * (size - 1) / n)`` an axis (Ehlich and Zeller 1964,
        "Schwankung von Polynomen zwischen Gitterpunkten"), being a trigonometric polynomial of degree size - 1 along
        each.
        """
        n = 8 * self.size
        spectrum = torch.fft.rfft2(self.weight.double(), s=(n, n))
        if self.channels == 1:
            power = spectrum.abs().square().sum((0, 1)).max()
        else:
            matrices = torch.einsum("kcij,kdij->ijcd", spectrum, spectrum.conj())
            power = torch.linalg.eigvalsh(matrices).max()
        return float(power) / math.cos(math.pi * (self.size - 1) / n) ** 2 or 1.0

    @torch.no_grad()
    def infer(
        self, signal: Tensor, *, steps: int = STEPS, start: Tensor | None = None, sparsity: float | None = None
    ) -> Tensor:
        """The sparse maps ``(N, K, H + size - 1, W + size - 1)`` of a signal ``(N, C, H, W)``.

        ``start``: maps to go on from. ``sparsity``: another than the layer's own.
        """
        count, _, height, width = self._checked(signal).shape
        if start is None:
            start = signal.new_zeros(count, self.filters, height + self.size - 1, width + self.size - 1)
        penalty, curvature = L1(self.sparsity if sparsity is None else sparsity), self.curvature()
        found = []
        for part in (slice(first, first + CHUNK) for first in range(0, count, CHUNK)):
            there = minimize(
                self.synthesize, self.analyze, signal[part], penalty, start[part], curvature=curvature, steps=steps
            )
            found.append(there.x)
        return torch.cat(found)

    def _checked(self, signal: Tensor) -> Tensor:
        if signal.dim() != 4 or signal.shape[1] != self.channels or 0 in signal.shape:
            example = f"torch.randn(1, {self.channels}, 64, 64)"
            raise ArgumentError("signal", f"shape (N, {self.channels}, H, W)", tuple(signal.shape), example)
        return signal

    def extra_repr(self) -> str:
        return f"{self.channels}, {self.filters}, size={self.size}, sparsity={self.sparsity}, fan_in={self.fan_in}"


class DeconvolutionalNetwork(nn.Module):
    """Layers, each explaining the maps of the one below; the lowest explains pictures of ``channels``.

    Args:
        filters: how many maps each layer has, from the lowest up.
        size: the side of all filters, or of each layer's.
        sparsity: the weight of the maps' 1-norm, or of each layer's.
        channels: of the pictures.
        fan_in: how many maps of the layer below a map of an upper layer reaches; None: all.
        seed: of the filters (noise, until they are learned) and of the connections.

    >>> network = DeconvolutionalNetwork((4, 6), size=5)
    >>> maps = network.infer(torch.randn(2, 1, 16, 20), steps=3)
    >>> [tuple(m.shape) for m in maps]
    [(2, 4, 20, 24), (2, 6, 24, 28)]
    >>> network.reconstruct(maps[-1]).shape, network.objective(torch.randn(2, 1, 16, 20), maps).shape
    (torch.Size([2, 1, 16, 20]), torch.Size([2, 2]))
    """

    layers: Sequence[DeconvolutionalLayer]

    def __init__(
        self,
        filters: Sequence[int] = (16, 32),
        *,
        size: int | Sequence[int] = 7,
        sparsity: float | Sequence[float] = 0.5,
        channels: int = 1,
        fan_in: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not filters:
            raise ArgumentError("filters", "at least one layer", tuple(filters), "filters=(16, 32)")
        count = len(filters)
        sizes, sparsities = _per_layer("size", size, count), _per_layer("sparsity", sparsity, count)
        generator = torch.Generator().manual_seed(seed)
        below = (channels, *filters)
        self.layers = nn.ModuleList(  # type: ignore[assignment]
            DeconvolutionalLayer(
                below[i],
                filters[i],
                sizes[i],
                sparsity=sparsities[i],
                fan_in=None if fan_in is None or i == 0 else min(fan_in, below[i]),
                generator=generator,
            )
            for i in range(count)
        )
        self.options: dict[str, Any] = {
            "filters": list(filters),
            "size": sizes,
            "sparsity": sparsities,
            "channels": channels,
            "fan_in": fan_in,
        }

    def infer(
        self, images: Tensor, *, steps: int = STEPS, sparsity: float | Sequence[float] | None = None
    ) -> list[Tensor]:
        """The maps of every layer, lowest first: layer l's are ``(N, K_l, H + sum(size - 1), W + sum(size - 1))``.

        ``sparsity``: others than the layers' own. Filters learn to be arrangements where it is high; by the same
        filters, a lower one says pictures better.
        """
        own = [layer.sparsity for layer in self.layers]
        sparsities = own if sparsity is None else _per_layer("sparsity", sparsity, len(own))
        maps: list[Tensor] = []
        for layer, weight in zip(self.layers, sparsities, strict=True):
            maps.append(layer.infer(maps[-1] if maps else images, steps=steps, sparsity=weight))
        return maps

    def reconstruct(self, maps: Tensor, layer: int = -1) -> Tensor:
        """The pictures ``(N, channels, H, W)`` that the maps of ``layer`` (the topmost) say, through all below."""
        for below in reversed(self.layers[: layer % len(self.layers) + 1]):
            maps = below.synthesize(maps)
        return maps

    def objective(self, images: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Each layer's objective for each picture, ``(layers, N)``: of its maps, given those of the layer below."""
        if len(maps) != len(self.layers):
            expected = f"the maps of {len(self.layers)} layers"
            raise ArgumentError("maps", expected, f"of {len(maps)}", "network.infer(images)")
        signals = (images, *maps)
        return torch.stack([layer.objective(signals[i], maps[i]) for i, layer in enumerate(self.layers)])

    def forward(self, images: Tensor) -> Tensor:
        """The pictures as the topmost layer's maps say them."""
        return self.reconstruct(self.infer(images)[-1])

    def atoms(self, layer: int = -1) -> Tensor:
        """What one unit spike in each map of ``layer`` adds to the picture: ``(K, channels, side, side)``."""
        count = layer % len(self.layers) + 1
        crop = sum(below.size - 1 for below in self.layers[:count])
        filters = self.layers[count - 1].filters
        spikes = self.layers[0].weight.new_zeros(filters, filters, 2 * crop + 1, 2 * crop + 1)
        spikes[range(filters), range(filters), crop, crop] = 1
        return self.reconstruct(spikes, layer)

    def save(self, path: Path) -> None:
        """Write the network as safetensors, what it is made of in the header."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        with replacing(path) as temporary:
            save_file(weights, temporary, metadata={"deconvolutional-network": json.dumps(self.options)})

    @classmethod
    def load(cls, path: Path) -> DeconvolutionalNetwork:
        """The network of a file that ``save`` wrote. Raises FileFormatError for another file."""
        try:
            with safe_open(path, framework="pt") as file:
                options = json.loads((file.metadata() or {})["deconvolutional-network"])
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            network = cls(**options)
            network.load_state_dict(weights)
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FileFormatError(f"{path}: not a deconvolutional network that upscore wrote ({error})") from error
        return network


def _per_layer(name: str, value: Any, count: int) -> list[Any]:
    values = list(value) if isinstance(value, Sequence) else [value] * count
    if len(values) != count:
        raise ArgumentError(name, f"one, or one for each of the {count} layers", values, f"{name}={values[:1] * count}")
    return values


def _spread(filters: int, channels: int, fan_in: int, generator: torch.Generator | None) -> Tensor:
    """Connections at random, ``(filters, channels)``, that reach every channel about equally often."""
    connections = torch.zeros(filters, channels, dtype=torch.bool)
    for row in connections:
        # Least used first, ties at random.
        use = connections.sum(0) + torch.rand(channels, generator=generator)
        row[use.argsort()[:fan_in]] = True
    return connections
