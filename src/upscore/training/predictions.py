"""What a network makes of pictures, beside the pictures and the truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from upscore.files import replacing
from upscore.networks.classes import Classes
from upscore.training.labelled import Labelled
from upscore.training.segmentation import answer

__all__ = ["draw", "spread"]


def spread(labelled: Sequence[Labelled], count: int) -> list[Labelled]:
    """``count`` of the pictures, as far from each other as they can be (neighbours in a film look the same)."""
    return [labelled[i] for i in sorted({round(x) for x in np.linspace(0, len(labelled) - 1, count)})]


@torch.inference_mode()
def draw(network: nn.Module, labelled: Sequence[Labelled], classes: Classes, path: Path) -> None:
    """A row for each: the picture, the true classes, the network's (black where the truth is void)."""
    training = network.training
    network.eval()
    size = max(item.picture.width for item in labelled), max(item.picture.height for item in labelled)
    sheet = Image.new("RGB", (3 * size[0], len(labelled) * size[1]))
    for row, item in enumerate(labelled):
        truth = np.asarray(item.labels)
        own = np.where(truth == classes.void, classes.void, answer(network, item))
        images = [item.picture, *(Image.fromarray(classes.draw(labels)) for labels in (truth, own))]
        for column, image in enumerate(images):
            sheet.paste(image, (column * size[0], row * size[1]))
    network.train(training)
    with replacing(path) as temporary:
        sheet.save(temporary)
