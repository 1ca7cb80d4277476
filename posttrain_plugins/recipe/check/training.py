"""What a trainer would refuse when it starts, after the stages before it have run: told from arguments, rows and names.

Only what is sure is told: one process unless `WORLD_SIZE` says more, texts without what a chat template puts around
them, and the names of modules as a local base's weights have them.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from posttrain_plugins.checkpoints import check_period, check_push
from posttrain_plugins.errors import InputError
from posttrain_plugins.models.adapter_types import config_class
from posttrain_plugins.models.folder import adapter_config, base_of
from posttrain_plugins.plugins.schema import Arguments, Options, accepts
from posttrain_plugins.plugins.source import of_config
from posttrain_plugins.recipe import files
from posttrain_plugins.recipe.check.diagnostics import Checker
from posttrain_plugins.recipe.check.loops import RawStages
from posttrain_plugins.recipe.lineage import earlier_judge, identity, is_full, layers, mode_of
from posttrain_plugins.recipe.spec import DataFile, External, FromStage, StageSpec, Use
from posttrain_plugins.text import to_text
from posttrain_plugins.types import Issue

__all__ = ["check_training"]

NEEDED = ("gradient_accumulation_steps", "save_strategy", "save_steps", "max_steps", "num_train_epochs")


def check_training(checker: Checker, stages: RawStages, specs: Mapping[str, StageSpec]) -> dict[str, tuple[Issue, ...]]:
    """Check every stage that trains by a config of TRL's, and return what is to be warned of, by stage."""
    warnings: dict[str, tuple[Issue, ...]] = {}
    for id, spec in specs.items():
        if not spec.configs or spec.produces not in ("model", "reward"):
            continue
        field, target = next(iter(spec.configs.items()))
        given = spec.params.get(field)
        try:
            options = Options(of_config(target).fields, given if isinstance(given, Mapping) else {})
        except LookupError:  # told by the check of the stage
            continue
        args: Any = Arguments(options)  # read, and set where a run has another default
        is_typed = all(n in options.fields and accepts(options.fields[n].type, v) for n, v in options.given.items())
        if not is_typed or any(getattr(args, name, None) is None for name in NEEDED):
            continue  # values of another type, which are told already, or no trainer's config
        path = stages.by_id[id].path
        if {"save_strategy", "save_steps"}.isdisjoint(options.given):
            args.save_strategy = "no"  # as the run has it, whatever transformers' default; checkpoints come by time
        found = [
            *(issue for issue in (check_push(options.given),) if issue),
            *_steps(args),
            *_generation(args, target.startswith("trl:"), spec.launch.num_processes if spec.launch else 1),
            *_rows(spec, args),
            *_modules(spec, specs),
            *_going_on(spec, specs),
            *_earlier_judge(spec, specs),
            *_separators(spec, specs),
            *_tools(spec),
        ]
        warnings[id] = tuple(issue for issue in found if issue.is_warning)
        for issue in (one for one in found if not one.is_warning):
            where = (*path, *(field if part == "args" else part for part in issue.field.split(".")))
            place = where if checker.document.get(where) is not None else path
            checker.error(place, f"stage '{path[-1]}': {issue.message}", issue.hint)
    return warnings


def _steps(args: Any) -> Iterator[Issue]:
    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        found = f"num_train_epochs is {args.num_train_epochs} and max_steps {args.max_steps}, which trains nothing"
        yield Issue(found, "raise either", "args.num_train_epochs")


def _generation(args: Any, needs_group: bool, processes: int) -> Iterator[Issue]:
    """Yield what the sizes of a generation make impossible, computed as GRPO's config does it."""
    for name in (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "steps_per_generation",
        "num_iterations",
    ):
        count = getattr(args, name, None)
        if isinstance(count, int) and count < 1:  # what follows divides by them
            yield Issue(f"{name} is {count}, expected 1 or more", "set it to 1 or more", f"args.{name}")
            return
    if not hasattr(args, "num_generations"):
        if issue := check_period(args):
            yield issue
        return
    micro_batch, batch = args.per_device_train_batch_size * processes, args.generation_batch_size
    if batch is not None and args.steps_per_generation is not None:
        found = "generation_batch_size and steps_per_generation are both set, and say the same"
        yield Issue(found, "remove one of them", "args.generation_batch_size")
        return
    args.steps_per_generation = args.steps_per_generation or args.gradient_accumulation_steps
    if batch is not None:
        args.steps_per_generation = max(batch // micro_batch, 1)
    else:
        batch = micro_batch * args.steps_per_generation
    on = f"on {processes} process{'es' if processes > 1 else ''}"
    if batch % micro_batch:
        found = f"generation_batch_size={batch} is no multiple of {micro_batch}, a batch {on}"
        yield Issue(found, "set it to a multiple of per_device_train_batch_size", "args.generation_batch_size")
    elif needs_group and args.num_generations < 2:
        found = f"num_generations is {args.num_generations}, expected 2 or more: they are held against each other"
        yield Issue(found, "num_generations: 8, or stage ppo", "args.num_generations")
    elif batch < 2:
        hint = "raise per_device_train_batch_size or steps_per_generation"
        yield Issue("a rollout has one completion, expected 2 at least", hint, "args.per_device_train_batch_size")
    elif args.num_generations and batch % args.num_generations:
        found = (
            f"a generation has {batch} completions {on}, which num_generations={args.num_generations} does not divide"
        )
        hint = "set per_device_train_batch_size to a multiple of num_generations"
        yield Issue(found, hint, "args.num_generations")
    elif issue := check_period(args):
        yield issue


# --- rows that max_length leaves nothing of ---------------------------------------------------------------------------


def _rows(spec: StageSpec, args: Any) -> Iterator[Issue]:
    """Yield that of none of the first rows a token is left to learn from, or warn that of some there is none."""
    source, limit = spec.inputs.get("dataset"), getattr(args, "max_length", None)
    keeps_end = getattr(args, "truncation_mode", "keep_start") == "keep_end" or getattr(args, "packing", False)
    if not isinstance(source, DataFile) or not source.is_local or not isinstance(limit, int) or limit < 1:
        return
    try:
        rows = files.head(Path(source.path), source.options)
    except InputError:  # told by the check of the columns
        return
    # a judge reads a text to its end, so what is too long is left out; a writer is cut, and loses what follows a prompt
    is_judge = spec.produces == "reward"
    if not rows or (keeps_end and not is_judge):
        return
    texts = [_read(row, is_judge) for row in rows]
    long = [text for text in texts if len(text.encode("utf-8", "surrogatepass")) >= limit]  # no token is below a byte
    lost = [n for n in _token_counts(spec.inputs.get("model"), long) if n > (limit if is_judge else limit - 1)]
    what = "row" if is_judge else "prompt"
    if lost and len(lost) < len(rows):
        found = f"max_length={limit} leaves out {len(lost)} of the first {len(rows)} {what}s"
        yield Issue(found, f"raise it above {max(lost)}", "args.max_length", is_warning=True)
    elif lost:
        many = f"each of the first {len(lost)}" if len(lost) > 1 else "the only"
        found = f"max_length={limit} leaves nothing to learn from: {many} {what} has {min(lost)} tokens or more"
        yield Issue(found, f"raise it above {max(lost)}", "args.max_length")


def _read(row: Mapping[str, Any], is_judge: bool) -> str:
    """Return the text of which every token counts: of pairs and rankings the prompt with the longest completion."""
    prompt = row.get("prompt")
    head = to_text(prompt) if isinstance(prompt, str | list) else ""
    if not is_judge:
        return head
    several = row.get("completions")
    several = several if isinstance(several, list) else []
    if "labels" in row:  # steps of one completion
        return head + "".join(map(str, several))
    sides = [row.get("chosen"), row.get("rejected"), *several]
    return head + max((to_text(side) for side in sides if isinstance(side, str | list)), key=len, default="")


def _token_counts(model: Any, texts: Sequence[str]) -> list[int]:
    """Count tokens without transformers, by the base's `tokenizer.json`; empty where there is none."""
    folder = Path(model.path) if isinstance(model, External) else None
    if not texts or folder is None or not folder.is_dir():
        return []
    home = folder if (folder / "tokenizer.json").is_file() else Path(base_of(folder).path)
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(home / "tokenizer.json"))
    except Exception:  # no such file, or of a kind that this version does not read: the run will count
        return []
    tokenizer.no_truncation()
    return [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]


# --- adapters ---------------------------------------------------------------------------------------------------------


def _modules(spec: StageSpec, specs: Mapping[str, StageSpec]) -> Iterator[Issue]:
    """Yield that the base has no module that an adapter names; PEFT would say so when it is put on."""
    adapter, start, seen = spec.inputs.get("adapter"), spec.inputs.get("model"), set[str]()
    named = adapter.params.get("target_modules") if isinstance(adapter, Use) else None
    while isinstance(start, FromStage) and start.stage in specs and start.stage not in seen:
        seen.add(start.stage)
        start = specs[start.stage].inputs.get("model")
    if not named or named == "all-linear" or not isinstance(start, External):
        return
    known = _module_names(base_of(start.path).path)
    if not known:
        return
    patterns = [re.escape(name) for name in named] if isinstance(named, list) else [named]
    try:
        is_whole = isinstance(named, str)
        finds = [re.compile(pattern if is_whole else rf"(.*\.)?{pattern}") for pattern in patterns]
    except re.error:  # PEFT will say what is wrong with it
        return
    if not any(find.fullmatch(name) for find in finds for name in known):
        ends = sorted({name.rpartition(".")[2] for name in known if not name.rpartition(".")[2].endswith("norm")})
        found = f"adapter '{adapter.name}' finds no module in '{start.name}': target_modules is {named}"  # type: ignore[union-attr]
        yield Issue(found, f"target_modules: all-linear, or some of {', '.join(ends[:12])}", "adapter")


@cache
def _module_names(folder: str) -> frozenset[str]:
    """Return the modules that have weights of their own, from the headers of a model's safetensors."""
    found = set[str]()
    try:
        for file in Path(folder).glob("*.safetensors"):
            with file.open("rb") as content:
                (length,) = struct.unpack("<Q", content.read(8))  # https://huggingface.co/docs/safetensors
                header = json.loads(content.read(min(length, 100_000_000)))
            found |= {name.rpartition(".")[0] for name in header if name.endswith(".weight")}
    except (OSError, ValueError, AttributeError, TypeError, struct.error):
        return frozenset()
    return frozenset(found)


def _going_on(spec: StageSpec, specs: Mapping[str, StageSpec]) -> Iterator[Issue]:
    """Yield that a stage would go on training an adapter which is another than the one that it names."""
    adapter = spec.inputs.get("adapter")
    if mode_of(specs, spec) != "continue" or is_full(adapter) or not isinstance(adapter, Use):
        return
    before = layers(specs, spec.inputs.get("model"))
    made = before.made_of[-1]
    given = str(adapter.schema.declares("params_of")).rpartition(":")[2]
    if isinstance(made, Use):
        is_other, own = identity(made) != identity(adapter), f"'{made.name}'"
    else:  # a folder says no more than its type
        own = str(adapter_config(made).get("peft_type"))
        is_other = bool(given) and _config_name(own) not in (None, given)
    if is_other:
        found = (
            f"adapter '{adapter.name}' is another than that of '{before.adapters[-1]}', {own}, which it goes on with"
        )
        yield Issue(found, "leave 'adapter' out, or adapter_mode: stack", "adapter")


def _earlier_judge(spec: StageSpec, specs: Mapping[str, StageSpec]) -> Iterator[Issue]:
    """Yield that a judge would go on from one that is an adapter, whose head belongs to it."""
    judge = earlier_judge(specs, spec)
    if judge is not None and layers(specs, judge).adapters:
        found = f"'{judge.stage}' is an adapter with a head, and a judge goes on from a whole model"
        yield Issue(found, f"leave the adapter out of '{judge.stage}', or start from its model", "model")


def _separators(spec: StageSpec, specs: Mapping[str, StageSpec]) -> Iterator[Issue]:
    """Yield that steps which a stage cuts at one separator would be put together with another one."""
    data = spec.inputs.get("dataset")
    maker = specs.get(data.stage) if isinstance(data, FromStage) else None
    if maker is None or maker.params.get("keep") != "steps" or "separator" not in spec.params:
        return
    cut, joined = maker.params.get("separator"), spec.params["separator"]
    if cut != joined:
        found = f"'{maker.id}' cuts completions at {cut!r}, and this would put {joined!r} behind each step"
        yield Issue(found, f"separator: {json.dumps(cut)}", "separator")


def _config_name(peft_type: str) -> str | None:
    try:
        return config_class(peft_type).rpartition(":")[2]
    except LookupError:
        return None


def _tools(spec: StageSpec) -> Iterator[Issue]:
    """Yield that a strategy which makes rollouts has tools, and no conversation that tells who wrote what."""
    strategy = spec.inputs.get("strategy")
    if not isinstance(strategy, Use) or not (strategy.params.get("tools") or strategy.refs.get("tools")):
        return
    if strategy.plugin.file is not None:  # whose code no check runs: the stage asks before a model is loaded
        return
    is_talk = hasattr(strategy.plugin.load(), "is_one_conversation")
    if not is_talk or strategy.params.get("mode") == "native":
        found = f"strategy {strategy.name} has tools, whose answers would be trained on as if the policy wrote them"
        yield Issue(found, "react in mode: text, or tools: [...] on the stage in place of the strategy", "strategy")
