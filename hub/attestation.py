"""How a version was trained, told from its own files and the catalog; the same whenever it is asked.

SLSA provenance 1.0 (slsa.dev/spec/v1.0/provenance): what was asked for, what it was made of, by which code, and what it came to. For an
upload nothing of this is known, and nothing is told but who the hub says has sent it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from hub.objects import ObjectStore, read_verified
from hub.strict_json import parse_object
from wegeft.contracts.adapter import JOB_FILE, METRICS_FILE, VersionView, digest_of
from wegeft.contracts.provenance import Relative

_KINDS = {"job": "urn:wegeft:training:1", "round": "urn:wegeft:federation:1"}
_UPLOAD = "urn:wegeft:upload:1"


def training_predicate(store: ObjectStore, version: VersionView, ancestors: Sequence[Relative], builder: str) -> dict[str, Any]:
    """Return the SLSA predicate of a version; ``builder`` is the id of the hub's key.

    Raises :class:`DigestMismatch` where the store has let the version's files rot.
    """
    kind = version.source.partition(":")[0]
    is_trained = kind in _KINDS
    job = _read(store, version, JOB_FILE) if is_trained else {}
    figures = _read(store, version, METRICS_FILE) if is_trained else {}
    digests = {entry.path: entry.digest for entry in version.manifest.files}
    named = {"job": _digest(digests[JOB_FILE])} if job else {}
    rounds = [{"ref": one.ref, "manifest": one.manifest_digest, "source": one.source} for one in _rounds(version, ancestors)]
    return {
        "buildDefinition": {
            "buildType": _KINDS.get(kind, _UPLOAD),
            "externalParameters": {"source": version.source, **named},
            "internalParameters": {"method": version.method, "rank": version.rank, **({"rounds": rounds} if rounds else {})},
            "resolvedDependencies": [*_base(version, figures), *_data(job), *_parents(ancestors)],
        },
        "runDetails": {
            "builder": {"id": f"urn:wegeft:hub:{builder}", **({"version": _texts(figures.get("code"))} if figures.get("code") else {})},
            "metadata": {"invocationId": version.source, "finishedOn": version.created_at.isoformat()},
            "byproducts": list(_byproducts(figures)),
        },
    }


def read_figures(store: ObjectStore, version: VersionView) -> dict[str, Any]:
    """Return what ``metrics.json`` of a trained version says; nothing for an upload, which may claim anything."""
    return _read(store, version, METRICS_FILE) if version.source.partition(":")[0] in _KINDS else {}


def base_config_digest(figures: dict[str, Any]) -> str | None:
    """Return the digest of the base model's ``config.json`` that a job has told with its figures."""
    found = figures.get("base_model_config")
    return found if isinstance(found, str) and found.startswith("sha256:") and len(found) == 71 else None


def _read(store: ObjectStore, version: VersionView, path: str) -> dict[str, Any]:
    entry = next((entry for entry in version.manifest.files if entry.path == path), None)
    if entry is None:
        return {}
    return parse_object(read_verified(store, entry.digest, entry.size))


def _base(version: VersionView, figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    config = base_config_digest(figures)
    yield {"name": "base_model", "uri": version.base_model, **({"digest": _digest(config)} if config else {})}


def _data(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for field in ("datasets", "test_datasets"):
        found = job.get(field)
        for dataset in found if isinstance(found, list) else []:
            path = dataset.get("path") if isinstance(dataset, dict) else None
            if isinstance(path, str) and path.startswith("sha256:"):
                yield {"name": field, "digest": _digest(path)}


def _parents(ancestors: Sequence[Relative]) -> Iterator[dict[str, Any]]:
    for parent in ancestors:
        yield {"name": parent.relation, "uri": parent.ref, "digest": _digest(parent.manifest_digest)}


def _rounds(version: VersionView, ancestors: Sequence[Relative]) -> list[Relative]:
    """Return the rounds of the version's federation before it, first to last."""
    found: list[Relative] = []
    level = ancestors
    while before := next((one for one in level if one.relation == "next_round"), None):
        found.insert(0, before)
        level = before.kin
    return found if version.source.startswith("round:") else []


def _byproducts(figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    record = figures.get("round")
    if isinstance(record, dict):
        content = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
        yield {"name": "round_record", "digest": _digest(digest_of(content))}


def _texts(found: Any) -> dict[str, str]:
    return {str(name)[:100]: str(text)[:100] for name, text in list(found.items())[:20]} if isinstance(found, dict) else {}


def _digest(digest: str) -> dict[str, str]:
    return {"sha256": digest.removeprefix("sha256:")}
