"""A Caffe net as a torch module: its layers in order, its blobs by name.

Semantics after BVLC Caffe's net.cpp: layers filtered by phase, level and stage; blobs overwritten by layers that
work in place; parameters shared by name; loss weights.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from upscore.caffe import schema
from upscore.caffe.alignment import Alignment
from upscore.caffe.layer import Layer
from upscore.caffe.modules import TABLE, CaffeModule, LayerError
from upscore.caffe.modules.activation import ReLU
from upscore.caffe.modules.base import Budget, Shape, machine_memory
from upscore.caffe.modules.data import Source
from upscore.caffe.net_state import filter_layers
from upscore.caffe.upgrade import upgrade
from upscore.errors import ArgumentError

__all__ = ["Graph", "Layer"]

_MAX_BYTES = 2 << 30


class Graph(nn.Module):
    """A net built from a ``NetParameter``; autograd differentiates it.

    Args:
        net: the net; old forms are upgraded.
        phase: ``schema.TRAIN`` or ``schema.TEST``.
        level, stages: the rest of the state that ``include`` and ``exclude`` rules ask about.
        input_shapes: shapes of inputs by blob name, for those the net does not say, or to change them.
        device: ``"meta"`` builds shapes without any memory for parameters.
        max_bytes: what the parameters may take in all.
        run_python: import and run the modules that ``Python`` layers name; else those without bottoms are inputs
            and others an error.

    Raises:
        LayerError: naming the layer that cannot be built.
        FileFormatError: when the layers do not fit together.
        ArgumentError: for an input without a shape.

    >>> from upscore.caffe import prototxt
    >>> text = '''input: "data" input_dim: 1 input_dim: 1 input_dim: 2 input_dim: 2
    ... layer { name: "up" type: "Deconvolution" bottom: "data" top: "up" convolution_param {
    ...   num_output: 1 kernel_size: 3 stride: 2 bias_term: false weight_filler { value: 1 } } }'''
    >>> graph = Graph(prototxt.read(text, schema.NetParameter()))
    >>> graph({"data": torch.ones(1, 1, 2, 2)})["up"][0, 0, 0].tolist()
    [1.0, 1.0, 2.0, 1.0, 1.0]
    """

    def __init__(
        self,
        net: Any,
        phase: int = schema.TEST,
        *,
        level: int = 0,
        stages: Iterable[str] = (),
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        device: str = "cpu",
        max_bytes: int = _MAX_BYTES,
        run_python: bool = False,
    ) -> None:
        super().__init__()
        self.param = filter_layers(upgrade(net), phase, level, stages)
        self.name, self.phase = str(self.param.name), phase
        self.layers: list[Layer] = []
        self.shapes: dict[str, Shape] = {}
        """The shape of every blob, as of the construction or the last :meth:`reshape`."""
        self._budget, self._memory, self._run_python = Budget(max_bytes), Budget(machine_memory()), run_python
        self._alignment = Alignment()
        self.remarks: list[str] = []
        """What a person should know of this net, a sentence each; the command prints them."""
        self._owners: dict[str, tuple[Layer, int]] = {}
        wanted = {name: tuple(int(n) for n in shape) for name, shape in (input_shapes or {}).items()}
        with torch.device(device):
            for layer_param in self.param.layer:
                self._add(layer_param, wanted)
        self.modules_in_order = nn.ModuleList(layer.module for layer in self.layers)
        unknown = set(wanted) - {name for layer in self.layers if layer.is_input for name in layer.tops}
        if unknown:
            raise ArgumentError(
                "input_shapes",
                f"inputs of the net ({', '.join(self.inputs)})",
                ", ".join(sorted(unknown)),
                self._hint(),
            )
        self._mark_overwritable()

    # Building

    def _add(self, param: Any, wanted: Mapping[str, Shape]) -> None:
        module = self._module_class(param)(param, param.phase if param.HasField("phase") else self.phase, self._budget)
        layer = Layer(param.name, param.type, tuple(param.bottom), tuple(param.top), module, param)
        for name in layer.bottoms:
            if name not in self.shapes:
                raise module.error(f"expected a bottom that an earlier layer makes, got {name!r}")
        for i, name in enumerate(layer.tops):
            if name in layer.tops[:i]:
                raise module.error(f"expected tops of different names, got {name!r} twice")
            if name in self.shapes and name not in layer.bottoms:
                raise module.error(f"expected a top of a new name (or its own bottom, to work in place), got {name!r}")
        shapes = [self.shapes[name] for name in layer.bottoms]
        if isinstance(module, Source):
            tops = self._input_shapes(module, wanted)
        else:
            if param.type == "Crop":
                self.remarks += self._alignment.settle(module)
            module.setup(*shapes)
            tops = module.reshape(*shapes)
        self._alignment.add(module)
        self._share(layer)
        self._settle(layer)
        self._keep_shapes(layer, tops)
        self.layers.append(layer)

    def _module_class(self, param: Any) -> type[CaffeModule]:
        if param.type == "Python":
            if self._run_python:
                from upscore.caffe.python_layer import PythonModule

                return PythonModule
            if not param.bottom:
                return Source
            raise LayerError(
                f"layer {param.name!r} (Python): runs code of the module {param.python_param.module!r}; "
                "only caffe.Net (upscore caffe script.py) does that"
            )
        if param.type not in TABLE:
            raise LayerError(
                f"layer {param.name!r}: expected a known type, got {param.type!r}; "
                f"upscore.caffe.modules.register adds one, known are {', '.join(sorted(TABLE))}"
            )
        return TABLE[param.type]

    def _input_shapes(self, module: Source, wanted: Mapping[str, Shape]) -> tuple[Shape, ...]:
        shapes = []
        for name, said in zip(module.param.top, module.shapes(), strict=True):
            shape = wanted.get(name, said)
            if shape is None:
                raise ArgumentError(
                    "input_shapes",
                    f"a shape for {name!r}, which layer {module.param.name!r} ({module.param.type}) feeds without one",
                    "none",
                    f"input_shapes={{{name!r}: (1, 3, 500, 500)}} (--input {name}=1,3,500,500)",
                )
            if any(n < 0 for n in shape) or math.prod(shape) >= 2**31 or len(shape) > 32:
                raise module.error(f"expected sizes whose product is below 2^31, got {shape} for {name!r}")
            if module.param.type == "DummyData" and not self._budget.take(math.prod(shape)):
                raise module.error(f"its top {name!r} of shape {shape} exceeds what max_bytes leaves")
            shapes.append(shape)
        return tuple(shapes)

    def _share(self, layer: Layer) -> None:
        """Use the blob of the layer that first had this parameter's name."""
        blobs = layer.module.blobs
        if len(layer.param.param) > len(blobs) and not layer.is_input:
            raise layer.module.error(
                f"expected at most {len(blobs)} param, one for each blob, got {len(layer.param.param)}"
            )
        for i, spec in enumerate(layer.param.param[: len(blobs)]):
            if not spec.name:
                continue
            if spec.name not in self._owners:
                self._owners[spec.name] = (layer, i)
                continue
            owner, j = self._owners[spec.name]
            shared = owner.module.blobs[j]
            if shared.shape != blobs[i].shape:
                raise layer.module.error(
                    f"param {spec.name!r}: expected the shape {tuple(shared.shape)} that layer {owner.name!r} gave it, "
                    f"got {tuple(blobs[i].shape)}"
                )
            blobs[i] = shared

    def _settle(self, layer: Layer) -> None:
        """Learning rates and loss weights."""
        specs = list(layer.param.param)
        for i, blob in enumerate(layer.module.blobs):
            spec = specs[i] if i < len(specs) else schema.ParamSpec()
            owner = self._owners.get(spec.name) if spec.name else None
            if owner is not None and owner[0] is not layer:
                layer.lr_mult.append(owner[0].lr_mult[owner[1]])
                layer.decay_mult.append(owner[0].decay_mult[owner[1]])
                continue
            learned = layer.module.learned and blob.requires_grad
            layer.lr_mult.append(spec.lr_mult if learned else 0.0)
            layer.decay_mult.append(spec.decay_mult if learned else 0.0)
            blob.requires_grad_(learned and (spec.lr_mult != 0 or self.param.force_backward))
        weights = list(layer.param.loss_weight)
        if weights and len(weights) != len(layer.tops):
            raise layer.module.error(
                f"loss_weight: expected one for each of {len(layer.tops)} tops, got {len(weights)}"
            )
        default = [1.0 if layer.module.is_loss and i == 0 else 0.0 for i in range(len(layer.tops))]
        layer.loss_weight = weights or default

    def _keep_shapes(self, layer: Layer, tops: tuple[Shape, ...]) -> None:
        for name, shape in zip(layer.tops, tops, strict=True):
            if math.prod(shape) >= 2**31:
                raise layer.module.error(f"its top {name!r} of shape {shape} would have more than 2^31 elements")
            if torch.empty(0).device.type != "meta" and not self._memory.take(math.prod(shape)):
                raise layer.module.error(
                    f"its top {name!r} of shape {shape} makes the net's blobs exceed this machine's memory, "
                    f"{self._memory.max_bytes / 2**30:.1f} GiB; give the inputs smaller shapes"
                )
            self.shapes[name] = shape

    def _mark_overwritable(self) -> None:
        """In-place ReLUs may overwrite what a layer made afresh for them alone."""
        fresh = {"Convolution", "Deconvolution", "InnerProduct", "BatchNorm", "BN", "Scale", "Eltwise"}
        for i, layer in enumerate(self.layers[1:], 1):
            before = self.layers[i - 1]
            if isinstance(layer.module, ReLU) and layer.inplace and before.type in fresh:
                layer.module.overwrites = layer.bottoms[0] in before.tops and len(before.tops) == 1

    # Looking

    @property
    def inputs(self) -> list[str]:
        """The blobs to feed."""
        return [name for layer in self.layers if layer.is_input for name in layer.tops]

    @property
    def outputs(self) -> list[str]:
        """The blobs that no layer takes, in order."""
        open_: dict[str, None] = {}
        for layer in self.layers:
            for name in layer.bottoms:
                open_.pop(name, None)
            open_.update(dict.fromkeys(layer.tops))
        return list(open_)

    def layer(self, name: str) -> Layer:
        """The first layer of this name."""
        return self.layers[self.index(name)]

    def index(self, name: str) -> int:
        """The place of the first layer of this name.

        Raises:
            ArgumentError: when there is none, proposing similar names.
        """
        for i, layer in enumerate(self.layers):
            if layer.name == name:
                return i
        names = [layer.name for layer in self.layers]
        near = difflib.get_close_matches(name, names, 3) or names[:3]
        raise ArgumentError("layer", "the name of a layer", repr(name), ", ".join(near))

    def _hint(self) -> str:
        name = next(iter(self.inputs), "data")
        return f"input_shapes={{{name!r}: {self.shapes.get(name, (1, 3, 500, 500))}}}"

    # Running

    def for_inference(self) -> Graph:
        """Arrange the weights of 2-D convolutions channels last, which torch convolves faster; returns the graph.

        What NumPy views of the parameters were taken before keep the old memory.
        """
        for layer in self.layers:
            if layer.type == "Convolution":
                for blob in layer.module.blobs:
                    if blob.ndim == 4:
                        blob.data = blob.data.contiguous(memory_format=torch.channels_last)
        return self.eval()

    def reshape(self, input_shapes: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
        """The shapes of all blobs with inputs of these shapes; kept in :attr:`shapes`.

        Raises:
            LayerError: naming the layer that cannot take them; the old shapes stay.
        """
        shapes = {**self.shapes, **{name: tuple(int(n) for n in shape) for name, shape in input_shapes.items()}}
        for layer in self.layers:
            if not layer.is_input:
                shapes.update(zip(layer.tops, layer.module.reshape(*(shapes[b] for b in layer.bottoms)), strict=True))
        self.shapes = shapes
        return shapes

    def run_layer(self, layer: Layer, blobs: dict[str, Tensor]) -> None:
        """Run one layer: its tops are put into ``blobs``.

        Raises:
            LayerError: when the bottoms have shapes that the layer cannot take.
        """
        bottoms = [blobs[name] for name in layer.bottoms]
        layer.module.reshape(*(tuple(b.shape) for b in bottoms))
        blobs.update(zip(layer.tops, layer.module(*bottoms), strict=True))

    def forward(
        self,
        inputs: Mapping[str, Tensor] | Tensor | None = None,
        *,
        start: str | None = None,
        end: str | None = None,
        keep: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """Run the net, or the layers from ``start`` to ``end``, both included.

        Args:
            inputs: blobs by name: those of the inputs, and of whatever ``start`` needs; or the only input.
            start, end: names of layers.
            keep: blobs to return; others are let go as soon as nothing needs them. All by default.

        Returns:
            Blobs by name, each as the last layer that wrote it left it.

        Raises:
            ArgumentError: for a missing input or an unknown layer.
            LayerError: for inputs of shapes that the net cannot take.
        """
        blobs = self._fed(inputs)
        first = 0 if start is None else self.index(start)
        last = len(self.layers) - 1 if end is None else self.index(end)
        run = self.layers[first : last + 1]
        ends = {} if keep is None else {name: i for i, layer in enumerate(run) for name in layer.bottoms}
        for i, layer in enumerate(run):
            if layer.is_input and all(name in blobs for name in layer.tops):
                continue
            if layer.is_input and layer.type == "DummyData":
                blobs = {**dict(zip(layer.tops, layer.module(), strict=True)), **blobs}
                continue
            missing = [name for name in (layer.tops if layer.is_input else layer.bottoms) if name not in blobs]
            if missing:
                if layer.is_input and not self._needed(missing, run[i + 1 :]):
                    continue
                raise ArgumentError("inputs", f"a blob for {missing[0]!r}", ", ".join(blobs) or "none", self._hint())
            self.run_layer(layer, blobs)
            if keep is not None:
                for name in (*layer.bottoms, *layer.tops):
                    if ends.get(name, -1) <= i and name not in keep:
                        blobs.pop(name, None)
        return blobs if keep is None else {name: blobs[name] for name in keep}

    @staticmethod
    def _needed(names: Sequence[str], layers: Sequence[Layer]) -> bool:
        return any(name in layer.bottoms for layer in layers for name in names)

    def _fed(self, inputs: Mapping[str, Tensor] | Tensor | None) -> dict[str, Tensor]:
        if isinstance(inputs, Tensor):
            if len(self.inputs) != 1:
                raise ArgumentError("inputs", f"blobs by name for {self.inputs}", "one tensor", "{'data': tensor}")
            return {self.inputs[0]: inputs}
        return dict(inputs or {})

    def loss(self, blobs: Mapping[str, Tensor]) -> Tensor:
        """The objective: every top times its loss weight, summed."""
        total = torch.zeros(())
        for layer in self.layers:
            for name, weight in zip(layer.tops, layer.loss_weight, strict=True):
                if weight and name in blobs:
                    total = total + weight * blobs[name].sum()
        return total

    # Weights

    def named_blobs(self) -> dict[str, list[nn.Parameter]]:
        """Every layer's parameters by its name; of layers of one name the last, as pycaffe has it."""
        return {layer.name: list(layer.module.blobs) for layer in self.layers if len(layer.module.blobs)}

    def load(self, path: Any) -> list[str]:
        """Copy the weights of a caffemodel (binary or HDF5) into the layers of the same names.

        Returns:
            The names of layers with parameters that the file does not have; they keep what they were filled with.

        Raises:
            FileFormatError: when a layer's blobs in the file differ in number or shape, or the file is broken.
        """
        from upscore.caffe.weights import load

        return load(self, path)

    def save(self, path: Any) -> None:
        """Write the net and its weights as a caffemodel; HDF5 where the name ends in ``.h5``."""
        from upscore.caffe.weights import save

        save(self, path)
