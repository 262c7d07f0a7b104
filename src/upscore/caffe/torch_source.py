"""A Caffe net as plain PyTorch: the source of a module that needs torch alone, and its ``state_dict``.

Sizes of windows, crops and switches are those of the graph's shapes where torch wants numbers; everything else
follows the input.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from upscore.caffe import schema
from upscore.caffe.graph import Graph, Layer
from upscore.errors import UpscoreError

__all__ = ["NotPlainError", "torch_source"]

_HELPERS = {
    "Affine": '''
class Affine(nn.Module):
    """x * weight + bias, both laid over x from its axis `axis` on."""

    def __init__(self, shape, axis=1, weight=True, bias=False):
        super().__init__()
        self.axis = axis
        self.weight = nn.Parameter(torch.ones(shape)) if weight else None
        self.bias = nn.Parameter(torch.zeros(shape)) if bias else None

    def forward(self, x):
        def over(operand):
            after = x.ndim - self.axis - operand.ndim if operand.ndim else 0
            return operand.reshape((*operand.shape, *[1] * after))

        if self.weight is not None:
            x = x * over(self.weight)
        return x if self.bias is None else x + over(self.bias)
''',
    "unpool": '''
def unpool(x, mask, size):
    """The values of x where mask says in planes of `size`, zeros elsewhere."""
    top = x.new_zeros(*x.shape[:2], size[0] * size[1])
    return top.scatter(2, mask.flatten(2).long(), x.flatten(2)).view(*x.shape[:2], *size)
''',
    "crop": '''
def crop(x, reference, axis, offsets):
    """The window of x, from `axis` on, with the size of `reference`, beginning at `offsets`."""
    window = [slice(None)] * axis
    return x[tuple(window + [slice(o, o + n) for o, n in zip(offsets, reference.shape[axis:])])]
''',
}


class NotPlainError(UpscoreError):
    """A layer has no short equivalent in torch; the message says what to do instead."""


def torch_source(graph: Graph) -> tuple[str, dict[str, Tensor]]:
    """The source of a module and its state.

    Raises:
        NotPlainError: naming the layer that plain torch cannot say.
    """
    return _Writer(graph).write()


def _identifier(name: str) -> str:
    # Names come from files, and this source is run: nothing but ASCII letters, digits and _ gets in.
    word = re.sub(r"[^A-Za-z0-9_]+", "_", name)[:60].strip("_") or "x"
    return f"_{word}" if word[0].isdigit() or keyword.iskeyword(word) else word


class _Writer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.modules: list[str] = []
        self.lines: list[str] = []
        self.state: dict[str, Tensor] = {}
        self.helpers: set[str] = set()
        self._names: dict[str, str] = {}
        self._taken = {"self", "torch", "nn", "F", "forward", *_HELPERS, *dir(torch.nn.Module())}

    def variable(self, blob: str) -> str:
        """One identifier for each blob and each module."""
        if blob not in self._names:
            word = _identifier(blob)
            while word in self._taken:
                word += "_"
            self._taken.add(word)
            self._names[blob] = word
        return self._names[blob]

    def module(self, layer: Layer, source: str, **state: Tensor) -> str:
        """Declare a module for the layer; returns how ``forward`` calls it."""
        word = _identifier(layer.name)
        while hasattr(torch.nn.Module, word) or any(m.startswith(f"self.{word} = ") for m in self.modules):
            word += "_"
        self.modules.append(f"self.{word} = {source}")
        self.state.update({f"{word}.{key}": value.detach().clone() for key, value in state.items()})
        return f"self.{word}"

    def helper(self, name: str) -> str:
        self.helpers.add(name)
        return name

    def write(self) -> tuple[str, dict[str, Tensor]]:
        inputs = [self.variable(name) for name in self.graph.inputs]
        for layer in self.graph.layers:
            if layer.is_input:
                continue
            emit = _EMIT.get(layer.type)
            if emit is None:
                raise NotPlainError(
                    f"layer {layer.name!r} ({layer.type}): has no plain torch source; convert to .onnx, "
                    "or keep the net as upscore.caffe.graph.Graph"
                )
            bottoms = [self.variable(name) for name in layer.bottoms]
            expression = emit(self, layer, bottoms)
            if layer.tops and expression != bottoms[0]:
                self.lines.append(f"{', '.join(self.variable(t) for t in layer.tops)} = {expression}")
            elif layer.tops and self.variable(layer.tops[0]) != bottoms[0]:
                self.lines.append(f"{self.variable(layer.tops[0])} = {bottoms[0]}")
        outputs = [self.variable(name) for name in self.graph.outputs]
        name = _identifier(self.graph.name or "Caffe") + "Net"
        shapes = ", ".join(f"{self.variable(n)} {tuple(self.graph.shapes[n])}" for n in self.graph.inputs)
        body = [
            '"""Written by upscore from a Caffe net; needs torch alone."""',
            "",
            "import torch",
            "import torch.nn.functional as F",
            "from torch import nn",
            *(f"\n{_HELPERS[helper].rstrip()}" for helper in sorted(self.helpers)),
            "",
            "",
            f"class {name}(nn.Module):",
            f'    """Inputs: {shapes}. Outputs: {", ".join(outputs)}."""',
            "",
            "    def __init__(self):",
            "        super().__init__()",
            *(f"        {line}" for line in self.modules),
            "",
            f"    def forward(self, {', '.join(inputs)}):",
            *(f"        {line}" for line in self.lines),
            f"        return {', '.join(outputs)}",
            "",
            "",
            f"Net = {name}",
            "",
        ]
        return "\n".join(body), self.state


Emit = Callable[[_Writer, Layer, list[str]], str]
_EMIT: dict[str, Emit] = {}


def _emits(*types: str) -> Callable[[Emit], Emit]:
    def keep(emit: Emit) -> Emit:
        _EMIT.update(dict.fromkeys(types, emit))
        return emit

    return keep


def _refuse(layer: Layer, what: str) -> NotPlainError:
    return NotPlainError(f"layer {layer.name!r} ({layer.type}): {what} has no plain torch source; convert to .onnx")


def _shape(w: _Writer, layer: Layer, bottom: int = 0) -> tuple[int, ...]:
    return w.graph.shapes[layer.bottoms[bottom]]


@_emits("Convolution", "Deconvolution")
def _convolution(w: _Writer, layer: Layer, x: list[str]) -> str:
    m: Any = layer.module
    g = m.geometry
    if layer.type == "Convolution":
        sizes = m.sizes(_shape(w, layer)[2:])
        if any((o - 1) * s + e > n + lo + hi for o, s, e, n, (lo, hi) in _windows(m, sizes, _shape(w, layer)[2:])):
            raise _refuse(layer, "a kernel larger than its input")
    kind = "ConvTranspose" if layer.type == "Deconvolution" else "Conv"
    state = dict(zip(("weight", "bias"), m.blobs, strict=False))
    options = {
        "stride": (g.stride, (1,) * m.rank),
        "padding": (tuple(lo for lo, _ in g.crop), (0,) * m.rank),
        "dilation": (g.dilation, (1,) * m.rank),
        "groups": (m.group, 1),
        "bias": (len(m.blobs) > 1, True),
    }
    said = "".join(f", {key}={value}" for key, (value, default) in options.items() if value != default)
    call = w.module(layer, f"nn.{kind}{m.rank}d({m.c_in}, {m.c_out}, {g.kernel}{said})", **state)
    return ", ".join(f"{call}({each})" for each in x)


def _windows(m: Any, sizes: Any, bottom: Any) -> Any:
    return zip(sizes, m.geometry.stride, m.geometry.extent, bottom, m.geometry.crop, strict=True)


@_emits("InnerProduct")
def _inner_product(w: _Writer, layer: Layer, x: list[str]) -> str:
    m: Any = layer.module
    p = layer.param.inner_product_param
    weight = m.blobs[0].t() if p.transpose else m.blobs[0]
    state = {"weight": weight, **({"bias": m.blobs[1]} if p.bias_term else {})}
    call = w.module(layer, f"nn.Linear({m.inputs}, {p.num_output}, bias={p.bias_term})", **state)
    return f"{call}({x[0]}.flatten({m.first}))"


@_emits("Pooling")
def _pooling(w: _Writer, layer: Layer, x: list[str]) -> str:
    m: Any = layer.module
    size = _shape(w, layer)[2:]
    if m.param.pooling_param.global_pooling and len(layer.tops) == 1:
        return f"F.adaptive_{'max' if m.method == 'MAX' else 'avg'}_pool2d({x[0]}, 1)"
    kernel = m._kernel(size)
    if m.method == "STOCHASTIC" or not m._as_torch(size, kernel):
        raise _refuse(layer, "pooling with these windows")
    window = f"{x[0]}, {kernel}, {m.stride}, {m.pad}, ceil_mode={not m.floor}"
    if m.method == "AVE":
        return f"F.avg_pool2d({window})"
    return f"F.max_pool2d({window}{', return_indices=True' if len(layer.tops) > 1 else ''})"


@_emits("Upsample", "Unpooling")
def _unpool(w: _Writer, layer: Layer, x: list[str]) -> str:
    m: Any = layer.module
    size = m.size(_shape(w, layer)[2:])
    if len(x) == 2:
        return f"{w.helper('unpool')}({x[0]}, {x[1]}, {size})"
    if layer.type == "Unpooling":
        raise _refuse(layer, "unpooling without a mask")
    return f"F.interpolate({x[0]}, {size})"


@_emits("ReLU")
def _relu(w: _Writer, layer: Layer, x: list[str]) -> str:
    slope = layer.param.relu_param.negative_slope
    return f"F.leaky_relu({x[0]}, {slope!r})" if slope else f"F.relu({x[0]})"


@_emits("PReLU")
def _prelu(w: _Writer, layer: Layer, x: list[str]) -> str:
    slopes = layer.module.blobs[0].reshape(-1)
    return f"{w.module(layer, f'nn.PReLU({slopes.numel()})', weight=slopes)}({x[0]})"


@_emits("ELU", "Sigmoid", "TanH", "AbsVal", "BNLL", "Softmax", "Dropout", "Split", "Concat", "Eltwise", "Flatten")
def _plain(w: _Writer, layer: Layer, x: list[str]) -> str:
    p, rank = layer.param, len(_shape(w, layer))
    all_ = ", ".join(x)
    if layer.type == "Eltwise":
        return _eltwise(p.eltwise_param, x)
    if layer.type == "Concat":
        return f"torch.cat([{all_}], {layer.module.along(rank)})"  # type: ignore[operator]
    if layer.type == "Flatten":
        axes = (layer.module.axis(a, rank) for a in (p.flatten_param.axis, p.flatten_param.end_axis))
        return f"{x[0]}.flatten({', '.join(map(str, axes))})"
    return {
        "ELU": f"F.elu({x[0]}, {p.elu_param.alpha!r})",
        "Sigmoid": f"torch.sigmoid({x[0]})",
        "TanH": f"torch.tanh({x[0]})",
        "AbsVal": f"{x[0]}.abs()",
        "BNLL": f"F.softplus({x[0]})",
        "Softmax": f"torch.softmax({x[0]}, {layer.module.axis(p.softmax_param.axis, rank)})",
        "Dropout": f"F.dropout({x[0]}, {p.dropout_param.dropout_ratio!r}, self.training)",
        "Split": ", ".join([x[0]] * len(layer.tops)),
    }[layer.type]


def _eltwise(p: Any, x: list[str]) -> str:
    if p.operation == schema.EltwiseParameter.SUM:
        terms = [each if c == 1 else f"{c!r} * {each}" for each, c in zip(x, p.coeff or [1.0] * len(x), strict=True)]
        return " + ".join(terms)
    if p.operation == schema.EltwiseParameter.PROD:
        return " * ".join(x)
    found = x[0]
    for each in x[1:]:
        found = f"torch.maximum({found}, {each})"
    return found


@_emits("BatchNorm")
def _batch_norm(w: _Writer, layer: Layer, x: list[str]) -> str:
    m: Any = layer.module
    rank = len(_shape(w, layer)) - 2
    if not m.stored or rank not in (1, 2, 3):
        raise _refuse(layer, "normalizing by the batch at test")
    factor = torch.where(m.blobs[2] == 0, 0, 1 / m.blobs[2]).detach()
    state = {"running_mean": m.blobs[0] * factor, "running_var": m.blobs[1] * factor}
    state["num_batches_tracked"] = torch.tensor(0)
    eps = layer.param.batch_norm_param.eps
    return f"{w.module(layer, f'nn.BatchNorm{rank}d({m.channels}, eps={eps!r}, affine=False)', **state)}({x[0]})"


@_emits("BN")
def _bn(w: _Writer, layer: Layer, x: list[str]) -> str:
    m: Any = layer.module
    p = layer.param.bn_param
    if len(layer.tops) > 1 or (not m.keeps and p.bn_mode != schema.BNParameter.INFERENCE):
        raise _refuse(layer, "normalizing by the batch at test")
    weight, bias = (b.reshape(-1) for b in m.blobs[:2])
    if not m.keeps:
        call = w.module(layer, f"{w.helper('Affine')}({m.channels}, bias=True)", weight=weight, bias=bias)
        return f"{call}({x[0]})"
    eps = p.var_eps if p.HasField("var_eps") else p.eps
    state = {"weight": weight, "bias": bias, "num_batches_tracked": torch.tensor(0)}
    state |= {"running_mean": m.blobs[2].reshape(-1), "running_var": m.blobs[3].reshape(-1)}
    return f"{w.module(layer, f'nn.BatchNorm2d({m.channels}, eps={eps!r})', **state)}({x[0]})"


@_emits("Scale", "Bias")
def _affine(w: _Writer, layer: Layer, x: list[str]) -> str:
    m: Any = layer.module
    if len(x) == 2:
        shape, operand = _shape(w, layer), _shape(w, layer, 1)
        after = len(shape) - m._first(shape, operand) - len(operand) if operand else 0
        second = f"{x[1]}[(..., *[None] * {after})]" if after else x[1]
        if len(m.blobs):
            raise _refuse(layer, "a scale from a bottom with a learned bias")
        return f"{x[0]} {'*' if layer.type == 'Scale' else '+'} {second}"
    shape = tuple(m.blobs[0].shape)
    axis = m._first(_shape(w, layer), shape)
    names = ("weight", "bias") if layer.type == "Scale" else ("bias",)
    state = dict(zip(names, m.blobs, strict=False))
    said = f"{shape}, axis={axis}, weight={'weight' in state}, bias={'bias' in state}"
    call = w.module(layer, f"{w.helper('Affine')}({said})", **state)
    return f"{call}({x[0]})"


@_emits("Axpy")
def _axpy(w: _Writer, layer: Layer, x: list[str]) -> str:
    return f"{x[0]} * {x[1]} + {x[2]}"


@_emits("Power", "Exp", "Log", "Threshold", "Clip", "Swish")
def _function(w: _Writer, layer: Layer, x: list[str]) -> str:
    p = layer.param
    if layer.type == "Power":
        inner = f"({p.power_param.shift!r} + {p.power_param.scale!r} * {x[0]})"
        return inner if p.power_param.power == 1 else f"{inner} ** {p.power_param.power!r}"
    if layer.type in ("Exp", "Log"):
        q = p.exp_param if layer.type == "Exp" else p.log_param
        inner = f"({q.shift!r} + {q.scale!r} * {x[0]})"
        if layer.type == "Exp":
            return f"torch.exp({inner})" if q.base == -1 else f"{q.base!r} ** {inner}"
        return f"torch.log({inner})" + ("" if q.base == -1 else f" / torch.log(torch.tensor({q.base!r}))")
    if layer.type == "Threshold":
        return f"({x[0]} > {p.threshold_param.threshold!r}).to({x[0]}.dtype)"
    if layer.type == "Clip":
        return f"{x[0]}.clamp({p.clip_param.min!r}, {p.clip_param.max!r})"
    return f"{x[0]} * torch.sigmoid({p.swish_param.beta!r} * {x[0]})"


@_emits("LRN")
def _lrn(w: _Writer, layer: Layer, x: list[str]) -> str:
    p = layer.param.lrn_param
    if p.norm_region == schema.LRNParameter.ACROSS_CHANNELS:
        return f"F.local_response_norm({x[0]}, {p.local_size}, {p.alpha!r}, {p.beta!r}, {p.k!r})"
    pooled = f"F.avg_pool2d({x[0]} * {x[0]}, {p.local_size}, 1, {(p.local_size - 1) // 2})"
    return f"{x[0]} * (1 + {p.alpha!r} * {pooled}) ** {-p.beta!r}"


@_emits("Crop")
def _crop(w: _Writer, layer: Layer, x: list[str]) -> str:
    m: Any = layer.module
    axis = m.axis(layer.param.crop_param.axis, len(_shape(w, layer)))
    starts = [start for start, _ in m.starts(_shape(w, layer), _shape(w, layer, 1))[axis:]]
    return f"{w.helper('crop')}({x[0]}, {x[1]}, {axis}, {starts})"


@_emits("CropCenter")
def _crop_center(w: _Writer, layer: Layer, x: list[str]) -> str:
    cuts = layer.param.crop_center_param.crop_size
    return f"{x[0]}[{', '.join(f'{c}:-{c}' if c else ':' for c in cuts)}]"


@_emits("Slice")
def _slice(w: _Writer, layer: Layer, x: list[str]) -> str:
    m: Any = layer.module
    axis = m.along(len(_shape(w, layer)))
    return f"torch.split({x[0]}, {m.parts(_shape(w, layer)[axis])}, {axis})"


@_emits("Reshape")
def _reshape(w: _Writer, layer: Layer, x: list[str]) -> str:
    return f"{x[0]}.reshape({w.graph.shapes[layer.tops[0]]})"


@_emits("Permute")
def _permute(w: _Writer, layer: Layer, x: list[str]) -> str:
    m: Any = layer.module
    return f"{x[0]}.permute({m.order(len(_shape(w, layer)))})"


@_emits("Interp")
def _interp(w: _Writer, layer: Layer, x: list[str]) -> str:
    p = layer.param.interp_param
    source = f"F.pad({x[0]}, {[p.pad_beg, p.pad_end] * 2})" if p.pad_beg or p.pad_end else x[0]
    size = w.graph.shapes[layer.tops[0]][2:]
    return f'F.interpolate({source}, {size}, mode="bilinear", align_corners=True)'


@_emits("Silence")
def _silence(w: _Writer, layer: Layer, x: list[str]) -> str:
    return x[0]
