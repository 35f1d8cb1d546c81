"""The federation section of a job: defaults, short forms, and combinations that promise nothing."""

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from wegeft.contracts.errors import InvalidJob, Problem
from wegeft.contracts.federation_rules import (
    PRODUCT_RULES,
    Buffered,
    Defence,
    FedAdagrad,
    FedAdam,
    FedYogi,
    MultiKrum,
    PoissonSampling,
    Rule,
    Synchronous,
    TrimmedMean,
    is_linear,
    least_sites,
    sent_parts,
)
from wegeft.contracts.federation_spec import FederationSpec
from wegeft.contracts.job import load_spec

RULES = ["generator_exact", "generator_truncate", "factor_mean", "freeze_psi", "freeze_phi", "alternate", "stack", "core"]


def parse(**fields: object) -> FederationSpec:
    return FederationSpec.model_validate_json(json.dumps(fields))


def clashes(**fields: object) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        parse(**fields)
    return {clash.path: clash.message for error in caught.value.errors() for clash in error.get("ctx", {}).get("clashes", ())}


def test_an_empty_section_is_a_federation_with_the_exact_rule() -> None:
    spec = parse()
    assert (spec.rule.name, spec.server_optimizer.name, spec.defence.name, spec.min_sites) == ("generator_exact", "fedavg", "none", 2)
    assert FederationSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_named_by_one_word(name: str) -> None:
    spec = parse(rule=name)
    assert spec.rule.name == name
    assert spec == parse(rule={"name": name})


def test_a_rule_says_what_is_sent_and_whether_it_is_linear_in_that() -> None:
    names = set(TypeAdapter(Rule).json_schema()["discriminator"]["mapping"])
    assert names == set(RULES)
    linear = {name for name in RULES if is_linear(parse(rule=name).rule)}
    assert linear == {"freeze_psi", "freeze_phi", "alternate", "core"}
    assert not linear & PRODUCT_RULES
    assert is_linear(parse(rule={"name": "factor_mean", "align": False}).rule)
    sent = {name: (sent_parts(parse(rule=name).rule, 1), sent_parts(parse(rule=name).rule, 2)) for name in RULES}
    assert sent["alternate"] == (("phi",), ("psi",))
    assert (sent["freeze_psi"][0], sent["freeze_phi"][0], sent["core"][0], sent["stack"][0]) == (
        ("phi",),
        ("psi",),
        ("core",),
        ("phi", "psi"),
    )


def test_the_defaults_are_flowers() -> None:
    assert FedAdam() == FedAdam(eta=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3)
    assert FedYogi() == FedYogi(eta=0.01, beta_1=0.9, beta_2=0.99, tau=1e-3)
    assert FedAdagrad() == FedAdagrad(eta=0.1, tau=1e-3)
    assert TrimmedMean().beta == 0.2


@pytest.mark.parametrize(
    ("defence", "needed"),
    [
        ("none", 1),
        ("norm_clip", 1),
        ({"name": "fltrust", "root": "hq"}, 2),
        ("geometric_median", 3),
        ("coordinate_median", 3),
        ({"name": "trimmed_mean", "beta": 0.2}, 5),
        ({"name": "trimmed_mean", "beta": 0.3}, 4),
        ({"name": "krum", "malicious": 1}, 5),
        ({"name": "multi_krum", "malicious": 3}, 9),
        ({"name": "bulyan", "malicious": 2}, 11),
    ],
)
def test_a_defence_without_enough_sites_is_refused(defence: object, needed: int) -> None:
    parsed: Defence = TypeAdapter(Defence).validate_python(defence)
    assert least_sites(parsed) == needed
    assert parse(defence=defence, min_sites=needed).defence == parsed
    if needed > 1:
        assert f"must be {needed} or more" in clashes(defence=defence, min_sites=needed - 1)["min_sites"]


def test_krum_cannot_keep_more_than_are_surely_honest() -> None:
    assert parse(min_sites=9, defence={"name": "multi_krum", "malicious": 3, "keep": 4}).defence == MultiKrum(malicious=3, keep=4)
    assert "(4) or less" in clashes(min_sites=9, defence={"name": "multi_krum", "malicious": 3, "keep": 5})["defence.keep"]


@pytest.mark.parametrize("rule", RULES)
def test_defences_that_a_rule_cannot_follow_are_refused(rule: str) -> None:
    takes_generators = rule in ("generator_exact", "generator_truncate")
    for defence in ("coordinate_median", {"name": "bulyan", "malicious": 0}):
        if takes_generators:
            assert parse(rule=rule, defence=defence, min_sites=5)
        else:
            assert "cannot follow" in clashes(rule=rule, defence=defence, min_sites=5)["defence"]
    if rule == "factor_mean":
        assert "no meaning" in clashes(rule=rule, defence="norm_clip")["defence"]
    else:
        assert parse(rule=rule, defence="norm_clip")


@pytest.mark.parametrize("rule", RULES)
def test_unequal_ranks_are_refused_where_factors_are_averaged(rule: str) -> None:
    if rule in PRODUCT_RULES:
        assert parse(rule=rule, site_ranks={"site-a": 2})
    else:
        assert "must have one rank" in clashes(rule=rule, site_ranks={"site-a": 2})["site_ranks"]


def test_all_clashes_are_told_at_once() -> None:
    found = clashes(rule="stack", server_optimizer="fedadam", min_sites=4, target_sites=3, defence={"name": "krum", "malicious": 1})
    assert set(found) == {"server_optimizer", "target_sites", "min_sites"}


@pytest.mark.parametrize(
    "fields",
    [
        {"rule": "fedit"},
        {"rule": {"name": "stack", "depth": 1}},
        {"sampling": "poisson"},
        {"sampling": {"name": "poisson", "rate": 0}},
        {"defence": "krum"},
        {"defence": {"name": "trimmed_mean", "beta": 0.5}},
        {"rounds": 0},
        {"grace": "soon"},
        {"wire": "int4"},
        {"max_update_norm": -1},
        {"site_ranks": {"Site A": 2}},
        {"secure": True},
    ],
)
def test_what_is_not_in_a_closed_set_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        parse(**fields)


def test_poisson_sampling_has_a_rate() -> None:
    assert parse(sampling={"name": "poisson", "rate": 0.5}).sampling == PoissonSampling(rate=0.5)
    assert "lower" not in clashes(sampling={"name": "poisson", "rate": 0.5}, target_sites=3)["target_sites"]


def problems_of(text: str) -> dict[str, Problem]:
    with pytest.raises(InvalidJob) as caught:
        load_spec(text)
    return {problem.path: problem for problem in caught.value.problems}


def test_a_federated_job_has_no_data_of_its_own() -> None:
    spec = load_spec("name: x\nmodel: m\nfederation: {rounds: 2, rule: stack, start: {config: a.json, weights: b.safetensors}}")
    assert spec.federation is not None
    assert (spec.datasets, spec.federation.rounds, spec.federation.rule.name) == ((), 2, "stack")
    rows = "[{path: a.csv}]"
    found = problems_of(f"name: x\nmodel: m\nfederation: {{}}\ndatasets: {rows}\ntest_datasets: {rows}")
    assert set(found) == {"datasets", "test_datasets"}
    assert "wgctl site run" in str(found["datasets"].hint)


def test_every_other_job_needs_data() -> None:
    assert problems_of("name: x\nmodel: m")["datasets"].message == "required, but not given"
    assert problems_of("name: x\nmodel: m\ndatasets: []")["datasets"].message == "must have at least 1 entry"


def test_a_wrong_section_is_told_in_plain_words() -> None:
    found = problems_of(
        "name: x\nmodel: m\nfederation:\n  rule: stak\n  roundz: 3\n  defence: {malicious: 1}\n  grace: soon\n  min_sites: no"
    )
    assert found["federation.rule"].hint == "did you mean stack?"
    assert found["federation.roundz"].hint == "did you mean rounds?"
    assert found["federation.defence"].message == "must be a name, or a mapping with a name"
    assert (found["federation.grace"].hint, found["federation.grace"].line) == ("a number and s, m, h or d, for example 60s", 7)
    assert "whole number" in found["federation.min_sites"].message


@pytest.mark.parametrize("rule", [*RULES, {"name": "factor_mean", "align": False}])
def test_scaffold_goes_with_rules_that_keep_their_coordinates(rule: object) -> None:
    if rule in ("generator_exact", "generator_truncate", "factor_mean", "stack"):
        assert "coordinates" in clashes(rule=rule, site_optimizer="scaffold")["rule"]
    else:
        assert parse(rule=rule, site_optimizer="scaffold").site_optimizer == "scaffold"


def test_scaffold_is_alone_with_what_it_corrects() -> None:
    found = clashes(rule="core", site_optimizer="scaffold", proximal_mu=0.1, defence="norm_clip")
    assert set(found) == {"proximal_mu", "defence"}
    with pytest.raises(ValidationError):
        parse(rule="core", site_optimizer="sgd")


def test_scaffold_needs_plain_and_bounded_steps() -> None:
    job = "name: x\nmodel: m\nfederation: {rule: core, site_optimizer: scaffold}\n"
    assert load_spec(job).max_grad_norm == 1.0
    found = problems_of(job + "weight_decay: 0.1\nmax_grad_norm: null\nval_set_size: 2\neval_steps: 1\nearly_stopping_patience: 2")
    assert set(found) == {"weight_decay", "max_grad_norm", "early_stopping_patience"}


BUFFERED = {"name": "buffered", "buffer_size": 5}


def test_mode_is_synchronous_unless_it_says_buffered() -> None:
    assert parse().mode == Synchronous()
    assert parse(mode="synchronous").mode == Synchronous()
    assert parse(mode=BUFFERED, min_sites=5).mode == Buffered(buffer_size=5, max_staleness=10)
    for wrong in ("buffered", {"name": "buffered"}, {**BUFFERED, "buffer_size": 0}, {**BUFFERED, "max_staleness": -1}, "async"):
        with pytest.raises(ValidationError):
            parse(mode=wrong, min_sites=5)


def test_buffer_that_could_not_fill_or_keep_its_promise_is_refused() -> None:
    assert "min_sites (4) or less" in clashes(mode=BUFFERED, min_sites=4)["mode.buffer_size"]
    krum = {"name": "multi_krum", "malicious": 1}
    assert parse(mode=BUFFERED, min_sites=9, defence=krum)
    assert "must be 5 or more for multi_krum" in clashes(mode={**BUFFERED, "buffer_size": 4}, min_sites=9, defence=krum)["mode.buffer_size"]
    assert "buffer_size − malicious − 2 (2)" in clashes(mode=BUFFERED, min_sites=9, defence={**krum, "keep": 3})["defence.keep"]


@pytest.mark.parametrize("rule", RULES)
def test_rules_that_stale_updates_do_not_fit_are_refused(rule: str) -> None:
    if rule == "alternate":
        assert "different factors" in clashes(rule=rule, mode=BUFFERED, min_sites=5)["rule"]
    else:
        assert parse(rule=rule, mode=BUFFERED, min_sites=5).rule.name == rule


@pytest.mark.parametrize(
    "defence", ["coordinate_median", "trimmed_mean", {"name": "bulyan", "malicious": 0}, {"name": "fltrust", "root": "a"}]
)
def test_defences_that_staleness_does_not_fit_are_refused(defence: object) -> None:
    assert "defence" in clashes(mode=BUFFERED, min_sites=5, defence=defence)
    assert "of one version" in clashes(mode=BUFFERED, min_sites=5, rule="core", site_optimizer="scaffold")["site_optimizer"]


@pytest.mark.parametrize("defence", ["coordinate_median", "geometric_median", {"name": "krum", "malicious": 1}, "norm_clip"])
def test_no_defence_is_taken_for_factors_that_are_not_aligned(defence: object) -> None:
    """A defence sees generators, and a hostile gauge is another form of the same one."""
    section = {"min_sites": 9, "defence": defence, "rule": {"name": "factor_mean", "align": False}}
    assert clashes(**section).keys() <= {"rule.align", "defence"}
    assert parse(rule={"name": "factor_mean", "align": False}).defence.name == "none"


def test_the_clash_of_defence_and_gauge_names_the_way_out() -> None:
    section = {"min_sites": 9, "defence": "geometric_median", "rule": {"name": "factor_mean", "align": False}}
    assert "one hostile gauge ruins the mean" in clashes(**section)["rule.align"]
    parse(min_sites=9, defence="geometric_median", rule="factor_mean")
