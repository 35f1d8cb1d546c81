"""A committed round as a version in the hub: the adapter's files, and who and what it was made of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hub.description import describe
from hub.publication import Publication
from hub.validate import check_version
from orchestrator.aggregate import FederationState
from orchestrator.federation_files import write_adapter
from orchestrator.federation_round import Sent
from orchestrator.ledger.federations import FederatedJob
from orchestrator.services import OrchestratorServices
from wegeft.contracts.adapter import CARD_FILE, CONFIG_FILE, JOB_FILE, METRICS_FILE, WEIGHTS_FILE, FileEntry
from wegeft.contracts.base_model_name import is_hub_id, pinned_name
from wegeft.contracts.card import code_span, escape_markdown, join_card
from wegeft.contracts.federation import RoundRecord

_CARD = """\
# {name}, round {round} of {rounds}

A WeGeFT adapter for {base_model}, put together from the work of {members} sites that kept their data, by the rule `{rule}`.

| site | examples | weight |
| --- | --- | --- |
{rows}

What the rule could not keep in the trained pair is part of this adapter: rank {rank}, of which {trained} are trained. Aggregation residual
{residual}. `metrics.json` holds the round's record, from which its members can compute it again.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundResult:
    """What a round has come to."""

    state: FederationState
    record: RoundRecord
    sent: tuple[Sent, ...]


def prepare_version(services: OrchestratorServices, job: FederatedJob, config: Mapping[str, Any], result: RoundResult) -> Publication:
    """Store the files of a round's version, check them as any other's, and return what the catalog takes in.

    ``config`` is the ``adapter_config.json`` that the federation began with.
    """
    published = write_adapter(result.state, has_one_rank=True)
    rank, scale = max(published.ranks.values()), next(iter(published.scales.values()))
    metrics = _metrics(result)
    contents = {
        CONFIG_FILE: _json({**config, "r": rank, "wegeft_alpha": scale * rank, "base_model_name_or_path": job.spec.base_model}),
        WEIGHTS_FILE: published.weights,
        CARD_FILE: _card(job, result, rank).encode(),
        JOB_FILE: _json(job.spec.model_dump(mode="json")),
        METRICS_FILE: _json({**metrics, "round": result.record.model_dump(mode="json")}),
    }
    files = tuple(
        FileEntry(path=path, digest=services.keep_for_rounds(job.id, content), size=len(content)) for path, content in contents.items()
    )
    facts = check_version(services.store, files)
    return Publication(
        adapter=job.spec.adapter,
        files=files,
        source=f"round:{job.id}:{result.record.round}",
        base_model=pinned_name(job.spec.base_model, job.spec.base_model_revision),
        method=facts.method,
        rank=facts.rank,
        created_by=job.owner,
        metrics=metrics,
        visibility=job.spec.output.visibility,
        started_from=(job.section.start.weights,) if result.record.round == 1 and job.section.start else (),
        description=describe(services.store, files),
    )


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _metrics(result: RoundResult) -> dict[str, float]:
    """Return the round's measures, and what all members tell of their training, weighted by their examples."""
    total = math.fsum(one.update.examples for one in result.sent)
    told = {name for one in result.sent for name in one.update.metrics if all(name in other.update.metrics for other in result.sent)}
    means = {name: math.fsum(one.update.metrics[name] * (one.update.examples / total) for one in result.sent) for name in sorted(told)}
    figures = {"round": float(result.record.round), "members": float(len(result.sent)), "examples": total}
    return {**{f"mean_{name}": value for name, value in means.items()}, **result.record.measures, **figures}


def _card(job: FederatedJob, result: RoundResult, rank: int) -> str:
    record = result.record
    text = _CARD.format(
        name=job.spec.name,
        round=record.round,
        rounds=job.section.rounds,
        base_model=code_span(pinned_name(job.spec.base_model, job.spec.base_model_revision)),
        members=len(record.members),
        rule=record.rule.name,
        rows="\n".join(f"| {escape_markdown(member.site)} | {member.examples} | {member.weight:.4f} |" for member in record.members),
        rank=rank,
        trained=job.spec.effective_rank,
        residual=f"{record.measures.get('aggregation_residual', 0.0):.4g}",
    )
    front = {"library_name": "peft", "tags": ["peft", "wegeft", "federated"]}
    named = {"base_model": job.spec.base_model, "base_model_relation": "adapter"} if is_hub_id(job.spec.base_model) else {}
    return join_card({**named, **front}, "\n" + text)
