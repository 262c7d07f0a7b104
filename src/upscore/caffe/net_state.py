"""Which layers a net has in a state: the ``include`` and ``exclude`` rules about phase, level and stages.

Source: BVLC Caffe, Net::FilterNet and Net::StateMeetsRule of net.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from upscore.caffe import schema
from upscore.errors import FileFormatError

__all__ = ["filter_layers"]


def filter_layers(net: Any, phase: int, level: int = 0, stages: Iterable[str] = ()) -> Any:
    """The net without the layers that its ``include`` and ``exclude`` rules keep out of this state: a new message."""
    kept = schema.NetParameter()
    kept.CopyFrom(net)
    kept.ClearField("layer")
    state = (phase, level or net.state.level, {*stages, *net.state.stage})
    for layer in net.layer:
        if layer.include and layer.exclude:
            raise FileFormatError(f"layer {layer.name!r}: expected include or exclude rules, got both")
        rules, meant = (layer.include, True) if layer.include else (layer.exclude, False)
        if not rules or any(_meets(rule, *state) for rule in rules) == meant:
            kept.layer.add().CopyFrom(layer)
    return kept


def _meets(rule: Any, phase: int, level: int, stages: set[str]) -> bool:
    return (
        (not rule.HasField("phase") or rule.phase == phase)
        and (not rule.HasField("min_level") or level >= rule.min_level)
        and (not rule.HasField("max_level") or level <= rule.max_level)
        and stages.issuperset(rule.stage)
        and stages.isdisjoint(rule.not_stage)
    )
