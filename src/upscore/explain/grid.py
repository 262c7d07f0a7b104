"""A grid of short cells that is never cut off: sums break into lines first, then columns into blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

__all__ = ["Grid"]


class Grid:
    """Rows of numbers or letters, for rich; a flat list is one row. Empty cells show as a dot."""

    def __init__(self, rows: Sequence[Any]) -> None:
        nested = rows if rows and isinstance(rows[0], list) else [rows]
        self._cells = [[_shown(cell) for cell in row] for row in nested]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = self._cells
        for terms in (None, 2, 1):
            cells = [[_broken(cell, terms) for cell in row] for row in self._cells]
            if sum(_widths(cells)) <= options.max_width + 1:
                break
        widths = _widths(cells)
        start = 0
        while start < len(widths):
            stop = start + 1
            while stop < len(widths) and sum(widths[start : stop + 1]) <= options.max_width + 1:
                stop += 1
            if start:
                yield Text()
            yield Text("\n".join(_lines([row[start:stop] for row in cells], widths[start:stop])), no_wrap=True)
            start = stop

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        whole = min(max(sum(_widths(self._cells)) - 1, 0), options.max_width)
        return Measurement(whole, whole)


def _shown(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell) or "·"


def _broken(cell: str, terms: int | None) -> str:
    """``a+b+c`` with at most that many terms to a line."""
    parts = cell.split("+")
    if terms is None or len(parts) <= terms or "*" not in cell:
        return cell
    return "\n+".join("+".join(parts[i : i + terms]) for i in range(0, len(parts), terms))


def _widths(cells: list[list[str]]) -> list[int]:
    """The width of every column with the space after it."""
    return [max(len(line) for cell in column for line in cell.split("\n")) + 1 for column in zip(*cells, strict=True)]


def _lines(cells: list[list[str]], widths: list[int]) -> list[str]:
    lines = []
    for row in cells:
        split = [cell.split("\n") for cell in row]
        for i in range(max(map(len, split), default=0)):
            padded = ((s[i] if i < len(s) else "").ljust(w) for s, w in zip(split, widths, strict=True))
            lines.append("".join(padded).rstrip())
    return lines
