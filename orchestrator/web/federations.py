"""The pages of federations: the list, and one with its sites, its rounds, and who was left out of them and why."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import RootModel

from hub.web import Frame, Visit
from hub.web.calls import api_path
from orchestrator.web.curve import Curve, Series, draw
from wegeft.contracts.adapter import VersionPage
from wegeft.contracts.enrolment import FederationView, RoundView
from wegeft.contracts.errors import NotFound
from wegeft.contracts.training import JobPage, JobView

PATH = "/-/federations"
PAGE_SIZE = 30
_ROUNDS_SHOWN = 50
_VERSIONS_READ = 100


class _Rounds(RootModel[tuple[RoundView, ...]]):
    pass


def make_router(frame: Frame) -> APIRouter:
    """Return the routes under ``/-/federations``."""
    router = APIRouter(prefix=PATH, include_in_schema=False)

    @router.get("")
    async def get_federations(request: Request) -> Response:
        visit = await frame.require(request)
        after = request.query_params.get("after") or None
        page = await visit.calls.get(api_path("jobs"), JobPage, {"federated": "true", "limit": PAGE_SIZE, "after": after})
        return frame.page("federations.html", visit, {"page": page, "is_first": after is None})

    @router.get("/{job_id}")
    async def get_federation(request: Request, job_id: str) -> Response:
        visit = await frame.require(request)
        job = await visit.calls.get(api_path("jobs", job_id), JobView)
        federation = await visit.calls.get(api_path("jobs", job_id, "federation"), FederationView)
        before = request.query_params.get("before") or None
        rounds = await visit.calls.get(api_path("jobs", job_id, "rounds"), _Rounds, {"limit": _ROUNDS_SHOWN, "before": before})
        values = {
            "job": job,
            "federation": federation,
            "rounds": rounds.root,
            "is_first": before is None,
            "before": rounds.root[-1].round if rounds.root and rounds.root[-1].round > 1 else None,
            "curve": await _curve(visit, job),
        }
        return frame.page("federation.html", visit, values)

    return router


async def _curve(visit: Visit, job: JobView) -> Curve | None:
    """Return what sites told of their loss, round by round, as the published versions keep it."""
    namespace, _, name = str(job.spec.adapter).partition("/")
    try:
        page = await visit.calls.get(api_path("adapters", namespace, name, "versions"), VersionPage, {"limit": _VERSIONS_READ})
    except NotFound:
        return None
    made = [(version.source.rpartition(":"), version.metrics) for version in page.versions]
    ours = sorted((int(number), metrics) for (source, _, number), metrics in made if source == f"round:{job.id}" and number.isdecimal())
    titles = (("mean_train_loss", "training loss"), ("mean_eval_loss", "held-out loss"))
    return draw([Series(name=title, points=tuple((number, m[key]) for number, m in ours if key in m)) for key, title in titles])
