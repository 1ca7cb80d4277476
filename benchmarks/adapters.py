"""Every adapter in every training stage, on a model of hidden size 32: the table in docs/adapters.md.

A cell is one stage as a recipe runs it, on one batch of four rows: it trains (the loss of the fourth step is below the
first's where the batch stays the same; where the model writes its own data, its weights move), only its own weights
move, it is saved and loaded again with the same logits to the last bit, it trains on a base in 4 bits too, and merged
into the base it gives the same logits but for rounding. What a recipe's check refuses is not run: the reason is told.

    python benchmarks/adapters.py
    python benchmarks/adapters.py --adapters lora bottleneck --stages sft ppo
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
os.environ.update(TRL_EXPERIMENTAL_SILENCE="1")

import record
import torch

from posttrain_plugins import validate
from posttrain_plugins.errors import InputError, RecipeErrors
from posttrain_plugins.types import ModelArtifact, ResolvedAdapter, ResolvedReward, StageContext, StageResult

STEPS, ROWS = 4, 4
TOLERANCE = {"dora": 1e-4, "pissa": 1e-4, "oft": 1e-4}
"""Largest relative difference of logits after merging, 1e-5 where nothing is said."""

ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {"use": "full"},
    "freeze": {"use": "freeze", "frozen_layers": 1},
    "lora": {"use": "lora", "r": 4},
    "rslora": {"use": "lora", "r": 4, "use_rslora": True},
    "dora": {"use": "lora", "r": 4, "use_dora": True},
    "pissa": {"use": "lora", "r": 4, "init_lora_weights": "pissa"},
    "loftq": {"use": "lora", "r": 4, "init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
    "lora_plus": {"use": "lora", "r": 4, "loraplus_lr_ratio": 4.0},
    "adalora": {"use": "adalora", "init_r": 4, "target_r": 2, "lr": 0.1},
    "ia3": {"use": "ia3", "lr": 0.1},
    "prefix": {"use": "prefix", "num_virtual_tokens": 4, "lr": 0.1},
    "prompt": {"use": "prompt", "num_virtual_tokens": 4, "lr": 0.1},
    "p_tuning": {"use": "p_tuning", "num_virtual_tokens": 4, "encoder_hidden_size": 32},
    "oft": {"use": "oft", "oft_block_size": 16},
    "vera": {"use": "vera", "r": 16, "lr": 0.1},
    "bottleneck_houlsby": {"use": "bottleneck", "placement": "houlsby", "bottleneck_size": 8},
    "bottleneck_pfeiffer": {"use": "bottleneck", "placement": "pfeiffer", "bottleneck_size": 8},
    "bottleneck_parallel": {"use": "bottleneck", "placement": "parallel", "bottleneck_size": 8},
    "loha": {"use": "peft", "peft_type": "LOHA", "r": 4, "target_modules": "all-linear"},
    "boft": {"use": "peft", "peft_type": "BOFT", "boft_block_size": 4, "target_modules": "all-linear"},
}
"""Name in the table -> the adapter of a recipe, and the learning rate `lr` where it is not 0.01."""

COMMON = {
    "max_steps": STEPS,
    "per_device_train_batch_size": ROWS,
    "logging_steps": 1,
    "report_to": "none",
    "lr_scheduler_type": "constant",
}
SAMPLING = {"max_completion_length": 8, "num_generations": 4}
STAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sft": ("demos", "CausalLM", {}),
    "dpo": ("pairs", "CausalLM", {}),
    "kto": ("labelled", "CausalLM", {}),
    "orpo": ("pairs", "CausalLM", {}),
    "cpo": ("pairs", "CausalLM", {}),
    "listwise_dpo": ("rankings", "CausalLM", {}),
    "reward": ("pairs", "SequenceClassification", {}),
    "ranking": ("rankings", "SequenceClassification", {}),
    "prm": ("steps", "TokenClassification", {}),
    "grpo": ("problems", "CausalLM", {**SAMPLING}),
    "rloo": ("problems", "CausalLM", {**SAMPLING}),
    "ppo": ("problems", "CausalLM", {"max_completion_length": 8}),
    "online_dpo": ("problems", "CausalLM", {"max_new_tokens": 8}),
    "distill": ("problems", "CausalLM", {"max_completion_length": 8}),
}
"""Stage -> its data, what its model is loaded as, and the `args` that it needs."""

WRITES_ITS_DATA = ("grpo", "rloo", "ppo", "online_dpo", "distill")


def main() -> int:
    options = _options()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        share = partial(rows_of, options.stages, Path(scratch), not options.no_4bit)
        parts = [options.adapters[number :: options.workers] for number in range(options.workers)]
        with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
            found = {name: cell for part in pool.imap(share, parts) for name, cell in part.items()}
    cells = {f"{a} {s}": found[f"{a} {s}"] for a in options.adapters for s in options.stages}
    wrong = [name for name, found in cells.items() if found["wrong"]]
    results = {"cells": cells, "steps": STEPS, "rows": ROWS, "seconds": time.perf_counter() - began}
    print(record.write("adapters", results, options.out), file=sys.stderr)
    for name in wrong:
        print(f"error: {name}: {'; '.join(cells[name]['wrong'])}", file=sys.stderr)
    return 1 if wrong else 0


def rows_of(stages: Sequence[str], scratch: Path, with_4bit: bool, adapters: Sequence[str]) -> dict[str, Any]:
    """The cells of some adapters, in a process of their own."""
    cells = {}
    bench = Bench(Path(tempfile.mkdtemp(dir=scratch)))
    for adapter in adapters:
        for stage in stages:
            cells[f"{adapter} {stage}"] = found = bench.cell(adapter, stage, with_4bit=with_4bit)
            print(f"{adapter:20} {stage:13} {_line(found)}", file=sys.stderr, flush=True)
    return cells


class Quiet:
    """A reporter that says nothing."""

    def progress(self, done: int, total: int | None, unit: str, figures: Mapping[str, float]) -> None: ...

    def note(self, message: str) -> None: ...


@dataclass
class Trained:
    """What one training left."""

    losses: list[float]
    moved: set[str]
    own: set[str]
    logits: torch.Tensor
    folder: Path
    result: StageResult
    optimizer: Any

    @property
    def only_own(self) -> bool:
        """Did weights that learn move, and no others?"""
        return bool(self.moved) and self.moved <= self.own


class Bench:
    """Models and data, made once, and the cells that are run on them.

    Args:
        folder: a scratch folder.
    """

    def __init__(self, folder: Path) -> None:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        _quiet_libraries()
        self.folder = folder
        self.base = tiny_model(folder / "base", seed=0)
        self.teacher = tiny_model(folder / "teacher", seed=1)
        self.data = datasets(folder)
        self.ids = torch.arange(4, 28).reshape(2, 12)

    def cell(self, adapter: str, stage: str, with_4bit: bool = True) -> dict[str, Any]:
        """All that the table says of an adapter in a stage; `wrong` lists what is not as it should be."""
        found: dict[str, Any] = {"refused": None, "options": {}, "wrong": []}
        args = dict(STAGES[stage][2])
        why = self.refusal(adapter, stage, args, {})
        if why is not None and "gradient_checkpointing" in why:
            args["gradient_checkpointing"] = False
            found["options"] = {"gradient_checkpointing": False}
            why = self.refusal(adapter, stage, args, {})
        if why is not None:
            return {**found, "refused": why}
        try:
            return {**found, **self.measured(adapter, stage, args, with_4bit)}
        except InputError as error:  # what only the machine it runs on knows
            return {**found, "refused": f"{error.message} (hint: {error.hint})"}
        except Exception as cause:  # the other cells go on
            return {**found, "wrong": [f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"]}

    def measured(self, adapter: str, stage: str, args: dict[str, Any], with_4bit: bool) -> dict[str, Any]:
        """What is not refused, run."""
        trained = self.train(adapter, stage, args, {"dtype": "float32"})
        found: dict[str, Any] = {}
        found |= {"loss": trained.losses, "only_its_weights": trained.only_own}
        found["reload"], found["merged"] = self.again(trained, STAGES[stage][1])
        found["4bit"] = self.in_4bit(adapter, stage, args) if with_4bit else None
        found["wrong"] = _faults(adapter, stage, found)
        shutil.rmtree(trained.folder)
        return found

    def refusal(self, adapter: str, stage: str, args: dict[str, Any], loading: dict[str, Any]) -> str | None:
        """What a recipe's check says against it, as `posttrain validate` would."""
        body = {"use": stage, "model": "base", "dataset": "data", "adapter": "it", "args": args}
        body |= {"rewards": ["digits"]} if stage in WRITES_ITS_DATA and stage != "distill" else {}
        body |= {"teacher": "base"} if stage == "distill" else {}
        recipe = {
            "model": {"model_name_or_path": str(self.base), **loading},
            "adapters": {"it": _plugin(adapter)},
            "datasets": {"data": {"path": str(self.folder / f"{STAGES[stage][0]}.jsonl")}},
            "rewards": {"digits": {"use": "length"}},
            "stages": {"cell": body},
        }
        try:
            validate(_written(recipe, self.folder))
        except RecipeErrors as error:
            return "; ".join(f"{m.message} (hint: {m.hint})" for m in error.mistakes)
        return None

    def in_4bit(self, adapter: str, stage: str, args: dict[str, Any]) -> dict[str, Any]:
        """The same on a base in 4 bits, for two steps."""
        loading = {"load_in_4bit": True, "dtype": "float32", "use_bnb_nested_quant": True}
        why = self.refusal(adapter, stage, args, loading)
        if why is not None:
            return {"refused": why}
        args, options = {**args, "max_steps": 2}, {}
        try:
            trained = self.train(adapter, stage, args, loading)
        except InputError as error:
            if "bf16: true" not in str(error.hint):
                return {"refused": f"{error.message} (hint: {error.hint})"}
            options = {"bf16": True, "use_cpu": True}
            trained = self.train(adapter, stage, {**args, **options}, loading)
        shutil.rmtree(trained.folder)
        return {"loss": trained.losses, "only_its_weights": trained.only_own, "options": options}

    def train(self, adapter: str, stage: str, args: dict[str, Any], loading: dict[str, Any]) -> Trained:
        """One stage, as a recipe runs it."""
        from posttrain_plugins.plugins import registry

        parameters = _plugin(adapter)
        made = registry.load("adapter", parameters.pop("use"))
        made = made(**parameters)() if isinstance(made, type) else made(**parameters)
        seen: dict[str, Any] = {}
        config = made if hasattr(made, "peft_type") else None
        resolved = ResolvedAdapter("it", config, "it", _watching(getattr(made, "prepare", None), seen))
        args = {**COMMON, "learning_rate": ADAPTERS[adapter].get("lr", 0.01), **args}
        plugin = registry.load("stage", stage)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        inputs = {"model": ModelArtifact("base", str(self.base), loading), "dataset": self.data[STAGES[stage][0]]}
        inputs |= {"teacher": ModelArtifact("teacher", str(self.teacher), {})} if stage == "distill" else {}
        inputs |= {"rewards": [ResolvedReward("digits", digits)], "adapter": resolved}
        context = StageContext(
            stage="cell",
            folder=folder,
            seed=0,
            inputs=inputs,
            resume_from=None,
            reporter=Quiet(),
            should_stop=lambda: False,
            args=args,
        )
        references = {"model": "base", "dataset": "data", "args": args}
        references |= {"rewards": ["digits"]} if "rewards" in plugin.__dataclass_fields__ else {}
        references |= {"teacher": "teacher"} if stage == "distill" else {}
        result = plugin(**references)(context)
        trainer = seen["trainer"]
        after = dict(trainer.model.named_parameters())
        before = seen["before"]
        moved = {name for name, (value, _) in before.items() if not _is_equal(value, after[name])}
        moved = {name for name in moved if "ranknum" not in name}  # AdaLoRA's count of ranks, no weight
        own = {name for name, (_, learns) in before.items() if learns}
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        return Trained(losses, moved, own, self.logits(trainer.model), folder, result, _bare(trainer.optimizer))

    def logits(self, model: Any) -> torch.Tensor:
        """Of two fixed rows."""
        model.eval()
        with torch.no_grad():
            return model(input_ids=self.ids, attention_mask=torch.ones_like(self.ids)).logits.float()

    def again(self, trained: Trained, task: str) -> tuple[float, float | None]:
        """The largest difference of logits after loading, and the relative one after merging, None where it cannot."""
        import transformers

        from posttrain_plugins.models.load import load_adapted

        path = trained.result.model_path
        assert path is not None
        options = {"dtype": torch.float32} | ({} if task == "CausalLM" else {"num_labels": 1})
        if not (path / "adapter_config.json").is_file():
            model = getattr(transformers, f"AutoModelFor{task}").from_pretrained(path, **options)
            return float((self.logits(model) - trained.logits).abs().max()), None
        model = load_adapted(path, task, **options)
        loaded = self.logits(model)
        difference = float((loaded - trained.logits).abs().max())
        try:
            merged = self.logits(model.merge_and_unload())
        except (AttributeError, NotImplementedError):
            return difference, None
        return difference, float((merged - loaded).norm() / loaded.norm())


# --- one cell --------------------------------------------------------------------------------------------------------


def _watching(prepare: Callable[[Any], Any] | None, seen: dict[str, Any]) -> Callable[[Any], Any]:
    """Keeps the trainer, and what its parameters were before it trained and which of them learn."""

    def watched(trainer: Any) -> Any:
        told = prepare(trainer) if prepare is not None else None
        named = trainer.model.named_parameters()
        seen.update(trainer=trainer, before={n: (p.detach().clone(), p.requires_grad) for n, p in named})
        return told

    return watched


def _bare(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)  # accelerate's is around it


def _is_equal(before: torch.Tensor, after: torch.Tensor) -> bool:
    return before.shape == after.shape and torch.equal(before, after.detach())  # AdaLoRA cuts its ranks at the end


def _faults(adapter: str, stage: str, found: Mapping[str, Any]) -> list[str]:
    faults = []
    losses = found["loss"]
    if stage not in WRITES_ITS_DATA and not losses[-1] < losses[0]:
        faults.append(f"the loss rises from {losses[0]:.4g} to {losses[-1]:.4g}")
    if not found["only_its_weights"]:
        faults.append("other weights move than those that learn")
    if found["reload"] != 0.0:
        faults.append(f"after loading, logits differ by {found['reload']:.1e}")
    if found["merged"] is not None and found["merged"] > TOLERANCE.get(adapter, 1e-5):
        faults.append(f"merged, logits differ by {found['merged']:.1e}")
    in_4bit = found["4bit"]
    if in_4bit is not None and "refused" not in in_4bit and not in_4bit["only_its_weights"]:
        faults.append("in 4 bits, other weights move than those that learn")
    return faults


def _line(found: Mapping[str, Any]) -> str:
    if found["refused"]:
        return f"refused: {found['refused']}"
    if "loss" not in found:
        return f"FAILED: {'; '.join(found['wrong'])}"
    losses, in_4bit = found["loss"], found["4bit"] or {}
    told = f"loss {losses[0]:.3f} to {losses[-1]:.3f}, reload {found['reload']:.0e}, merged {found['merged']}"
    return f"{told}, 4 bits {'refused' if 'refused' in in_4bit else 'yes'} {'; '.join(found['wrong'])}"


def _plugin(adapter: str) -> dict[str, Any]:
    return {name: value for name, value in ADAPTERS[adapter].items() if name != "lr"}


def digits(completions: list[Any], **columns: Any) -> list[float]:
    """A reward that differs among completions of random weights."""
    return [float(sum(map(ord, str(completion))) % 7) for completion in completions]


# --- models and data -------------------------------------------------------------------------------------------------


def tiny_model(folder: Path, seed: int) -> Path:
    """Qwen3, hidden size 32, two layers, random weights, the tiny world's tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from posttrain_plugins.tiny_world.tokenizer import tokenizer

    words = tokenizer()
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.pad_token_id = words.pad_token_id
    model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(str(folder))
    words.save_pretrained(str(folder))
    return folder


def datasets(folder: Path, size: int = ROWS) -> dict[str, Any]:
    """`size` rows for each kind of stage, also written as JSONL for the recipe's check."""
    from datasets import Dataset

    from posttrain_plugins.datasets.digit_chain import DigitChain

    problems = DigitChain(size=size)().to_list()
    right = [[{"role": "assistant", "content": f"<answer>{int(row['solution'])}</answer>"}] for row in problems]
    wrong = [[{"role": "assistant", "content": f"<answer>{(int(r['solution']) + 3) % 10}</answer>"}] for r in problems]
    pairs = [
        {"prompt": row["prompt"], "chosen": yes, "rejected": no}
        for row, yes, no in zip(problems, right, wrong, strict=True)
    ]
    labelled = [
        {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
        for row, name in zip(pairs, ("chosen", "rejected") * size, strict=False)
    ]
    rows = {
        "problems": [{"prompt": row["prompt"]} for row in problems],
        "demos": DigitChain(part="demonstrations", size=size)().to_list(),
        "pairs": pairs,
        "labelled": labelled,
        "rankings": [
            {"prompt": r["prompt"], "completions": [r["chosen"][0]["content"], "<answer>8</answer>", "3"]}
            for r in pairs
        ],
        "steps": [
            {"prompt": "3|7>2", "completions": ["3|7=4", "4>2=4"], "labels": [True, i % 2 == 0]} for i in range(size)
        ],
    }
    for name, table in rows.items():
        Dataset.from_list(table).to_json(folder / f"{name}.jsonl")
    return {name: Dataset.from_list(table) for name, table in rows.items()}


def _written(recipe: dict[str, Any], folder: Path) -> Path:
    import json

    file = folder / "cell.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")
    return file


def _quiet_libraries() -> None:
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", nargs="+", choices=ADAPTERS, default=[*ADAPTERS], help="rows (all)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=[*STAGES], help="columns (all)")
    parser.add_argument("--no-4bit", action="store_true", help="leave the 4-bit run of each cell out")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each (2)")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of adapters.json")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
