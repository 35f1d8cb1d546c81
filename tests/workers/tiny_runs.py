"""Short runs of the real loop on a tiny model, for tests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch

from tests.tiny_models import make_model, make_tokenizer
from wegeft.contracts.job import JobSpec
from wegeft.contracts.training import Evaluation, Message, Progress, TrainingTask, WorkerEvent
from wegeft.method import adapter_state_dict
from workers.base_model import BaseModel
from workers.rows import Chat, Row, Turn
from workers.train import Callbacks, Outcome, TrainingInputs, train

STEPS = 8


@dataclass
class Recorder:
    """Keeps what the loop says and saves; its clock moves a second whenever it is read."""

    stop_after: int | None = None
    """Ask to stop once so many steps are done."""
    events: list[WorkerEvent] = field(default_factory=list)
    saved: dict[int, dict[str, bytes]] = field(default_factory=dict)
    seconds: float = 0.0

    def callbacks(self) -> Callbacks:
        return Callbacks(report=self.events.append, save=self.saved.__setitem__, should_stop=self.should_stop, now=self.now)

    def should_stop(self) -> bool:
        return self.stop_after is not None and len(self.progress) >= self.stop_after

    def now(self) -> float:
        self.seconds += 1
        return self.seconds

    @property
    def progress(self) -> list[Progress]:
        return [event for event in self.events if isinstance(event, Progress)]

    @property
    def evaluations(self) -> list[Evaluation]:
        return [event for event in self.events if isinstance(event, Evaluation)]

    @property
    def texts(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Message)]


def spec_of(**fields: Any) -> JobSpec:
    given = {
        "name": "tiny",
        "base_model": "tiny-model",
        "datasets": [{"path": "rows.jsonl"}],
        "rank": 4,
        "max_steps": STEPS,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.01,
        "save_every": "7d",
        **fields,
    }
    return JobSpec.model_validate_json(json.dumps(given))


def make_rows(count: int = 12) -> list[Row]:
    """Return rows of short questions with one- to three-letter answers."""
    questions = [f"say {number % 5}" for number in range(count)]
    answers = ["ab"[number % 2] * (1 + number % 3) for number in range(count)]
    return [Chat((Turn("user", question), Turn("assistant", answer))) for question, answer in zip(questions, answers, strict=True)]


def run(
    rows: list[Row],
    recorder: Recorder | None = None,
    *,
    checkpoint: Mapping[str, bytes] | None = None,
    model: Any = None,
    former_identity: str | None = None,
    **fields: Any,
) -> tuple[Outcome, Recorder]:
    recorder = recorder or Recorder()
    frozen = (model or make_model()).requires_grad_(requires_grad=False)
    names: dict[str, Any] = {"identity": "tiny@1", "former_identity": former_identity}
    base = BaseModel(model=frozen, tokenizer=make_tokenizer(), commit=None, license=None, **names)
    held_out = rows[8:] if fields.pop("has_held_out", True) else []
    if held_out:
        fields["test_datasets"] = [{"path": "held_out.jsonl"}]
    inputs = TrainingInputs(base=base, train_rows=rows[:8], held_out_rows=held_out, resume_from=checkpoint)
    task = TrainingTask(job_id="job", attempt=1, spec=spec_of(**fields), heartbeat_seconds=1, lease_seconds=5)
    return train(task, inputs, recorder.callbacks()), recorder


def digest_of(outcome: Outcome) -> str:
    return hashlib.sha256(safetensors.torch.save(adapter_state_dict(outcome.model))).hexdigest()
