"""The HTTP API of who may do what: visibility of adapters, and organisations with their members."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path
from sqlalchemy import Connection

from hub import catalog
from hub.catalog import organisations, quotas
from hub.named_adapter import Name
from hub.services import HubServices
from infra.auth import Guard, Principal, Role
from infra.database import reading, writing
from infra.routers import Gathering
from wegeft.contracts.adapter import AdapterView, check_segment
from wegeft.contracts.errors import NotFound
from wegeft.contracts.organisations import MemberRole, OrganisationRequest, OrganisationView
from wegeft.contracts.quotas import QuotaLimits, QuotaView
from wegeft.contracts.visibility import VisibilityChange

Organisation = Annotated[str, Path(max_length=96, description="The organisation's name.")]
Account = Annotated[str, Path(max_length=64, description="An account: the name that its tokens bear.")]


def make_router(services: HubServices, guard: Guard) -> APIRouter:
    """Return the routes, to be put under the prefix of our API."""
    router = Gathering()
    router.include_router(_visibility_router(services, guard))
    router.include_router(_organisation_router(services, guard))
    router.include_router(_quota_router(services, guard))
    return router


def _visibility_router(services: HubServices, guard: Guard) -> APIRouter:
    owner = [Depends(guard.require(Role.WRITE, of_target=Role.ADMIN))]
    router = APIRouter(prefix="/adapters/{namespace}/{name}", tags=["adapters"], dependencies=owner)

    @router.put("/visibility", summary="Show an adapter to everybody, or to those alone who share its namespace")
    def put_visibility(adapter: Name, body: VisibilityChange) -> AdapterView:
        with writing(services.engine) as connection:
            catalog.set_visibility(connection, adapter, services.clock(), is_private=body.visibility == "private")
            return catalog.find_adapter(connection, adapter)

    return router


def _organisation_router(services: HubServices, guard: Guard) -> APIRouter:
    router = APIRouter(prefix="/organisations", tags=["organisations"])
    Reader = Annotated[Principal, Depends(guard.require(Role.READ))]
    Writer = Annotated[Principal, Depends(guard.require(Role.WRITE))]

    @router.get("", summary="The namespaces that you own or are a member of, by name; to an administrator all")
    def list_organisations(caller: Reader) -> list[OrganisationView]:
        with reading(services.engine) as connection:
            return list(organisations.list_organisations(connection, caller))

    @router.post("", status_code=201, summary="Make an organisation; you are its first admin")
    def post_organisation(body: OrganisationRequest, caller: Writer) -> OrganisationView:
        is_private = services.is_private_by_default
        with writing(services.engine) as connection:
            return organisations.create_organisation(connection, body.name, caller, services.clock(), is_private_by_default=is_private)

    @router.get("/{organisation}", summary="An organisation and its members")
    def get_organisation(organisation: Organisation, caller: Reader) -> OrganisationView:
        with reading(services.engine) as connection:
            return organisations.find_organisation(connection, organisation, caller)

    @router.put("/{organisation}/members/{account}", summary="Add a member, or change what it may do")
    def put_member(organisation: Organisation, account: Account, body: MemberRole, caller: Writer) -> OrganisationView:
        with writing(services.engine) as connection:
            organisations.set_member(connection, organisation, account, body.role, caller, services.clock())
            return organisations.find_organisation(connection, organisation, caller)

    @router.delete("/{organisation}/members/{account}", status_code=204, summary="Take a member out; every member may leave")
    def delete_member(organisation: Organisation, account: Account, caller: Writer) -> None:
        with writing(services.engine) as connection:
            organisations.remove_member(connection, organisation, account, caller)

    return router


def _quota_router(services: HubServices, guard: Guard) -> APIRouter:
    router = APIRouter(prefix="/namespaces/{namespace}/quota", tags=["quotas"])
    Reader = Annotated[Principal, Depends(guard.require(Role.READ))]

    @router.get("", summary="What a namespace of yours may hold, and what it holds")
    def get_quota(namespace: str, caller: Reader) -> QuotaView:
        key = check_segment(namespace, "namespace").lower()
        with reading(services.engine) as connection:
            if not caller.is_operator and (
                key not in catalog.namespaces_of(connection, caller.account) or caller.limit_on(key, None) is None
            ):
                raise NotFound("there is no such namespace, or it is not yours", path="namespace", value=namespace)
            return _quota(connection, key)

    @router.put("", summary="Limit what a namespace may hold; for an administrator", dependencies=[Depends(guard.require(Role.ADMIN))])
    def put_quota(namespace: str, body: QuotaLimits) -> QuotaView:
        with writing(services.engine) as connection:
            quotas.set_quota(connection, namespace, body)
            return _quota(connection, namespace.lower())

    def _quota(connection: Connection, namespace: str) -> QuotaView:
        staged = catalog.count_staged(connection, namespace, services.clock())
        return quotas.find_quota(connection, namespace).model_copy(update={"staged_bytes": staged})

    return router
