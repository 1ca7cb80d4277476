"""Accuracy against tokens, drawn: every way of answering with its interval, the Pareto front, and the curves over k.

Needs matplotlib (`pip install 'posttrain-plugins[plot]'`). No screen and no global state: the figure draws itself. The
idea is Snell et al., 2024 (https://huggingface.co/papers/2408.03314), figure 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from textwrap import wrap
from typing import Any

__all__ = ["draw"]

COLUMNS = 3
PANEL_INCHES = (4.2, 3.6)
LEGEND_INCHES = 3.8
LINE_INCHES = 0.19  # of the legend
LABEL_CHARS = 46
DPI = 150
MARKERS = "osD^vP*X"
CURVES = {"maj": "majority of k", "weighted": "weighted vote of k", "best": "best of k", "pass": "pass@k (oracle)"}
STYLES = {"maj": "--", "weighted": "-.", "best": ":", "pass": (0, (1, 4))}


def draw(details: Mapping[str, Any], path: Path) -> list[Path]:
    """Draw an evaluation, one panel a model. A way of answering that took no tokens at all is left out.

    Args:
        details: what the stage `evaluate` records: `metric`, and `models` with their `measures`.
        path: where to, without a suffix.

    Returns:
        The files, `.svg` and `.png`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    models = details["models"]
    columns = min(COLUMNS, len(models))
    rows = ceil(len(models) / columns)
    # Without a salt and a date two drawings of the same figures differ, and a stage that ran again would look changed;
    # text stays text, so that a label can be found and copied.
    with mpl.rc_context({"svg.hashsalt": "posttrain", "svg.fonttype": "none", "font.size": 9}):
        # not pyplot: it keeps every figure alive and picks a screen to draw on
        figure = Figure(layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        looks = _looks(models)
        for panel, (name, found) in zip(panels, models.items(), strict=False):
            _panel(panel, name, found["measures"], str(details["metric"]), looks)
        for panel in panels[len(models) :]:
            panel.set_axis_off()
        _label(panels, str(details["metric"]), columns, len(models))
        # one legend for all panels: most ways of answering stand in each of them
        named = [zip(*panel.get_legend_handles_labels(), strict=True) for panel in panels]
        handles = {label: handle for pairs in named for handle, label in pairs}
        labels = ["\n".join(wrap(label, LABEL_CHARS, subsequent_indent="  ")) for label in handles]
        figure.legend(list(handles.values()), labels, loc="outside right upper", frameon=False)
        # matplotlib would cut off a legend that is longer than the panels are high
        lines = sum(label.count("\n") + 1 for label in labels)
        height = max(PANEL_INCHES[1] * rows, LINE_INCHES * lines + 0.3)
        figure.set_size_inches(PANEL_INCHES[0] * columns + LEGEND_INCHES, height)
        files = [path.with_name(f"{path.name}{suffix}") for suffix in (".svg", ".png")]
        figure.savefig(files[0], metadata={"Date": None})
        figure.savefig(files[1], dpi=DPI)
    return files


def _looks(models: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Give a strategy one colour in all panels, and a marker for each of its budgets."""
    names = dict.fromkeys(name for found in models.values() for name in found["measures"])
    parts = {name: name.removesuffix(" (oracle)").partition(" @ ") for name in names}  # `Bench` makes the names
    strategies = {
        strategy: i for i, strategy in enumerate(dict.fromkeys(strategy for strategy, _, _ in parts.values()))
    }
    budgets = {budget: i for i, budget in enumerate(dict.fromkeys(budget for _, _, budget in parts.values()))}
    looks = {}
    for name, (strategy, _, budget) in parts.items():
        # matplotlib has ten colours: strategies that share one are told apart by other markers
        turn, color = divmod(strategies[strategy], 10)
        looks[name] = (f"C{color}", MARKERS[(turn * len(budgets) + budgets[budget]) % len(MARKERS)])
    return looks


def _panel(
    panel: Any, title: str, measures: Mapping[str, Any], metric: str, looks: Mapping[str, tuple[str, str]]
) -> None:
    # an answer for no tokens, as of a constant, has no place on an axis of logarithms
    shown = {name: m for name, m in measures.items() if metric in m["rewards"] and m["tokens_per_problem"] > 0}
    for measure in shown.values():
        _curves(panel, measure.get("at_k", {}))
    front = sorted((m["tokens_per_problem"], m["rewards"][metric]["mean"]) for m in shown.values() if m["pareto"])
    if front:
        tokens, accuracy = zip(*front, strict=True)
        # a step, not a line: between two ways of answering there is none that one could buy
        panel.step(tokens, accuracy, where="post", color="0.75", linewidth=4, zorder=1, label="Pareto front")
    for name, measure in shown.items():
        _point(panel, name, measure, measure["rewards"][metric], *looks[name])
    panel.set_title(title)
    panel.grid(alpha=0.25)


def _point(
    panel: Any, name: str, measure: Mapping[str, Any], found: Mapping[str, float], color: str, marker: str
) -> None:
    """Draw a measure with its 95 % interval; hollow where the answer was known."""
    # a mean may lie below its own interval by a rounding, and matplotlib refuses lengths below zero
    below, above = max(found["mean"] - found["low"], 0.0), max(found["high"] - found["mean"], 0.0)
    panel.errorbar(
        [measure["tokens_per_problem"]],
        [found["mean"]],
        yerr=[[below], [above]],
        fmt=marker,
        color=color,
        markerfacecolor="white" if measure["oracle"] else color,
        markersize=6,
        capsize=2,
        linewidth=1,
        zorder=3,
        label=name,
    )


def _curves(panel: Any, at_k: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    for name, points in at_k.items():
        kind, _, verifier = name.partition("/")
        label = CURVES[kind] + (f" by {verifier}" if verifier else "")
        drawn = [(point["tokens"], point["mean"]) for point in points.values() if point["tokens"] > 0]
        tokens, means = [tokens for tokens, _ in drawn], [mean for _, mean in drawn]
        is_oracle = kind == "pass" or "(oracle)" in name
        fill = "white" if is_oracle else "0.45"
        look = {"color": "0.45", "linestyle": STYLES[kind], "linewidth": 1, "marker": ".", "markerfacecolor": fill}
        panel.plot(tokens, means, zorder=2, label=label, **look)


def _label(panels: Any, metric: str, columns: int, count: int) -> None:
    """Name and number the axes once a column and once a row."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for i, panel in enumerate(panels[:count]):
        panel.set_xscale("log", base=2)  # k doubles from point to point
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        if i % columns == 0:
            panel.set_ylabel(metric)
        if i + columns >= count:
            panel.set_xlabel("tokens per problem")
            panel.tick_params(labelbottom=True)  # shared axes hide it above an empty place of the last row
