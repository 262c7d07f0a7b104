"""The task behind ``upscore train street``: labelled pictures, cross-entropy at every pixel, and the mean IoU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from upscore.networks.classes import Classes, normalised
from upscore.training.augmentation import Augmentation
from upscore.training.confusion import Confusion
from upscore.training.labelled import Labelled, frequencies
from upscore.training.losses import class_weights, cross_entropy, lovasz_softmax

__all__ = ["Recipe", "Segmentation", "answer", "measure"]

_SPARSE = 4
"""The Lovász loss sorts pixels: every fourth row and column are sample enough."""


@dataclass(frozen=True)
class Recipe:
    """What is learned from: ``batch_size`` views at a time, and what a wrong pixel costs.

    Views have the sizes ``crops`` (H, W), one after the other, each for an equal share of the run. ``balance`` names
    the classes' weights (``losses.class_weights``), ``smoothing`` is of the labels, ``lovasz`` what the Lovász loss is
    multiplied by when it is added to the cross-entropy.
    """

    batch_size: int = 8
    crops: tuple[tuple[int, int], ...] = ((352, 480),)
    augmentation: Augmentation = field(default_factory=Augmentation)
    balance: str = "root"
    smoothing: float = 0.0
    lovasz: float = 0.0

    def crop_at(self, done: float) -> tuple[int, int]:
        """The size of views when the fraction ``done`` of the run is behind.

        >>> [Recipe(crops=((64, 96), (128, 192))).crop_at(done) for done in (0.0, 0.49, 0.5, 1.0)]
        [(64, 96), (64, 96), (128, 192), (128, 192)]
        """
        return self.crops[min(int(done * len(self.crops)), len(self.crops) - 1)]


class Segmentation:
    """Views of labelled pictures for ``network``, which makes class scores ``(N, classes, H, W)`` of them.

    ``identity`` is what else tells this run from another (the network's name and options, say). The device is the one
    that the network's parameters are on.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: Classes,
        train: Sequence[Labelled],
        validation: Sequence[Labelled],
        recipe: Recipe,
        identity: Mapping[str, Any],
    ) -> None:
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.classes, self.train, self.validation, self.recipe = classes, train, validation, recipe
        self.device = next(network.parameters()).device
        self.weights = class_weights(frequencies(train, classes), recipe.balance).to(self.device)
        self.identity = identity

    def describe(self) -> Mapping[str, Any]:
        """What must not change between the parts of one run."""
        return {
            **self.identity,
            "classes": list(self.classes.names),
            "pictures": len(self.train),
            "validation pictures": len(self.validation),
            **{name.replace("_", "-"): _plain(value) for name, value in asdict(self.recipe).items()},
        }

    def batch(self, generator: torch.Generator, done: float) -> tuple[Tensor, Tensor]:
        """Normalised views ``(N, 3, H, W)``, channels last, and their labels ``(N, H, W)``."""
        recipe, size = self.recipe, self.recipe.crop_at(done)
        chosen = torch.randint(len(self.train), (recipe.batch_size,), generator=generator).tolist()
        views = [recipe.augmentation(self.train[i], size, self.classes.void, generator) for i in chosen]
        pictures = normalised(torch.stack([picture for picture, _ in views]))
        labels = torch.stack([label for _, label in views])
        return pictures.to(self.device, memory_format=torch.channels_last), labels.to(self.device)

    def loss(self, batch: tuple[Tensor, Tensor], done: float) -> Tensor:
        """The weighted cross-entropy, and the Lovász loss where the recipe has it."""
        pictures, labels = batch
        recipe, void = self.recipe, self.classes.void
        scores = self.network(pictures).float()
        loss = cross_entropy(scores, labels, void=void, weights=self.weights, smoothing=recipe.smoothing)
        if recipe.lovasz:
            sparse = np.s_[..., ::_SPARSE, ::_SPARSE]
            loss = loss + recipe.lovasz * lovasz_softmax(scores[sparse], labels[sparse], void=void)
        return loss

    def score(self, network: nn.Module) -> Mapping[str, float]:
        """The mean IoU over the validation pictures, and the paper's other metrics."""
        metrics = measure(network, self.validation, self.classes).metrics()
        return {"mean IoU": metrics.pop("mean IoU"), **metrics}


def answer(network: nn.Module, item: Labelled) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The class of every pixel of a picture, ``(H, W)``."""
    device = next(network.parameters()).device
    pixels = torch.from_numpy(np.array(item.picture)).permute(2, 0, 1)[None].to(device)
    labels: np.ndarray[Any, np.dtype[np.int64]] = network(normalised(pixels))[0].argmax(0).cpu().numpy()
    return labels


@torch.inference_mode()
def measure(
    network: nn.Module,
    labelled: Sequence[Labelled],
    classes: Classes,
    tick: Callable[[float], None] = lambda _: None,
) -> Confusion:
    """What ``network``, ready for inference, calls the pixels of the pictures; ``tick`` is told the fraction done."""
    confusion = Confusion.empty(len(classes))
    for number, item in enumerate(labelled, 1):
        confusion = confusion.with_pixels(np.asarray(item.labels), answer(network, item))
        tick(number / len(labelled))
    return confusion


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON and checkpoints have them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
