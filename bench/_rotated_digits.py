"""A federated task that is real and quick: a small Vision Transformer that reads handwritten digits meets them turned by 90 degrees.

The base model is trained here, seeded, on upright digits; its head stays as it is, so that generators are all that sites train and send.
The contract keeps classifiers out of federations, whose heads would have to travel; here none does.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from simulation.preparation import Given
from wegeft.contracts.job import DatasetSpec, JobSpec, TaskType
from wegeft.contracts.job_task_rules import ROW_TYPES
from workers.data import read_rows
from workers.labelled_rows import LabelledImage, RowRules
from workers.rows import AnyRow

FOLDER = Path(__file__).parent.parent / "examples" / "digits"
LABELS = tuple("0123456789")
_PASSES, _BATCH, _SEED = 30, 64, 7


def job_of(model: Path, *, steps: int, learning_rate: float, rank: int = 4) -> JobSpec:
    """Return the job of one site's round."""
    fields = {
        "name": "rotated-digits", "task": "image_classification", "base_model": str(model), "rank": rank, "target_modules": "all-linear",
        "datasets": [{"path": "train.zip"}], "label_names": list(LABELS), "max_steps": steps, "micro_batch_size": 32,
        "learning_rate": learning_rate, "lr_scheduler": "constant", "warmup_ratio": 0.0,
    }  # fmt: skip
    return JobSpec.model_validate_json(json.dumps(fields))


def read_given(turns: int = 1) -> Given:
    """Return the digits turned by so many right angles, each of the kind of its label, and those held out."""
    rows, held_out = (_turned(_rows(name), turns) for name in ("train.zip", "heldout.zip"))
    return Given(rows=rows, values=[row.label for row in rows], held_out=held_out)


def _rows(name: str) -> list[AnyRow]:
    data = DatasetSpec(path=name)
    return read_rows(FOLDER / name, data, name, RowRules(types=ROW_TYPES[TaskType.IMAGE_CLASSIFICATION], label_names=LABELS))


def _turned(rows: Sequence[AnyRow], turns: int) -> list[LabelledImage]:
    return [LabelledImage(_turn(row.content, turns), row.label) for row in rows if isinstance(row, LabelledImage)]


def _turn(content: bytes, turns: int) -> bytes:
    if not turns:
        return content
    file = io.BytesIO()
    Image.open(io.BytesIO(content)).rotate(90 * turns).save(file, "PNG")
    return file.getvalue()


def make_base(folder: Path, hidden: int = 32) -> Path:
    """Train the base model on upright digits, the same each time, unless it is in ``folder`` already; return the folder."""
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    torch.manual_seed(_SEED)
    config = ViTConfig(
        image_size=8, patch_size=2, num_channels=1, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=2 * hidden, num_labels=len(LABELS), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
    rows = _turned(_rows("train.zip"), 0)
    pixels = processor([Image.open(io.BytesIO(row.content)) for row in rows], return_tensors="pt")["pixel_values"]
    labels = torch.tensor([LABELS.index(str(row.label)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(_PASSES * len(rows) // _BATCH):
        batch = torch.randint(0, len(rows), (_BATCH,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(pixel_values=pixels[batch]).logits, labels[batch]).backward()
        optimizer.step()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
