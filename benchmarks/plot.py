"""README's picture of the race, made from the file that the race wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LABELS = {"upscore": "upscore", "torch": "PyTorch", "torch channels-last": "PyTorch channels-last"}
LABELS |= {"torch compiled": "torch.compile", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
LABELS |= {"ncnn": "ncnn", "tensorflow": "TensorFlow"}
COLOURS = ("#ee4c2c", "#f7a08b", "#b7301a", "#5f6b7a", "#0068b5", "#3aa76d", "#ff9f00")


def _group_rows(result: dict[str, Any], group: str) -> list[dict[str, Any]]:
    rows = [r for r in result["rows"] if r["layer"]["group"] == group and "verdict" in r]
    return sorted(rows, key=lambda row: float(row["best_peer_over_ours"]), reverse=True)


def plot(result: dict[str, Any], path: Path) -> None:
    """One line per layer: how many times upscore's time each engine takes. Left of the line at 1 it is faster."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    groups = [g for g in ("networks", "awkward") if _group_rows(result, g)]
    heights = [len(_group_rows(result, g)) for g in groups]
    figure, panels = pyplot.subplots(
        len(groups), 1, figsize=(10, 1.6 + 0.27 * sum(heights)), sharex=True, squeeze=False, height_ratios=heights
    )
    ours = result["settings"]["ours"]
    peers = [name for name in result["settings"]["engines"] if not name.startswith("upscore")]
    titles = {"networks": "layers of networks that people run", "awkward": "awkward layers"}
    for panel, group in zip(panels[:, 0], groups, strict=True):
        rows = _group_rows(result, group)
        places = range(len(rows) - 1, -1, -1)
        for name, colour in zip(peers, COLOURS, strict=False):
            points = [
                (row["engines"][name]["ms"] / row["engines"][ours]["ms"], place)
                for row, place in zip(rows, places, strict=True)
                if "ms" in row["engines"].get(name, {})
            ]
            panel.scatter(*zip(*points, strict=True), s=26, color=colour, label=LABELS.get(name, name), zorder=3)
        limits = [row["roofline_ms"] / row["engines"][ours]["ms"] for row in rows]
        panel.scatter(limits, places, marker="|", s=70, color="black", label="the machine's limit", zorder=3)
        panel.axvline(1, color="#6a3d9a", linewidth=2, label="upscore")
        panel.set_yticks(list(places), [row["layer"]["name"] for row in rows], fontsize=8)
        panel.set_xscale("log")
        panel.grid(axis="x", which="both", alpha=0.25)
        panel.set_ylim(-0.7, len(rows) - 0.3)
        mean = result["summary"][group]["best_peer_over_ours"]
        panel.set_title(f"{titles[group]}: the best other engine takes {mean:.2f} times as long (mean)", fontsize=10)
    low, high = panels[0, 0].get_xlim()
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if low <= t <= high]
    panels[-1, 0].set_xticks(ticks, [f"{t:g}×" for t in ticks])
    panels[-1, 0].minorticks_off()
    machine = result["machine"]
    cpu = machine["cpu"].split(" (")[0]
    panels[-1, 0].set_xlabel(
        f"time over upscore's, log scale; float32, {machine['threads']} threads, {cpu}, "
        f"{machine['upscore_isa']}, {machine['date'][:10]}"
    )
    panels[0, 0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.09), ncols=5, fontsize=8, frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
