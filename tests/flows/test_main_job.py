"""The main job, end to end: submit, train, publish, download, load in PEFT; on each database, store and pool."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.service import Service, running_service, write_job
from tests.servers import PostgresServer, S3Server

PARTS = [
    pytest.param("laptop", id="sqlite-folder-inline"),
    pytest.param("postgresql", id="postgresql-folder-inline", marks=pytest.mark.slow),
    pytest.param("s3", id="sqlite-seaweedfs-inline", marks=pytest.mark.slow),
    pytest.param("ray", id="sqlite-folder-ray", marks=pytest.mark.slow),
]


@pytest.fixture(params=PARTS, scope="module")
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service on one set of parts, started once; each test publishes adapters of its own."""
    settings = {"pool": "ray" if request.param == "ray" else "inline"}
    if request.param == "postgresql":
        postgres: PostgresServer = request.getfixturevalue("postgres_server")
        settings["database_url"] = postgres.new_database()
    if request.param == "s3":
        s3: S3Server = request.getfixturevalue("s3_server")
        settings |= {
            "store": f"s3://{s3.new_bucket()}/blobs",
            "s3_endpoint": s3.endpoint,
            "s3_access_key": s3.access_key,
            "s3_secret_key": s3.secret_key,
        }
    with running_service(tmp_path_factory.mktemp("main") / "home", **settings) as running:
        yield running


def test_submitted_job_becomes_an_adapter_that_peft_loads(service: Service, tmp_path: Path) -> None:
    """What comes out of the hub computes W(I + s·φψ), in PEFT and as a LoRA, as dense maths says."""
    job_file = write_job(tmp_path / "work", evaluation={"exact_match": True, "max_new_tokens": 2})
    job = service.wgctl_json("submit", str(job_file), "--wait")
    shown = service.wgctl_json("jobs", "show", job["id"])
    assert shown["state"] == "succeeded"
    assert shown["result"] == {"adapter": "demo/sums", "version": 1}
    folder = tmp_path / "adapter"
    service.wgctl("adapters", "download", "demo/sums@latest", "-o", str(folder))
    check_logits(tmp_path / "work" / "model", folder, tmp_path / "lora")


def test_a_worker_converts_what_it_has_trained(service: Service, tmp_path: Path) -> None:
    """Without the base model here: made by a worker, attached, fetched, and the same as one made here; asked again, nothing is made."""
    job_file = write_job(tmp_path / "work", max_steps=2, output={"adapter": "demo/converted"})
    service.wgctl("submit", str(job_file), "--wait")
    asked = ("adapters", "convert", "demo/converted@1", "--format", "lora", "--format", "gguf", "--watch")
    job = service.wgctl_json(*asked)["job"]
    assert (job["state"], job["result"], job["step"]) == ("succeeded", {"adapter": "demo/converted", "version": 1}, 3)
    service.wgctl("adapters", "download", "demo/converted@1", "--format", "gguf", "-o", str(tmp_path / "gguf"))
    service.wgctl("adapters", "download", "demo/converted@1", "--format", "lora", "-o", str(tmp_path / "fetched"))
    service.wgctl("adapters", "download", "demo/converted@1", "-o", str(tmp_path / "adapter"))
    check_logits(tmp_path / "work" / "model", tmp_path / "adapter", tmp_path / "made")
    made, fetched = (folder / "adapter_model.safetensors" for folder in (tmp_path / "made", tmp_path / "fetched"))
    check_same_tensors(made, fetched)
    again = service.wgctl_json(*asked)
    assert (again["job"], [one["format"] for one in again["attached"]]) == (None, ["lora", "gguf"])
    assert "convert demo/converted@1 to lora, gguf of float32" in service.wgctl("jobs", "show", job["id"])
    assert "part 3/3  made gguf" in service.wgctl("jobs", "logs", job["id"])
    assert job["id"] in service.wgctl("jobs", "ls")


def check_same_tensors(first: Path, second: Path) -> None:
    """Compare two files' tensors; the first was made from weights in float64."""
    import torch
    from safetensors.torch import load_file

    mine, theirs = load_file(first), load_file(second)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-5, atol=1e-6)


def check_logits(model_folder: Path, adapter_folder: Path, lora_folder: Path) -> None:
    """Compare PEFT with the generators, PEFT with the exported LoRA, and weights edited by hand in float64."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from wegeft.method import to_lora

    def load() -> torch.nn.Module:
        model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float64).eval()
        return model

    tokens = torch.arange(3, 35).reshape(2, 16)
    with torch.no_grad():
        base = load()(tokens).logits
        native = PeftModel.from_pretrained(load(), adapter_folder, autocast_adapter_dtype=False)(tokens).logits
        to_lora(adapter_folder, load(), lora_folder)
        lora = PeftModel.from_pretrained(load(), lora_folder, autocast_adapter_dtype=False)(tokens).logits
        dense = edited_by_hand(load(), adapter_folder)(tokens).logits
    torch.testing.assert_close(native, dense, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(lora, dense, rtol=1e-5, atol=1e-5)
    assert (native - base).abs().max() > 1e-3, "the job must have changed something"


def edited_by_hand(model, adapter_folder: Path):  # type: ignore[no-untyped-def]  # torch is imported late, to keep collection quick
    """Return the model with each targeted weight replaced by W + s·(Wφ)ψ, from the file's numbers alone."""
    from safetensors.torch import load_file

    config = json.loads((adapter_folder / "adapter_config.json").read_text())
    tensors = {name: tensor.double() for name, tensor in load_file(adapter_folder / "adapter_model.safetensors").items()}
    scale = config["wegeft_alpha"] / config["r"]
    count = 0
    for name, module in model.named_modules():
        kind = name.rpartition(".")[2]
        phi = next((tensor for key, tensor in tensors.items() if kind in key.split(".") and "phi" in key), None)
        psi = next((tensor for key, tensor in tensors.items() if kind in key.split(".") and "psi" in key), None)
        if phi is not None and psi is not None:
            weight = module.weight.data
            phi_columns = phi if phi.shape[0] == weight.shape[1] else phi.T
            module.weight.data = weight + scale * (weight @ phi_columns) @ psi
            count += 1
    assert count == 14, "two layers of seven linear modules"
    return model


def test_the_same_job_again_is_the_next_version_with_the_same_weights(service: Service, tmp_path: Path) -> None:
    """Versions 1 and 2 of one seed have the same bytes; `latest` and the job's own alias move, and 1 stays what it was."""
    job_file = write_job(tmp_path / "work", max_steps=3, output={"adapter": "demo/counted"})
    for _ in range(2):
        service.wgctl("submit", str(job_file), "--wait", "--set", "output.aliases=[production]")
    versions = service.wgctl_json("adapters", "versions", "demo/counted")
    assert sorted(version["version"] for version in versions) == [1, 2]
    shown = service.wgctl_json("adapters", "show", "demo/counted")
    assert shown["aliases"] == {"latest": 2, "production": 2}
    by_number = {version["version"]: version["manifest_digest"] for version in versions}
    with service.client() as client:
        found = [client.resolve(f"demo/counted@{number}") for number in (1, 2)]
        assert client.resolve("demo/counted@production").version == 2
    assert [version.manifest_digest for version in found] == [by_number[1], by_number[2]]
    first, second = ({entry.path: entry.digest for entry in version.manifest.files} for version in found)
    assert first["adapter_model.safetensors"] == second["adapter_model.safetensors"]
