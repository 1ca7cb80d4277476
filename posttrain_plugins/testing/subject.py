"""A plugin under check: found by its name, its class or function, or an object made from it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import SkipTest

from posttrain_plugins.errors import PLUGIN_FAILURES
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.declarations import declared
from posttrain_plugins.plugins.schema import Schema, is_list
from posttrain_plugins.plugins.signature import of_object
from posttrain_plugins.recipe.build import construct
from posttrain_plugins.recipe.run.ad_hoc import NameResolver
from posttrain_plugins.testing import tiny
from posttrain_plugins.types import KINDS, Kind

__all__ = ["Subject", "fail_on_error", "skip_on_error", "subject"]

UNMADE = "it cannot be made: check_can_be_made says why"


class Subject:
    """One plugin under check.

    Args:
        kind: one of the six kinds.
        plugin: a name as in a recipe, a class or function, or an object that was made already.
    """

    def __init__(self, kind: Kind, plugin: Any) -> None:
        self.kind = kind
        self.plugin = plugin

    def __repr__(self) -> str:
        return f"{self.kind} {self.name}"

    @property
    def name(self) -> str:
        """Return the name that was given, or the one under which TRL would log it."""
        if isinstance(self.plugin, str):
            return self.plugin
        return str(getattr(self.definition, "__name__", type(self.definition).__name__))

    @functools.cached_property
    def definition(self) -> Any:
        """Return the class or function, or the object itself if it was made already."""
        if isinstance(self.plugin, str):
            return registry.load(self.kind, self.plugin)
        # a recipe binds a function's parameters; what it declares stands on the function
        return self.plugin.func if isinstance(self.plugin, functools.partial) else self.plugin

    @property
    def source(self) -> Any:
        """Return the class or function whose docstring, parameters and module count."""
        is_made = not isinstance(self.definition, type) and not inspect.isroutine(self.definition)
        return type(self.definition) if is_made else self.definition

    @property
    def makes_something(self) -> bool:
        """Is it called with its parameters to make what a recipe uses? So are functions that return a reward."""
        if self.kind == "reward" and inspect.isroutine(self.definition):
            return of_object(self.definition).makes_reward
        return self.kind in ("adapter", "dataset")

    @property
    def schema(self) -> Schema:
        """Return what it takes; a reward or strategy that is a plain function takes no parameters."""
        return of_object(self.source) if isinstance(self.source, type) or self.makes_something else Schema({})

    @functools.cached_property
    def params(self) -> dict[str, Any]:
        """Return its `example_params`, with the tiny models that they name made."""
        return {name: tiny.resolve(value) for name, value in self.declares("example_params").items()}

    def declares(self, name: str) -> Any:
        """Return what the object, or else its class, declares under one of `DECLARATIONS`."""
        with skip_on_error("it cannot be imported: check_can_be_made says why"):
            return declared(self.definition, name)

    def make(self, **more: Any) -> Any:
        """Return a reward, strategy or stage ready to call, or what calling an adapter or data set gives.

        Args:
            more: parameters beside its `example_params`, or in their place.

        Raises:
            SkipTest: it cannot be made, which `check_can_be_made` tells.
        """
        with skip_on_error(UNMADE):
            return self.try_to_make(**more)

    def try_to_make(self, **more: Any) -> Any:
        """Do as `make` does, but raise what the plugin raises."""
        definition, makes_something = self.definition, self.makes_something
        if isinstance(self.plugin, functools.partial):  # as a recipe hands it over, with its parameters
            return self.plugin(**more) if makes_something else self.plugin
        if not isinstance(definition, type):
            if not makes_something:
                return definition
            return definition(**{**self.params, **more}) if inspect.isroutine(definition) else definition()
        params, fields = {**self.params, **more}, self.schema.fields
        refs = [name for name, field in fields.items() if field.ref is not None and name in params]
        if self.kind == "stage":  # its references hold names of a recipe, and any name will do
            needed = {n: f for n, f in fields.items() if f.ref is not None and f.is_required and n not in params}
            params |= {name: ["tiny"] if is_list(f.type) else "tiny" for name, f in needed.items()}
        elif self.kind in ("reward", "dataset") and refs and "<locals>" not in definition.__qualname__:
            # what a reward or a data set is made of are objects by the time it is made: a recipe's own way finds them
            use = {"use": f"{definition.__module__}:{definition.__qualname__}", **params}
            named = NameResolver(tiny.folder())
            return named.reward(use).func if self.kind == "reward" else named.dataset(use)
        made = construct(definition, params)
        return made() if makes_something else made


def subject(kind: Kind | None, plugin: Any) -> Subject:
    """Wrap a plugin; a `Subject` stays as it is, so that checks of one subject share what they made."""
    if isinstance(plugin, Subject):
        return plugin
    if kind is None:
        raise TypeError(f"{plugin!r}: which kind of plugin? Give Subject(kind, plugin), kind one of {', '.join(KINDS)}")
    return Subject(kind, plugin)


@contextmanager
def fail_on_error(what: str) -> Iterator[None]:
    """Turn an exception into a failure that begins with `what`; a check that is skipped stays skipped."""
    try:
        yield
    except SkipTest:
        raise
    except PLUGIN_FAILURES as cause:
        raise AssertionError(f"{what} {type(cause).__name__}: {cause}") from cause


@contextmanager
def skip_on_error(why: str) -> Iterator[None]:
    """Skip the check on an exception, of which another check tells: one fault fails one check."""
    try:
        yield
    except SkipTest:
        raise
    except PLUGIN_FAILURES as cause:
        raise SkipTest(why) from cause
