"""The HTTP API of conversions: asking that a worker makes derived formats of a version. How they go on is told as of any job."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from hub import catalog
from hub.named_adapter import Name
from hub.named_version import Selector, resolve_named
from infra.auth import Guard, Principal, Role
from infra.bodies import waits_for_store
from infra.http import API_PREFIX
from orchestrator.conversions import convert
from orchestrator.services import OrchestratorServices
from wegeft.contracts.conversion import ConversionAnswer, ConversionRequest


def make_router(services: OrchestratorServices, guard: Guard) -> APIRouter:
    """Return the route below a version. Whoever may write the adapter may ask: a conversion costs what a job costs."""
    router = APIRouter(prefix="/adapters/{namespace}/{name}/versions/{selector}/conversions", tags=["formats"])
    Writer = Annotated[Principal, Depends(guard.checking(catalog.check_path).require(Role.WRITE))]

    @router.post(
        "",
        status_code=201,
        summary="Have a worker make derived formats of a version; 200 where they are attached, or are being made",
        responses={200: {"description": "All are attached, or a job makes them already", "model": ConversionAnswer}},
    )
    @waits_for_store
    def post_conversion(adapter: Name, selector: Selector, body: ConversionRequest, caller: Writer, response: Response) -> ConversionAnswer:
        answer, is_new = convert(services, resolve_named(services.hub, adapter, selector), body, caller)
        response.status_code = 201 if is_new else 200
        if answer.job is not None:
            response.headers["Location"] = f"{API_PREFIX}/jobs/{answer.job.id}"
        return answer

    return router
