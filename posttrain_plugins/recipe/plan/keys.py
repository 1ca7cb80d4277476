"""What a stage's result depends on, as one flat table of named parts whose hash is the stage's key.

Saving, logging and reporting options are not in it, nor is our own version. Source counts without comments and
docstrings, and with what it imports from its own package (or from the recipe's folder).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from posttrain_plugins.models.folder import adapters_in, base_of
from posttrain_plugins.plugins import registry
from posttrain_plugins.recipe.source_hash import module_file, plugin_hash, sha256_of, source_hash
from posttrain_plugins.recipe.spec import DataFile, External, FromStage, Object, Policy, Source, StageSpec, Use, flat

__all__ = ["HashCache", "parts_of", "version", "weights_identity"]

VERSIONS = ("trl", "transformers", "peft", "torch")
IRRELEVANT = (
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
    """File hashes by path, size and mtime, kept beside the runs so that large weights are read once."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, str] = {}
        self.is_changed = False
        try:
            self.known = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.known = {}

    def of_file(self, path: Path) -> str:
        status = path.stat()
        mark = f"{path}|{status.st_size}|{status.st_mtime_ns}"
        if mark not in self.known:
            with path.open("rb") as stream:
                self.known[mark] = hashlib.file_digest(stream, "sha256").hexdigest()
            self.is_changed = True
        return self.known[mark]

    def of_path(self, path: Path) -> str:
        """A file, or every file below a folder."""
        if path.is_file():
            return self.of_file(path)
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return sha256_of({str(file.relative_to(path)): self.of_file(file) for file in files})

    def of_folder(self, path: Path) -> str:
        """A model's folder as a model, any other with every file below it."""
        is_model = any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
        return self.of_model(path) if is_model else self.of_path(path)

    def of_model(self, path: Path, revision: str | None = None) -> str:
        """A model folder's weights, configs and tokenizer; an adapter's with those of its base, in this revision."""
        files = sorted({file for pattern in WEIGHT_FILES for file in path.glob(pattern)})
        content = {file.name: self.of_file(file) for file in files if file.name != "adapter_config.json"}
        if not (path / "adapter_config.json").is_file():
            return sha256_of(content)
        adapter = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        adapter.pop("base_model_name_or_path", None)
        base, revision = base_of(path, revision)
        weights = [sorted(one.glob("adapter_model*")) for one in adapters_in(path)[:-1]]
        below = [self.of_file(file) for files in weights for file in files]
        is_local = not base or Path(base).is_absolute() or Path(base).is_dir()
        weights_of = self.of_model(Path(base)) if is_local else _hub_identity("model", base, revision or "main")
        return sha256_of([content, adapter, weights_of, *below])

    def save(self) -> None:
        """Best effort: a folder that cannot be written costs time, not the run."""
        if not self.is_changed:
            return
        try:
            scratch = self.file.with_suffix(f".{os.getpid()}.tmp")
            scratch.write_text(json.dumps(self.known), encoding="utf-8")
            scratch.replace(self.file)
        except OSError:
            pass


def parts_of(spec: StageSpec, seed: int, stage_keys: Mapping[str, str], hashes: HashCache) -> dict[str, str]:
    """Every part of a stage's key, by a name that a person understands when it is the one that changed.

    Args:
        spec: the stage.
        seed: the recipe's seed.
        stage_keys: keys of the stages before it.
        hashes: for files.
    """
    parts = {"stage": spec.plugin.target.rpartition("/")[2], "source": plugin_hash(spec.plugin), "world_size": "1"}
    parts |= {f"version of {name}": version(name) for name in VERSIONS}
    parts["seed"] = str(seed)
    if spec.adapter_mode is not None:
        parts["adapter_mode"] = spec.adapter_mode
    for name, value in spec.params.items():
        if name in spec.outputs:
            parts[name] = str(value)  # not what stands there: the stage itself put it there
        elif name in spec.configs:
            parts |= {f"{name}.{k}": _text(v, hashes) for k, v in _relevant(value or {}).items()}
        else:
            parts[name] = _text(value, hashes)
    named = spec.produces == "figures"
    for name, source in flat(spec.inputs):
        found = source_parts(source, spec.loading, stage_keys, hashes)
        parts |= {f"{name}{suffix}": value for suffix, value in found.items()}
        if named and isinstance(source, FromStage | External):
            parts[f"{name} name"] = source.model_name if isinstance(source, FromStage) else source.name
    return parts


def source_parts(
    source: Source, loading: Mapping[str, Any], stage_keys: Mapping[str, str], hashes: HashCache
) -> dict[str, str]:
    """The parts of one input: suffix -> value."""
    if isinstance(source, FromStage):
        parts = {"": stage_keys.get(source.stage, "?")} | ({".loading": _text(loading, hashes)} if loading else {})
        parts |= {".adapter": source.adapter} if source.adapter else {}
        reads = source.reward_plugin
        return parts | ({".source": plugin_hash(registry.find("reward", reads))} if reads else {})
    if isinstance(source, External):
        found = {"": _model_identity(source, hashes)} | {f".{k}": _text(v, hashes) for k, v in source.loading.items()}
        template = {".chat_template": _object_identity(source.template.target, hashes)} if source.template else {}
        return found | template
    if isinstance(source, DataFile):
        identity = hashes.of_path(Path(source.path)) if source.is_local else _hub_identity("dataset", source.path)
        return {"": identity} | {f".{k}": _text(v, hashes) for k, v in source.options.items()}
    if isinstance(source, Object):
        return {"": _object_identity(source.target, hashes)}
    if isinstance(source, Use):
        parts = {".use": source.plugin.target.rpartition("/")[2], ".source": plugin_hash(source.plugin)}
        reserved = {k: v for k, v in source.reserved.items() if k not in HOW_FAST}
        parts |= {f".{k}": _text(v, hashes) for k, v in {**source.params, **reserved}.items()}
        for name, inner in flat(source.refs):
            found = source_parts(inner, loading, stage_keys, hashes)
            parts |= {f".{name}{suffix}": value for suffix, value in found.items()}
        return parts
    return {"": source.name} if isinstance(source, Policy) else {}


def weights_identity(path: str, hashes: HashCache, revision: str | None = None) -> str:
    """Of a model by its folder (the hash of its files) or Hub id (the commit)."""
    return _model_identity(External("", path, {"model_revision": revision} if revision else {}), hashes)


def version(name: str) -> str:
    """The installed version without its local label (`2.13.0+cpu` is `2.13.0`)."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _relevant(args: Mapping[str, Any]) -> dict[str, Any]:
    if args.get("load_best_model_at_end"):
        return dict(args)
    return {k: v for k, v in args.items() if not k.startswith(IRRELEVANT)}


def _text(value: Any, hashes: HashCache) -> str:
    return json.dumps(_by_content(value, hashes), sort_keys=True, default=str)


def _by_content(value: Any, hashes: HashCache) -> Any:
    """A parameter that is a path counts by what stands there, so that a moved folder changes nothing."""
    if isinstance(value, Mapping):
        return {k: _by_content(v, hashes) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_by_content(v, hashes) for v in value]
    if not isinstance(value, str) or not value.startswith("/"):
        return value
    head, colon, attr = value.rpartition(":") if ".py:" in value else (value, "", "")
    path = Path(head)
    try:
        if path.is_file():
            return f"{hashes.of_file(path)}{colon}{attr}"
        if path.is_dir():
            return hashes.of_folder(path)
        return [hashes.of_path(found) for found in _matches(path)] or value
    except OSError:  # too long for a name, or not ours to read
        return value


def _matches(pattern: Path) -> list[Path]:
    """What an absolute glob, such as that of `data_files`, stands for; nothing where it is none."""
    parts = pattern.parts
    first = next((i for i, part in enumerate(parts) if any(sign in part for sign in "*?[")), 0)
    return sorted(Path(*parts[:first]).glob(str(Path(*parts[first:])))) if first else []


def _model_identity(source: External, hashes: HashCache) -> str:
    path = Path(source.path)
    if path.is_absolute():
        return hashes.of_model(path, source.loading.get("model_revision"))
    if source.path.startswith(("http://", "https://")):  # a server: what runs behind it nobody can tell
        return source.path
    revision = str(source.loading.get("model_revision", "main"))
    return _hub_identity("model", source.path, revision)


def _hub_identity(kind: str, repository: str, revision: str = "main") -> str:
    """With the commit that the local Hub cache holds, else the Hub's own, so that a first run and a second one agree.

    Offline and before any download there is only the revision's name.
    """
    home = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    file = home.expanduser() / f"{kind}s--{repository.replace('/', '--')}" / "refs" / revision
    commit = file.read_text(encoding="utf-8").strip() if file.is_file() else _commit_on_hub(kind, repository, revision)
    return f"hub:{repository}@{commit}"


@cache
def _commit_on_hub(kind: str, repository: str, revision: str) -> str:
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "on", "yes"):
        return revision
    from huggingface_hub import HfApi

    try:
        return str(HfApi().repo_info(repository, repo_type=kind, revision=revision, timeout=10).sha)
    except Exception:  # no network, a private name, no such repository: loading it will tell
        return revision


def _object_identity(target: str, hashes: HashCache) -> str:
    head, colon, attr = target.rpartition(":")
    if not colon:
        path = Path(target)
        if not path.exists():
            return _hub_identity("model", target)
        return hashes.of_folder(path) if path.is_dir() else hashes.of_path(path)
    file = Path(head) if head.endswith(".py") else module_file(head)
    package = "" if head.endswith(".py") else head.partition(".")[0]
    return f"{attr}@{source_hash(file, package) if file else 'unknown'}"
