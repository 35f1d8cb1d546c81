"""What the README shows works: its job file, its commands, its targets of make, its Python and its links."""

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli.main import load_command
from examples.arithmetic.demo import JOB_FILE
from tests.tiny_models import make_model, make_model_folder
from wegeft.contracts.job import load_spec

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def command_lines() -> list[list[str]]:
    found = re.findall(r"(?:^|`)wgctl ([^`#\n…]*)", README, re.MULTILINE)
    return [shlex.split(line) for line in found if line.strip()]


def test_job_file_is_valid_and_the_demo_submits_its_sister() -> None:
    (block,) = blocks("yaml")
    shown, real = load_spec(block), load_spec(JOB_FILE.read_text(encoding="utf-8"))
    for field in ("rank", "alpha", "target_modules", "max_steps", "micro_batch_size", "learning_rate", "output"):
        assert getattr(shown, field) == getattr(real, field), field


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_command_exists_with_its_options(words: list[str]) -> None:
    """Each command is found, and each option that it is shown with is one of its own."""
    command = load_command(words[0])
    rest = words[1:]
    while isinstance(command, click.Group) and rest and rest[0] in command.commands:
        command, rest = command.commands[rest[0]], rest[1:]
    assert CliRunner().invoke(command, ["--help"]).exit_code == 0
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("-")} <= options


def test_make_knows_every_target_that_is_named() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {target for page in PAGES for target in re.findall(r"\bmake ([a-z]+)\b", page.read_text(encoding="utf-8"))}
    assert named - {"every", "what", "it", "a", "versions", "their"} <= targets
    assert {"demo", "test"} <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_python_runs(tmp_path: Path) -> None:
    """The library block makes an adapter, and the other block loads it; only the model's name and the folder's are changed."""
    loading, wrapping = blocks("python")
    model_folder = make_model_folder(tmp_path / "model")
    wrapped: dict[str, object] = {"model": make_model()}
    exec(compile(wrapping, "README.md", "exec"), wrapped)
    wrapped["model"].save_pretrained(tmp_path / "adapter")  # type: ignore[attr-defined]
    loading = loading.replace('"Qwen/Qwen2.5-0.5B-Instruct"', repr(str(model_folder))).replace('"adapter"', repr(str(tmp_path / "adapter")))
    loaded: dict[str, object] = {}
    exec(compile(loading, "README.md", "exec"), loaded)
    assert list(loaded["model"].peft_config) == ["default"]  # type: ignore[attr-defined]
