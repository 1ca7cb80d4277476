"""What a command line, a server or a Python call names outside any recipe: models, rewards, data sets, strategies.

- A model is a folder, a Hub id, `RUN:STAGE`, or the URL of a server (`http://host:8000/v1#model`).
- A reward is a plugin (`length(max_chars=20)`), or `RUN:STAGE` of a stage that makes a reward.
- A data set is a plugin (`digit_chain(split=test, size=50)`), a file, or a Hub id.
- A strategy is a plugin whose fields refer to these by their annotations, and to other strategies:
  `best_of_n(n=8, scorer='quickstart:rm')`, `compute_optimal(strategies=['greedy', 'self_consistency(n=8)'])`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.folder import choose_adapter, named_adapters
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.declarations import declared
from posttrain_plugins.plugins.registry import suggest, with_article
from posttrain_plugins.plugins.schema import Field
from posttrain_plugins.plugins.signature import of_object
from posttrain_plugins.recipe.build import gather
from posttrain_plugins.recipe.check.diagnostics import Checker
from posttrain_plugins.recipe.check.loops import RawStages
from posttrain_plugins.recipe.check.model import Model
from posttrain_plugins.recipe.check.references import LookUp, References
from posttrain_plugins.recipe.files import model_problem
from posttrain_plugins.recipe.handoff import check_whole
from posttrain_plugins.recipe.plan.store import Store
from posttrain_plugins.recipe.plugin_schema import parse_call, plugin_schema
from posttrain_plugins.recipe.read.document import Document
from posttrain_plugins.recipe.run.inputs import Resolver
from posttrain_plugins.recipe.spec import REWARD_LOADING, Given, Source
from posttrain_plugins.record.artifact import Artifact
from posttrain_plugins.types import KINDS, Kind, ModelArtifact, ResolvedReward, ResolvedStrategy, server_of

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["NameResolver"]

NONE: Mapping[str, Any] = MappingProxyType({})
Scorers: TypeAlias = Mapping[str, Any] | Sequence[str]


def _checked(
    kind: str, value: Any, look_up: LookUp = lambda kind, value: None, scorers: Mapping[str, ResolvedReward] = NONE
) -> Source:
    """What a name stands for, checked as in a recipe that has nothing but these rewards."""
    checker = Checker(Document(Path("command line")))
    references = References(checker, RawStages(), Model(), look_up)
    references.named["rewards"] |= {name: Given(name, reward) for name, reward in scorers.items()}
    found = references.source(kind, value, (), {}, "strategy")
    _raise_first(checker)
    return found


def _raise_first(checker: Checker) -> None:
    if checker.mistakes:
        hint = next((mistake.hint for mistake in checker.mistakes if mistake.hint), None)
        raise InputError("; ".join(mistake.message for mistake in checker.mistakes), hint=hint)


@dataclasses.dataclass(frozen=True)
class NameResolver:
    """Looks names up.

    Args:
        runs_dir: where `RUN:STAGE` is.
        scorers: rewards that have a name already.
    """

    runs_dir: Path
    scorers: Mapping[str, ResolvedReward] = dataclasses.field(default_factory=dict)

    @classmethod
    def with_scorers(cls, runs_dir: Path, scorers: Scorers) -> NameResolver:
        """`{"rm": reward}`, `["rm=quickstart:rm"]` or `["length(max_chars=9)"]` have their names already."""
        if not isinstance(scorers, Mapping):
            scorers = dict(
                text.partition("=")[::2] if "=" in text.partition("(")[0] else (text, text) for text in scorers
            )
        return cls(runs_dir, {name: cls(runs_dir).named(name, given) for name, given in scorers.items()})

    # --- models ---------------------------------------------------------------------------------------------------

    def model(self, model: str) -> ModelArtifact:
        """A model under the name by which it is asked for; a stage's with how its recipe loads it.

        Raises:
            InputError: that run has no such stage, or it made no model.
        """
        if server_of(model):
            return ModelArtifact(model, model)
        given, _, adapter = (model, "", "") if Path(model).exists() else model.partition("+")
        # before anything is loaded; what may be read of pickled weights is said by whoever loads
        if Path(given).is_dir() and (problem := model_problem(Path(given), allow_pickle=True)):
            raise InputError(problem)
        artifact = None if Path(given).exists() else self._made(given)
        if artifact is None:
            return ModelArtifact(model, choose_adapter(given, given, adapter))
        run, _, stage = given.partition(":")
        if artifact.model_path is None:
            raise InputError(f"stage '{stage}' of run '{run}' made no model")
        if artifact.manifest.get("makes") == "reward":
            message = f"stage '{stage}' of run '{run}' makes a reward, expected a model"
            raise InputError(message, hint=f"use it as a scorer: scorer='{model}'")
        check_whole(given, artifact, artifact.model_path)
        return ModelArtifact(model, choose_adapter(given, artifact.model_path, adapter), _loading(artifact))

    def each(self, name: str, model: str) -> dict[str, str]:
        """`name` -> `model`; of one that holds several adapters, `name+adapter` -> `model+adapter` for each."""
        artifact = None if server_of(model) or "+" in model or Path(model).exists() else self._made(model)
        folder = artifact.model_path if artifact is not None else model
        adapters = named_adapters(folder) if folder is not None else []
        return {f"{name}+{adapter}": f"{model}+{adapter}" for adapter in adapters} or {name: model}

    def _made(self, name: str) -> Artifact | None:
        """The artifact of `RUN:STAGE`, None for a name without a colon."""
        run, colon, stage = name.partition(":")
        if not colon:
            return None
        store = Store(self.runs_dir, run)
        artifact = store.latest(stage)
        if artifact is None:
            done = sorted(p.name for p in (store.folder / "latest").glob("*"))
            hint = suggest(stage, done) or (f"done stages: {', '.join(done)}" if done else f"posttrain run {run}")
            raise InputError(f"run '{run}' has no finished stage '{stage}' below {self.runs_dir}", hint=hint)
        return artifact

    # --- rewards and strategies -----------------------------------------------------------------------------------

    def named(self, name: str, given: Any) -> ResolvedReward:
        """Return a reward under another name: by its own, as a function, or as it is."""
        if isinstance(given, ResolvedReward):
            return given
        return ResolvedReward(name, self.reward(given).func if isinstance(given, str | Mapping) else given)

    def reward(self, reward: str | Mapping[str, Any]) -> ResolvedReward:
        """Return a reward under the name by which it is asked for: one of `scorers`, or found anew.

        Raises:
            InputError: there is none of that name, or the stage makes something else.
        """
        found: ResolvedReward = Resolver().resolve(_checked("reward", reward, self.look_up, self.scorers), {})
        return dataclasses.replace(found, name=reward) if isinstance(reward, str) else found

    def dataset(self, data: str | Mapping[str, Any]) -> Dataset:
        """Return a data set, loaded: a plugin's, a file or a Hub id, or what a recipe would write.

        Raises:
            InputError: there is none of that name, or it refuses its parameters.
        """
        made: Dataset = Resolver().resolve(_checked("dataset", data), {})
        return made

    def strategy(self, spec: Any, look_up: LookUp | None = None) -> ResolvedStrategy:
        """Return a strategy by its text, a mapping with `use`, or the object itself, with all that its fields refer to.

        Args:
            spec: what is asked for.
            look_up: in place of this resolver's own; see `References`.

        Raises:
            InputError: it, or something that it refers to, is not there, or refuses its parameters.
        """
        if isinstance(spec, str | Mapping):
            found = _checked("strategy", spec, look_up or self.look_up, self.scorers)
            made: ResolvedStrategy = Resolver().resolve(found, {})
            return made
        # One that was made already: only a field that names a strategy or an object makes it a new one.
        name = getattr(spec, "__name__", type(spec).__name__)
        if not dataclasses.is_dataclass(spec):
            return ResolvedStrategy(name, spec)
        given = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec) if field.init}
        checker = Checker(Document(Path(name)))
        references = References(checker, RawStages(), Model(), self.look_up)
        references.named["rewards"] |= {name: Given(name, reward) for name, reward in self.scorers.items()}
        fields = of_object(type(spec)).fields
        named = {key: field for key, field in fields.items() if field.ref is not None and given.get(key) is not None}
        refs = {key: references.input(field, given[key], (key,), {}, "strategy") for key, field in named.items()}
        _raise_first(checker)
        values, scorers, models = gather({key: Resolver().resolve(source, {}) for key, source in refs.items()})
        changed: Any = {key: value for key, value in values.items() if value != given[key]}
        strategy: Any = dataclasses.replace(spec, **changed) if changed else spec  # type: ignore[type-var]
        return ResolvedStrategy(name, strategy, scorers, models)

    def look_up(self, kind: str, value: Any) -> Source | Mapping[str, Any]:
        """Return what a name stands for that no recipe knows: `RUN:STAGE`, any model, an object of Python's."""
        if isinstance(value, Mapping):
            return None
        if not isinstance(value, str):
            return Given(str(value), self.strategy(value) if kind == "strategy" else value)
        if kind == "model":
            return Given(value, self.model(value))
        if kind == "reward":
            return self._trained(value)
        if kind == "object" and ":" not in value:
            return Given(value, Path(value))
        return None

    def _trained(self, reward: str) -> dict[str, Any] | None:
        """`RUN:STAGE` as a recipe writes it: the plugin that its stage is used through, with its folder."""
        run, _, stage = reward.partition(":")
        artifact = Store(self.runs_dir, run).latest(stage) if stage else None
        if artifact is None:
            return None
        makes = artifact.manifest.get("makes", "reward")
        if makes != "reward" or artifact.model_path is None:
            raise InputError(f"stage '{stage}' of run '{run}' makes {with_article(makes)}, expected a reward")
        # What it is used through the class of its stage says, which the manifest names.
        owner, use = str(artifact.manifest["plugin"]), str(artifact.manifest["use"])
        distribution = owner.partition(" ")[0]
        maker = registry.load("stage", owner if ":" in owner else f"{distribution}:{use}")
        plugin = registry.own_name("reward", str(declared(maker, "reward_plugin")), distribution)
        is_adapter = (artifact.model_path / "adapter_config.json").is_file()
        loading = artifact.manifest.get("loading", {}) if is_adapter else {}
        return {
            "use": plugin,
            "model_name_or_path": str(artifact.model_path),
            **artifact.manifest.get("handoff", {}).get("reward", {}),
            **{name: value for name, value in loading.items() if name in REWARD_LOADING},
        }

    # --- for a recipe ---------------------------------------------------------------------------------------------

    def as_written(self, kind: Kind | str, text: str) -> Any:
        """A model, reward or strategy as a recipe writes it: the same text, but for `RUN:STAGE`, unknown to a recipe.

        What cannot be read stays as it is: the recipe's check tells it with its place.
        """
        if kind == "model":
            return self.model(text).path
        trained = self._trained(text) if kind == "reward" else None
        if trained is not None or kind not in KINDS:
            return trained or text
        try:
            name, params = parse_call(text)
            fields = plugin_schema(registry.find(kind, name)).fields
        except (InputError, LookupError, SyntaxError):
            return text
        written = {key: self._written(fields.get(key), value) for key, value in params.items()}
        return text if written == params else {"use": name, **written}

    def _written(self, field: Field | None, value: Any) -> Any:
        if isinstance(value, list):
            return [self._written(field, item) for item in value]
        is_reference = isinstance(value, str) and field is not None and field.ref is not None
        return self.as_written(field.ref.kind, value) if is_reference else value  # type: ignore[union-attr]


def _loading(artifact: Artifact) -> dict[str, Any]:
    """As in its recipe; but what was merged or exported is loaded as it was saved."""
    loading = dict(artifact.manifest.get("loading", {}))
    if artifact.manifest.get("handoff", {}).get("quantization"):
        return loading
    return {name: value for name, value in loading.items() if not name.startswith(("load_in_", "bnb_", "use_bnb"))}
