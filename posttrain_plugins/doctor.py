"""Tells what is installed, what of it works, what will not, and the command that mends it (`posttrain doctor`).

Nothing is downloaded, and no network is asked.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.training_memory import SHAPES, SHARE, Training, largest_that_fits, training_bytes
from posttrain_plugins.recipe.describe import catalogue
from posttrain_plugins.sandbox import run as sandbox

__all__ = ["Diagnosis", "examine"]

DISTRIBUTION = "posttrain-plugins"
ENOUGH_DISK_GIB = 20.0  # a 7B model, its optimizer's checkpoint apart
GIB = 2**30
TOKENS = 512
"""Of the rows in one forward pass, for which sizes are told."""
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
    device = list(_device())
    sizes = () if device[0].status == "broken" else (*_threads(), _sizes())
    return [*_packages(), *_extras(), *device, *sizes, _sandbox(), *_disk(runs_dir), _hub(), *_plugins()]


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
        yield Diagnosis("device", "ok", f"CPU, {counted}")


def _threads() -> Iterator[Diagnosis]:
    """Tell of more threads than cores, which wait for one another, and of cores that nobody uses."""
    import torch

    threads, cores, load = torch.get_num_threads(), usable_cores(), os.getloadavg()[0]
    if threads > cores:
        found = f"{threads} threads on {cores} core{'s' if cores != 1 else ''}: they wait for one another"
        yield Diagnosis("threads", "note", found, f"export OMP_NUM_THREADS={cores}")
    elif threads > 1 and load > 1.5 * cores:
        found = f"{threads} threads, but other programs compute too (load {load:.0f} on {cores} cores)"
        yield Diagnosis("threads", "note", found, "export OMP_NUM_THREADS=1")
    elif threads < cores and not torch.accelerator.is_available():
        yield Diagnosis("threads", "ok", f"{threads} of {cores} cores are used; OMP_NUM_THREADS={cores} uses all")


def usable_cores() -> int:
    """Return how many cores this process may use: a container may be given fewer than there are."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # `max 100000`: no limit
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(there, round(int(quota) / int(period))))
    return there


def _sizes() -> Diagnosis:
    """Tell the largest models whose training fits into what is free, and how long it takes on a CPU."""
    import torch

    options: dict[str, Any]
    if torch.cuda.is_available():
        free, options, speed = torch.cuda.mem_get_info(0)[0], {"dtype_bytes": 2, "is_checkpointed": True}, None
    else:
        free, options, speed = free_memory(), {"dtype_bytes": 4, "is_checkpointed": False}, _flops_per_second()
    told = []
    for training in typing.get_args(Training):
        name = largest_that_fits(training, int(free * SHARE), tokens=TOKENS, **options)
        if name:
            needed = training_bytes(SHAPES[name], training, tokens=TOKENS, **options) / GIB
            # forward and back to the inputs, of what learns to the weights too: two operations each a parameter
            work = (6 if training == "all parameters" else 4) * SHAPES[name].parameters * 1000
            time = f", {work / speed:.0f} s or more for 1,000 tokens" if speed else ""
            told.append(f"{training} of {name} ({needed:.1f} GiB{time})")
    found = f"{free / GIB:.0f} GiB free: enough to train {'; '.join(told)}"
    if not told:
        found = f"{free / GIB:.1f} GiB free: too little to train {next(iter(SHAPES))}"
        return Diagnosis("size", "note", found, "end what else runs here, or take the tiny recipes")
    return Diagnosis("size", "ok", found)


def free_memory() -> int:
    """Return the bytes that are free here, within what a container is given."""
    import psutil  # type: ignore[import-untyped]

    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # `max`: no limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        free = min(free, max(limit - used, 0))
    return free


def _flops_per_second() -> float:
    """Return what products of matrices in float32 reach with all threads, had these the cores to themselves."""
    import time

    import torch

    threads, one = min(torch.get_num_threads(), usable_cores()), torch.ones(768, 768)
    began = time.process_time()  # of all threads together, so that other programs do not count
    for _ in range(8):
        torch.mm(one, one)
    return float(8 * 2 * 768**3 * threads / max(time.process_time() - began, 1e-9))


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
