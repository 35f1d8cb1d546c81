"""What is known of versions beside their files: cards, evaluations, lineage, differences and engines, over HTTP."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from sqlalchemy import insert, select
from starlette.testclient import TestClient

from hub import catalog
from infra.database import reading, writing
from tests.hub.serving import Hub
from wegeft.contracts.adapter import CARD_FILE, CONFIG_FILE, METRICS_FILE, WEIGHTS_FILE, AdapterRef, VersionView
from wegeft.contracts.comparison import ComparisonView
from wegeft.contracts.engines import engine_report
from wegeft.contracts.provenance import MAX_GENERATIONS, LineageView
from wegeft.contracts.tensor_writer import write_tensors

API = "/api/v1/adapters"
A, B = f"sha256:{10:064x}", f"sha256:{11:064x}"
CARD = "---\nlicense: apache-2.0\ntags: [a, b]\n---\n# Own\n"


def adapter(phi: Any, psi: Any, group: str = "q_proj") -> bytes:
    name = f"base_model.wegeft_generators.{group}"
    return write_tensors({f"{name}.phi": np.asarray(phi), f"{name}.psi": np.asarray(psi)}, "F32", {"format": "pt"})


def files(weights: bytes, **config: Any) -> dict[str, bytes]:
    told = {"peft_type": "WEGEFT", "r": 2, "wegeft_alpha": 4.0, "task_type": "CAUSAL_LM", **config}
    return {CONFIG_FILE: json.dumps(told).encode(), WEIGHTS_FILE: weights}


# Cards


def test_the_latest_versions_card_is_shown_until_it_is_edited(hub: Hub, client: TestClient) -> None:
    hub.publish_files("job:1", "demo/x", {**files(b"1"), CARD_FILE: CARD.encode()})
    shown = client.get(f"{API}/demo/x/card").json()
    assert (shown["markdown"], shown["license"], shown["tags"], shown["is_edited"]) == (CARD, "Apache-2.0", ["a", "b"], False)
    edit = {"markdown": "---\nlicense: mit\n---\n# Better\n", "expected": shown["digest"]}
    edited = client.put(f"{API}/demo/x/card", json=edit)
    assert (edited.status_code, edited.json()["license"], edited.json()["is_edited"]) == (200, "MIT", True)
    hub.publish_files("job:2", "demo/x", {**files(b"2"), CARD_FILE: b"# New\n"})
    assert client.get(f"{API}/DEMO/X/card").json()["markdown"] == edit["markdown"]
    stale = client.put(f"{API}/demo/x/card", json={"markdown": "# Lost\n", "expected": shown["digest"]})
    assert (stale.status_code, stale.json()["code"]) == (409, "conflict")
    assert client.put(f"{API}/demo/x/card", json=edit).status_code == 200  # a repeated answer that was lost
    assert [client.delete(f"{API}/demo/x/card").status_code for _ in range(2)] == [204, 204]
    assert client.get(f"{API}/demo/x/card").json()["markdown"] == "# New\n"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"markdown": "---\nlicense: gratis\n---\n"}, 422),
        ({"markdown": "---\n- x\n---\n"}, 422),
        ({"markdown": "x" * ((256 << 10) + 1)}, 422),
        ({"markdown": "a\u0000b"}, 422),
        ({"markdown": 3}, 422),
        ({}, 422),
        ({"markdown": "x", "expected": "sha256:1"}, 422),
    ],
)
def test_a_wrong_card_changes_nothing(hub: Hub, client: TestClient, body: dict[str, Any], status: int) -> None:
    hub.publish("job:1", "demo/x")
    assert client.put(f"{API}/demo/x/card", json=body).status_code == status
    assert client.get(f"{API}/demo/x/card").json()["markdown"] == ""


def test_who_may_only_read_writes_no_card_and_no_evaluation(hub: Hub) -> None:
    hub.publish("job:1", "demo/x")
    with TestClient(hub.app, headers=hub.bearer("read")) as reader:
        assert reader.put(f"{API}/demo/x/card", json={"markdown": "x"}).status_code == 403
        assert reader.delete(f"{API}/demo/x/card").status_code == 403
        assert reader.post(f"{API}/demo/x/versions/1/evaluations", json={"metric": "a", "value": 1}).status_code == 403
        assert reader.get(f"{API}/demo/y/card").status_code == 404


def test_a_card_of_a_version_is_shown_whatever_its_front_matter(hub: Hub, client: TestClient) -> None:
    hub.publish_files("job:1", "demo/x", {**files(b"1"), CARD_FILE: b"---\n*x\n---\n\xff"})
    shown = client.get(f"{API}/demo/x/card").json()
    assert shown["license"] is None
    assert shown["markdown"].startswith("---\n*x")


# Evaluations


def test_what_a_job_has_measured_is_an_evaluation_and_others_may_report(hub: Hub, client: TestClient) -> None:
    """Figures of the run are none; measured again on the same data, the new value stands."""
    hub.publish("job:1", "demo/x", metrics={"eval_loss": 0.5, "accuracy": 0.9, "train_loss": 1.0, "accuracy_before": 0.1}, measured_on=A)
    path = f"{API}/demo/x/versions/latest/evaluations"
    rows = client.get(path).json()["evaluations"]
    assert [(row["metric"], row["value"], row["dataset_digest"], row["is_reported"]) for row in rows] == [
        ("accuracy", 0.9, A, False),
        ("eval_loss", 0.5, A, False),
    ]
    for value in (0.7, 0.8):
        answer = client.post(path, json={"metric": "accuracy", "value": value, "dataset_digest": A})
        assert (answer.status_code, answer.json()["created_by"]) == (201, "write")
    client.post(path, json={"metric": "accuracy", "value": -1, "dataset_name": "GSM8K (test)"})
    found = client.get(path).json()["evaluations"]
    assert [(row["value"], row["dataset_name"]) for row in found if row["is_reported"]] == [(-1.0, "GSM8K (test)"), (0.8, None)]


@pytest.mark.parametrize(
    "body",
    [
        {"metric": "", "value": 1},
        {"metric": "a b", "value": 1},
        {"metric": "x" * 101, "value": 1},
        {"metric": "a", "value": "high"},
        {"metric": "a", "value": 1, "dataset_digest": "sha256:zz"},
        {"metric": "a", "value": 1, "dataset_name": "a\nb"},
        {"metric": "a", "value": 1, "other": 1},
        {"value": 1},
    ],
)
def test_a_wrong_evaluation_is_refused(hub: Hub, client: TestClient, body: dict[str, Any]) -> None:
    hub.publish("job:1", "demo/x")
    assert client.post(f"{API}/demo/x/versions/1/evaluations", json=body).status_code == 422
    not_a_number, json_type = '{"metric": "a", "value": NaN}', {"Content-Type": "application/json"}
    raw = client.post(f"{API}/demo/x/versions/1/evaluations", content=not_a_number, headers=json_type)
    assert raw.status_code == 422
    assert client.get(f"{API}/demo/x/versions/1/evaluations").json()["evaluations"] == []
    assert client.post(f"{API}/demo/x/versions/9/evaluations", json={"metric": "a", "value": 1}).status_code == 404


# Lineage


def lineage(client: TestClient, ref: str) -> LineageView:
    name, _, number = ref.partition("@")
    return LineageView.model_validate(client.get(f"{API}/{name}/versions/{number}/lineage").json())


def test_a_family_tree_goes_both_ways(hub: Hub, client: TestClient) -> None:
    """Rounds follow each other, the first begins with another adapter's weights, and an edit follows what it changes."""
    start = adapter(np.eye(4)[:, :2], np.eye(4)[:2])
    hub.publish_files("job:start", "demo/start", files(start), base_model=f"org/base@{'a' * 40}")
    digest = next(entry.digest for entry in find(hub, "demo/start").manifest.files if entry.path == WEIGHTS_FILE)
    for number in (1, 2, 3):
        told = {**files(adapter(np.ones((4, 2)) * number, np.eye(4)[:2])), METRICS_FILE: json.dumps({"base_model_config": A}).encode()}
        hub.publish_files(f"round:7:{number}", "demo/x", told, started_from=(digest,) if number == 1 else ())
    hub.publish_files("upload:9", "demo/y", files(b"y"), edited="round:7:2")
    middle = lineage(client, "demo/x@2")
    assert (middle.round, middle.base_model.config_digest) == (2, A)
    [before] = middle.ancestors
    assert (before.ref, before.relation, [kin.ref for kin in before.kin]) == ("demo/x@1", "next_round", ["demo/start@1"])
    assert {(one.ref, one.relation) for one in middle.descendants} == {("demo/x@3", "next_round"), ("demo/y@1", "edited")}
    first = lineage(client, "demo/start@1")
    assert (first.ancestors, first.base_model.name, first.base_model.revision) == ((), "org/base", "a" * 40)
    [child] = first.descendants
    assert (child.relation, [kin.ref for kin in child.kin]) == ("started_from", ["demo/x@2"])
    assert client.get(f"{API}/demo/x/versions/9/lineage").status_code == 404


def find(hub: Hub, name: str) -> VersionView:
    with reading(hub.engine) as connection:
        return catalog.resolve(connection, AdapterRef.parse(name))


def test_a_long_line_is_cut_and_a_diamond_is_told_once(hub: Hub, client: TestClient) -> None:
    for number in range(1, MAX_GENERATIONS + 4):
        hub.publish(f"round:7:{number}", "demo/x", weights=b"w")
    view = lineage(client, f"demo/x@{MAX_GENERATIONS + 3}")
    depth, level = 0, view.ancestors
    while level:
        depth, level = depth + 1, level[0].kin
    assert (depth, view.is_cut) == (MAX_GENERATIONS, True)
    with writing(hub.engine) as connection:
        ids = connection.execute(select(catalog.VERSIONS.c.id).order_by(catalog.VERSIONS.c.id)).scalars().all()
        # Every version also follows the one two before it: the number of paths doubles with each, the answer does not.
        rows = [{"version_id": ids[n], "parent_id": ids[n - 2], "relation": "edited"} for n in range(2, len(ids))]
        connection.execute(insert(catalog.LINEAGE), rows)
    answer = client.get(f"{API}/demo/x/versions/40/lineage")
    assert answer.status_code == 200
    assert len(answer.content) < 200_000


# Differences


def diff(client: TestClient, first: str, second: str) -> ComparisonView:
    name, _, number = first.partition("@")
    answer = client.get(f"{API}/{name}/versions/{number}/diff", params={"other": second})
    assert answer.status_code == 200, answer.text
    return ComparisonView.model_validate(answer.json())


def test_what_generators_do_is_compared_not_how_they_are_written(hub: Hub, client: TestClient) -> None:
    """Against dense matrices in float64; another gauge of the same product is no difference."""
    rng = np.random.default_rng(3)
    phi, psi = rng.standard_normal((12, 2)).astype("f4"), rng.standard_normal((2, 12)).astype("f4")
    turn = np.array([[2.0, 1.0], [0.5, 3.0]])
    other = rng.standard_normal((12, 2)).astype("f4")
    hub.publish_files("job:1", "demo/x", files(adapter(phi, psi)), metrics={"accuracy": 0.5}, measured_on=A)
    hub.publish_files("job:2", "demo/x", files(adapter(phi @ turn, np.linalg.inv(turn) @ psi)))
    hub.publish_files("job:3", "demo/z", files(adapter(other, psi), wegeft_alpha=6.0), metrics={"accuracy": 0.75}, measured_on=A)
    same = diff(client, "demo/x@1", "demo/x@2")
    assert same.incomparable is None
    assert same.config == ()
    assert same.difference == pytest.approx(0, abs=1e-4)
    assert same.cosine == pytest.approx(1, abs=1e-6)
    assert max(same.groups[0].read_angles) == pytest.approx(0, abs=1e-3)
    changed = diff(client, "demo/x@1", "demo/z@1")
    dense = [2.0 * phi.astype(float) @ psi, 3.0 * other.astype(float) @ psi]
    [group] = changed.groups
    assert group.first_norm == pytest.approx(np.linalg.norm(dense[0]), rel=1e-5)
    assert group.difference == changed.difference == pytest.approx(np.linalg.norm(dense[1] - dense[0]), rel=1e-5)
    product = float((dense[0] * dense[1]).sum() / np.linalg.norm(dense[0]) / np.linalg.norm(dense[1]))
    assert changed.cosine == pytest.approx(product, abs=1e-5)
    assert max(group.read_angles) == pytest.approx(0, abs=1e-3)
    overlap = np.linalg.svd(np.linalg.qr(phi)[0].T @ np.linalg.qr(other)[0])[1]
    assert group.write_angles == pytest.approx([math.acos(value) for value in overlap], abs=1e-3)
    assert [(one.field, one.first, one.second) for one in changed.config] == [("wegeft_alpha", "4.0", "6.0")]
    assert [(one.metric, one.delta) for one in changed.evaluations] == [("accuracy", 0.25)]


def test_what_cannot_be_compared_is_said(hub: Hub, client: TestClient) -> None:
    weights = adapter(np.eye(4)[:, :2], np.eye(4)[:2])
    hub.publish_files("job:1", "demo/x", files(weights))
    hub.publish_files("job:2", "demo/base", files(weights), base_model="org/other")
    hub.publish_files("job:3", "demo/lora", {**files(weights), CONFIG_FILE: b'{"peft_type": "LORA", "r": 4}'}, method="lora")
    hub.publish_files("job:4", "demo/out", files(weights, transform="output"))
    hub.publish_files("job:5", "demo/group", files(adapter(np.eye(4)[:, :2], np.eye(4)[:2], "v_proj")))
    hub.publish_files("job:6", "demo/wide", files(adapter(np.eye(6)[:, :2], np.eye(6)[:2])))
    hub.publish_files("job:7", "demo/zero", files(adapter(np.zeros((4, 2)), np.eye(4)[:2])))
    told = {name: diff(client, "demo/x@1", f"demo/{name}@1") for name in ("base", "lora", "out", "group", "wide", "zero")}
    assert "different base models" in (told["base"].incomparable or "")
    assert "wegeft and lora" in (told["lora"].incomparable or "")
    assert "what they write" in (told["out"].incomparable or "")
    assert [(one.group, one.first_norm is None, one.second_norm is None) for one in told["group"].groups] == [
        ("q_proj", False, True),
        ("v_proj", True, False),
    ]
    assert told["group"].cosine == 0
    assert (told["wide"].difference, told["wide"].cosine, told["wide"].groups[0].difference) == (None, None, None)
    assert (told["zero"].groups[0].cosine, told["zero"].groups[0].write_angles) == (None, ())
    for other, status in (("demo/none", 404), ("demo/x@9", 404), ("x", 422), ("x" * 400, 422)):
        assert client.get(f"{API}/demo/x/versions/1/diff", params={"other": other}).status_code == status


# Engines


def engines(method: str, **config: Any) -> dict[str, tuple[str, str]]:
    return {one.engine: (one.loads, one.how) for one in engine_report("demo/x@1", method, config).engines}


def test_which_engines_load_a_version(hub: Hub, client: TestClient) -> None:
    ours = engines("wegeft", r=33, task_type="CAUSAL_LM", rank_pattern={"v_proj": 40})
    assert [loads for loads, _ in ours.values()] == ["as_is", "converted", "converted", "converted"]
    assert "max_lora_rank 64" in ours["vllm"][1]
    assert "max_lora_rank 8" in engines("lora", r=8, task_type="CAUSAL_LM")["vllm"][1]
    assert engines("lora", r=8)["vllm"][0] == "as_is"
    assert engines("lora", r=1024)["vllm"][0] == "no"
    assert engines("lora", r=8, use_dora=True)["vllm"] == ("no", "it takes LoRA alone, not dora")
    assert engines("vera", r=8)["vllm"][0] == "no"
    head = engines("wegeft", r=8, task_type="SEQ_CLS", modules_to_save=["score"])
    assert {name: loads for name, (loads, _) in head.items()} == {"peft": "as_is", "vllm": "no", "llama.cpp": "no", "mlx": "no"}
    hub.publish_files("job:1", "demo/x", files(b"1"))
    answer = client.get(f"{API}/demo/x/versions/1/engines").json()
    assert (answer["ref"], [one["engine"] for one in answer["engines"]]) == ("demo/x@1", ["peft", "vllm", "llama.cpp", "mlx"])
