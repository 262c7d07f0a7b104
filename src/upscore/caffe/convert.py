"""Out of Caffe: a graph as ONNX, or as a torch module with its weights in safetensors; verified before it is kept."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import tempfile
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from upscore.caffe.graph import Graph
from upscore.caffe.torch_source import torch_source
from upscore.errors import MissingDependencyError, UpscoreError
from upscore.files import replacing

__all__ = ["ConversionError", "to_onnx", "to_torch"]

_TOLERANCE = 1e-4
"""Of the largest output, between two engines that sum in different orders through a whole net."""


class ConversionError(UpscoreError):
    """What was converted does not compute what the net computes."""


class _Outputs(nn.Module):
    """The graph as a module from its inputs to its outputs, in order."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.net = graph  # not `graph`, which is a name of torch.fx

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = self.net.outputs
        blobs = self.net(dict(zip(self.net.inputs, inputs, strict=True)), keep=outputs)
        return tuple(blobs[name] for name in outputs)


def _random_inputs(graph: Graph) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(graph.shapes[name], generator=generator) for name in graph.inputs}


def _compare(graph: Graph, inputs: Mapping[str, Tensor], found: Mapping[str, Any], where: str) -> float:
    """The largest difference relative to the largest output.

    Raises:
        ConversionError: when it is not small.
    """
    with torch.no_grad():
        expected = graph(inputs, keep=graph.outputs)
    worst = 0.0
    for name, value in expected.items():
        got, want = np.asarray(found[name], np.float64), value.numpy().astype(np.float64)
        scale = max(float(np.abs(want).max(initial=0)), 1e-30)
        difference = float(np.abs(got - want).max(initial=0)) / scale if got.shape == want.shape else np.inf
        if not difference <= _TOLERANCE:
            raise ConversionError(
                f"{where} computes something else: {name!r} differs by {difference:.3g} of its largest value "
                f"({_TOLERANCE} is allowed); nothing was written"
            )
        worst = max(worst, difference)
    return worst


def to_torch(graph: Graph, path: str | os.PathLike[str]) -> tuple[Path, float]:
    """Write the weights as ``path`` (``.safetensors``) and, beside it, the source of a torch module that loads them.

    The source is imported and run on random input first, and compared with the graph.

    Returns:
        The path of the source, and the largest relative difference.

    Raises:
        NotPlainError: when a layer has no plain torch source.
        ConversionError: when the module computes something else.
    """
    from safetensors.torch import load_file, save_file

    target = Path(path)
    source, state = torch_source(graph)
    module_path = target.with_suffix(".py")
    inputs = _random_inputs(graph)
    with replacing(target) as weights, replacing(module_path) as code:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, weights, {"format": "pt"})
        code.write_text(source, encoding="utf-8")
        net = _import(code).Net().eval()
        net.load_state_dict(load_file(weights))
        with torch.no_grad():
            outputs = net(*inputs.values())
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        worst = _compare(graph, inputs, dict(zip(graph.outputs, outputs, strict=True)), "the torch module")
    return module_path, worst


def _import(path: Path) -> Any:
    name = f"upscore_converted_{uuid.uuid4().hex}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = written
    return module


def to_onnx(graph: Graph, path: str | os.PathLike[str]) -> float:
    """Write the net as ONNX, with the shapes it has; ONNX Runtime must agree with it on random input first.

    Returns:
        The largest relative difference.

    Raises:
        MissingDependencyError: naming what is not installed.
        ConversionError: when ONNX Runtime computes something else.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, "writing ONNX", "onnx")
    inputs = _random_inputs(graph)
    program = _export(graph, inputs)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "net.onnx"
        program.save(trial, external_data=_is_large(graph))
        worst = _compare(graph, inputs, _run_onnx(graph, inputs, trial), "the ONNX model")
    if _is_large(graph):
        program.save(path, external_data=True)
    else:
        with replacing(Path(path)) as temporary:
            program.save(temporary, external_data=False)
    return worst


def _export(graph: Graph, inputs: Mapping[str, Tensor]) -> Any:
    """The net as torch's exporter writes it, without its chatter."""
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, about its own future
            return torch.onnx.export(
                _Outputs(graph).eval(),
                tuple(inputs.values()),
                dynamo=True,
                verbose=False,
                input_names=list(inputs),
                output_names=graph.outputs,
            )
    except Exception as error:  # whatever the exporter stumbles over, the net has no ONNX
        cause = error.__cause__ or error
        raise ConversionError(f"torch cannot export the net to ONNX: {str(cause).splitlines()[0]}") from error
    finally:
        quiet.setLevel(level)


def _run_onnx(graph: Graph, inputs: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    import onnxruntime  # type: ignore[import-untyped]

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        fed = {i.name: inputs[i.name].numpy() for i in session.get_inputs()}
        return dict(zip(graph.outputs, session.run(None, fed), strict=True))
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise ConversionError(f"ONNX Runtime does not run the model: {str(error).splitlines()[0]}") from error


def _is_large(graph: Graph) -> bool:
    """Whether the weights exceed what one protobuf file may hold, 2 GiB with room for the rest."""
    return sum(p.numel() * 4 for p in graph.parameters()) > 1_900_000_000
