"""What Hugging Face's client reads of a version's card and of what was measured, without a file being changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelInfo
from starlette.testclient import TestClient

from hub.objects import MemoryStore
from tests.hub.serving import WEIGHTS, Hub, made_hub
from wegeft.contracts.adapter import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE

CARD = "---\nlicense: mit\ntags: [a, b]\nself: x\nmodel-index: nonsense\nignore_metadata_errors: 1\nlanguage: {a: 1}\n---\nText\n"
FILES = {CONFIG_FILE: b'{"peft_type": "WEGEFT", "task_type": "CAUSAL_LM"}', WEIGHTS_FILE: WEIGHTS}
ROOT = "/api/models/demo/x"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with made_hub(f"sqlite:///{tmp_path_factory.mktemp('hub') / 'hub.db'}", MemoryStore()) as hub:
        hub.publish_files("job:1", "demo/x", FILES | {CARD_FILE: CARD.encode()}, metrics={"eval_loss": 0.5, "loss": 1.0})
        hub.publish_files("job:2", "demo/bare", FILES)
        yield hub


def info(client: TestClient, path: str = ROOT) -> Any:
    return ModelInfo(**client.get(path).json())


def test_evaluations_are_a_model_index_that_the_client_reads(client: TestClient) -> None:
    before = client.get("/demo/x/resolve/main/README.md").content
    report = {"metric": "exact_match", "value": 0.75, "dataset_digest": f"sha256:{5:064x}", "dataset_name": "sums"}
    assert client.post("/api/v1/adapters/demo/x/versions/1/evaluations", json=report).status_code == 201
    found = info(client)
    assert (found.card_data.license, found.card_data.tags, found.card_data.base_model) == ("mit", ["a", "b"], "org/base")
    results = {one.metric_type: one for one in found.card_data.eval_results}
    assert {name: one.metric_value for name, one in results.items()} == {"eval_loss": 0.5, "exact_match": 0.75}
    told = results["exact_match"]
    assert (told.task_type, told.dataset_name, told.dataset_revision) == ("text-generation", "sums", f"sha256:{5:064x}")
    assert found.model_index[0]["name"] == "x"
    assert client.get("/demo/x/resolve/main/README.md").content == before == CARD.encode()


def test_what_no_client_knows_of_a_card_is_not_told(client: TestClient) -> None:
    data = client.get(f"{ROOT}/revision/1?expand=cardData").json()
    assert set(data) == {"_id", "id", "cardData"}
    assert not {"self", "ignore_metadata_errors", "language"} & set(data["cardData"])
    assert "cardData" not in client.get(f"{ROOT}?expand=sha").json()


def test_a_version_without_card_and_evaluations_says_what_it_is(client: TestClient) -> None:
    found = info(client, "/api/models/demo/bare")
    assert (found.card_data.base_model, found.card_data.library_name, found.model_index) == ("org/base", "peft", None)


def test_a_card_that_has_rotted_keeps_nobody_from_the_rest(hub: Hub, client: TestClient, tmp_path: Path) -> None:
    hub.publish_files("job:3", "demo/rot", FILES | {CARD_FILE: b"---\nlicense: apache-2.0\n---\n"})
    [digest] = [one["digest"] for one in _layers(client) if one["annotations"]["org.opencontainers.image.title"] == CARD_FILE]
    hub.store.set_aside(digest)
    assert info(client, "/api/models/demo/rot").card_data.license is None


def _layers(client: TestClient) -> Any:
    return client.get("/api/v1/adapters/demo/rot/versions/1").json()["manifest"]["layers"]
