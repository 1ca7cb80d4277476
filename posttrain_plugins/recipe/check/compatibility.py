"""What a stage is about to be given against what it was made for, before any weights are loaded.

A model that a stage of the recipe trained keeps its template, EOS and tokenizer: what would change them is refused with
both values, by `validate` and `plan` where the files are there already, else when the stage is about to start.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import HandoffError
from posttrain_plugins.plugins.schema import Schema
from posttrain_plugins.recipe import handoff
from posttrain_plugins.recipe.check.diagnostics import Checker
from posttrain_plugins.recipe.check.loops import RawStages
from posttrain_plugins.recipe.check.template import template_text
from posttrain_plugins.recipe.spec import DataFile, External, FromStage, Object, Source, StageSpec
from posttrain_plugins.types import ModelArtifact

__all__ = ["check_handoff", "check_handoffs", "record_of"]

SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
GIVE = "chat_template: NAME, a Jinja file or package.module:attr, on the stage or under 'model:'"


@dataclass(frozen=True)
class Found:
    """A model as far as it is known: its name, its record, and whether a stage of this recipe made it."""

    name: str
    record: Mapping[str, Any]
    is_ours: bool = False


def check_handoffs(checker: Checker, stages: RawStages, ordered: tuple[StageSpec, ...]) -> None:
    """Follows what each stage hands on through a recipe, from the files that are there."""
    known: dict[str, Found] = {}
    whole = any(_shared(checker.schemas[spec.plugin]) or "tokenizer" in spec.inputs for spec in ordered)
    for spec in ordered:
        schema = checker.schemas[spec.plugin]
        path = stages.by_id[spec.id].path
        single = {name: source for name, source in spec.inputs.items() if not isinstance(source, tuple)}
        models = {name: _known(source, known, whole) for name, source in single.items()}
        found = {name: model for name, model in models.items() if model is not None}
        is_conversational = _is_conversation(spec.inputs.get("dataset"))
        for field, message, hint in _problems(spec, schema, found, is_conversational):
            checker.error((*path, field), message, hint)
        if spec.produces == "model" and spec.configs:
            start = found.get("model", Found(spec.id, {}))
            known[spec.id] = Found(spec.id, {**start.record, **_asked(spec)}, is_ours=True)


def check_handoff(spec: StageSpec, schema: Schema, inputs: Mapping[str, Any]) -> None:
    """The same for one stage with what it is really given.

    Raises:
        HandoffError: names the field and both values.
    """
    found = {
        name: Found(model.name, record_of(model), is_ours=bool(model.handoff))
        for name, model in inputs.items()
        if isinstance(model, ModelArtifact) and spec.configs
    }
    for _, message, hint in _problems(spec, schema, found, _rows_are_conversational(inputs.get("dataset"))):
        raise HandoffError(message, hint=hint)


def record_of(model: ModelArtifact) -> dict[str, Any]:
    """A model's record: its maker's, else from its files; of a Hub id from those that are small."""
    if model.handoff:
        return dict(model.handoff)
    folder = Path(model.path)
    if not folder.is_dir():
        fetched = _small_files(model)
        if fetched is None:
            return {}
        folder = fetched
    record = handoff.record(folder, model.loading)
    return record | ({"chat_template": handoff.hash_of_template(model.chat_template)} if model.chat_template else {})


def _small_files(model: ModelArtifact) -> Path | None:
    """The configs and the tokenizer of a Hub id, which loading it would fetch first."""
    if "://" in model.path:
        return None
    from huggingface_hub import snapshot_download

    with contextlib.suppress(Exception):  # loading it will tell
        revision = model.loading.get("model_revision") or None
        return Path(snapshot_download(model.path, revision=revision, allow_patterns=list(SMALL_FILES)))
    return None


def _shared(schema: Schema | None) -> tuple[str, ...]:
    """A stage class says in `shares_tokenizer` which of its models read the same token ids as `model`."""
    return tuple(schema.declares("shares_tokenizer")) if schema else ()


def _known(source: Source, known: Mapping[str, Found], whole: bool) -> Found | None:
    if isinstance(source, FromStage):
        return known.get(source.stage)
    if not isinstance(source, External) or not Path(source.path).is_absolute():
        return None
    record = handoff.record(Path(source.path), source.loading, whole=whole)
    if source.template is not None:
        text = template_text(source.template)
        record["chat_template"] = handoff.hash_of_template(text) if text is not None else "given by the recipe"
    return Found(source.name, record)


def _asked(spec: StageSpec) -> dict[str, Any]:
    """What a stage's own fields and options make of template and EOS; a template that cannot be read by its name."""
    asked: dict[str, Any] = {}
    args = next((spec.params.get(name) for name in spec.configs), None)
    args = args if isinstance(args, Mapping) else {}
    template = spec.inputs.get("chat_template")
    if template is None and isinstance(args.get("chat_template_path"), str):
        template = Object(args["chat_template_path"])
    if isinstance(template, Object):
        text = template_text(template)
        asked["chat_template"] = handoff.hash_of_template(text) if text is not None else template.target
    return asked | ({"eos_token": args["eos_token"]} if isinstance(args.get("eos_token"), str) else {})


def _problems(
    spec: StageSpec, schema: Schema | None, found: Mapping[str, Found], is_conversational: bool
) -> Iterator[tuple[str, str, str | None]]:
    """Field, message and hint of everything that does not fit."""
    for name, model in found.items():
        if "score" in (model.record.get("heads") or ()) and spec.configs:
            kind = model.record.get("architecture")
            message = f"'{model.name}' is a reward model ({', '.join(model.record['heads'])} head on {kind})"
            yield name, f"{message}, expected a causal language model", "name it under rewards"
    start = found.get("model")
    if start is None or not spec.configs:
        return
    asked = _asked(spec)
    yield from _changes(spec, start, asked)
    yield from _vocabularies(spec, start, found, _shared(schema))
    if (
        is_conversational
        and "tokenizer" in start.record
        and not (asked.get("chat_template") or start.record.get("chat_template"))
    ):
        yield "dataset", f"stage '{spec.id}' has messages to learn from, but '{start.name}' has no chat template", GIVE


def _changes(spec: StageSpec, start: Found, asked: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What a stage that trains a model of this recipe may not change."""
    for field, value in asked.items():
        was = start.record.get(field)
        if start.is_ours and was is not None and was != value:
            place = "chat_template" if field == "chat_template" and "chat_template" in spec.inputs else "args"
            hint = f"remove it, or set it where '{start.name}' got its own"
            yield place, f"stage '{spec.id}' sets {field} to {value}, expected {was}, as '{start.name}' has it", hint
    tokenizer = spec.inputs.get("tokenizer")
    if isinstance(tokenizer, Object):
        message = f"stage '{spec.id}' sets tokenizer to {tokenizer.target}, expected {start.record.get('tokenizer')}"
        yield "tokenizer", f"{message}, as '{start.name}' has it", "remove it: a model keeps its tokenizer"


def _vocabularies(
    spec: StageSpec, start: Found, found: Mapping[str, Found], shared: Any
) -> Iterator[tuple[str, str, str]]:
    """Of models that have to read the same token ids."""
    for name in shared:
        other = found.get(name)
        told = [model.record.get("vocabulary") for model in (start, other) if model is not None]
        if other is not None and None not in told and told[0] != told[1]:
            theirs, ours = (f"{m.record['vocabulary']} ({m.record['tokens']} tokens)" for m in (other, start))
            message = (
                f"{name} '{other.name}' has another vocabulary: {theirs}, expected {ours}, as '{start.name}' has it"
            )
            yield name, message, "name one with the model's tokenizer, or `sample` with it and `sft` on its texts"


def _is_conversation(source: Any) -> bool:
    """Does the first record of a JSONL file hold messages?"""
    if not isinstance(source, DataFile) or not source.is_local or Path(source.path).suffix != ".jsonl":
        return False
    try:
        with Path(source.path).open(encoding="utf-8") as lines:
            return _holds_messages(json.loads(next((line for line in lines if line.strip()), "{}")))
    except (OSError, ValueError):
        return False


def _rows_are_conversational(dataset: Any) -> bool:
    return dataset is not None and hasattr(dataset, "column_names") and len(dataset) > 0 and _holds_messages(dataset[0])


def _holds_messages(row: Any) -> bool:
    columns = ("messages", "prompt", "chosen")
    found = [row.get(name) for name in columns] if isinstance(row, Mapping) else []
    return any(isinstance(v, list) and v and isinstance(v[0], Mapping) and "role" in v[0] for v in found)
