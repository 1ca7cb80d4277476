"""Draws an audit: the trained reward above, the independent one below, over the same steps.

Needs matplotlib (`pip install 'posttrain-plugins[plot]'`). Two panels and two scales: the two are no common unit.
"""

from __future__ import annotations

from pathlib import Path

from posttrain_plugins.auditing.audit import Audit
from posttrain_plugins.evaluation.figures import Interval

__all__ = ["draw"]


def draw(found: Audit, path: Path, title: str) -> list[Path]:
    """Draw an audit.

    Args:
        found: the audit.
        path: the files to write, without a suffix.
        title: the words above both panels.

    Returns:
        The files, `.svg` and `.png`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    # a fixed salt, text as text, and no date below: the same audit gives the same bytes
    with mpl.rc_context({"svg.hashsalt": "posttrain", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(6.4, 5.0), layout="constrained")
        # two panels: on one axis the reward with the larger numbers would flatten the other
        above, below = figure.subplots(2, 1, sharex=True)
        middles = [(part.first + part.last) / 2 for part in found.parts]
        _panel(above, middles, [part.trained for part in found.parts], f"trained: {found.trained}", "C0")
        _panel(below, middles, [part.independent for part in found.parts], f"independent: {found.independent}", "C1")
        below.set_xlabel("optimizer step")
        figure.suptitle(f"{title}: '{found.independent}' {found.verdict}", fontsize=10)
        files = [path.with_name(f"{path.name}{suffix}") for suffix in (".svg", ".png")]
        figure.savefig(files[0], metadata={"Date": None})
        figure.savefig(files[1], dpi=150)
    return files


def _panel(axes: object, steps: list[float], values: list[Interval], label: str, colour: str) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)  # known to the type checker only here: matplotlib is optional
    axes.fill_between(steps, [v.low for v in values], [v.high for v in values], color=colour, alpha=0.2, linewidth=0)
    axes.plot(steps, [v.mean for v in values], color=colour, marker="o", markersize=3)
    axes.set_ylabel("mean reward, 95 %")
    axes.set_title(label, fontsize=9, loc="left")
    axes.grid(alpha=0.3)
