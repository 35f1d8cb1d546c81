"""The HTTP API of a federation's owner: invite, approve and revoke sites, and look at rounds."""

import secrets
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response
from sqlalchemy import Connection

from infra import audit
from infra.auth import Guard, Principal, Role
from infra.database import reading, writing
from orchestrator.federation_round import closing_of
from orchestrator.ids import check_job_id
from orchestrator.ledger import federations, rollbacks, round_views, site_keys, sites
from orchestrator.ledger.federations import FederatedJob
from orchestrator.rollbacks import roll_back
from orchestrator.services import OrchestratorServices
from wegeft.contracts.enrolment import FederationView, Invitation, InvitationRequest, RoundView, SiteView
from wegeft.contracts.errors import FederationOver
from wegeft.contracts.federation import RoundState, Site, SiteState
from wegeft.contracts.federation_rules import SiteName
from wegeft.contracts.rollback import Rollback, RollbackRequest
from wegeft.contracts.rotation import Rotation, RotationOrder

MAX_PAGE = 200

JobId = Annotated[str, Path(description="Of a federated job.")]
Name = Annotated[SiteName, Path(description="What the federation's members call the site.")]
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]


def make_router(services: OrchestratorServices, guard: Guard) -> APIRouter:
    """Return the routes under ``/jobs/{job_id}``."""
    router = APIRouter(prefix="/jobs/{job_id}", tags=["federation"])
    router.include_router(_member_router(services), dependencies=[Depends(guard.require(Role.WRITE))])
    router.include_router(_rotation_router(services, guard))
    router.include_router(_rollback_router(services, guard))
    router.include_router(_view_router(services), dependencies=[Depends(guard.require(Role.READ))])
    return router


def _member_router(services: OrchestratorServices) -> APIRouter:
    router = APIRouter()

    @router.post("/invitations", status_code=201, summary="Let one site enrol once; the token is shown this one time")
    def post_invitation(job_id: JobId, body: InvitationRequest) -> Invitation:
        now = services.clock()
        expires_at = now + timedelta(seconds=body.expires_in_seconds)
        token = f"wgi_{secrets.token_hex(6)}_{secrets.token_hex(32)}"
        with writing(services.engine) as connection:
            job = _find_going_on(connection, job_id)
            sites.invite(connection, job.id, body.name, token, (now, expires_at), is_approval=body.approve)
            audit.note(connection, "site.invite", f"{job.id}/{body.name}", now, approve=body.approve)
        return Invitation(job_id=job.id, name=body.name, token=token, expires_at=expires_at)

    @router.delete("/invitations/{name}", status_code=204, summary="Make an unused invitation worthless")
    def delete_invitation(job_id: JobId, name: Name) -> None:
        with writing(services.engine) as connection:
            sites.withdraw(connection, federations.find_federated(connection, check_job_id(job_id)).id, name)
            audit.note(connection, "site.withdraw", f"{job_id}/{name}")

    @router.post("/sites/{name}/approve", summary="Ask the site in rounds from now on")
    def approve_site(job_id: JobId, name: Name) -> SiteView:
        return _move(services, job_id, name, SiteState.APPROVED)

    @router.post("/sites/{name}/revoke", summary="Never ask the site again, and leave its work out of the open round")
    def revoke_site(job_id: JobId, name: Name) -> SiteView:
        return _move(services, job_id, name, SiteState.REVOKED)

    return router


def _rotation_router(services: OrchestratorServices, guard: Guard) -> APIRouter:
    router = APIRouter()
    Writer = Annotated[Principal, Depends(guard.require(Role.WRITE))]

    @router.post("/sites/{name}/rotate", status_code=201, summary="Let a site bind a new key once; the token is shown this one time")
    def rotate_site(job_id: JobId, name: Name, body: RotationOrder, caller: Writer) -> Rotation:
        now = services.clock()
        expires_at = now + timedelta(seconds=body.expires_in_seconds)
        token = f"wgr_{secrets.token_hex(6)}_{secrets.token_hex(32)}"
        with writing(services.engine) as connection:
            job = _find_going_on(connection, job_id)
            site = sites.find_site_named(connection, job.id, name)
            site_keys.order_rotation(connection, site, token, caller.name, expires_at)
            audit.note(connection, "site.rotate", f"{job.id}/{name}", now)
            federations.tell(connection, job.id, f"{caller.name} lets {name} make a new key", now)
        return Rotation(job_id=job.id, name=name, token=token, expires_at=expires_at)

    return router


def _rollback_router(services: OrchestratorServices, guard: Guard) -> APIRouter:
    router = APIRouter()
    Writer = Annotated[Principal, Depends(guard.require(Role.WRITE))]

    @router.post(
        "/rollbacks",
        status_code=201,
        summary="Go on from an earlier round; 200 where that was done before",
        responses={200: {"description": "That was done before", "model": Rollback}},
    )
    def post_rollback(job_id: JobId, body: RollbackRequest, caller: Writer, response: Response) -> Rollback:
        with writing(services.engine) as connection:
            done, is_new = roll_back(connection, check_job_id(job_id), body, caller.name, services.clock())
            if is_new:
                audit.note(connection, "federation.rollback", job_id, done.at, to_round=done.to_round, reason=done.reason)
        services.bells.arrived.set()
        response.status_code = 201 if is_new else 200
        return done

    return router


def _view_router(services: OrchestratorServices) -> APIRouter:
    router = APIRouter()

    @router.get("/federation", summary="Sites, the round that is open, and what was published last")
    def get_federation(job_id: JobId) -> FederationView:
        with reading(services.engine) as connection:
            return _view(connection, federations.find_federated(connection, check_job_id(job_id)))

    @router.get("/rounds", summary="Every try at every round, newest first")
    def get_rounds(
        job_id: JobId,
        before: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="Only rounds below this number.")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Rounds at most; each with all its tries.")] = 50,
    ) -> list[RoundView]:
        with reading(services.engine) as connection:
            job = federations.find_federated(connection, check_job_id(job_id))
            found = round_views.list_rounds(connection, job.id, closing_of(job.section), before, limit)
            return list(_mark_undone(connection, job.id, found))

    @router.get("/rounds/{number}", summary="The newest try at a round")
    def get_round(job_id: JobId, number: Number) -> RoundView:
        with reading(services.engine) as connection:
            job = federations.find_federated(connection, check_job_id(job_id))
            found = round_views.find_round(connection, job.id, number, closing_of(job.section))
            return _mark_undone(connection, job.id, (found,))[0]

    return router


def _mark_undone(connection: Connection, job_id: str, views: tuple[RoundView, ...]) -> tuple[RoundView, ...]:
    counting = rollbacks.list_counting(connection, job_id)
    return tuple(view.model_copy(update={"is_undone": view.state is RoundState.COMMITTED and view.round not in counting}) for view in views)


def _find_going_on(connection: Connection, job_id: str) -> FederatedJob:
    job = federations.find_federated(connection, check_job_id(job_id))
    if job.state.is_final:
        raise FederationOver(f"the job has {job.state} already", path="job", value=str(job.state))
    return job


def _move(services: OrchestratorServices, job_id: str, name: str, state: SiteState) -> SiteView:
    with writing(services.engine) as connection:
        job = federations.find_federated(connection, check_job_id(job_id))
        site = sites.move_site(connection, sites.find_site_named(connection, job.id, name).pseudonym, state)
        audit.note(connection, f"site.{state}", f"{job.id}/{name}")
    services.bells.arrived.set()
    with reading(services.engine) as connection:
        return _site_views(connection, job.id, (site,))[0]


def _view(connection: Connection, job: FederatedJob) -> FederationView:
    newest = round_views.list_rounds(connection, job.id, closing_of(job.section), None, 1)
    members = sorted(sites.list_sites(connection, job.id), key=lambda site: site.name)
    return FederationView(
        job_id=job.id,
        state=job.state,
        rounds_total=job.section.rounds,
        rounds_committed=len(rollbacks.list_counting(connection, job.id)),
        sites=_site_views(connection, job.id, tuple(members)),
        current=newest[0] if newest else None,
        published=round_views.last_published(connection, job.id),
        rollbacks=rollbacks.list_rollbacks(connection, job.id),
        waiting_for=job.waiting_for,
    )


def _site_views(connection: Connection, job_id: str, members: tuple[Site, ...]) -> tuple[SiteView, ...]:
    joined, seen = round_views.count_joined(connection, job_id), sites.list_seen(connection, job_id)
    left_out = round_views.last_exclusions(connection, job_id)
    return tuple(
        SiteView(
            site=site,
            rounds_joined=joined.get(site.pseudonym, 0),
            last_seen_at=seen.get(site.pseudonym),
            last_problem=why.reason if (why := left_out.get(site.pseudonym)) else None,
            problems=why.problems if why else (),
        )
        for site in members
    )
