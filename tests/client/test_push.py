"""Pushing a folder: a version that the gate has passed, once, or nothing at all."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.auth import Role, create_token
from infra.database import writing
from tests.orchestrator.serving import Site, adapter_files, listening, now
from wegeft.client import Client
from wegeft.contracts.adapter import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from wegeft.contracts.errors import AdapterNotFound, Forbidden, InvalidData, InvalidInput, InvalidReference, StaleParent

NAME = "acme/pushed"


@pytest.fixture
def ada(site: Site, url: str) -> Iterator[Client]:
    """Somebody whose account's name can be a namespace's owner."""
    with writing(site.engine) as connection:
        token = create_token(connection, "ada", Role.WRITE, now())[1]
    with Client(url, token) as client:
        yield client


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def adapter(folder: Path, seed: int = 7) -> Path:
    files = {name: content for name, content in adapter_files(seed=seed).items() if name in (CONFIG_FILE, WEIGHTS_FILE)}
    return write(folder, {**files, CARD_FILE: b"# Mine\n", "notes.txt": b"stay here"})


def test_a_folder_becomes_the_next_version_and_comes_back(ada: Client, tmp_path: Path) -> None:
    first = ada.push(adapter(tmp_path / "one"), NAME, message="by hand")
    assert first.ref == f"{NAME}@1"
    assert {entry.path for entry in first.manifest.files} == {CONFIG_FILE, WEIGHTS_FILE, CARD_FILE}
    assert ada.push(tmp_path / "one", NAME, message="by hand").ref == first.ref
    second = ada.push(adapter(tmp_path / "one", seed=8), NAME)
    assert second.ref == f"{NAME}@2"
    ada.download(NAME, tmp_path / "back")
    assert (tmp_path / "back" / WEIGHTS_FILE).read_bytes() == (tmp_path / "one" / WEIGHTS_FILE).read_bytes()
    assert ada.adapter(NAME).visibility == "private"


def test_only_on_top_of_its_parent(ada: Client, tmp_path: Path) -> None:
    first = ada.push(adapter(tmp_path / "one"), NAME)
    parent = first.manifest_digest.removeprefix("sha256:")[:40]
    ada.push(adapter(tmp_path / "two", seed=8), NAME, parent=parent)
    with pytest.raises(StaleParent):
        ada.push(adapter(tmp_path / "three", seed=9), NAME, parent=parent)
    assert ada.adapter(NAME).latest_version == 2


@pytest.mark.parametrize("missing", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_folder_that_is_no_adapter_is_told_before_anything_is_sent(ada: Client, tmp_path: Path, missing: str) -> None:
    (adapter(tmp_path / "one") / missing).unlink()
    with pytest.raises(InvalidData, match=missing):
        ada.push(tmp_path / "one", NAME)
    with pytest.raises(InvalidData, match="not a folder"):
        ada.push(tmp_path / "none", NAME)
    with pytest.raises(InvalidReference):
        ada.push(tmp_path / "one", "no-namespace")
    with pytest.raises(AdapterNotFound):
        ada.adapter(NAME)


def test_what_the_gate_refuses_is_told_in_full_and_not_published(ada: Client, tmp_path: Path) -> None:
    folder = write(adapter(tmp_path / "one"), {CONFIG_FILE: b'{"peft_type": "WEGEFT", "r": 0}'})
    with pytest.raises(InvalidInput) as caught:
        ada.push(folder, NAME)
    assert {"adapter_config.json: r", "adapter_config.json: target_modules"} <= {problem.path for problem in caught.value.problems}
    assert ada.adapters().adapters == ()


def test_nobody_pushes_to_anothers_namespace(ada: Client, site: Site, tmp_path: Path) -> None:
    ada.push(adapter(tmp_path / "one"), NAME)
    with writing(site.engine) as connection:
        token = create_token(connection, "mallory", Role.WRITE, now())[1]
    with listening(site.app()) as other, Client(other, token) as mallory, pytest.raises(Forbidden):
        mallory.push(tmp_path / "one", NAME)
    assert ada.adapter(NAME).latest_version == 1
