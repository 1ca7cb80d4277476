"""Folders, adapters, stacks, 4 bits, critics; transformers' continuous batching."""

from __future__ import annotations

import math
import subprocess
import sys
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CHATS, generate, params, save_head
from transformers import AutoModelForCausalLM

from posttrain_plugins.backends.open import opened
from posttrain_plugins.backends.transformers.backend import TransformersBackend, render
from posttrain_plugins.backends.transformers.chat import takes_tools
from posttrain_plugins.models.folder import copy_below
from posttrain_plugins.models.training_templates import CHATML
from posttrain_plugins.types import Generate, ModelArtifact


@pytest.fixture(scope="module")
def folder(model: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_folder_draws_what_the_model_draws(folder: Path, backend: TransformersBackend) -> None:
    loaded = TransformersBackend(str(folder), device="cpu")
    request = [Generate(CHATS[0], n=4, params=params())]
    assert generate(loaded, request, [range(4)]) == generate(backend, request, [range(4)])
    assert loaded.identity == str(folder)
    loaded.close()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT 0.21 on transformers 5.23
def test_an_adapter_folder_is_loaded_over_its_base(folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(folder)
    adapted = get_peft_model(base, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path)
    loaded = TransformersBackend(str(tmp_path), device="cpu")  # the tokenizer is the base's
    request = [Generate(CHATS[0], n=4, params=params())]
    expected = generate(TransformersBackend(adapted, loaded.tokenizer), request, [range(4)])
    assert generate(loaded, request, [range(4)]) == expected


def test_a_tokenizer_that_was_given_stays_as_it_is(model: Any, tokenizer: Any) -> None:
    given = copy(tokenizer)
    given.chat_template = CHATML  # which shows no tools, so that the backend takes its twin
    backend = TransformersBackend(model, given)
    assert given.chat_template == CHATML  # a trainer saves it with its model
    assert backend.tokenizer.chat_template != CHATML
    assert takes_tools(backend.tokenizer)
    assert render(backend.tokenizer, CHATS[0]) == render(given, CHATS[0])


@pytest.mark.filterwarnings("ignore")
def test_four_bits(folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    loading = {"load_in_4bit": True, "dtype": "float32", "model_name_or_path": "x"}
    loaded = TransformersBackend(str(folder), loading=loading, device="cpu")
    assert loaded.model.is_loaded_in_4bit
    [[completion]] = generate(loaded, [Generate(CHATS[0], params=params())], [[0]])
    assert completion.finish_reason in ("stop", "length")


@pytest.fixture
def adapters(folder: Path, tmp_path: Path) -> list[Path]:
    """Two LoRA adapters on the same base, one on the attention, the other on all layers."""
    from peft import LoraConfig, get_peft_model

    made = []
    for i, target in enumerate((["q_proj", "v_proj"], "all-linear")):
        torch.manual_seed(i)
        base = AutoModelForCausalLM.from_pretrained(folder)
        adapted = get_peft_model(
            base, LoraConfig(target_modules=target, init_lora_weights=False, task_type="CAUSAL_LM")
        )
        adapted.save_pretrained(tmp_path / str(i))
        made.append(tmp_path / str(i))
    return made


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT 0.21 on transformers 5.23
def test_a_stack_of_adapters_is_all_in_force(folder: Path, adapters: list[Path]) -> None:
    from peft import PeftModel

    first, second = map(str, adapters)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), first).merge_and_unload()
    expected = PeftModel.from_pretrained(merged, second)
    request = [Generate(prompt, n=4, params=params(logprobs=True)) for prompt in CHATS]
    seeds = [range(4)] * 4
    alone = generate(TransformersBackend(second, device="cpu"), request, seeds)
    copy_below([Path(first)], Path(second))
    with opened(ModelArtifact("both", second)) as backend:
        assert backend.identity == "both"
        assert not any(parameter.requires_grad for parameter in backend.model.parameters())
        both = generate(backend, request, seeds)
        reference = generate(TransformersBackend(expected, backend.tokenizer), request, seeds)
    for mine, theirs in zip(both, reference, strict=True):
        assert [c.token_ids for c in mine] == [c.token_ids for c in theirs]
        assert [c.logprobs for c in mine] == [pytest.approx(c.logprobs, abs=1e-4) for c in theirs]
    assert both != alone


@pytest.mark.filterwarnings("ignore")
def test_adapters_on_four_bits(adapters: list[Path]) -> None:
    pytest.importorskip("bitsandbytes")
    first, second = map(str, adapters)
    loading = {"load_in_4bit": True, "dtype": "float32", "model_name_or_path": "x"}
    request = [Generate(CHATS[0], n=4, params=params(logprobs=True))]
    copy_below([Path(first)], Path(second))
    found = []
    for path in (first, second):
        with opened(ModelArtifact("quantized", path, loading=loading)) as backend:
            assert backend.model.get_base_model().is_loaded_in_4bit
            kinds = {type(module).__name__ for module in backend.model.modules()}
            assert "Linear4bit" in kinds
            found.append(generate(backend, request, [range(4)]))
    assert found[0] != found[1]
    assert all(completion.finish_reason in ("stop", "length") for rows in found for completion in rows[0])


def test_a_critic_of_the_policys_body_is_picked_up(folder: Path, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    save_head(tmp_path / "critic", "shared")
    with opened(ModelArtifact("ppo", str(tmp_path))) as backend:
        assert backend.capabilities.values
        [[completion]] = generate(backend, [Generate(CHATS[0], params=params(values=True))], [[0]])
        assert completion.value is not None
    assert TransformersBackend(str(tmp_path), device="cpu").capabilities.values
    save_head(tmp_path / "critic", "separate")
    assert not TransformersBackend(str(tmp_path), device="cpu").capabilities.values
    with opened(ModelArtifact("sft", str(folder))) as backend:
        assert not backend.capabilities.values


def test_continuous_batching_draws_what_it_can(model: Any, tokenizer: Any) -> None:
    backend = TransformersBackend(model, tokenizer, continuous_batching=True)
    assert not backend.capabilities.seed
    kinds = [params(max_tokens=1), params(temperature=0.5, max_tokens=5), params(temperature=0.0, logprobs=True)]
    batch = [Generate(CHATS[i], n=n, params=kind) for i, (n, kind) in enumerate(zip((400, 3, 2), kinds, strict=True))]
    single, several, greedy = generate(backend, batch, [range(400), range(3), range(2)])
    backend.close()
    with torch.inference_mode():
        logits = model(torch.tensor([render(tokenizer, CHATS[0])])).logits[0, -1]
    expected = torch.softmax(logits, -1)
    for text in ("a", "4", "<think>"):
        share = sum(completion.text == text for completion in single) / 400
        assert abs(share - float(expected[tokenizer.convert_tokens_to_ids(text)])) < 5 * math.sqrt(0.25 / 400)
    ended = sum(completion.finish_reason == "stop" for completion in single) / 400
    assert abs(ended - float(expected[1])) < 5 * math.sqrt(0.25 / 400)
    assert [completion.usage.prompt_tokens for completion in several] == [len(render(tokenizer, CHATS[1])), 0, 0]
    assert all(completion.usage.completion_tokens <= 5 for completion in several)
    plain = TransformersBackend(model, tokenizer)
    assert greedy == generate(plain, batch[2:], [range(2)])[0]


def test_continuous_batching_may_be_left_early(model: Any, tokenizer: Any) -> None:
    backend = TransformersBackend(model, tokenizer, continuous_batching=True)
    batch = [Generate(CHATS[0], n=8, params=params())]
    stream = backend.generate(batch, [range(8)])
    next(stream)
    stream.close()
    [again] = generate(backend, batch, [range(8)])
    assert len(again) == 8
    backend.close()


def test_importing_the_package_imports_no_torch() -> None:
    modules = "engine, evaluation.measure, backends.transformers.backend, stages.sample, stages.evaluate"
    names = ", ".join(f"posttrain_plugins.{name.strip()}" for name in modules.split(","))
    code = f"import sys, posttrain_plugins.rewards.reward_model, {names}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
