"""What strategies and the engine say to each other: requests, responses, budgets and results."""

from __future__ import annotations

import random
from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar

__all__ = [
    "Budget",
    "CallTool",
    "Candidate",
    "Completion",
    "Generate",
    "Messages",
    "Problem",
    "Prompt",
    "Request",
    "RequestGenerator",
    "Response",
    "Result",
    "SamplingParams",
    "Score",
    "ScoreSteps",
    "Usage",
]

Messages: TypeAlias = Sequence[Mapping[str, Any]]
"""Chat messages with `role` and `content`; a last message of role `assistant` is a prefill to go on from."""

Prompt: TypeAlias = str | Messages


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one completion is drawn.

    Args:
        temperature: 0 is greedy.
        top_p: nucleus mass kept, in (0, 1].
        max_tokens: completion tokens at most.
        stop: strings that end a completion; the text is cut before the first of them.
        seed: fixes the noise; None lets the engine derive it from the request's key.
        logprobs: ask for the log-probability of each completion token.
        top_logprobs: ask for `Completion.confidences` over so many of the likeliest tokens; 0 for none.
        values: ask for `Completion.value`, of a backend that has a value head.
        top_k: how many of the likeliest tokens are drawn from; 0 for all.
    """

    # frozen, as all requests are: their fields become the key under which an answer is logged and found again
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()  # a tuple, since a frozen object is only hashable if its fields are
    seed: int | None = None  # not 0: two equal requests of two problems would draw the same completions
    logprobs: bool = False
    top_logprobs: int = 0
    values: bool = False
    top_k: int = 0


@dataclass(frozen=True, slots=True)
class Generate:
    """Asks for `n` completions of a prompt; answered by a list of `n` `Completion`.

    Args:
        prompt: text or messages; a last message of role `assistant` is gone on from, and the completion holds only what
            is new.
        n: the number of completions.
        params: how they are drawn.
        model: the role that answers: `policy`, or the name of another model.
        tools: JSON schemas of the functions that the model may call natively (`Completion.tool_calls`).
        purpose: `answer` where the completions answer the problem, or `step` where they are pieces of such an answer,
            so that the engine may fall back on them when a budget ends; any other word (`feedback`, `value`, `vote`)
            names them in the trace. No part of the key.
    """

    prompt: Prompt
    n: int = 1  # in one request, so that a backend reads the prompt once for all of them
    params: SamplingParams = SamplingParams()
    model: str = "policy"
    tools: tuple[Mapping[str, Any], ...] = ()
    purpose: str = "answer"


@dataclass(frozen=True, slots=True)
class Score:
    """Asks what completions of a prompt are worth; answered by `list[float | None]`, one per completion.

    Args:
        prompt: what the completions answer.
        completions: their texts.
        scorer: the name of the reward that judges them.
    """

    # no reference answer and no other column: the engine adds them on the way to the reward, past the strategy
    prompt: Prompt
    completions: tuple[str, ...]
    scorer: str = "reward"


@dataclass(frozen=True, slots=True)
class ScoreSteps:
    """Asks what each step of each completion is worth; answered by `list[list[float]]`.

    Args:
        prompt: what the completions answer.
        steps: each completion, cut into its steps; joined they are the completion.
        scorer: the name of a reward that has `step_scores`.
    """

    # cut by the strategy and not by the reward: what the strategy goes on from must be what was judged
    prompt: Prompt
    steps: tuple[tuple[str, ...], ...]
    scorer: str = "prm"


@dataclass(frozen=True, slots=True)
class CallTool:
    """Asks for a tool's answer; answered by `str` (an error comes back as text).

    Args:
        name: which tool, as in `Problem.tools`.
        arguments: keyword arguments of the call.
    """

    name: str
    arguments: Mapping[str, Any]


Request: TypeAlias = Generate | Score | ScoreSteps | CallTool


@dataclass(slots=True)
class Usage:
    """Counts what was spent on one model.

    A prompt that was read once for several completions counts on the first of them; so sums are what a server counts.

    Args:
        prompt_tokens: tokens read.
        completion_tokens: tokens written.
        cached_tokens: tokens of answers that cost nothing: the request log or another request of the round had them.
        calls: calls to the backend; of a completion's own usage taken as it is, where a backend sets it.
    """

    # mutable, unlike requests: the engine adds to one of these for each problem and role
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    calls: int = 0

    @property
    def total_tokens(self) -> int:
        """What was paid for now; a budget counts these."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.calls + other.calls,
        )


@dataclass(slots=True)
class Completion:
    """One completion, without the prefill that it goes on from.

    Args:
        text: what was drawn, cut before the stop string.
        finish_reason: `stop` at EOS or a stop string, `length`, `tool_calls`, or `error` (then `error` says why).
        usage: what it cost.
        token_ids: its tokens, where log-probabilities were asked for.
        logprobs: the model's own log-probability of each token, where asked for.
        error: what went wrong with this one sample.
        stop_reason: the stop string that ended it; None at EOS, and where a server does not tell.
        confidences: per token, minus the mean log-probability of the likeliest `top_logprobs` tokens (DeepConf,
            https://huggingface.co/papers/2508.15260, equation 2): larger is surer.
        value: what the value head says of the state after the last token, where `values` were asked for.
        tool_calls: `{"name": ..., "arguments": {...}}` each, where the model called tools natively; arguments that are
            no JSON object stand as the model wrote them.
    """

    # A failed sample is a value and no exception: the other n-1 of its request are good, and the search goes on.
    text: str
    finish_reason: Literal["stop", "length", "tool_calls", "error"] = "stop"
    usage: Usage = field(default_factory=Usage)
    # None where it was not asked for, or where a server cannot tell: an empty list would be a completion of no tokens
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    error: str | None = None
    stop_reason: str | None = None
    confidences: list[float] | None = None
    value: float | None = None
    tool_calls: list[dict[str, Any]] | None = None


Response: TypeAlias = list[Completion] | list[float | None] | list[list[float]] | str

# `Any` is sent: which type answers follows from the request that was yielded, which no type of a generator can say
T = TypeVar("T")
RequestGenerator: TypeAlias = Generator[Request | list[Request], Any, T]
"""A strategy at work, or a part of one for `yield from`: yields requests, is sent the responses, returns a `T`."""


@dataclass(slots=True)
class Candidate:
    """A finished completion that a strategy considered.

    Args:
        text: the completion.
        answer: what was extracted from it; None where it has none.
        score: what a scorer gave it; None where none judged it.
        step_scores: what a process reward gave each of its steps.
        finish_reason: as of `Completion`.
    """

    text: str
    answer: Hashable | None = None  # votes are counted in a dict
    score: float | None = None
    step_scores: list[float] = field(default_factory=list)
    # kept, since a completion that was cut at `max_tokens` has no answer for another reason than one that ended
    finish_reason: str = "stop"


@dataclass(slots=True)
class Result:
    """A strategy's answer to one problem.

    Args:
        answer: the extracted answer, or None.
        text: the completion that the answer stands in; `""` where every sample failed.
        candidates: what it considered.
        usage: what was spent by role: `policy`, a scorer's name; filled by the engine.
        stopped_by: the limit of the budget that ended it, or None; filled by the engine.
        trace: every request with its responses in order, as JSON values; filled by the engine.
        error: what the strategy raised, or None; filled by the engine.
    """

    # A strategy sets the first three. It cannot set the others right: it knows neither cache nor budget.
    answer: Any
    text: str
    candidates: list[Candidate] = field(default_factory=list)
    usage: dict[str, Usage] = field(default_factory=dict)
    stopped_by: str | None = None
    trace: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits for one problem or for all of them; None is no limit.

    Args:
        tokens: tokens read and written by all models together; a wave in flight may end above it.
        completions: completions drawn by `Generate` requests.
        calls: requests of any kind.
        seconds: wall time from the start.
    """

    # several limits may be set: the first that is reached ends the problem, with the best answer so far
    tokens: int | None = None
    completions: int | None = None
    calls: int | None = None
    seconds: float | None = None  # the only limit under which two runs may differ


class _Seeded:
    """Makes its generator when it is asked for; the noise for that has a place which is none of the fields."""

    __slots__ = ("_noise",)
    _noise: str
    rng: random.Random

    def seeded(self, noise: str) -> Self:
        """Seed its generator by a text once it is asked for, as few strategies do: it takes a sixth of a request."""
        self._noise = noise
        del self.rng
        return self

    if not TYPE_CHECKING:  # to which any name would be one of a problem's

        def __getattr__(self, name: str) -> Any:
            if name != "rng":
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            self.rng = random.Random(self._noise)
            return self.rng


@dataclass(slots=True)
class Problem(_Seeded):
    """What a strategy sees: never the reference answer or any other column.

    Args:
        prompt: plain text or messages.
        params: the sampling parameters to start from; strategies replace single fields.
        id: stable name within a run; part of every request's key. Empty, it is the place among the problems that are
            solved together.
        rng: a generator of its own, seeded from run seed and id, for strategies that need chance.
        tools: JSON schemas of the functions that `CallTool` reaches; filled by the engine.
    """

    # no columns: a strategy that could see the reference answer would be measured by looking it up
    prompt: Prompt
    params: SamplingParams = SamplingParams()
    id: str = ""
    # its own, so that a problem's noise does not hang on which other problems are solved beside it
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    tools: tuple[Mapping[str, Any], ...] = ()
