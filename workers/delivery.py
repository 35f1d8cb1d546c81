"""The files that a finished run publishes: the adapter as PEFT writes it, a card, the job and its figures."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from wegeft.client import AttemptClient
from wegeft.contracts.adapter import CARD_FILE, CONFIG_FILE, JOB_FILE, METRICS_FILE, WEIGHTS_FILE, FileEntry
from wegeft.contracts.job import JobSpec
from wegeft.contracts.training import PublishedVersion, TrainingResult
from workers.adapter_files import save_adapter
from workers.base_model import BaseModel
from workers.card import make_card
from workers.train import Outcome

_FLOAT_BYTES = 4


def deliver(client: AttemptClient, spec: JobSpec, base: BaseModel, outcome: Outcome, folder: Path) -> PublishedVersion:
    """Write the files into ``folder``, store them and publish them; harmless to repeat. Raises what the client raises."""
    write_files(spec, base, outcome, folder)
    entries = []
    for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, JOB_FILE, METRICS_FILE):
        blob = client.put_blob(folder / name)
        entries.append(FileEntry(path=name, digest=blob.digest, size=blob.size))
    result = TrainingResult(
        files=tuple(entries),
        metrics=outcome.metrics,
        base_model=base.identity,
        trainable_parameters=outcome.trainable_parameters,
    )
    return client.finish(result)


def write_files(spec: JobSpec, base: BaseModel, outcome: Outcome, folder: Path) -> None:
    """Write the five files of a version."""
    save_adapter(outcome.model, folder)
    (folder / CARD_FILE).write_text(make_card(spec, base, outcome), encoding="utf-8")
    _write_json(folder / JOB_FILE, _with_labels(spec, base).model_dump(mode="json"))
    _write_json(folder / METRICS_FILE, _figures(base, outcome))


def _with_labels(spec: JobSpec, base: BaseModel) -> JobSpec:
    """Return the job with the labels that were told from its rows, without which the head's outputs mean nothing."""
    return spec.model_copy(update={"label_names": base.head.labels}) if base.head and base.head.labels else spec


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _figures(base: BaseModel, outcome: Outcome) -> dict[str, Any]:
    return {
        **outcome.metrics,
        **({} if outcome.lora_parameters is None else {"lora_equivalent_bytes": outcome.lora_parameters * _FLOAT_BYTES}),
        "code": _code_versions(),
        **({"base_model_config": base.config_digest} if base.config_digest else {}),
        "history": [point.model_dump() for point in outcome.state.history],
        "measurements": [measurement.model_dump() for measurement in outcome.state.measurements],
    }


def _code_versions() -> dict[str, str]:
    """Return the versions of what trained, which a version's attestation tells."""
    return {name: version(name) for name in ("wegeft-hub", "torch", "transformers", "peft")}
