"""Prints what the benchmarks are: one file a claim, each with what its docstring says first and the command that runs it."""

import ast
from collections.abc import Iterator
from pathlib import Path


def claims() -> Iterator[tuple[str, str]]:
    """Yield the command and the first sentence of every benchmark, sorted; none is imported, for that takes seconds."""
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        yield f"python -m bench.{path.stem}", " ".join(docstring.split("\n\n")[0].split())


def main() -> None:
    for command, claim in claims():
        print(f"{command}\n    {claim}")
    print("\nEach takes --help. What they last showed is in bench/RESULTS.md.")


if __name__ == "__main__":
    main()
