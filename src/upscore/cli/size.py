"""``upscore size``: from an input size to an output size, back, or to the layers that lead there."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from upscore.cli import dialect_size
from upscore.cli.numbers import AsJson, Crop, Dilation, GeometryOptions, OutputPadding, Padding, Rank, Stride, in_range
from upscore.errors import ArgumentError
from upscore.geometry import Geometry, Solution

__all__ = ["size"]

EXAMPLES = """
Examples:\n
  upscore size --input 16 --kernel 64 --stride 32\n
  upscore size --input 10,12 --kernel 4,3 --stride 2 --padding 1,0:1\n
  upscore size --adjoint --input 227 --kernel 11 --stride 4\n
  upscore size --solve --input 8 --output 16 --stride 2\n
  upscore size --dialect keras --input 16 kernel_size=3 strides=2 padding=same\n
  upscore size --dialect caffe --solve --input 16 --output 500 --stride 32
"""


def size(
    input: Annotated[str, typer.Option(help="Size of the input: 16, or 16,20 (one per axis).")],  # noqa: A002
    parameters: Annotated[
        list[str] | None, typer.Argument(help="With --dialect: the layer in that system's words, name=value.")
    ] = None,
    dialect: Annotated[
        str | None, typer.Option(help="Show the formula of a system: caffe, keras, pytorch, onnx, ...")
    ] = None,
    kernel: Annotated[str | None, typer.Option(help="Taps: 64, or 4,3.")] = None,
    stride: Stride = "1",
    padding: Padding = None,
    output_padding: OutputPadding = None,
    dilation: Dilation = "1",
    crop: Crop = None,
    rank: Rank = None,
    adjoint: Annotated[bool, typer.Option("--adjoint", help="The ordinary convolution instead.")] = False,
    solve: Annotated[bool, typer.Option("--solve", help="Which layers make --input to --output?")] = False,
    output: Annotated[str | None, typer.Option(help="With --solve: the size to reach.")] = None,
    max_kernel: Annotated[int | None, typer.Option(help="With --solve: the largest kernel to list.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the size that a transposed convolution makes of an input."""
    if dialect is None and parameters:
        raise ArgumentError("--dialect", "the system whose parameters these are", None, "--dialect caffe kernel_size=4")
    typed = GeometryOptions(
        rank,
        input=input,
        kernel=kernel,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
        crop=crop,
        output=output,
    )
    given = typed.ints("input") or ()
    if solve:
        refused = {"--kernel": kernel, "--padding": padding, "--output-padding": output_padding, "--crop": crop}
        for name, value in {**refused, "--adjoint": adjoint or None}.items():
            if value is not None:
                raise ArgumentError(name, "nothing, because --solve finds it", value, "--solve --stride 2")
        if dialect is not None:
            dialect_size.solve(dialect, given, typed, max_kernel, as_json)
        else:
            _solve(given, typed, max_kernel, as_json)
        return
    for name, extra in (("--output", output), ("--max-kernel", max_kernel)):
        if extra is not None:
            raise ArgumentError(name, "--solve beside it", extra, f"--solve {name} {extra}")
    if dialect is not None:
        dialect_size.size(dialect, given, parameters or [], typed, as_json)
        return
    geometry = typed.geometry()
    reached = in_range("--input", geometry.adjoint_size(given) if adjoint else geometry.output_size(given))
    if as_json:
        typer.echo(json.dumps({"input": given, "output": reached, "adjoint": adjoint}))
    else:
        typer.echo(f"{_shown(given)} -> {_shown(reached)}")


def _solve(given: tuple[int, ...], typed: GeometryOptions, max_kernel: int | None, as_json: bool) -> None:
    wanted = typed.ints("output")
    if wanted is None:
        raise ArgumentError("--output", "the size to reach", "none", "--output 32")
    stride, dilation = typed.ints("stride") or (1,), typed.ints("dilation") or (1,)
    answers = Geometry.solve(input=given, output=wanted, stride=stride, dilation=dilation, max_kernel=max_kernel)
    if as_json:
        typer.echo(json.dumps({"input": given, "output": wanted, "solutions": [_data(a) for a in answers]}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{_shown(given)} -> {_shown(wanted)} at stride {_shown(stride)}", title_justify="left")
    for heading in ("kernel", "padding", "output padding", "crop", ""):
        table.add_column(heading)
    for answer in answers:
        table.add_row(
            _shown(answer.geometry.kernel),
            "-" if answer.padding is None else _shown(answer.padding),
            "-" if answer.output_padding is None else _shown(answer.output_padding),
            ",".join(f"{lo}:{hi}" for lo, hi in answer.geometry.crop),
            "bilinear" if answer.bilinear else "",
        )
    Console(highlight=False).print(table)


def _data(answer: Solution) -> dict[str, object]:
    return {
        "kernel": answer.geometry.kernel,
        "padding": answer.padding,
        "output_padding": answer.output_padding,
        "crop": answer.geometry.crop,
        "bilinear": answer.bilinear,
    }


def _shown(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))
