"""How good a segmentation is: the four metrics of the FCN paper, from one confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Confusion"]


@dataclass(frozen=True)
class Confusion:
    """``counts[i, j]`` pixels of class ``i`` were called class ``j``, an int64 array of ``(classes, classes)``.

    The metrics are those of Long, Shelhamer and Darrell 2015, section 5, with n_ij the counts and t_i the pixels of
    class i. Means are over the classes that occur: in the truth for the accuracy, in truth or answer for the IoU
    (others would be 0 / 0). Everything is NaN while nothing was counted.

    >>> confusion = Confusion.empty(2).with_pixels(np.array([0, 0, 1, 255]), np.array([0, 1, 1, 0]))
    >>> confusion.counts.tolist()
    [[1, 1], [0, 1]]
    >>> {name: round(value, 3) for name, value in confusion.metrics().items()}
    {'pixel accuracy': 0.667, 'mean accuracy': 0.75, 'mean IoU': 0.5, 'frequency weighted IoU': 0.5}
    """

    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, classes: int) -> Confusion:
        """No pixel counted yet."""
        return cls(np.zeros((classes, classes), np.int64))

    def with_pixels(self, truth: NDArray[np.integer], answer: NDArray[np.integer]) -> Confusion:
        """These pixels counted too. Those whose ``truth`` is not one of the classes are left out."""
        classes = len(self.counts)
        known = (truth >= 0) & (truth < classes)
        pairs = classes * truth[known].astype(np.int64) + answer[known]
        return Confusion(self.counts + np.bincount(pairs, minlength=classes**2).reshape(classes, classes))

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Of each class's pixels, the share called so: n_ii / t_i."""
        return _ratio(np.diag(self.counts), self.counts.sum(1))

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class: n_ii / (t_i + sum_j n_ji - n_ii)."""
        return _ratio(np.diag(self.counts), self.counts.sum(1) + self.counts.sum(0) - np.diag(self.counts))

    @property
    def pixel_accuracy(self) -> float:
        """sum_i n_ii / sum_i t_i."""
        return float(_ratio(np.trace(self.counts), self.counts.sum()))

    @property
    def mean_accuracy(self) -> float:
        """The mean over classes of n_ii / t_i."""
        return _mean(self.accuracy)

    @property
    def mean_iou(self) -> float:
        """The mean over classes of the IoU."""
        return _mean(self.iou)

    @property
    def frequency_weighted_iou(self) -> float:
        """The IoU of each class weighted by its share of the pixels: sum_i t_i IoU_i / sum_i t_i."""
        true = self.counts.sum(1)
        return float(_ratio(np.nansum(true * self.iou), true.sum()))

    def metrics(self) -> dict[str, float]:
        """The four numbers by name."""
        return {
            "pixel accuracy": self.pixel_accuracy,
            "mean accuracy": self.mean_accuracy,
            "mean IoU": self.mean_iou,
            "frequency weighted IoU": self.frequency_weighted_iou,
        }


def _ratio(above: NDArray[np.int64], below: NDArray[np.int64]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)
    return ratio


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
