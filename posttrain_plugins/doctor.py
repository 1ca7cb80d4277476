"""`posttrain doctor`: what is installed, what of it works, what will not, and the command that mends it.

Nothing is downloaded and no network is asked.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from posttrain_plugins.errors import InputError
from posttrain_plugins.recipe import catalogue
from posttrain_plugins.sandbox import run as sandbox

__all__ = ["Finding", "examine"]

DISTRIBUTION = "posttrain-plugins"
ENOUGH_DISK_GIB = 20.0  # a 7B model, its optimizer's checkpoint apart
GIB = 2**30
EXTRAS = {
    "quant": "load_in_4bit and load_in_8bit",
    "vllm": "generation with vLLM in this process",
    "serve": "posttrain serve",
    "openai": "models behind an OpenAI-compatible endpoint",
    "math": "symbolic equivalence of answers",
    "plot": "plots",
}
"""Extra -> what needs it; others are told by their own name."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        what: its name.
        status: `ok`; `note` where something optional is missing or may be short; `broken` where runs will fail.
        found: what is there.
        hint: what mends it, best a command.
    """

    what: str
    status: Literal["ok", "note", "broken"]
    found: str
    hint: str = ""


def examine(runs_dir: Path = Path("runs")) -> list[Finding]:
    """Looks at Python, packages, extras, the device, the sandbox, disk, the Hub's mode and the plugins."""
    return [
        _python(),
        *_packages(),
        *_extras(),
        *_device(),
        _sandbox(),
        *_disk(runs_dir),
        _hub(),
        *_plugins(),
    ]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    wanted = importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"]
    if _fits(version, wanted):
        return Finding("Python", "ok", f"{version}, {sys.prefix}")
    return Finding("Python", "broken", f"{version}, expected {wanted}", "make a new environment with a newer Python")


def _packages() -> Iterator[Finding]:
    """The dependencies, with their versions against what we were tested with."""
    yield Finding(DISTRIBUTION, "ok", importlib.metadata.version(DISTRIBUTION))
    for name, wanted, extra in _requirements():
        if not extra:
            yield _package(name, wanted)


def _package(name: str, wanted: str) -> Finding:
    found = _version(name)
    if found is None:
        return Finding(name, "broken", "not installed", f"pip install '{name}{wanted}'")
    if not _fits(found, wanted):
        return Finding(name, "broken", f"{found}, expected {wanted}", f"pip install '{name}{wanted}'")
    return Finding(name, "ok", found)


def _extras() -> Iterator[Finding]:
    """What is optional: each extra with what needs it; an installed one must be importable too."""
    extras: dict[str, list[tuple[str, str]]] = {}
    for name, wanted, extra in _requirements():
        if extra and extra != "dev":
            extras.setdefault(extra, []).append((name, wanted))
    for extra, packages in sorted(extras.items()):
        lacking = [name for name, wanted in packages if not _fits(_version(name), wanted)]
        needs = EXTRAS.get(extra, f"what needs '{extra}'")
        if lacking:
            found = f"{', '.join(lacking)} not installed or too old: {needs} will not work"
            yield Finding(f"[{extra}]", "note", found, f"pip install '{DISTRIBUTION}[{extra}]'")
        else:
            yield _imported(extra, [name for name, _ in packages], needs)


def _imported(extra: str, names: Iterable[str], needs: str) -> Finding:
    versions = ", ".join(f"{name} {_version(name)}" for name in names)
    if extra != "quant":  # the others are pure Python, or take a minute to import
        return Finding(f"[{extra}]", "ok", versions)
    try:
        importlib.import_module("bitsandbytes")
    except Exception as cause:  # a missing library of CUDA, a wrong build
        found = f"{versions} cannot be imported ({type(cause).__name__}: {cause}): {needs} will not work"
        return Finding(f"[{extra}]", "broken", found, "python -m bitsandbytes")
    return Finding(f"[{extra}]", "ok", versions)


def _device() -> Iterator[Finding]:
    try:
        import torch
    except Exception as cause:
        yield Finding("device", "broken", f"torch cannot be imported: {cause}", "pip install --force-reinstall torch")
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = (size / GIB for size in torch.cuda.mem_get_info(index))
            name = torch.cuda.get_device_name(index)
            yield Finding(
                f"GPU {index}", "ok", f"{name}, {free:.0f} of {total:.0f} GiB free, CUDA {torch.version.cuda}"
            )
    elif torch.accelerator.is_available():
        yield Finding("device", "ok", str(torch.accelerator.current_accelerator()))
    elif shutil.which("nvidia-smi"):
        found = f"a GPU's driver is here, but torch {torch.__version__} does not see it: everything runs on the CPU"
        yield Finding(
            "device", "broken", found, "install a CUDA build of torch: https://pytorch.org/get-started/locally"
        )
    else:
        cores, threads = _counted(os.cpu_count() or 1, "core"), _counted(torch.get_num_threads(), "thread")
        yield Finding("device", "ok", f"CPU, {cores}, {threads}: enough for the tiny recipes")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def _sandbox() -> Finding:
    """Where reward `code` runs what a model wrote."""
    try:
        return Finding("sandbox", "ok", sandbox.working_sandbox())
    except InputError as error:
        return Finding("sandbox", "note", f"{error.message}: reward code will not work", error.hint or "")


def _disk(runs_dir: Path) -> Iterator[Finding]:
    for what, folder in (("runs", runs_dir.resolve()), ("Hub cache", _hub_cache())):
        there = next(f for f in (folder, *folder.parents) if f.is_dir())
        free = shutil.disk_usage(there).free / GIB
        if not os.access(there, os.W_OK):
            yield Finding(f"disk: {what}", "broken", f"{there} cannot be written to", _elsewhere(what))
        elif free < ENOUGH_DISK_GIB:
            yield Finding(f"disk: {what}", "note", f"{free:.1f} GiB free at {there}", _elsewhere(what))
        else:
            yield Finding(f"disk: {what}", "ok", f"{free:.0f} GiB free at {there}")


def _elsewhere(what: str) -> str:
    return "export POSTTRAIN_RUNS_DIR=FOLDER" if what == "runs" else "export HF_HOME=FOLDER"


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser().resolve()


def _hub() -> Finding:
    """Is the Hub switched off? Then models and data sets come from the cache only."""
    is_off = [name for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE") if _is_set(name)]
    if is_off:
        found = f"offline ({', '.join(is_off)}): Hub ids must be in the cache"
        return Finding("Hub", "note", found, f"unset {' '.join(is_off)}")
    return Finding("Hub", "ok", "online; models and data sets are downloaded when a run needs them")


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}


def _plugins() -> Iterator[Finding]:
    rows = catalogue.listing()
    wrong = [row for row in rows if row["status"] != "ok"]
    packages = {row["distribution"] for row in rows}
    yield Finding("plugins", "ok", f"{len(rows) - len(wrong)} work, from {', '.join(sorted(packages))}")
    for row in wrong:
        broken = row["status"] == "broken"
        hint = (
            f"mend {row['distribution']}, or export POSTTRAIN_DISABLE_PLUGINS={row['name']}" if broken else row["cause"]
        )
        what = f"{row['kind']} {row['name']}"
        yield Finding(what, "broken" if broken else "note", row["cause"], hint)
    off = os.environ.get("POSTTRAIN_DISABLE_PLUGINS")
    if off:
        yield Finding("plugins switched off", "note", off, "unset POSTTRAIN_DISABLE_PLUGINS")


def _requirements() -> Iterator[tuple[str, str, str]]:
    """Name, version specifier and extra (`""` for none) of everything that our metadata asks for."""
    for line in importlib.metadata.requires(DISTRIBUTION) or ():
        text, _, marker = line.partition(";")
        name = re.match(r"[\w.-]+", text.strip())
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        if name is not None:
            rest = re.sub(r"\[.*?\]", "", text.strip()[name.end() :])
            yield name[0], rest.strip(), extra[1] if extra else ""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fits(version: str | None, wanted: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return version is not None and SpecifierSet(wanted).contains(version, prereleases=True)
