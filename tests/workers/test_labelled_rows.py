"""Rows to classify, from every form of file: labels and images are checked at their line, and nothing large or broken gets further."""

from __future__ import annotations

import base64
import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from tests.workers.classifiers import job_of, png, zipped
from wegeft.contracts.errors import InvalidData, Problem
from wegeft.contracts.job import DatasetSpec
from workers import image_archive, images, parquet_records
from workers.data import count_rows, read_rows
from workers.images import decode_image
from workers.labelled_rows import LabelledImage, LabelledText, RowRules
from workers.rows import AnyRow, Chat, Turn

RED, BLUE = png(250), png(3, kind="JPEG")


def read(path: Path, task: str = "sequence_classification", *, dataset: dict[str, Any] | None = None, **fields: Any) -> list[AnyRow]:
    spec = DatasetSpec.model_validate_json(json.dumps({"path": str(path), **(dataset or {})}))
    rules = RowRules.of(job_of(Path("/model"), task, **fields))
    rows = read_rows(path, spec, None, rules)
    assert count_rows(path, spec, None, rules) == len(rows)
    return rows


def read_text(folder: Path, name: str, content: str | bytes, task: str = "sequence_classification", **options: Any) -> list[AnyRow]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read(path, task, **options)


def problems(folder: Path, name: str, content: str | bytes, task: str = "sequence_classification", **options: Any) -> tuple[Problem, ...]:
    with pytest.raises(InvalidData) as caught:
        read_text(folder, name, content, task, **options)
    return caught.value.problems


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_texts_and_labels(tmp_path: Path) -> None:
    """Whole numbers and texts are names; other columns are passed over."""
    assert read_text(tmp_path, "a.jsonl", lines({"text": "x", "label": 1, "idx": 3}, {"text": "y", "label": " no "})) == [
        LabelledText("x", None, "1"),
        LabelledText("y", None, "no"),
    ]
    assert read_text(tmp_path, "a.csv", "text,label\nx,1\ny,2.5\n") == [LabelledText("x", None, "1"), LabelledText("y", None, "2.5")]
    pair = {"field_text": "sentence1", "field_text_pair": "sentence2", "field_label": "gold"}
    assert read_text(tmp_path, "b.jsonl", lines({"sentence1": "x", "sentence2": "y", "gold": "z"}), dataset=pair) == [
        LabelledText("x", "y", "z")
    ]


def test_a_parquet_file_gives_the_columns_that_are_asked_for(tmp_path: Path) -> None:
    """Named texts among them, and numbers that a table with gaps keeps as floats."""
    table = pa.table({"a": ["x", "y"], "b": ["p", "q"], "label": [1.0, 0.0], "idx": [1, 2]})
    parquet.write_table(table, tmp_path / "a.parquet")
    dataset = {"field_text": "a", "field_text_pair": "b"}
    assert read(tmp_path / "a.parquet", dataset=dataset) == [LabelledText("x", "p", "1"), LabelledText("y", "q", "0")]


def test_a_label_that_is_none_is_refused_at_its_line(tmp_path: Path) -> None:
    """All of them at once, with what would be right."""
    rows = [{"text": "x", "label": value} for value in (True, 1.5, -1, None, [], "y" * 300)] + [{"text": "x"}]
    found = problems(tmp_path, "a.jsonl", lines({"text": "x", "label": "fine"}, *rows))
    assert [problem.line for problem in found] == [2, 3, 4, 5, 6, 7, 8]
    assert [problem.message for problem in found] == [
        "must be a text or a whole number",
        "must be a text or a whole number",
        "must not be negative",
        "the label is missing",
        "must be a text or a whole number",
        "longer than 255 characters",
        "the label is missing",
    ]
    assert found[-1].hint == "the row's columns are: text; or name yours with field_label"


def test_labels_that_are_named_are_the_only_ones(tmp_path: Path) -> None:
    """By name, or by place; an unknown one is a problem of its line."""
    named = {"label_names": ["negative", "positive"]}
    rows = [{"text": "x", "label": label} for label in ("positive", 0, "1")]
    assert [row.label for row in read_text(tmp_path, "a.jsonl", lines(*rows), **named) if isinstance(row, LabelledText)] == [
        "positive",
        "negative",
        "positive",
    ]
    found = problems(tmp_path, "a.jsonl", lines(*rows, {"text": "x", "label": "positiv"}, {"text": "x", "label": 2}), **named)
    assert [(problem.line, problem.message, problem.hint) for problem in found] == [
        (4, "not one of label_names", "did you mean positive?"),
        (5, "not one of label_names", "one of: negative, positive"),
    ]


def test_a_regression_wants_numbers(tmp_path: Path) -> None:
    """Finite ones, which a CSV file writes as text."""
    asked = {"problem_type": "regression"}
    assert read_text(tmp_path, "a.csv", "text,label\nx,4.5\n", **asked) == [LabelledText("x", None, 4.5)]
    bad = [{"text": "x", "label": value} for value in ("four", True, 1e300, "nan")]
    assert [problem.line for problem in problems(tmp_path, "a.jsonl", lines(*bad), **asked)] == [1, 2, 3, 4]


def test_texts_are_required(tmp_path: Path) -> None:
    """Both of a pair."""
    found = problems(tmp_path, "a.jsonl", lines({"text": "", "label": 1}, {"label": 2}))
    assert [problem.message for problem in found] == ["the text is missing"] * 2
    (problem,) = problems(tmp_path, "a.jsonl", lines({"text": "x", "label": 1}), dataset={"field_text_pair": "other"})
    assert problem.message == "the second text is missing"


def test_images_in_rows(tmp_path: Path) -> None:
    """As base64, as a data URL, and in the mapping that the library ``datasets`` writes, in JSONL and Parquet."""
    wanted: list[AnyRow] = [LabelledImage(RED, "r"), LabelledImage(BLUE, "b")]
    texts = [base64.b64encode(content).decode() for content in (RED, BLUE)]
    forms = [[texts[0], "data:image/jpeg;base64," + texts[1]], [{"bytes": texts[0], "path": "r.png"}, {"bytes": texts[1], "path": None}]]
    for values in forms:
        rows = [{"image": value, "label": label} for value, label in zip(values, "rb", strict=True)]
        assert read_text(tmp_path, "a.jsonl", lines(*rows), "image_classification") == wanted
    for column in ([RED, BLUE], [{"bytes": RED, "path": "r.png"}, {"bytes": BLUE, "path": None}]):
        parquet.write_table(pa.table({"image": column, "label": ["r", "b"]}), tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet", "image_classification") == wanted


def test_a_row_that_holds_no_image_says_so(tmp_path: Path) -> None:
    """A path too: the file would not travel with the row."""
    values = [{"path": "r.png", "bytes": None}, "r.png", 3, None, base64.b64encode(b"GIF89a").decode(), base64.b64encode(RED[:45]).decode()]
    found = problems(tmp_path, "a.jsonl", lines(*({"image": value, "label": "r"} for value in values)), "image_classification")
    assert [(problem.line, problem.message) for problem in found] == [
        (1, "the row names an image and does not hold it"),
        (2, "not an image in base64"),
        (3, "must be an image"),
        (4, "the image is missing"),
        (5, "not a whole image"),
        (6, "not a whole image"),
    ]


def test_an_archive_of_images(tmp_path: Path) -> None:
    """Each in the folder of its label, by name, whatever lies above; notes and hidden files are passed over."""
    entries = {"all/b/2.jpeg": BLUE, "all/a/1.PNG": RED, "README.md": b"hello", "__MACOSX/all/a/1.PNG": b"x", "all/.DS_Store": b"x"}
    wanted: list[AnyRow] = [LabelledImage(RED, "a"), LabelledImage(BLUE, "b")]
    assert read_text(tmp_path, "a.zip", zipped(entries), "image_classification") == wanted
    assert read_text(tmp_path, "a.zip", zipped(entries, zipfile.ZIP_DEFLATED), "image_classification") == wanted


def test_bad_entries_are_told_by_name(tmp_path: Path) -> None:
    """None is read."""
    entries = {"../a/1.png": RED, "/b/1.png": RED, "1.png": RED, "c/1.gif": b"GIF89a", "d/1.png": b"text", "e/1.png": RED[:45]}
    found = problems(tmp_path, "a.zip", zipped(entries), "image_classification")
    assert [(problem.path, problem.message) for problem in found] == [
        ("a.zip: ../a/1.png", "a name that leads out of the archive"),
        ("a.zip: /b/1.png", "a name that leads out of the archive"),
        ("a.zip: 1.png", "the image stands in no folder"),
        ("a.zip: c/1.gif", "neither PNG nor JPEG"),
        ("a.zip: d/1.png: image", "not a whole image"),
        ("a.zip: e/1.png: image", "not a whole image"),
    ]


def test_broken_and_foreign_archives(tmp_path: Path) -> None:
    """Are no archives, or have broken entries."""
    assert "not a readable zip archive" in problems(tmp_path, "a.zip", b"PK\3\4nothing", "image_classification")[0].message
    assert problems(tmp_path, "a.zip", zipped({}), "image_classification")[0].message == "the data set has no rows"
    content = bytearray(zipped({"a/1.png": RED}))
    content[content.index(RED) + 40] ^= 1
    assert "the entry is broken" in problems(tmp_path, "a.zip", bytes(content), "image_classification")[0].message
    lzma = zipped({"a/1.png": RED}, zipfile.ZIP_LZMA)
    assert "compressed in a way" in problems(tmp_path, "a.zip", lzma, "image_classification")[0].message


def test_an_archive_is_read_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of bytes an entry, of all bytes, and of entries."""
    monkeypatch.setattr(image_archive, "IMAGE_BYTES_LIMIT", 1000)
    bomb = zipped({"a/1.png": bytes(50_000)}, zipfile.ZIP_DEFLATED)
    assert "the image has more than" in problems(tmp_path, "a.zip", bomb, "image_classification")[0].message
    many = zipped({f"a/{n}.png": bytes(1000) for n in range(100)}, zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(image_archive, "EXPANSION_LIMIT", 1)
    assert "unpacks to more than" in problems(tmp_path, "a.zip", many, "image_classification")[-1].message
    monkeypatch.setattr(image_archive, "ENTRIES_LIMIT", 99)
    assert "more than 99 entries" in problems(tmp_path, "a.zip", many, "image_classification")[0].message


def test_images_of_too_many_pixels_are_not_decoded() -> None:
    """Though their files are small: a header alone is enough to say no."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT"
    with pytest.raises(InvalidData, match="pixels"):
        decode_image(bomb)
    with pytest.raises(InvalidData, match="MiB"):
        decode_image(bytes(images.IMAGE_BYTES_LIMIT + 1))


def test_photographs_are_turned_upright() -> None:
    """As their camera says."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(file, "JPEG", exif=exif)
    assert decode_image(file.getvalue()).size == (4, 8)


@pytest.mark.parametrize("rows_of_group", [7, 1500, 5000])
def test_a_parquet_file_of_many_row_groups_is_read_whole(tmp_path: Path, rows_of_group: int) -> None:
    """Chats whose texts outgrow their dictionary too, however the groups and our batches lie."""
    chats = [[{"role": "user", "content": f"{n} {'x' * (n % 900)}"}, {"role": "assistant", "content": str(n)}] for n in range(3000)]
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"messages": chats}), path, row_group_size=rows_of_group, dictionary_pagesize_limit=100_000)
    rows = read_rows(path, DatasetSpec(path=str(path)))
    assert rows == [Chat((Turn("user", chat[0]["content"]), Turn("assistant", chat[1]["content"]))) for chat in chats]


@pytest.mark.parametrize("nested", [False, True])
def test_a_small_parquet_file_cannot_fill_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool) -> None:
    """It says the same long text in every row; rows are taken a few at once, and all of them may not be a hundred times the file."""
    text = "x" * 100_000
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "y"}]
    table = pa.table({"messages": [messages] * 500}) if nested else pa.table({"text": [text] * 500})
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path, compression="zstd")
    spec = DatasetSpec(path=str(path))
    monkeypatch.setattr(parquet_records, "_BYTES_AT_ONCE", 250_000)
    assert count_rows(path, spec) == 500
    monkeypatch.setattr(parquet_records, "DECODED_BYTES_LIMIT", 1_000_000)
    with pytest.raises(InvalidData, match="times the file"):
        count_rows(path, spec)
    monkeypatch.setattr(parquet_records, "RECORD_BYTES_LIMIT", 1000)
    with pytest.raises(InvalidData, match="row 1 is larger than"):
        count_rows(path, spec)
    monkeypatch.setattr(parquet_records, "ROW_GROUP_BYTES_LIMIT", 1000)
    with pytest.raises(InvalidData) as caught:
        count_rows(path, spec)
    assert caught.value.problems[0].hint == "write the file with smaller row groups"
