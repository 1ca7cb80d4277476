"""What one stage hands to the next: read from the files of a model folder, recorded when it is made, checked on use.

Template drift between stages ships in real models; here a field that changed without being asked for is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import HandoffError

__all__ = ["check_kept", "check_unchanged", "record"]

FIELDS = ("tokenizer", "chat_template", "eos_token_id", "pad_token_id")


def record(folder: Path, loading: Mapping[str, Any]) -> dict[str, Any]:
    """The hand-off record of a model folder.

    Args:
        folder: a saved model or adapter with its tokenizer.
        loading: TRL `ModelConfig` fields it was loaded with.

    Returns:
        `tokenizer` and `chat_template` (hashes), `eos_token_id`, `pad_token_id`, `architecture`, `quantization`, and
        `adapters`, the stack from the base up.
    """
    adapter = _json(folder / "adapter_config.json")
    base = Path(adapter["base_model_name_or_path"]) if adapter else folder
    config, generation = _json(base / "config.json"), _json(base / "generation_config.json")
    return {
        "tokenizer": _tokenizer_hash(folder),
        "chat_template": _template_hash(folder),
        "eos_token_id": generation.get("eos_token_id", config.get("eos_token_id")),
        "pad_token_id": generation.get("pad_token_id", config.get("pad_token_id")),
        "architecture": (config.get("architectures") or [None])[0],
        "quantization": {k: v for k, v in loading.items() if k.startswith(("load_in_", "bnb_", "use_bnb"))} or None,
        "adapters": [adapter["peft_type"]] if adapter else [],
        "base": str(base) if adapter else None,
    }


def check_unchanged(name: str, folder: Path, recorded: Mapping[str, Any]) -> None:
    """Refuses a model whose files no longer are what its maker recorded.

    Raises:
        HandoffError: names the field and both values.
    """
    base = recorded.get("base")
    if base and Path(base).is_absolute() and not Path(base).is_dir():
        raise HandoffError(
            f"model '{name}' is an adapter, and its base is gone: {base}", hint=f"posttrain run RECIPE --force {name}"
        )
    now = record(folder, {})
    for field in FIELDS:
        if field in recorded and now[field] != recorded[field]:
            raise HandoffError(
                f"model '{name}' changed after it was made: {field} is {now[field]}, expected {recorded[field]}",
                hint=f"make it again: posttrain run RECIPE --force {name}",
            )


def check_kept(stage: str, before: Mapping[str, Any], after: Mapping[str, Any], template_given: bool) -> None:
    """Refuses a stage that silently changed tokenizer, template, EOS or pad.

    Raises:
        HandoffError: names the field and both values.
    """
    for field in FIELDS:
        was, is_now = before.get(field), after.get(field)
        if was is None or was == is_now or (field == "chat_template" and template_given):
            continue
        raise HandoffError(
            f"stage '{stage}' changed {field}: {is_now}, expected {was} as in the model it started from",
            hint="set chat_template on the stage that should change it" if field == "chat_template" else None,
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
