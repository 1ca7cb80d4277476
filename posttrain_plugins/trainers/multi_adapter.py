"""Several adapters on one base, each trained on its own task's rows, by `trl.SFTTrainer`. No paper.

1. A batch has rows of one task, and for its forward and backward pass only that task's adapter is in force: PEFT's
   mixed batches (`adapter_names`) are for inference, and refuse DoRA.
2. Tasks come as often as their rows do: an epoch has every row of every task once, in shuffled batches; the last batch
   of a task is filled up with its first rows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from trl import SFTTrainer

from posttrain_plugins.trainers import compat

__all__ = ["COLUMN", "MultiAdapterSFTTrainer", "TaskBatches"]

COLUMN = "task"


class TaskBatches:
    """Batches of row numbers, each of one task.

    Args:
        tasks: of each row.
        batch_size: rows of a batch.
        seed: of the order; None keeps the rows' own.

    Example:
        >>> list(TaskBatches(["a", "b", "a", "a"], 2, None))
        [[0, 2], [3, 0], [1, 1]]
    """

    drop_last = False

    def __init__(self, tasks: Sequence[str], batch_size: int, seed: int | None) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.rows: dict[str, list[int]] = {}
        for row, task in enumerate(tasks):
            self.rows.setdefault(task, []).append(row)

    def __len__(self) -> int:
        return sum(-(-len(rows) // self.batch_size) for rows in self.rows.values())

    def __iter__(self) -> Iterator[list[int]]:
        chance = random.Random(f"{self.seed}/{self.epoch}") if self.seed is not None else None
        batches: list[list[int]] = []
        for rows in self.rows.values():
            order = list(rows)
            if chance is not None:
                chance.shuffle(order)
            # full batches only: accelerate fills a short last one up with rows of the first, which has another task
            short = -len(order) % self.batch_size
            order += [order[i % len(order)] for i in range(short)]
            batches += [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        if chance is not None:
            chance.shuffle(batches)
        return iter(batches)

    def set_epoch(self, epoch: int) -> None:
        """Set the order of an epoch; called before each, also of a run that goes on (`_EpochOrder`)."""
        self.epoch = epoch


@dataclass
class _WithTask:
    """The trainer's collator, with the batch's task beside its tensors."""

    collate: Any

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        return {**self.collate(rows), COLUMN: rows[0][COLUMN]}


class MultiAdapterSFTTrainer(SFTTrainer):  # type: ignore[misc]
    """`SFTTrainer` with one adapter for each value of the column `task`.

    `save_model` writes each into a folder of its own, as PEFT does.

    Args:
        peft_config: of every one of the adapters.
        **options: of `SFTTrainer`; its `args` need `remove_unused_columns=False`.
    """

    data_collator: Any
    batches: TaskBatches | None = None

    def __init__(self, *, peft_config: Any, **options: Any) -> None:
        self.tasks: list[str] = sorted(set(options["train_dataset"][COLUMN]))
        super().__init__(peft_config=peft_config, **options)
        self.data_collator = _WithTask(self.data_collator)
        # TRL has made one adapter, `default`, and given its weights their precision. Those of the tasks take its place.
        dtype = next(p.dtype for name, p in self.model.named_parameters() if p.requires_grad)
        for task in self.tasks:
            self.model.add_adapter(task, peft_config)
        self.model.set_adapter(self.tasks[0])
        self.model.delete_adapter("default")
        self._unfreeze()
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)  # as TRL casts the adapters of a quantized model
        self._adapter_layers = compat.adapter_layers(self.model)
        self.add_callback(_EpochOrder(self))

    def get_train_dataloader(self) -> Any:
        """Return batches of one task each, shuffled."""
        seed = self.args.data_seed or self.args.seed
        self.batches = TaskBatches(self.train_dataset[COLUMN], self.args.train_batch_size, seed)
        return self._loader(self.train_dataset, self.batches)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return batches of one task each, in the rows' order."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return self._loader(dataset, TaskBatches(dataset[COLUMN], self.args.eval_batch_size, None))

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Do forward and backward with the adapter of the batch's task; recomputed layers are within it too."""
        with compat.routed(self._adapter_layers, inputs.pop(COLUMN)):
            loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Do the same without gradients."""
        with compat.routed(self._adapter_layers, inputs.pop(COLUMN)):
            return super().prediction_step(model, inputs, *args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._unfreeze()

    def _unfreeze(self) -> None:
        """Let all adapters learn: PEFT's `set_adapter` and `load_adapter` leave every one but one frozen."""
        self.model.set_requires_grad(self.tasks, True)

    def _loader(self, dataset: Any, batches: TaskBatches) -> Any:
        workers = {"num_workers": self.args.dataloader_num_workers, "pin_memory": self.args.dataloader_pin_memory}
        return self.accelerator.prepare(
            DataLoader(dataset, batch_sampler=batches, collate_fn=self.data_collator, **workers)
        )


class _EpochOrder(TrainerCallback):  # type: ignore[misc]
    """Tells the batches their epoch, which accelerate does not where they are shared out between processes or skipped.

    transformers reaches through one of these layers, but not through both: a run of two processes that went on within
    its second epoch had the order of the first.
    """

    def __init__(self, trainer: MultiAdapterSFTTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.batches is not None:
            self.trainer.batches.set_epoch(int(state.epoch or 0))
