"""From the rows of a race to its numbers: rates, roofline, ratios, means, losses; and the table on the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.layers import Layer
from upscore.files import replacing

Row = dict[str, Any]


def _ms(row: Row, engine: str) -> float | None:
    value = row["engines"].get(engine, {}).get("ms")
    return None if value is None else float(value)


def _geometric_mean(values: Iterable[float]) -> float | None:
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def complete(row: Row, machine: dict[str, float], ours: str, peers: Sequence[str], backward: bool) -> None:
    """Add to a row: GFLOP/s and GB/s of each engine, the roofline time, ours over it, the best peer over ours.

    The roofline is the larger of two times: the operations at the measured rate of multiply-adds, and the bytes at
    the measured bandwidths (output written, input and weights read). The backward pass does the operations twice,
    reads the output's gradient twice, each of input and weight once, and writes their gradients. Weights with structure
    (bilinear ones, across channels a diagonal) need fewer operations than are counted, and may beat this roofline.
    """
    layer = Layer.from_dict(row["layer"])
    output = 4 * math.prod(layer.output_shape)
    inputs = layer.bytes - output
    operations = layer.operations * (2 if backward else 1)
    written, read = (inputs, inputs + 2 * output) if backward else (output, inputs)
    by_operations = operations / (machine["gflops"] * 1e6)
    by_bytes = written / (machine["write_gbs"] * 1e6) + read / (machine["read_gbs"] * 1e6)
    row |= {
        "gflop": operations / 1e9,
        "megabytes": (written + read) / 1e6,
        "roofline_ms": max(by_operations, by_bytes),
        "bound_by": "operations" if by_operations > by_bytes else "bytes",
    }
    for engine in row["engines"].values():
        if "ms" in engine:
            engine |= {"gflops": operations / engine["ms"] / 1e6, "gbs": (written + read) / engine["ms"] / 1e6}
    racing = {name: ms for name in peers if (ms := _ms(row, name)) is not None}
    mine = _ms(row, ours)
    if not racing or mine is None:
        return
    best = min(racing, key=lambda name: racing[name])
    us, them = row["engines"][ours], row["engines"][best]
    row |= {
        "over_roofline": mine / row["roofline_ms"],
        "best_peer": best,
        "best_peer_over_ours": racing[best] / mine,
        "best_peer_over_ours_by_minimum": min(row["engines"][name]["min_ms"] for name in racing) / us["min_ms"],
        "verdict": "won" if us["high_ms"] <= them["low_ms"] else "lost" if us["low_ms"] >= them["high_ms"] else "even",
    }


def summarise(rows: Sequence[Row], ours: str, peers: Sequence[str]) -> dict[str, Any]:
    """Geometric means over the rows where both ran, for all rows and for each group, and the rows not won."""
    summary: dict[str, Any] = {}
    for group in ("all", *dict.fromkeys(row["layer"]["group"] for row in rows)):
        chosen = [row for row in rows if group in ("all", row["layer"]["group"])]
        over = {
            peer: _geometric_mean(_ms(r, peer) / _ms(r, ours) for r in chosen if _ms(r, peer) and _ms(r, ours))  # type: ignore[operator]
            for peer in peers
        }
        summary[group] = {
            "rows": len(chosen),
            "best_peer_over_ours": _geometric_mean(r["best_peer_over_ours"] for r in chosen if "verdict" in r),
            "each_peer_over_ours": over,
            "over_roofline": _geometric_mean(r["over_roofline"] for r in chosen if "verdict" in r),
            "won": sum(r.get("verdict") == "won" for r in chosen),
            "even": [r["layer"]["name"] for r in chosen if r.get("verdict") == "even"],
            "lost": [r["layer"]["name"] for r in chosen if r.get("verdict") == "lost"],
        }
    return summary


def table(rows: Sequence[Row], engines: Sequence[str]) -> Table:
    """Median milliseconds of every engine, the fastest one marked; then what they mean."""
    view = Table(title="milliseconds, median of the rounds ± half the distance of the quartiles")
    view.add_column("layer", no_wrap=True)
    for name in engines:
        view.add_column(name, justify="right")
    for name in ("GFLOP/s", "GB/s", "roofline", "ours/roofline", "best/ours"):
        view.add_column(name, justify="right")
    for row in rows:
        times = {name: _ms(row, name) for name in engines}
        fastest = min((ms for ms in times.values() if ms is not None), default=None)
        cells = []
        for name, ms in times.items():
            if ms is None:
                cells.append("[red]failed[/]" if "failed" in row["engines"].get(name, {}) else "-")
                continue
            spread = (row["engines"][name]["high_ms"] - row["engines"][name]["low_ms"]) / 2
            text = f"{ms:.3g} ±{spread:.1g}"
            cells.append(f"[bold green]{text}[/]" if ms == fastest else text)
        mine = row["engines"].get(engines[0], {})
        colour = {"won": "green", "even": "yellow", "lost": "red"}.get(row.get("verdict", ""), "dim")
        cells += [f"{mine['gflops']:.0f}", f"{mine['gbs']:.1f}"] if "ms" in mine else ["-", "-"]
        cells.append(f"{row['roofline_ms']:.3g}")
        cells += (
            [f"{row['over_roofline']:.2f}", f"[{colour}]{row['best_peer_over_ours']:.2f}[/]"]
            if "verdict" in row
            else ["-", "-"]
        )
        view.add_row(row["layer"]["name"], *cells)
    return view


def show(result: dict[str, Any], console: Console) -> None:
    console.print(table(result["rows"], result["settings"]["engines"]))
    roofline = result["roofline"]
    console.print(
        f"measured limits: {roofline['gflops']:.0f} GFLOP/s, {roofline['write_gbs']:.1f} GB/s written, "
        f"{roofline['read_gbs']:.1f} GB/s read; {result['machine']['cpu']}, {result['machine']['threads']} threads"
    )
    for group, numbers in result["summary"].items():
        if numbers["best_peer_over_ours"] is None:
            continue
        each = ", ".join(f"{name} {ratio:.2f}" for name, ratio in numbers["each_peer_over_ours"].items() if ratio)
        console.print(
            f"[bold]{group}[/]: {numbers['rows']} rows, {numbers['won']} won; geometric means over ours: "
            f"best peer [bold]{numbers['best_peer_over_ours']:.2f}[/], {each}; "
            f"ours over the roofline {numbers['over_roofline']:.2f}"
        )
        for verdict in ("even", "lost"):
            if numbers[verdict]:
                console.print(f"  {verdict}: {', '.join(numbers[verdict])}")
    for row in result["rows"]:
        for name, engine in row["engines"].items():
            if "failed" in engine:
                console.print(f"[red]{row['layer']['name']}, {name}: {engine['failed']}[/]", markup=True)


def save(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
