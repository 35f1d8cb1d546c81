"""Two versions of LoRA are compared by the products that they add, against dense matrices; what cannot be compared is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from hub.objects import MemoryStore
from tests.hub.serving import Hub, made_hub
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE
from wegeft.contracts.comparison import ComparisonView
from wegeft.contracts.tensor_writer import write_tensors

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"
RANDOM = np.random.default_rng(8)
Factors = tuple[Any, Any]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with made_hub(f"sqlite:///{tmp_path_factory.mktemp('lora') / 'hub.db'}", MemoryStore()) as hub:
        yield hub


@pytest.fixture(scope="module")
def client(hub: Hub) -> Iterator[TestClient]:
    with TestClient(hub.app, headers=hub.bearer("read")) as client:
        yield client


def factors(out: int, width: int, rank: int) -> Factors:
    return RANDOM.standard_normal((out, rank)).astype("f4"), RANDOM.standard_normal((rank, width)).astype("f4")


def files(modules: dict[str, Factors], **config: Any) -> dict[str, bytes]:
    tensors = {
        f"base_model.model.{module}.lora_{letter}.weight": np.ascontiguousarray(factor)
        for module, (b, a) in modules.items()
        for letter, factor in (("B", b), ("A", a))
    }
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 4.0, "task_type": "CAUSAL_LM", **config}
    return {CONFIG_FILE: json.dumps(told).encode(), WEIGHTS_FILE: write_tensors(tensors, "F32", {"format": "pt"})}


def diff(client: TestClient, first: str, second: str) -> ComparisonView:
    answer = client.get(f"/api/v1/adapters/{first}/versions/1/diff", params={"other": f"{second}@1"})
    assert answer.status_code == 200, answer.text
    return ComparisonView.model_validate(answer.json())


def test_products_are_compared_whatever_their_factors_shapes_and_scales(hub: Hub, client: TestClient) -> None:
    first, second = {Q: factors(12, 12, 2), UP: factors(20, 12, 2)}, {Q: factors(12, 12, 3), UP: factors(20, 12, 2)}
    hub.publish_files("job:1", "lora/first", files(first), method="lora")
    patterns = {"r": 2, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"self_attn.q_proj": 6.0}, "use_rslora": True}
    hub.publish_files("job:2", "lora/second", files(second, **patterns), method="rslora")
    found = diff(client, "lora/first", "lora/second")
    assert found.incomparable is None
    edits = [
        {name: 4.0 / 2 * (b.astype("f8") @ a) for name, (b, a) in first.items()},
        {name: alpha / rank**0.5 * (second[name][0].astype("f8") @ second[name][1]) for name, alpha, rank in ((Q, 6.0, 3), (UP, 4.0, 2))},
    ]
    assert [one.group for one in found.groups] == sorted([Q, UP])
    for group in found.groups:
        mine, theirs = (edit[group.group] for edit in edits)
        assert group.first_norm == pytest.approx(np.linalg.norm(mine), rel=1e-6)
        assert group.second_norm == pytest.approx(np.linalg.norm(theirs), rel=1e-6)
        assert group.difference == pytest.approx(np.linalg.norm(theirs - mine), rel=1e-6)
        cosine = (mine * theirs).sum() / np.linalg.norm(mine) / np.linalg.norm(theirs)
        assert group.cosine == pytest.approx(cosine, abs=1e-9)
        overlap = np.linalg.svd(np.linalg.qr(first[group.group][0])[0].T @ np.linalg.qr(second[group.group][0])[0])[1]
        assert group.write_angles == pytest.approx(np.arccos(overlap), abs=1e-5)
    whole = [np.concatenate([edit[name].ravel() for name in (Q, UP)]) for edit in edits]
    assert found.difference == pytest.approx(np.linalg.norm(whole[1] - whole[0]), rel=1e-6)
    assert found.cosine == pytest.approx(whole[0] @ whole[1] / np.linalg.norm(whole[0]) / np.linalg.norm(whole[1]), abs=1e-9)


def test_the_same_product_written_otherwise_is_no_difference(hub: Hub, client: TestClient) -> None:
    b, a = factors(20, 12, 2)
    turn = np.array([[2.0, 1.0], [0.5, 3.0]])
    hub.publish_files("job:3", "same/first", files({UP: (b, a)}), method="lora")
    hub.publish_files("job:4", "same/second", files({UP: (b @ turn, np.linalg.inv(turn) @ a / 2)}, lora_alpha=8.0), method="lora")
    found = diff(client, "same/first", "same/second")
    assert found.difference == pytest.approx(0, abs=1e-4)
    assert found.cosine == pytest.approx(1, abs=1e-6)
    assert [change.field for change in found.config] == ["lora_alpha"]


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("wegeft", "WeGeFT multiplies weights and LoRA adds to them, and these are lora and wegeft"),
        ("dora", "dora does more than add a product of two factors: its magnitudes scale the base model's weights as well"),
        ("pissa", "pissa does more than add a product of two factors: it has taken what it starts from out of the base model's weights"),
        ("ia3", "only WeGeFT's generators and LoRA's products are compared, and these are lora and ia3"),
    ],
)
def test_what_is_no_product_is_not_compared_and_said_why(hub: Hub, client: TestClient, method: str, reason: str) -> None:
    hub.publish_files(f"job:{method}", f"plain/{method}", files({UP: factors(4, 4, 1)}), method="lora")
    hub.publish_files(f"job:o{method}", f"other/{method}", files({UP: factors(4, 4, 1)}), method=method)
    found = diff(client, f"plain/{method}", f"other/{method}")
    assert (found.incomparable, found.groups, found.difference) == (reason, (), None)
