"""Finds nearest-neighbour upsamplings that feed a convolution, and runs both as one transposed convolution.

Where a module's own ``forward`` upsamples by a whole factor (``torch.nn.Upsample`` or ``interpolate``, nearest) and
gives the result to a ``torch.nn.Conv`` child alone, torch.fx rewrites that ``forward``. Modules, parameters and
``state_dict`` stay what they are, so weights may still change; the rewritten forward stands in for the original

- without gradients (``torch.no_grad()``, ``torch.inference_mode()``) and outside of torch.compile and torch.export,
- while the plain attributes of the modules involved (training mode, flags, sizes) are those that were traced, and
  neither of the fused pair has hooks.

In every other case, and for what torch.fx cannot trace, the original runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from upscore.nn.upsampling import saves_taps, upsampled_conv

__all__ = ["FusedForward", "fuse"]

_log = logging.getLogger(__name__)

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LARGEST = 8  # torch finds the source of a pixel in float32; up to here that is exact, i // factor
_FLAGS = (bool, int, float, str, type(None))


def fuse(model: nn.Module) -> None:
    """Rewrite the forward of every module in ``model`` in which a pair can be fused."""
    for module in list(model.modules()):
        if "forward" not in vars(module) and _may_upsample(module):
            forward = FusedForward(module)
            if forward.count:
                module.forward = forward


class FusedForward:
    """A module's rewritten forward. Pickles and deep-copies by tracing again."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._prepare()

    def _prepare(self) -> None:
        self.count = 0
        try:
            graph, involved = _rewrite(self._module)
        except Exception as reason:  # what a foreign forward raises when traced is no error of the user's
            _log.debug("%s is not fused: %s", type(self._module).__name__, reason)
            return
        self._involved, self.count = involved, len(involved)
        code = graph.python_code(root_module="self")
        names: dict[str, Any] = dict(code.globals)
        exec(code.src, names)
        self._run: Callable[..., Any] = names["forward"]
        self._state = self._present()

    def _present(self) -> list[Any]:
        """What the traced graph relies on."""
        children = [self._module.get_submodule(name) for name in self._involved]
        return [_attributes(self._module), *((m, _attributes(m), _has_hooks(m)) for m in children)]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling() and not torch.is_grad_enabled():
            if self.count < 0:
                self._prepare()
            if self.count and self._present() == self._state:
                return self._run(self._module, *args, **kwargs)
        return type(self._module).forward(self._module, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {"_module": self._module}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._module = state["_module"]
        self.count = -1  # the module may not be whole yet: traced at the first call


class _Tracer(fx.Tracer):
    """Traces one forward; whatever it calls stays a call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _rewrite(module: nn.Module) -> tuple[fx.Graph, list[str]]:
    """The graph of the module's forward with its pairs fused, and the names of the children in them."""
    graph = _Tracer().trace(module)
    involved: list[str] = []
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or len(source.users) > 1:
            continue
        factor, terms = _factor(module, source), _terms(module, node)
        if factor is None or terms is None:
            continue
        factor = factor * len(terms.kernel) if len(factor) == 1 else factor
        if len(factor) != len(terms.kernel) or not saves_taps(factor, terms.kernel, terms.dilation):
            continue
        with graph.inserting_before(node):
            w = graph.get_attr(f"{node.target}.weight")
            bias = graph.get_attr(f"{node.target}.bias") if terms.has_bias else None
            numbers = factor, terms.before, terms.after, terms.dilation, terms.groups
            fused = graph.call_function(upsampled_conv, (source.args[0], w, bias, *numbers))
        node.replace_all_uses_with(fused)
        graph.erase_node(node)
        graph.erase_node(source)
        involved += [str(n.target) for n in (source, node) if n.op == "call_module"]
    graph.lint()
    return graph, involved


def _factor(module: nn.Module, node: fx.Node) -> tuple[int, ...] | None:
    """The whole factors by which ``node`` upsamples, nearest, or None."""
    if node.op == "call_module":
        layer: Any = module.get_submodule(str(node.target))
        if type(layer) not in (nn.Upsample, nn.UpsamplingNearest2d) or _has_hooks(layer) or node.kwargs:
            return None
        size, scale, mode = layer.size, layer.scale_factor, layer.mode
    elif node.op == "call_function" and node.target is F.interpolate:
        given: dict[str, Any] = dict(
            zip(("input", "size", "scale_factor", "mode"), node.args, strict=False), **node.kwargs
        )
        size, scale, mode = given.get("size"), given.get("scale_factor"), given.get("mode", "nearest")
    else:
        return None
    scales = scale if isinstance(scale, (tuple, list)) else (scale,)
    whole = all(isinstance(s, (int, float)) and s == int(s) and 1 <= s <= _LARGEST for s in scales)
    if size is not None or mode not in ("nearest", "nearest-exact") or not whole or len(node.args) < 1:
        return None
    return tuple(map(int, scales))


class _Terms(NamedTuple):
    kernel: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    has_bias: bool


def _terms(module: nn.Module, node: fx.Node) -> _Terms | None:
    """The convolution that ``node`` calls, if it is a plain one of stride 1."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    conv: Any = module.get_submodule(str(node.target))
    if type(conv) not in _CONVS or _has_hooks(conv) or conv.padding_mode != "zeros" or set(conv.stride) != {1}:
        return None
    if isinstance(conv.padding, str):
        taps = zip(conv.kernel_size, conv.dilation, strict=True)
        reach = [d * (k - 1) if conv.padding == "same" else 0 for k, d in taps]
        before, after = tuple(r // 2 for r in reach), tuple(r - r // 2 for r in reach)
    else:
        before = after = conv.padding
    return _Terms(conv.kernel_size, before, after, conv.dilation, conv.groups, conv.bias is not None)


def _may_upsample(module: nn.Module) -> bool:
    """Whether tracing is worth it: the module has an Upsample, or its forward names ``interpolate``."""
    code = getattr(type(module).forward, "__code__", None)
    if code is None or isinstance(module, torch.jit.ScriptModule):
        return False
    return "interpolate" in code.co_names or any(isinstance(child, nn.Upsample) for child in module.children())


def _attributes(module: nn.Module) -> dict[str, Any]:
    """The flags and numbers of a module, on which its forward may depend."""
    return {name: value for name, value in vars(module).items() if _is_flag(value)}


def _is_flag(value: Any) -> bool:
    return isinstance(value, _FLAGS) or (isinstance(value, tuple) and all(isinstance(v, _FLAGS) for v in value))


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
