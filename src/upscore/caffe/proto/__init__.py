"""``from upscore.caffe.proto import caffe_pb2``: where programs look for Caffe's messages."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    # ``caffe.proto.caffe_pb2`` without an import of its own, as pycaffe has it
    if name == "caffe_pb2":
        return importlib.import_module(f"{__name__}.caffe_pb2")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has caffe_pb2")
