"""What stands of which recipe and seed: commit and load of each, and what the settings were chosen on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from result_tables import text
from result_tables.text import Json

__all__ = ["Standing", "overview_table", "standings"]

SEEDS = ("0", "1", "2")
UNMEASURED = "not measured"


@dataclass(frozen=True)
class Standing:
    """What results files say of a recipe, or of a script whose rows are trainings of its own.

    Args:
        seeds: seed -> what was measured of it, each with commit and load.
        settings: model, `all` or `others` -> what its settings were chosen on.
        cores: of the machine.
        missed: claims that do not hold; None where there are no claims.
    """

    seeds: Mapping[str, Sequence[Json]]
    settings: Mapping[str, str] = field(default_factory=dict)
    cores: int = 1
    missed: Sequence[str] | None = None


def overview_table(recipes: Path, results: Path) -> str:
    """Write one row per recipe of a folder, then one per script with rows of its own; a cell is a seed."""
    found = dict(standings(results))
    names = [file.stem for file in sorted(recipes.glob("[!_]*.yaml"))]
    names += [f"real/{file.stem}" for file in sorted((recipes / "real").glob("[!_]*.yaml"))]
    rows = []
    for name in [*names, *(name for name in found if name.endswith(".py"))]:
        one = found.get(name, Standing({}))
        cells = [_cell(one.seeds[seed], one.cores) if seed in one.seeds else UNMEASURED for seed in SEEDS]
        rows.append([f"`{name}`", *cells, _chosen_on(one.settings), _claims(one.missed)])
    head = ["recipe", *(f"seed {seed}" for seed in SEEDS), "settings chosen on", "claims"]
    whole = sum(all(cell != UNMEASURED for cell in row[1:4]) for row in rows)
    note = (
        f"{whole} of {len(rows)} have three seeds. A cell is the commit that was measured and the load of the machine, "
        f"the higher of before and after; **bold** where the load was above {text.BUSY} for each core, or changes "
        "were in no commit (`-dirty`). `.py`: a script of `benchmarks/` whose rows are trainings of its own, with "
        "how many a seed has."
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

        if isinstance(rows := found.get("rows"), Mapping) and all(isinstance(row, Mapping) for row in rows.values()):
            by_seed: dict[str, list[Json]] = {}
            for row in rows.values():
                for seed, measured in of_seeds(row).items():
                    by_seed.setdefault(seed, []).extend(measured)
            yield f"{file.stem}.py", Standing(by_seed, {}, cores, found.get("missed"))
        elif isinstance(found.get("seeds"), Mapping):
            name = found.get("recipe", file.stem)
            yield name, Standing(of_seeds(found["seeds"]), found.get("settings", {}), cores, found.get("missed"))
        for name, one in found.get("recipes", {}).items() if isinstance(found.get("recipes"), Mapping) else ():
            if isinstance(one.get("seeds"), Mapping):
                yield f"real/{name}", Standing(of_seeds(one["seeds"]), one.get("settings", {}), cores)


def _cell(measured: Sequence[Json], cores: int) -> str:
    commits = list(dict.fromkeys(str(one["commit"]) for one in measured))
    load = max(text.load_of(one.get("load_average")) for one in measured)
    told = ", ".join(f"{sha[:7]}{dash}{dirty}" for sha, dash, dirty in (commit.partition("-") for commit in commits))
    count = f"{len(measured)} rows, " if len(measured) > 1 else ""
    is_doubted = load > text.BUSY * cores or any(commit.endswith("-dirty") for commit in commits)
    mark = "**" if is_doubted else ""
    return f"{count}{mark}{told}, {load:.1f}{mark}"


def _chosen_on(settings: Mapping[str, str]) -> str:
    return "; ".join(where if model == "all" else f"{model}: {where}" for model, where in settings.items())


def _claims(missed: Sequence[str] | None) -> str:
    return "" if missed is None else f"{len(missed)} missed" if missed else "hold"
