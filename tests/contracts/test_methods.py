"""``method:`` and its options: what each method has, and that what it has not is refused in words, never ignored."""

from __future__ import annotations

import json

import pytest

from wegeft.contracts.errors import InvalidJob, Problem
from wegeft.contracts.job import JobSpec, load_spec, parse_spec
from wegeft.contracts.methods import METHODS, Method, methods_with

MINIMAL = "name: demo\nbase_model: some/model\ndatasets:\n  - path: rows.jsonl\n"
VALUES = {
    "rank": "8", "alpha": "4", "dropout": "0.1", "rank_pattern": "{q_proj: 4}", "alpha_pattern": "{q_proj: 4}", "block_size": "16",
    "tied_modules": "width", "transform": "output", "init_weights": "psi_zero", "weight_dropout": "0.1",
}  # fmt: skip


def problems_of(text: str) -> dict[str, Problem]:
    with pytest.raises(InvalidJob) as caught:
        load_spec(text)
    return {problem.path: problem for problem in caught.value.problems}


def test_every_method_is_described_and_every_option_belongs_to_some_method_but_not_to_all() -> None:
    assert set(METHODS) == set(Method)
    for option in VALUES:
        assert 0 < len(methods_with(option)) < len(Method)
    assert {option for traits in METHODS.values() for option in traits.options} | {"rank", "alpha"} == set(VALUES)


@pytest.mark.parametrize("method", list(Method))
def test_a_method_takes_its_options_and_refuses_every_other_at_once(method: Method) -> None:
    given = {name: value for name, value in VALUES.items() if method in methods_with(name)}
    spec = load_spec(MINIMAL + f"method: {method}\n" + "".join(f"{name}: {value}\n" for name, value in given.items()))
    assert all(getattr(spec, name) is not None for name in given)
    others = {name: value for name, value in VALUES.items() if name not in given}
    if others:
        found = problems_of(MINIMAL + f"method: {method}\n" + "".join(f"{name}: {value}\n" for name, value in VALUES.items()))
        assert set(found) == set(others)
        for name, problem in found.items():
            assert problem.message == f"method: {method} has no {name}"
            assert problem.value == str(VALUES[name]) or problem.value == '{"q_proj": 4}'
            assert methods_with(name)[0] in (problem.hint or "")
            assert problem.line is not None


@pytest.mark.parametrize("method", list(Method))
def test_a_job_with_defaults_survives_json(method: Method) -> None:
    spec = load_spec(MINIMAL + f"method: {method}\n")
    assert parse_spec(json.loads(spec.model_dump_json())) == spec
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.effective_rank == (METHODS[method].rank or 0)
    assert bool(spec.effective_alpha) == (METHODS[method].alpha_per_rank is not None)


def test_defaults_are_those_of_each_method() -> None:
    assert [load_spec(MINIMAL + f"method: {name}\nrank: 8").effective_alpha for name in ("wegeft", "lora", "rslora", "pissa")] == [
        16.0, 16.0, 8.0, 8.0,
    ]  # fmt: skip
    assert load_spec(MINIMAL + "method: lora").effective_rank == 16
    assert load_spec(MINIMAL + "adapter: dora\nlora_r: 4\nlora_alpha: 2").effective_alpha == 2


def test_an_unknown_method_is_refused_with_the_nearest_one() -> None:
    problem = problems_of(MINIMAL + "method: lorra\nrank: 0")["method"]
    assert problem.hint == "did you mean lora?"
    assert "ia3" in problem.message


def test_a_wrong_method_hides_what_depends_on_it_but_nothing_else() -> None:
    found = problems_of(MINIMAL + "method: nothing\ntied_modules: width\ndropout: 2\n")
    assert set(found) == {"method", "dropout"}


@pytest.mark.parametrize("method", ["hra", "gralora"])
def test_a_rank_that_must_be_even(method: str) -> None:
    assert "even" in problems_of(MINIMAL + f"method: {method}\nrank: 3")["rank"].message


@pytest.mark.parametrize(
    ("line", "path", "message"),
    [
        ("tied_modules: rows", "tied_modules", "module_type, layer, width"),
        ("tied_modules: [[]]", "tied_modules[0]", "at least 1"),
        ("tied_modules: []", "tied_modules", "at least 1"),
        ("tied_modules: [['q_(a+)+proj']]", "tied_modules[0][0]", "not in the right form"),
        ("tied_modules: [q_proj]", "tied_modules[0]", "must be a list"),
        ("transform: both", "transform", "must be one of input, output"),
        ("init_weights: true", "init_weights", "phi_zero, psi_zero, orthogonal"),
        ("weight_dropout: 1", "weight_dropout", "less than 1"),
        ("dropout: -0.1", "dropout", "0 or more"),
        ("rank_pattern: {q_proj: 0}", "rank_pattern.q_proj", "1 or more"),
        ("rank_pattern: {q_proj: 2.5}", "rank_pattern.q_proj", "whole number"),
        ("alpha_pattern: {'.*': 2}", 'alpha_pattern[".*"]', "not in the right form"),
        ("modules_to_save: lm_head", "modules_to_save", "must be a list"),
        ("layers_to_transform: [-1]", "layers_to_transform[0]", "0 or more"),
        ("method: oft\nblock_size: 1", "block_size", "2 or more"),
    ],
)
def test_wrong_values_are_told_by_path(line: str, path: str, message: str) -> None:
    found = problems_of(MINIMAL + line)
    assert set(found) == {path}
    assert message in found[path].message


def test_groups_of_names_share_a_generator() -> None:
    spec = load_spec(MINIMAL + "tied_modules: [[q_proj, k_proj], [mlp.up_proj]]\nexclude_modules: [lm_head]")
    assert spec.tied_modules == (("q_proj", "k_proj"), ("mlp.up_proj",))
