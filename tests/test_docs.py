"""The code in README.md and docs/*.md runs, and commands print what the page says.

A ``python`` block is executed in the names that the blocks above it on the page left (as a doctest where it has
prompts). In a ``console`` block every ``$ upscore ...`` runs the command; what follows is its output, in which ``...``
stands for anything; spaces at ends of lines do not count. Lines with another command are for people and not run.
"""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image
from typer.testing import CliRunner

from upscore.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    kind: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """The blocks that are run, with the number of their first line of code."""
    return [Block(found[1], found[2], page[: found.start(2)].count("\n") + 1) for found in FENCE.finditer(page)]


def run_python(block: Block, path: str, names: dict[str, Any]) -> None:
    if ">>> " in block.text:
        test = doctest.DocTestParser().get_doctest(block.text, names, path, path, block.line - 1)
        outcome = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, clear_globs=False)
        names.update(test.globs)
        assert outcome.failed == 0
    else:
        exec(compile("\n" * (block.line - 1) + block.text, path, "exec"), names)


def run_console(block: Block) -> None:
    for entry in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, expected = entry.partition("\n")
        words = shlex.split(command, comments=True)
        if words[0] != "upscore":
            continue
        result = CliRunner().invoke(app, words[1:], catch_exceptions=False, env={"COLUMNS": "100"})
        assert result.exit_code == 0, command
        assert matches(expected, result.stdout), f"$ {command}\nprints\n{result.stdout}\nnot\n{expected}"


def matches(expected: str, printed: str) -> bool:
    """Nothing expected, or the same lines, where a line ``...`` stands for any number of lines."""

    def tidy(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.splitlines())

    if not expected.strip():
        return True
    pattern = re.escape(tidy(expected)).replace(re.escape("..."), ".*")
    return re.fullmatch(pattern, tidy(printed).strip("\n"), re.DOTALL) is not None


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_page_is_true(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = blocks(path.read_text(encoding="utf-8"))
    assert found or path.name != "arithmetic.md"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as for a program that stands beside its files
    Image.linear_gradient("L").resize((48, 36)).convert("RGB").save("photo.jpg")  # what pages call your photograph
    names: dict[str, Any] = {"__name__": path.stem}
    for block in found:
        if block.kind == "python":
            run_python(block, str(path), names)
        else:
            run_console(block)


def test_every_page_of_the_docs_is_looked_at() -> None:
    assert ROOT / "docs" / "arithmetic.md" in PAGES
    assert ROOT / "README.md" in PAGES


# The runner itself notices what is wrong.


def test_blocks_are_found_with_their_lines() -> None:
    page = "text\n```python\nx = 1\n```\n```sh\nmake\n```\n```console\n$ upscore --version\n```\n"
    assert blocks(page) == [Block("python", "x = 1\n", 3), Block("console", "$ upscore --version\n", 9)]


def test_names_go_from_block_to_block_and_errors_are_seen() -> None:
    names: dict[str, Any] = {}
    run_python(Block("python", "x = 1\n", 1), "page", names)
    run_python(Block("python", ">>> x + 1\n2\n>>> y = x\n", 1), "page", names)
    assert names["y"] == 1
    with pytest.raises(AssertionError):
        run_python(Block("python", "assert x == 2\n", 1), "page", names)
    with pytest.raises(AssertionError):
        run_python(Block("python", ">>> x\n2\n", 1), "page", names)


def test_wrong_output_is_seen() -> None:
    run_console(Block("console", "$ upscore size --input 2 --kernel 3\n2 x 2 -> 4 x 4\n$ make demo\n", 1))
    with pytest.raises(AssertionError, match="prints"):
        run_console(Block("console", "$ upscore size --input 2 --kernel 3\n2 x 2 -> 5 x 5\n", 1))


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("", "anything", True),
        ("a\nb\n", "a  \nb\n", True),
        ("a\n...\nc\n", "a\nb\nb\nc\n", True),
        ("a\n...\n", "a\nb\n", True),
        ("a\nc\n", "a\nb\nc\n", False),
        ("...\nc\n", "a\nb\n", False),
    ],
)
def test_matching(expected, printed, same) -> None:
    assert matches(expected, printed) is same
