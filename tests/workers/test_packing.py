"""Packed sequences: what they hold, that their rows never meet, and that a job trains on them as on the rows alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny_models import make_model
from tests.workers.test_layout import CPU, PREFIX, chat_like, example, other_model
from tests.workers.tiny_runs import digest_of, make_rows, run
from wegeft.contracts.errors import InvalidJob
from workers.answer_loss import AnswerLoss
from workers.batches import BatchPlan
from workers.layout import Packing, find_layout, pack, pad
from workers.packing import fill_bins
from workers.segments import Segments, attend
from workers.tokenization import Example

lengths = st.lists(st.integers(1, 50), min_size=1, max_size=60).map(tuple)
capacities = st.integers(50, 120)


@given(lengths=lengths, capacity=capacities, window=st.integers(1, 70), data=st.data())
def test_every_row_is_in_one_bin_and_none_overflows(lengths: tuple[int, ...], capacity: int, window: int, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(lengths))))
    bins = fill_bins(lengths, order, capacity, window)
    assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in rows) <= capacity for rows in bins)


@given(lengths=lengths, capacity=capacities)
def test_no_two_bins_could_have_been_one(lengths: tuple[int, ...], capacity: int) -> None:
    totals = sorted(sum(lengths[row] for row in rows) for rows in fill_bins(lengths, range(len(lengths)), capacity))
    assert len(totals) < 2 or totals[0] + totals[1] > capacity


def test_best_fit_decreasing_by_hand() -> None:
    assert fill_bins((3, 5, 4, 2, 6), (0, 1, 2, 3, 4), 10) == ((4, 2), (1, 0, 3))


def test_long_tailed_rows_leave_little_room() -> None:
    random = np.random.default_rng(0)
    rows = np.clip(random.lognormal(5, 1, 5000), 8, 2048).astype(int).tolist()
    bins = fill_bins(rows, random.permutation(5000).tolist(), 2048)
    assert sum(rows) / (2048 * len(bins)) > 0.98


@given(lengths=lengths, capacity=capacities, micro=st.integers(1, 4), accumulation=st.integers(1, 3), epoch=st.integers(0, 2))
def test_an_epoch_visits_each_packed_row_once(lengths: tuple[int, ...], capacity: int, micro: int, accumulation: int, epoch: int) -> None:
    plan = BatchPlan(lengths, micro, accumulation, 3, capacity)
    steps = [plan.step(epoch * plan.steps_per_epoch + number) for number in range(plan.steps_per_epoch)]
    passes = [rows for step in steps for rows in step]
    assert sorted(row for rows in passes for row in rows) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in rows) <= micro * capacity for rows in passes)
    assert all(len(step) == accumulation for step in steps[:-1])
    assert plan.total_steps(2, None) == 2 * len(steps)


def test_a_packed_plan_is_another_plan() -> None:
    plans = [BatchPlan((5,) * 40, 2, 1, 0, capacity) for capacity in (None, 20, 21)]
    assert len({plan.fingerprint for plan in plans}) == 3
    assert plans[1].step(0) != plans[1].step(plans[1].steps_per_epoch)


def mixed_rows(seed: int = 0) -> list[Example]:
    """Return rows of 2 to 40 tokens that begin differently."""
    random = np.random.default_rng(seed)
    tokens = [random.integers(3, 300, count).tolist() for count in (2, 40, 7, 23, 11)]
    return [example([10 + number, *row[1:]], list(range(1, len(row), 2))) for number, row in enumerate(tokens)]


KINDS = [
    ("llama", "sdpa", Packing.SEGMENTS),
    ("llama", "sdpa", Packing.POSITIONS),
    ("llama", "eager", Packing.MASK),
    ("qwen2", "sdpa", Packing.SEGMENTS),
    ("gpt2", "sdpa", Packing.SEGMENTS),
    ("gpt2", "eager", Packing.MASK),
    ("gemma2", "eager", Packing.MASK),
]


def prepared_model(name: str, attention: str, packing: Packing) -> Any:
    model = (make_model() if name == "llama" else other_model(name)).double()
    model.set_attn_implementation(attention)
    if packing is not Packing.POSITIONS:
        assert find_layout(model, AnswerLoss(model), chat_like()).packing is packing
    return model


@pytest.mark.parametrize("rows", [mixed_rows(), chat_like()], ids=["unlike", "alike"])
@pytest.mark.parametrize(("name", "attention", "packing"), KINDS)
def test_packed_rows_have_the_loss_and_gradients_of_rows_alone(name: str, attention: str, packing: Packing, rows: list[Example]) -> None:
    model = prepared_model(name, attention, packing)
    model.get_output_embeddings().weight.requires_grad_(requires_grad=False)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss = AnswerLoss(model)
    alone = torch.stack([loss(pad([row], CPU)) for row in rows]).sum()
    packed = loss(pack(rows, CPU, torch.float64, packing))
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=0)
    pairs = zip(*(torch.autograd.grad(total, learning, allow_unused=True) for total in (alone, packed)), strict=True)
    for one, two in pairs:
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5 * one.abs().max().item())


@pytest.mark.parametrize(("name", "attention", "packing"), KINDS)
def test_a_changed_row_changes_no_other(name: str, attention: str, packing: Packing) -> None:
    model = prepared_model(name, attention, packing)
    rows = mixed_rows()
    changed = [*rows[:1], example((rows[1].tokens[::-1]).tolist(), [39]), *rows[2:]]

    def logits(examples: list[Example]) -> torch.Tensor:
        batch = pack(examples, CPU, torch.float64, packing)
        given = {} if batch.segments is None else {"segments": batch.segments}
        with torch.no_grad():
            result = model(input_ids=batch.tokens, attention_mask=batch.mask, position_ids=batch.places, use_cache=False, **given)
        return torch.as_tensor(result.logits[0])

    one, two = logits(rows), logits(changed)
    assert torch.equal(one[:2], two[:2])
    assert torch.equal(one[42:], two[42:])
    assert not torch.allclose(one[2:42], two[2:42])


def test_attention_is_dense_attention_with_the_rows_apart() -> None:
    """Against softmax over an explicit mask in float64, with a shared beginning, grouped queries and one-token rows."""
    torch.manual_seed(0)
    segments = Segments(prefix=3, rests=(4, 1, 2))
    module = torch.nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment] # transformers sets plain numbers on modules
    query, key, value = (torch.randn(1, heads, 10, 8, dtype=torch.float64) for heads in (4, 2, 2))
    owners = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 3, 3])
    may_see = ((owners == 0) | (owners == owners[:, None])).tril()
    scores = query @ key.repeat_interleave(2, dim=1).transpose(2, 3) / 8**0.5
    dense = scores.masked_fill(~may_see, -torch.inf).softmax(-1) @ value.repeat_interleave(2, dim=1)
    output, _ = attend(module, query, key, value, None, segments=segments)
    torch.testing.assert_close(output, dense.transpose(1, 2))
    assert segments.pairs == 9 + 4 * 7 + 4 + 2 * 5


@pytest.mark.parametrize("name", ["bloom", "mamba"])
def test_a_model_that_mixes_rows_up_is_told(name: str) -> None:
    model = other_model(name)
    own = model.config._attn_implementation
    with pytest.raises(InvalidJob, match="would see each other") as told:
        find_layout(model, AnswerLoss(model), chat_like()).require_packing(100)
    assert told.value.problems[0].path == "sample_packing"
    assert model.config._attn_implementation == own


def test_a_mask_of_too_many_pairs_is_refused() -> None:
    model = make_model()
    model.set_attn_implementation("eager")
    layout = find_layout(model, AnswerLoss(model), chat_like())
    layout.require_packing(4096)
    with pytest.raises(InvalidJob, match="up to 4,097 tokens"):
        layout.require_packing(4097)


def test_a_job_on_packed_rows_takes_the_steps_of_the_same_rows_unpacked() -> None:
    fields: dict[str, Any] = {"max_steps": 3, "gradient_accumulation_steps": 1}
    unpacked = run(make_rows(), micro_batch_size=8, **fields)[1]
    packed = run(make_rows(), sample_packing=True, sequence_len=64, micro_batch_size=8, **fields)[1]
    assert any("packed into" in text for text in packed.texts)
    for one, two in zip(unpacked.progress, packed.progress, strict=True):
        assert two.loss == pytest.approx(one.loss, rel=1e-5)
        assert two.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-4)


def test_epochs_and_steps_count_packed_sequences() -> None:
    outcome, recorder = run(make_rows(), sample_packing=True, sequence_len=96, max_steps=None, num_epochs=2, micro_batch_size=1)
    text = next(text for text in recorder.texts if "packed into" in text)
    sequences = int(text.split()[2])
    assert 1 < sequences < 8
    assert outcome.total_steps == 2 * -(-sequences // 2)
    assert outcome.epochs == 2


def test_a_packed_job_resumes_to_the_same_bytes() -> None:
    fields: dict[str, Any] = {"sample_packing": True, "sequence_len": 64, "max_steps": 5, "save_steps": 2, "has_held_out": False}
    whole, recorder = run(make_rows(), **fields)
    for step in (2, 4):
        resumed, _ = run(make_rows(), checkpoint=recorder.saved[step], **fields)
        assert digest_of(resumed) == digest_of(whole)


def test_recomputed_activations_keep_rows_apart_too() -> None:
    fields: dict[str, Any] = {"sample_packing": True, "sequence_len": 64, "max_steps": 2, "has_held_out": False}
    kept, recomputed = (run(make_rows(), gradient_checkpointing=is_on, **fields)[1].progress for is_on in (False, True))
    assert [point.loss for point in kept] == [point.loss for point in recomputed]
    assert kept[0].gradient_norm == recomputed[0].gradient_norm


def test_shared_beginnings_are_read_once() -> None:
    batch = pack(chat_like(), CPU, torch.float32, Packing.SEGMENTS)
    assert batch.segments is not None
    assert batch.segments.prefix == len(PREFIX)
    assert batch.tokens.shape[1] == batch.segments.prefix + sum(batch.segments.rests)
