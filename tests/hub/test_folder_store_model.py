"""A folder store against the store in memory, call by call in any order."""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from hub.folder_store import FolderStore
from hub.objects import MemoryStore, ObjectStore
from tests.hub.test_folder_store import everything
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import BlobNotFound, DigestMismatch, WegeftError

CONTENTS = st.binary(max_size=40)


class FollowsTheModel(RuleBasedStateMachine):
    """A folder does what a dictionary does, whatever the order, opened anew at any time."""

    blobs = Bundle("blobs")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(f"/tmp/wgfolder-{os.getpid()}-{time.monotonic_ns()}")
        self.folder, self.model = FolderStore(self.root), MemoryStore()

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @rule(target=blobs, content=CONTENTS)
    def put(self, content: bytes) -> str:
        digest = digest_of(content)
        assert self.folder.put(digest, io.BytesIO(content)) == self.model.put(digest, io.BytesIO(content))
        return digest

    @rule(digest=blobs, content=CONTENTS)
    def put_wrong(self, digest: str, content: bytes) -> None:
        if digest_of(content) != digest:
            for store in (self.folder, self.model):
                with pytest.raises(DigestMismatch):
                    store.put(digest, io.BytesIO(content))

    @rule(digest=blobs)
    def delete(self, digest: str) -> None:
        self.folder.delete(digest)
        self.model.delete(digest)

    @rule(digest=blobs)
    def read(self, digest: str) -> None:
        assert self.outcome(lambda store: b"".join(store.get(digest)), self.folder) == self.outcome(
            lambda store: b"".join(store.get(digest)), self.model
        )

    @rule(digest=blobs, start=st.integers(0, 50), length=st.integers(0, 50))
    def read_part(self, digest: str, start: int, length: int) -> None:
        assert self.outcome(lambda store: store.range(digest, start, length), self.folder) == self.outcome(
            lambda store: store.range(digest, start, length), self.model
        )

    @rule(digest=blobs)
    def has(self, digest: str) -> None:
        assert self.folder.has(digest) == self.model.has(digest)

    @rule()
    def open_again(self) -> None:
        self.folder = FolderStore(self.root)

    @invariant()
    def holds_the_same(self) -> None:
        names = {path.rpartition("/")[2] for path in everything(self.root)}
        assert names == {digest.removeprefix("sha256:") for digest in self.model._blobs}

    def outcome(self, call: Callable[[ObjectStore], bytes], store: ObjectStore) -> bytes | type[WegeftError]:
        try:
            return call(store)
        except BlobNotFound as error:
            return type(error)


TestFollowsTheModel = FollowsTheModel.TestCase
TestFollowsTheModel.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
