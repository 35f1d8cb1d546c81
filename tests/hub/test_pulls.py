"""The answer that a pull begins with: what follows it, what does not, and what it may be read from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from hub.folder_store import FolderStore
from hub.objects import MemoryStore
from hub.pulls import begin_pull
from hub.recent_blobs import RecentBlobs
from hub.signing import Signer
from tests.hub.serving import CONFIG, WEIGHTS, Hub, made_hub
from wegeft.contracts.adapter import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, AdapterRef, FileEntry, VersionView, digest_of, make_manifest
from wegeft.contracts.errors import BlobNotFound, DigestMismatch, UnexpectedAnswer
from wegeft.contracts.pulling import MAX_FOLLOWING_BYTES, PullView, read_pull, write_pull
from wegeft.contracts.signing_keys import KeySet, SigningKey

REF = AdapterRef.parse("demo/arithmetic")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """That signs, on a folder."""
    store = FolderStore(tmp_path / "blobs")
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", store, Signer(key=SigningKey(bytes(32)))) as hub:
        yield hub


def test_short_files_follow_and_long_ones_do_not(hub: Hub) -> None:
    long = b"x" * MAX_FOLLOWING_BYTES
    hub.publish_files("job:1", "demo/arithmetic", {CONFIG_FILE: CONFIG, WEIGHTS_FILE: long, CARD_FILE: b""})
    view, contents = read_pull(begin_pull(hub.services, REF))
    assert contents == {CARD_FILE: b"", CONFIG_FILE: CONFIG}, "all that follow are two mebibytes at most"
    assert view.version.signature is not None
    assert view.keys.keys
    hub.publish("job:2")
    assert read_pull(begin_pull(hub.services, REF))[1] == {CONFIG_FILE: CONFIG, WEIGHTS_FILE: WEIGHTS}


def test_what_has_rotted_does_not_follow(hub: Hub, tmp_path: Path) -> None:
    hub.publish()
    name = digest_of(WEIGHTS).removeprefix("sha256:")
    path = tmp_path / "blobs" / "sha256" / name[:2] / name[2:4] / name
    path.chmod(0o644)
    path.write_bytes(b"?" + WEIGHTS[1:])
    assert read_pull(begin_pull(hub.services, REF))[1] == {CONFIG_FILE: CONFIG}


def test_what_was_pulled_lately_is_not_read_again(hub: Hub) -> None:
    """And is right, whatever the store has become since."""
    hub.publish()
    services = replace(hub.services, recent=RecentBlobs(1 << 20))
    first = begin_pull(services, REF)
    hub.store.delete(digest_of(WEIGHTS))
    assert begin_pull(services, REF) == first
    assert read_pull(begin_pull(hub.services, REF))[1] == {CONFIG_FILE: CONFIG}


def test_as_much_is_held_as_may_be_and_the_last_read_stays() -> None:
    store, recent = MemoryStore(), RecentBlobs(10)
    names = [digest_of(content) for content in (b"aaaa", b"bbbb", b"cccc", b"d" * 11)]
    for name, content in zip(names, (b"aaaa", b"bbbb", b"cccc", b"d" * 11), strict=True):
        store._blobs[name] = content
    for index in (0, 1, 0, 2, 3):
        assert digest_of(recent.read(store, names[index], 20)) == names[index]
    store._blobs.clear()
    assert [recent.read(store, names[index], 20) for index in (0, 2)] == [b"aaaa", b"cccc"]
    for index in (1, 3):
        with pytest.raises(BlobNotFound):
            recent.read(store, names[index], 20)


def test_wrong_bytes_are_never_held() -> None:
    store, recent = MemoryStore(), RecentBlobs(10)
    store._blobs[digest_of(b"right")] = b"wrong"
    for _ in range(2):
        with pytest.raises(DigestMismatch):
            recent.read(store, digest_of(b"right"), 20)
    assert recent._held == {}


def view_of(following: tuple[str, ...], **sizes: int) -> PullView:
    files = tuple(FileEntry(path=path, digest=digest_of(path.encode()), size=size) for path, size in {CONFIG_FILE: 0, **sizes}.items())
    manifest = make_manifest(files, {})
    told: dict[str, Any] = {"source": "job:1", "base_model": "b", "method": "wegeft", "rank": 1, "size": 1}
    version = VersionView(
        adapter="a/b",
        version=1,
        manifest_digest="sha256:" + "0" * 64,
        manifest=manifest,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        **told,
    )
    return PullView(version=version, following=following, keys=KeySet(keys=()))


def test_an_answer_is_read_as_it_was_written() -> None:
    view, contents = view_of(("b", "a"), a=2, b=3, c=4), {"a": b"a\n", "b": b"\nbb"}
    assert read_pull(write_pull(view, contents)) == (view, contents)
    bare = view_of(())
    assert read_pull(bare.model_dump_json().encode()) == (bare, {})


@pytest.mark.parametrize(
    ("view", "rest"),
    [
        (view_of(("a",), a=2), b"a"),
        (view_of(("a",), a=2), b"abc"),
        (view_of((), a=2), b"ab"),
        (view_of(("a", "a"), a=1), b"aa"),
        (view_of(("other",), a=2), b"ab"),
        (view_of(("a",), a=1 << 60), b"ab"),
    ],
)
def test_an_answer_of_another_length_than_it_says_is_refused(view: PullView, rest: bytes) -> None:
    with pytest.raises(UnexpectedAnswer):
        read_pull(view.model_dump_json().encode() + b"\n" + rest)


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"[]", b"\xff\n"])
def test_what_is_no_answer_is_refused(content: bytes) -> None:
    with pytest.raises(ValidationError):
        read_pull(content)
