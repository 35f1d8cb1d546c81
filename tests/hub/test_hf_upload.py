"""Uploading in the Hugging Face dialect, by their own unmodified client: one scenario from the first repository to its end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hub.hf_views import EMPTY_COMMIT
from tests.hub.hf_clients import Endpoint, new_endpoint, write_adapter
from wegeft.contracts.adapter import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE

SCENARIO = str(Path(__file__).with_name("hf_scenario.py"))


def check_answer(answer: dict[str, Any]) -> None:
    """Hold what a client saw against what it should; the same for every version of it."""
    check_creation(answer["create"])
    check_upload(answer["upload"])
    assert answer["whoami"] == "write"
    assert answer["parent"] == {"stale": "HfHubHTTPError", "is_412": True, "done": True}
    check_refusals(answer["refusals"])
    check_references(answer["references"])
    shown = answer["command_line"]["shown"]
    assert set(answer["command_line"]["codes"]) == {0}, shown
    assert "v2" in shown[2]
    assert all("demo/by" in listed for listed in shown[4:])  # a narrow table cuts names
    check_closing(answer["closing"])
    assert "A file with this name doesn't exist" in answer["folder"][1]


def check_creation(made: dict[str, Any]) -> None:
    assert (made["id"], made["again"], made["twice"], made["files"]) == ("demo/uploaded", "demo/uploaded", "HfHubHTTPError", [])
    assert made["empty"] == [EMPTY_COMMIT, True, "RemoteEntryNotFoundError"] or made["empty"] == [EMPTY_COMMIT, True, "EntryNotFoundError"]
    assert made["private"] is True


def check_upload(uploaded: dict[str, Any]) -> None:
    first, carded, same = uploaded["oids"]
    assert carded == same != first
    assert uploaded["commits"][1] == [first, "Upload model", "by hand"]
    assert [commit[0] for commit in uploaded["commits"]] == [carded, first]
    assert uploaded["authors"] == ["write"]
    assert uploaded["files"] == [[CARD_FILE, CONFIG_FILE, WEIGHTS_FILE], [CONFIG_FILE, WEIGHTS_FILE]]
    assert uploaded["card"]
    assert uploaded["weights"]


def check_refusals(refused: dict[str, list[str]]) -> None:
    def words(name: str, *expected: str, kind: str = "BadRequestError") -> None:
        assert refused[name][0] == kind, refused[name]
        assert all(part in refused[name][1] for part in expected), refused[name]

    words(
        "pickle", "training_args.bin: a pickle runs code when it is loaded", "tokenizer.json: not a file that this hub serves", "--exclude"
    )
    words("config", "adapter_config.json: target_modules: Field required", "adapter_config.json: r: Field required")
    words("weights", "adapter_model.safetensors: not safetensors, a pickle perhaps")
    words("yaml", "Invalid metadata in README.md", "not YAML", kind="ValueError")
    words("unknown", "demo/never-made", kind="RepositoryNotFoundError")
    words("delete_needed", "adapter_config.json: the file is missing")
    words("branch", "only main grows")
    words("request", "there are no pull requests here")
    assert "A file with this name doesn't exist" in refused["delete_missing"][1]


def check_references(found: dict[str, Any]) -> None:
    assert found["branches"] == ["main", "stable"]
    assert found["tags"] == ["1", "2", "3", "v1.0"]
    assert found["twice"] == ["HfHubHTTPError"] * 2
    assert found["same"]
    assert found["gone"] == [False, False, True]
    assert "never another" in found["moved"]
    assert "a version's number is its name for ever" in found["number"]


def check_closing(found: dict[str, Any]) -> None:
    assert found["left"] == [CONFIG_FILE, WEIGHTS_FILE]
    assert found["expanded"] == ["demo", None, True]
    assert found["listed"] == ["demo/by-hand", "demo/uploaded"]
    assert found["none"] == []
    assert "this needs the role write" in found["as_reader"]
    assert (found["exists"], found["again"]) == (False, "RepositoryNotFoundError")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with new_endpoint(tmp_path_factory.mktemp("hf")) as endpoint:
        yield endpoint


def run_scenario(endpoint: Endpoint, python: str, folder: Path) -> dict[str, Any]:
    adapter_folder = write_adapter(folder / "adapter")
    answer: dict[str, Any] = endpoint.run_client(
        [python, SCENARIO], "write", ADAPTER=str(adapter_folder), READER_TOKEN=endpoint.hub.tokens["read"]
    )
    return answer


def test_everything_that_a_person_does_by_hand(endpoint: Endpoint, tmp_path: Path) -> None:
    check_answer(run_scenario(endpoint, sys.executable, tmp_path))
