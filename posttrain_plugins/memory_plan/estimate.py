"""How much memory each training stage of a plan takes, by part and by phase. No paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain_plugins.memory_plan.method import Method, method_of, options_of_stage, processes_of, trains
from posttrain_plugins.memory_plan.model import (
    Subject,
    bits_of,
    config_of,
    dtype_of,
    on_meta,
    peft_config_of,
    subject_of,
    weight_bytes,
)
from posttrain_plugins.memory_plan.unknown import Unknown
from posttrain_plugins.models.folder import TASKS
from posttrain_plugins.models.training_memory import Moments, Sharding, peak_of
from posttrain_plugins.recipe.lineage import critic_start, is_full
from posttrain_plugins.recipe.plan.plan import Plan
from posttrain_plugins.recipe.spec import CriticStart, External, FromStage, StageSpec, Use

__all__ = ["PROMPT_TOKENS", "Estimator", "Machine", "StageMemory"]

PROMPT_TOKENS = 512
"""Of a prompt, where a trainer samples: no option says how long these are."""
STATES: Mapping[str, float] = {"adamw": 2.0, "adam": 2.0, "lion": 1.0, "sgd": 0.0, "rmsprop": 1.0, "adagrad": 1.0}
"""Beginning of an optimizer's name -> numbers that it keeps for each that learns."""
SMALL_STATES = ("8bit", "bnb")
FULL_BITS = 16
COPIES_OF_LOGITS = 4
"""Of the last token's, while one is drawn: as they are, in float32, warped, and as probabilities."""


ALONE = Sharding()


@dataclass(frozen=True)
class Machine:
    """What a stage is to run on.

    Args:
        memory: bytes of a device.
        is_gpu: TRL then computes in bfloat16 unless the recipe says otherwise.
        sharding: of several processes.
    """

    memory: int
    is_gpu: bool
    sharding: Sharding = ALONE


@dataclass(frozen=True)
class StageMemory:
    """Bytes of a training stage. What stays is there in both phases; the phases are never summed.

    Args:
        weights: that do not learn by an adapter; all of them where there is none.
        adapters: that learn, and those below them that stay around packed weights.
        optimizer: its state.
        reference: a model of its own, or the copy of an adapter.
        critic: its weights; its gradients and optimizer are with the others'.
        rewards: reward models.
        gradients: of all that learns.
        activations: when the pass forward is through, a critic's too.
        logits: and the gradient of the head, beside the activations.
        cache: keys and values of a whole rollout, with the copy that one more token makes of a layer's.
        sampling: what a rollout holds beside, the last tokens' logits above all.
        update: the peak of a step of the optimizer.
        rollout: the peak of sampling; 0 where nothing is sampled.
        parameters: of the model.
        learns: numbers that learn.
        notes: what was assumed.
    """

    weights: int = 0
    adapters: int = 0
    optimizer: int = 0
    reference: int = 0
    critic: int = 0
    rewards: int = 0
    gradients: int = 0
    activations: int = 0
    logits: int = 0
    cache: int = 0
    sampling: int = 0
    update: int = 0
    rollout: int = 0
    parameters: int = 0
    learns: int = 0
    notes: tuple[str, ...] = ()

    @property
    def stays(self) -> int:
        return self.weights + self.adapters + self.optimizer + self.reference + self.critic + self.rewards

    @property
    def peak(self) -> int:
        return max(self.update, self.rollout)


@dataclass
class _Work:
    """A stage while it is estimated."""

    plan: Plan
    spec: StageSpec
    machine: Machine
    subject: Subject
    method: Method
    options: Mapping[str, Any]
    prompt_tokens: int
    notes: list[str] = field(default_factory=list)

    def number(self, name: str, default: int) -> int:
        found = self.options.get(name)
        return int(found) if found is not None else default

    @property
    def rows(self) -> int:
        return self.number("per_device_train_batch_size", 8)

    @property
    def length(self) -> int:
        if self.method.has_rollouts:
            return self.prompt_tokens + self.number("max_completion_length", self.number("max_new_tokens", 512))
        return self.number("max_length", 1024)

    @property
    def computes_in_half(self) -> bool:
        """TRL's own default where there is an accelerator."""
        given = self.options.get("bf16")
        return bool(given) if given is not None else self.machine.is_gpu and not self.options.get("fp16")


@dataclass
class Estimator:
    """Estimates the stages of a plan; what was traced for one serves all that are alike.

    Args:
        machine: that they are to run on.
        prompt_tokens: of a prompt, where a trainer samples.
        traced: description of a step -> its moments.
    """

    machine: Machine
    prompt_tokens: int = PROMPT_TOKENS
    traced: dict[str, Moments] = field(default_factory=dict)

    def all(self, plan: Plan) -> dict[str, StageMemory | str]:
        """Return what each stage that trains or asks a model takes; a text says why that cannot be told."""
        found: dict[str, StageMemory | str] = {}
        for stage in plan.stages:
            estimated = self.stage if trains(stage.spec) else asking if _asked_of(stage.spec) else None
            if estimated is not None:
                try:
                    found[stage.id] = estimated(plan, stage.spec)
                except Unknown as reason:
                    found[stage.id] = str(reason)
        return found

    def stage(self, plan: Plan, spec: StageSpec) -> StageMemory:
        """Return what one stage takes.

        Args:
            plan: with what is made already, which is asked for its config.
            spec: a stage of it, or one that differs from it.

        Raises:
            Unknown: its model has no config yet.
        """
        method = method_of(spec)
        subject = subject_of(plan, spec, method.task)
        work = _Work(plan, spec, self.machine, subject, method, options_of_stage(spec), self.prompt_tokens)
        if not method.is_known:
            work.notes.append("a trainer that the plan does not know: all logits are counted")
        if spec.params.get("share_prompts"):
            work.notes.append("share_prompts takes less than this: each row is counted with its own prompt")
        bare = on_meta(replace(subject, adapter=None), TASKS[method.task])
        weights, parameters = weight_bytes(bare, subject), sum(p.numel() for p in bare.parameters())
        whole = _learner(work, None)
        learning, own, critics = _sizes(whole, bare)
        gradients = _bytes(learning)
        moments = self._moments(work, whole, bare)
        # what stays is there in both phases; what comes on top of it never meets
        shards = self.machine.sharding
        if spec.launch is not None:
            shards = Sharding.of(spec.launch.engine, spec.launch.num_processes)
        stays = {
            "weights": weights // shards.weights,
            "adapters": (own + sum(_adapter_bytes(subject, one) for one in subject.below)) // shards.weights,
            "optimizer": _optimizer_bytes(work, learning) // shards.optimizer,
            "reference": _reference_bytes(work, weights, own) // shards.weights,
            "critic": critics // shards.weights,
            "rewards": _reward_models(work) // shards.weights,
        }
        accumulates = work.number("gradient_accumulation_steps", 1) > 1
        kept = gradients // shards.gradients
        total = sum(stays.values())
        cache, sampling = _rollout(work) if method.has_rollouts else (0, 0)
        return StageMemory(
            **stays,
            gradients=kept,
            activations=max(moments.activations, moments.kept),
            logits=moments.head,
            cache=cache,
            sampling=sampling,
            update=peak_of(total, moments, gradients=kept, accumulates=accumulates),
            rollout=total + cache + sampling if method.has_rollouts else 0,
            parameters=parameters,
            learns=sum(one.numel() for one in learning),
            notes=tuple(work.notes),
        )

    def _moments(self, work: _Work, whole: Any, bare: Any) -> Moments:
        from posttrain_plugins.memory_plan.trace import trace

        step, is_cut = _pass_of(work), work.subject.prepare is None or work.subject.adapter is not None
        config = work.subject.config.to_json_string()
        options = [work.options.get(name) for name in ("gradient_checkpointing", "critic", "advantage_estimator")]
        described = replace(work.subject, config=config)
        # what else a stage says changes no step: seeds, rates, how often it saves
        key = repr(
            (
                described,
                step.rows,
                step.length,
                step.has_mask,
                step.compute_dtype,
                step.is_on_gpu,
                work.method.head,
                options,
            )
        )
        key += repr(work.spec.inputs.get("critic"))
        if key not in self.traced:
            # layers that are frozen by their number have to be there
            self.traced[key] = trace(whole, (lambda count: _learner(work, count)) if is_cut else None, step)
        moments = self.traced[key]
        if work.subject.bits == FULL_BITS:
            return moments
        # each packed matrix is unpacked while it is used
        matrices = [m.weight.numel() for m in bare.modules() if type(m).__name__ == "Linear"]
        head = bare.get_output_embeddings()
        largest = max(size for size in matrices if head is None or size != head.weight.numel())
        unpacked = largest * (2 if work.computes_in_half else 4)
        return replace(moments, last=moments.last + unpacked, end=moments.end + unpacked)


def asking(plan: Plan, spec: StageSpec) -> StageMemory:
    """Return what a stage takes that asks models and trains none: the largest one's weights.

    Args:
        plan: with what is made already.
        spec: such as `sample` and `evaluate`, which go from one model to the next.

    Raises:
        Unknown: a model has no config yet.
    """
    # one after the other: `evaluate` closes a model before it opens the next
    sizes = []
    for source in _asked_of(spec):
        config = config_of(plan, source)
        subject = Subject(
            config, "CAUSAL_LM", dtype_of(spec.loading or {"dtype": "auto"}, config), bits_of(spec.loading)
        )
        model = on_meta(subject, TASKS[subject.task])
        sizes.append((weight_bytes(model, subject), sum(p.numel() for p in model.parameters())))
    weights, parameters = max(sizes)
    note = "its batches take what memory is left"
    return StageMemory(weights=weights, rollout=weights, parameters=parameters, notes=(note,))


def _asked_of(spec: StageSpec) -> list[Any]:
    """Return the models that a stage asks; none of one that trains or that writes a model."""
    if spec.produces not in ("dataset", "figures"):
        return []
    named = [spec.inputs.get("model"), *(spec.inputs.get("models") or ())]  # type: ignore[misc]
    return [one for one in named if isinstance(one, External | FromStage)]


def _learner(work: _Work, layers: int | None) -> Any:
    """Build the model as the trainer has it: fused head, adapter, what is frozen, checkpointing, critic."""
    from types import SimpleNamespace

    def prepare_base(model: Any) -> None:
        if work.method.head == "fused":
            from trl.trainer.utils import add_fused_lm_head

            # before the adapter, as TRL does: PEFT wraps the forward that it finds
            add_fused_lm_head(model, outputs=("log_probs", "entropy"))

    subject, options = work.subject, work.options
    model = on_meta(subject, TASKS[work.method.task], layers_kept=layers, prepare_base=prepare_base)
    # before checkpointing and critic, as `training.train` does: it goes by the names of the model's own parameters
    if subject.prepare is not None and subject.adapter is None:
        subject.prepare(SimpleNamespace(model=model))
    if options.get("gradient_checkpointing", True):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if subject.adapter is not None:
            # TRL does so too: a checkpointed layer none of whose inputs learns would be given no gradient
            model.enable_input_require_grads()
    if _has_critic(work):
        _add_critic(work, model)
    return model


def _has_critic(work: _Work) -> bool:
    return work.method.has_critic and work.options.get("advantage_estimator", "gae") == "gae"


def _add_critic(work: _Work, model: Any) -> None:
    import torch

    from posttrain_plugins.trainers.ppo.critic import Critic
    from posttrain_plugins.trainers.ppo.rules import CriticKind, choose_kind

    given = work.spec.inputs.get("critic")
    config = peft_config_of(given, "CAUSAL_LM") if isinstance(given, Use) and not is_full(given) else None
    asked: CriticKind | None = work.options.get("critic") or (
        "separate" if isinstance(given, Use) and is_full(given) else None
    )
    start = critic_start({stage.id: stage.spec for stage in work.plan.stages}, work.spec)
    if isinstance(given, CriticStart):
        asked = asked or given.kind
    # the trainer's own choice, so that a critic that it refuses is no plan either; what it starts from has the
    # policy's size, as far as anyone knows
    kind = choose_kind(asked, work.subject.adapter, config, work.subject.bits < 16, start)
    with torch.device("meta"):
        model.critic_of_plan = None  # a place that `named_parameters` does not go to
        critic = Critic(model, kind, config)
    object.__setattr__(model, "critic_of_plan", critic)


def _sizes(model: Any, bare: Any) -> tuple[list[Any], int, int]:
    """Return what learns, and the bytes of the policy's adapter and of the critic, of a whole learner."""
    critic = getattr(model, "critic_of_plan", None)
    # buffers too: a critic's own body has those of the positions once more, and VeRA's matrices are none that learn
    held = {id(one): (name, one) for name, one in (*model.named_parameters(), *model.named_buffers())}
    critics = _bytes([one for name, one in held.values() if critic is not None and critic.owns(name)])
    learning = [p for p in model.parameters() if p.requires_grad]
    base = _bytes([*{id(one): one for one in (*bare.parameters(), *bare.buffers())}.values()])
    own = _bytes([one for _, one in held.values()]) - critics - base if hasattr(model, "peft_config") else 0
    return learning, own, critics


def _bytes(tensors: list[Any]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


def _pass_of(work: _Work) -> Any:
    """Return the pass whose gradients a step of the optimizer takes, or the last of several."""
    import torch

    from posttrain_plugins.memory_plan.trace import Pass

    rows = work.rows * work.method.rows_per_item
    is_packed, is_flat = bool(work.options.get("packing")), bool(work.options.get("padding_free"))
    # without padding all rows are one; packed, each is as long as one may be, and all of them are one too
    one = is_packed or is_flat
    return Pass(
        rows=1 if one else rows,
        length=work.length * (rows if one else 1),
        call=_CALLS[work.method.head](_has_critic(work)),
        has_mask=rows > 1 and not one,
        compute_dtype=torch.bfloat16 if work.computes_in_half else None,
        is_on_gpu=work.machine.is_gpu,
    )


def _fused(with_values: bool) -> Any:
    def call(model: Any, ids: Any, mask: Any) -> Any:
        more = {"with_values": True} if with_values else {}
        out = model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True, **more)
        return out.log_probs.sum() + (out.state_values.sum() if with_values else 0)

    return call


def _plain(with_values: bool) -> Any:
    return lambda model, ids, mask: model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss


def _score(with_values: bool) -> Any:
    return lambda model, ids, mask: model(input_ids=ids, attention_mask=mask, use_cache=False).logits.sum()


def _kl(with_values: bool) -> Any:
    def call(model: Any, ids: Any, mask: Any) -> Any:
        out = model(input_ids=ids, attention_mask=mask, use_cache=False, with_values=True)
        now = out.logits[:, :-1].float().log_softmax(-1)
        before = now.detach().clone()
        return (now.exp() * (now - before)).sum() + out.state_values.sum()

    return call


_CALLS: Mapping[str, Any] = {"fused": _fused, "plain": _plain, "score": _score, "kl": _kl}
"""How a trainer gets its loss."""


def _optimizer_bytes(work: _Work, learning: list[Any]) -> int:
    """Return the bytes of the optimizer's state: torch keeps it in the dtype of what learns."""
    name = str(work.options.get("optim") or "adamw_torch_fused")
    states = next((count for begins, count in STATES.items() if name.startswith(begins)), None)
    if name.startswith("adafactor"):  # a row and a column in place of a matrix
        return sum(4 * sum(p.shape) for p in learning if p.dim() > 1)
    if states is None:
        states = 2.0
        work.notes.append(f"optimizer {name} is counted as AdamW")
    # a byte a number; the constants of their blocks are less than a hundredth of that
    if any(word in name for word in SMALL_STATES):
        return int(sum(states * p.numel() for p in learning))
    return int(states * _bytes(learning))


def _reference_bytes(work: _Work, weights: int, own: int) -> int:
    """Return the bytes of the reference: the policy without its adapter is one already."""
    option = work.spec.schema.declares("reference")
    wanted = bool(option) and (option == "model" or bool(work.options.get(option)))
    if not wanted or work.options.get("precompute_ref_log_probs"):
        return 0
    # with the adapter off, the policy is its reference
    if work.subject.adapter is not None:
        return own if work.subject.continues else 0
    return weights


def _reward_models(work: _Work) -> int:
    """Return the bytes of the reward models that stand beside the policy."""
    stage = work.plan[work.spec.id]
    judges = stage.starting_point.judges if stage.starting_point is not None else {}
    total = 0
    rewards = work.spec.inputs.get("rewards")
    for reward in rewards if isinstance(rewards, tuple) else ():
        if not isinstance(reward, FromStage) or reward.stage not in judges:
            continue
        made = work.plan[reward.stage].spec
        try:
            judge = subject_of(work.plan, made, method_of(made).task)
        except Unknown as reason:
            work.notes.append(f"reward model {reward.stage} is not counted: {reason}")
            continue
        own = _adapter_bytes(judge, judge.adapter) if judge.adapter is not None else 0
        # an adapter on the policy's base costs itself alone; a model of its own, its weights once more
        is_shared = judges[reward.stage].startswith("an adapter")
        total += own if is_shared else weight_bytes(on_meta(replace(judge, adapter=None), TASKS[judge.task]), judge)
    return total


def _adapter_bytes(subject: Subject, config: Any) -> int:
    """Return the bytes of an adapter that does not learn: in float32, whatever it learned in, as PEFT loads it."""
    plain = replace(config, task_type=None)  # its layers, without PEFT's wrapper for what the model was for
    model = on_meta(replace(subject, adapter=plain, bits=FULL_BITS), TASKS[subject.task])
    return _bytes([p for p in model.parameters() if p.requires_grad])


def _rollout(work: _Work) -> tuple[int, int]:
    """Return the bytes of keys and values, and of what is drawn from, of a whole rollout by `generate`."""
    config = work.subject.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    steps = work.number("steps_per_generation", work.number("gradient_accumulation_steps", 1))
    whole = work.options.get("generation_batch_size")  # of all processes together
    rows = -(-int(whole) // processes_of(work.spec)) if whole else work.rows * steps
    number = 4 if work.subject.dtype == "float32" else 2
    if work.spec.params.get("vllm_server"):  # on devices of its own
        return 0, 0
    if work.options.get("use_vllm"):
        if work.options.get("vllm_mode") != "colocate":
            return 0, 0
        share = float(work.options.get("vllm_gpu_memory_utilization") or 0.3)
        work.notes.append("vLLM takes its share of the device: vllm_gpu_memory_utilization")
        return int(share * work.machine.memory), 0
    of_layer = 2 * heads * size * number * work.length * rows
    # one more token makes a copy of a layer's keys and values, beside those that it is made from
    cache = of_layer * config.num_hidden_layers + of_layer
    work.notes.append(f"prompts of {work.prompt_tokens} tokens are assumed")
    # no gradient is kept: one layer's widest tensors, of all prompts at once
    prefill = rows * work.prompt_tokens * number * (2 * config.hidden_size + 3 * config.intermediate_size)
    drawn = COPIES_OF_LOGITS * 4 * rows * config.vocab_size
    return cache, max(prefill, drawn)
