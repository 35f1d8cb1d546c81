"""``wgctl adapters export``: an adapter, published or in a folder, as what an engine reads."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_never, get_args

import rich_click as click

from cli.attaching import check_attachable, send
from cli.base_models import FoundBase, check_is_base, find_base
from cli.connection import connect
from cli.options import example, json_option
from cli.output import note, print_fields, print_json, show_bytes
from wegeft.contracts.adapter import CONFIG_FILE, AdapterRef
from wegeft.contracts.base_model_name import unpin
from wegeft.contracts.errors import InvalidAdapterConfig, InvalidReference, InvalidSetting
from wegeft.contracts.formats import StoredDtype

if TYPE_CHECKING:
    from wegeft.client import Client
    from wegeft.contracts.adapter import VersionView
    from wegeft.method import Export

Layout = Literal["lora", "merged", "gguf", "mlx"]
_CONFIGS: dict[Layout, str] = {"lora": CONFIG_FILE, "merged": "config.json"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """An adapter in a folder of this machine."""

    name: str
    """``ns/name@3``, or the folder as it was given."""
    folder: Path
    base_model: str | None
    """What it was trained on, with its pin where that is known."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How an export is wanted."""

    layout: Layout
    target: Path
    base_model: str | None = None
    dtype: str | None = None
    ollama_base: str | None = None
    allow_other_base: bool = False


@click.command(
    "export",
    epilog=example(
        "wgctl adapters export demo/arithmetic@3 --format lora -o lora\n"
        "wgctl adapters export ./adapter --format gguf --dtype float16 -o gguf\n"
        "wgctl adapters export demo/arithmetic --format merged --dtype bfloat16 -o model\n"
        "wgctl adapters export demo/arithmetic@3 --format gguf --attach"
    ),
)
@click.argument("adapter", metavar="REF|FOLDER")
@click.option(
    "--format",
    "layout",
    required=True,
    type=click.Choice(["lora", "merged", "gguf", "mlx"]),
    help="lora: a standard LoRA folder, for vLLM, PEFT and most engines. merged: a whole model that knows no adapters. "
    "gguf: for llama.cpp and Ollama. mlx: for mlx-lm.",
)
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), help="Folder to make; with --attach it can be left out.")
@click.option("--attach", is_flag=True, help="Send what was written to the hub, for everybody who may read the version.")
@click.option("--base-model", metavar="MODEL", help="Id, folder or .gguf of the base model; by default the one that the adapter names.")
@click.option(
    "--dtype",
    type=click.Choice(get_args(StoredDtype)),
    help="How numbers are stored: float32, or for merged as the base model's, where it is not said; q8_0 is for gguf alone.",
)
@click.option("--ollama-base", metavar="MODEL", help="For gguf: what the Modelfile builds on; by default the base model's name.")
@click.option("--allow-other-base", is_flag=True, help="Go on where the base model is not the one that the adapter was trained on.")
@json_option
def export(adapter: str, folder: Path | None, attach: bool, is_json: bool, **options: Any) -> None:
    """Convert an adapter for an engine, check what was written against it, and say how far it is from it.

    Takes a folder where there is one of that name, and otherwise a published version. The folder that is made appears whole, or not at
    all, and nothing is written over. The error is ‖ΔW written − ΔW‖ / ‖ΔW‖ of the worst layer, in float64, read back from the files.

    With --attach the hub checks the files against the version's generators and keeps them under it with that error, so that others
    download them without the base model.
    """
    if folder is None and not attach:
        raise InvalidSetting("say where to write", path="--output", hint="-o FOLDER, or --attach")
    with tempfile.TemporaryDirectory(prefix="wegeft-") as temporary:
        wish = Wish(target=folder.expanduser().absolute() if folder else Path(temporary) / "made", **options)
        check_wish(wish)
        if attach:
            check_attachable(adapter, wish)
        with open_source(adapter) as source:
            base, written = convert(source, wish)
            answer = describe(source, base, wish, written)
            if attach:
                answer["attached"] = send(source, base, wish, written).model_dump(mode="json")
        answer["folder"] = str(wish.target) if folder else None
        if is_json:
            print_json(answer)
            return
        _tell(answer)
        note(f"wgctl adapters download {source.name} --format {wish.layout} -o FOLDER" if attach else _use_of(wish, base))


def check_wish(wish: Wish) -> None:
    """Raise ``InvalidSetting`` for options that do not go together, or a target that holds something."""
    if wish.dtype == "q8_0" and wish.layout != "gguf":
        raise InvalidSetting("only GGUF adapters have this type", path="--dtype", value=wish.dtype)
    if wish.ollama_base is not None and wish.layout != "gguf":
        raise InvalidSetting("only used with a GGUF adapter", path="--ollama-base", value=wish.ollama_base, hint="add --format gguf")
    check_target(wish.target)


def check_target(target: Path) -> None:
    """Raise ``InvalidSetting`` unless the folder to make is absent or empty."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InvalidSetting("there is something already", path="--output", value=str(target), hint="give another folder")


@contextmanager
def open_source(adapter: str) -> Iterator[Source]:
    """Give the adapter of a folder, or of a published version, which is downloaded for as long as it is needed."""
    path = Path(adapter).expanduser()
    if path.is_dir():
        yield Source(name=adapter, folder=path, base_model=base_in(path))
        return
    _check_reference(adapter)
    with connect() as client, open_published(client, adapter) as (_, source):
        yield source


@contextmanager
def open_published(client: Client, ref: str) -> Iterator[tuple[VersionView, Source]]:
    """Give a published version and its adapter, which is downloaded for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="wegeft-") as temporary:
        native = Path(temporary) / "native"
        version = client.download(ref, native)
        yield version, Source(name=version.ref, folder=native, base_model=version.base_model)


def _check_reference(adapter: str) -> None:
    try:
        AdapterRef.parse(adapter)
    except InvalidReference as error:
        hint = "give a folder that holds an adapter, or namespace/name@version"
        raise InvalidReference("there is no such folder, and it is no adapter's name", path="adapter", value=adapter, hint=hint) from error


def base_in(folder: Path) -> str | None:
    """Return the base model that an adapter's configuration names, with its commit where it says one; None where it names none."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidAdapterConfig(f"the folder has no readable {CONFIG_FILE}", path=str(folder)) from error
    name, revision = (config.get(key) for key in ("base_model_name_or_path", "revision")) if isinstance(config, dict) else (None, None)
    if not isinstance(name, str) or not name:
        return None
    return f"{name}@{revision}" if isinstance(revision, str) and unpin(f"{name}@{revision}")[1] else name


def convert(source: Source, wish: Wish) -> tuple[FoundBase, Export]:
    """Write the export; return the base model that was used and what was measured.

    Raises what the conversions of ``wegeft.method`` raise, ``StorageFull``, and ``InvalidSetting`` where the target cannot be written.
    """
    from wegeft.client.blobs import local_errors

    base = _base_for(source, wish)
    note(f"loading {base.name} to convert")
    with local_errors(wish.target.parent):
        return base, _write(source, base, wish)


def _base_for(source: Source, wish: Wish) -> FoundBase:
    if wish.base_model is None and source.base_model is None:
        raise InvalidSetting("the adapter names no base model", path="--base-model", hint="give the one that it was trained on")
    name, revision = (wish.base_model, None) if wish.base_model is not None else unpin(source.base_model or "")
    base = find_base(name, revision)
    if source.base_model is not None:
        check_is_base(base, source.base_model, allow_other=wish.allow_other_base)
    return base


def _write(source: Source, base: FoundBase, wish: Wish) -> Export:
    from wegeft.method import merge_into
    from wegeft.method.stored_head import open_base_of
    from workers.derived_formats import write_format

    stored: Any = wish.dtype
    if wish.layout == "merged":
        return merge_into(base.path, source.folder, wish.target, dtype=stored, allow_other_base=True)
    opened = open_base_of(base.path, source.folder)
    return write_format(wish.layout, source.folder, opened, wish.target, stored or "float32", wish.ollama_base)


def describe(source: Source, base: FoundBase, wish: Wish, written: Export) -> dict[str, object]:
    """Return what was written, as plain data: sizes in bytes, errors as ratios."""
    sizes = {path.name: path.stat().st_size for path in sorted(wish.target.iterdir())}
    worst = max(written.errors, key=lambda name: written.errors[name])
    return {
        "adapter": source.name,
        "base_model": base.identity,
        "format": wish.layout,
        "dtype": written.dtype,
        "folder": str(wish.target),
        "files": sizes,
        "size": sum(sizes.values()),
        "adapter_size": sum(path.stat().st_size for path in source.folder.glob("*.safetensors")),
        "largest_error": written.largest_error,
        "largest_error_layer": worst,
        "largest_weight_error": max(written.weight_errors.values(), default=None),
        "layers": len(written.errors),
    }


def _tell(answer: dict[str, Any]) -> None:
    kept = answer["largest_weight_error"]
    print_fields(
        [
            ("adapter", f"{answer['adapter']}  {show_bytes(answer['adapter_size'])}"),
            ("base model", answer["base_model"]),
            ("format", f"{answer['format']}, {answer['dtype']}"),
            ("folder", answer["folder"]),
            ("files", "\n".join(f"{name}  {show_bytes(size)}" for name, size in answer["files"].items())),
            ("error of ΔW", f"{answer['largest_error']:.2e} at most, in {answer['largest_error_layer']}"),
            ("attached", f"to {answer['adapter']}" if "attached" in answer else None),
            ("error of W'", None if kept is None else f"{kept:.2e} at most"),
        ]
    )


def _use_of(wish: Wish, base: FoundBase) -> str:
    config = json.loads((wish.target / _CONFIGS[wish.layout]).read_text(encoding="utf-8")) if wish.layout in _CONFIGS else {}
    match wish.layout:
        case "lora" if config["modules_to_save"]:
            return f"PeftModel.from_pretrained(model, {str(wish.target)!r}); vLLM takes no modules that were trained in full"
        case "lora":
            return f"vllm serve {base.name} --enable-lora --max-lora-rank {config['r']} --lora-modules NAME={wish.target}"
        case "gguf":
            return f"llama-cli -m BASE.gguf --lora {wish.target}/adapter.gguf, or: ollama create NAME -f {wish.target}/Modelfile"
        case "mlx":
            return f"mlx_lm.generate --model {base.name} --adapter-path {wish.target} --prompt ..."
        case "merged":
            return f"transformers.{config['architectures'][0]}.from_pretrained({str(wish.target)!r})"
        case _:
            assert_never(wish.layout)
