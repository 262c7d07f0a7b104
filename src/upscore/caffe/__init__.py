"""Caffe: its files, its nets on torch, and the interface that pycaffe programs use.

``import upscore.caffe as caffe`` is the one line such a program changes. Names load what they need when
they are first used, so importing this package brings neither torch nor protobuf::

    import upscore.caffe as caffe
    from upscore.caffe import layers as L, params as P
    from upscore.caffe.coord_map import crop

Interface after pycaffe (https://github.com/BVLC/caffe/tree/master/python/caffe).
"""

from __future__ import annotations

import importlib

_HOMES = {
    "TEST": "mode",
    "TRAIN": "mode",
    "set_device": "mode",
    "set_mode_cpu": "mode",
    "set_mode_gpu": "mode",
    "set_random_seed": "mode",
    "Net": "net",
    "Layer": "python_layer",
    "layer_type_list": "net",
    "NetSpec": "net_spec",
    "to_proto": "net_spec",
    "AdaDeltaSolver": "solver",
    "AdaGradSolver": "solver",
    "AdamSolver": "solver",
    "NesterovSolver": "solver",
    "RMSPropSolver": "solver",
    "SGDSolver": "solver",
    "Solver": "solver",
    "get_solver": "solver",
    "Classifier": "classifier",
    "Detector": "classifier",
}
"""Public name -> the module of this package that holds it."""

_MODULES = ("coord_map", "io", "layers", "net_spec", "params", "proto")

__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
