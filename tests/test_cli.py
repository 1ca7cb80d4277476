"""The command line as a user meets it: output, exit codes, and what it must not import."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.errors import InputError, StageFailed

HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "fastapi", "uvicorn", "numpy")


def posttrain(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "posttrain_plugins", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"], ["run", "--help"], ["ask", "--help"], ["serve", "--help"], ["plugins", "list"],
        ["plugins", "show", "lora"], ["validate", "quickstart"],
    ],
)  # fmt: skip
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['posttrain', *{arguments!r}]\n"
        "from posttrain_plugins.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_packaged_recipe_is_valid() -> None:
    from posttrain_plugins.recipe.read.packaged import packaged_recipes

    # those on a real model need its weights: tests/test_real_recipes.py
    names = sorted(name for name in packaged_recipes() if not name.startswith("real/"))
    assert {"quickstart", "lora", "my_own_data"} <= set(names)
    done = posttrain("validate", *names)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fine") == len(names)


def test_unknown_recipe_is_exit_2_with_a_suggestion() -> None:
    done = posttrain("run", "quikstart")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no recipe 'quikstart'")
    assert "did you mean 'quickstart'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_validate_json_lists_every_mistake(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(
        "model: ./nowhere\nstages:\n  sft: {use: stf, model: base}\n  dpo: {use: dpo, model: sftt, dataset: d}\n"
    )
    done = posttrain("validate", str(recipe), "--json")
    assert done.returncode == 2
    mistakes = json.loads(done.stdout)["mistakes"]
    assert [m["line"] for m in mistakes] == [1, 3, 4, 4]
    assert "did you mean 'sft'?" in {m["hint"] for m in mistakes}


def test_plan_json_says_what_runs_and_why(tmp_path: Path) -> None:
    done = posttrain("plan", "quickstart", "--runs-dir", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    stages = {stage["stage"]: stage for stage in json.loads(done.stdout)}
    assert next(iter(stages)) == "base"
    assert stages["grpo"]["from"] == ["sft"]
    assert all(stage["runs"] and stage["reasons"] for stage in stages.values())


def test_plan_table_is_readable(tmp_path: Path) -> None:
    done = posttrain("plan", "lora", "--runs-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "never run" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 160


def test_plugins_list_json_names_ours_with_version() -> None:
    rows = json.loads(posttrain("plugins", "list", "--json").stdout)
    ours = {(row["kind"], row["name"]) for row in rows if row["distribution"] == "posttrain-plugins"}
    assert {("stage", "grpo"), ("reward", "regex"), ("adapter", "lora"), ("strategy", "best_of_n")} <= ours
    assert all(row["status"] == "ok" and row["summary"] for row in rows)


@pytest.mark.parametrize("width", [80, 160, None])
def test_plugins_list_breaks_no_name_at_any_width(width: int | None, capsys: Any) -> None:
    from posttrain_plugins.cli.plugins import print_plugins
    from posttrain_plugins.recipe.describe import catalogue

    rows = catalogue.listing()
    print_plugins(rows, width)
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= width if width else len(lines) == len(rows) + 1
    for row in rows:
        cells = (row["kind"], row["name"], row["distribution"], row["version"], row["status"])
        assert re.search(r"\b" + r"\W+".join(map(re.escape, cells)), text), row["name"]
        assert row["summary"][:20] in text


def test_a_summary_read_from_the_source_is_the_docstrings_first_line() -> None:
    """`plugins list` reads it by a pattern; every built-in's is what Python itself finds."""
    from posttrain_plugins.plugins import registry
    from posttrain_plugins.recipe.describe import catalogue

    rows = [row for row in catalogue.listing() if row["distribution"] == "posttrain-plugins"]
    assert len(rows) > 50
    for row in rows:
        doc = inspect.getdoc(registry.load(row["kind"], f"posttrain-plugins:{row['name']}")) or ""
        assert row["summary"] == doc.partition("\n")[0], row["name"]


def test_validate_counts_one_stage_as_one(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(
        "model: Qwen/Qwen3-0.6B\n"
        "stages: {s: {use: grpo, model: base, dataset: 'digit_chain(size=8)', rewards: [exact_answer]}}\n"
    )
    assert posttrain("validate", "one.yaml", cwd=tmp_path).stdout == "one.yaml: fine, 1 stage: s\n"


def test_plugins_show_has_parameters_and_columns() -> None:
    found = json.loads(posttrain("plugins", "show", "exact_answer", "--json").stdout)
    assert found["columns"] == ["solution"]
    assert found["doc"]
    lora = json.loads(posttrain("plugins", "show", "lora", "--json").stdout)
    assert {"r", "lora_alpha", "target_modules"} <= {p["name"] for p in lora["parameters"]}


def test_plugins_show_unknown_suggests() -> None:
    done = posttrain("plugins", "show", "exact_anser")
    assert done.returncode == 2
    assert "did you mean 'exact_answer'?" in done.stderr


def test_unwritable_runs_dir_is_a_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    done = posttrain("run", "quickstart", "--runs-dir", str(file / "runs"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "--runs-dir" in done.stderr


def test_report_of_an_unknown_run_is_exit_2(tmp_path: Path) -> None:
    done = posttrain("report", "nothing", "--runs-dir", str(tmp_path))
    assert done.returncode == 2
    assert "no run 'nothing'" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        *("run", "validate", "plan", "watch", "report", "annotate", "evaluate", "ask", "serve", "schema", "doctor"),
        *("plugins list", "plugins show", "plugins new", "plugins check"),
        *("runs list", "runs show", "runs verify", "runs prune"),
        *("rewards test", "rewards stress", "rewards replay", "rewards audit"),
    ],
)
def test_help_of_every_command_teaches(command: str) -> None:
    done = posttrain(*command.split(), "--help")
    assert done.returncode == 0
    assert len(done.stdout) > 300, command
    text = " ".join(done.stdout.split())
    assert re.search(rf"posttrain {command} (?!\[OPTIONS)\S", text), "an example of its use"
    assert "`" not in text, "backticks are rendered"


def test_every_command_is_tested_for_its_help() -> None:
    listed = re.findall(r"^\W+(\w+)\s{2,}\S", posttrain("--help").stdout, re.MULTILINE)
    alone = {"run", "validate", "plan", "watch", "report", "annotate", "evaluate", "ask", "serve", "schema", "doctor"}
    assert alone | {"plugins", "rewards", "runs"} == set(listed) - {"help", "version"}


def test_version_is_the_packages() -> None:
    assert posttrain("--version").stdout == f"posttrain-plugins {version('posttrain-plugins')}\n"


PLUGINS = ("stages.", "strategies.", "rewards.", "datasets.", "adapters.")
MAY_IMPORT = {
    "--help": ("cli.", "errors"),
    "plugins list": ("cli.", "errors", "plugins.registry", "recipe.describe.catalogue", "types.plugins"),
    "validate quickstart": (
        *(
            "cli.",
            "errors",
            "types.",
            "plugins.",
            "text.",
            "rows.",
            "models.",
            "guard.settings",
            "tiny_world.",
            *PLUGINS,
        ),
        *("recipe.read.", "recipe.check.", "recipe.spec", "recipe.build", "recipe.files", "recipe.handoff"),
        *("recipe.lineage", "recipe.plugin_schema", "recipe.read_source", "recipe.source_hash", "checkpoints"),
        # what stages say of their settings, and the choices that their fields have
        *("trainers.compat", "trainers.ppo.rules", "trainers.stage_rules", "trainers.tool_rules", "training_data."),
        *("backends.engines", "trainers.vllm_rules"),
        *("engine.trace", "evaluation.missing"),
    ),
}
SLOW = {
    *(
        "torch",
        "transformers",
        "trl",
        "peft",
        "datasets",
        "numpy",
        "pandas",
        "asyncio",
        "multiprocessing",
        "rich.console",
    ),
    *("concurrent.futures", "importlib.metadata", "email"),
}


@pytest.mark.parametrize("command", MAY_IMPORT)
def test_a_light_command_imports_what_it_needs_and_no_more(command: str) -> None:
    """What these commands import is what they take; no clock, which tells more of the machine."""
    code = (
        "import sys\n"
        f"sys.argv = ['posttrain', *{command.split()!r}]\n"
        "from posttrain_plugins.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print(*((name, module.__file__) for name, module in sys.modules.items() if getattr(module, '__file__', None)),"
        " sep='\\n', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded = dict(re.findall(r"^\('([\w.]+)', '(.*)'\)$", done.stderr, re.MULTILINE))
    assert "posttrain_plugins.cli.commands" in loaded, done.stderr
    assert not SLOW & set(loaded)
    assert ("yaml" in loaded) == command.startswith("validate")
    ours = [name.partition(".")[2] for name, file in loaded.items() if name.startswith("posttrain_plugins.")]
    files = [name for name in ours if not loaded[f"posttrain_plugins.{name}"].endswith("__init__.py")]
    assert [name for name in files if not f"{name}.".startswith(MAY_IMPORT[command])] == []


# --- ask -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ask() -> Callable[..., None]:
    """The command as a function; typer 0.25 imports a name that click 8.5 is about to drop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from posttrain_plugins.cli.ask import ask as command
    return command


SHORT = {"max_tokens": 12, "strategy": "self_consistency(n=3)"}


def test_ask_prints_the_answer_alone(ask: Callable[..., None], tiny_model: Path, capsys: Any) -> None:
    ask(str(tiny_model), ["3|7>2"], **SHORT)
    once = capsys.readouterr()
    ask(str(tiny_model), ["3|7>2"], **SHORT)
    assert capsys.readouterr().out == once.out != "\n"
    assert "#" not in once.out
    ask(str(tiny_model), ["3|7>2"], **SHORT, seed=1)
    assert capsys.readouterr().out != once.out


def test_ask_draws_as_the_model_says_unless_told_otherwise(
    ask: Callable[..., None], tiny_model: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's generation_config, below an adapter too; what the user says goes before it; a server's is its own."""
    from posttrain_plugins.engine import solve as engine

    model = shutil.copytree(tiny_model, tmp_path / "model")
    said = {"temperature": 0.2, "top_p": 0.9, "top_k": 20, "do_sample": True, "eos_token_id": 2}
    (model / "generation_config.json").write_text(json.dumps(said), encoding="utf-8")
    drawn: list[Any] = []
    solve = engine.solve
    monkeypatch.setattr(
        engine, "solve", lambda s, problems, **o: drawn.append(problems[0].params) or solve(s, problems, **o)
    )
    ask(str(model), ["3|7>2"], strategy="self_consistency(n=2)", max_tokens=4)
    assert (drawn[-1].temperature, drawn[-1].top_p, drawn[-1].top_k) == (0.2, 0.9, 20)
    assert "generation_config says: temperature 0.2, top_p 0.9, top_k 20" in capsys.readouterr().err
    ask(str(model), ["3|7>2"], strategy="self_consistency(n=2)", max_tokens=4, temperature=1.5, top_k=0)
    assert (drawn[-1].temperature, drawn[-1].top_p, drawn[-1].top_k) == (1.5, 0.9, 0)
    capsys.readouterr()
    ask(str(tiny_model), ["3|7>2"], strategy="self_consistency(n=2)", max_tokens=4)
    assert (drawn[-1].temperature, drawn[-1].top_p, drawn[-1].top_k) == (1.0, 1.0, 0)
    assert "generation_config" not in capsys.readouterr().err
    with pytest.raises(InputError, match="top_p is 0"):
        ask("no/such-model", ["3|7>2"], top_p=0.0)


def test_ask_json_has_answer_text_usage_and_trace(ask: Callable[..., None], tiny_model: Path, capsys: Any) -> None:
    ask(str(tiny_model), ["3|7>2"], **SHORT, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert {"question", "answer", "text", "usage", "trace", "stopped_by", "error"} <= set(found)
    assert found["question"] == "3|7>2"
    assert found["usage"]["policy"]["completion_tokens"] > 0
    assert len(found["trace"][0]["completions"]) == 3


def test_ask_takes_many_questions(
    ask: Callable[..., None], tiny_model: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "q.txt").write_text("3|7>2\n\n4>2\n")
    rows = [{"prompt": "3|7>2"}, {"prompt": [{"role": "user", "content": "4>2"}]}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = []
    for file in ("q.txt", "q.jsonl"):
        ask(str(tiny_model), file=tmp_path / file, **SHORT, as_json=True)
        told.append([(row["question"], row["text"]) for row in json.loads(capsys.readouterr().out)])
    assert told[0] == told[1]
    assert [question for question, _ in told[0]] == ["3|7>2", "4>2"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("3|7>2\n4>2\n"))
    ask(str(tiny_model), file=Path("-"), **SHORT)
    assert capsys.readouterr().out == "# 3|7>2\n{}\n\n# 4>2\n{}\n".format(*(text for _, text in told[0]))
    monkeypatch.setattr(sys, "stdin", io.StringIO("3|7>2\n"))
    ask(str(tiny_model), ["-"], **SHORT)
    assert capsys.readouterr().out == told[0][0][1] + "\n"


def test_ask_shows_and_writes_the_trace(
    ask: Callable[..., None], tiny_model: Path, tmp_path: Path, capsys: Any
) -> None:
    page = tmp_path / "pages" / "trace.html"
    ask(str(tiny_model), ["3|7>2"], **SHORT, trace=True, trace_html=page)
    told = capsys.readouterr()
    assert told.err.count("○ answer") + told.err.count("● answer") == 3
    assert "● answer" in told.err
    assert "policy: " in told.err
    assert str(page) in told.err
    assert "○" not in told.out
    html = page.read_text()
    assert "self_consistency(n=3)" in html
    assert html.count("<li") == 3
    ask(str(tiny_model), ["3|7>2", "4>2"], **SHORT, trace_html=page)
    assert sorted(file.name for file in page.parent.iterdir()) == ["trace-0.html", "trace-1.html", "trace.html"]


def test_ask_within_a_budget(ask: Callable[..., None], tiny_model: Path, capsys: Any) -> None:
    ask(str(tiny_model), ["3|7>2"], max_tokens=12, strategy="self_consistency(n=8)", budget="completions=2", trace=True)
    told = capsys.readouterr().err
    assert told.count("○ answer") + told.count("● answer") == 2
    assert "ended by the budget: completions" in told


def test_ask_with_a_tool_from_a_file(ask: Callable[..., None], tiny_model: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine.py").write_text(
        "from posttrain_plugins.types import CallTool, Result\n"
        "def add(a: int, b: int) -> int:\n    return a + b\n"
        "def calling(problem):\n    said = yield CallTool('add', {'a': 2, 'b': 3})\n"
        "    return Result(said, f'{said} of {len(problem.tools)}')\n"
    )
    ask(str(tiny_model), ["x"], strategy=f"{tmp_path}/mine.py:calling", tool=[f"{tmp_path}/mine.py:add"])
    assert capsys.readouterr().out == "5 of 1\n"


def test_a_tool_that_cannot_be_called_is_refused_before_the_model(ask: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text("LIMIT = 3\n")
    with pytest.raises(InputError, match="tool 'int' cannot be called: 3"):
        ask("no/such-model", ["3|7>2"], strategy="react", tool=[f"{tmp_path}/tools.py:LIMIT"])


def test_ask_says_when_a_strategy_fails(ask: Callable[..., None], tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def bad(problem):\n    raise ValueError('no good')\n    yield\n")
    with pytest.raises(StageFailed, match="on 2 of 2 questions: ValueError: no good"):
        ask(str(tiny_model), ["x", "y"], strategy=f"{tmp_path}/bad.py:bad")
    with pytest.raises(
        StageFailed, match="strategy 'greedy' has no answer on 1 of 2 questions: no room for a completion"
    ):
        ask(str(tiny_model), ["1" * 9000, "1<2"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"question": []}, "no question is given"),
        ({"file": Path("nowhere.txt")}, "the questions cannot be read: nowhere.txt"),
        ({"budget": "token=5"}, "the budget cannot be read: 'token=5'"),
        ({"budget": "tokens=0"}, "tokens is '0'"),
        ({"budget": "tokens=many"}, "tokens is 'many'"),
        ({"budget": "seconds=inf"}, "seconds is 'inf'"),
        ({"strategy": "self_consistancy"}, "self_consistancy"),
        ({"strategy": "best_of_n(n=2, scorer=nothing)"}, "nothing"),
        ({"tool": ["nowhere.py:add"]}, "cannot be imported"),
        ({}, "model 'no/such-model' cannot be loaded: "),
        ({"model": "norun:stage"}, "run 'norun' has no finished stage 'stage'"),
    ],
)
def test_bad_input_of_ask_is_told_before_a_model_is_loaded(
    ask: Callable[..., None], options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)):
        ask(**{"model": "no/such-model", "question": ["x"], **options})


@pytest.mark.parametrize("line", ["3|7", '{"question": "x"}', '{"prompt": 3}', '{"prompt": []}', "[1]"])
def test_a_bad_line_of_questions_has_its_number(ask: Callable[..., None], tmp_path: Path, line: str) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(InputError, match=re.escape(f"{file}:2: ")):
        ask("no/such-model", file=file)


def test_a_question_may_hold_a_line_separator(tmp_path: Path) -> None:
    """U+2028 ends a line for Python, and stands raw in JSON."""
    from posttrain_plugins.cli.ask import _from_file

    file = tmp_path / "q.jsonl"
    prompts = ["one\u2028two", "three\x85"]
    file.write_text("".join(json.dumps({"prompt": p}, ensure_ascii=False) + "\n" for p in prompts), encoding="utf-8")
    assert [row["prompt"] for row in _from_file(file)] == prompts


def test_a_scorer_that_needs_a_column_gets_it_from_the_file_or_is_refused(
    ask: Callable[..., None], tiny_model: Path, tmp_path: Path, capsys: Any
) -> None:
    best = {"strategy": "best_of_n(n=2, scorer=exact_answer)", "max_tokens": 6}
    needs = re.escape("scorer 'exact_answer' needs the column solution: the problems have none beside the prompt")
    with pytest.raises(InputError, match=needs):  # before the model, which is not there
        ask("no/such-model", ["3|7>2"], **best)
    file = tmp_path / "q.jsonl"
    file.write_text('{"prompt": "3|7>2", "solution": "1"}\n{"prompt": "4|7>2", "solution": "2"}\n')
    with pytest.raises(InputError, match=needs):  # one question of three has none
        ask("no/such-model", ["3|7>2"], file=file, **best)
    ask(str(tiny_model), file=file, as_json=True, **best)
    assert [[c["score"] for c in row["candidates"]] for row in json.loads(capsys.readouterr().out)] == [[0.0, 0.0]] * 2


def test_ask_as_a_user_types_it(tiny_model: Path, tmp_path: Path) -> None:
    vote = ("--strategy", "self_consistency(n=4)", "--max-tokens", "6", "--trace")
    done = posttrain("ask", str(tiny_model), "3|7>2", *vote, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")
    assert done.stderr.count("── ") == 4
    assert "● answer" in done.stderr
    done = posttrain("ask", str(tiny_model), "3|7>2", "--budget", "words=3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the budget cannot be read")
    assert "hint: limits: tokens, completions, calls, seconds" in done.stderr


# --- evaluate --------------------------------------------------------------------------------------------------------


def measure(mean: float, tokens: float, **about: Any) -> dict[str, Any]:
    interval = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
    costs = {"tokens": tokens * 2, "tokens_per_problem": tokens, "calls": 3, "seconds": 1.25}
    return {"rewards": {"correct": interval}, **costs, **about}


def details(*models: str) -> dict[str, Any]:
    at_k = {"pass": {"1": {"mean": 0.5}, "2": {"mean": 0.75}}, "best//a/b/rm/model": {"2": {"mean": 0.625}}}
    measures = {
        "sampled": measure(0.5, 40, at_k=at_k),
        "greedy @ tokens=500": measure(0.9, 41, pareto=True, stopped=2),
        "best_of_n(n=2, scorer=correct) (oracle)": measure(1.0, 80, oracle=True),
    }
    return {"problems": 2, "metric": "correct", "models": {name: {"measures": measures} for name in models}}


def printed(table: Any) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_of_an_evaluation_says_what_it_takes() -> None:
    from posttrain_plugins.cli.tables import evaluation_table

    text = printed(evaluation_table(details("sft"), "sft: correct on 2 problems"))
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]
    assert rows == [
        ["sampled", "0.500 [0.400, 0.600]", "40", "3", "1.2", ""],
        ["greedy @ tokens=500  2 cut", "0.900 [0.800, 1.000]", "41", "3", "1.2", "*"],
        ["best_of_n(n=2, scorer=correct) (oracle)", "1.000 [0.900, 1.100]", "80", "3", "1.2", ""],
    ]
    for note in ("* nothing else", "oracle: its scorer", "cut: problems"):
        assert note in text
    assert "dpo" in printed(evaluation_table(details("sft", "dpo"), ""))


def test_the_table_of_k_samples() -> None:
    from posttrain_plugins.cli.tables import at_k_table

    text = printed(at_k_table(details("sft")))
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]
    assert rows == [["pass@k", "0.500", "0.750"], ["best@k by …/rm/model", "", "0.625"]]
    assert at_k_table({"models": {"sft": {"measures": {"greedy": measure(1, 1)}}}}) is None


def test_evaluate_plans_every_strategy_at_every_budget(
    ask: Callable[..., None], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain_plugins.cli import evaluate as module

    seen: list[Any] = []
    monkeypatch.setattr(module, "run_and_show", lambda plan, *_, **about: seen.append((plan, about)))
    what = {"dataset": "digit_chain(split=test, size=4)", "reward": ["digit_chain_steps"], "runs_dir": tmp_path}
    module.evaluate(
        str(tiny_model), **what, strategy=["greedy", "self_consistency(n=2)"],
        budget=["tokens=100", "completions=1,seconds=2.5"], verifier=["digit_chain_steps"],
    )  # fmt: skip
    ((plan, about),) = seen
    (stage,) = plan.stages
    assert stage.spec.params["budgets"] == [{"tokens": 100}, {"completions": 1, "seconds": 2.5}]
    assert [strategy.name for strategy in stage.spec.inputs["strategies"]] == ["greedy", "self_consistency(n=2)"]
    assert len(stage.spec.inputs["verifiers"]) == 1
    assert about == {"measured": str(tiny_model)}
    with pytest.raises(InputError, match="budget"):
        module.evaluate(str(tiny_model), **what, budget=["tokens=-1"])


@pytest.mark.slow
def test_evaluate_as_a_user_types_it(tiny_model: Path, tmp_path: Path) -> None:
    command = [
        "evaluate",
        str(tiny_model),
        "--dataset",
        "digit_chain(split=test, size=4)",
        "--reward",
        "digit_chain_steps",
    ]
    command += ["--strategy", "greedy", "--strategy", "self_consistency(n=2)", "--budget", "completions=1"]
    command += ["--max-tokens", "8", "--num-generations", "2"]
    done = posttrain(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for told in (
        "sampled",
        "greedy @ completions=1",
        "self_consistency(n=2) @ completions=1",
        "4 cut",
        "pass@k",
        "maj@k",
    ):
        assert told in done.stdout, told
    files = re.findall(r"^  (\S+)$", done.stderr, re.MULTILINE)
    assert {Path(file).name for file in files} >= {"summary.json", "samples.jsonl"}
    assert all(Path(file).is_file() for file in files)
    again = posttrain(*command, "--json", cwd=tmp_path)
    found = json.loads(again.stdout)["stages"]["evaluate"]["details"]
    assert found["problems"] == 4


def test_package_runs_as_a_module_and_as_a_command() -> None:
    command = Path(sys.executable).parent / "posttrain"
    assert command.exists(), "installed by pip as the console script"
    by_command = subprocess.run([str(command), "--help"], capture_output=True, text=True, check=True, env=os.environ)
    assert by_command.stdout.split() == posttrain("--help").stdout.split()
