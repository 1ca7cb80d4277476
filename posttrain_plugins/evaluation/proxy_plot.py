"""What learned scorers say and what is true, over the KL of best of k from one sample, drawn.

Needs matplotlib (`pip install 'posttrain-plugins[plot]'`). The figure is that of Gao et al., 2022
(https://huggingface.co/papers/2210.10760), figure 1, for best of k.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

__all__ = ["draw_proxies"]

COLUMNS = 3
PANEL_INCHES = (4.2, 3.2)
DPI = 150


def draw_proxies(details: Mapping[str, Any], path: Path) -> list[Path]:
    """Draw a panel for each model and scorer: the metric on the left axis, the scorer's own word on the right one.

    Args:
        details: what the stage `evaluate` records.
        path: where to, without a suffix.

    Returns:
        The files, `.svg` and `.png`; none where no scorer chose.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    of_models = {model: found["measures"].get("sampled", {}) for model, found in details["models"].items()}
    panels = [
        (f"{model}, best of k by {name}", points, name in measure.get("over_optimised", {}))
        for model, measure in of_models.items()
        for name, points in measure.get("proxy", {}).items()
        if len(points) > 1
    ]
    if not panels:
        return []
    columns = min(COLUMNS, len(panels))
    rows = ceil(len(panels) / columns)
    with mpl.rc_context({"svg.hashsalt": "posttrain", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(layout="constrained", figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows))
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, (title, points, is_over) in zip(axes, panels, strict=False):
            _panel(axis, f"{title}: over-optimised" if is_over else title, points, str(details["metric"]))
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        files = [path.with_name(f"{path.name}{suffix}") for suffix in (".svg", ".png")]
        figure.savefig(files[0], metadata={"Date": None})
        figure.savefig(files[1], dpi=DPI)
    return files


def _panel(axis: Any, title: str, points: Mapping[str, Mapping[str, Any]], metric: str) -> None:
    """Draw both curves, each with its band, on axes of their own: a scorer's unit is nobody else's."""
    beside = axis.twinx()
    kl = [point["kl"] for point in points.values()]
    for place, name, color, label in ((axis, "gold", "C0", metric), (beside, "proxy", "C1", "the scorer's own score")):
        ends = [[point[name][end] for point in points.values()] for end in ("mean", "low", "high")]
        place.plot(kl, ends[0], color=color, marker="o", markersize=4)
        place.fill_between(kl, ends[1], ends[2], color=color, alpha=0.15, linewidth=0)
        place.set_ylabel(label, color=color)
        place.tick_params(axis="y", labelcolor=color)
    axis.set_xticks(kl, [f"{value:.1f}\nk={k}" for k, value in zip(points, kl, strict=True)])
    axis.set_xlabel("KL from one sample, nats")
    axis.set_title(title)
    axis.grid(alpha=0.25)
