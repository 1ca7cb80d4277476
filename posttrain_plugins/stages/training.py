"""What every training stage shares: where it starts, its config, its checkpoints, and how it ends.

Every choice here that a twenty-line TRL script would not make is listed in `OURS`; `args:` in the recipe overrides
each of them. None changes the numbers (`tests/test_transparency.py`). On a CPU `bf16: false` and unpinned memory come
to it; without the first, TRL refuses to start there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError, Interrupted, NonFiniteLoss
from posttrain_plugins.text import fingerprint, to_text
from posttrain_plugins.trainers import compat
from posttrain_plugins.types import ModelArtifact, ResolvedReward, StageContext, StageResult

__all__ = ["CHECKPOINT_MARKER", "Start", "config", "reinforce", "start", "train"]

CHECKPOINT_MARKER = "complete"
CHECKPOINT_SECONDS = 60.0
CHECKPOINT_SHARE = 0.02  # of the training time, at most, goes into checkpoints that the recipe did not ask for

TELLING = (
    "reward",
    "rewards/margins",
    "rewards/accuracies",
    "accuracy",
    "mean_token_accuracy",
    "kl",
    "eval_loss",
    "eval_accuracy",
    "eval_margin",
)

OURS = {
    "disable_tqdm": True,  # the run has its own display
    "logging_nan_inf_filter": False,  # a NaN must show, not hide
    "save_strategy": "no",  # checkpoints are taken by time, see `_Watch`, unless the recipe sets save_*
}


@dataclass
class Start:
    """Where a stage starts: what TRL's trainers are given.

    Args:
        model: a folder or Hub id, so that TRL's own seeding precedes random heads; a `PeftModel` to go on training.
        kwargs: `peft_config`, `quantization_config` and `processing_class` where there is one to give.
        model_init_kwargs: for TRL's config.
        handoff: what the next stage should know of the adapter.
    """

    model: Any
    kwargs: dict[str, Any] = field(default_factory=dict)
    model_init_kwargs: dict[str, Any] = field(default_factory=dict)
    handoff: dict[str, Any] = field(default_factory=dict)


def start(context: StageContext, task_type: str = "CAUSAL_LM", artifact: ModelArtifact | None = None) -> Start:
    """Resolves model (or the `artifact` given), adapter, quantization and chat template of a training stage.

    A model that is an adapter already is trained on when the stage names the very same adapter; otherwise it is merged
    into its base first, because a new adapter on an unmerged one makes the reference model a guess.
    """
    artifact = artifact or context.inputs["model"]
    assert artifact is not None
    adapter = context.inputs.get("adapter")
    peft_config = _for_task(adapter.config, task_type) if adapter else None
    begin = Start(artifact.path, model_init_kwargs=_init_kwargs(artifact.loading))
    quantization = _quantization(artifact.loading)
    if quantization is not None:
        if peft_config is None:
            raise InputError(
                f"stage '{context.stage}' trains all parameters of a quantized model",
                hint="give it an adapter: {use: lora}",
            )
        begin.kwargs["quantization_config"] = quantization
    if adapter is not None and peft_config is not None:
        begin.handoff["adapter"] = {"name": adapter.name, "config": _digest(peft_config)}
        begin.kwargs["peft_config"] = peft_config
    if artifact.is_adapter:
        _start_from_adapter(begin, artifact, context)
    template = context.inputs.get("chat_template")
    if template is not None:
        begin.kwargs["processing_class"] = _with_template(begin.model, artifact, template)
    return begin


def config(context: StageContext, config_class: Any, args: Mapping[str, Any], begin: Start) -> Any:
    """The trainer's config: `args` of the recipe over our few choices, everything else TRL's default.

    Raises:
        InputError: TRL refuses a value.
    """
    ours: dict[str, Any] = {**OURS, "output_dir": str(context.folder / "checkpoints"), "seed": context.seed}
    if any(name.startswith("save_") for name in args):
        del ours["save_strategy"]
    if begin.model_init_kwargs:
        ours["model_init_kwargs"] = begin.model_init_kwargs
    if not _has_accelerator():
        ours |= {"bf16": False, "dataloader_pin_memory": False}  # TRL's default is bf16, which a CPU emulates slowly
    try:
        built = config_class(**{**ours, **args})
    except (TypeError, ValueError) as cause:
        raise InputError(f"stage '{context.stage}': {config_class.__name__} refuses its args: {cause}") from cause
    period = compat.generation_period(built)
    if built.save_strategy == "steps" and built.save_steps % period:
        raise InputError(
            f"stage '{context.stage}': save_steps={built.save_steps} is no generation boundary; TRL cannot resume",
            hint=f"set save_steps to a multiple of {period}",
        )
    return built


def reinforce(context: StageContext, trainer_class: Any, config_class: Any, args: Mapping[str, Any]) -> StageResult:
    """A stage that samples and scores: TRL gets the author's own callables, and a reward-model stage as its path."""
    rewards: list[ResolvedReward] = context.inputs["rewards"]
    begin = start(context)
    weights = [reward.weight for reward in rewards]
    weighted = {} if all(weight == 1.0 for weight in weights) else {"reward_weights": weights}
    trainer = trainer_class(
        model=begin.model,
        reward_funcs=[reward.model_path or reward.func for reward in rewards],
        args=config(context, config_class, {**weighted, **args}, begin),
        train_dataset=context.inputs["dataset"],
        eval_dataset=context.inputs.get("eval_dataset"),
        **begin.kwargs,
    )
    compat.set_reward_names(trainer, [reward.name for reward in rewards])
    return train(context, trainer, begin)


def train(context: StageContext, trainer: Any, begin: Start) -> StageResult:
    """Trains, watches, saves the model below `context.folder / "model"`, and returns the figures.

    Raises:
        NonFiniteLoss: the loss of an optimizer step was NaN or infinite.
        Interrupted: the user asked to stop; a checkpoint stands.
    """
    from transformers import PrinterCallback

    watch = _watch(context, trainer)
    trainer.add_callback(watch)
    trainer.remove_callback(PrinterCallback)
    compat.observe_losses(trainer, watch.observe)
    resume = str(context.resume_from) if context.resume_from else None
    began = time.perf_counter()
    output = trainer.train(resume_from_checkpoint=resume)
    seconds = time.perf_counter() - began
    if watch.is_stopped:
        raise Interrupted(
            f"stopped in stage '{context.stage}' at step {trainer.state.global_step}, a checkpoint stands",
            hint="the same command goes on from there",
        )
    folder = context.folder / "model"
    trainer.save_model(str(folder))
    _tidy(folder)
    _write_seen(context.folder / "seen.txt", context.inputs.get("dataset"))
    _clear(context, is_adapter=(folder / "adapter_config.json").is_file())
    metrics = {"train_loss": float(output.training_loss), "train_s": seconds, "steps": float(trainer.state.global_step)}
    if trainer.eval_dataset is not None and trainer.args.eval_strategy == "no":
        trainer.evaluate()  # once, at the end; it stands in the log history
    metrics.update(_last_figures(trainer.state.log_history))
    _write_log(context.folder / "log.jsonl", trainer.state.log_history)
    return StageResult(metrics=metrics, model_path=folder, handoff=begin.handoff)


# --- where a stage starts --------------------------------------------------------------------------------------------


def _init_kwargs(loading: Mapping[str, Any]) -> dict[str, Any]:
    """TRL `ModelConfig`'s names -> `from_pretrained`'s, as TRL's own scripts do."""
    names = {"dtype": "dtype", "attn_implementation": "attn_implementation", "model_revision": "revision"}
    return {names[name]: value for name, value in loading.items() if name in names}


def _quantization(loading: Mapping[str, Any]) -> Any:
    if not (loading.get("load_in_4bit") or loading.get("load_in_8bit")):
        return None
    from trl import ModelConfig, get_quantization_config

    try:
        return get_quantization_config(ModelConfig(**loading))
    except (ImportError, ValueError) as cause:
        raise InputError(
            f"the model cannot be quantized: {cause}", hint="pip install 'posttrain-plugins[quant]'"
        ) from cause


def _for_task(peft_config: Any, task_type: str) -> Any:
    """The adapter's config for the task; a sequence classifier also trains its `score` head."""
    if peft_config is None or task_type == "CAUSAL_LM":
        return peft_config
    keep = list(getattr(peft_config, "modules_to_save", None) or [])
    changes: dict[str, Any] = {"task_type": task_type}
    if hasattr(peft_config, "modules_to_save"):
        changes["modules_to_save"] = [*keep, "score"] if "score" not in keep else keep
    return replace(peft_config, **changes)


def _digest(peft_config: Any) -> str:
    values = {k: sorted(v) if isinstance(v, set) else v for k, v in peft_config.to_dict().items()}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _start_from_adapter(begin: Start, artifact: ModelArtifact, context: StageContext) -> None:
    same = begin.handoff.get("adapter", {}).get("config")
    if same is not None and artifact.handoff.get("adapter", {}).get("config") == same:
        context.reporter.note(f"goes on training the adapter of '{artifact.name}'")
        begin.model = _trainable_adapter(artifact, begin)
        begin.kwargs.pop("peft_config")
        begin.kwargs.pop("quantization_config", None)
        begin.model_init_kwargs = {}
        return
    context.reporter.note(f"merges the adapter of '{artifact.name}' into its base first")
    begin.model = str(_merged(artifact, context.folder / "merged"))


def _trainable_adapter(artifact: ModelArtifact, begin: Start) -> Any:
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM

    base = PeftConfig.from_pretrained(artifact.path).base_model_name_or_path
    loading = {"dtype": "float32", **begin.model_init_kwargs}
    if "quantization_config" in begin.kwargs:
        loading["quantization_config"] = begin.kwargs["quantization_config"]
    model = AutoModelForCausalLM.from_pretrained(base, **loading)
    return PeftModel.from_pretrained(model, artifact.path, is_trainable=True)


def _merged(artifact: ModelArtifact, folder: Path) -> Path:
    """The adapter merged into its (unquantized) base, saved for TRL to load; made once, by one rename."""
    if folder.is_dir():
        return folder
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    scratch = folder.with_name("merged.tmp")
    loading = {"dtype": "float32", **_init_kwargs(artifact.loading)}
    model = AutoPeftModelForCausalLM.from_pretrained(artifact.path, **loading).merge_and_unload()
    model.save_pretrained(str(scratch))
    AutoTokenizer.from_pretrained(artifact.path).save_pretrained(str(scratch))
    scratch.rename(folder)
    return folder


def _with_template(model: Any, artifact: ModelArtifact, template: Any) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model if isinstance(model, str) else artifact.path)
    tokenizer.chat_template = template.read_text(encoding="utf-8") if isinstance(template, Path) else str(template)
    return tokenizer


def _has_accelerator() -> bool:
    import torch

    return bool(torch.accelerator.is_available())


# --- how it goes and ends --------------------------------------------------------------------------------------------


def _watch(context: StageContext, trainer: Any) -> Any:
    from transformers import TrainerCallback

    class Watch(_Watch, TrainerCallback):  # type: ignore[misc]
        """`_Watch` as a transformers callback."""

    return Watch(context, trainer)


class _Watch:
    """Follows every optimizer step: figures to the display, NaN, the user's wish to stop, and checkpoints by time.

    A checkpoint is taken when the last one is older than a minute and than fifty times what saving costs, for RL only
    between two generations; a file `complete` is put into it after everything else, so that a torn one is passed over.
    """

    def __init__(self, context: StageContext, trainer: Any) -> None:
        self.context = context
        self.args = trainer.args
        self.period = compat.generation_period(trainer.args)
        self.by_time = trainer.args.save_strategy == "no"
        self.is_stopped = False
        self.loss: Any = None
        self.figures: dict[str, float] = {}
        self.saved_at = time.monotonic()
        self.save_began = 0.0
        self.save_cost_s = 0.0

    def observe(self, loss: Any) -> None:
        self.loss = loss if self.loss is None else self.loss + loss

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        loss, self.loss = float(self.loss), None
        if not abs(loss) < float("inf"):
            raise NonFiniteLoss(
                f"loss is {loss} at step {state.global_step} of stage '{self.context.stage}'",
                hint=f"lower it: -o stages.{self.context.stage}.args.learning_rate={args.learning_rate / 10:g}",
            )
        self.figures["loss"] = loss
        self.context.reporter.progress(state.global_step, state.max_steps, "step", self.figures)
        at_boundary = state.global_step % self.period == 0
        is_last = state.global_step >= state.max_steps
        if at_boundary and not is_last and self.context.should_stop():
            self.is_stopped = control.should_save = control.should_training_stop = True
        elif self.by_time and at_boundary and not is_last and self._is_due():
            control.should_save = True
        self.save_began = time.monotonic()
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            _mark_complete(folder)
            if self.by_time:
                _keep_newest(folder)
        self.saved_at = time.monotonic()
        self.save_cost_s = self.saved_at - self.save_began
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        for name, value in (logs or {}).items():
            if isinstance(value, int | float) and name not in ("epoch", "total_flos"):
                self.figures[name] = float(value)
        return control

    def _is_due(self) -> bool:
        return time.monotonic() - self.saved_at > max(CHECKPOINT_SECONDS, self.save_cost_s / CHECKPOINT_SHARE)


def _mark_complete(folder: Path) -> None:
    for file in [*folder.iterdir(), folder]:
        with _opened(file) as descriptor:
            os.fsync(descriptor)
    marker = folder / CHECKPOINT_MARKER
    marker.touch()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _keep_newest(folder: Path) -> None:
    for other in folder.parent.glob("checkpoint-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def _tidy(folder: Path) -> None:
    """Takes out what is not the model: pickled arguments, a model card with no facts, TRL's copy of the reference."""
    for name in ("training_args.bin", "README.md"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "ref", ignore_errors=True)


def _clear(context: StageContext, is_adapter: bool) -> None:
    """What is no longer needed: checkpoints that nobody asked for, and the start of a model that now stands alone."""
    if not any(name.startswith("save_") for name in context.args):
        shutil.rmtree(context.folder / "checkpoints", ignore_errors=True)
    if not is_adapter:
        for name in ("merged", "initial"):
            shutil.rmtree(context.folder / name, ignore_errors=True)


def _last_figures(history: list[dict[str, Any]]) -> dict[str, float]:
    """The last value of the figures that tell how a stage ended."""
    found: dict[str, float] = {}
    for row in history:
        found.update({name: float(row[name]) for name in TELLING if isinstance(row.get(name), int | float)})
    return found


def _write_log(file: Path, history: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")


def _write_seen(file: Path, dataset: Any) -> None:
    """One fingerprint a line for every distinct prompt trained on; for plain text, of each of its lines."""
    if dataset is None or not hasattr(dataset, "column_names"):
        return
    marks: set[str] = set()
    for name in ("prompt", "messages", "text"):
        if name in dataset.column_names:
            for value in dataset[name]:
                marks.update(_fingerprints(name, value))
            break
    file.write_text("".join(f"{mark}\n" for mark in sorted(marks)), encoding="utf-8")


def _fingerprints(column: str, value: Any) -> set[str]:
    if column == "text":
        return {fingerprint(line) for line in to_text(value).splitlines() if line.strip()}
    return {fingerprint(value)}
