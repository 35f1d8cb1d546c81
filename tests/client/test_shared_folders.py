"""Pulling into a folder where others may write: what they have put under a name that they can guess is neither read nor changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hub.folder_store import FolderStore
from tests.hub.serving import listening, made_hub
from tests.hub.test_direct import adapter_of
from wegeft.client import Client, downloads
from wegeft.client.own_files import may_be_own, open_own
from wegeft.contracts.adapter import WEIGHTS_FILE, VersionView, digest_of

VICTIMS = b"the victim's own notes\n" * 20
SIZE = 300_000
"""Too long to come with the first answer of a pull."""


@dataclass
class Shared:
    """A version that is there to be pulled, and a folder that others may write to."""

    client: Client
    ref: str
    weights: bytes
    name: str
    """Of what is gathered beside the target, without its ending."""
    folder: Path

    def pull(self) -> None:
        """Pull, and check what came; nothing of ours is left beside it."""
        before = set(self.folder.iterdir())
        self.client.download(self.ref, self.folder / "adapter")
        assert (self.folder / "adapter" / WEIGHTS_FILE).read_bytes() == self.weights
        assert set(self.folder.iterdir()) - before == {self.folder / "adapter"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, VersionView, bytes]]:
    folder = tmp_path_factory.mktemp("hub")
    source = adapter_of(SIZE, folder / "source")
    with (
        made_hub(f"sqlite:///{folder / 'hub.db'}", FolderStore(folder / "blobs")) as hub,
        listening(hub.app) as url,
        Client(url, hub.tokens["write"], patience_seconds=0) as client,
    ):
        yield client, client.push(source, "a/b"), (source / WEIGHTS_FILE).read_bytes()


@pytest.fixture
def shared(published: tuple[Client, VersionView, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shared:
    monkeypatch.setattr(downloads, "RESUMED_FROM_BYTES", 1000)
    client, made, weights = published
    (tmp_path / "shared").mkdir()
    return Shared(client, made.ref, weights, f".{digest_of(weights)[7:39]}", tmp_path / "shared")


@pytest.mark.parametrize("plant", [Path.symlink_to, Path.hardlink_to], ids=["symlink", "hard link"])
@pytest.mark.parametrize("ending", [".lock", ".part"])
def test_a_link_that_somebody_has_planted_changes_no_other_file(
    shared: Shared, tmp_path: Path, ending: str, plant: Callable[[Path, Path], None]
) -> None:
    victim = tmp_path / "notes.txt"
    victim.write_bytes(VICTIMS)
    plant(shared.folder / f"{shared.name}{ending}", victim)
    shared.pull()
    assert victim.read_bytes() == VICTIMS


@pytest.mark.parametrize("ending", [".lock", ".part"])
def test_a_link_to_nowhere_makes_no_file_there(shared: Shared, tmp_path: Path, ending: str) -> None:
    (shared.folder / f"{shared.name}{ending}").symlink_to(tmp_path / "made")
    shared.pull()
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("ending", [".lock", ".part"])
@pytest.mark.parametrize("plant", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_stops_nobody(shared: Shared, ending: str, plant: Callable[[Path], None]) -> None:
    plant(shared.folder / f"{shared.name}{ending}")
    shared.pull()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("ending", [".lock", ".part"])
def test_a_file_of_another_user_is_not_gone_on_with(shared: Shared, ending: str) -> None:
    others = shared.folder / f"{shared.name}{ending}"
    others.write_bytes(VICTIMS)
    os.chown(others, 12345, 12345)
    assert not may_be_own(others)
    shared.pull()
    assert others.read_bytes() == VICTIMS


def test_what_waits_beside_the_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        with open_own(tmp_path / "new", makes=True) as file:
            file.write(b"some")
    finally:
        os.umask(mask)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    with open_own(tmp_path / "new", makes=True) as file:
        assert file.read() == b"some", "what is there is not cut"
    with pytest.raises(FileNotFoundError):
        open_own(tmp_path / "none", makes=False)
    assert may_be_own(tmp_path / "none")
