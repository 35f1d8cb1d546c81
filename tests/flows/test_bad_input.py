"""Bad input, end to end: each has its code and exit status, and leaves nothing half done."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.service import Service, clean_environment, running_service, write_job
from tests.tiny_models import make_model, make_tokenizer


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for the module, training in its own threads."""
    with running_service(tmp_path_factory.mktemp("bad") / "home", pool="inline") as running:
        yield running


def fails(service: Service, *arguments: str, code: str, status: int) -> dict[str, object]:
    """Run a command that must fail with one error, and return that error."""
    text = service.wgctl(*arguments, "--json", expected=status)
    error: dict[str, object] = json.loads(text.strip().splitlines()[-1])
    assert error["code"] == code, text
    return error


def nothing_published(service: Service) -> bool:
    with service.client() as client:
        return client.adapters().adapters == ()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("name: [", "invalid_job"),
        ("name: x\nbase_model: model\ndatasets: [{path: train.jsonl}]\nlerning_rate: 1", "invalid_job"),
        ("name: x\nbase_model: model\ndatasets: [{path: train.jsonl}]\nrank: many", "invalid_job"),
        ("name: x\nbase_model: model\ndatasets: [{path: nothing.jsonl}]", "invalid_job"),
    ],
    ids=["broken YAML", "unknown field", "wrong type", "missing file"],
)
def test_bad_job_file_is_refused_before_anything_is_sent(service: Service, tmp_path: Path, text: str, code: str) -> None:
    """validate and submit say the same, with exit status 2."""
    job_file = write_job(tmp_path)
    job_file.write_text(text)
    fails(service, "validate", str(job_file), code=code, status=2)
    fails(service, "submit", str(job_file), code=code, status=2)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("", "no rows"),
        ('{"messages": [{"role": "user", "content": "1+1="}]}\n', "answer"),
        ('{"messages": [{"role": "user"\n', "JSON"),
    ],
    ids=["empty data set", "row without an answer", "broken line"],
)
def test_bad_rows_are_listed(service: Service, tmp_path: Path, rows: str, words: str) -> None:
    """A data set that cannot be learnt is refused on the user's side, with what is wrong."""
    job_file = write_job(tmp_path)
    (tmp_path / "train.jsonl").write_text(rows)
    error = fails(service, "submit", str(job_file), code="invalid_data", status=2)
    assert words in json.dumps(error)


FAILURES = [
    ({"base_model": "no-such-model"}, "base_model_not_found"),
    ({"target_modules": ["q_prj"]}, "targets_not_found"),
    ({"base_model": "overflowing"}, "loss_not_finite"),
    ({"sequence_len": 8, "excess_length_strategy": "error"}, "invalid_data"),
]


def make_overflowing_model(folder: Path) -> None:
    """Write a model whose numbers overflow in the forward pass, as a broken conversion makes them."""
    model = make_model()
    model.lm_head.weight.data.mul_(1e38)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


@pytest.mark.parametrize(("fields", "code"), FAILURES, ids=[code for _, code in FAILURES])
def test_job_that_cannot_work_fails_once_and_says_why(service: Service, tmp_path: Path, fields: dict[str, object], code: str) -> None:
    """The first attempt is the last, the job carries the code, and nothing is published."""
    job_file = write_job(tmp_path, name="hopeless", **fields)
    make_overflowing_model(tmp_path / "overflowing")
    answer = service.wgctl("submit", str(job_file), "--wait", "--json", expected=None)
    with service.client() as client:
        job = client.jobs(limit=1).jobs[0]
    assert job.name == "hopeless", answer
    assert job.error is not None
    assert (job.state, job.error.code, job.attempt) == ("failed", code, 1)
    service.wgctl("jobs", "wait", job.id, expected=1)
    assert nothing_published(service)


def test_wrong_token_is_refused(service: Service) -> None:
    """A token of the right form that nobody made."""
    wrong = f"wgt_{'0' * 12}_{'0' * 64}"
    text = service.wgctl("jobs", "ls", "--json", expected=6, token=wrong)
    assert json.loads(text)["code"] == "unauthenticated"
    assert wrong not in (service.home / "serve.log").read_text()


def test_taken_port_is_said(service: Service, tmp_path: Path) -> None:
    """A second service on a port that something else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = {**clean_environment(), "WEGEFT_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-m", "cli.main", "serve", "--json", "--port", str(taken.getsockname()[1])]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 7
    assert json.loads(answer.stderr.strip().splitlines()[-1])["code"] == "port_taken"


def test_corrupted_blob_is_noticed_and_no_folder_is_left(tmp_path: Path) -> None:
    """One changed byte on disk: the download fails at once, leaves nothing, and works again when the bytes are uploaded again."""
    with running_service(tmp_path / "home", pool="inline") as service:
        service.wgctl("submit", str(write_job(tmp_path / "work", max_steps=1)), "--wait")
        with service.client() as client:
            files = {entry.path: entry for entry in client.resolve("demo/sums").manifest.files}
        whole = damage(service.home, files["adapter_model.safetensors"].digest)
        began = time.monotonic()
        for _ in range(2):
            fails(service, "adapters", "download", "demo/sums", "-o", str(tmp_path / "adapter"), code="digest_mismatch", status=7)
        assert time.monotonic() - began < 20, "nothing is tried again that cannot help"
        assert not (tmp_path / "adapter").exists()
        assert [path.name for path in tmp_path.iterdir() if "adapter" in path.name] == []
        with service.client() as client:
            client.upload(whole)
        service.wgctl("adapters", "download", "demo/sums", "-o", str(tmp_path / "adapter"))
        assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == whole


def damage(home: Path, digest: str) -> bytes:
    """Change one byte in the middle of a stored blob; return what it was."""
    name = digest.removeprefix("sha256:")
    blob = next(path for path in (home / "blobs").rglob("*") if path.is_file() and path.name in name and name.endswith(path.name))
    whole = blob.read_bytes()
    content = bytearray(whole)
    content[len(content) // 2] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(content)
    return whole


def test_download_leaves_a_folder_of_yours_alone(service: Service, tmp_path: Path) -> None:
    """A folder that a person made is left as it is, whatever the download says."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "notes.txt").write_text("mine")
    service.wgctl("adapters", "download", "demo/none", "-o", str(tmp_path / "adapter"), expected=None)
    assert (tmp_path / "adapter" / "notes.txt").read_text() == "mine"
