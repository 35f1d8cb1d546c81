"""``wgctl adapters import``: what the authors' own code trained, as an adapter of this package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import rich_click as click

from cli.adapter_export import base_in, check_target
from cli.base_models import find_base
from cli.options import example, json_option
from cli.output import note, print_fields, print_json, show_bytes
from wegeft.contracts.base_model_name import unpin
from wegeft.contracts.errors import InvalidSetting

Origin = Literal["gift", "peft-fork"]


@click.command(
    "import",
    epilog=example(
        "wgctl adapters import cub.safetensors --from gift --base-model ./vit --target attn:proj=attention.output.dense -o adapter\n"
        "wgctl adapters import ./checkpoint --from peft-fork -o adapter"
    ),
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "origin",
    required=True,
    type=click.Choice(["gift", "peft-fork"]),
    help="gift: a .safetensors or .npz file of the GIFT wrapper. peft-fork: a folder of the fork of PEFT.",
)
@click.option(
    "--base-model", metavar="MODEL", help="Id, folder or .gguf of the base model; for peft-fork by default the one that it names."
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="KEY=NAME",
    help="For gift: the end of the names that a key of the checkpoint has in the base model; may be given again, for one key too.",
)
@click.option("-o", "--output", "folder", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@json_option
def import_checkpoint(
    checkpoint: Path, origin: Origin, base_model: str | None, targets: Sequence[str], folder: Path, is_json: bool
) -> None:
    """Read a checkpoint of the authors' code, write an adapter that computes the same, and check it against their formula.

    Pickled checkpoints are never read. The folder appears whole, or not at all, and nothing is written over. The error is
    ‖ΔW written − ΔW‖ / ‖ΔW‖ of the worst layer, in float64, read back from the files.
    """
    from wegeft.client.blobs import local_errors

    target = folder.expanduser().absolute()
    check_target(target)
    named = _parse_targets(targets)
    if named and origin != "gift":
        raise InvalidSetting("only used with a GIFT checkpoint", path="--target", value=targets[0], hint="add --from gift")
    if base_model is None and origin == "gift":
        raise InvalidSetting(
            "a GIFT checkpoint does not name its backbone", path="--base-model", hint="give the model that it was trained on"
        )
    with local_errors(target.parent):
        answer = _convert(checkpoint.expanduser(), base_model, named if origin == "gift" else None, target)
    if is_json:
        print_json(answer)
    else:
        _tell(answer)


def _parse_targets(given: Sequence[str]) -> dict[str, list[str]]:
    targets: dict[str, list[str]] = {}
    for text in given:
        key, sign, name = text.partition("=")
        if not (key and sign and name):
            raise InvalidSetting("not KEY=NAME", path="--target", value=text, hint="for example attn:proj=attention.output.dense")
        targets.setdefault(key, []).append(name)
    return targets


def _convert(checkpoint: Path, base_model: str | None, targets: dict[str, list[str]] | None, target: Path) -> dict[str, Any]:
    from wegeft.method import import_gift, import_peft_fork
    from wegeft.method.stored_base import open_base

    wanted = base_model or base_in(checkpoint)
    if wanted is None:
        raise InvalidSetting("the checkpoint names no base model", path="--base-model", hint="give the one that it was trained on")
    base = find_base(*((wanted, None) if base_model else unpin(wanted)))
    note(f"loading {base.name} to convert")
    model: Any = open_base(base.path)
    # Otherwise the adapter would name a folder of this machine's cache.
    model.name_or_path = base.name
    is_fork = targets is None
    written = import_peft_fork(checkpoint, model, target) if is_fork else import_gift(checkpoint, model, target, targets=targets)
    config = json.loads((target / "adapter_config.json").read_text(encoding="utf-8"))
    return {
        "checkpoint": str(checkpoint),
        "base_model": base.identity,
        "folder": str(target),
        "files": {path.name: path.stat().st_size for path in sorted(target.iterdir())},
        "dtype": written.dtype,
        "rank": config["r"],
        "tied_modules": config["tied_modules"],
        "layers": len(written.errors),
        "largest_error": written.largest_error,
    }


def _tell(answer: dict[str, Any]) -> None:
    print_fields(
        [
            ("adapter", answer["folder"]),
            ("base model", answer["base_model"]),
            ("method", f"wegeft, rank {answer['rank']}, {answer['layers']} layers, {answer['dtype']}"),
            ("files", "\n".join(f"{name}  {show_bytes(size)}" for name, size in answer["files"].items())),
            ("error of ΔW", f"{answer['largest_error']:.2e} at most"),
        ]
    )
