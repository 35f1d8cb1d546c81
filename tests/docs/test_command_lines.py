"""Every command line on a page that people wrote can be given: wgctl takes its words, and what make and python are told to run is there."""

import re
import shlex
from pathlib import Path

import click
import pytest

from cli.main import load_command

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "bench/*.md", "examples/*/README.md")
    for page in ROOT.glob(pattern)
    if "Do not edit" not in page.read_text(encoding="utf-8")
)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def lines_of(page: str) -> list[str]:
    """Return the lines of the page's unnamed blocks of code, without remarks behind two spaces and a number sign."""
    blocks = re.findall(r"^```\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s{2,}#.*", "", line).strip() for block in blocks for line in block.splitlines()]


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    command, rest = load_command(words[0]), words[1:]
    while isinstance(command, click.Group) and rest and rest[0] in command.commands:
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def problem_with(line: str) -> str:
    """Return what wgctl finds wrong with the words behind it: nothing, a file that is ``absent``, or more."""
    command, rest = find_command(shlex.split(line))
    if isinstance(command, click.Group):
        return "not a whole command"
    try:
        command.make_context(line, rest).close()
    except click.UsageError as error:
        return "absent" if "does not exist" in error.format_message() else error.format_message()
    return ""


def lines_of_wgctl() -> list[tuple[str, str]]:
    return [(page, line.removeprefix("wgctl ")) for page in PAGES for line in lines_of(page) if line.startswith("wgctl ")]


def mentions_of_wgctl() -> list[tuple[str, str]]:
    return [(page, found) for page in PAGES for found in sorted(set(re.findall(r"`wgctl ([^`…]*)", text_of(page))))]


def test_pages_are_found() -> None:
    assert {"README.md", "docs/federation.md", "examples/digits/README.md", "examples/recipes/README.md"} <= set(PAGES)
    assert {page for page, _ in lines_of_wgctl()} >= {"README.md", "examples/federation/README.md", "examples/digits/README.md"}


@pytest.mark.parametrize(("page", "line"), lines_of_wgctl())
def test_wgctl_takes_a_line_of_a_block(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All words are taken, and none is missing; files that a reader brings along need not be there."""
    monkeypatch.chdir((ROOT / page).parent if "recipes" in page else ROOT)
    assert problem_with(line) in ("", "absent" if "examples/" not in line else "")


@pytest.mark.parametrize("line", ["jobs", "jobs ls --nothing", "jobs show", "submit examples/digits/job.yaml --wait=1", "hub gc x"])
def test_a_wrong_line_would_be_found(line: str) -> None:
    assert problem_with(line) not in ("", "absent")


@pytest.mark.parametrize(("page", "words"), mentions_of_wgctl())
def test_command_in_a_sentence_exists_with_its_options(page: str, words: str) -> None:
    command, rest = find_command(shlex.split(words))
    assert not isinstance(command, click.Group) or not rest, page
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("-")} <= options, page


@pytest.mark.parametrize("page", PAGES)
def test_make_knows_every_target_that_is_named(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text_of(page), re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES)
def test_what_python_runs_is_there(page: str) -> None:
    modules = re.findall(r"(?:^|`)python -m ([\w.]+)", text_of(page), re.MULTILINE)
    assert [name for name in modules if not (ROOT / name.replace(".", "/")).with_suffix(".py").exists()] == []
    files = re.findall(r"(?:^|`)python ([\w/]+\.py)", text_of(page), re.MULTILINE)
    assert [name for name in files if not (ROOT / name).exists() and not (ROOT / page).with_name(name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", text_of(page))
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []
