"""Our deployment, for ``bench.federation_rounds``: the service in a process of its own, and each site in one, over HTTP on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from bench._round_timing import GROUPS, RANK, Cell, Mark, Timing, end_all, read_marks, timing_of, wait_for, watching
from bench.federation_bytes import running_service
from cli.home import Home
from wegeft.client import Client
from wegeft.client.federation import FederationClient
from wegeft.client.site import enrol
from wegeft.contracts.enrolment import InvitationRequest
from wegeft.contracts.job import parse_spec
from wegeft.contracts.tensor_writer import write_tensors

_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")[:GROUPS]


def run_ours(cell: Cell, folder: Path, rule: str = "factor_mean") -> Timing:
    """Time rounds of a federation under ``rule``."""
    with running_service(folder / "home") as service:
        record = Home(folder / "home").read_record()
        assert record is not None
        job_id = submit(service, cell, rule)
        sites: list[subprocess.Popen[bytes]] = []
        try:
            with watching(lambda: [record.pid, *(site.pid for site in sites)]) as samples:
                sites += [start_site(service, job_id, folder / f"site-{index}.json", cell) for index in range(cell.sites)]
                wait_for(lambda: any(site.poll() is not None for site in sites), cell.limit_seconds)
                if not all(site.poll() in (None, 0) for site in sites):
                    raise RuntimeError(f"a site has failed: {(folder / 'sites.log').read_text()[-2000:]}")
                wait_for(lambda: all(site.poll() is not None for site in sites), 10)
            return timing_of(read_marks(folder / "marks") + round_marks(service, job_id), samples)
        finally:
            end_all([site.pid for site in sites])


def submit(service: tuple[str, str], cell: Cell, rule: str) -> str:
    """Submit the federation, and return its job's id."""
    random = np.random.default_rng(0)
    tensors = {}
    for name in _NAMES:
        tensors[f"base_model.wegeft_generators.{name}.phi"] = random.uniform(-1, 1, (cell.width, RANK))
        tensors[f"base_model.wegeft_generators.{name}.psi"] = random.uniform(-1, 1, (RANK, cell.width))
    config = {"peft_type": "WEGEFT", "r": RANK, "wegeft_alpha": 2.0 * RANK, "target_modules": list(_NAMES)}
    config["base_model_name_or_path"] = "org/model"
    with Client(*service) as client:
        start = {"config": client.upload(json.dumps(config).encode()).digest, "weights": client.upload(write_tensors(tensors)).digest}
        section = {"rounds": cell.rounds + 2, "min_sites": cell.sites, "max_update_norm": 1e9, "rule": rule, "start": start}
        return client.submit(parse_spec({"name": "rounds", "base_model": "org/model", "rank": RANK, "federation": section})).id


def start_site(service: tuple[str, str], job_id: str, path: Path, cell: Cell) -> subprocess.Popen[bytes]:
    """Enrol a site and start its process."""
    with FederationClient(*service) as federations:
        invitation = federations.invite(job_id, InvitationRequest(name=path.stem, approve=True))
    key = os.urandom(32)
    enrolment = enrol(service[0], invitation.token, key, 100)
    said = {
        "job_id": job_id, "pseudonym": enrolment.site.pseudonym, "server_key": enrolment.server_key, "private_key": key.hex(),
        "server": service[0], "marks": str(path.with_name("marks")), "work_seconds": cell.work_seconds,
    }  # fmt: skip
    path.write_text(json.dumps(said))
    with path.with_name("sites.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "bench._noop_site", str(path)], stdout=log, stderr=log)


def round_marks(service: tuple[str, str], job_id: str) -> list[Mark]:
    """Return when each round began, by the service's own record: when it set out to ask the sites."""
    end = time.monotonic() + 10
    with FederationClient(*service) as federations:
        while True:
            views = list(federations.rounds(job_id))
            if all(view.record for view in views) or time.monotonic() > end:
                return [Mark(what="round", round=view.round, at=view.record.created_at.timestamp()) for view in views if view.record]
            time.sleep(0.1)
