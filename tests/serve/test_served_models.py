"""Names of served models, adapters that share a base, scorers, and prompts that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from scripted_server import LocalServer

from posttrain_plugins.errors import InputError
from posttrain_plugins.serve import models as serving_models
from posttrain_plugins.serve.models import open_models, parse_models
from posttrain_plugins.types import Generate


def test_names_of_models(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "model"
    folder.mkdir(parents=True)
    found = parse_models(["run:sft", "a=org/Big", str(folder), "http://localhost:1/v1#far"])
    assert found == {"run:sft": "run:sft", "a": "org/Big", "mine": str(folder), "far": "http://localhost:1/v1#far"}
    with pytest.raises(InputError, match="two models are named 'a'"):
        parse_models(["a=x", "a=y"])
    with pytest.raises(InputError, match=r"no such folder: \./gone"):
        parse_models(["a=./gone"])
    for bad in ("a b=x", "=x", "a=", "a@b=x"):
        with pytest.raises(InputError, match="gives a model no name"):
            parse_models([bad])


def test_adapters_share_their_base_and_say_what_they_say_alone(
    tiny_model: Path, lora_folders: list[Path], tmp_path: Path
) -> None:
    from posttrain_plugins import api

    paths = {"base": str(tiny_model), "one": str(lora_folders[0]), "two": str(lora_folders[1])}
    shared = open_models(paths, tmp_path, {})
    assert len({id(served.backend.model) for served in shared.values()}) == 1  # type: ignore[union-attr]
    assert [served.base for served in shared.values()] == [None, str(tiny_model), str(tiny_model)]
    request = Generate([{"role": "user", "content": "3|7>2"}], params=replace(Generate("").params, max_tokens=12))
    said = {}
    for name in ("two", "base", "one", "base", "two"):  # in any order, again and again
        text = next(iter(shared[name].backend.generate([request], [[5]])))[2].text  # type: ignore[union-attr]
        assert said.setdefault(name, text) == text
    alone = {name: next(iter(api.backend(path).generate([request], [[5]])))[2].text for name, path in paths.items()}  # type: ignore[union-attr]
    assert said == alone
    assert len(set(said.values())) == 3


def test_adapters_that_cannot_share_are_loaded_by_themselves(
    tiny_model: Path, lora_folders: list[Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in lora_folders[1].iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "adapter_config.json").read_text())
    for more in ({"modules_to_save": ["lm_head"]}, {"init_lora_weights": "pissa"}):
        (other / "adapter_config.json").write_text(json.dumps({**config, **more}))
        assert serving_models._UnloadedModel("x", str(other), tmp_path, {}).share_key is None, more
    ones = [
        serving_models._UnloadedModel("x", str(lora_folders[0]), tmp_path, loading)
        for loading in ({}, {"dtype": "float32"})
    ]
    assert ones[0].share_key != ones[1].share_key
    assert ones[0].share_key == serving_models._UnloadedModel("b", str(tiny_model), tmp_path, {}).share_key


def test_a_real_model_prompts_that_are_too_long_and_logprobs(
    open_server: Callable[..., LocalServer], tiny_model: Path
) -> None:
    from posttrain_plugins import api

    here = open_server({"m": api.backend(str(tiny_model))})
    with pytest.raises(openai.BadRequestError) as long:
        here.client.chat.completions.create(model="m", messages=[{"role": "user", "content": "3|7>" * 100}])
    assert long.value.body["code"] == "context_length_exceeded"  # type: ignore[index]
    assert "256" in long.value.message
    reply = here.chat(max_tokens=6, logprobs=True, n=2, seed=3)
    for choice in reply.choices:
        tokens = choice.logprobs.content
        special = here.backends["m"].tokenizer.all_special_tokens
        assert "".join(t.token for t in tokens if t.token not in special) == choice.message.content
        assert all(token.logprob <= 0 for token in tokens)
    text = here.client.completions.create(model="m", prompt="3|7", max_tokens=4, logprobs=0).choices[0]
    assert text.logprobs is not None
    assert len(text.logprobs.tokens or ()) == len(text.logprobs.token_logprobs or ()) <= 4
    with pytest.raises(openai.BadRequestError, match="tools"):
        here.chat(tools=[{"type": "function", "function": {"name": "add", "parameters": {}}}])


def test_echoed_prompts_and_what_the_model_says_of_each_token(
    open_server: Callable[..., LocalServer], tiny_model: Path, lora_folders: list[Path], tmp_path: Path
) -> None:
    """As programs that measure likelihoods ask, of a base and of an adapter on the same weights."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    paths = {"base": str(tiny_model), "one": str(lora_folders[0])}
    here = open_server({name: one.backend for name, one in open_models(paths, tmp_path, {}).items()})
    plain = AutoModelForCausalLM.from_pretrained(paths["base"])
    models = {
        "base": plain,
        "one": PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(paths["base"]), paths["one"]),
    }
    text = "3|7>2<9 is 4"
    tokenizer = here.backends["base"].tokenizer
    ids = tokenizer(text)["input_ids"]
    found = {}
    for name, model in models.items():
        for prompt in (text, ids, [ids]):
            asked = {"echo": True, "logprobs": 2, "max_tokens": 1, "temperature": 0.0}
            (choice,) = here.client.completions.create(model=name, prompt=prompt, **asked).choices  # type: ignore[call-overload]
            assert choice.text.startswith(text)
            told = choice.logprobs
            assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(ids) + 1
            assert (told.token_logprobs[0], told.top_logprobs[0]) == (None, None)
            with torch.inference_mode():
                every = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            own = every.gather(1, torch.tensor(ids)[1:, None])[:, 0].tolist()
            assert told.token_logprobs[1:-1] == pytest.approx(own, abs=1e-4)
            assert [max(top.values()) for top in told.top_logprobs[1:-1]] == pytest.approx(
                every.max(-1).values.tolist(), abs=1e-4
            )
            assert max(told.top_logprobs[-1].values()) == told.token_logprobs[-1]  # greedy
            found.setdefault(name, told.token_logprobs[1:])
    assert found["base"] != pytest.approx(found["one"], abs=1e-3)
    drawn = here.client.completions.create(model="base", prompt=text, max_tokens=3, logprobs=1, seed=1).choices[0]
    assert not drawn.text.startswith(text)
    assert len(drawn.logprobs.top_logprobs) == len(drawn.logprobs.tokens) <= 3  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("prompt", [[10**6], [[1], [10**6]]])
def test_token_ids_that_are_not_those_of_a_text_are_refused(
    open_server: Callable[..., LocalServer], tiny_model: Path, prompt: object
) -> None:
    from posttrain_plugins import api

    here = open_server({"m": api.backend(str(tiny_model))})
    reply = here.http.post("/v1/completions", json={"model": "m", "prompt": prompt, "max_tokens": 2})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "prompt")


def test_a_reward_model_of_a_run_is_a_scorer_and_loaded_once(
    open_server: Callable[..., LocalServer], tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "mine" / "rm-0"
    (folder / "model").mkdir(parents=True)
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "class Mine:\n    def __init__(self, model_name_or_path):\n        self.path = model_name_or_path\n"
        "    def __call__(self, completions, **columns):\n        return [0.0 for _ in completions]\n"
        "class Stage:\n    reward_plugin = __file__ + ':Mine'\n"
    )
    manifest = {"key": "0", "makes": "reward", "use": "Stage", "plugin": f"{plugin}:Stage", "model_path": "model"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder.parent / "latest").mkdir()
    (folder.parent / "latest" / "rm").symlink_to(folder)
    here = open_server()
    here.request_gate.service.strategies.runs_dir = tmp_path / "runs"
    loaded = []
    for _ in range(2):
        assert here.chat("m@best_of_n(n=2, scorer='mine:rm')").usage.roles["mine:rm"]["calls"] == 1
        loaded.append(here.request_gate.service.strategies.scorers["mine:rm"].func)
    assert loaded[0] is loaded[1]
    assert loaded[0].path == str(folder / "model")
