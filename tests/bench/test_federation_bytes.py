"""Bytes on a site's link: the proxy counts what passes, LoRA's file is PEFT's, and a real round is counted."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

from bench import federation_bytes as bench
from bench._counting_proxy import counting
from tests.orchestrator.federating import Server
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.serving import listening
from tests.tiny_models import make_model
from wegeft.contracts.wire import as_received, write_update


def test_proxy_counts_what_passes_each_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, counting(server.getsockname()[1]) as proxy:

        def answer() -> None:
            connection = server.accept()[0]
            with connection:
                while len(connection.recv(1 << 16)) > 0:
                    pass
                connection.sendall(b"y" * 7)

        thread = threading.Thread(target=answer)
        thread.start()
        with socket.create_connection(("127.0.0.1", int(proxy.url.rpartition(":")[2]))) as site:
            site.sendall(b"x" * 200_000)
            site.shutdown(socket.SHUT_WR)
            assert site.recv(100, socket.MSG_WAITALL) == b"y" * 7
        thread.join(30)
        proxy.settle()
        assert (proxy.bytes_up, proxy.bytes_down) == (200_000, 7)


@pytest.mark.parametrize("wire", bench.WIRES)
def test_file_of_lora_is_what_peft_would_send(wire: bench.Wire) -> None:
    targets = [name.rpartition(".")[2] for name in bench.MODELS["tiny"].modules]
    model = get_peft_model(make_model(), LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    tensors = {name: tensor.numpy() for name, tensor in get_peft_model_state_dict(model).items() if ".lora_" in name}
    assert bench.lora_bytes(bench.MODELS["tiny"], 4, wire) == len(write_update(tensors, wire))


def test_feedback_carries_what_a_wire_cuts_off() -> None:
    moved = {"a.phi": np.random.default_rng(0).normal(size=(6, 2))}
    with_feedback, without = (bench.Lossy("int8", has_feedback=flag) for flag in (True, False))
    sums = [sum(link(3, moved)["a.phi"] for _ in range(50)) / 50 for link in (with_feedback, without)]
    errors = [np.abs(found - moved["a.phi"]).max() for found in sums]
    assert errors[0] < 0.2 * errors[1]
    np.testing.assert_array_equal(bench.Lossy("int8", has_feedback=True)(0, moved)["a.phi"], as_received("a.phi", moved["a.phi"], "int8"))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A real server of federations, in this process."""
    engine = new_sqlite(tmp_path / "a.db")
    server = Server(engine)
    with listening(server.app()) as url:
        thread = server.thread()
        thread.start()
        yield url, server.make_token()
        thread.close()
    engine.dispose()


def test_a_real_round_is_counted(service: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with counting(int(service[0].rpartition(":")[2])) as proxy:
        rows = [bench.count_round(service, tmp_path, ("tiny", 8, wire), proxy) for wire in ("fp32", "int8")]
    capsys.readouterr()
    bench.print_json(rows, {})
    whole, small = json.loads(capsys.readouterr().out)["rounds"]
    numbers = 2 * 8 * (6 * 64 + 128)
    assert 4 * numbers < whole["update_bytes"] < whole["sent_bytes"] < 4 * numbers + 8192
    assert numbers < small["update_bytes"] < small["sent_bytes"] < numbers + 10_000
    assert whole["received_bytes"] > 4 * numbers
    for row in (whole, small):
        assert row["lora_bytes"] < row["lora_sent_bytes"] < 1.3 * row["lora_bytes"]
        assert row["share"] == row["sent_bytes"] / row["lora_sent_bytes"]
    bench.print_rows(rows)
    assert f"| {whole['share']:.1%} |" in capsys.readouterr().out
