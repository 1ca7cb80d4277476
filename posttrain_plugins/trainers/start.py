"""Where a training stage starts: model, adapter, quantization, chat template, as TRL's trainers take them."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from posttrain_plugins.checkpoints import damage, mark_complete
from posttrain_plugins.errors import InputError
from posttrain_plugins.launch import rank
from posttrain_plugins.models.adapter_types import ensure_registered
from posttrain_plugins.models.folder import TASKS, UNMERGEABLE_FILE, adapter_config, adapters_in, base_of, copy_below
from posttrain_plugins.models.load import load_adapted, load_base, load_tokenizer, options_of
from posttrain_plugins.models.merge import check_mergeable, load_plain, save_plain
from posttrain_plugins.models.stack import choose_mode, is_wrapped
from posttrain_plugins.models.training_templates import chatml_twin, has_marks
from posttrain_plugins.trainers import compat, tool_use
from posttrain_plugins.types import AdapterMode, ModelArtifact, StageContext

__all__ = ["MADE_ONCE", "Start", "has_accelerator", "make_once", "start"]

MADE_ONCE = ("merged", "initial")
"""Folders beside the checkpoints: the model that a stage starts from, where it makes that itself."""


@dataclass
class Start:
    """Where a stage starts: what TRL's trainers are given.

    Args:
        model: a folder or Hub id, so that TRL's own seeding precedes random heads; a model in memory where it is on
            adapters, or a `PeftModel` to go on training.
        kwargs: `peft_config`, `quantization_config` and `processing_class` where there is one to give.
        model_init_kwargs: for TRL's config.
        handoff: what the next stage should know of the adapter.
        below: the adapters that the trained one lies on, from the base up.
        prepare: what the adapter does to the trainer.
        can_merge: what the adapter's plugin declares.
        own_template: of the model, while its tokenizer has another.
    """

    model: Any
    kwargs: dict[str, Any] = field(default_factory=dict)
    model_init_kwargs: dict[str, Any] = field(default_factory=dict)
    handoff: dict[str, Any] = field(default_factory=dict)
    below: list[Path] = field(default_factory=list)
    prepare: Callable[[Any], Mapping[str, Any] | None] | None = None
    can_merge: bool = True
    own_template: str | None = None

    def find_tools(self, artifact: ModelArtifact, context: StageContext) -> None:
        """Give ChatML its twin with tools, and the tokenizer a reader of calls, where the stage calls tools.

        The model keeps both: who asks it next has to show it the same.
        """

        def load() -> Any:
            given = self.kwargs.get("processing_class")
            return given or _tokenizer(artifact, self.model if isinstance(self.model, str) else "")

        tokenizer = tool_use.show_calls(context, load)
        if tokenizer is not None:
            self.kwargs["processing_class"] = tokenizer

    def find_marks(self, artifact: ModelArtifact, args: Any) -> None:
        """Give ChatML its marked twin, which TRL lacks, where the loss is of the assistant's turns alone.

        A trainer that is built then prepares its data by it. `forget_marks` comes after: the model keeps its own.
        """
        if not getattr(args, "assistant_only_loss", False):
            return
        tokenizer = self.kwargs.get("processing_class")
        if tokenizer is None:
            tokenizer = _tokenizer(artifact, self.model if isinstance(self.model, str) else "")
        own = tokenizer.chat_template
        twin = chatml_twin(own) if isinstance(own, str) and not has_marks(own) else None
        if twin is not None:
            tokenizer.chat_template, self.own_template = twin, own
            self.kwargs["processing_class"] = tokenizer

    def forget_marks(self) -> None:
        """Give the tokenizer its own template back."""
        if self.own_template is not None:
            self.kwargs["processing_class"].chat_template = self.own_template

    def set_up(self, trainer: Any) -> None:
        """Let the adapter set up the trainer, once that stands; what it returns goes on to the next stage."""
        compat.keep_head_dtype(trainer.model)
        compat.match_vera_dtype(trainer.model)
        found = self.prepare(trainer) if self.prepare is not None else None
        if found:
            self.handoff["adapter"] = {**self.handoff.get("adapter", {}), **found}

    def complete(self, folder: Path) -> None:
        """Put what the saved adapter lies on below it, and beside it that it cannot be merged."""
        if self.below:
            copy_below(self.below, folder)
        if not self.can_merge:
            (folder / UNMERGEABLE_FILE).write_text("can_merge = False\n", encoding="utf-8")


def start(context: StageContext, task_type: str = "CAUSAL_LM", artifact: ModelArtifact | None = None) -> Start:
    """Resolve model (or the `artifact` given), adapter, quantization and chat template of a training stage.

    A model that is an adapter is gone on from as `context.adapter_mode` says, see `stack.choose_mode`.

    Raises:
        InputError: model, adapter and mode do not go together.
    """
    artifact = artifact or context.inputs["model"]
    assert artifact is not None
    adapter = context.inputs.get("adapter")
    peft_config = _for_task(adapter.config, task_type) if adapter else None
    options = options_of(artifact.loading, TASKS[task_type])
    quantization = options.pop("quantization_config", None)
    begin = Start(artifact.path, model_init_kwargs=options)
    mode = _mode(context, artifact, task_type) if artifact.is_adapter else None
    # TRL takes quantization as an argument of the trainer and all else in its config: it has to know before it loads
    if quantization is not None:
        if peft_config is None and mode != "continue":
            raise InputError(
                f"stage '{context.stage}' trains all parameters of a quantized model",
                hint="give it an adapter: {use: lora}",
            )
        begin.kwargs["quantization_config"] = quantization
    if adapter is not None and (peft_config is not None or adapter.prepare is not None):
        begin.prepare = adapter.prepare
        begin.handoff["adapter"] = {"name": adapter.name, "identity": adapter.identity, "plugin": adapter.plugin}
    if peft_config is not None:
        begin.kwargs["peft_config"] = peft_config
        begin.can_merge = context.inputs["adapter"].can_merge
    if mode is not None:
        _start_from_adapter(begin, mode, artifact, context, task_type)
    base = base_of(artifact.path, artifact.loading.get("model_revision"))
    if base.revision and mode != "merge" and not Path(base.path).exists():
        _record_revision(begin, base.revision)
    template = context.inputs.get("chat_template") or artifact.chat_template
    if template is not None:
        tokenizer = _tokenizer(artifact, begin.model if isinstance(begin.model, str) else "")
        tokenizer.chat_template = template.read_text(encoding="utf-8") if isinstance(template, Path) else str(template)
        begin.kwargs["processing_class"] = tokenizer
    return begin


def _record_revision(begin: Start, revision: str) -> None:
    """Let PEFT write the revision of the base beside its id, so that whoever loads the adapter takes those weights."""
    if "peft_config" in begin.kwargs:
        begin.kwargs["peft_config"] = copy.copy(begin.kwargs["peft_config"])  # the recipe's own stays as it is
    for config in (begin.kwargs.get("peft_config"), *getattr(begin.model, "peft_config", {}).values()):
        if config is not None:
            config.revision = revision


def has_accelerator() -> bool:
    """Tell whether there is a GPU or the like."""
    import torch

    return bool(torch.accelerator.is_available())


def _for_task(peft_config: Any, task_type: str) -> Any:
    """Return the adapter's config for the task; a classifier of sequences or tokens also trains its `score` head."""
    if peft_config is None or task_type == "CAUSAL_LM":
        return peft_config
    keep = list(getattr(peft_config, "modules_to_save", None) or [])
    changes: dict[str, Any] = {"task_type": task_type}
    if hasattr(peft_config, "modules_to_save"):
        changes["modules_to_save"] = [*keep, "score"] if "score" not in keep else keep
    if task_type == "TOKEN_CLS" and getattr(peft_config, "target_modules", None) == "all-linear":
        if not hasattr(peft_config, "exclude_modules"):
            raise InputError(
                f"target_modules all-linear takes in the head of a token classifier, and {type(peft_config).__name__} "
                "has no exclude_modules",
                hint="target_modules: [q_proj, v_proj]",
            )
        changes["exclude_modules"] = ["score"]  # PEFT would wrap the head too
    return replace(peft_config, **changes)


def _mode(context: StageContext, artifact: ModelArtifact, task_type: str) -> AdapterMode:
    """Choose how the stage goes on from an adapter, checked against what it is given."""
    adapter: Any = context.inputs.get("adapter")
    has_adapter = adapter is not None and adapter.config is not None
    before = artifact.handoff.get("adapter", {})
    is_same = has_adapter and bool(adapter.identity) and before.get("identity") == adapter.identity
    mode = choose_mode(
        context.adapter_mode,
        is_same=is_same and task_type == "CAUSAL_LM",
        has_adapter=has_adapter,
    )
    if mode == "stack" and not has_adapter:
        raise InputError(f"stage '{context.stage}' stacks no adapter: it has none", hint="adapter: {use: lora}")
    if mode == "continue" and has_adapter and not is_same:
        own, given = adapter_config(artifact.path)["peft_type"], adapter.config.peft_type.value
        if before or own != given:
            raise InputError(
                f"stage '{context.stage}' goes on with adapter '{adapter.name}' ({given}), but '{artifact.name}' is "
                f"adapter '{before.get('name', 'of its own')}' ({own})",
                hint="leave 'adapter' out, or adapter_mode: stack",
            )
    return mode


def make_once(context: StageContext, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that a run which goes on from a checkpoint finds again as it was made.

    Args:
        context: of the stage.
        name: one of `MADE_ONCE`.
        make: writes the same files every time.
    """
    folder = context.folder / name
    if not rank.is_first():
        rank.wait_until(lambda: folder.is_dir() and damage(folder) is None)
        return folder
    if folder.is_dir():
        wrong = damage(folder)
        if wrong is None:
            return folder
        # a base with other weights would be trained on, and the checkpoint's adapter with it, without a word
        context.reporter.note(f"'{name}' is made again: {wrong}")
        shutil.rmtree(folder)
    scratch = folder.with_name(f"{name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    make(scratch)
    mark_complete(scratch)
    scratch.rename(folder)  # all or nothing: a stage that is killed while it writes finds no half of a model
    return folder


def _start_from_adapter(
    begin: Start, mode: AdapterMode, artifact: ModelArtifact, context: StageContext, task_type: str
) -> None:
    note = context.reporter.note
    if mode == "merge":
        again = " (dequantized; what is loaded is quantized again)" if "quantization_config" in begin.kwargs else ""
        note(f"merges the adapter of '{artifact.name}' into its base first{again}")
        check_mergeable(artifact.name, artifact.path)

        def merge(folder: Path) -> None:
            tokenizer = load_tokenizer(artifact.path, artifact.loading)
            save_plain(load_plain(artifact.path, artifact.loading).model, tokenizer, folder)

        begin.model = str(make_once(context, "merged", merge))
        return
    begin.kwargs["processing_class"] = _tokenizer(artifact)  # TRL would take the base's, and its template
    if mode == "continue":
        note(f"goes on training the adapter of '{artifact.name}'")
        begin.model = _trainable(begin, artifact, context, task_type)
        begin.below = adapters_in(artifact.path)[:-1]
        begin.can_merge = not (Path(artifact.path) / UNMERGEABLE_FILE).is_file()
        begin.handoff = {"adapter": artifact.handoff["adapter"]} if "adapter" in artifact.handoff else begin.handoff
        begin.kwargs.pop("peft_config", None)
    else:
        note(
            f"stacks a new adapter on that of '{artifact.name}'; other tools load both once they are merged or exported"
        )
        begin.below = adapters_in(artifact.path)
        begin.model = load_base(
            artifact.path, TASKS[task_type], with_newest=True, **_options(begin, context, task_type)
        )
    if context.args.get("use_vllm") and is_wrapped(getattr(begin.model, "base_model", begin.model)):
        raise InputError(
            f"stage '{context.stage}' has use_vllm, but vLLM cannot load the adapters below the one that it trains",
            hint="adapter_mode: merge",
        )
    # TRL refuses options of loading beside a model that is loaded
    begin.kwargs.pop("quantization_config", None)
    begin.model_init_kwargs = {}


def _options(begin: Start, context: StageContext, task_type: str) -> dict[str, Any]:
    """Return the options with which TRL would load the model, seeded as it would for a new head."""
    from accelerate.utils import set_seed

    options = {"dtype": "float32", **begin.model_init_kwargs, **(context.args.get("model_init_kwargs") or {})}
    if "quantization_config" in begin.kwargs:
        options["quantization_config"] = begin.kwargs["quantization_config"]
    if task_type != "CAUSAL_LM":
        options["num_labels"] = 1
    set_seed(context.seed)
    return options


def _trainable(begin: Start, artifact: ModelArtifact, context: StageContext, task_type: str) -> Any:
    """Load the artifact's own adapter to train on; for another task with the head that this has and it has not."""
    options, task = _options(begin, context, task_type), TASKS[task_type]
    if task_type == "CAUSAL_LM":
        return load_adapted(artifact.path, task, is_trainable=True, **options)
    from peft import (
        PeftConfig,
        get_peft_model,
        get_peft_model_state_dict,
        load_peft_weights,
        set_peft_model_state_dict,
    )

    ensure_registered(artifact.path)
    config = _for_task(replace(PeftConfig.from_pretrained(artifact.path), inference_mode=False), task_type)
    model = get_peft_model(load_base(artifact.path, task, **options), config)
    weights = {**get_peft_model_state_dict(model), **load_peft_weights(artifact.path, device="cpu")}
    set_peft_model_state_dict(model, weights)  # the head is new, the rest is the artifact's
    return model


def _tokenizer(artifact: ModelArtifact, path: str = "") -> Any:
    """Load it as TRL's trainers do that pad and cut prompts on the left; the others pad and cut by themselves."""
    return load_tokenizer(path or artifact.path, artifact.loading, padding_side="left", truncation_side="left")
