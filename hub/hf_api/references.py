"""Names of versions: tags that stay, branches that are our aliases, and the history of ``main``.

``main`` is the newest version and moves by itself. A branch is an alias; a tag means one version for ever, and so does every
version's number, which is shown as a tag.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel
from sqlalchemy import Connection

from hub import catalog
from hub.catalog import Repository
from hub.hf_api.dialect import Doors, HfRoute
from hub.hf_api.revisions import find_version, resolve, resolve_version
from hub.hf_views import MAIN, View, commit_of, commit_of_digest, commit_view, empty_refs, refs_view
from hub.named_adapter import Name
from hub.services import HubServices
from infra.auth import Principal
from infra.database import reading, writing
from infra.routers import Gathering
from wegeft.contracts.adapter import AdapterName, AliasMove, check_alias
from wegeft.contracts.errors import Conflict, InvalidRequest

_ROOT = "/api/models/{namespace}/{name}"
_PAGE = 100


class NewTag(BaseModel):
    """A tag to be made."""

    tag: str
    message: str | None = None


class NewBranch(BaseModel):
    """A branch to be made."""

    startingPoint: str = MAIN  # noqa: N815 - the clients' spelling


def make_router(doors: Doors) -> APIRouter:
    """Return the routes of tags, branches and commits."""
    router = Gathering()
    router.include_router(_reading_router(doors.services), dependencies=[Depends(doors.reader)])
    router.include_router(_tag_router(doors))
    router.include_router(_branch_router(doors))
    return router


def _reading_router(services: HubServices) -> APIRouter:
    router = APIRouter(route_class=HfRoute)

    @router.get(f"{_ROOT}/refs")
    def list_refs(adapter: Name) -> View:
        found = resolve(services, adapter, MAIN)
        return empty_refs() if isinstance(found, Repository) else _refs_of(services, adapter)

    @router.get(f"{_ROOT}/commits/{{revision:path}}")
    def list_commits(
        adapter: Name, revision: str, request: Request, response: Response, below: Annotated[int | None, Query(ge=1, lt=2**31)] = None
    ) -> list[View]:
        found = resolve(services, adapter, revision)
        if isinstance(found, Repository):
            return []
        newest = found.version if below is None else min(found.version, below - 1)
        with reading(services.engine) as connection:
            commits = catalog.list_commits(connection, adapter, newest, _PAGE + 1)
        if len(commits) > _PAGE:
            response.headers["Link"] = f'<{request.url.include_query_params(below=commits[_PAGE - 1].number)}>; rel="next"'
        return [commit_view(commit) for commit in commits[:_PAGE]]

    return router


def _refs_of(services: HubServices, adapter: AdapterName) -> View:
    with reading(services.engine) as connection:
        newest = catalog.list_versions(connection, adapter, _PAGE).versions
        aliases = catalog.find_adapter(connection, adapter).aliases
        branches = {name: commit_of(find_version(connection, adapter, str(number))) for name, number in aliases.items()}
        tags = catalog.list_tags(connection, adapter)
    numbers = {str(version.version): commit_of(version) for version in newest}
    return refs_view(branches, numbers | {name: commit_of_digest(digest) for name, digest in tags.items()})


def _tag_router(doors: Doors) -> APIRouter:
    router = APIRouter(route_class=HfRoute)
    services = doors.services

    @router.post(f"{_ROOT}/tag/{{revision:path}}")
    def post_tag(adapter: Name, revision: str, body: NewTag, caller: Annotated[Principal, Depends(doors.writer)]) -> View:
        version = resolve_version(services, adapter, revision)
        tag = catalog.Tag(name=body.tag, number=version.version, created_by=caller.name, message=body.message or "")
        with writing(services.engine) as connection:
            catalog.create_tag(connection, adapter, tag, services.clock())
        return {}

    @router.delete(f"{_ROOT}/tag/{{tag:path}}", dependencies=[Depends(doors.writer)])
    def delete_tag(adapter: Name, tag: str) -> View:
        with writing(services.engine) as connection:
            catalog.find_adapter(connection, adapter)
            if tag.isdecimal():
                raise InvalidRequest("a version's number is its name for ever", path="tag", value=tag, hint="delete a tag that you made")
            catalog.delete_tag(connection, adapter, tag, services.clock())
        return {}

    return router


def _branch_router(doors: Doors) -> APIRouter:
    router = APIRouter(route_class=HfRoute)
    services = doors.services
    Writer = Annotated[Principal, Depends(doors.writer)]

    @router.post(f"{_ROOT}/branch/{{branch:path}}")
    def post_branch(adapter: Name, branch: str, body: NewBranch, caller: Writer) -> View:  # noqa: ARG001 - who may
        _check_branch(branch)
        version = resolve_version(services, adapter, body.startingPoint)
        with writing(services.engine) as connection:
            _refuse_present(connection, adapter, branch)
            catalog.refuse_tag(connection, adapter, branch)
            catalog.set_alias(connection, adapter, branch, AliasMove(version=version.version, expected=0), services.clock())
        return {}

    @router.delete(f"{_ROOT}/branch/{{branch:path}}")
    def delete_branch(adapter: Name, branch: str, caller: Writer) -> View:
        _check_branch(branch)
        with writing(services.engine) as connection:
            catalog.find_adapter(connection, adapter)
            catalog.check_mover(connection, caller, adapter, branch)
            catalog.delete_alias(connection, adapter, branch)
        return {}

    return router


def _refuse_present(connection: Connection, adapter: AdapterName, branch: str) -> None:
    """Refuse a branch that is there, wherever it points: the clients tell it from a new one by the status alone."""
    if branch in catalog.find_adapter(connection, adapter).aliases:
        raise Conflict("there is such a branch already", path="branch", value=branch, hint="`wgctl adapters alias set` moves it")


def _check_branch(branch: str) -> None:
    if branch == MAIN:
        raise InvalidRequest("main is the newest version and moves by itself", path="branch", value=branch)
    check_alias(branch)
