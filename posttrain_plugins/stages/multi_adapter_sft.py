"""Supervised fine-tuning of several adapters on one base, one for each task (`trainers/multi_adapter.py`). No paper."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.folder import ADAPTERS, adapter_config
from posttrain_plugins.trainers import stage_rules
from posttrain_plugins.types import (
    AdapterRef,
    ConfigOf,
    DataRef,
    Issue,
    ModelRef,
    StageContext,
    StageFacts,
    StageResult,
)

__all__ = ["MultiAdapterSFT"]

NAME = re.compile(r"[A-Za-z0-9_][\w.-]*")


@dataclass
class MultiAdapterSFT:
    """Trains one adapter for each value of the column `task`, each on its own rows alone, over one base.

    `STAGE+TASK` names one of them wherever a model is named: in recipes, `ask`, `evaluate`, `sample` and `serve`, which
    holds their base once. The stage `combine` makes one adapter of several.

    Args:
        model: what to start from.
        dataset: `task`, and `messages`, `prompt` + `completion`, or `text`.
        adapter: what each of the adapters is.
        eval_dataset: measured once at the end, or as `args.eval_strategy` says; each row by its task's adapter.
        args: fields of `trl.SFTConfig`.
    """

    model: ModelRef
    dataset: DataRef
    adapter: AdapterRef
    eval_dataset: DataRef | None = None
    args: Annotated[dict[str, Any], ConfigOf("trl:SFTConfig")] = field(default_factory=dict)

    produces: ClassVar[str] = "model"
    several: ClassVar[bool] = True  # so the recipe's check wants `STAGE+TASK` where it is named
    example_params: ClassVar[dict[str, Any]] = {
        "dataset": [{"task": task, "prompt": f"{i}{task}{i}=", "completion": str(i)} for task in "mn" for i in range(8)]
    }
    refuses: ClassVar[dict[str, str]] = {"is_prompt": "its virtual tokens cannot be switched batch by batch"}
    requires_columns: ClassVar[dict[str, Any]] = dict.fromkeys(
        ("dataset", "eval_dataset"), (("task", "messages"), ("task", "prompt", "completion"), ("task", "text"))
    )

    def __post_init__(self) -> None:
        if self.args.get("packing"):
            raise InputError("packing would put rows of several tasks into one", hint="args: {packing: false}")

    def issues(self, facts: StageFacts) -> Iterator[Issue]:
        """Yield why the assistant's turns cannot be told from the others, or warn that all turns are learned."""
        yield from stage_rules.mask_concerns(self.args, facts)
        if facts.trains_all:
            yield Issue("it trains adapters: found 'full'", "adapter: {use: lora}", "adapter")
        yield from _unnamable({str(row["task"]) for row in facts.rows if "task" in row})

    def __call__(self, context: StageContext) -> StageResult:
        from trl import SFTConfig

        from posttrain_plugins.trainers import training
        from posttrain_plugins.trainers.multi_adapter import MultiAdapterSFTTrainer

        tasks = _tasks(context)
        # TRL's columns would be all that is left: `task` has to reach the batches
        args = {**self.args, "remove_unused_columns": False}
        result = training.train(context, MultiAdapterSFTTrainer, SFTConfig, args)
        assert result.model_path is not None
        _complete(result.model_path, tasks)
        return result


def _tasks(context: StageContext) -> list[str]:
    """Return the names of the adapters, which become folders."""
    tasks = sorted(set(map(str, context.inputs["dataset"]["task"])))
    for issue in _unnamable(tasks):
        raise InputError(issue.message, hint=issue.hint)
    more = set(context.inputs["eval_dataset"]["task"]) - set(tasks) if context.inputs.get("eval_dataset") else set()
    if more:
        raise InputError(f"eval_dataset has tasks that are not trained: {', '.join(sorted(more))}")
    if context.inputs["adapter"].config is None:
        raise InputError(f"stage '{context.stage}' trains adapters: found 'full'", hint="adapter: {use: lora}")
    return tasks


def _unnamable(tasks: Iterable[str]) -> Iterator[Issue]:
    """Yield the tasks that cannot be folders of adapters."""
    for task in sorted(tasks):
        # PEFT's first adapter is called `default`, and `stack/` holds the adapters below
        if not NAME.fullmatch(task) or task in ("default", "stack"):
            yield Issue(f"task {task!r} cannot name an adapter", "letters, digits, '_', '-' and '.'", "dataset")


def _complete(folder: Path, tasks: list[str]) -> None:
    """Make each adapter's folder a model of its own, with its tokenizer and what lies below it."""
    # whatever reads models then reads one of these like any adapter, knowing nothing of several
    for task in tasks:
        for file in folder.iterdir():  # tokenizer and template, which PEFT saves beside its adapters' folders
            if file.is_file():
                shutil.copy2(file, folder / task / file.name)
        if (folder / "stack").is_dir():
            shutil.copytree(folder / "stack", folder / task / "stack")
    shutil.rmtree(folder / "stack", ignore_errors=True)
    base = adapter_config(folder / tasks[0])["base_model_name_or_path"]
    # last, since with this file the folder is one of several adapters to who reads it
    text = json.dumps({"base_model_name_or_path": base, "adapters": tasks}, indent=1)
    (folder / ADAPTERS).write_text(text + "\n", encoding="utf-8")
