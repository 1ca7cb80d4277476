"""What the engine costs, and how it fills a backend: no model, so that all time is the engine's or the event loop's.

- overhead: time per request where answering takes none, for both drivers: many problems with one request each, and few
  problems with many requests, one after the other; in memory, and with a log on disk.
- batching: calls to the backend and to the scorer while a tree search runs over 1, 10 and 50 problems.
- latency: the same tree search over 1 and over 50 problems on an endpoint that takes 50 ms for a request; beside it
  what the event loop alone takes for as many sleeps in the same order.

    python benchmarks/engine.py --repeats 5
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import record

from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.engine.solve import solve
from posttrain_plugins.types import (
    Completion,
    Generate,
    Problem,
    ResolvedReward,
    Result,
    SamplingParams,
    ScoreSteps,
    Usage,
)

REQUESTS = 10_000
LATENCY_S = 0.05
COUNTS = (1, 10, 50)
BEAM, WIDTH, DEPTH = 4, 4, 8  # paths kept, steps drawn for each, steps of a path
PROMPT = "A train leaves at noon with seven waggons; at each of nine stations it loses one and gains two. " * 10


# --- Backends that take no time, or only time ------------------------------------------------------------------------


@dataclass
class Null:
    """In this process."""

    identity: str = "null"
    capabilities: Capabilities = field(default_factory=Capabilities)
    calls: int = 0

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        self.calls += 1
        for i, of_request in enumerate(seeds):
            for j, seed in enumerate(of_request):
                yield i, j, _drawn(seed, j)


@dataclass
class Endpoint:
    """On a server that takes so long for each request, however many there are."""

    latency_s: float = 0.0
    identity: str = "null"
    capabilities: Capabilities = field(default_factory=Capabilities)
    requests: int = 0

    async def agenerate(self, request: Generate, seeds: Sequence[int]) -> list[Completion]:
        self.requests += 1
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        return [_drawn(seed, j) for j, seed in enumerate(seeds)]


class Counted:
    """A process reward model that takes no time."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        return [0.0] * len(completions)

    def step_scores(self, prompts: Any, completions: Any, steps: Any, **columns: Any) -> list[list[float]]:
        self.calls += 1
        return [[len(step) % 7 / 7 for step in of_completion] for of_completion in steps]


def _drawn(seed: int, j: int) -> Completion:
    return Completion(f"step {seed % 1000}", usage=Usage(0 if j else 300, 4), stop_reason=";")


# --- Strategies ------------------------------------------------------------------------------------------------------


@dataclass
class Sequential:
    """So many requests, one after the other."""

    requests: int

    def __call__(self, problem: Problem) -> Generator[Generate, list[Completion], Result]:
        text = ""
        for _ in range(self.requests):
            [completion] = yield Generate(problem.prompt, params=problem.params)
            text = completion.text
        return Result(answer=text, text=text)


class TreeSearch:
    """A beam over steps, ranked by the process reward model: two rounds for each step."""

    def __call__(self, problem: Problem) -> Generator[Any, Any, Result]:
        paths: list[tuple[str, ...]] = [()]
        for _ in range(DEPTH):
            asked = [Generate(_prefilled(problem, path), n=WIDTH, params=STEP) for path in paths]
            drawn = yield asked
            grown = [
                (*path, completion.text + ";")
                for path, completions in zip(paths, drawn, strict=True)
                for completion in completions
            ]
            scores = yield ScoreSteps(problem.prompt, tuple(grown))
            order = sorted(range(len(grown)), key=lambda i: (-scores[i][-1], grown[i]))
            paths = [grown[i] for i in order[:BEAM]]
        return Result(answer=paths[0][-1], text="".join(paths[0]))


STEP = SamplingParams(stop=(";",))


def _prefilled(problem: Problem, path: Sequence[str]) -> Any:
    return [*problem.prompt, {"role": "assistant", "content": "".join(path)}] if path else problem.prompt


def _problems(count: int) -> list[Problem]:
    return [Problem([{"role": "user", "content": f"{PROMPT} Case {i}."}], id=str(i)) for i in range(count)]


# --- What is measured ------------------------------------------------------------------------------------------------


def overhead(requests: int, repeats: int) -> dict[str, Any]:
    """Microseconds per request, wall and CPU, of each driver, shape and log."""
    side = max(int(requests**0.5), 1)
    shapes = {f"{requests} x 1": (requests, 1), f"{side} x {side}": (side, side)}
    backends: dict[str, Callable[[], Any]] = {"waves": Null, "stream": Endpoint}
    found: dict[str, Any] = {}
    for driver, backend in backends.items():
        for shape, (count, each) in shapes.items():
            for where in ("memory", "disk"):
                taken = [_overhead(backend(), count, each, where == "disk") for _ in range(repeats + 1)][1:]
                wall, cpu = ([1e6 * times[i] / (count * each) for times in taken] for i in (0, 1))
                name = f"{driver}, {shape}, log in {where}" if where == "memory" else f"{driver}, {shape}, log on disk"
                found[name] = {"us": record.median_interval(wall), "cpu_us": record.median_interval(cpu)}
                print(f"{name}: {found[name]['us']['median']:.0f} us per request", file=sys.stderr)
    return found


def _overhead(backend: Any, count: int, each: int, has_log: bool) -> tuple[float, float]:
    problems = _problems(count)
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        log = Path(folder) / "log.jsonl" if has_log else None
        return _timed(lambda: solve(Sequential(each), problems, backend=backend, log=log))


def batching() -> dict[str, Any]:
    """Calls for a tree search over so many problems, all in one process."""
    found = {}
    for count in COUNTS:
        backend, reward = Null(), Counted()
        solve(TreeSearch(), _problems(count), backend=backend, scorers={"prm": ResolvedReward("prm", reward)})
        found[str(count)] = {"backend_calls": backend.calls, "scorer_calls": reward.calls}
        print(f"{count} problems: {found[str(count)]}", file=sys.stderr)
    return {"rounds": 2 * DEPTH, "problems": found}


def latency(repeats: int) -> dict[str, Any]:
    """Seconds for a tree search on the slow endpoint, and for the bare sleeps; the ratio of 50 problems to one."""
    found: dict[str, Any] = {"latency_s": LATENCY_S, "problems": {}}
    walls: dict[int, list[float]] = {}
    for count in (COUNTS[0], COUNTS[-1]):
        pairs = [(_search(count), _timed(lambda n=count: asyncio.run(_sleeps(n)))[0]) for _ in range(repeats)]
        walls[count] = [wall for (wall, _), _ in pairs]
        found["problems"][str(count)] = {
            "requests": pairs[0][0][1],
            "s": record.median_interval(walls[count]),
            "bare_sleeps_s": record.median_interval([bare for _, bare in pairs]),
        }
        print(f"{count} problems: {found['problems'][str(count)]}", file=sys.stderr)
    ratios = [many / one for many, one in zip(walls[COUNTS[-1]], walls[COUNTS[0]], strict=True)]
    found["ratio"] = record.median_interval(ratios)
    print(f"{COUNTS[-1]} problems against one: {found['ratio']['median']:.2f} x", file=sys.stderr)
    return found


def _search(count: int) -> tuple[float, int]:
    backend, scorers = Endpoint(LATENCY_S), {"prm": ResolvedReward("prm", Counted())}
    wall, _ = _timed(lambda: solve(TreeSearch(), _problems(count), backend=backend, scorers=scorers))
    return wall, backend.requests


async def _sleeps(count: int) -> None:
    """What a tree search waits for, and nothing else."""

    async def one() -> None:
        await asyncio.sleep(LATENCY_S)
        for _ in range(DEPTH - 1):
            await asyncio.gather(*(asyncio.sleep(LATENCY_S) for _ in range(BEAM)))

    await asyncio.gather(*(one() for _ in range(count)))


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    gc.collect()
    began, began_cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - began_cpu


def main() -> int:
    options = _options()
    print(f"load average {os.getloadavg()[0]:.2f}; quiet is below 0.5", file=sys.stderr)
    results = {
        "requests": options.requests,
        "repeats": options.repeats,
        "overhead": overhead(options.requests, options.repeats),
        "batching": batching(),
        "latency": latency(options.repeats),
    }
    print(record.write("engine", results, options.out))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"requests for the overhead ({REQUESTS})")
    parser.add_argument("--repeats", type=int, default=5, help="measured runs of each kind, after one discarded (5)")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of engine.json (benchmarks/results)")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
