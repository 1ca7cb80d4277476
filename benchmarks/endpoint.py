"""Self-consistency over a server, ours and its peers: the same problems, the same endpoint, ratios within one round.

The endpoint is a process of its own (`endpoint_server.py`): each request is in service for 50 ms, 256 at once at most.
Every side answers P problems with N completions each; the endpoint's counters say that it did the same work. The rounds
are interleaved, and a ratio is taken within a round, so that a busy machine disturbs both of its ends; what takes less
than a second stands for its round with the median of three runs. Peers run in environments of their own; what is slow
runs on fewer problems, and its time is scaled to P (`scaled_from` says so).
Beside them stand what bare loops take: raw sockets (the endpoint's ceiling) and the HTTP clients that could be used.

    python -m venv its && its/bin/pip install "its_hub[lm]==1.2.0"
    python -m venv opt && opt/bin/pip install "optillm==0.4.0"
    python benchmarks/endpoint.py --its-hub its/bin/python --optillm opt/bin/python
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import endpoint_peers
import record

HERE = Path(__file__).resolve().parent
N = endpoint_peers.N
SHORT = ("bare_aiohttp_n", "ours", "ours_slot_per_completion")
CLIENTS = ("bare_aiohttp", "bare_openai_aiohttp", "bare_openai", "bare_httpx")
LOOP_SHARE, OPTILLM_SHARE = 5, 4  # these run on P divided by this
WANTED = {
    ("ours", "its_hub_gather"): 20.0,
    ("ours", "its_hub_loop"): 50.0,
    ("ours_single", "its_hub_unlimited"): 2.0,
    ("ours", "optillm"): 10.0,
}
"""(ours, theirs) -> how many times faster we want to be."""

Taken = dict[str, Any]


def main() -> int:
    options = _options()
    print(f"load average {os.getloadavg()[0]:.2f}; quiet is below 0.5", file=sys.stderr)
    with serving("request") as url, serving("completion") as strict_url, proxy(options.optillm, url) as proxy_url:
        sides = sides_of(options, url, strict_url, proxy_url)
        clients = {name: run_peer(sys.executable, name, f"{url}/v1", options.client_requests, url) for name in CLIENTS}
        rounds = [one_round(sides, options.problems, number, options.rounds) for number in range(options.rounds)]
    results = {
        "problems": options.problems,
        "n": N,
        "endpoint": {"service_ms": 50, "slots": 256},
        "ratios": ratios(rounds),
        "rounds": rounds,
        "clients": clients,
        "peers": {name: _version(python, name) for name, python in _peers(options).items()},
    }
    print(record.write("endpoint", results, options.out))
    return 0


def sides_of(options: argparse.Namespace, url: str, strict: str, proxy_url: str) -> dict[str, Callable[[int], Taken]]:
    """Name -> a run over P problems."""
    requests = N * options.problems
    sides: dict[str, Callable[[int], Taken]] = {
        "raw": lambda count: run_peer(sys.executable, "raw", f"{url}/v1", requests, url),
        "bare_aiohttp": lambda count: run_peer(sys.executable, "bare_aiohttp", f"{url}/v1", requests, url),
        "bare_aiohttp_n": lambda count: run_peer(sys.executable, "bare_aiohttp_n", f"{url}/v1", count, url),
        "ours": lambda count: run_ours(f"{url}/v1", count, url),
        "ours_single": lambda count: run_ours(f"{url}/single/v1", count, url),
        "ours_slot_per_completion": lambda count: run_ours(f"{strict}/v1", count, strict),
    }
    if options.its_hub:
        for name in ("its_hub_gather", "its_hub_unlimited"):
            sides[name] = lambda count, name=name: run_peer(options.its_hub, name, f"{url}/v1", count, url)
        sides["its_hub_loop"] = lambda count: scaled(
            lambda few: run_peer(options.its_hub, "its_hub_loop", f"{url}/v1", few, url), count, LOOP_SHARE
        )
    if options.optillm:
        sides["optillm"] = lambda count: scaled(
            lambda few: run_peer(options.optillm, "optillm", proxy_url, few, url), count, OPTILLM_SHARE
        )
    return sides


def one_round(sides: dict[str, Callable[[int], Taken]], problems: int, number: int, rounds: int) -> dict[str, Taken]:
    """Every side once, short ones between them twice more, in an order that turns from round to round."""
    names = list(sides)
    turned = names[number % len(names) :] + names[: number % len(names)]
    short = [name for name in turned if name in SHORT]
    half = len(turned) // 2
    found: dict[str, list[Taken]] = {name: [] for name in names}
    for name in [*turned[:half], *short, *turned[half:], *short]:
        taken = sides[name](problems)
        found[name].append(taken)
        expected = problems * N // taken.get("scaled_by", 1)
        if taken["completions"] < expected:
            raise SystemExit(f"error: {name} drew {taken['completions']} completions, expected {expected}")
        print(f"round {number + 1}/{rounds} {name}: {taken['wall_s']:.2f} s", file=sys.stderr)
    return {name: sorted(runs, key=lambda run: run["wall_s"])[len(runs) // 2] for name, runs in found.items()}


def ratios(rounds: list[dict[str, Taken]]) -> dict[str, Any]:
    """How many times longer the peer takes, of the rounds' ratios the median, and whether that is what we want; then
    how much longer we take than a bare loop. CPU time is the client's own, which a busy machine disturbs less."""
    found: dict[str, Any] = {}
    for (mine, theirs), wanted in WANTED.items():
        if all(theirs in taken for taken in rounds):
            ratio = _ratio(rounds, theirs, mine)
            if theirs == "optillm":
                del ratio["cpu"]  # its proxy does the work, not the client
            found[f"{theirs} / {mine}"] = {**ratio, "wanted": wanted, "is_met": ratio["wall"]["median"] >= wanted}
    for bare, mine in (("bare_aiohttp_n", "ours"), ("bare_aiohttp", "ours_single"), ("raw", "ours_single")):
        found[f"{mine} / {bare}"] = _ratio(rounds, mine, bare)
    return found


def _ratio(rounds: list[dict[str, Taken]], above: str, below: str) -> dict[str, Any]:
    return {
        what: record.median_interval([taken[above][f"{what}_s"] / taken[below][f"{what}_s"] for taken in rounds])
        for what in ("wall", "cpu")
    }


def run_ours(url: str, count: int, counters_url: str) -> Taken:
    """`solve`; the probe is made before, as on the first problem of a session, and told apart."""
    from posttrain_plugins.backends.openai.backend import OpenAIBackend
    from posttrain_plugins.engine.solve import solve
    from posttrain_plugins.strategies.self_consistency import SelfConsistency
    from posttrain_plugins.types import Problem, SamplingParams

    backend = OpenAIBackend("fake", url, concurrency=endpoint_peers.CONCURRENCY)
    began = time.perf_counter()
    assert backend.capabilities.n == ("/single" not in url)
    probe_s = time.perf_counter() - began
    params = SamplingParams(max_tokens=256)
    prompts = enumerate(endpoint_peers.prompts(count))
    problems = [Problem([{"role": "user", "content": text}], params, id=str(i)) for i, text in prompts]
    gc.collect()
    before = _counters(counters_url)
    with endpoint_peers._Clock() as clock:
        results = solve(SelfConsistency(n=N), problems, backend=backend)
    assert [result.answer for result in results if result.error] == []
    return clock.taken | {"answers": len(results), "probe_s": probe_s} | _served(before, _counters(counters_url))


def run_peer(python: str, name: str, url: str, count: int, counters_url: str) -> Taken:
    before = _counters(counters_url)
    command = [python, str(HERE / "endpoint_peers.py"), name, url, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise SystemExit(f"error: {name} failed\n\n{done.stderr[-2000:]}")
    taken = json.loads(done.stdout.splitlines()[-1])
    if taken["answers"] != count:
        raise SystemExit(f"error: {name} gave {taken['answers']} answers, expected {count}")
    return taken | _served(before, _counters(counters_url))


def scaled(run: Callable[[int], Taken], count: int, share: int) -> Taken:
    """A run over fewer problems, its time as of all of them."""
    taken = run(count // share)
    times = {name: taken[name] * share for name in ("wall_s", "cpu_s")}
    return taken | times | {"scaled_from": count // share, "scaled_by": share}


# --- processes -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(slot_per: str) -> Iterator[str]:
    """The fake endpoint; the URL without its version."""
    port = _free_port()
    command = [sys.executable, str(HERE / "endpoint_server.py"), "--port", str(port), "--slot-per", slot_per]
    with _process(command, f"http://127.0.0.1:{port}/v1/models"):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def proxy(python: str | None, url: str) -> Iterator[str]:
    """optillm's server before the fake endpoint."""
    if python is None:
        yield ""
        return
    port = _free_port()
    command = [python, "-m", "optillm.server", "--base-url", f"{url}/v1", "--port", str(port), "--log", "error"]
    with _process(command, f"http://127.0.0.1:{port}/health", OPENAI_API_KEY="none"):
        yield f"http://127.0.0.1:{port}/v1"


@contextlib.contextmanager
def _process(command: list[str], ready_url: str, **environment: str) -> Iterator[None]:
    with subprocess.Popen(
        command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as running:
        try:
            for _ in range(600):
                with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(ready_url, timeout=5):
                    break
                if running.poll() is not None:
                    raise SystemExit(f"error: {' '.join(command)} ended with {running.returncode}")
                time.sleep(0.1)
            yield
        finally:
            running.terminate()


def _counters(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/counters", timeout=10) as answer:
        return dict(json.load(answer))


def _served(before: dict[str, float], after: dict[str, float]) -> Taken:
    """What the endpoint counted in between, and the CPU time that it took."""
    counted = {name: value for name, value in after.items() if name != "cpu_s"}
    return {"completions": 0, **counted, "endpoint_cpu_s": after["cpu_s"] - before["cpu_s"]}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _peers(options: argparse.Namespace) -> dict[str, str]:
    return {name: python for name, python in (("its_hub", options.its_hub), ("optillm", options.optillm)) if python}


def _version(python: str, name: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--client-requests", type=int, default=1000, help="for the comparison of HTTP clients")
    parser.add_argument("--its-hub", default=os.environ.get("ITS_HUB_PYTHON"), help="a Python that has its_hub")
    parser.add_argument("--optillm", default=os.environ.get("OPTILLM_PYTHON"), help="a Python that has optillm")
    parser.add_argument("--out", type=Path, default=record.RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
