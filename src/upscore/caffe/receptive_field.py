"""How much of the input each blob of a net sees.

A window of the input grows along a path of layers: a convolution or pooling of extent ``e`` adds ``e - 1`` steps of
its bottom's stride, a transposed convolution adds what its widest phase sees beyond one position.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from upscore.caffe import schema
from upscore.caffe.graph import Graph, Layer
from upscore.caffe.modules.convolution import Convolution, Deconvolution
from upscore.caffe.modules.pooling import Pooling, Unpooling, Upsample

__all__ = ["View", "receptive_fields"]


class View(NamedTuple):
    """What one position of a blob sees of the input, per axis.

    Attributes:
        size: the input pixels in the window (not clipped to the image), or None where it is all of them.
        stride: the input pixels from one position to the next.
    """

    size: tuple[int, ...] | None
    stride: tuple[Fraction, ...]

    def __str__(self) -> str:
        return "all" if self.size is None else "x".join(map(str, self.size))


def receptive_fields(graph: Graph) -> dict[str, View]:
    """The view of every blob that has spatial axes and depends on an input, by name.

    Of several inputs and paths the widest window counts.
    """
    views: dict[str, View] = {}
    for layer in graph.layers:
        if layer.is_input:
            for name in layer.tops:
                rank = max(0, len(graph.shapes[name]) - 2)
                views[name] = View((1,) * rank, (Fraction(1),) * rank)
            continue
        below = [views[name] for name in layer.bottoms[: 1 if layer.type == "Crop" else None] if name in views]
        if below:
            view = _over(layer, _widest(below))
            views.update((name, view) for name in layer.tops)
    return views


def _widest(views: list[View]) -> View:
    rank = max(len(v.stride) for v in views)
    alike = [v for v in views if len(v.stride) == rank]
    if any(v.size is None for v in alike):
        return View(None, alike[0].stride)
    return View(tuple(max(sizes) for sizes in zip(*(v.size or () for v in alike), strict=True)), alike[0].stride)


def _over(layer: Layer, view: View) -> View:
    module, rank = layer.module, len(view.stride)
    if layer.type == "InnerProduct" or (isinstance(module, Pooling) and module.param.pooling_param.global_pooling):
        return View(None, view.stride)
    if layer.type in ("LRN", "MVN") and not _is_across(layer):
        size = module.param.lrn_param.local_size if layer.type == "LRN" else None
        return _grown(view, (size,) * rank, (1,) * rank) if size else View(None, view.stride)
    if isinstance(module, Deconvolution) and module.rank == rank:
        g = module.geometry
        spans = g.receptive_field()
        return _grown(view, spans, tuple(Fraction(1, s) for s in g.stride))
    if isinstance(module, Convolution) and module.rank == rank:
        return _grown(view, module.geometry.extent, module.geometry.stride)
    if isinstance(module, Pooling) and rank == 2:
        return _grown(view, module.kernel, module.stride)
    if isinstance(module, (Upsample, Unpooling)) and rank == 2:
        return _grown(view, (1, 1), (Fraction(1, _factor(module)),) * 2)
    return view


def _is_across(layer: Layer) -> bool:
    p = layer.param
    return layer.type == "LRN" and bool(p.lrn_param.norm_region == schema.LRNParameter.ACROSS_CHANNELS)


def _factor(module: Upsample | Unpooling) -> int:
    return module.param.upsample_param.scale if isinstance(module, Upsample) else module.stride[0]


def _grown(view: View, extent: tuple[int, ...], stride: tuple[int | Fraction, ...]) -> View:
    size = view.size
    if size is not None:
        size = tuple(int(n + (e - 1) * s) for n, e, s in zip(size, extent, view.stride, strict=True))
    return View(size, tuple(s * t for s, t in zip(view.stride, stride, strict=True)))
