"""The commands against a real service that trains a tiny model in its own threads."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from cli.main import main
from tests.cli.conftest import Wgctl
from tests.tiny_models import make_model_folder, write_sums

FAST = {"WEGEFT_POOL": "inline", "WEGEFT_LEASE_SECONDS": "3", "WEGEFT_HEARTBEAT_SECONDS": "0.5"}
SHORT, ENDLESS = 4, 1_000_000


def write_job(folder: Path, **fields: object) -> str:
    """Write a job over a tiny model and one-digit sums, and return its file's name."""
    job: dict[str, object] = {
        "name": "sums",
        "base_model": "./model",
        "rank": 4,
        "datasets": [{"path": "train.jsonl"}],
        "test_datasets": [{"path": "held.jsonl"}],
        "sequence_len": 64,
        "max_steps": SHORT,
        "learning_rate": 1e-2,
        "resources": {"cpus": 1},
        "output": {"adapter": "demo/sums"},
    }
    name = f"{fields.get('name', 'sums')}.yaml"
    (folder / name).write_text(json.dumps(job | fields))
    return name


def fill(folder: Path) -> None:
    make_model_folder(folder / "model")
    write_sums(folder / "train.jsonl", 40)
    write_sums(folder / "held.jsonl", 8, start=40)


@pytest.fixture(scope="module")
def wgctl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wgctl]:
    """Call ``wgctl`` with a service that runs for the whole module."""
    caller = Wgctl(tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work"), FAST)
    fill(caller.folder)
    caller("up", "--detach")
    yield caller
    caller("down")


@pytest.fixture
def endless(wgctl: Wgctl) -> Iterator[str]:
    """Submit a job that never ends by itself, and cancel it at the end."""
    job_id = wgctl("submit", write_job(wgctl.folder, name="endless", max_steps=ENDLESS, labels={"kind": "endless"})).out.strip()
    yield job_id
    wgctl("jobs", "cancel", job_id, status=None)
    wgctl("jobs", "wait", job_id, "--timeout", "30", status=3)


def wait_until(is_so: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


def test_a_job_goes_from_file_to_folder(wgctl: Wgctl) -> None:
    job = write_job(wgctl.folder, evaluation={"exact_match": True, "max_new_tokens": 2})
    told = wgctl("submit", job, "--wait").out
    job_id = told.splitlines()[0]
    assert f"step {SHORT}/{SHORT}  loss " in told
    assert "held-out loss" in told
    assert "exact match" in told
    assert told.rstrip().endswith("published demo/sums@1")

    shown = wgctl("jobs", "show", job_id, "--json").json
    assert (shown["state"], shown["result"]) == ("succeeded", {"adapter": "demo/sums", "version": 1})
    assert "demo/sums@1" in wgctl("jobs", "show", job_id).out
    assert wgctl("jobs", "wait", job_id).out == f"{job_id} succeeded demo/sums@1\n"
    assert job_id in wgctl("jobs", "ls", "--state", "succeeded", "-q").out.split()

    steps = [json.loads(line)["event"] for line in wgctl("jobs", "logs", job_id, "--json").out.splitlines()]
    assert [event["step"] for event in steps if event["type"] == "progress"] == list(range(1, SHORT + 1))
    assert f"step {SHORT}/{SHORT}" in wgctl("jobs", "logs", "-f", job_id).out

    assert "demo/sums" in wgctl("adapters", "ls").out
    assert wgctl("adapters", "versions", "demo/sums", "--json").json[0]["source"] == f"job:{job_id}"
    wgctl("adapters", "alias", "set", "demo/sums@1", "production", "--expected", "0")
    moved = wgctl("adapters", "alias", "set", "demo/sums@1", "canary", "--expected", "7", "--json", status=5)
    assert moved.error["code"] == "alias_moved"
    answer = wgctl("adapters", "download", "demo/sums@production", "-o", "adapter", "--json").json
    assert answer["ref"] == "demo/sums@1"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in (wgctl.folder / "adapter").iterdir()}
    assert wgctl("adapters", "download", "demo/sums", "-o", "adapter", "--json", status=2).error["code"] == "invalid_setting"
    wgctl("adapters", "download", "demo/sums", "-o", "adapter", "--overwrite")
    wgctl("adapters", "alias", "rm", "demo/sums", "production")
    assert wgctl("adapters", "show", "demo/sums@production", "--json", status=4).error["code"] == "alias_not_found"

    both = wgctl("hub", "gc", "--dry-run", "--all-formats", "--json", status=2).error
    assert [problem["path"] for problem in both["problems"]] == ["--all-formats"]
    plan = wgctl("hub", "gc", "--dry-run", "--json").json
    assert plan["stored_blobs"] >= 7
    assert (plan["unheld_blobs"], plan["unheld_bytes"], plan["first"]) == (0, 0, [])
    assert wgctl("hub", "gc").out == "deleted 0 blobs, 0 B\n"


def test_a_published_adapter_becomes_a_lora_that_computes_the_same_and_what_else_engines_read(
    wgctl: Wgctl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    wgctl("submit", write_job(wgctl.folder, name="both", output={"adapter": "demo/both"}), "--wait")
    wgctl("adapters", "download", "demo/both", "-o", "both")
    answer = wgctl("adapters", "download", "demo/both", "-o", "both-lora", "--format", "lora", "--json").json
    assert (answer["ref"], answer["format"]) == ("demo/both@1", "lora")
    assert json.loads((wgctl.folder / "both-lora" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert wgctl("adapters", "download", "demo/both", "-o", "both", "--format", "lora", status=2).out == ""

    import wegeft.method  # noqa: F401 - teaches PEFT the method

    tokens = torch.arange(3, 35).reshape(2, 16)
    logits = []
    for folder in ("both", "both-lora"):
        base = AutoModelForCausalLM.from_pretrained(wgctl.folder / "model").eval()
        with torch.no_grad():
            logits.append(PeftModel.from_pretrained(base, wgctl.folder / folder)(tokens).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)

    monkeypatch.setenv("WEGEFT_HOME", str(wgctl.home))
    assert main(["adapters", "export", "demo/both", "--format", "gguf", "-o", str(wgctl.folder / "both-gguf"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["adapter"], set(answer["files"])) == ("demo/both@1", {"adapter.gguf", "Modelfile"})
    assert answer["base_model"] == wgctl("adapters", "show", "demo/both@1", "--json").json["base_model"]
    assert 0 < answer["largest_error"] < 1e-6
    assert answer["adapter_size"] == (wgctl.folder / "both" / "adapter_model.safetensors").stat().st_size


def test_a_dry_run_sends_nothing(wgctl: Wgctl) -> None:
    before = wgctl("jobs", "ls", "-q").out
    plan = wgctl("submit", write_job(wgctl.folder), "--dry-run", "--json", "--set", "rank=8").json
    assert (plan["spec"]["rank"], plan["training_rows"], plan["held_out_rows"], plan["total_steps"]) == (8, 40, 8, SHORT)
    assert plan["spec"]["base_model"] == str(wgctl.folder / "model")
    assert wgctl("jobs", "ls", "-q").out == before


def test_the_same_key_gives_the_same_job(wgctl: Wgctl) -> None:
    job = write_job(wgctl.folder, name="twice")
    first = wgctl("submit", job, "--idempotency-key", "one").out
    assert wgctl("submit", job, "--idempotency-key", "one").out == first
    answer = wgctl("submit", job, "--idempotency-key", "one", "--set", "rank=2", "--json", status=5)
    assert answer.error["code"] == "idempotency_conflict"
    wgctl("jobs", "wait", first.strip())


def test_looking_away_does_not_cancel(wgctl: Wgctl) -> None:
    process = wgctl.start("submit", write_job(wgctl.folder, name="watched", max_steps=ENDLESS), "--wait")
    assert process.stdout is not None
    job_id = process.stdout.readline().strip()
    wait_until(lambda: wgctl("jobs", "show", job_id, "--json").json["step"] > 0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"wgctl jobs logs -f {job_id}" in err
    assert "Traceback" not in err
    assert wgctl("jobs", "show", job_id, "--json").json["state"] == "running"
    wgctl("jobs", "cancel", job_id)
    assert wgctl("jobs", "wait", job_id, "--json", status=3).error["code"] == "job_cancelled"


def test_waiting_has_an_end_and_a_reader_may_be_killed(wgctl: Wgctl, endless: str) -> None:
    answer = wgctl("jobs", "wait", endless, "--timeout", "0.5", "--json", status=8)
    assert answer.error["code"] == "job_pending"
    reader = wgctl.start("jobs", "logs", "-f", endless)
    assert reader.stdout is not None
    reader.stdout.readline()
    reader.kill()
    reader.communicate()
    assert wgctl("jobs", "show", endless, "--json").json["state"] in {"queued", "starting", "running"}
    assert wgctl("jobs", "ls", "-l", "kind=endless", "-q").out.strip() == endless
    assert wgctl("jobs", "ls", "-l", "kind=other", "-q").out == ""


def test_a_failed_job_says_why_and_exits_with_1(wgctl: Wgctl) -> None:
    answer = wgctl("submit", write_job(wgctl.folder, name="lost", target_modules=["q_prj"]), "--wait", "--json", status=1)
    assert answer.json["error"]["code"] == "targets_not_found"
    assert answer.error["code"] == "job_failed"
    assert "targets_not_found" in answer.error["detail"]


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        ("jobs show nonsense", 4, "job_not_found"),
        ("jobs logs -f job-00000000000000000000000000", 4, "job_not_found"),
        ("jobs cancel job-00000000000000000000000000", 4, "job_not_found"),
        ("jobs ls -l nonsense", 2, "invalid_request"),
        ("adapters show nobody/nothing", 4, "adapter_not_found"),
        ("adapters show demo/../x", 2, "invalid_reference"),
        ("adapters download demo -o x", 2, "invalid_reference"),
        ("adapters download demo/sums -o x --base-model y", 2, "invalid_setting"),
        ("tokens revoke 000000000000", 4, "not_found"),
    ],
)
def test_what_is_not_there_is_said(line: str, status: int, code: str, wgctl: Wgctl) -> None:
    assert wgctl(*line.split(), "--json", status=status).error["code"] == code


def test_a_baseline_goes_the_same_way_by_one_changed_word(wgctl: Wgctl) -> None:
    job = write_job(wgctl.folder, method="ia3", rank=None, output={"adapter": "demo/scaled"})
    told = wgctl("submit", job, "--wait").out
    assert "ia3: 1,152 numbers are trained; " in told
    assert [view["adapter"] for view in wgctl("adapters", "ls", "--method", "ia3", "--json").json["adapters"]] == ["demo/scaled"]
    told = [wgctl("adapters", "ls", "--format", "peft", asked, "--json").json["adapters"] for asked in ("--signed", "--unsigned")]
    assert [[view["adapter"] for view in views] for views in told] == [["demo/scaled"], []]
    shown = wgctl("adapters", "show", "demo/scaled").out
    assert re.search(r"^method +ia3$", shown, re.MULTILINE)
    wgctl("adapters", "download", "demo/scaled", "-o", "scaled")
    assert json.loads((wgctl.folder / "scaled/adapter_config.json").read_text())["peft_type"] == "IA3"
    refused = wgctl("submit", job, "--set", "rank=4", "--set", "tied_modules=width", "--json", status=2).error
    assert [problem["path"] for problem in refused["problems"]] == ["rank", "tied_modules"]
    assert wgctl("adapters", "export", "scaled", "--format", "lora", "-o", "lora", "--json", status=None).error["code"] != "internal_error"


def test_a_token_may_do_what_its_role_says_until_it_is_revoked(wgctl: Wgctl) -> None:
    made = wgctl("tokens", "create", "reader", "--role", "read", "--expires", "1h", "--json").json
    reader = Wgctl(wgctl.home, wgctl.folder, {**FAST, "WEGEFT_TOKEN": made["token"]})
    reader("jobs", "ls")
    assert reader("submit", write_job(wgctl.folder), "--json", status=6).error["code"] == "forbidden"
    assert reader("tokens", "ls", "--json", status=6).error["code"] == "forbidden"
    assert reader("hub", "gc", "--dry-run", "--json", status=6).error["code"] == "forbidden"
    listed = {view["id"]: view for view in wgctl("tokens", "ls", "--json").json}
    assert (listed[made["id"]]["name"], listed[made["id"]]["role"]) == ("reader", "read")
    assert made["token"].rpartition("_")[2] not in wgctl("tokens", "ls").out
    wgctl("tokens", "revoke", made["id"])
    assert reader("jobs", "ls", "--json", status=6).error["code"] == "unauthenticated"
    local = wgctl("tokens", "create", "operator", "--role", "admin", "--local").out.strip()
    assert Wgctl(wgctl.home, wgctl.folder, {**FAST, "WEGEFT_TOKEN": local})("tokens", "ls").status == 0


def test_the_service_answers_to_its_own_names_alone(wgctl: Wgctl) -> None:
    """A page from elsewhere whose name was made to point to this machine is refused, whatever it asks for."""
    server = wgctl.record()["server"]
    with httpx2.Client(trust_env=False, timeout=30) as http:
        answers = {host: http.get(f"{server}/healthz", headers={"Host": host}) for host in ("localhost", "127.0.0.1:1", "evil.example")}
    assert [answer.status_code for answer in answers.values()] == [200, 200, 422]
    assert answers["evil.example"].json()["problems"][0]["path"] == "host"


def test_a_job_from_standard_input_starts_from_the_current_folder(wgctl: Wgctl) -> None:
    text = (wgctl.folder / write_job(wgctl.folder)).read_text()
    assert wgctl("validate", "-", "--json", stdin=text).json["training_rows"] == 40


@pytest.mark.slow
def test_a_log_goes_on_where_its_server_is_killed_and_started_again(wgctl: Wgctl) -> None:
    job_id = wgctl("submit", write_job(wgctl.folder, name="told", max_steps=300, save_steps=10)).out.strip()
    reader = wgctl.start("jobs", "logs", "-f", job_id, "--json", stdout=subprocess.PIPE)
    assert reader.stdout is not None
    first = reader.stdout.readline()
    wait_until(lambda: wgctl("jobs", "show", job_id, "--json").json["step"] >= 5, 60)
    wgctl.kill_service()
    wgctl("up", "--detach")
    with reader:
        records = [json.loads(line) for line in (first, *reader.stdout)]  # not communicate(), which leaves out what is read ahead
    assert reader.returncode == 0
    assert [record["sequence"] for record in records] == sorted({record["sequence"] for record in records})
    assert records[-1]["event"] == {"type": "state", "state": "succeeded", "text": records[-1]["event"]["text"]}
    assert wgctl("jobs", "show", job_id, "--json").json["attempt"] == 2


@pytest.mark.slow
def test_on_a_local_ray_a_job_trains_and_nothing_is_left_running(make_wgctl: Callable[..., Wgctl]) -> None:
    wgctl = make_wgctl(RAY_USAGE_STATS_ENABLED="0")
    fill(wgctl.folder)
    job = write_job(wgctl.folder)
    told = wgctl("submit", job, "--wait", timeout=240)
    assert "starting one on this machine" in told.err
    assert told.out.rstrip().endswith("published demo/sums@1")
    service = psutil.Process(wgctl.record()["pid"])
    started = service.children(recursive=True)
    assert any("raylet" in process.name() for process in started)
    wgctl("down")
    assert not service.is_running()
    assert [process for process in started if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
