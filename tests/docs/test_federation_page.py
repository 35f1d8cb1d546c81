"""docs/federation.md names exactly the routes, fields of a policy and codes of a record that there are."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from sqlalchemy import Engine

from cli.home import Home
from infra.settings import PREFIX, Settings
from orchestrator.aggregate import Plan
from tests.orchestrator.aggregate.federations import a_state, members_of, put_together
from tests.orchestrator.federating import Server
from tests.orchestrator.samples import new_sqlite
from wegeft.contracts.federation import FailureCode, Member, ReasonCode
from wegeft.contracts.federation_rules import FactorMean, GeneratorExact, Rule, has_fixed_gauge, is_linear
from wegeft.contracts.federation_spec import FederationSpec
from wegeft.contracts.site_policy import SitePolicy

PAGE = (Path(__file__).parents[2] / "docs" / "federation.md").read_text(encoding="utf-8")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = new_sqlite(tmp_path / "a.db")
    yield engine
    engine.dispose()


def test_every_route_is_on_the_page_and_no_other(engine: Engine) -> None:
    told = set(re.findall(r"^\| (GET|HEAD|POST|PUT|DELETE) \| `([^`]+)` \|", PAGE, re.MULTILINE))
    paths = Server(engine).app().openapi()["paths"]
    there = {
        (method.upper(), path.removeprefix("/api/v1"))
        for path, methods in paths.items()
        for method, about in methods.items()
        if "federation" in about["tags"]
    }
    assert told == there


def test_what_the_page_names_exists() -> None:
    for name in re.findall(rf"`{PREFIX}([A-Z_]+)`", PAGE):
        assert name.lower() in Settings.model_fields
    assert Home(Path("x")).federation_key_file.name in PAGE
    for field in ("min_sites", "grace", "deadline", "max_failed_rounds", "start"):
        assert field in FederationSpec.model_fields
        assert field in PAGE


def test_every_field_of_a_policy_is_on_the_page_with_what_it_says() -> None:
    section = PAGE.partition("## A site's policy")[2].partition("\n## ")[0]
    told = re.findall(r"^\| `(\w+)` \| (?:`(.+?)`)? ?\| (.+) \|$", section, re.MULTILINE)
    there = []
    for name, field in SitePolicy.model_fields.items():
        default = "" if field.default is None else json.dumps(field.default)
        there.append((name, default, " ".join((field.description or "").replace("``", "`").split())))
    assert told == there


def test_every_rule_is_on_the_page_with_what_it_is() -> None:
    section = PAGE.partition("## Rules\n")[2].partition("\n## ")[0]
    told = {
        name: (linear == "yes", fixed == "yes")
        for name, linear, fixed in re.findall(r"^\| (`.+?) \| (\w+) \| (\w+) \|$", section, re.MULTILINE)
    }
    rules: TypeAdapter[Rule] = TypeAdapter(Rule)
    parsed = {f"`{name}`": rules.validate_python(name) for name in rules.json_schema()["discriminator"]["mapping"]}
    parsed["`factor_mean`, `align: false`"] = FactorMean(align=False)
    assert told == {name: (is_linear(rule), has_fixed_gauge(rule)) for name, rule in parsed.items()}


def test_every_code_of_a_record_is_on_the_page() -> None:
    section = PAGE.partition("## What a record says")[2].partition("\n## ")[0]
    codes, _, rest = section.partition("What each member's work did")
    scores, _, measures = rest.partition("A committed round's `measures`")
    state = a_state()
    found = put_together(Plan(rule=GeneratorExact()), state, members_of(state, 2)).measures
    assert re.findall(r"^\| `(\w+)` \|", measures, re.MULTILINE) == list(found)
    assert re.findall(r"^\| `(\w+)` \|", scores, re.MULTILINE) == ["agreement", "influence", "contribution"]
    assert {"agreement", "influence", "contribution"} <= Member.model_fields.keys()
    section = codes
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [*map(str, ReasonCode), *map(str, FailureCode)]
