"""The rows of a large catalog, made as publishing makes them, and put into a database in bulk: without indexes, which are made afterwards.

Of what publishing writes, held and signed bytes and the audit log are left out: no list reads them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import islice
from re import findall
from typing import Any

from sqlalchemy import Connection, Engine, text

from hub.catalog.search_terms import LEXEMES
from hub.publication import Publication
from infra.database import writing
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterName, FileEntry
from wegeft.contracts.native_formats import native_format

BASES, TAGS, WORDS, RARE = 400, 2000, 500, 5000
"""How many different values there are; the first bases and tags belong to many more adapters than the last."""
METHODS = ("lora", "wegeft", "wegeft", "vera")
TASKS = ("causal_lm", "causal_lm", "causal_lm", "sequence_classification", "image_classification")
LICENCES = ("mit", "apache-2.0", "apache-2.0", "other")
RANKS = (8, 8, 16, 32, 64)
_PIN = "a" * 40
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
_CONFIG = FileEntry(path=CONFIG_FILE, digest="sha256:" + "1" * 64, size=700)
_DIGEST, _SIZE, _MOMENT = "sha256:" + "f" * 64, 987_654_321, datetime(2525, 5, 5, 5, 5, 5, tzinfo=UTC)
_ROWS_AT_ONCE = 20_000


def draw(number: int, salt: int, values: int, skew: int = 1) -> int:
    """Return a number below ``values`` that looks drawn from the adapter's number; with a ``skew``, small ones come more often."""
    drawn = (number * (7919 + 2 * salt) + 104_729 * salt) % 1_000_003 % values
    return drawn // (1 + (number * (6007 + salt)) % skew)


@dataclass(frozen=True)
class Drawn:
    """The adapter of a number: what is published of it."""

    number: int

    @property
    def namespace(self) -> str:
        return f"ns-{self.number % 997}"

    @property
    def name(self) -> str:
        return f"word{draw(self.number, 1, WORDS)}-{self.number}"

    @property
    def base_name(self) -> str:
        base = draw(self.number, 2, BASES, 40)
        return f"org-{base % 40}/model-{base}"

    @property
    def method(self) -> str:
        return METHODS[draw(self.number, 3, len(METHODS))]

    @property
    def rank(self) -> int:
        return RANKS[draw(self.number, 13, len(RANKS))]

    @property
    def task(self) -> str:
        return TASKS[draw(self.number, 14, len(TASKS))]

    @property
    def licence(self) -> str:
        return LICENCES[draw(self.number, 15, len(LICENCES))]

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(f"tag-{draw(self.number, salt, TAGS, 300)}" for salt in (8, 9, 10)))

    @property
    def text(self) -> str:
        number = self.number
        drawn = f"word{draw(number, 4, WORDS)} word{draw(number, 5, WORDS, 30)} topic{draw(number, 6, 20)} rare{draw(number, 7, RARE)}"
        return f"{drawn} subject{draw(number, 6, 20)}x{draw(number, 2, BASES, 40)}"

    @property
    def size(self) -> int:
        return 100_000 + draw(self.number, 11, 900_000)

    @property
    def metrics(self) -> dict[str, float]:
        return {"eval_loss": draw(self.number, 12, 1000) / 1000, "train_loss": draw(self.number, 16, 1000) / 1000}

    @property
    def is_signed(self) -> bool:
        """One in two hundred is not."""
        return draw(self.number, 17, 200) > 0

    @property
    def published_at(self) -> datetime:
        return _BEGAN + timedelta(seconds=self.number)


def files_of(digest: str, size: int) -> tuple[FileEntry, ...]:
    """Return the files of a version whose weights have this digest and size."""
    return (_CONFIG, FileEntry(path=WEIGHTS_FILE, digest=digest, size=size))


def _template() -> str:
    publication = Publication(
        adapter=AdapterName.parse("a/b"),
        files=files_of(_DIGEST, _SIZE),
        source="job:SOURCE",
        base_model="BASE",
        method="METHOD",
        rank=1_234_567,
        created_by="bench",
    )
    return publication.manifest(_MOMENT).to_bytes().decode()


_MANIFEST = _template()


def manifest_of(drawn: Drawn) -> str:
    """Return a version's manifest, byte for byte as publishing makes it."""
    filled = _MANIFEST.replace(_DIGEST, weights_digest(drawn.number)).replace(str(_SIZE), str(drawn.size)).replace("METHOD", drawn.method)
    filled = filled.replace("BASE", f"{drawn.base_name}@{_PIN}").replace("SOURCE", str(drawn.number)).replace("1234567", str(drawn.rank))
    return filled.replace(_MOMENT.isoformat(), drawn.published_at.isoformat())


def weights_digest(number: int) -> str:
    return f"sha256:{number:064x}"


def base_model_of(drawn: Drawn) -> str:
    return f"{drawn.base_name}@{_PIN}"


def words_of(drawn: Drawn) -> str:
    """Return what :func:`hub.catalog.words.stored_words` returns of the same texts, which are plain."""
    texts = (drawn.namespace, drawn.name, base_model_of(drawn), drawn.method, drawn.task, drawn.licence, *drawn.tags, drawn.text)
    return " ".join(dict.fromkeys(findall("[a-z0-9]+", " ".join(texts))))


Row = tuple[Any, ...]
Cells = Callable[[datetime], Any]


def _adapter_row(one: Drawn, at: str) -> Iterator[Row]:
    yield one.number, f"{one.namespace}/{one.name}", one.namespace, one.name, 1, 2, at, at, False


def _version_row(one: Drawn, at: str) -> Iterator[Row]:
    manifest = manifest_of(one)
    digest, base = f"sha256:{sha256(manifest.encode()).hexdigest()}", base_model_of(one)
    size, metrics = one.size + _CONFIG.size, json.dumps(one.metrics)
    yield one.number, one.number, 1, f"job:{one.number}", manifest, digest, base, one.method, one.rank, size, metrics, at, "bench"


def _listing_row(one: Drawn, _at: str) -> Iterator[Row]:
    named = (one.number, one.number, f"{one.namespace}/{one.name}", one.namespace, one.base_name, base_model_of(one))
    described = (one.method, one.rank, one.size + _CONFIG.size, one.task, one.licence)
    yield *named, *described, native_format(one.method), one.is_signed, False, "\n".join(sorted(one.tags)), words_of(one)


def _tag_rows(one: Drawn, _at: str) -> Iterator[Row]:
    for tag in one.tags:
        yield tag, one.number, f"{one.namespace}/{one.name}"


def _metric_rows(one: Drawn, _at: str) -> Iterator[Row]:
    for name, value in one.metrics.items():
        yield one.number, name, value


def _evaluation_rows(one: Drawn, at: str) -> Iterator[Row]:
    yield one.number, "eval_loss", one.metrics["eval_loss"], "", "", 0, at, "bench"


_TABLES: dict[str, tuple[str, Callable[[Drawn, str], Iterator[Row]]]] = {
    "adapters": ("id, key, namespace, name, latest_number, next_number, created_at, updated_at, is_private", _adapter_row),
    "versions": (
        "id, adapter_id, number, source, manifest, manifest_digest, base_model, method, rank, size, metrics, created_at, created_by",
        _version_row,
    ),
    "listings": (
        "version_id, adapter_id, key, namespace, base_name, base_model, method, rank, size, task, licence, format, is_signed,"
        " is_private, tags, words",
        _listing_row,
    ),
    "listing_tags": ("tag, version_id, key", _tag_rows),
    "listing_metrics": ("version_id, name, value", _metric_rows),
    "evaluations": ("version_id, metric, value, dataset_digest, dataset_name, is_reported, created_at, created_by", _evaluation_rows),
}


def fill(engine: Engine, rows: int) -> float:
    """Insert adapters 1 to ``rows`` into an empty catalog, and gather statistics; return the seconds."""
    began = time.monotonic()
    with writing(engine) as connection:
        load = _SqliteLoad(connection) if engine.dialect.name == "sqlite" else _PostgresLoad(connection)
        load.begin()
        for table, (columns, make) in _TABLES.items():
            load.insert(table, columns, _rows(rows, make, load.moment))
        load.finish()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE" if engine.dialect.name == "sqlite" else "VACUUM ANALYZE")
    return time.monotonic() - began


def _rows(rows: int, make: Callable[[Drawn, str], Iterator[Row]], moment: Callable[[datetime], str]) -> Iterator[Row]:
    for number in range(1, rows + 1):
        one = Drawn(number)
        yield from make(one, moment(one.published_at))


class _SqliteLoad:
    """Indexes and triggers are put aside; the full-text index is made of its table at the end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        names = ", ".join(f"'{table}'" for table in _TABLES)
        kept = f"SELECT type, name, sql FROM sqlite_master WHERE tbl_name IN ({names}) AND type IN ('index', 'trigger') AND sql IS NOT NULL"
        self._kept = list(connection.exec_driver_sql(kept).all())

    def begin(self) -> None:
        for kind, name, _ in self._kept:
            self._connection.exec_driver_sql(f"DROP {kind} {name}")

    @staticmethod
    def moment(at: datetime) -> str:
        return at.strftime("%Y-%m-%d %H:%M:%S.000000")

    def insert(self, table: str, columns: str, rows: Iterator[Row]) -> None:
        statement = f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * (columns.count(',') + 1))})"
        while some := list(islice(rows, _ROWS_AT_ONCE)):
            self._connection.exec_driver_sql(statement, some)

    def finish(self) -> None:
        for _, _, statement in self._kept:
            self._connection.exec_driver_sql(statement)
        self._connection.exec_driver_sql("INSERT INTO listing_words (listing_words) VALUES ('rebuild')")


class _PostgresLoad:
    """Rows come by COPY; foreign keys are not checked meanwhile, for the rows are ours."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        names = ", ".join(f"'{table}'" for table in _TABLES)
        kept = (
            f"SELECT indexname, indexdef FROM pg_indexes WHERE tablename IN ({names})"
            " AND indexname NOT IN (SELECT conname FROM pg_constraint)"
        )
        self._kept = list(connection.exec_driver_sql(kept).all())

    def begin(self) -> None:
        for setting in ("session_replication_role = replica", "maintenance_work_mem = '512MB'", "max_parallel_maintenance_workers = 0"):
            self._connection.exec_driver_sql(f"SET LOCAL {setting}")
        for name, _ in self._kept:
            self._connection.exec_driver_sql(f"DROP INDEX {name}")

    @staticmethod
    def moment(at: datetime) -> str:
        return at.isoformat()

    def insert(self, table: str, columns: str, rows: Iterator[Row]) -> None:
        driver: Any = self._connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)

    def finish(self) -> None:
        for _, statement in self._kept:
            self._connection.exec_driver_sql(statement)
        # As triggers do, which no row has come by.
        self._connection.exec_driver_sql("INSERT INTO listing_words_known SELECT DISTINCT unnest(tsvector_to_array(words)) FROM listings")
        marked = f"SELECT version_id, key, mark_terms({LEXEMES}) FROM listings"
        self._connection.exec_driver_sql(f"INSERT INTO listing_words_marks {marked}")
        for table in ("adapters", "versions", "evaluations"):
            newest = f"(SELECT max(id) FROM {table})"
            self._connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), {newest})"))
