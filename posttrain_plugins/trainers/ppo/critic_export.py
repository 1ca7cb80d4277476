"""PPO's critic as transformers reads it: a token classifier of one label, the value of the state after each token."""

from __future__ import annotations

from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.critic import critic_form_in, load_critic_body, value_head_in
from posttrain_plugins.models.merge import plain_options
from posttrain_plugins.models.stack import is_wrapped
from posttrain_plugins.types import ModelArtifact

__all__ = ["critic_as_classifier"]


def critic_as_classifier(artifact: ModelArtifact, dtype: str | None = None) -> Any:
    """Return the body that the critic's kind says, with the value head where token classifiers have theirs.

    Args:
        artifact: the model of a `ppo` stage.
        dtype: of the weights; by default as they are trained.

    Raises:
        InputError: there is no critic, or transformers has no token classifier of that architecture.
    """
    import torch
    from transformers import AutoModelForTokenClassification

    if (head := value_head_in(artifact.path)) is None:
        raise InputError(
            f"'{artifact.name}' has no critic in {artifact.path}/critic", hint="export a ppo stage's model"
        )
    if (form := critic_form_in(artifact.path)) is not None:
        # whoever loads a classifier reads logits, and these are none
        hint = f"ask it as a reward: {{use: value_model, model_name_or_path: {artifact.name}}}"
        raise InputError(f"the critic of '{artifact.name}' has logits of the loss {form.loss}, not values", hint=hint)
    body = load_critic_body(artifact.path, dequantize=True, **plain_options(artifact.path, artifact.loading))
    if is_wrapped(body):
        raise InputError(f"the critic of '{artifact.name}' has an adapter that cannot be merged", hint="use: lora")
    body.config.num_labels = 1
    try:
        classifier = AutoModelForTokenClassification.from_config(body.config)
        setattr(classifier, classifier.base_model_prefix, body)
        classifier.score.load_state_dict(head)
    except (ValueError, AttributeError, RuntimeError) as cause:
        raise InputError(f"transformers has no token classifier for this critic: {cause}") from cause
    return classifier.to(getattr(torch, dtype) if dtype else body.dtype).eval()
