"""The networks that can be trained to segment, by name, and weights to begin with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upscore.errors import ArgumentError, FileFormatError
from upscore.training.trainer import load

__all__ = ["NETWORKS", "begin_from", "build", "weights"]

NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "street": ("upscore.networks.street", "Street", {}),
    "fcn32s": ("upscore.networks.fcn", "FCN32s", {}),
    "fcn16s": ("upscore.networks.fcn", "FCN16s", {}),
    "fcn8s": ("upscore.networks.fcn", "FCN8s", {}),
    "deconvnet": ("upscore.networks.deconvnet", "DeconvNet", {}),
    "segnet": ("upscore.networks.segnet", "SegNet", {}),
    "unet": ("upscore.networks.unet", "UNet", {"channels": 3, "padded": True}),
}
"""Module, class and what is not its default; each is called with ``classes`` and options of its own."""


def build(name: str, classes: int, options: Mapping[str, Any]) -> nn.Module:
    """The network with fresh weights. Raises ArgumentError for a name or an option that there is not.

    >>> type(build("street", 11, {"width": 4})).__name__
    'Street'
    """
    if name not in NETWORKS:
        raise ArgumentError("network", f"one of {', '.join(NETWORKS)}", repr(name), "street")
    module, class_name, fixed = NETWORKS[name]
    make = getattr(import_module(module), class_name)
    known = [
        parameter.name
        for kind in reversed([cls for cls in make.__mro__ if cls.__module__ == module])
        for parameter in inspect.signature(kind).parameters.values()
        if parameter.kind == inspect.Parameter.KEYWORD_ONLY
    ]
    for option in options:
        if option not in known:
            raise ArgumentError("option", f"one of {', '.join(known)}", repr(option), f"--option {known[0]}=...")
    network: nn.Module = make(classes=classes, **fixed, **options)
    return network


def weights(path: Path) -> Mapping[str, Tensor]:
    """The ``state_dict`` in a file: safetensors, torch's, or the best of a checkpoint of training.

    Raises FileFormatError for any other file, and FileNotFoundError.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise FileFormatError(f"{path}: not weights in safetensors ({error})") from error
    state = load(path)
    best: Mapping[str, Tensor] = state.get("best", state)
    return best


def begin_from(network: nn.Module, path: Path) -> None:
    """Give ``network`` the weights of a file.

    They are its own, or torchvision's VGG-16 for an encoder (``load_vgg``), or those of a coarser FCN
    (``continue_from``). Raises FileFormatError when they are none of these.
    """
    state = weights(path)
    way = "load_state_dict"
    if "features.0.weight" in state and hasattr(network, "load_vgg"):
        way = "load_vgg"
    elif network.state_dict().keys() != state.keys() and hasattr(network, "continue_from"):
        way = "continue_from"
    with torch.no_grad():
        try:
            getattr(network, way)(state)
        except (ArgumentError, RuntimeError) as error:
            raise FileFormatError(
                f"{path}: not weights that {type(network).__name__} can begin from ({error})"
            ) from error
