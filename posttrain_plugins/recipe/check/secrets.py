"""Secrets have no place in a recipe, which is kept with its results: `resolved.yaml`, manifests, logs. No paper.

What opens a door is read from the environment by what needs it, at the moment it needs it, and stands nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain_plugins.errors import RecipeErrors
from posttrain_plugins.recipe.check.diagnostics import Checker
from posttrain_plugins.recipe.read.document import Keys
from posttrain_plugins.recipe.read.secrets import has_password, is_secret

__all__ = ["check_secrets"]

KNOWN = {"hub_token": "HF_TOKEN", "hf_token": "HF_TOKEN", "api_key": "OPENAI_API_KEY"}


def check_secrets(checker: Checker) -> None:
    """Refuse a recipe with secrets, those of overrides too, before any other check can repeat one in its message.

    Raises:
        RecipeErrors: with the place of each.
    """
    before = len(checker.mistakes)
    _check(checker, checker.document.data, ())
    if len(checker.mistakes) > before:
        raise RecipeErrors(checker.mistakes)


def _check(checker: Checker, value: Any, path: Keys) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if is_secret(str(key), item):
                checker.error(
                    (*path, key),
                    f"'{key}' is a secret, and a recipe is kept with its results",
                    f"leave it out, and set {KNOWN[str(key)]} in the environment"
                    if str(key) in KNOWN
                    else "let the plugin read it from the environment",
                )
            else:
                _check(checker, item, (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check(checker, item, (*path, i))
    elif isinstance(value, str) and has_password(value):
        hint = "leave it out, and set OPENAI_API_KEY (a server's) or HF_TOKEN (the Hub's) in the environment"
        checker.error(path, "an address holds a password, and a recipe is kept with its results", hint)
