"""``upscore models``: the networks that come with upscore, and how good they are."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from upscore import networks

__all__ = ["models"]

EXAMPLES = """
Examples:\n
  upscore models\n
  upscore models upscale-x2\n
  upscore models --json
"""


def models(
    name: Annotated[str | None, typer.Argument(help="One network: its whole card.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the networks that come with upscore, or show the card of one."""
    chosen = [networks.find(n) for n in ([name] if name is not None else networks.names())]
    facts = [{"name": n.name, "kind": n.kind, "summary": n.summary, **n.card()} for n in chosen]
    if as_json:
        typer.echo(json.dumps(facts[0] if name is not None else facts, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    if name is not None:
        table.show_header = False
        for key, value in _flat(facts[0]):
            table.add_row(f"[bold]{key}[/bold]", value)
    else:
        for heading in ("name", "what it does", "parameters", "quality"):
            table.add_column(heading, justify="right" if heading == "parameters" else "left")
        for fact in facts:
            table.add_row(
                fact["name"],
                fact["summary"],
                f"{fact['parameters']:,}" if "parameters" in fact else "-",
                _quality(fact),
            )
    Console().print(table)


def _quality(fact: dict[str, Any]) -> str:
    if psnr := fact.get("psnr"):
        return f"{psnr['network']:.2f} dB, bicubic {psnr['bicubic']:.2f} dB"
    if validation := fact.get("validation"):
        return f"mean IoU {100 * validation['mean IoU']:.1f} %"
    return "-"


def _flat(card: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in card.items():
        rows += _flat(value, f"{prefix}{key} ") if isinstance(value, dict) else [(prefix + key, str(value))]
    return rows
