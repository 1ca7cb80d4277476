"""What stages refuse or warn of: asked by the recipe's check, which has no torch, and by the trainers themselves.

Of a conversation SFT learns every token, or the assistant's turns; of pairs, rankings and trajectories each trainer
takes some forms and options. No paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from posttrain_plugins.models.training_templates import marked_twin
from posttrain_plugins.text import is_conversational
from posttrain_plugins.types import Issue, StageFacts

__all__ = [
    "first_concern",
    "mask_concerns",
    "oreo_concerns",
    "pair_concerns",
    "ranking_concern",
    "trajectory_concern",
]

CURE = "args: {assistant_only_loss: true}"
BY_HAND = (
    "give it as `prompt` and `completion`, or a chat_template with {% generation %} around what the assistant says"
)


def mask_concerns(given: Mapping[str, Any], facts: StageFacts) -> Iterator[Issue]:
    """Yield why the assistant's turns cannot be told, or warn that all turns are learned.

    Args:
        given: the recipe's own `args`.
        facts: of a stage with `trl.SFTConfig`.
    """
    is_chat = facts.columns is not None and "messages" in facts.columns and "prompt" not in facts.columns
    asks = given.get("assistant_only_loss")
    if not asks and (asks is not None or not is_chat):  # who writes false knows it
        return
    # a template in the user's own code is not read by a check, and is believed
    has_twin = facts.chat_template is None or marked_twin(facts.chat_template) is not None
    if not asks:
        found = "of `messages` every token is learned: system, questions and role headers with the answers"
        yield Issue(found, CURE if has_twin else BY_HAND, "args", is_warning=True)
    elif not has_twin:
        found = "assistant_only_loss needs a chat template with marked turns, found one without, and no twin with marks"
        yield Issue(found, BY_HAND, "args.assistant_only_loss")


def pair_concerns(args: Any, trainer: str) -> Iterator[Issue]:
    """Yield the options of `trl.DPOConfig` that only TRL's own loss of pairs has.

    Args:
        args: the config, or what has its fields.
        trainer: which does not take them.
    """
    # the check does not know a default that TRL computes, `["sigmoid"]`
    losses = args.loss_type if isinstance(args.loss_type, list) else [args.loss_type or "sigmoid"]
    refused = {
        "loss_type": losses != ["sigmoid"],
        "precompute_ref_log_probs": args.precompute_ref_log_probs,
        "ld_alpha": args.ld_alpha is not None,
        "use_weighting": args.use_weighting,
        "f_divergence_type": args.f_divergence_type != "reverse_kl",
        "router_aux_loss_coef": bool(args.router_aux_loss_coef),  # 0 is what it does
    }
    for name, is_set in refused.items():
        if is_set:
            found = f"{trainer} does not take {name}={getattr(args, name)}"
            yield Issue(found, "remove it from args, or use stage dpo on pairs", f"args.{name}")


def oreo_concerns(args: Any) -> Iterator[Issue]:
    """Yield weights below 0."""
    for name in ("alpha", "vf_coef"):
        if getattr(args, name) < 0:
            yield Issue(f"{name} is {getattr(args, name)}, expected 0 or more", field=f"args.{name}")


def ranking_concern(row: Mapping[str, Any], number: int) -> Issue | None:
    """Return why a row is no ranking; `number` is which it is, from 0."""
    completions = list(row["completions"])
    scores = row.get("scores")
    count = len(completions) if scores is None else len(list(scores))
    if len(completions) >= 2 and count == len(completions):
        return None
    hint = "a ranking has two completions or more, and one score for each where there are scores"
    return Issue(f"row {number + 1} has {len(completions)} completions and {count} scores", hint, "dataset")


def trajectory_concern(row: Mapping[str, Any], number: int) -> Issue | None:
    """Return why a row is no trajectory; `number` is which it is, from 0."""
    completion = row["completion"]
    if is_conversational(completion) and [message["role"] for message in completion] != ["assistant"]:
        hint = "a trajectory is what the model wrote; tools' answers have no place in it"
        found = f"row {number + 1} has a completion of several messages, expected one of role assistant"
        return Issue(found, hint, "dataset")
    return None


def first_concern(
    rows: Sequence[Mapping[str, Any]], check: Callable[[Mapping[str, Any], int], Issue | None]
) -> Iterator[Issue]:
    """Yield what is wrong with the first of some rows that has something wrong with it."""
    for number, row in enumerate(rows):
        try:
            issue = check(row, number)
        except (KeyError, TypeError, AttributeError):  # of another form, which the check of the columns tells
            return
        if issue is not None:
            yield issue
            return
