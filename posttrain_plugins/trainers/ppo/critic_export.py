"""PPO's critic as transformers reads it: a token classifier of one label, the value of the state after each token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.merge import load_plain
from posttrain_plugins.models.stack import adapter_config, adapters_in, lay
from posttrain_plugins.types import ModelArtifact

__all__ = ["critic_as_classifier"]


def critic_as_classifier(artifact: ModelArtifact, options: Mapping[str, Any], dtype: str | None = None) -> Any:
    """The body that the critic's kind says, with the value head where token classifiers have theirs.

    Args:
        artifact: the model of a `ppo` stage.
        options: of `from_pretrained`, as it was trained.
        dtype: of the weights; by default as they are trained.

    Raises:
        InputError: there is no critic, or transformers has no token classifier of that architecture.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForTokenClassification

    folder = Path(artifact.path) / "critic"
    if not (folder / "critic.json").is_file():
        raise InputError(f"'{artifact.name}' has no critic in {folder}", hint="export a ppo stage's model")
    kind = json.loads((folder / "critic.json").read_text(encoding="utf-8"))["kind"]
    body = _body(artifact.path, folder, kind, options)
    body.config.num_labels = 1
    head = load_file(folder / "value_head.safetensors")
    try:
        classifier = AutoModelForTokenClassification.from_config(body.config)
        setattr(classifier, classifier.base_model_prefix, body)
        classifier.score.load_state_dict(head)
    except (ValueError, AttributeError, RuntimeError) as cause:
        raise InputError(f"transformers has no token classifier for this critic: {cause}") from cause
    return classifier.to(getattr(torch, dtype) if dtype else body.dtype).eval()


def _body(path: str, folder: Path, kind: str, options: Mapping[str, Any]) -> Any:
    """The model below the LM head, with the critic's adapter merged into it."""
    import transformers

    if kind == "shared":
        return load_plain(path, options).model.base_model
    base = str(adapter_config(folder).get("base_model_name_or_path", folder))
    loader = transformers.AutoModel if kind == "separate" else transformers.AutoModelForCausalLM
    model = loader.from_pretrained(base, **options)
    if getattr(model, "hf_quantizer", None) is not None:
        model = model.dequantize()
    below = [] if kind == "separate" else adapters_in(path)[:-1]
    model = lay(model, [*below, folder] if adapter_config(folder) else [])
    return model if kind == "separate" else model.base_model
