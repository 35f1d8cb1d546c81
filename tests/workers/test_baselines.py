"""Every method of the list on a real, tiny model: it learns, is saved, loaded by PEFT alone, resumed, and taken by the hub's gate."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from hub.objects import MemoryStore
from hub.validate import AdapterFacts, check_version
from tests.tiny_models import make_model, make_tokenizer
from tests.workers.tiny_runs import Recorder, make_rows, run, spec_of
from wegeft.contracts.adapter import FileEntry, digest_of
from wegeft.contracts.errors import InvalidAdapterConfig, InvalidJob, TargetsNotFound
from wegeft.contracts.job import JobSpec
from wegeft.contracts.methods import METHODS, Method
from workers.adaptation import config_of
from workers.base_model import BaseModel
from workers.delivery import write_files
from workers.train import Outcome

pytestmark = pytest.mark.filterwarnings(
    "ignore:Failed to load the CUDA extension",
    "ignore:Setting boft_n",
    "ignore:The following rank_pattern keys",
    "ignore:Found missing adapter keys.*randlora_[AB]",
)

STEPS = 4
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS, "save_steps": 2, "warmup_steps": 0, "micro_batch_size": 8, "gradient_accumulation_steps": 1, "rank": None,
    "learning_rate": 0.02, "lr_scheduler": "constant",
}  # fmt: skip
RATES = {Method.VERA: 0.2, Method.VBLORA: 0.2, Method.FOURIERFT: 0.2, Method.C3A: 0.2, Method.HIRA: 0.2, Method.DELORA: 0.002}
"""Learning rates of methods whose numbers are small, or large, beside what they change; 0.02 for the others."""
TOKENS = torch.tensor([[1, 20, 30, 40, 50], [1, 60, 70, 80, 90]])


@dataclass(frozen=True)
class Trained:
    outcome: Outcome
    recorder: Recorder
    spec: JobSpec


@cache
def trained(method: Method) -> Trained:
    fields = SETTINGS | {"method": method, "learning_rate": RATES.get(method, 0.02)}
    outcome, recorder = run(make_rows(), has_held_out=False, **fields)
    return Trained(outcome, recorder, spec_of(**fields))


def write(method: Method, folder: Path) -> dict[str, Any]:
    base = BaseModel(model=None, tokenizer=make_tokenizer(), identity="tiny@1", commit=None, license=None)
    write_files(trained(method).spec, base, trained(method).outcome, folder)
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return config


def check_files(folder: Path) -> AdapterFacts:
    store, entries = MemoryStore(), []
    for path in folder.iterdir():
        body = path.read_bytes()
        store.put(digest_of(body), io.BytesIO(body))
        entries.append(FileEntry(path=path.name, digest=digest_of(body), size=len(body)))
    return check_version(store, tuple(entries))


@pytest.mark.parametrize("method", list(Method))
def test_it_learns(method: Method) -> None:
    outcome, losses = trained(method).outcome, [event.loss for event in trained(method).recorder.progress]
    assert losses[-1] < 0.99 * losses[0]
    assert outcome.trainable_parameters == sum(p.numel() for p in outcome.model.parameters() if p.requires_grad) > 0
    assert ("lora_equivalent_parameters" in outcome.metrics) == (method is Method.WEGEFT)
    assert any(text.startswith(f"{method}: {outcome.trainable_parameters:,} numbers") for text in trained(method).recorder.texts)


@pytest.mark.parametrize("method", list(Method))
def test_peft_alone_loads_what_is_published(method: Method, tmp_path: Path) -> None:
    write(method, tmp_path)
    loaded = PeftModel.from_pretrained(make_model(), tmp_path)
    with torch.no_grad():
        wanted = trained(method).outcome.model(TOKENS).logits
        found = loaded(TOKENS).logits
        # AdaLoRA's masked rows are left out of its file, so sums are taken in another order.
        assert torch.allclose(found, wanted, rtol=0, atol=1e-5 if method is Method.ADALORA else 0)
        assert not torch.allclose(found, make_model()(TOKENS).logits, atol=1e-3)


@pytest.mark.parametrize("method", list(Method))
def test_a_resumed_run_ends_in_the_same_numbers(method: Method) -> None:
    first = trained(method)
    fields = SETTINGS | {"method": method, "learning_rate": RATES.get(method, 0.02)}
    outcome, recorder = run(make_rows(), checkpoint=first.recorder.saved[2], has_held_out=False, **fields)
    assert [event.step for event in recorder.progress] == [3, 4]
    before, after = first.outcome.model.state_dict(), outcome.model.state_dict()
    assert before.keys() == after.keys()
    assert {name for name in before if not torch.equal(before[name], after[name])} == set()


@pytest.mark.parametrize("method", list(Method))
def test_the_hub_takes_it_and_knows_the_method(method: Method, tmp_path: Path) -> None:
    write(method, tmp_path)
    facts = check_files(tmp_path)
    assert (facts.method, facts.rank) == (str(method), METHODS[method].rank or 0)
    card = (tmp_path / "README.md").read_text()
    assert f"- {method}\n" in card
    assert ("import wegeft.method" in card) == (method is Method.WEGEFT)


def test_random_bases_are_stored_once(tmp_path: Path) -> None:
    write(Method.RANDLORA, tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert [name for name in names if name.endswith(("_A", "_B"))] == ["base_model.randlora_A", "base_model.randlora_B"]
    assert "stored once" in (tmp_path / "README.md").read_text()


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return BaseModel(model=make_model(), tokenizer=make_tokenizer(), identity="tiny@1", commit=None, license=None)


def test_names_of_a_job_become_those_of_each_method(base: BaseModel) -> None:
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3.0}}
    lora = config_of(spec_of(method="dora", rank=4, alpha=6, dropout=0.1, target_modules=["q_proj"], **patterns), base)
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.use_dora, lora.target_modules) == (4, 6, 0.1, True, {"q_proj"})
    assert (lora.rank_pattern, lora.alpha_pattern) == ({"q_proj": 2}, {"q_proj": 3.0})
    vera = config_of(spec_of(method="vera", rank=8, dropout=0.2, seed=7), base)
    assert (vera.r, vera.vera_dropout, vera.projection_prng_key, vera.save_projection) == (8, 0.2, 7, True)
    adalora = config_of(spec_of(method="adalora", rank=4), base, 100)
    assert (adalora.target_r, adalora.init_r, adalora.total_step, adalora.tinit, adalora.tfinal) == (4, 6, 100, 10, 30)
    assert config_of(spec_of(method="ia3", rank=None), base).feedforward_modules == {"down_proj"}
    left = config_of(spec_of(method="lora", exclude_modules=["k_proj", "mlp.up_proj"], layers_to_transform=[1]), base)
    assert left.target_modules == {f"model.layers.1.{name}" for name in (
        "self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj",
    )}  # fmt: skip
    assert config_of(spec_of(method="lora", modules_to_save=["lm_head"]), base).modules_to_save == ["lm_head"]


def test_wegefts_own_options_reach_it(base: BaseModel) -> None:
    fields: dict[str, Any] = {
        "tied_modules": [["q_proj", "k_proj"], ["up_proj"]], "transform": "input", "init_weights": "psi_zero", "weight_dropout": 0.1,
        "dropout": 0.2, "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"down_proj": 1.0}, "exclude_modules": ["o_proj"],
        "layers_to_transform": [0], "modules_to_save": ["lm_head"],
    }  # fmt: skip
    config = config_of(spec_of(**fields), base)
    assert config.tied_modules == [["q_proj", "k_proj"], ["up_proj"]]
    assert (config.init_weights, config.weight_dropout, config.input_dropout) == ("psi_zero", 0.1, 0.2)
    assert (config.rank_pattern, config.alpha_pattern) == ({"down_proj": 2}, {"down_proj": 1.0})
    assert (config.exclude_modules, config.layers_to_transform, config.modules_to_save) == ({"o_proj"}, [0], ["lm_head"])
    assert config_of(spec_of(tied_modules="module_type"), base).tied_modules == "type"
    assert config_of(spec_of(tied_modules="width", transform="output"), base).transform == "output"


def test_a_wegeft_job_with_options_is_published_and_loaded(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "max_steps": 2, "tied_modules": [["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]], "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {"down_proj": 4.0}, "init_weights": "orthogonal", "weight_dropout": 0.1, "dropout": 0.1,
        "modules_to_save": ["norm"],
    }  # fmt: skip
    outcome, _ = run(make_rows(), has_held_out=False, **fields)
    base = BaseModel(model=None, tokenizer=make_tokenizer(), identity="tiny@1", commit=None, license=None)
    write_files(spec_of(**fields), base, outcome, tmp_path)
    assert check_files(tmp_path).method == "wegeft"
    with torch.no_grad():
        assert torch.equal(PeftModel.from_pretrained(make_model(), tmp_path)(TOKENS).logits, outcome.model(TOKENS).logits)


@pytest.mark.parametrize(
    ("fields", "chosen"),
    [
        ({"method": "oft"}, {"oft_block_size": 32}),
        ({"method": "oft", "block_size": 64, "target_modules": ["q_proj"]}, {"oft_block_size": 64}),
        ({"method": "boft"}, {"boft_block_size": 4}),
        ({"method": "road", "target_modules": ["q_proj", "v_proj"]}, {"group_size": 32}),
        ({"method": "vblora"}, {"vector_length": 32}),
    ],
)
def test_blocks_divide_every_width(base: BaseModel, fields: dict[str, Any], chosen: dict[str, int]) -> None:
    config = config_of(spec_of(**({"rank": None} | fields)), base)
    assert {name: getattr(config, name) for name in chosen} == chosen


@pytest.mark.parametrize("method", ["oft", "boft", "road", "c3a", "vblora"])
def test_a_block_that_divides_no_width_is_an_error(base: BaseModel, method: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        config_of(spec_of(method=method, rank=None, block_size=24), base)
    [problem] = caught.value.problems
    assert (problem.path, problem.value) == ("block_size", "24")
    assert "one of: 2, 4, 8, 16, 32" in (problem.hint or "")


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_a_target_that_is_not_there_is_an_error_for_a_baseline_too(base: BaseModel, method: str) -> None:
    with pytest.raises(TargetsNotFound, match="q_prj"):
        config_of(spec_of(method=method, rank=None, target_modules=["q_prj", "v_proj"]), base)


@pytest.mark.parametrize("method", ["lora", "wegeft"])
def test_a_module_to_save_that_is_not_there_is_an_error(base: BaseModel, method: str) -> None:
    with pytest.raises(InvalidJob, match="modules_to_save: matches no module"):
        config_of(spec_of(method=method, modules_to_save=["lm_haed"]), base)


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_matches_no_target_is_an_error(base: BaseModel, field: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        config_of(spec_of(method="lora", target_modules=["q_proj"], **{field: {"q_proj": 2, "v_proj": 3, "k": 1}}), base)
    assert [(problem.path, problem.value) for problem in caught.value.problems] == [(field, "v_proj"), (field, "k")]


def test_sharing_that_does_not_fit_is_told_by_the_method() -> None:
    with pytest.raises(InvalidAdapterConfig, match="differ in width"):
        run(make_rows(), tied_modules=[["q_proj", "down_proj"]])


def test_adalora_needs_steps_to_move_rank() -> None:
    with pytest.raises(InvalidJob, match="max_steps"):
        run(make_rows(), method="adalora", max_steps=1)


def test_what_peft_cannot_adapt_is_an_error_in_words() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=2))
    with pytest.raises(InvalidJob, match="road cannot adapt this base model"):
        run(make_rows(), model=model, method="road", rank=None)


def test_adaloras_budget_reaches_its_target_and_stays_there() -> None:
    """Rank is taken from some layers, the masked rows stay at nought, and what is saved is what is left."""
    outcome, _ = run(make_rows(), has_held_out=False, method="adalora", rank=2, max_steps=12)
    config, layers = outcome.model.peft_config["default"], 14
    counts = [sum(kept) for kept in config.rank_pattern.values()]
    # A layer that lost all its rank keeps one row of nought.
    assert sum(counts) <= 2 * layers + counts.count(1)
    assert len(counts) == layers
    assert min(counts) >= 1
    values = {name: p for name, p in outcome.model.base_model.model.named_parameters() if "lora_E" in name}
    assert all(not values[name][~torch.tensor(kept)].any() for name, kept in config.rank_pattern.items())


def test_adaloras_best_adapter_is_saved_whole_when_it_is_from_before_the_last_cut(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"method": "adalora", "rank": 2, "max_steps": 12, "eval_steps": 1, "early_stopping_patience": 12}
    outcome, _ = run(make_rows(), learning_rate=0.5, **fields)
    base = BaseModel(model=None, tokenizer=make_tokenizer(), identity="tiny@1", commit=None, license=None)
    write_files(spec_of(method="adalora"), base, outcome, tmp_path)
    with torch.no_grad():
        found = PeftModel.from_pretrained(make_model(), tmp_path)(TOKENS).logits
        assert torch.allclose(found, outcome.model(TOKENS).logits, atol=1e-4)


def test_the_penalty_is_that_of_peft() -> None:
    from workers.rank_allocation import allocation_of

    outcome, _ = run(make_rows(), has_held_out=False, method="adalora", rank=2, max_steps=3)
    model = outcome.model
    allocation = allocation_of(model)
    assert allocation is not None
    labelled = model(TOKENS, labels=TOKENS).loss
    plain = model.base_model.model(TOKENS, labels=TOKENS).loss
    assert allocation.penalty().item() == pytest.approx((labelled - plain).item(), rel=1e-4)
