"""Tasks of a job: what fits which, and that nothing is taken that would do nothing."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from wegeft.contracts.errors import InvalidJob
from wegeft.contracts.job import JobSpec, ProblemType, TaskType, load_spec
from wegeft.contracts.job_tasks import metrics_of, show_metric
from wegeft.contracts.training import MAX_SAMPLES, Evaluation, Sample

JOB = "name: a\nbase_model: org/model\ndatasets: [{{path: rows.{ending}}}]\nval_set_size: 4\n"
TEXTS, IMAGES = "task: sequence_classification\n", "task: image_classification\n"


def load(more: str = "", ending: str = "jsonl") -> JobSpec:
    return load_spec(JOB.format(ending=ending) + more)


def problems(more: str, ending: str = "jsonl") -> list[tuple[str, str]]:
    with pytest.raises(InvalidJob) as caught:
        load(more, ending)
    return [(problem.path, problem.message) for problem in caught.value.problems]


def test_a_job_is_that_of_a_language_model_unless_it_says_otherwise() -> None:
    """So that job files from before still mean the same."""
    assert (load().task, load().problem_type, load().label_names) == (TaskType.CAUSAL_LM, ProblemType.SINGLE_LABEL, None)
    assert load(IMAGES, "zip").task is TaskType.IMAGE_CLASSIFICATION
    assert load(TEXTS + "label_names: [no, yes]\n".replace("no, yes", "'no', 'yes'")).label_names == ("no", "yes")
    assert load(TEXTS + "problem_type: regression\n").problem_type is ProblemType.REGRESSION


NEEDS_HEAD = "needs task: sequence_classification or image_classification"


@pytest.mark.parametrize(
    ("more", "ending", "found"),
    [
        ("label_names: [a, b]\n", "jsonl", [("label_names", NEEDS_HEAD)]),
        ("problem_type: regression\n", "jsonl", [("problem_type", NEEDS_HEAD)]),
        (TEXTS + "train_on_inputs: true\n", "jsonl", [("train_on_inputs", "needs task: causal_lm")]),
        (TEXTS + "chat_template: x\n", "jsonl", [("chat_template", "needs task: causal_lm")]),
        (TEXTS + "sample_packing: true\n", "jsonl", [("sample_packing", "needs task: causal_lm")]),
        (TEXTS + "evaluation: {exact_match: true}\n", "jsonl", [("evaluation.exact_match", "needs task: causal_lm")]),
        (TEXTS + "label_names: [a]\n", "jsonl", [("label_names", "must have at least 2 entry")]),
        (TEXTS + "label_names: [a, a]\n", "jsonl", [("label_names", "a name appears twice")]),
        (TEXTS + "label_names: [a, b]\nproblem_type: regression\n", "jsonl", [("label_names", "a regression has no labels")]),
        (IMAGES + "problem_type: regression\n", "zip", [("problem_type", "needs task: sequence_classification")]),
        (TEXTS, "zip", [("datasets[0].path", "a zip of images needs task: image_classification")]),
        ("task: vision\n", "jsonl", [("task", "must be one of causal_lm, sequence_classification, image_classification")]),
    ],
)
def test_what_does_not_fit_a_task_is_refused(more: str, ending: str, found: list[tuple[str, str]]) -> None:
    """At its field, in the words of the file."""
    assert problems(more, ending) == found


def test_rows_must_be_those_of_the_task() -> None:
    """A type that is said must fit."""
    text = "name: a\nbase_model: m\ntask: image_classification\ndatasets: [{path: a.jsonl, type: chat}]\n"
    with pytest.raises(InvalidJob) as caught:
        load_spec(text)
    assert [(p.path, p.hint) for p in caught.value.problems] == [("datasets[0].type", "its rows are labelled_image")]
    assert load_spec(text.replace("chat", "imagefolder")).datasets[0].type == "labelled_image"


@pytest.mark.parametrize(
    ("evaluation", "found"),
    [
        ("match: last_number", [("evaluation.match", "needs exact_match: true")]),
        ("exact_match: true, match: regex", [("evaluation.match", "needs regex")]),
        ("exact_match: true, regex: x", [("evaluation.regex", "needs match: regex")]),
        (
            "exact_match: true, match: regex, regex: '('",
            [("evaluation.regex", "not a regular expression: missing ), unterminated subpattern at position 0")],
        ),
    ],
)
def test_a_way_to_match_answers_must_be_whole(evaluation: str, found: list[tuple[str, str]]) -> None:
    """And an expression one that can be read."""
    assert problems(f"evaluation: {{{evaluation}}}\n") == found


def test_the_metric_that_decides_must_be_one_of_the_task() -> None:
    """And something must go by it."""
    stop = "eval_steps: 5\nearly_stopping_patience: 2\n"
    assert load(stop + "metric_for_best_model: token_accuracy\n").metric_for_best_model == "token_accuracy"
    assert problems(stop + "metric_for_best_model: accuracy\n") == [("metric_for_best_model", "not measured in this task")]
    assert problems(TEXTS + "metric_for_best_model: accuracy\n") == [("metric_for_best_model", "needs early_stopping_patience")]
    assert problems(stop + "greater_is_better: true\n") == [("greater_is_better", "not supported")]


def test_every_task_has_metrics_that_people_can_read() -> None:
    """Shares as percentages."""
    assert {metrics_of(task, problem) for task in TaskType for problem in ProblemType} >= {("pearson", "spearman")}
    assert [show_metric("accuracy", 0.9637), show_metric("perplexity", 12.3456), show_metric("pearson", -0.5)] == ["96.4%", "12.35", "-0.5"]


def test_an_evaluation_holds_known_metrics_and_few_samples() -> None:
    """A worker cannot fill the log, nor shadow another metric's name."""
    told = {"step": 1, "total_steps": 1, "loss": 1.0, "rows": 1}
    sample = Sample(prompt="a", expected="b", answer="c")
    assert Evaluation.model_validate({**told, "metrics": {"accuracy": 0.5}, "samples": [sample] * MAX_SAMPLES}).metrics == {"accuracy": 0.5}
    for wrong in ({"samples": [sample] * (MAX_SAMPLES + 1)}, {"metrics": {"loss": 0.5}}, {"metrics": {"accuracy": float("nan")}}):
        with pytest.raises(ValidationError):
            Evaluation.model_validate({**told, **wrong})
