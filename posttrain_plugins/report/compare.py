"""What two runs differ in, why each stage was made again, and what became better or worse. No paper.

A difference of figures is paired by problem, and there is none where the test sets, the metric or its plugin differ:
then it is said why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from typing import Any

from posttrain_plugins.record.artifact import Artifact
from posttrain_plugins.record.lineage import evaluations
from posttrain_plugins.record.runs import RunRecord, StageRecord
from posttrain_plugins.report.details import versions_of
from posttrain_plugins.report.masking import masked
from posttrain_plugins.report.problems import Answers, Pairing, paired, read_answers, same_problems
from posttrain_plugins.report.words import count, figure, verdict

__all__ = ["Change", "Comparison", "Measured", "Remade", "compare", "headline", "told_apart"]

ABSENT = "(absent)"
KEY_CHARS = 64
SHOWN_DIGITS = 12
NAME = "name"  # of the recipe: what tells the two runs apart is no difference between them
Ways = Mapping[tuple[str, str], dict[str, Answers]]


@dataclass(frozen=True)
class Change:
    """A value that is another.

    Args:
        path: dotted.
        a: of the first run.
        b: of the second.
    """

    path: str
    a: str
    b: str

    def __str__(self) -> str:
        return f"{self.path}: {self.a} → {self.b}"


@dataclass(frozen=True)
class Remade:
    """A stage that both runs have and that is not the same.

    Args:
        stage: its id.
        own: what of it is another.
        parents: the stages that it is made from which are others.
    """

    stage: str
    own: Sequence[Change]
    parents: Sequence[str]

    def reasons(self) -> list[str]:
        """Return why it was made again, each in a line."""
        return [*map(str, self.own), *(f"made from another {parent}" for parent in self.parents)]


@dataclass(frozen=True)
class Measured:
    """One model by one way of answering, in both runs.

    Args:
        evaluation: the stage that measured it.
        model: its name.
        way: `sampled`, or a strategy.
        metric: the reward.
        a: mean, low and high in the first run.
        b: in the second.
        pairing: the problems with the change; None where there is no difference to tell.
        reason: why there is none.
    """

    evaluation: str
    model: str
    way: str
    metric: str
    a: tuple[float, float, float] | None
    b: tuple[float, float, float] | None
    pairing: Pairing | None = None
    reason: str = ""

    @property
    def gain(self) -> tuple[float, float, float] | None:
        """B less A, with its 95 % interval."""
        found = self.pairing.gain if self.pairing is not None else None
        return None if found is None or isnan(found.mean) else (found.mean, found.low, found.high)

    def to_json(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"evaluation": self.evaluation, "model": self.model, "way": self.way}
        shown |= {"metric": self.metric, "a": self.a, "b": self.b}
        if self.pairing is None or self.gain is None:
            return {**shown, "difference": None, "reason": self.reason or "nothing could be judged in both"}
        kinds = {
            kind: [pair.problem for pair in self.pairing.pairs if pair.kind == kind] for kind in ("broken", "fixed")
        }
        told = {"difference": self.gain, "verdict": verdict(self.gain), "problems": len(self.pairing.pairs)}
        return {**shown, **told, **kinds}


@dataclass(frozen=True)
class Comparison:
    """Two runs.

    Args:
        a: name of the first.
        b: of the second.
        recipe: resolved values that differ.
        remade: stages that differ.
        only_a: stages that the second has not.
        only_b: that the first has not.
        versions: that differ.
        measured: each model that both measured, by each way of answering.
        notes: what a reader has to know, such as an evaluation whose models were made again since.
    """

    a: str
    b: str
    recipe: Sequence[Change]
    remade: Sequence[Remade]
    only_a: Sequence[str]
    only_b: Sequence[str]
    versions: Sequence[Change]
    measured: Sequence[Measured]
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def is_same(self) -> bool:
        """Do they differ in nothing at all?"""
        is_alike = all(one.pairing is not None and not one.pairing.is_changed for one in self.measured)
        return is_alike and not (self.recipe or self.remade or self.only_a or self.only_b or self.versions)

    @property
    def moved(self) -> list[Measured]:
        """What became better or worse beyond noise."""
        return [one for one in self.measured if one.gain is not None and verdict(one.gain) != "no difference"]

    def to_json(self) -> dict[str, Any]:
        return {
            "a": self.a,
            "b": self.b,
            "same": self.is_same,
            "recipe": [asdict(change) for change in self.recipe],
            "stages": [{"stage": one.stage, "why": one.reasons()} for one in self.remade],
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "versions": [asdict(change) for change in self.versions],
            "results": [one.to_json() for one in self.measured],
            "notes": list(self.notes),
        }


def compare(a: RunRecord, b: RunRecord, names: tuple[str, str] | None = None) -> Comparison:
    """Compare two runs.

    Args:
        a: the first, which is the baseline.
        b: the second.
        names: by which they are called, where not by those of their recipes.
    """
    stages_a, stages_b = ({stage.id: stage for stage in run.stages if stage.manifest} for run in (a, b))
    both = [id for id in stages_a if id in stages_b]
    return Comparison(
        *(names or (a.name, b.name)),
        recipe=list(_changes(_without_name(a.resolved), _without_name(b.resolved))),
        remade=[_remade(stages_a, stages_b, id) for id in both if stages_a[id].key != stages_b[id].key],
        only_a=[id for id in stages_a if id not in stages_b],
        only_b=[id for id in stages_b if id not in stages_a],
        versions=_versions(stages_a, stages_b, both),
        measured=list(_measured(a.artifacts, b.artifacts)),
        notes=[*_outdated(a), *_outdated(b)],
    )


def _without_name(resolved: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in masked(resolved).items() if name != NAME}


def _changes(a: Any, b: Any, path: str = "") -> Iterator[Change]:
    """Yield the values that differ, each by its path; a whole part that only one has is one change."""
    if a == b and type(a) is type(b):
        return
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in dict.fromkeys([*a, *b]):
            yield from _changes(a.get(name, ABSENT), b.get(name, ABSENT), f"{path}.{name}" if path else str(name))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from _changes(one, other, f"{path}[{i}]")
    else:
        yield Change(path, _shown(a), _shown(b))


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _remade(a: Mapping[str, StageRecord], b: Mapping[str, StageRecord], id: str) -> Remade:
    parts_a, parts_b = (masked(dict(stages[id].manifest.get("parts", {}))) for stages in (a, b))
    keys = {stage.key: stage.id for stages in (a, b) for stage in stages.values()}
    own, parents = [], []
    for name in dict.fromkeys([*parts_a, *parts_b]):
        one, other = parts_a.get(name, ABSENT), parts_b.get(name, ABSENT)
        if one == other or name.startswith("version of "):
            continue
        if one in keys or other in keys:  # what this stage was made from is another: that stage says why
            parents.append(keys.get(other) or keys[one])
        else:
            own.append(Change(name, _digits(one), _digits(other)))
    return Remade(id, own, list(dict.fromkeys(parents)))


def _digits(value: str) -> str:
    """Shorten a hash."""
    is_hash = len(value) == KEY_CHARS and set(value) <= set("0123456789abcdef")
    return value[:SHOWN_DIGITS] if is_hash else value


def _versions(a: Mapping[str, StageRecord], b: Mapping[str, StageRecord], both: Sequence[str]) -> list[Change]:
    found: dict[str, Change] = {}
    for id in both:
        one, other = versions_of(a[id].manifest), versions_of(b[id].manifest)
        for name in dict.fromkeys([*one, *other]):
            before, now = one.get(name, ABSENT), other.get(name, ABSENT)
            if before != now:
                found.setdefault(name, Change(name, before, now))
    return list(found.values())


def _outdated(run: RunRecord) -> Iterator[str]:
    current = {artifact.manifest["stage"] for artifact in evaluations(run.artifacts)}
    for stage in run.stages:
        if "models" in stage.details and stage.id not in current:
            yield f"{run.name}: '{stage.id}' measured models that were made again since; its figures are left out"


def _measured(a: Mapping[str, Artifact], b: Mapping[str, Artifact]) -> Iterator[Measured]:
    of_a = {artifact.manifest["stage"]: artifact for artifact in evaluations(a)}
    for artifact in evaluations(b):
        before = of_a.get(artifact.manifest["stage"])
        if before is None:
            continue
        models = [name for name in artifact.details["models"] if name in before.details["models"]]
        other = _other_metric(before, artifact)
        answers = [read_answers(one.folder / "samples.jsonl", one.details["metric"]) for one in (before, artifact)]
        for model in models:
            ways = [found.details["models"][model]["measures"] for found in (before, artifact)]
            for way in (name for name in ways[1] if name in ways[0]):
                values = _interval(before, ways[0][way]), _interval(artifact, ways[1][way])
                about = (artifact.manifest["stage"], model, way, artifact.details["metric"], *values)
                found = other or _other_problems(answers, (model, way))
                if found is not None:
                    yield Measured(*about, reason=found)
                elif (model, way) in answers[0] and (model, way) in answers[1]:
                    yield Measured(*about, pairing=paired(answers[0][model, way], answers[1][model, way]))


def _interval(artifact: Artifact, measure: Mapping[str, Any]) -> tuple[float, float, float] | None:
    found = measure["rewards"].get(artifact.details["metric"])
    return (found["mean"], found["low"], found["high"]) if found else None


def _other_metric(a: Artifact, b: Artifact) -> str | None:
    """Say that the two were not measured by the same reward, None where they were."""
    names = a.details["metric"], b.details["metric"]
    if names[0] != names[1]:
        return f"no difference can be told: the metric is {names[0]} in one and {names[1]} in the other"
    own = [
        {k: v for k, v in one.manifest.get("parts", {}).items() if k.startswith(("rewards[0]", "reader"))}
        for one in (a, b)
    ]
    changed = [name for name in dict.fromkeys([*own[0], *own[1]]) if own[0].get(name) != own[1].get(name)]
    if changed:
        return f"no difference can be told: what scores is another ({', '.join(changed)})"
    return None


def _other_problems(answers: Sequence[Ways], key: tuple[str, str]) -> str | None:
    """Say why two sets of answers are not to the same problems, None where they are."""
    if key not in answers[0] or key not in answers[1]:
        return None
    found = list(same_problems(answers[0][key], answers[1][key]))
    return f"no difference can be told: the test sets differ: {', '.join(found)}" if found else None


def told_apart(names: tuple[str, str]) -> tuple[str, str]:
    """Return two names that differ."""
    return names if names[0] != names[1] else (f"{names[0]} (first)", f"{names[1]} (second)")


def headline(comparison: Comparison) -> str:
    """Say in a sentence or two what is another, and what came out."""
    if comparison.is_same:
        return "No difference."
    lines = comparison.recipe
    differs = (
        f"One line differs: {lines[0]}." if len(lines) == 1 else f"{count(len(lines), 'line')} of the recipe differ."
    )
    if not comparison.measured:
        return f"{differs} No model was measured in both."
    # of each model its draws, which say most; else the first way that moved
    moved = {one.model: one for one in reversed(comparison.moved)}
    moved |= {one.model: one for one in comparison.moved if one.way == "sampled"}
    told = [
        f"{one.model} is {verdict(one.gain)}, {figure(one.gain, '+')} ({one.way})" for one in moved.values() if one.gain
    ]
    if not told and all(one.pairing is None for one in comparison.measured):
        return f"{differs} {comparison.measured[0].reason.capitalize()}."
    return f"{differs} {'; '.join(told) or 'Nothing became better or worse beyond noise'}."
