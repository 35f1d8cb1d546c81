"""Derived formats: attached, checked against the generators they were made of, fetched, and the first to go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from hub import catalog
from hub.collection import Collector
from hub.formats import shelf
from hub.objects import MemoryStore
from infra.database import reading, writing
from tests.hub import format_files as made
from tests.hub.serving import NOW, Hub, made_hub
from wegeft.contracts.adapter import WEIGHTS_FILE, AdapterName, AdapterRef, digest_of

FORMATS = "/api/v1/adapters/demo/x/versions/1/formats"
Factors = dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Factors]]:
    """A writer's client, and the factors of a version to which nothing is ever attached."""
    folder = tmp_path_factory.mktemp("refusing")
    with made_hub(f"sqlite:///{folder / 'hub.db'}", MemoryStore()) as hub, TestClient(hub.app, headers=hub.bearer("write")) as client:
        yield client, made.factors(made.publish(hub))


def attach(client: TestClient, sent: dict[str, bytes], at: str = "lora/float32", **changes: Any) -> Any:
    made.send(client, sent)
    return client.put(f"{FORMATS}/{at}", json=made.attachment(sent) | changes)


def states(client: TestClient) -> dict[str, str]:
    return {view["format"]: view["state"] for view in client.get(FORMATS).json()["formats"]}


@pytest.mark.parametrize("transform", ["input", "output"])
def test_what_was_made_of_the_generators_is_attached_in_every_form(hub: Hub, client: TestClient, tmp_path: Path, transform: str) -> None:
    found = made.factors(made.publish(hub, transform), transform)
    assert states(client) == {
        "native": "published",
        "lora": "convertible",
        "gguf": "convertible",
        "mlx": "convertible",
        "merged": "convertible",
    }
    all_files = {
        "lora/float32": made.lora(found),
        "lora/bfloat16": made.lora({name: (8 * up, down / 8) for name, (up, down) in found.items()}, "BF16"),
        "mlx/float32": made.mlx(found),
        "gguf/float32": made.gguf_files(found, tmp_path),
        "gguf/float16": made.gguf_files(found, tmp_path, "F16"),
    }
    for at, files in all_files.items():
        answer = attach(client, files, at)
        assert answer.status_code == 200, answer.json()
        assert answer.json()["size"] == sum(map(len, files.values()))
    assert states(client) == {"native": "published", "lora": "attached", "gguf": "attached", "mlx": "attached", "merged": "convertible"}
    for path, body in all_files["gguf/float16"].items():
        fetched = client.get(f"{FORMATS}/gguf/float16/files/{path}")
        assert (fetched.content, fetched.headers["ETag"]) == (body, f'"{digest_of(body)}"')
    [other] = [path for path in all_files["mlx/float32"] if path.endswith("safetensors")]
    url, body = f"{FORMATS}/mlx/float32/files/{other}", all_files["mlx/float32"][other]
    part = client.get(url, headers={"Range": "bytes=8-19"})
    assert (part.status_code, part.content) == (206, body[8:20])
    assert client.get(url, headers={"If-None-Match": f'"{digest_of(body)}"'}).status_code == 304
    assert client.head(url).headers["Content-Length"] == str(len(body))
    assert client.get(f"{FORMATS}/mlx/float32/files/x").status_code == 404


def test_lists_find_the_adapters_that_have_a_format(hub: Hub, client: TestClient) -> None:
    found = made.factors(made.publish(hub))
    hub.publish("job:2", "demo/other")
    assert client.get("/api/v1/adapters?attached=lora").json()["adapters"] == []
    attach(client, made.lora(found))
    assert [one["adapter"] for one in client.get("/api/v1/adapters?attached=lora").json()["adapters"]] == ["demo/x"]
    assert client.get("/api/v1/adapters?attached=gguf").json()["adapters"] == []
    assert client.get("/api/v1/adapters?attached=onnx").status_code == 422


def test_the_same_type_again_takes_its_place_and_what_is_forgotten_is_gone(hub: Hub, client: TestClient) -> None:
    found = made.factors(made.publish(hub))
    first, second = made.lora(found), made.lora(found, lora_dropout=0.1)
    for files in (first, first, second):
        assert attach(client, files).status_code == 200
    [lora] = [view for view in client.get(FORMATS).json()["formats"] if view["format"] == "lora"]
    assert [entry["digest"] for entry in lora["attached"][0]["files"]] == [digest_of(body) for body in second.values()]
    assert client.delete(f"{FORMATS}/lora/float32").status_code == 204
    gone = client.get(f"{FORMATS}/lora/float32/files/adapter_config.json")
    assert (gone.status_code, gone.json()["code"]) == (404, "not_found")
    assert "wgctl adapters export demo/x@1 --format lora --attach" in str(gone.json())
    assert client.delete(f"{FORMATS}/lora/float32").status_code == 404


def _with(change: Callable[[Factors], Any]) -> Callable[[Factors], Factors]:
    def changed(found: Factors) -> Factors:
        copied = {name: (up.copy(), down.copy()) for name, (up, down) in found.items()}
        change(copied)
        return copied

    return changed


def _spoil(found: Factors) -> None:
    found[made.NAMES[1]][1][0, 0] += 0.01


def _foreign(found: Factors) -> None:
    found["model.layers.0.mlp.up_proj"] = found.pop(made.NAMES[2])


@pytest.mark.parametrize(
    ("change", "config", "told", "path"),
    [
        (_spoil, {}, {}, made.NAMES[1]),
        (_foreign, {}, {}, "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"),
        (lambda found: found.pop(made.NAMES[2]), {"target_modules": ["q_proj"]}, {"layers": 2}, "down_proj"),
        (lambda _: None, {"lora_alpha": 4}, {}, "adapter_config.json: lora_alpha"),
        (lambda _: None, {"use_rslora": True}, {}, "adapter_config.json: use_rslora"),
        (lambda _: None, {"base_model_name_or_path": "org/other"}, {}, "adapter_config.json: base_model_name_or_path"),
        (lambda _: None, {"auto_mapping": {"parent_library": "os"}}, {}, "adapter_config.json: "),
        (lambda _: None, {"peft_type": "IA3"}, {}, "adapter_config.json: "),
        (lambda _: None, {}, {"layers": 4}, "layers"),
        (lambda _: None, {}, {"largest_error": 1e-3}, "largest_error"),
        (lambda _: None, {}, {"base_model": "org/base@" + "b" * 40}, "base_model"),
        (lambda _: None, {}, {"base_model": "org/other"}, "base_model"),
    ],
)
def test_what_is_not_this_version_is_refused(
    refusing: tuple[TestClient, Factors], change: Callable[[Factors], Any], config: dict[str, Any], told: dict[str, Any], path: str
) -> None:
    client, found = refusing[0], _with(change)(refusing[1])
    answer = attach(client, made.lora(found, **config), **told)
    assert answer.status_code == 422, answer.json()
    assert any(problem["path"].startswith(path) for problem in answer.json()["problems"]), answer.json()
    assert states(client)["lora"] == "convertible"


def test_numbers_that_are_not_finite_are_refused(refusing: tuple[TestClient, Factors], tmp_path: Path) -> None:
    client, found = refusing
    infinite = np.float32(np.inf).tobytes()
    spoilt = {
        "lora/float32": made.lora(found) | {WEIGHTS_FILE: made.lora(found)[WEIGHTS_FILE][:-4] + infinite},
        "mlx/float32": made.mlx(found) | {"adapters.safetensors": made.mlx(found)["adapters.safetensors"][:-4] + infinite},
        "gguf/float32": _with_last_number(made.gguf_files(found, tmp_path), infinite),
    }
    for at, files in spoilt.items():
        answer = attach(client, files, at)
        assert answer.status_code == 422
        assert "NaN or infinity" in answer.json()["problems"][0]["message"], answer.json()


def _with_last_number(files: dict[str, bytes], number: bytes) -> dict[str, bytes]:
    end = len(files["adapter.gguf"].rstrip(b"\0"))
    end += -end % 4
    return files | {"adapter.gguf": files["adapter.gguf"][: end - 4] + number + files["adapter.gguf"][end:]}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"largest_error": -1}, "invalid_request"),
        ({"files": []}, "invalid_request"),
        ({"layers": 0}, "invalid_request"),
        ({"made_by": "a\nb"}, "invalid_request"),
        ({"else": 1}, "invalid_request"),
        ({"files": [{"path": name, "digest": f"sha256:{5:064x}", "size": 1} for name in ("a", "b")]}, "invalid_request"),
    ],
)
def test_a_malformed_attachment_is_refused(refusing: tuple[TestClient, Factors], body: dict[str, Any], code: str) -> None:
    client, found = refusing
    answer = attach(client, made.lora(found), **body)
    assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_files_of_another_format_and_bytes_of_others_are_refused(hub: Hub, client: TestClient, tmp_path: Path) -> None:
    found = made.factors(made.publish(hub))
    files = made.lora(found)
    assert attach(client, files, "mlx/float32").json()["problems"][0]["path"] == "files"
    assert attach(client, files, "lora/q8_0").json()["problems"][0]["path"] == "dtype"
    assert [attach(client, files, at).status_code for at in ("onnx/float32", "lora/int4", "merged/float32")] == [422, 422, 422]
    theirs = made.lora(found, lora_dropout=0.5)
    with TestClient(hub.app, headers=hub.bearer("admin")) as admin:
        made.send(admin, theirs)
    refused = client.put(f"{FORMATS}/lora/float32", json=made.attachment(theirs))
    assert (refused.status_code, refused.json()["problems"][0]["message"]) == (422, "you have not sent these bytes")
    with TestClient(hub.app, headers=hub.bearer("read")) as reader:
        assert reader.put(f"{FORMATS}/lora/float32", json=made.attachment(files)).status_code == 403
        assert reader.delete(f"{FORMATS}/lora/float32").status_code == 403


@pytest.mark.parametrize(
    "modelfile",
    [
        "FROM org/base\nADAPTER ./adapter.gguf\nSYSTEM obey\n",
        "ADAPTER ./adapter.gguf\n",
        "FROM a\nADAPTER /etc/x\n",
        "FROM a\x1b[2J\nADAPTER ./adapter.gguf\n",
    ],
)
def test_a_modelfile_says_nothing_but_base_and_adapter(refusing: tuple[TestClient, Factors], tmp_path: Path, modelfile: str) -> None:
    client, found = refusing
    answer = attach(client, made.gguf_files(found, tmp_path, modelfile=modelfile), "gguf/float32")
    assert (answer.status_code, answer.json()["problems"][0]["path"]) == (422, "Modelfile")


def test_other_methods_are_not_converted_and_say_why(hub: Hub, client: TestClient) -> None:
    found = made.factors(made.generators())
    hub.publish_files("job:1", "demo/x", made.lora(found), method="lora", base_model=made.BASE, rank=2)
    assert states(client) == {"native": "published", "lora": "published", "gguf": "impossible", "mlx": "impossible", "merged": "impossible"}
    assert attach(client, made.mlx(found), "mlx/float32").json()["problems"][0]["path"] == "format"


# How long they stay


def collect(hub: Hub, later: timedelta, **how: bool) -> int:
    return Collector(engine=hub.engine, store=hub.store).collect(NOW + later, 100, **how).blobs


def test_what_nobody_fetches_goes_and_what_is_fetched_stays(hub: Hub, client: TestClient) -> None:
    found = made.factors(made.publish(hub))
    attach(client, made.lora(found))
    attach(client, made.mlx(found), "mlx/float32")
    assert collect(hub, timedelta(days=29)) == 0
    late = replace(hub.services, clock=lambda: NOW + timedelta(days=20))
    with reading(hub.engine) as connection:
        version = catalog.resolve(connection, AdapterRef.parse("demo/x@1"))
    shelf.note_use(late, version, ("mlx", "float32"))
    plan = Collector(engine=hub.engine, store=hub.store).plan(NOW + timedelta(days=31))
    assert (plan.formats, plan.unused_formats) == (2, 1)
    assert collect(hub, timedelta(days=31)) == 2
    assert (states(client)["lora"], states(client)["mlx"]) == ("convertible", "attached")
    assert client.get(f"{FORMATS}/mlx/float32/files/adapter_config.json").status_code == 200
    assert client.get("/api/v1/adapters/demo/x/versions/1/files/adapter_config.json").status_code == 200


def test_to_make_room_all_formats_go_first_and_versions_stay(hub: Hub, client: TestClient) -> None:
    files = made.lora(made.factors(made.publish(hub)))
    attach(client, files)
    with TestClient(hub.app, headers=hub.bearer("admin")) as admin:
        assert admin.post("/api/v1/collection?formats=none").status_code == 422
        assert admin.post("/api/v1/collection?formats=all").json()["blobs"] == 0  # whoever sent the bytes keeps them for a day
    assert states(client)["lora"] == "convertible"
    assert collect(hub, timedelta(days=2)) == 2
    assert client.get("/api/v1/adapters/demo/x/versions/1/files/adapter_model.safetensors").status_code == 200


def test_formats_count_in_a_quota_and_end_with_their_adapter(hub: Hub, client: TestClient) -> None:
    files = made.lora(made.factors(made.publish(hub)))
    size = sum(map(len, files.values()))
    with writing(hub.engine) as connection:
        used = catalog.quotas.measure(connection, "demo").bytes
        catalog.quotas.set_quota(connection, "demo", catalog.quotas.QuotaLimits(bytes=used + size - 1))
    assert attach(client, files).json()["code"] == "quota_exceeded"
    with writing(hub.engine) as connection:
        catalog.quotas.set_quota(connection, "demo", catalog.quotas.QuotaLimits(bytes=used + size))
    assert attach(client, files).status_code == 200
    with writing(hub.engine) as connection:
        assert catalog.quotas.measure(connection, "demo").bytes == used + size
        catalog.delete_adapter(connection, AdapterName.parse("demo/x"), NOW)
        assert catalog.quotas.measure(connection, "demo").bytes == 0
    assert collect(hub, timedelta(days=2)) == 4
