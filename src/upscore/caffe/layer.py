"""One layer of a graph: what it reads and writes, and what computes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from upscore.caffe.modules import CaffeModule
from upscore.caffe.modules.data import Source

__all__ = ["Layer"]


@dataclass
class Layer:
    """One layer of a graph.

    Attributes:
        name: its name; not necessarily its own alone.
        type: its type, as in the prototxt.
        bottoms: names of the blobs it reads.
        tops: names of the blobs it writes; a name that is also a bottom's is overwritten.
        module: what computes; ``module.blobs`` are its parameters, in Caffe's order and shapes.
        param: its ``LayerParameter``.
        lr_mult: one per blob, what the solver's learning rate is multiplied by.
        decay_mult: one per blob, what the weight decay is multiplied by.
        loss_weight: one per top, its share in the objective.
    """

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    module: CaffeModule
    param: Any
    lr_mult: list[float] = field(default_factory=list)
    decay_mult: list[float] = field(default_factory=list)
    loss_weight: list[float] = field(default_factory=list)

    @property
    def is_input(self) -> bool:
        """Whether its tops are fed from outside."""
        return isinstance(self.module, Source)

    @property
    def inplace(self) -> bool:
        """Whether it overwrites one of its bottoms."""
        return any(t in self.bottoms for t in self.tops)
