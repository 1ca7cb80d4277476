"""One client's request: which model and strategy, whether the prompt fits, and the answer.

A plain `NAME` draws `n` completions; `NAME@STRATEGY` lets a strategy answer, which gives one text. Both run in the
engine, each request in a thread of its own, and all of them draw from the same waves (`model_thread.py`).
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from posttrain_plugins.backends.protocol import Backend
from posttrain_plugins.backends.transformers.backend import render
from posttrain_plugins.backends.transformers.likelihood import token_scores
from posttrain_plugins.engine.solve import solve
from posttrain_plugins.engine.trace import failures_of
from posttrain_plugins.errors import InputError, Interrupted, PosttrainError
from posttrain_plugins.plugins import registry
from posttrain_plugins.serve.fields import ApiError, shown
from posttrain_plugins.serve.model_thread import ModelThread
from posttrain_plugins.serve.models import Served
from posttrain_plugins.serve.protocol import ApiRequest, RequestLimits
from posttrain_plugins.serve.queued import QueuedBackend
from posttrain_plugins.serve.replies import ApiReply, Choice
from posttrain_plugins.serve.strategies import Strategies
from posttrain_plugins.text.answers import candidates, choose
from posttrain_plugins.types import Budget, Completion, Generate, Problem, Prompt, ResolvedStrategy, Result

__all__ = ["ActiveRequest", "Service"]


@dataclass(frozen=True, eq=False)
class ActiveRequest:
    """A request that passed every check. `cancel` lets it stop at its next completion."""

    asked: ApiRequest
    served: Served
    strategy: ResolvedStrategy | None
    stopped: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.stopped.set()


@dataclass
class _PlainSampling:
    """The strategy behind a bare model name: draws `n` completions, and keeps them as they are, by problem."""

    asked: ApiRequest
    drawn: dict[str, list[Completion]] = field(default_factory=dict)

    def __call__(self, problem: Problem) -> Generator[Generate, list[Completion], Result]:
        asked = self.asked
        self.drawn[problem.id] = yield Generate(problem.prompt, n=asked.n, params=problem.params, tools=asked.tools)
        return choose(candidates(self.drawn[problem.id]), 0)


@dataclass
class Service:
    """All that is served.

    Args:
        models: by name.
        strategies: what may stand behind `NAME@`.
        model_thread: owns the models.
        limits: what one request may ask for.
        reader: how strategies read answers.
    """

    models: Mapping[str, Served]
    strategies: Strategies
    model_thread: ModelThread
    limits: RequestLimits
    reader: str = "auto"

    def admit(self, asked: ApiRequest) -> ActiveRequest:
        """Find what the request names, and check that its prompts fit.

        Raises:
            ApiError: 404 for a model, 400 for a strategy, a prompt, or fields that do not go with it.
        """
        name, at, spec = asked.model.partition("@")
        served = self.models.get(name)
        if served is None:
            raise self.unknown(name)
        if at and asked.n > 1:
            message = f"n: {asked.n}, expected 1: a strategy gives one answer"
            raise ApiError(400, message, code="invalid_value", param="n")
        # what a forward pass over given tokens tells, beside what a draw tells
        needs_scores = asked.is_echoed or asked.likeliest > 0
        can_score = hasattr(served.backend, "model") and hasattr(served.backend, "tokenizer")
        for field_name, is_given, can in (
            ("tools", asked.tools, served.backend.capabilities.tools),
            ("logprobs", asked.params.logprobs, served.backend.capabilities.logprobs),
            ("echo" if asked.is_echoed else "logprobs", needs_scores, can_score),
            ("prompt", asked.prompt_ids, hasattr(served.backend, "tokenizer")),
        ):
            if is_given and (at or not can):
                who = f"model {served.name!r} does not support this"
                why = "not supported together with a strategy" if at else who
                raise ApiError(
                    400, f"{field_name}: {why}; leave it out", code="unsupported_parameter", param=field_name
                )
        try:
            strategy = self.strategies.find(spec) if at else None
        except (InputError, RecursionError, MemoryError) as error:  # the last two: brackets in brackets without end
            raise ApiError(400, f"model: {error}", code="invalid_strategy", param="model") from error
        except PosttrainError as error:
            raise ApiError(500, str(error), code="failed") from error
        if asked.prompt_ids:
            texts = self.model_thread.call(partial(_texts_of, served.backend, asked.prompt_ids))
            asked = replace(asked, prompts=texts)
        if hasattr(served.backend, "tokenizer"):
            for prompt in asked.prompts:  # there: a fast tokenizer that two threads use raises "Already borrowed"
                self.model_thread.call(partial(_check_prompt, served.backend, prompt, asked.tools))
        return ActiveRequest(asked, served, strategy)

    def answer(self, active: ActiveRequest) -> ApiReply:
        """Solve it; called in a thread of its own.

        Raises:
            ApiError: 400 or 500 for what went wrong, 503 where it was cancelled.
        """
        asked, strategy = active.asked, active.strategy
        plain = _PlainSampling(asked)
        others = {name: self.models[name].backend for name in (strategy.models if strategy else ())}
        backends = {
            # A model of this process waits in line; a model behind a server makes its own batches.
            role: QueuedBackend(self.model_thread, one, active.stopped.is_set) if isinstance(one, Backend) else one
            for role, one in {"policy": active.served.backend, **others}.items()
        }
        try:
            results = solve(
                strategy.strategy if strategy else plain,
                [Problem(prompt, asked.params, id=str(i)) for i, prompt in enumerate(asked.prompts)],
                backend=backends,
                scorers=strategy.scorers if strategy else {},
                budget=asked.budget,
                total_budget=Budget(seconds=asked.budget.seconds),  # this one cuts what is in flight, too
                seed=secrets.randbits(32) if asked.seed is None else asked.seed,
                should_stop=active.stopped.is_set,
                reader=self.reader,
            )
        except Interrupted as error:
            raise ApiError(503, f"the request was stopped: {error.message}", code="stopped") from error
        except InputError as error:
            raise ApiError(400, str(error), code="invalid_value", param="model") from error
        except PosttrainError as error:
            raise ApiError(500, str(error), code="failed") from error
        choices = [
            self._choices(active, asked.prompts[i], plain.drawn.get(str(i)), result) for i, result in enumerate(results)
        ]
        return ApiReply(asked, [choice for of_prompt in choices for choice in of_prompt], results)

    def listing(self) -> list[dict[str, Any]]:
        """Return the models as OpenAI lists them: every name, alone and with each strategy of the server's own."""
        hints = [plugin.name for plugin in registry.installed("strategy")]
        rows = []
        for served in self.models.values():
            row = {"object": "model", "created": served.created, "owned_by": "posttrain", "parent": served.base}
            rows.append({"id": served.name, **row, "strategies": hints})
            rows += [{"id": f"{served.name}@{name}", **row} for name in self.strategies.named]
        return rows

    def unknown(self, name: str) -> ApiError:
        """Return the refusal of a name that is not served."""
        known = [row["id"] for row in self.listing()]
        hint = registry.suggest(name, known) or f"known: {', '.join(known)}"
        return ApiError(404, f"no model {name!r} is served; {hint}", code="model_not_found", param="model")

    def _choices(
        self, active: ActiveRequest, prompt: Prompt, drawn: list[Completion] | None, result: Result
    ) -> list[Choice]:
        """Return what the client is given for one prompt; `drawn` is what was sampled without a strategy."""
        if result.error is not None:
            raise ApiError(500, f"the strategy failed: {result.error}", code="strategy_failed")
        failed = failures_of(result)
        if failed and (drawn is not None or not result.candidates):  # a strategy may do without some of its samples
            raise ApiError(500, f"the model failed: {failed[0]}", code="failed")
        if active.strategy is not None:
            reasons = [one.finish_reason for one in result.candidates if one.text == result.text]
            is_cut = bool(result.stopped_by) or reasons[:1] == ["length"]
            return [Choice(Completion(result.text, "length" if is_cut else "stop"))]
        if drawn is None:  # the budget came first: what there is by then
            texts = [(one.text, one.finish_reason) for one in result.candidates] or [("", "length")]
            return [Choice(Completion(text, "length" if why == "length" else "stop")) for text, why in texts]
        tokenizer: Any = getattr(active.served.backend, "tokenizer", None)
        asked = active.asked
        if asked.is_echoed or asked.likeliest:
            score = partial(_scored, active.served.backend, str(prompt), drawn, asked)
            scored: list[Choice] = self.model_thread.call(score)
            return scored
        choices = []
        for completion in drawn:
            tokens: list[str] = [""] * len(completion.logprobs or ())  # a server tells probabilities without tokens
            ids = completion.token_ids
            if tokens and tokenizer is not None and ids is not None:
                tokens = self.model_thread.call(lambda ids=ids: [tokenizer.decode([token]) for token in ids])
            choices.append(Choice(completion, tokens))
        return choices


def _texts_of(backend: Any, prompts: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """Return token ids as text, whose own tokens they must be: a completion is drawn from text.

    Raises:
        ApiError: 400 for others, such as a word in two halves, or ids that the tokenizer does not know.
    """
    found = []
    for ids in prompts:
        try:
            text = str(
                backend.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
            )
            own = render(backend.tokenizer, text)
        except Exception as error:  # the boundary of tokenizers
            message = f"prompt: the model's tokenizer refuses the token ids: {type(error).__name__}: {error}"
            raise ApiError(400, message, code="invalid_value", param="prompt") from error
        if own != list(ids):
            message = f"prompt: {shown(list(ids))} are not the tokens of their own text, {shown(own)}; send the text"
            raise ApiError(400, message, code="invalid_value", param="prompt")
        found.append(text)
    return tuple(found)


def _scored(backend: Any, prompt: str, drawn: Sequence[Completion], asked: ApiRequest) -> list[Choice]:
    """Return choices with what the model says of their tokens, echoed prompt and all."""
    before = render(backend.tokenizer, prompt)
    with getattr(backend, "switched", nullcontext)():
        choices = []
        for completion in drawn:
            ids = [*before, *(completion.token_ids or ())]
            start = 0 if asked.is_echoed else len(before)
            scores = tokens = None
            if asked.params.logprobs:
                scores = token_scores(backend.model, backend.tokenizer, ids, asked.likeliest)[start:]
                tokens = [backend.tokenizer.decode([token]) for token in ids[start:]]
            choices.append(Choice(completion, tokens or (), scores, prompt if asked.is_echoed else ""))
    return choices


def _check_prompt(backend: Any, prompt: Prompt, tools: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a prompt that the template does not take, or that leaves no room, before it is drawn with others."""
    field = "prompt" if isinstance(prompt, str) else "messages"
    try:
        count = len(render(backend.tokenizer, prompt, tools))
    except Exception as error:  # the boundary of tokenizers and templates
        message = f"{field}: the model's tokenizer or chat template refuses them: {type(error).__name__}: {error}"
        raise ApiError(400, message, code="invalid_value", param=field) from error
    context = getattr(backend, "max_model_len", None)  # vLLM's
    if context is None:
        context = getattr(backend.model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and count >= context:
        message = f"{field}: {count} tokens, expected fewer than the model's context of {context}"
        raise ApiError(400, message, code="context_length_exceeded", param=field)
