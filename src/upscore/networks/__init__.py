"""The networks that come with upscore: a registry of names, their weights and their cards.

The weights of ``street``, for one, lie in ``weights/street.safetensors``; beside them ``street.json``, the card (what
it is, from which data, how good, made how), and ``street.pair.safetensors``, an input and the output that these
weights gave when they were made, which a test replays. This module loads no torch by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upscore.errors import ArgumentError, FileFormatError, MissingDependencyError
from upscore.networks.classes import CAMVID, Classes

if TYPE_CHECKING:
    from torch import nn

__all__ = ["WEIGHTS", "Network", "find", "names", "register"]

WEIGHTS = Path(__file__).with_name("weights")


@dataclass(frozen=True)
class Network:
    """A network by name. ``kind`` says what it does with a picture; ``module`` and ``class_name`` where it is.

    ``classes`` are those that a network of the kind "segment" tells apart.
    """

    name: str
    kind: str
    summary: str
    module: str
    class_name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: Classes | None = None

    @property
    def weights(self) -> Path:
        return WEIGHTS / f"{self.name}.safetensors"

    @property
    def pair(self) -> Path:
        """A stored input and output, for the test that replays them."""
        return WEIGHTS / f"{self.name}.pair.safetensors"

    def card(self) -> dict[str, Any]:
        """What is known about the bundled weights; empty when none are bundled."""
        path = WEIGHTS / f"{self.name}.json"
        if not path.exists():
            return {}
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return card

    def build(self) -> nn.Module:
        """The network with fresh weights. Raises MissingDependencyError without torch."""
        try:
            module = import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "torch":
                raise
            raise MissingDependencyError("torch", f"the network {self.name}", "torch") from None
        make: Callable[..., nn.Module] = getattr(module, self.class_name)
        return make(**self.options)

    def load(self, weights: Path | None = None) -> nn.Module:
        """The network with its bundled weights (or those of the file ``weights``), ready for inference."""
        network = self.build()
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = weights if weights is not None else self.weights
        try:
            network.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError) as error:
            raise FileFormatError(f"{path}: not weights of the network {self.name} ({error})") from error
        return network.eval().requires_grad_(False)


_REGISTRY: dict[str, Network] = {}


def register(network: Network) -> Network:
    """Add a network to the registry; a name can be taken once."""
    if network.name in _REGISTRY:
        raise ArgumentError("name", "a name that is not taken", repr(network.name), f"name='{network.name}-2'")
    _REGISTRY[network.name] = network
    return network


def names() -> tuple[str, ...]:
    """The names of all networks, in alphabetical order.

    >>> names()
    ('street', 'upscale-x2')
    """
    return tuple(sorted(_REGISTRY))


def find(name: str) -> Network:
    """The network of that name.

    >>> find("upscale-x2").kind
    'upscale'
    """
    try:
        return _REGISTRY[name]
    except KeyError:
        raise ArgumentError("network", f"one of {', '.join(names())}", repr(name), names()[0]) from None


register(
    Network(
        name="street",
        kind="segment",
        summary="tells what is where in a street",
        module="upscore.networks.street",
        class_name="Street",
        options={"classes": len(CAMVID)},
        classes=CAMVID,
    )
)
register(
    Network(
        name="upscale-x2",
        kind="upscale",
        summary="doubles the size of a photograph",
        module="upscore.networks.super_resolution",
        class_name="SuperResolution",
    )
)
