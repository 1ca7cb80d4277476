"""The Python interface: run recipes, load plugins, solve problems. `import posttrain_plugins as pp` shows all of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_plugins import registry
from posttrain_plugins.errors import InputError
from posttrain_plugins.recipe import document
from posttrain_plugins.recipe import plan as planning
from posttrain_plugins.recipe import run as running
from posttrain_plugins.recipe.check import check
from posttrain_plugins.recipe.packaged import find_recipe
from posttrain_plugins.recipe.plan import Plan
from posttrain_plugins.recipe.plugins import parse_call
from posttrain_plugins.recipe.recipe import Recipe, Use
from posttrain_plugins.recipe.resolve import build
from posttrain_plugins.recipe.run import Observer, Run
from posttrain_plugins.recipe.store import Store
from posttrain_plugins.types import Kind, Problem, Prompt, ResolvedReward, Result, SamplingParams

if TYPE_CHECKING:
    from posttrain_plugins.inference.backends import Backend

__all__ = ["ask", "backend", "load", "model_path", "plan", "plan_evaluation", "run", "solve", "validate"]

Overrides = Mapping[str, Any] | Sequence[str]


def validate(recipe: str | Path, overrides: Overrides = ()) -> Recipe:
    """Checks a recipe (a file, or the name of a packaged one) without importing torch, transformers or trl.

    Raises:
        RecipeErrors: all mistakes at once, each with its place.
    """
    return check(document.load(find_recipe(str(recipe)), overrides))


def plan(recipe: str | Path, overrides: Overrides = (), *, runs_dir: str | Path = "runs", **choice: Any) -> Plan:
    """What would run, what is done, and why; `choice` is `until`, `only`, `force` as in `run`."""
    return planning.plan(validate(recipe, overrides), Path(runs_dir).resolve(), **choice)


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
    """Runs a recipe; what is done already is not done again.

    Args:
        recipe: a file, or the name of a packaged recipe.
        overrides: `{"stages.sft.args.max_steps": 10}` or `["stages.sft.args.max_steps=10"]`.
        runs_dir: where results go, `<runs_dir>/<recipe>/<stage>-<key>/`.
        until: stop after this stage.
        only: run these stages alone; what they need must be done.
        force: run these stages again.
        observer: is told what happens (`posttrain_plugins.recipe.run.Observer`).

    Returns:
        A mapping from stage to its artifact: `run["eval"].metrics`, `run["sft"].model_path`.
    """
    checked = validate(recipe, overrides)
    return running.run(checked, runs_dir=runs_dir, until=until, only=only, force=force, observer=observer)


def load(kind: Kind, use: str, **params: Any) -> Any:
    """A plugin's object: a reward or strategy ready to call, an adapter's `PeftConfig`, a data set, a stage.

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


def backend(model: str | Path, *, runs_dir: str | Path = "runs", **loading: Any) -> Backend:
    """A backend that runs a model in this process.

    Args:
        model: a folder, a PEFT adapter's folder, a Hub id, or `RUN:STAGE`.
        runs_dir: where `RUN:STAGE` is looked up.
        **loading: TRL `ModelConfig` fields: `dtype`, `load_in_4bit` ...; a stage's model is loaded as in its recipe.
    """
    from posttrain_plugins.inference.transformers_backend import TransformersBackend

    path, recorded = _located(str(model), runs_dir)
    return TransformersBackend(path, loading={**recorded, **loading})


def solve(strategy: Any, problems: Iterable[Problem | Prompt], *, backend: Backend, **options: Any) -> list[Result]:
    """Lets a strategy solve problems, all of them in one batch; see `posttrain_plugins.inference.engine.solve`.

    Args:
        strategy: a strategy, or its name such as `self_consistency(n=8)`.
        problems: prompts (text or messages), or `Problem`s.
        backend: answers the strategy's requests.
        **options: `scorers`, `columns`, `tools`, `budget`, `log`, `seed` ...
    """
    from posttrain_plugins.inference.engine import solve as engine_solve

    ready = [p if isinstance(p, Problem) else Problem(p, id=str(i)) for i, p in enumerate(problems)]
    chosen = load("strategy", strategy) if isinstance(strategy, str) else strategy
    return engine_solve(chosen, ready, backend=backend, **options)


def plan_evaluation(
    model: str,
    *,
    dataset: str,
    rewards: Sequence[str],
    strategies: Sequence[str],
    seed: int = 0,
    runs_dir: str | Path = "runs",
    **settings: Any,
) -> Plan:
    """A recipe of one `evaluate` stage, planned; its results are kept and reused like any other's."""
    stage = {
        "use": "evaluate",
        "models": ["base"],
        "dataset": dataset,
        "rewards": [_reward_spec(reward, runs_dir) for reward in rewards],
        "strategies": list(strategies),
        **settings,
    }
    path, loading = _located(model, runs_dir)
    base = {"model_name_or_path": path, **loading}
    data = {"name": "evaluate", "seed": seed, "model": base, "stages": {"evaluate": stage}}
    command_line = document.Document(Path("command line"), data)
    return planning.plan(check(command_line), Path(runs_dir).resolve())


def ask(
    model: str,
    question: str,
    *,
    strategy: str = "greedy",
    scorers: Sequence[str] = (),
    system: str | None = None,
    max_tokens: int = 1024,
    temperature: float = 1.0,
    seed: int = 0,
    runs_dir: str | Path = "runs",
) -> Result:
    """One question, one strategy; `scorers` are `NAME=REWARD`, or the reward's own name where the strategy says so."""
    prompt = [{"role": "user", "content": question}]
    if system is not None:
        prompt.insert(0, {"role": "system", "content": system})
    named = dict(text.partition("=")[::2] if "=" in text.partition("(")[0] else (text, text) for text in scorers)
    resolved = {name: ResolvedReward(name, _reward(spec, runs_dir)) for name, spec in named.items()}
    problem = Problem(prompt, SamplingParams(temperature=temperature, max_tokens=max_tokens))
    chosen = load("strategy", strategy)
    wanted = getattr(chosen, "scorer", None)
    if isinstance(wanted, str) and wanted not in resolved:
        resolved[wanted] = ResolvedReward(wanted, _reward(wanted, runs_dir))
    return solve(chosen, [problem], backend=backend(model, runs_dir=runs_dir), scorers=resolved, seed=seed)[0]


def _reward(spec: str, runs_dir: str | Path) -> Any:
    given = _reward_spec(spec, runs_dir)
    return load("reward", given) if isinstance(given, str) else load("reward", given.pop("use"), **given)


def _reward_spec(reward: str, runs_dir: str | Path) -> Any:
    """`RUN:STAGE` is a reward model; all else is a plugin's name."""
    run_name, colon, stage = reward.partition(":")
    if colon and Store(Path(runs_dir).resolve(), run_name).latest(stage) is not None:
        return {"use": "reward_model", "model_name_or_path": model_path(reward, runs_dir)}
    return reward


def model_path(model: str, runs_dir: str | Path = "runs") -> str:
    """A model's folder or Hub id from `FOLDER`, `HUB_ID` or `RUN:STAGE`.

    Raises:
        InputError: that run has no such stage, or it made no model.
    """
    return _located(model, runs_dir)[0]


def _located(model: str, runs_dir: str | Path) -> tuple[str, dict[str, Any]]:
    """The path, and how the recipe of a stage loads its models."""
    name, colon, stage = model.partition(":")
    if not colon or Path(model).exists():
        return model, {}
    store = Store(Path(runs_dir).resolve(), name)
    artifact = store.latest(stage)
    if artifact is None:
        done = sorted(p.name for p in (store.folder / "latest").glob("*"))
        hint = registry.suggest(stage, done) or (f"done stages: {', '.join(done)}" if done else f"posttrain run {name}")
        raise InputError(f"run '{name}' has no finished stage '{stage}' below {runs_dir}", hint=hint)
    if artifact.model_path is None:
        raise InputError(f"stage '{stage}' of run '{name}' made no model")
    return str(artifact.model_path), dict(artifact.manifest.get("loading", {}))
