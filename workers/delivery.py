"""The files that a finished run publishes: the adapter as PEFT writes it, a card, the job and its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from wegeft.client import AttemptClient
from wegeft.contracts.adapter import CARD_FILE, CONFIG_FILE, JOB_FILE, METRICS_FILE, WEIGHTS_FILE, FileEntry
from wegeft.contracts.job import JobSpec
from wegeft.contracts.training import PublishedVersion, TrainingResult
from workers.base_model import BaseModel
from workers.train import Outcome

_FLOAT_BYTES = 4

_CARD = """---
{%- if hub_id %}
base_model: {{ hub_id | tojson }}
{%- endif %}
library_name: peft
{%- if license %}
license: {{ license | tojson }}
{%- endif %}
tags:
- peft
- wegeft
{%- if hub_id %}
- {{ ("base_model:adapter:" ~ hub_id) | tojson }}
{%- endif %}
---

# {{ name }}

A WeGeFT adapter of rank {{ rank }} (alpha {{ alpha }}) of `{{ identity }}`: {{ "{:,}".format(parameters) }} numbers, where the LoRA
that computes the same has {{ "{:,}".format(lora_parameters) }}.

{% if rows -%}
| | before | after |
|---|---|---|
{% for label, before, after in rows -%}
| {{ label }} | {{ before }} | {{ after }} |
{% endfor %}
Measured on the held-out rows of its job, whose settings are in `job.json` and whose figures are in `metrics.json`.
{% else -%}
No rows were held out, so nothing was measured. The settings of its job are in `job.json`.
{% endif %}
## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

import wegeft.method  # teaches PEFT the method

model = AutoModelForCausalLM.from_pretrained({{ load }})
model = PeftModel.from_pretrained(model, "path/to/this/folder")
```

Without this package, as a LoRA that computes the same: `wegeft.to_lora("path/to/this/folder", model, "path/to/the/lora")`.
"""


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
    # Told to look for itself whether embeddings were trained, PEFT would ask the network.
    outcome.model.save_pretrained(folder, save_embedding_layers=False)
    (folder / CARD_FILE).write_text(_card(spec, base, outcome), encoding="utf-8")
    _write_json(folder / JOB_FILE, spec.model_dump(mode="json"))
    _write_json(folder / METRICS_FILE, _figures(outcome))


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _figures(outcome: Outcome) -> dict[str, Any]:
    return {
        **outcome.metrics,
        "lora_equivalent_bytes": outcome.lora_parameters * _FLOAT_BYTES,
        "history": [point.model_dump() for point in outcome.state.history],
        "measurements": [measurement.model_dump() for measurement in outcome.state.measurements],
    }


def _card(spec: JobSpec, base: BaseModel, outcome: Outcome) -> str:
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - Markdown; values are JSON
    return environment.from_string(_CARD).render(
        hub_id=spec.base_model if base.commit else None,
        license=base.license,
        name=spec.name,
        rank=spec.rank,
        alpha=f"{spec.effective_alpha:g}",
        parameters=outcome.trainable_parameters,
        lora_parameters=outcome.lora_parameters,
        rows=_measured(outcome),
        identity=base.identity,
        load=_loading_arguments(spec, base),
    )


def _loading_arguments(spec: JobSpec, base: BaseModel) -> str:
    """Return what a reader passes to ``from_pretrained`` to get the base model that was trained on."""
    if base.commit:
        return f"{json.dumps(spec.base_model)}, revision={json.dumps(base.commit)}"
    if spec.base_model.lower().endswith(".gguf"):
        return f'"path/to/its/folder", gguf_file={json.dumps(Path(spec.base_model).name)}'
    return '"path/to/the/base/model"'


def _measured(outcome: Outcome) -> list[tuple[str, str, str]]:
    before, after = outcome.before, outcome.after
    if before is None or after is None:
        return []
    rows = [("held-out loss", f"{before.loss:.4f}", f"{after.loss:.4f}")]
    if before.exact_match is not None and after.exact_match is not None:
        rows.append(("exact match", f"{before.exact_match:.1%}", f"{after.exact_match:.1%}"))
    return rows
