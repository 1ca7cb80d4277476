"""The transformers backend and the reward model, on a tiny random model; and the figures."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from posttrain_plugins.inference import figures
from posttrain_plugins.inference.decode import draw_tokens, uniforms
from posttrain_plugins.inference.transformers_backend import TransformersBackend, render
from posttrain_plugins.rewards.reward_model import RewardModel
from posttrain_plugins.tiny_world import tokenizer as make_tokenizer
from posttrain_plugins.types import Completion, Generate, SamplingParams

EXPRESSIONS = ["3|7>2", "1<2", "9|9>3<2|1", "4>4|8"]
CHATS = [[{"role": "user", "content": expression}] for expression in EXPRESSIONS]
CONFIG: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small gains nothing from more threads, and loses much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **CONFIG)).eval()


@pytest.fixture(scope="module")
def backend(model: Any, tokenizer: Any) -> TransformersBackend:
    return TransformersBackend(model, tokenizer)


def generate(
    backend: TransformersBackend, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
) -> list[list[Completion]]:
    found = {(i, j): completion for i, j, completion in backend.generate(batch, seeds)}
    return [[found[i, j] for j in range(len(of_request))] for i, of_request in enumerate(seeds)]


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 16, **changes})


# --- Decoding --------------------------------------------------------------------------------------------------------


def test_greedy_is_what_generate_gives(backend: TransformersBackend, model: Any, tokenizer: Any) -> None:
    batch = [Generate(prompt, params=params(temperature=0.0, logprobs=True)) for prompt in CHATS]
    for request, [completion] in zip(batch, generate(backend, batch, [[0]] * 4), strict=True):
        ids = torch.tensor([render(tokenizer, request.prompt)])
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16)
        assert completion.token_ids == theirs[0, ids.shape[1] :].tolist()


def test_what_else_is_in_the_batch_does_not_change_a_draw(backend: TransformersBackend) -> None:
    seeds = [[10 * i + j for j in range(4)] for i in range(4)]
    batch = [Generate(prompt, n=4, params=params(logprobs=True)) for prompt in CHATS]
    together = generate(backend, batch, seeds)
    for request, of_request, completions in zip(batch, seeds, together, strict=True):
        [[alone]] = generate(backend, [request], [of_request[2:3]])
        assert alone.token_ids == completions[2].token_ids
        assert alone.logprobs == pytest.approx(completions[2].logprobs, abs=1e-4)
    assert len({completion.text for row in together for completion in row}) > 8


def test_packs_do_not_change_a_draw(backend: TransformersBackend, model: Any, tokenizer: Any) -> None:
    batch = [Generate(prompt, n=4, params=params()) for prompt in CHATS]
    seeds = [[10 * i + j for j in range(4)] for i in range(4)]
    narrow = TransformersBackend(model, tokenizer, max_batch_tokens=150)
    assert generate(narrow, batch, seeds) == generate(backend, batch, seeds)


def test_rows_of_one_batch_may_differ_in_their_parameters(backend: TransformersBackend) -> None:
    mixed = [params(temperature=0.0), params(), params(top_p=0.3), params(max_tokens=3), params(temperature=2.0)]
    batch = [Generate(CHATS[0], params=one) for one in mixed]
    together = generate(backend, batch, [[7]] * 5)
    assert together == [generate(backend, [request], [[7]])[0] for request in batch]
    assert together[3][0].usage.completion_tokens <= 3


def test_sampling_follows_the_model(backend: TransformersBackend, model: Any, tokenizer: Any) -> None:
    [row] = generate(backend, [Generate(CHATS[0], n=4000, params=params(max_tokens=1, logprobs=True))], [range(4000)])
    with torch.inference_mode():
        logits = model(torch.tensor([render(tokenizer, CHATS[0])])).logits[0, -1]
    expected = torch.softmax(logits, -1).numpy()
    drawn = np.bincount([completion.token_ids[0] for completion in row if completion.token_ids], minlength=64) / 4000
    assert np.abs(drawn - expected).max() < 5 * math.sqrt(0.25 / 4000)
    first = row[0]
    assert first.token_ids
    assert first.logprobs == pytest.approx([math.log(expected[first.token_ids[0]])], abs=1e-4)


def test_finish_reasons_and_counts(backend: TransformersBackend, tokenizer: Any) -> None:
    batch = [Generate(CHATS[0], n=64, params=params(logprobs=True))]
    [row] = generate(backend, batch, [range(64)])
    assert {completion.finish_reason for completion in row} == {"stop", "length"}
    for completion in row:
        assert completion.token_ids is not None
        assert completion.logprobs is not None
        assert completion.usage.completion_tokens == len(completion.token_ids) == len(completion.logprobs)
        assert completion.usage.prompt_tokens == len(render(tokenizer, CHATS[0]))
        assert (completion.finish_reason == "stop") == (completion.token_ids[-1] == 1)
        assert "<eos>" not in completion.text


def test_stop_strings_cut_the_text(backend: TransformersBackend) -> None:
    [free] = generate(backend, [Generate(CHATS[0], n=16, params=params())], [range(16)])
    [cut] = generate(backend, [Generate(CHATS[0], n=16, params=params(stop=("a", "4")))], [range(16)])
    for whole, short in zip(free, cut, strict=True):
        ends = [at for at in (whole.text.find("a"), whole.text.find("4")) if at >= 0]
        assert short.text == whole.text[: min(ends, default=None)]
        assert not ends or short.finish_reason == "stop"
        assert short.usage.completion_tokens <= whole.usage.completion_tokens
    assert sum(c.usage.completion_tokens for c in cut) < sum(c.usage.completion_tokens for c in free)


def test_a_prompt_without_room_is_a_failed_sample(backend: TransformersBackend) -> None:
    batch = [Generate("1" * 130, params=params()), Generate("1" * 125, params=params(temperature=0.0))]
    [[failed], [short]] = generate(backend, batch, [[0], [0]])
    assert failed.finish_reason == "error"
    assert "no room" in str(failed.error)
    assert short.usage.completion_tokens <= 3


def test_the_prompt_is_read_once_for_all_its_completions(backend: TransformersBackend, model: Any) -> None:
    shapes: list[tuple[int, ...]] = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    stops = tuple("0123456789")
    generate(backend, [Generate(prompt, n=8, params=params(stop=stops)) for prompt in CHATS], [range(8)] * 4)
    handle.remove()
    assert shapes[0][0] == 4 < shapes[1][0] <= 32
    assert shapes[-1][0] < shapes[1][0]  # finished rows have left


def test_stopping_early_leaves_no_inference_mode_behind(backend: TransformersBackend) -> None:
    stream: Iterator[Any] = backend.generate([Generate(CHATS[0], n=8, params=params())], [range(8)])
    next(stream)
    assert not torch.is_inference_mode_enabled()


# --- Noise and drawing -----------------------------------------------------------------------------------------------


def test_noise_is_a_function_of_seed_and_step_alone() -> None:
    noise = uniforms([3, 2**62, 5], 100)
    assert noise.shape == (3, 100)
    assert noise.min() >= 0
    assert noise.max() < 1
    assert (uniforms([2**62], 10)[0] == noise[1, :10]).all()
    many = uniforms(range(2000), 50)
    assert abs(many.mean() - 0.5) < 0.005
    assert abs(many.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(many[:-1].ravel(), many[1:].ravel())[0, 1]) < 0.02


def test_draw_tokens_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2, 0.0]]).log().expand(5, 4)
    uniform = torch.tensor([[0.0], [0.49], [0.51], [0.81], [1 - 2**-24]])
    ones = torch.ones(5, 1)
    assert draw_tokens(logits, ones, ones, uniform).tolist() == [0, 0, 1, 2, 2]
    assert draw_tokens(logits, 0 * ones, ones, uniform).tolist() == [0] * 5
    assert draw_tokens(logits, ones, 0.6 * ones, uniform).tolist() == [0, 0, 0, 1, 1]  # .5 + .3 hold .6
    assert draw_tokens(logits, ones, 0.0 * ones, uniform).tolist() == [0] * 5


# --- Rendering -------------------------------------------------------------------------------------------------------


def test_render_uses_the_template(tokenizer: Any) -> None:
    assert tokenizer.decode(render(tokenizer, CHATS[1])) == "<|user|>1<2<|assistant|>"
    begun = [*CHATS[1], {"role": "assistant", "content": "<think>1"}]
    assert tokenizer.decode(render(tokenizer, begun)) == "<|user|>1<2<|assistant|><think>1"
    assert tokenizer.decode(render(tokenizer, "1<2\n")) == "1<2\n"


def test_render_without_a_template_makes_a_document() -> None:
    base = make_tokenizer()
    base.chat_template = None
    system = [{"role": "system", "content": "be brief"}, *CHATS[1]]
    assert base.decode(render(base, CHATS[1])) == "<eos>1<2\n"
    assert base.decode(render(base, system)) == "<eos>be brief\n\n1<2\n"
    assert base.decode(render(base, [*CHATS[1], {"role": "assistant", "content": "1<"}])) == "<eos>1<2\n1<"
    assert base.decode(render(base, "")) == "<eos>"


# --- Loading ---------------------------------------------------------------------------------------------------------


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


@pytest.mark.filterwarnings("ignore")
def test_four_bits(folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    loading = {"load_in_4bit": True, "dtype": "float32", "model_name_or_path": "x"}
    loaded = TransformersBackend(str(folder), loading=loading, device="cpu")
    assert loaded.model.is_loaded_in_4bit
    [[completion]] = generate(loaded, [Generate(CHATS[0], params=params())], [[0]])
    assert completion.finish_reason in ("stop", "length")


def test_importing_the_package_imports_no_torch() -> None:
    modules = "inference, inference.measure, inference.transformers_backend, stages.sample, stages.evaluate"
    names = ", ".join(f"posttrain_plugins.{name.strip()}" for name in modules.split(","))
    code = f"import sys, posttrain_plugins.rewards.reward_model, {names}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- The reward model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reward_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("reward")
    config = AutoConfig.for_model("qwen3", **CONFIG, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_the_reward_model_scores_as_trl_does(reward_folder: Path, tokenizer: Any) -> None:
    reward = RewardModel(str(reward_folder), batch_size=2, device="cpu")
    completions = [[{"role": "assistant", "content": text}] for text in ("4", "12345", "1", "777")]
    scores = reward(prompts=CHATS, completions=completions, solution=["1"] * 4)
    model = AutoModelForSequenceClassification.from_pretrained(reward_folder).eval()
    texts = [tokenizer.apply_chat_template(p + c, tokenize=False) for p, c in zip(CHATS, completions, strict=True)]
    inputs = tokenizer(text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    with torch.inference_mode():
        expected = model(**inputs).logits[:, 0].tolist()
    assert scores == pytest.approx(expected, abs=1e-5)
    assert reward.count_tokens(CHATS, completions) == int(inputs["attention_mask"].sum())


def test_the_reward_model_takes_plain_text_and_pickles(reward_folder: Path) -> None:
    reward = RewardModel(str(reward_folder), device="cpu", max_length=3)
    scores = reward(prompts=["1<2", "1<3"], completions=["45", "6"])
    alone = [*reward(prompts=["1<2"], completions=["45"]), *reward(prompts=["1<3"], completions=["6"])]
    assert scores == pytest.approx(alone, abs=1e-5)
    copy = pickle.loads(pickle.dumps(reward))
    assert copy == reward
    assert copy._model is None
    assert copy(prompts=["1<2"], completions=["45"]) == alone[:1]
    assert reward.__name__ == "reward_model"


# --- Figures ---------------------------------------------------------------------------------------------------------


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    found = [figures.mean_interval((rng.random(60) < 0.7).astype(float).tolist(), draws=500) for _ in range(200)]
    assert 0.88 <= np.mean([interval.low <= 0.7 <= interval.high for interval in found]) <= 0.99


def test_pairing_narrows_a_difference() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(100)
    after = before + 0.1 + 0.01 * rng.standard_normal(100)
    gain = figures.difference_interval(after.tolist(), before.tolist())
    assert gain.low < 0.1 < gain.high
    assert gain.high - gain.low < 0.01


def test_figures_leave_out_what_nobody_could_judge() -> None:
    assert figures.mean_interval([1.0, math.nan]).mean == 1.0
    assert math.isnan(figures.mean_interval([]).mean)
    assert figures.sampled_accuracy([[1.0, None], [0.0, 1.0]]) == [1.0, 0.5]
    assert math.isnan(figures.sampled_accuracy([[None]])[0])


def test_pass_at_k_is_the_mean_over_subsets() -> None:
    from itertools import combinations

    right = [True, False, True, False, False]
    for k in range(1, 6):
        subsets = list(combinations(right, k))
        assert figures.pass_at_k(5, 2, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
