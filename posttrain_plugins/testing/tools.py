"""Checks on tools: what a model is told of one, and what a run may expect of a call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any
from unittest import SkipTest

from posttrain_plugins.engine.tools import schema_of
from posttrain_plugins.plugins.tools import as_function, faults_of, shape_of
from posttrain_plugins.testing.noise import assert_untouched
from posttrain_plugins.testing.subject import Subject, fail_on_error, subject

__all__ = ["CHECKS"]

WRONG = ("", "\x00", "?" * 5000)  # for every argument that is a text


def check_tells_the_model(tool: Any) -> None:
    """It has a docstring, and its arguments a type and a line below `Args:`; it is no coroutine.

    The model is told nothing else of a tool, and `transformers.utils.get_json_schema` refuses one that lacks any of it:
    in the first batch, when the model is loaded.
    """
    tried = subject("tool", tool)
    found = [message for message, _ in faults_of(_name(tried), shape_of(tried.make()))]
    assert not found, "; ".join(found)


def check_schema_is_transformers(tool: Any) -> None:
    """transformers makes a JSON schema of it, and the engine shows a model the same.

    A model that was trained with one description and is asked with another calls the tool worse, and nobody sees why.
    """
    from transformers.utils.chat_template_utils import get_json_schema

    tried = subject("tool", tool)
    made = tried.make()
    if any(faults_of(_name(tried), shape_of(made))):
        raise SkipTest("check_tells_the_model says what is missing")
    function = made if inspect.isfunction(made) else as_function(_name(tried), made)
    with fail_on_error("transformers makes no schema of it:"):
        schema = get_json_schema(function)
    assert schema_of(function.__name__, function) == schema, "the engine shows another schema than transformers"


def check_name_is_its_own(tool: Any) -> None:
    """Its name in recipes is the function's: TRL calls it by that, and the model does.

    A recipe says `tools: [search]`, and the model is told of `web_search_v2`: figures and rewards by name miss it.
    """
    tried = subject("tool", tool)
    made = tried.make()
    if not inspect.isroutine(made) or not isinstance(tried.plugin, str):
        raise SkipTest("an object is called by its plugin's name")
    assert made.__name__ == _name(tried), f"the function is called {made.__name__}"


def check_examples(tool: Any) -> None:
    """Each of its `examples` gives the answer that it says.

    They are what a reader looks at first, and the only calls that the kit knows to be good ones.
    """
    for row, answer in _tried_examples(tool):
        assert answer == row["answer"], f"{row['arguments']} gives {answer!r}, the example says {row['answer']!r}"


def check_same_call_same_answer(tool: Any) -> None:
    """Called twice with equal arguments it answers the same, unless it declares `is_deterministic = False`.

    A run that was killed samples a rollout again, and must meet the same answers; a search is replayed from its log.
    """
    tried = subject("tool", tool)
    if not tried.declares("is_deterministic"):
        raise SkipTest("it declares is_deterministic = False")
    first, second = (list(_tried_examples(tried)) for _ in range(2))
    assert first == second, f"first {first}, then {second}"


def check_wrong_arguments_are_refused(tool: Any) -> None:
    """Texts that mean nothing are answered or raise an exception; they neither exit nor interrupt.

    Models write such arguments all the time. What a tool raises is told to the model; `sys.exit` ends a run of hours.
    """
    tried = subject("tool", tool)
    made = tried.make()
    properties = schema_of(_name(tried), made)["function"]["parameters"]["properties"]
    texts = [name for name, spec in properties.items() if spec.get("type") == "string" and "enum" not in spec]
    if not texts or len(texts) < len(properties):
        raise SkipTest("it takes more than texts")
    for text in WRONG:
        try:
            made(**dict.fromkeys(texts, text))
        except Exception:
            continue
        except SystemExit as cause:
            raise AssertionError(f"with {text[:9]!r} it called sys.exit({cause.code})") from cause


def check_global_rng_untouched(tool: Any) -> None:
    """The global generators of random, numpy and torch are where they were.

    A tool is called in the middle of a rollout: the next token would be another one.
    """
    examples = _examples(subject("tool", tool))
    made = subject("tool", tool).make()
    assert_untouched(lambda: [made(**row["arguments"]) for row in examples])


# in the order of this file, in which they run; found by name, so that none is forgotten
CHECKS: tuple[Callable[[Any], None], ...] = tuple(one for name, one in globals().items() if name.startswith("check_"))


def _name(tried: Subject) -> str:
    """Return the name without its package."""
    return tried.name.rpartition(":")[2]


def _examples(tried: Subject) -> Sequence[dict[str, Any]]:
    examples: Sequence[dict[str, Any]] = tried.declares("examples")
    if not examples:
        raise SkipTest("it declares no examples")
    return examples


def _tried_examples(tool: Any) -> list[tuple[dict[str, Any], str]]:
    tried = subject("tool", tool)
    made, found = tried.make(), []
    for row in _examples(tried):
        with fail_on_error(f"{row['arguments']} raises"):
            found.append((row, str(made(**row["arguments"]))))
    return found
