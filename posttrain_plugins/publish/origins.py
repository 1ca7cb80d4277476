"""What is known of the bases and the data of a model: names, revisions, hashes, licences. Nothing is guessed. No paper.

A licence is what the card of a base or of a data set says: beside a local model or file, in the Hub's cache, or on the
Hub itself unless it is switched off (`HF_HUB_OFFLINE`). The general.license of a GGUF file counts as its card's.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from posttrain_plugins.models.folder import base_of
from posttrain_plugins.record.artifact import Artifact, read_manifest
from posttrain_plugins.text.yaml12 import read_yaml

__all__ = ["Data", "Origin", "base_origin", "data_of", "origin_of", "resolved_of"]

HUB_TIMEOUT_S = 5.0
OF_A_CARD = ("license", "license_name", "license_link", "language")
FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.S)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
CACHED = re.compile(r"(?:models|datasets)--(.+?)(?:/|\Z)")


@dataclass(frozen=True)
class Origin:
    """A model or data set that a run begins with.

    Args:
        name: as people may read it: a Hub id, or the name of a folder or file, without its path.
        hub_id: where it has one.
        revision: commit of a Hub id.
        card: of its card's front matter: licence and language, where they are said.
    """

    name: str
    hub_id: str | None = None
    revision: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def licence(self) -> str | None:
        """The licence as its card says it, in the Hub's words."""
        found = self.card.get("license")
        name = self.card.get("license_name")
        return str(name if found == "other" and name else found) if found else None


@dataclass(frozen=True)
class Data:
    """What a stage read.

    Args:
        origin: of the data; of a plugin or a stage its name.
        kind: `file`, `Hub`, `plugin` or `stage`.
        content: revision or hash.
        made_by: the stage that made it.
    """

    origin: Origin
    kind: str
    content: str
    made_by: Artifact | None = None


def origin_of(path: str, revision: str | None = None, repo_type: str = "model") -> Origin:
    """Tell what is known of a base or a data set by its folder, file or Hub id."""
    place = Path(path)
    if not place.is_absolute():
        return Origin(path, path, revision, _of_hub(path, revision, repo_type))
    cached = CACHED.search(path)
    if cached is not None:  # a snapshot in the Hub's cache, which knows what it is one of
        return Origin(cached[1].replace("--", "/"), cached[1].replace("--", "/"), place.name, _beside(place))
    return Origin(place.name, card=_beside(place))


def data_of(made: Artifact) -> Data | None:
    """Tell what a stage was trained or measured on; None where it reads no data set."""
    parts: Mapping[str, str] = made.manifest.get("parts", {})
    if "dataset.use" in parts:
        source = parts.get("dataset.source", "")
        return Data(Origin(parts["dataset.use"].rpartition(".")[2]), "plugin", source)
    content = parts.get("dataset")
    if content is None:
        return None
    by = _made(made.folder, content)
    if by is not None:
        return Data(Origin(str(by.manifest["stage"])), "stage", content, by)
    named = _named(made)
    if named is None:  # the run's recipe is another by now
        return Data(Origin("a data set"), "file", content)
    if Path(named).is_absolute() or not HUB_ID.fullmatch(named):
        return Data(origin_of(str(Path(named).absolute()), repo_type="dataset"), "file", content)
    return Data(origin_of(named, content, "dataset"), "Hub", content)


def resolved_of(folder: Path) -> Mapping[str, Any]:
    """Return the recipe of a run as it was run last; empty where it cannot be read."""
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        found = read_yaml((folder / "resolved.yaml").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _made(folder: Path, key: str) -> Artifact | None:
    for made in (
        sorted(folder.resolve().parents[1].glob(f"*/[!.]*-{key[:12]}")) if re.fullmatch("[0-9a-f]{64}", key) else ()
    ):
        manifest = read_manifest(made)
        if manifest is not None and manifest["key"] == key:
            return Artifact(made, manifest)
    return None


def _named(made: Artifact) -> str | None:
    """Return the path or id of a stage's data set in its run's recipe."""
    recipe = resolved_of(made.folder.resolve().parent)  # which may be a link below `latest/`
    stage = (recipe.get("stages") or {}).get(made.manifest["stage"])
    asked = stage.get("dataset") if isinstance(stage, dict) else None
    if isinstance(asked, str):
        asked = (recipe.get("datasets") or {}).get(asked.partition(":")[0], asked)
    path = asked.get("path") if isinstance(asked, dict) else asked
    return path if isinstance(path, str) else None


def _beside(place: Path) -> Mapping[str, Any]:
    """Return the front matter of the card in a model's folder, or beside a file."""
    with contextlib.suppress(OSError, ValueError):
        return _of_card(((place if place.is_dir() else place.parent) / "README.md").read_text(encoding="utf-8"))
    return {}


def _of_hub(id: str, revision: str | None, repo_type: str) -> Mapping[str, Any]:
    import huggingface_hub

    with contextlib.suppress(Exception):  # no cache, no network, no such id: then nothing is known of it
        file = huggingface_hub.try_to_load_from_cache(id, "README.md", revision=revision, repo_type=repo_type)
        if isinstance(file, str):
            return _of_card(Path(file).read_text(encoding="utf-8"))
        if not huggingface_hub.constants.HF_HUB_OFFLINE:
            # asked for and not downloaded: what is only looked at does not go into the cache
            api: Any = huggingface_hub.HfApi()
            found = api.repo_info(id, revision=revision, repo_type=repo_type, timeout=HUB_TIMEOUT_S)
            return _known(found.card_data.to_dict() if found.card_data else {})
    return {}


def _of_card(text: str) -> Mapping[str, Any]:
    front = FRONT.match(text.replace("\r\n", "\n"))
    with contextlib.suppress(yaml.YAMLError):
        values = yaml.safe_load(front[1]) if front else {}
        return _known(values if isinstance(values, dict) else {})
    return {}


def _known(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Keep what a card may say of licence and language, in the forms in which it can."""
    texts = {name: values[name] for name in OF_A_CARD if isinstance(values.get(name), str) and values[name].strip()}
    languages = values.get("language")
    if isinstance(languages, list) and all(isinstance(one, str) for one in languages) and languages:
        texts["language"] = languages
    licence = values.get("license")
    if isinstance(licence, list) and licence and all(isinstance(one, str) for one in licence):
        texts["license"] = licence[0] if len(licence) == 1 else licence
    return texts


# --- where a model begins ---------------------------------------------------------------------------------------------


def base_origin(bottom: Artifact) -> Origin | None:
    """Tell where the first stage of a model began; None where it began with random weights.

    Args:
        bottom: the first of the stages that made it.
    """
    recipe = resolved_of(bottom.folder.resolve().parent)
    asked = (recipe.get("stages") or {}).get(bottom.manifest["stage"])
    asked = asked if isinstance(asked, dict) else recipe.get("model")
    if bottom.manifest["use"] == "gguf":
        return _of_gguf(asked if isinstance(asked, dict) else {})
    start = bottom.manifest.get("start")
    if start is None:
        return None
    if bottom.manifest.get("handoff", {}).get("base"):  # below adapters it stands in the manifest
        return origin_of(bottom.manifest["handoff"]["base"], bottom.manifest["handoff"].get("base_revision"))
    model = asked.get("model") if isinstance(asked, dict) else None
    model = recipe.get("model") if model in (None, "base") else model
    revision = model.get("model_revision") if isinstance(model, dict) else None
    path = model.get("model_name_or_path") if isinstance(model, dict) else model
    if not isinstance(path, str):
        return Origin(str(start))
    return origin_of(*base_of(path, revision))


def _of_gguf(asked: Mapping[str, Any]) -> Origin:
    name = str(asked.get("package") or Path(str(asked.get("file", "a GGUF file"))).name)
    with contextlib.suppress(Exception):  # a package or a file that is gone since, or no `gguf` to read it
        import gguf

        folder = Path("/")
        if asked.get("package"):
            found = importlib.util.find_spec(str(asked["package"]).partition(".")[0])
            folder = Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else folder
        (file,) = folder.glob(str(asked["file"]).removeprefix("/"))
        fields = gguf.GGUFReader(file).fields
        said = {name.rpartition(".")[2]: one.contents() for name, one in fields.items() if name.startswith("general.")}
        languages = said.get("languages")
        return Origin(name, card=_known({**said, "language": languages}))
    return Origin(name)
