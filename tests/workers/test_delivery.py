"""The five files of a version: what PEFT loads, what the hub shows, and nothing of the data."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel

from hub.cards import render_card
from hub.validate import MAX_TEXT_BYTES
from tests.tiny_models import make_model, make_tokenizer
from tests.workers.tiny_runs import make_rows, run, spec_of
from wegeft.contracts.adapter import PUBLISHABLE_FILES
from wegeft.contracts.job import JobSpec, TaskType
from workers.base_model import BaseModel
from workers.delivery import write_files
from workers.heads import Head
from workers.train import Outcome

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BASE = BaseModel(
    model=None,
    tokenizer=make_tokenizer(),
    identity=f"org/tiny@{COMMIT}",
    commit=COMMIT,
    license="apache-2.0",
    config_digest=f"sha256:{7:064x}",
)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return run(make_rows(), evaluation={"exact_match": True, "max_new_tokens": 4})[0]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_options: Any) -> None:
        raise AssertionError("something asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def card_of(folder: Path, spec: JobSpec, base: BaseModel, outcome: Outcome) -> tuple[dict[str, Any], str]:
    write_files(spec, base, outcome, folder)
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_files_are_those_that_the_hub_takes_and_peft_loads(outcome: Outcome, tmp_path: Path) -> None:
    write_files(spec_of(), BASE, outcome, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == PUBLISHABLE_FILES
    tokens = torch.tensor([[1, 20, 30, 40]])
    loaded = PeftModel.from_pretrained(make_model(), tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, outcome.model(tokens).logits)
        assert not torch.allclose(loaded(tokens).logits, make_model()(tokens).logits, atol=1e-2)


def test_figures_and_job_are_complete_json(outcome: Outcome, tmp_path: Path) -> None:
    write_files(spec_of(), BASE, outcome, tmp_path)
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert figures["eval_loss"] == outcome.metrics["eval_loss"]
    assert [point["step"] for point in figures["history"]] == list(range(1, 9))
    assert [measurement["step"] for measurement in figures["measurements"]] == [0, 8]
    assert figures["code"].keys() == {"wegeft-hub", "torch", "transformers", "peft"}
    assert figures["base_model_config"] == BASE.config_digest
    assert figures["lora_equivalent_bytes"] == 4 * figures["lora_equivalent_parameters"]
    assert JobSpec.model_validate_json((tmp_path / "job.json").read_text()) == spec_of()


def test_no_row_of_the_data_is_published(outcome: Outcome, tmp_path: Path) -> None:
    write_files(spec_of(), BASE, outcome, tmp_path)
    assert not any(b"say 1" in path.read_bytes() for path in tmp_path.iterdir())


def test_the_card_is_one_that_the_hugging_face_hub_reads(outcome: Outcome, tmp_path: Path) -> None:
    front, text = card_of(tmp_path, spec_of(base_model="org/tiny"), BASE, outcome)
    assert front == {
        "base_model": "org/tiny",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "tags": ["peft", "wegeft", "base_model:adapter:org/tiny"],
        "model-index": front["model-index"],
    }
    assert outcome.before is not None
    assert outcome.after is not None
    assert f"| held-out loss | {outcome.before.loss:.4f} | {outcome.after.loss:.4f} |" in text
    [result] = front["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "loss", "value": outcome.after.loss}
    assert "| exact match | 0.0% |" in text
    assert f'from_pretrained("org/tiny", revision="{COMMIT}")' in text


@pytest.mark.parametrize(
    ("base_model", "loading"),
    [
        ("/models/Tiny.Q4_1.gguf", '"path/to/its/folder", gguf_file="Tiny.Q4_1.gguf"'),
        ("/models/tiny", '"path/to/the/base/model"'),
    ],
)
def test_the_card_of_a_local_model_names_no_id(outcome: Outcome, tmp_path: Path, base_model: str, loading: str) -> None:
    local = replace(BASE, identity="tiny@sha256:00", commit=None, license=None)
    front, text = card_of(tmp_path, spec_of(base_model=base_model), local, outcome)
    assert front.keys() == {"library_name", "pipeline_tag", "tags", "model-index"}
    assert front["tags"] == ["peft", "wegeft"]
    assert f"from_pretrained({loading})" in text
    assert "of `tiny@sha256:00`" in text


def test_without_measurements_the_card_says_so(tmp_path: Path) -> None:
    bare, _ = run(make_rows(), has_held_out=False, max_steps=1)
    _, text = card_of(tmp_path, spec_of(), BASE, bare)
    assert "nothing was measured" in text
    assert "|---" not in text


def test_ten_thousand_long_and_hostile_labels_make_a_card_that_can_be_published(outcome: Outcome, tmp_path: Path) -> None:
    """Each is quoted, and all of them are in job.json."""
    names = tuple(f"{number} <script>|`[x](javascript:1) " + "y" * 200 for number in range(10_000))
    head = Head(task=TaskType.SEQUENCE_CLASSIFICATION, labels=names, seed=0)
    _, text = card_of(tmp_path, spec_of(), replace(BASE, head=head, license="WTF <b>"), outcome)
    assert len(text) < 20_000
    assert "and 9,950 more" in text
    html = render_card(text)
    assert "<script>" not in html
    assert "javascript" not in "".join(re.findall(r'href="[^"]*"', html))
    assert json.loads((tmp_path / "job.json").read_text())["label_names"] == list(names)
    assert (tmp_path / "job.json").stat().st_size < MAX_TEXT_BYTES["job.json"]
    assert "license: other" in (tmp_path / "README.md").read_text()
