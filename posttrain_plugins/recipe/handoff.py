"""What one stage hands to the next: read from the files of a model folder, recorded when it is made, checked on use.

Template drift between stages ships in real models; here a field that changed without being asked for is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_plugins.errors import HandoffError
from posttrain_plugins.models.folder import (
    BaseWeights,
    adapter_config,
    adapters_in,
    base_of,
    digest,
    named_adapters,
    task_of,
    template_options,
)
from posttrain_plugins.models.training_templates import chat_template_in

if TYPE_CHECKING:
    from posttrain_plugins.record.artifact import Artifact

__all__ = ["check_kept", "check_unchanged", "check_whole", "record", "short_hash"]

FIELDS = ("tokenizer", "chat_template", "eos_token_id", "pad_token_id", "adapters")
KEPT = FIELDS[:-1]


def record(folder: Path, loading: Mapping[str, Any], *, whole: bool = True) -> dict[str, Any]:
    """Return the hand-off record of a model folder.

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
    # An adapter's folder has no config of the model; what it generates with is its base's.
    base = _files_of(base_of(folder)) if adapter else folder
    config, generation = _json(base / "config.json"), _json(base / "generation_config.json")
    home = folder if (folder / "tokenizer_config.json").is_file() else base
    settings = _json(home / "tokenizer_config.json")
    content = _json(home / "tokenizer.json") if whole else {}
    # Padding and truncation are set by each trainer, and do not make another tokenizer.
    rules = {k: v for k, v in content.items() if k not in ("padding", "truncation")}
    vocabulary = _vocabulary(content)
    template = chat_template_in(folder)
    eos = settings.get("eos_token")
    is_judge = task_of(folder) in ("SequenceClassification", "TokenClassification")
    stack = [(adapter_config(one).get("peft_type"), digest(one) if whole else None) for one in adapters_in(folder)]
    return {
        "tokenizer": short_hash(json.dumps(rules, sort_keys=True)) if content else None,
        "vocabulary": short_hash(json.dumps(vocabulary, sort_keys=True)) if vocabulary else None,
        "tokens": len(vocabulary) or None,
        "chat_template": short_hash(template) if template is not None else None,
        "eos_token": eos.get("content") if isinstance(eos, dict) else eos,
        # Generation stops at what `generation_config.json` says, which wins over the model's own config.
        "eos_token_id": generation.get("eos_token_id", config.get("eos_token_id")),
        "pad_token_id": generation.get("pad_token_id", config.get("pad_token_id")),
        "architecture": (config.get("architectures") or [None])[0],
        "heads": (["score"] if is_judge else []) + (["value"] if (folder / "critic").is_dir() else []),
        "quantization": {k: v for k, v in loading.items() if k.startswith(("load_in_", "bnb_", "use_bnb"))} or None,
        "adapters": [{"type": kind, "weights": weights} for kind, weights in stack],
        "base": base_of(folder).path if adapter else None,
        "base_revision": adapter.get("revision"),
        **({"chat_template_kwargs": options} if (options := template_options(folder)) else {}),
    }


def check_unchanged(
    name: str, folder: Path, recorded: Mapping[str, Any], weights_of: Callable[..., str] | None = None
) -> None:
    """Refuse a model whose files no longer are what its maker recorded.

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
    expected = recorded.get("base_weights")
    if weights and expected not in (None, weights):
        # The beginning of a hash is enough; of a Hub's model the commit tells two apart, and stands last.
        found, wanted = (text if text.startswith("hub:") else text[:16] for text in (weights, expected))
        raise HandoffError(
            f"model '{name}' is an adapter, and its base changed: {base} is {found}, expected {wanted}",
            hint=f"put the base back, or make it again: posttrain run RECIPE --force {name}",
        )
    now = record(folder, {})
    for field in FIELDS:
        if field in recorded and now[field] != recorded[field]:  # an earlier version may not have recorded it
            raise HandoffError(
                f"model '{name}' changed after it was made: {field} is {now[field]}, expected {recorded[field]}",
                hint=f"make it again: posttrain run RECIPE --force {name}",
            )


def check_whole(name: str, artifact: Artifact, path: Path) -> None:
    """Refuse what is not byte for byte as its stage made it, before any of it is loaded.

    A size or a time says nothing of a disk that fails: all is read, as it will be again when it is loaded.

    Args:
        name: of the stage, or whatever the user called it.
        artifact: the finished stage.
        path: the model's folder or the data's file, which is looked at alone.

    Raises:
        HandoffError: names the file.
    """
    from posttrain_plugins.record.storage import changes_of

    folder, path = artifact.folder.resolve(), path.resolve()
    if not path.is_relative_to(folder):  # an export stands elsewhere
        return
    below = path.relative_to(folder).as_posix()
    wrong = next(changes_of(folder, artifact.manifest, "" if below == "." else below), None)
    if wrong is not None:
        raise HandoffError(
            f"'{name}' is damaged, it is not as it was made: {folder}: {wrong}",
            hint=f"put the file back, or make it again: posttrain run RECIPE --force {name.rpartition(':')[2]}",
        )


def check_kept(stage: str, before: Mapping[str, Any], after: Mapping[str, Any], template_given: bool) -> None:
    """Refuse a stage that silently changed tokenizer, template, EOS or pad.

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


def short_hash(text: str) -> str:
    """Return a text's hash as it stands in a record: 16 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _files_of(base: BaseWeights) -> Path:
    """Return the folder with the files of a base; of a Hub id, its snapshot in the cache."""
    if Path(base.path).is_dir():
        return Path(base.path)
    from huggingface_hub import try_to_load_from_cache  # not above: most bases are folders

    try:
        found = try_to_load_from_cache(base.path, "config.json", revision=base.revision)
    except ValueError:  # neither a folder nor a name that the Hub could have
        found = None
    return Path(found).parent if isinstance(found, str) else Path(base.path)


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _vocabulary(content: Mapping[str, Any]) -> dict[str, int]:
    """Return token -> id of a `tokenizer.json`: a mapping for BPE, pairs with scores for Unigram."""
    listed = (content.get("model") or {}).get("vocab") or {}
    plain = listed if isinstance(listed, dict) else {str(item[0]): i for i, item in enumerate(listed)}
    return {**plain, **{str(added["content"]): int(added["id"]) for added in content.get("added_tokens") or ()}}
