"""The nouns: what plugins are, what strategies and engine say to each other, and what a stage is given and returns.

Plugins need no base class and no decorator. The protocols below are for readers and type checkers:

| kind     | a plugin is                                                          |
|----------|----------------------------------------------------------------------|
| reward   | TRL's reward call: `f(prompts, completions, **columns)`              |
| adapter  | `f(**params)` that gives a `peft.PeftConfig`, or None for full       |
| strategy | a dataclass whose `__call__(problem)` is a generator of requests     |
| dataset  | `f(**params)` that gives a `datasets.Dataset` or `DatasetDict`       |
| stage    | a dataclass whose annotated fields are its references and parameters |
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeAlias, runtime_checkable

__all__ = [
    "CHECKPOINT_MARKER",
    "EXPORT_MARKER",
    "KINDS",
    "Adapter",
    "AdapterMode",
    "AdapterRef",
    "Budget",
    "CallTool",
    "Candidate",
    "Completion",
    "Concern",
    "ConfigOf",
    "DataRef",
    "Dataset",
    "Generate",
    "Kind",
    "Messages",
    "ModelArtifact",
    "ModelRef",
    "ObjectRef",
    "Outlook",
    "Problem",
    "Prompt",
    "Ref",
    "Reporter",
    "Request",
    "ResolvedAdapter",
    "ResolvedReward",
    "ResolvedStrategy",
    "Response",
    "Result",
    "Reward",
    "RewardRef",
    "SamplingParams",
    "Score",
    "ScoreSteps",
    "Stage",
    "StageContext",
    "StageResult",
    "Strategy",
    "StrategyRef",
    "Usage",
]

CHECKPOINT_MARKER = "complete"
"""The file that a checkpoint gets after everything else; the store goes on from no checkpoint without it."""

EXPORT_MARKER = "posttrain_export.json"
"""The file in a folder outside the store that says which artifact it is."""

Kind: TypeAlias = Literal["reward", "adapter", "strategy", "dataset", "stage"]
KINDS: tuple[Kind, ...] = ("reward", "adapter", "strategy", "dataset", "stage")

Messages: TypeAlias = Sequence[Mapping[str, Any]]
"""Chat messages with `role` and `content`; a last message of role `assistant` is a prefill to go on from."""

Prompt: TypeAlias = str | Messages

AdapterMode: TypeAlias = Literal["continue", "stack", "merge"]
"""How a training stage goes on from a model that is an adapter (`stack.choose_mode`)."""


# --- What a stage refers to ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ref:
    """Marks a stage's or strategy's field as a reference, an edge of the plan."""

    kind: Literal["model", "dataset", "reward", "adapter", "strategy", "object"]


@dataclass(frozen=True)
class ConfigOf:
    """Marks a mapping that goes untouched to a config class, such as `ConfigOf("trl:SFTConfig")`."""

    target: str


ModelRef: TypeAlias = Annotated[str, Ref("model")]
DataRef: TypeAlias = Annotated[str, Ref("dataset")]
RewardRef: TypeAlias = Annotated[str, Ref("reward")]
AdapterRef: TypeAlias = Annotated[str, Ref("adapter")]
StrategyRef: TypeAlias = Annotated[str, Ref("strategy")]
ObjectRef: TypeAlias = Annotated[str, Ref("object")]
"""`package.module:attr`, `./file.py:attr`, or a file or folder beside the recipe."""


# --- Test time: requests, responses, results -------------------------------------------------------------------------


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
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    values: bool = False


@dataclass(frozen=True, slots=True)
class Generate:
    """Asks for `n` completions of a prompt; answered by a list of `n` `Completion`.

    Args:
        prompt: text or messages; a last message of role `assistant` is gone on from, and the completion holds only what
            is new.
        n: how many.
        params: how they are drawn.
        model: the role that answers: `policy`, or the name of another model.
        tools: JSON schemas of the functions that the model may call natively (`Completion.tool_calls`).
        purpose: `answer` where the completions answer the problem, or `step` where they are pieces of such an answer,
            so that the engine may fall back on them when a budget ends; any other word (`feedback`, `value`, `vote`)
            names them in the trace. No part of the key.
    """

    prompt: Prompt
    n: int = 1
    params: SamplingParams = SamplingParams()
    model: str = "policy"
    tools: tuple[Mapping[str, Any], ...] = ()
    purpose: str = "answer"


@dataclass(frozen=True, slots=True)
class Score:
    """Asks what completions of a prompt are worth; answered by `list[float | None]`, one per completion."""

    prompt: Prompt
    completions: tuple[str, ...]
    scorer: str = "reward"


@dataclass(frozen=True, slots=True)
class ScoreSteps:
    """Asks what each step of each completion is worth; answered by `list[list[float]]`."""

    prompt: Prompt
    steps: tuple[tuple[str, ...], ...]
    scorer: str = "prm"


@dataclass(frozen=True, slots=True)
class CallTool:
    """Asks for a tool's answer; answered by `str` (an error comes back as text)."""

    name: str
    arguments: Mapping[str, Any]


Request: TypeAlias = Generate | Score | ScoreSteps | CallTool


@dataclass(slots=True)
class Usage:
    """What was spent: tokens read and written, requests answered from the log, calls to a backend, by model role.

    A prompt that was read once for several completions counts on the first of them; so sums are what a server counts.
    Where a backend sets `calls` of a completion's own usage, that is taken as it is.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    calls: int = 0

    @property
    def total_tokens(self) -> int:
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
        token_ids: where log-probabilities were asked for.
        logprobs: of each token, the model's own.
        error: what went wrong with this one sample.
        stop_reason: the stop string that ended it; None at EOS, and where a server does not tell.
        confidences: per token, minus the mean log-probability of the likeliest `top_logprobs` tokens (DeepConf,
            https://huggingface.co/papers/2508.15260, equation 2): larger is surer.
        value: of the state after the last token, where `values` were asked for.
        tool_calls: `{"name": ..., "arguments": {...}}` each, where the model called tools natively.
    """

    text: str
    finish_reason: Literal["stop", "length", "tool_calls", "error"] = "stop"
    usage: Usage = field(default_factory=Usage)
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    error: str | None = None
    stop_reason: str | None = None
    confidences: list[float] | None = None
    value: float | None = None
    tool_calls: list[dict[str, Any]] | None = None


Response: TypeAlias = list[Completion] | list[float | None] | list[list[float]] | str


@dataclass(slots=True)
class Candidate:
    """A finished completion that a strategy considered, with its extracted answer and its score, if it has one."""

    text: str
    answer: Hashable | None = None
    score: float | None = None
    step_scores: list[float] = field(default_factory=list)
    finish_reason: str = "stop"


@dataclass(slots=True)
class Result:
    """A strategy's answer to one problem.

    `text` is the completion it stands on (`""` where every sample failed); `stopped_by` names the budget that ended it,
    or is None; `usage` (per role: `policy`, a scorer's name) and `trace` (every request with its responses, in order,
    as JSON values) are filled by the engine.
    """

    answer: Any
    text: str
    candidates: list[Candidate] = field(default_factory=list)
    usage: dict[str, Usage] = field(default_factory=dict)
    stopped_by: str | None = None
    trace: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits for one problem or for all of them; None is no limit. A wave in flight may end above `tokens`."""

    tokens: int | None = None
    completions: int | None = None
    calls: int | None = None
    seconds: float | None = None


@dataclass(slots=True)
class Problem:
    """What a strategy sees: never the reference answer or any other column.

    Args:
        prompt: plain text or messages.
        params: the sampling parameters to start from; strategies replace single fields.
        id: stable name within a run; part of every request's key.
        rng: a generator of its own, seeded from run seed and id, for strategies that need chance.
        tools: JSON schemas of the functions that `CallTool` reaches; filled by the engine.
    """

    prompt: Prompt
    params: SamplingParams = SamplingParams()
    id: str = "0"
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    tools: tuple[Mapping[str, Any], ...] = ()


# --- Plugins -----------------------------------------------------------------------------------------------------


@runtime_checkable
class Reward(Protocol):
    """How good is it? One float per completion, None where it cannot judge; TRL's reward call, sync or async."""

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]: ...


@runtime_checkable
class Adapter(Protocol):
    """What is trainable? A `peft.PeftConfig`, or None for full fine-tuning.

    What is returned may have a method `prepare(trainer)`: it is called once, when the trainer stands and before it
    trains, and what it returns, a mapping of plain values or None, goes into the record of the model. An object that is
    no PEFT config and has `prepare` trains all parameters but those that `prepare` freezes. A plugin of that kind says
    `is_full = True`, so that a recipe's check knows; the others say `params_of`, whose fields their parameters are.
    """

    def __call__(self, **params: Any) -> Any: ...


@runtime_checkable
class Strategy(Protocol):
    """How to spend compute at inference? A generator: yields requests, is sent the responses, returns a `Result`."""

    def __call__(self, problem: Problem) -> Generator[Request | list[Request], Any, Result]: ...


@runtime_checkable
class Dataset(Protocol):
    """What to learn from? A `datasets.Dataset` or `DatasetDict` in one of TRL's formats."""

    def __call__(self, **params: Any) -> Any: ...


@runtime_checkable
class Stage(Protocol):
    """How to update, or to measure? Called once with its context.

    A stage's class may have a method `concerns(outlook: Outlook) -> Iterable[Concern]`: what is wrong, or unwise, with
    its settings. A recipe's check asks it of the stage whose reference fields hold names, so it must import nothing
    heavy; mistakes are told with all others of the recipe, warnings by `plan` and `run`. A stage in a file of the
    user's, which is never imported by the check, is not asked.
    """

    def __call__(self, context: StageContext) -> StageResult: ...


@dataclass(frozen=True)
class Concern:
    """What a stage says of its settings before anything is loaded.

    Args:
        message: `<what>: <found>, expected <what>`.
        hint: one action.
        field: the stage's field that it is about, such as `adapter` or `args.kl_coef`.
        is_warning: it may work none the less.
    """

    message: str
    hint: str | None = None
    field: str = ""
    is_warning: bool = False

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


@dataclass(frozen=True)
class Outlook:
    """What is known of a stage before anything is loaded.

    Args:
        args: the fields of its config class, as the recipe or else the class sets them.
        trains_all: does it train all parameters, and no adapter?
        parameters: how many the model has that it starts from; None where it cannot be told.
        loading: TRL `ModelConfig` fields for loading it.
        judges_steps: the stage's rewards by name, and whether each has `step_scores`.
        memory_bytes: asks for the memory of the first GPU, else of the machine.
    """

    args: Any
    trains_all: bool
    parameters: int | None
    loading: Mapping[str, Any]
    judges_steps: Mapping[str, bool]
    memory_bytes: Callable[[], int]


# --- What a stage is given and returns -------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelArtifact:
    """A model that a stage starts from or measures.

    Args:
        name: its name in the recipe (`base`, or the stage that made it).
        path: a folder, or a Hub id; a folder with `adapter_config.json` is a PEFT adapter over its base.
        loading: TRL `ModelConfig` fields for loading it (dtype, load_in_4bit, model_revision ...).
        handoff: what its maker recorded (tokenizer, template, EOS and pad ids, adapters); empty for a foreign model.
        ancestors: the names of the models it was made from, the nearest first.
        seen: files of prompt fingerprints (one 16-digit hex a line) that it and its ancestors were trained on.
        chat_template: one that the recipe gives it, in place of what lies beside it.
    """

    name: str
    path: str
    loading: Mapping[str, Any] = field(default_factory=dict)
    handoff: Mapping[str, Any] = field(default_factory=dict)
    ancestors: tuple[str, ...] = ()
    seen: tuple[Path, ...] = ()
    chat_template: str | None = None

    @property
    def is_adapter(self) -> bool:
        return (Path(self.path) / "adapter_config.json").is_file()


@dataclass(frozen=True)
class ResolvedReward:
    """A reward by its recipe name. `func` is the author's own callable; a reward-model stage has `model_path` too."""

    name: str
    func: Callable[..., Any]
    weight: float = 1.0
    model_path: str | None = None

    @property
    def is_oracle(self) -> bool:
        return bool(getattr(self.func, "oracle", False))


@dataclass(frozen=True)
class ResolvedAdapter:
    """An adapter by its recipe name.

    Args:
        name: as in the recipe.
        config: a `peft.PeftConfig`, or None for full fine-tuning.
        identity: the same for the same plugin with the same parameters; empty where nobody knows.
        prepare: sets up the trainer, see `Adapter`.
        plugin: what made it, `package.module:attr` or `file.py:attr`.
    """

    name: str
    config: Any
    identity: str = ""
    prepare: Callable[[Any], Mapping[str, Any] | None] | None = None
    plugin: str = ""


@dataclass(frozen=True)
class ResolvedStrategy:
    """A strategy with a printable label, the rewards that it names as scorers, and the models beside the policy.

    Args:
        label: as the recipe writes it.
        strategy: the object.
        scorers: name -> reward, for `Score` and `ScoreSteps`.
        models: role -> model, for `Generate.model`.
    """

    label: str
    strategy: Strategy
    scorers: Mapping[str, ResolvedReward] = field(default_factory=dict)
    models: Mapping[str, ModelArtifact] = field(default_factory=dict)


class Reporter(Protocol):
    """Where a running stage tells how far it is."""

    def progress(self, done: int, total: int | None, unit: str, figures: Mapping[str, float]) -> None:
        """Called often: `done` of `total` `unit`s, and the newest figures (loss, reward, tokens_per_s)."""

    def note(self, message: str) -> None:
        """One line that the user should read."""


@dataclass(frozen=True)
class StageContext:
    """All that a stage may use.

    Args:
        stage: the stage's id in the recipe.
        folder: where to write; it becomes the artifact when the stage returns, and vanishes if it fails for good.
        seed: the recipe's seed, or this stage's own.
        inputs: field name -> resolved input. A model is a `ModelArtifact`, a data set a `datasets.Dataset`, a reward a
            `ResolvedReward`, an adapter a `ResolvedAdapter`, a strategy a `ResolvedStrategy`, an object itself or
            the `Path` of a file; a list of references is a list of these.
        resume_from: newest complete checkpoint of this very stage, or None.
        reporter: progress goes here.
        should_stop: becomes true when the user wants to stop; a stage then saves and raises `Interrupted`.
        args: the stage's `args` as the recipe gives them.
        option_path: how `-o` names the stage, for hints.
        adapter_mode: how it goes on from a model that is an adapter, `continue`, `stack` or `merge`; None leaves it to
            `trainers.start`.
        preview: how many rows to show of what the trainer learns from; 0 trains.
    """

    stage: str
    folder: Path
    seed: int
    inputs: Mapping[str, Any]
    resume_from: Path | None
    reporter: Reporter
    should_stop: Callable[[], bool]
    args: Mapping[str, Any] = field(default_factory=dict)
    option_path: str = ""
    adapter_mode: AdapterMode | None = None
    preview: int = 0


@dataclass(slots=True)
class StageResult:
    """What a stage made.

    Args:
        metrics: figures for the manifest and the report.
        model_path: the model's folder, absolute or below `context.folder`.
        data_path: the data set, a JSONL file below `context.folder`.
        handoff: what the next stage must find unchanged (tokenizer, template, EOS, adapter stack).
        details: further JSON values for the manifest.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    model_path: Path | None = None
    data_path: Path | None = None
    handoff: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
