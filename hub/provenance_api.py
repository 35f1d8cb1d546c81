"""The HTTP API of what the hub vouches for and knows of versions: keys, signatures, lineage, evaluations, cards, comparisons."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from hub import catalog, comparison, provenance
from hub.card_service import drop_card, edit_card, show_card
from hub.named_adapter import Name
from hub.named_version import Selector, resolve_named
from hub.services import HubServices
from infra.auth import Guard, Principal, Role
from infra.bodies import holds_tensors, waits_for_store
from infra.database import reading, writing
from wegeft.contracts.adapter import AdapterRef
from wegeft.contracts.bundles import BUNDLE_TYPE, BundleKind
from wegeft.contracts.card import CardEdit, CardView
from wegeft.contracts.comparison import ComparisonView
from wegeft.contracts.engines import EngineReport
from wegeft.contracts.provenance import EvaluationList, EvaluationReport, EvaluationView, LineageView
from wegeft.contracts.signing_keys import KeySet

KEYS_PATH = "/.well-known/wegeft-keys.json"
_BUNDLE: dict[int | str, dict[str, Any]] = {200: {"content": {BUNDLE_TYPE: {"schema": {"type": "object"}}}}}


def make_keys_router(services: HubServices) -> APIRouter:
    """Return the route of the hub's public keys, from the root; everybody may read them."""
    router = APIRouter(tags=["provenance"])

    @router.get(KEYS_PATH, summary="The public keys that versions are signed with, oldest first")
    def get_keys() -> KeySet:
        with reading(services.engine) as connection:
            return catalog.list_keys(connection)

    return router


def make_router(services: HubServices, guard: Guard) -> APIRouter:
    """Return the routes below ``/adapters``."""
    router = APIRouter(prefix="/adapters/{namespace}/{name}")
    reader = [Depends(guard.require(Role.READ))]
    router.include_router(_version_router(services, guard), dependencies=reader)
    router.include_router(_evaluation_router(services, guard), dependencies=reader)
    router.include_router(_card_router(services, guard), dependencies=reader)
    return router


def _version_router(services: HubServices, guard: Guard) -> APIRouter:
    router = APIRouter(prefix="/versions/{selector}", tags=["provenance"])
    Reader = Annotated[Principal, Depends(guard.require(Role.READ))]

    @router.get("/signature", summary="A signed statement about a version", responses=_BUNDLE, response_class=Response)
    @waits_for_store
    def get_signature(adapter: Name, selector: Selector, kind: BundleKind = "ed25519") -> Response:
        bundle = provenance.find_bundle(services, resolve_named(services, adapter, selector), kind)
        return Response(bundle, media_type=BUNDLE_TYPE)

    @router.get("/lineage", summary="Where a version comes from, and what came of it")
    def get_lineage(adapter: Name, selector: Selector, caller: Reader) -> LineageView:
        return provenance.find_lineage(services, resolve_named(services, adapter, selector), caller)

    @router.get("/engines", summary="Which engines load a version")
    @waits_for_store
    def get_engines(adapter: Name, selector: Selector) -> EngineReport:
        return provenance.find_engines(services, resolve_named(services, adapter, selector))

    @router.get("/diff", summary="How another version differs from this one")
    @holds_tensors
    def get_diff(
        adapter: Name,
        selector: Selector,
        caller: Reader,
        other: Annotated[str, Query(max_length=300, description="`namespace/name@version`; without @, the latest.")],
    ) -> ComparisonView:
        second = AdapterRef.parse(other)
        with reading(services.engine) as connection:
            catalog.require_right(connection, caller, second.adapter, Role.READ)
        return comparison.compare(
            services, resolve_named(services, adapter, selector), resolve_named(services, second.adapter, second.selector)
        )

    return router


def _evaluation_router(services: HubServices, guard: Guard) -> APIRouter:
    router = APIRouter(prefix="/versions/{selector}/evaluations", tags=["evaluations"])
    Writer = Annotated[Principal, Depends(guard.require(Role.WRITE))]

    @router.get("", summary="What was measured of a version")
    def list_evaluations(adapter: Name, selector: Selector) -> EvaluationList:
        version = resolve_named(services, adapter, selector)
        with reading(services.engine) as connection:
            return EvaluationList(ref=version.ref, evaluations=catalog.list_evaluations(connection, adapter, version.version))

    @router.post("", summary="Report what was measured; again on the same data, the new value stands", status_code=201)
    def add_evaluation(adapter: Name, selector: Selector, body: EvaluationReport, caller: Writer) -> EvaluationView:
        version = resolve_named(services, adapter, selector)
        with writing(services.engine) as connection:
            return catalog.report_evaluation(connection, (adapter, version.version), body, caller.name, services.clock())

    return router


def _card_router(services: HubServices, guard: Guard) -> APIRouter:
    router = APIRouter(prefix="/card", tags=["cards"])
    Writer = Annotated[Principal, Depends(guard.require(Role.WRITE))]

    @router.get("", summary="An adapter's card")
    @waits_for_store
    def get_card(adapter: Name) -> CardView:
        return show_card(services, adapter)

    @router.put("", summary="Replace an adapter's card, by compare-and-set")
    @waits_for_store
    def put_card(adapter: Name, body: CardEdit, caller: Writer) -> CardView:
        return edit_card(services, adapter, body, caller.name)

    @router.delete("", summary="Forget the edited card: the latest version's own is shown again", status_code=204)
    def delete_card(adapter: Name, caller: Writer) -> None:  # noqa: ARG001 - who may
        drop_card(services, adapter)

    return router
