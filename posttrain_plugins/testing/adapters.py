"""Checks on adapters, after PEFT's own tests (https://github.com/huggingface/peft, `tests/testing_common.py`).

Each attaches the adapter to a tiny model. An adapter that gives None, full fine-tuning, has nothing to attach.
"""

from __future__ import annotations

import copy
import json
import tempfile
import warnings
from collections.abc import Callable
from typing import Any
from unittest import SkipTest

from posttrain_plugins.plugins.declarations import declared
from posttrain_plugins.testing import tiny
from posttrain_plugins.testing.subject import fail_on_error, skip_on_error, subject

__all__ = ["CHECKS", "AdapterUnderTest"]

MERGED_WITHIN = 1e-4  # float32, two layers


class AdapterUnderTest:
    """An adapter and the tiny model that it is attached to.

    Args:
        adapter: what a check was given.
    """

    def __init__(self, adapter: Any) -> None:
        self.subject = subject("adapter", adapter)

    def config(self) -> Any:
        """Return its `PeftConfig`, made anew.

        Raises:
            SkipTest: it gives none.
        """
        from peft import PeftConfig

        made = self.subject.make()
        if made is None:
            raise SkipTest("full fine-tuning: nothing is attached")
        if not isinstance(made, PeftConfig):
            raise SkipTest("it gives no PeftConfig")
        return made

    def attached(self) -> Any:
        """Attach it to a fresh tiny model, and run that once; what goes wrong is raised as it is."""
        import torch
        from peft import get_peft_model

        config = copy.deepcopy(self.config())  # PEFT writes into the config that it is given
        with torch.random.fork_rng(devices=[]):  # the same random initial weights each time
            torch.manual_seed(1)  # not the base's seed, or both would draw the same numbers
            model = get_peft_model(tiny.bare_model(), config).eval()
        rows, *_, width = _logits(model).shape
        expected = (len(_ids()), model.config.vocab_size)
        assert (rows, width) == expected, f"its logits are {rows} x {width}, expected {expected}"
        return model

    def model(self, *, is_trained: bool) -> Any:
        """Attach it, and move every weight that its file holds if it is to be as after training.

        Raises:
            SkipTest: it does not attach, which `check_attaches` tells.
        """
        import torch
        from peft import get_peft_model_state_dict

        with skip_on_error("it does not attach"):
            model = self.attached()
        # many types start where they do nothing (LoRA's B is zero): unmoved, they would pass every comparison
        saved = get_peft_model_state_dict(model).values() if is_trained else ()
        own = {value.data_ptr() for value in saved if value.is_floating_point()}
        noise = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.data_ptr() in own:
                    parameter += 0.02 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
        return model


def _ids() -> Any:
    import torch

    return torch.arange(10, 30).reshape(2, 10)


def _logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=_ids()).logits.clone()  # (B, T, V); a prompt method adds its tokens to T


def _as_json(config: Any, default: Callable[[Any], Any] = repr) -> dict[str, Any]:
    """Return a config as its file says it, sets as sorted lists; `default` is for what JSON does not know."""

    def plain(value: Any) -> Any:
        return sorted(map(str, value)) if isinstance(value, set | frozenset) else default(value)

    found: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=plain))
    return found


def check_gives_a_peft_config(adapter: Any) -> None:
    """It gives a `peft.PeftConfig`, None for full fine-tuning, or (`is_full`) what has `prepare(trainer)`.

    TRL's `peft_config` takes nothing else, and None trains every parameter: a dict would be refused after the model was
    loaded.
    """
    from peft import PeftConfig

    made = subject("adapter", adapter).make()
    # such as `freeze`: no config, for TRL trains all parameters and `prepare` switches some off
    is_prepared = declared(made, "is_full") and callable(declared(made, "prepare"))
    assert made is None or is_prepared or isinstance(made, PeftConfig), f"it gives {type(made).__name__}"


def check_same_config_twice(adapter: Any) -> None:
    """Called twice, it gives equal configs.

    A stage's key holds it; and a model that is an adapter is trained on only where the next stage names the very same.
    """
    tried = AdapterUnderTest(adapter)
    first, second = (_as_json(tried.config()) for _ in range(2))
    assert first == second, f"called twice, {tried.subject.name} gives different configs"


def check_config_round_trips(adapter: Any) -> None:
    """Its config is the same after JSON.

    It is saved as `adapter_config.json` and read again by every later stage and by the server; what is lost there
    changes the model without a word.
    """
    from peft import PeftConfig

    def refuse(value: Any) -> Any:
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")

    config = AdapterUnderTest(adapter).config()
    with fail_on_error("its config cannot be read back:"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = _as_json(config, default=refuse)
        written.pop("peft_version", None)  # in the file, and no parameter of the class
        again = PeftConfig.from_peft_type(**written)
    before, after = _as_json(config), _as_json(again)
    lost = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    assert not lost, f"lost on the way through JSON: {', '.join(lost)}"


def check_attaches(adapter: Any) -> None:
    """It attaches to a tiny model, which still gives logits of the same shape.

    Names of modules that a model does not have are the usual mistake, and it shows after the model was downloaded.
    """
    with fail_on_error("it does not attach:"):
        AdapterUnderTest(adapter).attached()


def check_only_its_weights_train(adapter: Any) -> None:
    """After a step its own weights have changed and the base's have not.

    Nothing that trains is a run that learns nothing; a base that trains along is a reference model that moves, and
    weights that the adapter's file does not hold.
    """
    import torch

    model = AdapterUnderTest(adapter).model(is_trained=False)
    wanted = set(tiny.bare_model().state_dict())

    def base_weights() -> dict[str, Any]:
        # PEFT renames the layers that it wraps; under their old names they are what the base's file holds
        named = {
            name.replace(".base_layer.", ".").replace(".original_module.", "."): value.detach()
            for name, value in model.get_base_model().state_dict().items()
        }
        return {name: value for name, value in named.items() if name in wanted}

    base = {name: value.clone() for name, value in base_weights().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained, "no weight of it requires a gradient"
    before = [p.detach().clone() for p in trained]
    for _ in range(2):  # where one factor starts at zero, the other moves in the second step
        model.zero_grad()
        model(input_ids=_ids(), labels=_ids()).loss.backward()
        with torch.no_grad():
            for parameter in trained:
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad  # plain: weight decay would move what the loss does not
    assert any(not torch.equal(a, b) for a, b in zip(before, trained, strict=True)), "after two steps nothing changed"
    moved = [name for name, value in base_weights().items() if not torch.equal(value, base[name])]
    assert not moved, f"weights of the base were trained: {', '.join(moved[:3])}"


def check_saves_and_reloads(adapter: Any) -> None:
    """Saved and loaded on a fresh base, it gives the same logits: difference 0.0.

    What is saved is the result of the run.
    """
    import torch
    from peft import PeftModel

    model = AdapterUnderTest(adapter).model(is_trained=True)
    before = _logits(model)
    with tempfile.TemporaryDirectory() as where:
        model.save_pretrained(where)
        with fail_on_error("it cannot be loaded again:"):
            again = PeftModel.from_pretrained(tiny.bare_model(), where).eval()
        difference = float((before - _logits(again)).abs().max())
    assert torch.isfinite(before).all(), "its logits are not finite"
    # no tolerance: the same weights in the same code on the same machine give the same bits
    assert difference == 0.0, f"saved and loaded, its logits differ by {difference:.3g}"


def check_disabled_gives_the_base(adapter: Any) -> None:
    """With the adapter switched off the model is the base, exactly.

    That is what DPO, GRPO and PPO take for the reference model. An adapter that changes the base as it attaches
    (PiSSA, OLoRA, `bias: all`) declares `keeps_base = False`.
    """
    tried = AdapterUnderTest(adapter)
    if not tried.subject.declares("keeps_base"):
        raise SkipTest("it declares keeps_base = False")
    # a fresh base: one that the adapter has changed would agree with itself
    plain = _logits(tiny.bare_model())
    model = tried.model(is_trained=True)
    with model.disable_adapter():
        difference = float((plain - _logits(model)).abs().max())
    assert difference == 0.0, f"switched off, its logits differ from the base's by {difference:.3g}"


def check_merges_or_says_so(adapter: Any) -> None:
    """Merged into the base it gives the same logits, or it declares `can_merge = False`.

    Training a second adapter on it, quantizing it and serving it without PEFT all merge first.
    """
    tried = AdapterUnderTest(adapter)
    if not tried.subject.declares("can_merge"):
        raise SkipTest("it declares can_merge = False")
    model = tried.model(is_trained=True)
    before = _logits(model)
    try:
        merged = model.merge_and_unload()
    except Exception as cause:
        raise AssertionError(f"it cannot be merged ({type(cause).__name__}): declare can_merge = False") from cause
    # W x + B A x and (W + B A) x round differently: here, and only here, equal bits cannot be asked for
    difference = float((before - _logits(merged)).abs().max())
    assert difference <= MERGED_WITHIN, f"merged, its logits differ by {difference:.3g}"


# in the order of this file, in which they run; found by name, so that none is forgotten
CHECKS: tuple[Callable[[Any], None], ...] = tuple(one for name, one in globals().items() if name.startswith("check_"))
