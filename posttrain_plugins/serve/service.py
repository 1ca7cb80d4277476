"""One client's call: which model and strategy, whether the prompt fits, and the answer.

A plain `NAME` draws `n` completions; `NAME@STRATEGY` lets a strategy answer, which gives one text. Both run in the
engine, each call in a thread of its own, and all of them draw from the same waves (`worker.py`).
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from posttrain_plugins.backends.protocol import AnyBackend, Backend
from posttrain_plugins.backends.transformers.backend import render
from posttrain_plugins.engine.solve import solve
from posttrain_plugins.errors import InputError, Interrupted, PosttrainError
from posttrain_plugins.plugins import registry
from posttrain_plugins.serve.fields import ApiError
from posttrain_plugins.serve.models import Served
from posttrain_plugins.serve.protocol import Call, Limits
from posttrain_plugins.serve.queued import QueuedBackend
from posttrain_plugins.serve.replies import Choice, Reply
from posttrain_plugins.serve.strategies import Strategies
from posttrain_plugins.serve.worker import Worker
from posttrain_plugins.text.answers import candidates, choose
from posttrain_plugins.types import Budget, Completion, Generate, Problem, Prompt, ResolvedStrategy, Result

__all__ = ["Service", "Ticket"]


@dataclass(frozen=True, eq=False)
class Ticket:
    """A call that passed every check. `cancel` lets it stop at its next completion."""

    call: Call
    served: Served
    strategy: ResolvedStrategy | None
    stopped: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.stopped.set()


@dataclass
class _Plain:
    """Draws `n` completions, and keeps them as they are."""

    call: Call
    drawn: dict[str, list[Completion]] = field(default_factory=dict)

    def __call__(self, problem: Problem) -> Generator[Generate, list[Completion], Result]:
        call = self.call
        self.drawn[problem.id] = yield Generate(problem.prompt, n=call.n, params=problem.params, tools=call.tools)
        return choose(candidates(self.drawn[problem.id]), 0)


class Service:
    """All that is served.

    Args:
        models: by name.
        strategies: what may stand behind `NAME@`.
        worker: the models' thread.
        limits: what one request may ask for.
    """

    def __init__(self, models: Mapping[str, Served], strategies: Strategies, worker: Worker, limits: Limits) -> None:
        self.models = models
        self.strategies = strategies
        self.worker = worker
        self.limits = limits

    def admit(self, call: Call) -> Ticket:
        """Find what the call names, and check that its prompts fit.

        Raises:
            ApiError: 404 for a model, 400 for a strategy, a prompt, or fields that do not go with it.
        """
        name, at, spec = call.model.partition("@")
        served = self.models.get(name)
        if served is None:
            raise self.unknown(name)
        strategy = self._strategy(spec, call) if at else None
        if not at:
            _check_capabilities(served, call)
        if hasattr(served.backend, "tokenizer"):
            for prompt in call.prompts:
                self.worker.call(partial(_check_prompt, served.backend, prompt, call.tools))
        return Ticket(call, served, strategy)

    def answer(self, ticket: Ticket) -> Reply:
        """Solve it; called in a thread of its own.

        Raises:
            ApiError: 400 or 500 for what went wrong, 503 where it was cancelled.
        """
        call = ticket.call
        plain = _Plain(call)
        try:
            results = solve(
                ticket.strategy.strategy if ticket.strategy else plain,
                [Problem(prompt, call.params, id=str(i)) for i, prompt in enumerate(call.prompts)],
                backend=self._backends(ticket),
                scorers=ticket.strategy.scorers if ticket.strategy else {},
                budget=call.budget,
                total_budget=Budget(seconds=call.budget.seconds),  # this one cuts what is in flight, too
                seed=secrets.randbits(32) if call.seed is None else call.seed,
                should_stop=ticket.stopped.is_set,
            )
        except Interrupted as error:
            raise ApiError(503, f"the request was stopped: {error.message}", code="stopped") from error
        except InputError as error:
            raise ApiError(400, str(error), code="invalid_value", param="model") from error
        except PosttrainError as error:
            raise ApiError(500, str(error), code="failed") from error
        choices = [
            choice
            for i, result in enumerate(results)
            for choice in self._choices(ticket, plain.drawn.get(str(i)), result)
        ]
        return Reply(call, choices, results)

    def listing(self) -> list[dict[str, Any]]:
        """The models as OpenAI lists them: every name, alone and with each strategy that the server was given."""
        hints = [plugin.name for plugin in registry.installed("strategy")]
        rows = []
        for served in self.models.values():
            row = {"object": "model", "created": served.created, "owned_by": "posttrain", "parent": served.base}
            rows.append({"id": served.name, **row, "strategies": hints})
            rows += [{"id": f"{served.name}@{name}", **row} for name in self.strategies.named]
        return rows

    def unknown(self, name: str) -> ApiError:
        """The refusal of a name that is not served."""
        known = [row["id"] for row in self.listing()]
        hint = registry.suggest(name, known) or f"known: {', '.join(known)}"
        return ApiError(404, f"no model {name!r} is served; {hint}", code="model_not_found", param="model")

    def _strategy(self, spec: str, call: Call) -> ResolvedStrategy:
        if call.n > 1:
            raise ApiError(
                400, f"n: {call.n}, expected 1: a strategy gives one answer", code="invalid_value", param="n"
            )
        for name, is_given in (("tools", call.tools), ("logprobs", call.params.logprobs)):
            if is_given:
                message = f"{name}: not supported together with a strategy; leave it out"
                raise ApiError(400, message, code="unsupported_parameter", param=name)
        try:
            return self.strategies.find(spec)
        except (InputError, RecursionError, MemoryError) as error:  # the last two: brackets in brackets without end
            raise ApiError(400, f"model: {error}", code="invalid_strategy", param="model") from error
        except PosttrainError as error:
            raise ApiError(500, str(error), code="failed") from error

    def _backends(self, ticket: Ticket) -> dict[str, AnyBackend]:
        """By role. A model of this process waits in the worker's line; a server makes its own."""
        others = ticket.strategy.models if ticket.strategy else {}
        found = {"policy": ticket.served.backend, **{name: self.models[name].backend for name in others}}
        is_stopped = ticket.stopped.is_set
        return {
            role: QueuedBackend(self.worker, backend, is_stopped) if isinstance(backend, Backend) else backend
            for role, backend in found.items()
        }

    def _choices(self, ticket: Ticket, drawn: list[Completion] | None, result: Result) -> list[Choice]:
        """What the client is given for one prompt."""
        if result.error is not None:
            raise ApiError(500, f"the strategy failed: {result.error}", code="strategy_failed")
        failed = [
            c["error"] for e in result.trace for c in e.get("completions", ()) if isinstance(c, dict) and "error" in c
        ]
        if failed and (drawn is not None or not result.candidates):
            raise ApiError(500, f"the model failed: {failed[0]}", code="failed")
        if ticket.strategy is not None:
            return [Choice(_as_completion(result))]
        if drawn is None:  # the budget came first
            drawn = [Completion(c.text, _reason(c.finish_reason)) for c in result.candidates]
            return [Choice(one) for one in drawn or [Completion("", "length")]]
        return [Choice(one, self._tokens(ticket.served, one)) for one in drawn]

    def _tokens(self, served: Served, completion: Completion) -> list[str]:
        if completion.logprobs is None:
            return []
        tokenizer: Any = getattr(served.backend, "tokenizer", None)
        if tokenizer is None or completion.token_ids is None:
            return [""] * len(completion.logprobs)
        ids = completion.token_ids
        tokens: list[str] = self.worker.call(lambda: [tokenizer.decode([token]) for token in ids])
        return tokens


def _as_completion(result: Result) -> Completion:
    """The text that a strategy stands on, as a completion."""
    reasons = [candidate.finish_reason for candidate in result.candidates if candidate.text == result.text]
    return Completion(result.text, "length" if result.stopped_by else _reason(*reasons[:1]))


def _reason(found: str = "stop") -> Literal["stop", "length"]:
    return "length" if found == "length" else "stop"


def _check_capabilities(served: Served, call: Call) -> None:
    for name, is_given in (("tools", call.tools), ("logprobs", call.params.logprobs)):
        if is_given and not getattr(served.backend.capabilities, name):
            message = f"{name}: model {served.name!r} does not support this; leave it out"
            raise ApiError(400, message, code="unsupported_parameter", param=name)


def _check_prompt(backend: Any, prompt: Prompt, tools: Sequence[Mapping[str, Any]]) -> None:
    """In the worker's thread: a prompt that the template refuses or that leaves no room is told before it is drawn."""
    field = "prompt" if isinstance(prompt, str) else "messages"
    try:
        count = len(render(backend.tokenizer, prompt, tools))
    except Exception as error:  # the boundary of tokenizers and templates
        message = f"{field}: the model's tokenizer or chat template refuses them: {type(error).__name__}: {error}"
        raise ApiError(400, message, code="invalid_value", param=field) from error
    context = getattr(backend.model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and count >= context:
        message = f"{field}: {count} tokens, expected fewer than the model's context of {context}"
        raise ApiError(400, message, code="context_length_exceeded", param=field)
