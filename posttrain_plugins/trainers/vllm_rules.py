"""What a stage's `vllm_server` takes, asked by the recipe's check, which has no torch. No paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from posttrain_plugins.backends.engines import VLLM, engine_issues
from posttrain_plugins.types import Issue, StageFacts

__all__ = ["FOR_TRL", "OURS", "START_TIMEOUT_S", "server_concerns"]

OURS = ("devices", "start_timeout_s")
"""Options that are no vLLM option: the GPUs of the server, and how long its start may take."""
FOR_TRL: Mapping[str, Any] = MappingProxyType(
    {"weight_transfer_config": {"backend": "nccl"}, "logprobs_mode": "processed_logprobs", "max_logprobs": -1}
)
"""Options without which TRL cannot use the server."""
SET_HERE = ("host", "port", *FOR_TRL)
START_TIMEOUT_S = 900.0  # a large model is read from disk, and its graphs are captured


def server_concerns(options: Mapping[str, Any] | None, facts: StageFacts) -> Iterator[Issue]:
    """Yield what is wrong with a stage's `vllm_server`.

    Args:
        options: as the recipe has them; None starts no server.
        facts: of the stage.
    """
    if options is None:
        return
    args = facts.args
    if not getattr(args, "use_vllm", False) or getattr(args, "vllm_mode", None) != "server":
        found = "vllm_server starts a server, which args do not use"
        yield Issue(found, "args: {use_vllm: true, vllm_mode: server}", "vllm_server")
    if getattr(args, "vllm_server_base_url", None) is not None:
        found = "vllm_server starts a server, and args name one that is there already"
        yield Issue(found, "remove one of the two", "args.vllm_server_base_url")
    timeout_s = options.get("start_timeout_s", START_TIMEOUT_S)
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not timeout_s > 0:
        found = f"start_timeout_s is {timeout_s!r}, expected seconds, more than 0"
        yield Issue(found, None, "vllm_server.start_timeout_s")
    for name in options:
        if name in SET_HERE:
            yield Issue(f"vllm_server cannot be given {name!r}: it is set here", "remove it", f"vllm_server.{name}")
    known = {name: value for name, value in options.items() if name not in (*OURS, *SET_HERE)}
    for issue in engine_issues(VLLM, known):
        field = issue.field.replace("vllm", "vllm_server", 1)
        yield Issue(issue.message.replace("vllm", "vllm_server", 1), issue.hint, field)
