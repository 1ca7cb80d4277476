"""What SECURITY.md promises: each of its lines names a test, and these are those that stand nowhere else."""

from __future__ import annotations

import ast
import contextlib
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import posttrain_plugins
import posttrain_plugins as pp
from posttrain_plugins.cli.commands import app
from posttrain_plugins.errors import InputError, RecipeErrors, StageFailed
from posttrain_plugins.recipe import files
from posttrain_plugins.recipe.read.secrets import has_password, is_secret
from posttrain_plugins.sandbox.run import SandboxLimits, run, working_sandbox

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "SECURITY.md"
PACKAGE = Path(posttrain_plugins.__file__).parent
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


# --- the page --------------------------------------------------------------------------------------------------------


def test_every_line_of_the_page_names_a_test_that_there_is() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| (?!---|what )", line)]
    assert len(rows) > 30
    for row in rows:
        named = TEST.findall(row)
        assert named, f"no test: {row}"
        for file, test in named:
            known = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
                     if isinstance(node, ast.FunctionDef)}  # fmt: skip
            assert test in known, f"{file} has no {test}"


# --- recipes ---------------------------------------------------------------------------------------------------------

MINE = """
from pathlib import Path
Path(__file__).with_name("imported").touch()

from dataclasses import dataclass
from posttrain_plugins.types import StageResult

@dataclass
class Figures:
    produces = "figures"

    def __call__(self, context):
        import os
        print("the environment has", len(os.environ), "names")
        return StageResult(metrics={"one": 1.0})
"""
RECIPE = "name: safe\nmodel: none/such\nstages: {it: {use: './mine.py:Figures'}}"


@pytest.fixture
def recipe(write_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    return write_recipe(RECIPE)


def test_looking_at_a_recipe_imports_none_of_its_files(recipe: Path, tmp_path: Path) -> None:
    for command in (["validate", str(recipe)], ["plan", str(recipe), "--runs-dir", str(tmp_path / "runs")]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    assert not (tmp_path / "imported").exists()


def test_plan_announces_whose_code_runs(recipe: Path, tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    told = CliRunner().invoke(app, ["plan", str(recipe)]).output
    assert f"it runs code that the recipe names: {tmp_path}/mine.py:Figures" in told.replace("\n", "")
    (tmp_path / "r.py").write_text("def score(completions, **columns): return [1.0 for _ in completions]\n")
    (tmp_path / "problems.jsonl").write_text('{"prompt": "x"}\n')
    more = write_recipe(
        """
        model: {model_name_or_path: some/model, trust_remote_code: true, attn_implementation: some/kernel}
        datasets: {problems: {path: problems.jsonl}}
        stages:
          it: {use: evaluate, models: [base], dataset: problems, rewards: [./r.py:score]}
        """,
        name="more.yaml",
    )
    done = CliRunner().invoke(app, ["plan", str(more)])
    told = done.output.replace("\n", "")
    assert "r.py:score" in told, done.exception
    assert "trust_remote_code" in told
    assert "some/kernel" in told
    packaged = CliRunner().invoke(app, ["plan", "quickstart", "--runs-dir", str(tmp_path / "runs")])
    assert packaged.exit_code == 0
    assert "runs code that the recipe names" not in packaged.output


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['touch here']", "!!python/name:os.system ''"])
def test_a_tag_of_yaml_makes_no_object(tag: str, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        pp.plan(write_recipe(f"model: none/such\nseed: {tag}\nstages: {{}}"), runs_dir=tmp_path / "runs")
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("name", ["..", "../other", "/absolute", "a/b"])
def test_a_name_leads_out_of_no_folder(name: str, recipe: Path, tmp_path: Path) -> None:
    for text in (
        RECIPE.replace("name: safe", f"name: {name!r}"),
        RECIPE.replace("{it:", f"{{{name!r}:"),
    ):
        recipe.write_text(text, encoding="utf-8")
        with pytest.raises(RecipeErrors, match="has other characters"):
            pp.plan(recipe, runs_dir=tmp_path / "runs")


# --- models and runs -------------------------------------------------------------------------------------------------


class Planted:
    """Runs a command where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}')
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    return folder


def test_weights_in_pickle_are_refused_by_validate(
    pickled: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    text = "model: {model_name_or_path: {folder}, {trust}}\nstages: {it: {use: export, model: base, to: {out}}}"
    out = tmp_path / "out"
    with pytest.raises(RecipeErrors, match="has its weights in pickle files alone; allow_pickle: true beside"):
        pp.plan(write_recipe(text, folder=pickled, out=out, trust="dtype: float32"), runs_dir=tmp_path / "runs")
    pp.plan(write_recipe(text, folder=pickled, out=out, trust="allow_pickle: true"), runs_dir=tmp_path / "runs")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    (adapter / "adapter_model.bin").touch()
    assert "pickle" in str(files.model_problem(adapter))
    assert files.model_problem(adapter, allow_pickle=True) is None
    assert not (tmp_path / "ran").exists()


def test_weights_in_pickle_are_not_read(pickled: Path, tmp_path: Path) -> None:
    """By whatever command; and where it is allowed, torch's own reader runs none of it."""
    from posttrain_plugins.models.load import load_model

    with pytest.raises(InputError, match=r"has no \*\.safetensors, and pickle is not read unasked") as told:
        load_model(pickled)
    assert "allow_pickle: true" in str(told.value.hint)
    with pytest.raises(Exception, match=r"weights_only|Weights only|pickle"):
        load_model(pickled, {"allow_pickle": True})
    assert not (tmp_path / "ran").exists()


def test_no_line_of_the_package_unpickles_a_file() -> None:
    """`torch.load` reads tensors alone; what is unpickled at all comes through a pipe from a process of its own."""
    through_a_pipe = {"processes/child.py", "testing/stages.py", "testing/rewards.py"}
    found = 0
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called == "torch.load":
                found += 1
                options = {word.arg: ast.unparse(word.value) for word in node.keywords}  # type: ignore[attr-defined]
                assert options.get("weights_only") == "True", f"{name}: {ast.unparse(node)}"
            assert called not in ("joblib.load", "dill.load", "dill.loads", "pickle.load", "eval", "exec"), name
            if called == "pickle.loads":
                found += 1
                assert name in through_a_pipe, f"{name}: {ast.unparse(node)}"
    assert found > 2


@pytest.mark.slow
def test_a_checkpoint_with_code_in_it_runs_none(
    tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """A stranger's run folder, whose marker says that all is well."""
    from posttrain_plugins.checkpoints import mark_complete

    text = f"""
        name: planted
        model: {tiny_model}
        stages:
          it:
            use: sft
            model: base
            dataset: {{path: "{tiny_data}/demos.jsonl"}}
            args: {{max_steps: 6, save_strategy: steps, save_steps: 2, per_device_train_batch_size: 2,
                   gradient_checkpointing: false}}
    """
    recipe = write_recipe(text)
    whole = pp.run(recipe, runs_dir=tmp_path / "whole")["it"]
    runs = tmp_path / "runs/planted"
    partial = runs / f".{whole.folder.name}.partial"
    checkpoint = partial / "checkpoints/checkpoint-4"
    (partial / "checkpoints").mkdir(parents=True)
    found = whole.folder / "checkpoints/checkpoint-4"
    assert found.is_dir()
    for name in ("optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin"):
        shutil.rmtree(checkpoint, ignore_errors=True)
        shutil.copytree(found, checkpoint)
        (checkpoint / name).write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
        mark_complete(checkpoint)
        with contextlib.suppress(StageFailed):
            pp.run(recipe, runs_dir=tmp_path / "runs")
        assert not (tmp_path / "ran").exists(), name
        shutil.rmtree(runs)
        (partial / "checkpoints").mkdir(parents=True)


def test_a_chat_template_reaches_nothing_of_python() -> None:
    from jinja2.exceptions import SecurityError

    from posttrain_plugins.tiny_world.tokenizer import tokenizer

    words = tokenizer()
    evil = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(SecurityError):
        words.apply_chat_template([{"role": "user", "content": "x"}], chat_template=evil, tokenize=False)


# --- secrets ---------------------------------------------------------------------------------------------------------

SECRET = "s3cr3t-0f-mine-42"


@pytest.mark.parametrize("name", ["api_key", "token", "password", "hub_token", "client_secret", "apiKey", "hf_token"])
def test_a_secret_in_a_recipe_is_refused_and_not_repeated(name: str, recipe: Path, tmp_path: Path) -> None:
    for overrides in ([], [f"stages.it.{name}={SECRET}"]):
        if not overrides:
            recipe.write_text(RECIPE.replace("Figures'", f"Figures', {name}: {SECRET}"), encoding="utf-8")
        else:
            recipe.write_text(RECIPE, encoding="utf-8")
        with pytest.raises(RecipeErrors, match=f"'{name}' is a secret, and a recipe is kept with its results") as told:
            pp.run(recipe, overrides, runs_dir=tmp_path / "runs")
        assert SECRET not in str(told.value)
        assert "environment" in str(told.value)
    assert not (tmp_path / "runs").exists()


def test_words_that_are_no_secrets_stand() -> None:
    for name, value in {
        "eos_token": "<eos>",
        "max_tokens": 5,
        "token": 7,
        "tokenizer": "x",
        "push_to_hub": "a/b",
    }.items():
        assert not is_secret(name, value), name
    assert not has_password("http://localhost:8000/v1#org/model@best_of_n(n=4)")
    assert not has_password("write to me: a@b.c")


def test_a_password_in_an_address_is_refused(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"http://me:{SECRET}@localhost:9/v1#m"
    (tmp_path / "problems.jsonl").write_text('{"prompt": "x", "solution": "1"}\n')
    text = """
        model: "{address}"
        stages:
          it: {use: evaluate, models: [base], dataset: {path: problems.jsonl}, rewards: [exact_answer]}
    """
    with pytest.raises(RecipeErrors, match="an address holds a password") as told:
        pp.plan(write_recipe(text, address=address), runs_dir=tmp_path / "runs")
    assert SECRET not in str(told.value)
    monkeypatch.chdir(tmp_path)
    for command in (
        ["ask", address, "x"],
        ["evaluate", address, "--dataset", "problems.jsonl", "--reward", "exact_answer"],
    ):
        done = CliRunner().invoke(app, command)
        assert isinstance(done.exception, InputError), done.output
        assert SECRET not in f"{done.output}{done.exception}"
    monkeypatch.setenv("OPENAI_BASE_URL", address.partition("#")[0])
    from posttrain_plugins.backends.openai.backend import OpenAIBackend

    with pytest.raises(InputError, match="holds a user or a password"):
        OpenAIBackend("m")
    assert not [
        file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".yaml" and SECRET in file.read_text()
    ]


def test_secrets_of_the_environment_are_in_no_file_and_no_line(recipe: Path, tmp_path: Path) -> None:
    names = ("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "MY_PASSWORD", "POSTTRAIN_ANNOTATE_TOKEN")
    environment = {**os.environ, **{name: f"{SECRET}-{name}" for name in names}}
    told = ""
    for words in (
        ["run", str(recipe), "--runs-dir", "runs", "--debug"],
        ["plan", str(recipe), "--runs-dir", "runs", "--json"],
        ["report", "runs/safe"],
        ["runs", "show", "--json", "--runs-dir", "runs"],
        ["run", str(recipe), "--runs-dir", "runs", "-o", "stages.it.nonsense=1", "--debug"],
    ):
        command = [sys.executable, "-m", "posttrain_plugins", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        told += done.stdout + done.stderr
    assert "one" in told
    assert SECRET not in told
    written = [file for file in (tmp_path / "runs").rglob("*") if file.is_file()]
    assert len(written) > 4
    for file in written:
        assert SECRET.encode() not in file.read_bytes(), file


# --- what the sandbox does not stop ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sandbox() -> Any:
    try:
        return working_sandbox()
    except InputError as error:
        pytest.skip(str(error))


def test_not_stopped_it_reads_what_is_installed(sandbox: Any) -> None:
    """The interpreter's library, and every package that is installed into it: keep no secret in that folder."""
    ran = run(f"print(len(open({os.__file__!r}).read()) > 0)", sandbox=sandbox)
    assert ran.stdout == "True\n"


def test_not_stopped_memory_is_for_each_process(sandbox: Any) -> None:
    """Four processes of 200 MiB each, under a limit of 512 MiB: `processes` times `memory_mib` is what it may take."""
    program = """
import os
for _ in range(4):
    if os.fork() == 0:
        held = bytearray(200 << 20)
        os._exit(0 if held[-1] == 0 else 1)
print(sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(4)))
"""
    ran = run(program, limits=SandboxLimits(time_s=20.0, memory_mib=512, processes=16), sandbox=sandbox)
    assert ran.stdout == "[0, 0, 0, 0]\n", ran


def test_not_stopped_the_kernel_is_shared(sandbox: Any) -> None:
    """It asks the same kernel as you: what that says of itself is the same."""
    ran = run("import os; print(os.uname().release, os.uname().version)", sandbox=sandbox)
    assert ran.stdout.strip() == f"{os.uname().release} {os.uname().version}"


def test_not_stopped_a_program_prints_what_it_likes(sandbox: Any) -> None:
    """What it prints is compared, never run; only its amount is limited."""
    ran = run("print('x' * (8 << 20))", sandbox=sandbox)
    assert len(ran.stdout) == 4 << 20
