"""job.yaml: what is accepted, what it means, and every problem of a wrong one at once."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from wegeft.contracts.errors import InvalidJob, Problem
from wegeft.contracts.job import DatasetType, FileFormat, JobSpec, bytes_of, inspect_spec, load_spec, parse_spec, seconds_of
from wegeft.contracts.job_fields import ALIASES, UNSUPPORTED, known_names
from wegeft.contracts.yaml_source import parse_yaml

MINIMAL = "name: demo\nbase_model: some/model\ndatasets:\n  - path: rows.jsonl\n"


def problems_of(text: str, *overrides: str) -> dict[str, Problem]:
    with pytest.raises(InvalidJob) as caught:
        load_spec(text, overrides)
    problems = caught.value.problems
    assert len({problem.path for problem in problems}) == len(problems) or any(problem.path == "--set" for problem in problems)
    return {problem.path: problem for problem in problems}


def test_three_fields_are_a_job() -> None:
    spec = load_spec(MINIMAL)
    assert (spec.name, spec.method, spec.effective_rank, spec.effective_alpha) == ("demo", "wegeft", 64, 128.0)
    assert str(spec.adapter) == "local/demo"
    assert spec.accumulation_steps == 1


def test_a_job_survives_json() -> None:
    spec = load_spec(MINIMAL + "labels: {team: a}\ntarget_modules: [q_proj]\nval_set_size: 0.1\nbf16: true\n")
    assert parse_spec(json.loads(spec.model_dump_json())) == spec


@pytest.mark.parametrize(("alias", "field"), ALIASES[""].items())
def test_other_trainers_names_mean_our_fields(alias: str, field: str) -> None:
    values: dict[str, object] = {
        "base_model": "org/other", "base_model_revision": "main", "method": "wegeft", "rank": 8, "alpha": 3.5, "target_modules": ["q_proj"],
        "sequence_len": 99, "val_set_size": 5, "test_datasets": [{"path": "held.csv"}], "train_on_inputs": True, "micro_batch_size": 7,
        "num_epochs": 2.5, "learning_rate": 0.5, "lr_scheduler": "cosine", "optimizer": "adamw_torch", "max_grad_norm": 0.25,
        "logging_steps": 9, "gradient_checkpointing": True, "sample_packing": True,
        "dropout": 0.25, "weight_dropout": 0.5, "init_weights": "psi_zero", "transform": "output", "modules_to_save": ["lm_head"],
        "layers_to_transform": [0, 2],
            "task": "sequence_classification",
    }  # fmt: skip
    plain: dict[str, object] = {"name": "x", "base_model": "some/model", "datasets": [{"path": "rows.jsonl"}]}
    by_name = parse_spec(plain | {field: values[field]})  # type: ignore[arg-type]  # plain JSON data
    plain = {key: value for key, value in plain.items() if key != field}
    assert parse_spec(plain | {alias: values[field]}) == by_name  # type: ignore[arg-type]


def test_a_dataset_may_use_other_trainers_names() -> None:
    spec = load_spec("name: x\nmodel: m\ndatasets: [{path: sha256:" + "0" * 64 + ", ds_type: csv, formatting: openai}]")
    assert (spec.datasets[0].type, spec.datasets[0].file_format) == (DatasetType.CHAT, FileFormat.CSV)
    assert spec.datasets[0].is_uploaded


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.JSON", "rows.csv", "rows.parquet", "rows.pq"])
def test_the_format_is_told_by_the_ending(name: str) -> None:
    assert load_spec(MINIMAL.replace("rows.jsonl", name)).datasets[0].inferred_format() is not None


def test_every_problem_is_reported_once_with_its_line() -> None:
    text = (
        "name: Demo\n"
        "base_modl: foo\n"
        "rank: 2.5\n"
        "lr_scheduler: cosin\n"
        "bf16: maybe\n"
        "target_modules: [q_proj, 3]\n"
        "datasets:\n"
        "  - path: rows\n"
        "  - {path: a.csv, type: sharegpt, splitt: train}\n"
        "labels: {team: 3}\n"
        "load_in_4bit: true\n"
        "trust_remote_code: yes\n"
        "save_every: 5 minutes\n"
        "resources: {memory: 8GB, accelerators: H100}\n"
    )
    found = problems_of(text)
    assert {path: problem.line for path, problem in found.items()} == {
        "name": 1,
        "base_model": 1,
        "base_modl": 2,
        "rank": 3,
        "lr_scheduler": 4,
        "bf16": 5,
        "target_modules[1]": 6,
        "datasets[0].file_format": 8,
        "datasets[1].type": 9,
        "datasets[1].splitt": 9,
        "labels.team": 10,
        "load_in_4bit": 11,
        "trust_remote_code": 12,
        "save_every": 13,
        "resources.memory": 14,
        "resources.accelerators": 14,
    }
    assert found["base_modl"].hint == "did you mean base_model?"
    assert found["rank"].message == "must be a whole number"
    assert found["lr_scheduler"].hint == "did you mean cosine?"
    assert found["bf16"].message == "must be 'auto' or true or false"
    assert found["labels.team"].hint == "put it in quotes"
    assert found["trust_remote_code"].hint == "write true"
    assert found["load_in_4bit"].message == "not supported"
    assert found["resources.memory"].value == "8GB"


def test_fields_that_do_not_go_together_are_reported_beside_the_wrong_ones() -> None:
    text = (
        MINIMAL
        + "rank: x\nglobal_batch_size: 7\nwarmup_ratio: 0.1\nwarmup_steps: 3\nearly_stopping_patience: 2\nevaluation: {exact_match: true}\n"
    )
    assert set(problems_of(text)) == {"rank", "global_batch_size", "warmup_steps", "early_stopping_patience", "evaluation.exact_match"}


def test_a_clash_with_a_wrong_field_waits_until_that_field_is_right() -> None:
    assert set(problems_of(MINIMAL + "val_set_size: -1\nevaluation: {exact_match: true}\n")) == {"val_set_size"}
    assert set(problems_of(MINIMAL + "evaluation: {exact_match: true}\n")) == {"evaluation.exact_match"}


def test_held_out_rows_come_from_one_place() -> None:
    text = MINIMAL + "test_datasets: [{path: held.jsonl}]\nval_set_size: 0.1\n"
    assert "not both" in problems_of(text)["val_set_size"].message


@pytest.mark.parametrize("value", ["-1", "1.5", "true", "'5'", "[1]"])
def test_a_held_out_size_is_a_share_or_a_number(value: str) -> None:
    assert set(problems_of(f"{MINIMAL}val_set_size: {value}\n")) == {"val_set_size"}


def test_a_problem_names_the_field_as_the_user_wrote_it() -> None:
    found = problems_of("name: x\nmodel: m\nlora_r: big\neval_datasets: [{path: a.csv, ds_type: xml}]\ndatasets: [{path: a.csv}]")
    assert set(found) == {"lora_r", "eval_datasets[0].ds_type"}
    assert found["eval_datasets[0].ds_type"].line == 4


def test_one_field_under_two_names_is_a_problem() -> None:
    found = problems_of(MINIMAL + "epochs: 1\nnum_epochs: 2\n")
    assert found["num_epochs"].message == "the same field as epochs, which is given too"


@pytest.mark.parametrize("name", ["api", "a--b", "a..b", "x.git"])
def test_a_name_that_cannot_be_an_adapters_needs_an_output(name: str) -> None:
    text = MINIMAL.replace("demo", name)
    assert problems_of(text)["name"].hint == "choose another, or give output.adapter"
    assert str(load_spec(text + "output: {adapter: me/fine}\n").adapter) == "me/fine"


def test_every_wrong_alias_is_reported() -> None:
    found = problems_of(MINIMAL + "output: {adapter: nope, aliases: [Bad, good, latest]}\n")
    assert set(found) == {"output.adapter", "output.aliases[0]", "output.aliases[2]"}


@pytest.mark.parametrize("text", ["", "- a", "just words", "3"])
def test_a_job_is_a_mapping(text: str) -> None:
    assert "mapping" in problems_of(text)[""].message


@pytest.mark.parametrize(("section", "name"), [(section, name) for section, names in UNSUPPORTED.items() for name in names])
def test_what_is_not_supported_says_so_and_hides_no_field_of_ours(section: str, name: str) -> None:
    above = (section,) if section else ()
    assert name not in known_names(JobSpec, above)
    row = f"datasets:\n  - path: a.csv\n    {name}: 1\n"
    text = (
        f"name: x\nbase_model: m\n{row}"
        if section == "datasets"
        else f"{MINIMAL}{section}: {{{name}: 1}}\n"
        if section
        else f"{MINIMAL}{name}: 1\n"
    )
    path = f"datasets[0].{name}" if section == "datasets" else f"{section}.{name}" if section else name
    assert problems_of(text)[path].message == "not supported"


def test_an_override_replaces_a_field_whatever_its_name() -> None:
    spec = load_spec(MINIMAL + "learning_rate: 0.1\n", ("lr=1e-3", "datasets.0.path=other.csv", "labels.team=a", "target_modules=[q_proj]"))
    assert (spec.learning_rate, spec.datasets[0].path, spec.labels, spec.target_modules) == (1e-3, "other.csv", {"team": "a"}, ("q_proj",))


def test_a_wrong_override_has_no_line() -> None:
    found = problems_of(MINIMAL + "rank: 4\n", "rank=many", "datasets[0].type=chatt")
    assert (found["rank"].line, found["rank"].value) == (None, "many")
    assert found["datasets[0].type"].hint == "did you mean chat?"


def test_every_override_that_cannot_be_set_is_reported() -> None:
    with pytest.raises(InvalidJob) as caught:
        load_spec(MINIMAL, ("rank", "=3", "datasets.7.path=x", "name.first=x", "rank=[", "rank=3"))
    assert [problem.value for problem in caught.value.problems] == ["rank", "=3", "datasets.7.path=x", "name.first=x", "rank=["]


def test_what_is_right_can_be_read_though_something_is_wrong() -> None:
    found = inspect_spec(parse_yaml("rank: x\ndatasets: [{path: rows.csv}]\nseed: 3"))
    assert {problem.path for problem in found.problems} == {"rank", "name", "base_model"} == found.wrong
    assert found.spec is not None
    assert (found.spec.datasets[0].path, found.spec.seed) == ("rows.csv", 3)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("12h", 43_200), ("2d", 172_800)])
def test_durations_are_seconds(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


def test_memory_is_bytes() -> None:
    assert (bytes_of("512Mi"), bytes_of("8Gi")) == (512 << 20, 8 << 30)


def test_data_that_no_file_could_hold_is_refused_like_any_other() -> None:
    deep: dict[str, object] = {}
    for _ in range(5000):
        deep = {"a": deep}
    for data in (deep, {"name": "\ud800"}, {"rank": 10**400}, [1], None):
        with pytest.raises(InvalidJob):
            parse_spec(data)  # type: ignore[arg-type]


_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_KEYS = st.sampled_from([*JobSpec.model_fields, "path", "x"])


@given(st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4), max_leaves=10))
def test_any_data_is_a_job_or_refused(data: object) -> None:
    with contextlib.suppress(InvalidJob):
        parse_spec(data)  # type: ignore[arg-type]


def _models(model: type[BaseModel]) -> set[type[BaseModel]]:
    found = {model}
    for name in model.model_fields:
        section = known_names(model, (name,)) and model.model_fields[name].annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            found |= _models(section)
    return found


@pytest.mark.parametrize("model", sorted(_models(JobSpec), key=str), ids=str)
def test_every_field_has_its_one_line(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
