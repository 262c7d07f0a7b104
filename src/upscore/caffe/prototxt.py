"""Prototxt: Caffe's messages as text (protobuf's text format).

Source: https://protobuf.dev/reference/protobuf/textformat-spec/; the parser is protobuf's own.
"""

from __future__ import annotations

import difflib
import os
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from google.protobuf import text_format

from upscore.errors import FileFormatError

__all__ = ["UnknownField", "read", "unknown_fields", "write"]

M = TypeVar("M")
_POSITION = re.compile(r"^(?:(\d+):(\d+) : )?(.*)$", re.DOTALL)


class UnknownField(NamedTuple):
    """A field that the schema does not have: its name, the message it stood in, and its line (from 1)."""

    name: str
    message: str
    line: int


def read(source: str | os.PathLike[str], message: M, *, lenient: bool = False) -> M:
    """Fill ``message`` from a prototxt, and return it.

    Args:
        source: a path, or the text itself (what contains a line break, ``{`` or ``:``, and is no file, is text).
        message: an empty message of :mod:`upscore.caffe.schema`, for example ``schema.NetParameter()``.
        lenient: pass over fields that the schema does not have, with one warning each, instead of raising.

    Raises:
        FileFormatError: naming the line and what is wrong with it.
        OSError: when the file cannot be read.

    >>> from upscore.caffe import schema
    >>> read('layer { name: "up" type: "Deconvolution" }', schema.NetParameter()).layer[0].type
    'Deconvolution'
    """
    text, where = _text(source)
    kind: Any = message
    try:
        text_format.Parse(text, kind, allow_unknown_field=lenient)
    except text_format.ParseError as error:
        raise FileFormatError(_explain(error, kind, where)) from None
    except (ValueError, OverflowError) as error:  # a number that its field cannot hold
        raise FileFormatError(f"{where}: {error}") from None
    except RecursionError:
        raise FileFormatError(f"{where}: braces are nested deeper than any net's; is it a prototxt?") from None
    if lenient:
        for name, owner, line in unknown_fields(text, kind.DESCRIPTOR):
            warnings.warn(f"{where}, line {line}: passing over {owner}.{name}, which is unknown", stacklevel=2)
    return message


def write(message: Any) -> str:
    """The message as prototxt text.

    >>> from upscore.caffe import schema
    >>> write(schema.NetState(phase=schema.TRAIN, stage=["deploy"]))
    'phase: TRAIN\\nstage: "deploy"\\n'
    """
    return str(text_format.MessageToString(message))


def unknown_fields(text: str, descriptor: Any) -> list[UnknownField]:
    """Every outermost field of a well-formed prototxt that ``descriptor`` does not have, in order."""
    tokens: Any = text_format.Tokenizer(text.splitlines())
    found: list[UnknownField] = []
    owners = [descriptor]  # None inside a field that is itself unknown
    while not tokens.AtEnd():
        if tokens.TryConsume("}") or tokens.TryConsume(">"):
            owners = owners[:-1] or [None]
            continue
        line, name = tokens.ParseError("").GetLine(), tokens.token
        tokens.NextToken()
        field = owners[-1].fields_by_name.get(name) if owners[-1] is not None else None
        if owners[-1] is not None and field is None and name.isidentifier():
            found.append(UnknownField(name, owners[-1].name, line))
        tokens.TryConsume(":")
        if tokens.TryConsume("{") or tokens.TryConsume("<"):
            owners.append(field.message_type if field is not None else None)
        else:
            _skip_value(tokens)
    return found


def _skip_value(tokens: Any) -> None:
    """Past a scalar or a bracketed list of scalars, and the separator after it."""
    depth = 0
    while not tokens.AtEnd():
        if tokens.token in "[":
            depth += 1
        elif tokens.token == "]":
            depth -= 1
        quoted = tokens.token[:1] in "\"'"
        tokens.NextToken()
        if depth == 0 and not (quoted and tokens.token[:1] in ("'", '"')):  # adjacent strings are one value
            break
    tokens.TryConsume(";") or tokens.TryConsume(",")


def _text(source: str | os.PathLike[str]) -> tuple[str, str]:
    """The text, and what to call it in an error."""
    if isinstance(source, str) and ("\n" in source or "{" in source or (":" in source and not Path(source).exists())):
        return source, "prototxt"
    # Comments in old files are in any encoding; names that matter are ASCII.
    text = Path(source).read_bytes().decode("utf-8", errors="replace").removeprefix("\ufeff")
    return text, str(source)


def _explain(error: text_format.ParseError, message: Any, where: str) -> str:
    found = _POSITION.match(str(error))
    assert found is not None
    line, _, what = found.groups()
    if what.startswith("'"):  # the parser repeats the line, which can be a whole file
        what = what.rpartition("': ")[2]
    what = what.replace('Message type "caffe.', 'message type "')
    field = re.search(r'message type "(\w+)" has no field named "(\w+)"', what)
    if field:
        owner, name = field.groups()
        what = f"{owner} has no field {name}"
        near = difflib.get_close_matches(name, _fields(message.DESCRIPTOR, owner), 1)
        what += f"; did you mean {near[0]}?" if near else "; lenient=True (--lenient) passes over it with a warning"
    return f"{where}, line {line}: {what}" if line else f"{where}: {what}"


def _fields(descriptor: Any, name: str) -> list[str]:
    return list(descriptor.file.message_types_by_name[name].fields_by_name)
