"""Every command explains itself, loads little, and ends with a message and an exit status that mean something."""

import json
import os
import pty
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli.failures import INTERNAL, MEANINGS
from cli.main import COMMANDS, PANELS, load_command, main
from cli.main import wgctl as group
from tests.cli.conftest import Wgctl
from wegeft.contracts.errors import ERROR_KINDS

EXAMPLES = Path(__file__).parents[2] / "examples"


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, f"{path} {name}")
    elif not command.hidden:
        yield path, command


SHOWN = {path: command for name in COMMANDS for path, command in commands(load_command(name), name)}


@pytest.mark.parametrize(("path", "command"), SHOWN.items(), ids=list(SHOWN))
def test_every_command_shows_an_example_and_speaks_json(path: str, command: click.Command) -> None:
    answer = CliRunner().invoke(group, [*path.split(), "--help"], prog_name="wgctl")
    assert answer.exit_code == 0, answer.output
    assert f"$ wgctl {path}" in " ".join(answer.output.split())
    assert "--json" in answer.output
    assert (command.help or "").splitlines()[0].endswith(".")


def test_the_list_of_commands_says_what_each_says_of_itself() -> None:
    for name, entry in COMMANDS.items():
        assert (load_command(name).help or "").splitlines()[0] == entry.summary or entry.is_hidden
    listed = [name for names in PANELS.values() for name in names]
    assert sorted(listed) == sorted(name for name, entry in COMMANDS.items() if not entry.is_hidden)


def test_help_is_fast_and_loads_nothing_heavy(wgctl: Wgctl) -> None:
    heavy = {"torch", "ray", "transformers", "fastapi", "sqlalchemy", "httpx2", "pydantic"}
    code = f"import sys, cli.main; cli.main.main(['--help']); found = {heavy} & set(sys.modules); sys.exit(str(found) if found else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=wgctl.folder)
    assert done.returncode == 0, done.stderr
    helps, bares = [], []
    for _ in range(3):
        helps.append(processor_seconds(lambda: wgctl.start("--help").communicate()))
        bares.append(processor_seconds(lambda: subprocess.run([sys.executable, "-c", "import rich_click"], check=True, cwd=wgctl.folder)))
    assert min(helps) < 4 * min(bares), "help takes several times as long as the library that prints it"


def processor_seconds(act: Callable[[], object]) -> float:
    """Return what the processes that an act waits for have worked; by the clock, whoever else works would count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    act()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_version_is_the_distributions(wgctl: Wgctl) -> None:
    """Told by the program that the distribution installs, from its very start."""
    out, err = wgctl.start("--version").communicate(timeout=60)
    assert out.startswith("wgctl 0."), err


@pytest.mark.parametrize("line", ["nonsense", "jobs nonsense", "submit", "jobs ls --limit many", "serve --pool slurm"])
def test_wrong_usage_ends_with_2_and_points_to_help(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert "--help" in shown.err
    assert main([*line.split(), "--json"]) == 2
    body = json.loads(capsys.readouterr().err)
    assert body["code"] == "invalid_setting"
    assert body["problems"]


def test_nothing_to_talk_to_is_said_with_what_to_do(wgctl: Wgctl) -> None:
    answer = wgctl("jobs", "ls", status=7)
    assert "wgctl up --detach" in answer.err
    assert wgctl("jobs", "ls", "--json", status=7).error["code"] == "service_unreachable"


@pytest.mark.parametrize("option", ["-o", "--set", "--override"])
def test_a_field_is_set_by_each_spelling_of_the_option(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(EXAMPLES / "arithmetic" / "job.yaml"), option, "rank=many", "--json"]) == 2
    problems = json.loads(capsys.readouterr().err)["problems"]
    assert ("rank", "many") in [(problem["path"], problem["value"]) for problem in problems]


def test_a_server_without_a_token_is_refused_here(make_wgctl: Callable[..., Wgctl]) -> None:
    wgctl = make_wgctl(WEGEFT_SERVER="http://127.0.0.1:9")
    assert "WEGEFT_TOKEN" in wgctl("jobs", "ls", status=2).err


def test_a_wrong_setting_stops_every_command(make_wgctl: Callable[..., Wgctl]) -> None:
    wgctl = make_wgctl(WEGEFT_SEVER="x", WEGEFT_PORT="x")
    for command in (["jobs", "ls"], ["up", "--detach"], ["submit", "job.yaml"]):
        answer = wgctl(*command, status=2)
        assert "did you mean WEGEFT_SERVER?" in answer.err
        assert "WEGEFT_PORT" in answer.err


def test_a_reader_that_goes_away_is_no_error(wgctl: Wgctl) -> None:
    reading, writing = os.pipe()
    process = wgctl.start("validate", "-h", stdout=writing)
    os.close(reading)
    os.close(writing)
    _, shown = process.communicate(timeout=60)
    assert shown == ""


@pytest.mark.parametrize(
    ("environment", "is_coloured"), [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_are_for_terminals_that_want_them(environment: dict[str, str], is_coloured: bool, make_wgctl: Callable[..., Wgctl]) -> None:
    terminal, inner = pty.openpty()
    process = make_wgctl(**environment).start("validate", "nothing.yaml", stdout=inner, stderr=inner)
    os.close(inner)
    process.wait(60)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert "the job file cannot be read" in shown
    assert ("\x1b[1;31m" in shown) == is_coloured


def test_a_fault_of_ours_leaves_a_file_and_no_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "wgt_0123456789ab_" + "f" * 64

    def fail(_group: click.Group, _context: click.Context) -> None:
        raise RuntimeError(f"boom with {secret}")

    monkeypatch.setattr(type(group), "invoke", fail)
    assert main(["validate", "job.yaml"]) == INTERNAL
    shown = capsys.readouterr().err
    assert "RuntimeError" in shown
    assert "Traceback" not in shown
    text = Path(shown.split("report it with ")[1].strip()).read_text()
    assert "Traceback" in text
    assert secret not in text


def test_every_exit_status_of_an_error_has_a_meaning() -> None:
    assert {kind.exit_status for kind in ERROR_KINDS.values()} <= set(MEANINGS)
