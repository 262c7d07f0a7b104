"""The gradients of input and weight: the engines of ``peers.py`` that train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.layers import Array, Layer

Prepared = tuple[Callable[[], Any], Callable[[Any], tuple[Array, Array]]]


def upscore_ops(layer: Layer, x: Array, w: Array, b: Array, gradient: Array, threads: int) -> Prepared:
    import upscore

    upscore.cpu.set_threads(threads)
    arguments = {**peers.arguments(layer), "output_mask": (True, True, False)}
    return lambda: upscore.conv_transpose_backward(gradient, x, w, **arguments), lambda grads: (grads[0], grads[1])


def _autograd(module: Any, layer: Layer, arrays: tuple[Array, ...], channels_last: bool) -> Prepared:
    """Only the backward pass is timed: the forward ran once, and its graph is kept."""
    import torch

    x, w, b, gradient = peers.torch_arrays(arrays, channels_last)
    module = module(layer.channels_in, layer.channels_out, layer.kernel, **peers.arguments(layer))
    module.weight, module.bias = torch.nn.Parameter(w), torch.nn.Parameter(b, requires_grad=False)
    x.requires_grad_()
    y = module(x)

    def run() -> Any:
        return torch.autograd.grad(y, (x, module.weight), gradient, retain_graph=True)

    return run, lambda grads: (grads[0].contiguous().numpy(), grads[1].contiguous().numpy())


def upscore_nn(layer: Layer, x: Array, w: Array, b: Array, gradient: Array, threads: int) -> Prepared:
    return _autograd(peers.upscore_module(threads, layer), layer, (x, w, b, gradient), channels_last=False)


def upscore_nn_channels_last(layer: Layer, x: Array, w: Array, b: Array, gradient: Array, threads: int) -> Prepared:
    module = peers.upscore_module(threads, layer)
    return _autograd(module, layer, (x, w, b, gradient), channels_last=True)


def torch_contiguous(layer: Layer, x: Array, w: Array, b: Array, gradient: Array, threads: int) -> Prepared:
    return _autograd(peers.torch_module(threads, layer), layer, (x, w, b, gradient), channels_last=False)


def torch_channels_last(layer: Layer, x: Array, w: Array, b: Array, gradient: Array, threads: int) -> Prepared:
    flat = peers.flat(layer)
    if layer.rank == 1:
        x, w, gradient = x[:, :, None], w[:, :, None], gradient[:, :, None]
    run, fetch = _autograd(peers.torch_module(threads, flat), flat, (x, w, b, gradient), channels_last=True)

    def unflatten(grads: Any) -> tuple[Array, Array]:
        gx, gw = fetch(grads)
        return gx.reshape(layer.input_shape), gw.reshape(layer.weight_shape)

    return run, unflatten


OURS = {"upscore": upscore_ops, "upscore.nn": upscore_nn, "upscore.nn channels-last": upscore_nn_channels_last}
PEERS = {"torch": torch_contiguous, "torch channels-last": torch_channels_last}
ENGINES: dict[str, Callable[..., Prepared]] = OURS | PEERS


def exact(layer: Layer) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Both gradients by torch in float64."""
    import torch

    x, w, _ = (torch.from_numpy(a).double() for a in layer.arrays())
    gradient = torch.from_numpy(layer.output_gradient()).double()
    x.requires_grad_()
    w.requires_grad_()
    y = peers.torch_function(layer)(x, w, None, **peers.arguments(layer))
    gx, gw = torch.autograd.grad(y, (x, w), gradient)
    return gx.numpy(), gw.numpy()
