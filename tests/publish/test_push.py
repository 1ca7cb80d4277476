"""A push: private, of listed files alone, told before; whatever the Hub does, what was made stands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.cli.tables import pushes_of
from posttrain_plugins.errors import InputError, RecipeErrors
from posttrain_plugins.publish.push import files_to_push

TOKEN = "hf_" + "s3cret" * 6
RECIPE = """
    name: pushed
    model: {model}
    stages:
      out: {use: export, model: base, to: {to}, push_to_hub: me/x, {more}}
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """A Hub of this test's; called with a recipe, it runs it there by the command line, with faults."""
    root = tmp_path / "hub"
    root.mkdir()
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "hub.py"), str(root)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    address = server.stdout.readline().strip()

    def run(recipe: Path, **faults: list[Any]) -> tuple[int, str]:
        (root / "faults.json").write_text(json.dumps(faults))
        command = [sys.executable, "-m", "posttrain_plugins", "run", str(recipe), "--runs-dir", str(tmp_path / "runs")]
        home = tmp_path / "hf"
        env = {**os.environ, "HF_ENDPOINT": address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
        env |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "COLUMNS": "400"}
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr

    yield run
    server.kill()
    server.communicate()


def pushed(tmp_path: Path) -> dict[str, bytes]:
    folder = tmp_path / "hub/repos/me/x"
    return {file.name: file.read_bytes() for file in folder.iterdir()} if folder.is_dir() else {}


@pytest.fixture
def recipe(write_recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda more="": write_recipe(RECIPE, model=tiny_model, to=tmp_path / "out", more=more)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("faults", "message", "hint"),
    [
        ({}, "", ""),
        ({"/commit/": [500]}, "the Hub says 500: planted 500", "the same command pushes it again"),
        ({"/commit/": [429]}, "the Hub says 429: planted 429", "wait some minutes"),
        ({"/commit/": ["cut"]}, "is not pushed: RemoteProtocolError", "the same command pushes it again"),
        ({"/api/repos/create": [403]}, "the Hub says 403", "use a token that may write there"),
    ],
)
def test_whatever_the_hub_does_what_was_made_stands(
    hub: Callable[..., Any],
    recipe: Callable[[str], Path],
    tmp_path: Path,
    faults: dict[str, list[Any]],
    message: str,
    hint: str,
) -> None:
    code, told = hub(recipe(""), **faults)
    marker = (tmp_path / "out/posttrain_export.json").stat().st_mtime_ns
    if faults:
        assert code == 1
        assert "me/x is not pushed" in told
        assert message in told
        assert hint in told
        assert set(pushed(tmp_path)) <= {".private"}, "a commit is there or not"
        assert (tmp_path / "out/model.safetensors").is_file()
        code, again = hub(recipe(""))
        told += again
        assert (tmp_path / "out/posttrain_export.json").stat().st_mtime_ns == marker, "what stands is not written again"
    assert code == 0, told
    found = pushed(tmp_path)
    assert json.loads(found.pop(".private")) is True
    assert found.keys() == {
        *("README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"),
        *("resolved.yaml", "tokenizer.json", "tokenizer_config.json"),
    }
    assert all(content == (tmp_path / "out" / name).read_bytes() for name, content in found.items())
    assert "pushed to me/x (private): 8 files" in told
    written = [file for file in tmp_path.rglob("*") if file.is_file() and "hub" not in file.relative_to(tmp_path).parts]
    assert not [file for file in written if TOKEN.encode() in file.read_bytes()]
    assert TOKEN not in told
    assert not [file for file in (tmp_path / "hf").rglob("*") if file.is_file()], "the Hub's cache"
    asked = [json.loads(line) for line in (tmp_path / "hub/asked.jsonl").read_text().splitlines()]
    assert all(token == f"Bearer {TOKEN}" for _, path, token in asked if path.startswith("/api/"))
    code, told = hub(recipe(""))
    assert (code, len((tmp_path / "hub/asked.jsonl").read_text().splitlines())) == (0, len(asked)), "done is done"


@pytest.mark.slow
def test_a_public_repository_is_not_written_by_a_private_push(
    hub: Callable[..., Any], recipe: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "hub/repos/me/x"
    folder.mkdir(parents=True)
    (folder / ".private").write_text("false")
    code, told = hub(recipe(""))
    assert code != 0
    assert "is there and public" in told
    assert pushed(tmp_path).keys() == {".private"}
    assert hub(recipe("private: false"))[0] == 0
    assert "model.safetensors" in pushed(tmp_path)


def test_the_plan_and_a_dry_run_tell_what_would_be_pushed(
    recipe: Callable[[str], Path], tmp_path: Path, tiny_model: Path
) -> None:
    gb = f"{(tiny_model / 'model.safetensors').stat().st_size / 1e9:.3g} GB"
    file = recipe("push_dry_run: true")
    (line,) = pushes_of(pp.plan(file, runs_dir=tmp_path / "runs"))
    assert line == (
        "out would push (dry run) to me/x (private): weights (*.safetensors), configs, tokenizer, README.md, "
        f"resolved.yaml: about {gb}, as its base"
    )
    done = pp.run(file, runs_dir=tmp_path / "runs")["out"]
    told = done.details["pushed"]
    assert (told["repository"], told["private"], told["address"]) == ("me/x", True, None)
    names = [path.name for path in files_to_push(tmp_path / "out")]
    assert told["files"] == names
    assert "posttrain_export.json" not in names
    (line,) = pushes_of(pp.plan(file, runs_dir=tmp_path / "runs"))
    assert f"private): {', '.join(names)}: " in line
    (line,) = pushes_of(pp.plan(recipe("private: false"), runs_dir=tmp_path / "runs"))
    assert line.startswith("out pushes to me/x (PUBLIC): weights")


def test_nothing_but_the_list_is_pushed(tmp_path: Path) -> None:
    for name in ("model.safetensors", "training_args.bin", "rollouts.jsonl", "decisions.jsonl", ".env", "optimizer.pt"):
        (tmp_path / name).touch()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/model.safetensors").touch()
    (tmp_path / "config.json").symlink_to("/etc/hostname")
    assert [file.name for file in files_to_push(tmp_path)] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["x", "me/x/y", "https://hub/me/x", "me/", "me x/y"])
def test_a_name_that_is_none_is_refused_by_the_check(recipe: Callable[[str], Path], name: str) -> None:
    file = recipe("")
    file.write_text(file.read_text().replace("me/x", f'"{name}"'))
    with pytest.raises(RecipeErrors, match="expected ME/NAME"):
        pp.validate(file)


def test_without_the_hub_the_export_stands(
    recipe: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(InputError, match="the Hub is switched off"):
        pp.run(recipe(""), runs_dir=tmp_path / "runs")
    assert (tmp_path / "out/model.safetensors").is_file()
