"""What ``wgctl adapters export --attach`` makes passes the hub's gate, and comes back from there without the base model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from sqlalchemy import select, update
from transformers import AutoModelForCausalLM

from cli.base_models import find_base
from cli.main import main
from hub.catalog import DERIVED_FORMATS
from hub.folder_store import FolderStore
from hub.signing import Signer
from infra.database import writing
from tests.hub.serving import Hub, listening, made_hub
from tests.method.models import adapted, error, llama, logits
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE
from wegeft.contracts.signing_keys import SigningKey

Call = Callable[..., tuple[int, Any]]
_LOGGED = re.compile(r"\d{4}-\d\d-\d\d ")
"""A line of the hub's log: it runs in this process."""
SIGNER = Signer(key=SigningKey(bytes(range(32))))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base model, and adapters of it that edit what layers read and what they write."""
    folder = tmp_path_factory.mktemp("work")
    for transform in ("input", "output"):
        model = llama()
        model.save_pretrained(folder / "model")
        model.name_or_path = str(folder / "model")
        peft_model = adapted(model, transform=transform)
        peft_model.peft_config["default"].base_model_name_or_path = str(folder / "model")
        peft_model.save_pretrained(folder / transform)
    return folder


@pytest.fixture(scope="module")
def service(work: Path) -> Iterator[tuple[Hub, str]]:
    with made_hub(f"sqlite:///{work / 'hub.db'}", FolderStore(work / "blobs"), SIGNER) as hub, listening(hub.app) as url:
        base = find_base(str(work / "model")).identity
        for transform in ("input", "output"):
            files = {name: (work / transform / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}
            hub.publish_files(f"job:{transform}", f"demo/{transform}", files, base_model=base)
        yield hub, url


@pytest.fixture
def call(service: tuple[Hub, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call ``wgctl adapters`` and return its exit status and the JSON that it printed or its error."""
    hub, url = service
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEGEFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WEGEFT_SERVER", url)

    def run(*arguments: str, role: str = "write") -> tuple[int, Any]:
        monkeypatch.setenv("WEGEFT_TOKEN", hub.tokens[role])
        status = main(["adapters", *arguments, "--json"])
        printed = capsys.readouterr()
        ours = "\n".join(line for line in printed.out.splitlines() if not _LOGGED.match(line))
        return status, json.loads(printed.err.strip().splitlines()[-1] if status else ours)

    return run


@pytest.mark.parametrize("transform", ["input", "output"])
def test_every_export_passes_the_gate_and_comes_back(call: Call, tmp_path: Path, transform: str) -> None:
    ref = f"demo/{transform}@1"
    wanted = [("lora", "float32"), ("lora", "bfloat16"), ("gguf", "float32"), ("gguf", "q8_0"), ("mlx", "float16")]
    for layout, dtype in wanted:
        status, answer = call("export", ref, "--format", layout, "--dtype", dtype, "--attach")
        assert status == 0, answer
        assert (answer["folder"], answer["attached"]["dtype"]) == (None, dtype)
        assert answer["attached"]["largest_error"] == answer["largest_error"]
        assert answer["attached"]["base_config_digest"].startswith("sha256:")
    _, listed = call("formats", "ls", ref, role="read")
    attached = [(one["format"], one["dtype"]) for view in listed["formats"] for one in view["attached"]]
    assert sorted(attached) == sorted(wanted)
    for layout, files in (("gguf", {"adapter.gguf", "Modelfile"}), ("mlx", {"adapters.safetensors", "adapter_config.json"})):
        assert call("download", ref, "--format", layout, "-o", layout, role="read")[0] == 0
        assert {path.name for path in (tmp_path / layout).iterdir()} == files | {"model.sig"}


def test_a_base_that_the_version_names_by_its_configuration_alone_is_named_so(call: Call, service: tuple[Hub, str], work: Path) -> None:
    """As versions of folders were named once: the gate holds the two names against each other."""
    former = find_base(str(work / "model")).former_identity
    assert former is not None
    assert "@sha256:" in former
    files = {name: (work / "input" / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}
    service[0].publish_files("job:former", "demo/former", files, base_model=former)
    status, answer = call("export", "demo/former@1", "--format", "lora", "--attach")
    assert (status, answer.get("attached", answer).get("base_model")) == (0, former)


def test_a_lora_that_is_attached_is_fetched_and_computes_what_the_adapter_does(call: Call, work: Path, tmp_path: Path) -> None:
    assert call("export", "demo/input@1", "--format", "lora", "--attach", "-o", "made")[0] == 0
    assert call("download", "demo/input", "--format", "lora", "-o", "fetched", role="read")[0] == 0
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / "fetched" / name).read_bytes() == (tmp_path / "made" / name).read_bytes()
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(work / "model")
        native = logits(PeftModel.from_pretrained(base, str(work / "input")))
        base = AutoModelForCausalLM.from_pretrained(work / "model")
        assert error(logits(PeftModel.from_pretrained(base, str(tmp_path / "fetched"))), native) < 1e-5


def test_a_format_is_verified_in_the_hub_and_in_its_folder(
    call: Call, service: tuple[Hub, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, _ = service
    assert call("export", "demo/output@1", "--format", "mlx", "--attach")[0] == 0
    status, answer = call("verify", "demo/output@1", "--format", "mlx", "--dtype", "float32", role="read")
    assert (status, answer["ref"], answer["format"]) == (0, "demo/output@1", "mlx")
    assert call("download", "demo/output@1", "--format", "mlx", "-o", "kept", role="read")[0] == 0
    with writing(hub.engine) as connection:
        signature = connection.execute(select(DERIVED_FORMATS.c.signature).where(*IS_MLX)).scalar_one()
        connection.execute(update(DERIVED_FORMATS).where(*IS_MLX).values(files=changed_files(connection)))
    assert call("download", "demo/output@1", "--format", "mlx", "-o", "wrong", role="read")[1]["code"] == "signature_invalid"
    assert not (tmp_path / "wrong").exists()
    monkeypatch.setenv("WEGEFT_SERVER", "http://127.0.0.1:9")
    assert (tmp_path / "kept" / "model.sig").read_text() == signature
    assert call("verify", "kept")[1]["dtype"] == "float32"
    (tmp_path / "kept" / "adapters.safetensors").write_bytes(b"other")
    assert call("verify", "kept")[1]["problems"][0]["path"] == "adapters.safetensors"


IS_MLX = (DERIVED_FORMATS.c.format == "mlx", DERIVED_FORMATS.c.dtype == "float32")


def changed_files(connection: Any) -> str:
    """Return the list of a format's files with their digests exchanged, as somebody who reaches the database may write it."""
    found = json.loads(connection.execute(select(DERIVED_FORMATS.c.files).where(*IS_MLX)).scalar_one())
    found[0]["digest"], found[1]["digest"] = found[1]["digest"], found[0]["digest"]
    return json.dumps(found)


@pytest.mark.parametrize(
    ("line", "code", "path"),
    [
        ("export demo/input --format merged --attach", "invalid_setting", "--attach"),
        ("export demo/input --format lora", "invalid_setting", "--output"),
        ("export demo/input --format lora --attach --allow-other-base", "invalid_setting", "--allow-other-base"),
        ("export demo/absent --format lora --attach", "adapter_not_found", None),
        ("formats rm demo/input mlx --dtype bfloat16", "not_found", None),
        ("download demo/input@1 --format mlx -o x --base-model y", "invalid_setting", "--base-model"),
        ("download demo/input@1 --format gguf -o x --overwrite", "invalid_setting", "--overwrite"),
        ("verify demo/input@1 --dtype float32", "invalid_setting", "--dtype"),
        ("verify . --format gguf", "invalid_setting", "--format"),
        ("verify demo/input@1 --signature x", "invalid_setting", "--signature"),
        ("convert demo/input@1 --format lora --dtype q8_0", "invalid_setting", "--dtype"),
    ],
)
def test_what_cannot_be_is_said(call: Call, line: str, code: str, path: str | None) -> None:
    status, answer = call(*line.split())
    assert status
    assert answer["code"] == code, answer
    if path:
        assert answer["problems"][0]["path"] == path


def test_a_folder_is_not_attached_and_a_reader_attaches_nothing(call: Call, work: Path) -> None:
    assert call("export", str(work / "input"), "--format", "lora", "--attach")[1]["problems"][0]["path"] == "--attach"
    assert call("export", "demo/input", "--format", "mlx", "--attach", role="read")[1]["code"] == "forbidden"


def test_a_snapshot_of_their_client_is_verified_offline_and_peft_loads_it(
    call: Call, service: tuple[Hub, str], work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub, url = service
    folder = snapshot_download("demo/input", endpoint=url, token=hub.tokens["read"], cache_dir=tmp_path / "cache")
    assert call("trust", role="read")[0] == 0
    monkeypatch.setenv("WEGEFT_SERVER", "http://127.0.0.1:9")
    status, answer = call("verify", folder)
    assert (status, answer["ref"], sorted(answer["files"])) == (0, "demo/input@1", [CONFIG_FILE, WEIGHTS_FILE])
    with torch.no_grad():
        ours, theirs = (AutoModelForCausalLM.from_pretrained(work / "model") for _ in range(2))
        native = logits(PeftModel.from_pretrained(ours, str(work / "input")))
        assert error(logits(PeftModel.from_pretrained(theirs, folder)), native) == 0


def test_aliases_are_protected_by_name(call: Call) -> None:
    assert call("alias", "set", "demo/input@1", "production")[0] == 0
    assert call("alias", "protect", "demo/input", "production")[1]["code"] == "forbidden"
    assert call("alias", "protect", "demo/input", "production", role="admin")[1]["protected_aliases"] == ["production"]
    assert call("alias", "rm", "demo/input", "production")[1]["code"] == "forbidden"
    assert call("alias", "unprotect", "demo/input", "production", role="admin")[1]["protected_aliases"] == []
