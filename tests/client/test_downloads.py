"""Downloading a version: from the real service, and from servers that lie."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from hub.objects import VERIFIED_FIRST_BYTES, MemoryStore
from tests.client.raw import answering, http
from tests.client.test_service import claim, publish
from tests.orchestrator.samples import make_spec
from tests.orchestrator.serving import Site, adapter_files, listening
from wegeft.client import AttemptClient, Client
from wegeft.contracts.adapter import CONFIG_FILE, TITLE_ANNOTATION, WEIGHTS_FILE, FileEntry, Manifest, VersionView, digest_of, make_manifest
from wegeft.contracts.errors import (
    AliasNotFound,
    DigestMismatch,
    InvalidReference,
    InvalidSetting,
    ServiceUnreachable,
    StorageFull,
    UnexpectedAnswer,
    WegeftError,
)
from wegeft.contracts.pulling import PullView
from wegeft.contracts.signing_keys import KeySet

ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    """What a folder holds."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_version_becomes_a_folder(site: Site, url: str, client: Client, tmp_path: Path) -> None:
    """By number, by alias, or the latest; parents are made; the files are those that were published."""
    for seed in (1, 2):
        publish(site, url, client, adapter_files(seed=seed), output={"adapter": "demo/sums"})
    client.set_alias("demo/sums", "stable", 1)
    for ref, seed in (("demo/sums", 2), ("demo/sums@1", 1), ("DEMO/Sums@stable", 1)):
        folder = tmp_path / "deep" / ref.replace("/", "-").replace("@", "-") / "adapter"
        assert client.download(ref, folder).version == seed
        assert contents(folder) == adapter_files(seed=seed)
        assert [path.name for path in folder.parent.iterdir()] == ["adapter"], "nothing else is left"
    with pytest.raises(AliasNotFound):
        client.download("demo/sums@none", tmp_path / "none")
    with pytest.raises(InvalidReference):
        client.download("demo/sums@no such", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_files_can_be_read_by_others(site: Site, url: str, client: Client, tmp_path: Path) -> None:
    """As the user's mask has it, not as a temporary folder's."""
    publish(site, url, client, adapter_files())
    client.download("local/sums", tmp_path / "a")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "a" / WEIGHTS_FILE).stat().st_mode & 0o777 == 0o644


def test_what_is_there_is_not_touched(site: Site, url: str, client: Client, tmp_path: Path) -> None:
    """Unless it is to be overwritten, and even then only where it is an adapter and nothing more."""
    for seed in (1, 2):
        publish(site, url, client, adapter_files(seed=seed))
    folder = tmp_path / "adapter"
    folder.mkdir()
    client.download("local/sums@1", folder)
    with pytest.raises(InvalidSetting, match="there is something already"):
        client.download("local/sums@2", folder)
    assert contents(folder) == adapter_files(seed=1)
    client.download("local/sums@2", folder, overwrite=True)
    assert contents(folder) == adapter_files(seed=2)
    (folder / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InvalidSetting):
            client.download("local/sums@1", folder, overwrite=overwrite)
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InvalidSetting):
            client.download("local/sums@1", tmp_path / "file", overwrite=overwrite)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(InvalidSetting, match="cannot write"):
        client.download("local/sums@1", tmp_path / "file" / "below")
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".db" and "service" not in path.name) == ["adapter", "file"]


def test_a_rotten_version_is_not_downloaded(site: Site, tmp_path: Path) -> None:
    """And an adapter that was there stays as it was."""
    site.store = store = RottingStore()
    site.__post_init__()
    with listening(site.app()) as url, Client(url, site.tokens["write"], patience_seconds=0.5) as client:
        publish(site, url, client, adapter_files(seed=1))
        client.download("local/sums", tmp_path / "adapter")
        store.rot(digest_of(adapter_files(seed=1)[WEIGHTS_FILE]))
        for overwrite, folder in ((True, "adapter"), (False, "new")):
            with pytest.raises(DigestMismatch):
                client.download("local/sums", tmp_path / folder, overwrite=overwrite)
    assert contents(tmp_path / "adapter") == adapter_files(seed=1)
    assert not (tmp_path / "new").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("size", [3 << 20, VERIFIED_FIRST_BYTES], ids=["verified first", "cut at the end"])
def test_rot_is_told_at_once_and_mended_by_an_upload(site: Site, tmp_path: Path, size: int) -> None:
    """Whatever its size: before the answer begins, or by the answer to the second try."""
    site.store = store = RottingStore()
    site.__post_init__()
    with listening(site.app()) as url, Client(url, site.tokens["write"]) as client:
        shapes = {"phi": (size // 16, 2), "psi": (2, size // 16)}
        weights = {f"base_model.wegeft_generators.q_proj.{name}": np.ones(shape, np.float32) for name, shape in shapes.items()}
        files = adapter_files(rank=2) | {WEIGHTS_FILE: save(weights)}
        assert len(files[WEIGHTS_FILE]) > size
        publish(site, url, client, files)
        store.rot(digest_of(files[WEIGHTS_FILE]))
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(DigestMismatch):
                client.download("local/sums", tmp_path / "adapter")
            assert time.monotonic() - began < 5
            assert not (tmp_path / "adapter").exists()
        client.upload(files[WEIGHTS_FILE])
        client.download("local/sums", tmp_path / "adapter")
    assert contents(tmp_path / "adapter") == files


def test_rot_in_a_data_set_is_told_to_the_attempt_at_once(site: Site, tmp_path: Path) -> None:
    """Of several chunks; the worker can then end the job, and an upload mends it for the next one."""
    content = b'{"prompt": "a", "completion": "b"}\n' * 100_000
    site.store = store = RottingStore()
    site.__post_init__()
    with listening(site.app()) as url, Client(url, site.tokens["write"]) as client:
        digest = client.upload(content).digest
        client.submit(make_spec(datasets=[{"path": digest, "file_format": "jsonl", "type": "prompt_completion"}]))
        with AttemptClient(claim(site, url)) as worker:
            worker.task()
            store.rot(digest)
            began = time.monotonic()
            with pytest.raises(DigestMismatch):
                worker.get_blob(digest, tmp_path / "data")
            assert time.monotonic() - began < 5
            assert list(tmp_path.glob("*data*")) == []
            client.upload(content)
            assert worker.get_blob(digest, tmp_path / "data") == len(content)


class RottingStore(MemoryStore):
    """A store whose bytes can be changed behind its back."""

    def rot(self, digest: str) -> None:
        content = self._blobs[digest]
        self._blobs[digest] = content[:-1] + bytes([content[-1] ^ 1])


def test_a_full_disk_leaves_nothing(site: Site, url: str, client: Client, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk's."""
    publish(site, url, client, adapter_files(rank=64), rank=64)
    code = f"""
import resource
from pathlib import Path
from wegeft.client import Client
from wegeft.contracts.errors import StorageFull
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with Client({url!r}, {site.tokens["read"]!r}) as client:
    try:
        client.download("local/sums", Path({str(tmp_path / "adapter")!r}))
    except StorageFull as error:
        raise SystemExit(f"{{error.code}}: {{error}}")
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
    assert answer.stderr.startswith(f"{StorageFull.code}: {tmp_path}"), answer.stderr
    assert [path.name for path in tmp_path.iterdir() if "adapter" in path.name] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(site: Site, url: str, client: Client, tmp_path: Path) -> None:
    """Is told by name."""
    publish(site, url, client, adapter_files())
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(InvalidSetting, match="Permission denied"):
        client.download("local/sums", tmp_path / "closed" / "adapter")


def version_of(files: dict[str, bytes], **changes: Any) -> VersionView:
    """A version as a server might tell it; ``changes`` are its lies."""
    entries = tuple(FileEntry(path=path, digest=digest_of(content), size=len(content)) for path, content in files.items())
    manifest = changes.pop("manifest", None) or make_manifest(entries, {})
    view = VersionView(
        adapter="demo/sums",
        version=1,
        manifest_digest=digest_of(manifest.to_bytes()),
        manifest=manifest,
        source="job:1",
        base_model="org/model",
        method="wegeft",
        rank=2,
        created_at=datetime(2026, 11, 21, tzinfo=UTC),
        size=1,
    )
    return view.model_copy(update=changes)


def lying(view: VersionView, *answers: bytes) -> Any:
    """A server that tells this version, that it never signs, and then answers so."""
    return answering(http(200, PullView(version=view, keys=KeySet(keys=())).model_dump_json().encode()), *answers)


def refuses(view: VersionView, folder: Path, kind: type[WegeftError], *answers: bytes) -> None:
    """Downloading from such a server must fail so, with nothing written anywhere."""
    before = sorted(folder.rglob("*"))
    with lying(view, *answers) as (url, _), Client(url, "t", patience_seconds=0) as client, pytest.raises(kind):
        client.download("demo/sums", folder / "adapter")
    assert sorted(folder.rglob("*")) == before
    assert not (folder.parent / "evil").exists()


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "..", ".", "", "a/b", "a\\b", "c:evil", "evil\0.json"])
def test_a_manifest_cannot_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    """Whatever it calls its files."""
    view = version_of({CONFIG_FILE: b"{}", name: b"evil"})
    refuses(view, tmp_path, UnexpectedAnswer, http(200, b"evil"))


def test_manifests_that_lie(tmp_path: Path) -> None:
    """About their digest, about names, about whose they are."""
    good = {CONFIG_FILE: b"{}", WEIGHTS_FILE: b"w"}
    refuses(version_of(good, manifest_digest=digest_of(b"other")), tmp_path, DigestMismatch)
    refuses(version_of(good, adapter="evil/sums"), tmp_path, UnexpectedAnswer)
    twice = make_manifest(tuple(FileEntry(path=CONFIG_FILE, digest=digest_of(b"{}"), size=2) for _ in range(2)), {})
    refuses(version_of({}, manifest=twice), tmp_path, UnexpectedAnswer)
    nameless = json.loads(make_manifest((FileEntry(path=CONFIG_FILE, digest=digest_of(b"{}"), size=2),), {}).to_bytes())
    del nameless["layers"][0]["annotations"][TITLE_ANNOTATION]
    refuses(version_of({}, manifest=Manifest.model_validate(nameless)), tmp_path, UnexpectedAnswer)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (http(200, b"[]"), DigestMismatch),
        (http(200, b"{} and much more"), DigestMismatch),
        (http(200, b""), ServiceUnreachable),
        (http(200, b"{", length=2), ServiceUnreachable),
        (http(404, b"gone"), UnexpectedAnswer),
    ],
)
def test_files_that_lie(answer: bytes, kind: type[WegeftError], tmp_path: Path) -> None:
    """Wrong bytes, too many, too few: no folder."""
    refuses(version_of({CONFIG_FILE: b"{}"}), tmp_path, kind, answer)


def test_a_file_that_was_cut_is_fetched_again(tmp_path: Path) -> None:
    """The folder is there once it is whole."""
    with (
        lying(version_of({CONFIG_FILE: b"{}"}), http(200, b"{", length=2), b"", http(200, b"{}")) as (url, requests),
        Client(url, "t", patience_seconds=10) as client,
    ):
        client.download("demo/sums", tmp_path / "adapter")
    assert contents(tmp_path / "adapter") == {CONFIG_FILE: b"{}"}
    assert len(requests) == 4
