"""Write a data set of the recipes from the files that its authors publish.

    python examples/recipes/make.py metamathqa MetaMathQA-395K.json --tokenizer meta-llama/Llama-2-7b-hf

README.md beside this file says where the sources are. The rows follow the published scripts: their prompts, their filters, their order.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

Row = dict[str, Any]

DATA = Path(__file__).parent / "data"
ALPACA_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:\n"
)
_REFUSALS = ("sorry", "as an ai")


def commonsense(row: Row) -> Row:
    """Return the bare instruction and a line break, and the sentence that names the answer."""
    return {"prompt": f"{row['instruction']}\n", "completion": row["output"]}


def worked_problem(row: Row) -> Row:
    """Return a problem and its worked solution, for the Alpaca template without an input."""
    return {"instruction": row["instruction"], "output": row["output"]}


def problem_with_answer(row: Row) -> Row:
    """Return a problem and nothing but its answer, which a measurement compares with the last number of a generated solution."""
    return {"instruction": row["instruction"], "output": str(row["answer"])}


def metamath(row: Row) -> Row | None:
    """Return a question made from GSM8K and its solution up to the line behind ``####``; None for other questions."""
    if "GSM" not in row["type"]:
        return None
    solution = row["response"].split("\nThe answer is:")[0]
    return {"prompt": f"Q: {row['query']}\nA: ", "completion": f" {solution}"}


def gsm8k(row: Row) -> Row:
    """Return a question of GSM8K in the same words."""
    return {"prompt": f"Q: {row['question']}\nA: ", "completion": f" {row['answer']}"}


def codefeedback(row: Row) -> Row | None:
    """Return a task and its answer up to the end of the first block of code; None for an answer without one."""
    if "```" not in row["answer"]:
        return None
    answer = "```".join(row["answer"].split("```")[:2]) + "```"
    return {"prompt": ALPACA_PROMPT.format(row["query"]), "completion": f" {answer}"}


def wizardlm(row: Row) -> Row | None:
    """Return an instruction and its answer; None for an answer that declines."""
    if any(words in row["output"].lower() for words in _REFUSALS):
        return None
    return {"prompt": ALPACA_PROMPT.format(row["instruction"]), "completion": f" {row['output']}"}


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """How one data set is made."""

    convert: Callable[[Row], Row | None]
    rows: int | None = None
    """The first so many that pass; None for all."""
    tokens: int | None = None
    """A row is kept if it has fewer."""


DATA_SETS = {
    "commonsense170k": DataSet(convert=commonsense),
    "commonsense170k_test": DataSet(convert=commonsense),
    "math10k": DataSet(convert=worked_problem),
    "math10k_test": DataSet(convert=problem_with_answer),
    "metamathqa": DataSet(convert=metamath, rows=100_000, tokens=512),
    "gsm8k_test": DataSet(convert=gsm8k),
    "codefeedback": DataSet(convert=codefeedback, rows=100_000, tokens=1024),
    "wizardlm": DataSet(convert=wizardlm, rows=52_000, tokens=1024),
}


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file: Parquet, JSON lines, or a JSON list."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        yield from pyarrow.parquet.read_table(path).to_pylist()
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.strip())
    else:
        yield from json.loads(path.read_text(encoding="utf-8"))


def converted(data_set: DataSet, rows: Iterable[Row], count_tokens: Callable[[str], int] | None = None) -> Iterator[Row]:
    """Yield the rows that belong to the data set, as its recipe reads them."""
    kept = (row for row in map(data_set.convert, rows) if row is not None)
    if data_set.tokens is not None and count_tokens is not None:
        limit = data_set.tokens
        kept = (row for row in kept if count_tokens(row["prompt"] + row["completion"]) < limit)
    return islice(kept, data_set.rows)


def main(arguments: list[str] | None = None) -> None:
    """Read the sources and write ``data/NAME.jsonl`` beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(DATA_SETS))
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--tokenizer", help="id or folder of the tokenizer that counts tokens, where long rows are left out")
    parser.add_argument("--output", type=Path, default=DATA, help="folder to write to")
    given = parser.parse_args(arguments)
    data_set = DATA_SETS[given.name]
    if (data_set.tokens is None) != (given.tokenizer is None):
        need = "no row is left out for its length" if data_set.tokens is None else "rows are left out by their tokens"
        parser.error(f"{given.name} {'takes no' if data_set.tokens is None else 'needs a'} --tokenizer: {need}")
    rows = (row for source in given.sources for row in read_rows(source))
    given.output.mkdir(parents=True, exist_ok=True)
    target = given.output / f"{given.name}.jsonl"
    with target.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in converted(data_set, rows, counter(given.tokenizer)))
    print(target)


def counter(tokenizer: str | None) -> Callable[[str], int] | None:
    """Return a function that counts the tokens of a text."""
    if tokenizer is None:
        return None
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    return lambda text: len(loaded(text)["input_ids"])


if __name__ == "__main__":
    main()
