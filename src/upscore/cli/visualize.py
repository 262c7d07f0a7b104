"""``upscore visualize``: what a network's feature maps look for, projected back to pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upscore.errors import ArgumentError, FileFormatError, MissingDependencyError
from upscore.files import replacing

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

__all__ = ["visualize"]

EXAMPLES = """
Examples:\n
  upscore visualize deploy.prototxt conv5_3 --weights vgg16.caffemodel --images photos\n
  upscore visualize torchvision.models:alexnet features.10 --weights alexnet.safetensors --images photos\n
  upscore visualize network.pt2 encoder.3 --images photos --map 17 --map 40 -o maps.png
"""
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_TORCH_MEAN, _TORCH_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # torchvision's, of 0 to 255


def visualize(
    model: Annotated[
        str, typer.Argument(help="A .prototxt, a program of torch.export (.pt2), or module:attribute making a module.")
    ],
    layer: Annotated[str, typer.Argument(help="The layer: a submodule's path, a Caffe layer's or blob's name.")],
    images: Annotated[Path, typer.Option(help="A folder of photographs.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write.")] = Path("maps.png"),
    weights: Annotated[
        Path | None, typer.Option(help="A caffemodel, or a state_dict: .safetensors, .pt, .pth.")
    ] = None,
    maps: Annotated[
        list[int] | None, typer.Option("--map", help="A feature map. May be repeated. By default the six strongest.")
    ] = None,
    count: Annotated[int, typer.Option(help="Activations of each map, from as many photographs.")] = 9,
    size: Annotated[
        str | None, typer.Option(help="Resize photographs to rows,columns. By default what the network asks for.")
    ] = None,
    mean: Annotated[str | None, typer.Option(help="To subtract, of 0 to 255, in the network's channel order.")] = None,
    std: Annotated[str | None, typer.Option(help="To divide by after that.")] = None,
    order: Annotated[
        str | None, typer.Option(help="Channels: rgb or bgr. By default Caffe's bgr, torch's rgb.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Show what the feature maps of a layer look for: their strongest photographs, projected back to pixels."""
    if output.exists() and not force:
        raise ArgumentError("--output", "a file that is not there yet", str(output), "--force to overwrite it")
    if count < 1:
        raise ArgumentError("--count", "at least 1", count, "--count 9")
    paths = _photographs(images)
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise MissingDependencyError("torch", "upscore visualize", "torch") from None
    from upscore.explain.contact_sheet import draw
    from upscore.explain.strongest import activations_of, look_back, strongest

    network, preparation = _load(model, weights)
    preparation = preparation.changed(size, mean, std, order)
    activations = activations_of(network, layer)
    found = list(strongest(activations, _shown(paths, preparation, quiet=as_json), maps, count=count))
    rows = [[look_back(activations, preparation.tensor(paths[a.picture]), a) for a in row] for row in found]
    with replacing(output) as temporary:
        draw(rows, preparation.image, order=preparation.order).save(temporary)
    if as_json:
        facts = [
            {"map": row[0].map, "activations": [
                {"image": str(paths[a.picture]), "place": list(a.place), "value": a.value} for a in row]}
            for row in found
        ]  # fmt: skip
        typer.echo(json.dumps({"output": str(output), "maps": facts}, indent=2))
    else:
        names = ", ".join(str(row[0].map) for row in found)
        typer.echo(f"{output}: maps {names} of {layer}, over {len(paths)} photographs")


def _photographs(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ArgumentError("--images", "a folder of photographs", str(folder), "--images photos")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)
    if not paths:
        expected = f"a folder with files that end in {', '.join(sorted(_SUFFIXES))}"
        raise ArgumentError("--images", expected, f"none in {folder}", "--images photos")
    return paths


def _shown(paths: list[Path], preparation: _Preparation, *, quiet: bool) -> Iterator[Tensor]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True, quiet=quiet)
    for path in track(paths, "looking", console=console, transient=True):
        yield preparation.tensor(path)


@dataclass(frozen=True)
class _Preparation:
    """How a photograph becomes the network's input, and back."""

    channels: int
    size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    order: str

    def changed(self, size: str | None, mean: str | None, std: str | None, order: str | None) -> _Preparation:
        if order not in (None, "rgb", "bgr"):
            raise ArgumentError("--order", "rgb or bgr", repr(order), "--order rgb")
        rows_columns = None if size is None else _numbers("--size", size, (2,), "--size 224,224")
        if rows_columns is not None and any(n != int(n) or n < 1 for n in rows_columns):
            raise ArgumentError("--size", "whole numbers of at least 1", repr(size), "--size 224,224")
        deviations = self.std if std is None else _numbers("--std", std, (1, self.channels), "--std 58")
        if 0 in deviations:
            raise ArgumentError("--std", "numbers other than 0", repr(std), "--std 58")
        return _Preparation(
            self.channels,
            self.size if rows_columns is None else (int(rows_columns[0]), int(rows_columns[1])),
            self.mean if mean is None else _numbers("--mean", mean, (1, self.channels), "--mean 104,117,123"),
            deviations,
            order or self.order,
        )

    def tensor(self, path: Path) -> Tensor:
        import numpy as np
        import torch
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as image:
                picture = image.convert("L" if self.channels == 1 else "RGB")
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise FileFormatError(f"{path}: not a photograph that can be read ({error})") from error
        if self.size is not None:
            picture = picture.resize(self.size[::-1], Image.Resampling.BILINEAR)
        x = np.asarray(picture, np.float32).reshape(picture.height, picture.width, self.channels)
        if self.order == "bgr":
            x = x[..., ::-1]
        scaled = (x - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32))

    def image(self, picture: Tensor) -> Image.Image:
        import numpy as np
        from PIL import Image

        x = picture.numpy().transpose(1, 2, 0) * np.array(self.std, np.float32) + np.array(self.mean, np.float32)
        x = np.rint(x).clip(0, 255).astype(np.uint8)
        if self.order == "bgr":
            x = x[..., ::-1]
        return Image.fromarray(np.ascontiguousarray(x[..., 0] if self.channels == 1 else x))


def _numbers(option: str, text: str, counts: Sequence[int], example: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in counts:
        expected = " or ".join(map(str, sorted(set(counts)))) + " numbers"
        raise ArgumentError(option, expected, repr(text), example)
    return numbers


def _load(model: str, weights: Path | None) -> tuple[Any, _Preparation]:
    if model.endswith(".prototxt"):
        return _caffe(Path(model), weights)
    network = _program(Path(model), weights) if model.endswith(".pt2") else _module(model, weights)
    channels, size = _input_of(network)
    mean, std = (_TORCH_MEAN, _TORCH_STD) if channels == 3 else ((127.5,), (127.5,))
    return network, _Preparation(channels, size, mean, std, "rgb")


def _caffe(path: Path, weights: Path | None) -> tuple[Any, _Preparation]:
    from upscore.caffe import prototxt, schema
    from upscore.caffe.graph import Graph
    from upscore.caffe.image import IMAGENET_MEAN

    if weights is None:
        raise ArgumentError("--weights", "the caffemodel of the prototxt", "none", "--weights net.caffemodel")
    graph = Graph(prototxt.read(path, schema.NetParameter()))
    graph.load(weights)
    shape = graph.shapes[graph.inputs[0]]
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise ArgumentError("MODEL", "an input (N, 1 or 3, H, W)", shape, "a deploy.prototxt")
    mean = IMAGENET_MEAN if shape[1] == 3 else (sum(IMAGENET_MEAN) / 3,)
    return graph, _Preparation(shape[1], (shape[2], shape[3]), mean, (1.0,), "bgr")


def _program(path: Path, weights: Path | None) -> Any:
    import torch

    if weights is not None:
        raise ArgumentError("--weights", "nothing: the program has its own", str(weights), "no --weights")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return torch.export.load(path).module()
    except Exception as error:  # whatever a broken archive makes torch raise
        raise FileFormatError(f"{path}: not a program of torch.export.save ({error})") from error


def _module(name: str, weights: Path | None) -> Any:
    import importlib
    import sys

    from torch import nn

    example = "upscore.networks.segnet:SegNet"
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ArgumentError("MODEL", "a .prototxt, a .pt2, or module:attribute", repr(name), example)
    sys.path.insert(0, "")  # modules of the folder in which the command is given
    try:
        made = importlib.import_module(module)
        for part in attribute.split("."):
            made = getattr(made, part)
    except (ImportError, AttributeError) as error:
        raise ArgumentError("MODEL", "a module and its attribute that can be imported", error, example) from error
    finally:
        sys.path.remove("")
    network = made if isinstance(made, nn.Module) else made() if callable(made) else made
    if not isinstance(network, nn.Module):
        raise ArgumentError("MODEL", "what makes a torch.nn.Module", type(network).__name__, example)
    if weights is not None:
        _load_state(network, weights)
    return network


def _load_state(network: Any, path: Path) -> None:
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except (SafetensorError, RuntimeError, TypeError, pickle.UnpicklingError, EOFError) as error:
        raise FileFormatError(f"{path}: not weights of this network ({error})") from error


def _input_of(network: Any) -> tuple[int, tuple[int, int] | None]:
    """Channels, and the size that a program was exported for."""
    import torch

    if isinstance(network, torch.fx.GraphModule):
        for node in network.graph.nodes:
            value = node.meta.get("val")
            if node.op == "placeholder" and isinstance(value, torch.Tensor) and value.dim() == 4:
                _, channels, *size = value.shape
                fixed = all(isinstance(n, int) for n in size)
                return int(channels), (int(size[0]), int(size[1])) if fixed else None
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and module.in_channels in (1, 3):
            return module.in_channels, None
    return 3, None
