"""Caffe's protobuf messages as Python classes, built at import from ``fields.txt``.

``schema.NetParameter``, ``schema.LayerParameter``, ``schema.SolverParameter`` and the rest behave as the classes
of a generated ``caffe_pb2`` do. They live in a descriptor pool of their own, so a real ``caffe_pb2`` in the same
process does not collide with them.

The notation of ``fields.txt``, one fact a line::

    message PoolingParameter            a message; what is indented belongs to it
      enum PoolMethod MAX=0 AVE=1       an enumeration, inside the message
      1 pool PoolMethod = MAX           number, name, type, proto2 default
      3 test_iter int32*                repeated
      5 data float+                     repeated, packed

>>> net = NetParameter(name="tiny")
>>> net.layer.add(name="up", type="Deconvolution").convolution_param.stride.append(2)
>>> net.layer[0].convolution_param.bias_term
True
"""

from __future__ import annotations

from importlib import resources
from typing import Any

try:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
except ImportError as error:
    from upscore.errors import MissingDependencyError

    raise MissingDependencyError("protobuf", "reading Caffe files", "caffe") from error

_PACKAGE = "caffe"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "float": _Field.TYPE_FLOAT,
    "double": _Field.TYPE_DOUBLE,
    "bool": _Field.TYPE_BOOL,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
}


def _add_enum(owner: Any, words: list[str]) -> None:
    enum = owner.enum_type.add(name=words[0])
    for word in words[1:]:
        name, number = word.split("=")
        enum.value.add(name=name, number=int(number))


def _add_field(message: Any, words: list[str], enums: set[str]) -> None:
    number, name, kind, *default = words
    label = _Field.LABEL_REPEATED if kind[-1] in "*+" else _Field.LABEL_OPTIONAL
    field = message.field.add(name=name, number=int(number), label=label)
    if kind[-1] == "+":
        field.options.packed = True
    kind = kind.rstrip("*+")
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    elif kind in {e.name for e in message.enum_type}:
        field.type, field.type_name = _Field.TYPE_ENUM, f".{_PACKAGE}.{message.name}.{kind}"
    else:
        field.type = _Field.TYPE_ENUM if kind in enums else _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"
    if default:
        field.default_value = default[1]


def _describe(text: str) -> descriptor_pb2.FileDescriptorProto:
    """The notation of ``fields.txt`` as a file descriptor."""
    file = descriptor_pb2.FileDescriptorProto(name="upscore/caffe.proto", package=_PACKAGE, syntax="proto2")
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "message":
            file.message_type.add(name=words[1])
        elif words[0] == "enum":
            _add_enum(file.message_type[-1] if line[0] == " " else file, words[1:])
        else:
            _add_field(file.message_type[-1], words, {e.name for e in file.enum_type})
    return file


_file = _describe(resources.files(__package__).joinpath("fields.txt").read_text(encoding="utf-8"))
_pool = descriptor_pool.DescriptorPool()
_pool.Add(_file)

MESSAGES: dict[str, Any] = {
    m.name: message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{m.name}"))
    for m in _file.message_type
}
"""Every message class by name; each is also an attribute of this module."""

TRAIN: int = 0
TEST: int = 1
Phase = _pool.FindEnumTypeByName(f"{_PACKAGE}.Phase")


globals().update(MESSAGES)


def __getattr__(name: str) -> Any:  # reached only by names that are no message; type checkers look here
    raise AttributeError(f"module {__name__!r} has no message {name!r}")
