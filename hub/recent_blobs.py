"""Short blobs that were read lately, in memory: a blob never changes, so what was verified once need not be read and hashed again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from hub.objects import ObjectStore, read_verified


@dataclass(eq=False)
class RecentBlobs:
    """Holds up to ``most_bytes`` of verified bytes, those that were asked for last; safe to use from several threads.

    It knows nothing of who may read what, and nothing of what the catalog has forgotten: whoever asks has found the digest there. While a
    blob is held, that the store has let it rot is not noticed, and nobody is given wrong bytes.
    """

    most_bytes: int = 0
    """0 holds nothing."""
    _held: OrderedDict[str, bytes] = field(default_factory=OrderedDict, repr=False)
    _size: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def read(self, store: ObjectStore, digest: str, max_bytes: int) -> bytes:
        """Return a blob's bytes; raises as :func:`hub.objects.read_verified` does where they are not held."""
        with self._lock:
            if (held := self._held.get(digest)) is not None:
                self._held.move_to_end(digest)
                return held
        content = read_verified(store, digest, max_bytes)
        self._hold(digest, content)
        return content

    def _hold(self, digest: str, content: bytes) -> None:
        if len(content) > self.most_bytes:
            return
        with self._lock:
            if digest not in self._held:
                self._held[digest] = content
                self._size += len(content)
            while self._size > self.most_bytes:
                self._size -= len(self._held.popitem(last=False)[1])
