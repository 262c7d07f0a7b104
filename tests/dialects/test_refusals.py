"""The tables of docs/dialects.md are what the dialects say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from upscore.dialects import SYSTEMS, RefusalError, get
from upscore.dialects.refusals import FEATURES, reasons_table, table

DOCUMENT = Path(__file__).parents[2] / "docs/dialects.md"


def part(name: str) -> str:
    found = re.search(
        rf"<!-- {name}: generated -->\n\n(.*?)\n\n<!-- end -->", DOCUMENT.read_text(encoding="utf-8"), re.S
    )
    assert found, f"docs/dialects.md has no part {name}"
    return found[1]


@pytest.mark.parametrize(("name", "make"), [("table", table), ("reasons", reasons_table)])
def test_the_documents_tables_are_the_generated_ones(name: str, make: object) -> None:
    """To renew them: python -m upscore.dialects.refusals docs/dialects.md"""
    assert part(name) == make()  # type: ignore[operator]


def test_every_cell_is_what_write_and_code_do() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table().splitlines()[2:]]
    assert len(rows) == len(FEATURES)
    for row, (name, layer) in zip(rows, FEATURES.items(), strict=True):
        assert row[0] == name
        for cell, system in zip(row[1:], SYSTEMS, strict=True):
            if cell == "yes":
                assert get(system).write(layer).is_one_layer
                continue
            with pytest.raises(RefusalError):
                get(system).write(layer)
            if cell == "no":
                with pytest.raises(RefusalError):
                    get(system).code(layer)
            else:
                assert get(system).code(layer)


def test_every_refusal_has_its_reason_in_the_second_table() -> None:
    refused = sum(line.count("| no ") + line.count("| slice ") for line in table().splitlines()[2:])
    assert len(reasons_table().splitlines()) == refused + 2


def test_every_system_has_its_row_in_the_document() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for system in SYSTEMS:
        assert re.search(rf"^\| \*\*{re.escape(get(system).SYSTEM)}\*\* \|", text, re.M), system
