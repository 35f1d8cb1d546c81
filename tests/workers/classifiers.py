"""Tiny classifiers with random weights, and rows for them, for tests."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM, ViTConfig, ViTImageProcessorPil, ViTModel

from tests.tiny_models import make_tokenizer
from tests.workers.tiny_runs import Recorder, spec_of
from wegeft.contracts.job import JobSpec
from wegeft.contracts.training import TrainingTask
from workers.base_model import BaseModel, load_base_model, request_of
from workers.labelled_rows import LabelledImage, LabelledText
from workers.labels import find_labels
from workers.rows import AnyRow
from workers.train import Outcome, TrainingInputs, train

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "initializer_range": 0.2}
POSITIONS = 48


def write_encoder(folder: Path, kind: str = "bert") -> Path:
    """Write a masked language model of one token a byte, without a head that tells labels."""
    config, model = {"bert": (BertConfig, BertForMaskedLM), "roberta": (RobertaConfig, RobertaForMaskedLM)}[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model(config(vocab_size=320, max_position_embeddings=POSITIONS, pad_token_id=0, **SIZES)).save_pretrained(folder)
    make_tokenizer(cls_token="<|im_start|>", sep_token="<|im_end|>", model_input_names=TYPED if kind == "bert" else PLAIN).save_pretrained(
        folder
    )
    return folder


PLAIN = ["input_ids", "attention_mask"]
TYPED = ["input_ids", "token_type_ids", "attention_mask"]


def write_vision_model(folder: Path) -> Path:
    """Write a Vision Transformer that reads images of 8×8 pixels in 16 patches, without a head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        ViTModel(ViTConfig(image_size=8, patch_size=2, **SIZES)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


def texts(count: int = 24) -> list[AnyRow]:
    """Return rows whose first word tells their label."""
    words = ("bad", "good")
    return [LabelledText(f"{words[n % 2]} {'and so on ' * (n % 3)}{n}", None, words[n % 2]) for n in range(count)]


def png(red: int, *, size: tuple[int, int] = (9, 7), kind: str = "PNG") -> bytes:
    """Return an image of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, (red, 255 - red, 30)).save(file, kind)
    return file.getvalue()


def pictures(count: int = 24) -> list[AnyRow]:
    """Return images of three colours, which are their labels."""
    return [LabelledImage(png(100 * (n % 3) + n), f"colour {n % 3}") for n in range(count)]


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def job_of(folder: Path, task: str = "sequence_classification", **fields: Any) -> JobSpec:
    given = {"base_model": str(folder), "task": task, "test_datasets": [{"path": "held_out.jsonl"}], "max_steps": 12, **fields}
    return spec_of(**given)


def load(spec: JobSpec, rows: Sequence[AnyRow]) -> BaseModel:
    return load_base_model(request_of(spec, None, find_labels(spec, rows)))


def learn(
    spec: JobSpec, rows: list[AnyRow], recorder: Recorder | None = None, checkpoint: Any = None
) -> tuple[Outcome, Recorder, BaseModel]:
    """Train on the first two thirds of the rows, and hold the others out."""
    recorder = recorder or Recorder()
    base, cut = load(spec, rows), 2 * len(rows) // 3
    inputs = TrainingInputs(base=base, train_rows=rows[:cut], held_out_rows=rows[cut:], resume_from=checkpoint)
    task = TrainingTask(job_id="job", attempt=1, spec=spec, heartbeat_seconds=1, lease_seconds=5)
    return train(task, inputs, recorder.callbacks()), recorder, base
