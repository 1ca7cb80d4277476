"""A critic as PPO and OREO save it beside the policy: what its kind says, its value head, and the body that it reads.

The folder `critic/` holds `critic.json` (`kind`, the `chat_template_kwargs` that its prompts were rendered with, the
moments of the `returns` in whose units it learned, and the `form` of a head whose logits are no values,
`value_form.py`), `value_head.safetensors` (`weight` (K, H), `bias` (K,), and `scale` and `shift` of one that learned in
other units), and what is the critic's own:

| kind       | reads the hidden states of                  | `critic/` also holds                  |
|------------|---------------------------------------------|---------------------------------------|
| `shared`   | the policy, which decoding has anyway       | nothing                               |
| `adapter`  | the policy's base, with an adapter in force | that adapter                          |
| `separate` | a model of its own                          | its weights, or an adapter on its base |

No paper.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.adapter_types import ensure_registered
from posttrain_plugins.models.critic_folder import has_critic, kind_said, said_of_critic
from posttrain_plugins.models.folder import adapter_config, adapters_in, base_of, template_options
from posttrain_plugins.models.load import load_full, make_room_for_tokens
from posttrain_plugins.models.stack import attach_frozen
from posttrain_plugins.models.value_form import ValueForm

if TYPE_CHECKING:
    import torch

__all__ = [
    "critic_form_in",
    "critic_returns_in",
    "load_critic_body",
    "load_value_head",
    "shared_critic_in",
    "template_kwargs_in",
    "value_head_in",
]

FILE = "value_head.safetensors"


def shared_critic_in(model: str | Path) -> Path | None:
    """Return the `critic/` of a model's folder, where it shares the policy's body."""
    folder = Path(model) / "critic"
    return folder if (folder / FILE).is_file() and kind_said(folder) == "shared" else None


def value_head_in(model: str | Path) -> dict[str, torch.Tensor] | None:
    """Return the value head saved with a model, `weight` (K, H) and `bias` (K,); None where there is no critic."""
    folder = Path(model) / "critic"
    return _head_in(folder / FILE) if has_critic(model) else None


def template_kwargs_in(model: str | Path) -> dict[str, Any]:
    """Return the options of the chat template that the critic's prompts were rendered with; empty where none are."""
    return dict(said_of_critic(Path(model) / "critic").get("chat_template_kwargs") or template_options(model))


def critic_form_in(model: str | Path) -> ValueForm | None:
    """Return how the logits of a critic's head are read; None where they are the values themselves."""
    form = said_of_critic(Path(model) / "critic").get("form")
    return ValueForm(**form) if form else None


def critic_returns_in(model: str | Path) -> dict[str, float] | None:
    """Return the moments of the returns in whose units a critic learned; None of one that did not."""
    found = said_of_critic(Path(model) / "critic").get("returns")
    return dict(found) if found else None


def _head_in(file: Path) -> dict[str, torch.Tensor]:
    """Read a head; of one that learned in other units, what gives the values themselves."""
    from safetensors.torch import load_file

    head: dict[str, torch.Tensor] = load_file(file)
    scale, shift = head.pop("scale", None), head.pop("shift", None)
    if scale is not None and shift is not None:
        head = {"weight": head["weight"] * scale, "bias": head["bias"] * scale + shift}
    return head


def load_critic_body(model: str | Path, *, dequantize: bool = False, **options: Any) -> Any:
    """Load the layers whose hidden states a saved critic reads.

    Args:
        model: the folder of the policy that it was trained with.
        dequantize: as plain weights, with all adapters merged.
        **options: of `from_pretrained`; its `revision` is the base's.

    Returns:
        A transformers model without an LM head.

    Raises:
        InputError: `critic.json` does not say the kind.
    """
    folder = Path(model) / "critic"
    kind = kind_said(folder)
    # a shared critic reads the policy itself, the other two have weights of their own in `critic/`
    newest = Path(model) if kind == "shared" else folder
    revision = base_of(model, options.pop("revision", None)).revision
    base = base_of(newest, revision)
    options |= {"revision": base.revision} if base.revision else {}
    if kind == "separate":
        body = load_full(base.path, None, dequantize=dequantize, **options)
    else:
        body = load_full(base.path, dequantize=dequantize, **options)
        # The critic learned on the policy's base as it stood in training: with the tokens that were added to it, and
        # with every adapter below the policy's own in force.
        if adapter_config(model):
            make_room_for_tokens(body, model)
        # what the policy's own adapter is on, and what a critic's that started elsewhere is on besides
        body = attach_frozen(body, adapters_in(model)[:-1])
        body = attach_frozen(body, adapters_in(folder)[:-1]) if kind == "adapter" else body
    if adapter_config(newest):
        if dequantize:
            body = attach_frozen(body, [newest])
        else:
            from peft import PeftModel

            ensure_registered(newest)
            PeftModel.from_pretrained(body, str(newest))  # puts its layers into the model
    # the head reads hidden states, so the LM head on top of them would be work for nothing
    return body if kind == "separate" else body.base_model


def load_value_head(folder: str | Path, model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the head as a function of hidden states, (R, H) to (R,), in float32.

    Args:
        folder: a `critic/` folder of kind `shared`.
        model: whose hidden states it reads.

    Raises:
        InputError: no such head, one of another kind, or one of another size.
    """
    import torch

    file = Path(folder) / FILE
    if not file.is_file():
        raise InputError(f"no value head: {file} is not there", hint="give the critic/ folder of a ppo stage's model")
    kind = kind_said(Path(folder))
    if kind != "shared":
        raise InputError(
            f"the value head in {folder} is of kind {kind!r}, expected 'shared': it reads a body of its own",
            hint="let the reward plugin value_model judge: scorer={use: value_model, ...}",
        )
    head = _head_in(file)
    # checked here, since a head of another model of the same size would judge without a word, and one of another size
    # would fail deep inside decoding
    size = model.config.get_text_config().hidden_size
    if head["weight"].shape != (1, size):
        found = tuple(head["weight"].shape)
        raise InputError(f"the value head in {folder} has shape {found}, expected {(1, size)}: is it another model's?")

    def values(hidden: torch.Tensor) -> torch.Tensor:
        # float32, as in training: values differ by less than bfloat16's steps between neighbouring tokens
        weight, bias = (head[name].to(hidden.device, torch.float32) for name in ("weight", "bias"))
        return torch.nn.functional.linear(hidden.float(), weight, bias).squeeze(-1)

    return values
