"""What a stage has to learn from: rows that are left, two classes, scores that are numbers, and steps that were taken.

A trainer that has nothing of these ends without an error and saves the model that it was given. Equal scores in every
group are no such case: they are judgements, and the next generation may differ. No paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite, isinf
from typing import Any

from posttrain_plugins.errors import InputError, RewardFailed
from posttrain_plugins.types import StageContext

__all__ = ["ANOTHER_CLASS", "check_scores", "check_steps", "count_rows", "one_class", "score_check"]

ANOTHER_CLASS = "add rows of the other, or train on the good ones with sft"
IGNORED = -100
"""The label of a token without loss."""


def count_rows(context: StageContext, trainer: Any) -> dict[str, dict[str, int]]:
    """Count the rows that the trainer has left out of its data sets, and tell of them.

    Rows that it cut until no token with loss was left go too, as in TRL's stable trainers: ORPO's loss of them is NaN.

    Args:
        context: of the stage; its reporter is told.
        trainer: that has prepared its data.

    Returns:
        Data set -> `given` and `left_out`, of those that lost rows.

    Raises:
        InputError: no row is left, or KTO has rows of one class alone.
    """
    found = {}
    limit = getattr(trainer.args, "max_length", None)
    hint = f"-o {context.option_path or context.stage}.args.max_length={2 * (limit or 512)}"
    for field, attribute in (("dataset", "train_dataset"), ("eval_dataset", "eval_dataset")):
        before, rows = context.inputs.get(field), getattr(trainer, attribute)
        if before is None or not hasattr(rows, "column_names"):
            continue
        kept = _with_loss(rows)
        if len(kept) < len(rows):
            setattr(trainer, attribute, rows := rows.select(kept))
        # pairs that a trainer took apart are two rows each
        given = len(before) * (2 if "label" in rows.column_names and "chosen" in before.column_names else 1)
        if not len(rows):
            message = f"stage '{context.stage}': no row of its {field} has a token to learn from, of {given}"
            raise InputError(f"{message}, with max_length={limit}", hint=f"raise it: {hint}")
        # packed rows are not those that were given
        left_out = 0 if getattr(trainer.args, "packing", False) else given - len(rows)
        if left_out:
            message = f"{left_out} of {given} rows of {field} are left out: too long for max_length={limit}"
            context.reporter.note(f"{message} (hint: {hint})")
            found[field] = {"given": given, "left_out": left_out}
    labels = trainer.train_dataset["label"] if "label" in getattr(trainer.train_dataset, "column_names", ()) else ()
    if problem := one_class(labels):
        raise InputError(f"stage '{context.stage}': {problem}", hint=ANOTHER_CLASS)
    return found


def _with_loss(rows: Any) -> list[int]:
    """Return the numbers of the rows of which each side has a token with loss."""
    columns = [name for name in ("chosen_labels", "rejected_labels") if name in rows.column_names]
    if not columns:  # the stable trainers leave such rows out themselves
        return list(range(len(rows)))
    sides = zip(*(rows[name] for name in columns), strict=True)
    return [i for i, row in enumerate(sides) if all(any(label != IGNORED for label in side) for side in row)]


def one_class(labels: Sequence[Any]) -> str | None:
    """Return what is wrong with labels that are all good or all bad; None of others, and of none."""
    classes = {bool(label) for label in labels}
    if len(classes) != 1:
        return None
    return f"all {len(labels)} labels are {str(classes.pop()).lower()}, and KTO learns from the difference of two"


def score_check(context: StageContext, names: Sequence[str], trainer: Any) -> Callable[..., None]:
    """Return what is called with the rewards of each rollout, (N, F), of all processes."""

    def check(inputs: Any, prompts: Any, completions: Any, rewards: Any) -> None:
        if trainer.model.training:
            check_scores(context.stage, names, rewards.tolist())

    return check


def check_scores(stage: str, names: Sequence[str], scores: Sequence[Sequence[float | None]]) -> None:
    """Refuse the scores of a generation of which no completion has a number.

    Args:
        stage: its id.
        names: of the F rewards.
        scores: of N completions, by each reward; NaN is how a tensor holds None.

    Raises:
        RewardFailed: names each reward that gave no number, and what it gave.
    """
    # a completion's score is the sum of what its rewards gave: None is left out, an infinity spoils it
    known = [[value for value in row if value is not None and value == value] for row in scores]
    if not scores or any(row and all(map(isfinite, row)) for row in known):
        return
    told = []
    for name, column in zip(names, zip(*scores, strict=True), strict=True):
        infinite = sum(value is not None and isinf(value) for value in column)
        missing = sum(value is None or value != value for value in column)
        gave = " and ".join(f"{n} {what}" for n, what in ((missing, "None or NaN"), (infinite, "infinite")) if n)
        if gave:
            told.append(f"reward '{name}' gave {gave} of {len(column)} scores")
    raise RewardFailed(
        f"stage '{stage}' has nothing to learn from in a whole generation: {'; '.join(told)}",
        hint="posttrain rewards test RECIPE shows what a reward gives; 0.0 is 'judged, worthless', None 'cannot judge'",
    )


def check_steps(context: StageContext, trainer: Any) -> None:
    """Refuse a training that took no step.

    Raises:
        InputError: with the rows and the sizes of batch that made it so.
    """
    if trainer.state.global_step:
        return
    args = trainer.args
    names = ("max_steps", "num_train_epochs", "per_device_train_batch_size", "generation_batch_size")
    sizes = ", ".join(f"{name}={getattr(args, name)}" for name in names if getattr(args, name, None) is not None)
    raise InputError(
        f"stage '{context.stage}' trained nothing: 0 steps of {len(trainer.train_dataset)} rows with {sizes}",
        hint="give it more rows or smaller batches, or raise max_steps or num_train_epochs",
    )
