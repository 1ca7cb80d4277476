"""`posttrain schema`: JSON Schema (draft 2020-12) of recipes, with the parameters of every installed plugin.

Editors complete and check a recipe with it: `# yaml-language-server: $schema=recipe.schema.json` as its first line.
What it takes comes from where `posttrain validate` takes it: plugins' signatures, and TRL's and PEFT's config classes,
read from their source. So it knows the names of keys and the types of values; whether `model: sft` names a stage that
makes a model only `validate` knows.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

from posttrain_plugins.errors import PLUGIN_FAILURES
from posttrain_plugins.models.folder import TRUSTING
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.registry import Plugin
from posttrain_plugins.plugins.schema import Field, Schema, is_list
from posttrain_plugins.plugins.source import of_config
from posttrain_plugins.recipe.check.local_paths import FILE_OPTIONS
from posttrain_plugins.recipe.check.model import MODEL_CONFIG, PEFT_IN_MODEL
from posttrain_plugins.recipe.check.references import MEANINGS, RESERVED
from posttrain_plugins.recipe.check.stages import OURS_IN_ARGS, reserved_words
from posttrain_plugins.recipe.plugin_schema import plugin_schema
from posttrain_plugins.types import KINDS, CriticKind, Kind

__all__ = ["argument_docs", "recipe_schema", "schema_of"]

Json = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
SAME = (
    "name",
    "description",
    "extends",
    "seed",
    "launch",
)  # sections that are the same in a recipe that extends another
WRITTEN_OUT = ":"  # `module:attr`, `./file.py:attr`, `distribution:name`: its parameters are not known here
ARGUMENT = re.compile(r"^    (\w+): (.*(?:\n {8,}.*)*)", re.MULTILINE)


def recipe_schema() -> Json:
    """The schema of recipes, as plain values."""
    definitions: Json = {}
    for kind in KINDS:
        definitions[kind] = _use(kind, definitions)
    definitions["loop"] = _loop()
    options = {name: _said(MEANINGS["dataset"][name]) | schema_of(kind) for name, kind in FILE_OPTIONS.items()}
    definitions["data"] = _closed(options, ["path"])
    sections: dict[str, Json] = {
        "name": {
            "type": "string",
            "description": "Names the folder below runs/; by default the file's name.",
        },
        "description": {"type": "string"},
        "extends": {"type": "string", "description": "Another recipe; mappings merge, lists replace."},
        "seed": {"type": "integer", "default": 0},
        "launch": {**_said(MEANINGS["stage"]["launch"]), **schema_of(dict[str, Any])},
        "model": _model(definitions),
        "adapters": _section("adapter", "What is trainable, by name."),
        "datasets": _section("dataset", "Data sets by name: a plugin, a file or a Hub id."),
        "rewards": _section("reward", "Rewards by name; the name is what is logged."),
        "stages": {
            "type": "object",
            "description": "What is made, by name; other stages and sections are named where they are needed.",
            "additionalProperties": _either("stages", {"$ref": "#/$defs/loop"}, {"$ref": "#/$defs/stage"}),
        },
    }
    return {
        "$schema": DRAFT,
        "title": "A posttrain-plugins recipe",
        **_closed({name: part if name in SAME else {} for name, part in sections.items()}, []),
        "if": {"required": ["extends"]},
        "then": {"properties": _partial(sections)},
        "else": {"properties": {name: part for name, part in sections.items() if name not in SAME}},
        "$defs": dict(sorted(definitions.items())),
    }


def schema_of(annotation: Any) -> Json:
    """The JSON Schema of a type; one that is not known here takes anything, as in `schema.accepts`.

    Example:
        >>> schema_of(int | None)
        {'anyOf': [{'type': 'integer'}, {'type': 'null'}]}
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return schema_of(arguments[0])
    if origin in (Union, types.UnionType):
        parts = [schema_of(argument) for argument in arguments]
        return {} if {} in parts else {"anyOf": parts}
    if origin is Literal:
        return {"enum": list(arguments)}
    return _plain(origin or annotation, arguments)


def _plain(kind: Any, arguments: tuple[Any, ...]) -> Json:
    names = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null", None: "null"}
    if kind in names:
        return {"type": names[kind]}
    if not isinstance(kind, type):
        return {}
    if issubclass(kind, Mapping):
        return {"type": "object", **({"additionalProperties": schema_of(arguments[1])} if len(arguments) > 1 else {})}
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        return {"type": "array", "prefixItems": [schema_of(a) for a in arguments], "minItems": len(arguments)}
    if issubclass(kind, Sequence | set):
        return {"type": "array", **({"items": schema_of(arguments[0])} if arguments else {})}
    return {}


# --- plugins ----------------------------------------------------------------------------------------------------------


def _use(kind: Kind, definitions: Json) -> Json:
    """`{use: NAME, ...}` of a kind: which parameters there are depends on the name."""
    plugins = {plugin.name: plugin for plugin in registry.installed(kind)}
    cases = []
    for name, plugin in plugins.items():
        try:
            found = plugin_schema(plugin)
            definitions[f"{kind}.{name}"] = _parameters(plugin, found, definitions)
        except PLUGIN_FAILURES:  # the plugin boundary: `posttrain plugins list` tells it; here it takes anything
            continue
        # `if` and `then` in place of `oneOf`: an editor says what is wrong with this plugin, not that none of 85 fits.
        is_it = {"properties": {"use": {"const": name}}, "required": ["use"]}
        cases.append({"if": is_it, "then": {"$ref": f"#/$defs/{kind}.{name}"}})
    names = {"anyOf": [{"enum": sorted(plugins)}, {"type": "string", "pattern": WRITTEN_OUT}]}
    return {"type": "object", "properties": {"use": names}, "required": ["use"], "allOf": cases}


def _parameters(plugin: Plugin, found: Schema, definitions: Json) -> Json:
    docs = argument_docs(found.doc or inspect.getdoc(plugin.load()) or "")
    own = {name: _field(field, docs.get(name, ""), definitions) for name, field in found.fields.items()}
    words = reserved_words(found) if plugin.kind == "stage" else RESERVED.get(plugin.kind, {})
    said = MEANINGS.get(plugin.kind, {})
    reserved = {name: _said(said.get(name)) | schema_of(kind) for name, kind in words.items() if name not in own}
    required = [name for name, field in found.fields.items() if field.is_required]
    made = _closed({"use": {"const": plugin.name}, **reserved, **own}, ["use", *required])
    made["description"] = (found.doc or inspect.getdoc(plugin.load()) or "").strip().partition("\n")[0]
    return {**made, "additionalProperties": True} if found.is_open else made


def _field(field: Field, doc: str, definitions: Json) -> Json:
    told = _said(doc)
    if field.config is not None:
        return {**told, "$ref": _config(field.config.target, definitions)}
    shape = _reference(field) if field.ref is not None else schema_of(field.type)
    # Many of TRL's and PEFT's annotations forget the None that is their own default.
    if not field.is_required and field.default is None and shape:
        shape = {"anyOf": [shape, {"type": "null"}]}
    if not field.is_required and field.is_literal and isinstance(field.default, str | int | float | bool):
        told["default"] = field.default
    return {**told, **shape}


def _said(doc: str | None) -> Json:
    return {"description": doc} if doc else {}


def _reference(field: Field) -> Json:
    """A name, or what it would stand for, written in place."""
    assert field.ref is not None
    one: Json = {"type": "string"}
    if field.ref.kind in ("dataset", "reward", "adapter", "strategy", "tool"):
        one = {"anyOf": [one, _in_place(field.ref.kind)]}
    if field.ref.kind == "critic":
        kinds = {"enum": list(typing.get_args(CriticKind))}
        started = _closed({"kind": kinds, "from": {"type": "string"}}, [])
        one = {"anyOf": [one, _either("use", _in_place("adapter"), started)]}
    return {"type": "array", "items": one} if is_list(field.type) else one


def _in_place(kind: str) -> Json:
    if kind != "dataset":
        return {"$ref": f"#/$defs/{kind}"}
    return _either("use", {"$ref": "#/$defs/dataset"}, {"$ref": "#/$defs/data"})


def _config(target: str, definitions: Json) -> str:
    """The options of a config class such as `trl:SFTConfig`, defined once."""
    name = f"options.{target.replace(':', '.')}"
    # Once, and referred to: a trainer has two hundred options.
    if name not in definitions:
        try:
            fields = of_config(target).fields
        except LookupError:
            definitions[name] = {"type": "object"}
            return f"#/$defs/{name}"
        options = {key: _field(field, "", definitions) for key, field in fields.items() if key not in OURS_IN_ARGS}
        definitions[name] = {**_closed(options, []), "description": f"Fields of {target.replace(':', '.')}."}
    return f"#/$defs/{name}"


# --- sections --------------------------------------------------------------------------------------------------------


def _partial(sections: Mapping[str, Json]) -> Json:
    """In a recipe that extends another, an entry without `use` changes the other's, so what it may hold is open."""
    known = {}
    for name in ("adapters", "datasets", "rewards", "stages"):
        whole = sections[name]
        is_whole = _either("use", whole["additionalProperties"], {})
        known[name] = {**whole, "additionalProperties": {"if": {"type": "object"}, "then": is_whole, "else": {}}}
    return known


def _section(kind: str, doc: str) -> Json:
    entry = {"anyOf": [{"type": "string"}, _in_place(kind)]}
    return {"type": "object", "description": doc, "additionalProperties": entry}


def _model(definitions: Json) -> Json:
    """A folder or Hub id, alone or with how it is loaded; or a plugin that makes it."""
    fields = of_config(MODEL_CONFIG).fields
    loading = {k: _field(f, "", definitions) for k, f in fields.items() if not k.startswith(PEFT_IN_MODEL)}
    loading["chat_template"] = {"type": "string"}
    loading |= {name: {"type": "boolean"} for name in TRUSTING}
    given = _closed({**loading, "model_name_or_path": {"type": "string"}}, ["model_name_or_path"])
    makers = [p for p in registry.installed("stage") if f"stage.{p.name}" in definitions]
    made = [_closed({**loading, **definitions[f"stage.{p.name}"]["properties"]}, ["use"]) for p in _making(makers)]
    whole = _either("use", {"anyOf": [*made, _written_out()]}, given)
    return {"description": "What `base` stands for.", "anyOf": [{"type": "string"}, whole]}


def _making(plugins: Iterable[Plugin]) -> list[Plugin]:
    """Those that make a model from no other: a stage whose `model` is not required."""
    found = []
    for plugin in plugins:
        schema = plugin_schema(plugin)
        model = schema.fields.get("model")
        if schema.declares("produces") == "model" and (model is None or not model.is_required):
            found.append(plugin)
    return found


def _written_out() -> Json:
    return {"type": "object", "properties": {"use": {"type": "string", "pattern": WRITTEN_OUT}}, "required": ["use"]}


def _loop() -> Json:
    """A loop's turns: `${prev}` is the turn before."""
    inner = {"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#/$defs/stage"}}
    repeat = {"type": "integer", "minimum": 1, "default": 1}
    return _closed({"repeat": repeat, "init": {"type": "string"}, "stages": inner}, ["stages"])


def _either(key: str, has_it: Json, has_not: Json) -> Json:
    """What a mapping is depends on whether it has a key; told apart so, editors complain about one form only."""
    return {"type": "object", "if": {"required": [key]}, "then": has_it, "else": has_not}


def _closed(properties: Mapping[str, Json], required: Sequence[str]) -> Json:
    more = {"required": list(required)} if required else {}
    return {"type": "object", "properties": dict(properties), "additionalProperties": False, **more}


def argument_docs(doc: str) -> dict[str, str]:
    """Name -> description, of a docstring's `Args:`."""
    _, _, rest = doc.partition("Args:\n")
    section = re.split(r"\n\S", "\n" + rest)[0]
    return {name: " ".join(text.split()) for name, text in ARGUMENT.findall(section)}
