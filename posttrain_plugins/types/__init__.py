"""The nouns: what plugins are, what strategies and engine say to each other, and what a stage is given and returns.

Plugins need no base class and no decorator. The protocols below are for readers and type checkers:

| kind     | a plugin is                                                          |
|----------|----------------------------------------------------------------------|
| reward   | TRL's reward call: `f(prompts, completions, **columns)`              |
| adapter  | `f(**params)` that gives a `peft.PeftConfig`, or None for full       |
| strategy | a dataclass whose `__call__(problem)` is a generator of requests     |
| dataset  | `f(**params)` that gives a `datasets.Dataset` or `DatasetDict`       |
| stage    | a dataclass whose annotated fields are its references and parameters |
| tool     | a function with annotated arguments, which a model may call          |

Import from here: which file a name stands in may change.

| module          | holds                                                                         |
|-----------------|-------------------------------------------------------------------------------|
| `plugins.py`    | the six kinds as protocols                                                    |
| `requests.py`   | what strategies and the engine say to each other: requests, responses, budgets |
| `references.py` | annotations that make a stage's field a reference                             |
| `stage.py`      | what a stage is given, what it returns, and what a recipe's check asks it     |
"""

from typing import TYPE_CHECKING, Any

from posttrain_plugins.types.plugins import KINDS, Kind

if TYPE_CHECKING:
    from posttrain_plugins.types.plugins import Adapter, Dataset, Reward, Strategy, Tool
    from posttrain_plugins.types.references import (
        AdapterMode,
        AdapterRef,
        ConfigOf,
        CriticRef,
        DataRef,
        ModelRef,
        ObjectRef,
        Ref,
        RewardRef,
        StrategyRef,
        ToolRef,
        server_of,
    )
    from posttrain_plugins.types.requests import (
        Budget,
        CallTool,
        Candidate,
        Completion,
        Generate,
        Messages,
        Problem,
        Prompt,
        Request,
        RequestGenerator,
        Response,
        Result,
        SamplingParams,
        Score,
        ScoreSteps,
        Usage,
    )
    from posttrain_plugins.types.stage import (
        CHECKPOINT_MARKER,
        EXPORT_MARKER,
        CriticBody,
        CriticKind,
        Decisions,
        Issue,
        ModelArtifact,
        Reporter,
        ResolvedAdapter,
        ResolvedCritic,
        ResolvedReward,
        ResolvedStrategy,
        Stage,
        StageContext,
        StageFacts,
        StageResult,
        ValueSource,
    )

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
    "ConfigOf",
    "CriticBody",
    "CriticKind",
    "CriticRef",
    "DataRef",
    "Dataset",
    "Decisions",
    "Generate",
    "Issue",
    "Kind",
    "Messages",
    "ModelArtifact",
    "ModelRef",
    "ObjectRef",
    "Problem",
    "Prompt",
    "Ref",
    "Reporter",
    "Request",
    "RequestGenerator",
    "ResolvedAdapter",
    "ResolvedCritic",
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
    "StageFacts",
    "StageResult",
    "Strategy",
    "StrategyRef",
    "Tool",
    "ToolRef",
    "Usage",
    "ValueSource",
    "server_of",
]


def __getattr__(name: str) -> Any:
    # Each is imported when it is asked for: `plugins list` and `--help` need the six kinds alone, and the dataclasses
    # of requests and stages take longer to make than all that those commands do.
    if name in __all__:
        from importlib import import_module

        for home in ("plugins", "references", "requests", "stage"):
            module = import_module(f"{__name__}.{home}")
            if name in module.__all__:
                globals()[name] = value = getattr(module, name)
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
