"""The commands that say what a version is, who vouches for it and where it comes from, against a real hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.home import Home
from cli.hub import short_source
from cli.main import main
from cli.signing_key import find_signer, rotate_key
from hub.folder_store import FolderStore
from infra.settings import load_settings
from tests.hub.hf_clients import write_adapter
from tests.hub.serving import NOW, Hub, listening, made_hub
from tests.hub.test_provenance import adapter, files
from wegeft.client.trust import TrustStore
from wegeft.contracts.adapter import CARD_FILE, JOB_FILE, WEIGHTS_FILE, digest_of
from wegeft.contracts.errors import InvalidSetting, NotFound
from wegeft.contracts.signing_keys import KeySet, extend_trust

Call = Callable[..., tuple[int, str, str]]
PSI = [[1, 0, 0], [0, 1, 0]]
CARD = b"---\nlicense: mit\ntags: [x]\n---\n# One\n"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    signer = find_signer(load_settings(home=folder), Home(folder))
    with made_hub(f"sqlite:///{folder / 'hub.db'}", FolderStore(folder / "blobs"), signer) as hub:
        job = json.dumps({"datasets": [{"path": f"sha256:{1:064x}"}]}).encode()
        for number in (1, 2):
            weights = adapter([[1, 0], [0, number], [0, 0]], PSI)
            told = {**files(weights), CARD_FILE: CARD, JOB_FILE: job}
            hub.publish_files(f"round:7:{number}", "demo/x", told, metrics={"accuracy": 0.5 + number / 10}, measured_on=f"sha256:{1:064x}")
        yield hub


@pytest.fixture(scope="module")
def url(hub: Hub) -> Iterator[str]:
    with listening(hub.app) as url:
        yield url


@pytest.fixture
def call(hub: Hub, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call ``wgctl`` and return its exit status and what it wrote."""
    for name, value in {"HOME": str(tmp_path / "home"), "SERVER": url, "TOKEN": hub.tokens["write"]}.items():
        monkeypatch.setenv(f"WEGEFT_{name}", value)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(arguments)
        written = capsys.readouterr()
        return status, "".join(line for line in written.out.splitlines(keepends=True) if "[info" not in line), written.err

    return run


def test_a_version_and_a_folder_are_verified(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder without any server, by the keys that were pinned; and by a key that is given."""
    status, out, _ = call("adapters", "verify", "demo/x@2", "--json")
    assert status == 0
    assert json.loads(out)["ref"] == "demo/x@2"
    assert call("adapters", "download", "demo/x@1", "-o", "one")[0] == 0
    assert call("adapters", "trust", "--save", "hub.pem")[0] == 0
    assert call("adapters", "trust", "--save", "p256.pem", "--algorithm", "ecdsa-p256")[0] == 0
    assert call("adapters", "signature", "demo/x@1", "--kind", "ecdsa-p256", "-o", "p256.sig")[0] == 0
    monkeypatch.setenv("WEGEFT_SERVER", "http://127.0.0.1:9")
    assert "demo/x@1 is what its hub has signed" in call("adapters", "verify", "one")[1]
    assert call("adapters", "verify", "one", "--public-key", "hub.pem")[0] == 0
    assert call("adapters", "verify", "one", "--public-key", "p256.pem", "--signature", "p256.sig")[0] == 0
    (tmp_path / "other.pem").write_text("no key")
    assert call("adapters", "verify", "one", "--public-key", "other.pem")[0] == 7
    weights = tmp_path / "one" / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    status, _, err = call("adapters", "verify", "one", "--json")
    assert (status, json.loads(err)["code"]) == (7, "signature_invalid")
    monkeypatch.setenv("WEGEFT_HOME", str(tmp_path / "fresh"))
    assert call("adapters", "verify", "one")[0] == 2  # nobody is trusted yet


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("verify demo/none@1", 4),
        ("verify demo/x@1 --public-key hub.pem", 2),
        ("verify nothing-here", 2),
        ("trust --renew --public-key a.pem", 2),
        ("trust --public-key missing.pem", 2),
        ("signature demo/x@9", 4),
        ("lineage demo/x@9", 4),
        ("diff demo/x@1 demo/none", 4),
        ("diff demo/x@1 nonsense", 2),
        ("evaluations ls demo/none", 4),
        ("evaluations add demo/x@1 accuracy high", 2),
        ("evaluations add demo/x@1 accuracy nan", 2),
        ("evaluations add demo/x@1 a{b 1", 2),
        ("evaluations add demo/x@1 accuracy 1 --data missing.jsonl", 2),
        ("evaluations add demo/x@1 accuracy 1 --data sha256:1", 2),
        ("card demo/none", 4),
        ("card demo/x --file missing.md", 2),
        ("card demo/x --license gratis", 2),
        ("card demo/x --reset --edit", 2),
    ],
)
def test_a_wrong_line_is_refused(call: Call, line: str, status: int) -> None:
    found, out, err = call("adapters", *line.split(), "--json")
    assert (found, out) == (status, "")
    assert json.loads(err)["problems"] or json.loads(err)["detail"]


def test_trust_is_shown_and_changed(call: Call, url: str, tmp_path: Path) -> None:
    assert "signs" in call("adapters", "trust")[1]
    assert call("adapters", "trust", "--save", "hub.pem")[0] == 0
    store = TrustStore(tmp_path / "home" / "trusted-keys.json")
    (tmp_path / "stranger.pem").write_text("stranger")
    assert call("adapters", "trust", "--public-key", "stranger.pem")[0] == 0
    status, _, err = call("adapters", "show", "demo/x@1", "--json")
    assert (status, json.loads(err)["code"]) == (7, "untrusted_key")
    assert call("adapters", "trust", "--renew")[0] == 0
    assert len(store.keys_of(url)) == 2
    assert call("adapters", "trust", "--public-key", "hub.pem")[0] == 0
    assert "good, by key" in call("adapters", "show", "demo/x@1")[1]


def test_show_says_what_is_known(call: Call) -> None:
    _, out, _ = call("adapters", "show", "demo/x@2")
    assert "vllm: once converted; wgctl adapters export demo/x@2 --format lora; needs max_lora_rank 8" in out
    assert "accuracy  0.7" in out
    assert any(line.split() == ["licence", "MIT"] for line in call("adapters", "show", "demo/x")[1].splitlines())


def test_lists_name_a_licence_as_cards_do(call: Call, tmp_path: Path) -> None:
    """Under the key that model cards have, for programs; people may write either word."""
    (write_adapter(tmp_path / "adapter") / CARD_FILE).write_bytes(CARD)
    assert call("adapters", "push", "adapter", "demo/licensed")[::2] == (0, "")
    for option in ("--license", "--licence"):
        _, out, _ = call("adapters", "ls", option, "mit", "--json")
        assert [(view["adapter"], view["license"]) for view in json.loads(out)["adapters"]] == [("demo/licensed", "mit")]
        assert json.loads(call("adapters", "ls", option, "gpl", "--json")[1])["adapters"] == []


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("job:job-01m80n6d20v21bvg662d905pkb", "job:job-01m80n6d20v21bvg662d905pkb"),
        (f"commit:{'ab' * 32}:{'0' * 40}", "commit:abababababab:000000000000"),
        ("round:7:1", "round:7:1"),
    ],
)
def test_a_table_shows_the_beginnings_of_digests(source: str, shown: str) -> None:
    assert short_source(source) == shown


def test_signatures_and_attestations_are_printed(call: Call) -> None:
    assert json.loads(call("adapters", "signature", "demo/x@1", "--kind", "ecdsa-p256")[1])["dsseEnvelope"]
    predicate = json.loads(call("adapters", "signature", "demo/x@2", "--kind", "attestation", "--json")[1])
    assert predicate["buildDefinition"]["buildType"] == "urn:wegeft:federation:1"
    assert call("adapters", "signature", "demo/x@1", "-o", "x.sig")[:2] == (0, "")


def test_lineage_and_differences_are_told(call: Call) -> None:
    _, out, _ = call("adapters", "lineage", "demo/x@2")
    assert "demo/x@1  (round, round:7:1)" in out
    assert "descendants: none" in out
    assert json.loads(call("adapters", "lineage", "demo/x@1", "--json")[1])["descendants"][0]["ref"] == "demo/x@2"
    _, out, _ = call("adapters", "diff", "demo/x@1", "demo/x@2")
    assert "accuracy" in out
    assert "+0.1" in out
    assert json.loads(call("adapters", "diff", "demo/x@1", "demo/x@2", "--json")[1])["difference"] == pytest.approx(2.0)


def test_evaluations_are_reported_and_listed(call: Call, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_bytes(b"rows")
    assert call("adapters", "evaluations", "add", "demo/x@1", "pearson", "-0.25", "--data", "test.jsonl")[0] == 0
    rows = json.loads(call("adapters", "evaluations", "ls", "demo/x@1", "--json")[1])["evaluations"]
    [row] = [row for row in rows if row["metric"] == "pearson"]
    assert (row["value"], row["dataset_name"], row["dataset_digest"]) == (-0.25, "test.jsonl", digest_of(b"rows"))
    assert "pearson" in call("adapters", "evaluations", "ls", "demo/x@1")[1]


def test_a_card_is_read_and_written(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("adapters", "card", "demo/x")[1] == CARD.decode()
    (tmp_path / "card.md").write_text("# Two\n")
    assert call("adapters", "card", "demo/x", "--file", "card.md")[0] == 0
    assert json.loads(call("adapters", "card", "demo/x", "--licence", "Apache-2.0", "--json")[1])["license"] == "Apache-2.0"
    assert call("adapters", "card", "demo/x")[1] == "---\nlicense: apache-2.0\n---\n# Two\n"
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho "# Three" >> "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(editor))
    monkeypatch.delenv("VISUAL", raising=False)
    assert call("adapters", "card", "demo/x", "--edit")[0] == 0
    assert call("adapters", "card", "demo/x")[1].endswith("# Two\n# Three\n")
    assert call("adapters", "card", "demo/x", "--reset")[1] == CARD.decode()


# The service's key


def test_the_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    settings, home = load_settings(home=tmp_path), Home(tmp_path)
    first = find_signer(settings, home)
    assert find_signer(settings, home) == first
    assert home.signing_key_file.stat().st_mode & 0o777 == 0o600
    assert first.key.seed.hex() not in repr(first)
    set_ = load_settings(home=tmp_path, signing_key="07" * 32)
    assert find_signer(set_, home).key.seed == b"\x07" * 32
    with pytest.raises(InvalidSetting):
        rotate_key(set_, home)


def test_a_key_that_takes_over_is_endorsed_by_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, home = load_settings(home=tmp_path), Home(tmp_path)
    with pytest.raises(NotFound):
        rotate_key(settings, home)
    old = find_signer(settings, home)
    monkeypatch.setenv("WEGEFT_HOME", str(tmp_path))
    assert main(["hub", "rotate-key"]) == 0
    new = find_signer(settings, home)
    assert new.key_id != old.key_id
    trusted = {key.id: key.pem for key in old.public_keys(NOW)}
    assert new.key_id in extend_trust(trusted, KeySet(keys=new.public_keys(NOW)))


@pytest.mark.parametrize("text", ["", "00", "zz" * 32, "00" * 32 + "\nx", "00" * 31])
def test_a_spoilt_key_is_said_to_be_so(tmp_path: Path, text: str) -> None:
    Home(tmp_path).signing_key_file.write_text(text)
    with pytest.raises(InvalidSetting):
        find_signer(load_settings(home=tmp_path), Home(tmp_path))
