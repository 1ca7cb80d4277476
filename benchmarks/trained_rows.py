"""What measurements of rows share: a row is a training with settings of its own, made for several seeds.

The recipe's text stands in the script; it is written into the seed's folder, beside the runs of all recipes, so that
stages which are equal are made once. All rows have one results file, written after each row and seed, so that a second
call goes on. Curves are read of the training's figures, and drawn where matplotlib is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import record
import series

from posttrain_plugins.recipe.run.run import Run
from posttrain_plugins.record.figures import read_figures

__all__ = ["Panel", "Recipe", "Rows", "curves", "draw", "lines", "run", "series_of", "write"]

ROOT = Path(__file__).resolve().parent.parent
LEARNED = "{use: digit_chain, size: 960, seed: 4}"
"""What stands for `{learned}`: the data set on which the SFT model writes what the value function learns from."""
VALUE = """\
  seen: {use: sample, model: sft, dataset: learned, rewards: [steps], num_generations: 8, max_tokens: 48, keep: all}
  value:
    use: value
    model: sft
    dataset: seen
    args: {max_steps: 400, per_device_train_batch_size: 32, learning_rate: 5e-4, max_length: 80,
           lr_scheduler_type: cosine, gradient_checkpointing: false}"""
"""What stands for `{value}`: the stages that make a value function of the SFT model, in shares of right steps."""
TEXTS = {"{root}": str(ROOT), "{learned}": LEARNED, "{value}": VALUE}


@dataclass(frozen=True)
class Recipe:
    """A recipe that a script holds.

    Args:
        name: of its file.
        text: its YAML; `{root}` stands for the folder of this project, `{learned}` and `{value}` for what several
            scripts have, so that it is made once for all of them.
    """

    name: str
    text: str


@dataclass(frozen=True)
class Rows:
    """What a results file of rows holds, and what is done when it is written.

    Args:
        file: its name.
        order: all rows that there are.
        overrides: of the recipe, for every row.
        about: what stands in it beside overrides and rows.
        shown: takes the results.
        over_seeds: what the rows say together, of all that there are; `missed`, if there, is what does not hold.
    """

    file: str
    order: Sequence[str]
    overrides: list[str]
    about: Mapping[str, Any]
    shown: Callable[[dict[str, Any]], None]
    over_seeds: Callable[[dict[str, dict[str, Any]]], dict[str, Any]] = lambda rows: {}


def series_of(rows: Rows, one: Callable[[str, int], dict[str, Any]], out: Path) -> series.Series:
    """The series of all rows: `one` measures a row with a seed, and the file is written in the folder `out`."""

    def standing(row: str) -> dict[str, dict[str, Any]]:
        results, made_on = record.earlier(rows.file, rows.overrides, out)
        return {seed: {**made_on, **found} for seed, found in results.get("rows", {}).get(row, {}).items()}

    def keep(row: str, seed: str, figures: dict[str, Any]) -> None:
        found = {name: seeds for name in rows.order if (seeds := standing(name))}
        found[row] = dict(sorted({**found.get(row, {}), seed: figures}.items()))
        ordered = {name: found[name] for name in rows.order if name in found}
        results = {"overrides": rows.overrides, **rows.about, "rows": ordered, **rows.over_seeds(ordered)}
        print(record.write(rows.file, results, out), file=sys.stderr)
        rows.shown(results)

    return series.Series(standing, lambda row, seed: one(row, int(seed)), keep)


def run(
    recipe: Recipe,
    seed: int,
    settings: Mapping[str, Any],
    stages: Sequence[str],
    overrides: Sequence[str],
    runs_dir: Path,
) -> tuple[Run, list[str]]:
    """Runs some stages of a recipe in the seed's folder; the second is which of them were not in the store."""
    file = write(recipe, runs_dir.resolve() / f"seed-{seed}")
    asked = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    told = series.Told(seed)
    return series.run_seed(told, str(file.with_suffix("")), runs_dir, [*asked, *overrides], only=stages), told.made


def write(recipe: Recipe, folder: Path) -> Path:
    """Write a recipe's file into a folder, and return where it is."""
    text = recipe.text
    for mark, stands_for in TEXTS.items():
        text = text.replace(mark, stands_for)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{recipe.name}.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def curves(stage: Path, names: Mapping[str, str]) -> dict[str, list[float]]:
    """Figures of a training, step by step; a step that does not tell one is left out of its curve.

    Args:
        stage: its folder.
        names: how a curve is called -> the figure.
    """
    found = list(read_figures(stage))
    return {key: [line.figures[name] for line in found if name in line.figures] for key, name in names.items()}


@dataclass(frozen=True)
class Panel:
    """One picture of several.

    Args:
        label: of its y axis.
        lines: name -> values.
        x_label: of its x axis.
    """

    label: str
    lines: Mapping[str, Sequence[float]]
    x_label: str


def lines(results: Mapping[str, Any], key: str) -> dict[str, list[float]]:
    """A curve of each row, the mean of its seeds, as long as the shortest of them; rows without it are left out."""
    found = {
        name: [one["curves"][key] for one in seeds.values() if one["curves"].get(key)]
        for name, seeds in results["rows"].items()
    }
    # not strict: a figure that a step of one seed does not tell, as of returns that are all equal, has no place
    return {name: [sum(v) / len(v) for v in zip(*of, strict=False)] for name, of in found.items() if of}


def draw(panels: Sequence[Panel], file: Path, columns: int = 2) -> Path | None:
    """Draw panels of lines as an SVG that is equal for equal lines; None without matplotlib."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        return None
    with mpl.rc_context({"svg.hashsalt": "posttrain", "svg.fonttype": "none", "font.size": 9}):
        height = -(-len(panels) // columns)
        figure = Figure(figsize=(4.5 * columns, 3.6 * height), layout="constrained")
        axes = figure.subplots(height, columns, squeeze=False).flat
        for panel, of in zip(panels, axes, strict=False):
            for name, values in panel.lines.items():
                of.plot(values, label=name)
            of.set_xlabel(panel.x_label)
            of.set_ylabel(panel.label)
            if panel.lines and (of is figure.axes[0] or panel.lines.keys() != panels[0].lines.keys()):
                of.legend(frameon=False)
        figure.savefig(file, metadata={"Date": None})
    return file
