"""The loop on a real, tiny model: it learns, resumes bit for bit, stops early, stops when asked, and fails with words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.tiny_models import make_model
from tests.workers.tiny_runs import STEPS, Recorder, digest_of, make_rows, run
from wegeft.contracts.errors import InvalidData, InvalidTensors, LossNotFinite, TargetsNotFound
from wegeft.method import adapter_state_dict
from workers.rows import Row
from workers.train import TrainingStopped


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return make_rows()


def test_training_lowers_both_losses_and_tells_every_step(rows: list[Row]) -> None:
    outcome, recorder = run(rows, max_steps=30)
    assert [event.step for event in recorder.progress] == list(range(1, 31))
    assert recorder.progress[-1].loss < 0.5 * recorder.progress[0].loss
    assert [event.step for event in recorder.evaluations] == [0, 30]
    assert recorder.evaluations[1].loss < 0.8 * recorder.evaluations[0].loss
    assert outcome.metrics["eval_loss"] == recorder.evaluations[1].loss
    assert outcome.metrics["eval_loss_before"] == recorder.evaluations[0].loss
    assert outcome.metrics["train_loss"] == pytest.approx(sum(event.loss for event in recorder.progress[-3:]) / 3)
    assert outcome.metrics["lora_equivalent_parameters"] > outcome.metrics["trainable_parameters"] > 0
    assert any("8 rows to train on" in text and "4 rows held out" in text for text in recorder.texts)


def test_only_the_adapter_changes(rows: list[Row]) -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    outcome, _ = run(rows, model=model)
    after = outcome.model.get_base_model().state_dict()
    plain = {name.replace(".base_layer", ""): tensor for name, tensor in after.items() if "wegeft_" not in name}
    assert {name for name in before if not torch.equal(before[name], plain[name])} == set()
    assert all(tensor.abs().sum() > 0 for tensor in adapter_state_dict(outcome.model).values())


def test_a_seed_decides_everything(rows: list[Row]) -> None:
    first, second, other = run(rows)[0], run(rows)[0], run(rows, seed=1)[0]
    assert digest_of(first) == digest_of(second) != digest_of(other)


def test_the_step_loss_is_the_mean_over_its_answer_tokens_however_it_is_cut(rows: list[Row]) -> None:
    whole = run(rows, micro_batch_size=4, gradient_accumulation_steps=1, max_steps=6)[1].progress
    cut = run(rows, micro_batch_size=1, gradient_accumulation_steps=4, max_steps=6)[1].progress
    assert [event.loss for event in cut] == pytest.approx([event.loss for event in whole], rel=1e-4)
    assert [event.gradient_norm for event in cut] == pytest.approx([event.gradient_norm for event in whole], rel=1e-3)


def test_adamw_and_clipping_are_those_of_torch(rows: list[Row]) -> None:
    """One step by hand, on the gradient of the model's own loss."""
    outcome, recorder = run(rows, max_steps=1, warmup_steps=0, micro_batch_size=4, gradient_accumulation_steps=1, max_grad_norm=0.1)
    trained = adapter_state_dict(outcome.model)
    fresh, _ = run(rows, max_steps=1, learning_rate=1e-30, warmup_steps=0)
    started = adapter_state_dict(fresh.model)
    moved = {name: (trained[name] - started[name]).abs().max().item() for name in trained if name.endswith("phi")}
    # Adam's first step moves every entry with a gradient by the learning rate, whatever the gradient's size.
    assert all(distance == pytest.approx(0.01, rel=1e-3) for distance in moved.values())
    assert recorder.progress[0].learning_rate == 0.01


@pytest.mark.parametrize("early", [False, True])
def test_resuming_after_any_step_ends_in_the_same_bytes(rows: list[Row], early: bool) -> None:
    fields: dict[str, Any] = {"save_steps": 1, "eval_steps": 2}
    if early:
        fields["early_stopping_patience"] = 3
    whole, recorder = run(rows, **fields)
    assert sorted(recorder.saved) == list(range(1, STEPS + 1))
    for step, checkpoint in recorder.saved.items():
        torch.manual_seed(step)  # What another process would have drawn must not matter.
        resumed, after = run(rows, checkpoint=checkpoint, **fields)
        assert digest_of(resumed) == digest_of(whole), step
        assert [event.step for event in after.progress] == list(range(step + 1, STEPS + 1))
        assert [(m.step, m.loss) for m in resumed.state.measurements] == [(m.step, m.loss) for m in whole.state.measurements]
        assert [point.loss for point in resumed.state.history] == [point.loss for point in whole.state.history]
        assert resumed.metrics["eval_loss_before"] == whole.metrics["eval_loss_before"]


@pytest.mark.parametrize("step", range(STEPS))
def test_stopping_after_any_step_and_resuming_ends_in_the_same_bytes(rows: list[Row], step: int) -> None:
    whole, _ = run(rows, has_held_out=False)
    stopped = Recorder(stop_after=step)
    with pytest.raises(TrainingStopped):
        run(rows, stopped, save_steps=3, has_held_out=False)
    assert len(stopped.progress) == step
    checkpoint = stopped.saved[max(stopped.saved)] if stopped.saved else None
    assert digest_of(run(rows, checkpoint=checkpoint, has_held_out=False)[0]) == digest_of(whole)


def test_a_checkpoint_that_names_its_base_model_as_formerly_goes_on(rows: list[Row]) -> None:
    """Folders were named by their configuration's digest before they were by their weights'; no other name will do."""
    whole, recorder = run(rows, save_steps=4)
    files, former = recorder.saved[4], "tiny@sha256:" + "0" * 64
    old = {**files, "state.json": json.dumps(json.loads(files["state.json"]) | {"base_model": former}).encode()}
    resumed, _ = run(rows, checkpoint=old, former_identity=former, save_steps=4)
    assert digest_of(resumed) == digest_of(whole)
    for other in (None, "tiny@sha256:" + "1" * 64):
        with pytest.raises(InvalidTensors, match="other data, settings or base model"):
            run(rows, checkpoint=old, former_identity=other, save_steps=4)


def test_a_checkpoint_holds_no_pickle(rows: list[Row]) -> None:
    _, recorder = run(rows, save_steps=4)
    files = recorder.saved[4]
    assert sorted(files) == ["state.json", "state.safetensors"]
    assert json.loads(files["state.json"])["step"] == 4
    kinds = {name.partition(".")[0] for name in safetensors.torch.load(files["state.safetensors"])}
    assert kinds == {"adapter", "optimizer", "random"}


def test_checkpoints_are_saved_by_time(rows: list[Row]) -> None:
    # A step reads the clock three times, so five seconds pass between checks at every second step.
    _, recorder = run(rows, save_every="5s")
    assert 1 < len(recorder.saved) < STEPS


BROKEN: list[tuple[str, Callable[[dict[str, bytes]], dict[str, bytes]], str]] = [
    ("no numbers", lambda files: {"state.safetensors": files["state.safetensors"]}, "numbers cannot be read"),
    ("no tensors", lambda files: {"state.json": files["state.json"]}, "tensors cannot be read"),
    ("cut tensors", lambda files: {**files, "state.safetensors": files["state.safetensors"][:-9]}, "tensors cannot be read"),
    ("odd numbers", lambda files: {**files, "state.json": b'{"step": "x"}'}, "numbers cannot be read"),
]


@pytest.mark.parametrize(("name", "change", "message"), BROKEN)
def test_a_broken_checkpoint_is_refused(rows: list[Row], name: str, change: Any, message: str) -> None:
    _, recorder = run(rows, save_steps=4)
    with pytest.raises(InvalidTensors, match=message):
        run(rows, checkpoint=change(recorder.saved[4]))


@pytest.mark.parametrize("fields", [{"seed": 1}, {"micro_batch_size": 1}, {"sequence_len": 26}])
def test_a_checkpoint_of_another_run_is_refused(rows: list[Row], fields: dict[str, Any]) -> None:
    _, recorder = run(rows, save_steps=4)
    with pytest.raises(InvalidTensors, match="other data, settings or base model"):
        run(rows, checkpoint=recorder.saved[4], **fields)


def test_a_checkpoint_of_another_rank_is_refused(rows: list[Row]) -> None:
    _, recorder = run(rows, save_steps=4)
    with pytest.raises(InvalidTensors, match="of another adapter"):
        run(rows, checkpoint=recorder.saved[4], rank=2)


def test_early_stopping_keeps_the_best_adapter(rows: list[Row]) -> None:
    outcome, recorder = run(rows, max_steps=60, learning_rate=0.3, warmup_steps=0, eval_steps=1, early_stopping_patience=4)
    steps = [event.step for event in recorder.evaluations]
    best = min(recorder.evaluations[1:], key=lambda event: event.loss)
    assert outcome.state.step == best.step + 4 < 60
    assert steps == [*range(best.step + 5), best.step]
    assert (outcome.metrics["eval_loss"], outcome.metrics["steps"]) == (best.loss, best.step + 4)
    again, _ = run(rows, max_steps=60, learning_rate=0.3, warmup_steps=0, eval_steps=1, save_steps=best.step, early_stopping_patience=60)
    assert again.after is not None
    assert digest_of(outcome) == digest_of(again) or again.after.loss < best.loss
    assert any(f"keeping the adapter of step {best.step}" in text for text in recorder.texts)


def test_the_last_adapter_is_kept_without_early_stopping(rows: list[Row]) -> None:
    outcome, recorder = run(rows, eval_steps=3)
    assert [event.step for event in recorder.evaluations] == [0, 3, 6, 8]
    assert outcome.after is not None
    assert outcome.after.step == STEPS


def test_a_measurement_is_not_made_twice(rows: list[Row]) -> None:
    assert [event.step for event in run(rows, eval_steps=4)[1].evaluations] == [0, 4, 8]


def test_answers_are_counted_before_and_after_only(rows: list[Row]) -> None:
    wanted = {"exact_match": True, "max_new_tokens": 4, "samples": 2, "max_rows": 3}
    outcome, recorder = run(rows, max_steps=40, eval_steps=20, evaluation=wanted)
    assert [event.exact_match is not None for event in recorder.evaluations] == [True, False, False, True]
    assert outcome.metrics["exact_match_before"] == 0.0
    last = recorder.evaluations[-1]
    assert [sample.prompt for sample in last.samples] == ["say 3", "say 4"]
    assert [sample.expected for sample in last.samples] == ["aaa", "b"]
    assert outcome.metrics["exact_match"] == last.exact_match


def test_without_held_out_rows_nothing_is_measured(rows: list[Row]) -> None:
    outcome, recorder = run(rows, has_held_out=False)
    assert recorder.evaluations == []
    assert outcome.before is outcome.after is None
    assert "eval_loss" not in outcome.metrics


def test_a_share_of_the_training_rows_can_be_held_out(rows: list[Row]) -> None:
    outcome, recorder = run(rows, has_held_out=False, val_set_size=0.25)
    assert recorder.evaluations[0].rows == 2
    assert outcome.after is not None


def test_logging_steps_thin_the_progress_but_not_the_end(rows: list[Row]) -> None:
    assert [event.step for event in run(rows, logging_steps=3)[1].progress] == [3, 6, 8]


def test_epochs_are_told(rows: list[Row]) -> None:
    outcome, recorder = run(rows, max_steps=None, num_epochs=1.5)
    assert [event.epoch for event in recorder.progress] == [0.5, 1.0, 1.5]
    assert outcome.metrics["epochs"] == 1.5


def test_a_request_to_stop_is_heard_between_micro_batches(rows: list[Row]) -> None:
    recorder = Recorder()
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(len(recorder.progress))
        return len(asked) == 6

    recorder.should_stop = should_stop  # type: ignore[method-assign]
    with pytest.raises(TrainingStopped):
        run(rows, recorder, has_held_out=False)
    assert asked == [0, 0, 1, 1, 2, 2]


def poisoned() -> Any:
    model = make_model()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = torch.nan
    return model


def test_a_loss_that_is_no_number_fails_before_anything_is_saved(rows: list[Row]) -> None:
    recorder = Recorder()
    with pytest.raises(LossNotFinite) as caught:
        run(rows, recorder, model=poisoned(), has_held_out=False, save_steps=1)
    assert recorder.saved == {}
    (problem,) = caught.value.problems
    assert (problem.path, problem.value) == ("step 1", "nan")
    assert "at a learning rate of 0.01" in problem.message
    assert "learning_rate" in (problem.hint or "")


def test_a_base_model_that_overflows_is_told_before_the_first_step(rows: list[Row]) -> None:
    with pytest.raises(LossNotFinite, match="after 0 steps"):
        run(rows, model=poisoned())


def test_a_gradient_that_is_no_number_fails_too(rows: list[Row]) -> None:
    model = make_model()
    model.model.layers[0].mlp.down_proj.register_full_backward_hook(lambda _module, inputs, _outputs: (inputs[0] * torch.inf,))
    with pytest.raises(LossNotFinite, match="the gradient became nan at step 1"):
        run(rows, model=model, has_held_out=False)


def test_targets_that_match_nothing_are_refused(rows: list[Row]) -> None:
    with pytest.raises(TargetsNotFound):
        run(rows, target_modules=["nothing_proj"])


def test_problems_of_both_splits_come_together(rows: list[Row]) -> None:
    with pytest.raises(InvalidData) as caught:
        run(rows, sequence_len=8, excess_length_strategy="error")
    assert {problem.path.partition(" ")[0] for problem in caught.value.problems} == {"datasets", "test_datasets"}


def test_gradient_checkpointing_changes_nothing_but_memory(rows: list[Row]) -> None:
    plain, checkpointed = run(rows)[1].progress, run(rows, gradient_checkpointing=True)[1].progress
    assert [event.loss for event in checkpointed] == pytest.approx([event.loss for event in plain], rel=1e-5)


def test_cut_and_dropped_rows_are_told(rows: list[Row], tmp_path: Path) -> None:
    _, recorder = run(rows, sequence_len=26, max_steps=1)
    assert any("rows were cut to 26 tokens" in text or "rows were left out" in text for text in recorder.texts)


def test_every_measurement_tells_perplexity_and_token_accuracy(rows: list[Row]) -> None:
    outcome, recorder = run(rows, max_steps=30)
    before, after = recorder.evaluations
    assert before.metrics["perplexity"] == pytest.approx(math.exp(before.loss))
    assert before.metrics["token_accuracy"] < after.metrics["token_accuracy"] == outcome.metrics["token_accuracy"] <= 1
    assert outcome.metrics["perplexity_before"] == before.metrics["perplexity"]


def test_answers_are_matched_as_the_job_asks(rows: list[Row]) -> None:
    evaluation = {"exact_match": True, "match": "regex", "regex": "^", "max_new_tokens": 2}
    assert run(rows, max_steps=1, evaluation=evaluation)[0].metrics["exact_match"] == 1.0
    with pytest.raises(InvalidData, match="the expected answer has no number"):
        run(rows, max_steps=1, evaluation={"exact_match": True, "match": "last_number"})


def test_early_stopping_can_go_by_another_metric(rows: list[Row]) -> None:
    fields = {"max_steps": 40, "learning_rate": 0.3, "warmup_steps": 0, "eval_steps": 1, "early_stopping_patience": 3}
    outcome, recorder = run(rows, metric_for_best_model="token_accuracy", **fields)
    best = max(recorder.evaluations[1:], key=lambda event: event.metrics["token_accuracy"])
    assert outcome.metrics["token_accuracy"] == best.metrics["token_accuracy"]
    assert outcome.state.best is not None
    assert outcome.state.best.step == best.step
