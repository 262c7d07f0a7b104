"""``caffe.Net``: a net with its blobs, as pycaffe programs use it, on the torch modules of :mod:`upscore.caffe.graph`.

Interface after caffe/python/caffe/pycaffe.py and _caffe.cpp. Unlike Caffe, which inserts Split layers where several
layers read one blob, this net has the layers and blobs of its prototxt and no others.
"""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upscore.caffe import data_layers, hdf5, prototxt, schema
from upscore.caffe.blob import Blob, ParameterBlob
from upscore.caffe.caffemodel import LayerWeights
from upscore.caffe.data_layers import Arrays
from upscore.caffe.graph import Graph, Layer
from upscore.caffe.modules import TABLE
from upscore.caffe.net_state import filter_layers
from upscore.caffe.step import Step, plan_backward
from upscore.caffe.upgrade import upgrade
from upscore.errors import ArgumentError

__all__ = ["Net", "layer_type_list"]


def layer_type_list() -> list[str]:
    """The layer types that a net may have."""
    return sorted({*TABLE, "Python"})


class Net:
    """A net in one phase, with memory for every blob.

    Layers of type HDF5Data, ImageData, ImageSegData and DenseImageData read their ``source`` where that file exists
    (:mod:`upscore.caffe.data_layers`); other data layers are blobs to fill.

    ``Net(prototxt, phase)``, ``Net(prototxt, caffemodel, phase)`` and ``Net(prototxt, phase, weights=caffemodel)``
    are the same thing, with and without weights.

    Args:
        network_file: the prototxt: a path, the text itself, or a ``NetParameter``.
        args: the phase, ``caffe.TRAIN`` or ``caffe.TEST``, with the path of the weights before it or not.
        phase: the same by name.
        level, stages: what ``include`` and ``exclude`` rules ask about.
        weights: a caffemodel (binary or HDF5) to copy from.
        input_shapes: the shapes of inputs, where a data layer does not say them.

    Attributes:
        blobs: every blob by name, in order of appearance: ``.data`` and ``.diff`` are writable NumPy views.
        params: the blobs of each layer that has any, by the layer's name: weights first, then the bias.
        inputs, outputs: the names of the tops of Input layers, and of the blobs that no layer reads.
        layers: the layers in order, each with ``.type`` and ``.blobs``.
        top_names, bottom_names: the blobs of each layer, by its name.
        learnable: every parameter once, with its ``lr_mult`` and ``decay_mult``.

    Raises:
        FileFormatError, LayerError: when the prototxt is not a net, or the weights are not its own.

    >>> import upscore.caffe as caffe
    >>> net = caffe.Net('layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 } } }'
    ...     'layer { name: "y" type: "Power" bottom: "x" top: "y" power_param { scale: 10 } }', caffe.TEST)
    >>> net.blobs["x"].data[...] = [1, 2]
    >>> net.forward()["y"].tolist()
    [10.0, 20.0]
    """

    def __init__(
        self,
        network_file: Any,
        *args: Any,
        phase: int | None = None,
        level: int = 0,
        stages: Iterable[str] | None = None,
        weights: str | os.PathLike[str] | None = None,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        if len(args) == 2 and weights is None:
            weights, args = args[0], args[1:]
        if len(args) == 1 and phase is None:
            phase, args = args[0], ()
        if args or phase not in (schema.TRAIN, schema.TEST) or isinstance(phase, bool):
            got = f"{(*args, phase)}" if args else repr(phase)
            raise ArgumentError("phase", "caffe.TRAIN or caffe.TEST", got, "caffe.Net('deploy.prototxt', caffe.TEST)")
        param = network_file
        if isinstance(param, (str, os.PathLike)):
            param = prototxt.read(param, schema.NetParameter())
        self._sources, shapes = _sources(filter_layers(upgrade(param), phase, level, stages or ()), phase)
        shapes.update(input_shapes or {})
        self._graph = Graph(param, phase, level=level, stages=stages or (), input_shapes=shapes, run_python=True)
        self.blobs: OrderedDict[str, Blob] = OrderedDict()
        self.layers = [self._step(layer) for layer in self._graph.layers]
        self._layer_names = [step.name for step in self.layers]
        self._blob_names = list(self.blobs)
        self.params = OrderedDict((step.name, step.blobs) for step in self.layers if step.blobs)
        self.layer_dict = OrderedDict(zip(self._layer_names, self.layers, strict=True))
        self.top_names = OrderedDict((step.name, list(step.tops)) for step in self.layers)
        self.bottom_names = OrderedDict((step.name, list(step.bottoms)) for step in self.layers)
        self.inputs = [name for step in self.layers if step.type == "Input" for name in step.tops]
        self.outputs = sorted(self._graph.outputs)
        self.blob_loss_weights = OrderedDict((name, 0.0) for name in self.blobs)
        for step in self.layers:
            self.blob_loss_weights.update(zip(step.tops, step.loss_weights, strict=True))
        self.learnable = self._learnable()
        plan_backward(self.layers, force=self._graph.param.force_backward)
        for step in self.layers:
            step.start_losses(self.blobs)
        if weights is not None:
            self.copy_from(weights)

    @property
    def name(self) -> str:
        """The net's name."""
        return self._graph.name

    def _step(self, layer: Layer) -> Step:
        for name in layer.tops:
            if name not in self.blobs:
                self.blobs[name] = Blob(self._graph.shapes[name])
        computes = not layer.is_input
        if layer.type == "DummyData":
            for name, value in zip(layer.tops, layer.module(), strict=True):
                self.blobs[name].take(value)
            # Constants are filled in once, so that a program may put other numbers there.
            computes = any(filler.type != "constant" for filler in layer.param.dummy_data_param.data_filler)
        return Step(
            name=layer.name,
            type=layer.type,
            module=layer.module if computes else None,
            bottoms=layer.bottoms,
            tops=layer.tops,
            loss_weights=tuple(layer.loss_weight),
            blobs=[ParameterBlob(parameter) for parameter in layer.module.blobs],
            lr_mults=tuple(layer.lr_mult),
            decay_mults=tuple(layer.decay_mult),
            propagate_down=tuple(layer.param.propagate_down),
            shapes=tuple(self._graph.shapes[name] for name in layer.bottoms),
        )

    def _learnable(self) -> list[tuple[ParameterBlob, float, float]]:
        found: dict[int, tuple[ParameterBlob, float, float]] = {}
        for step in self.layers:
            for blob, lr, decay in zip(step.blobs, step.lr_mults, step.decay_mults, strict=True):
                found.setdefault(id(blob.parameter), (blob, lr, decay))
        return list(found.values())

    # Forward.

    def forward(
        self,
        blobs: Sequence[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **inputs: ArrayLike,
    ) -> Arrays:
        """Run the net, or the layers from ``start`` to ``end``, both included.

        Args:
            blobs: names of blobs to return besides the outputs.
            start, end: names of layers.
            inputs: values for all inputs, by name, of the batch size of their blobs.

        Returns:
            The outputs (the tops of ``end`` where it is given) and ``blobs``, by name: views that the next pass
            overwrites.

        Raises:
            ArgumentError: for unknown names, or inputs of another batch size.
        """
        if inputs:
            self._fill("inputs", inputs, self.inputs, diff=False)
        first, last = self._span(start, end, 0, len(self.layers) - 1)
        self._forward(first, last)
        wanted = [*(self.outputs if end is None else self.top_names[end]), *(blobs or ())]
        return {name: self._blob(name).data for name in wanted}

    def _forward(self, start_ind: int, end_ind: int) -> float:
        """Run the layers with these numbers, both included; returns the loss of the layers that ran."""
        for index, source in self._sources.items():
            if start_ind <= index <= end_ind:
                for name, value in next(source).items():
                    self.blobs[name].reshape(*value.shape)
                    self.blobs[name].data[...] = value
        return sum(step.forward(self.blobs) for step in self.layers[start_ind : end_ind + 1])

    def forward_loss(self) -> float:
        """Run the whole net; returns its loss: every top times its loss weight, summed."""
        return self._forward(0, len(self.layers) - 1)

    def forward_all(self, blobs: Sequence[str] | None = None, **inputs: ArrayLike) -> Arrays:
        """Run the net over any number of items, batch by batch.

        Args:
            blobs: names of blobs to return besides the outputs.
            inputs: values for all inputs, by name, with any size of axis 0.

        Returns:
            The outputs and ``blobs`` by name, one row for each item.
        """
        rows: dict[str, list[NDArray[Any]]] = {}
        for batch, count in self._batches(inputs):
            for name, value in self.forward(blobs, None, None, **batch).items():
                rows.setdefault(name, []).append(value[:count].copy())
        return {name: np.concatenate(parts) for name, parts in rows.items()}

    def forward_backward_all(
        self, blobs: Sequence[str] | None = None, diffs: Sequence[str] | None = None, **values: ArrayLike
    ) -> tuple[Arrays, Arrays]:
        """:meth:`forward_all`, and :meth:`backward` from the diffs of outputs given beside the inputs, by name."""
        outs: dict[str, list[NDArray[Any]]] = {}
        grads: dict[str, list[NDArray[Any]]] = {}
        top_diffs = {name: np.asarray(v) for name, v in values.items() if name in self.outputs}
        at = 0
        for batch, count in self._batches({n: v for n, v in values.items() if n not in top_diffs}):
            for name, value in self.forward(blobs, None, None, **batch).items():
                outs.setdefault(name, []).append(value[:count].copy())
            size = {name: self.blobs[name].shape[0] for name in top_diffs}
            given = {name: _padded(v[at : at + count], size[name]) for name, v in top_diffs.items()}
            for name, value in self.backward(diffs, None, None, **given).items():
                grads.setdefault(name, []).append(value[:count].copy())
            at += count
        return tuple({n: np.concatenate(p) for n, p in found.items()} for found in (outs, grads))  # type: ignore[return-value]

    def _batches(self, inputs: Mapping[str, ArrayLike]) -> Iterator[tuple[Arrays, int]]:
        """The inputs in pieces of the net's batch size, the last filled up with zeros; and how many items are real."""
        if not inputs:
            raise ArgumentError("inputs", f"values for {', '.join(self.inputs)}", "none", "data=images")
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        total, size = len(next(iter(arrays.values()))), self._blob(next(iter(arrays))).shape[0]
        for at in range(0, total, size):
            count = min(size, total - at)
            yield {name: _padded(value[at : at + count], size) for name, value in arrays.items()}, count

    def set_input_arrays(self, data: ArrayLike, labels: ArrayLike) -> None:
        """Feed a net that begins with MemoryData: its batches go through these arrays, again and again.

        Raises:
            ArgumentError: when there is no such layer, or the number of items is no multiple of its batch size.
        """
        first = self.layers[0]
        if first.type != "MemoryData":
            raise ArgumentError("set_input_arrays", "a net whose first layer is MemoryData", first.type, "net.blobs")
        values = [np.asarray(data, dtype=np.float32), np.asarray(labels, dtype=np.float32)]
        size = self.blobs[first.tops[0]].shape[0]
        if not len(values[0]) or len(values[0]) % size or len(values[1]) != len(values[0]):
            got = f"{len(values[0])} items and {len(values[1])} labels"
            raise ArgumentError("data", f"a multiple of the batch size {size}, as many labels", got, f"{size} items")
        self._sources[0] = _endless(dict(zip(first.tops, values, strict=False)), size)

    # Backward.

    def backward(
        self,
        diffs: Sequence[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **top_diffs: ArrayLike,
    ) -> Arrays:
        """Compute gradients from the end of the net to its beginning, or from ``start`` back to ``end``.

        The diffs of parameters are added to, those of blobs overwritten. Layers that do not lead from something
        learnt to a loss are passed over, unless the net says ``force_backward: true``.

        Args:
            diffs: names of blobs whose diffs to return besides those of the inputs.
            start, end: names of layers, both included.
            top_diffs: the diffs of all outputs, by name.

        Returns:
            The diffs of the inputs (the bottoms of ``end`` where it is given) and of ``diffs``, by name.
        """
        if top_diffs:
            self._fill("top_diffs", top_diffs, self.outputs, diff=True)
        first, last = self._span(start, end, len(self.layers) - 1, 0)
        self._backward(first, last)
        wanted = [*(self.inputs if end is None else self.bottom_names[end]), *(diffs or ())]
        return {name: self._blob(name).diff for name in wanted}

    def _backward(self, start_ind: int, end_ind: int) -> None:
        """Run the layers with these numbers backward, both included."""
        steps = [step for step in self.layers[end_ind : start_ind + 1] if step.runs_backward]
        written = {name for step in steps for name in step.restart_losses(self.blobs)}
        for step in reversed(steps):
            step.backward(self.blobs, written)

    def backward_all(self) -> None:
        """Run the whole net backward."""
        self._backward(len(self.layers) - 1, 0)

    def clear_param_diffs(self) -> None:
        """Set the diffs of all parameters to zero."""
        for blob, _, _ in self.learnable:
            blob.gradient.zero_()

    # Shapes and weights.

    def reshape(self) -> None:
        """Carry the shapes of the inputs through the net, so that all blobs have those of the next pass."""
        for step in self.layers:
            step.reshape(self.blobs)

    def copy_from(self, weights: str | os.PathLike[str]) -> None:
        """Copy the weights of a caffemodel, binary or HDF5, into the layers of the same names.

        Raises:
            FileFormatError: when a layer's blobs differ in number or shape.
        """
        self._graph.load(weights)

    load_hdf5 = copy_from

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the net and its weights as a binary caffemodel (as HDF5 where the name ends in ``.h5``)."""
        self._graph.save(path)

    def save_hdf5(self, path: str | os.PathLike[str]) -> None:
        """Write the weights as an HDF5 caffemodel."""
        hdf5.write(path, [LayerWeights(s.name, s.type, [b.data for b in s.blobs]) for s in self.layers])

    def share_with(self, other: Net) -> None:
        """Use the memory of the other net's weights, layer by layer of the same name (not that of their diffs).

        Raises:
            ArgumentError: when the blobs of such a layer differ in number or shape.
        """
        for name, blobs in self.params.items():
            theirs = other.params.get(name, ())
            if theirs and len(theirs) != len(blobs):
                got = f"{len(theirs)} in the other net"
                raise ArgumentError("other", f"{len(blobs)} blobs in layer {name!r}", got, "a net of the same layers")
            for mine, shared in zip(blobs, theirs, strict=False):
                mine.share(shared)

    # Names.

    def _blob(self, name: str) -> Blob:
        if name not in self.blobs:
            raise ArgumentError("blobs", f"names of blobs ({', '.join(self.blobs)})", repr(name), "net.blobs.keys()")
        return self.blobs[name]

    def _span(self, start: str | None, end: str | None, first: int, last: int) -> tuple[int, int]:
        for argument, name in (("start", start), ("end", end)):
            if name is not None and name not in self._layer_names:
                known = ", ".join(self._layer_names)
                raise ArgumentError(argument, f"the name of a layer ({known})", repr(name), repr(self._layer_names[-1]))
        return (
            first if start is None else self._layer_names.index(start),
            last if end is None else self._layer_names.index(end),
        )

    def _fill(self, argument: str, values: Mapping[str, ArrayLike], names: Sequence[str], *, diff: bool) -> None:
        if set(values) != set(names):
            got = ", ".join(values)
            raise ArgumentError(argument, f"exactly {', '.join(names) or 'none'}", got, "assign to net.blobs instead")
        for name, given in values.items():
            blob, value = self.blobs[name], np.asarray(given)
            if value.shape[:1] != blob.shape[:1]:
                got = f"shape {value.shape}"
                raise ArgumentError(name, f"a batch for a blob of shape {blob.shape}", got, "net.blobs[...].reshape")
            (blob.diff if diff else blob.data)[...] = value


def _sources(net: Any, phase: int) -> tuple[dict[int, Iterator[Arrays]], dict[str, Sequence[int]]]:
    """The data layers that read, by their place in the net, and the shapes of their tops."""
    sources: dict[int, Iterator[Arrays]] = {}
    shapes: dict[str, Sequence[int]] = {}
    for index, layer in enumerate(net.layer):
        found = data_layers.batches(layer, phase)
        if found is not None:
            first = next(found)
            shapes.update((name, value.shape) for name, value in first.items())
            sources[index] = itertools.chain([first], found)
    return sources, shapes


def _padded(value: NDArray[Any], size: int) -> NDArray[Any]:
    missing = size - len(value)
    return np.concatenate([value, np.zeros((missing, *value.shape[1:]), value.dtype)]) if missing else value


def _endless(arrays: Arrays, size: int) -> Iterator[Arrays]:
    """Batch after batch, from the beginning again after the last."""
    total = len(next(iter(arrays.values())))
    while True:
        for at in range(0, total, size):
            yield {name: value[at : at + size] for name, value in arrays.items()}
