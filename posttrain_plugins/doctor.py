"""Tells what is installed, what of it works, what will not, and the command that mends it (`posttrain doctor`).

Nothing is downloaded, and no network is asked.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from posttrain_plugins.errors import InputError
from posttrain_plugins.recipe.describe import catalogue
from posttrain_plugins.sandbox import run as sandbox

__all__ = ["Diagnosis", "examine"]

DISTRIBUTION = "posttrain-plugins"
ENOUGH_DISK_GIB = 20.0  # a 7B model, its optimizer's checkpoint apart
GIB = 2**30
EXTRAS = {
    "quant": "load_in_4bit and load_in_8bit",
    "vllm": "generation with vLLM in this process",
    "serve": "posttrain serve",
    "openai": "models behind an OpenAI-compatible endpoint",
    "gguf": "stage gguf",
    "math": "symbolic equivalence of answers",
    "plot": "plots",
}
"""Extra -> what needs it."""


@dataclass(frozen=True)
class Diagnosis:
    """The state of one thing that runs need.

    Args:
        what: its name.
        status: `ok`; `note` if something optional is missing or may be short; `broken` if runs will fail.
        found: what is there.
        hint: what mends it, best a command.
    """

    what: str
    status: Literal["ok", "note", "broken"]
    found: str
    hint: str = ""


def examine(runs_dir: Path = Path("runs")) -> list[Diagnosis]:
    """Look at Python, packages, extras, the device, the sandbox, disk, the Hub's mode and the plugins.

    Args:
        runs_dir: the folder of the results, which need not be there yet.
    """
    return [*_packages(), *_extras(), *_device(), _sandbox(), *_disk(runs_dir), _hub(), *_plugins()]


def _packages() -> Iterator[Diagnosis]:
    """Compare Python and the dependencies with the versions that our metadata asks for."""
    python = ".".join(map(str, sys.version_info[:3]))
    wanted = importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"]
    if _fits(python, wanted):
        yield Diagnosis("Python", "ok", f"{python}, {sys.prefix}")
    else:
        message = f"{python}, expected {wanted}"
        yield Diagnosis("Python", "broken", message, "make a new environment with a newer Python")
    yield Diagnosis(DISTRIBUTION, "ok", importlib.metadata.version(DISTRIBUTION))
    for name, wanted, extra in _requirements():
        found = _version(name)
        if extra:
            continue
        if found is not None and _fits(found, wanted):
            yield Diagnosis(name, "ok", found)
        else:
            message = "not installed" if found is None else f"{found}, expected {wanted}"
            yield Diagnosis(name, "broken", message, f"pip install '{name}{wanted}'")


def _extras() -> Iterator[Diagnosis]:
    """Tell of each optional part whether it works, and what needs it."""
    extras: dict[str, list[tuple[str, str]]] = {}
    for name, wanted, extra in _requirements():
        if extra and extra != "dev":
            extras.setdefault(extra, []).append((name, wanted))
    for extra, packages in sorted(extras.items()):
        lacking = [name for name, wanted in packages if not _fits(_version(name), wanted)]
        needs = EXTRAS.get(extra, f"what needs '{extra}'")
        if lacking:
            found = f"{', '.join(lacking)} not installed or too old: {needs} will not work"
            yield Diagnosis(f"[{extra}]", "note", found, f"pip install '{DISTRIBUTION}[{extra}]'")
            continue
        versions = ", ".join(f"{name} {_version(name)}" for name, _ in packages)
        try:
            if extra == "quant":  # compiled, so that it may be there and not work; vLLM takes a minute to import
                importlib.import_module("bitsandbytes")
            yield Diagnosis(f"[{extra}]", "ok", versions)
        except Exception as cause:  # a missing library of CUDA, a wrong build
            found = f"{versions} cannot be imported ({type(cause).__name__}: {cause}): {needs} will not work"
            yield Diagnosis(f"[{extra}]", "broken", found, "python -m bitsandbytes")


def _device() -> Iterator[Diagnosis]:
    try:
        import torch
    except Exception as cause:
        yield Diagnosis("device", "broken", f"torch cannot be imported: {cause}", "pip install --force-reinstall torch")
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = (size / GIB for size in torch.cuda.mem_get_info(index))
            name = torch.cuda.get_device_name(index)
            found = f"{name}, {free:.0f} of {total:.0f} GiB free, CUDA {torch.version.cuda}"
            yield Diagnosis(f"GPU {index}", "ok", found)
    elif torch.accelerator.is_available():
        yield Diagnosis("device", "ok", str(torch.accelerator.current_accelerator()))
    elif shutil.which("nvidia-smi"):  # without this a run would go to the CPU, and only be slow
        found = f"a GPU's driver is here, but torch {torch.__version__} does not see it: everything runs on the CPU"
        hint = "install a CUDA build of torch: https://pytorch.org/get-started/locally"
        yield Diagnosis("device", "broken", found, hint)
    else:
        counts = {"core": os.cpu_count() or 1, "thread": torch.get_num_threads()}
        counted = ", ".join(f"{count} {noun}{'s' if count != 1 else ''}" for noun, count in counts.items())
        yield Diagnosis("device", "ok", f"CPU, {counted}: enough for the tiny recipes")


def _sandbox() -> Diagnosis:
    """Tell whether reward `code` can run what a model wrote."""
    try:
        return Diagnosis("sandbox", "ok", sandbox.working_sandbox())
    except InputError as error:
        return Diagnosis("sandbox", "note", f"{error.message}: reward code will not work", error.hint or "")


def _disk(runs_dir: Path) -> Iterator[Diagnosis]:
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()
    for what, folder, variable in (("runs", runs_dir, "POSTTRAIN_RUNS_DIR"), ("Hub cache", hub, "HF_HOME")):
        # neither need be there before the first run: the nearest folder above says what there is room for
        there = next(f for f in (folder.resolve(), *folder.resolve().parents) if f.is_dir())
        free, hint = shutil.disk_usage(there).free / GIB, f"export {variable}=FOLDER"
        if not os.access(there, os.W_OK):
            yield Diagnosis(f"disk: {what}", "broken", f"{there} cannot be written to", hint)
        elif free < ENOUGH_DISK_GIB:
            yield Diagnosis(f"disk: {what}", "note", f"{free:.1f} GiB free at {there}", hint)
        else:
            yield Diagnosis(f"disk: {what}", "ok", f"{free:.0f} GiB free at {there}")


def _hub() -> Diagnosis:
    """Tell whether the Hub is switched off: models and data sets then come from the cache only."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    # the values that huggingface_hub takes for true
    is_off = [name for name in names if os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}]
    if is_off:
        found = f"offline ({', '.join(is_off)}): Hub ids must be in the cache"
        return Diagnosis("Hub", "note", found, f"unset {' '.join(is_off)}")
    return Diagnosis("Hub", "ok", "online; models and data sets are downloaded when a run needs them")


def _plugins() -> Iterator[Diagnosis]:
    rows = catalogue.listing()
    wrong = [row for row in rows if row["status"] != "ok"]
    packages = {row["distribution"] for row in rows}
    yield Diagnosis("plugins", "ok", f"{len(rows) - len(wrong)} work, from {', '.join(sorted(packages))}")
    for row in wrong:
        switch = f"mend {row['distribution']}, or export POSTTRAIN_DISABLE_PLUGINS={row['name']}"
        # `conflict`, a name that two packages give, breaks nothing: both work under `distribution:name`
        is_broken = row["status"] == "broken"
        what, hint = f"{row['kind']} {row['name']}", switch if is_broken else row["cause"]
        yield Diagnosis(what, "broken" if is_broken else "note", row["cause"], hint)
    off = os.environ.get("POSTTRAIN_DISABLE_PLUGINS")
    if off:
        yield Diagnosis("plugins switched off", "note", off, "unset POSTTRAIN_DISABLE_PLUGINS")


def _requirements() -> Iterator[tuple[str, str, str]]:
    """Return name, version specifier and extra (`""` for none) of everything that our metadata asks for."""
    # by hand, as `packaging` has no way to ask a marker for its extra
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

    # a nightly build of torch is no reason to send anyone away
    return version is not None and SpecifierSet(wanted).contains(version, prereleases=True)
