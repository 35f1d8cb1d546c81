"""The card of a trained adapter: what it is, what was measured and how it is loaded, in the Hugging Face form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from wegeft.contracts.card import canonical_license, code_span, escape_markdown, join_card
from wegeft.contracts.errors import shorten
from wegeft.contracts.job import JobSpec, TaskType
from wegeft.contracts.job_tasks import show_metric
from workers.base_model import BaseModel, loader_name
from workers.train import Outcome

SHOWN_LABELS = 50
"""More of them are in ``job.json``; a card of ten thousand long names could not be published."""
_LABEL_LENGTH = 80
_PIPELINES = {
    TaskType.CAUSAL_LM: "text-generation",
    TaskType.SEQUENCE_CLASSIFICATION: "text-classification",
    TaskType.IMAGE_CLASSIFICATION: "image-classification",
}

_CARD = """\
# {{ name }}

{% if lora_parameters -%}
A WeGeFT adapter of rank {{ rank }} (alpha {{ alpha }}) of {{ identity }}: {{ "{:,}".format(parameters) }} numbers, where the LoRA
that computes the same has {{ "{:,}".format(lora_parameters) }}.
{%- else -%}
An adapter of {{ identity }} by PEFT's method {{ method }}{% if rank %}, rank {{ rank }}{% endif %}:
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


def make_card(spec: JobSpec, base: BaseModel, outcome: Outcome) -> str:
    """Return the card's text; whatever a row, a label or a base model's card says is quoted in it, and its length is bounded."""
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - Markdown, whose foreign values are quoted
    text = environment.from_string(_CARD).render(
        name=escape_markdown(spec.name),
        method=str(spec.method),
        rank=spec.effective_rank,
        alpha=f"{spec.effective_alpha:g}",
        parameters=outcome.trainable_parameters,
        lora_parameters=outcome.lora_parameters,
        rows=_measured(outcome),
        identity=code_span(base.identity),
        loader=loader_name(spec.task),
        load=", ".join([_loading_arguments(spec, base), *_head_arguments(base)]),
        labels=_labels(base.head.labels) if base.head else "",
        is_classifier=base.head is not None,
    )
    return join_card(_front_matter(spec, base, outcome), text)


def _front_matter(spec: JobSpec, base: BaseModel, outcome: Outcome) -> dict[str, Any]:
    # A folder or a file of the worker's machine means nothing to a reader.
    hub_id = spec.base_model if base.commit else None
    license_ = base.license and (canonical_license(base.license) or "other").lower()
    index = _model_index(spec, outcome)
    named = {"base_model": hub_id, "base_model_relation": hub_id and "adapter", "library_name": "peft"}
    found = {**named, "pipeline_tag": _PIPELINES[spec.task], "license": license_, "tags": _tags(spec, hub_id), "model-index": index}
    return {name: value for name, value in found.items() if value}


def _tags(spec: JobSpec, hub_id: str | None) -> list[str]:
    return ["peft", str(spec.method), *([f"base_model:adapter:{hub_id}"] if hub_id else [])]


def _model_index(spec: JobSpec, outcome: Outcome) -> list[dict[str, Any]]:
    """Return what was measured, as the Hugging Face Hub lists it; the data set is named by its digest."""
    if outcome.after is None:
        return []
    sources = [dataset.path for dataset in (spec.test_datasets or spec.datasets) if dataset.is_uploaded]
    dataset: dict[str, str] = {
        "name": "held-out rows of its job",
        "type": "private",
        **({"revision": sources[0]} if len(sources) == 1 else {}),
    }
    exact: dict[str, float] = {} if outcome.after.exact_match is None else {"exact_match": outcome.after.exact_match}
    figures: dict[str, float] = {"loss": outcome.after.loss, **exact, **{str(name): value for name, value in outcome.after.metrics.items()}}
    metrics = [{"type": name, "value": value} for name, value in figures.items()]
    return [{"name": spec.name, "results": [{"task": {"type": _PIPELINES[spec.task]}, "dataset": dataset, "metrics": metrics}]}]


def _labels(names: Sequence[str]) -> str:
    shown = ", ".join(code_span(shorten(name, _LABEL_LENGTH)) for name in names[:SHOWN_LABELS])
    rest = len(names) - SHOWN_LABELS
    return f"{shown} and {rest:,} more, which `job.json` names" if rest > 0 else shown


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
