"""The one list of what a plugin may declare about itself, by attributes of its class, function or object.

Nothing is told from a plugin's name. What is absent has the default of this list. The conformance kit (`kit`), the rest
of this package (`core`), and other plugins (`plugin`) read these attributes and no others; `docs/plugins.md` shows the
list, and a test compares it with the source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from posttrain_plugins.types import KINDS, Kind

__all__ = ["DECLARATIONS", "Declaration", "Reader", "declared"]

Reader = Literal["kit", "core", "plugin"]


@dataclass(frozen=True)
class Declaration:
    """One attribute that a plugin may have.

    Args:
        name: the attribute.
        kinds: the kinds of plugin that may have it.
        readers: the parts that read it.
        type: the attribute's type as an annotation; `method` with its arguments for a method.
        default: the value of a plugin that lacks it.
        meaning: one sentence.
    """

    name: str
    kinds: tuple[Kind, ...]
    readers: tuple[Reader, ...]
    type: str
    default: Any
    meaning: str


_LISTED = (
    # --- every kind
    Declaration("example_params", KINDS, ("kit",), "dict[str, Any]", {},
                "Parameters that make a small plugin that works, where the defaults do not."),
    Declaration("expected_failures", KINDS, ("kit",), "dict[str, str]", {},
                "Checks that are known to fail, each with its reason; one that passes all the same is a failure."),
    # --- rewards
    Declaration("requires_columns", ("reward", "stage"), ("kit", "core"), "tuple[str, ...] | dict[str, tuple]", None,
                "The data-set columns that it needs; a stage maps each of its data-set fields to the groups of columns "
                "that will do. By default a reward needs the arguments of its call that have no default."),
    Declaration("bounds", ("reward",), ("kit", "core"), "tuple[float, float]", None,
                "The lowest and the highest score that it can give."),
    Declaration("examples", ("reward", "tool"), ("kit", "core"), "tuple[dict[str, Any], ...]", (),
                "Rows of `prompt`, `completion`, `score` and further columns, at least a good one and a bad one; of a "
                "tool of `arguments` and `answer`."),
    Declaration("oracle", ("reward",), ("kit", "core"), "bool", False,
                "True if it reads the reference answer; figures that it chose for are then marked."),
    Declaration("formats", ("reward",), ("kit", "core"), "tuple[str, ...]", ("plain", "conversational"),
                "The formats of completions that it reads: `plain` text, `conversational` messages."),
    Declaration("is_deterministic", ("reward", "strategy", "tool"), ("kit",), "bool", True,
                "False if equal calls may give different values."),
    Declaration("is_relative", ("reward",), ("kit",), "bool", False,
                "True if a score depends on the other completions of the batch."),
    Declaration("tolerance", ("reward",), ("kit",), "float", 0.0,
                "The largest difference of equal scores, for models whose last bits depend on the batch."),
    Declaration("longest_text_chars", ("reward",), ("kit",), "int", math.inf,
                "The length above which texts need not be tried, for models that read a text whole."),
    Declaration("dataset", ("reward",), ("core",), "str", None,
                "The data set that `posttrain rewards test` tries it on by default."),
    Declaration("classifier", ("reward",), ("core",), "Classifier", None,
                "The classifier that judges for it: PPO puts the policy's own base in its place where it is an adapter "
                "of that."),
    Declaration("holds_model", ("reward",), ("core",), "bool", False,
                "True if it holds a model, which must stay in this process: `isolate: process` is then refused."),
    Declaration("step_scores", ("reward",), ("kit", "core"), "method(...) -> list[list[float]]", None,
                "Takes the arguments of the reward's own call, and scores each step of each completion."),
    Declaration("count_tokens", ("reward",), ("core",), "method(prompts, completions) -> int", None,
                "Counts the tokens that scoring these completions reads, for the budget and the report."),
    Declaration("spent", ("reward",), ("core",), "Usage", None,
                "The tokens and calls that it has used so far, where it counts them itself."),
    Declaration("reader", ("reward",), ("core",), "str", None,
                "How it reads a completion's answer, `auto` or another of `posttrain_plugins.answers`: `rewards test` "
                "then tells an answer that was not read from a wrong one."),
    Declaration("failures", ("reward",), ("core",), "list[str]", None,
                "Why it could not judge completions because what it asks had failed, one reason for each so far; "
                "these are missing, counted, and asked again by the next run."),
    Declaration("close", ("reward",), ("core",), "method()", None,
                "Frees what it holds; the next call opens it again."),
    # --- adapters
    Declaration("params_of", ("adapter",), ("core",), "str", "",
                "The config class whose fields are its parameters besides its own, such as `peft:LoraConfig`; "
                "`peft:{peft_type}` where the parameter `peft_type` names the class."),
    Declaration("is_full", ("adapter",), ("kit", "core"), "bool", False,
                "True if it trains the model's own weights."),
    Declaration("prepare", ("adapter",), ("kit", "core"), "method(trainer) -> dict[str, Any] | None", None,
                "Sets up the trainer before it trains; what it returns is recorded with the model."),
    Declaration("can_merge", ("adapter",), ("kit", "core"), "bool", True,
                "False if its weights cannot be merged into the base: nothing then merges it."),
    Declaration("keeps_base", ("adapter",), ("kit",), "bool", True,
                "False if attaching it changes the base weights."),
    # --- strategies
    Declaration("is_stateful", ("strategy",), ("kit",), "bool", False,
                "True if it remembers one problem for the next."),
    Declaration("tools", ("strategy",), ("kit", "core", "plugin"), "list[Callable] | dict[str, Callable]", None,
                "The functions that its `CallTool` requests may name."),
    Declaration("markers", ("strategy",), ("core",), "tuple[str, ...]", (),
                "What it waits for in completions; a tag that a model's template and vocabulary lack is told."),
    Declaration("is_one_conversation", ("strategy",), ("core",), "bool", False,
                "True if each of its requests goes on from the one before, so that what its tools answered can be "
                "masked in training."),
    Declaration("begin_run", ("strategy",), ("plugin",), "method()", None,
                "Forgets what it remembers of earlier problems."),
    # --- data sets
    Declaration("columns", ("dataset", "stage"), ("kit", "core"), "tuple[str, ...]", None,
                "The columns of the data that it makes."),
    Declaration("splits", ("dataset",), ("kit",), "tuple[str, ...]", None,
                "The values of its parameter `split` whose rows have no prompt in common."),
    # --- stages
    Declaration("produces", ("stage",), ("kit", "core"), "str", None,
                "What it makes: `model`, `dataset`, `reward` or `figures`."),
    Declaration("outputs", ("stage",), ("kit", "core"), "tuple[str, ...]", (),
                "Its fields that name a folder of the user's to write to."),
    Declaration("reads", ("stage",), ("core",), "method() -> tuple[Path, ...]", None,
                "The files outside of the recipe that its parameters stand for: their content is in its key. A stage "
                "in a file of the user's is not asked."),
    Declaration("not_in_key", ("stage",), ("core",), "tuple[str, ...]", (),
                "Its fields that change nothing of what it makes: they are not in its key."),
    Declaration("decisions", ("stage",), ("core",), "method(folder, inputs) -> Decisions | None", None,
                "Says which decisions of people it uses, a part of its key that is known once its questions are. A "
                "stage in a file of the user's is not asked."),
    Declaration("refuses", ("stage",), ("core",), "dict[str, str]", {},
                "What its trainer cannot take of an adapter type: an ability by name (`is_prompt`) and the reason."),
    Declaration("reference", ("stage",), ("core",), "str", "",
                "`model` if its reference model is always the model that it starts from, or the option of "
                "`args` without which it has no reference model (`beta`)."),
    Declaration("shares_base", ("stage",), ("core",), "bool", False,
                "True if a reward model that is an adapter on the policy's base is loaded beside the policy's, and not "
                "as a model of its own."),
    Declaration("shares_tokenizer", ("stage",), ("core",), "tuple[str, ...]", (),
                "Its fields whose models have to read the same token ids as `model`."),
    Declaration("merges", ("stage",), ("core",), "bool", False,
                "True if it needs a model whose adapter can be merged."),
    Declaration("several", ("stage",), ("core",), "bool", False,
                "True if it makes several adapters, named `STAGE+TASK`."),
    Declaration("reward_plugin", ("stage",), ("core",), "str", "reward_model",
                'The reward plugin that the model of a stage with `produces = "reward"` is used through.'),
    Declaration("issues", ("stage",), ("core",), "method(facts) -> Iterable[Issue]", None,
                "Says before anything is loaded what is wrong or unwise with its settings."),
)  # fmt: skip

DECLARATIONS: dict[str, Declaration] = {one.name: one for one in _LISTED}
"""Name -> declaration, in the order of the kinds."""


def declared(plugin: Any, name: str) -> Any:
    """Return what a plugin declares, or the default.

    Args:
        plugin: the class, function or object; a property counts on an object only.
        name: one of `DECLARATIONS`.

    Raises:
        KeyError: no plugin may declare this.

    Example:
        >>> declared(lambda prompts, completions: [], "oracle")
        False
    """
    value = getattr(plugin, name, default := DECLARATIONS[name].default)
    return default if isinstance(value, property) else value
