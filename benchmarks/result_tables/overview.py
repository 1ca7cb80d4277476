"""What stands of which recipe and seed: commit and load of each, and what the settings were chosen on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from result_tables import text
from result_tables.text import Json

__all__ = ["Standing", "overview_table", "standings"]

REPORTED = ("0", "1", "2")
UNMEASURED = "not measured"


@dataclass(frozen=True)
class Standing:
    """What results files say of a recipe, or of a script whose rows are trainings of its own.

    Args:
        seeds: seed -> what was measured of it, each with commit and load.
        settings: model, `all` or `others` -> what its settings were chosen on.
        cores: of the machine.
        missed: claims that do not hold; None where none are recorded.
        rows: how many a seed has when it is whole, of a script.
    """

    seeds: Mapping[str, Sequence[Json]]
    settings: Mapping[str, str] = field(default_factory=dict)
    cores: int = 1
    missed: Sequence[str] | None = None
    rows: int = 0

    def is_whole(self) -> bool:
        """Tell whether every reported seed is there, of a script with every row."""
        return all(len(self.seeds.get(seed, ())) >= max(self.rows, 1) for seed in REPORTED)


def overview_table(recipes: Path, results: Path) -> str:
    """Write one row per recipe of a folder, then one per script with rows of its own; a cell is a seed.

    Raises:
        ValueError: two results files hold the same recipe, or one holds a recipe that is not in the folder.
    """
    names = [file.stem for file in sorted(recipes.glob("[!_]*.yaml"))]
    names += [f"real/{file.stem}" for file in sorted((recipes / "real").glob("[!_]*.yaml"))]
    found: dict[str, Standing] = {}
    for name, one in standings(results):
        if name in found or not (name in names or name.endswith(".py")):
            what = "is in two results files" if name in found else f"has results, but no file in {recipes}"
            raise ValueError(f"{name} {what}")
        found[name] = one
    rows, whole = [], 0
    for name in [*names, *(name for name in found if name.endswith(".py"))]:
        one = found.get(name, Standing({}))
        whole += one.is_whole()
        cells = [_cell(one, seed) for seed in REPORTED]
        rows.append([f"`{name}`", *cells, _chosen_on(one.settings), _claims(one.missed)])
    head = ["recipe", *(f"seed {seed}" for seed in REPORTED), "settings chosen on", "claims"]
    note = (
        f"{whole} of {len(rows)} have three whole seeds. A cell is the commit that was measured and the load of the "
        f"machine, the higher of before and after; **bold** where the load was above {text.BUSY} for each core, or is "
        "unknown, or changes were in no commit (`-dirty`). `.py`: a script of `benchmarks/` whose rows are trainings "
        "of its own, with how many a seed has. Claims: those that the results file itself records."
    )
    return f"{text.table(head, rows)}\n\n{note}"


def standings(results: Path) -> Iterator[tuple[str, Standing]]:
    """Yield the name of each recipe and script that a results file has seeds of, and what stands there."""
    for file in sorted(results.glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        found, environment = content["results"], content["environment"]
        cores = int(environment["hardware"]["cores"] or 1)

        def of_seeds(seeds: Json, environment: Json = environment) -> dict[str, list[Json]]:
            return {seed: [{**environment, **one}] for seed, one in seeds.items()}

        rows = found.get("rows")
        if isinstance(rows, Mapping):
            by_seed: dict[str, list[Json]] = {}
            for row in rows.values():
                for seed, measured in of_seeds(row).items():
                    by_seed.setdefault(seed, []).extend(measured)
            yield f"{file.stem}.py", Standing(by_seed, {}, cores, found.get("missed"), len(rows))
        elif isinstance(found.get("seeds"), Mapping):
            name = found.get("recipe", file.stem)
            yield name, Standing(of_seeds(found["seeds"]), found.get("settings", {}), cores, found.get("missed"))
        if isinstance(recipes := found.get("recipes"), Mapping):
            for name, one in recipes.items():
                yield f"real/{name}", Standing(of_seeds(one["seeds"]), one.get("settings", {}), cores)


def _cell(one: Standing, seed: str) -> str:
    if seed not in one.seeds:
        return UNMEASURED
    measured = one.seeds[seed]
    commits = list(dict.fromkeys(str(part["commit"]) for part in measured))
    loads = [part.get("load_average") for part in measured]
    load = None if None in loads else max(text.load_of(told) for told in loads)
    told = ", ".join(text.short(commit, 7) for commit in commits)
    count = f"{len(measured)} of {one.rows} rows, " if one.rows else ""
    is_doubted = load is None or load > text.BUSY * one.cores or any(commit.endswith("-dirty") for commit in commits)
    mark = "**" if is_doubted else ""
    return f"{count}{mark}{told}, {'load unknown' if load is None else f'{load:.2f}'}{mark}"


def _chosen_on(settings: Mapping[str, str]) -> str:
    return "; ".join(where if model == "all" else f"{model}: {where}" for model, where in settings.items())


def _claims(missed: Sequence[str] | None) -> str:
    return "" if missed is None else f"{len(missed)} missed" if missed else "hold"
