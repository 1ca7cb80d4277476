"""What a stage's result depends on, as one flat table of named parts whose hash is the stage's key.

Saving, logging and reporting options are not in it, nor is our own version. Source counts without comments and
docstrings, and with what it imports from its own package (or from the recipe's folder).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain_plugins.models.folder import adapters_in, base_of
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.registry import module_file
from posttrain_plugins.recipe.build import construct
from posttrain_plugins.recipe.source_hash import plugin_hash, rows_hash, sha256_of, source_hash
from posttrain_plugins.recipe.spec import (
    CriticStart,
    DataFile,
    External,
    FromStage,
    Launch,
    Object,
    Policy,
    Source,
    StageSpec,
    Use,
    flat,
)
from posttrain_plugins.types import server_of

__all__ = ["HashCache", "parts_of", "version", "weights_identity"]

KEY_FORMAT = "2"
"""Counted up whenever the parts of a key are made in another way: then every key is another, and `plan` can say why.

1 had no such part, and counted files of this package by the paths of before the rooms.
"""
VERSIONS = ("trl", "transformers", "peft", "torch")
IRRELEVANT = (  # beginnings of names of trainers' options that change no weights
    "save_",
    "logging_",
    "log_",
    "report_to",
    "run_name",
    "project",
    "trackio_",
    "disable_tqdm",
    "push_to_hub",
    "hub_",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "skip_memory_metrics",
    "include_num_input_tokens_seen",
    "num_completions_to_print",
    "ddp_timeout",
)
HOW_FAST = ("num_workers",)  # reserved keys of a reward that change no score
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt", "*.py")


class HashCache:
    """Identities of files and repositories. Hashes of files are kept beside the runs by path, size and mtime.

    A model of many GB is so read once, and a plan takes milliseconds.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, str] = {}
        self.commits: dict[tuple[str, str, str], str] = {}
        self.is_changed = False
        try:
            self.known = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.known = {}

    def of_file(self, path: Path) -> str:
        """Return the hash of a file's content."""
        # As make does: a change within a clock tick, at equal size, is the price of a plan in milliseconds.
        status = path.stat()
        mark = f"{path}|{status.st_size}|{status.st_mtime_ns}"
        if mark not in self.known:
            with path.open("rb") as stream:
                self.known[mark] = hashlib.file_digest(stream, "sha256").hexdigest()
            self.is_changed = True
        return self.known[mark]

    def of_path(self, path: Path) -> str:
        """Return the hash of a file, or of every file below a folder by its name there."""
        if path.is_file():
            return self.of_file(path)
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return sha256_of({str(file.relative_to(path)): self.of_file(file) for file in files})

    def of_folder(self, path: Path) -> str:
        """Return the hash of a model's folder as a model, of any other with every file below it."""
        is_model = any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
        return self.of_model(path) if is_model else self.of_path(path)

    def of_model(self, path: Path, revision: str | None = None) -> str:
        """Return the hash of a model's weights, configs and tokenizer; an adapter's with its base, in this revision."""
        files = sorted({file for pattern in WEIGHT_FILES for file in path.glob(pattern)})
        content = {file.name: self.of_file(file) for file in files if file.name != "adapter_config.json"}
        if not (path / "adapter_config.json").is_file():
            return sha256_of(content)
        adapter = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        adapter.pop("base_model_name_or_path", None)  # an absolute path: the base counts by what stands there
        base, revision = base_of(path, revision)
        weights = [sorted(one.glob("adapter_model*")) for one in adapters_in(path)[:-1]]
        below = [self.of_file(file) for files in weights for file in files]
        is_local = not base or Path(base).is_absolute() or Path(base).is_dir()
        base_hash = self.of_model(Path(base)) if is_local else self.of_repository("model", base, revision)
        return sha256_of([content, adapter, base_hash, *below])

    def of_repository(self, kind: str, repository: str, revision: str | None = None) -> str:
        """Return the commit of a Hub repository: the one in the local cache, else the Hub's own.

        So a first run and a second one agree. Offline and before any download there is only the revision's name.
        """
        revision = revision or "main"
        home = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub")
        file = home.expanduser() / f"{kind}s--{repository.replace('/', '--')}" / "refs" / revision
        if file.is_file():
            return f"hub:{repository}@{file.read_text(encoding='utf-8').strip()}"
        asked = (kind, repository, revision)
        if asked not in self.commits:
            self.commits[asked] = _commit_on_hub(*asked)
        return f"hub:{repository}@{self.commits[asked]}"

    def save(self) -> None:
        """Write the hashes; best effort, since a folder that cannot be written costs time and not the run."""
        if not self.is_changed:
            return
        try:
            # Two runs may end at once; each renames a whole file, and the worst that happens is a hash made twice.
            scratch = self.file.with_suffix(f".{os.getpid()}.tmp")
            scratch.write_text(json.dumps(self.known), encoding="utf-8")
            scratch.replace(self.file)
        except OSError:
            pass


def parts_of(spec: StageSpec, seed: int, stage_keys: Mapping[str, str], hashes: HashCache) -> dict[str, str]:
    """Return every part of a stage's key, by a name that a person understands when it is the one that changed.

    Args:
        spec: the stage.
        seed: the recipe's seed.
        stage_keys: keys of the stages before it.
        hashes: for files.
    """
    # Flat and named, not one nested value: `plan` compares the parts of two keys and says which of them is another.
    parts = {"key format": KEY_FORMAT, "stage": spec.plugin.target.rpartition("/")[2], "world_size": "1"}
    if spec.launch is not None:
        parts |= _launch_parts(spec.launch, hashes)
    # The libraries that compute; ours is not among them, since a release must not empty every cache: what of our source
    # makes a result is in `source`.
    parts |= {f"version of {name}": version(name) for name in VERSIONS}
    parts |= {"source": plugin_hash(spec.plugin), "seed": str(seed)}
    if spec.adapter_mode is not None:
        parts["adapter_mode"] = spec.adapter_mode
    for name, value in spec.params.items():
        if name in spec.schema.declares("not_in_key"):
            continue
        if name in spec.outputs:
            parts[name] = str(value)  # not what stands there: the stage itself put it there
        elif name in spec.configs:
            args = value or {}
            # With this option the trainer saves what evaluated best, so how often it saves decides which weights win.
            keeps_best = bool(args.get("load_best_model_at_end"))
            relevant = {k: v for k, v in args.items() if keeps_best or not k.startswith(IRRELEVANT)}
            parts |= {f"{name}.{k}": _text(v, hashes) for k, v in relevant.items()}
        else:
            parts[name] = _text(value, hashes)
    # a user's file is imported by the run alone
    loaded = spec.plugin.load() if spec.plugin.file is None else None
    if isinstance(loaded, type) and hasattr(loaded, "reads"):
        read = construct(loaded, {**spec.params, **spec.names()}).reads()
        parts |= {f"reads[{i}]": hashes.of_file(file) for i, file in enumerate(read)}
    # Inputs by their content or by the key of what makes them, never by name: data that is called otherwise is the
    # same.
    for name, source in flat(spec.inputs):
        found = source_parts(source, spec.loading, stage_keys, hashes)
        parts |= {f"{name}{suffix}": value for suffix, value in found.items()}
        # Weights do not know what their model is called; tables of figures do.
        if spec.produces == "figures" and isinstance(source, FromStage | External):
            parts[f"{name} name"] = source.model_name if isinstance(source, FromStage) else source.name
    return parts


def _launch_parts(launch: Launch, hashes: HashCache) -> dict[str, str]:
    """Return what several processes change: sums of floats have another order, and samplers another share."""
    parts = {"world_size": str(launch.num_processes), "launch": launch.engine}
    parts["launch file"] = sha256_of([hashes.of_file(file) for file in (launch.file, *launch.below)])
    return parts | ({"version of deepspeed": version("deepspeed")} if launch.engine.startswith("zero") else {})


def source_parts(
    source: Source, loading: Mapping[str, Any], stage_keys: Mapping[str, str], hashes: HashCache
) -> dict[str, str]:
    """Return the parts of one input: suffix -> value."""
    if isinstance(source, FromStage):
        # The stage's key stands for all that it was made from, so a change far up reaches every stage below.
        parts = {"": stage_keys.get(source.stage, "?")} | ({".loading": _text(loading, hashes)} if loading else {})
        parts |= {".adapter": source.adapter} if source.adapter else {}
        parts |= {".rows": rows_hash()} if source.produces == "dataset" else {}
        reads = source.reward_plugin
        return parts | ({".source": plugin_hash(registry.find("reward", reads))} if reads else {})
    if isinstance(source, CriticStart):
        parts = {} if source.kind is None else {".kind": source.kind}
        found = source_parts(source.source, loading, stage_keys, hashes)
        if isinstance(source.source, External):  # a critic lies in a folder of its own beside the policy
            critic = Path(source.source.path) / "critic"
            found |= {".critic": hashes.of_folder(critic)} if critic.is_dir() else {}
        return parts | {f".from{suffix}": value for suffix, value in found.items()}
    if isinstance(source, External):
        # How a model is loaded (dtype, bits, attention) changes what it computes as much as its weights do.
        revision = source.loading.get("model_revision")
        found = {"": weights_identity(source.path, hashes, revision)}
        found |= {f".{k}": _text(v, hashes) for k, v in source.loading.items()}
        template = {".chat_template": _object_identity(source.template.target, hashes)} if source.template else {}
        return found | template
    if isinstance(source, DataFile):
        # A file by its content: one that was edited and set back is the same. Of the Hub the commit, since a set of
        # terabytes cannot be read for a plan.
        path = source.path
        identity = hashes.of_path(Path(path)) if source.is_local else hashes.of_repository("dataset", path)
        return {"": identity, ".rows": rows_hash()} | {f".{k}": _text(v, hashes) for k, v in source.options.items()}
    if isinstance(source, Object):
        return {"": _object_identity(source.target, hashes)}
    if isinstance(source, Use):
        parts = {".use": source.plugin.target.rpartition("/")[2], ".source": plugin_hash(source.plugin)}
        parts |= {".rows": rows_hash()} if source.kind == "dataset" else {}
        reserved = {k: v for k, v in source.reserved.items() if k not in HOW_FAST}
        parts |= {f".{k}": _text(v, hashes) for k, v in {**source.params, **reserved}.items()}
        for name, inner in flat(source.refs):
            found = source_parts(inner, loading, stage_keys, hashes)
            parts |= {f".{name}{suffix}": value for suffix, value in found.items()}
        return parts
    return {"": source.name} if isinstance(source, Policy) else {}


def weights_identity(path: str, hashes: HashCache, revision: str | None = None) -> str:
    """Return what a model's weights are known by: a folder's hash, a Hub id's commit, a server's URL."""
    if Path(path).is_absolute():
        return hashes.of_model(Path(path), revision)
    if server_of(path):  # what runs behind it nobody can tell
        return path
    return hashes.of_repository("model", path, revision)


def version(name: str) -> str:
    """Return the installed version without its local label (`2.13.0+cpu` is `2.13.0`)."""
    try:
        return _version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@functools.cache  # of what is installed: what is not may be, in a notebook, before the next run
def _version(name: str) -> str:
    return importlib.metadata.version(name).partition("+")[0]


def _text(value: Any, hashes: HashCache) -> str:
    """Return a parameter as JSON; a path counts by what stands there, so that a moved folder changes nothing."""

    def by_content(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: by_content(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [by_content(v) for v in value]
        if not isinstance(value, str) or not value.startswith("/"):  # the check has made paths absolute
            return value
        head, colon, attr = value.rpartition(":") if ".py:" in value else (value, "", "")
        path = Path(head)
        try:
            if path.is_file():
                return f"{hashes.of_file(path)}{colon}{attr}"
            if path.is_dir():
                return hashes.of_folder(path)
            # `data_files` may be a pattern, which stands for the files that match it now.
            first = next((i for i, part in enumerate(path.parts) if any(sign in part for sign in "*?[")), 0)
            matches = Path(*path.parts[:first]).glob(str(Path(*path.parts[first:]))) if first else ()
            return [hashes.of_path(found) for found in sorted(matches)] or value
        except OSError:  # too long for a name, or not ours to read
            return value

    return json.dumps(by_content(value), sort_keys=True, default=str)


def _commit_on_hub(kind: str, repository: str, revision: str) -> str:
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "on", "yes"):
        return revision
    from huggingface_hub import HfApi

    try:
        return str(HfApi().repo_info(repository, repo_type=kind, revision=revision, timeout=10).sha)
    except Exception:  # no network, a private name, no such repository: loading it will tell
        return revision


def _object_identity(target: str, hashes: HashCache) -> str:
    """Return what `package.module:attr`, a file, a folder or a Hub id is known by; nothing is imported."""
    head, colon, attr = target.rpartition(":")
    if not colon:
        path = Path(target)
        if not path.exists():
            return hashes.of_repository("model", target)
        return hashes.of_folder(path) if path.is_dir() else hashes.of_path(path)
    file = Path(head) if head.endswith(".py") else module_file(head)
    package = "" if head.endswith(".py") else head.partition(".")[0]
    return f"{attr}@{source_hash(file, package) if file else 'unknown'}"
