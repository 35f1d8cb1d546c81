"""``wgctl up``, ``down`` and ``status``: one service a home, however its last one ended."""

import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cli.home import Home
from tests.cli.conftest import Wgctl

Maker = Callable[..., Wgctl]


@pytest.fixture
def wgctl(make_wgctl: Maker) -> Wgctl:
    """Call ``wgctl`` with jobs in threads of the service, which start at once."""
    return make_wgctl(WEGEFT_POOL="inline")


def test_a_service_comes_up_is_found_and_goes_down(wgctl: Wgctl) -> None:
    assert wgctl("status", "--json", status=4).json["state"] == "not running"
    record = wgctl("up", "--detach", "--json").json
    assert record["server"].startswith("http://127.0.0.1:")
    status = wgctl("status", "--json").json
    assert (status["state"], status["pid"], status["server"]) == ("running", record["pid"], record["server"])
    assert status["token"].endswith("(admin)")
    assert "no jobs" in wgctl("jobs", "ls").err
    check_privacy(wgctl.home)
    assert wgctl("down", "--json").json == {"was_running": True}
    assert not psutil.pid_exists(record["pid"])
    assert wgctl("down").out == "nothing was running\n"


def check_privacy(home: Path) -> None:
    """Only the owner may look into the home, and the token is in one file only."""
    secret = (home / "token").read_text().strip().rpartition("_")[2].encode()
    for path in [home, *home.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        if path.is_file() and path.name != "token":
            assert secret not in path.read_bytes(), path


def test_two_services_never_run_in_one_home(wgctl: Wgctl) -> None:
    record = wgctl("up", "--detach", "--json").json
    for command in (["up", "--detach"], ["serve"]):
        answer = wgctl(*command, "--json", status=5)
        assert answer.error["code"] == "already_running"
        assert record["server"] in answer.error["detail"]
    assert wgctl("status", "--json").json["pid"] == record["pid"]


def test_a_token_is_kept_while_it_is_good_and_made_anew_when_it_is_not(wgctl: Wgctl) -> None:
    wgctl("up", "--detach")
    good = (wgctl.home / "token").read_text()
    wgctl.kill_service()
    wgctl("up", "--detach")
    assert (wgctl.home / "token").read_text() == good
    wgctl.kill_service()
    (wgctl.home / "token").write_text("wgt_000000000000_" + "0" * 64)
    wgctl("up", "--detach")
    wgctl("jobs", "ls")


def test_of_many_that_start_at_once_one_wins(wgctl: Wgctl) -> None:
    started = [wgctl.start("up", "--detach", "--json") for _ in range(3)]
    ends = [(process.communicate(timeout=120), process.returncode) for process in started]
    assert sorted(code for _, code in ends) == [0, 5, 5], ends
    [won] = [json.loads(out) for (out, _), code in ends if code == 0]
    assert wgctl("status", "--json").json["pid"] == won["pid"]


def test_a_taken_port_is_said_and_nothing_is_left_behind(wgctl: Wgctl) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answer = wgctl("up", "--detach", "--port", str(taken.getsockname()[1]), "--json", status=7)
    assert answer.error["code"] == "port_taken"
    assert wgctl("status", "--json", status=4).json["state"] == "not running"
    wgctl("up", "--detach")


def test_what_a_crash_leaves_behind_harms_nothing(wgctl: Wgctl) -> None:
    first = wgctl("up", "--detach", "--json").json
    wgctl.kill_service()
    assert wgctl("status", status=4).out == "not running\n"
    assert wgctl("jobs", "ls", "--json", status=7).error["code"] == "service_unreachable"
    with subprocess.Popen(["sleep", "60"]) as innocent:
        # The number of the service's process may have gone to another one since.
        (wgctl.home / "holder.json").write_text(json.dumps({"pid": innocent.pid, "began": psutil.Process(innocent.pid).create_time()}))
        assert wgctl("down", "--json").json == {"was_running": False}
        assert innocent.poll() is None
        innocent.kill()
    second = wgctl("up", "--detach", "--json").json
    assert second["server"] == first["server"], "whoever follows a job finds it where it was"


def test_a_later_process_with_the_services_number_is_left_alone(wgctl: Wgctl) -> None:
    home = Home(wgctl.home)
    began = psutil.Process().create_time()
    with home.locked():
        assert home.holder() is not None
        home.holder_file.write_text(json.dumps({"pid": os.getpid(), "began": began - 1000}))
        assert home.holder() is None
        assert home.running() is None
    home.holder_file.write_text(json.dumps({"pid": os.getpid(), "began": began}))
    assert home.holder() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_in_the_foreground_it_ends_at_a_signal(number: signal.Signals, wgctl: Wgctl) -> None:
    process = wgctl.start("up", "--json")
    assert process.stdout is not None
    record = json.loads(process.stdout.readline())
    assert record["pid"] == process.pid
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("", 0), err
    assert "Traceback" not in err


def test_a_service_that_does_not_end_by_itself_is_killed(wgctl: Wgctl) -> None:
    pid = wgctl("up", "--detach", "--json").json["pid"]
    os.kill(pid, signal.SIGSTOP)
    assert wgctl("down", "--timeout", "1", "--json").json == {"was_running": True}
    assert not psutil.pid_exists(pid)


def test_settings_of_another_service_are_refused(make_wgctl: Maker) -> None:
    wgctl = make_wgctl(WEGEFT_DATABASE_URL="postgresql+psycopg://me:s3cr3t@host/name", WEGEFT_HOST="0.0.0.0")
    answer = wgctl("up", "--detach", status=2)
    assert "WEGEFT_DATABASE_URL" in answer.err
    assert "WEGEFT_HOST" in answer.err
    assert "s3cr3t" not in answer.err


def test_why_it_does_not_start_is_told(wgctl: Wgctl) -> None:
    wgctl.home.mkdir(exist_ok=True)
    (wgctl.home / "hub.db").write_bytes(b"not a database" * 1000)
    assert wgctl("up", "--detach", "--json", status=7).error["code"] == "database_unavailable"


def test_a_home_that_cannot_be_is_said(make_wgctl: Maker, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = make_wgctl(WEGEFT_HOME=str(tmp_path / "file" / "home"))("up", "--detach", status=2)
    assert "WEGEFT_HOME" in answer.err


def test_a_hub_alone_serves_no_jobs_and_is_found_by_its_address(wgctl: Wgctl, make_wgctl: Maker) -> None:
    process = wgctl.start("serve", "--only", "hub", "--json")
    assert process.stdout is not None
    server = json.loads(process.stdout.readline())["server"]
    token = (wgctl.home / "token").read_text().strip()
    elsewhere = make_wgctl(WEGEFT_SERVER=server, WEGEFT_TOKEN=token)
    assert elsewhere("status", "--json").json["server"] == server
    assert elsewhere("adapters", "ls", "--json").json["adapters"] == []
    assert elsewhere("jobs", "ls", "--json", status=4).error["code"] == "not_found"
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert elsewhere("status", "--json", status=7).error["code"] == "service_unreachable"
