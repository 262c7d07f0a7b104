"""What a run's history looks like: the loss, the rate and the scores over the steps, as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from upscore.errors import MissingDependencyError
from upscore.files import replacing

__all__ = ["draw", "write"]

_NOT_SCORES = ("step", "seconds", "rate", "loss", "score")


def write(history: Sequence[dict[str, float]], path: Path) -> None:
    """The history as JSON: a list of one object for each scoring."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(list(history), indent=1) + "\n", encoding="utf-8")


def draw(history: Sequence[dict[str, float]], path: Path) -> None:
    """Curves of the history, in the format that the suffix of ``path`` names. Needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingDependencyError("matplotlib", "drawing curves", "train") from None
    steps = [entry["step"] for entry in history]
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(steps, [entry["loss"] for entry in history], color="black", label="loss")
    above.set_ylabel("loss in training")
    above.set_ylim(bottom=0)
    rate = above.twinx()
    rate.plot(steps, [entry["rate"] for entry in history], color="grey", linestyle=":")
    rate.set_ylabel("rate (dotted)")
    for name in [name for name in history[-1] if name not in _NOT_SCORES]:
        below.plot(steps, [entry[name] for entry in history], label=name)
    below.set_xlabel("step")
    below.set_ylabel("on the validation data")
    below.legend()
    for axes in (above, below):
        axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
