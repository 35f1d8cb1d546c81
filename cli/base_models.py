"""The base model that a conversion needs, found on this machine or downloaded, and whether it is the one that an adapter names."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from cli.output import is_terminal, note
from wegeft.contracts.base_model_name import is_hub_id
from wegeft.contracts.errors import BaseModelNotFound, InvalidAdapterConfig
from workers.base_identity import comparable_identity, is_same_model


@dataclass(frozen=True, kw_only=True)
class FoundBase:
    """A base model's files."""

    name: str
    """As it was asked for."""
    identity: str
    """The name with its pin: ``id@commit``, ``folder@weights1:…`` or ``file.gguf@sha256:…``."""
    path: Path
    """A folder, or a ``.gguf`` file."""
    former_identity: str | None = None
    """A folder with the digest of its configuration alone, ``folder@sha256:…``, which adapters may name too."""


def find_base(name: str, revision: str | None = None) -> FoundBase:
    """Return where a base model is, downloading an id if need be; raise ``BaseModelNotFound`` or ``BaseModelUnusable``."""
    if not is_terminal(sys.stderr):
        # Read once, when the libraries are imported: a log has no use for bars.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    from workers.model_source import find_model

    try:
        source = find_model(name, revision)
    except BaseModelNotFound as error:
        hint = _hint_for(name)
        if hint is None:
            raise
        raise BaseModelNotFound(error.message, path="--base-model", value=name, hint=hint) from error
    return FoundBase(name=name, identity=source.identity, path=source.path, former_identity=source.former_identity)


def _hint_for(name: str) -> str | None:
    """Return what a person can say about a base model that is not where its name says; None where what went wrong says more."""
    if not is_hub_id(name):
        return "--base-model PATH says where it is on this machine"
    # What reads as an id is one; here is a person who can say which is meant.
    return f"for the folder of that name, --base-model ./{name}" if Path(name).is_dir() else None


def check_is_base(found: FoundBase, wanted: str, *, allow_other: bool) -> None:
    """Raise ``InvalidAdapterConfig`` unless ``found`` is the model that ``wanted`` names, or say so and go on where another is allowed."""
    if is_same_model(comparable_identity(wanted, found.identity, found.former_identity), wanted):
        return
    message = f"the adapter was trained on {wanted}"
    if not allow_other:
        hint = "--allow-other-base converts for this one all the same"
        raise InvalidAdapterConfig(message, path="--base-model", value=found.identity, hint=hint)
    note(f"{message}, and this is {found.identity}: what is written is exact for this one")
