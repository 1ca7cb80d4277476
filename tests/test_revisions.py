"""The revision of a Hub model that was asked for is the one that is trained, exported, judged with and evaluated.

A Hub cache on the disk holds one model in two revisions, `main` and `v2`, with other weights, another chat template and
another `model_max_length`. Nothing learns here (learning rate 0), so that what a stage leaves is what it started from.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import posttrain_plugins as pp
from posttrain_plugins.errors import HandoffError
from posttrain_plugins.models.folder import adapter_config, base_of
from posttrain_plugins.models.load import load_adapted, load_full, load_model, load_tokenizer
from posttrain_plugins.recipe import handoff
from posttrain_plugins.recipe.plan.keys import HashCache, weights_identity
from posttrain_plugins.recipe.run.preview import preview

# PEFT asks the Hub whether the base's vocabulary is another than the model's, which it cannot offline
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file in house/tiny:UserWarning")

REPO = "house/tiny"
COMMITS = {"main": "1" * 40, "v2": "2" * 40}
LENGTHS = {"main": 111, "v2": 222}
IDS = torch.arange(10, 40)[None]
STILL = "learning_rate: 0.0, per_device_train_batch_size: 4, max_steps: 1, gradient_checkpointing: false"
GIVEN = "{% for m in messages %}given{{ m['content'] }}{% endfor %}{{ eos_token }}"
RECIPE = """
model: {model_name_or_path: {base}, {loading}}
adapters: {first: {use: lora, r: 4}, second: {use: lora, r: 2}}
datasets:
  demos: {path: {data}/demos.jsonl, limit: 4}
  pairs: {path: {data}/pairs.jsonl, limit: 4}
  d: {path: {data}/problems.jsonl, limit: 2}
rewards: {fluency: {use: perplexity, model_name_or_path: {tiny}}}
stages:
"""


class Hub:
    """A cache folder as `huggingface_hub` keeps it: `refs/` name commits, `snapshots/` link to `blobs/`."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def repository(self, name: str) -> Path:
        return self.cache / f"models--{name.replace('/', '--')}"

    def add(self, name: str, revision: str, folder: Path) -> Path:
        """One revision's files, and gives its snapshot."""
        home = self.repository(name)
        snapshot = home / "snapshots" / COMMITS[revision]
        for made in (home / "refs", home / "blobs", snapshot):
            made.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            blob = home / "blobs" / f"{revision}-{file.name}"
            shutil.copy2(file, blob)
            (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
        self.point(name, revision, COMMITS[revision])
        return snapshot

    def point(self, name: str, revision: str, commit: str) -> None:
        (self.repository(name) / "refs" / revision).write_text(commit, encoding="utf-8")

    def forget(self, name: str, revision: str) -> None:
        """The revision is nowhere in the cache, until it is pointed to again."""
        (self.repository(name) / "refs" / revision).unlink()

    def snapshot(self, revision: str, name: str = REPO) -> Path:
        return self.repository(name) / "snapshots" / COMMITS[revision]


@pytest.fixture(scope="module")
def cache(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

    hub = Hub(tmp_path_factory.mktemp("hf") / "hub")
    loaders = {
        REPO: AutoModelForCausalLM,
        "house/judge": AutoModelForSequenceClassification,
        "house/steps": AutoModelForTokenClassification,
    }
    for seed, revision in enumerate(COMMITS):
        tokenizer = load_tokenizer(tiny_model)
        tokenizer.model_max_length = LENGTHS[revision]
        tokenizer.chat_template = tokenizer.chat_template.replace("{%", f"{{# {revision} #}}{{%", 1)
        for name, loader in loaders.items():
            folder = tmp_path_factory.mktemp("made")
            torch.manual_seed(seed)
            config = load_full(tiny_model).config
            config.num_labels = 2 if name == REPO else 1
            model = loader.from_config(config)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            hub.add(name, revision, folder)
    return hub


@pytest.fixture
def hub(cache: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The cache in place of the user's own; what a test does to its refs is undone."""
    monkeypatch.setenv("HF_HUB_CACHE", str(cache.cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache.cache))
    yield cache
    for revision, commit in COMMITS.items():
        cache.point(REPO, revision, commit)


@pytest.fixture
def go(
    hub: Hub, write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> Callable[..., Any]:
    def run(stages: str, base: Any = REPO, loading: str = "model_revision: v2", **options: Any) -> Any:
        values = {"data": tiny_data, "tiny": tiny_model, "base": base, "loading": loading, "given": GIVEN}
        return pp.run(write_recipe(RECIPE + stages, **values), runs_dir=tmp_path / "runs", **options)

    return run


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
    return found


def hidden(body: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = body.eval()(IDS).last_hidden_state
    return found


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def of(hub: Hub, revision: str) -> torch.Tensor:
    """What the weights of one revision say, read as a folder."""
    return logits(load_model(hub.snapshot(revision)))


def check_tokenizer(folder: Path, revision: str = "v2", template: str = "") -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.model_max_length == LENGTHS[revision]
    assert tokenizer.chat_template.startswith(template or f"{{# {revision} #}}")


def test_the_two_revisions_differ(hub: Hub) -> None:
    assert distance(of(hub, "main"), of(hub, "v2")) > 1e-2
    assert distance(logits(load_model(REPO)), of(hub, "main")) == 0, "what nobody asks for is main"
    assert distance(logits(load_model(REPO, {"model_revision": "v2"})), of(hub, "v2")) == 0
    assert distance(logits(load_model(REPO, {"model_revision": COMMITS["v2"]})), of(hub, "v2")) == 0


# --- training --------------------------------------------------------------------------------------------------------

TRAINED = {
    "sft": f"use: sft, model: base, dataset: demos, args: {{{STILL}}}",
    "dpo": f"use: dpo, model: base, dataset: pairs, args: {{{STILL}}}",
    "orpo": f"use: orpo, model: base, dataset: pairs, args: {{{STILL}}}",
}


@pytest.mark.parametrize("adapter", ["", ", adapter: first"])
@pytest.mark.parametrize("method", ["sft", "dpo", "orpo"])
def test_what_is_trained_is_the_revision(go: Any, hub: Hub, method: str, adapter: str) -> None:
    """And its tokenizer with it; a model and an adapter are then the same wherever they are loaded."""
    run = go(f"  s: {{{TRAINED[method]}{adapter}}}")
    path = run["s"].model_path
    assert distance(logits(load_model(path)), of(hub, "v2")) == 0
    check_tokenizer(path)
    if adapter:
        assert adapter_config(path)["base_model_name_or_path"] == REPO
        assert adapter_config(path)["revision"] == "v2", "who loads it elsewhere knows"
        recorded = handoff.record(path, {})
        expected = handoff.record(hub.repository(REPO) / "snapshots" / COMMITS["v2"], {})
        for name in ("eos_token_id", "pad_token_id", "architecture"):  # of the base: the adapter has no config
            assert recorded[name] == expected[name] is not None
        from peft import AutoPeftModelForCausalLM

        assert distance(logits(AutoPeftModelForCausalLM.from_pretrained(path)), of(hub, "v2")) == 0


@pytest.mark.parametrize("adapter", ["", ", adapter: first"])
def test_a_chat_template_comes_to_the_tokenizer_of_the_revision(go: Any, adapter: str, tmp_path: Path) -> None:
    (tmp_path / "given.jinja").write_text(GIVEN, encoding="utf-8")
    run = go(f"  s: {{{TRAINED['sft']}{adapter}, chat_template: {tmp_path}/given.jinja}}")
    check_tokenizer(run["s"].model_path, template=GIVEN)


@pytest.mark.parametrize("mode", ["continue", "stack", "merge"])
def test_going_on_from_an_adapter_stays_on_its_revision(go: Any, hub: Hub, mode: str) -> None:
    adapter = "first" if mode == "continue" else "second"
    run = go(
        f"  s: {{{TRAINED['sft']}, adapter: first}}\n"
        f"  t: {{use: sft, model: s, dataset: demos, adapter: {adapter}, adapter_mode: {mode}, args: {{{STILL}}}}}\n"
    )
    path = run["t"].model_path
    assert (base_of(path).revision == "v2") == (mode != "merge")
    assert distance(logits(load_model(path)), of(hub, "v2")) < 1e-6
    check_tokenizer(path)


def test_judges_are_trained_on_the_revision(go: Any, hub: Hub, tiny_data: Path) -> None:
    """A new head on the layers of `v2`, full and as an adapter: the layers are those of the revision."""
    run = go(
        f"  rm: {{use: reward, model: base, dataset: pairs, args: {{{STILL}}}}}\n"
        f"  small: {{use: reward, model: base, dataset: pairs, adapter: first, args: {{{STILL}}}}}\n"
    )
    expected = hidden(load_full(hub.snapshot("v2"), None))
    full = load_full(run["rm"].model_path, "SequenceClassification")
    assert distance(hidden(full.base_model), expected) == 0
    small = load_adapted(run["small"].model_path, "SequenceClassification", num_labels=1)
    assert distance(hidden(small.get_base_model().base_model), expected) == 0


@pytest.mark.parametrize("revision", COMMITS)
def test_the_preview_reads_the_tokenizer_of_the_revision(
    hub: Hub, write_recipe: Callable[..., Path], tiny_data: Path, tiny_model: Path, tmp_path: Path, revision: str
) -> None:
    values = {"base": REPO, "loading": f"model_revision: {revision}", "data": tiny_data, "tiny": tiny_model}
    plan = pp.plan(write_recipe(RECIPE + f"  s: {{{TRAINED['sft']}}}", **values), runs_dir=tmp_path / "runs")
    hub.forget(REPO, "v2" if revision == "main" else "main")
    shown = preview(plan)["s"]
    assert "error" not in shown, "the other revision is not even there"


# --- after training --------------------------------------------------------------------------------------------------


def test_an_export_is_of_the_revision(go: Any, hub: Hub, tmp_path: Path) -> None:
    run = go(
        f"  s: {{{TRAINED['sft']}, adapter: first}}\n"
        f"  base_out: {{use: export, model: base, to: {tmp_path}/base}}\n"
        f"  small_out: {{use: export, model: s, to: {tmp_path}/small}}\n"
        f"  merged: {{use: merge, model: s, num_prompts: 1}}\n"
        f"  one: {{use: combine, models: [s, s], combination_type: linear, weights: [0.5, 0.5]}}\n"
    )
    for path in (tmp_path / "base", tmp_path / "small", run["merged"].model_path, run["one"].model_path):
        assert distance(logits(load_model(path)), of(hub, "v2")) < 1e-6
        check_tokenizer(path)


def test_an_adapter_that_records_its_revision_needs_no_telling(go: Any, hub: Hub, tmp_path: Path) -> None:
    """Elsewhere, with its folder alone: exported, merged, evaluated and gone on from; another that is given counts."""
    made = go(f"  s: {{{TRAINED['sft']}, adapter: first}}")["s"].model_path
    folder = shutil.copytree(made, tmp_path / "elsewhere")
    stages = (
        f"  out: {{use: export, model: base, to: {tmp_path}/out}}\n"
        f"  on: {{use: sft, model: base, dataset: demos, adapter_mode: continue, args: {{{STILL}}}}}\n"
    )
    run = go(stages, base=folder, loading="dtype: float32")
    assert distance(logits(load_model(tmp_path / "out")), of(hub, "v2")) < 1e-6
    assert distance(logits(load_model(run["on"].model_path)), of(hub, "v2")) == 0
    assert distance(logits(load_model(folder, {"model_revision": "main"})), of(hub, "main")) == 0
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(folder).model_max_length == LENGTHS["v2"]


def test_an_evaluation_is_of_the_revision(go: Any, hub: Hub) -> None:
    """The same completions, and with them the same mean log-probability, as of the revision's files in a folder."""
    stage = "  e: {use: evaluate, models: [base], dataset: d, rewards: [fluency], max_tokens: 8, plot: false}"
    found = {
        name: go(stage, base=base, loading=loading)["e"].metrics
        for name, base, loading in (
            ("asked", REPO, "model_revision: v2"),
            ("folder", hub.snapshot("v2"), "dtype: float32"),
            ("main", REPO, "dtype: float32"),
        )
    }
    assert found["asked"] == found["folder"] != found["main"]


# --- judging ---------------------------------------------------------------------------------------------------------

JUDGES = {"perplexity": REPO, "reward_model": "house/judge", "process_reward_model": "house/steps"}


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_is_of_the_revision(hub: Hub, name: str) -> None:
    asked = ([[{"role": "user", "content": "3|7>2"}]], [[{"role": "assistant", "content": "<answer>4</answer>"}]])
    repository = JUDGES[name]

    def score(where: Any, **options: Any) -> Any:
        return pp.load("reward", name, model_name_or_path=str(where), device="cpu", **options)(*asked)

    assert score(repository, model_revision="v2") == score(hub.snapshot("v2", repository))
    assert score(repository) == score(hub.snapshot("main", repository)) != score(repository, model_revision="v2")


@pytest.mark.parametrize("kind", ["adapter", "shared", "separate"])
def test_a_critic_is_of_the_revision(hub: Hub, tmp_path: Path, kind: Any) -> None:
    """The policy's adapter records the revision, and the critic reads the same base."""
    from datasets import Dataset
    from peft import LoraConfig

    from posttrain_plugins.models.critic import load_critic_body
    from posttrain_plugins.trainers.ppo.trainer import PPOConfig, PPOTrainer

    options = {"model_init_kwargs": {"revision": "v2"}, "bf16": False, "dataloader_pin_memory": False, "report_to": []}
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", revision="v2")
    trainer = PPOTrainer(
        model=REPO,
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=PPOConfig(str(tmp_path / "out"), critic=kind, **options),
        train_dataset=Dataset.from_list([{"prompt": "3|7"}] * 8),
        peft_config=config,
    )
    trainer.save_model(str(tmp_path / "model"))
    expected = hidden(load_full(hub.snapshot("v2"), None))
    for asked in ({}, {"revision": "v2"}):
        assert distance(hidden(load_critic_body(tmp_path / "model", **asked)), expected) < 1e-6


def test_adapters_on_two_revisions_share_no_base(hub: Hub, tmp_path: Path) -> None:
    """Not in the server, not as policy and reward on one base, and not when they are combined."""
    from peft import LoraConfig, get_peft_model

    from posttrain_plugins.serve.models import _UnloadedModel
    from posttrain_plugins.stages.combine import Combine
    from posttrain_plugins.trainers.ppo.shared_reward import SharedClassifier, shared
    from posttrain_plugins.types import ModelArtifact, StageContext

    for revision in COMMITS:
        judge = load_full(REPO, "SequenceClassification", revision=revision, num_labels=1)
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS", modules_to_save=["score"])
        get_peft_model(judge, config, revision=revision).save_pretrained(tmp_path / revision)
        writer = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        policy = get_peft_model(load_full(REPO, revision=revision), writer, revision=revision)
        policy.save_pretrained(tmp_path / f"policy-{revision}")
        for name in (revision, f"policy-{revision}"):
            load_tokenizer(REPO).save_pretrained(tmp_path / name)
    folders = [str(tmp_path / f"policy-{revision}") for revision in COMMITS]
    keys = [_UnloadedModel(folder, folder, tmp_path, {}).share_key for folder in folders]
    assert None not in keys
    assert keys[0] != keys[1]
    models = [ModelArtifact(folder, folder) for folder in folders]
    with pytest.raises(HandoffError, match="base is house/tiny@v2, expected house/tiny@main"):
        Combine(folders)(StageContext("c", tmp_path, 0, {"models": models}, None, None, lambda: False))
    policy = LoraConfig(r=2, revision="v2")
    assert isinstance(shared(str(tmp_path / "v2"), REPO, policy).classifier, SharedClassifier)
    assert shared(str(tmp_path / "main"), REPO, policy) == str(tmp_path / "main")


# --- what the recipe knows -------------------------------------------------------------------------------------------


def test_the_weights_identity_is_the_revision_s_commit(hub: Hub, tmp_path: Path) -> None:
    hashes = HashCache(tmp_path / "hashes.json")
    assert weights_identity(REPO, hashes, "v2") == f"hub:{REPO}@{COMMITS['v2']}"
    assert weights_identity(REPO, hashes) == f"hub:{REPO}@{COMMITS['main']}"


def test_an_adapter_is_held_to_the_commit_that_it_was_trained_on(go: Any, hub: Hub, tmp_path: Path) -> None:
    """`main` may move, `v2` may not; and that holds where nobody gives a revision, since the adapter records it."""
    made = go(f"  s: {{{TRAINED['sft']}, adapter: first}}")["s"]
    recorded = made.manifest["handoff"]
    assert recorded["base_weights"] == f"hub:{REPO}@{COMMITS['v2']}"

    def check() -> None:
        hashes = HashCache(tmp_path / "hashes.json")
        handoff.check_unchanged("s", made.model_path, recorded, lambda base, of: weights_identity(base, hashes, of))

    hub.point(REPO, "main", COMMITS["v2"])
    check()
    hub.point(REPO, "v2", COMMITS["main"])
    with pytest.raises(HandoffError, match=f"its base changed[\\s\\S]*{COMMITS['main']}, expected"):
        check()


def test_a_foreign_adapter_s_key_has_the_commit_of_the_revision_that_it_records(
    go: Any, hub: Hub, write_recipe: Callable[..., Path], tiny_data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(go(f"  s: {{{TRAINED['sft']}, adapter: first}}")["s"].model_path, tmp_path / "elsewhere")
    values = {"base": folder, "data": tiny_data, "tiny": tiny_model, "loading": "dtype: float32"}
    file = write_recipe(RECIPE + "  m: {use: merge, model: base, num_prompts: 1}", **values)

    def key() -> str:
        return str(pp.plan(file, runs_dir=tmp_path / "runs")["m"].key)

    before = key()
    hub.point(REPO, "main", COMMITS["v2"])
    assert key() == before
    hub.point(REPO, "v2", COMMITS["main"])
    assert key() != before
