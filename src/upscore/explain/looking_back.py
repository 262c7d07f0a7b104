"""Looking back through a network: Zeiler and Fergus 2014, "Visualizing and understanding convolutional networks".

An activation is projected to the pixels through the transposed network: max poolings are undone with the switches of
that forward pass, signals are rectified where the network rectifies, and convolutions are transposed, with the same
weights. What is neither (batch normalisation, sums, concatenations, crops, averages) goes back as its gradient does.
The forward pass is recorded where torch calls its operators, so that any network can be looked back through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from upscore.errors import ArgumentError, UpscoreError
from upscore.nn import functional

__all__ = ["Recording"]

_aten = torch.ops.aten
_CONVOLUTIONS = {_aten.convolution.default, _aten.convolution_overrideable.default}
_POOLINGS = {_aten.max_pool2d_with_indices.default, _aten.max_pool3d_with_indices.default}
_RECTIFIERS = {_aten.relu.default, _aten.relu_.default}
_SAME = {_aten.detach.default, _aten.alias.default, _aten.lift_fresh.default}
_TRANSPOSES = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


@dataclass
class _Step:
    """One operator that was called: what went in (in-place ones: as it was before) and what came out."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[tuple[int, Tensor]]
    """Places among the flattened arguments, and the very tensors there, of what depends on the picture."""
    outputs: list[Tensor]


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A forward pass from ``picture`` on, kept so that any tensor of it can be projected back.

    The network should be in evaluation mode. A tensor that is overwritten in place must not have another view that is
    used afterwards.

    Args:
        picture: the network's input, of any shape.

    Raises:
        UpscoreError: during the forward pass, for operators that write into a part of a tensor.

    >>> layer = torch.nn.Conv2d(1, 1, 3, padding=1, bias=False)
    >>> picture = torch.ones(1, 1, 4, 5)
    >>> with Recording(picture) as recording:
    ...     activations = torch.relu(layer(picture))
    >>> recording.project(activations, torch.ones_like(activations)).shape
    torch.Size([1, 1, 4, 5])
    """

    def __init__(self, picture: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.picture = picture
        self._steps: list[_Step] = []
        self._follows = {id(picture): picture}  # the tensors stay alive with it, so that an id is one tensor's
        self._no_grad = torch.no_grad()

    def __enter__(self) -> Recording:
        self._no_grad.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._no_grad.__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves, form = tree_flatten((args, kwargs))
        inputs = [(i, leaf) for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and id(leaf) in self._follows]
        saved = list(leaves)
        if inputs and _overwrites(func, args):
            saved[0] = leaves[0].clone()
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]
        if inputs and outputs:
            kept_args, kept_kwargs = tree_unflatten(saved, form)
            self._steps.append(_Step(func, kept_args, kept_kwargs, inputs, outputs))
            self._follows.update((id(y), y) for y in outputs)
        return result

    def project(self, activations: Tensor, signal: Tensor) -> Tensor:
        """``signal``, of the shape of ``activations``, projected back; of the shape of the picture.

        Args:
            activations: a tensor of the recorded forward pass.
            signal: what is projected: zeros but for the activations of interest.

        Raises:
            ArgumentError: when ``activations`` were not recorded, or the shapes differ.
        """
        if id(activations) not in self._follows:
            expected, example = "a tensor that the recorded network made", "the output of one of its layers"
            raise ArgumentError("activations", expected, f"another of shape {tuple(activations.shape)}", example)
        if signal.shape != activations.shape:
            expected = f"the shape of activations, {tuple(activations.shape)}"
            raise ArgumentError("signal", expected, tuple(signal.shape), "torch.zeros_like(activations)")
        signals = {id(activations): signal}
        for step in reversed(self._steps):
            arriving = [signals.pop(id(y), None) for y in step.outputs]
            if all(s is None for s in arriving):
                continue
            for tensor, back in _backward(step, arriving):
                before = signals.get(id(tensor))
                signals[id(tensor)] = back if before is None else before + back
        return signals.get(id(self.picture), torch.zeros_like(self.picture))


def _overwrites(func: Any, args: Sequence[Any]) -> bool:
    """Whether the operator works in place, on its first argument.

    Raises:
        UpscoreError: when it writes elsewhere, or into a part of a tensor, whose whole would not be known to follow.
    """
    written = [i for i, a in enumerate(func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    if not written:
        return False
    whole = written == [0] and args[0].untyped_storage().nbytes() == args[0].numel() * args[0].element_size()
    if not whole:
        raise UpscoreError(
            f"the operator {func} writes into a part of a tensor or into another one, and cannot be looked back "
            "through; for example return a new tensor instead, and put the network into evaluation mode"
        )
    return True


@torch.no_grad()
def _backward(step: _Step, arriving: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor]]:
    """What goes on to each input of one operator."""
    signal = arriving[0]
    if signal is not None and len(step.inputs) == 1 and step.inputs[0][0] == 0:
        source = step.inputs[0][1]
        if step.operator in _RECTIFIERS:
            return [(source, torch.relu(signal))]
        if step.operator in _SAME:
            return [(source, signal)]
        if step.operator in _POOLINGS:
            return [(source, _unpool(signal, step.outputs[1], source))]
        if step.operator in _CONVOLUTIONS and not step.args[6]:
            return [(source, _transposed(step, signal, source))]
    return _gradient(step, arriving)


def _unpool(signal: Tensor, switches: Tensor, source: Tensor) -> Tensor:
    """Signals where the maxima came from; those of windows that overlap in one maximum add up."""
    spatial = switches.dim() - 2
    large = source.new_zeros(source.shape).flatten(-spatial)
    return large.scatter_add(-1, switches.flatten(-spatial), signal.flatten(-spatial)).view(source.shape)


def _transposed(step: _Step, signal: Tensor, source: Tensor) -> Tensor:
    _, weight, _, stride, padding, dilation, _, _, groups = step.args
    rank = weight.dim() - 2
    size = tuple(source.shape[-rank:])
    transpose = _TRANSPOSES[rank]
    return transpose(
        signal, weight.detach(), None, tuple(stride), tuple(padding), 0, groups, tuple(dilation), output_size=size
    )


def _gradient(step: _Step, arriving: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor]]:
    """The operator run again under autograd, alone."""
    leaves, form = tree_flatten((step.args, step.kwargs))
    sources = [(i, tensor) for i, tensor in step.inputs if tensor.is_floating_point()]
    variables = []
    for i, _ in sources:
        variable = leaves[i].detach().requires_grad_()
        variables.append(variable)
        leaves[i] = variable
    with torch.enable_grad():
        if _overwrites(step.operator, step.args) and variables:
            leaves[0] = leaves[0].clone()  # a leaf must not be overwritten
        args, kwargs = tree_unflatten(leaves, form)
        outputs = [y for y in tree_flatten(step.operator(*args, **kwargs))[0] if isinstance(y, Tensor)]
        pairs = [(y, s) for y, s in zip(outputs, arriving, strict=True) if s is not None and y.requires_grad]
        if not pairs:
            return []  # no gradient passes: shapes, comparisons, indices
        try:
            grads = torch.autograd.grad([y for y, _ in pairs], variables, [s for _, s in pairs], allow_unused=True)
        except RuntimeError as error:
            raise UpscoreError(f"the operator {step.operator} cannot be looked back through: {error}") from error
    return [(source, grad) for (_, source), grad in zip(sources, grads, strict=True) if grad is not None]
