"""What one stage hands to the next: read from the files of a model folder, recorded when it is made, checked on use.

Template drift between stages ships in real models; here a field that changed without being asked for is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import HandoffError
from posttrain_plugins.models.folder import adapter_config, adapters_in, digest, named_adapters, task_of

__all__ = ["check_kept", "check_unchanged", "hash_of_template", "record"]

FIELDS = ("tokenizer", "chat_template", "eos_token_id", "pad_token_id", "adapters")
KEPT = FIELDS[:-1]


def record(folder: Path, loading: Mapping[str, Any], *, whole: bool = True) -> dict[str, Any]:
    """The hand-off record of a model folder.

    Args:
        folder: a saved model or adapter with its tokenizer.
        loading: TRL `ModelConfig` fields it was loaded with.
        whole: also what takes reading large files: the vocabulary, and adapters' weights.

    Returns:
        `tokenizer`, `vocabulary` and `chat_template` (hashes), `tokens` (their number), `eos_token`, `eos_token_id`,
        `pad_token_id`, `architecture`, `heads` (`score`, `value`), `quantization`, `base`, the
        `base_revision` that an adapter records, and `adapters`, the stack from the base up, each with `type` and
        `weights` (a hash). Of a model that holds several adapters, the record of each in `several`.
    """
    several = {name: record(folder / name, loading) for name in named_adapters(folder)}
    if several:  # over one base, with one tokenizer
        return {**next(iter(several.values())), "adapters": [], "several": several}
    adapter = adapter_config(folder)
    base = Path(adapter["base_model_name_or_path"] or "") if adapter else folder
    config, generation = _json(base / "config.json"), _json(base / "generation_config.json")
    tokenizer_folder = folder if (folder / "tokenizer_config.json").is_file() else base
    vocabulary = _vocabulary(tokenizer_folder) if whole else {}
    return {
        "tokenizer": _tokenizer_hash(tokenizer_folder) if whole else None,
        "vocabulary": _hash(json.dumps(vocabulary, sort_keys=True)) if vocabulary else None,
        "tokens": len(vocabulary) or None,
        "chat_template": _template_hash(tokenizer_folder),
        "eos_token": _token(_json(tokenizer_folder / "tokenizer_config.json").get("eos_token")),
        "eos_token_id": generation.get("eos_token_id", config.get("eos_token_id")),
        "pad_token_id": generation.get("pad_token_id", config.get("pad_token_id")),
        "architecture": (config.get("architectures") or [None])[0],
        "heads": _heads(folder),
        "quantization": {k: v for k, v in loading.items() if k.startswith(("load_in_", "bnb_", "use_bnb"))} or None,
        "adapters": [_adapter(one, whole) for one in adapters_in(folder)],
        "base": str(base) if adapter else None,
        "base_revision": adapter.get("revision"),
    }


def check_unchanged(
    name: str, folder: Path, recorded: Mapping[str, Any], weights_of: Callable[..., str] | None = None
) -> None:
    """Refuses a model whose files no longer are what its maker recorded.

    Args:
        name: of the model.
        folder: the model.
        recorded: by its maker.
        weights_of: the identity of the base's weights, by its path and the revision that the adapter records; of an
            adapter they have to be those that it is on.

    Raises:
        HandoffError: names the field and both values.
    """
    base = recorded.get("base")
    if base and Path(base).is_absolute() and not Path(base).is_dir():
        raise HandoffError(
            f"model '{name}' is an adapter, and its base is gone: {base}", hint=f"posttrain run RECIPE --force {name}"
        )
    weights = weights_of(base, recorded.get("base_revision")) if base and weights_of else ""
    if weights and recorded.get("base_weights") not in (None, weights):
        raise HandoffError(
            f"model '{name}' is an adapter, and its base changed: {base} is {_short(weights)}, "
            f"expected {_short(recorded['base_weights'])}",
            hint=f"put the base back, or make it again: posttrain run RECIPE --force {name}",
        )
    now = record(folder, {})
    for field in FIELDS:
        if field in recorded and now[field] != recorded[field]:
            raise HandoffError(
                f"model '{name}' changed after it was made: {field} is {now[field]}, expected {recorded[field]}",
                hint=f"make it again: posttrain run RECIPE --force {name}",
            )


def _short(identity: str) -> str:
    """A hash by its beginning; of a Hub's model, the commit tells two apart, and stands last."""
    return identity if identity.startswith("hub:") else identity[:16]


def check_kept(stage: str, before: Mapping[str, Any], after: Mapping[str, Any], template_given: bool) -> None:
    """Refuses a stage that silently changed tokenizer, template, EOS or pad.

    Raises:
        HandoffError: names the field and both values.
    """
    for field in KEPT:
        was, is_now = before.get(field), after.get(field)
        if was is None or was == is_now or (field == "chat_template" and template_given):
            continue
        raise HandoffError(
            f"stage '{stage}' changed {field}: {is_now}, expected {was} as in the model it started from",
            hint="set chat_template where the model has none yet" if field == "chat_template" else None,
        )


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _tokenizer_hash(folder: Path) -> str | None:
    """Vocabulary and merges; padding and truncation are set by each trainer and do not count."""
    content = _json(folder / "tokenizer.json")
    if not content:
        return None
    kept = {k: v for k, v in content.items() if k not in ("padding", "truncation")}
    return _hash(json.dumps(kept, sort_keys=True))


def _adapter(folder: Path, whole: bool) -> dict[str, Any]:
    return {"type": adapter_config(folder).get("peft_type"), "weights": digest(folder) if whole else None}


def _vocabulary(folder: Path) -> dict[str, int]:
    """Token -> id, of a fast tokenizer."""
    content = _json(folder / "tokenizer.json")
    listed = (content.get("model") or {}).get("vocab") or {}
    plain = listed if isinstance(listed, dict) else {str(item[0]): i for i, item in enumerate(listed)}
    return {**plain, **{str(added["content"]): int(added["id"]) for added in content.get("added_tokens") or ()}}


def _heads(folder: Path) -> list[str]:
    """What stands beside the language model's head: `score` of a judge of texts or steps, `value` of a critic."""
    is_judge = task_of(folder) in ("SequenceClassification", "TokenClassification")
    return (["score"] if is_judge else []) + (["value"] if (folder / "critic").is_dir() else [])


def _token(value: Any) -> str | None:
    return value.get("content") if isinstance(value, dict) else value


def hash_of_template(text: str) -> str:
    """As it stands in a record."""
    return _hash(text)


def _template_hash(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    text = (
        file.read_text(encoding="utf-8")
        if file.is_file()
        else _json(folder / "tokenizer_config.json").get("chat_template")
    )
    return _hash(text) if isinstance(text, str) else None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
