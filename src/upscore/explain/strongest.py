"""Which pictures of a collection a feature map answers to most, and what of them it sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from upscore.errors import ArgumentError
from upscore.explain.looking_back import Recording

if TYPE_CHECKING:
    from upscore.caffe.graph import Graph

__all__ = ["Activation", "Look", "activations_of", "look_back", "strongest"]

Activations = Callable[[Tensor], Tensor]
"""From a picture ``(1, C, H, W)`` to what a layer makes of it, ``(1, maps, h, w)``."""


@dataclass(frozen=True)
class Activation:
    """One value of a feature map: in which picture, at which row and column, how large."""

    picture: int
    map: int
    place: tuple[int, int]
    value: float


@dataclass(frozen=True)
class Look:
    """An activation projected to the pixels of its picture: ``(C, H, W)`` each."""

    activation: Activation
    picture: Tensor
    projection: Tensor

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Rows and columns of the projection that are not zero: top, left, bottom, right (exclusive)."""
        seen = self.projection.abs().amax(0)
        rows, columns = (seen.amax(axis).nonzero().flatten() for axis in (1, 0))
        if not len(rows):
            return 0, 0, self.projection.shape[1], self.projection.shape[2]
        return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def activations_of(model: nn.Module | Graph, layer: str) -> Activations:
    """What ``layer`` of ``model`` makes of a picture.

    Args:
        model: a torch module, which is put into evaluation mode; a program of ``torch.export`` unlifted by its
            ``module()``, which should have been exported in that mode; or a Caffe net of
            :class:`upscore.caffe.graph.Graph`.
        layer: the path of a submodule (``features.3``), or the name of a Caffe layer or blob.

    Raises:
        ArgumentError: when there is no such layer, naming some that there are.
    """
    nodes = _exported(model) if isinstance(model, torch.fx.GraphModule) else {}
    if not nodes:  # an exported program stays in the mode it was exported in
        model.eval()
    if hasattr(model, "run_layer"):  # a Caffe net; its room is not loaded for others
        return _of_caffe(model, layer)  # type: ignore[arg-type]
    if isinstance(model, torch.fx.GraphModule) and layer in nodes:
        return _of_program(model, nodes[layer])
    modules = dict(model.named_modules())
    if layer not in modules or not layer:
        raise _unknown(layer, [name for name in nodes or modules if name])

    def run(picture: Tensor) -> Tensor:
        handle = modules[layer].register_forward_hook(_stop)
        try:
            model(picture)
        except _Reached as reached:
            return _checked(layer, reached.value)
        finally:
            handle.remove()
        raise ArgumentError("layer", "a layer that the network's forward pass calls", repr(layer), "another layer")

    return run


class _Reached(Exception):  # noqa: N818  (it is no error: what comes after the layer is not wanted)
    """The layer has been computed; nothing after it may overwrite what it made."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value


def _stop(_module: nn.Module, _inputs: object, value: object) -> None:
    raise _Reached(value)


def _unknown(layer: str, names: Sequence[str]) -> ArgumentError:
    shown = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
    return ArgumentError("layer", f"one of {shown}", repr(layer), repr(names[-1] if names else "conv1"))


def _checked(layer: str, found: object) -> Tensor:
    if not isinstance(found, Tensor) or found.dim() != 4:
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ArgumentError("layer", "a layer that makes maps (N, C, H, W)", f"{got} of {layer!r}", "a convolution")
    return found


def _of_caffe(graph: Graph, layer: str) -> Activations:
    by_layer = {each.name: i for i, each in enumerate(graph.layers)}
    by_blob = {top: i for i, each in enumerate(graph.layers) for top in each.tops}
    at = by_layer.get(layer, by_blob.get(layer))
    if at is None:
        raise _unknown(layer, list(by_layer))
    top = layer if layer not in by_layer else graph.layers[at].tops[0]

    def run(picture: Tensor) -> Tensor:
        blobs = {graph.inputs[0]: picture}
        for each in graph.layers[: at + 1]:
            if not each.is_input:
                graph.run_layer(each, blobs)
        return _checked(layer, blobs[top])

    return run


def _exported(program: torch.fx.GraphModule) -> dict[str, torch.fx.Node]:
    """The last operator of each module of an exported program, by the module's path."""
    found: dict[str, torch.fx.Node] = {}
    for node in program.graph.nodes:
        for path, _ in node.meta.get("nn_module_stack", {}).values():
            if path:
                found[path] = node
    return found


class _Until(torch.fx.Interpreter):
    """Runs a program up to one node."""

    def __init__(self, program: torch.fx.GraphModule, wanted: torch.fx.Node) -> None:
        super().__init__(program)
        self.wanted = wanted

    def run_node(self, n: torch.fx.Node) -> object:
        value = super().run_node(n)
        if n is self.wanted:
            raise _Reached(value)
        return value


def _of_program(program: torch.fx.GraphModule, node: torch.fx.Node) -> Activations:
    def run(picture: Tensor) -> Tensor:
        interpreter = _Until(program, node)
        interpreter.extra_traceback = False
        try:
            interpreter.run(picture)
        except _Reached as reached:
            return _checked(node.name, reached.value)
        raise AssertionError(f"the program ended before its node {node.name}")

    return run


@torch.no_grad()
def strongest(
    activations: Activations, pictures: Iterable[Tensor], maps: Sequence[int] | None = None, *, count: int = 9
) -> Iterator[list[Activation]]:
    """The ``count`` pictures that each of ``maps`` answers to most, strongest first, with the place in each.

    Args:
        activations: :func:`activations_of` a layer.
        pictures: ``(1, C, H, W)`` each; gone through once.
        maps: which feature maps; by default the six with the strongest activations.
        count: how many.

    Raises:
        ArgumentError: for a map that the layer does not have, or no pictures.
    """
    values, places = [], []
    for picture in pictures:
        found = activations(picture)[0]
        value, place = found.flatten(1).max(1)
        width = found.shape[2]
        values.append(value.clone())
        places.append([(int(p) // width, int(p) % width) for p in place])
    if not values:
        raise ArgumentError("pictures", "at least one", "none", "a folder of photographs")
    table = torch.stack(values)
    for map_ in maps or ():
        if not 0 <= map_ < table.shape[1]:
            raise ArgumentError("maps", f"numbers from 0 to {table.shape[1] - 1}", map_, "maps=[0]")
    if maps is None:
        maps = table.amax(0).argsort(descending=True)[:6].tolist()
    for map_ in maps:
        order = table[:, map_].argsort(descending=True, stable=True)[:count].tolist()
        yield [Activation(i, map_, places[i][map_], float(table[i, map_])) for i in order]


def look_back(activations: Activations, picture: Tensor, activation: Activation) -> Look:
    """The activation projected to the pixels of ``picture`` ``(1, C, H, W)``: all others of its layer are zero."""
    with Recording(picture) as recording:
        found = activations(picture)
    signal = torch.zeros_like(found)
    at = (0, activation.map, *activation.place)
    signal[at] = found[at]
    return Look(activation, picture[0], recording.project(found, signal)[0])
