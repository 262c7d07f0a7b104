"""What each system can say: the table of the documentation, made by asking every dialect."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from upscore.dialects import SYSTEMS, get
from upscore.dialects.layer import Layer
from upscore.dialects.translation import RefusalError
from upscore.geometry import Geometry, Pairs

__all__ = ["FEATURES", "reasons_table", "table"]


def _layer(kernel: int, stride: int, crop: Pairs = 0, *, dilation: int = 1, rank: int = 2, groups: int = 1) -> Layer:
    return Layer(Geometry(kernel, stride, dilation, crop, rank=rank), 2, 2, groups)


FEATURES: dict[str, Layer] = {
    "the same cut from both sides": _layer(4, 2, 1),
    "one position more cut after (SAME)": _layer(3, 2, ((0, 1), (0, 1))),
    "one position more cut before (output padding)": _layer(3, 2, ((1, 0), (1, 0))),
    "a stride more cut before": _layer(5, 2, ((3, 1), (3, 1))),
    "two positions more cut after": _layer(5, 2, ((0, 2), (0, 2))),
    "kernel smaller than the stride": _layer(2, 3),
    "less than a stride added after": _layer(2, 2, ((0, -1), (0, -1))),
    "a stride or more added after": _layer(2, 2, ((0, -2), (0, -2))),
    "positions added before": _layer(2, 2, ((-1, 0), (-1, 0))),
    "dilation, stride 1": _layer(3, 1, 2, dilation=2),
    "dilation with a stride": _layer(3, 2, 2, dilation=2),
    "groups": _layer(4, 2, 1, groups=2),
    "1 axis": _layer(4, 2, 1, rank=1),
    "3 axes": _layer(4, 2, 1, rank=3),
    "4 axes": _layer(4, 2, 1, rank=4),
}
"""What to ask every system for: a name and a layer that has it."""


def _answer(system: str, layer: Layer) -> tuple[str, RefusalError | None]:
    """ "yes", "slice" (the code does it with a slice or a pad, or layer by layer) or "no", and the refusal."""
    try:
        get(system).write(layer)
    except RefusalError as refusal:
        try:
            get(system).code(layer)
        except RefusalError:
            return "no", refusal
        return "slice", refusal
    return "yes", None


def table() -> str:
    """One row per feature, one column per system, in Markdown."""
    names = [get(system).SYSTEM for system in SYSTEMS]
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for feature, layer in FEATURES.items():
        cells = [_answer(system, layer)[0] for system in SYSTEMS]
        lines.append(f"| {feature} | {' | '.join(cells)} |")
    return "\n".join(lines)


def reasons_table() -> str:
    """Every refusal of the table with its reason and what comes closest, in Markdown."""
    lines = ["| system | layer | why not | closest |", "|---|---|---|---|"]
    for system in SYSTEMS:
        for feature, layer in FEATURES.items():
            refusal = _answer(system, layer)[1]
            if refusal is not None:
                why = f"`{refusal.argument}`: takes {refusal.expected}, here {refusal.got}"
                lines.append(f"| {refusal.system} | {feature} | {why} | {refusal.closest} |")
    return "\n".join(lines)


def renew(document: Path) -> None:
    """Put both tables into a Markdown file: where ``<!-- table: generated -->`` and ``reasons`` mark them."""
    text = document.read_text(encoding="utf-8")
    for name, made in (("table", table()), ("reasons", reasons_table())):
        marks = rf"(<!-- {name}: generated -->\n\n).*?(\n\n<!-- end -->)"
        text = re.sub(marks, lambda m, made=made: f"{m[1]}{made}{m[2]}", text, flags=re.S)  # type: ignore[misc]
    document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    renew(Path(sys.argv[1]))
