"""Names of requests: a completion's key is its seed, its cache entry and its line in the log. No paper.

The texts that are hashed are written by hand, piece by piece: as JSON of the whole it would be the same text, and take
several times as long. A change to any of them makes every log and every seed another one (`tests/engine/test_keys.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any

from posttrain_plugins.types import Generate, Prompt, SamplingParams

__all__ = ["draw_key", "key_of", "prompt_text", "request_key", "score_key", "seed_of"]

_encode = json.JSONEncoder(sort_keys=True, default=str).encode


def key_of(*parts: Any) -> str:
    """Return one name for one request, the same in every run."""
    return _digest(_encode(parts))


def request_key(request: Generate, identity: str, problem: str, run_seed: int) -> str:
    """Return what all draws of one request have in common.

    Args:
        request: its role, prompt, parameters and tools count; how many it wants, and what for, do not.
        identity: of the backend that answers it.
        problem: the problem's id.
        run_seed: the noise, where the request names none.
    """
    noise = run_seed if request.params.seed is None else request.params.seed
    who = f'"completion", {_quoted(request.model)}, {_quoted(identity)}'
    # only where there are some: requests without tools keep the keys that they had before there were any
    tools = f", {_encode(request.tools)}" if request.tools else ""
    what = f"{prompt_text(request.prompt)}, {_params_text(request.params)}"
    return _digest(f"[{who}, {what}, {_encode(problem)}, {noise}{tools}]")


def score_key(kind: str, scorer: str, problem: str, prompt: str, text: str, steps: Sequence[str]) -> str:
    """Return the name of a score; `prompt` is its `prompt_text`, which many scores share."""
    who, of_steps = f"{_quoted(kind)}, {_quoted(scorer)}, {_encode(problem)}", ", ".join(map(_quoted, steps))
    return _digest(f"[{who}, {prompt}, {_quoted(text)}, [{of_steps}]]")


def draw_key(base: str, draw: int) -> str:
    """Return the name of one completion of a request: `draw` counts how often the problem has drawn from it before."""
    return _digest(f'["{base}", {draw}]')


def seed_of(key: str) -> int:
    """Return 63 bits of noise: what fits into a signed 64-bit seed."""
    return int(key[:16], 16) >> 1


def prompt_text(prompt: Prompt) -> str:
    """Return a prompt as JSON: what `_encode` gives, in less time for plain messages."""
    return _quoted(prompt) if isinstance(prompt, str) else f"[{', '.join(map(_message_text, prompt))}]"


def _message_text(message: Mapping[str, Any]) -> str:
    match message:
        case {"role": str(role), "content": str(content)} if len(message) == 2:
            return f'{{"content": {_quoted(content)}, "role": {_quoted(role)}}}'
    return _encode(message)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=1024)
def _params_text(params: SamplingParams) -> str:
    """Return the parameters, without the seed; numbers in one form, for 1 and 1.0 draw the same."""
    found: dict[str, Any] = {
        "temperature": float(params.temperature),
        "top_p": float(params.top_p),
        "max_tokens": int(params.max_tokens),
        "stop": list(params.stop),
        "seed": None,
        "logprobs": bool(params.logprobs),
    }
    if params.top_logprobs:  # what asks for nothing more is the plain request, and shares its draws
        found["top_logprobs"] = int(params.top_logprobs)
    if params.values:
        found["values"] = True
    if params.top_k:
        found["top_k"] = int(params.top_k)
    return _encode(found)
