"""What a recipe writes where a stage takes a model, data, a reward ... -> the `Source` that it stands for.

That is a name (of a stage, of a loop, of an entry in a section) or, written in place, a plugin, a file, a Hub id. A
strategy's fields may be references too, of any kind and at any depth: its scorers, judges, other strategies, tools.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from posttrain_plugins.errors import InputError, PluginNotFound
from posttrain_plugins.guard.settings import ISOLATING, GuardSettings, refusal
from posttrain_plugins.guard.settings import KEYS as GUARD_KEYS
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.declarations import declared
from posttrain_plugins.plugins.registry import suggest, with_article
from posttrain_plugins.plugins.schema import Field, Schema, is_list
from posttrain_plugins.recipe.check.adapters import with_named_fields
from posttrain_plugins.recipe.check.diagnostics import Checker, listed
from posttrain_plugins.recipe.check.local_paths import (
    DATA_OPTIONS,
    existing_data,
    existing_model,
    existing_object,
    is_data,
)
from posttrain_plugins.recipe.check.loops import RawStages
from posttrain_plugins.recipe.check.model import Model
from posttrain_plugins.recipe.plugin_schema import parse_call
from posttrain_plugins.recipe.read.document import Keys
from posttrain_plugins.recipe.spec import (
    REWARD_PLUGIN,
    External,
    FromStage,
    Input,
    Policy,
    Source,
    StageSpec,
    Use,
    flat,
)
from posttrain_plugins.types import AdapterMode, Kind

__all__ = ["RESERVED", "SAID", "SECTIONS", "References", "check_names", "printed"]

SECTIONS: dict[str, Kind] = {"adapters": "adapter", "datasets": "dataset", "rewards": "reward"}
REFERRED = {"reward": "rewards", "strategy": "strategies"}  # kinds of which a stage may have several
RESERVED: dict[str, dict[str, Any]] = {
    "reward": {"weight": float, **GUARD_KEYS},
    "dataset": DATA_OPTIONS,
    "stage": {"adapter_mode": AdapterMode, "chat_template": str},  # of those with a model; `stage.py` takes them
}
SAID: dict[str, dict[str, str]] = {
    "reward": {"weight": "what its score counts for where scores are added up; 1.0 by default."},
    "dataset": {
        "path": "a file, a folder, or a data set of the Hub, in place of `use`.",
        "name": "beside `path` only: the configuration of a Hub data set.",
        "data_dir": "beside `path` only: a folder inside it.",
        "data_files": "beside `path` only: some of its files.",
        "format": "beside `path` only: the form of a well-known set, turned into TRL's columns.",
        "types": "beside `path` only: of CSV columns that are no text, `{label: bool}`.",
        "split": "one of its splits, by default `train`; of the Hub also a slice, `train[:1000]`.",
        "columns": "these are kept, by their names before `rename`.",
        "limit": "the first so many rows.",
        "rename": "old name to new, `{question: prompt}`.",
        "system_prompt": "a system message before every prompt, which becomes a conversation.",
    },
    "stage": {
        "adapter_mode": "a model that is an adapter: `continue` trains it, `stack` puts one on it, `merge` merges it.",
        "chat_template": "a Jinja file, `module:attr` or a template that TRL ships, for the model that is trained.",
    },
    "loop": {
        "repeat": "the number of turns.",
        "init": "what `${prev}` is in the first turn; `base` by default.",
        "stages": "those of one turn; the last one's result is the turn's.",
        "${prev}": "no key but a name, for inside: what the turn before made.",
    },
}
"""What the words of `RESERVED`, of `FILE_OPTIONS` and of a loop mean; the guard's are `GuardSettings`'."""
POLICY = Policy()
LookUp: TypeAlias = Callable[[str, Any], "Source | Mapping[str, Any]"]


class References:
    """What the names of a recipe refer to.

    Args:
        checker: the recipe.
        stages: its stages.
        model: its `base`.
        look_up: is asked first of every name, with the kind that is wanted: what it gives is taken, None goes on. Names
            outside of any recipe (`RUN:STAGE`, a server's scorers) come in here, and a server refuses here what its
            clients may not name.
    """

    def __init__(
        self, checker: Checker, stages: RawStages, model: Model, look_up: LookUp = lambda kind, value: None
    ) -> None:
        self.look_up = look_up
        self.checker = checker
        self.stages = stages
        self.model = model
        self.named: dict[str, dict[str, Source]] = {section: {} for section in SECTIONS}
        self.models: dict[str, Source] = {"base": model.source} if model.source is not None else {}

    def define(self, section: str) -> None:
        """Reads the named entries of a section; they may refer to stages and to the entries before them."""
        for name, value in self.checker.mapping((section,)).items():
            path: Keys = (section, name)
            if name in self.stages.by_id or name in self.stages.aliases:
                self.checker.error(path, f"duplicate id '{name}': it is a stage too", "rename one of them", True)
            self.named[section][name] = self._in_place(SECTIONS[section], value, path, name, {})

    def input(self, field: Field, value: Any, path: Keys, scope: Mapping[str, str], asker: Kind = "stage") -> Input:
        """What a reference field of a stage, or of another `asker`, refers to: a tuple where its type is a list."""
        assert field.ref is not None
        kind = field.ref.kind
        if not is_list(field.type):
            return self.source(kind, value, path, scope, asker)
        if not isinstance(value, list | tuple):
            self.checker.error(path, f"'{path[-1]}' is {value!r}, expected a list", f"{path[-1]}: [{value}]")
            return ()
        return tuple(self.source(kind, item, (*path, i), scope, asker) for i, item in enumerate(value))

    def source(self, kind: str, value: Any, path: Keys, scope: Mapping[str, str], asker: Kind = "stage") -> Source:
        """The source that a written value stands for, or None after telling what is wrong."""
        if kind == "model" and asker == "strategy" and value == POLICY.name:
            return POLICY
        found = self.look_up(kind, value)
        if isinstance(found, Mapping):  # as a recipe would write it, under the name by which it was asked for
            return self._in_place(typing.cast(Kind, kind), found, path, str(value), scope)
        if found is not None:
            return found
        if kind == "object":
            return existing_object(self.checker, value, path)
        if isinstance(value, str):
            written, _, adapter = value.partition("+") if kind == "model" else (value, "", "")
            name = self.stages.meant(written, scope)
            if name in self.stages.by_id:
                return self._from_stage(kind, name, path, adapter)
            name = self.stages.meant(value, scope)
            if kind == "model":
                return self._model(name, path, asker)
            if name in self.named.get(f"{kind}s", {}):
                return self.named[f"{kind}s"][name]
        if kind == "model" or not isinstance(value, str | Mapping):
            self.checker.error(path, f"'{value}' is no reference to {with_article(kind)}")
            return None
        return self._in_place(typing.cast(Kind, kind), value, path, None, scope)

    # --- names ----------------------------------------------------------------------------------------------------

    def _from_stage(self, kind: str, name: str, path: Keys, adapter: str = "") -> Source:
        made = self.stages.produces.get(name)
        if made is None:  # its plugin is not known, which is told already
            return FromStage(name, kind)
        if kind != made:
            known = self.stages.making(kind)
            message = f"stage '{name}' makes {with_article(made)}, expected {with_article(kind)}"
            self.checker.error(path, message, suggest(name, known) or listed(known))
            return None
        if made == "model" and bool(adapter) != self._makes_several(name):
            message = f"stage '{name}' makes {'one model' if adapter else 'several adapters, expected one of them'}"
            self.checker.error(path, message, name if adapter else f"{name}+TASK, a value of its data's column 'task'")
            return None
        return FromStage(name, made, self._reward_plugin(name) if made == "reward" else "", adapter)

    def _makes_several(self, stage: str) -> bool:
        plugin = registry.find("stage", str(self.stages.by_id[stage].body["use"]), self.checker.folder)
        found = self.checker.schemas[plugin]
        return bool(found is not None and found.declares("several"))

    def _reward_plugin(self, stage: str) -> str:
        plugin = registry.find("stage", str(self.stages.by_id[stage].body["use"]), self.checker.folder)
        found = self.checker.schemas[plugin]
        return str(found.declares("reward_plugin")) if found is not None else REWARD_PLUGIN

    def _model(self, name: str, path: Keys, asker: Kind) -> Source:
        if name == "base":
            if self.checker.document.get(("model",)) is None:
                message, hint = "the recipe has no 'model'", "model: a folder, a Hub id, or {use: pretrain, ...}"
                self.checker.error(path, message, hint)
            return self.model.source
        if name.startswith(("http://", "https://")) and not name.partition("#")[2]:
            self.checker.error(path, f"no model is named for the server {name}", f"{name}#MODEL")
            return None
        if "/" in name or name.startswith("."):
            short = Path(name).name if name.startswith("/") else name
            return self._foreign(existing_model(self.checker, short, name, path, self.model.loading), path)
        known = ["base", *self.stages.making("model"), *self.stages.aliases]
        known += [POLICY.name] if asker == "strategy" else []
        self.checker.error(path, f"unknown model '{name}'", suggest(name, known) or listed(known))
        return None

    def _foreign(self, source: External, path: Keys) -> Source:
        """Figures, gains and the noise of completions know a model by its name alone, so it has to be its own."""
        name = source.name
        if name in self.stages.by_id or name in self.stages.aliases:
            self.checker.error(path, f"the model {source.path} has the name of stage '{name}'", "rename the folder")
        elif (known := self.models.setdefault(name, source)) != source:
            what = "the recipe's base" if name == "base" else getattr(known, "path", known)
            message = f"two models are named '{name}': {source.path} and {what}"
            self.checker.error(path, message, "rename one folder")
        return source

    # --- written in place, or in a section --------------------------------------------------------------------------

    def _in_place(self, kind: Kind, value: Any, path: Keys, name: str | None, scope: Mapping[str, str]) -> Source:
        """`name` is the entry's name in its section."""
        if isinstance(value, str):
            value = self._as_mapping(kind, value, path, is_named=name is not None)
        if not isinstance(value, Mapping):
            if value is not None:
                self.checker.error(path, f"{with_article(kind)} is a mapping with 'use', found {value!r}")
            return None
        if kind == "dataset" and "path" in value and "use" not in value:
            return existing_data(self.checker, value, path, name or str(value["path"]))
        return self._use(kind, value, path, name, scope)

    def _as_mapping(self, kind: Kind, text: str, path: Keys, is_named: bool) -> dict[str, Any] | None:
        """`exact_answer`, `self_consistency(n=8)` or data, as a mapping; None after telling what is wrong."""
        try:
            name, params = parse_call(text)
            registry.find(kind, name, self.checker.folder)
            return {"use": name, **params}
        except InputError as error:
            if kind == "dataset" and ".py:" not in text and is_data(self.checker, text):
                return {"path": text}
            known = [*self.named.get(f"{kind}s", {}), *self.stages.making(kind)]
            near = suggest(text, known) if not is_named else None
            plugins = [p.name for p in registry.installed(kind)]
            is_reference = isinstance(error, PluginNotFound) and not (is_named or "(" in text or ":" in text)
            message = f"unknown {kind} '{text}'" if is_reference else error.message
            hint = (near or suggest(text, plugins)) if isinstance(error, PluginNotFound) else None
            self.checker.error(path, message, hint or error.hint)
            return None

    def _use(
        self, kind: Kind, value: Mapping[str, Any], path: Keys, name: str | None, scope: Mapping[str, str]
    ) -> Source:
        """A plugin with its parameters; reserved words beside them are ours, unless the plugin has one of that name."""
        looked_up = self.checker.plugin(kind, value.get("use"), path)
        if looked_up is None:
            return None
        plugin, found = looked_up
        named = with_named_fields(self.checker, found, value, path)
        if named is None:
            return None
        found = named
        errors_before = len(self.checker.mistakes)
        reserved_types = {k: t for k, t in RESERVED.get(kind, {}).items() if k not in found.fields}
        given = {k: v for k, v in value.items() if k != "use" and k not in reserved_types}
        reserved = {k: v for k, v in value.items() if k in reserved_types}
        for key, item in reserved.items():
            self.checker.check_type((*path, key), reserved_types[key], item)
        self.checker.check_keys(path, given, found, f"{kind} '{value['use']}'", reserved_types)
        refs: dict[str, Input] = {}
        shown = dict(given)
        for key, field in found.fields.items():
            item = given.get(key, None if field.is_required else field.default)
            if field.ref is not None and item is not None:
                refs[key] = self.input(field, item, (*path, key), scope, kind)
                shown |= {key: printed(field.ref.kind, item)} if key in given else {}
            elif key in given:
                self.checker.check_field((*path, key), field, item)
        if kind == "reward" and len(self.checker.mistakes) == errors_before:
            self._check_guard(reserved, found, refs, path)
        if len(self.checker.mistakes) == errors_before:
            self.checker.check_built(plugin, shown, path)
        params = {k: v for k, v in given.items() if k not in refs}
        written = {"use": value["use"], **shown, **reserved}
        return Use(kind, name or _label({k: written[k] for k in value}), plugin, params, reserved, refs)

    def _check_guard(self, reserved: Mapping[str, Any], found: Schema, refs: Mapping[str, Input], path: Keys) -> None:
        """The guard's keys are in their ranges, and a reward that holds a model stays in this process."""
        asked = {key: value for key, value in reserved.items() if key in GUARD_KEYS}
        try:
            GuardSettings(**asked)
        except InputError as error:
            wrong = next(key for key in asked if f"{key}: " in error.message)
            self.checker.error((*path, wrong), error.message, error.hint)
            return
        isolating = next((key for key in ISOLATING if key in asked), None)
        if isolating and (found.declares("holds_model") is True or _holds_model(refs)):
            refused = refusal(str(path[-1]))
            self.checker.error((*path, isolating), refused.message, refused.hint)


def _holds_model(refs: Mapping[str, Input]) -> bool:
    """Does one of the references, at any depth, stand for a model, or for a reward that holds one?"""
    for _, source in flat(refs):
        if isinstance(source, External | FromStage):
            return True
        if isinstance(source, Use):
            holds = source.plugin.file is None and declared(source.plugin.load(), "holds_model")
            if holds is True or _holds_model(source.refs):
                return True
    return False


def printed(kind: str, value: Any) -> Any:
    """A reference as text, `best_of_n(n=8, scorer=rm)`, or a list of references as a list of texts.

    Of a plugin's file only its name, so that a moved folder keeps its labels.
    """
    if isinstance(value, list | tuple):
        return [printed(kind, item) for item in value]
    if isinstance(value, Mapping):
        return _label(value) if kind == "strategy" else str(value.get("use", value.get("path")))
    return value.rpartition("/")[2] if isinstance(value, str) and ".py:" in value else value


def _label(value: Mapping[str, Any]) -> str:
    name = str(value.get("use")).rpartition("/")[2]
    inner = ", ".join(f"{k}={_inner(v)}" for k, v in value.items() if k != "use")
    return f"{name}({inner})" if inner else name


def _inner(value: Any) -> str:
    if isinstance(value, Mapping) and "use" in value:
        return str(value["use"])
    return f"[{', '.join(map(_inner, value))}]" if isinstance(value, list | tuple) else str(value)


def check_names(checker: Checker, stages: RawStages, specs: Mapping[str, StageSpec]) -> None:
    """Figures and the log of a stage know rewards and strategies by their names alone, so two must not share one."""
    for id, spec in specs.items():
        known: dict[tuple[str, str], Source] = {}
        for field, source in spec.sources():
            named = _kind_and_name(source)
            if named is not None and known.setdefault(named, source) != source:
                kind, name = named
                hint = "name them under 'rewards:'" if kind == "reward" else "name their scorers under 'rewards:'"
                path = (*stages.by_id[id].path, field.partition(".")[0])
                checker.error(path, f"two different {REFERRED[kind]} are named '{name}'", f"{hint}, or rename one file")


def _kind_and_name(source: Source) -> tuple[str, str] | None:
    if isinstance(source, Use) and source.kind in REFERRED:
        return source.kind, source.name
    return ("reward", source.stage) if isinstance(source, FromStage) and source.produces == "reward" else None
