"""Making and deleting adapters, and looking at a card before it is sent."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from hub import catalog
from hub.hf_api.dialect import Doors, HfRoute, address_of, refusal
from hub.hf_api.front_matter import check_card
from hub.hf_views import View
from infra.auth import Principal, Role
from infra.database import writing
from wegeft.contracts.adapter import AdapterName, check_segment
from wegeft.contracts.errors import Conflict, InvalidReference, InvalidRequest
from wegeft.contracts.visibility import Visibility


class NamedRepository(BaseModel):
    """A repository as the clients name it."""

    name: str
    organization: str | None = None
    type: Literal["model"] | None = None


class NewRepository(NamedRepository):
    """A repository to be made."""

    private: bool | None = None
    visibility: str | None = None


class Card(BaseModel):
    """A README.md that a client is about to commit."""

    content: Annotated[str, Field(max_length=1 << 20)]


def make_router(doors: Doors) -> APIRouter:
    """Return the routes that make and delete adapters."""
    router = APIRouter(route_class=HfRoute)
    services = doors.services

    @router.post("/api/repos/create")
    def create_repo(body: NewRepository, caller: Annotated[Principal, Depends(doors.writer)], request: Request) -> Response:
        adapter, asked = _name_of(body, caller), _visibility_of(body)
        shown: View = {"url": address_of(request, str(adapter)), "name": str(adapter), "id": str(adapter)}
        try:
            with writing(services.engine) as connection:
                catalog.check_publisher(connection, caller, adapter)
                now, is_private = services.clock(), services.is_private_by_default
                catalog.claim(connection, adapter.namespace, caller, now, is_private_by_default=is_private)
                catalog.create_repository(connection, adapter, caller.name, now, asked)
        except Conflict as error:
            return refusal(error, request, told=shown)  # the clients read the address from a conflict too
        return JSONResponse(shown)

    @router.delete("/api/repos/delete")
    def delete_repo(body: NamedRepository, caller: Annotated[Principal, Depends(doors.writer)]) -> View:
        adapter = _name_of(body, caller)
        with writing(services.engine) as connection:
            catalog.require_right(connection, caller, adapter, Role.ADMIN)
            catalog.delete_adapter(connection, adapter, services.intake.keep_until)
        return {}

    @router.post("/api/validate-yaml", dependencies=[Depends(doors.reader)])
    def validate_yaml(body: Card) -> Response:
        errors, warnings = check_card(body.content)
        told = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
        return JSONResponse(told, 400 if errors else 200)

    return router


def _name_of(body: NamedRepository, caller: Principal) -> AdapterName:
    """Return the adapter that is named; a name alone is in the caller's own namespace, where the caller's name can be one."""
    try:
        namespace = check_segment(body.organization or caller.name, "namespace")
        return AdapterName(namespace=namespace, name=check_segment(body.name))
    except InvalidReference as error:
        raise InvalidRequest("not an adapter's name", problems=error.problems) from error


def _visibility_of(body: NewRepository) -> Visibility | None:
    match body.visibility or body.private:
        case None:
            return None
        case "private" | True:
            return "private"
        case "public" | False:
            return "public"
        case other:
            raise InvalidRequest("not a visibility", path="visibility", value=str(other), hint="private or public")
