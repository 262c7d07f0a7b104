"""What a segmentation is blamed for: cross-entropy at every pixel, and what the IoU lacks."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from upscore.errors import ArgumentError

__all__ = ["BALANCES", "class_weights", "cross_entropy", "lovasz_softmax"]

BALANCES = ("none", "enet", "median", "root")


def class_weights(frequencies: NDArray[np.float64], balance: str) -> Tensor:
    """A weight for each class, float32, from its share of the pixels; the mean over the pixels is 1.

    "enet": 1 / log(1.02 + p) (Paszke et al. 2016, "ENet", section 5.2). "median": the median share over the class's
    (Eigen and Fergus 2015). "root": the square root of that. "none": 1. A class without pixels has the weight 1.

    >>> class_weights(np.array([0.8, 0.2]), "median").tolist()
    [0.625, 2.5]
    """
    if balance not in BALANCES:
        raise ArgumentError("balance", f"one of {', '.join(BALANCES)}", repr(balance), "balance='enet'")
    shares = np.where(frequencies > 0, frequencies, np.nan)
    weights = {
        "none": np.ones_like(shares),
        "enet": 1 / np.log(1.02 + shares),
        "median": np.nanmedian(shares) / shares,
        "root": np.sqrt(np.nanmedian(shares) / shares),
    }[balance]
    weights /= np.nansum(weights * shares)
    return torch.from_numpy(np.where(np.isnan(weights), 1, weights)).float()


def cross_entropy(
    scores: Tensor, labels: Tensor, *, void: int, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Softmax cross-entropy of ``scores`` ``(N, classes, H, W)`` at ``labels`` ``(N, H, W)``, the mean over all pixels.

    Pixels labelled ``void`` add nothing, and count: so the mean over the parts of a batch is that of the batch.
    """
    total = F.cross_entropy(scores, labels, weights, ignore_index=void, reduction="sum", label_smoothing=smoothing)
    return total / labels.numel()


def lovasz_softmax(scores: Tensor, labels: Tensor, *, void: int) -> Tensor:
    """One minus the IoU, made convex, mean over the classes present (Berman, Triki, Blaschko 2018, "The
    Lovász-Softmax loss"), over all pixels of the batch together.

    For one class, with errors m_i = 1 - p_i inside and p_i outside, sorted to fall: sum_i m_i (J_i - J_(i-1)), where
    J_i is the Jaccard loss when exactly the first i pixels are wrong.
    """
    classes = scores.shape[1]
    known = labels != void
    truth = labels[known]
    likely = scores.softmax(1).movedim(1, -1)[known]
    losses = []
    for label in range(classes):
        inside = (truth == label).to(likely.dtype)
        if not inside.any():
            continue
        errors, order = (inside - likely[:, label]).abs().sort(descending=True)
        wrong = inside[order]
        size = wrong.sum()
        jaccard = 1 - (size - wrong.cumsum(0)) / (size + (1 - wrong).cumsum(0))
        losses.append(errors @ torch.diff(jaccard, prepend=jaccard.new_zeros(1)))
    return torch.stack(losses).mean() if losses else scores.sum() * 0
