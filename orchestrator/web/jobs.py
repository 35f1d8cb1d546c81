"""The pages of jobs: the list, and a job with its progress, its loss curve, the end of its log and its result."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse

from hub.web import Frame, Visit
from hub.web.calls import api_path
from hub.web.frame import path_to
from hub.web.sessions import read_form, token_of
from orchestrator.web.curve import Series, draw
from orchestrator.web.log_lines import log_line
from wegeft.contracts.training import EventPage, JobPage, JobState, JobView, MetricPage

PATH = "/-/jobs"
PAGE_SIZE = 30
_LOG_LINES = 200
_POINTS = 10_000
_CURVES = (("loss", "training loss"), ("eval_loss", "held-out loss"))


def make_router(frame: Frame) -> APIRouter:
    """Return the routes under ``/-/jobs``."""
    router = APIRouter(prefix=PATH, include_in_schema=False)

    @router.get("")
    async def get_jobs(request: Request) -> Response:
        visit = await frame.require(request)
        asked = {name: value for name in ("state", "after") if (value := request.query_params.get(name))}
        page = await visit.calls.get(api_path("jobs"), JobPage, {"limit": PAGE_SIZE, **asked})
        following = urlencode({**asked, "after": page.next_cursor}) if page.next_cursor else None
        values = {"page": page, "asked": {"state": None, "after": None} | asked, "states": tuple(JobState), "following": following}
        return frame.page("jobs.html", visit, values)

    @router.get("/{job_id}")
    async def get_job(request: Request, job_id: str) -> Response:
        visit = await frame.require(request)
        values = await _live_values(visit, job_id)
        return frame.page("job.html", visit, {**values, "live": frame.fragment("job_live.html", values)})

    @router.get("/{job_id}/live")
    async def get_live(request: Request, job_id: str) -> Response:
        visit = await frame.require(request)
        values = await _live_values(visit, job_id)
        answer = frame.page("job_live.html", visit, values)
        answer.headers["X-Job-Final"] = "1" if values["job"].state.is_final else "0"
        return answer

    @router.post("/{job_id}/cancel")
    async def post_cancel(request: Request, job_id: str) -> Response:
        await read_form(request, token_of(request))
        visit = await frame.require(request)
        await visit.calls.send("POST", api_path("jobs", job_id, "cancel"))
        return RedirectResponse(path_to("-", "jobs", job_id), 303)

    return router


async def _live_values(visit: Visit, job_id: str) -> dict[str, Any]:
    """Return what changes while a job goes on."""
    job = await visit.calls.get(api_path("jobs", job_id), JobView)
    events = await visit.calls.get(api_path("jobs", job_id, "events"), EventPage, {"last": _LOG_LINES})
    series = []
    for name, title in _CURVES:
        page = await visit.calls.get(api_path("jobs", job_id, "metrics", name), MetricPage, {"limit": _POINTS})
        series.append(Series(name=title, points=tuple((point.step, point.value) for point in page.points)))
    return {"job": job, "lines": tuple(log_line(record) for record in events.records), "curve": draw(series)}
