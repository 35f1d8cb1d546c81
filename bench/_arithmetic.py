"""A federated task of a language model: SmolLM2-135M learns the demo's sums and differences, each in a dozen tokens.

The demo's questions are kept and its chat is not: what a step costs is tokens, and three quarters of a chat's are the same in every row.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from examples.arithmetic.demo import MODEL_FILE, fetch_model
from simulation.preparation import Given
from wegeft.contracts.job import JobSpec
from workers.rows import PromptCompletion

FOLDER = Path(__file__).parent.parent / "examples" / "arithmetic"
_HELD_OUT = 32
"""Of the demo's rows to learn from, the last ones, measured with those that it holds out: 80 in all."""


def find_model() -> Path:
    """Return the demo's base model, fetched where it is not there yet."""
    if not MODEL_FILE.exists():
        with redirect_stdout(sys.stderr):
            fetch_model()
    return MODEL_FILE


def job_of(model: Path, *, steps: int, learning_rate: float, rank: int = 16) -> JobSpec:
    """Return the job of one site's round."""
    fields = {
        "name": "arithmetic", "base_model": str(model), "rank": rank, "alpha": 2 * rank, "target_modules": "all-linear",
        "datasets": [{"path": "train.jsonl"}], "sequence_len": 32, "max_steps": steps, "micro_batch_size": 8,
        "learning_rate": learning_rate, "lr_scheduler": "constant", "warmup_ratio": 0.0,
    }  # fmt: skip
    return JobSpec.model_validate_json(json.dumps(fields))


def read_given() -> Given:
    """Return the rows, each of one of six kinds: by its operation, its number of digits and the sign of its answer."""
    rows, more = _rows("train.jsonl"), _rows("heldout.jsonl")
    kept = rows[:-_HELD_OUT]
    return Given(rows=kept, values=[kind_of(row) for row in kept], held_out=[*more, *rows[-_HELD_OUT:]])


def kind_of(row: PromptCompletion) -> str:
    """Return what a row asks for."""
    first, operation, *_ = row.prompt.split()
    return f"{len(first)} digits {operation}{' below zero' if '-' in row.completion else ''}"


def _rows(name: str) -> list[PromptCompletion]:
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    turns = [[turn["content"] for turn in json.loads(line)["messages"]] for line in lines]
    return [PromptCompletion(question.rpartition(": ")[2], f" {answer}") for question, answer in turns]
