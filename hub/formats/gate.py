"""The gate before a derived format is attached: whether its files are what they are called, and of this version's generators.

What needs the base model's weights is taken on the word of whoever attached it, with the error that was measured. Everything else is
checked: the bytes as strictly as a version's own, the layers, ranks and widths, and in each layer the factor that is a generator's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal, assert_never

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hub.attestation import base_config_digest, read_figures
from hub.comparison import read_config
from hub.formats.factors import (
    Known,
    Layer,
    check_finite,
    factor_problems,
    gguf_layers,
    header_of,
    pieces_of,
    read_known,
    stored_layers,
)
from hub.formats.limits import FactorSize, generator_problems, gguf_sizes_of, size_problems, sizes_of
from hub.formats.widths import width_problems
from hub.objects import ObjectStore, read_verified, stream_verified
from hub.published_baselines import Lora
from hub.published_config import check_config
from hub.published_fields import PlainText
from hub.strict_json import parse_object
from hub.tensor_layout import Expected, layout_problems
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, FileEntry, VersionView
from wegeft.contracts.errors import InvalidInput, InvalidTensors, Problem, shorten
from wegeft.contracts.formats import (
    ERROR_LIMITS,
    FORMAT_FILES,
    GGUF_FILE,
    MLX_FILE,
    MODELFILE,
    DerivedFormat,
    FormatAttachment,
    StoredDtype,
    may_be_same_base,
)
from wegeft.contracts.gguf_file import MAX_GGUF_HEADER_BYTES, parse_gguf_adapter
from wegeft.contracts.tensors import TensorHeader, TensorSpec, check_stream

MAX_FORMAT_BYTES = 1 << 30
"""Of a file of numbers."""
MAX_TEXT_BYTES = 1 << 20

_MODELFILE = re.compile(r"(?:#[^\n]*\n)?FROM [^\n]{1,4200}\nADAPTER \./adapter\.gguf\n\Z")
_BLOCK = re.compile(r"model\.layers\.[0-9]+\.(?P<key>.+)\Z")
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _MlxParameters(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rank: Annotated[int, Field(ge=1, le=65_536)]
    scale: _Positive
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    keys: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=1, max_length=1000)]


class _MlxConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    fine_tune_type: Literal["lora"]
    num_layers: Annotated[int, Field(ge=1, le=20_000)]
    lora_parameters: _MlxParameters
    model: PlainText | None = None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Files that somebody wants to attach to a version."""

    version: VersionView
    format: DerivedFormat
    dtype: StoredDtype
    attachment: FormatAttachment

    @property
    def files(self) -> dict[str, FileEntry]:
        """By path."""
        return {entry.path: entry for entry in self.attachment.files}


def check_format(store: ObjectStore, wanted: Candidate) -> None:
    """Return where the files may be attached; reads every byte, in memory that :mod:`hub.formats.limits` bounds.

    Raises :class:`InvalidInput` with every problem, and :class:`DigestMismatch` where the store has let the bytes rot.
    """
    config = read_config(store, wanted.version)
    transform = str(config.get("transform", "input"))
    _refuse([*_told_problems(store, wanted), *_file_problems(store, wanted)])
    check_generators(store, wanted.version)
    try:
        layers, is_reordered, problems = _read(store, wanted, config)
    except InvalidTensors as error:
        raise InvalidInput(_REFUSAL, problems=error.problems) from error
    _refuse(problems)
    groups = read_known(store, wanted.version, transform=transform)
    known = Known(groups=groups, limit=ERROR_LIMITS[wanted.dtype], is_reordered=is_reordered and transform == "output")
    found = list(layers)
    _refuse(chain(_count_problems(wanted, found), factor_problems(found, known)))


def check_generators(store: ObjectStore, version: VersionView) -> None:
    """Return where what is made of a version's generators can be checked; raise :class:`InvalidInput` with every problem."""
    transform = str(read_config(store, version).get("transform", "input"))
    _refuse(generator_problems(header_of(store, _weights_of(version)), transform=transform))


def _weights_of(version: VersionView) -> FileEntry:
    return next(entry for entry in version.manifest.files if entry.path == WEIGHTS_FILE)


_REFUSAL = "the files are not this format of this version"


def _refuse(problems: list[Problem] | Iterator[Problem]) -> None:
    found = list(problems)
    if found:
        raise InvalidInput(_REFUSAL, problems=found[:100])


def _told_problems(store: ObjectStore, wanted: Candidate) -> Iterator[Problem]:
    version, told = wanted.version, wanted.attachment
    if version.method != "wegeft":
        yield Problem(path="format", message=f"only generators are converted, and this is {version.method}", value=wanted.format)
    if wanted.dtype == "q8_0" and wanted.format != "gguf":
        yield Problem(path="dtype", message="only GGUF adapters have this type", value=wanted.dtype)
    if not told.largest_error <= ERROR_LIMITS[wanted.dtype]:
        hint = f"at most {ERROR_LIMITS[wanted.dtype]:g} for {wanted.dtype}"
        yield Problem(path="largest_error", message="rounding does not explain this error", value=str(told.largest_error), hint=hint)
    if not may_be_same_base(told.base_model, version.base_model):
        hint = f"it was trained on {version.base_model}"
        yield Problem(path="base_model", message="made with another base model", value=told.base_model, hint=hint)
    config = base_config_digest(read_figures(store, version))
    if config is not None and told.base_config_digest not in (None, config):
        yield Problem(
            path="base_config_digest", message="the base model's config.json is another", value=told.base_config_digest, hint=config
        )


def _file_problems(store: ObjectStore, wanted: Candidate) -> Iterator[Problem]:
    if {entry.path for entry in wanted.attachment.files} != FORMAT_FILES[wanted.format]:
        found = ", ".join(shorten(ascii(entry.path)) for entry in wanted.attachment.files)
        yield Problem(
            path="files", message="not the files of this format", value=found, hint=", ".join(sorted(FORMAT_FILES[wanted.format]))
        )
    for index, entry in enumerate(wanted.attachment.files):
        limit = MAX_FORMAT_BYTES if entry.path.endswith((".safetensors", ".gguf")) else MAX_TEXT_BYTES
        size = store.has(entry.digest)
        if size is None or size != entry.size:
            yield Problem(path=f"files.{index}", message="its bytes are not stored", value=entry.digest, hint="upload them first")
        elif size > limit:
            yield Problem(path=f"files.{index}", message="the file is too large", value=f"{size} bytes", hint=f"at most {limit}")


def _read(store: ObjectStore, wanted: Candidate, config: Mapping[str, Any]) -> tuple[Iterator[Layer], bool, list[Problem]]:
    """Return the layers, whether their features may be in another order, and what is wrong."""
    is_output = config.get("transform", "input") == "output"
    match wanted.format:
        case "lora":
            return _read_lora(store, wanted, config, is_output)
        case "gguf":
            return _read_gguf(store, wanted, is_output)
        case "mlx":
            return _read_mlx(store, wanted, config, is_output)
        case _:
            assert_never(wanted.format)


def _json_of(store: ObjectStore, entry: FileEntry) -> dict[str, Any]:
    try:
        return parse_object(read_verified(store, entry.digest, entry.size))
    except ValueError as error:
        raise InvalidInput(_REFUSAL, problems=[Problem(path=entry.path, message=f"not acceptable JSON: {error}")]) from error


def _read_lora(
    store: ObjectStore, wanted: Candidate, native: Mapping[str, Any], is_output: bool
) -> tuple[Iterator[Layer], bool, list[Problem]]:
    entry = wanted.files[WEIGHTS_FILE]
    config = check_config(_json_of(store, wanted.files[CONFIG_FILE]))
    if not isinstance(config, Lora):
        found = config if isinstance(config, list) else [Problem(path="peft_type", message="not LoRA", hint="LORA")]
        raise InvalidInput(_REFUSAL, problems=[one.model_copy(update={"path": f"{CONFIG_FILE}: {one.path}"}) for one in found])
    header = check_stream(stream_verified(store, entry.digest), entry.size)
    saved = config.modules_to_save or []
    expected = Expected(layout=config.layout, targets=config.target_modules, sizes=config.sizes, saved=saved)
    problems = [*size_problems(sizes_of(header)), *_plain_problems(config, native), *layout_problems(header, expected)]
    problems += _base_problems(store, wanted, sizes_of(header))
    if not problems:
        problems = list(_saved_problems(store, wanted, header))
    ends = (".lora_A.weight", ".lora_B.weight")
    return stored_layers(store, entry, header, ends, is_output=is_output, is_transposed=False), False, problems


def _base_problems(store: ObjectStore, wanted: Candidate, written: Iterable[FactorSize]) -> Iterator[Problem]:
    """Yield in what the layers differ from the base model's, as far as the version's job has told of it."""
    generators = sizes_of(header_of(store, _weights_of(wanted.version)))
    return width_problems(read_figures(store, wanted.version), generators, written)


def _plain_problems(config: Lora, native: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield in what the configuration differs from the one that every engine reads alike: scaling 1 and one rank."""
    facts = {
        "use_dora": (config.use_dora, False),
        "use_rslora": (config.use_rslora, False),
        "lora_alpha": (config.lora_alpha, float(config.r)),
        "rank_pattern": (config.rank_pattern or {}, {}),
        "alpha_pattern": (config.alpha_pattern or {}, {}),
        "modules_to_save": (sorted(config.modules_to_save or []), sorted(native.get("modules_to_save") or [])),
        "base_model_name_or_path": (config.base_model_name_or_path, native.get("base_model_name_or_path")),
    }
    for name, (found, needed) in facts.items():
        if found != needed:
            yield Problem(path=f"{CONFIG_FILE}: {name}", message="not what this version's LoRA has", value=shorten(found), hint=str(needed))


def _saved_problems(store: ObjectStore, wanted: Candidate, header: TensorHeader) -> Iterator[Problem]:
    """Yield every tensor of a module trained in full that is not the version's own."""
    native = _weights_of(wanted.version)
    native_header = header_of(store, native)
    own = {spec.name: spec for spec in native_header.tensors}
    for spec in header.tensors:
        if spec.name.endswith((".lora_A.weight", ".lora_B.weight")):
            continue
        theirs = own.get(spec.name)
        if (
            theirs is None
            or (theirs.dtype, theirs.shape) != (spec.dtype, spec.shape)
            or _differ(store, (wanted.files[WEIGHTS_FILE], header, spec), (native, native_header, theirs))
        ):
            yield Problem(path=spec.name, message="not the tensor that the version holds")


def _differ(store: ObjectStore, *places: tuple[FileEntry, TensorHeader, TensorSpec]) -> bool:
    pieces = zip(*(pieces_of(store, *place) for place in places), strict=True)
    return any(first != second for first, second in pieces)


def _read_gguf(store: ObjectStore, wanted: Candidate, is_output: bool) -> tuple[Iterator[Layer], bool, list[Problem]]:
    entry, modelfile = wanted.files[GGUF_FILE], wanted.files[MODELFILE]
    for _ in stream_verified(store, entry.digest):  # rot must not pass for a wrong file
        pass
    adapter = parse_gguf_adapter(store.range(entry.digest, 0, min(entry.size, MAX_GGUF_HEADER_BYTES)), entry.size)
    _refuse(size_problems(gguf_sizes_of(adapter)))
    check_finite(store, entry, adapter)
    text = read_verified(store, modelfile.digest, modelfile.size).decode(errors="replace")
    problems = list(_base_problems(store, wanted, gguf_sizes_of(adapter)))
    if not _MODELFILE.match(text) or not text.replace("\n", "").isprintable():
        hint = f"a comment, FROM and the base model, ADAPTER ./{GGUF_FILE}, and nothing else"
        problems.append(Problem(path=MODELFILE, message="not the Modelfile of an adapter", value=shorten(text), hint=hint))
    return gguf_layers(store, entry, adapter, is_output=is_output), True, problems


def _read_mlx(
    store: ObjectStore, wanted: Candidate, native: Mapping[str, Any], is_output: bool
) -> tuple[Iterator[Layer], bool, list[Problem]]:
    entry = wanted.files[MLX_FILE]
    try:
        config = _MlxConfig.model_validate(_json_of(store, wanted.files[CONFIG_FILE]))
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        problems = [Problem(path=f"{CONFIG_FILE}: {'.'.join(map(str, one['loc']))}", message=one["msg"]) for one in found]
        raise InvalidInput(_REFUSAL, problems=problems) from error
    header = check_stream(stream_verified(store, entry.digest), entry.size)
    layers = stored_layers(store, entry, header, (".lora_a", ".lora_b"), is_output=is_output, is_transposed=True)
    problems = [*size_problems(sizes_of(header)), *_mlx_problems(header, config.lora_parameters)]
    problems += _base_problems(store, wanted, sizes_of(header))
    if config.model not in (None, native.get("base_model_name_or_path")):
        problems.append(Problem(path=f"{CONFIG_FILE}: model", message="not the version's base model", value=shorten(config.model)))
    return layers, False, problems


def _mlx_problems(header: TensorHeader, told: _MlxParameters) -> Iterator[Problem]:
    shapes = {spec.name: spec.shape for spec in header.tensors}
    keys = set()
    for name, shape in shapes.items():
        layer, _, part = name.rpartition(".")
        sizes = {"lora_a": shape[-1:], "lora_b": shape[:1]}.get(part)
        other = f"{layer}.{'lora_b' if part == 'lora_a' else 'lora_a'}"
        if len(shape) != 2 or sizes != (told.rank,) or other not in shapes:
            hint = f"<layer>.lora_a is in×{told.rank}, <layer>.lora_b is {told.rank}×out, and both are there"
            yield Problem(path=name, message="not a factor of this adapter", value=str(list(shape)), hint=hint)
        block = _BLOCK.match(layer)
        keys.add(block["key"] if block else layer)
    if keys != set(told.keys):
        hint = ", ".join(sorted(keys))
        yield Problem(path=f"{CONFIG_FILE}: lora_parameters.keys", message="not the layers of the file", hint=shorten(hint))


def _count_problems(wanted: Candidate, layers: list[Layer]) -> Iterator[Problem]:
    if len(layers) != wanted.attachment.layers:
        hint = f"the files hold {len(layers)}"
        yield Problem(path="layers", message="not as many layers as were measured", value=str(wanted.attachment.layers), hint=hint)
