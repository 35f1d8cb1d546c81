"""A job file and what it names: found, checked row by row, and made ready to send."""

import json
from pathlib import Path

import pytest

from cli.preparation import prepare, read_job_file
from cli.submit import plan_of
from wegeft.contracts.errors import InvalidData, InvalidJob, Problem

ROW = json.dumps({"prompt": "1 + 1 =", "completion": " 2"})
JOB = "name: demo\nbase_model: org/model\ndatasets:\n  - path: rows.jsonl\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text(f"{ROW}\n" * 10)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    return tmp_path


def problems_of(text: str, folder: Path, kind: type[InvalidJob | InvalidData] = InvalidJob) -> list[Problem]:
    with pytest.raises(kind) as caught:
        prepare(text, folder)
    assert type(caught.value) is kind
    return list(caught.value.problems)


def test_data_is_found_beside_the_job_file_and_counted(folder: Path) -> None:
    prepared = prepare(JOB, folder)
    [file] = prepared.files
    assert (file.path, file.rows, file.size) == (folder / "rows.jsonl", 10, (len(ROW) + 1) * 10)
    digest = "sha256:" + "0" * 64
    sent = prepared.with_digests({file.path: digest})
    assert (sent.datasets[0].path, sent.datasets[0].file_format) == (digest, "jsonl")


def test_one_file_in_two_places_is_sent_once(folder: Path) -> None:
    prepared = prepare(JOB + "test_datasets: [{path: ./rows.jsonl}]\n", folder)
    assert len(prepared.files) == 2
    assert plan_of(prepared).upload_bytes == (len(ROW) + 1) * 10
    digest = "sha256:" + "1" * 64
    sent = prepared.with_digests({folder / "rows.jsonl": digest})
    assert sent.datasets[0].path == sent.test_datasets[0].path == digest


@pytest.mark.parametrize("name", ["./model", "model", "model.gguf", "../{folder}/model"])
def test_a_local_base_model_becomes_absolute(name: str, folder: Path) -> None:
    spec = prepare(JOB.replace("org/model", name.format(folder=folder.name)), folder).spec
    assert spec.base_model in {str(folder / "model"), str(folder / "model.gguf")}


def test_an_id_stays_an_id(folder: Path) -> None:
    assert prepare(JOB, folder).spec.base_model == "org/model"
    assert prepare(JOB.replace("org/model", "gpt2"), folder).spec.base_model == "gpt2"


@pytest.mark.parametrize("name", ["./nothing", "nothing.gguf", "/nowhere/model", "~/nothing-here", "a/b/c", "'not an id'", "x" * 300])
def test_a_base_model_that_is_nowhere_is_a_problem(name: str, folder: Path) -> None:
    [problem] = problems_of(JOB.replace("org/model", name), folder)
    assert (problem.path, problem.line) == ("base_model", 2)


def test_an_absolute_path_may_be_the_workers_own(folder: Path) -> None:
    assert prepare(JOB.replace("org/model", "/models/m.gguf"), folder, is_remote=True).spec.base_model == "/models/m.gguf"


def test_a_local_base_model_has_no_revision(folder: Path) -> None:
    [problem] = problems_of(JOB.replace("org/model", "./model\nmodel_revision: main"), folder)
    assert (problem.path, problem.line) == ("model_revision", 3)


def test_a_template_file_is_written_out(folder: Path) -> None:
    assert prepare(JOB + "chat_template: chat.jinja\n", folder).spec.chat_template.startswith("{% for")
    assert prepare(JOB + "chat_template: tokenizer\n", folder).spec.chat_template == "tokenizer"
    [problem] = problems_of(JOB + "chat_template: none.jinja\n", folder)
    assert problem.path == "chat_template"


def test_all_problems_of_all_files_are_told_together(folder: Path) -> None:
    (folder / "held.csv").write_text("prompt,completion\n1+1=,2\n2+2=,\n")
    text = JOB + "  - path: gone.jsonl\ntest_datasets:\n  - path: held.csv\nrank: x\nlearning_rte: 1\n"
    found = problems_of(text, folder)
    assert [problem.path for problem in found] == ["rank", "learning_rte", "datasets[1].path", "held.csv: completion"]
    assert [problem.line for problem in found] == [8, 9, 5, 3]


def test_wrong_rows_alone_are_wrong_data(folder: Path) -> None:
    (folder / "rows.jsonl").write_text(f'{ROW}\n{{"prompt": "x"}}\nnot json\n')
    found = problems_of(JOB, folder, InvalidData)
    assert [problem.line for problem in found] == [2, 3]


def test_an_empty_data_set_is_a_problem(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("")
    [problem] = problems_of(JOB, folder, InvalidData)
    assert "no rows" in problem.message


def test_a_stand_in_is_never_looked_for(folder: Path) -> None:
    found = problems_of("rank: x\ndatasets: [{pth: rows.jsonl}]\n", folder)
    assert {problem.path for problem in found} == {"name", "base_model", "rank", "datasets[0].path", "datasets[0].pth"}


@pytest.mark.parametrize(
    ("more", "training", "held_out", "steps"),
    [
        ("", 10, 0, 9),
        ("val_set_size: 0.2\n", 8, 2, 6),
        ("val_set_size: 3\nnum_epochs: 0.5\n", 7, 3, 1),
        ("test_datasets: [{path: rows.jsonl}]\nglobal_batch_size: 8\n", 10, 10, 6),
        ("max_steps: 5\n", 10, 0, 5),
    ],
)
def test_the_plan_counts_rows_and_steps(more: str, training: int, held_out: int, steps: int, folder: Path) -> None:
    plan = plan_of(prepare(JOB + more, folder))
    assert (plan.training_rows, plan.held_out_rows, plan.total_steps) == (training, held_out, steps)


def test_the_plan_of_uploaded_data_does_not_guess(folder: Path) -> None:
    text = JOB.replace("rows.jsonl", "sha256:" + "0" * 64 + "\n    file_format: jsonl")
    plan = plan_of(prepare(text, folder))
    assert (plan.training_rows, plan.total_steps, plan.upload_bytes) == (None, None, 0)


@pytest.mark.parametrize(("rows", "amount"), [(10, 0.2), (3, 0.01), (7, 0.5), (100, 0.333), (10, 4), (5, 0)])
@pytest.mark.parametrize(("micro", "passes", "epochs"), [(1, 1, 1), (4, 2, 3), (3, 1, 0.7), (8, 4, 2.5)])
def test_the_plan_counts_as_the_worker_does(rows: int, amount: float, micro: int, passes: int, epochs: float, folder: Path) -> None:
    """The command line may not load torch, so it has the worker's arithmetic of its own; here both are held together."""
    from workers.batches import BatchPlan, hold_out

    text = f"{JOB}val_set_size: {amount}\nmicro_batch_size: {micro}\ngradient_accumulation_steps: {passes}\nnum_epochs: {epochs}\n"
    spec = prepare(text, folder).spec
    training, held_out = hold_out(rows, amount, 1)
    assert spec.count_held_out(rows) == len(held_out)
    worker = BatchPlan(lengths=(5,) * len(training), micro_batch_size=micro, accumulation_steps=passes, seed=1)
    assert spec.count_steps(len(training)) == worker.total_steps(epochs, None)


def test_the_plan_of_packed_rows_does_not_guess_their_steps(folder: Path) -> None:
    packed = plan_of(prepare(f"{JOB}packing: true\n", folder))
    assert packed.spec.sample_packing
    assert packed.training_rows is not None
    assert packed.total_steps is None
    assert plan_of(prepare(f"{JOB}packing: true\nmax_steps: 7\n", folder)).total_steps == 7


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_bytes(b"\xff\xfe")])
def test_a_job_file_that_cannot_be_read_is_a_problem(make: object, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    make(path)  # type: ignore[operator]  # one of the functions above
    with pytest.raises(InvalidJob, match="job file"):
        read_job_file(path)


def test_a_federations_start_is_found_beside_the_job(folder: Path) -> None:
    head = "name: sums\nbase_model: org/model\nfederation:\n"
    (folder / "adapter_config.json").write_text("{}")
    digest = f"sha256:{'0' * 64}"
    prepared = prepare(f"{head}  start: {{config: adapter_config.json, weights: '{digest}'}}\n", folder)
    assert prepared.spec.federation is not None
    assert prepared.spec.federation.start is not None
    assert (prepared.spec.federation.start.config, prepared.spec.federation.start.weights) == (str(folder / "adapter_config.json"), digest)
    assert prepare(f"{head}  rounds: 3\n", folder).files == ()
    [problem] = problems_of(f"{head}  start: {{config: adapter_config.json, weights: gone.safetensors}}\n", folder)
    assert (problem.path, problem.line) == ("federation.start.weights", 4)
