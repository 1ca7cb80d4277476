"""What a recipe writes where a stage takes a model, data, a reward ... -> the `Source` that it stands for.

That is a name (of a stage, of a loop, of an entry in a section) or, written in place, a plugin, a file, a Hub id. A
strategy's fields may be references too, of any kind and at any depth: its scorers, judges, other strategies, tools.
"""

from __future__ import annotations

import hashlib
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from posttrain_plugins.errors import InputError, PluginNotFound
from posttrain_plugins.guard.settings import ISOLATING, TOOL_KEYS, GuardSettings, refusal
from posttrain_plugins.guard.settings import KEYS as GUARD_KEYS
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.registry import Plugin, suggest, with_article
from posttrain_plugins.plugins.schema import Field, Schema, is_list
from posttrain_plugins.plugins.tools import faults_of, shape_in, shape_of
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
    CriticStart,
    External,
    FromStage,
    Input,
    Policy,
    Source,
    StageSpec,
    Use,
    flat,
)
from posttrain_plugins.types import AdapterMode, CriticKind, Kind, server_of

__all__ = ["MEANINGS", "RESERVED", "SECTIONS", "References", "check_names", "printed"]

SECTIONS: dict[str, Kind] = {"adapters": "adapter", "datasets": "dataset", "rewards": "reward"}
PLURALS = {"reward": "rewards", "strategy": "strategies", "tool": "tools"}  # kinds of which a stage may have several
LONGEST_LIST = 200  # characters of a list in a label
RESERVED: dict[str, dict[str, Any]] = {
    "reward": {"weight": float, **GUARD_KEYS},
    "dataset": DATA_OPTIONS,
    "tool": TOOL_KEYS,
    # of those that train; `stages.py` takes them
    "stage": {"adapter_mode": AdapterMode, "chat_template": str, "launch": str | dict[str, Any]},
}
MEANINGS: dict[str, dict[str, str]] = {
    "reward": {"weight": "what its score counts for where scores are added up; 1.0 by default."},
    "tool": {
        "timeout_s": "seconds for one call; the tool is then called in processes of its own, which end.",
        "isolate": "`process` calls it in another process, which may crash; such a tool keeps nothing between calls.",
        "max_failure_share": "the run stops when more than this share of its newest 32 calls failed by its own fault.",
        "num_workers": "processes; by default one for each core, at most 8.",
        "max_chars": "longer answers are cut.",
    },
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
        "launch": "`ddp`, `fsdp2`, `zero1`, `zero2`, `zero3`, or a file of accelerate's; `none` for the run's process; "
        "or `{config: zero2, num_processes: 8, hang_after_s: 1800}`.",
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
VALUE_PLUGINS = ("reward_model", "value_model")
"""Rewards through whose models a stage's name says what a text, or a begun one, is worth."""
LookUp: TypeAlias = Callable[[str, Any], "Source | Mapping[str, Any]"]


class References:
    """Find what the names of a recipe refer to.

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
        """Read the named entries of a section; they may refer to stages and to the entries before them."""
        for name, value in self.checker.mapping((section,)).items():
            path: Keys = (section, name)
            if name in self.stages.by_id or name in self.stages.aliases:
                self.checker.error(path, f"duplicate id '{name}': it is a stage too", "rename one of them", True)
            self.named[section][name] = self._in_place(SECTIONS[section], value, path, name, {})

    def input(self, field: Field, value: Any, path: Keys, scope: Mapping[str, str], asker: Kind = "stage") -> Input:
        """Return what a reference field of a stage, or of another `asker`, refers to: a tuple if its type is a list."""
        assert field.ref is not None
        kind = field.ref.kind
        if kind == "critic":
            kind = "adapter"
            if isinstance(value, Mapping) and "use" not in value:
                return self._critic(value, path, scope)
        if not is_list(field.type):
            return self.source(kind, value, path, scope, asker)
        if not isinstance(value, list | tuple):
            self.checker.error(path, f"'{path[-1]}' is {value!r}, expected a list", f"{path[-1]}: [{value}]")
            return ()
        return tuple(self.source(kind, item, (*path, i), scope, asker) for i, item in enumerate(value))

    def source(self, kind: str, value: Any, path: Keys, scope: Mapping[str, str], asker: Kind = "stage") -> Source:
        """Return the source that a written value stands for, or None after telling what is wrong.

        A name is looked for among what is nearest first: the asker's own, stages, the section, installed plugins, data.
        """
        if kind == "model" and asker == "strategy" and value == POLICY.name:
            return POLICY
        found = self.look_up(kind, value)  # before all else: what a server refuses must not be found by another way
        if isinstance(found, Mapping):  # as a recipe would write it, under the name by which it was asked for
            return self._in_place(typing.cast(Kind, kind), found, path, str(value), scope)
        if found is not None:
            return found
        if kind == "object":
            return existing_object(self.checker, value, path)
        if isinstance(value, str):
            # `tasks+sum` is one of several adapters that the stage `tasks` makes; a folder may have a plus sign, too.
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
        return self._in_place(typing.cast(Kind, kind), value, path, None, scope, asker)

    # --- names ----------------------------------------------------------------------------------------------------

    def _from_stage(self, kind: str, name: str, path: Keys, adapter: str = "") -> Source:
        made, plugin = self.stages.produces.get(name), self.stages.by_id[name].plugin
        if made is None or plugin is None:  # which is told already; what it would have made is believed
            return FromStage(name, kind)
        schema = plugin[1]
        if kind != made:
            known = self.stages.making(kind)
            message = f"stage '{name}' makes {with_article(made)}, expected {with_article(kind)}"
            self.checker.error(path, message, suggest(name, known) or listed(known))
            return None
        if made == "model" and bool(adapter) != bool(schema.declares("several")):
            message = f"stage '{name}' makes {'one model' if adapter else 'several adapters, expected one of them'}"
            self.checker.error(path, message, name if adapter else f"{name}+TASK, a value of its data's column 'task'")
            return None
        if made != "reward":
            return FromStage(name, made, "", adapter)
        used = registry.own_name("reward", str(schema.declares("reward_plugin")), plugin[0].distribution)
        return FromStage(name, made, used, adapter)

    def earlier_judge(self, plugin: Plugin, schema: Schema, value: Any, scope: Mapping[str, str]) -> FromStage | None:
        """Return the model of a judge from which a stage that makes one of its kind goes on; None for all others."""
        if schema.declares("produces") != "reward" or not self._is_judge(value, scope):
            return None
        used = registry.own_name("reward", str(schema.declares("reward_plugin")), plugin.distribution)
        return self._judge(registry.find("reward", used), value, scope)

    def _is_judge(self, value: Any, scope: Mapping[str, str]) -> bool:
        return isinstance(value, str) and self.stages.produces.get(self.stages.meant(value, scope)) == "reward"

    def _judge(self, plugin: Plugin, value: Any, scope: Mapping[str, str]) -> FromStage | None:
        """Return the model of a stage whose name stands for this very reward: written out, it takes parameters."""
        if not self._is_judge(value, scope) or self.look_up("model", value) is not None:
            return None
        name = self.stages.meant(value, scope)
        maker = self.stages.by_id[name].plugin
        if maker is None:
            return None
        used = registry.own_name("reward", str(maker[1].declares("reward_plugin")), maker[0].distribution)
        return FromStage(name, "model") if registry.find("reward", used).target == plugin.target else None

    def _critic(self, value: Mapping[str, Any], path: Keys, scope: Mapping[str, str]) -> Source:
        """Return how a critic begins, or None after telling what is wrong: `{kind: ..., from: ...}`."""
        errors_before = len(self.checker.mistakes)
        self.checker.unknown_keys(path, value, ("kind", "from", "use"))
        kind, given = value.get("kind"), value.get("from")
        if kind is not None:
            self.checker.check_type((*path, "kind"), CriticKind, kind)
        where, source = (*path, "from"), None
        if isinstance(given, str) and given:
            name = self.stages.meant(given, scope)
            if name in self.stages.by_id:
                source = self._value_function(name, where)
            elif name == "base" or server_of(name) or ("/" not in name and not name.startswith(".")):
                known = [id for id in self.stages.by_id if self._has_values(id)]
                message = f"critic.from '{given}' is neither a stage with a value function nor a folder"
                self.checker.error(where, message, suggest(given, known) or listed(known) or "from: STAGE")
            else:
                # a folder, or a reward model of the Hub: whether it has values its files tell when it is loaded
                source = self._model(name, where, "stage")
        elif given is not None:
            self.checker.error(where, f"'from' is {given!r}, expected a stage, a folder or a Hub id", "from: STAGE")
        is_told = len(self.checker.mistakes) > errors_before or (given is not None and source is None)
        return None if is_told else CriticStart(kind, typing.cast(Any, source))

    def _has_values(self, id: str) -> bool:
        """Tell whether what a stage makes says what a state is worth: a reward of whole texts, a value, a critic."""
        plugin = self.stages.by_id[id].plugin
        if plugin is None:
            return False
        fields, made = plugin[1].fields, self.stages.produces.get(id)
        if made == "reward":
            return str(plugin[1].declares("reward_plugin")).rpartition(":")[2] in VALUE_PLUGINS
        return made == "model" and "critic" in fields and fields["critic"].ref is not None

    def _value_function(self, name: str, path: Keys) -> Source:
        made, plugin = self.stages.produces.get(name), self.stages.by_id[name].plugin
        if made is not None and plugin is not None and not self._has_values(name):
            known = [id for id in self.stages.by_id if self._has_values(id)]
            message = f"stage '{name}' ({plugin[0].name}) has no value function"
            self.checker.error(path, message, listed(known) or "name a stage value, reward, ppo or oreo")
            return None
        return self._from_stage(made or "model", name, path)

    def _model(self, name: str, path: Keys, asker: Kind) -> Source:
        """Return a model that no stage makes: the recipe's own, a server's, a folder, a Hub id."""
        if name == "base":
            if self.checker.document.get(("model",)) is None:
                message, hint = "the recipe has no 'model'", "model: a folder, a Hub id, or {use: pretrain, ...}"
                self.checker.error(path, message, hint)
            return self.model.source
        server = server_of(name)
        if server and not server[1]:
            self.checker.error(path, f"no model is named for the server {name}", f"{name}#MODEL")
            return None
        if "/" not in name and not name.startswith("."):
            known = ["base", *self.stages.making("model"), *self.stages.aliases]
            known += [POLICY.name] if asker == "strategy" else []
            self.checker.error(path, f"unknown model '{name}'", suggest(name, known) or listed(known))
            return None
        short = Path(name).name if name.startswith("/") else name
        source = existing_model(self.checker, short, name, path, self.model.loading)
        # Figures, gains and the noise of completions know a model by its name alone, so it has to be its own.
        if short in self.stages.by_id or short in self.stages.aliases:
            self.checker.error(path, f"the model {source.path} has the name of stage '{short}'", "rename the folder")
        elif (before := self.models.setdefault(short, source)) != source:
            what = "the recipe's base" if short == "base" else getattr(before, "path", before)
            message = f"two models are named '{short}': {source.path} and {what}"
            self.checker.error(path, message, "rename one folder")
        return source

    # --- written in place, or in a section --------------------------------------------------------------------------

    def _in_place(
        self,
        kind: Kind,
        value: Any,
        path: Keys,
        name: str | None,
        scope: Mapping[str, str],
        asker: Kind = "stage",
    ) -> Source:
        """Return the source of a plugin or of data that is written out; `name` is the entry's name in its section."""
        if isinstance(value, str):
            text = value
            try:
                used, params = parse_call(text)
                self.checker.find(kind, used, path)
                value = {"use": used, **params}
            except InputError as error:
                if kind == "dataset" and ".py:" not in text and is_data(self.checker, text):
                    return existing_data(self.checker, {"path": text}, path, name or text)
                # Who writes a plain word in a stage may have meant an entry of the recipe, or a plugin; who writes it
                # in a section, a call, or a path can only have meant a plugin.
                known = [*self.named.get(f"{kind}s", {}), *self.stages.making(kind)]
                near = suggest(text, known) if name is None else None
                is_name = isinstance(error, PluginNotFound) and not (name is not None or "(" in text or ":" in text)
                message = f"unknown {kind} '{text}'" if is_name else error.message
                is_missing = isinstance(error, PluginNotFound)
                plugins = [plugin.name for plugin in registry.installed(kind)] if is_missing else []
                hint = near or suggest(text, plugins) if is_missing else None
                self.checker.error(path, message, hint or error.hint)
                return None
        if not isinstance(value, Mapping):
            if value is not None:
                self.checker.error(path, f"{with_article(kind)} is a mapping with 'use', found {value!r}")
            return None
        if kind == "dataset" and "path" in value and "use" not in value:
            return existing_data(self.checker, value, path, name or str(value["path"]))
        return self._use(kind, value, path, name, scope, asker)

    def _use(
        self,
        kind: Kind,
        value: Mapping[str, Any],
        path: Keys,
        name: str | None,
        scope: Mapping[str, str],
        asker: Kind = "stage",
    ) -> Source:
        """Return a plugin with its parameters; a reserved word is ours unless the plugin has such a parameter."""
        looked_up = self.checker.plugin(kind, value.get("use"), path)
        if looked_up is None:
            return None
        plugin, schema = looked_up[0], with_named_fields(self.checker, looked_up[1], value, path)
        if schema is None:
            return None
        # A plugin with a parameter of that name (`columns`, `weight`) means its own: it could not have one otherwise.
        errors_before = len(self.checker.mistakes)
        reserved_types = {k: t for k, t in RESERVED.get(kind, {}).items() if k not in schema.fields}
        given = {k: v for k, v in value.items() if k != "use" and k not in reserved_types}
        reserved = {k: v for k, v in value.items() if k in reserved_types}
        for key, item in reserved.items():
            self.checker.check_type((*path, key), reserved_types[key], item)
        self.checker.check_keys(path, given, schema, f"{kind} '{value['use']}'", reserved_types)
        refs: dict[str, Input] = {}
        shown = dict(given)  # with names in place of references: what the plugin is built with, and what tables print
        for key, field in schema.fields.items():
            item = given.get(key, None if field.is_required else field.default)
            if field.ref is not None and item is not None:  # a default may be a reference, too: `judge="policy"`
                if key not in given:
                    self.checker.owners[*path, key] = plugin.distribution
                judge = self._judge(plugin, item, scope) if (kind, field.ref.kind) == ("reward", "model") else None
                refs[key] = judge or self.input(field, item, (*path, key), scope, kind)
                shown |= {key: printed(field.ref.kind, item)} if key in given else {}
            elif key in given:
                self.checker.check_field((*path, key), field, item)
        if kind in ("reward", "tool") and len(self.checker.mistakes) == errors_before:
            self._check_guard(kind, reserved, schema, refs, path)
        if kind == "tool" and asker == "stage":  # a strategy may show a tool in another way than transformers does
            for message, hint in _tool_faults(plugin):
                self.checker.error(path, message, hint)
        # Built only when all that can be told without it is told: a class would refuse the same value in its own words.
        if len(self.checker.mistakes) == errors_before:
            self.checker.check_built(plugin, shown, path)
        params = {k: v for k, v in given.items() if k not in refs}
        written = {"use": value["use"], **shown, **reserved}
        label = _label(kind, {key: written[key] for key in value})  # in the order in which it is written
        return Use(kind, name or label, plugin, params, reserved, refs, schema)

    def _check_guard(
        self, kind: Kind, reserved: Mapping[str, Any], schema: Schema, refs: Mapping[str, Input], path: Keys
    ) -> None:
        """Check the guard's keys; a reward that holds a model stays in this process, since a copy would not fit."""
        asked = {key: value for key, value in reserved.items() if key in GUARD_KEYS}
        if reserved.get("max_chars", 1) < 1:
            found = f"max_chars is {reserved['max_chars']}, expected 1 or more"
            self.checker.error((*path, "max_chars"), found, "leave it out to cut nothing")
        try:
            GuardSettings(**asked)
        except InputError as error:
            wrong = next(key for key in asked if f"{key}: " in error.message)  # each of its messages begins so
            self.checker.error((*path, wrong), error.message, error.hint)
            return
        isolating = next((key for key in ISOLATING if key in asked), None)
        if kind == "reward" and isolating and (schema.declares("holds_model") is True or _holds_model(refs)):
            refused = refusal(str(path[-1]))
            self.checker.error((*path, isolating), refused.message, refused.hint)


def _tool_faults(plugin: Plugin) -> list[tuple[str, str]]:
    """Return what transformers or TRL would refuse of a tool, and what mends it; a user's file is not imported."""
    if plugin.file is not None:
        shape = shape_in(plugin.file, plugin.attr)
        return [] if shape is None else list(faults_of(plugin.attr, shape))
    loaded = plugin.load()
    if not callable(loaded):
        return [(f"tool '{plugin.name}' cannot be called", "name a function")]
    return list(faults_of(plugin.name, shape_of(loaded)))


def _holds_model(refs: Mapping[str, Input]) -> bool:
    """Does one of the references, at any depth, stand for a model, or for a reward that holds one?"""
    for _, source in flat(refs):
        if isinstance(source, External | FromStage):
            return True
        # Only a plain True: a property depends on parameters, which no check knows of a plugin inside another.
        if isinstance(source, Use) and (source.schema.declares("holds_model") is True or _holds_model(source.refs)):
            return True
    return False


def printed(kind: str, value: Any) -> Any:
    """Return a reference as text, `best_of_n(n=8, scorer=rm)`, or a list of references as a list of texts.

    Of a plugin's file only its name, so that a moved folder keeps its labels.
    """
    if isinstance(value, list | tuple):
        return [printed(kind, item) for item in value]
    if isinstance(value, Mapping):
        return _label(kind, value) if kind == "strategy" else _plain(kind, str(value.get("use", value.get("path"))))
    return value.rpartition("/")[2] if isinstance(value, str) and ".py:" in value else value


def _plain(kind: str, use: str) -> str:
    """Return a plugin's own name: figures have it whether or not the recipe names its package too."""
    owner, _, name = use.rpartition(":")
    is_owned = owner and any(p.name == name and p.distribution == owner for p in registry.installed(kind))  # type: ignore[arg-type]
    return name if is_owned else use.rpartition("/")[2]


def _label(kind: str, value: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, Mapping) and "use" in value:
            return str(value["use"])
        if isinstance(value, list | tuple):
            told = f"[{', '.join(map(text, value))}]"
            # a graph of operations would fill a table; its mark tells it from another with as many of them
            mark = hashlib.sha256(told.encode()).hexdigest()[:4]
            return told if len(told) <= LONGEST_LIST else f"[{len(value)} of them, {mark}]"
        return str(value)

    name = _plain(kind, str(value.get("use")))
    inner = ", ".join(f"{k}={text(v)}" for k, v in value.items() if k != "use")
    return f"{name}({inner})" if inner else name


def check_names(checker: Checker, stages: RawStages, specs: Mapping[str, StageSpec]) -> None:
    """Check that no two rewards, strategies or tools of a stage share a name, by which alone they are known."""
    for id, spec in specs.items():
        known: dict[tuple[str, str], Source] = {}
        for field, source in spec.sources():
            if isinstance(source, Use) and source.kind in PLURALS:
                kind, name = source.kind, source.plugin.name if source.kind == "tool" else source.name
            elif isinstance(source, FromStage) and source.produces == "reward":
                kind, name = "reward", source.stage
            else:
                continue
            if known.setdefault((kind, name), source) != source:
                hints = {"reward": "name them under 'rewards:'", "tool": "name one function otherwise"}
                hint = hints.get(kind, "name their scorers under 'rewards:'")
                path = (*stages.by_id[id].path, field.partition(".")[0])
                checker.error(path, f"two different {PLURALS[kind]} are named '{name}'", f"{hint}, or rename one file")
