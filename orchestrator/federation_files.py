"""A federation's state as bytes: all of it for the server, what a site starts from, and what the hub publishes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from orchestrator.aggregate import Edit, FederationState, start_at
from wegeft.algebra import Generator, add, from_rows, rescale_evenly
from wegeft.contracts.errors import InvalidTensors
from wegeft.contracts.tensor_writer import write_tensors
from wegeft.contracts.tensors import parse_header, read_tensors

GENERATOR_PREFIX = "base_model.wegeft_generators."
"""Of the generators' names in a published adapter."""
_MOMENT, _CONTROL = "moment/", "control/"
_STATE = "federation"


def write_state(state: FederationState) -> bytes:
    """Return everything that the next round needs, in float64; equal states give equal bytes, and reading gives the same bits back."""
    tensors: dict[str, Any] = {f"{_MOMENT}{name}": values for name, values in state.moments.items()}
    tensors |= {f"{_CONTROL}{name}": values for name, values in state.controls.items()}
    groups = {}
    for group, edit in state.edits.items():
        kept = {"pair": edit.pair, "residual": edit.residual, "carried": edit.carried}
        groups[group] = {"width": edit.pair.width} | {name: [generator.rank, generator.scale] for name, generator in kept.items()}
        for name, generator in kept.items():
            tensors |= {f"{group}/{name}.p": generator.p, f"{group}/{name}.q": generator.q}
        if edit.core is not None:
            tensors[f"{group}/core"] = edit.core
    said = {"version": 1, "rounds": state.rounds, "groups": groups} | ({"counted": dict(state.counted)} if state.counted else {})
    return write_tensors(tensors, "F64", {_STATE: json.dumps(said, sort_keys=True, separators=(",", ":"))})


def read_state(content: bytes) -> FederationState:
    """Return the state that :func:`write_state` wrote; raise :class:`InvalidTensors` for any other bytes."""
    tensors = read_tensors(content)
    metadata = parse_header(content, len(content)).metadata
    try:
        said = json.loads(metadata[_STATE])
        edits = {group: _read_edit(group, shape, tensors) for group, shape in said["groups"].items()}
        rounds, counted = int(said["rounds"]), {str(site): str(digest) for site, digest in said.get("counted", {}).items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InvalidTensors("not the state of a federation") from error
    moments, controls = (
        {name.removeprefix(prefix): values for name, values in tensors.items() if name.startswith(prefix)} for prefix in (_MOMENT, _CONTROL)
    )
    return FederationState(edits=edits, moments=moments, rounds=rounds, controls=controls, counted=counted)


def _read_edit(group: str, shape: Mapping[str, Any], tensors: Mapping[str, Any]) -> Edit:
    def read(name: str) -> Generator:
        rank, scale = shape[name]
        nothing = np.zeros((0, int(shape["width"])))
        p, q = (tensors[f"{group}/{name}.{part}"] if rank else nothing for part in ("p", "q"))
        return from_rows(p=p, q=q, scale=float(scale))

    return Edit(pair=read("pair"), residual=read("residual"), carried=read("carried"), core=tensors.get(f"{group}/core"))


def write_start(state: FederationState, rank: int | None, control: Mapping[str, Any] = MappingProxyType({})) -> bytes:
    """Return what a site of ``rank`` (None for the pair's) starts from, in float32.

    ``<group>.phi`` and ``<group>.psi`` are trained, with ``<group>.core`` between them where there is one; ``<group>.frozen.phi`` and
    ``<group>.frozen.psi``, where they are there, are evaluated beside them and stay. All are at the scale in the metadata. ``control`` are
    the server's control variates, by the name that they have on the wire.
    """
    tensors: dict[str, Any] = dict(control)
    scales = {}
    for group, edit in state.edits.items():
        trained, frozen = start_at(edit, rank)
        pair = trained if edit.core is None else edit.pair
        even = rescale_evenly(frozen, pair.scale)
        tensors |= {f"{group}.phi": pair.p.T, f"{group}.psi": pair.q, f"{group}.frozen.phi": even.p.T, f"{group}.frozen.psi": even.q}
        if edit.core is not None:
            tensors[f"{group}.core"] = edit.core
        scales[group] = pair.scale
    return write_tensors(tensors, "F32", {"scales": json.dumps(scales, sort_keys=True, separators=(",", ":"))})


@dataclass(frozen=True, kw_only=True)
class Publishable:
    """A state as the generators of one adapter."""

    weights: bytes
    """``adapter_model.safetensors``, in float32."""
    ranks: Mapping[str, int]
    """Rank of each group: the pair's and the residual's together."""
    scales: Mapping[str, float]
    """``alpha / rank`` of each group."""


def write_adapter(state: FederationState, *, has_one_rank: bool = False) -> Publishable:
    """Return the adapter that evaluates ``pair + residual`` exactly, up to float32: their factors side by side at the pair's scale.

    With ``has_one_rank`` every group is filled up with zeros to the greatest rank, so that a configuration without patterns fits it.
    """
    tensors, ranks, scales = {}, {}, {}
    wholes = {group: rescale_evenly(add(edit.trained, edit.residual), edit.pair.scale) for group, edit in sorted(state.edits.items())}
    least = max(whole.rank for whole in wholes.values()) if has_one_rank else 0
    for group, whole in wholes.items():
        missing = ((0, max(0, least - whole.rank)), (0, 0))
        p, q = np.pad(whole.p, missing), np.pad(whole.q, missing)
        tensors[f"{GENERATOR_PREFIX}{group}.phi"] = p.T
        tensors[f"{GENERATOR_PREFIX}{group}.psi"] = q
        ranks[group], scales[group] = len(p), state.edits[group].pair.scale
    return Publishable(weights=write_tensors(tensors, "F32", {"format": "pt"}), ranks=ranks, scales=scales)


def state_from_adapter(weights: Mapping[str, Any], scales: Mapping[str, float], *, has_core: bool = False) -> FederationState:
    """Return the state in which a federation begins: the generators of an adapter, as its tensors name them."""
    groups = sorted({name.removeprefix(GENERATOR_PREFIX).rpartition(".")[0] for name in weights if name.startswith(GENERATOR_PREFIX)})
    edits = {}
    for group in groups:
        phi, psi = (np.asarray(weights[f"{GENERATOR_PREFIX}{group}.{part}"], dtype=np.float64) for part in ("phi", "psi"))
        pair = from_rows(p=np.ascontiguousarray(phi.T), q=psi, scale=scales[group])
        nothing = from_rows(p=pair.p[:0], q=pair.q[:0])
        edits[group] = Edit(pair=pair, residual=nothing, carried=nothing, core=np.eye(pair.rank) if has_core else None)
    return FederationState(edits=edits)
