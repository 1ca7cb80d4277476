"""What following a training costs: figures, events and the terminal's display, by the CPU time of their own calls.

A stage of the tiny world's model is trained in turns, with the recorder and the display on a terminal of 120 x 40, and
with neither. Taken is the CPU time of the thread in each of their calls, the redrawing thread's too, over the CPU time
of `Trainer.train`: a busy machine makes both slower and their ratio hardly. The weights of both sides have to be the
same, bit for bit. Exit 1 where the share is above half a percent or a bit differs.

    python benchmarks/recorder.py --runs 3
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import overhead
import record

METHODS = ("sft", "grpo")
GOAL = 0.005
"""Share of a training's time that following it may take."""


def main() -> int:
    options = _options()
    load = os.getloadavg()[0]
    print(f"load average {load:.2f}; quiet is below 0.5", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="recorder-") as name:
        folder = Path(name)
        model = overhead.prepare(folder)
        results = {method: measure(method, folder, model, options.runs, options.steps) for method in options.methods}
    figures = {"runs": options.runs, "steps": options.steps, "load": round(load, 2), "goal": GOAL, "methods": results}
    print(record.write("recorder", figures, options.out))
    missed = list(unmet(results))
    for what in missed:
        print(f"error: {what}", file=sys.stderr)
    return 1 if missed else 0


def unmet(results: dict[str, Any]) -> Iterator[str]:
    """Yield what is not as it should be."""
    for method, found in results.items():
        if not found["bit_equal"]:
            yield f"{method}: the weights are not the same with and without"
        if found["share"]["median"] > GOAL:
            share = found["share"]["median"]
            yield f"{method}: following takes {share:.2%} of the training, expected {GOAL:.1%} at most"


def measure(method: str, folder: Path, model: Path, runs: int, steps: int) -> dict[str, Any]:
    """Return the share of the calls that follow a training, whose they are, and whether the weights are the same."""
    shares, parts, digests = [], [], set()
    _train(method, folder, model, 2, folder / f"{method}-warm-up", is_followed=True)  # imports, first calls
    for number in range(runs):
        for is_followed in (True, False):
            out = folder / f"{method}-{number}-{is_followed}"
            times = _train(method, folder, model, steps, out, is_followed)
            digests.add(_digest(out))
            if is_followed:
                train = times.pop("train")
                shares.append(sum(times.values()) / train)
                parts.append({name: round(value / train, 6) for name, value in times.items()} | {"train_cpu_s": train})
                print(f"{method} {number + 1}/{runs}: {shares[-1]:.3%} of the training", file=sys.stderr)
    return {"share": record.median_interval(shares), "parts": parts, "bit_equal": len(digests) == 1}


def _train(method: str, folder: Path, model: Path, steps: int, out: Path, is_followed: bool) -> dict[str, float]:
    from rich.console import Console

    from posttrain_plugins import run
    from posttrain_plugins.cli.run_display import RunDisplay
    from posttrain_plugins.recipe.run.observer import Observer

    recipe = overhead._recipe(folder, model, steps)
    with contextlib.ExitStack() as stack:
        null = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(null))
        if not is_followed:
            stack.enter_context(_unfollowed())
            run(recipe, runs_dir=out, only=[method], observer=Observer())
            return {}
        times = stack.enter_context(_clocks())
        display = RunDisplay(Console(file=null, force_terminal=True, width=120, height=40))
        stack.callback(display.close)
        run(recipe, runs_dir=out, only=[method], observer=display)
    return times


@contextlib.contextmanager
def _clocks() -> Iterator[dict[str, float]]:
    """Within, the CPU time of each call that follows a training is added up; one within another counts once."""
    from rich.live import Live
    from transformers import Trainer

    from posttrain_plugins.trainers import compat, watch

    times: dict[str, float] = {}
    depth = 0
    is_training = False

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def measured(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            began = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                depth -= 1
                if depth == 0 and is_training:
                    times[name] = times.get(name, 0.0) + time.thread_time() - began

        return measured

    def redrawn(call: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **kwargs: Any) -> Any:  # of a thread of its own: never within another
            began = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                if is_training:
                    times["redraw"] = times.get("redraw", 0.0) + time.thread_time() - began

        return measured

    def trained(call: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **kwargs: Any) -> Any:
            nonlocal is_training
            is_training, began = True, time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                is_training = False
                times["train"] = time.thread_time() - began

        return measured

    with contextlib.ExitStack() as stack:
        for owner, name, wrap in (
            (compat, "new_metrics", functools.partial(timed, "figures")),
            (watch._Watch, "_peak", functools.partial(timed, "memory")),
            (watch._Watch, "_show", functools.partial(timed, "written and shown")),
            (watch._Watch, "_write", functools.partial(timed, "written and shown")),
            (Live, "refresh", redrawn),
            (Trainer, "train", trained),
        ):
            original = getattr(owner, name)
            setattr(owner, name, wrap(original))
            stack.callback(setattr, owner, name, original)
        yield times


@contextlib.contextmanager
def _unfollowed() -> Iterator[None]:
    """Within, no figure is taken and nothing is written of a run."""
    from posttrain_plugins.record.events import EventFile
    from posttrain_plugins.trainers import compat, watch

    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (compat, "new_metrics", lambda *args: {}),
            (compat, "observe_generation", lambda *args: False),
            (watch._Watch, "_show", lambda *args: None),
            (watch._Watch, "_write", lambda *args: None),
            (watch._Watch, "_peak", lambda *args: 0.0),
            (EventFile, "_append", lambda *args: None),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


def _digest(out: Path) -> str:
    files = sorted(out.glob("**/model/*.safetensors"))
    assert files, f"no weights below {out}"
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="of each method, on both sides")
    parser.add_argument("--steps", type=int, default=12, help="of each training")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of the results file")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
