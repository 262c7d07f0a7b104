"""``upscore caffe``: look into Caffe models, convert them, and run programs written for pycaffe."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upscore.errors import ArgumentError

if TYPE_CHECKING:
    from upscore.caffe.graph import Graph

__all__ = ["app"]


class _Group(typer.core.TyperGroup):
    """``upscore caffe something.py`` is ``upscore caffe script something.py``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0].endswith(".py"):
            args = ["script", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    help="Caffe models: show, convert; or run an unchanged pycaffe program: upscore caffe program.py",
    epilog="""
Examples:\n
  upscore caffe show deploy.prototxt --input data=1,3,500,500\n
  upscore caffe convert deploy.prototxt net.caffemodel -o net.onnx\n
  upscore caffe convert deploy.prototxt net.caffemodel -o net.safetensors\n
  upscore caffe eval.py --any-option-of-its-own
""",
)

_Net = Annotated[Path, typer.Argument(help="The net: a prototxt.", show_default=False)]
_Inputs = Annotated[
    list[str] | None, typer.Option("--input", help="The shape of an input: data=1,3,500,500. May be repeated.")
]
_Train = Annotated[bool, typer.Option("--train", help="The net of the TRAIN phase (TEST otherwise).")]
_Lenient = Annotated[bool, typer.Option("--lenient", help="Warn of unknown fields instead of stopping.")]


def _shapes(inputs: list[str] | None) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for text in inputs or ():
        name, _, sizes = text.partition("=")
        try:
            shapes[name] = tuple(int(n) for n in sizes.split(","))
        except ValueError:
            raise ArgumentError("--input", "a name and sizes", repr(text), "--input data=1,3,500,500") from None
    return shapes


def _graph(net: Path, inputs: list[str] | None, train: bool, lenient: bool, device: str = "cpu") -> Graph:
    import warnings

    from upscore.caffe import prototxt, schema
    from upscore.caffe.graph import Graph

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        param = prototxt.read(net, schema.NetParameter(), lenient=lenient)
    for warning in said:
        typer.echo(f"upscore: {warning.message}", err=True)
    phase = schema.TRAIN if train else schema.TEST
    graph = Graph(param, phase, input_shapes=_shapes(inputs), device=device)
    for remark in graph.remarks:
        typer.echo(f"upscore: {remark}", err=True)
    return graph


@app.command()
def show(
    net: _Net,
    weights: Annotated[
        Path | None, typer.Argument(help="A caffemodel to check against it.", show_default=False)
    ] = None,
    inputs: _Inputs = None,
    train: _Train = False,
    lenient: _Lenient = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a net's layers with shapes, parameters and receptive fields. Takes no memory for the weights."""
    from upscore.caffe.receptive_field import receptive_fields

    graph = _graph(net, inputs, train, lenient, "meta")
    missing = graph.load(weights) if weights is not None else None
    views = receptive_fields(graph)
    rows = []
    for layer in graph.layers:
        top = layer.tops[0] if layer.tops else None
        rows.append(
            {
                "name": layer.name,
                "type": layer.type,
                "bottoms": list(layer.bottoms),
                "tops": list(layer.tops),
                "shapes": [list(graph.shapes[t]) for t in layer.tops],
                "parameters": sum(math.prod(b.shape) for b in layer.module.blobs),
                "receptive_field": str(views[top]) if top in views else None,
                "stride": [float(s) for s in views[top].stride] if top in views else None,
            }
        )
    total = sum(p.numel() for p in graph.parameters())
    if as_json:
        print(json.dumps({"name": graph.name, "layers": rows, "parameters": total, "not_in_weights": missing}))
        return
    _print(graph, rows, total, missing)


def _print(graph: Graph, rows: list[dict[str, Any]], total: int, missing: list[str] | None) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(graph.name) or None, box=None, pad_edge=False)
    for heading in ("layer", "type", "reads", "writes", "shape"):
        table.add_column(heading, overflow="fold")
    for heading in ("parameters", "sees", "every"):
        table.add_column(heading, justify="right")
    for row in rows:
        shapes = ", ".join("x".join(map(str, s)) or "scalar" for s in row["shapes"])
        strides = sorted(set(row["stride"] or ()))
        table.add_row(
            escape(row["name"]),
            escape(row["type"]),
            escape(", ".join(row["bottoms"])),
            escape(", ".join(row["tops"])),
            shapes,
            f"{row['parameters']:,}" if row["parameters"] else "",
            row["receptive_field"] or "",
            ", ".join(f"{s:g}" for s in strides),
        )
    console = Console()
    console.print(table)
    console.print(f"{len(rows)} layers, {total:,} parameters ({total * 4 / 2**20:,.1f} MiB)")
    if missing is not None:
        console.print(
            f"the weights fit; not in the file: {escape(', '.join(missing))}"
            if missing
            else "the weights fit, all of them"
        )


@app.command()
def convert(
    net: _Net,
    weights: Annotated[Path, typer.Argument(help="Its weights: a caffemodel, binary or HDF5.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to: .onnx, .safetensors, .caffemodel or .h5.")],
    inputs: _Inputs = None,
    lenient: _Lenient = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Convert a model: to ONNX, to torch (.safetensors and a .py that loads it), or to Caffe's other format.

    The result is run on random input and compared with the net before it is kept.
    """
    kinds = (".onnx", ".safetensors", ".caffemodel", ".h5")
    if output.suffix not in kinds:
        raise ArgumentError("--output", f"a name that ends in {', '.join(kinds)}", str(output), "-o net.onnx")
    module = output.with_suffix(".py")
    for path in (output, module) if output.suffix == ".safetensors" else (output,):
        if path.exists() and not force:
            raise ArgumentError("--output", "a file that is not there yet", str(path), "--force to overwrite it")
    graph = _graph(net, inputs, False, lenient)
    for name in graph.load(weights):
        typer.echo(f"upscore: {weights} has no weights for layer {name!r}; it keeps what it was filled with", err=True)
    if output.suffix == ".onnx":
        from upscore.caffe.convert import to_onnx

        worst = to_onnx(graph, output)
        typer.echo(f"{output}: ONNX Runtime agrees to {worst:.1e} of the largest output")
    elif output.suffix == ".safetensors":
        from upscore.caffe.convert import to_torch

        module, worst = to_torch(graph, output)
        typer.echo(f"{output} and {module}: the torch module agrees to {worst:.1e} of the largest output")
    else:
        graph.save(output)
        typer.echo(f"{output}: {sum(p.numel() for p in graph.parameters()):,} parameters")


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
def script(
    program: Annotated[Path, typer.Argument(help="A Python program that imports caffe.", show_default=False)],
    ctx: typer.Context,
) -> None:
    """Run an unchanged pycaffe program, with upscore in the place of Caffe. ``script`` may be left out."""
    from upscore.caffe.script import run

    run(program, ctx.args)
