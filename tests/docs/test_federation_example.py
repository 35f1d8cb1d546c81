"""The example of a federation: its job file is right, its sites share no row, and its README names commands that there are."""

import json
import re
import shlex
from pathlib import Path

import click

from cli.main import load_command
from examples.federation.demo import JOB_FILE
from examples.federation.split import ROWS, split
from wegeft.contracts.job import load_spec


def test_job_file_is_a_federation_that_three_sites_can_close() -> None:
    spec = load_spec(JOB_FILE.read_text(encoding="utf-8"))
    assert spec.federation is not None
    assert spec.datasets == ()
    assert spec.federation.min_sites == 3


def test_every_row_is_one_sites_own(tmp_path: Path) -> None:
    files = split(tmp_path)
    rows = {name: file.read_text(encoding="utf-8").splitlines() for name, file in files.items()}
    assert list(rows) == ["site-a", "site-b", "site-c"]
    assert sorted(row for part in rows.values() for row in part) == sorted(ROWS.read_text(encoding="utf-8").splitlines())
    assert all(" + " in json.loads(row)["messages"][0]["content"] for row in rows["site-a"])
    assert not any(" + " in row for name in ("site-b", "site-c") for row in rows[name])


def test_commands_of_the_readme_are_there() -> None:
    text = JOB_FILE.with_name("README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^wgctl (.+)$", text, re.MULTILINE)
    assert len(lines) == 6
    for line in lines:
        name, *rest = shlex.split(line)
        command = load_command(name)
        if isinstance(command, click.Group):
            command = command.get_command(click.Context(command), rest.pop(0)) or command
        options = {option for parameter in command.params for option in parameter.opts}
        assert {part for part in rest if part.startswith("--")} <= options, line
