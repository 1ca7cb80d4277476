"""`value_model`: what a critic expects of a completion as it stands: the value at its last token, or at each step.

Papers: Schulman et al., 2017 (https://huggingface.co/papers/1707.06347), for the critic; Liu et al., 2023
(https://huggingface.co/papers/2309.15028), for keeping it as a guide at test time; OREO, Wang et al., 2024
(https://huggingface.co/papers/2412.16145), section 4.4, for one that was learned offline. It loads what the stages
`ppo` and `oreo` saved beside the policy, whatever the critic's kind, and the models of the stage `value`. With
`differences` a step is worth what it changes of the value: potential-based shaping (Ng, Harada and Russell, 1999,
https://people.eecs.berkeley.edu/~pabbeel/cs287-fa09/readings/NgHaradaRussell-shaping-ICML1999.pdf, theorem 1, without
discount), or progress as a process reward (Setlur et al., 2024, https://huggingface.co/papers/2410.08146, section 3).

1. The completion is scored before EOS, the last state that the critic was trained on.
2. Prompt and completion are tokenised apart, as in the rollout.
3. Theorem 1 has a potential of 0 when all is over, and so takes back at EOS what the steps were paid. Here nothing is
   taken back: alone it would leave nothing to learn from. So the steps of a completion sum to V(its end) - V(prompt),
   the best policy may be another, and one that ends where the value function errs is paid for that.
4. Setlur et al. measure progress under a prover, another policy than the one that learns; here the value function is of
   whatever policies wrote the completions that it learned from, and stays as it is while the policy moves away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import SimpleNamespace
from typing import Any, ClassVar

from posttrain_plugins.backends.transformers.classifier import Classifier
from posttrain_plugins.errors import InputError
from posttrain_plugins.models.critic import critic_form_in, load_critic_body, template_kwargs_in, value_head_in
from posttrain_plugins.models.load import inference_options
from posttrain_plugins.models.value_form import ValueForm, form_in
from posttrain_plugins.text import is_conversational, render, to_text
from posttrain_plugins.text.steps import SEPARATOR, last_tokens, split_steps
from posttrain_plugins.types import ModelArtifact, ModelRef, Prompt

__all__ = ["ValueModel"]


@dataclass
class ValueModel:
    """Score whole or partial completions with a value model, or with the critic that PPO or OREO trained.

    The model is loaded at the first call; until then the reward can be pickled, and a pickle never holds the model.

    Args:
        model_name_or_path: a `value` stage of the recipe, or the policy that a critic was trained with, a `ppo` or
            `oreo` stage; or the folder of one.
        separator: what ends a step; the rule of `posttrain_plugins.text.steps`.
        differences: score a step by the value at its end less the value at the end of the step before it, the prompt's
            before the first; the score of a whole completion stays its value.
        batch_size: completions per forward.
        dtype: of the weights; this and the rest as in TRL's `ModelConfig`.
        load_in_4bit: quantize the base with bitsandbytes.
        load_in_8bit: the same with 8 bits.
        bnb_4bit_quant_type: `nf4` or `fp4`.
        use_bnb_nested_quant: quantize the quantization constants too.
        attn_implementation: attention kernel.
        model_revision: of the base.
        device: by default `cuda` where there is one.

    Raises:
        InputError: at the first call, where the folder has neither critic nor value head.
    """

    __name__ = "value_model"  # what TRL logs it under
    requires_columns: ClassVar[tuple[str, ...]] = ()
    holds_model: ClassVar[bool] = True
    example_params: ClassVar[dict[str, Any]] = {"model_name_or_path": "tiny:critic"}
    longest_text_chars: ClassVar[int] = 500
    tolerance: ClassVar[float] = 1e-5  # padding to the longest row of a batch moves the last bits
    expected_failures: ClassVar[dict[str, str]] = {
        "check_both_formats": "a chat template stands around messages, so the model reads another text",
    }

    model_name_or_path: ModelRef
    separator: str = SEPARATOR
    differences: bool = False
    batch_size: int = 32
    dtype: str = "auto"
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: str = "nf4"
    use_bnb_nested_quant: bool = False
    attn_implementation: str | None = None
    model_revision: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        given: Any = self.model_name_or_path
        is_stage = isinstance(given, ModelArtifact)
        path, loading = (given.path, {**vars(self), **given.loading}) if is_stage else (str(given), vars(self))
        self._template_kwargs: dict[str, Any] | None = None  # read with the model: a pickle need not find the folder
        self._critic = _Critic(path, "TokenClassification", loading=loading, device=self.device)

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Score each completion by its value as it stands, with `differences` too.

        Args:
            prompts: B prompts, plain or conversational.
            completions: B completions, whole or not; an empty one has the prompt's value.

        Returns:
            B values: the return that is expected, in the units of the reward.
        """
        values: list[float | None] = [None] * len(completions)
        for i, _, _, of_tokens in self._values(prompts, completions):
            values[i] = of_tokens[-1]
        return values

    def step_scores(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any
    ) -> list[list[float]]:
        """Score each step by the value at its end; with `differences`, by what the step changed of it.

        Args:
            columns: with `steps` (B lists of texts that joined are the completion), these; else `separator` splits.

        Returns:
            B lists of values, one for each step, or of their differences; a step that ends within the token with which
            the one before it ends has its value, so a difference of 0.
        """
        given = columns.get("steps") or [split_steps(to_text(text), self.separator) for text in completions]
        scores: list[list[float]] = [[] for _ in completions]
        for i, head, starts, of_tokens in self._values(prompts, completions):
            ends = list(accumulate(map(len, given[i])))
            # A completion without a token has no step; `__call__` gives the prompt's value for it.
            scores[i] = [of_tokens[head + token] for token in last_tokens(starts, ends)] if starts else []
            if self.differences:
                before = (
                    of_tokens[head - 1] if head else 0.0
                )  # a prompt without a token is no state, so it has no value
                scores[i] = [value - last for last, value in pairwise([before, *scores[i]])]
        return scores

    def count_tokens(self, prompts: Sequence[Prompt], completions: Sequence[Prompt]) -> int:
        """Count the tokens that scoring these reads."""
        return sum(len(ids) for ids, _, _ in map(self._encode, prompts, completions))

    def close(self) -> None:
        """Free the model's memory; the next call loads it again."""
        self._critic.close()

    def _values(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt]
    ) -> Iterator[tuple[int, int, list[int], list[float]]]:
        """Yield i, the prompt's number of tokens, where completion i's start in its text, and the values of all."""
        encoded = [self._encode(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        for i, values in self._critic.logits([ids for ids, _, _ in encoded], self.batch_size):
            yield i, encoded[i][1], encoded[i][2], [float(value) for value in values[:, 0].tolist()]

    def _encode(self, prompt: Prompt, completion: Prompt) -> tuple[list[int], int, list[int]]:
        """Return token ids, how many are the prompt's, and where each of the completion's starts in its text."""
        tokenizer = self._critic.tokenizer
        if self._template_kwargs is None:
            self._template_kwargs = template_kwargs_in(self._critic.path)
        text = render(tokenizer, prompt, **self._template_kwargs)
        head = tokenizer(text, add_special_tokens=not is_conversational(prompt))["input_ids"]
        tail = tokenizer(to_text(completion), add_special_tokens=False, return_offsets_mapping=True)
        return [*head, *tail["input_ids"]], len(head), [start for start, _ in tail["offset_mapping"]]


class _Critic(Classifier):
    """A critic, or a value model, as a token classifier of one label, the value of the state after each token."""

    def _load(self) -> Any:
        if (form := form_in(self.path)) is not None:
            return self._load_value_model(form)
        if (saved := value_head_in(self.path)) is None:
            raise InputError(
                f"value_model finds no critic in {self.path}",
                hint="give a value stage, or the model of an oreo stage or of a ppo stage with gae",
            )
        body = load_critic_body(self.path, **inference_options(self.loading, self.task, self.device)).eval()
        # `clone`: read from the file a tensor lies at any address, and a copy is aligned, which gives the last bit that
        # the trainer's own head gives
        head = {name: tensor.to(body.device).float().clone() for name, tensor in saved.items()}
        critic_form = critic_form_in(self.path)

        def forward(**inputs: Any) -> Any:
            hidden = body(**inputs).last_hidden_state  # (B, T, H)
            return SimpleNamespace(logits=_values(hidden, head["weight"], head["bias"], critic_form))

        return _Valuer(forward, body)

    def _load_value_model(self, form: ValueForm) -> Any:
        """Load a token classifier whose head is asked in float32, whatever the model computes in."""
        self.num_labels = form.num_labels
        model = super()._load()
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        copies = getattr(base.score, "modules_to_save", None)  # PEFT's, of which one was trained
        score = base.score if copies is None else copies["default"]
        weight, bias = (None if t is None else t.detach().float() for t in (score.weight, score.bias))
        seen: list[Any] = []
        base.score.register_forward_pre_hook(lambda module, given: seen.append(given[0]))

        def forward(**inputs: Any) -> Any:
            model(**inputs)
            return SimpleNamespace(logits=_values(seen.pop(), weight, bias, form))

        return _Valuer(forward, model)


def _values(hidden: Any, weight: Any, bias: Any, form: ValueForm | None) -> Any:
    """Map hidden states (B, T, H) to values (B, T, 1); of a plain head they are its logits."""
    from torch.nn.functional import linear

    logits = linear(hidden.float(), weight, bias)
    return logits if form is None else form.values(logits).unsqueeze(-1)


class _Valuer:
    """What `Classifier` calls: the config and device of a model, and values as logits."""

    def __init__(self, forward: Any, model: Any) -> None:
        self._forward = forward
        self.config = model.config
        self.device = model.device

    def __call__(self, **inputs: Any) -> Any:
        return self._forward(**inputs)
