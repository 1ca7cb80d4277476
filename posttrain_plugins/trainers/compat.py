"""Every private name of TRL, PEFT and transformers that a trainer or a stage of ours touches.

Nothing else in the project does, but for `models/`, which owns the layers of adapters. Two tables hold what our
trainer classes override and set; `tests/test_compat.py` compares both with the classes, holds each function below to
what it expects of the three libraries, and finds private names that stand elsewhere.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from posttrain_plugins.errors import InputError

__all__ = [
    "CLASS_ATTRIBUTES",
    "FORWARD_EXTRAS",
    "OVERRIDDEN",
    "active_adapter",
    "active_config",
    "adapter_layers",
    "add_metric",
    "add_reference",
    "adds_masks",
    "around_log_probs",
    "as_reference",
    "attention_window",
    "calculate_rewards",
    "changed",
    "checkpointed_layers",
    "contain_exits",
    "count_equal_groups",
    "deal_groups",
    "disable_dropout",
    "draw_with",
    "drop_metric",
    "fill_shard",
    "first_batch",
    "forward_as",
    "gathered_parameters",
    "has_sharded_weights",
    "hide_from_vllm",
    "is_peft",
    "is_quantized",
    "is_sharded",
    "keep_columns",
    "keep_head_dtype",
    "limit_tool_calls",
    "match_vera_dtype",
    "model_path",
    "modules_as",
    "new_metrics",
    "observe_generation",
    "observe_losses",
    "observe_online_rewards",
    "observe_rewards",
    "reads_tool_calls",
    "recomputed_with",
    "reference_log_probs",
    "replay_order",
    "restore_averages",
    "rollout_greedily",
    "rollout_pass",
    "routed",
    "running_averages",
    "set_reward_names",
    "trial",
    "value_output_class",
    "without_checkpointing",
    "without_side_effects",
]

FORWARD_EXTRAS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
"""What a rollout of a vision-language model holds for its forward pass beside ids and mask."""

CLASS_ATTRIBUTES = ("_name", "_paper", "_tag_names")
"""What TRL's trainers say of themselves in a model card; ours say it under the same names."""

OVERRIDDEN: Mapping[str, tuple[str, ...]] = {
    "trl:GRPOTrainer": (
        "_calculate_rewards",
        "_compute_loss",
        "_generate_and_score_completions",
        "_get_per_token_logps_and_entropies",
        "_load_optimizer_and_scheduler",
        "_save_checkpoint",
    ),
    "trl:DPOTrainer": ("_prepare_dataset", "_set_signature_columns_if_needed", "compute_loss"),
    "trl:RewardTrainer": ("_prepare_dataset", "_set_signature_columns_if_needed", "compute_loss", "evaluate"),
    "trl:SFTTrainer": ("compute_loss", "prediction_step", "training_step"),
    "transformers:Trainer": (
        *(
            "_clip_grad_norm",
            "_load_best_model",
            "_load_from_checkpoint",
            "_save",
            "create_optimizer",
            "evaluation_loop",
        ),
        *("get_batch_samples", "get_eval_dataloader", "get_train_dataloader", "save_model", "train"),
    ),
}
"""Class of theirs -> the methods of it that classes of ours override."""


# --- any trainer -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def changed(owner: Any, **values: Any) -> Iterator[None]:
    """Within, an object's attributes have other values."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextlib.contextmanager
def modules_as(trainer: Any, stand_ins: Mapping[str, Any]) -> Iterator[None]:
    """Within, names of modules mean something else where TRL's trainers use them, past any callback.

    Args:
        trainer: its class and TRL's classes that it derives from are looked at, and how they time their parts.
        stand_ins: name of a module, as those files import it -> what it means.
    """
    bases = [base for base in type(trainer).__mro__ if base.__module__.startswith("trl.")]
    # not where the class below all asks for the address of a run, which no stand-in has
    homes = [sys.modules[base.__module__] for base in bases if base.__name__ != "_BaseTrainer"]
    homes += [sys.modules[name] for name in ("trl.extras.profiling",) if name in sys.modules]
    missing = object()
    before = [(vars(home), name, vars(home).get(name, missing)) for home in homes for name in stand_ins]
    try:
        for names, name, _ in before:
            names[name] = stand_ins[name]
        yield
    finally:
        for names, name, value in before:
            if value is missing:
                del names[name]
            else:
                names[name] = value


def observe_losses(trainer: Any, sink: Callable[[Any], None]) -> None:
    """Call `sink(loss)` with every micro-step's detached loss.

    transformers logs the mean of some steps, and by default leaves NaN and infinities out of it.
    """
    training_step = trainer.training_step

    def observed(*args: Any, **kwargs: Any) -> Any:
        loss = training_step(*args, **kwargs)
        sink(loss.detach())
        return loss

    trainer.training_step = observed


def first_batch(trainer: Any) -> Any:
    """Return the first batch as the trainer's loss would see it; of a trainer that samples, with its completions."""
    trainer.model.train()
    with trainer.compute_loss_context_manager():
        return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def keep_columns(trainer: Any, columns: Iterable[str]) -> None:
    """Say which columns of the data set the collator is given; transformers drops all others."""
    trainer._signature_columns = list(columns)


def add_metric(trainer: Any, name: str, value: float) -> None:
    """Log a figure beside TRL's own, averaged as they are."""
    trainer._metrics["train" if trainer.model.training else "eval"][name].append(value)


def drop_metric(trainer: Any, name: str) -> None:
    """Take a figure of TRL's out of the log that says nothing here."""
    trainer._metrics["train" if trainer.model.training else "eval"].pop(name, None)


AVERAGED = ("_metrics", "_stored_metrics", "stats")
"""Where TRL's trainers keep the values that the next line of the log is the mean of: CPO's and ORPO's, Online DPO's."""

COUNTED = ("_total_loss_scalar", "_globalstep_last_logged", "_initial_global_step", "_total_train_tokens")
"""Numbers that figures are made of and that every `train` starts anew, also from a checkpoint."""


def running_averages(trainer: Any) -> dict[str, Any]:
    """Return what the figures of the steps to come are averaged with, as JSON values; no checkpoint of TRL has it."""
    names = [name for name in (*AVERAGED, *COUNTED) if hasattr(trainer, name)]
    return {"_tr_loss": float(trainer._tr_loss), **{name: getattr(trainer, name) for name in names}}


def restore_averages(trainer: Any, saved: Mapping[str, Any]) -> None:
    """Go on from what `running_averages` gave; when training has begun, since its start sets them to 0."""
    trainer._tr_loss.fill_(saved["_tr_loss"])
    for name in (name for name in COUNTED if name in saved):
        setattr(trainer, name, saved[name])
    for name in (name for name in AVERAGED if name in saved):
        kept = getattr(trainer, name)
        for key, values in saved[name].items():  # of a mode the metrics, each a list, or of a metric the list
            kept[key].update(values) if isinstance(values, Mapping) else kept.update({key: values})


def replay_order(trainer: Any, dataloader: Any) -> None:
    """Let the order of prompts go on with the epoch that a checkpoint is of.

    TRL's sampler, of GRPO and its kin, draws each epoch's order from a generator of its own, which stands at the first
    epoch in a new process, and is in no checkpoint; transformers' samplers are told the epoch.
    """
    import torch
    from trl.trainer.utils import RepeatSampler

    sampler = getattr(dataloader, "batch_sampler", None)
    while sampler is not None and not isinstance(sampler, RepeatSampler):
        sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)
    if sampler is None or not sampler.shuffle:
        return
    steps_per_epoch = trainer.set_initial_training_values(trainer.args, dataloader)[1]
    for _ in range(trainer.state.global_step // steps_per_epoch):
        torch.randperm(sampler.num_samples, generator=sampler.generator)


def new_metrics(trainer: Any, seen: dict[str, tuple[Any, int]]) -> dict[str, float]:
    """Return the mean of each figure of training that came since the last call, as TRL averages those of its log.

    TRL keeps them for its next line, which is of `logging_steps` steps; here a step can have its own.

    Args:
        trainer: one of TRL's; another has none.
        seen: for the next call; empty at first.
    """
    found = {}
    metrics, stored = (getattr(trainer, name, None) or {} for name in AVERAGED[:2])
    for name, values in [*metrics.get("train", {}).items(), *stored.get("train", {}).items()]:
        before, count = seen.get(name, (None, 0))
        # TRL empties its table with each line of the log, and replaces the list of a figure that only goes up
        fresh = [float(value) for value in (values[count:] if values is before else values) if value is not None]
        seen[name] = (values, len(values))
        known = [value for value in fresh if value == value]
        if known:
            found[name] = sum(known) / len(known)
    return found


def observe_generation(trainer: Any, sink: Callable[[float], None], each: Callable[[], None] | None = None) -> bool:
    """Call `sink(seconds)` with what each generation of training took, tools' and environments' turns with it.

    Args:
        trainer: one that samples, or another.
        sink: is told the seconds.
        each: is called at each pass of a generation, where the trainer's own model draws.

    Returns:
        Whether it is a trainer that samples.
    """
    names = [name for name in ("_generate", "_generate_vllm") if callable(getattr(trainer, name, None))]

    def timed(generate: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            with _at_each_pass(trainer, each) if each is not None else contextlib.nullcontext():
                made = generate(*args, **kwargs)  # ends with token ids on the CPU, so that a GPU has ended too
            if trainer.model.training:
                sink(time.perf_counter() - began)
            return made

        return measured

    for name in names:
        setattr(trainer, name, timed(getattr(trainer, name)))
    return bool(names)


@contextlib.contextmanager
def _at_each_pass(trainer: Any, each: Callable[[], None]) -> Iterator[None]:
    # the embedding: of a model with adapters, generation enters below what wraps it
    hook = trainer.model.get_input_embeddings().register_forward_pre_hook(lambda *given: each())
    try:
        yield
    finally:
        hook.remove()


def without_checkpointing(trainer: Any) -> Any:
    """Return a context without gradient checkpointing, for passes without gradients (as TRL has around its own)."""
    from trl.models.utils import disable_gradient_checkpointing

    return disable_gradient_checkpointing(trainer.model, trainer.args.gradient_checkpointing_kwargs)


# --- GRPO's rollouts -------------------------------------------------------------------------------------------------


def set_reward_names(trainer: Any, names: list[str]) -> None:
    """Log rewards under the recipe's names; TRL has no argument for them."""
    # TRL takes a reward model's name from its folder, and merges the figures of two functions with one `__name__`
    own = trainer.reward_func_names[len(names) :]  # of environments, which TRL puts behind
    trainer.reward_func_names = [*names, *own]


def calculate_rewards(trainer: Any, inputs: Any, prompts: Any, completions: Any, ids: Any) -> Any:
    """Return what the trainer's rewards give, (N, F) of all processes, for this process's completions."""
    return trainer._calculate_rewards(inputs, prompts, completions, ids)


def observe_rewards(trainer: Any, sink: Callable[[Any, Any, Any, Any], None]) -> None:
    """Call `sink(inputs, prompts, completions, rewards)` with every rollout that is scored, where a trainer does.

    The first three are this process's (B), `rewards` a tensor (N, F) of all processes, in the order of the processes.
    """
    calculate = getattr(trainer, "_calculate_rewards", None)
    if calculate is None:
        return

    def observed(inputs: Any, prompts: Any, completions: Any, *args: Any) -> Any:
        rewards = calculate(inputs, prompts, completions, *args)
        sink(inputs, prompts, completions, rewards)
        return rewards

    trainer._calculate_rewards = observed


def count_equal_groups(trainer: Any) -> None:
    """Log as `frac_reward_zero_std` which share of the groups has equal rewards, so teaches nothing.

    TRL asks whether a deviation in float32 is below 1e-8; one rounding of 1 + 0.2 makes it 6e-8, and no group counts.
    """
    import torch

    summed = getattr(trainer, "multi_objective_aggregation", "sum_then_normalize") == "sum_then_normalize"
    is_rloo = hasattr(trainer, "reward_clip_range")  # which takes the deviation of what it has clipped and taken KL off
    if not hasattr(trainer, "_calculate_rewards") or not summed:
        return
    if is_rloo and (trainer.reward_clip_range or trainer.beta != 0.0):
        return
    generate = trainer._generate_and_score_completions
    judged: list[Any] = []  # (N, F), those of the newest rollout
    observe_rewards(trainer, lambda inputs, prompts, completions, rewards: judged.append(rewards.double()))

    def counted(inputs: Any) -> Any:
        judged.clear()
        output = generate(inputs)
        mode = "train" if trainer.model.training else "eval"
        logged = trainer._metrics[mode].get("frac_reward_zero_std")
        if not logged or not judged:
            return output
        weighted = judged[-1] * trainer.reward_weights.double().to(judged[-1].device)
        is_known = ~torch.isnan(weighted).all(1)  # (N,) some reward could judge it
        totals, sizes = weighted.nansum(1), weighted.abs().nansum(1)
        by_batch = getattr(trainer, "scale_rewards", "group") == "batch"
        group = trainer.num_generations if mode == "train" else trainer.num_generations_eval
        width = len(totals) if by_batch else group
        low, high = (totals.masked_fill(~is_known, at).view(-1, width) for at in (torch.inf, -torch.inf))
        # rewards came as float32, each rounded by half of this at most: nothing smaller is a difference
        rounding = torch.finfo(torch.float32).eps * sizes.view(-1, width).amax(1)
        is_equal = is_known.view(-1, width).any(1) & (high.amax(1) - low.amin(1) <= rounding)
        logged[-1] = is_equal.double().mean().item()
        return output

    trainer._generate_and_score_completions = counted


@contextlib.contextmanager
def without_side_effects(trainer: Any) -> Iterator[None]:
    """Within, a second rollout leaves no trace in metrics, token counter and logs, and no observer sees its rewards."""
    mode = "train" if trainer.model.training else "eval"
    kept, seen = trainer._metrics[mode], trainer.state.num_input_tokens_seen
    trainer._metrics[mode] = defaultdict(list)
    # `observe_rewards` put its function on the instance; without it the class's own method is called
    observed = trainer.__dict__.pop("_calculate_rewards", None)
    try:
        yield
    finally:
        if observed is not None:
            trainer._calculate_rewards = observed
        trainer._metrics[mode], trainer.state.num_input_tokens_seen = kept, seen
        # what rewards gave to `log_metric` and `log_extra`, which TRL would add to the next rollout's own
        trainer._pending_extra_logs.clear()
        trainer._pending_metrics.clear()


def rollout_greedily(trainer: Any, prompts: list[Any]) -> tuple[list[Any], list[list[int]]]:
    """Return one greedy completion of each prompt by the trainer's own generation: texts or messages, and token ids."""
    if trainer.use_vllm:
        greedily = changed(trainer.vllm_generation, temperature=0.0)
    else:
        # transformers warns of sampling options beside `do_sample=False` unless they are the unset values
        greedy = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None}
        config = trainer.generation_config
        config, kwargs = type(config)(**{**config.to_dict(), **greedy}), {**trainer.generation_kwargs, **greedy}
        greedily = changed(trainer, generation_config=config, generation_kwargs=kwargs)
    with greedily:
        _, ids, _, completions, *_ = trainer._generate(prompts)
    return completions, ids


def rollout_pass(trainer: Any) -> int:
    """Return how many whole passes GRPO has made over the rollout that the next micro-step is of."""
    steps = trainer.args.steps_per_generation
    return int(trainer._step % (steps * trainer.num_iterations) // steps)


def has_sharded_weights(trainer: Any) -> bool:
    """Tell whether no process holds the whole model: FSDP, and ZeRO's third stage."""
    deepspeed = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return bool(trainer.is_fsdp_enabled) or (deepspeed is not None and deepspeed.zero_stage == 3)


def around_log_probs(trainer: Any, within: Callable[[Any, int], contextlib.AbstractContextManager[None]]) -> None:
    """Take every log-probability of completions inside `within(model, columns of prompts)`."""
    take = trainer._get_per_token_logps_and_entropies

    def taken(model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **kwargs: Any) -> Any:
        with within(model, input_ids.size(1) - logits_to_keep):
            return take(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)

    trainer._get_per_token_logps_and_entropies = taken


def draw_with(trainer: Any, draw: Callable[[Any], list[list[int]]]) -> None:
    """Let `draw(token ids of prompts)` make the completions that TRL would ask `generate` for.

    Raises:
        InputError: in a rollout, where prompts have images.
    """
    import inspect

    # GRPO's also gives log-probabilities, of vLLM alone
    has_logprobs = "num_generations" in inspect.signature(trainer._generate_single_turn).parameters

    def drawn(prompt_ids: Any, images: Any, fields: Any, *args: Any, **kwargs: Any) -> Any:
        if images or fields:
            raise InputError("rollouts: engine draws after text, but prompts have images", hint="take it out")
        completions = draw(prompt_ids)
        return (completions, None) if has_logprobs else completions

    trainer._generate_single_turn = drawn


def deal_groups(trainer: Any) -> None:
    """Keep the completions of a prompt together where TRL deals the rows of a rollout out at random to its batches.

    The same numbers are drawn as for TRL's own order, so that all that is drawn later stays as it was.
    """
    prepare = trainer._prepare_inputs

    def prepared(batch: Any) -> Any:
        with modules_as(trainer, {"shuffle_sequence_dict": _shuffled_groups}):
            return prepare(batch)

    trainer._prepare_inputs = prepared


def _shuffled_groups(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Do as TRL's `shuffle_sequence_dict`, then sort by the place of the first completion of each prompt."""
    import torch

    prompts = rows["prompt_ids"].masked_fill(rows["prompt_mask"] == 0, -1)
    order = torch.randperm(len(prompts))
    group = torch.unique(prompts, dim=0, return_inverse=True)[1].cpu()[order]
    places = torch.arange(len(order))
    first = places.new_full((len(order),), len(order)).scatter_reduce(0, group, places, "amin")
    order = order[first[group].argsort(stable=True)]

    def sorted_rows(value: Any) -> Any:
        if value is None or (isinstance(value, torch.Tensor) and value.ndim == 0):
            return value
        return value[order] if isinstance(value, torch.Tensor) else [value[i] for i in order]

    return {name: sorted_rows(value) for name, value in rows.items()}


def limit_tool_calls(trainer: Any, max_seconds: float | None, checks: Sequence[Callable[[], None]]) -> None:
    """End the tool calls of a rollout after its seconds, and call `checks` after it, which raise to end the run.

    TRL takes whatever a tool raises for an answer. It asks `max_tool_calling_iterations` before each turn of all
    trajectories, which begin together: what is asked there may be the time as well.
    """
    generate, turns = trainer._generate, _Turns(trainer.max_tool_calling_iterations, max_seconds)
    if max_seconds is not None:
        trainer.max_tool_calling_iterations = turns

    def limited(*args: Any, **kwargs: Any) -> Any:
        turns.begin()
        made = generate(*args, **kwargs)
        for check in checks:
            check()
        if max_seconds is not None:
            add_metric(trainer, "tools/out_of_time", float(turns.is_cut))
        return made

    trainer._generate = limited


class _Turns:
    """A number of turns that is reached, too, when the time is over."""

    def __init__(self, turns: int, max_seconds: float | None) -> None:
        self.turns, self.max_seconds = turns, max_seconds
        self.begin()

    def begin(self) -> None:
        self.start, self.is_cut = time.monotonic(), False

    def __gt__(self, turn: int) -> bool:
        is_late = self.max_seconds is not None and time.monotonic() - self.start > self.max_seconds
        self.is_cut = self.is_cut or (is_late and turn < self.turns)
        return turn < self.turns and not is_late


def reads_tool_calls(tokenizer: Any) -> bool:
    """Let a tokenizer read calls that its template writes as Hermes and Qwen do, where neither it nor TRL knows how.

    Returns:
        Whether that is new to it. What TRL knows by heart it sets itself.
    """
    from trl.chat_template_utils import add_response_schema, qwen3_template

    if getattr(tokenizer, "response_template", None) is not None or tokenizer.chat_template is None:
        return False
    if getattr(tokenizer, "response_schema", None) is not None:
        return False
    try:
        add_response_schema(tokenizer)
        tokenizer.response_template = None  # as it was: TRL will do so again
        return False
    except ValueError:  # a template that TRL does not know
        pass
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "<it>", "times": 2}}}
    asked = [{"role": "user", "content": "a"}]
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    before = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*asked, answer], tokenize=False)
    tokenizer.response_template = qwen3_template
    if whole.startswith(before):
        with contextlib.suppress(ValueError):
            found = tokenizer.parse_response(whole[len(before) :], prefix=before, tools=[])
            if found.get("tool_calls") == [call]:
                return True
    tokenizer.response_template = None
    return False


def hide_from_vllm(trainer: Any, is_ours: Callable[[str], bool]) -> None:
    """Keep parameters that vLLM's copy of the model lacks out of the weight sync."""
    engine = getattr(trainer, "vllm_generation", None)
    if engine is None:
        return
    every = engine._iter_named_params
    engine._iter_named_params = lambda: (pair for pair in every() if not is_ours(pair[0]))


def observe_online_rewards(trainer: Any, sink: Callable[[Any, Any, Any, Any], None]) -> None:
    """Do as `observe_rewards` for `OnlineDPOTrainer`, which adds its rewards up where it asks them.

    It passes None over in that sum, so a completion that nobody judged has the score 0.
    """
    import torch

    calculate = getattr(trainer, "_calculate_rewards_from_functions", None)
    if calculate is None or any(isinstance(reward, torch.nn.Module) for reward in trainer.reward_funcs):
        return  # a reward model gives a number for every completion

    def observed(prompts: Any, completions: Any, *args: Any, **columns: Any) -> Any:
        seen: list[Any] = []

        def recorded(reward: Any) -> Any:
            def score(**given: Any) -> Any:
                seen.append([float("nan") if value is None else float(value) for value in reward(**given)])
                return seen[-1]

            return score

        with changed(trainer, reward_funcs=[recorded(reward) for reward in trainer.reward_funcs]):
            total = calculate(prompts, completions, *args, **columns)
        scores = total.new_tensor(seen).T.contiguous()  # (N, F)
        sink(columns, prompts, completions, trainer.accelerator.gather(scores))
        return total

    trainer._calculate_rewards_from_functions = observed


def contain_exits(trainer: Any) -> None:
    """Turn a `sys.exit` in an asynchronous reward or tool into an exception that the trainer sees.

    asyncio lets it out of the event loop: that would end the loop's thread, and the trainer would wait for ever.
    """
    import asyncio

    loop = getattr(trainer, "async_loop", None)
    if loop is None:
        return

    async def contained(work: Any) -> Any:
        try:
            return await work
        except SystemExit as cause:
            raise RuntimeError("it called sys.exit") from cause

    loop.set_task_factory(lambda loop, work, **options: asyncio.Task(contained(work), loop=loop, **options))


# --- models ----------------------------------------------------------------------------------------------------------


def disable_dropout(model: Any) -> None:
    """Set every dropout of a model to 0.

    TRL's `disable_dropout` argument does so when the trainer starts, before our critic or adapter is there.
    """
    from trl.trainer.utils import disable_dropout_in_model

    disable_dropout_in_model(model)


def model_path(model: Any) -> str:
    """Return the folder or Hub id that a model was loaded from; `""` for one that was built in memory."""
    return str(getattr(model.config, "_name_or_path", "") or "")


def is_quantized(model: Any) -> bool:
    """Tell whether it is a model, not a path, with 4-bit or 8-bit weights."""
    return any(getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))


@contextlib.contextmanager
def forward_as(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Within, a module's forward is another; after it the module is as it was, and can be copied."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


@contextlib.contextmanager
def trial(model: Any) -> Iterator[None]:
    """Within, a model evaluates, and what it trains and still is 0 is not: an adapter that was never trained shows."""
    import torch

    is_training = model.training
    new = [p for p in model.parameters() if p.requires_grad and not p.detach().any()]
    for parameter in new:
        parameter.data.normal_(std=0.02, generator=torch.Generator(parameter.device).manual_seed(0))
    model.eval()
    try:
        yield
    finally:
        for parameter in new:
            parameter.data.zero_()
        model.train(is_training)


def adds_masks(model: Any) -> bool:
    """Tell whether a model's attention adds its mask to the scores, where all others take booleans."""
    return str(model.config._attn_implementation) == "eager"


def attention_window(model: Any) -> float:
    """Return how many tokens back each layer of a model sees at least; infinity for all of them."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and set(kinds) == {"full_attention"}:
        return float("inf")
    found = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((float(size) for size in found if size), default=float("inf"))


def value_output_class() -> Any:
    """Return the class of TRL's output of the fused LM head, with two more fields.

    They have to be fields: DDP finds the tensors that want gradients only in a dataclass's own.
    """
    from dataclasses import dataclass

    from trl.trainer.utils import FusedCausalLMOutput

    @dataclass
    class ValueOutput(FusedCausalLMOutput):  # type: ignore[misc]
        """`state_values` is (B, L - 1): V of the state before each token; `values` would hide `dict.values`."""

        state_values: Any = None
        logits: Any = None  # without the fused head

    return ValueOutput


@contextlib.contextmanager
def gathered_parameters(model: Any, modifier_rank: int | None = None) -> Iterator[None]:
    """Within, every parameter has its values on this process, also where DeepSpeed's ZeRO-3 shards them.

    What the process `modifier_rank` changes in them is then the value on all processes.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=modifier_rank):
        yield


def is_sharded(model: Any) -> bool:
    """Tell whether FSDP2 has the parameters of a model in pieces."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def fill_shard(parameter: Any, value: Any) -> None:
    """Give a parameter the values of a whole tensor: its piece of it where it has but one."""
    import torch
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.to(parameter.device, parameter.dtype)
    with torch.no_grad():
        if isinstance(parameter, DTensor):
            value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
        parameter.copy_(value)


def add_reference(trainer: Any, is_new_adapter: bool) -> Any:
    """Give a trainer that has none a reference as `trl.DPOTrainer` has it, for `as_reference`.

    Args:
        trainer: built, and not yet training.
        is_new_adapter: its adapter was made for this training, so that the reference is the model without it.

    Returns:
        The model that it starts from once more, prepared for passes without gradients; None where the policy is its own
        reference, with the adapter off or with a frozen copy of it, `ref`.
    """
    from trl.models import prepare_deepspeed, prepare_fsdp
    from trl.trainer.utils import create_model_from_path, get_config_model_id

    model = trainer.model
    if is_peft(model):
        if not is_new_adapter:
            model.add_adapter("ref", model.peft_config["default"])
            for name, parameter in list(model.named_parameters()):
                if ".default." in name:
                    model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
        return None
    same = {"dtype": model.dtype, "attn_implementation": model.config._attn_implementation}
    options = {**same, **(trainer.args.model_init_kwargs or {})}
    reference = create_model_from_path(get_config_model_id(model.config), **options)
    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(reference, trainer.accelerator)
    if trainer.is_fsdp_enabled:
        return prepare_fsdp(reference, trainer.accelerator)
    return trainer.accelerator.prepare_model(reference, evaluation_mode=True)


def as_reference(trainer: Any) -> Any:
    """Return a context in which a `trl.DPOTrainer`'s policy is its own reference, where it has no other.

    So it is of a trainer that `add_reference` was called for.
    Without an adapter of its own for it (`ref`, which TRL copies from an adapter that is trained on) that is the model
    with the adapter off.
    """
    from trl.trainer.utils import use_adapter

    if trainer.ref_model is not None or not is_peft(trainer.model):
        return contextlib.nullcontext()
    model = trainer.accelerator.unwrap_model(trainer.model)
    return use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None)


def reference_log_probs(trainer: Any, given: Mapping[str, Any]) -> Any:
    """Return log-probabilities of a trainer's reference over the vocabulary, (B, T, V), float32 and without gradients.

    Args:
        trainer: one with `ref_model`, which is None where `as_reference` makes the policy its own.
        given: arguments of the model's forward.
    """
    import torch

    model = trainer.ref_model if trainer.ref_model is not None else trainer.model
    with torch.no_grad(), without_checkpointing(trainer), as_reference(trainer), trainer.accelerator.autocast():
        logits = model(**given).logits
    return logits.float().log_softmax(-1)


# --- PEFT's active adapter, and gradient checkpointing ---------------------------------------------------------------


def is_peft(model: Any) -> bool:
    """Tell whether it is a `PeftModel`: the base inside one, and one that was unloaded, carry a `peft_config` too."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def active_config(model: Any) -> Any:
    """Return the `PeftConfig` of the adapter that a `PeftModel` trains; None for any other model, and for a path."""
    return model.peft_config[model.active_adapter] if is_peft(model) else None


def active_adapter(model: Any) -> str | None:
    """Return the adapter that a PEFT model applies; None inside `disable_adapter()`, and for a model without."""
    is_off = not is_peft(model) or getattr(model, "_adapters_disabled", False)
    return None if is_off else str(model.active_adapter)


def keep_head_dtype(model: Any) -> None:
    """Give what trains whole beside an adapter the precision of the module that it is a copy of.

    TRL puts all that learns on a quantized base into bfloat16, also a classifier's head, which is no adapter and is fed
    by a model in float32 where that is its dtype.
    """
    from peft.utils.other import ModulesToSaveWrapper

    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            dtypes = [p.dtype for p in wrapper.original_module.parameters() if p.is_floating_point()]
            if dtypes:
                wrapper.modules_to_save.to(dtypes[0])


def match_vera_dtype(model: Any) -> None:
    """Give VeRA's random matrices the precision of its vectors, which TRL puts into bfloat16 on a quantized base.

    PEFT 0.21 multiplies the two as they are, and sampling happens outside of autocast.
    """
    for layer in model.modules():
        for adapter, vector in getattr(layer, "vera_lambda_d", {}).items():
            for matrices in (layer.vera_A, layer.vera_B):  # all layers share them
                if matrices[adapter].dtype != vector.dtype:
                    matrices[adapter] = matrices[adapter].to(vector.dtype)


def adapter_layers(model: Any) -> list[Any]:
    """Return the layers of a model, itself included, whose own field says which adapter they apply."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]


@contextlib.contextmanager
def routed(layers: Iterable[Any], *adapters: str) -> Iterator[None]:
    """Within, the layers apply these adapters, and every adapter keeps its gradients.

    Only the field that they read is set: PEFT's `set_adapter` also takes `requires_grad` from all other adapters, so
    that a critic would have no gradients, and nothing would say so.
    """
    before = [(layer, layer._active_adapter) for layer in layers]
    for layer, _ in before:
        layer._active_adapter = list(adapters)
    try:
        yield
    finally:
        for layer, active in before:
            layer._active_adapter = active


def checkpointed_layers(model: Any) -> list[Any]:
    """Return the modules that recompute a forward pass in backward."""
    is_on = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    return [module for module in is_on if hasattr(module, "_gradient_checkpointing_func")]


@contextlib.contextmanager
def recomputed_with(
    layers: Iterable[Any], within: Callable[[Any, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Let passes that are made within recompute `within(layer, forward)` in backward instead of the bare `forward`."""
    before = [(layer, layer._gradient_checkpointing_func) for layer in layers]

    def run(layer: Any, checkpoint: Callable[..., Any], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return checkpoint(within(layer, forward), *args, **kwargs)

    for layer, checkpoint in before:
        layer._gradient_checkpointing_func = functools.partial(run, layer, checkpoint)
    try:
        yield
    finally:
        for layer, checkpoint in before:
            layer._gradient_checkpointing_func = checkpoint
