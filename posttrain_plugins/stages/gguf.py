"""A base model out of a GGUF file, in plain safetensors: what llama.cpp runs is then trained, merged and exported.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. transformers reads it, and unpacks its weights. No
paper.
"""

from __future__ import annotations

import copy
import importlib.util
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from posttrain_plugins.errors import InputError, importing_extra
from posttrain_plugins.types import Issue, StageContext, StageFacts, StageResult

__all__ = ["GGUF"]

MAGIC = b"GGUF"
UNREADABLE = (AttributeError, LookupError, NotImplementedError, OSError, TypeError, ValueError, struct.error)
"""What transformers raises on a file that is cut, or that says what it does not know."""


@dataclass
class GGUF:
    """Saves the model of a GGUF file with its config, its tokenizer, its special tokens and its chat template.

    Weights in few bits are unpacked: they take the room of `dtype`, and what the file has lost stays lost.

    Args:
        file: the file, `./model.gguf`; a pattern that one file matches will do.
        package: an installed package that the file lies in, which is not imported; `file` then starts from its folder.
        dtype: of the weights that are saved.
    """

    file: str
    package: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    produces: ClassVar[str] = "model"
    example_params: ClassVar[dict[str, Any]] = {"file": "tiny:gguf"}

    def issues(self, facts: StageFacts) -> Iterator[Issue]:
        """Yield why no model can be read, as far as the beginning of the file tells."""
        try:
            self.reads()
        except InputError as error:
            yield Issue(error.message, error.hint, "file" if self.package is None else "")
        if importlib.util.find_spec("gguf") is None:
            yield Issue("it needs gguf, which is not installed", "pip install 'posttrain-plugins[gguf]'")

    def reads(self) -> tuple[Path, ...]:
        """Return the file.

        Raises:
            InputError: there is none, there are several, or it is no GGUF file.
        """
        # a recipe's paths are absolute by now, those of files that are there and those that begin with a dot
        is_path = Path(self.file).is_absolute()
        if self.package is None and not is_path:
            raise InputError(f"no file '{self.file}'", hint="paths start from the recipe: ./model.gguf")
        if self.package is not None and is_path:
            raise InputError(f"'{self.file}' is no name in package '{self.package}'", hint="file: '*.gguf'")
        folder = Path("/") if self.package is None else _folder_of(self.package)
        pattern = self.file.removeprefix("/")
        # a folder may be called [v1], so a name goes before a pattern
        matches = [folder / pattern] if (folder / pattern).exists() else folder.glob(pattern)
        found = sorted(one for one in matches if one.is_file())
        if len(found) != 1:
            names = ", ".join(one.name for one in found[:4]) + (" ..." if len(found) > 4 else "")
            what = f"{len(found)} files ({names}), expected one" if found else "no file"
            raise InputError(f"'{self.file}' names {what}", hint="name one file")
        with found[0].open("rb") as content:
            if content.read(len(MAGIC)) != MAGIC:
                raise InputError(f"{found[0]} is no GGUF file: it does not begin with 'GGUF'")
        return (found[0],)

    def __call__(self, context: StageContext) -> StageResult:
        from posttrain_plugins.models.merge import save_plain

        (file,) = self.reads()
        with importing_extra("gguf", "gguf", "gguf"):
            import gguf  # noqa: F401  # transformers asks for it after seconds, and in other words
        # alone in a folder: transformers would take a tokenizer.json that lies beside the file for the file's own
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / file.name).symlink_to(file.absolute())
            try:
                model, tokenizer = _read(folder, file.name, self.dtype)
            except UNREADABLE as cause:
                reason = str(cause).partition("\n")[0].replace(folder, str(file.parent))
                hint = "download it again, or name a GGUF file of an architecture that transformers reads"
                raise InputError(f"{file} cannot be read by transformers: {reason}", hint=hint) from cause
        save_plain(model, tokenizer, context.folder / "model")
        return StageResult(model_path=context.folder / "model")


def _folder_of(package: str) -> Path:
    """Return where a package lies; its import may need what only llama.cpp's users have."""
    top, *rest = package.split(".")
    try:
        found = importlib.util.find_spec(top)
    except ValueError:  # no name of a package
        found = None
    if found is None or not found.submodule_search_locations:
        hint = f"pip install --no-deps {top.replace('_', '-') or 'NAME'}"
        raise InputError(f"no package '{package}' is installed", hint=hint)
    return Path(next(iter(found.submodule_search_locations)), *rest)


def _read(folder: str, name: str, dtype: str) -> tuple[Any, Any]:
    """Return the file's model, which knows nothing of the quantization, and its tokenizer.

    Raises:
        InputError: the file lacks weights of its model.
    """
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(folder, gguf_file=name)  # first: it knows the architectures, and costs little
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    options: dict[str, Any] = {"gguf_file": name, "dtype": dtype, "config": copy.deepcopy(config)}
    # where there is a kernel for it, transformers' newer versions would leave the weights packed
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    read, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    if found["missing_keys"]:
        raise InputError(f"{name} lacks weights: {', '.join(sorted(found['missing_keys'])[:4])} ...")
    # A model that was read from GGUF refuses to be saved, whatever its config says.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.load_state_dict(read.state_dict(), assign=True)
    return model, tokenizer
