"""``upscore translate``: a layer of one framework in the words of another, and the proof that they agree."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from upscore.cli.numbers import numbers
from upscore.errors import ArgumentError, UpscoreError

__all__ = ["translate"]

MOST_NUMBERS = 2**24
EXAMPLES = """
Examples:\n
  upscore translate kernel_size=4 stride=2 pad=1 num_output=3 --from caffe --to pytorch\n
  upscore translate filters=8 kernel_size=3 strides=2 padding=same --from keras --to pytorch --to onnx\n
  upscore translate deploy.prototxt --weights net.caffemodel --layer upscore2 --to tensorflow --save upscore2.npz\n
  upscore translate model.onnx --to keras --input 16,20\n
  upscore translate mymodels:unet.decoder.up1 --to jax --json
"""


def translate(
    layer: Annotated[
        list[str],
        typer.Argument(
            help="name=value parameters, or one file: .prototxt .onnx .json .param, or package.module:attribute."
        ),
    ],
    target: Annotated[list[str], typer.Option("--to", help="The system to translate to; may be repeated.")],
    source: Annotated[str | None, typer.Option("--from", help="The system whose parameters these are.")] = None,
    name: Annotated[str | None, typer.Option("--layer", help="Which layer of the file.")] = None,
    weights: Annotated[Path | None, typer.Option(help="The .caffemodel of a .prototxt.")] = None,
    input: Annotated[str | None, typer.Option(help="Size of the layer's input: 16, or 16,20.")] = None,  # noqa: A002
    c_in: Annotated[int | None, typer.Option(help="Channels of the input, where nothing else says it.")] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the translated weights to this .npz (one --to only).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file of --save.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Translate a layer: parameters, weight layout, code to paste, and a proof on random input."""
    from upscore.dialects import get

    if save is not None:
        if len(target) > 1:
            raise ArgumentError("--save", "one --to", target, "--to pytorch --save layer.npz")
        if save.exists() and not force:
            raise ArgumentError("--save", "a file that does not exist yet", save, f"--save {save} --force")
    for system in target:
        get(system)
    size = None if input is None else numbers("--input", input)
    system, found = _layer(
        layer, source, name, weights, None if size is None else size[0] if len(size) == 1 else size, c_in
    )
    answers = [_answer(found.filled(), to, size) for to in target]
    if save is not None:
        if found.weight is None:
            raise ArgumentError("--save", "a source with weights", "none", "net.prototxt --weights net.caffemodel")
        _save(save, answers[0])
    if as_json:
        typer.echo(
            json.dumps({"from": system, "layer": _described(found), "to": [_data(a) for a in answers]}, indent=2)
        )
    else:
        _print(system, found, answers)
    if any(a["refused"] for a in answers):
        raise typer.Exit(1)


def _layer(
    words: list[str], source: str | None, name: str | None, weights: Path | None, size: Any, c_in: int | None
) -> tuple[str, Any]:
    from upscore.cli import layer_sources

    if len(words) == 1 and "=" not in words[0]:
        found = layer_sources.find(words[0], weights=weights, c_in=c_in, input_size=size)
        names = [n for _, n, _ in found]
        chosen = [f for f in found if name in (None, f[1])]
        if len(chosen) != 1:
            raise ArgumentError("--layer", f"one of {', '.join(names)}", name, f"--layer {names[0]}")
        system, _, read = chosen[0]
        return system, layer_sources.understood(read)
    if source is None:
        raise ArgumentError("--from", "the system whose parameters these are", None, "--from caffe")
    return source, layer_sources.typed_layer(source, words, c_in=c_in, input_size=size)


def _answer(layer: Any, target: str, size: tuple[int, ...] | None) -> dict[str, Any]:
    """What the target says of a layer, or why it cannot."""
    from upscore.dialects import RefusalError, get
    from upscore.geometry import per_axis

    dialect = get(target)
    answer: dict[str, Any] = {"system": dialect.SYSTEM, "refused": None, "note": None, "written": None, "code": None}
    sizes = None if size is None else per_axis("--input", size[0] if len(size) == 1 else size, layer.rank, least=1)
    try:
        answer["written"] = dialect.write(layer, input_size=sizes)
    except RefusalError as refusal:
        answer["note"] = str(refusal)
    try:
        answer["written"] = answer["written"] or dialect.write(layer, input_size=sizes, allow_crop=True)
        answer["code"] = dialect.code(layer)
    except RefusalError as refusal:
        if answer["written"] is None:
            try:
                answer["code"] = dialect.code(layer)  # layer by layer, where groups are all that is missing
            except RefusalError:
                answer["refused"] = str(refusal)
    if answer["refused"] is None:
        answer["proof"] = _proof(layer, dialect, sizes)
    return answer


def _proof(layer: Any, dialect: Any, sizes: tuple[int, ...] | None) -> str:
    """Run the code on random integers, where the system can be run, and compare with the definition."""
    import numpy as np

    from upscore.errors import MissingDependencyError
    from upscore.reference import scatter

    if not hasattr(dialect, "run"):
        return f"not proved: {dialect.SYSTEM} cannot be run from here"
    n = sizes or tuple(max(4, least) for least in layer.smallest_input())
    if max(math.prod((layer.c_in, *n)), math.prod((layer.c_out, *layer.output_size(n)))) > MOST_NUMBERS:
        return "not proved: too large to try; give a smaller --input"
    draw = np.random.default_rng(0)
    x = draw.integers(-4, 5, (2, layer.c_in, *n)).astype(np.float32)
    try:
        y = dialect.run(layer, x)
    except MissingDependencyError as error:
        return f"not proved: {error.package} is not installed"
    except UpscoreError:
        raise
    except Exception as error:
        return f"not proved: {dialect.SYSTEM} does not run this here ({str(error).strip().splitlines()[0][:120]})"
    wanted = scatter(x, layer.weight, layer.bias, geometry=layer.geometry, groups=layer.groups)
    if y.shape != wanted.shape:
        return f"WRONG: {dialect.SYSTEM} gives the shape {y.shape}, expected {wanted.shape}"
    if np.array_equal(y, wanted):
        return f"proved: {dialect.SYSTEM} gives the same bits for a random input of {x.shape}"
    off = float(np.linalg.norm(y - wanted) / max(float(np.linalg.norm(wanted)), 1e-30))
    if off < 1e-5:
        return f"proved: {dialect.SYSTEM} agrees to {off:.1e} for a random input of {x.shape}"
    return f"WRONG: {dialect.SYSTEM} differs by {off:.1e} for a random input of {x.shape}"


def _described(layer: Any) -> dict[str, Any]:
    g = layer.geometry
    return {
        "kernel": g.kernel,
        "stride": g.stride,
        "dilation": g.dilation,
        "crop": g.crop,
        "c_in": layer.c_in,
        "c_out": layer.c_out,
        "groups": layer.groups,
        "bias": layer.has_bias,
    }


def _data(answer: dict[str, Any]) -> dict[str, Any]:
    written = answer["written"]
    return {
        "system": answer["system"],
        "parameters": None if written is None else {str(k): v for k, v in written.parameters.items()},
        "weights": None
        if written is None
        else {"layout": str(written.layout), "axes": written.layout.axes, "flip": written.layout.flip},
        "crop_after": None if written is None or written.is_one_layer else written.crop,
        "input_size": None if written is None else written.input_size,
        "code": answer["code"],
        "note": answer["note"],
        "refused": answer["refused"],
        "proof": answer.get("proof"),
    }


def _save(path: Path, answer: dict[str, Any]) -> None:
    import numpy as np

    from upscore.files import replacing

    written = answer["written"]
    if written is None:
        raise ArgumentError(
            "--save", "a system that can say the layer", answer["system"], "--to pytorch --save layer.npz"
        )
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **written.weights)


def _print(system: str, layer: Any, answers: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape

    from upscore.dialects import get

    console = Console(highlight=False, soft_wrap=True)
    said = ", ".join(f"{k} {v}" for k, v in _described(layer).items())
    console.print(f"[bold]{get(system).SYSTEM}[/bold] says: {escape(said)}")
    for answer in answers:
        console.print(f"\n[bold]{answer['system']}[/bold]")
        if answer["note"]:
            console.print(f"[yellow]{escape(answer['note'])}[/yellow]")
        if answer["refused"]:
            continue
        written = answer["written"]
        if written is not None:
            if written.input_size is not None:
                console.print(f"for an input of {' x '.join(map(str, written.input_size))}:")
            for name, value in written.parameters.items():
                console.print(f"  {name} = {escape(repr(value))}")
            console.print(f"weights: {escape(str(written.layout))}")
        console.print(f"\n{escape(answer['code'].rstrip())}\n")
        colour = (
            "red" if answer["proof"].startswith("WRONG") else "green" if answer["proof"].startswith("proved") else "dim"
        )
        console.print(f"[{colour}]{escape(answer['proof'])}[/{colour}]")
