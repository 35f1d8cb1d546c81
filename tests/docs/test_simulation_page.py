"""docs/federation.md lists the attacks that there are, each with what the code says of it, and which of them the gate refuses."""

import ast
import inspect
import re
from pathlib import Path

from simulation import attacks
from simulation.attacks import MALFORMED, Attack

PAGE = (Path(__file__).parents[2] / "docs" / "federation.md").read_text(encoding="utf-8")


def test_every_attack_is_on_the_page_with_what_it_is() -> None:
    section = PAGE.partition("## Simulating")[2].partition("\n### ")[0]
    told = re.findall(r"^\| `(\w+)` \| (.+?) \| (.*?) ?\|$", section, re.MULTILINE)
    says = _docstrings()
    there = [(name, says[name][0].lower() + says[name][1:], "the gate refuses it" if Attack(name) in MALFORMED else "") for name in says]
    assert told == there
    assert list(says) == [str(attack) for attack in Attack]


def _docstrings() -> dict[str, str]:
    """Return what stands below each member."""
    (found,) = [node for node in ast.parse(inspect.getsource(attacks)).body if isinstance(node, ast.ClassDef) and node.name == "Attack"]
    said: dict[str, str] = {}
    for member, docstring in zip(found.body[1::2], found.body[2::2], strict=True):
        assert isinstance(member, ast.Assign)
        assert isinstance(docstring, ast.Expr)
        said[ast.literal_eval(member.value)] = ast.literal_eval(docstring.value)
    return said
