"""How figures are written in tables: means, intervals, gains by seed, doubts. What every table here shares."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

__all__ = [
    "BUSY",
    "THREE",
    "TUNED",
    "Json",
    "about_intervals",
    "average",
    "doubts",
    "each_seed",
    "gain_of",
    "how_few",
    "load_of",
    "mean_of",
    "measurements",
    "over_seeds",
    "ratio",
    "short",
    "signed",
    "source",
    "table",
    "tuned_models",
    "which_seeds",
]

Json = Mapping[str, Any]
BUSY = 1.5
"""Load above which a figure is marked, for each core; the script itself makes 1."""
THREE = 3
"""Of fewer it is said how many."""
TUNED = "tuned on what it reports"


def gain_of(results: Json, model: str) -> dict[str, Any] | None:
    """Return a model's gain, pooled; of files without each problem's figures with the widest ends of the seeds'."""
    for gain in results.get("gains", ()):
        if gain["model"] == model:
            return {"is_pooled": True, **gain}
    found = {seed: one["models"][model] for seed, one in results["seeds"].items()}
    gains = {seed: one["gain"] for seed, one in found.items() if one["gain"]}
    if not gains:
        return None
    by_seed = {seed: gain["mean"] for seed, gain in gains.items()}
    mean, over = mean_of(list(by_seed.values())), next(iter(found.values()))["parent"]
    low, high = min(gain["low"] for gain in gains.values()), max(gain["high"] for gain in gains.values())
    return {"is_pooled": False, "over": over, "mean": mean, "low": low, "high": high, "by_seed": by_seed}


def each_seed(gain: Json) -> str:
    """Write the gain of each seed, one after the other."""
    return ", ".join(f"{value:+.2f}" for value in gain["by_seed"].values())


def tuned_models(settings: Mapping[str, str]) -> str:
    """Name the models whose settings were chosen on what they report; empty where there are none."""
    return ", ".join("all models" if model == "all" else model for model, where in settings.items() if where == TUNED)


def about_intervals(results: Json, models: Sequence[str]) -> str:
    """Tell what the brackets of a table of models are."""
    gains = [gain for model in models if (gain := gain_of(results, model))]
    ends = "in brackets the widest ends of their 95 % intervals"
    if gains and all(gain["is_pooled"] for gain in gains):
        ends += ", of gains the 95 % interval of a bootstrap over problems, the same for all seeds, and over seeds"
    tuned = tuned_models(results.get("settings", {}))
    said = f" Settings of {tuned}: **{TUNED}**." if tuned else ""
    of = which_seeds(results["seeds"])
    return f"{of[0].upper()}{of[1:]}: means, and {ends}.{said}"


def mean_of(values: Sequence[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


def which_seeds(seeds: Collection[str]) -> str:
    """Name the seeds, and count them where they are fewer than three.

    Example:
        >>> which_seeds(["0", "1", "2"]), which_seeds(["0"])
        ('seeds 0, 1, 2', '1 seed: 0')
    """
    names = ", ".join(seeds)
    return f"{few}: {names}" if (few := how_few(seeds)) else f"seeds {names}"


def how_few(seeds: Collection[object]) -> str:
    """Count the seeds where they are fewer than three."""
    return f"{len(seeds)} seed{'s' * (len(seeds) != 1)}" if len(seeds) < THREE else ""


def signed(gain: Json) -> str:
    """Write a gain with its sign, and its interval if it has one."""
    return f"{gain['mean']:+.2f}" + (f" [{gain['low']:+.2f}, {gain['high']:+.2f}]" if "low" in gain else "")


def measurements(environment: Json, results: Json) -> list[Json]:
    """Return what was measured by itself, with its commit and load: seeds, or where none tell, the whole file."""

    def told(part: Any) -> Iterator[Json]:
        if isinstance(part, Mapping):
            if "commit" in part:
                yield {**environment, **part}
            else:
                for one in part.values():
                    yield from told(one)

    return list(told(results)) or [environment]


def doubts(environment: Json, results: Json = MappingProxyType({}), is_marked_up: bool = True) -> str:
    """Return what makes figures worth less: changes that no commit holds, or other work on the machine."""
    measured = measurements(environment, results)
    cores = int(environment["hardware"]["cores"] or 1)
    load = max(load_of(one.get("load_average")) for one in measured)
    is_dirty = any(one["commit"].endswith("-dirty") for one in measured)
    dirty = ["changes that are in no commit"] if is_dirty else []
    busy = [f"a busy machine, load {load:.1f} on {cores} cores"] if load > BUSY * cores else []
    found = " and ".join(dirty + busy)
    if not found:
        return ""
    return f". **Measured with {found}.**" if is_marked_up else f", with {found}"


def processors(environment: Json, results: Json) -> str:
    """Name the processors that figures were measured on; of parts that do not tell, the file's."""
    found = (str(one.get("cpu", environment["hardware"]["cpu"])) for one in measurements(environment, results))
    return " and ".join(dict.fromkeys(found))


def short(commit: str, digits: int) -> str:
    """Write a commit by its first digits; `-dirty` stays.

    Example:
        >>> short("60c61e39ee82ecdb-dirty", 7)
        '60c61e3-dirty'
    """
    sha, dash, dirty = commit.partition("-")
    return f"{sha[:digits]}{dash}{dirty}"


def load_of(told: float | Sequence[float] | None) -> float:
    """Return the higher of the loads before and after, where both stand."""
    return max(told) if isinstance(told, Sequence) else float(told or 0.0)


def over_seeds(intervals: Sequence[Json], sign: str = "") -> str:
    """Write the mean over seeds, with the widest ends of their intervals."""
    mean = sum(one["mean"] for one in intervals) / len(intervals)
    low, high = min(one["low"] for one in intervals), max(one["high"] for one in intervals)
    return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def ratio(interval: Json) -> str:
    """Write a median ratio with its interval."""
    return f"{interval['median']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def average(values: Sequence[float], digits: int = 2) -> str:
    """Write the mean of some figures."""
    return f"{mean_of(values):.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def source(environment: Json, results: Json, file: str, up: str) -> str:
    """Tell what a table's figures come from: machine, versions, commits, file, and what makes them worth less."""
    hardware = environment["hardware"]
    machine = hardware["gpu"] or f"{processors(environment, results)}, {hardware['cores']} cores"
    versions = environment["versions"]
    made = dict.fromkeys(str(one["commit"]) for one in measurements(environment, results))
    commits = ", ".join(short(commit, 12) for commit in made)
    return (
        f"<sub>{machine}; torch {versions['torch']}, TRL {versions['trl']}; commit{'s' * (len(made) > 1)} {commits}, "
        f"{environment['date'][:10]}; [benchmarks/results/{file}]({up}benchmarks/results/{file})"
        f"{doubts(environment, results)}</sub>"
    )
