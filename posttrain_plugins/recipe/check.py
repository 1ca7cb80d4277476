"""A document -> a checked `Recipe`, or every mistake in it at once, before anything heavy is imported.

Names are looked up in the registry, parameters are checked against each plugin's own signature, `args` against TRL's
config class (read from its source), references against what the recipe defines, and columns against the data's head.
"""

from __future__ import annotations

import ast
import contextlib
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain_plugins import registry, schema
from posttrain_plugins.errors import InputError, Mistake, PluginNotFound, PosttrainError, RecipeErrors
from posttrain_plugins.recipe import data_head
from posttrain_plugins.recipe.document import PREV, Document, Keys, anchored
from posttrain_plugins.recipe.recipe import DataFile, External, FromStage, Object, Recipe, Source, StageSpec, Use
from posttrain_plugins.recipe.resolve import construct
from posttrain_plugins.registry import Plugin, suggest, with_article
from posttrain_plugins.types import Kind

__all__ = ["check", "parse_call", "plugin_schema"]

TOP_LEVEL = ("name", "description", "seed", "model", "adapters", "datasets", "rewards", "stages")
SECTIONS: dict[str, Kind] = {"adapters": "adapter", "datasets": "dataset", "rewards": "reward"}
RESERVED: dict[str, dict[str, Any]] = {
    "reward": {"weight": float},
    "dataset": {
        "path": str,
        "name": str,
        "split": str,
        "columns": list[str],
        "limit": int,
        "rename": dict[str, str],
        "system_prompt": str,
    },
}
OURS_IN_ARGS = {
    "output_dir": "the run decides where a stage writes",
    "resume_from_checkpoint": "a run resumes by itself",
}
MODEL_CONFIG = "trl:ModelConfig"
PRODUCTS = ("model", "dataset", "reward", "figures")
QUANTIZED = ("load_in_4bit", "load_in_8bit")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
PEFT_IN_MODEL = ("use_peft", "lora_", "use_rslora", "use_dora")


def check(document: Document) -> Recipe:
    """Checks a document and gives the recipe.

    Plugins that are installed classes are built, so that values that they refuse are told now; what is heavy belongs
    into their call.

    Raises:
        RecipeErrors: with every mistake found, each with its place.
    """
    checker = _Checker(document)
    recipe = checker.recipe()
    if checker.mistakes:
        raise RecipeErrors(checker.mistakes)
    return recipe


def plugin_schema(plugin: Plugin) -> schema.Schema:
    """A plugin's parameters; a reward or strategy that is a plain function has none.

    Raises:
        PluginBroken: it cannot be imported.
        LookupError, SyntaxError: its file cannot be read.
    """
    if plugin.file is not None:
        found = schema.of_source(plugin.file, plugin.attr)
        return found if plugin.kind not in ("reward", "strategy") or found.is_class else found.without_fields()
    loaded = plugin.load()
    if plugin.kind in ("reward", "strategy") and not isinstance(loaded, type):
        return schema.Schema({}, {"reward_columns": schema.reward_columns(loaded)} if plugin.kind == "reward" else {})
    return schema.of_object(loaded)


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """`self_consistency(n=8)` -> its name and parameters; bare words are strings, so `scorer=rm` needs no quotes.

    Raises:
        InputError: it is not a name with keyword parameters.
    """
    if "(" not in text:
        return text.strip(), {}
    name, _, rest = text.partition("(")
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("parameters need names")
        if any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("** stands for nothing here")
        return name.strip(), {str(k.arg): _literal(k.value) for k in call.keywords}
    except (SyntaxError, ValueError) as cause:
        quotes = "in a YAML list it needs quotes: 'name(a=1, b=2)'"
        hint = "for instance self_consistency(n=8)" if ")" in text else quotes
        raise InputError(f"'{text}' is not NAME(key=value, ...)", hint=hint) from cause


def _literal(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


@dataclass(frozen=True)
class _RawStage:
    """A stage as written, or one turn of a loop: names that mean something else inside it are in `scope`."""

    id: str
    path: Keys
    body: Mapping[str, Any]
    scope: Mapping[str, str]


class _Checker:
    def __init__(self, document: Document) -> None:
        self.folder = document.file.parent.resolve()
        self.document = replace(document, data=anchored(document.data, self.folder))
        self.mistakes: list[Mistake] = list(document.mistakes)
        self.named: dict[str, dict[str, Source]] = {section: {} for section in SECTIONS}
        self.raw: dict[str, _RawStage] = {}
        self.aliases: dict[str, str] = {}
        self.produces: dict[str, str] = {}
        self.specs: dict[str, StageSpec] = {}
        self.found: dict[Plugin, schema.Schema | None] = {}
        self.base: Source = None
        self.loading: dict[str, Any] = {}

    # --- the walk -------------------------------------------------------------------------------------------------

    def recipe(self) -> Recipe:
        data = self.document.data
        self._unknown_keys((), data, TOP_LEVEL)
        name = self._typed(("name",), str, self.document.file.stem)
        self._check_name(("name",), str(name), "recipe", allowed=".")
        seed = self._typed(("seed",), int, 0)
        self._collect_stages()
        self.base = self._model()
        for section, kind in SECTIONS.items():
            for key, value in self._mapping((section,)).items():
                if key in self.raw or key in self.aliases:
                    self._wrong((section, key), f"duplicate id '{key}': it is a stage too", "rename one of them", True)
                self.named[section][key] = self._inline(kind, value, (section, key), key, {})
        for raw in self.raw.values():
            self._stage(raw)
        order = self._order()
        self._columns(order)
        return Recipe(name, seed, self.document.file, tuple(self.specs[i] for i in order), self._resolved(name, seed))

    def _collect_stages(self) -> None:
        for name, body in self._mapping(("stages",)).items():
            path: Keys = ("stages", name)
            self._check_name(path, name, "stage")
            if name == "base":
                self._wrong(path, "'base' is reserved: it is the recipe's model", "rename the stage", True)
            elif not isinstance(body, Mapping):
                self._wrong(path, f"a stage is a mapping with 'use', found {body!r}", f"{name}: {{use: ...}}")
            elif "repeat" in body or "stages" in body:
                self._loop(name, path, body)
            else:
                self._raw_stage(_RawStage(name, path, body, {}))
        if not self.raw and not self.mistakes:
            self._wrong((), "the recipe has no 'stages'", "stages: {sft: {use: sft, ...}}")

    def _loop(self, name: str, path: Keys, body: Mapping[str, Any]) -> None:
        """A loop is unrolled: turn 2's stage `t` is `loop.2.t`, and `${prev}` is the turn before (first: `init`)."""
        self._unknown_keys(path, body, ("repeat", "init", "stages"))
        inner, repeat = body.get("stages"), body.get("repeat", 1)
        if not isinstance(inner, Mapping) or not inner or not all(isinstance(b, Mapping) for b in inner.values()):
            self._wrong(path, f"loop '{name}' needs 'stages', a mapping of stages")
            return
        if not isinstance(repeat, int) or isinstance(repeat, bool) or repeat < 1:
            self._wrong((*path, "repeat"), f"'repeat' is {repeat!r}, expected a number of 1 or more")
            return
        previous = body.get("init", "base")
        for turn in range(1, repeat + 1):
            scope = {inner_name: f"{name}.{turn}.{inner_name}" for inner_name in inner} | {PREV: str(previous)}
            for inner_name, inner_body in inner.items():
                self._check_name((*path, "stages", inner_name), inner_name, "stage")
                self._raw_stage(_RawStage(scope[inner_name], (*path, "stages", inner_name), inner_body, scope))
            previous = scope[list(inner)[-1]]
        self.aliases[name] = str(previous)

    def _raw_stage(self, raw: _RawStage) -> None:
        self.raw[raw.id] = raw
        plugin = self._plugin("stage", raw.body.get("use"), raw.path)
        found = self._schema(plugin, raw.path) if plugin else None
        if found is None:
            return
        produces = found.attributes.get("produces", "figures")
        if produces in PRODUCTS:
            self.produces[raw.id] = produces
            return
        message = f"stage plugin '{raw.body['use']}' produces {produces!r}, expected one of {_list(PRODUCTS)}"
        self._wrong((*raw.path, "use"), message)

    def _model(self) -> Source:
        path: Keys = ("model",)
        value = self.document.get(path)
        if value is None:
            return None
        if isinstance(value, str):
            value = {"model_name_or_path": value}
        if not isinstance(value, Mapping):
            self._wrong(path, f"'model' is a folder, a Hub id or a mapping, found {value!r}")
            return None
        known = schema.of_config(MODEL_CONFIG).fields
        if "use" in value:
            plugin = self._plugin("stage", value["use"], path)
            found = self._schema(plugin, path) if plugin else None
            own = set(found.fields) if found else set(value)
            self.loading = {k: v for k, v in value.items() if k in known and k not in own}
            body = {k: v for k, v in value.items() if k not in self.loading}
            self.raw = {"base": _RawStage("base", path, body, {}), **self.raw}
            self.produces["base"] = "model"
        else:
            self.loading = {k: v for k, v in value.items() if k != "model_name_or_path"}
        self._model_fields(path, known, [*self.loading])
        if "use" in value:
            return FromStage("base", "model")
        return self._external("base", value.get("model_name_or_path"), (*path, "model_name_or_path"), path)

    def _model_fields(self, path: Keys, known: Mapping[str, schema.Field], names: Iterable[str]) -> None:
        for name in names:
            if name.startswith(PEFT_IN_MODEL):
                message = f"'{name}' does not belong to 'model'"
                self._wrong((*path, name), message, "name an adapter under 'adapters:'", True)
            elif name not in known:
                self._wrong((*path, name), f"unknown key '{name}' in 'model'", suggest(name, known), True)
            else:
                self._check_field((*path, name), known[name], self.loading[name])

    def _external(self, name: str, target: Any, path: Keys, parent: Keys) -> Source:
        if not isinstance(target, str):
            self._wrong(parent, "'model' needs 'model_name_or_path'", "a folder, a Hub id, or {use: pretrain, ...}")
            return None
        local = target.startswith((".", "/", "~")) or (self.folder / target).is_dir()
        if not local:
            return External(name, target, self.loading)
        folder = (self.folder / Path(target).expanduser()).resolve()
        problem = data_head.model_problem(folder)
        if problem:
            self._wrong(path, problem, "save_pretrained() writes such a folder")
        return External(name, str(folder), self.loading)

    # --- stages ---------------------------------------------------------------------------------------------------

    def _stage(self, raw: _RawStage) -> None:
        if raw.id not in self.produces:
            return  # told when the stage was collected
        plugin = registry.find("stage", str(raw.body["use"]), self.folder)
        found = self.found[plugin]
        assert found is not None
        told = len(self.mistakes)
        given = {k: v for k, v in raw.body.items() if k != "use"}
        self._check_keys(raw.path, given, found, f"stage '{raw.path[-1]}'")
        params: dict[str, Any] = {}
        inputs: dict[str, Source | tuple[Source, ...]] = {}
        configs: dict[str, str] = {}
        for name, field in found.fields.items():
            value = given.get(name, None if field.is_required else field.default)
            path = (*raw.path, name)
            if field.ref is not None:
                if value is not None:
                    inputs[name] = self._input(field, value, path, raw)
                continue
            if name in given:
                self._check_field(path, field, value)
            if field.config is not None:
                configs[name] = field.config.target
                self._args(path, field.config.target, value)
            if name in given or (field.is_literal and not field.is_required):
                params[name] = value
        produces: Any = self.produces[raw.id]
        self.specs[raw.id] = StageSpec(raw.id, plugin, produces, params, inputs, configs, self.loading)
        if "adapter" in found.fields:
            self._check_quantized(self.specs[raw.id], raw)
        if len(self.mistakes) == told:
            self._check_built(plugin, given, raw.path)

    def _check_quantized(self, spec: StageSpec, raw: _RawStage) -> None:
        """The weights of a quantized model cannot be trained; an adapter on it can."""
        quantized = [name for name in QUANTIZED if self.loading.get(name) is True]
        adapter = spec.inputs.get("adapter")
        is_full = raw.body.get("adapter") is None or (isinstance(adapter, Use) and adapter.plugin.name == "full")
        if quantized and is_full and spec.inputs.get("model") and spec.produces in ("model", "reward"):
            message = f"stage '{raw.path[-1]}' trains all parameters, but the model has {quantized[0]}"
            self._wrong((*raw.path, "adapter"), message, f"adapter: {{use: lora}}, or remove {quantized[0]}")

    def _check_built(self, plugin: Plugin, params: Mapping[str, Any], path: Keys) -> None:
        """A class refuses values that fit their type; a file is not imported, a function is called only by the run."""
        loaded = plugin.load() if plugin.file is None else None
        if not isinstance(loaded, type):
            return
        try:
            construct(loaded, params)
        except PosttrainError as error:
            self._wrong(path, error.message, error.hint)
        except Exception as cause:  # the plugin boundary
            self._wrong(path, f"{plugin.kind} '{plugin.name}' refuses its parameters: {type(cause).__name__}: {cause}")

    def _args(self, path: Keys, target: str, value: Any) -> None:
        if not isinstance(value, Mapping):
            return
        try:
            known = schema.of_config(target).fields
        except LookupError as cause:
            self._wrong(path, f"config class {target} cannot be read: {cause}", "pip install it")
            return
        for name, item in value.items():
            if name in OURS_IN_ARGS:
                self._wrong((*path, name), f"'{name}' cannot be set: {OURS_IN_ARGS[name]}", "remove it", True)
            elif name not in known:
                message = f"unknown key '{name}' in {target.partition(':')[2]}"
                self._wrong((*path, name), message, suggest(name, known), True)
            else:
                self._check_field((*path, name), known[name], item)

    def _input(self, field: schema.Field, value: Any, path: Keys, raw: _RawStage) -> Source | tuple[Source, ...]:
        assert field.ref is not None
        if not _is_list(field.type):
            return self._reference(field.ref.kind, value, path, raw.scope)
        if not isinstance(value, list | tuple):
            self._wrong(path, f"'{path[-1]}' is {value!r}, expected a list", f"{path[-1]}: [{value}]")
            return ()
        return tuple(self._reference(field.ref.kind, v, (*path, i), raw.scope) for i, v in enumerate(value))

    # --- references -----------------------------------------------------------------------------------------------

    def _reference(self, kind: str, value: Any, path: Keys, scope: Mapping[str, str]) -> Source:
        if kind == "object":
            return self._object(value, path)
        if isinstance(value, str):
            name = scope.get(value, value)
            name = self.aliases.get(name, name)
            if name in self.produces or name in self.raw:
                return self._from_stage(kind, name, path)
            if kind == "model":
                return self._model_reference(name, path)
            section = f"{kind}s"
            if name in self.named.get(section, {}):
                return self.named[section][name]
        if kind == "model" or not isinstance(value, str | Mapping):
            self._wrong(path, f"'{value}' is no reference to {with_article(kind)}")
            return None
        return self._inline(typing.cast(Kind, kind), value, path, None, scope)

    def _from_stage(self, kind: str, name: str, path: Keys) -> Source:
        made = self.produces.get(name, kind)
        if kind != made:
            known = [i for i, p in self.produces.items() if p == kind]
            message = f"stage '{name}' makes {with_article(made)}, expected {with_article(kind)}"
            self._wrong(path, message, suggest(name, known) or _list(known))
            return None
        return FromStage(name, made)

    def _model_reference(self, name: str, path: Keys) -> Source:
        if name == "base":
            if self.document.get(("model",)) is None:
                self._wrong(path, "the recipe has no 'model'", "model: a folder, a Hub id, or {use: pretrain, ...}")
            return self.base
        if "/" in name or name.startswith("."):
            return self._external(Path(name).name if name.startswith("/") else name, name, path, path)
        known = ["base", *(i for i, p in self.produces.items() if p == "model"), *self.aliases]
        self._wrong(path, f"unknown model '{name}'", suggest(name, known) or _list(known))
        return None

    def _object(self, value: Any, path: Keys) -> Source:
        if not isinstance(value, str):
            self._wrong(path, f"'{path[-1]}' is {value!r}, expected 'package.module:attr' or a path")
            return None
        head, colon, attr = value.rpartition(":")
        if colon and not head.endswith(".py"):
            self._check_module(value, path)
            return Object(value)
        target = (self.folder / Path(head if colon else value).expanduser()).resolve()
        if target.exists():
            if colon:
                self._check_name_in(target, attr, path)
            return Object(f"{target}:{attr}" if colon else str(target))
        if "/" in value and not value.startswith((".", "/")):
            return Object(value)  # a Hub id
        self._wrong(path, f"no file {value}", f"paths start from {self.folder}")
        return None

    def _check_module(self, target: str, path: Keys) -> None:
        """`package.module:attr`, as far as it can be told from the source, which is not imported."""
        module, _, attr = target.rpartition(":")
        if not registry.is_module(module):
            self._wrong(path, f"'{target}': no package '{module.partition('.')[0]}'", "pip install it")
            return
        with contextlib.suppress(LookupError):  # a namespace package, which has no file
            file = schema.package_file(module)
            if file.is_file():
                self._check_name_in(file, attr, path)

    def _check_name_in(self, file: Path, attr: str, path: Keys) -> None:
        try:
            registry.require_name(f"'{path[-1]}'", file, attr.partition(".")[0])
        except InputError as error:
            self._wrong(path, error.message, error.hint)

    def _inline(self, kind: Kind, value: Any, path: Keys, name: str | None, scope: Mapping[str, str]) -> Source:
        """A plugin with its parameters, written in place or in its section."""
        if isinstance(value, str):
            value = self._short_form(kind, value, path, named=name is not None)
        if not isinstance(value, Mapping):
            if value is not None:
                self._wrong(path, f"{with_article(kind)} is a mapping with 'use', found {value!r}")
            return None
        if kind == "dataset" and "path" in value and "use" not in value:
            return self._data_file(value, path, name or str(value["path"]))
        plugin = self._plugin(kind, value.get("use"), path)
        found = self._schema(plugin, path) if plugin else None
        if plugin is None or found is None:
            return None
        told = len(self.mistakes)
        reserved_types = {k: t for k, t in RESERVED.get(kind, {}).items() if k not in found.fields}
        given = {k: v for k, v in value.items() if k != "use" and k not in reserved_types}
        reserved = {k: v for k, v in value.items() if k in reserved_types}
        for key, item in reserved.items():
            self._check_type((*path, key), reserved_types[key], item)
        self._check_keys(path, given, found, f"{kind} '{value['use']}'", reserved_types)
        refs: dict[str, Source] = {}
        for key, item in given.items():
            field = found.fields.get(key)
            if field is not None and field.ref is not None:
                refs[key] = self._reference(field.ref.kind, item, (*path, key), scope)
            elif field is not None:
                self._check_field((*path, key), field, item)
        if len(self.mistakes) == told:
            self._check_built(plugin, given, path)
        params = {k: v for k, v in given.items() if k not in refs}
        return Use(kind, name or _label(value), plugin, params, reserved, refs)

    def _short_form(self, kind: Kind, value: str, path: Keys, named: bool) -> Any:
        """`exact_answer`, `self_consistency(n=8)` or data, as a mapping; None after telling what is wrong."""
        try:
            name, params = parse_call(value)
            registry.find(kind, name, self.folder)
            return {"use": name, **params}
        except InputError as error:
            if kind == "dataset" and ".py:" not in value and self._is_data(value):
                return {"path": value}
            known = [*self.named.get(f"{kind}s", {}), *(i for i, p in self.produces.items() if p == kind)]
            near = suggest(value, known) if not named else None
            plugins = [p.name for p in registry.installed(kind)]
            is_reference = isinstance(error, PluginNotFound) and not (named or "(" in value or ":" in value)
            message = f"unknown {kind} '{value}'" if is_reference else error.message
            hint = (near or suggest(value, plugins)) if isinstance(error, PluginNotFound) else None
            self._wrong(path, message, hint or error.hint)
            return None

    def _is_data(self, value: str) -> bool:
        """A file or folder, there or not, or a Hub id."""
        return "/" in value or Path(value).suffix in data_head.SUFFIXES or (self.folder / value).is_dir()

    def _data_file(self, value: Mapping[str, Any], path: Keys, name: str) -> Source:
        types = {**RESERVED["dataset"], "data_dir": str, "data_files": str | list[str] | dict[str, str]}
        self._unknown_keys(path, value, types)
        for key, item in value.items():
            if key in types:
                self._check_type((*path, key), types[key], item)
        target = str(value["path"])
        options = {k: v for k, v in value.items() if k != "path" and k in types}
        file = (self.folder / Path(target).expanduser()).resolve()
        if file.exists():
            return DataFile(name, str(file), True, options)
        if target.startswith((".", "/", "~")) or file.suffix in data_head.SUFFIXES:
            self._wrong((*path, "path"), f"no file {target}", f"paths start from {self.folder}")
        return DataFile(name, target, False, options)

    # --- order and columns ----------------------------------------------------------------------------------------

    def _order(self) -> list[str]:
        order: list[str] = []
        state: dict[str, str] = {}

        def visit(id: str, trail: tuple[str, ...]) -> None:
            state[id] = "open"
            for parent in self.specs[id].parents():
                if state.get(parent) == "open":
                    circle = [*trail[trail.index(parent) :], parent] if parent in trail else [id, parent]
                    self._wrong(self._edge(id, parent), f"cycle: {' -> '.join(circle)}", "a stage cannot need itself")
                elif parent in self.specs and parent not in state:
                    visit(parent, (*trail, parent))
            state[id] = "done"
            order.append(id)

        for id in self.specs:
            if id not in state:
                visit(id, (id,))
        return order

    def _edge(self, id: str, parent: str) -> Keys:
        """The path of the field of stage `id` that names `parent`."""
        raw = self.raw[id]
        for name, source in self.specs[id].sources():
            if isinstance(source, FromStage) and source.stage == parent:
                return (*raw.path, *name.split("."))
        return raw.path

    def _columns(self, order: list[str]) -> None:
        for id in order:
            spec = self.specs[id]
            found = self.found[spec.plugin]
            required = found.attributes.get("requires_columns", {}) if found else {}
            for name, alternatives in required.items() if isinstance(required, Mapping) else ():
                columns = self._columns_of(spec.inputs.get(name))
                if columns == ():
                    message = f"data set {getattr(spec.inputs[name], 'path', name)} is empty"
                    self._wrong((*self.raw[id].path, name), message, "each line is one JSON object")
                elif columns is not None and not any(set(group) <= set(columns) for group in alternatives):
                    wanted = " or ".join(" + ".join(f"'{c}'" for c in group) for group in alternatives)
                    stage, has = self.raw[id].path[-1], _list(columns)
                    message = f"missing column: stage '{stage}' needs {wanted}, the data has {has}"
                    self._wrong((*self.raw[id].path, name), message, "rename: {old: new} on the data set")
            self._reward_columns(spec)

    def _reward_columns(self, spec: StageSpec) -> None:
        columns = self._columns_of(spec.inputs.get("dataset"))
        if not columns:
            return  # unknown, or empty, which is told already
        for _, source in spec.sources():
            if isinstance(source, Use) and source.kind == "reward":
                missing = [c for c in self._needs(source) if c not in columns]
                if missing:
                    self._wrong(
                        (*self.raw[spec.id].path, "dataset"),
                        f"missing column: reward '{source.name}' needs {_list(missing)}, the data has {_list(columns)}",
                        suggest(missing[0], columns) or "rename: {old: new} on the data set",
                    )

    def _needs(self, source: Use) -> tuple[str, ...]:
        found = self.found[source.plugin]
        attributes = found.attributes if found else {}
        if source.plugin.file is not None or "reward_columns" in attributes:
            return tuple(attributes.get("requires_columns", attributes.get("reward_columns", ())))
        return schema.reward_columns(source.plugin.load())

    def _columns_of(self, source: Source | tuple[Source, ...]) -> tuple[str, ...] | None:
        """The columns of a data set as far as they can be known without loading it, else None."""
        if isinstance(source, DataFile):
            return data_head.columns(Path(source.path), source.options) if source.is_local else None
        if isinstance(source, Use):
            return data_head.renamed(_declared_columns(source.plugin, source.params), source.reserved)
        if isinstance(source, FromStage) and source.stage in self.specs:
            spec = self.specs[source.stage]
            own = _declared_columns(spec.plugin, {**dict.fromkeys(spec.inputs), **spec.params})
            kept = self._columns_of(spec.inputs.get("dataset"))
            return None if own is None or kept is None else tuple(dict.fromkeys((*own, *kept)))
        return None

    # --- small things ---------------------------------------------------------------------------------------------

    def _resolved(self, name: str, seed: int) -> dict[str, Any]:
        """The plain values with every path made absolute, so that they give the same run from any folder."""
        data: dict[str, Any] = {"name": name, "seed": seed, **self.document.data}
        model = data.get("model")
        if isinstance(self.base, External) and Path(self.base.path).is_absolute():
            data["model"] = {**(model if isinstance(model, dict) else {}), "model_name_or_path": self.base.path}
        return data

    def _mapping(self, path: Keys) -> Mapping[str, Any]:
        value = self.document.get(path)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self._wrong(path, f"'{path[-1]}' is {value!r}, expected a mapping")
            return {}
        return value

    def _plugin(self, kind: Kind, use: Any, path: Keys) -> Plugin | None:
        if not isinstance(use, str):
            message = f"{with_article(kind)} needs 'use', the name of a plugin"
            self._wrong(path, message, f"posttrain plugins list --kind {kind}")
            return None
        try:
            return registry.find(kind, use, self.folder)
        except InputError as error:
            self._wrong((*path, "use"), error.message, error.hint)
            return None

    def _schema(self, plugin: Plugin, path: Keys) -> schema.Schema | None:
        if plugin not in self.found:
            self.found[plugin] = None
            try:
                self.found[plugin] = plugin_schema(plugin)
            except PosttrainError as error:
                self._wrong((*path, "use"), error.message, error.hint)
            except (LookupError, SyntaxError, ValueError) as error:
                self._wrong((*path, "use"), f"{plugin.kind} '{plugin.name}' cannot be read: {error}")
        return self.found[plugin]

    def _typed(self, path: Keys, kind: type, default: Any) -> Any:
        value = self.document.get(path)
        if value is None:
            return default
        self._check_type(path, kind, value)
        return value

    def _check_type(self, path: Keys, kind: Any, value: Any) -> None:
        if not schema.accepts(kind, value):
            self._wrong(path, f"'{path[-1]}' is {value!r}, expected {schema.type_name(kind)}")

    def _check_field(self, path: Keys, field: schema.Field, value: Any) -> None:
        """Also an annotation that forgets its default None."""
        if value is not None or field.default is not None or not field.is_literal:
            self._check_type(path, field.type, value)

    def _check_name(self, path: Keys, name: str, what: str, allowed: str = "") -> None:
        """Names become folders, and a loop's stages are told apart by dots."""
        if not NAME.fullmatch("".join(c for c in name if c not in allowed)):
            message = f"{what} name '{name}' has other characters than letters, digits, '_' and '-'"
            self._wrong(path, message, "rename it", of_key=what == "stage")

    def _check_keys(
        self, path: Keys, given: Mapping[str, Any], found: schema.Schema, what: str, also: Iterable[str] = ()
    ) -> None:
        if not found.is_open:
            for key in given:
                if key not in found.fields:
                    hint = suggest(key, [*found.fields, *also]) or _list(found.fields, "it takes ")
                    self._wrong((*path, key), f"unknown key '{key}' in {what}", hint, True)
        for name, field in found.fields.items():
            if field.is_required and name not in given:
                self._wrong(path, f"{what} needs '{name}' ({schema.type_name(field.type)})")

    def _unknown_keys(self, path: Keys, given: Mapping[str, Any], known: Iterable[str]) -> None:
        known = list(known)
        for key in given:
            if key not in known:
                self._wrong((*path, key), f"unknown key '{key}'", suggest(key, known) or _list(known, "known: "), True)

    def _wrong(self, path: Keys, message: str, hint: str | None = None, of_key: bool = False) -> None:
        self.mistakes.append(self.document.place(path, of_key).mistake(message, hint))


def _is_list(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin is list:
        return True
    return any(_is_list(a) for a in typing.get_args(annotation)) if origin is not typing.Annotated else False


def _list(names: Iterable[str], lead: str = "") -> str:
    names = list(names)
    return lead + ", ".join(f"'{name}'" for name in names[:12]) + (" ..." if len(names) > 12 else "")


def _label(value: Mapping[str, Any]) -> str:
    """`best_of_n(n=8, scorer=rm)`; of a plugin's file only its name, so that a moved folder keeps its labels."""
    inner = ", ".join(f"{k}={v['use'] if isinstance(v, Mapping) else v}" for k, v in value.items() if k != "use")
    name = str(value["use"]).rpartition("/")[2]
    return f"{name}({inner})" if inner else name


def _declared_columns(plugin: Plugin, params: Mapping[str, Any]) -> tuple[str, ...] | None:
    """What a data set plugin or a data-making stage says of its columns; None where it says nothing."""
    if plugin.file is not None:
        literal = plugin_schema(plugin).attributes.get("columns")
        return tuple(literal) if isinstance(literal, list | tuple) else None
    loaded = plugin.load()
    try:
        columns = getattr(loaded(**params) if isinstance(loaded, type) else loaded, "columns", None)
    except Exception:  # the plugin boundary; `_check_built` tells it
        return None
    return tuple(columns) if isinstance(columns, list | tuple) else None
