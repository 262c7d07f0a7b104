"""Caffe's messages under the name of the module that protoc generates: ``caffe_pb2.NetParameter()``."""

from __future__ import annotations

from typing import Any

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from upscore.caffe import schema

Phase: Any = EnumTypeWrapper(schema.Phase)  # type: ignore[no-untyped-call,unused-ignore]
TRAIN: int = schema.TRAIN
TEST: int = schema.TEST


def __getattr__(name: str) -> Any:
    return getattr(schema, name)


def __dir__() -> list[str]:
    return dir(schema)
