"""Where a base model's files are: a local folder, a ``.gguf`` file, or a snapshot of a Hugging Face id at a pinned commit.

Local sources are never looked up in the network. An id is asked for once; if the network does not answer, the local cache does.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wegeft.contracts.adapter import digest_of
from wegeft.contracts.base_model_name import is_commit, is_hub_id
from wegeft.contracts.errors import BaseModelNotFound, BaseModelUnusable, shorten
from workers.weights_digest import digest_weights

_LICENSE = re.compile(r"^license:\s*['\"]?([\w.-]+)['\"]?\s*$", re.MULTILINE)
_LOOKUP_SECONDS = 10.0
_TOO_MANY_REQUESTS = 429
_WANTED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "README.md")
_UNWANTED = ("*/*", "consolidated*")
"""Other forms of the same weights."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Files of a base model on this machine."""

    folder: Path | None
    """With ``config.json`` and safetensors; None for a GGUF file."""
    gguf: Path | None = None
    identity: str
    """What was used, exactly: ``id@commit``, ``folder@weights1:…`` (:func:`digest_weights`), or ``file.gguf@sha256:…`` of the file."""
    former_identity: str | None = None
    """A folder with the digest of its configuration alone, ``folder@sha256:…``; adapters and checkpoints may name it so."""
    commit: str | None = None
    """Of a Hugging Face id."""
    license: str | None = None
    """As the model's card states it."""

    @property
    def path(self) -> Path:
        """The folder, or the file."""
        path = self.folder or self.gguf
        assert path is not None  # noqa: S101 - a source has one of the two
        return path

    @property
    def config_digest(self) -> str | None:
        """``sha256:…`` of its ``config.json``; None for a GGUF file."""
        return digest_of((self.folder / "config.json").read_bytes()) if self.folder else None


def find_model(base_model: str, revision: str | None = None, *, with_code: bool = False) -> ModelSource:
    """Return where ``base_model`` is, downloading an id if need be; ``with_code`` fetches its Python files too.

    Raises ``BaseModelNotFound``, or ``BaseModelUnusable`` for something that is there but is no model.
    """
    path = Path(base_model).expanduser()
    if base_model.lower().endswith(".gguf"):
        return _gguf_source(path, base_model)
    # What reads as an id is one, whatever folder of that name the worker happens to stand beside.
    if is_hub_id(base_model):
        return _hub_source(base_model, revision, with_code=with_code)
    if not (base_model.strip() and path.is_dir()):
        hint = "give a Hugging Face id such as org/name, a folder, or a .gguf file; paths are those of the worker's machine"
        raise BaseModelNotFound("there is no such folder", path="base_model", value=base_model, hint=hint)
    return _folder_source(path)


def find_config(base_model: str, revision: str | None = None, *, with_code: bool = False) -> ModelSource:
    """Return the same where only the configuration is needed: of an id, no weights are downloaded. Raises as :func:`find_model` does."""
    if not is_hub_id(base_model):
        return find_model(base_model, revision)
    folder = _snapshot(base_model, revision, ("config.json", "*.py") if with_code else ("config.json",))
    commit = folder.name if is_commit(folder.name) else None
    return ModelSource(folder=folder, identity=f"{base_model}@{folder.name}", commit=commit)


def _gguf_source(path: Path, base_model: str) -> ModelSource:
    if not path.is_file():
        hint = "the path must exist on the machine of the worker"
        raise BaseModelNotFound("there is no such file", path="base_model", value=base_model, hint=hint)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise BaseModelUnusable("the file is not GGUF", path="base_model", value=base_model, hint="is the download complete?")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ModelSource(folder=None, gguf=path, identity=f"{path.name}@sha256:{digest}")


def _folder_source(folder: Path) -> ModelSource:
    _check_folder(folder)
    former = f"{folder}@{digest_of((folder / 'config.json').read_bytes())}"
    return ModelSource(folder=folder, identity=f"{folder}@{digest_weights(folder)}", former_identity=former, license=_license_of(folder))


def _check_folder(folder: Path) -> None:
    names = sorted(entry.name for entry in folder.iterdir())
    shown = shorten(", ".join(names) or "nothing")
    hint: str | None = None
    if "config.json" not in names:
        if "adapter_config.json" in names:
            hint = "this is an adapter; give the model that it adapts"
        elif any(name.endswith(".gguf") for name in names):
            hint = "name the .gguf file itself"
        raise BaseModelUnusable("the folder has no config.json", path="base_model", value=shown, hint=hint)
    if not any(name.endswith(".safetensors") for name in names):
        if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
            hint = "pickled weights are never read; save the model as safetensors"
        raise BaseModelUnusable("the model has no safetensors weights", path="base_model", value=shown, hint=hint)


def _license_of(folder: Path) -> str | None:
    """Return the licence that the front matter of the model's card names."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:20_000]
    except OSError:
        return None
    front = text.split("---")[1] if text.startswith("---") and text.count("---") >= 2 else ""
    found = _LICENSE.search(front)
    return found.group(1) if found else None


def _hub_source(base_model: str, revision: str | None, *, with_code: bool) -> ModelSource:
    folder = _snapshot(base_model, revision, (*_WANTED, "*.py") if with_code else _WANTED)
    _check_folder(folder)
    commit = folder.name if is_commit(folder.name) else None
    return ModelSource(folder=folder, identity=f"{base_model}@{folder.name}", commit=commit, license=_license_of(folder))


def _snapshot(base_model: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """Return the folder of a snapshot, named by its commit: the hub's of now, or the cache's where the hub does not answer."""
    import httpx2
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    wanted: dict[str, Any] = {
        "repo_id": base_model,
        "revision": revision,
        "allow_patterns": list(patterns),
        "ignore_patterns": list(_UNWANTED),
    }
    # Retries of the library would take half a minute to say that there is no network; this look-up makes one.
    try:
        HfApi().model_info(base_model, revision=revision, timeout=_LOOKUP_SECONDS)
        return Path(snapshot_download(**wanted))
    except HfHubHTTPError as error:
        if error.response.status_code < 500 and error.response.status_code != _TOO_MANY_REQUESTS:
            raise _refused(error, base_model, revision) from error
        reason: Exception = error
    except (OSError, httpx2.HTTPError) as error:
        reason = error
    return _cached(lambda: Path(snapshot_download(**wanted, local_files_only=True)), base_model, reason)


def _cached(find: Callable[[], Path], base_model: str, reason: Exception) -> Path:
    try:
        return find()
    except OSError as error:
        raise BaseModelNotFound(
            f"the model is not in the local cache, and the hub does not answer: {shorten(str(reason))}",
            path="base_model",
            value=base_model,
            hint="give a local folder or a .gguf file, or let the worker reach the hub once",
        ) from error


def _refused(error: Exception, base_model: str, revision: str | None) -> BaseModelNotFound | BaseModelUnusable:
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    match error:
        case GatedRepoError():
            hint = "accept its terms on the hub, and set HF_TOKEN where the worker runs"
            return BaseModelUnusable("the model is gated", path="base_model", value=base_model, hint=hint)
        case RevisionNotFoundError():
            hint = "a branch, a tag or a commit of the model"
            return BaseModelNotFound("the model has no such revision", path="base_model_revision", value=revision, hint=hint)
        case _:
            hint = "check the spelling; for a private model, set HF_TOKEN where the worker runs"
            return BaseModelNotFound("the hub has no such model", path="base_model", value=base_model, hint=hint)
