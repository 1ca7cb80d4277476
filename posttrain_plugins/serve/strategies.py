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

from posttrain_plugins.engine.scoring import check_columns
from posttrain_plugins.errors import InputError
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.registry import suggest, with_article
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
# Whole words of a name: `memory_file` and `url`, not `profile`.
FILE = re.compile(r"(?:^|_)(?:file|path|dir|folder|url|command)s?(?:$|_)")


@dataclass
class Strategies:
    """Finds the strategies that clients name, and holds the scorers that these share.

    Args:
        models: the served names, which a strategy may ask as further models.
        scorers: name -> reward.
        named: name -> specification, given on the server's command line.
        model_thread: calls the scorers.
        runs_dir: where `RUN:STAGE` scorers are looked up.
    """

    models: Collection[str]
    model_thread: ModelThread
    scorers: dict[str, ResolvedReward] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)
    runs_dir: Path = Path("runs")

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        for reward in self.scorers.values():
            check_columns(reward, ())  # a served question has none
        for name in self.named:  # what the command line has wrong stops the server, not its first client
            self.find(name)

    def find(self, text: str) -> ResolvedStrategy:
        """Return a strategy for one request alone: some of them remember what they have solved.

        Raises:
            InputError: no such strategy, or parameters that it does not take or that a client may not give.
        """
        spec = self.named.get(text, text)
        if len(text) > MAX_CHARS:  # before it is parsed
            raise InputError(f"the strategy has {len(text)} characters, expected at most {MAX_CHARS}")
        names = NameResolver(self.runs_dir.resolve())
        return names.strategy(spec, self._served if text in self.named else self._of_a_client)

    def _served(self, kind: str, value: Any) -> Source | Mapping[str, Any]:
        """Resolve what the server's own command line may name: served models, scorers, and whatever a recipe may."""
        if kind == "reward":
            return Given(str(value), self._scorer(value))
        if kind != "model":
            return None
        if value not in self.models:
            raise InputError(f"no model {value!r} is served", hint=listed(["policy", *self.models], "known: "))
        return Given(value, ModelArtifact(value, value))  # the name is its role; the server has it loaded

    def _of_a_client(self, kind: str, value: Any) -> Source | Mapping[str, Any]:
        """Resolve what a client may name, which is no code and no file: strategies go by their entry point alone."""
        if kind in ("object", "tool"):
            raise InputError(
                f"{value!r} names {with_article(kind)}, which a client may not", hint="start the server with --strategy"
            )
        if kind != "strategy":
            return self._served(kind, value)
        if not isinstance(value, str):
            raise InputError(f"{value!r} is no strategy", hint="for instance self_consistency(n=8)")
        name, params = parse_call(value)
        installed = registry.installed("strategy")
        found = [plugin for plugin in installed if name in (plugin.name, f"{plugin.distribution}:{plugin.name}")]
        if len(found) != 1:  # `module:attr` and `./file.py:attr` are not looked up at all
            known = [*self.named, *dict.fromkeys(plugin.name for plugin in installed)]
            raise InputError(f"unknown strategy {name!r}", hint=suggest(name, known) or f"known: {', '.join(known)}")
        fields = plugin_schema(found[0]).fields
        for key in params:
            # By its name, since a path has no type of its own; a reference is resolved here, and is no path.
            if FILE.search(key) and (key not in fields or fields[key].ref is None):
                what = f"strategy '{name}': a client may not give '{key}'"
                raise InputError(what, hint="start the server with --strategy")
        return None

    def _scorer(self, name: Any) -> ResolvedReward:
        """Return one of the server's scorers, or a reward model of a run, which is loaded once."""
        if not isinstance(name, str):
            raise InputError(f"no scorer {name!r}", hint="a scorer is a name")
        with self._lock:  # two requests that name the same one would load it twice
            if name not in self.scorers:
                run, _, stage = name.partition(":")
                runs_dir = self.runs_dir.resolve()
                # The form alone is not enough: `os:system` has it, too.
                if not RUN_STAGE.fullmatch(name) or Store(runs_dir, run).latest(stage) is None:
                    known = listed(self.scorers, "known: ") if self.scorers else "start the server with --scorer"
                    raise InputError(f"no scorer {name!r}", hint=f"{known}, or name a reward model as RUN:STAGE")
                reward = NameResolver(runs_dir).reward(name)
                check_columns(reward, ())
                self.scorers[name] = reward
            return queued(self.model_thread, self.scorers[name])
