"""What was exported from a published version, sent to its hub with the error that was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from cli.connection import connect
from cli.output import note
from wegeft.contracts.errors import InvalidSetting
from wegeft.contracts.formats import AttachedFormat, DerivedFormat

if TYPE_CHECKING:
    from cli.adapter_export import Source, Wish
    from cli.base_models import FoundBase
    from wegeft.method import Export


def check_attachable(adapter: str, wish: Wish) -> None:
    """Raise ``InvalidSetting`` where an export can be attached to no version: before the work, not after it."""
    if wish.layout not in get_args(DerivedFormat):
        raise InvalidSetting("a whole model is not kept in the hub", path="--attach", value=wish.layout, hint="lora, gguf or mlx")
    if Path(adapter).expanduser().is_dir():
        raise InvalidSetting("a folder is no published version", path="--attach", value=adapter, hint="push it first: wgctl adapters push")
    if wish.allow_other_base:
        raise InvalidSetting("only what is exact for the version's own base model is attached", path="--allow-other-base")


def send(source: Source, base: FoundBase, wish: Wish, written: Export) -> AttachedFormat:
    """Attach what was written to its version; raise what the hub refuses."""
    from workers.base_identity import comparable_identity
    from workers.derived_formats import measurement_of

    note(f"sending it to {source.name}")
    shelf: Any = (wish.layout, written.dtype)
    identity = comparable_identity(source.base_model or "", base.identity, base.former_identity)
    with connect() as client:
        return client.attach_format(source.name, wish.target, shelf, measurement_of(written, identity, base.path))
