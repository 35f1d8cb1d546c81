"""``wgctl adapters export`` and ``import``, in this process, over folders; tests/method proves the conversions themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from cli.base_models import check_is_base, find_base
from cli.main import main
from tests.method.models import adapted, error, llama, logits
from tests.method.test_authors_checkpoints import MODULES, PUBLISHED, fork_reference, write_fork
from wegeft.contracts.errors import BaseModelNotFound, InvalidAdapterConfig
from workers.base_identity import is_same_model

Call = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base model, another one, and an adapter of the first."""
    folder = tmp_path_factory.mktemp("work")
    model = llama()
    model.save_pretrained(folder / "model")
    other = llama(layers=2, tied=True)
    other.save_pretrained(folder / "other")
    model.name_or_path = str(folder / "model")
    peft_model = adapted(model)
    peft_model.peft_config["default"].base_model_name_or_path = str(folder / "model")
    peft_model.save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def call(work: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call ``wgctl adapters`` beside the models, and return its exit status and the JSON that it printed or its error."""
    monkeypatch.chdir(work)
    monkeypatch.setenv("WEGEFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def run(*arguments: str) -> tuple[int, Any]:
        status = main(["adapters", *arguments, "--json"])
        printed = capsys.readouterr()
        return status, json.loads(printed.err.strip().splitlines()[-1] if status else printed.out)

    return run


@pytest.mark.parametrize(
    ("layout", "dtype", "limit", "files"),
    [
        ("lora", None, 1e-6, {"adapter_config.json", "adapter_model.safetensors"}),
        ("merged", None, 1e-5, {"config.json", "model.safetensors", "generation_config.json"}),
        ("gguf", "q8_0", 5e-2, {"adapter.gguf", "Modelfile"}),
        ("mlx", "bfloat16", 2e-2, {"adapters.safetensors", "adapter_config.json"}),
    ],
)
def test_a_folder_is_exported_and_measured(
    call: Call, work: Path, tmp_path: Path, layout: str, dtype: str | None, limit: float, files: set[str]
) -> None:
    out = tmp_path / "out"
    status, answer = call("export", "adapter", "--format", layout, "-o", str(out), *(["--dtype", dtype] if dtype else []))
    assert (status, answer["format"], answer["dtype"], answer["layers"]) == (0, layout, dtype or "float32", 14)
    assert set(answer["files"]) == files == {path.name for path in out.iterdir()}
    assert answer["size"] == sum(path.stat().st_size for path in out.iterdir())
    assert answer["base_model"].startswith(f"{work}/model@weights1:")
    assert 0 < answer["largest_error"] < limit
    assert (answer["largest_weight_error"] is not None) == (layout == "merged")


def test_an_export_computes_what_the_adapter_does(call: Call, tmp_path: Path) -> None:
    call("export", "./adapter", "--format", "merged", "-o", str(tmp_path / "merged"))
    call("export", "./adapter", "--format", "lora", "-o", str(tmp_path / "lora"))
    expected = logits(adapted(llama()))
    assert error(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()), expected) < 1e-4
    assert error(logits(PeftModel.from_pretrained(llama(), tmp_path / "lora").eval()), expected) < 1e-4


def test_a_person_reads_sizes_errors_and_what_to_do_next(
    call: Call, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del call
    assert main(["adapters", "export", "adapter", "--format", "gguf", "--ollama-base", "smollm2", "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "adapter.gguf  " in printed.out
    assert "error of ΔW" in printed.out
    assert "ollama create" in printed.err
    assert "FROM smollm2" in (tmp_path / "out" / "Modelfile").read_text()
    for layout, use in (("merged", "LlamaForCausalLM.from_pretrained("), ("lora", "--max-lora-rank 4 "), ("mlx", "--adapter-path ")):
        assert main(["adapters", "export", "adapter", "--format", layout, "-o", str(tmp_path / layout)]) == 0
        assert use in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "status", "code", "path"),
    [
        ("export adapter --format lora --dtype q8_0 -o OUT", 2, "invalid_setting", "--dtype"),
        ("export adapter --format lora --ollama-base x -o OUT", 2, "invalid_setting", "--ollama-base"),
        ("export adapter --format lora -o adapter", 2, "invalid_setting", "--output"),
        ("export adapter --format lora -o adapter/README.md/x", 2, "invalid_setting", None),
        ("export ./nothing --format lora -o OUT", 2, "invalid_reference", "adapter"),
        ("export demo/absent@3 --format lora -o OUT", 7, "service_unreachable", None),
        ("export model --format lora -o OUT", 2, "invalid_adapter_config", None),
        ("export adapter --format lora --base-model ./absent -o OUT", 4, "base_model_not_found", "--base-model"),
        ("export adapter --format lora --base-model ./other -o OUT", 2, "invalid_adapter_config", "--base-model"),
        ("import fork --from peft-fork -o adapter", 2, "invalid_setting", "--output"),
        ("import fork --from peft-fork --target a=b -o OUT", 2, "invalid_setting", "--target"),
        ("import x.safetensors --from gift -o OUT", 2, "invalid_setting", "--base-model"),
        ("import x.safetensors --from gift --base-model ./model --target a -o OUT", 2, "invalid_setting", "--target"),
        ("import x.pt --from gift --base-model ./model -o OUT", 2, "invalid_tensors", None),
        ("import adapter --from peft-fork --base-model ./model -o OUT", 2, "invalid_adapter_config", "peft_type"),
    ],
)
def test_what_cannot_be_is_said_and_leaves_nothing(call: Call, tmp_path: Path, line: str, status: int, code: str, path: str | None) -> None:
    found, refusal = call(*line.replace("OUT", str(tmp_path / "out")).split())
    assert (found, refusal["code"]) == (status, code), refusal
    assert path in (None, refusal["problems"][0]["path"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("adapter_model.safetensors", b"\x08\0\0\0\0\0\0\0{}", "invalid_tensors"),
        ("adapter_config.json", b'{"peft_type": "LORA", "r": 8}', "invalid_adapter_config"),
        ("adapter_config.json", b'{"peft_type": "NOPE"}', "invalid_adapter_config"),
        ("adapter_config.json", b"[1", "invalid_adapter_config"),
    ],
)
def test_damaged_folders_are_refused(call: Call, work: Path, tmp_path: Path, name: str, content: bytes, code: str) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in (work / "adapter").iterdir():
        (folder / path.name).write_bytes(content if path.name == name else path.read_bytes())
    status, refusal = call("export", str(folder), "--format", "lora", "--base-model", "./model", "-o", str(tmp_path / "out"))
    assert (status, refusal["code"]) == (2, code)
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_method_is_told_apart(call: Call, work: Path, tmp_path: Path) -> None:
    get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "other")
    base = ["--base-model", str(work / "model")]
    status, refusal = call("export", str(tmp_path / "other"), "--format", "lora", *base, "-o", str(tmp_path / "out"))
    assert (status, refusal["problems"][0]["value"]) == (2, "LORA")
    assert "as they are" in refusal["problems"][0]["hint"]


def test_another_base_model_is_taken_where_one_insists(call: Call, tmp_path: Path) -> None:
    target = str(tmp_path / "out")
    status, answer = call("export", "adapter", "--format", "merged", "--base-model", "./other", "--allow-other-base", "-o", target)
    assert (status, answer["largest_error"] < 1e-5) == (0, True)


@pytest.mark.parametrize("name", ["model.gguf", "./model", "/nowhere/model"])
def test_who_has_the_base_model_elsewhere_is_told_how_to_say_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter names the place that its base model had where it was trained."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BaseModelNotFound) as caught:
        find_base(name)
    (problem,) = caught.value.problems
    assert (problem.path, problem.value, problem.hint) == ("--base-model", name, "--base-model PATH says where it is on this machine")


def test_a_folder_is_known_by_what_adapters_of_before_name_it(work: Path) -> None:
    """Their pin is of the configuration alone; one of the weights says more, and counts where an adapter has it."""
    found, other = find_base(str(work / "model")), find_base(str(work / "other"))
    assert found.former_identity is not None
    assert found.former_identity.startswith(f"{work}/model@sha256:")
    for wanted in (found.identity, found.former_identity, str(work / "model")):
        check_is_base(found, wanted, allow_other=False)
        with pytest.raises(InvalidAdapterConfig):
            check_is_base(other, wanted, allow_other=False)
    for wanted in (f"{work}/model@sha256:{'0' * 64}", f"{work}/model@weights1:{'0' * 64}"):
        with pytest.raises(InvalidAdapterConfig):
            check_is_base(found, wanted, allow_other=False)


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        (f"org/base@{'a' * 40}", f"org/base@{'a' * 40}", True),
        (f"org/base@{'a' * 40}", f"org/base@{'b' * 40}", False),
        (f"org/base@{'a' * 40}", "org/base", True),
        (f"org/base@{'a' * 40}", "org/chat", False),
        (f"org/base@{'a' * 40}", "org/base@main", True),
        ("org/base", "org/base@v1.0", True),
        ("org/chat", "org/base@main", False),
        (f"/here/model@sha256:{'a' * 64}", f"/there/copy@sha256:{'a' * 64}", True),
        (f"/here/model@sha256:{'a' * 64}", f"/here/model@sha256:{'b' * 64}", False),
        (f"/here/model@weights1:{'a' * 64}", f"/there/copy@weights1:{'a' * 64}", True),
        (f"/here/model@weights1:{'a' * 64}", f"/here/model@weights1:{'b' * 64}", False),
        (f"/here/model@weights1:{'a' * 64}", f"/here/model@sha256:{'a' * 64}", True),
        (f"/here/model@weights1:{'a' * 64}", "org/base", False),
        (f"/cache/models--org--base/snapshots/{'a' * 40}@sha256:{'a' * 64}", f"org/base@{'a' * 40}", True),
    ],
)
def test_base_models_are_told_apart_by_their_pins(first: str, second: str, is_same: bool) -> None:
    assert is_same_model(first, second) is is_same
    assert is_same_model(second, first) is is_same


def test_what_the_authors_trained_is_imported(call: Call, work: Path, tmp_path: Path) -> None:
    fork = write_fork(tmp_path / "fork", MODULES, PUBLISHED, base_model_name_or_path=str(work / "model"))
    status, answer = call("import", str(fork), "--from", "peft-fork", "-o", str(tmp_path / "from-fork"))
    assert (status, answer["rank"], answer["tied_modules"], answer["layers"]) == (0, 4, "type", 10)
    assert answer["largest_error"] < 1e-12
    assert error(logits(PeftModel.from_pretrained(llama(), tmp_path / "from-fork").eval()), logits(fork_reference(fork))) < 1e-5

    numbers = torch.Generator().manual_seed(4)
    parts = {"in": (3, 32), "out": (32, 3)}
    state = {f"{part}_projections.attn:proj.weight": torch.randn(shape, generator=numbers) for part, shape in parts.items()}
    save_file(state, tmp_path / "gift.safetensors")
    options = ["--from", "gift", "--base-model", "./model", "--target", "attn:proj=q_proj", "--target", "attn:proj=k_proj"]
    status, answer = call("import", str(tmp_path / "gift.safetensors"), *options, "-o", str(tmp_path / "from-gift"))
    assert (status, answer["rank"], answer["tied_modules"], answer["layers"]) == (0, 3, "width", 4)
    assert json.loads((tmp_path / "from-gift" / "adapter_config.json").read_text())["base_model_name_or_path"] == "./model"
    assert call("export", str(tmp_path / "from-gift"), "--format", "lora", "-o", str(tmp_path / "lora"))[0] == 0
