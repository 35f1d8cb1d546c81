"""A published adapter as a standard LoRA folder, for engines that do not know the method."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cli.output import note
from wegeft.contracts.adapter import VersionView
from wegeft.contracts.errors import InvalidSetting

if TYPE_CHECKING:
    from wegeft.client import Client

_PINNED = re.compile(r"(?P<name>.+)@(?P<pin>[0-9a-f]{40}|sha256:[0-9a-f]{64})")


def download_lora(client: Client, ref: str, folder: Path, base_model: str | None) -> VersionView:
    """Download a version and write the LoRA that equals it to ``folder``, which must not exist or be empty; return the version.

    The base model is loaded for that: ``base_model``, or the one that the version names. Raises :class:`InvalidSetting` where there is
    something in the folder, :class:`BaseModelNotFound`, and :class:`InvalidAdapterConfig` where base model and adapter do not fit.
    """
    target = folder.expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidSetting("there is something already", path="--output", value=str(folder), hint="give another folder")
    with tempfile.TemporaryDirectory(prefix="wegeft-") as temporary:
        native = Path(temporary) / "native"
        version = client.download(ref, native)
        _convert(native, target, version, base_model)
    return version


def _convert(native: Path, target: Path, version: VersionView, base_model: str | None) -> None:
    from wegeft.method import to_lora
    from workers.base_model import ModelRequest, default_cache, load_base_model

    name, revision = unpin(version.base_model)
    request = ModelRequest(base_model=base_model or name, revision=None if base_model else revision, bf16=False, cache=default_cache())
    note(f"loading {request.base_model} to convert")
    base = load_base_model(request)
    if _pin_of(base.identity) != _pin_of(version.base_model):
        note(f"the adapter was trained on {version.base_model}, and this is {base.identity}: the LoRA is exact for this one")
    target.parent.mkdir(parents=True, exist_ok=True)
    to_lora(native, base.model, target)


def unpin(identity: str) -> tuple[str, str | None]:
    """Return the name in a pinned base model, and its commit where it is a Hugging Face id."""
    match = _PINNED.fullmatch(identity)
    if match is None:
        return identity, None
    pin = match["pin"]
    return match["name"], None if pin.startswith("sha256:") else pin


def _pin_of(identity: str) -> str:
    return identity.rpartition("@")[2]
