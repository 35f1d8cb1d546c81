"""What a version's card says of it, and what was measured, in the form that Hugging Face's clients read as ``cardData``.

The card itself is a signed file and stays as it is: evaluations that come after it are told here, as its ``model-index`` would tell them.
Source: huggingface_hub 2.4, ``repocard_data.py`` (``ModelCardData``, ``model_index_to_eval_results``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from hub import catalog
from hub.description import read_front
from hub.objects import ObjectStore, read_verified
from hub.services import HubServices
from hub.strict_json import parse_object
from infra.database import reading
from wegeft.contracts.adapter import CARD_FILE, CONFIG_FILE, AdapterName, FileEntry, VersionView
from wegeft.contracts.base_model_name import unpinned_name
from wegeft.contracts.errors import BlobNotFound, Broken
from wegeft.contracts.provenance import EvaluationView
from wegeft.contracts.yaml_source import Data

_KNOWN = (
    "license",
    "license_name",
    "license_link",
    "language",
    "tags",
    "datasets",
    "metrics",
    "pipeline_tag",
    "library_name",
    "base_model",
    "base_model_relation",
)
"""Fields that are told; clients take the names of others for parameters of their own."""
_TASKS = {"CAUSAL_LM": "text-generation", "SEQ_CLS": "text-classification"}


def card_data(services: HubServices, version: VersionView) -> dict[str, Any]:
    """Return what the card's front matter says as far as clients know it, and the evaluations as its ``model-index``."""
    entries = {entry.path: entry for entry in version.manifest.files}
    front: Mapping[str, Data] = {}
    task = "other"
    with suppress(Broken, BlobNotFound):  # a file that has rotted must not keep anybody from the others
        front, task = _read(services.store, entries.get(CARD_FILE), entries[CONFIG_FILE])  # type: ignore[arg-type]  # told apart by identity
    told: dict[str, Any] = {name: front[name] for name in _KNOWN if _is_told(front.get(name))}
    with reading(services.engine) as connection:
        evaluations = catalog.list_evaluations(connection, AdapterName.parse(version.adapter), version.version)
    told = {"base_model": unpinned_name(version.base_model), "library_name": "peft"} | told
    return told | ({"model-index": model_index(version, task, evaluations)} if evaluations else {})


@lru_cache(maxsize=256)
def _read(store: ObjectStore, card: FileEntry | None, config: FileEntry) -> tuple[Mapping[str, Data], str]:
    """Return a card's front matter, and the task that a configuration names as Hugging Face does."""
    kind = parse_object(read_verified(store, config.digest, config.size)).get("task_type")
    return read_front(store, card) if card else {}, _TASKS.get(str(kind), "other")


def model_index(version: VersionView, task: str, evaluations: Iterable[EvaluationView]) -> list[dict[str, Any]]:
    """Return evaluations as a card's ``model-index``: one result for each data set that something was measured on."""
    measured: dict[tuple[str, str], list[EvaluationView]] = defaultdict(list)
    for one in evaluations:
        measured[one.dataset_name or "", one.dataset_digest or ""].append(one)
    results = [
        {
            "task": {"type": task},
            "dataset": {"name": name or digest or "held-out rows", "type": name or digest or "unknown"}
            | ({"revision": digest} if digest else {}),
            "metrics": [_metric(one) for one in found],
        }
        for (name, digest), found in measured.items()
    ]
    return [{"name": version.adapter.partition("/")[2], "results": results}]


def _metric(one: EvaluationView) -> dict[str, Any]:
    source = "reported" if one.is_reported else "measured by the job"
    return {"type": one.metric, "value": one.value, "name": f"{one.metric}, {source}"}


def _is_told(value: Data) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
