"""`engine:`, one word for what answers: transformers or vLLM in this process, or a server that has the model."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import FakeLLM, install
from openai_server import serving

import posttrain_plugins as pp
from posttrain_plugins import api
from posttrain_plugins.backends.engines import check_engine, engine_issues
from posttrain_plugins.backends.open import open_backend, opened
from posttrain_plugins.cli import main
from posttrain_plugins.errors import InputError, RecipeErrors
from posttrain_plugins.plugins.source import of_config
from posttrain_plugins.types import Generate, ModelArtifact, SamplingParams

TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}
CHAT = [{"role": "user", "content": "3|7>2"}]


# --- what is told before anything is loaded --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "options", "models", "said", "field"),
    [
        ("vlm", {}, 1, "engine is 'vlm', expected 'transformers', 'vllm' or the URL of a server", "engine"),
        ("http://gpu:8000/v1#sft", {}, 2, "engine names one model, 'sft', and 2 are asked", "engine"),
        ("transformers", {"max_model_len": 9}, 1, r"vllm has options \(max_model_len\), but engine is 'transf", "vllm"),
        ("vllm", {"max_model_length": 9}, 1, "vLLM has no option 'max_model_length'", "vllm.max_model_length"),
        ("vllm", {"model": "x"}, 1, "vllm cannot be given 'model': it is the model's own", "vllm.model"),
        ("vllm", {"max_model_len": "long"}, 1, "vllm.max_model_len is 'long', expected int", "vllm.max_model_len"),
        ("vllm", {"tensor_parallel_size": 0}, 1, "is 0, expected 1 or more", "vllm.tensor_parallel_size"),
        ("vllm", {"enforce_eager": 1}, 1, "vllm.enforce_eager is 1, expected bool", "vllm.enforce_eager"),
        ("vllm", {"gpu_memory_utilization": 90}, 1, "is 90, expected a share", "vllm.gpu_memory_utilization"),
    ],
)
def test_what_is_wrong(engine: str, options: dict[str, Any], models: int, said: str, field: str) -> None:
    (issue,) = engine_issues(engine, options, models)
    assert issue.field == field
    assert re.search(said, issue.message)
    if models == 1:
        with pytest.raises(InputError, match=said):
            check_engine(engine, options)


def test_what_is_right_or_cannot_be_known_here() -> None:
    for engine in ("transformers", "vllm", "http://gpu:8000/v1"):
        assert not list(engine_issues(engine, {}, 3))
    assert not list(engine_issues("vllm", {"max_model_len": -1, "gpu_memory_utilization": 0.5, "some_new_thing": [1]}))


def test_vllms_own_arguments_are_read_from_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is imported."""
    folder = tmp_path / "vllm" / "engine"
    folder.mkdir(parents=True)
    for file in (tmp_path / "vllm" / "__init__.py", folder / "__init__.py"):
        file.write_text("raise RuntimeError('imported')\n")
    (folder / "arg_utils.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass\nclass EngineArgs:\n"
        "    model: str = ModelConfig.model\n    some_new_thing: list[int] | None = None\n"
        "    max_model_len: int | None = None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    of_config.cache_clear()
    try:
        assert not list(engine_issues("vllm", {"some_new_thing": [1], "max_model_len": 8}))
        told = [issue.message for issue in engine_issues("vllm", {"some_new_thing": "x", "enforce_eager": True})]
    finally:
        of_config.cache_clear()
    assert told == [
        "vllm.some_new_thing is 'x', expected list[int] | None",
        "vLLM has no option 'enforce_eager'",
    ]


RECIPE = """
    name: engines
    model: {model_name_or_path: {base}}
    datasets: {problems: {path: {data}, limit: 4}}
    rewards: {right: exact_answer}
    stages:
      drawn: {use: sample, model: base, dataset: problems, rewards: [right], threshold: null, keep: all, max_tokens: 4,
              num_generations: 2, {engine}}
      eval: {use: evaluate, models: [base], dataset: problems, rewards: [right], max_tokens: 4, num_generations: 2,
             plot: false, {engine}}
"""


def test_a_recipe_is_refused_where_it_stands(
    write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path
) -> None:
    wrong = {"base": tiny_model, "data": tiny_data / "problems.jsonl", "engine": "engine: vllm, vllm: {max_num_seq: 4}"}
    with pytest.raises(RecipeErrors) as caught:
        pp.validate(write_recipe(RECIPE, **wrong))
    told = str(caught.value)
    assert told.count("vLLM has no option 'max_num_seq'") == 2
    assert "did you mean 'max_num_seqs'?" in told


@pytest.mark.parametrize("command", ["ask", "serve", "evaluate"])
def test_a_command_line_is_refused_before_a_model_is_loaded(
    command: str, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"ask": ["2+2=?"], "evaluate": ["--dataset", "digit_chain(size=2)", "--reward", "exact_answer"]}
    wrong = ["--engine", "vllm", "--vllm", "gpu_memory_utilization=2"]
    monkeypatch.setattr(sys, "argv", ["posttrain", command, str(tiny_model), *more.get(command, []), *wrong])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "gpu_memory_utilization is 2, expected a share" in capsys.readouterr().err


# --- vLLM in this process --------------------------------------------------------------------------------------------


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[FakeLLM]:
    """A stand-in for vLLM, and each engine that was made of it."""
    made: list[FakeLLM] = []

    class Noted(FakeLLM):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    install(monkeypatch)
    monkeypatch.setattr("vllm.LLM", Noted)
    return made


def test_stages_draw_with_vllm(
    write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, engines: list[FakeLLM], tmp_path: Path
) -> None:
    engine = "engine: vllm, vllm: {max_model_len: 48}"
    values = {"base": tiny_model, "data": tiny_data / "problems.jsonl", "engine": engine}
    run = pp.run(write_recipe(RECIPE, **values), runs_dir=tmp_path / "runs")
    assert run["drawn"].metrics["completions"] == 8
    assert run["eval"].metrics
    assert [one.given["max_model_len"] for one in engines] == [48, 48]
    assert [len(call["prompts"]) for call in engines[0].calls] == [8]
    assert all(one.given["model"] == str(tiny_model) for one in engines)


def test_a_template_of_the_recipe_and_tools_reach_vllm(tiny_model: Path, engines: list[FakeLLM]) -> None:
    template = "{% if tools %}{{ tools[0]['function']['name'] }}{% endif %}"
    template += "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    artifact = ModelArtifact("base", str(tiny_model), chat_template=template)
    with opened(artifact, "vllm", {}) as backend:
        assert backend.capabilities.tools
        assert backend.identity == "base"
        request = Generate(CHAT, params=SamplingParams(max_tokens=3), tools=(TOOL,))
        list(backend.generate([request], [[1]]))  # type: ignore[union-attr]
        (prompt,) = engines[0].calls[0]["prompts"]
        assert engines[0].words.decode(prompt["prompt_token_ids"]) == "add3|7>2"
    assert not hasattr(backend, "llm")  # closed: that frees its memory
    with opened(ModelArtifact("base", str(tiny_model)), "vllm", {}) as plain:
        assert not plain.capabilities.tools  # its own template shows none
        ((*_, refused),) = plain.generate([request], [[1]])  # type: ignore[union-attr]
        assert refused.error is not None


def test_served_models_run_in_vllm(tiny_model: Path, engines: list[FakeLLM], tmp_path: Path) -> None:
    from posttrain_plugins.serve.models import open_models

    served = open_models({"a": str(tiny_model), "b": str(tiny_model)}, tmp_path, {}, "vllm", {"max_model_len": 32})
    assert [type(one.backend).__name__ for one in served.values()] == ["VLLMBackend"] * 2
    assert [one.given["max_model_len"] for one in engines] == [32, 32]


# --- a server that has the model -------------------------------------------------------------------------------------


def test_a_server_is_asked_for_the_model_by_its_name() -> None:
    with serving(models_there=("fake", "sft")) as server:
        by_name: Any = open_backend("/some/folder", engine=server.url, identity="sft")
        behind: Any = open_backend("/some/folder", engine=f"{server.url}#fake", identity="sft")
        assert [(one.model, one.identity) for one in (by_name, behind)] == [("sft", "sft"), ("fake", "sft")]
        with pytest.raises(InputError, match="it lists fake, sft"):
            open_backend("/some/folder", engine=server.url, identity="dpo")
        with pytest.raises(InputError, match="is a server, and engine is"):
            open_backend(f"{server.url}#fake", engine="vllm")
    with serving(models_there=("fake",)) as server:
        alone: Any = api.backend("/some/folder", engine=server.url)
        assert (alone.model, alone.identity) == ("fake", "/some/folder")


def test_stages_draw_from_a_server(
    write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    with serving(models_there=("base", "fake"), answers_to=("base",)) as server:
        values = {"base": tiny_model, "data": tiny_data / "problems.jsonl", "engine": f'engine: "{server.url}"'}
        run = pp.run(write_recipe(RECIPE, **values), runs_dir=tmp_path / "runs")
        assert run["drawn"].metrics["completions"] == 8
        assert {body["model"] for body in server.bodies} == {"base"}
    rows = [json.loads(line) for line in (run["drawn"].folder / "data.jsonl").read_text().splitlines()]
    assert len(rows) == 8
