"""What would fill the hub's memory or its time is refused, or not compared, before a number is read."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from hub.formats.factors import Known, Layer, factor_problems
from hub.formats.limits import (
    MAX_FACTOR_BYTES,
    MAX_GENERATOR_BYTES,
    FactorSize,
    generator_problems,
    gguf_sizes_of,
    size_problems,
    sizes_of,
)
from hub.formats.widths import width_problems
from hub.objects import MemoryStore
from infra.auth import create_token
from infra.database import writing
from tests.hub import format_files as made
from tests.hub.serving import NOW, Hub, made_hub
from wegeft.contracts.adapter import CONFIG_FILE, METRICS_FILE, WEIGHTS_FILE
from wegeft.contracts.gguf_file import GgufAdapter, GgufTensor
from wegeft.contracts.tensor_writer import write_tensors
from wegeft.contracts.tensors import TensorHeader, TensorSpec

HUGE_RANK = 65_536
FORMATS = "/api/v1/adapters/demo/x/versions/1/formats"
UP = "model.layers.0.mlp.up_proj"


def thin(rank: int) -> dict[str, tuple[Any, Any]]:
    return {name: (np.ones((1, rank), "f4"), np.ones((rank, 1), "f4")) for name in made.NAMES}


def publish_huge(hub: Hub, name: str, method: str, source: str) -> None:
    up, down = np.ones((1, HUGE_RANK), "f4"), np.ones((HUGE_RANK, 1), "f4")
    if method == "wegeft":
        tensors = {"base_model.wegeft_generators.up_proj.phi": up, "base_model.wegeft_generators.up_proj.psi": down}
        config = {"peft_type": "WEGEFT", "wegeft_alpha": 1.0, "transform": "output", "target_modules": ["up_proj"]}
    else:
        tensors = {f"base_model.model.{UP}.lora_A.weight": down, f"base_model.model.{UP}.lora_B.weight": up}
        config = {"peft_type": "LORA", "lora_alpha": 1.0, "target_modules": ["up_proj"]}
    told = json.dumps(config | {"r": HUGE_RANK, "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/base"}).encode()
    files = {CONFIG_FILE: told, WEIGHTS_FILE: write_tensors(tensors, "F32", {"format": "pt"})}
    hub.publish_files(source, name, files, method=method, base_model=made.BASE, rank=HUGE_RANK)


@pytest.mark.parametrize("method", ["lora", "wegeft"])
def test_versions_of_a_rank_that_would_fill_the_memory_are_not_compared(hub: Hub, client: TestClient, method: str) -> None:
    for number in (1, 2):
        publish_huge(hub, f"demo/huge-{number}", method, f"job:{number}")
    answer = client.get("/api/v1/adapters/demo/huge-1/versions/1/diff", params={"other": "demo/huge-2@1"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["incomparable"] == f"the rank is too large to compare: {HUGE_RANK}, and at most 4096"


@pytest.mark.parametrize("method", ["lora", "wegeft"])
def test_versions_of_very_many_groups_are_not_compared(hub: Hub, client: TestClient, method: str) -> None:
    """Each of them is small, and none of a rank that is refused: it is all of them together that take long."""
    publish_many(hub, f"many/{method}", method, 160)
    publish_many(hub, f"few/{method}", method, 10)
    found = {
        second: client.get(f"/api/v1/adapters/few/{method}/versions/1/diff", params={"other": f"{second}/{method}@1"}).json()
        for second in ("many", "few")
    }
    assert found["many"]["incomparable"].startswith("comparing them takes too long: width times the square of both ranks")
    assert found["many"]["groups"] == []
    assert (found["few"]["incomparable"], len(found["few"]["groups"])) == (None, 10)


def publish_many(hub: Hub, name: str, method: str, count: int) -> None:
    rank = 4096 if count > 10 else 2
    up, down = np.ones((4, rank), "f4"), np.ones((rank, 4), "f4")
    groups = [f"layers.{number}.up_proj" for number in range(count)]
    if method == "wegeft":
        pairs = {f"base_model.wegeft_generators.{group}": ("phi", "psi") for group in groups}
        config: dict[str, Any] = {"peft_type": "WEGEFT", "wegeft_alpha": 1.0}
    else:
        pairs = {f"base_model.model.{group}": ("lora_B.weight", "lora_A.weight") for group in groups}
        config = {"peft_type": "LORA", "lora_alpha": 1.0}
    tensors = {f"{at}.{end}": array for at, ends in pairs.items() for end, array in zip(ends, (up, down), strict=True)}
    told = json.dumps(config | {"r": rank, "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/base"}).encode()
    files = {CONFIG_FILE: told, WEIGHTS_FILE: write_tensors(tensors, "F32", {"format": "pt"})}
    hub.publish_files(f"job:{name}", name, files, method=method, base_model=made.BASE, rank=rank)


@pytest.mark.parametrize("at", ["lora/float32", "mlx/float32", "gguf/float32"])
def test_files_of_such_a_rank_are_refused(hub: Hub, client: TestClient, tmp_path: Path, at: str) -> None:
    made.publish(hub)
    files = {
        "lora/float32": lambda: made.lora(thin(HUGE_RANK), r=HUGE_RANK, lora_alpha=HUGE_RANK),
        "mlx/float32": lambda: made.mlx(thin(HUGE_RANK)),
        "gguf/float32": lambda: made.gguf_files(thin(HUGE_RANK), tmp_path),
    }[at]()
    made.send(client, files)
    answer = client.put(f"{FORMATS}/{at}", json=made.attachment(files))
    assert answer.status_code == 422
    found = [one for one in answer.json()["problems"] if one["message"] == "the rank is too large to be checked"]
    assert len(found) == 2 * len(made.NAMES)
    assert (found[0]["value"], found[0]["hint"]) == (str(HUGE_RANK), "at most 4096")


def test_nothing_is_attached_to_a_version_of_such_a_rank(hub: Hub, client: TestClient, tmp_path: Path) -> None:
    publish_huge(hub, "demo/x", "wegeft", "job:1")
    files = made.gguf_files(made.factors(made.generators()), tmp_path)
    made.send(client, files)
    answer = client.put(f"{FORMATS}/gguf/float32", json=made.attachment(files))
    assert {one["message"] for one in answer.json()["problems"]} == {"the rank is too large to be checked"}
    assert [one["path"] for one in answer.json()["problems"]] == [f"base_model.wegeft_generators.up_proj.{part}" for part in ("phi", "psi")]


class BusyStore(MemoryStore):
    """Notes how many ask at once what it has."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    def has(self, digest: str) -> int | None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.02)
        with self.lock:
            self.now -= 1
        return super().has(digest)


def test_two_at_once_are_checked_and_the_next_ones_wait(tmp_path: Path) -> None:
    store = BusyStore()
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", store) as hub, TestClient(hub.app) as client:
        with writing(hub.engine) as connection:
            tokens = [create_token(connection, name, "write", NOW)[1] for name in ("ada", "bob", "eve")]
        senders = [{"Authorization": f"Bearer {token}"} for token in tokens]
        files = made.lora(made.factors(made.publish(hub)))
        for headers in senders:
            client.headers.update(headers)
            made.send(client, files)
        store.most = 0

        def attach(number: int) -> int:
            return client.put(f"{FORMATS}/lora/float32", json=made.attachment(files), headers=senders[number % 3]).status_code

        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(attach, range(6)))
        assert answers == [200] * 6
        assert store.most == 2


# What the headers of files say that nobody would write for a test


def header(**shapes: tuple[int, int]) -> TensorHeader:
    specs = (
        TensorSpec(name=f"base_model.wegeft_generators.{name.replace('_', '.')}", dtype="F16", shape=shape, start=0, end=0)
        for name, shape in shapes.items()
    )
    return TensorHeader(tensors=tuple(specs), metadata={}, size=0)


def test_a_factor_that_is_too_large_in_float64_is_refused_by_its_header() -> None:
    most = MAX_FACTOR_BYTES // 8
    assert list(size_problems(sizes_of(header(q_psi=(16, most // 16))))) == []
    [problem] = size_problems(sizes_of(header(q_psi=(16, most // 16 + 1))))
    assert (problem.path, problem.value) == ("base_model.wegeft_generators.q.psi", f"{MAX_FACTOR_BYTES + 128} bytes in float64")
    tensor = GgufTensor(name="q.lora_a", kind="Q8_0", rows=64, columns=1 << 23, start=0)
    [refused] = size_problems(gguf_sizes_of(GgufAdapter(architecture="llama", alpha=1.0, tensors={tensor.name: tensor})))
    assert refused.message == "the factor is too large to be checked"


def test_generators_that_are_too_large_together_are_refused_by_their_header() -> None:
    each, count = (16, MAX_FACTOR_BYTES // 128), MAX_GENERATOR_BYTES // MAX_FACTOR_BYTES
    fit = header(**{f"g{n}_psi": each for n in range(count)}, **{f"g{n}_phi": each[::-1] for n in range(count)})
    assert list(generator_problems(fit, transform="input")) == []
    too_many = header(**{f"g{n}_psi": each for n in range(count + 1)})
    [problem] = generator_problems(too_many, transform="input")
    assert (problem.path, problem.value) == ("format", f"{MAX_GENERATOR_BYTES + MAX_FACTOR_BYTES} bytes in float64")
    assert list(generator_problems(too_many, transform="output")) == []


# How much is compared


class CountedGroups(dict[str, Any]):
    """Counts how often a generator is looked at."""

    looks = 0

    def __getitem__(self, name: str) -> Any:
        self.looks += 1
        return super().__getitem__(name)


def counted(count: int, seed: int, width: int = 24) -> CountedGroups:
    random = np.random.default_rng(seed)
    return CountedGroups({f"group {number:04}": random.normal(size=(2, width)) for number in range(count)})


def test_nothing_is_read_behind_the_last_problem_that_is_told() -> None:
    strangers, reads = list(counted(500, 1).values()), []

    def read(number: int) -> Any:
        reads.append(number)
        return strangers[number]

    layers = [Layer(name=f"blk.{n}", read=lambda n=n: read(n)) for n in range(len(strangers))]  # type: ignore[misc]
    groups = counted(300, 2)
    problems = list(factor_problems(layers, Known(groups=groups, limit=1e-2)))
    assert len(problems) == len(reads) == 20
    assert groups.looks <= 300 + 20 * 10


@pytest.mark.parametrize("is_reordered", [False, True])
def test_each_layer_finds_its_generator_among_many_with_few_looks(*, is_reordered: bool) -> None:
    groups = counted(300, 3, width=64)
    random = np.random.default_rng(4)
    order = random.permutation(64) if is_reordered else np.arange(64)
    stored = [(3.0 * np.pad(rows, ((0, 1), (0, 0)))[:, order]).astype(np.float16).astype(np.float64) for rows in groups.values()]
    layers = [Layer(name=f"blk.{n}.weight", read=lambda rows=rows: rows) for n, rows in enumerate(stored)]  # type: ignore[misc]
    assert list(factor_problems(layers, Known(groups=groups, limit=1e-2, is_reordered=is_reordered))) == []
    assert groups.looks <= 300 * 4


def test_generators_of_zeros_are_told_apart_by_their_names() -> None:
    groups = {f"{kind}_proj": np.zeros((2, 8)) for kind in "qv"}
    layers = [Layer(name=f"model.layers.{n}.self_attn.{kind}", read=lambda: np.zeros((2, 8))) for n in range(2) for kind in groups]
    assert list(factor_problems(layers, Known(groups=groups, limit=1e-5))) == []


def test_widths_and_ranks_that_no_generator_has_are_refused() -> None:
    known = Known(groups={"q_proj": np.ones((2, 8))}, limit=1e-5)
    wrong = [Layer(name="q_proj", read=lambda shape=shape: np.ones(shape)) for shape in ((2, 9), (1, 8), (2, 1))]  # type: ignore[misc]
    found = [problem.value for problem in factor_problems(wrong, known)]
    assert found == ["[2, 9]", "[1, 8]", "[2, 1]", None]


@pytest.mark.parametrize("at", ["lora/float32", "mlx/float32", "gguf/float32"])
def test_layers_that_are_not_as_wide_as_the_base_models_are_refused(hub: Hub, client: TestClient, tmp_path: Path, at: str) -> None:
    """A job has told how large a LoRA of its base model is; a factor of another width, the other one right, shows."""
    known = made.generators()
    found = made.factors(known)
    wider = {name: (np.pad(up, ((0, 8), (0, 0))), down) for name, (up, down) in found.items()}
    size = 4 * sum(up.size + down.size for up, down in found.values())
    files = made.native(known) | {METRICS_FILE: json.dumps({"lora_equivalent_bytes": size}).encode()}
    hub.publish_files("job:1", "demo/x", files, base_model=made.BASE, rank=made.RANK)
    for factors, status in ((wider, 422), (found, 200)):
        sent = {"lora": made.lora, "mlx": made.mlx, "gguf": lambda one: made.gguf_files(one, tmp_path)}[at.partition("/")[0]](factors)
        made.send(client, sent)
        answer = client.put(f"{FORMATS}/{at}", json=made.attachment(sent))
        assert answer.status_code == status, answer.text
        if status == 422:
            assert [problem["path"] for problem in answer.json()["problems"]] == ["layers"]
            assert answer.json()["problems"][0]["hint"].startswith("52, as the version's job has measured")


@pytest.mark.parametrize(
    ("figures", "ranks", "is_told"),
    [({}, [2, 2], False), ({"lora_equivalent_bytes": "x"}, [2], False), ({"lora_equivalent_bytes": 8}, [2, 3], False),
     ({"lora_equivalent_bytes": True}, [2], False), ({"lora_equivalent_bytes": 8}, [2], True), ({"lora_equivalent_bytes": 80}, [2], False)],
)  # fmt: skip
def test_widths_are_told_only_where_they_are_known(figures: dict[str, Any], ranks: list[int], is_told: bool) -> None:
    generators = [FactorSize(name=str(rank), rank=rank, count=8) for rank in ranks]
    written = [FactorSize(name="x.lora_A.weight", rank=2, count=8), FactorSize(name="x.lora_B.weight", rank=2, count=12)]
    assert bool(list(width_problems(figures, generators, written))) is is_told
