"""``upscore size --dialect``: sizes in the words of one system."""

from __future__ import annotations

import json
from typing import Any

import typer

from upscore.cli.numbers import GeometryOptions, in_range
from upscore.errors import ArgumentError

__all__ = ["size", "solve"]


def size(system: str, given: tuple[int, ...], words: list[str], typed: GeometryOptions, as_json: bool) -> None:
    """Print the size formula of a system with the numbers of a layer in it."""
    from upscore.cli.layer_sources import typed_layer
    from upscore.dialects import Layer
    from upscore.dialects.sizes import size_formula

    layer = typed_layer(system, words, input_size=given, rank=typed.rank) if words else Layer(typed.geometry(), 1, 1)
    answer = size_formula(system, layer, given)
    reached = in_range("--input", answer.size)
    if as_json:
        data = {"system": answer.system, "formula": answer.formula, "numbers": answer.numbers}
        typer.echo(json.dumps({"input": given, "output": reached, **data}))
    else:
        typer.echo(str(answer))


def solve(system: str, given: tuple[int, ...], typed: GeometryOptions, max_kernel: int | None, as_json: bool) -> None:
    """Print which parameters of a system lead from one size to the other."""
    from upscore.dialects import sizes

    wanted = typed.ints("output")
    if wanted is None:
        raise ArgumentError("--output", "the size to reach", "none", "--output 32")
    stride, dilation = typed.ints("stride") or (1,), typed.ints("dilation") or (1,)
    answers = sizes.solve(
        system, input=given, output=wanted, stride=stride, dilation=dilation, max_kernel=max_kernel
    )  # fmt: skip
    found: list[dict[str, Any]] = [
        {"parameters": {str(k): v for k, v in a.written.parameters.items()}, "bilinear": a.bilinear} for a in answers
    ]
    if as_json:
        typer.echo(json.dumps({"system": system, "input": given, "output": wanted, "solutions": found}, indent=2))
        return
    for answer in found:
        said = "  ".join(f"{name}={value}" for name, value in answer["parameters"].items())
        typer.echo(f"{said}{'  (bilinear)' if answer['bilinear'] else ''}")
