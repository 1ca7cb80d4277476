"""What stages refuse or warn of: asked by the recipe's check, which has no torch, and by the trainers themselves.

Of a conversation SFT learns every token, or the assistant's turns; of pairs, rankings and trajectories each trainer
takes some forms and options. No paper.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from posttrain_plugins.models.training_templates import marked_twin
from posttrain_plugins.text import is_conversational
from posttrain_plugins.types import Issue, StageFacts

__all__ = [
    "equal_reward_concerns",
    "first_concern",
    "in_steps",
    "mask_concerns",
    "oreo_concerns",
    "pair_concerns",
    "ranking_concern",
    "returns_of",
    "speed_concerns",
    "state_concern",
    "step_label_concern",
    "stepwise_concern",
    "trajectory_concern",
    "value_concerns",
]

CURE = "args: {assistant_only_loss: true}"
BY_HAND = (
    "give it as `prompt` and `completion`, or a chat_template with {% generation %} around what the assistant says"
)

ENGINE_DRAWS: dict[str, tuple[Any, ...]] = {
    "use_vllm": (False, None),
    "use_transformers_continuous_batching": (False, None),
    "min_p": (None, 0.0),
    "repetition_penalty": (1.0, None),
    "generation_kwargs": (None, {}),
    "cache_implementation": (None,),
}
"""Field of a trainer's config -> its values with which the loop draws what the trainer would."""


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


def speed_concerns(args: Any, share_prompts: bool, rollouts: str, has_strategy: bool = False) -> Iterator[Issue]:
    """Yield why prompts cannot be shared, or completions be drawn by the engine.

    Args:
        args: the config of a trainer that samples, or what has its fields.
        share_prompts: the stage's field.
        rollouts: the stage's field.
        has_strategy: the stage's rollouts are a strategy's.
    """
    if share_prompts:
        yield from _shared_prompt_concerns(args)
    if rollouts == "engine":
        yield from _engine_concerns(args, has_strategy)


def _shared_prompt_concerns(args: Any) -> Iterator[Issue]:
    """Yield why a batch has no prompt to share, or warn that it cuts groups."""
    rows, group = args.per_device_train_batch_size, args.num_generations or 1
    if group == 1:
        found = "share_prompts with num_generations 1: a prompt has one completion, so there is nothing to share"
        yield Issue(found, "set num_generations to 2 or more, or take share_prompts out", "share_prompts")
    elif rows == 1:
        found = "share_prompts with per_device_train_batch_size 1: no two completions are in one pass"
        yield Issue(found, f"set per_device_train_batch_size to num_generations, {group}", "share_prompts")
    elif rows % group:
        found = f"share_prompts: batches of {rows} cut the groups of {group} completions, whose prompt is read again"
        hint = "set per_device_train_batch_size to a multiple of num_generations"
        yield Issue(found, hint, "share_prompts", is_warning=True)


def _engine_concerns(args: Any, has_strategy: bool) -> Iterator[Issue]:
    """Yield fields of a trainer's config that the loop does not know, and a strategy, which draws itself."""
    if has_strategy:
        found = "rollouts: engine beside a strategy, which makes the rollouts itself, by the same loop"
        yield Issue(found, "take one of the two out", "rollouts")
    for name, values in ENGINE_DRAWS.items():
        value = getattr(args, name, values[0])
        if value not in values:
            found = f"rollouts: engine draws with temperature, top_k and top_p, but args has {name}={value!r}"
            yield Issue(found, f"remove {name}, or rollouts: engine", f"args.{name}")


def in_steps(columns: Collection[str]) -> bool:
    """Tell whether rows with these columns are completions in steps with a label for each, and no whole ones."""
    return {"completions", "labels"} <= set(columns) and "completion" not in columns


def returns_of(row: Mapping[str, Any]) -> list[float]:
    """Return the reward of a trajectory, or what is expected behind each of its steps, where it is in steps."""
    if in_steps(row):
        return [float(label) for label in row["labels"]]
    return [float(row["reward"] if row.get("reward") is not None else row["label"])]


def equal_reward_concerns(rows: Iterable[Mapping[str, Any]]) -> Iterator[Issue]:
    """Yield that all trajectories have one reward, so that no value could tell them apart."""
    try:
        rewards = {value for row in rows for value in returns_of(row)}
    except (KeyError, TypeError, ValueError):  # of another form, which the check of the columns tells
        return
    if len(rewards) == 1:
        found = f"there is nothing to tell apart: every trajectory has reward {rewards.pop()}"
        yield Issue(found, "draw more, from an earlier policy too, or at a higher temperature", "dataset")


def value_concerns(args: Any, is_stepwise: bool = False) -> Iterator[Issue]:
    """Yield what a value model cannot be trained with; `args` is a `ValueConfig`, or has its fields."""
    for name in ("gamma", "lam") if is_stepwise else ():
        if getattr(args, name) != 1.0:
            found = f"{name} is {getattr(args, name)}, but rows with `labels` say what is expected behind each step"
            yield Issue(found, f"leave {name} out, or give rows with `completion` and `reward`", f"args.{name}")
    for name, most in (("gamma", 1.0), ("lam", 1.0), ("balance", 0.5), ("held_out", 0.5)):
        value = getattr(args, name)
        if not 0.0 <= value <= most:
            yield Issue(f"{name} is {value}, expected 0 to {most:g}", field=f"args.{name}")
    if args.num_classes < 2:
        yield Issue(f"num_classes is {args.num_classes}, expected 2 or more", field="args.num_classes")
    limits = args.value_range
    if limits is not None and (len(limits) != 2 or not limits[0] < limits[1]):
        hint = "value_range: [0, 1], the least and the largest return"
        yield Issue(f"value_range is {limits}, expected two numbers, the lesser first", hint, "args.value_range")
    if args.center_rewards_coefficient is not None:
        found = "center_rewards_coefficient moves scores to a mean of 0, and a value is the return itself"
        yield Issue(found, "remove it", "args.center_rewards_coefficient")


def ranking_concern(row: Mapping[str, Any], number: int) -> Issue | None:
    """Return why a row is no ranking; `number` is which it is, from 0."""
    completions = list(row["completions"])
    scores = row.get("scores")
    count = len(completions) if scores is None else len(list(scores))
    if len(completions) >= 2 and count == len(completions):
        return None
    hint = "a ranking has two completions or more, and one score for each where there are scores"
    return Issue(f"row {number + 1} has {len(completions)} completions and {count} scores", hint, "dataset")


def state_concern(row: Mapping[str, Any], number: int) -> Issue | None:
    """Return why a row is nothing for a value model: no trajectory, whole or in steps."""
    return (stepwise_concern if in_steps(row) else trajectory_concern)(row, number)


def trajectory_concern(row: Mapping[str, Any], number: int) -> Issue | None:
    """Return why a row is no trajectory; `number` is which it is, from 0."""
    completion = row["completion"]
    if is_conversational(completion) and [message["role"] for message in completion] != ["assistant"]:
        hint = "a trajectory is what the model wrote; tools' answers have no place in it"
        found = f"row {number + 1} has a completion of several messages, expected one of role assistant"
        return Issue(found, hint, "dataset")
    return None


def stepwise_concern(row: Mapping[str, Any], number: int) -> Issue | None:
    """Return why a row is no completion in steps; `number` is which it is, from 0."""
    steps, labels = list(row["completions"]), list(row["labels"])
    if steps and len(steps) == len(labels):
        return None
    hint = "`completions` are the steps of one completion, `labels` one bool or number for each"
    found = f"row {number + 1} has {len(steps)} steps and {len(labels)} labels, expected one label for each step"
    return Issue(found, hint, "dataset")


def step_label_concern(row: Mapping[str, Any], number: int) -> Issue | None:
    """Return why a row is nothing for a process reward model, whose labels are probabilities."""
    if issue := stepwise_concern(row, number):
        return issue
    beyond = [label for label in row["labels"] if not 0 <= label <= 1]
    if not beyond:
        return None
    found = f"row {number + 1} has the label {beyond[0]}, expected true, false, or a probability"
    return Issue(found, "`use: value` learns any number that is expected behind a step", "dataset")


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
