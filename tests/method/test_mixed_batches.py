"""Rows of one batch, each with its own adapter, in one forward pass."""

import pytest
import torch
from peft import PeftModel

from tests.method.models import IDS, adapted, bert, dense_reference, error, llama, logits, randomise
from wegeft.contracts.errors import InvalidAdapterConfig
from wegeft.method import WeGeFTConfig

ROWS = torch.cat([IDS, IDS.flip(1)])


def three_adapters() -> PeftModel:
    model = adapted(llama(bias=True))
    model.add_adapter("narrow", WeGeFTConfig(r=2, wegeft_alpha=3, target_modules=["q_proj", "up_proj"]))
    model.add_adapter("written", WeGeFTConfig(r=3, wegeft_alpha=3, target_modules=["q_proj", "o_proj"], transform="output"))
    for seed, name in enumerate(("narrow", "written")):
        randomise(model, seed=seed + 5, name=name)
    return model.eval()


def test_each_row_is_edited_by_its_own() -> None:
    model = three_adapters()
    names = ["written", "__base__", "default", "narrow"]
    with torch.no_grad():
        found = model(input_ids=ROWS, adapter_names=names).logits
    for row, name in enumerate(names):
        reference = dense_reference(llama(bias=True), [] if name == "__base__" else [(model, name)])
        assert error(found[row], logits(reference, ROWS[row : row + 1])[0]) < 1e-5, name


def test_each_row_is_judged_by_its_own_head() -> None:
    model = adapted(bert(), modules_to_save=["classifier"])
    model.add_adapter("second", WeGeFTConfig(r=2, target_modules=["query"], modules_to_save=["classifier"]))
    randomise(model, seed=8, name="second")
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["second"].weight.mul_(-2)
        found = model.eval()(input_ids=ROWS, adapter_names=["second", "default", "second", "__base__"]).logits
    for row, name in enumerate(["second", "default", "second"]):
        model.set_adapter(name)
        assert error(found[row], logits(model, ROWS[row : row + 1])[0]) < 1e-5, name
    with model.disable_adapter():
        assert error(found[3], logits(model, ROWS[3:])[0]) < 1e-5


def test_hooks_are_gone_after_the_call() -> None:
    model = three_adapters()
    before = logits(model)
    model(input_ids=IDS, adapter_names=["narrow", "narrow"])
    assert torch.equal(logits(model), before)


def test_beams_repeat_the_names() -> None:
    model = three_adapters()
    names = ["narrow", "__base__"]
    options = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False, "pad_token_id": 0}
    mixed = model.generate(input_ids=IDS, adapter_names=names, **options)
    model.set_adapter("narrow")
    alone = model.generate(input_ids=IDS[:1], **options)[0]
    assert torch.equal(mixed[0, : len(alone)], alone)
    with model.disable_adapter():
        base = model.generate(input_ids=IDS[1:], **options)[0]
    assert torch.equal(mixed[1, : len(base)], base)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["nobody", "default"], "no such adapter: nobody"), (["default"], "1 entries for a batch of 2")],
)
def test_names_that_do_not_fit_are_refused(names: list[str], message: str) -> None:
    model = three_adapters()
    with pytest.raises(InvalidAdapterConfig, match=message):
        model(input_ids=IDS, adapter_names=names)
    assert logits(model).isfinite().all()


def test_not_while_training_nor_merged() -> None:
    model = three_adapters()
    model.merge_adapter()
    with pytest.raises(InvalidAdapterConfig, match="needs unmerged adapters"):
        model(input_ids=IDS, adapter_names=["default", "narrow"])
    model.unmerge_adapter()
    model.train()
    with pytest.raises(InvalidAdapterConfig, match="while training"):
        model(input_ids=IDS, adapter_names=["default", "narrow"])
