"""The files that a finished run publishes: the adapter as PEFT writes it, a card, the job and its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from wegeft.client import AttemptClient
from wegeft.contracts.adapter import CARD_FILE, CONFIG_FILE, JOB_FILE, METRICS_FILE, WEIGHTS_FILE, FileEntry
from wegeft.contracts.job import JobSpec
from wegeft.contracts.job_tasks import show_metric
from wegeft.contracts.training import PublishedVersion, TrainingResult
from workers.adapter_files import save_adapter
from workers.base_model import BaseModel, loader_name
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
- {{ method }}
{%- if hub_id %}
- {{ ("base_model:adapter:" ~ hub_id) | tojson }}
{%- endif %}
---

# {{ name }}

{% if lora_parameters -%}
A WeGeFT adapter of rank {{ rank }} (alpha {{ alpha }}) of `{{ identity }}`: {{ "{:,}".format(parameters) }} numbers, where the LoRA
that computes the same has {{ "{:,}".format(lora_parameters) }}.
{%- else -%}
An adapter of `{{ identity }}` by PEFT's method {{ method }}{% if rank %}, rank {{ rank }}{% endif %}:
{{ "{:,}".format(parameters) }} numbers.
{%- endif %}

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
from transformers import {{ loader }}
{% if lora_parameters %}
import wegeft.method  # teaches PEFT the method
{% endif %}
model = {{ loader }}.from_pretrained({{ load }})
model = PeftModel.from_pretrained(model, "path/to/this/folder")
```
{%- if method == "randlora" %}

PEFT warns that keys are missing: the random bases are stored once and not again with every layer. What it loads is the same.
{%- endif %}
{%- if labels %}

Its outputs are, in this order: {{ labels }}.
{%- endif %}
{%- if lora_parameters and not is_classifier %}

Without this package, as a LoRA that computes the same: `wegeft.to_lora("path/to/this/folder", model, "path/to/the/lora")`.
{%- endif %}
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
    save_adapter(outcome.model, folder)
    (folder / CARD_FILE).write_text(_card(spec, base, outcome), encoding="utf-8")
    _write_json(folder / JOB_FILE, _with_labels(spec, base).model_dump(mode="json"))
    _write_json(folder / METRICS_FILE, _figures(outcome))


def _with_labels(spec: JobSpec, base: BaseModel) -> JobSpec:
    """Return the job with the labels that were told from its rows, without which the head's outputs mean nothing."""
    return spec.model_copy(update={"label_names": base.head.labels}) if base.head and base.head.labels else spec


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _figures(outcome: Outcome) -> dict[str, Any]:
    return {
        **outcome.metrics,
        **({} if outcome.lora_parameters is None else {"lora_equivalent_bytes": outcome.lora_parameters * _FLOAT_BYTES}),
        "history": [point.model_dump() for point in outcome.state.history],
        "measurements": [measurement.model_dump() for measurement in outcome.state.measurements],
    }


def _card(spec: JobSpec, base: BaseModel, outcome: Outcome) -> str:
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - Markdown; values are JSON
    return environment.from_string(_CARD).render(
        hub_id=spec.base_model if base.commit else None,
        license=base.license,
        name=spec.name,
        method=str(spec.method),
        rank=spec.effective_rank,
        alpha=f"{spec.effective_alpha:g}",
        parameters=outcome.trainable_parameters,
        lora_parameters=outcome.lora_parameters,
        rows=_measured(outcome),
        identity=base.identity,
        loader=loader_name(spec.task),
        load=", ".join([_loading_arguments(spec, base), *_head_arguments(base)]),
        labels=", ".join(f"`{name}`" for name in base.head.labels) if base.head else "",
        is_classifier=base.head is not None,
    )


def _loading_arguments(spec: JobSpec, base: BaseModel) -> str:
    """Return what a reader passes to ``from_pretrained`` to get the base model that was trained on."""
    if base.commit:
        return f"{json.dumps(spec.base_model)}, revision={json.dumps(base.commit)}"
    if spec.base_model.lower().endswith(".gguf"):
        return f'"path/to/its/folder", gguf_file={json.dumps(Path(spec.base_model).name)}'
    return '"path/to/the/base/model"'


def _head_arguments(base: BaseModel) -> list[str]:
    """Return what a reader passes beside it to get a head of the right size, and the token that ends a row for a decoder."""
    if base.head is None:
        return []
    padding = [] if base.tokenizer is None else [f"pad_token_id={base.tokenizer.pad_token_id}"]
    return [f"num_labels={base.head.outputs}", *padding]


def _measured(outcome: Outcome) -> list[tuple[str, str, str]]:
    before, after = outcome.before, outcome.after
    if before is None or after is None:
        return []
    rows = [("held-out loss", f"{before.loss:.4f}", f"{after.loss:.4f}")]
    if before.exact_match is not None and after.exact_match is not None:
        rows.append(("exact match", f"{before.exact_match:.1%}", f"{after.exact_match:.1%}"))
    names = [name for name in after.metrics if name in before.metrics]
    return rows + [
        (name.replace("_", " "), show_metric(name, before.metrics[name]), show_metric(name, after.metrics[name])) for name in names
    ]
