"""Runs that no training made: folders with manifests, figures, rollouts, samples and traces, of any size and text.

Figures and gains come from `Measure` and `gains` of the package, so that a report shows what it would of a real run.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from posttrain_plugins.evaluation.measure import Measure, flat_figures, gains
from posttrain_plugins.types import ModelArtifact

PARENTS = {"base": (), "sft": ("base",), "grpo": ("sft", "base")}
USES = {"base": "pretrain", "sft": "sft", "grpo": "grpo", "eval": "evaluate"}
VERSIONS = {"trl": "1.16.0", "torch": "2.13.0", "posttrain-plugins": "0.1.0"}


@dataclass
class Made:
    """What a run is made of.

    Args:
        scores: model -> what each problem's one greedy answer scored.
        beta: of `stages.grpo.args`, which is part of the key of `grpo`.
        steps: optimizer steps of each training.
        figures: more figures of each step.
        rollouts: completions that grpo sampled, 8 to a prompt and 2 prompts to a step.
        traces: of the evaluation.
        words: a text that stands in every place where a user, a model or a plugin may write one.
        prompts: problem -> its prompt, where not `problem 0`.
        versions: of the libraries.
        spike: a step at which the loss is 1000.
    """

    scores: Mapping[str, Sequence[float]] = field(
        default_factory=lambda: {"base": [0.0] * 20, "sft": [1.0] * 8 + [0.0] * 12, "grpo": [0.0] * 2 + [1.0] * 18}
    )
    beta: float = 0.1
    steps: int = 30
    figures: int = 0
    rollouts: int = 160
    traces: int = 2
    words: str = ""
    prompts: Mapping[int, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: dict(VERSIONS))
    spike: int | None = None
    metric: str = "correct"
    recipe: Mapping[str, Any] = field(default_factory=dict)


def make(folder: Path, made: Made | None = None) -> Path:
    """Write a run into `folder`, which is `runs/<recipe>`."""
    made = made or Made()
    w = made.words
    recipe = {"name": folder.name, "seed": 0, "stages": {"sft": {"use": "sft"}, "grpo": {"args": {"beta": made.beta}}}}
    recipe |= made.recipe
    recipe |= {"note": w} if w else {}
    (folder / "latest").mkdir(parents=True)
    (folder / "resolved.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    keys: dict[str, str] = {}
    for number, model in enumerate(PARENTS):
        start = PARENTS[model][0] if PARENTS[model] else None
        parts = {"stage": USES[model], "seed": "0", **({"model": keys[start]} if start else {})}
        parts |= {"args.beta": str(made.beta)} if model == "grpo" else {}
        keys[model] = _key(parts)
        where = _stage(folder, model, keys[model], parts, made, number)
        (where / "figures.jsonl").write_text("".join(_figures(model, made)), encoding="utf-8")
        if model == "grpo":
            (where / "rollouts.jsonl").write_text("".join(_rollouts(made)), encoding="utf-8")
    _evaluation(folder, keys, made)
    return folder


def _key(parts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _stage(folder: Path, id: str, key: str, parts: Any, made: Made, number: int, **more: Any) -> Path:
    start = PARENTS[id][0] if PARENTS.get(id) else None
    metrics = {"train_s": 10.0 + number, "steps": float(made.steps), "train_loss": 0.5}
    manifest = {
        "format": 2,
        "stage": id,
        "use": USES[id],
        "makes": "figures" if id == "eval" else "model",
        "from": list(PARENTS) if id == "eval" else [start] if start else [],
        "start": start,
        "key": key,
        "seconds": 12.0 + number,
        "finished": f"2026-11-29T12:0{number}:00+00:00",
        "metrics": {**metrics, **({made.words: 1.0} if made.words else {})},
        "model_path": None if id == "eval" else "model",
        "data_path": None,
        "details": {},
        "parts": parts,
        "python": "3.11.7",
        "versions": dict(made.versions),
        **more,
    }
    where = folder / f"{id}-{key[:12]}"
    where.mkdir()
    (where / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (folder / "latest" / id).symlink_to(f"../{where.name}")
    return where


def _figures(model: str, made: Made) -> list[str]:
    lines = []
    for step in range(1, made.steps + 1):
        loss = 1000.0 if step == made.spike else 2.0 / (1 + step / 10) + 0.05 * math.sin(step)
        figures: dict[str, float | None] = {"loss": loss, "learning_rate": 0.001, "peak_memory_gib": 1.5}
        if model == "grpo":
            figures |= {"reward": 1 - 1 / (1 + step / 20), "kl": 0.01 * (step - 1) / made.steps, "generation_s": 0.2}
            figures |= {f"rewards/{made.words or 'steps'}/mean": 0.5}
        figures |= {f"figure {i}": math.sin(step * (i + 1) / 50) for i in range(made.figures)}
        row = {"step": step, "total": made.steps, "seconds": step * 0.3, "at": 1.7e9 + step, "figures": figures}
        lines.append(json.dumps(row) + "\n")
    return lines


def _rollouts(made: Made) -> list[str]:
    draw = random.Random(0)
    lines = []
    for number in range(made.rollouts):
        group = number // 8
        prompt = made.words or f"problem {group % 12}"
        score = float(draw.random() < 0.2 + 0.6 * number / made.rollouts)
        row = {
            "prompt": [{"role": "user", "content": prompt}],
            "solution": made.words or "7",
            "global_step": group // 2,
            "completion": [
                {"role": "assistant", "content": made.words or f"thought {number}\nanswer {draw.randrange(9)}"}
            ],
            "rewards": {made.words or "correct": score, "length": draw.random() if number % 7 else None},
            "weighted_reward": score,
        }
        lines.append(json.dumps(row) + "\n")
    return lines


def _evaluation(folder: Path, keys: Mapping[str, str], made: Made) -> None:
    measured, samples = {}, []
    for model, scores in made.scores.items():
        measured[model] = [
            Measure(way, {made.metric: list(scores)}, tokens_per_problem=48.0) for way in ("sampled", "greedy")
        ]
        samples += [
            {
                "model": model,
                "solution": "7",
                "measure": way,
                "problem": str(i),
                "prompt": [{"role": "user", "content": made.prompts.get(i, made.words or f"problem {i}")}],
                "completion": made.words or f"{model} says {score:g} of problem {i}",
                "answer": None,
                "rewards": {made.metric: score},
            }
            for way in ("sampled", "greedy")
            for i, score in enumerate(scores)
        ]
    gained = {name: gains(ModelArtifact(name, "x", ancestors=PARENTS[name]), measured) for name in measured}
    summaries = {name: {one.name: one.summary() for one in measures} for name, measures in measured.items()}
    models = {n: {"ancestors": list(PARENTS[n]), "measures": summaries[n], "gain": gained[n]} for n in measured}
    problems = max(map(len, made.scores.values()))
    parts = {"stage": "evaluate", "dataset": str(problems), "rewards[0].use": made.metric}
    for number, model in enumerate(made.scores):
        parts |= {f"models[{number}]": keys[model], f"models[{number}] name": model}
    where = _stage(
        folder, "eval", _key(parts), parts, made, 4,
        details={"metric": made.metric, "problems": problems, "models": models, "unmet": []},
    )  # fmt: skip
    manifest = json.loads((where / "manifest.json").read_text(encoding="utf-8"))
    manifest["metrics"] = flat_figures(made.metric, summaries, gained)
    (where / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (where / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples), encoding="utf-8")
    (where / "traces.jsonl").write_text("".join(_trace(i, made) for i in range(made.traces)), encoding="utf-8")


def _trace(number: int, made: Made) -> str:
    prompt = [{"role": "user", "content": made.words or f"problem {number}"}]
    texts = [made.words or f"draft {i} of problem {number}: answer {i}" for i in range(4)]
    drawn = [{"text": text, "finish_reason": "stop", "tokens": 12} for text in texts]
    events = [
        {"round": 0, "kind": "generate", "role": "policy", "purpose": "answer", "prompt": prompt, "completions": drawn},
        {
            "round": 1,
            "kind": "score",
            "scorer": "rm",
            "prompt": prompt,
            "completions": texts,
            "scores": [0.1, 0.9, 0.3, 0.2],
        },
    ]
    usage = {"policy": {"prompt_tokens": 9, "completion_tokens": 40, "calls": 1}}
    made_row = {"answer": "1", "text": texts[1], "usage": usage, "stopped_by": None, "error": None, "trace": events}
    return json.dumps({"model": "grpo", "measure": "best_of_n(n=4)", "problem": str(number), **made_row}) + "\n"
