"""Rows from files: every format and type gives the same rows, and everything wrong is said at once, with its place."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from wegeft.contracts.errors import InvalidData, Problem
from wegeft.contracts.job import DatasetSpec
from workers import data, records
from workers.data import count_rows, read_datasets, read_rows
from workers.rows import Chat, Completion, Instruction, PromptCompletion, Turn

CHAT = {"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}
CHAT_ROW = Chat((Turn("user", "1 + 1?"), Turn("assistant", "2")))
ALPACA = {"instruction": "Add.", "input": "1, 1", "output": "2"}


def spec_of(path: Path, **fields: Any) -> DatasetSpec:
    return DatasetSpec.model_validate_json(json.dumps({"path": str(path), **fields}))


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read(folder: Path, name: str, content: str | bytes, **fields: Any) -> list[Any]:
    path = write(folder, name, content)
    return read_rows(path, spec_of(path, **fields))


def problems_of(folder: Path, name: str, content: str | bytes, **fields: Any) -> tuple[Problem, ...]:
    with pytest.raises(InvalidData) as caught:
        read(folder, name, content, **fields)
    return caught.value.problems


def write_as(folder: Path, ending: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"rows.{ending}"
    match ending:
        case "jsonl":
            path.write_text(jsonl(*rows), encoding="utf-8")
        case "json":
            path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        case "parquet":
            parquet.write_table(pa.Table.from_pylist(rows), path)
        case "csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows([{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows])
    return path


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize(
    ("record", "row"),
    [
        (CHAT, CHAT_ROW),
        (ALPACA, Instruction("Add.", "1, 1", "2")),
        ({"prompt": "1 + 1 =", "completion": " 2"}, PromptCompletion("1 + 1 =", " 2")),
        ({"text": 'Zwei, "drei"\nund vier — 四'}, Completion('Zwei, "drei"\nund vier — 四')),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str, record: dict[str, Any], row: object) -> None:
    path = write_as(tmp_path, ending, [record, record])
    assert read_rows(path, spec_of(path)) == [row, row]
    assert count_rows(path, spec_of(path)) == 2


@given(rows=st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)).filter(lambda row: all(t.strip() for t in row)), min_size=1))
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, ending: str, rows: list[tuple[str, str]]) -> None:
    # The csv module writes a lone carriage return unquoted, and then reads it as the end of a row.
    rows = [tuple(text.replace("\r", " x") for text in row) for row in rows] if ending == "csv" else rows  # type: ignore[misc]
    path = write_as(tmp_path_factory.mktemp("rows"), ending, [{"prompt": p, "completion": c} for p, c in rows])
    assert read_rows(path, spec_of(path)) == [PromptCompletion(*row) for row in rows]


def test_columns_can_have_other_names(tmp_path: Path) -> None:
    named = {"field_prompt": "question", "field_completion": "reply"}
    assert read(tmp_path, "a.jsonl", jsonl({"question": "q", "reply": "r", "id": 1}), **named) == [PromptCompletion("q", "r")]


def test_an_alpaca_input_may_be_absent(tmp_path: Path) -> None:
    rows = [{"instruction": "Say hi.", "output": "hi"}, {"instruction": "Say hi.", "input": None, "output": "hi"}]
    assert read(tmp_path, "a.jsonl", jsonl(*rows)) == [Instruction("Say hi.", "", "hi")] * 2


def test_a_chat_may_begin_with_a_system_message_and_have_many_turns(tmp_path: Path) -> None:
    roles = ["system", "user", "assistant", "user", "assistant"]
    chat = {"messages": [{"role": role, "content": f"{index}"} for index, role in enumerate(roles)]}
    assert read(tmp_path, "a.jsonl", jsonl(chat)) == [Chat(tuple(Turn(role, f"{index}") for index, role in enumerate(roles)))]


def test_a_byte_order_mark_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    assert read(tmp_path, "a.jsonl", "\ufeff\n" + jsonl(CHAT) + "\n \n" + jsonl(CHAT)) == [CHAT_ROW] * 2
    assert read(tmp_path, "a.json", "\ufeff" + json.dumps([CHAT])) == [CHAT_ROW]
    assert read(tmp_path, "a.csv", "\ufefftext\nhello\n\n") == [Completion("hello")]


def test_a_json_file_may_hold_lines(tmp_path: Path) -> None:
    assert read(tmp_path, "a.json", jsonl(CHAT, CHAT)) == [CHAT_ROW] * 2


BAD_CHATS: list[tuple[Any, str, str]] = [
    ([], "messages", "must be a list of messages"),
    ("hello", "messages", "must be a list of messages"),
    (["hello"], "messages[0]", "must be a message"),
    ([{"content": "x"}], "messages[0].role", "required"),
    ([{"role": "human", "content": "x"}], "messages[0].role", "not a role"),
    ([{"role": ["user"], "content": "x"}], "messages[0].role", "not a role"),
    ([{"role": "user"}, {"role": "assistant", "content": "x"}], "messages[0].content", "the message is empty"),
    ([{"role": "user", "content": 7}, {"role": "assistant", "content": "x"}], "messages[0].content", "must be a text, not a number"),
    ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "messages[0].content", "not a list of parts"),
    ([{"role": "user", "content": "x"}, {"role": "assistant", "content": " \n"}], "messages[1].content", "the answer is empty"),
    ([{"role": "user", "content": "x"}], "messages", "the row has no answer at its end"),
    ([{"role": "assistant", "content": "x"}], "messages[0].role", "user must speak here"),
    ([{"role": "user", "content": "x"}] * 2, "messages[1].role", "assistant must speak here"),
    (
        [{"role": r, "content": "x"} for r in ("user", "assistant", "system", "assistant")],
        "messages[2].role",
        "user must speak here",
    ),
    (
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x", "tool_calls": [1]}],
        "messages[1].tool_calls",
        "not supported",
    ),
    ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "x", "weight": 0}], "messages[1].weight", "not supported"),
]


@pytest.mark.parametrize(("messages", "path", "message"), BAD_CHATS)
def test_a_wrong_chat_says_where_and_why(tmp_path: Path, messages: Any, path: str, message: str) -> None:
    problems = problems_of(tmp_path, "a.jsonl", jsonl(CHAT, {"messages": messages}))
    assert (problems[0].path, problems[0].line) == (f"a.jsonl: {path}", 2)
    assert message in problems[0].message


@pytest.mark.parametrize(
    ("record", "path", "message"),
    [
        ({"instruction": "x"}, "output", "the answer is missing"),
        ({"instruction": "x", "output": ""}, "output", "the answer is missing"),
        ({"instruction": "x", "output": "  "}, "output", "the answer is missing"),
        ({"instruction": "x", "output": None}, "output", "the answer is missing"),
        ({"instruction": "x", "output": 5}, "output", "must be a text, not a number"),
        ({"instruction": "x", "input": ["y"], "output": "z"}, "input", "must be a text, not a list"),
        ({"prompt": "x"}, "completion", "the answer is missing"),
        ({"prompt": "", "completion": "x"}, "prompt", "the prompt is missing"),
        ({"prompt": [{"role": "user"}], "completion": "x"}, "prompt", "must be a text, not a list"),
        ({"text": ""}, "text", "the text is missing"),
        ({"text": True}, "text", "must be a text, not true or false"),
        ({"text": "\ud800"}, "text", "half of a surrogate pair"),
    ],
)
def test_a_wrong_column_says_where_and_why(tmp_path: Path, record: dict[str, Any], path: str, message: str) -> None:
    (problem,) = problems_of(tmp_path, "a.jsonl", json.dumps(record))
    assert (problem.path, problem.line) == (f"a.jsonl: {path}", 1)
    assert message in problem.message


def test_every_bad_row_is_listed_with_its_line(tmp_path: Path) -> None:
    lines = [json.dumps(CHAT), "{broken", "", "[1, 2]", json.dumps({"messages": []}), json.dumps(CHAT)]
    problems = problems_of(tmp_path, "a.jsonl", "\n".join(lines))
    assert [(p.line, p.path) for p in problems] == [(2, "a.jsonl"), (4, "a.jsonl"), (5, "a.jsonl: messages")]
    assert "broken JSON at column 2" in problems[0].message
    assert problems[0].value == "{broken"
    assert "must be a mapping of columns, not a list" in problems[1].message


def test_many_problems_are_counted_beyond_the_first_ones(tmp_path: Path) -> None:
    content = jsonl(CHAT, *[{"messages": []}] * 50)
    problems = problems_of(tmp_path, "a.jsonl", content)
    assert len(problems) == data.PROBLEMS_SHOWN + 1
    assert problems[-1].message == "and 30 more problems"
    with pytest.raises(InvalidData) as caught:
        read(tmp_path, "a.jsonl", content)
    assert caught.value.message == "50 problems in 50 rows of the data"


def test_rows_of_formats_without_lines_are_numbered(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "completion": "y"}, {"prompt": "x", "completion": None}]
    path = write_as(tmp_path, "parquet", rows)
    with pytest.raises(InvalidData) as caught:
        read_rows(path, spec_of(path), "datasets[0]")
    assert caught.value.problems[0].path == "datasets[0] row 2: completion"
    (problem,) = problems_of(tmp_path, "a.json", json.dumps(rows))
    assert problem.path == "a.json row 2: completion"


def test_problems_of_all_files_come_together(tmp_path: Path) -> None:
    paths = [write(tmp_path, "a.jsonl", jsonl({"prompt": "x"})), write(tmp_path, "b.jsonl", ""), write(tmp_path, "c.jsonl", jsonl(CHAT))]
    with pytest.raises(InvalidData) as caught:
        read_datasets([(path, spec_of(path), f"datasets[{index}]") for index, path in enumerate(paths)])
    assert [p.path for p in caught.value.problems] == ["datasets[0]: completion", "datasets[1]"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_an_empty_data_set_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (problem,) = problems_of(tmp_path, name, content)
    assert (problem.path, problem.message) == (name, "the data set has no rows")


def test_empty_arrays_headers_and_tables_are_refused_too(tmp_path: Path) -> None:
    table = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), table)
    for name, content in (("a.json", b"[]"), ("b.csv", b"text\n"), ("c.parquet", table.read_bytes())):
        assert problems_of(tmp_path, name, content)[0].message == "the data set has no rows"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"rows": [\n1]}', "must hold an array"),
        ("a.json", "[1,\n2", "broken JSON at line 2"),
        ("a.json", b"[\xff]", "not UTF-8 at byte 2"),
        ("a.json", "[" * 200_000, "broken JSON"),
        ("a.csv", "text,text\na,b\n", "a column appears twice"),
        ("a.csv", "prompt;completion\na;b\n", "separated by commas"),
        ("a.csv", b"te\xffxt\na\n", "not UTF-8"),
        ("a.parquet", "hello", "not a readable Parquet file"),
    ],
)
def test_an_unreadable_file_says_why(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (problem,) = problems_of(tmp_path, name, content)
    assert message in problem.message
    assert problem.path == name


def test_bad_bytes_name_their_line_and_place(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, "a.jsonl", jsonl(CHAT).encode() + b'{"messages": "\xff"}\n' + b"\xfe\n")
    assert [(p.line, p.message) for p in problems] == [(2, "not UTF-8 at byte 15 of the line"), (3, "not UTF-8 at byte 1 of the line")]
    assert problems[0].hint == "save the file as UTF-8"
    (problem,) = problems_of(tmp_path, "a.csv", b"text\nfine\nb\xffd\nfine\n")
    assert (problem.line, problem.message) == (3, "not UTF-8 at byte 2 of the line")


def test_a_csv_row_of_another_length_is_refused_at_its_line(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "a.csv", 'prompt,completion\n"two\nlines",y\nx\nx,y\n')
    assert (problem.line, problem.message) == (4, "1 fields where the header has 2")
    (problem,) = problems_of(tmp_path, "b.csv", 'text\nfine\n"open\n')
    assert (problem.line, problem.message) == (3, "broken CSV: unexpected end of data")


def test_columns_that_tell_no_type_are_shown(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "a.jsonl", jsonl({"question": "x", "answer": "y"}))
    assert (problem.value, problem.message) == ("question, answer", "the columns tell no type of row")
    assert problem.hint is not None
    assert "field_…" in problem.hint
    (problem,) = problems_of(tmp_path, "a.jsonl", jsonl({"conversations": []}))
    assert "ShareGPT" in (problem.hint or "")


def test_a_type_that_is_said_is_not_inferred(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "a.jsonl", jsonl({"prompt": "x", "completion": "y"}), type="completion")
    assert problem.path == "a.jsonl: text"
    assert problem.hint == "the row's columns are: prompt, completion"


def test_missing_and_unreadable_files_are_invalid_data(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.jsonl", tmp_path):
        with pytest.raises(InvalidData):
            read_rows(path, spec_of(path, file_format="jsonl"))


def test_an_endless_line_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RECORD_BYTES_LIMIT", 1000)
    (problem,) = problems_of(tmp_path, "a.jsonl", jsonl(CHAT) + "x" * 2000)
    assert "line 2 is longer than" in problem.message
    monkeypatch.setattr(records, "JSON_BYTES_LIMIT", 10)
    assert "write JSONL" in (problems_of(tmp_path, "a.json", json.dumps([CHAT]))[0].hint or "")


def test_reading_rows_needs_no_torch() -> None:
    code = "import sys, workers.data; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'ray', 'pyarrow')))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_problems_read_as_one_line_each(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", jsonl(CHAT, {"messages": [{"role": "bot", "content": "x"}]}))
    with pytest.raises(InvalidData) as caught:
        read_rows(path, spec_of(path))
    assert str(caught.value) == "line 2: a.jsonl: messages[0].role: not a role (got bot); write assistant"


def test_csv_fields_may_be_long(tmp_path: Path) -> None:
    text = "x" * 500_000
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["text"], [text]])
    assert read(tmp_path, "a.csv", buffer.getvalue()) == [Completion(text)]
