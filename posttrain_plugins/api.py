"""The Python interface: run recipes, load plugins, solve problems. `import posttrain_plugins as pp` shows all of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from posttrain_plugins.plugins import registry
from posttrain_plugins.recipe.build import build
from posttrain_plugins.recipe.check.check import check
from posttrain_plugins.recipe.plan import plan as planning
from posttrain_plugins.recipe.plan.plan import Plan
from posttrain_plugins.recipe.plugin_schema import parse_call
from posttrain_plugins.recipe.read import document
from posttrain_plugins.recipe.read.packaged import find_recipe
from posttrain_plugins.recipe.run.ad_hoc import NameResolver
from posttrain_plugins.recipe.run.observer import Observer
from posttrain_plugins.recipe.run.run import Run, run_plan
from posttrain_plugins.recipe.spec import Recipe, Use
from posttrain_plugins.types import (
    Kind,
    ModelArtifact,
    Problem,
    Prompt,
    ResolvedReward,
    ResolvedStrategy,
    Result,
    server_of,
)

if TYPE_CHECKING:
    from posttrain_plugins.backends.protocol import AnyBackend

__all__ = [
    "backend",
    "backends",
    "load",
    "masks",
    "plan",
    "plan_evaluation",
    "resolve_strategy",
    "reward",
    "rows",
    "run",
    "solve",
    "validate",
]

Overrides: TypeAlias = Mapping[str, Any] | Sequence[str]
Scorers: TypeAlias = Mapping[str, Any] | Sequence[str]
Backends: TypeAlias = "AnyBackend | Mapping[str, AnyBackend]"


def validate(recipe: str | Path, overrides: Overrides = ()) -> Recipe:
    """Check a recipe (a file, or the name of a packaged one) without importing torch, transformers or trl.

    Raises:
        RecipeErrors: all mistakes at once, each with its place.
    """
    return check(document.load(find_recipe(str(recipe)), overrides))


def plan(recipe: str | Path, overrides: Overrides = (), *, runs_dir: str | Path = "runs", **choice: Any) -> Plan:
    """Plan what would run, what is done, and why; `choice` is `until`, `only`, `force` as in `run`."""
    return planning.plan(validate(recipe, overrides), Path(runs_dir).resolve(), **choice)


def masks(plan: Plan, rows: int = 2, only: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Show which tokens carry loss in each training stage of a plan, for a few rows; see `recipe.run.preview`."""
    from posttrain_plugins.recipe.run.preview import preview

    return preview(plan, rows, only)


def run(
    recipe: str | Path,
    overrides: Overrides = (),
    *,
    runs_dir: str | Path = "runs",
    until: str | None = None,
    only: Collection[str] = (),
    force: Collection[str] = (),
    observer: Observer | None = None,
) -> Run:
    """Run a recipe; what is done already is not done again.

    Args:
        recipe: a file, or the name of a packaged recipe.
        overrides: `{"stages.sft.args.max_steps": 10}` or `["stages.sft.args.max_steps=10"]`.
        runs_dir: where results go, `<runs_dir>/<recipe>/<stage>-<key>/`.
        until: stop after this stage.
        only: run these stages alone; what they need must be done.
        force: run these stages again.
        observer: is told what happens (`posttrain_plugins.recipe.run.observer.Observer`).

    Returns:
        A mapping from stage to its artifact: `run["eval"].metrics`, `run["sft"].model_path`.
    """
    return run_plan(
        plan(recipe, overrides, runs_dir=runs_dir, until=until, only=only, force=force), observer or Observer()
    )


def load(kind: Kind, use: str, **params: Any) -> Any:
    """Return a plugin's object: a reward or strategy ready to call, an adapter's `PeftConfig`, a data set, a stage.

    Args:
        kind: `reward`, `adapter`, `strategy`, `dataset` or `stage`.
        use: its name, `distribution:name`, `package.module:attr` or `./file.py:attr`; also `self_consistency(n=8)`.
        **params: its parameters.

    Raises:
        PluginNotFound, PluginConflict, PluginBroken, InputError: see `posttrain_plugins.errors`.
    """
    name, given = parse_call(use)
    plugin = registry.find(kind, name)
    return build(Use(kind, name, plugin, {**given, **params}))


def resolve_strategy(spec: Any, *, scorers: Scorers = (), runs_dir: str | Path = "runs") -> ResolvedStrategy:
    """Return a strategy with the rewards and models that its fields name, at any depth, as a recipe finds them.

    Args:
        spec: `best_of_n(n=8, scorer='quickstart:rm')`, a mapping with `use`, or a strategy's object.
        scorers: rewards that have a name already: `{"rm": reward}` (a function, or a spec), or `["rm=quickstart:rm"]`.
        runs_dir: where `RUN:STAGE` is looked up.

    Returns:
        The object, its scorers (those given among them), and the models beside the policy by role, not loaded yet.

    Raises:
        InputError: it, or what it names, is not there, or refuses its parameters.

    Example:
        >>> resolved = resolve_strategy("best_of_n(n=4, scorer=digit_chain_steps)")
        >>> resolved.strategy.n, list(resolved.scorers)
        (4, ['digit_chain_steps'])
    """
    outside = NameResolver.with_scorers(Path(runs_dir).resolve(), scorers)
    found = outside.strategy(spec)
    return ResolvedStrategy(found.label, found.strategy, {**outside.scorers, **found.scorers}, found.models)


def reward(spec: str | Mapping[str, Any], *, runs_dir: str | Path = "runs") -> ResolvedReward:
    """Return a reward as the command line names it, with all that its fields refer to.

    Args:
        spec: `length(max_chars=20)`, `./file.py:attr`, a mapping with `use`, or `RUN:STAGE` of a reward model.
        runs_dir: where `RUN:STAGE` is looked up.

    Raises:
        InputError: it, or what it names, is not there, or refuses its parameters.
    """
    return NameResolver(Path(runs_dir).resolve()).reward(spec)


def rows(dataset: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the rows of a data set as the command line names it.

    Args:
        dataset: a plugin, `digit_chain(split=test, size=50)`, a file, or a Hub id.
        limit: so many at most.

    Raises:
        InputError: there is no such data set, or it refuses its parameters.
    """
    found = NameResolver(Path("runs")).dataset(dataset)
    return [dict(row) for row in (found if limit is None else found.select(range(min(limit, len(found)))))]


def backend(
    where: str | Path,
    /,
    *,
    model: str | None = None,
    engine: str = "transformers",
    api_key: str | None = None,
    options: Mapping[str, Any] | None = None,
    runs_dir: str | Path = "runs",
    **loading: Any,
) -> AnyBackend:
    """Open what runs a model: this process, or a server that speaks OpenAI's protocol.

    Args:
        where: a folder, a PEFT adapter's folder, a Hub id, `RUN:STAGE`, or a server's URL (`http://host:8000/v1`, with
            the model's name as `model` or behind a `#`).
        model: the name under which the server knows the model.
        engine: what runs it: `transformers` or `vllm` in this process, or the URL of a server that has it.
        api_key: for the server.
        options: what else the server's backend (`OpenAIBackend`) or vLLM's `LLM` takes.
        runs_dir: where `RUN:STAGE` is looked up.
        **loading: TRL `ModelConfig` fields: `dtype`, `load_in_4bit` ...; a stage's model is loaded as in its recipe.

    Raises:
        InputError: no such stage, a server without a model's name, or another engine.
    """
    from posttrain_plugins.backends.open import open_backend

    server = server_of(str(where))
    if server is not None:
        target = f"{server[0]}#{model or server[1]}"
        return open_backend(target, api_key=api_key, options=options, engine=engine)
    found = NameResolver(Path(runs_dir).resolve()).model(str(where))
    # a server knows it by the name that it is asked for here, or by the one that its URL or `model` gives
    is_served = server_of(engine) is not None
    engine, identity = f"{engine}#{model}" if is_served and model else engine, found.name if is_served else None
    return open_backend(
        found.path, {**found.loading, **loading}, engine=engine, identity=identity, api_key=api_key, options=options
    )


@contextmanager
def backends(
    policy: Backends, models: Mapping[str, ModelArtifact], *, runs_dir: str | Path = "runs"
) -> Iterator[dict[str, AnyBackend]]:
    """Give a backend for the policy and each model that a strategy names, by role; what is opened here is closed.

    Args:
        policy: the policy's backend, or a mapping from roles that have one to these.
        models: `ResolvedStrategy.models`.
        runs_dir: where `RUN:STAGE` is looked up.
    """
    given = dict(policy) if isinstance(policy, Mapping) else {"policy": policy}
    with ExitStack() as stack:
        for role, artifact in models.items():
            if role not in given:
                given[role] = backend(artifact.path, runs_dir=runs_dir, **artifact.loading)
                stack.callback(getattr(given[role], "close", lambda: None))
        yield given


def solve(
    strategy: Any,
    problems: Iterable[Problem | Prompt],
    *,
    backend: Backends,
    scorers: Scorers = (),
    runs_dir: str | Path = "runs",
    **options: Any,
) -> list[Result]:
    """Let a strategy solve problems, all of them in one batch; see `posttrain_plugins.engine.solve.solve`.

    Args:
        strategy: a strategy, or its text such as `self_consistency(n=8)`; see `resolve_strategy`.
        problems: prompts (text or messages), or `Problem`s.
        backend: answers the strategy's requests; a mapping gives one for each model role.
        scorers: rewards that have a name already; see `resolve_strategy`.
        runs_dir: where `RUN:STAGE` is looked up.
        **options: `columns`, `tools`, `budget`, `log`, `seed` ...
    """
    from posttrain_plugins.engine.solve import solve as engine_solve

    ready = [problem if isinstance(problem, Problem) else Problem(problem) for problem in problems]
    resolved = resolve_strategy(strategy, scorers=scorers, runs_dir=runs_dir)
    with backends(backend, resolved.models, runs_dir=runs_dir) as by_role:
        return engine_solve(resolved.strategy, ready, backend=by_role, scorers=resolved.scorers, **options)


def plan_evaluation(
    model: str,
    *,
    dataset: str,
    rewards: Sequence[str],
    strategies: Sequence[str],
    verifiers: Sequence[str] = (),
    seed: int = 0,
    runs_dir: str | Path = "runs",
    **settings: Any,
) -> Plan:
    """Plan a recipe of one `evaluate` stage; its results are kept and reused like any other's.

    Args:
        model: a folder, a Hub id, or `RUN:STAGE`.
        dataset: a file, or a data set plugin such as `digit_chain(split=test, size=100)`.
        rewards: plugins, or `RUN:STAGE` of a reward model; the first is the metric.
        strategies: as for `resolve_strategy`.
        verifiers: rewards that choose among the samples.
        seed: of the samples.
        runs_dir: where results go, and where `RUN:STAGE` is looked up.
        **settings: further fields of the stage: `num_generations`, `budgets` ...
    """
    outside = NameResolver(Path(runs_dir).resolve())
    stage = {
        "use": "evaluate",
        "models": ["base"],
        "dataset": dataset,
        "rewards": [outside.as_written("reward", reward) for reward in rewards],
        "strategies": [outside.as_written("strategy", strategy) for strategy in strategies],
        **({"verifiers": [outside.as_written("reward", reward) for reward in verifiers]} if verifiers else {}),
        **settings,
    }
    found = outside.model(model)
    base = {"model_name_or_path": found.path, **found.loading}
    data = {"name": "evaluate", "seed": seed, "model": base, "stages": {"evaluate": stage}}
    command_line = document.Document(Path("command line"), data)
    return planning.plan(check(command_line), Path(runs_dir).resolve())
