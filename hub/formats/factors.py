"""The factors that a derived format has in common with the generators it was made of: ψ as it is read, or φ as it is written.

An edit of what layers read is ``ΔW = (s·Wφ)ψ``, one of what they write is ``(s·φ)(ψW)``. So of the two factors that every format stores for
a layer, one is a generator's own and can be compared without the base model's weights; the other needs them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hub.objects import ObjectStore
from wegeft.contracts.adapter import WEIGHTS_FILE, FileEntry, VersionView
from wegeft.contracts.errors import Problem
from wegeft.contracts.gguf_file import GgufAdapter, read_gguf_tensor
from wegeft.contracts.tensors import MAX_HEADER_BYTES, TensorHeader, TensorSpec, parse_header, read_tensor

Rows = NDArray[np.float64]
"""rank×width, whatever the layout of the file."""

_GENERATOR = re.compile(r"base_model\.wegeft_generators\.(?P<group>.+)\.(?P<factor>phi|psi)\Z")
_PEFT_PREFIX = "base_model.model."
_LENGTH_BYTES = 8
_PIECE_BYTES = 16 << 20
_MOST_PROBLEMS = 20
_MOST_CANDIDATES = 8
"""Generators whose numbers a layer's are compared with, besides the one of its own name."""
_PRINT_SIDE = 8
"""Into how many parts rows and columns are divided for a fingerprint."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a derived format."""

    name: str
    read: Callable[[], Rows]
    """Returns the factor that is a generator's own."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """The generators' own factors by group."""

    groups: Mapping[str, Rows]
    limit: float
    """Largest relative difference that rounding explains."""
    is_reordered: bool = False
    """Whether the format may store the features in another order."""


def read_known(store: ObjectStore, version: VersionView, *, transform: str) -> dict[str, Rows]:
    """Return ψ of each generator of a version for the input form, φᵀ for the output form."""
    entry = next(entry for entry in version.manifest.files if entry.path == WEIGHTS_FILE)
    header, found = header_of(store, entry), dict[str, Rows]()
    for spec in header.tensors:
        match = _GENERATOR.match(spec.name)
        if match and match["factor"] == ("psi" if transform == "input" else "phi"):
            found[match["group"]] = _read(store, entry, (header, spec), is_turned=transform != "input")
    return found


def header_of(store: ObjectStore, entry: FileEntry) -> TensorHeader:
    """Return the header of stored safetensors; raise :class:`InvalidTensors`."""
    return parse_header(store.range(entry.digest, 0, min(entry.size, _LENGTH_BYTES + MAX_HEADER_BYTES)), entry.size)


def bytes_of(store: ObjectStore, entry: FileEntry, header: TensorHeader, spec: TensorSpec) -> bytes:
    """Return the bytes of one tensor of stored safetensors."""
    return store.range(entry.digest, header.size + spec.start, spec.end - spec.start)


def pieces_of(store: ObjectStore, entry: FileEntry, header: TensorHeader, spec: TensorSpec) -> Iterator[bytes]:
    """Yield the bytes of one tensor of stored safetensors in pieces that are alike for tensors of one size."""
    for start in range(spec.start, spec.end, _PIECE_BYTES):
        yield store.range(entry.digest, header.size + start, min(_PIECE_BYTES, spec.end - start))


def stored_layers(
    store: ObjectStore, entry: FileEntry, header: TensorHeader, ends: tuple[str, str], *, is_output: bool, is_transposed: bool
) -> Iterator[Layer]:
    """Yield the layers of safetensors whose two factors' names end in ``ends``; ``is_transposed``: stored as in×rank and rank×out."""
    end = ends[1] if is_output else ends[0]
    is_turned = is_output is not is_transposed
    for spec in header.tensors:
        if spec.name.endswith(end):
            name = spec.name.removeprefix(_PEFT_PREFIX).removesuffix(end)
            yield Layer(name=name, read=partial(_read, store, entry, (header, spec), is_turned=is_turned))


def _read(store: ObjectStore, entry: FileEntry, place: tuple[TensorHeader, TensorSpec], *, is_turned: bool) -> Rows:
    array = read_tensor(bytes_of(store, entry, *place), place[1]).astype(np.float64)
    return array.T if is_turned else array


def gguf_layers(store: ObjectStore, entry: FileEntry, adapter: GgufAdapter, *, is_output: bool) -> Iterator[Layer]:
    """Yield the layers of a stored GGUF adapter."""
    end = ".lora_b" if is_output else ".lora_a"

    def read(name: str) -> Rows:
        tensor = adapter.tensors[name]
        array = read_gguf_tensor(store.range(entry.digest, tensor.start, tensor.size), tensor)
        return array.T if is_output else array

    for name in adapter.tensors:
        if name.endswith(end):
            yield Layer(name=name.removesuffix(end), read=partial(read, name))


def factor_problems(layers: Iterable[Layer], known: Known) -> Iterator[Problem]:
    """Yield the layers whose factor is no generator's, at most twenty, and where all are some generator's, what no layer has.

    No layer is read behind the twentieth that is wrong.
    """
    indexes = _index(known)
    used: set[str] = set()
    strangers = 0
    for layer in layers:
        rows = layer.read()
        index = indexes.get(rows.shape[1])
        likely = index.likely(layer.name, _print_of(rows, known)) if index else ()
        group = next((name for name in likely if is_same(rows, known.groups[name], known)), None)
        if group is not None:
            used.add(group)
            continue
        yield Problem(path=layer.name, message="its factor is that of none of the version's generators", value=f"{list(rows.shape)}")
        if (strangers := strangers + 1) == _MOST_PROBLEMS:
            return
    for name in sorted(known.groups.keys() - used)[:_MOST_PROBLEMS]:
        yield Problem(path=name, message="no layer holds this generator")


@dataclass(frozen=True, kw_only=True)
class _Index:
    """The generators of one width, by their fingerprints."""

    names: list[str]
    prints: Rows
    """One row each."""

    def likely(self, layer: str, found: Rows) -> Iterator[str]:
        """Yield the generators to compare a layer with: the one of its name, and the few that are nearest, of equal ones those named so."""
        last = layer.rpartition(".")[2]
        is_named_otherwise = np.array([last not in name for name in self.names])
        nearest = np.lexsort((is_named_otherwise, np.linalg.norm(self.prints - found, axis=1)))[:_MOST_CANDIDATES]
        if layer in self.names:
            yield layer
        yield from (self.names[place] for place in nearest)


def _index(known: Known) -> dict[int, _Index]:
    """Return the generators by their width."""
    found: dict[int, dict[str, Rows]] = {}
    for name in sorted(known.groups):
        rows = known.groups[name]
        found.setdefault(rows.shape[1], {})[name] = _print_of(rows, known)
    return {width: _Index(names=list(prints), prints=np.stack(list(prints.values()))) for width, prints in found.items()}


def _print_of(rows: Rows, known: Known) -> Rows:
    """Return a few numbers that are the same for the same factor, times a positive number or with rows of zeros behind it.

    Rounding changes them little: they are sums of parts of rows, sorted before where the features may be in another order.
    """
    ordered = np.sort(rows, axis=1) if known.is_reordered else rows
    starts = np.linspace(0, ordered.shape[1], min(_PRINT_SIDE, ordered.shape[1]), endpoint=False).astype(int)
    sums = np.add.reduceat(ordered, starts, axis=1)
    found = np.zeros((_PRINT_SIDE, starts.size))
    for first in range(min(_PRINT_SIDE, sums.shape[0])):
        found[first] = sums[first::_PRINT_SIDE].sum(axis=0)
    size = float(np.linalg.norm(rows))
    flat: Rows = (found / size if size else found).ravel()
    return flat


def is_same(found: Rows, own: Rows, known: Known) -> bool:
    """Whether ``found`` is a generator's factor, rounded: times a positive number, with rows of zeros behind it."""
    rank = own.shape[0]
    if found.shape[1] != own.shape[1] or found.shape[0] < rank or found[rank:].any():
        return False
    left, right, limit = found[:rank], own, known.limit
    if known.is_reordered:
        left, right, limit = left @ left.T, right @ right.T, 3 * limit  # the same in any order of the features
    size = float(np.vdot(right, right))
    if not size:
        return not left.any()
    factor = float(np.vdot(right, left)) / size
    return factor > 0 and float(np.linalg.norm(left - factor * right)) <= limit * float(np.linalg.norm(left))


def check_finite(store: ObjectStore, entry: FileEntry, adapter: GgufAdapter) -> None:
    """Read every tensor of a GGUF adapter; raise :class:`InvalidTensors` where a number is not finite."""
    for tensor in adapter.tensors.values():
        read_gguf_tensor(store.range(entry.digest, tensor.start, tensor.size), tensor)
