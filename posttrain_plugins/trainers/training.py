"""What every training stage shares: one call that builds TRL's trainer, trains, saves and reports.

A stage of your own calls `train`, or `train_with_rewards` where its trainer samples and scores (`docs/stages.md`).

Every choice here that a plain TRL script (`examples/plain_trl/`) would not make is listed in `OURS`; `args:` in the
recipe overrides each of them. None changes the numbers (`tests/test_transparency.py`). On a CPU `bf16: false` and
unpinned memory come to it; without the first, TRL refuses to start there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from math import isfinite
from pathlib import Path
from typing import Any

from posttrain_plugins.checkpoints import check_period, check_push
from posttrain_plugins.errors import InputError, Interrupted
from posttrain_plugins.launch import rank
from posttrain_plugins.models.adapter_compatibility import check_fits
from posttrain_plugins.models.folder import TEMPLATE_OPTIONS_FILE, template_options
from posttrain_plugins.models.load_report import expecting
from posttrain_plugins.record.figures import StepFigures, read_figures
from posttrain_plugins.record.health import health
from posttrain_plugins.text import fingerprint, is_conversational, to_text
from posttrain_plugins.text.readers import reading, template_opens_thought
from posttrain_plugins.text.reward_input import TEMPLATE_COLUMNS
from posttrain_plugins.trainers import (
    compat,
    engine_rollouts,
    learnable,
    loss_masks,
    saved_rollouts,
    shared_prompts,
    tool_use,
)
from posttrain_plugins.trainers.start import MADE_ONCE, Start, has_accelerator, start
from posttrain_plugins.trainers.trackers import follow_trackers, take_trackers
from posttrain_plugins.trainers.watch import follow
from posttrain_plugins.types import CHECKPOINT_MARKER, ModelArtifact, ResolvedReward, StageContext, StageResult

__all__ = ["train", "train_with_rewards"]

OURS = {
    "disable_tqdm": True,  # the run has its own display
    "logging_nan_inf_filter": False,  # a NaN must show, not hide
    "save_strategy": "no",  # checkpoints are taken by time (`watch.py`) unless the recipe says when
}
TELLING = (  # the figures of a log that say how a stage ended
    "train_loss",
    "reward",
    "rewards/margins",
    "rewards/accuracies",
    "accuracy",
    "mean_token_accuracy",
    "kl",
    "eval_loss",
    "eval_accuracy",
    "eval_margin",
    "eval_wrong_found",
    "eval_explained_variance",
    "eval_explained_variance_start",
    "eval_explained_variance_end",
    "eval_calibration_error",
    "eval_ranked",
)


def train(
    context: StageContext,
    trainer_class: Any,
    config_class: Any,
    args: Mapping[str, Any],
    *,
    task_type: str = "CAUSAL_LM",
    artifact: ModelArtifact | None = None,
    reward_names: list[str] | None = None,
    max_trajectory_s: float | None = None,
    share_prompts: bool = False,
    rollouts: str = "trainer",
    **trainer_arguments: Any,
) -> StageResult:
    """Build the trainer as a plain script would, train, save below `context.folder / "model"`, and report.

    Args:
        context: of the stage; its inputs `model`, `dataset`, and where there are such `adapter`, `eval_dataset` and
            `chat_template` are used.
        trainer_class: one of TRL's trainers, or whatever takes `model`, `args`, `train_dataset`, `eval_dataset`,
            `peft_config`, `quantization_config` and `processing_class` and gives such a trainer.
        config_class: its config.
        args: the recipe's `args`, fields of the config.
        task_type: PEFT's task type: `CAUSAL_LM`, `SEQ_CLS` or `TOKEN_CLS`.
        artifact: the model to start from, by default the stage's input `model`.
        reward_names: what rewards are called in the logs; with them `rollouts.jsonl` is written.
        max_trajectory_s: seconds after which no tool is called any more, of a rollout of `trl.GRPOTrainer`.
        share_prompts: whether a trainer that samples computes each prompt once for all of its completions.
        rollouts: who draws the completions of a trainer that samples: `trainer`, or our `engine`.
        **trainer_arguments: further arguments of the trainer.

    Returns:
        The model's folder, figures of how training ended, and what the next stage should know of the adapter.

    Raises:
        InputError: TRL refuses a value, or there is nothing to learn from: no row is left, or no step was taken.
        RewardFailed: no completion of a generation has a score that is a number.
        NonFiniteLoss: the loss of an optimizer step was NaN or infinite.
        Interrupted: the user asked to stop; a checkpoint stands.
    """
    begin, trainer, trackers = _build(
        context, trainer_class, config_class, args, task_type, artifact, trainer_arguments
    )
    if context.preview:
        found = loss_masks.masks(trainer, context.inputs["dataset"], writes=task_type == "CAUSAL_LM")
        return StageResult(details={"masks": found})
    lost = learnable.count_rows(context, trainer)
    begin.set_up(trainer)  # the adapter's part, before `train` makes the optimizer
    sharing = shared_prompts.share(trainer, context.stage) if share_prompts else None
    if rollouts == "engine":
        engine_rollouts.draw_with_engine(trainer, context.stage)
    if reward_names:
        compat.set_reward_names(trainer, reward_names)
        compat.contain_exits(trainer)
        compat.count_equal_groups(trainer)
        for observe in (compat.observe_rewards, compat.observe_online_rewards):
            observe(trainer, learnable.score_check(context, trainer.reward_func_names, trainer))
        saved_rollouts.save(context, trainer)
    if "tools" in trainer_arguments or "environment_factory" in trainer_arguments:
        tool_use.hold_limits(context, trainer, max_trajectory_s)
    watch = follow(context, trainer)
    folder = context.folder / "model"
    with follow_trackers(context, trainer, trackers):
        with reading(is_thinking=_is_thinking(trainer)):  # of rewards that read answers
            seconds = _fit(context, trainer, watch)
        learnable.check_steps(context, trainer)
        trainer.save_model(str(folder))
        if trainer.eval_dataset is not None and trainer.args.eval_strategy == "no":
            trainer.evaluate()  # once, at the end; it stands in the log history
    history = trainer.state.log_history
    metrics = {"train_s": seconds, "steps": float(trainer.state.global_step), **_last_figures(history)}
    lines = list(read_figures(context.folder))
    metrics |= _costs(lines)
    if trainer.is_world_process_zero():
        for verdict in health(lines):
            if verdict.state != "ok":
                context.reporter.note(str(verdict))
        _complete(context, trainer, begin)
    trainer.accelerator.wait_for_everyone()  # no process reads or publishes the folder before it is done
    details: dict[str, Any] = {"rows": lost} if lost else {}
    details |= {"share_prompts": sharing.record} if sharing else {}
    scratch = _scratch(context)
    return StageResult(metrics, model_path=folder, handoff=begin.handoff, details=details, scratch=scratch)


def train_with_rewards(
    context: StageContext, trainer_class: Any, config_class: Any, args: Mapping[str, Any], **trainer_arguments: Any
) -> StageResult:
    """Do as `train` with a trainer that samples and scores, and the rewards of the stage's input `rewards`.

    TRL gets the author's own callables, and a reward-model stage as its path where it then asks what it has trained.

    Args:
        context: of the stage.
        trainer_class: GRPO's, RLOO's, or one that takes the same.
        config_class: its config.
        args: the recipe's `args`, fields of the config.
        **trainer_arguments: further arguments of the trainer; its own `reward_funcs` in place of these.

    Returns:
        As `train`.
    """
    rewards: list[ResolvedReward] = context.inputs["rewards"]
    weights = [reward.weight for reward in rewards]
    # a plain script leaves the argument out where all weigh 1, and so does its config in the manifest
    weighted = {} if all(weight == 1.0 for weight in weights) else {"reward_weights": weights}
    return train(
        context,
        trainer_class,
        config_class,
        {**weighted, **args},
        reward_names=[reward.name for reward in rewards],
        **{"reward_funcs": [_as_trained(reward, context) for reward in rewards], **trainer_arguments},
    )


def _as_trained(reward: ResolvedReward, context: StageContext) -> Any:
    """Return a reward model's path where TRL renders what it scores as its `RewardTrainer` did, else our own plugin.

    TRL leaves out the EOS of plain text, the row's tools and template options, and adds the policy's own options.
    """
    if reward.model_path is None:
        return reward.func
    rows = context.inputs["dataset"]
    is_same = is_conversational(rows[0]["prompt"]) and not {*TEMPLATE_COLUMNS} & {*rows.column_names}
    asks_the_same = is_same and not context.args.get("chat_template_kwargs")
    return reward.model_path if asks_the_same else reward.func


def _build(
    context: StageContext,
    trainer_class: Any,
    config_class: Any,
    args: Mapping[str, Any],
    task_type: str,
    artifact: ModelArtifact | None,
    trainer_arguments: Mapping[str, Any],
) -> tuple[Start, Any, list[str]]:
    """Return where the stage starts, the trainer as a plain script would build it, and the trackers to be told."""
    artifact = artifact or context.inputs["model"]
    assert artifact is not None
    if context.preview:  # a look at what is learned: random weights beside the artifact's tokenizer
        loss_masks.save_stand_in(Path(artifact.path))
        begin, args = Start(artifact.path), loss_masks.preview_args(config_class, args, context.preview)
    else:
        with _new_head(task_type):
            begin = start(context, task_type, artifact)
    if not isinstance(begin.model, str):
        args = {name: value for name, value in args.items() if name != "model_init_kwargs"}  # it is loaded
    config = _config(context, config_class, args, begin.model_init_kwargs)
    check_fits(
        context.stage, begin.kwargs.get("peft_config"), config, artifact.loading, is_on_cpu=not has_accelerator()
    )
    begin.find_tools(artifact, context)
    begin.find_marks(artifact, config)
    trackers = take_trackers(context, config)
    with _new_head(task_type):
        trainer = trainer_class(
            model=begin.model,
            args=config,
            train_dataset=context.inputs["dataset"],
            eval_dataset=context.inputs.get("eval_dataset"),
            **begin.kwargs,
            **trainer_arguments,
        )
    begin.forget_marks()
    _keep_template_options(context, trainer, artifact)
    return begin, trainer, trackers


def _keep_template_options(context: StageContext, trainer: Any, artifact: ModelArtifact) -> None:
    """Note the options of the chat template with which a trainer that samples renders prompts, for all who ask later.

    Strategies in training read them from the tokenizer, and what loads the model from a file beside it.
    """
    if hasattr(trainer.args, "chat_template_kwargs"):
        given, before = trainer.args.chat_template_kwargs or {}, template_options(artifact.path)
        trainer.processing_class.chat_template_kwargs = dict(given)
        if before and before != given:
            found = (
                f"'{artifact.name}' was trained with chat_template_kwargs {before}, this stage with {given or 'none'}"
            )
            context.reporter.note(found)


def _new_head(task_type: str) -> Any:
    """Return a context in which transformers does not warn that a head is new which is about to be trained."""
    return nullcontext() if task_type == "CAUSAL_LM" else expecting()


def _config(context: StageContext, config_class: Any, args: Mapping[str, Any], model_init_kwargs: Any) -> Any:
    """Build the trainer's config: `args` of the recipe over our few choices, everything else TRL's default."""
    ours: dict[str, Any] = {**OURS, "output_dir": str(context.folder / "checkpoints"), "seed": context.seed}
    if _says_when_to_save(args):
        del ours["save_strategy"]
    if model_init_kwargs or args.get("model_init_kwargs"):
        args = {**args, "model_init_kwargs": {**model_init_kwargs, **(args.get("model_init_kwargs") or {})}}
    if not has_accelerator():
        ours |= {"bf16": False, "dataloader_pin_memory": False}
        ours |= {"use_cpu": True} if rank.world() > 1 else {}  # else each process trains alone, without a word
    try:
        built = config_class(**{**ours, **args})
    except (TypeError, ValueError) as cause:
        raise InputError(f"stage '{context.stage}': {config_class.__name__} refuses its args: {cause}") from cause
    if issue := check_push(args) or check_period(built):
        raise InputError(f"stage '{context.stage}': {issue.message}", hint=issue.hint)
    return built


def _is_thinking(trainer: Any) -> bool:
    """Return whether completions go on with a thought that the chat template has opened."""
    options = getattr(trainer.args, "chat_template_kwargs", None) or {}
    return template_opens_thought(trainer.processing_class, **options)


def _says_when_to_save(args: Mapping[str, Any]) -> bool:
    """Tell whether the recipe asks for checkpoints; how many to keep, and what is in them, is no such wish."""
    return not {"save_strategy", "save_steps"}.isdisjoint(args)


def _fit(context: StageContext, trainer: Any, watch: Any) -> float:
    """Train, from the newest checkpoint if there is one, and return the seconds, those before it with them."""
    trainer.train(resume_from_checkpoint=str(context.resume_from) if context.resume_from else None)
    if watch.is_stopped:
        at = f"stopped in stage '{context.stage}' at step {trainer.state.global_step}"
        if watch.can_resume:
            raise Interrupted(f"{at}, a checkpoint stands", hint="the same command goes on from there")
        raise Interrupted(f"{at}, no checkpoint stands: save_only_model", hint="the same command starts it again")
    return float(watch.seconds)


def _complete(context: StageContext, trainer: Any, begin: Start) -> None:
    """Make the stage's folder what the next stage reads, out of what the trainer saved."""
    folder = context.folder / "model"
    # what is not the model: pickled arguments, model cards with no facts, TRL's copy of the reference
    for file in (folder / "training_args.bin", *folder.rglob("README.md")):
        file.unlink(missing_ok=True)
    shutil.rmtree(folder / "ref", ignore_errors=True)
    begin.complete(folder)
    if options := getattr(trainer.args, "chat_template_kwargs", None):
        (folder / TEMPLATE_OPTIONS_FILE).write_text(json.dumps(options) + "\n", encoding="utf-8")
    _write_seen(context.folder / "seen.txt", context.inputs["dataset"])
    if (completions := context.folder / "checkpoints" / "completions").is_dir():  # of TRL's `log_completions`
        (context.folder / "completions").mkdir(exist_ok=True)
        for file in completions.iterdir():  # a run that goes on after a refusal at the end writes some of them again
            file.replace(context.folder / "completions" / file.name)
        completions.rmdir()


def _scratch(context: StageContext) -> list[str]:
    """Return what only a run that goes on needs: checkpoints that nobody asked for, the start of a whole model."""
    folder = context.folder / "model"
    found = [] if _says_when_to_save(context.args) else ["checkpoints"]
    # an adapter still lies on its start, whose marker goes: publishing changes paths in what it lists
    is_adapter = any(folder.glob("**/adapter_config.json"))
    return found + [f"{name}/{CHECKPOINT_MARKER}" if is_adapter else name for name in MADE_ONCE]


def _last_figures(history: list[dict[str, Any]]) -> dict[str, float]:
    """Return the last value of each telling figure; one that is NaN or infinite is none."""
    last = {name: float(row[name]) for row in history for name in TELLING if isinstance(row.get(name), int | float)}
    return {name: value for name, value in last.items() if isfinite(value)}


def _costs(lines: list[StepFigures]) -> dict[str, float]:
    """Return the peak of memory and the seconds of generation, of the steps before a kill too."""
    names = ("peak_memory_gib", "generation_s")
    peaks, seconds = ([line.figures[name] for line in lines if name in line.figures] for name in names)
    sampled = {"generation_s": sum(seconds)} if seconds else {}
    return {"peak_memory_gib": max(peaks), **sampled} if peaks else sampled


def _write_seen(file: Path, dataset: Any) -> None:
    """Write one fingerprint a line for every distinct prompt trained on; for plain text, of each of its lines."""
    # pairs without `prompt` have it inside `chosen`
    column = next((name for name in ("prompt", "messages", "text", "chosen") if name in dataset.column_names), None)
    values = dataset[column][:] if column else []
    if column == "text":
        values = [line for text in values for line in to_text(text).splitlines() if line.strip()]
    marks = set(map(fingerprint, values))
    file.write_text("".join(f"{mark}\n" for mark in sorted(marks)), encoding="utf-8")
