"""Which layers share a generator, that the choice is checked, and that sharing an input changes nothing but the time."""

from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from tests.method.models import IDS, LINEARS, adapted, bert, dense_reference, error, gradients, llama, logits, trainable
from wegeft.contracts.errors import InvalidAdapterConfig
from wegeft.method import WeGeFTConfig, WeGeFTLinear, plan_groups
from wegeft.method.shared_input import SharedInput, sibling_names

GROUPS: list[tuple[Any, set[str]]] = [
    ("type", set(LINEARS)),
    ("width", {"width32", "width48"}),
    ([["q_proj", "k_proj", "v_proj"]], {"k_proj+q_proj+v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ([[r"model\.layers\.0\..*\.[qk]_proj"]], {"k_proj+q_proj", *LINEARS}),
    ([["layers.0.self_attn.q_proj"], ["o_proj", "gate_proj"]], {"q_proj@1", "gate_proj+o_proj", *LINEARS} - {"o_proj", "gate_proj"}),
]


def keys(model: nn.Module, **options: Any) -> set[str]:
    return {group.key for group in plan_groups(model, WeGeFTConfig(target_modules="all-linear", **options))}


@pytest.mark.parametrize(("tied", "expected"), GROUPS)
def test_groups(tied: Any, expected: set[str]) -> None:
    assert keys(llama(), tied_modules=tied) == expected


def test_each_layer_its_own() -> None:
    groups = plan_groups(llama(), WeGeFTConfig(target_modules="all-linear", tied_modules="layer"))
    assert len(groups) == 14
    assert all(group.members == (group.key,) for group in groups)


EVERY_SHARING = [*({"tied_modules": tied} for tied, _ in GROUPS), {"tied_modules": "layer"}]
OUTPUT_SHARING = [
    {"tied_modules": tied, "transform": "output"} for tied in ("type", "width", "layer", [["q_proj", "o_proj"], ["gate_proj", "up_proj"]])
]


@pytest.mark.parametrize("options", [*EVERY_SHARING, *OUTPUT_SHARING])
def test_every_sharing_equals_the_dense_reference(options: dict[str, Any]) -> None:
    model = adapted(llama(bias=True), **options)
    expected = logits(dense_reference(llama(bias=True), [model]))
    assert error(logits(model), expected) < 1e-5
    assert error(model(input_ids=IDS).logits, expected) < 1e-5


def unfused(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(WeGeFTLinear, "is_fusible", lambda *_: False)
        return gradients(model)


@pytest.mark.parametrize("options", EVERY_SHARING)
def test_gradients_equal_those_of_plain_operations(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(llama(bias=True, dtype=torch.float64), **options)
    found, expected = gradients(model), unfused(model, monkeypatch)
    assert found.keys() == expected.keys() == trainable(model).keys()
    assert max(error(found[name], expected[name]) for name in expected) < 1e-9


@pytest.mark.parametrize(("tied", "readings", "edits"), [("type", 8, 0), ("width", 8, 4), ("layer", 8, 0)])
def test_input_is_read_once_for_all_its_readers(tied: str, readings: int, edits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block reads four inputs, not seven; tied by width, q, k, v share one edited input, and gate and up another."""
    model = adapted(llama(), tied_modules=tied)
    made: list[Any] = []
    read = SharedInput.read

    def counted(self: SharedInput, *arguments: Any) -> Any:
        made.append(read(self, *arguments))
        return made[-1]

    monkeypatch.setattr(SharedInput, "read", counted)
    model(input_ids=IDS)
    assert len(made) == readings
    assert sum(len(reading.edited) for reading in made) == edits
    assert all(not reading.expected for reading in made)


def test_siblings_are_guessed_by_name_within_one_block() -> None:
    names = [f"layers.{i}.attn.{name}" for i in range(2) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    assert sibling_names("layers.1.attn.k_proj", names) == ("layers.1.attn.k_proj", "layers.1.attn.q_proj", "layers.1.attn.v_proj")
    assert sibling_names("layers.1.attn.o_proj", names) == ("layers.1.attn.o_proj",)
    cross = [name.replace("attn", "encoder_attn") for name in names]
    assert sibling_names(cross[0], cross) == (cross[0],)


class TwoInputs(nn.Module):
    """Named like siblings, but the key reads something else."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.q_proj(x) * self.k_proj(other) + self.v_proj(x)


def test_wrong_guess_costs_only_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(TwoInputs(), r=2)
    x, other = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.ones(4, 6)

    def run() -> list[torch.Tensor]:
        model.zero_grad()
        model(x, other).pow(2).sum().backward()
        return [parameter.grad.clone() for parameter in trainable(model).values()]

    fused = run()
    monkeypatch.setattr(WeGeFTLinear, "is_fusible", lambda *_: False)
    for one, expected in zip(fused, run(), strict=True):
        torch.testing.assert_close(one, expected)


def test_changed_generator_or_input_is_read_again() -> None:
    """Between one sibling's call and the next, a step may move ψ or something may write into x."""
    model = adapted(TwoInputs(), r=2, tied_modules=[["q_proj", "k_proj", "v_proj"]])
    layers = model.base_model.model
    x = torch.ones(4, 6)
    generator = model.base_model.generators_of("default")["k_proj+q_proj+v_proj"]

    def expected() -> torch.Tensor:
        with torch.no_grad():
            return layers.k_proj(x)

    layers.q_proj(x)
    with torch.no_grad():
        generator.psi.mul_(2)
    torch.testing.assert_close(layers.k_proj(x), expected())
    layers.q_proj(x)
    x.mul_(3)
    torch.testing.assert_close(layers.k_proj(x), expected())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tied_modules": [["q_proj", "down_proj"]]}, "differ in width"),
        ({"tied_modules": [["q_proj", "k_proj"]], "rank_pattern": {"q_proj": 2}}, "differ in rank"),
        ({"tied_modules": [["q_proj", "k_proj"]], "alpha_pattern": {"q_proj": 2}}, "differ in alpha"),
        ({"rank_pattern": {"layers.0.self_attn.q_proj": 2}}, "q_proj: the layers of one group differ in rank"),
        ({"tied_modules": [["q_proj"], ["q_proj", "k_proj"]]}, "is in an earlier group too"),
        ({"tied_modules": [["nothing"]]}, "matches no target module"),
        ({"rank_pattern": {"nothing": 2}}, "matches no target module"),
        ({"tied_modules": "width", "rank_pattern": {"gate_proj": 2}}, "width32: the layers of one group differ in rank"),
    ],
)
def test_group_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidAdapterConfig) as caught:
        plan_groups(llama(), WeGeFTConfig(target_modules="all-linear", **options))
    assert message in str(caught.value)


def test_all_group_problems_come_at_once() -> None:
    config = WeGeFTConfig(
        target_modules="all-linear", tied_modules=[["q_proj", "down_proj"], ["k_proj", "v_proj"]], rank_pattern={"k_proj": 2}
    )
    with pytest.raises(InvalidAdapterConfig) as caught:
        plan_groups(llama(), config)
    assert {problem.path for problem in caught.value.problems} == {"down_proj+q_proj", "k_proj+v_proj"}


def test_rank_and_alpha_by_pattern() -> None:
    options = {"rank_pattern": {"q_proj": 2, r"mlp\..*": 5}, "alpha_pattern": {"v_proj": 3.0}}
    groups = {group.key: group for group in plan_groups(llama(), WeGeFTConfig(r=4, wegeft_alpha=8, target_modules="all-linear", **options))}
    assert {key: group.rank for key, group in groups.items()} == {
        "q_proj": 2, "k_proj": 4, "v_proj": 4, "o_proj": 4, "gate_proj": 5, "up_proj": 5, "down_proj": 5,
    }  # fmt: skip
    assert (groups["q_proj"].scaling, groups["v_proj"].scaling, groups["k_proj"].scaling) == (4.0, 0.75, 2.0)
    model = adapted(llama(), **options)
    assert error(logits(model), logits(dense_reference(llama(), [model]))) < 1e-5


def test_layers_of_one_type_but_different_paths_do_not_share() -> None:
    """BERT calls four layers ``dense``; their inputs mean different things."""
    assert {"attention.output.dense", "intermediate.dense", "layer.*.output.dense", "pooler.dense"} <= keys(bert())


def reordered(model: nn.Module) -> nn.Module:
    """Register every module's children in reverse: the same model, traversed otherwise."""
    for module in model.modules():
        if not isinstance(module, nn.ModuleList):
            for name, child in reversed(list(module._modules.items())):
                del module._modules[name]
                module._modules[name] = child
    return model


@pytest.mark.parametrize("tied", ["type", "width", "layer", [["q_proj", "o_proj"], ["up_proj", "k_proj"]]])
def test_files_do_not_depend_on_the_order_of_traversal(tied: Any, tmp_path: Any) -> None:
    model = adapted(llama(), tied_modules=tied)
    model.save_pretrained(tmp_path)
    other = reordered(llama())
    assert [name for name, _ in other.named_modules()] != [name for name, _ in llama().named_modules()]
    assert torch.equal(logits(PeftModel.from_pretrained(other, tmp_path)), logits(model))
    twin = adapted(reordered(llama()), seed=8, tied_modules=tied)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(logits(twin), logits(model))
