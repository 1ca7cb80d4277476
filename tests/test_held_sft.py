"""SFT held near its start: the loss by hand, against TRL's own where the price is 0, and what the price holds back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from posttrain_plugins.errors import InputError
from posttrain_plugins.stages.sft import SFT

PROMPT = [{"role": "user", "content": "3|7>2"}]
ROWS = [
    {"prompt": PROMPT, "completion": [{"role": "assistant", "content": text}]}
    for text in ("<think>3|7=4;4>2=4</think><answer>4</answer>", "<answer>4</answer>")
]


def test_the_penalty_is_the_exact_kl_of_what_is_learned() -> None:
    from posttrain_plugins.trainers.held_sft import kl_of

    torch.manual_seed(0)
    logits, start = torch.randn(2, 5, 7, dtype=torch.double), torch.randn(2, 5, 7, dtype=torch.double)
    labels = torch.tensor([[-100, -100, 3, 4, 1], [-100, 2, 6, -100, -100]])
    expected = []
    for row, places in ((0, (2, 3, 4)), (1, (1, 2))):
        for place in places:  # the token at `place` is predicted one before
            p, q = logits[row, place - 1].softmax(-1), start[row, place - 1].softmax(-1)
            expected.append(float((p * (p / q).log()).sum()))
    assert kl_of(logits, start.log_softmax(-1), labels).tolist() == pytest.approx(expected, rel=1e-6)
    # a prompt adapter's learned tokens stand before the batch's own
    longer = torch.cat([torch.randn(2, 3, 7, dtype=torch.double), logits], 1)
    assert kl_of(longer, start.log_softmax(-1), labels).tolist() == pytest.approx(expected, rel=1e-6)


def trained(folder: Path, model: Any, kl_coef: float | None, steps: int = 20, **options: Any) -> Any:
    """Train on the two rows and return the trainer; None is TRL's own."""
    from trl import SFTConfig, SFTTrainer

    from posttrain_plugins.trainers.held_sft import HeldSFTTrainer

    args = SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=2e-2,
        lr_scheduler_type="constant",
        per_device_train_batch_size=2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=3,
    )
    given: dict[str, Any] = {"model": model, "args": args, "train_dataset": Dataset.from_list(ROWS), **options}
    trainer = SFTTrainer(**given) if kl_coef is None else HeldSFTTrainer(**given, kl_coef=kl_coef)
    trainer.train()
    return trainer


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def logged(trainer: Any, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


@pytest.mark.slow
@pytest.mark.parametrize("is_full", [True, False])
def test_it_starts_at_trls_loss_and_ends_nearer_to_its_start(tiny_model: Path, tmp_path: Path, is_full: bool) -> None:
    def options() -> dict[str, Any]:
        return {} if is_full else {"peft_config": lora()}

    plain = trained(tmp_path / "plain", str(tiny_model), None, **options())
    free = trained(tmp_path / "free", str(tiny_model), 1e-9, **options())
    held = trained(tmp_path / "held", str(tiny_model), 3.0, **options())
    assert logged(free, "kl")[0] == pytest.approx(0.0, abs=1e-5)  # nothing was learned before the first step
    # the same training as TRL's where a nat costs nothing; what is added, though next to nothing, rounds otherwise, and
    # every step at this rate multiplies that, on some processors by more than on others
    assert logged(free, "loss")[:5] == pytest.approx(logged(plain, "loss")[:5], rel=1e-4)
    assert logged(free, "loss") == pytest.approx(logged(plain, "loss"), rel=2e-2)
    assert logged(held, "loss")[:5] != pytest.approx(logged(plain, "loss")[:5], rel=2e-2)
    assert logged(held, "kl")[-1] < 0.7 * logged(free, "kl")[-1]
    assert not is_full or held.ref_model is not None


@pytest.mark.slow
def test_an_adapter_that_is_trained_on_is_held_to_itself(tiny_model: Path, tmp_path: Path) -> None:
    """Its start is the adapter as it was, not the base below it."""
    from peft import AutoPeftModelForCausalLM

    first = trained(tmp_path / "first", str(tiny_model), None, peft_config=lora())
    first.save_model(str(tmp_path / "adapter"))
    model = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"), is_trainable=True)
    second = trained(tmp_path / "second", model, 3.0, steps=3, processing_class=first.processing_class)
    assert logged(second, "kl")[0] == pytest.approx(0.0, abs=1e-5)
    frozen = [name for name, p in second.model.named_parameters() if ".ref." in name and p.requires_grad]
    assert frozen == []


@pytest.mark.parametrize("coefficient", [-0.1, float("inf"), float("nan")])
def test_a_price_below_nothing_is_refused(coefficient: float) -> None:
    with pytest.raises(InputError, match="kl_coef"):
        SFT(model="base", dataset="rows", kl_coef=coefficient)
