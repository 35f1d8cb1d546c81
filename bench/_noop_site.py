"""A site process that trains nothing: ``python -m bench._noop_site SITE.json``.

It does what ``wgctl site run`` does but for the training: signed requests, the start verified and on disk, a journal that is synced step by
step, the update sent, its receipt checked and kept. What it sends is noise, new each time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bench._round_timing import mark
from wegeft.client.site import SiteClient, SiteCredentials
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import FederationOver
from wegeft.contracts.federation import Offer, Update
from wegeft.contracts.tensors import read_tensors
from wegeft.contracts.wire import write_update
from workers.site_journal import Journal


def take_part(client: SiteClient, folder: Path, note: Callable[[str, int], None], work_seconds: float) -> None:
    """Answer offers until there are no more; ``note`` hears what happens in which round."""
    journal, random = Journal(folder), np.random.default_rng()
    while (offer := client.offer()) is None:
        pass
    while True:
        if offer is not None:
            note("heard", offer.round)
            answer(client, journal, offer, random, lambda number: begin(note, number, work_seconds))
        try:
            offer = client.offer()
        except FederationOver:
            return


def begin(note: Callable[[str, int], None], number: int, work_seconds: float) -> None:
    """Note that training begins, and sleep through it."""
    note("begun", number)
    time.sleep(work_seconds)


def answer(client: SiteClient, journal: Journal, offer: Offer, random: np.random.Generator, train: Callable[[int], None]) -> None:
    """Do one round."""
    entry, path = journal.open(offer), journal.start_file(offer.start)
    if not path.exists():
        client.fetch_blob(offer.start, path)
    read_tensors(path.read_bytes())
    train(offer.round)
    content = write_update(
        {name: np.float32(0.01) * random.standard_normal(form.shape, dtype=np.float32) for name, form in offer.tensors.items()}, offer.wire
    )
    update = update_of(offer, content)
    entry.keep_update(update, content)
    client.store_blob(content)
    entry.mark_stored()
    entry.keep_receipt(client.submit(update))
    journal.prune()


def update_of(offer: Offer, content: bytes) -> Update:
    """Return what the site says of an update's file."""
    told = {name: getattr(offer, name) for name in ("job_id", "round", "attempt", "site", "base_model", "start")}
    return Update(**told, offer=offer.digest, tensors=digest_of(content), size=len(content), examples=10, steps=1)


def main(path: Path) -> None:
    """Be the site that the file tells of."""
    said = json.loads(path.read_text())
    names = ("job_id", "pseudonym", "server_key")
    credentials = SiteCredentials(**{name: said[name] for name in names}, private_key=bytes.fromhex(said["private_key"]))
    folder = path.with_suffix("")
    folder.mkdir()
    with SiteClient(said["server"], credentials, lambda: datetime.now(UTC)) as client:
        take_part(client, folder, lambda what, number: mark(Path(said["marks"]), what, number), float(said["work_seconds"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
