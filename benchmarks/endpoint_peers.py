"""One run of a peer, or of a bare client loop, against the fake endpoint; started by `endpoint.py`, prints JSON.

It is run by the interpreter of the peer's own environment, so it imports nothing of ours. The clock starts after the
imports and one warm-up problem, and stops with the last answer.

    python benchmarks/endpoint_peers.py bare_aiohttp http://127.0.0.1:8901/v1 1000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

N = 8
CONCURRENCY = 256
OPTILLM_THREADS = 32  # client threads of its users' scripts


def prompts(count: int) -> list[str]:
    return [f"What is the last digit of {i} + {i + 1} + 6 - {i} - {i}?" for i in range(count)]


def body(prompt: str, seed: int, n: int = 1) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    sampling = {"max_tokens": 256, "temperature": 1.0, "top_p": 1.0, "seed": seed}
    return {"model": "fake", "messages": messages, **sampling} | ({"n": n} if n > 1 else {})


# --- its_hub 1.2: the default gather, its documented loop, and the gather with no limit of its own -------------------


def _its_hub(url: str) -> tuple[Any, Any]:
    from its_hub import OpenAICompatibleLanguageModel, SelfConsistency
    from its_hub.core.algorithms.self_consistency import create_regex_projection_function

    lm = OpenAICompatibleLanguageModel(endpoint=url, api_key="none", model_name="fake", temperature=1.0)
    return lm, lambda **options: SelfConsistency(create_regex_projection_function(r"answer is (\d)"), **options)


def its_hub_gather(url: str, count: int, is_unlimited: bool = False) -> dict[str, float]:
    from its_hub.core.orchestrator import LMOrchestrator

    lm, build = _its_hub(url)
    algorithm = build(**({"orchestrator": LMOrchestrator(max_concurrency=-1)} if is_unlimited else {}))

    async def run() -> dict[str, float]:
        await algorithm.ainfer(lm, "warm up", budget=N)
        with _Clock() as clock:
            answers = await asyncio.gather(*(algorithm.ainfer(lm, prompt, budget=N) for prompt in prompts(count)))
        await lm.close()
        return clock.taken | {"answers": len(answers)}

    return asyncio.run(run())


def its_hub_unlimited(url: str, count: int) -> dict[str, float]:
    return its_hub_gather(url, count, is_unlimited=True)


def its_hub_loop(url: str, count: int) -> dict[str, float]:
    """`algorithm.infer(lm, prompt, budget=n)` for one problem after another, as its README shows."""
    lm, build = _its_hub(url)
    algorithm = build()
    algorithm.infer(lm, "warm up", budget=N)
    with _Clock() as clock:
        answers = [algorithm.infer(lm, prompt, budget=N) for prompt in prompts(count)]
    asyncio.run(lm.close())
    return clock.taken | {"answers": len(answers)}


# --- optillm 0.4: its proxy stands between; this is the user's script ------------------------------------------------


def optillm(url: str, count: int) -> dict[str, float]:
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key="none")

    def ask(prompt: str) -> str:
        messages: Any = [{"role": "user", "content": prompt}]
        extra = {"k": N}
        answer = client.chat.completions.create(model="majority_voting-fake", messages=messages, extra_body=extra)
        return answer.choices[0].message.content or ""

    ask("warm up")
    with ThreadPoolExecutor(OPTILLM_THREADS) as pool, _Clock() as clock:
        answers = list(pool.map(ask, prompts(count)))
    return clock.taken | {"answers": sum("answer is" in answer for answer in answers)}


# --- bare loops: what a client, or the server, can do at all ---------------------------------------------------------


def raw(url: str, count: int) -> dict[str, float]:
    """Prepared bytes over raw connections, nothing parsed: the endpoint's own ceiling."""
    where = urlsplit(url)
    requests = []
    for i, prompt in enumerate(prompts(count)):
        data = json.dumps(body(prompt, i)).encode()
        requests.append(
            f"POST {where.path}/chat/completions HTTP/1.1\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
        )

    async def one(open_requests: list[bytes]) -> None:
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        while open_requests:
            writer.write(open_requests.pop())
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n", 1)[0]))
        writer.close()
        await writer.wait_closed()

    async def run() -> dict[str, float]:
        with _Clock() as clock:
            await asyncio.gather(*(one(requests) for _ in range(CONCURRENCY)))
        return clock.taken | {"answers": count}

    return asyncio.run(run())


def bare_aiohttp(url: str, count: int, n: int = 1) -> dict[str, float]:
    import aiohttp

    async def run() -> dict[str, float]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def ask(i: int, prompt: str) -> Any:
                async with session.post(f"{url}/chat/completions", json=body(prompt, i, n)) as response:
                    return await response.json()

            return await _loop(ask, count)

    return asyncio.run(run())


def bare_aiohttp_n(url: str, count: int) -> dict[str, float]:
    return bare_aiohttp(url, count, n=N)


def bare_httpx(url: str, count: int) -> dict[str, float]:
    import httpx

    async def run() -> dict[str, float]:
        limits = httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
        async with httpx.AsyncClient(limits=limits, timeout=600) as client:

            async def ask(i: int, prompt: str) -> Any:
                return (await client.post(f"{url}/chat/completions", json=body(prompt, i))).json()

            return await _loop(ask, count)

    return asyncio.run(run())


def bare_openai(url: str, count: int, is_on_aiohttp: bool = False) -> dict[str, float]:
    import openai

    async def run() -> dict[str, float]:
        options: Any = {"http_client": openai.DefaultAioHttpClient()} if is_on_aiohttp else {}
        async with openai.AsyncOpenAI(base_url=url, api_key="none", **options) as client:

            async def ask(i: int, prompt: str) -> Any:
                return await client.chat.completions.create(**body(prompt, i))

            return await _loop(ask, count)

    return asyncio.run(run())


def bare_openai_aiohttp(url: str, count: int) -> dict[str, float]:
    return bare_openai(url, count, is_on_aiohttp=True)


async def _loop(ask: Callable[[int, str], Awaitable[Any]], count: int) -> dict[str, float]:
    slots = asyncio.Semaphore(CONCURRENCY)

    async def one(i: int, prompt: str) -> None:
        async with slots:
            await ask(i, prompt)

    await one(0, "warm up")
    with _Clock() as clock:
        await asyncio.gather(*(one(i, prompt) for i, prompt in enumerate(prompts(count))))
    return clock.taken | {"answers": count}


class _Clock:
    taken: dict[str, float]

    def __enter__(self) -> _Clock:
        self.began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.taken = {"wall_s": time.perf_counter() - self.began[0], "cpu_s": time.process_time() - self.began[1]}


RUNS: dict[str, Callable[[str, int], dict[str, float]]] = {
    run.__name__: run
    for run in (
        its_hub_gather,
        its_hub_unlimited,
        its_hub_loop,
        optillm,
        raw,
        bare_aiohttp,
        bare_aiohttp_n,
        bare_httpx,
        bare_openai,
        bare_openai_aiohttp,
    )
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RUNS)
    parser.add_argument("url", help="with its version")
    parser.add_argument("count", type=int, help="problems, or requests of a bare loop")
    options = parser.parse_args()
    print(json.dumps(RUNS[options.name](options.url, options.count)))
