"""What a run came to: one row a stage, from manifests alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from posttrain_plugins.record.artifact import Artifact
from posttrain_plugins.record.lineage import evaluations

__all__ = ["Row", "rows"]

Triple: TypeAlias = tuple[float, float, float]
"""Value, and the ends of its 95 % bootstrap interval."""


@dataclass(frozen=True)
class Row:
    """One stage of a run.

    Args:
        stage: its id.
        made_from: what it was made from, the model first.
        seconds: train time of a training stage, else its whole time; None for a model that was there before.
        sampled: sampled accuracy of its model.
        gain: of that over the model it was made from, paired by problem.
        majority: accuracy of the majority vote.
        greedy: accuracy of the greedy completion.
        remark: the figure that tells most about a stage without a measured model.
    """

    stage: str
    made_from: str = ""
    seconds: float | None = None
    sampled: Triple | None = None
    gain: Triple | None = None
    majority: float | None = None
    greedy: float | None = None
    remark: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def rows(artifacts: Mapping[str, Artifact]) -> list[Row]:
    """Every stage in the order of the run; a base that was not made here comes first if it was measured."""
    measured: dict[str, Mapping[str, Any]] = {}
    for artifact in evaluations(artifacts):
        for name, found in artifact.details["models"].items():
            measured[name] = _merged(measured.get(name, {}), found)
    # A model that no stage made has no artifact, and is what all gains are over: it comes first.
    foreign = [_row(name, None, measured[name]) for name in measured if name not in artifacts]
    return foreign + [_row(name, artifact, measured.get(name)) for name, artifact in artifacts.items()]


def _merged(before: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What two evaluations tell of one model; the later wins where both have a measure, and with it its gain."""
    gains = {name: gain for name, gain in _gains(before).items() if name not in found["measures"]}
    return {
        "measures": {**before.get("measures", {}), **found["measures"]},
        "gain": {"measures": {**gains, **_gains(found)}},
    }


def _gains(found: Mapping[str, Any]) -> Mapping[str, Any]:
    gains: Mapping[str, Any] = found.get("gain", {}).get("measures", {})
    return gains


def _row(name: str, artifact: Artifact | None, found: Mapping[str, Any] | None) -> Row:
    measures = (found or {}).get("measures", {})
    gains = _gains(found or {})
    return Row(
        stage=name,
        made_from=", ".join(artifact.manifest["from"]) if artifact else "",
        seconds=_seconds(artifact) if artifact else None,
        sampled=_triple(_metric(measures.get("sampled"))),
        gain=_triple(gains.get("sampled")),
        majority=_mean(measures.get("majority")),
        greedy=_mean(measures.get("greedy")),
        remark=_remark(artifact) if artifact else "",
    )


def _seconds(artifact: Artifact) -> float:
    return float(artifact.metrics.get("train_s", artifact.manifest["seconds"]))


def _remark(artifact: Artifact) -> str:
    figures = artifact.metrics
    if "eval_accuracy" in figures and artifact.manifest["makes"] == "reward":
        found = f"{figures['eval_wrong_found']:.0%} of wrong steps found" if "eval_wrong_found" in figures else ""
        of_what = "step" if found else "pair"
        return f"held-out {of_what} accuracy {figures['eval_accuracy']:.3f}" + (f", {found}" if found else "")
    if "solved_share" in figures:
        return f"{figures['rows']:.0f} rows, {figures['solved_share']:.0%} of problems solved"
    if artifact.manifest["makes"] == "model" and "reward" in figures:
        return f"reward {figures['reward']:.3f}"
    if "train_loss" in figures:
        return f"loss {figures['train_loss']:.3f}"
    if "models" in artifact.details:  # an evaluation's figures stand in the rows of its models
        return ""
    # a stage of somebody else's: what it returned first is what its author wants to be seen
    return ", ".join(f"{name} {value:.4g}" for name, value in list(figures.items())[:3])


def _metric(measure: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The first reward of a measure is its metric."""
    return next(iter(measure["rewards"].values()), None) if measure else None


def _triple(interval: Mapping[str, Any] | None) -> Triple | None:
    return (interval["mean"], interval["low"], interval["high"]) if interval else None


def _mean(measure: Mapping[str, Any] | None) -> float | None:
    interval = _metric(measure)
    return float(interval["mean"]) if interval else None
