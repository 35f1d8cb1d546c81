"""The benchmarks run, on the smallest of inputs, and what they compare computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import bench
from bench import gpu_step, hostile, linears, packing
from bench.__main__ import claims
from bench.train_step import FORMS, SMOLLM2_135M, STEPS, Step
from wegeft.contracts.adapter import CONFIG_FILE

FOLDER = Path(bench.__file__).parent


def cells(text: str) -> dict[str, list[str]]:
    """Return the rows of the printed table by their first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows[1:]}


def test_every_benchmark_is_listed_with_its_claim() -> None:
    listed = dict(claims())
    assert len(listed) == len(list(FOLDER.glob("[!_]*.py")))
    assert all(claim.endswith((".", ":")) for claim in listed.values())
    assert "padded" in listed["python -m bench.packing"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_a_missing_device_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_step.main([]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks transformers by the old name
def test_fresh_adapters_of_every_form_have_the_loss_of_the_base(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--layers", "1", "--hidden", "128", "--vocabulary", "64", "--length", "8", "--turns", "1"]
    assert gpu_step.main(["--device", "cpu", *sizes]) == 0
    rows = cells(capsys.readouterr().out)
    assert set(rows) == set(gpu_step.GPU_FORMS)
    assert len({row[-1] for row in rows.values()}) == 1


def test_the_share_of_the_peak_counts_each_weight_twice_and_attention_thrice() -> None:
    arguments = gpu_step.parsed(["--device", "cpu", "--layers", "2", "--hidden", "128", "--vocabulary", "64"])
    weights = 2 * (4 * 128 * 128 + 3 * 128 * 448) + 64 * 128
    scores = 3 * 2 * (2 * 2 * 128 * 10 / 2)
    assert gpu_step.needed_flops(gpu_step.base_model(arguments), 3, 10) == 3 * 10 * (2 * 2 * weights + scores)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("learnt", [0.5, 1.0])
def test_all_timed_steps_compute_one_loss(learnt: float) -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 72, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 64}
    base = LlamaForCausalLM(LlamaConfig(**{**SMOLLM2_135M, **small})).requires_grad_(requires_grad=False)
    tokens = torch.randint(0, 64, (2, 10))
    losses = torch.stack([Step(name, base, tokens, learnt).mean_loss() for name in STEPS])
    torch.testing.assert_close(losses, losses[:1].expand(len(STEPS)), rtol=1e-5, atol=0.0)
    labels = tokens.clone()
    labels[:, : round(10 * (1 - learnt))] = -100
    torch.testing.assert_close(losses[0], base(input_ids=tokens, labels=labels).loss, rtol=1e-5, atol=0.0)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_every_layout_of_the_same_rows_has_the_same_loss(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [
        "--layers",
        "1",
        "--vocabulary",
        "64",
        "--rows",
        "8",
        "--median",
        "20",
        "--sequence-len",
        "64",
        "--sequences",
        "1",
        "--turns",
        "1",
    ]
    packing.main([*sizes, "--threads", "1"])
    rows = cells(capsys.readouterr().out)
    assert set(rows) == set(packing.FORMS)
    assert all(float(row[-1]) <= 1e-5 for row in rows.values())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_the_edit_and_its_products_are_timed_for_every_input(capsys: pytest.CaptureFixture[str]) -> None:
    linears.main(["--tokens", "4", "--repetitions", "1"])
    rows = cells(capsys.readouterr().out)
    assert set(rows) == {*FORMS, "products of wegeft_r16", "products of wegeft_r64"}
    assert all(len(row) == len(linears.READERS) + 2 and float(row[-2]) > 0 for row in rows.values())


def test_hostile_files_are_told_from_misread_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """The gate withstands some of the bench's cases; and the bench notices a gate that accepts what PEFT cannot read."""
    findings = hostile.Findings()
    assert hostile.main(["--cases", "150", "--trace", "50"]) == 0
    assert "faults: 0" in capsys.readouterr().out
    sound = hostile.sound_files("LORA")
    wrong = {**hostile.CONFIGS["LORA"], "task_type": "none of theirs"}
    case = hostile.Case(0, "LORA", CONFIG_FILE, json.dumps(wrong).encode(), sound)
    facts = hostile.judge(hostile.Case(0, "LORA", CONFIG_FILE, sound[CONFIG_FILE], sound))
    assert facts is not None
    with TemporaryDirectory() as folder:
        assert "Invalid task type" in hostile.checked_misreadings(case, facts, Path(folder))[0]
        hostile.try_case(case, findings, Path(folder))
    assert findings.verdicts[f"{CONFIG_FILE}: accepted"] == 1
