"""Tokens per second of completions that are sampled in this process: one at a time, by question, and all together.

The same model, prompts, length and sampling five ways, interleaved, so that a busy machine disturbs all of them alike:

| way                      | is                                                                        |
|--------------------------|---------------------------------------------------------------------------|
| `one_at_a_time`          | `model.generate` for each completion                                      |
| `one_question_at_a_time` | `model.generate(num_return_sequences=n)` for each question                |
| `one_batch`              | `model.generate` for all of them, padded                                  |
| `ours`                   | `posttrain_plugins.engine.solve.sample` for all of them                      |
| `continuous_batching`    | the same with transformers' continuous batching in place of our own loop  |

Nothing is downloaded: random weights in several shapes, the tiny world's tokenizer and problems. A completion ends at
EOS, which random weights over 64 tokens draw now and then, or at `--max-tokens`. One at a time draws one completion of
each question: its rate does not depend on how many there are.

    python benchmarks/in_process.py
    python benchmarks/in_process.py --shape 0.6b --device cuda --dtype bfloat16 --problems 64 --max-tokens 256
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import record

SHAPES: dict[str, dict[str, int]] = {
    "tiny_world": {
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 16,
        "intermediate_size": 384,
        "vocab_size": 64,
    },
    "medium": {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "intermediate_size": 1536,
        "vocab_size": 64,
    },
    "0.6b": {  # https://huggingface.co/Qwen/Qwen3-0.6B/blob/main/config.json
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151_936,
    },
}
ON_CPU = ("tiny_world", "medium")
SEED = 0

Taken = dict[str, float]
Way = Callable[[int], int]
"""Seed -> how many completion tokens were drawn."""


def main() -> int:
    options = _options()
    print(f"load average {os.getloadavg()[0]:.2f}; quiet is below 0.5", file=sys.stderr)
    results = {shape: compare(shape, options) for shape in options.shape}
    settings = {name: getattr(options, name) for name in ("problems", "n", "max_tokens", "repeats", "device", "dtype")}
    name = "in_process" if options.device == "cpu" else f"in_process_{options.device}"
    print(record.write(name, {"settings": settings, "shapes": results}, options.out))
    return 0


def compare(shape: str, options: argparse.Namespace) -> dict[str, Any]:
    """Every way's tokens per second, in wall and in CPU time, and how many times as fast ours is."""
    model, tokenizer = make_model(SHAPES[shape], options.device, options.dtype)
    ways = make_ways(model, tokenizer, options)
    taken: dict[str, list[Taken]] = {name: [] for name in ways}
    for number in range(options.repeats + 1):  # the first is the warm-up
        order = list(ways) if number % 2 else list(ways)[::-1]
        for name in order:
            one = timed(ways[name], number)
            rate = one["tokens"] / one["wall_s"]
            label = f"{number}/{options.repeats}" if number else "warm-up"
            print(f"{shape} {label} {name}: {rate:,.0f} tokens/s", file=sys.stderr)
            taken[name].append(one)
    return summary({name: each[1:] for name, each in taken.items()})


def summary(taken: Mapping[str, Sequence[Taken]]) -> dict[str, Any]:
    """Medians over the repeats; a ratio is taken within a repeat."""

    def rates(name: str, clock: str) -> list[float]:
        return [one["tokens"] / one[clock] for one in taken[name]]

    def ratios(name: str, clock: str) -> list[float]:
        return [mine / theirs for mine, theirs in zip(rates("ours", clock), rates(name, clock), strict=True)]

    return {
        "tokens_per_s": {name: statistics.median(rates(name, "wall_s")) for name in taken},
        "tokens_per_cpu_s": {name: statistics.median(rates(name, "cpu_s")) for name in taken},
        "times_as_fast": {
            name: {
                "wall": record.median_interval(ratios(name, "wall_s")),
                "cpu": record.median_interval(ratios(name, "cpu_s")),
            }
            for name in taken
            if name != "ours"
        },
        "taken": {name: list(each) for name, each in taken.items()},
    }


def timed(way: Way, seed: int) -> Taken:
    import torch

    gc.collect()
    torch.manual_seed(seed)
    began, began_cpu = time.perf_counter(), time.process_time()
    tokens = way(seed)
    return {
        "tokens": float(tokens),
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - began_cpu,
    }


def make_ways(model: Any, tokenizer: Any, options: argparse.Namespace) -> dict[str, Way]:
    from posttrain_plugins.backends.transformers.backend import TransformersBackend, render
    from posttrain_plugins.datasets.digit_chain import DigitChain
    from posttrain_plugins.engine.solve import sample
    from posttrain_plugins.types import Problem, SamplingParams

    params = SamplingParams(max_tokens=options.max_tokens)
    rows = DigitChain(part="problems", size=options.problems)()
    problems = [Problem(row["prompt"], params, id=str(i)) for i, row in enumerate(rows)]
    prompts = [render(tokenizer, problem.prompt) for problem in problems]
    ours = TransformersBackend(model, tokenizer, identity="ours")
    theirs = TransformersBackend(model, tokenizer, identity="theirs", continuous_batching=True)

    def by_generate(batch: Sequence[list[int]], n: int) -> int:
        return generate(model, tokenizer, batch, n, options.max_tokens)

    def by_sample(backend: TransformersBackend, seed: int) -> int:
        results = sample(problems, options.n, backend=backend, seed=seed)
        return sum(result.usage["policy"].completion_tokens for result in results)

    return {
        "one_at_a_time": lambda seed: sum(by_generate([prompt], 1) for prompt in prompts),
        "one_question_at_a_time": lambda seed: sum(by_generate([prompt], options.n) for prompt in prompts),
        "one_batch": lambda seed: by_generate(prompts, options.n),
        "ours": lambda seed: by_sample(ours, seed),
        "continuous_batching": lambda seed: by_sample(theirs, seed),
    }


def generate(model: Any, tokenizer: Any, prompts: Sequence[list[int]], n: int, max_tokens: int) -> int:
    """transformers' own loop; what stands behind the first EOS of a row is padding and does not count."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    drawn = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=n,
        max_new_tokens=max_tokens,
    )[:, width:]
    is_eos = drawn == tokenizer.eos_token_id
    behind = is_eos.cumsum(-1) - is_eos.long()
    return int((behind == 0).sum())


def make_model(shape: Mapping[str, int], device: str, dtype: str) -> tuple[Any, Any]:
    """A Qwen3 with random weights, and the tiny world's tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, set_seed

    from posttrain_plugins.tiny_world.tokenizer import tokenizer

    words = tokenizer()
    set_seed(SEED)
    config = Qwen3Config(
        **shape,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config).to(device, getattr(torch, dtype)).eval()
    model.generation_config.pad_token_id = words.pad_token_id
    model.generation_config.eos_token_id = words.eos_token_id
    return model, words


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(ON_CPU), help="which (tiny_world medium)")
    parser.add_argument("--problems", type=int, default=32, help="questions (32)")
    parser.add_argument("--n", type=int, default=8, help="completions per question (8)")
    parser.add_argument("--max-tokens", type=int, default=48, help="of a completion (48)")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds, at least 5 for a result (5)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--dtype", default="float32", help="of the weights: float32, bfloat16 (float32)")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of the result (benchmarks/results)")
    return parser.parse_args()


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    raise SystemExit(main())
