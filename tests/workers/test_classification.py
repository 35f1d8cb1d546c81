"""Classifiers on real, tiny models: they learn, are measured, resume bit for bit, and what is published is what PEFT loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from tests.tiny_models import make_model_folder, make_tokenizer
from tests.workers.classifiers import POSITIONS, job_of, learn, load, pictures, texts, write_encoder, write_vision_model
from tests.workers.tiny_runs import digest_of
from wegeft.contracts.errors import BaseModelUnusable, InvalidData, InvalidJob, InvalidTensors
from wegeft.contracts.training import Evaluation
from workers.delivery import write_files
from workers.labelled_rows import LabelledImage, LabelledText
from workers.labels import find_labels
from workers.rows import AnyRow
from workers.tasks.texts import longest_text, text_inputs


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each kind."""
    at = tmp_path_factory.mktemp("models")
    return {
        "bert": write_encoder(at / "bert"),
        "roberta": write_encoder(at / "roberta", "roberta"),
        "llama": make_model_folder(at / "llama"),
        "vit": write_vision_model(at / "vit"),
    }


KINDS = [
    ("bert", "sequence_classification", {"bert.pooler", "classifier"}),
    ("roberta", "sequence_classification", {"classifier"}),
    ("llama", "sequence_classification", {"score"}),
    ("vit", "image_classification", {"classifier"}),
]


def rows_of(kind: str) -> list[AnyRow]:
    return pictures() if kind == "vit" else texts()


@pytest.mark.parametrize(("kind", "task", "heads"), KINDS)
def test_a_classifier_learns_and_is_loaded_by_peft(folders: dict[str, Path], tmp_path: Path, kind: str, task: str, heads: set[str]) -> None:
    """Its published folder computes the same on a base model that is loaded anew, as the card says."""
    spec = job_of(folders[kind], task)
    outcome, recorder, base = learn(spec, rows_of(kind))
    assert set(base.head_modules) == heads
    before, after = recorder.evaluations[0], recorder.evaluations[-1]
    assert after.loss < 0.7 * before.loss
    assert after.metrics["accuracy"] > before.metrics["accuracy"]
    assert outcome.metrics["accuracy"] == after.metrics["accuracy"]
    assert outcome.metrics["accuracy_before"] == before.metrics["accuracy"]
    assert {sample.expected for sample in after.samples} <= set(base.head.labels if base.head else ())
    edited = outcome.model.peft_config["default"].target_modules
    assert edited
    assert not any(name.startswith(tuple(heads)) for name in edited)

    write_files(spec, base, outcome, tmp_path)
    loader = AutoModelForImageClassification if kind == "vit" else AutoModelForSequenceClassification
    card = (tmp_path / "README.md").read_text()
    assert f"{loader.__name__}.from_pretrained" in card
    assert f"num_labels={len(base.head.labels)}" in card if base.head else False
    assert "| accuracy |" in card
    assert json.loads((tmp_path / "job.json").read_text())["label_names"] == list(find_labels(spec, rows_of(kind)))
    torch.manual_seed(99)
    fresh = loader.from_pretrained(folders[kind], num_labels=outcome.model.config.num_labels)
    fresh.config.pad_token_id = 0
    loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
    given = {"pixel_values": torch.randn(2, 3, 8, 8)} if kind == "vit" else {"input_ids": torch.tensor([[5, 6, 7], [9, 8, 7]])}
    with torch.no_grad():
        assert torch.equal(loaded(**given).logits, outcome.model(**given).logits)


@pytest.mark.parametrize(("kind", "task", "heads"), [KINDS[0], KINDS[3]])
def test_a_classifier_resumes_bit_for_bit(folders: dict[str, Path], kind: str, task: str, heads: set[str]) -> None:
    """BERT drops activations while it learns, so the random state counts; the head is in the checkpoint."""
    spec = job_of(folders[kind], task, max_steps=5, save_steps=2, eval_steps=2, early_stopping_patience=3, metric_for_best_model="accuracy")
    whole, recorder, _ = learn(spec, rows_of(kind))
    for step in (2, 4):
        torch.manual_seed(step)
        resumed, _, _ = learn(spec, rows_of(kind), checkpoint=recorder.saved[step])
        assert digest_of(resumed) == digest_of(whole)
        assert [m.metrics for m in resumed.state.measurements] == [m.metrics for m in whole.state.measurements]


def test_a_checkpoint_of_other_labels_is_refused(folders: dict[str, Path]) -> None:
    """Though there are as many rows of the same length."""
    spec = job_of(folders["vit"], "image_classification", max_steps=2, save_steps=1)
    _, recorder, _ = learn(spec, pictures())
    others: list[AnyRow] = [
        LabelledImage(row.content, "colour 0" if n == 0 else row.label)
        for n, row in enumerate(pictures())
        if isinstance(row, LabelledImage)
    ]
    others[0] = LabelledImage(others[0].content, "colour 1") if isinstance(others[0], LabelledImage) else others[0]
    with pytest.raises(InvalidTensors, match="other data"):
        learn(spec, others, checkpoint=recorder.saved[1])


def test_a_regression_learns_numbers(folders: dict[str, Path]) -> None:
    """Of pairs of texts: how long the first is."""
    rows: list[AnyRow] = [LabelledText("x" * (1 + n % 9), "y" * (n % 4), float(1 + n % 9) / 4) for n in range(36)]
    spec = job_of(folders["bert"], problem_type="regression", max_steps=24)
    outcome, recorder, base = learn(spec, rows)
    assert (base.head.labels if base.head else None, base.model.config.num_labels) == ((), 1)
    assert recorder.evaluations[-1].loss < 0.5 * recorder.evaluations[0].loss
    assert outcome.metrics["pearson"] > 0.5
    assert set(recorder.evaluations[-1].metrics) == {"pearson", "spearman"}


def test_early_stopping_goes_by_the_metric_that_is_asked_for(folders: dict[str, Path]) -> None:
    """The adapter with the most of it is kept, whatever its loss."""
    spec = job_of(
        folders["vit"], "image_classification", eval_steps=1, early_stopping_patience=4, metric_for_best_model="macro_f1", max_steps=30
    )
    outcome, recorder, _ = learn(spec, pictures())
    best = max(recorder.evaluations[1:], key=lambda event: event.metrics["macro_f1"])
    assert outcome.metrics["macro_f1"] == best.metrics["macro_f1"]
    assert outcome.state.best is not None
    assert outcome.state.best.step == best.step
    if outcome.state.step != best.step:
        assert any("the best macro_f1" in text for text in recorder.texts)


def test_f1_needs_two_labels(folders: dict[str, Path]) -> None:
    """And is measured of those alone."""
    spec = job_of(folders["vit"], "image_classification", eval_steps=1, early_stopping_patience=1, metric_for_best_model="f1")
    with pytest.raises(InvalidJob, match="f1 is that of two labels, and there are 3"):
        learn(spec, pictures())


def test_padding_changes_nothing(folders: dict[str, Path]) -> None:
    """A row's loss is the same alone and beside a longer one; also for a decoder whose tokenizer names no padding."""
    bare = folders["llama"].parent / "bare"
    make_model_folder(bare)
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(bare)
    for folder in (folders["bert"], bare):
        base = load(job_of(folder), texts())
        assert base.tokenizer.pad_token_id == base.model.config.pad_token_id is not None
        rows = [LabelledText("a", None, "good"), LabelledText("a much longer text", None, "bad")]
        inputs, _ = text_inputs(job_of(folder), base, rows, "datasets")
        with torch.no_grad():
            together = base.model(**inputs([0, 1], base.model)).logits[0]
            alone = base.model(**inputs([0], base.model)).logits[0]
        assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(("kind", "limit"), [("bert", POSITIONS), ("roberta", POSITIONS - 1), ("llama", 512)])
def test_texts_are_cut_to_what_the_model_can_read(folders: dict[str, Path], kind: str, limit: int) -> None:
    """Whatever sequence_len says; the model runs on the longest."""
    spec = job_of(folders[kind], sequence_len=4096)
    base = load(spec, texts())
    assert longest_text(base) == limit
    inputs, messages = text_inputs(spec, base, [LabelledText("x" * 9999, None, "good"), LabelledText("x", None, "bad")], "datasets")
    assert len(inputs.examples[0].tokens) == limit
    assert f"1 rows of datasets were cut to {limit} tokens" in messages[0].text
    with torch.no_grad():
        assert base.model(**inputs([0], base.model)).logits.shape == (1, 2)


def test_longer_texts_can_be_dropped_or_refused(folders: dict[str, Path]) -> None:
    """As for a language model."""
    rows = [LabelledText("x" * 30, None, "good"), LabelledText("x", None, "bad")]
    base = load(job_of(folders["bert"]), texts())
    inputs, _ = text_inputs(job_of(folders["bert"], sequence_len=20, excess_length_strategy="drop"), base, rows, "datasets")
    assert [row.label for row in inputs.rows] == ["bad"]
    with pytest.raises(InvalidData, match="longer than 20 tokens") as caught:
        text_inputs(job_of(folders["bert"], sequence_len=20, excess_length_strategy="error"), base, rows, "test_datasets")
    assert caught.value.problems[0].path == "test_datasets row 1"


def test_pairs_are_told_apart(folders: dict[str, Path]) -> None:
    """By token types where the model reads them; on two lines where the tokenizer has nothing to stand between two texts."""
    pair = [LabelledText("ab", "cd", "good")]
    typed = load(job_of(folders["bert"]), texts())
    inputs, _ = text_inputs(job_of(folders["bert"]), typed, pair, "datasets")
    assert inputs([0], typed.model)["token_type_ids"].tolist()[0][-2:] == [1, 1]
    plain = load(job_of(folders["llama"]), texts())
    inputs, _ = text_inputs(job_of(folders["llama"]), plain, pair, "datasets")
    assert plain.tokenizer.decode(inputs.examples[0].tokens) == "ab\ncd"


def test_the_head_starts_by_the_seed_alone(folders: dict[str, Path]) -> None:
    """Not by whatever random numbers the process has drawn."""
    spec = job_of(folders["llama"])
    heads = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        heads.append(load(spec, texts()).model.score.weight)
        torch.manual_seed(seed)
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], load(job_of(folders["llama"], seed=7), texts()).model.score.weight)


def test_a_model_in_bfloat16_has_a_head_in_float32(folders: dict[str, Path]) -> None:
    """Whose small steps would otherwise be lost."""
    outcome, recorder, _ = learn(job_of(folders["llama"], bf16=True, max_steps=6), texts())
    kept = [parameter for name, parameter in outcome.model.named_parameters() if "modules_to_save" in name]
    assert {parameter.dtype for parameter in kept} == {torch.float32}
    assert recorder.progress[-1].loss < recorder.progress[0].loss


def test_a_model_that_misses_more_than_a_head_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Random weights must not pass for pretrained ones; and a model without an image processor cannot read images."""
    write_encoder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(BaseModelUnusable, match="weights are missing"):
        load(job_of(tmp_path), texts())
    with pytest.raises(BaseModelUnusable, match="its image processor cannot be loaded"):
        load(job_of(folders["bert"], "image_classification"), pictures())


def test_rows_of_another_task_are_refused(folders: dict[str, Path]) -> None:
    """Before anything is trained."""
    with pytest.raises(InvalidData, match="rows of another task"):
        learn(job_of(folders["bert"]), [*texts(), *pictures(3)])


@pytest.mark.parametrize(
    ("labels", "found"),
    [(["10", "9", "0"], ("0", "9", "10")), (["b", "a", "10"], ("10", "a", "b")), (["1", "01"], ("01", "1"))],
)
def test_labels_told_from_rows_have_a_stable_order(labels: list[str], found: tuple[str, ...]) -> None:
    """By number where all are whole numbers."""
    spec = job_of(Path("/model"))
    rows: list[AnyRow] = [LabelledText("x", None, label) for label in labels * 2]
    assert find_labels(spec, rows) == find_labels(spec, rows[::-1]) == found


def test_one_label_is_none() -> None:
    """There is nothing to tell apart."""
    with pytest.raises(InvalidData, match="all rows have the same label"):
        find_labels(job_of(Path("/model")), [LabelledText("x", None, "a")] * 3)


def test_a_label_that_no_row_teaches_is_told(folders: dict[str, Path]) -> None:
    """As a warning; the head has a place for it."""
    spec = job_of(folders["vit"], "image_classification", label_names=["colour 0", "colour 1", "colour 2", "grey"], max_steps=1)
    _, recorder, base = learn(spec, pictures())
    assert base.model.config.num_labels == 4
    assert "no row to train on has these labels: grey" in recorder.texts


def test_an_evaluation_without_metrics_is_still_read() -> None:
    """As logs of older services hold it."""
    old: dict[str, Any] = {"type": "evaluation", "step": 1, "total_steps": 2, "loss": 0.5, "rows": 3, "exact_match": 0.5, "samples": []}
    assert Evaluation.model_validate(old).metrics == {}
