"""What a version's own files say about it to whoever looks for one: its task, its licence, its tags and its card's text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from hub.objects import ObjectStore, read_verified
from hub.strict_json import parse_object
from wegeft.contracts.adapter import CARD_FILE, CONFIG_FILE, JOB_FILE, FileEntry
from wegeft.contracts.card import read_front_matter, split_card
from wegeft.contracts.errors import InvalidInput
from wegeft.contracts.job_tasks import TaskType
from wegeft.contracts.yaml_source import Data

MAX_TAGS = 32
_MAX_BYTES = 1 << 20
_TAG = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._:/@+-]{0,62}[A-Za-z0-9])?\Z")
_PEFT_TASKS = {"CAUSAL_LM": TaskType.CAUSAL_LM.value, "SEQ_CLS": TaskType.SEQUENCE_CLASSIFICATION.value}


@dataclass(frozen=True, kw_only=True)
class Description:
    """What lists filter by beside the publication itself; empty where nothing is said."""

    task: str = ""
    licence: str = ""
    tags: tuple[str, ...] = ()
    text: str = ""
    """Of the card, without its front matter."""


def describe(store: ObjectStore, files: tuple[FileEntry, ...]) -> Description:
    """Return what a version's files say; what cannot be read says nothing, for the gate before publishing judges the files."""
    texts = {entry.path: _read(store, entry) for entry in files if entry.path in (CARD_FILE, CONFIG_FILE, JOB_FILE)}
    card = texts.get(CARD_FILE, "")
    front, (_, text) = _front_of(card), split_card(card)
    licence = front.get("license")
    return Description(
        task=_task_of(texts.get(JOB_FILE, ""), texts.get(CONFIG_FILE, "")),
        licence=licence if isinstance(licence, str) and _TAG.match(licence) else "",
        tags=tuple(list(dict.fromkeys(_tags_of(front.get("tags"))))[:MAX_TAGS]),
        text=text,
    )


def read_front(store: ObjectStore, card: FileEntry) -> dict[str, Data]:
    """Return what a stored card's front matter says; nothing where it cannot be read."""
    return _front_of(_read(store, card))


def _read(store: ObjectStore, entry: FileEntry) -> str:
    return read_verified(store, entry.digest, entry.size).decode(errors="replace") if entry.size <= _MAX_BYTES else ""


def _front_of(card: str) -> dict[str, Data]:
    try:
        return read_front_matter(card)
    except InvalidInput:
        return {}


def _tags_of(given: Data) -> Iterator[str]:
    for tag in given if isinstance(given, list) else [given]:
        if isinstance(tag, str) and _TAG.match(tag):
            yield tag.lower()


def _task_of(job: str, config: str) -> str:
    task = _field(job, "task")
    if task in set(TaskType):
        return task
    return _PEFT_TASKS.get(_field(config, "task_type"), "")


def _field(text: str, name: str) -> str:
    try:
        found = parse_object(text.encode()).get(name) if text else None
    except ValueError:
        found = None
    return found if isinstance(found, str) else ""
