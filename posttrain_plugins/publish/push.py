"""The listed files of an export, put into a repository of the Hub by one commit. No paper.

Never a folder, always a list: weights, configs, tokenizer, card and recipe. A run's folder has people's words and names
in it. A commit is there or not, so a push that breaks leaves the repository as it was, and the same command goes on:
the Hub keeps files that arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError, PosttrainError, StageFailed

__all__ = ["ALLOWED", "Pushed", "files_to_push", "push"]

ALLOWED = (
    "*.safetensors",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "README.md",
    "resolved.yaml",
)
"""What may be pushed, in the export's own folder and not below it."""


@dataclass(frozen=True)
class Pushed:
    """What was pushed, or would be.

    Args:
        repository: `ME/NAME`.
        is_private: whether only its owner sees it.
        files: their names.
        size: bytes of them all.
        address: of the commit; None where nothing was pushed.
    """

    repository: str
    is_private: bool
    files: tuple[str, ...]
    size: int
    address: str | None

    def __str__(self) -> str:
        done = "pushed" if self.address else "dry run, would push"
        seen = "private" if self.is_private else "PUBLIC"
        what = f"{len(self.files)} files, {self.size / 1e9:.3g} GB: {', '.join(self.files)}"
        return f"{done} to {self.repository} ({seen}): {what}"

    def as_dict(self) -> dict[str, Any]:
        """Return it as a manifest has it."""
        return {
            "repository": self.repository,
            "private": self.is_private,
            "files": list(self.files),
            "bytes": self.size,
            "address": self.address,
        }


def files_to_push(folder: Path) -> list[Path]:
    """Return the files of an export that may be pushed, by name."""
    found = {file for pattern in ALLOWED for file in folder.glob(pattern) if file.is_file() and not file.is_symlink()}
    return sorted(found)


def push(folder: Path, repository: str, *, is_private: bool, is_dry: bool = False) -> Pushed:
    """Put an export into a repository, which is made if need be.

    Args:
        folder: of the export.
        repository: `ME/NAME`.
        is_private: how it is made.
        is_dry: only list.

    Raises:
        InputError: it is there and public, and should be private; or no token, or the Hub is switched off.
        StageFailed: the Hub refused, or did not answer.
    """
    files = files_to_push(folder)
    planned = Pushed(repository, is_private, tuple(f.name for f in files), sum(f.stat().st_size for f in files), None)
    if is_dry:
        return planned
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    hint = f"{folder} stands; the same command pushes it again"
    token = huggingface_hub.get_token()
    if token is None:
        raise InputError(
            f"no token for the Hub, {repository} is not pushed", hint=f"hf auth login, or HF_TOKEN; {hint}"
        )
    api = huggingface_hub.HfApi(token=token)
    try:
        address = _commit(api, files, planned)
    except PosttrainError:
        raise
    except OfflineModeIsEnabled as cause:
        raise InputError(
            f"the Hub is switched off, {repository} is not pushed", hint=f"unset HF_HUB_OFFLINE; {hint}"
        ) from cause
    except HFValidationError as cause:
        raise InputError(f"'{repository}' is no name of a repository: {cause}", hint="push_to_hub: ME/NAME") from cause
    except HfHubHTTPError as cause:
        status = cause.response.status_code if cause.response is not None else "no answer"
        then = {401: "check the token", 403: "use a token that may write there", 429: "wait some minutes"}.get(status)
        reason = str(cause.server_message or cause).split("\n")[0].replace(token, "(token)")
        raise StageFailed(
            f"{repository} is not pushed: the Hub says {status}: {reason}", hint=f"{then}; {hint}" if then else hint
        ) from None  # its frames and text hold the request, and with it the token
    except Exception as cause:  # a line that is cut, a name that is not found: each library has its own for that
        reason = f"{type(cause).__name__}: {cause}".split("\n")[0].replace(token, "(token)")
        raise StageFailed(f"{repository} is not pushed: {reason}", hint=hint) from None
    return Pushed(repository, is_private, planned.files, planned.size, address)


def _commit(api: Any, files: Sequence[Path], planned: Pushed) -> str:
    from huggingface_hub import CommitOperationAdd

    api.create_repo(planned.repository, private=planned.is_private, exist_ok=True)
    # `exist_ok` leaves one that is there as it is
    if planned.is_private and not api.repo_info(planned.repository).private:
        raise InputError(
            f"{planned.repository} is there and public, but the stage says private: true",
            hint="private: false, or another name",
        )
    operations = [CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file) for file in files]
    done = api.create_commit(planned.repository, operations, commit_message="Export of posttrain-plugins")
    return str(done.commit_url)
