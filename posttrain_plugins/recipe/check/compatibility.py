"""Check that a stage's inputs match the tokenizer, chat template and EOS its model was trained with.

A model that a stage of the recipe trained keeps its template, EOS and tokenizer: what would change them is refused with
both values, by `validate` and `plan` where the files are there already, else when the stage is about to start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import HandoffError
from posttrain_plugins.recipe import handoff
from posttrain_plugins.recipe.check.diagnostics import Checker
from posttrain_plugins.recipe.check.loops import RawStages
from posttrain_plugins.recipe.check.template import template_text
from posttrain_plugins.recipe.spec import DataFile, External, FromStage, Object, StageSpec
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
    """Follow what each stage hands on through a recipe, from the files that are there.

    Args:
        checker: takes what does not fit.
        stages: as written.
        ordered: in an order in which they can run, so that what a stage starts from is known before it.
    """
    known: dict[str, Found] = {}
    # Vocabularies are megabytes of JSON; they are read only if some stage compares them.
    whole = any(spec.schema.declares("shares_tokenizer") or "tokenizer" in spec.inputs for spec in ordered)
    for spec in ordered:
        found: dict[str, Found] = {}
        for name, source in spec.inputs.items():
            if isinstance(source, FromStage) and source.stage in known:
                found[name] = known[source.stage]
            elif isinstance(source, External) and Path(source.path).is_absolute():
                record = handoff.record(Path(source.path), source.loading, whole=whole)
                if source.template is not None:
                    text = template_text(source.template)
                    record["chat_template"] = handoff.short_hash(text) if text is not None else "given by the recipe"
                found[name] = Found(source.name, record)
        # The first row stands for all: TRL, too, decides by it whether the data is conversational.
        for field, message, hint in _problems(spec, found, _holds_messages(_first_row(spec.inputs.get("dataset")))):
            checker.error((*stages.by_id[spec.id].path, field), message, hint)
        if spec.produces == "model" and spec.configs:  # training keeps everything but what it is told to change
            start = found.get("model", Found(spec.id, {}))
            known[spec.id] = Found(spec.id, {**start.record, **_asked(spec)}, is_ours=True)


def check_handoff(spec: StageSpec, inputs: Mapping[str, Any]) -> None:
    """Check the same for one stage with what it is really given.

    Raises:
        HandoffError: names the field and both values.
    """
    found = {
        name: Found(model.name, record_of(model), is_ours=bool(model.handoff))
        for name, model in inputs.items()
        if isinstance(model, ModelArtifact) and spec.configs
    }
    dataset = inputs.get("dataset")
    first = dataset[0] if dataset is not None and hasattr(dataset, "column_names") and len(dataset) > 0 else None
    for _, message, hint in _problems(spec, found, _holds_messages(first)):
        raise HandoffError(message, hint=hint)


def record_of(model: ModelArtifact) -> dict[str, Any]:
    """Return a model's record: its maker's, else from its files; of a Hub id from those that are small."""
    if model.handoff:
        return dict(model.handoff)
    folder = Path(model.path)
    if not folder.is_dir():
        if "://" in model.path:
            return {}
        from huggingface_hub import snapshot_download

        revision = model.loading.get("model_revision") or None
        try:  # the configs and the tokenizer, which loading it would fetch first
            folder = Path(snapshot_download(model.path, revision=revision, allow_patterns=list(SMALL_FILES)))
        except Exception:  # no network, no such repository: loading it will tell
            return {}
    record = handoff.record(folder, model.loading)
    return record | ({"chat_template": handoff.short_hash(model.chat_template)} if model.chat_template else {})


def _asked(spec: StageSpec) -> dict[str, Any]:
    """Return what a stage's own fields and options make of template and EOS."""
    asked: dict[str, Any] = {}
    args = next((spec.params.get(name) for name in spec.configs), None)
    args = args if isinstance(args, Mapping) else {}
    template = spec.inputs.get("chat_template")
    if template is None and isinstance(args.get("chat_template_path"), str):
        template = Object(args["chat_template_path"])
    if isinstance(template, Object):
        text = template_text(template)
        # A template in the user's own module is known by its name: reading it would import code.
        asked["chat_template"] = handoff.short_hash(text) if text is not None else template.target
    return asked | ({"eos_token": args["eos_token"]} if isinstance(args.get("eos_token"), str) else {})


def _problems(
    spec: StageSpec, found: Mapping[str, Found], is_conversational: bool
) -> Iterator[tuple[str, str, str | None]]:
    """Yield field, message and hint of everything that does not fit."""
    if not spec.configs:  # it trains nothing: figures may be measured of any model
        return
    for name, model in found.items():
        # a judge goes on from a stage's, of whose kind the reference is
        is_earlier = name == "model" and spec.produces == "reward" and model.is_ours
        # TRL would load it as a language model with a new, random head
        if "score" in (model.record.get("heads") or ()) and not is_earlier:
            kind = model.record.get("architecture")
            message = f"'{model.name}' is a reward model ({', '.join(model.record['heads'])} head on {kind})"
            yield name, f"{message}, expected a causal language model", "name it under rewards"
    start = found.get("model")
    if start is None:
        return
    asked = _asked(spec)
    for field, value in asked.items():
        was = start.record.get(field)
        if start.is_ours and was is not None and was != value:  # a foreign model may be given another template
            place = "chat_template" if field == "chat_template" and "chat_template" in spec.inputs else "args"
            hint = f"remove it, or set it where '{start.name}' got its own"
            yield place, f"stage '{spec.id}' sets {field} to {value}, expected {was}, as '{start.name}' has it", hint
    tokenizer = spec.inputs.get("tokenizer")
    if isinstance(tokenizer, Object):
        message = f"stage '{spec.id}' sets tokenizer to {tokenizer.target}, expected {start.record.get('tokenizer')}"
        yield "tokenizer", f"{message}, as '{start.name}' has it", "remove it: a model keeps its tokenizer"
    for name in spec.schema.declares("shares_tokenizer"):  # a teacher scores the student's token ids as they are
        other = found.get(name)
        vocabularies = [model.record.get("vocabulary") for model in (start, other) if model is not None]
        if other is not None and None not in vocabularies and vocabularies[0] != vocabularies[1]:
            theirs, ours = (f"{m.record['vocabulary']} ({m.record['tokens']} tokens)" for m in (other, start))
            message = f"{name} '{other.name}' has another vocabulary: {theirs}, expected {ours}"
            hint = "name one with the model's tokenizer, or `sample` with it and `sft` on its texts"
            yield name, f"{message}, as '{start.name}' has it", hint
    has_template = asked.get("chat_template") or start.record.get("chat_template")
    if is_conversational and "tokenizer" in start.record and not has_template:
        yield "dataset", f"stage '{spec.id}' has messages to learn from, but '{start.name}' has no chat template", GIVE


def _first_row(source: Any) -> Any:
    """Return the first record of a local JSONL file; None of anything else."""
    if not isinstance(source, DataFile) or not source.is_local or Path(source.path).suffix != ".jsonl":
        return None
    try:
        with Path(source.path).open(encoding="utf-8") as lines:
            return json.loads(next((line for line in lines if line.strip()), "{}"))
    except (OSError, ValueError):
        return None


def _holds_messages(row: Any) -> bool:
    columns = ("messages", "prompt", "chosen")
    found = [row.get(name) for name in columns] if isinstance(row, Mapping) else []
    return any(isinstance(v, list) and v and isinstance(v[0], Mapping) and "role" in v[0] for v in found)
