"""``upscore run deploy.prototxt weights.caffemodel photo.jpg``: a Caffe model over pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from upscore.errors import ArgumentError
from upscore.files import replacing

if TYPE_CHECKING:
    from upscore.cli.runner import Options

__all__ = ["CaffeRunner", "find"]


class CaffeRunner:
    """Runs one model; class maps get the PASCAL palette."""

    ending = "_out"
    form: str | None = None

    def __init__(self, net: Path, weights: Path, options: Options) -> None:
        from upscore.caffe.image import IMAGENET_MEAN, ImageNet

        mean = IMAGENET_MEAN if options.mean is None else _mean(options.mean)
        self.net = ImageNet(net, weights, mean=mean, scale=options.scale, order=options.order, output=options.blob)
        for remark in self.net.graph.remarks:
            typer.echo(f"upscore: {remark}", err=True)

    def __call__(self, source: Path, target: Path, tick: Callable[[float], None]) -> dict[str, Any]:
        result = self.net(source)
        tick(1.0)
        image = result.image
        if image.mode == "P" and target.suffix.lower() in (".jpg", ".jpeg"):
            image = image.convert("RGB")
        with replacing(target) as temporary:
            image.save(temporary)
        notes = [f"from {result.blob}"]
        if result.classes is not None:
            notes.append(f"classes {', '.join(map(str, result.classes))}")
        return {"width": image.width, "height": image.height, "notes": notes, "classes": result.classes}


def _mean(text: str) -> str | list[float]:
    """Numbers separated by commas, or the path of a file."""
    if Path(text).exists():
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentError("--mean", "numbers, or a file that exists", repr(text), "--mean 104,117,123") from None


def find(words: list[str], options: Options) -> tuple[CaffeRunner, list[str]] | None:
    """A prototxt and a caffemodel, before the pictures."""
    if not words[0].endswith(".prototxt"):
        return None
    if len(words) < 2 or not words[1].endswith((".caffemodel", ".h5")):
        got = words[1] if len(words) > 1 else "nothing"
        raise ArgumentError("NETWORK", "the weights after the prototxt", got, f"{words[0]} net.caffemodel photo.jpg")
    return CaffeRunner(Path(words[0]), Path(words[1]), options), words[2:]
