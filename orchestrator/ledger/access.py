"""Who may see a job, and who may stop it: whoever submitted it, and whoever may see or change the adapter that it makes."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import ColumnElement, Connection, and_, exists, func, or_, select, true

from hub import catalog
from infra.principals import Principal, Role, strongest
from orchestrator.ids import check_job_id
from orchestrator.ledger.tables import JOBS
from wegeft.contracts.adapter import AdapterName
from wegeft.contracts.errors import Forbidden, JobNotFound


def check_path(connection: Connection, caller: Principal, path: Mapping[str, str], needed: Role) -> None:
    """Check the job that a request's path names; a guard asks this at every door.

    Raises :class:`JobNotFound` where there is none or the caller may not know of it, and :class:`Forbidden` where it may.
    """
    if "job_id" not in path:
        return
    job_id = check_job_id(path["job_id"])
    query = select(JOBS.c.owner, JOBS.c.adapter_key).where(JOBS.c.id == job_id)
    row = connection.execute(query).one_or_none()
    right = None if row is None else _right_of(connection, caller, row.owner, AdapterName.parse(row.adapter_key))
    if right is None:
        raise JobNotFound(path="job", value=job_id)
    if not right.covers(needed):
        raise Forbidden(f"this needs the role {needed} on the job's adapter", path="role", value=str(right))


def _right_of(connection: Connection, caller: Principal, owner: str, adapter: AdapterName) -> Role | None:
    own = caller.limit_on_adapter(adapter) if owner.lower() == caller.account else None
    return strongest(right for right in (own, catalog.right_of(connection, caller, adapter)) if right is not None)


def seen_by(connection: Connection, reader: Principal | None) -> ColumnElement[bool]:
    """Return what holds for the jobs that a reader may see; see :class:`JobFilter` for None."""
    if reader is not None and reader.is_operator:
        return true()
    adapters, namespaces = catalog.ADAPTERS, catalog.NAMESPACES
    is_public = exists().where(adapters.c.key == JOBS.c.adapter_key, adapters.c.is_private.is_(False))
    is_nobodys = ~exists().where(namespaces.c.key == JOBS.c.namespace_key)
    if reader is None:
        return or_(is_public, is_nobodys)
    owned = JOBS.c.namespace_key.in_(catalog.namespaces_of(connection, reader.account))
    is_theirs = or_(is_nobodys, owned, func.lower(JOBS.c.owner) == reader.account)
    reached = _reached_by(reader)
    return or_(is_public, is_theirs if reached is None else and_(is_theirs, reached))


def _reached_by(reader: Principal) -> ColumnElement[bool] | None:
    """Return what holds for the jobs that a token's scopes reach; None where it has none."""
    if not reader.scopes:
        return None
    reached = [
        JOBS.c.namespace_key == scope.namespace if scope.name is None else JOBS.c.adapter_key == f"{scope.namespace}/{scope.name}"
        for scope in reader.scopes
    ]
    return or_(*reached)
