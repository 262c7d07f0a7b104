"""One layer of a net in action: forward and backward between blobs, as Caffe does them.

Each layer has an autograd graph of its own, from its bottoms to its tops. That is what lets a program change a blob
or a diff between two layers, and run a part of the net, forward or backward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from upscore.caffe.blob import Blob, ParameterBlob

__all__ = ["Step", "plan_backward"]


@dataclass
class Step:
    """A layer, the names of its blobs, and what of it takes part in the backward pass."""

    name: str
    type: str
    module: Any
    """The torch module; None for a layer that only holds an input."""
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    loss_weights: tuple[float, ...]
    blobs: list[ParameterBlob]
    lr_mults: tuple[float, ...]
    decay_mults: tuple[float, ...]
    propagate_down: tuple[bool, ...] = ()
    """What the prototxt says of each bottom, or nothing."""
    shapes: tuple[tuple[int, ...], ...] = ()
    """Those of the bottoms that the layer was last shaped for."""
    runs_backward: bool = False
    wants: list[bool] = field(default_factory=list)
    """Which bottoms get a gradient."""
    learns: list[bool] = field(default_factory=list)
    """Which parameters get a gradient."""
    read_on: set[str] = field(default_factory=set)
    """The tops to which later layers send gradients."""
    _saved: tuple[list[Tensor], tuple[Tensor, ...]] | None = field(default=None, repr=False)

    def reshape(self, blobs: Mapping[str, Blob]) -> None:
        """Give the tops the shapes that follow from those of the bottoms."""
        if self.module is None:
            return
        self.shapes = tuple(blobs[name].shape for name in self.bottoms)
        for name, shape in zip(self.tops, self.module.reshape(*self.shapes), strict=True):
            blobs[name].reshape(*shape)
        self.start_losses(blobs)

    def start_losses(self, blobs: Mapping[str, Blob]) -> None:
        """Set the diffs of tops with a loss weight to it: where the backward pass begins."""
        for name, weight in zip(self.tops, self.loss_weights, strict=True):
            if weight:
                blobs[name].gradient.fill_(weight)

    def restart_losses(self, blobs: Mapping[str, Blob]) -> list[str]:
        """Do so again for tops that other layers read: their gradients were added. Returns their names."""
        names = [n for n, w in zip(self.tops, self.loss_weights, strict=True) if w and n in self.read_on]
        for name in names:
            blobs[name].gradient.fill_(self.loss_weights[self.tops.index(name)])
        return names

    def forward(self, blobs: Mapping[str, Blob]) -> float:
        """Compute the tops; returns what they add to the loss."""
        if self.module is None:
            return 0.0
        if self.shapes != tuple(blobs[name].shape for name in self.bottoms):
            self.reshape(blobs)  # raises where the layer cannot work with the new shapes
        self._saved = None  # before the pass, so that the graph of the last one is not alive beside the new
        inputs, outputs = self._compute(blobs)
        taken = {t.untyped_storage().data_ptr() for t in (*inputs, *self.module.blobs)}
        for name, output in zip(self.tops, outputs, strict=True):
            blobs[name].take(output, own=_is_new(output, taken))
        if self.runs_backward:
            self._saved = inputs, outputs
        return sum(w * float(blobs[t].tensor.sum()) for t, w in zip(self.tops, self.loss_weights, strict=True) if w)

    def _compute(self, blobs: Mapping[str, Blob]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        wants = self.wants or [False] * len(self.bottoms)
        inputs = []
        for name, want in zip(self.bottoms, wants, strict=True):
            blob = blobs[name]
            # A layer that works in place writes into memory that its gradient may still need.
            value = blob.tensor.clone() if name in self.tops and self.runs_backward and blob.held else blob.tensor
            inputs.append(value.detach().requires_grad_(want))
        for blob, learns in zip(self.blobs, self.learns, strict=False):
            blob.parameter.requires_grad_(learns)
        with torch.set_grad_enabled(self.runs_backward):
            return inputs, tuple(self.module(*inputs))

    def _changed(self, blobs: Mapping[str, Blob], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
        names = (*self.bottoms, *self.tops)
        return any(blobs[name].shape != tuple(t.shape) for name, t in zip(names, (*inputs, *outputs), strict=True))

    def backward(self, blobs: Mapping[str, Blob], written: set[str]) -> None:
        """Overwrite the diffs of the bottoms, add to those of the parameters.

        Args:
            blobs: the blobs of the net.
            written: the blobs whose diff this pass has begun: other consumers of a blob add to it.
        """
        if self._saved is None or self._changed(blobs, *self._saved):
            self._saved = self._compute(blobs)  # no pass has gone before, or not with these shapes
        inputs, outputs = self._saved
        gradients = [blobs[name].gradient for name in self.tops]
        written.difference_update(self.tops)
        follow = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad]
        bottoms = [x for x, want in zip(inputs, self.wants, strict=True) if want]
        parameters = [b for b, learns in zip(self.blobs, self.learns, strict=True) if learns]
        wanted = [*bottoms, *(b.parameter for b in parameters)]
        found: Sequence[Tensor | None] = [None] * len(wanted)
        if follow and wanted:
            found = torch.autograd.grad(
                [o for o, _ in follow],
                wanted,
                [g for _, g in follow],
                retain_graph=True,
                allow_unused=True,
            )
        names = [name for name, want in zip(self.bottoms, self.wants, strict=True) if want]
        taken = {g.untyped_storage().data_ptr() for g in gradients}
        for name, value, answer in zip(names, bottoms, found, strict=False):
            gradient = torch.zeros_like(value) if answer is None else answer
            if name in written:
                blobs[name].gradient.add_(gradient)
            else:
                blobs[name].take_gradient(gradient, own=_is_new(gradient, taken))
            written.add(name)
        for blob, answer in zip(parameters, found[len(bottoms) :], strict=True):
            if answer is not None:
                blob.gradient.add_(answer)


def _is_new(value: Tensor, taken: set[int]) -> bool:
    """Whether no other tensor has the memory of this one; its storage is then ``taken`` too."""
    storage = value.untyped_storage()
    new = storage.data_ptr() not in taken and storage.nbytes() == value.numel() * value.element_size()
    taken.add(storage.data_ptr())
    return new


def plan_backward(steps: Sequence[Step], *, force: bool) -> None:
    """Decide which layers run backward, and which bottoms and parameters get gradients.

    A bottom wants one when something under it learns. A layer runs backward when it or something under it learns
    and its tops lead to a loss. ``force`` (``force_backward``) makes everything take part.
    """
    learnt_under: set[str] = set()
    for step in steps:
        step.learns = [lr != 0 or (force and step.module.learned) for lr in step.lr_mults]
        said = step.propagate_down
        step.wants = [force or (said[i] if said else name in learnt_under) for i, name in enumerate(step.bottoms)]
        step.runs_backward = step.module is not None and (any(step.wants) or any(step.learns))
        (learnt_under.update if step.runs_backward else learnt_under.difference_update)(step.tops)
    leads_to_loss: set[str] = set()
    for step in reversed(steps):
        step.read_on = leads_to_loss.intersection(step.tops)
        if not force and not any(step.loss_weights) and not step.read_on:
            step.runs_backward = False
        if not step.runs_backward:
            step.wants = [False] * len(step.bottoms)
            step.learns = [False] * len(step.blobs)
        leads_to_loss.difference_update(step.tops)
        leads_to_loss.update(name for name, want in zip(step.bottoms, step.wants, strict=True) if want)
