"""What a site sends and receives in one round, counted on its link: WeGeFT's shared generators in each wire format, against LoRA.

    python -m bench.federation_bytes                          # half a minute
    python -m bench.federation_bytes --accuracy --seeds 5     # and what each wire costs in accuracy, minutes

A real service is started in a process of its own; a site enrols, and then answers one round through a TCP proxy that counts every byte of
HTTP in both directions: the offer, the start, the upload, the signed update and its receipt. Nothing is trained: the update is random
numbers in the shapes of the model, which is all that its size depends on. For LoRA the same service and link carry as many numbers as A
and B of every layer have at the same rank, a generator in place of each pair; the size of LoRA's own file is computed beside it.

Accuracy is that of ``bench.federation_rules``, a toy of twenty sites, with what each wire does to every update, with and without error
feedback.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from bench._counting_proxy import CountingProxy, counting
from bench._noop_site import update_of
from cli.home import Home
from wegeft.client import Client
from wegeft.client.federation import FederationClient
from wegeft.client.site import SiteClient, SiteCredentials, enrol
from wegeft.contracts.enrolment import InvitationRequest
from wegeft.contracts.job import parse_spec
from wegeft.contracts.tensor_writer import write_tensors
from wegeft.contracts.wire import Wire, as_received, write_update

WIRES: tuple[Wire, ...] = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class Shapes:
    """A Llama's linear layers."""

    layers: int
    hidden: int
    keys: int
    """Width of keys and of values."""
    inner: int

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the seven linears of one layer."""
        hidden, keys, inner = self.hidden, self.keys, self.inner
        return {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden, keys), "self_attn.v_proj": (hidden, keys),
            "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (hidden, inner), "mlp.up_proj": (hidden, inner),
            "mlp.down_proj": (inner, hidden),
        }  # fmt: skip


MODELS = {
    "tiny": Shapes(layers=2, hidden=64, keys=32, inner=128),
    "smollm2-135m": Shapes(layers=30, hidden=576, keys=192, inner=1536),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One round of one site."""

    model: str
    rank: int
    wire: Wire
    sent_bytes: int
    """On the link, from the site."""
    update_bytes: int
    """Of them, the update's file."""
    received_bytes: int
    """On the link, to the site."""
    lora_sent_bytes: int
    """On the link, from a site that sends LoRA's numbers."""
    lora_received_bytes: int
    """On the link, to it."""
    lora_bytes: int
    """Of the file that LoRA would send, computed."""

    @property
    def share(self) -> float:
        """Of what a site with LoRA sends."""
        return self.sent_bytes / self.lora_sent_bytes


def lora_bytes(shapes: Shapes, rank: int, wire: Wire) -> int:
    """Return the bytes of the file with A and B of every layer."""
    tensors = {}
    for layer in range(shapes.layers):
        for name, (inputs, outputs) in shapes.modules.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = np.zeros((rank, inputs), dtype=np.float32)
            tensors[f"{prefix}.lora_B.weight"] = np.zeros((outputs, rank), dtype=np.float32)
    return len(write_update(tensors, wire))


def generator_widths(shapes: Shapes) -> dict[str, int]:
    """Return the width of each generator: one for each type of module."""
    return {name.rpartition(".")[2]: inputs for name, (inputs, _) in shapes.modules.items()}


def lora_widths(shapes: Shapes) -> dict[str, int]:
    """Return the widths of generators that have as many numbers as LoRA's pairs: one for each module of each layer."""
    kinds = {name.rpartition(".")[2]: (inputs + outputs) // 2 for name, (inputs, outputs) in shapes.modules.items()}
    return {f"layer{layer}_{kind}": width for layer in range(shapes.layers) for kind, width in kinds.items()}


def adapter_files(widths: Mapping[str, int], rank: int) -> tuple[bytes, bytes]:
    """Return the configuration and the weights of an untrained adapter with generators of these widths, by name."""
    random, tensors = np.random.default_rng(0), {}
    for name, width in widths.items():
        tensors[f"base_model.wegeft_generators.{name}.phi"] = np.zeros((width, rank))
        tensors[f"base_model.wegeft_generators.{name}.psi"] = random.uniform(-1, 1, (rank, width)) / width**0.5
    config = {"peft_type": "WEGEFT", "r": rank, "wegeft_alpha": 2.0 * rank, "target_modules": list(widths)}
    return json.dumps(config | {"base_model_name_or_path": "org/model"}).encode(), write_tensors(tensors)


@contextmanager
def running_service(folder: Path) -> Iterator[tuple[str, str]]:
    """Give the URL and the token of a service in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WEGEFT_")}
    environment |= {"WEGEFT_HOME": str(folder), "WEGEFT_POOL": "inline"}
    command = [sys.executable, "-m", "cli.main"]
    subprocess.run([*command, "up", "--detach"], env=environment, check=True, stdout=subprocess.DEVNULL)
    try:
        home = Home(folder)
        record, token = home.read_record(), home.read_token()
        assert record is not None
        assert token is not None
        yield record.server, token
    finally:
        subprocess.run([*command, "down"], env=environment, check=True, stdout=subprocess.DEVNULL)


def begin(server: str, token: str, files: tuple[bytes, bytes], rank: int, wire: Wire) -> SiteCredentials:
    """Submit a federation of one round and one site, and enrol it."""
    with Client(server, token) as client, FederationClient(server, token) as federations:
        config, weights = (client.upload(content).digest for content in files)
        section = {"rounds": 1, "min_sites": 1, "wire": wire, "max_update_norm": 1e6, "start": {"config": config, "weights": weights}}
        job_id = client.submit(parse_spec({"name": "bytes", "base_model": "org/model", "rank": rank, "federation": section})).id
        invitation = federations.invite(job_id, InvitationRequest(name="site", approve=True))
    key = os.urandom(32)
    enrolment = enrol(server, invitation.token, key, 100)
    return SiteCredentials(job_id=job_id, pseudonym=enrolment.site.pseudonym, server_key=enrolment.server_key, private_key=key)


def await_offer(server: str, credentials: SiteCredentials) -> None:
    """Return once the site is asked, so that no question that comes too early is counted."""
    with SiteClient(server, credentials, lambda: datetime.now(UTC)) as client:
        while client.offer() is None:
            pass


def answer_round(client: SiteClient, folder: Path) -> int:
    """Do what a site does in a round, with random numbers for what it trained; return the bytes of the update's file."""
    offer = client.offer()
    assert offer is not None
    client.fetch_blob(offer.start, folder / f"{offer.start[7:]}.safetensors")
    random = np.random.default_rng(1)
    content = write_update({name: 0.01 * random.standard_normal(form.shape) for name, form in offer.tensors.items()}, offer.wire)
    client.store_blob(content)
    client.submit(update_of(offer, content))
    return len(content)


def count_round(service: tuple[str, str], folder: Path, asked: tuple[str, int, Wire], proxy: CountingProxy) -> Row:
    """Return what one round takes on the link, and what it would take with LoRA."""
    model, rank, wire = asked
    shapes = MODELS[model]
    sent, received, size = count_widths(service, folder, (generator_widths(shapes), rank, wire), proxy)
    lora_sent, lora_received, _ = count_widths(service, folder, (lora_widths(shapes), rank, wire), proxy)
    return Row(
        model=model,
        rank=rank,
        wire=wire,
        sent_bytes=sent,
        update_bytes=size,
        received_bytes=received,
        lora_sent_bytes=lora_sent,
        lora_received_bytes=lora_received,
        lora_bytes=lora_bytes(shapes, rank, wire),
    )


def count_widths(
    service: tuple[str, str], folder: Path, asked: tuple[Mapping[str, int], int, Wire], proxy: CountingProxy
) -> tuple[int, int, int]:
    """Return the bytes that a site sends and receives in a round over generators of some widths, and those of its update's file."""
    widths, rank, wire = asked
    credentials = begin(*service, adapter_files(widths, rank), rank, wire)
    await_offer(service[0], credentials)
    with tempfile.TemporaryDirectory(dir=folder) as fetched:
        up, down = proxy.bytes_up, proxy.bytes_down
        with SiteClient(proxy.url, credentials, lambda: datetime.now(UTC)) as client:
            size = answer_round(client, Path(fetched))
        proxy.settle()
    return proxy.bytes_up - up, proxy.bytes_down - down, size


def count_rounds(models: Sequence[str], rank: int, wires: Sequence[Wire]) -> list[Row]:
    """Return a row for each model and wire."""
    with tempfile.TemporaryDirectory() as name, running_service(Path(name)) as service:
        port = urlsplit(service[0]).port
        assert port is not None
        with counting(port) as proxy:
            return [count_round(service, Path(name), (model, rank, wire), proxy) for model in models for wire in wires]


class Lossy:
    """What a wire does to the updates of all sites, with what it cut off added to the next or not."""

    def __init__(self, wire: Wire, *, has_feedback: bool) -> None:
        self._wire, self._has_feedback = wire, has_feedback
        self._carried: dict[int, Mapping[str, np.ndarray]] = {}

    def __call__(self, site: int, moved: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the update as the server reads it."""
        owed = self._carried.get(site, {})
        whole = {name: array.astype(np.float64) + owed.get(name, 0.0) for name, array in moved.items()}
        received = {name: as_received(name, array, self._wire) for name, array in whole.items()}
        if self._has_feedback:
            self._carried[site] = {name: whole[name] - received[name] for name in whole}
        return received


def accuracies(seeds: int, rounds: int) -> dict[str, list[float]]:
    """Return per cent right on the toy by wire, one figure a seed."""
    from bench import federation_rules as toy
    from wegeft.contracts.federation_rules import GeneratorExact

    options = argparse.Namespace(sites=20, alpha=0.1, rounds=rounds, steps=40, rate=0.01)
    weights, test = toy.pretrain(), toy.draw_data(99, 2000, toy.some_rotation())
    kinds: dict[str, tuple[Wire, bool]] = {
        "fp32": ("fp32", False), "bf16": ("bf16", True), "int8": ("int8", True),
        "bf16, no feedback": ("bf16", False), "int8, no feedback": ("int8", False),
    }  # fmt: skip
    found = {}
    for name, (wire, has_feedback) in kinds.items():
        runs = [toy.run(GeneratorExact(), seed, weights, test, options, Lossy(wire, has_feedback=has_feedback)) for seed in range(seeds)]
        found[name] = [100 * score for score, _ in runs]
    return found


def print_rows(rows: Sequence[Row]) -> None:
    """Print the bytes as a table."""
    print("| model | rank | wire | sent, on the link | of it the update | received | LoRA: sent | received | its file | sent / LoRA |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        counted = (row.sent_bytes, row.update_bytes, row.received_bytes, row.lora_sent_bytes, row.lora_received_bytes, row.lora_bytes)
        figures = " | ".join(f"{count:,}" for count in counted)
        print(f"| {row.model} | {row.rank} | {row.wire} | {figures} | {row.share:.1%} |")


def print_accuracies(found: Mapping[str, Sequence[float]]) -> None:
    """Print accuracies and paired differences to float32 as a table."""
    print("\n| wire | accuracy | difference to fp32 |\n|---|---:|---:|")
    for name, scores in found.items():
        gaps = [score - other for score, other in zip(scores, found["fp32"], strict=True)]
        error = f" ± {statistics.stdev(gaps) / len(gaps) ** 0.5:.2f}" if len(gaps) > 1 else ""
        print(f"| {name} | {statistics.mean(scores):.1f} % | {statistics.mean(gaps):+.2f}{error} |")


def print_json(rows: Sequence[Row], found: Mapping[str, Sequence[float]]) -> None:
    """Print both as one JSON object."""
    said: dict[str, Any] = {"rounds": [asdict(row) | {"share": row.share} for row in rows], "accuracy": found}
    print(json.dumps(said, indent=2))


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--wires", nargs="+", default=list(WIRES), choices=list(WIRES))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--accuracy", action="store_true", help="also train the toy over each wire")
    parser.add_argument("--seeds", type=int, default=3, help="of the toy")
    parser.add_argument("--rounds", type=int, default=12, help="of the toy")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options = parser.parse_args(arguments)
    rows = count_rounds(options.models, options.rank, options.wires)
    found = accuracies(options.seeds, options.rounds) if options.accuracy else {}
    if options.json:
        print_json(rows, found)
        return
    print_rows(rows)
    if found:
        print_accuracies(found)


if __name__ == "__main__":
    main()
