"""``upscore explain``: what a layer does, in numbers and words."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upscore.cli.numbers import (
    AsJson,
    Crop,
    Dilation,
    GeometryOptions,
    OutputPadding,
    Padding,
    Rank,
    Stride,
    in_range,
    pairs_of,
)
from upscore.errors import ArgumentError, FileFormatError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["explain"]

MOST_TAPS = 2**22
EXAMPLES = """
Examples:\n
  upscore explain --input 16 --kernel 64 --stride 32\n
  upscore explain --input 2 --kernel 3 --stride 2 --crop 0:1\n
  upscore explain --input 270,480 --kernel 4 --stride 2 --padding 1 --channels 64:3\n
  upscore explain --stride 2 --padding 1 --weights layer.npy\n
  upscore explain --stride 2 --weights bilinear --json
"""


def explain(
    input: Annotated[str, typer.Option(help="Size of the input: 16, or 16,20 (one per axis).")] = "2",  # noqa: A002
    kernel: Annotated[str | None, typer.Option(help="Taps: 64, or 4,3. By default those of --weights.")] = None,
    stride: Stride = "1",
    padding: Padding = None,
    output_padding: OutputPadding = None,
    dilation: Dilation = "1",
    crop: Crop = None,
    rank: Rank = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Trained weights (C_in, C_out/groups, *K): a .npy or .safetensors file; or 'bilinear'."),
    ] = None,
    tensor: Annotated[str | None, typer.Option(help="Which tensor of the .safetensors file.")] = None,
    channels: Annotated[
        str | None, typer.Option(help="Channels in:out, for how the engine runs it. By default those of --weights.")
    ] = None,
    groups: Annotated[int, typer.Option(help="Groups of channels.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Explain a layer: sizes, overlap, kernel size, phases, coordinates, checkerboards; small cases worked out."""
    typed = GeometryOptions(
        rank,
        input=input,
        kernel=kernel,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
        crop=crop,
    )
    w = None if weights is None else _weights(weights, tensor, typed)
    geometry = typed.geometry(None if w is None else w.shape[-typed.rank :])
    given = typed.ints("input") or ()
    in_range("--input", geometry.output_size(given))
    # here and not above: `upscore --help` should not wait for numpy
    from upscore.explain import explain as explained

    pair = None if channels is None else pairs_of("--channels", channels)[0]
    found = explained(geometry, given, w, channels=pair, groups=groups)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2, allow_nan=False))
        return
    from rich.console import Console

    from upscore.explain.render import render

    Console(highlight=False).print(render(found))


def _weights(source: str, tensor: str | None, typed: GeometryOptions) -> npt.NDArray[np.float64]:
    if source == "bilinear":
        from upscore.filters import bilinear

        stride = typed.ints("stride") or (1,) * typed.rank
        if math.prod(2 * s for s in stride) > MOST_TAPS:
            expected = f"a bilinear kernel of at most {MOST_TAPS} taps"
            raise ArgumentError("--stride", expected, ",".join(map(str, stride)), "--stride 32")
        return bilinear(stride)
    path = Path(source)
    if path.suffix == ".npy":
        w = _npy(path)
    elif path.suffix == ".safetensors":
        w = _safetensors(path, tensor)
    else:
        raise ArgumentError("--weights", "a .npy or .safetensors file, or bilinear", source, "--weights layer.npy")
    if w.ndim < typed.rank or w.ndim - typed.rank not in (0, 2) or not w.size:
        expected = f"a kernel of {typed.rank} axes or a weight (C_in, C_out/groups, and {typed.rank} more)"
        raise ArgumentError("--weights", expected, f"shape {w.shape} in {source}", f"--rank {max(w.ndim - 2, 1)}")
    return w


def _npy(path: Path) -> npt.NDArray[np.float64]:
    import numpy as np

    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise FileFormatError(f"{path}: not a NumPy array file ({error})") from None
    if not isinstance(loaded, np.ndarray) or loaded.dtype.kind not in "fiu":
        raise FileFormatError(f"{path}: expected an array of real numbers, got {getattr(loaded, 'dtype', loaded)}")
    return loaded.astype(np.float64)


def _safetensors(path: Path, tensor: str | None) -> npt.NDArray[np.float64]:
    import numpy as np
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            if tensor is None and len(names) == 1:
                tensor = names[0]
            if tensor not in names:
                listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
                raise ArgumentError("--tensor", f"one of {listed}", tensor, f"--tensor {names[0] if names else 'w'}")
            return np.asarray(file.get_tensor(tensor), np.float64)
    except (SafetensorError, TypeError) as error:
        raise FileFormatError(f"{path}: not a safetensors file with NumPy's number types ({error})") from None
