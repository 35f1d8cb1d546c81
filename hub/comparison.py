"""The semantic difference of two versions: what their generators or LoRA's products do, not how their factors happen to be written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hub import catalog
from hub.formats.limits import MAX_RANK, FactorSize, sizes_of
from hub.lora_products import products_of
from hub.objects import ObjectStore, read_verified
from hub.services import HubServices
from hub.strict_json import parse_object
from infra.database import reading
from wegeft.algebra import Generator, adapter_cosine, distance, norm, principal_angles
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterName, VersionView
from wegeft.contracts.comparison import ComparisonView, EvaluationDelta, FieldChange, GroupDifference
from wegeft.contracts.errors import shorten
from wegeft.contracts.provenance import EvaluationView
from wegeft.contracts.tensors import parse_header, read_tensors

MAX_WEIGHTS_BYTES = 64 << 20
"""Of each version; larger ones are compared by their configuration and evaluations alone."""
MAX_WORK = 10**10
"""Of a comparison: width times the square of both ranks together, over all groups. What is computed takes some thirty times as many
steps."""
MAX_ANGLES = 64
"""Shown of each group."""

_GENERATOR = re.compile(r"base_model\.wegeft_generators\.(?P<group>.+)\.(?P<factor>phi|psi)\Z")
_FACTOR_END = re.compile(r"\.(?:phi|psi|lora_[AB]\.weight)\Z")
_NAMES = re.compile(r"[@+|]")
_NOT_SAID = frozenset({"peft_version", "inference_mode"})
"""Fields that tell nothing of what an adapter does."""

_LORA = frozenset({"lora", "rslora"})
_MORE_THAN_PRODUCTS = {
    "dora": "its magnitudes scale the base model's weights as well",
    "pissa": "it has taken what it starts from out of the base model's weights",
    "adalora": "its terms have weights of their own, and some were dropped",
}

Generators = Mapping[str, Generator[Any]]


def compare(services: HubServices, first: VersionView, second: VersionView) -> ComparisonView:
    """Return how ``second`` differs from ``first``; raise :class:`DigestMismatch` where the store has let their files rot."""
    configs = [read_config(services.store, version) for version in (first, second)]
    reason = _reason((first, second), configs)
    weights = [] if reason else [_read_weights(services.store, version) for version in (first, second)]
    sizes = [list(sizes_of(parse_header(content, len(content)))) for content in weights]
    reason = reason or _rank_reason(sizes) or _work_reason(sizes)
    pair = None if reason else [_generators_in(*one) for one in zip((first, second), weights, configs, strict=True)]
    return ComparisonView(
        first=first.ref,
        second=second.ref,
        base_models=(first.base_model, second.base_model),
        config=tuple(_changes(*configs)),
        **(_overall(*pair) if pair else {"cosine": None, "first_norm": None, "second_norm": None, "difference": None, "groups": ()}),
        incomparable=reason,
        evaluations=_evaluation_deltas(services, first, second),
    )


def read_config(store: ObjectStore, version: VersionView) -> dict[str, Any]:
    """Return a version's ``adapter_config.json``; raise :class:`DigestMismatch` where the store has let it rot."""
    entry = next(entry for entry in version.manifest.files if entry.path == CONFIG_FILE)
    return parse_object(read_verified(store, entry.digest, entry.size))


def _reason(versions: tuple[VersionView, VersionView], configs: list[dict[str, Any]]) -> str | None:
    """Return why generators cannot be compared; None where they can."""
    bases = sorted({version.base_model for version in versions})
    if len(bases) > 1:
        return f"they are of different base models: {' and '.join(bases)}"
    if reason := _method_reason([version.method for version in versions]):
        return reason
    if len({config.get("transform", "input") for config in configs}) > 1:
        return "one edits what layers read, the other what they write"
    if max(_weights_size(version) for version in versions) > MAX_WEIGHTS_BYTES:
        return f"the weights are larger than {MAX_WEIGHTS_BYTES >> 20} MiB"
    return None


def _method_reason(methods: list[str]) -> str | None:
    """Return why edits of two methods cannot be compared; None where they can."""
    for method in methods:
        if method in _MORE_THAN_PRODUCTS:
            return f"{method} does more than add a product of two factors: {_MORE_THAN_PRODUCTS[method]}"
        if method != "wegeft" and method not in _LORA:
            return f"only WeGeFT's generators and LoRA's products are compared, and these are {' and '.join(methods)}"
    if ("wegeft" in methods) != (set(methods) == {"wegeft"}):
        return f"WeGeFT multiplies weights and LoRA adds to them, and these are {' and '.join(methods)}"
    return None


def _weights_size(version: VersionView) -> int:
    return next(entry.size for entry in version.manifest.files if entry.path == WEIGHTS_FILE)


def _read_weights(store: ObjectStore, version: VersionView) -> bytes:
    entry = next(entry for entry in version.manifest.files if entry.path == WEIGHTS_FILE)
    return read_verified(store, entry.digest, entry.size)


def _rank_reason(sizes: list[list[FactorSize]]) -> str | None:
    """Return why weights cannot be compared whose rank would fill the memory; None where they can."""
    largest = max((size.rank for one in sizes for size in one), default=0)
    return f"the rank is too large to compare: {largest}, and at most {MAX_RANK}" if largest > MAX_RANK else None


def _work_reason(sizes: list[list[FactorSize]]) -> str | None:
    """Return why weights cannot be compared whose many groups would hold the hub for long; None where they can."""
    widths, ranks = dict[str, int](), dict[str, int]()
    for one in sizes:
        group_ranks = {_FACTOR_END.sub("", size.name): size.rank for size in one}
        for group, rank in group_ranks.items():
            ranks[group] = ranks.get(group, 0) + rank
        for size in one:
            group = _FACTOR_END.sub("", size.name)
            widths[group] = max(widths.get(group, 0), size.count // max(size.rank, 1))
    work = sum(widths[group] * ranks[group] ** 2 for group in widths)
    if work <= MAX_WORK:
        return None
    found = f"width times the square of both ranks, over all groups, is {work:.1e}, and at most {MAX_WORK:.1e}"
    return f"comparing them takes too long: {found}"


def _generators_in(version: VersionView, weights: bytes, config: Mapping[str, Any]) -> Generators:
    tensors = read_tensors(weights)
    return products_of(tensors, config) if version.method in _LORA else generators_of(tensors, config)


def generators_of(tensors: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Generator[Any]]:
    """Return an adapter's generators by group, in float64, from its tensors and its ``adapter_config.json``."""
    factors: dict[str, dict[str, Any]] = {}
    for name, array in tensors.items():
        if found := _GENERATOR.match(name):
            factors.setdefault(found["group"], {})[found["factor"]] = array.astype("float64")
    return {
        group: Generator(phi=pair["phi"], psi=pair["psi"], scale=_alpha(group, config) / pair["psi"].shape[0])
        for group, pair in sorted(factors.items())
    }


def _alpha(group: str, config: Mapping[str, Any]) -> float:
    """Return a group's alpha: that of the pattern which names one of its modules, else the adapter's."""
    members = {name.rpartition(".")[2] for name in _NAMES.split(group)}
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        if pattern == group or pattern.rpartition(".")[2] in members:
            return float(alpha)
    return float(config["wegeft_alpha"])


def _changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[FieldChange]:
    for field in sorted((first.keys() | second.keys()) - _NOT_SAID):
        values = [shorten(json.dumps(one[field], sort_keys=True)) if field in one else None for one in (first, second)]
        if first.get(field) != second.get(field):
            yield FieldChange(field=field, first=values[0], second=values[1])


def _overall(first: Generators, second: Generators) -> dict[str, Any]:
    groups = tuple(_group(name, first.get(name), second.get(name)) for name in sorted(first.keys() | second.keys()))
    differences = [group.difference for group in groups]
    fits = None not in differences
    return {
        "cosine": adapter_cosine(first, second) if fits else None,
        "first_norm": math.hypot(*(norm(one) for one in first.values())),
        "second_norm": math.hypot(*(norm(one) for one in second.values())),
        "difference": math.hypot(*(value for value in differences if value is not None)) if fits else None,
        "groups": groups,
    }


def _group(name: str, first: Generator[Any] | None, second: Generator[Any] | None) -> GroupDifference:
    norms = [None if one is None else norm(one) for one in (first, second)]
    told = {"group": name, "first_norm": norms[0], "second_norm": norms[1]}
    if first is None or second is None:
        return GroupDifference(**told, difference=norms[0] if second is None else norms[1])
    if first.width != second.width:
        return GroupDifference(**told, difference=None)
    has_both = bool(norms[0] and norms[1])
    return GroupDifference(
        **told,
        difference=distance(first, second),
        cosine=adapter_cosine({name: first}, {name: second}) if has_both else None,
        read_angles=_angles(first, second, "psi") if has_both else (),
        write_angles=_angles(first, second, "phi") if has_both else (),
    )


def _angles(first: Generator[Any], second: Generator[Any], of: str) -> tuple[float, ...]:
    found = tuple(float(angle) for angle in principal_angles(first, second, of=of)[:MAX_ANGLES])
    return found if all(map(math.isfinite, found)) else ()


def _evaluation_deltas(services: HubServices, first: VersionView, second: VersionView) -> tuple[EvaluationDelta, ...]:
    with reading(services.engine) as connection:
        rows = [catalog.list_evaluations(connection, AdapterName.parse(one.adapter), one.version) for one in (first, second)]
    mine, theirs = ({_key(row): row for row in some} for some in rows)
    return tuple(_delta(mine[key], theirs[key]) for key in sorted(mine.keys() & theirs.keys()))


def _key(row: EvaluationView) -> tuple[str, str, str, bool]:
    return row.metric, row.dataset_digest or "", row.dataset_name or "", row.is_reported


def _delta(first: EvaluationView, second: EvaluationView) -> EvaluationDelta:
    return EvaluationDelta(
        metric=first.metric,
        dataset_digest=first.dataset_digest,
        dataset_name=first.dataset_name,
        first=first.value,
        second=second.value,
        delta=second.value - first.value,
    )
