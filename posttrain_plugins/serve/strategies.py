"""What may stand behind `NAME@`: an installed strategy with its parameters, or a name that the server was given.

A client may choose a strategy and its numbers, never code or files: parameters that name an object, and those that by
their name take a file, are refused; models must be served ones, and scorers those of the server or a reward model of a
run (`RUN:STAGE`). What the server's own command line names (`--strategy NAME=SPEC`) is trusted with all of these.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.registry import suggest
from posttrain_plugins.plugins.signature import reward_columns
from posttrain_plugins.recipe.check.diagnostics import listed
from posttrain_plugins.recipe.plan.store import Store
from posttrain_plugins.recipe.plugin_schema import parse_call, plugin_schema
from posttrain_plugins.recipe.run.ad_hoc import NameResolver
from posttrain_plugins.recipe.spec import Given, Source
from posttrain_plugins.serve.model_thread import ModelThread
from posttrain_plugins.serve.queued import queued
from posttrain_plugins.types import ModelArtifact, ResolvedReward, ResolvedStrategy

__all__ = ["Strategies"]

MAX_CHARS = 1000
RUN_STAGE = re.compile(r"\w[\w-]*:\w[\w.-]*")
FILE = re.compile(r"(?:^|_)(?:file|path|dir|folder|url|command)s?(?:$|_)")


@dataclass
class Strategies:
    """Finds the strategies that clients name, and holds the scorers that these share.

    Args:
        models: the served names, which a strategy may ask as further models.
        scorers: name -> reward.
        named: name -> specification, given on the server's command line.
        worker: calls the scorers.
        runs_dir: where `RUN:STAGE` scorers are looked up.
    """

    models: Collection[str]
    worker: ModelThread
    scorers: dict[str, ResolvedReward] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)
    runs_dir: Path = Path("runs")

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        for reward in self.scorers.values():
            _check_columns(reward)
        for name in self.named:
            self.find(name)

    def find(self, text: str) -> ResolvedStrategy:
        """A strategy of its own for one call: some of them remember what they have solved.

        Raises:
            InputError: no such strategy, or parameters that it does not take or that a client may not give.
        """
        spec = self.named.get(text, text)
        if len(text) > MAX_CHARS:
            raise InputError(f"the strategy has {len(text)} characters, expected at most {MAX_CHARS}")
        names = NameResolver(self.runs_dir.resolve())
        return names.strategy(spec, self._served if text in self.named else self._of_a_client)

    def _served(self, kind: str, value: Any) -> Source | Mapping[str, Any]:
        """What the server's own command line may name: served models, scorers, and whatever a recipe may."""
        if kind == "reward":
            return Given(str(value), self._scorer(value))
        return Given(str(value), self._model(value)) if kind == "model" else None

    def _of_a_client(self, kind: str, value: Any) -> Source | Mapping[str, Any]:
        """The same without code and files: strategies by their entry point, no object, no file."""
        if kind == "object":
            raise InputError(
                f"{value!r} names an object, which a client may not", hint="start the server with --strategy"
            )
        if kind != "strategy":
            return self._served(kind, value)
        if not isinstance(value, str):
            raise InputError(f"{value!r} is no strategy", hint="for instance self_consistency(n=8)")
        name, params = parse_call(value)
        fields = plugin_schema(self._installed(name)).fields
        for key in params:
            if FILE.search(key) and (key not in fields or fields[key].ref is None):
                what = f"strategy '{name}': a client may not give '{key}'"
                raise InputError(what, hint="start the server with --strategy")
        return None

    def _installed(self, name: str) -> registry.Plugin:
        """By its entry point only: other forms name code."""
        found = [p for p in registry.installed("strategy") if name in (p.name, f"{p.distribution}:{p.name}")]
        if len(found) == 1:
            return found[0]
        known = [*self.named, *dict.fromkeys(p.name for p in registry.installed("strategy"))]
        raise InputError(f"unknown strategy {name!r}", hint=suggest(name, known) or f"known: {', '.join(known)}")

    def _model(self, name: Any) -> ModelArtifact:
        if name in self.models:
            return ModelArtifact(name, name)  # the name is its role; the server has it loaded
        raise InputError(f"no model {name!r} is served", hint=listed(["policy", *self.models], "known: "))

    def _scorer(self, name: Any) -> ResolvedReward:
        """One of the server's, or a reward model of a run, which is loaded once."""
        if not isinstance(name, str):
            raise InputError(f"no scorer {name!r}", hint="a scorer is a name")
        with self._lock:
            if name not in self.scorers:
                self.scorers[name] = self._of_run(name)
            return queued(self.worker, self.scorers[name])

    def _of_run(self, name: Any) -> ResolvedReward:
        if not self._is_of_run(name):  # the form alone is not enough: `os:system` has it, too
            known = listed(self.scorers, "known: ") if self.scorers else "start the server with --scorer"
            raise InputError(f"no scorer {name!r}", hint=f"{known}, or name a reward model as RUN:STAGE")
        reward = NameResolver(self.runs_dir.resolve()).reward(name)
        _check_columns(reward)
        return reward

    def _is_of_run(self, name: Any) -> bool:
        if not (isinstance(name, str) and RUN_STAGE.fullmatch(name)):
            return False
        run, _, stage = name.partition(":")
        return Store(self.runs_dir.resolve(), run).latest(stage) is not None


def _check_columns(reward: ResolvedReward) -> None:
    columns = ", ".join(reward_columns(reward.func))
    if columns:
        raise InputError(f"scorer {reward.name!r} needs the columns {columns}, which a served question does not have")
