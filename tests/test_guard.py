"""The guard: what hangs, crashes, raises or gives no number costs its own row alone, is counted, and stops a run."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.engine.log import RequestLog
from posttrain_plugins.engine.scoring import Scored, score
from posttrain_plugins.errors import InputError, PluginBroken, RecipeErrors, RewardFailed
from posttrain_plugins.guard.guarded import figures_of, guard
from posttrain_plugins.guard.settings import GuardSettings
from posttrain_plugins.plugins import registry
from posttrain_plugins.recipe.run.inputs import Resolver
from posttrain_plugins.record.figures import read_figures
from posttrain_plugins.rewards.digit_chain_steps import DigitChainSteps
from posttrain_plugins.rewards.ensemble import Ensemble
from posttrain_plugins.types import ResolvedReward

LENIENT = {"max_failure_share": 1.0, "num_workers": 2}

SHAKY = '''
import asyncio, ctypes, os, subprocess, time
from dataclasses import dataclass

def misbehave(text):
    """Does what the completion says."""
    if text == "hang": time.sleep(600)
    if text == "crash": ctypes.string_at(0)
    if text == "exit": os._exit(3)
    if text == "raise": raise ValueError("cannot read this")
    if text == "words": return "good"
    return {"nan": float("nan"), "inf": float("inf"), "none": None}.get(text, float(len(text)))

def shaky(completions, **columns):
    return [misbehave(text) for text in completions]

def two(completions, **columns):
    return [1.0, 2.0]

async def asked(completions, **columns):
    for text in completions:
        if text == "sleep": await asyncio.sleep(600)
    return [misbehave(text) for text in completions]

def parent(completions, **columns):
    child = subprocess.Popen(["sleep", "600"])
    with open(completions[0], "w") as file: file.write(str(child.pid))
    time.sleep(600)

def deserter(completions, **columns):
    """Starts a process that leaves session and group, loses its parent, and forgets where it came from."""
    file, then = completions[0].split(" ")
    if os.fork() == 0:
        os.setsid()
        grandchild = subprocess.Popen(["sleep", "600"], env={}, start_new_session=True)
        with open(file, "w") as out: out.write(str(grandchild.pid))
        os._exit(0)
    while not os.path.exists(file) or not open(file).read(): time.sleep(0.01)
    misbehave(then)
    return [1.0]

def lazy(completions, **columns):
    import slow_to_import
    return [slow_to_import.SCORE for _ in completions]

def stateful(completions, trainer_state, **columns):
    assert type(trainer_state).__module__ == "types" and not {"log_metric", "log_extra"} & set(columns)
    return [float(trainer_state.global_step) for _ in completions]

@dataclass
class Counted:
    """Notes every call in a file."""
    file: str
    bounds = (0.0, 9.0)
    oracle = True

    def __call__(self, completions, solution, **columns):
        with open(self.file, "a") as file: file.write(f"{len(completions)} ")
        return [float(len(text)) for text in completions]
'''


@pytest.fixture(scope="module")
def shaky(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The rewards of `SHAKY`, loaded as `./shaky.py:name`."""
    folder = tmp_path_factory.mktemp("shaky")
    (folder / "shaky.py").write_text(SHAKY)
    (folder / "slow_to_import.py").write_text("import time\ntime.sleep(0.8)\nSCORE = 0.5\n")
    return lambda name: registry.load("reward", f"./shaky.py:{name}", folder)


def call(reward: Any, *texts: str, **columns: Any) -> list[Any]:
    found = reward(prompts=["p"] * len(texts), completions=list(texts), **columns)
    return asyncio.run(found) if inspect.isawaitable(found) else found


# --- one row's failure is its own ------------------------------------------------------------------------------------


def test_in_a_process_every_score_is_accounted_for(shaky) -> None:
    reward = guard(shaky("shaky"), GuardSettings(timeout_s=0.3, **LENIENT))
    texts = ("hang", "a", "crash", "bb", "exit", "raise", "words", "nan", "inf", "none", "ccc")
    assert call(reward, *texts) == [None, 1.0, None, 2.0, None, None, None, None, None, None, 3.0]
    assert reward.outcomes == {"ok": 3, "none": 1, "timeout": 1, "error": 4, "non_finite": 2}
    assert reward.failures["timeout"] == "no score within 0.3 s, on ['hang']"
    reward.close()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("crash", "the process died: SIGSEGV, on ['crash']"),
        ("exit", "the process died: exit code 3, on ['exit']"),
        ("raise", "ValueError: cannot read this, on ['raise']"),
        ("words", "it gave 'good', expected a number"),
    ],
)
def test_on_error_raise_tells_what_went_wrong(shaky, text: str, told: str) -> None:
    reward = guard(shaky("shaky"), GuardSettings(isolate="process", on_error="raise", num_workers=1), "mine")
    with pytest.raises(RewardFailed) as caught:
        call(reward, "a", text)
    assert caught.value.message.startswith(f"reward 'mine' failed (error): {told}")
    reward.close()


def test_a_number_on_error_stands_for_failures_and_never_for_none(shaky) -> None:
    reward = guard(shaky("shaky"), GuardSettings(on_error=-1, **LENIENT))
    assert not reward.is_isolated
    assert call(reward, "raise", "none", "nan", "a") == [-1.0, None, -1.0, 1.0]


def test_a_worker_is_replaced_and_the_next_batch_is_scored(shaky) -> None:
    reward = guard(shaky("shaky"), GuardSettings(isolate="process", max_failure_share=1.0, num_workers=1))
    assert [call(reward, text) for text in ("crash", "a", "exit", "bb")] == [[None], [1.0], [None], [2.0]]
    reward.close()
    assert call(reward, "ccc") == [3.0]
    reward.close()


def test_two_scores_for_one_completion_are_an_error(shaky) -> None:
    reward = guard(shaky("two"), GuardSettings(**LENIENT))
    assert call(reward, "a") == [None]
    assert reward.failures["error"].startswith("it gave 2 scores for one completion")


def test_what_a_reward_started_dies_with_it(shaky, tmp_path: Path) -> None:
    reward = guard(shaky("parent"), GuardSettings(timeout_s=0.5, **LENIENT))
    assert call(reward, str(tmp_path / "pid")) == [None]
    assert is_gone(int((tmp_path / "pid").read_text()))
    reward.close()


@pytest.mark.skipif(sys.platform != "linux", reason="orphans come to nobody but init where there is no subreaper")
@pytest.mark.parametrize("then", ["hang", "crash", "exit", "raise", "score"])
def test_what_left_session_and_parent_dies_with_the_process_that_started_it(shaky, then: str, tmp_path: Path) -> None:
    reward = guard(shaky("deserter"), GuardSettings(timeout_s=2.0, **LENIENT))
    found = call(reward, f"{tmp_path / 'pid'} {then}")
    assert found == [1.0 if then == "score" else None]
    reward.close()
    assert is_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="orphans come to nobody but init where there is no subreaper")
def test_it_dies_with_a_run_that_is_killed_too(shaky, tmp_path: Path) -> None:
    source = Path(sys.modules[shaky("deserter").__module__].__file__ or "")
    (tmp_path / "held.py").write_text(source.read_text())
    (tmp_path / "main.py").write_text(
        "import time\nfrom held import deserter\n"
        "from posttrain_plugins.guard.guarded import guard\n"
        "from posttrain_plugins.guard.settings import GuardSettings\n"
        f"reward = guard(deserter, GuardSettings(isolate='process', num_workers=1))\n"
        f"reward(completions=[{str(tmp_path / 'pid')!r} + ' score'])\n"
        "print('scored', flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "main.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "scored\n"
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, 0)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert is_gone(pid)


def test_importing_is_not_counted(shaky) -> None:
    reward = guard(shaky("lazy"), GuardSettings(timeout_s=0.2, **LENIENT))
    assert call(reward, "a") == [0.5]
    reward.close()


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text(
        "import os, time\ndef held(completions, **columns):\n"
        "    open(completions[0], 'w').write(str(os.getpid()))\n    time.sleep(600)\n"
    )
    (tmp_path / "main.py").write_text(
        "from held import held\n"
        "from posttrain_plugins.guard.guarded import guard\n"
        "from posttrain_plugins.guard.settings import GuardSettings\n"
        f"guard(held, GuardSettings(isolate='process', num_workers=1))(completions=[{str(tmp_path / 'pid')!r}])\n"
    )
    parent = subprocess.Popen([sys.executable, "main.py"], cwd=tmp_path)
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    assert is_gone(int((tmp_path / "pid").read_text()))


def is_gone(pid: int) -> bool:
    """Is the process dead, at the latest in ten seconds? A zombie that nobody has waited for is."""
    for _ in range(500):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    return False


# --- asynchronous rewards --------------------------------------------------------------------------------------------


def test_asynchronous_scores_are_all_in_flight_at_once() -> None:
    meeting: dict[str, Any] = {}

    async def meet(completions: list[str], **columns: Any) -> list[float]:
        barrier = meeting.setdefault("barrier", asyncio.Barrier(20))
        await barrier.wait()  # passes only when all twenty are here
        return [1.0 for _ in completions]

    reward = guard(meet, GuardSettings(timeout_s=20))
    assert call(reward, *map(str, range(20))) == [1.0] * 20
    assert reward.outcomes == {"ok": 20}


def test_an_asynchronous_reward_is_visible_as_such_and_cancelled_at_its_limit(shaky) -> None:
    reward = guard(shaky("asked"), GuardSettings(timeout_s=0.2, **LENIENT))
    assert inspect.iscoroutinefunction(reward.__call__)
    assert not reward.is_isolated
    assert call(reward, "sleep", "a", "raise", "none") == [None, 1.0, None, None]
    assert reward.outcomes == {"timeout": 1, "ok": 1, "error": 1, "none": 1}


def test_isolated_asynchronous_scores_lose_only_the_culprits(shaky) -> None:
    reward = guard(shaky("asked"), GuardSettings(timeout_s=0.2, isolate="process", **LENIENT))
    assert call(reward, "sleep", "crash", "a", "hang", "bb", "ccc") == [None, None, 1.0, None, 2.0, 3.0]
    assert reward.outcomes == {"timeout": 2, "error": 1, "ok": 3}
    reward.close()


# --- the call --------------------------------------------------------------------------------------------------------


def test_an_equal_completion_is_scored_once(shaky, tmp_path: Path) -> None:
    reward = guard(shaky("Counted")(str(tmp_path / "calls")), GuardSettings())
    found = reward(prompts=["p", "p", "p", "q"], completions=["a", "a", "a", "a"], solution=["1", "1", "2", "1"])
    assert found == [1.0] * 4
    assert (tmp_path / "calls").read_text() == "3 "  # one call for the three distinct rows
    assert reward.outcomes == {"ok": 4}


def test_one_by_one_only_where_the_whole_fails(shaky, tmp_path: Path) -> None:
    calls = []

    def strict(completions: list[str], **columns: Any) -> list[float]:
        calls.append(list(completions))
        return [1 / len(text) for text in completions]

    reward = guard(strict, GuardSettings(**LENIENT))
    assert call(reward, "a", "bb") == [1.0, 0.5]
    assert call(reward, "a", "", "a") == [1.0, None, 1.0]
    assert calls == [["a", "bb"], ["a", ""], ["a"], [""]]


def test_what_a_trainer_gives_beside_the_rows_reaches_a_worker_as_plain_values(shaky) -> None:
    class State:
        def __init__(self) -> None:
            self.global_step, self.callbacks = 7, [print]

    reward = guard(shaky("stateful"), GuardSettings(isolate="process", on_error="raise", num_workers=1))
    metrics: dict[str, float] = {}
    assert call(reward, "a", trainer_state=State(), log_metric=metrics.__setitem__, log_extra=print) == [7.0]
    assert metrics["rewards/stateful/ok"] == 1.0
    reward.close()


def test_what_is_logged_for_each_row_is_told_of_every_completion() -> None:
    def logging(completions: list[str], log_extra: Any, **columns: Any) -> list[float]:
        log_extra("size", [len(text) for text in completions])
        return [0.0 for _ in completions]

    told: dict[str, Any] = {}
    call(guard(logging, GuardSettings()), "a", "bb", "a", log_extra=told.__setitem__)
    assert told == {"size": [1, 2, 1]}


def test_nothing_to_score_is_no_score(shaky) -> None:
    for settings in (GuardSettings(), GuardSettings(isolate="process")):
        assert guard(shaky("shaky"), settings)(prompts=[], completions=[]) == []


# --- what it keeps of the author's -----------------------------------------------------------------------------------


def test_name_attributes_and_pickling_are_the_authors(shaky, tmp_path: Path) -> None:
    reward = guard(shaky("Counted")(str(tmp_path / "calls")), GuardSettings(isolate="process"), "mine")
    again = pickle.loads(pickle.dumps(reward))
    for one in (reward, again):
        assert (one.__name__, one.name, one.bounds, one.oracle) == ("Counted", "mine", (0.0, 9.0), True)
        assert one.file == str(tmp_path / "calls")
        assert not hasattr(one, "step_scores")
        assert not hasattr(one, "requires_columns")
    assert again(prompts=["p"], completions=["ab"], solution=["x"]) == [2.0]
    again.close()
    assert ResolvedReward("mine", reward).is_oracle


@pytest.mark.parametrize("settings", [GuardSettings(), GuardSettings(timeout_s=20.0, num_workers=1)])
def test_step_scores_are_guarded_too(settings: GuardSettings) -> None:
    reward = guard(DigitChainSteps(), settings)
    prompts, completions = ["3|7<1", "Hello"], ["<think>3|7=7;7<1=1</think>", "x"]
    assert reward.step_scores(prompts, completions) == DigitChainSteps().step_scores(prompts, completions)
    assert reward.requires_columns == DigitChainSteps.requires_columns
    reward.close()


def test_a_failure_of_the_steps_is_no_step_or_the_number_for_each() -> None:
    class Steps:
        def __call__(self, completions: Any, **columns: Any) -> list[float]:
            return [0.0 for _ in completions]

        def step_scores(self, completions: Any, **columns: Any) -> Any:
            raise ValueError

    given: dict[str, Any] = {"prompts": ["p"], "completions": ["ab"], "steps": [["a", "b"]]}
    assert guard(Steps(), GuardSettings(**LENIENT)).step_scores(**given) == [[]]
    assert guard(Steps(), GuardSettings(on_error=0.0, **LENIENT)).step_scores(**given) == [[0.0, 0.0]]


def test_a_reward_that_does_not_pickle_is_refused_by_isolation_alone() -> None:
    reward = lambda completions, **columns: [1.0]  # noqa: E731
    assert call(guard(reward, GuardSettings()), "a") == [1.0]
    with pytest.raises(InputError, match="cannot be isolated, it does not pickle"):
        call(guard(reward, GuardSettings(isolate="process")), "a")


def test_a_reward_that_cannot_be_loaded_there_is_told_at_once(shaky, tmp_path: Path) -> None:
    (tmp_path / "here_only.py").write_text("import os\nassert os.getpid() == int(os.environ['HERE'])\ndef f(): ...\n")
    os.environ["HERE"] = str(os.getpid())
    reward = guard(registry.load("reward", "./here_only.py:f", tmp_path), GuardSettings(isolate="process"))
    with pytest.raises(PluginBroken, match="cannot be loaded in a process of its own: AssertionError"):
        call(reward, "a", "b")


def test_a_mistake_of_the_user_is_no_failure_of_a_row() -> None:
    def refusing(completions: Any, **columns: Any) -> Any:
        raise InputError("math needs math_verify", hint="pip install 'posttrain-plugins[math]'")

    with pytest.raises(InputError, match="math needs math_verify"):
        call(guard(refusing, GuardSettings()), "a")


# --- thresholds and metrics ------------------------------------------------------------------------------------------


def test_too_many_failures_stop_the_run_and_say_why(shaky) -> None:
    reward = guard(shaky("shaky"), GuardSettings(max_failure_share=0.2), "mine")
    call(reward, *["raise"] * 6)  # 6 of the last 32
    with pytest.raises(RewardFailed) as caught:
        call(reward, "nan")
    message = caught.value.message
    assert message.startswith("reward 'mine': 22% of the last 32 scores are error (6), non_finite (1), more than ")
    assert "max_failure_share: 0.2" in message
    assert "ValueError: cannot read this, on ['raise']" in message


def test_a_share_is_of_the_batch_where_that_is_larger_and_forgets(shaky) -> None:
    reward = guard(shaky("shaky"), GuardSettings(max_failure_share=0.1))
    call(reward, *["a"] * 90, *["raise"] * 10)
    call(reward, *["a"] * 64)
    call(reward, *["a"] * 29, *["raise"] * 3)


def test_too_many_that_cannot_be_judged_stop_the_run_if_asked(shaky) -> None:
    call(guard(shaky("shaky"), GuardSettings()), *["none"] * 40)
    with pytest.raises(
        RewardFailed, match=r"100% of the last 40 scores are none \(40\), more than max_none_share: 0.5"
    ):
        call(guard(shaky("shaky"), GuardSettings(max_none_share=0.5)), *["none"] * 40)


def test_outcomes_are_counted_in_metrics_and_figures(shaky) -> None:
    reward = guard(shaky("shaky"), GuardSettings(**LENIENT), "mine")
    metrics: dict[str, float] = {}
    call(reward, "a", "a", "raise", "none", log_metric=metrics.__setitem__)
    told = {"ok": 2.0, "none": 1.0, "timeout": 0.0, "error": 1.0, "non_finite": 0.0}
    assert metrics == {f"rewards/mine/{kind}": count for kind, count in told.items()}
    inside = ResolvedReward("all", Ensemble([ResolvedReward("mine", reward)]))
    assert figures_of({"rewards": [inside], "verifiers": [ResolvedReward("mine", reward)]}) == metrics
    assert figures_of({"rewards": [ResolvedReward("plain", shaky("shaky"))]}) == {}


def test_a_strategys_scores_tell_the_guards_own_words(shaky) -> None:
    reward = guard(shaky("shaky"), GuardSettings(on_error="raise"), "mine")
    with RequestLog(None) as log, pytest.raises(RewardFailed, match="reward 'mine' failed"):
        score(ResolvedReward("mine", reward), [Scored("0", "p", "raise")], log)


# --- recipes ---------------------------------------------------------------------------------------------------------

RECIPE = """
name: guarded
datasets: {saved: {path: saved.jsonl}}
rewards:
  mine: {use: "./shaky.py:shaky", GUARD}
stages:
  kept: {use: sample, dataset: saved, rewards: [mine], keep: labelled, threshold: 1}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], Path]:
    (tmp_path / "shaky.py").write_text(SHAKY)
    rows = [{"prompt": "p", "completion": text} for text in ("a", "bb", "raise", "none", "crash")]
    (tmp_path / "saved.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(guard: str) -> Path:
        (tmp_path / "r.yaml").write_text(RECIPE.replace("GUARD", guard).replace(", }", "}"))
        return tmp_path / "r.yaml"

    return write


def test_a_recipe_guards_a_reward_and_reports_what_became_of_its_scores(recipe, tmp_path: Path) -> None:
    run = pp.run(recipe("isolate: process, on_error: 0.0, num_workers: 1"), runs_dir=tmp_path / "runs")
    figures = {name: value for name, value in run["kept"].metrics.items() if name.startswith("rewards/")}
    told = {"ok": 2.0, "none": 1.0, "timeout": 0.0, "error": 2.0, "non_finite": 0.0}
    assert figures == {f"rewards/mine/{kind}": count for kind, count in told.items()}
    rows = [json.loads(line) for line in run["kept"].data_path.read_text().splitlines()]
    assert [row["label"] for row in rows] == [True, True, False, False]  # the one that it cannot judge is left out


def test_without_a_guard_a_stage_is_given_the_authors_own_callable(recipe, tmp_path: Path) -> None:
    checked = pp.validate(recipe("weight: 0.5"))
    (reward,) = Resolver(checked, {}).inputs(checked.stage("kept"))["rewards"]
    assert reward.func is registry.load("reward", "./shaky.py:shaky", tmp_path)
    checked = pp.validate(recipe("timeout_s: 2"))
    (guarded,) = Resolver(checked, {}).inputs(checked.stage("kept"))["rewards"]
    assert guarded.func.__wrapped__ is reward.func
    assert guarded.func.settings == GuardSettings(timeout_s=2)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("timeout_s: fast", "5:46: 'timeout_s' is 'fast', expected float"),
        ("timeout_s: 0", "5:46: the guard cannot use timeout_s: 0, expected seconds, more than 0"),
        ("isolate: thread", "5:44: 'isolate' is 'thread', expected 'process'"),
        ("on_error: stop", "5:45: 'on_error' is 'stop', expected 'raise' | 'none' | float"),
        ("max_failure_share: 2", "5:54: the guard cannot use max_failure_share: 2, expected a share from 0 to 1"),
        ("timeouts: 2", "shaky.py:shaky' (hint: did you mean 'timeout_s'?)"),
    ],
)
def test_a_wrong_guard_is_told_with_its_place(recipe, keys: str, told: str) -> None:
    with pytest.raises(RecipeErrors) as caught:
        pp.validate(recipe(keys))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "reward",
    [
        "{use: reward_model, model_name_or_path: some/model, timeout_s: 1}",
        "{use: judge, model: some/model, isolate: process}",
        "{use: ensemble, rewards: [{use: judge, model: some/model}], isolate: process}",
    ],
)
def test_a_reward_that_holds_a_model_is_not_isolated(recipe, reward: str) -> None:
    file = recipe("")
    file.write_text(file.read_text().replace('{use: "./shaky.py:shaky"}', reward))
    with pytest.raises(RecipeErrors, match="reward 'mine' cannot have isolate, timeout_s: it holds a model"):
        pp.validate(file)
    file.write_text(
        file.read_text().replace("isolate: process", "on_error: 0.0").replace("timeout_s: 1", "on_error: none")
    )
    pp.validate(file)


@pytest.mark.slow
@pytest.mark.parametrize("use", ["grpo", "online_dpo"])
def test_a_trainer_logs_what_became_of_the_scores(use: str, tiny_model, tiny_data, write_recipe, tmp_path) -> None:
    (tmp_path / "odd.py").write_text(
        textwrap.dedent("""
        def odd(completions, **columns):
            if len(completions[0][0]["content"]) % 2: raise ValueError("odd")
            return [1.0]

        async def slowly(completions, **columns):
            return [float(len(completion)) for completion in completions]
        """)
    )
    length = "max_new_tokens" if use == "online_dpo" else "num_generations: 4, max_completion_length"
    recipe = write_recipe(
        """
        name: logs
        model: {model_name_or_path: {model}}
        datasets: {problems: {path: {data}/problems.jsonl, limit: 4}}
        rewards:
          odd: {use: "./odd.py:odd", timeout_s: 30, max_failure_share: 1.0, num_workers: 1}
          slowly: {use: "./odd.py:slowly", on_error: raise}
        stages:
          rl: {use: {use}, dataset: problems, rewards: [odd, slowly], model: base, args: {args}}
        """,
        model=tiny_model,
        data=tiny_data,
        use=use,
        args=f"{{max_steps: 2, logging_steps: 1, per_device_train_batch_size: 4, {length}: 8}}",
    )
    run = pp.run(recipe, runs_dir=tmp_path / "runs")
    logged = [line.figures for line in read_figures(run["rl"].folder) if "rewards/odd/ok" in line.figures]
    assert len(logged) >= 2
    total = run["rl"].metrics
    assert total["rewards/odd/ok"] + total["rewards/odd/error"] == total["rewards/slowly/ok"] > 0
    for kind in ("ok", "error"):
        assert sum(row[f"rewards/odd/{kind}"] for row in logged) == total[f"rewards/odd/{kind}"]
