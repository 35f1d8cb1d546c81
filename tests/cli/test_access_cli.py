"""``wgctl orgs``, ``tokens``, ``adapters visibility``, ``audit`` and ``quotas``, against a service over a real socket."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cli.main import main
from infra.database import writing
from tests.orchestrator.hidden_world import ADAPTER, HiddenWorld, make_world
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.serving import listening

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HiddenWorld, str]]:
    """A service with Ada's private adapter, and where it is."""
    world = make_world(new_sqlite(Path(tmp_path_factory.mktemp("access")) / "a.db"))
    with capture_logs(), listening(world.app) as url:
        yield world, url
    world.close()


@pytest.fixture
def ask(server: tuple[HiddenWorld, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Call ``wgctl`` as somebody; give its exit status and what it wrote."""
    world, url = server

    def call(who: str, *words: str) -> tuple[int, str, str]:
        monkeypatch.setenv("WEGEFT_SERVER", url)
        monkeypatch.setenv("WEGEFT_TOKEN", world.tokens.get(who, who))
        status = main(words)
        written = capsys.readouterr()
        return status, written.out.strip(), written.err

    return call


def test_an_adapter_is_shown_and_hidden(ask: Ask) -> None:
    """By its owner alone."""
    assert ask("stranger", "adapters", "show", ADAPTER)[0] == 4
    assert ask("stranger", "adapters", "visibility", ADAPTER, "public")[0] == 4
    assert "those who share its namespace" in ask("ada", "adapters", "show", ADAPTER)[1]
    assert ask("ada", "adapters", "visibility", ADAPTER, "public")[1] == f"{ADAPTER} is public: everybody who may read may see it"
    assert ask("stranger", "adapters", "show", ADAPTER)[0] == 0
    assert json.loads(ask("ada", "adapters", "visibility", ADAPTER, "private", "--json")[1])["visibility"] == "private"
    assert ask("ada", "adapters", "visibility", ADAPTER, "secret")[0] == 2


def test_an_organisation_and_its_members(ask: Ask) -> None:
    """Ada shares her namespace, and the stranger is none."""
    assert ask("ada", "orgs", "create", "acme")[0] == 0
    assert ask("stranger", "orgs", "create", "acne")[0] == 0
    assert ask("stranger", "orgs", "create", "Ac-me")[0] == 5
    assert ask("ada", "orgs", "add-member", "acme", "mallory")[1] == "mallory may read in acme"
    assert ask("stranger", "adapters", "show", ADAPTER)[0] == 0
    assert ask("stranger", "adapters", "visibility", ADAPTER, "public")[0] == 6
    assert ask("ada", "orgs", "set-role", "acme", "mallory", "write")[0] == 0
    assert "mallory (write)" in ask("stranger", "orgs", "ls")[1]
    assert ask("ada", "orgs", "add-member", "acme", "nobody")[0] == 4
    assert ask("ada", "orgs", "remove-member", "acme", "mallory")[1] == "mallory is no member of acme any more"
    assert ask("ada", "orgs", "remove-member", "acme", "ada")[0] == 5
    assert ask("stranger", "adapters", "show", ADAPTER)[0] == 4


def test_a_token_for_one_adapter(ask: Ask) -> None:
    """It does what it is for and nothing else, until it is revoked."""
    status, token, note = ask("ada", "tokens", "create", "--scope", f"read:{ADAPTER}", "--expires", "30d")
    assert (status, token[:4]) == (0, "wgt_")
    assert f"read:{ADAPTER}" in note
    assert ask(token, "adapters", "show", ADAPTER)[0] == 0
    assert ask(token, "adapters", "visibility", ADAPTER, "public")[0] == 6
    assert ask(token, "tokens", "create", "--scope", f"write:{ADAPTER}")[0] == 6
    assert f"read:{ADAPTER}" in ask("ada", "tokens", "ls")[1]
    assert ask("ada", "tokens", "revoke", token.split("_")[1])[0] == 0
    assert ask(token, "adapters", "show", ADAPTER)[0] == 6
    assert ask("ada", "tokens", "create", "--scope", "everything")[0] == 2
    assert ask("ada", "tokens", "create", "--role", "admin")[0] == 6
    assert ask("ada", "tokens", "create", "--role", "read", "--scope", "read:acme")[0] == 2


def test_the_log_is_exported_and_checked(ask: Ask, tmp_path: Path) -> None:
    """Here and from a file; one changed word is found, and so is a log without the hash that was noted."""
    file = tmp_path / "audit.jsonl"
    assert ask("ada", "audit", "export")[0] == 6
    assert ask("operator", "audit", "export", "-o", str(file))[0] == 0
    assert ask("operator", "audit", "export", "-o", str(file))[0] == 2
    lines = file.read_text().splitlines()
    head = json.loads(lines[-1])["head"]
    assert {json.loads(line)["action"] for line in lines[:-1]} >= {"token.create", "namespace.create", "job.submit", "version.publish"}
    assert f"{head['sequence']} entries" in ask("nobody", "audit", "verify", str(file), "--head", head["hash"])[1]
    assert ask("operator", "audit", "verify", "--head", head["hash"])[0] == 0
    assert ask("nobody", "audit", "verify", str(file), "--head", "f" * 64)[0] == 7
    file.write_text("\n".join([lines[0].replace("token.create", "token.revoke"), *lines[1:]]))
    status, _, errors = ask("nobody", "audit", "verify", str(file))
    assert status == 7
    assert "entry 1: was changed" in errors
    assert ask("nobody", "audit", "verify", str(tmp_path / "absent"))[0] == 2


def test_quotas_are_set_and_shown(ask: Ask) -> None:
    """By an administrator, and to the namespace's own."""
    assert "10.0 GiB" in ask("operator", "quotas", "set", "acme", "--bytes", "10Gi", "--versions", "1")[1]
    assert "1 of 1" in ask("ada", "quotas", "show", "acme")[1]
    assert ask("stranger", "quotas", "show", "acme")[0] == 4
    assert ask("ada", "quotas", "set", "acme")[0] == 6
    for wrong in ("10GB", "-1", "x", "9999999999Ti", "999999999Ti"):
        assert ask("operator", "quotas", "set", "acme", f"--bytes={wrong}")[0] == 2
    assert json.loads(ask("operator", "quotas", "set", "acme", "--json")[1])["limits"] == {
        "bytes": None,
        "adapters": None,
        "versions": None,
    }


def test_a_log_whose_end_was_cut_off_is_found(ask: Ask, server: tuple[HiddenWorld, str]) -> None:
    """With hashes all right: by who has verified it before; anybody else sees nothing wrong with it."""
    world, _ = server
    assert ask("operator", "audit", "verify")[0] == 0
    assert ask("operator", "audit", "verify")[0] == 0
    last = "(SELECT max(sequence) FROM audit)"
    with writing(world.site.engine) as connection:
        entry, digest = connection.exec_driver_sql(f"SELECT entry, hash FROM audit WHERE sequence = {last}").one()
        connection.exec_driver_sql(f"DELETE FROM audit WHERE sequence = {last}")
        connection.exec_driver_sql(f"UPDATE audit_head SET sequence = {last}, hash = (SELECT hash FROM audit WHERE sequence = {last})")
    status, _, errors = ask("operator", "audit", "verify")
    assert status == 7
    assert "is not in it any more" in errors
    assert "audit-heads.json" in errors
    heads = Path(os.environ["WEGEFT_HOME"]) / "audit-heads.json"
    heads.unlink()
    assert ask("operator", "audit", "verify")[0] == 0
    heads.write_text("{")
    assert ask("operator", "audit", "verify")[0] == 2
    with writing(world.site.engine) as connection:
        connection.exec_driver_sql("INSERT INTO audit SELECT max(sequence) + 1, ?, ? FROM audit", (entry, digest))
        connection.exec_driver_sql("UPDATE audit_head SET sequence = (SELECT max(sequence) FROM audit), hash = ?", (digest,))
