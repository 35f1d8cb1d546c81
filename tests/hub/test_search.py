"""Search, filters, sorts, pages and facets, against brute force over what was published, on SQLite and PostgreSQL."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from sqlalchemy import Connection, Engine

from hub import catalog
from hub.catalog.search import behind, cursor_at, ordering
from hub.catalog.search_plan import Wish, ways_to
from hub.catalog.words import read_search, split_words
from hub.description import Description, describe
from hub.objects import MemoryStore
from hub.publication import Publication
from infra.database import reading, writing
from tests.databases import open_database
from tests.hub.serving import NOW
from wegeft.contracts.adapter import CARD_FILE, CONFIG_FILE, JOB_FILE, WEIGHTS_FILE, AdapterName, FileEntry, digest_of
from wegeft.contracts.errors import InvalidRequest
from wegeft.contracts.native_formats import native_format

FILES = tuple(FileEntry(path=path, digest=digest_of(path.encode()), size=7) for path in (CONFIG_FILE, WEIGHTS_FILE))
BASES = ("Qwen/Qwen2.5-0.5B@" + "a" * 40, "Qwen/Qwen2.5-0.5B@" + "b" * 40, "org/SmolLM2-135M", "/models/tiny.gguf", "o'neil/a\\'b")
TAGS = ("math", "code", "étude", "deutsch", "it's =a\\b&!c|d:*")
WORDS = ("sums", "sum", "words", "Übung", "模型", "smollm2")


@dataclass
class Shelf:
    """What was published, remembered beside the catalog."""

    engine: Engine
    random: random.Random
    newest: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name: what the newest version of each adapter is."""
    published: int = 0

    def publish(self, name: str | None = None) -> str:
        pick = self.random
        name = name or f"{pick.choice(('Demo', 'other', 'third'))}/{pick.choice(WORDS[:3])}-{pick.randrange(60)}"
        known = next((known for known in self.newest if known.lower() == name.lower()), name)
        self.published += 1
        described = {
            "task": pick.choice(("", "causal_lm", "image_classification")),
            "licence": pick.choice(("", "apache-2.0", "mit")),
            "tags": tuple(pick.sample(TAGS, pick.randrange(3))),
            "text": " ".join(pick.sample(WORDS, pick.randrange(3))),
        }
        plain = {"base_model": pick.choice(BASES), "method": pick.choice(("wegeft", "lora")), "rank": pick.choice((0, 8, 16))}
        metrics = {"eval_loss": pick.random()} if pick.random() < 0.7 else {}
        publication = Publication(
            adapter=AdapterName.parse(known),
            files=(*FILES, FileEntry(path=JOB_FILE, digest=FILES[0].digest, size=pick.randrange(5))),
            source=f"job:{self.published}",
            created_by="ada",
            metrics=metrics,
            description=Description(**described),
            **plain,
        )
        with writing(self.engine) as connection:
            keep(connection, publication)
            catalog.publish(connection, publication, NOW)
        before = self.newest.get(known)
        self.newest[known] = {
            **plain, **described, "metrics": metrics, "size": publication.size, "updated": self.published,
            "created": before["created"] if before else self.published,
        }  # fmt: skip
        return known

    def brute(self, wanted: catalog.AdapterFilter) -> list[str]:
        return [name for name, row in self.newest.items() if is_wanted(name, row, wanted)]

    def sort(self, names: list[str], order: str) -> list[str]:
        keys: dict[str, Any] = {
            "name": lambda name: name.lower(),
            "updated": lambda name: -self.newest[name]["updated"],
            "created": lambda name: -self.newest[name]["created"],
            "size": lambda name: (-self.newest[name]["size"], -self.newest[name]["updated"]),
        }
        return sorted(names, key=keys[order])


def keep(connection: Connection, publication: Publication) -> None:
    for entry in publication.files:
        catalog.expect(connection, entry.digest, NOW)


def is_wanted(name: str, row: dict[str, Any], wanted: catalog.AdapterFilter) -> bool:
    texts = [*name.split("/"), row["base_model"], row["method"], row["task"], row["licence"], *row["tags"], row["text"]]
    stored = {word for text in texts for word in split_words(text)}
    for part in (wanted.search or "").split():
        *whole, begun = split_words(part)
        if not stored.issuperset(whole) or not any(word.startswith(begun) for word in stored):
            return False
    base = wanted.base_model
    return (
        (wanted.namespace is None or name.split("/", maxsplit=1)[0].lower() == wanted.namespace.lower())
        and (base is None or row["base_model"] == base or row["base_model"].startswith(f"{base}@"))
        and all(getattr(wanted, key) in (None, row[key]) for key in ("method", "rank", "task", "licence"))
        and wanted.format in (None, native_format(row["method"]))
        and wanted.is_signed in (None, False)
        and set(wanted.tags) <= set(row["tags"])
        and all(is_within(row["metrics"], bound) for bound in wanted.metrics)
    )


def is_within(metrics: dict[str, float], bound: catalog.MetricBound) -> bool:
    value = metrics.get(bound.name)
    compare = {"<=": "__le__", ">=": "__ge__", "<": "__lt__", ">": "__gt__"}
    return value is not None and bool(getattr(value, compare[bound.sign])(bound.value))


def filters(pick: random.Random) -> Iterator[catalog.AdapterFilter]:
    """Every part alone and absent, and many together."""
    yield catalog.AdapterFilter()
    searches = ("sum", "SUMS", "sums de", "ubung", "模", "Qwen2.5-0", "smollm2-135m", "smoll math", "nothing", "lora apache")
    choices: dict[str, tuple[Any, ...]] = {
        "search": searches,
        "namespace": ("demo", "OTHER", "nobody"),
        "base_model": (BASES[0], "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5", *BASES[3:], "x" * 4000),
        "method": ("wegeft", "lora", "ia3"),
        "rank": (8, 16, 3),
        "task": ("causal_lm",),
        "licence": ("mit",),
        "format": ("wegeft", "lora", "peft"),
        "is_signed": (False, True),
        "tags": (("math",), ("math", "code"), ("étude",), TAGS[4:], ("x" * 4000,), ("",)),
        "metrics": tuple((catalog.parse_bound(text),) for text in ("eval_loss<=0.5", "eval_loss>0.3", "accuracy>0")),
    }
    for name, values in choices.items():
        yield from (catalog.AdapterFilter(**{name: value}) for value in values)
    for _ in range(25):
        names = pick.sample(sorted(choices), pick.randrange(2, 4))
        yield catalog.AdapterFilter(**{name: pick.choice(choices[name]) for name in names})


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shelf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('shelf') / 'hub.db'}"
    else:
        url = request.getfixturevalue("postgres_server").new_database()
    engine = open_database(url)
    shelf = Shelf(engine, random.Random(7))
    for _ in range(45):
        shelf.publish()
    yield shelf
    engine.dispose()


def pages(shelf: Shelf, wanted: catalog.AdapterFilter, order: Any, limit: int) -> Iterator[list[str]]:
    cursor: str | None = None
    while True:
        with reading(shelf.engine) as connection:
            page = catalog.list_adapters(connection, limit, cursor, wanted=wanted, order=order)
        yield [view.adapter for view in page.adapters]
        cursor = page.next_cursor
        if cursor is None:
            return


@pytest.mark.parametrize("order", get_args(catalog.Order))
def test_pages_put_together_are_the_whole_list_in_its_order(shelf: Shelf, order: str) -> None:
    for turn, wanted in enumerate(random.Random(order).sample(list(filters(random.Random(order))), 18)):
        listed = [name for page in pages(shelf, wanted, order, limit=(3, 7, 50)[turn % 3]) for name in page]
        assert listed == shelf.sort(shelf.brute(wanted), order), wanted


@pytest.mark.parametrize("order", get_args(catalog.Order))
def test_every_way_finds_the_same(shelf: Shelf, order: Any) -> None:
    most = 0
    for wanted in random.Random(order).sample(list(filters(random.Random(f"plan {order}"))), 40):
        expected = [name.lower() for name in shelf.sort(shelf.brute(wanted), order)]
        with reading(shelf.engine) as connection:
            ways = ways_to(connection, wanted, Wish(order=order))
            for selected in (way.select() for way in ways):
                query = selected.query(["key", "version_id", "adapter_id", "size"]).order_by(*ordering(order, selected))
                rows = connection.execute(query).all()
                assert [row.key for row in rows] == expected, wanted
                for at in range(0, len(rows), 7):
                    cursor = cursor_at(order, SimpleNamespace(**rows[at]._mapping, id=rows[at].adapter_id))
                    after = connection.execute(query.where(behind(order, cursor, selected)).limit(4)).all()
                    assert after == rows[at + 1 : at + 5], wanted
        most = max(most, len(ways))
    assert most > 1


def test_facets_are_what_counting_by_hand_gives(shelf: Shelf) -> None:
    for wanted in random.Random(2).sample(list(filters(random.Random(1))), 20):
        with reading(shelf.engine) as connection:
            found = catalog.count_facets(connection, wanted)
        names = shelf.brute(wanted)
        assert (found.counted, found.is_complete) == (len(names), True)
        rows = [shelf.newest[name] for name in names]
        by_hand = {
            "base_model": Counter(row["base_model"].partition("@")[0] for row in rows),
            "method": Counter(row["method"] for row in rows),
            "rank": Counter(str(row["rank"]) for row in rows if row["rank"]),
            "task": Counter(row["task"] for row in rows if row["task"]),
            "license": Counter(row["licence"] for row in rows if row["licence"]),
            "format": Counter(native_format(row["method"]) for row in rows),
            "signed": Counter("false" for _ in rows),
            "namespace": Counter(name.split("/")[0].lower() for name in names),
            "tag": Counter(tag for row in rows for tag in row["tags"]),
        }
        assert {name: {value.value: value.count for value in values} for name, values in found.facets.items()} == by_hand, wanted


def test_facets_of_very_many_count_the_last_published_and_say_so(shelf: Shelf) -> None:
    with reading(shelf.engine) as connection:
        found = catalog.count_facets(connection, catalog.AdapterFilter(), at_most=10)
    last = shelf.sort(list(shelf.newest), "updated")[:10]
    assert (found.counted, found.is_complete) == (10, False)
    assert {value.value: value.count for value in found.facets["method"]} == Counter(shelf.newest[name]["method"] for name in last)


@pytest.mark.parametrize("order", get_args(catalog.Order))
def test_who_is_there_all_the_while_is_listed_once_while_others_come(shelf: Shelf, order: str) -> None:
    there, seen = set(shelf.newest), []
    for page in pages(shelf, catalog.AdapterFilter(), order, limit=20):
        seen += page
        shelf.publish(f"new/{order}-{len(seen)}")
    assert len(seen) == len(set(seen))
    assert there <= set(seen)


def test_a_new_version_takes_the_place_of_the_one_before(shelf: Shelf) -> None:
    name = shelf.publish("demo/again")
    for _ in range(5):
        shelf.publish(name)
        tag = shelf.newest[name]["tags"][0] if shelf.newest[name]["tags"] else "none"
        for wanted in (catalog.AdapterFilter(search="again"), catalog.AdapterFilter(tags=(tag,)), catalog.AdapterFilter(search=tag)):
            listed = [found for page in pages(shelf, wanted, "name", limit=50) for found in page]
            assert listed == shelf.sort(shelf.brute(wanted), "name")


def test_an_adapter_that_is_unlisted_is_found_no_more(shelf: Shelf) -> None:
    name = shelf.publish("demo/gone-soon")
    with writing(shelf.engine) as connection:
        adapter_id = connection.execute(catalog.ADAPTERS.select().where(catalog.ADAPTERS.c.key == name)).one().id
        catalog.unlist(connection, adapter_id)
    del shelf.newest[name]
    assert list(pages(shelf, catalog.AdapterFilter(search="gone"), "updated", limit=50)) == [[]]


@pytest.mark.parametrize(
    "text", ["", "loss", "loss=1", "loss<", "<1", "loss<nan", "loss<1e999", "loss<inf", "a\x00<1", "loss<1<2", "x" * 101 + "<1"]
)
def test_a_bound_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="bound"):
        catalog.parse_bound(text)


def test_a_bound_is_read() -> None:
    assert catalog.parse_bound("eval_loss <= -1.5e-3") == catalog.MetricBound(name="eval_loss", sign="<=", value=-0.0015)


def test_words_are_the_same_everywhere() -> None:
    assert split_words("Qwen/Qwen2.5-0.5B_Übung ÉTUDE") == ("qwen", "qwen2", "5", "0", "5b", "ubung", "etude")
    assert split_words("模型") == ("u06a21u0578b",)
    assert split_words("x" * 99) == ("x" * 40,)
    found = read_search("smollm2-13 MATH")
    assert found is not None
    assert (found.whole, found.begun) == (("smollm2",), ("13", "math"))
    assert read_search("a %") is None


def test_a_description_is_read_from_the_files() -> None:
    store = MemoryStore()
    card = b"---\nlicense: apache-2.0\ntags: [Math, 3, math, 'a\\nb', code]\n---\n# Sums\n"
    contents = {CARD_FILE: card, CONFIG_FILE: b'{"task_type": "CAUSAL_LM"}', JOB_FILE: b'{"task": "image_classification"}'}

    def told(**without: bytes | None) -> Description:
        given = {path: without.get(path.split(".")[0], content) for path, content in contents.items()}
        entries = []
        for path, content in given.items():
            if content is not None:
                store.put(digest_of(content), io.BytesIO(content), len(content))
                entries.append(FileEntry(path=path, digest=digest_of(content), size=len(content)))
        return describe(store, tuple(entries))

    assert told() == Description(task="image_classification", licence="apache-2.0", tags=("math", "code"), text="# Sums\n")
    assert told(job=None).task == "causal_lm"
    assert told(job=b"[]", adapter_config=b"\xff", README=b"\xff") == Description(text="\ufffd")


@pytest.mark.parametrize(
    "card",
    [
        "---\n- license: mit\n---\n",
        "---\nlicense: mit\na: &x [*x]\n---\n",
        "---\n\tx: !!python/object:os.system\n---\n",
        "---\nlicense: mit",
        "",
        "license: mit",
    ],
)
def test_front_matter_that_is_none_says_nothing(card: str) -> None:
    store, content = MemoryStore(), card.encode()
    store.put(digest_of(content), io.BytesIO(content), len(content))
    told = describe(store, (FileEntry(path=CARD_FILE, digest=digest_of(content), size=len(content)),))
    assert (told.task, told.licence, told.tags) == ("", "", ())
