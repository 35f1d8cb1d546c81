"""The HTTP API of derived formats: what there is, attaching, fetching and forgetting them."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response, params

from hub.formats import shelf
from hub.named_adapter import Name
from hub.named_version import Selector, resolve_named
from hub.services import HubServices
from hub.serving import FILE_ANSWERS, HEAD_ANSWERS, answer_blob, answer_head
from infra.auth import Guard, Principal, Role
from infra.bodies import holds_tensors, sends_files, waits_for_store
from wegeft.contracts.bundles import BUNDLE_TYPE
from wegeft.contracts.formats import AttachedFormat, DerivedFormat, FormatAttachment, FormatList, StoredDtype
from wegeft.contracts.signing_keys import Algorithm

Format = Annotated[DerivedFormat, Path(alias="format", description="What reads it.")]
Dtype = Annotated[StoredDtype, Path(description="How its numbers are stored.")]
_ALGORITHM = Query(description="`ed25519` is what our own clients check; the OpenSSF's model_signing takes `ecdsa-p256`.")
_BUNDLE: dict[int | str, dict[str, Any]] = {200: {"content": {BUNDLE_TYPE: {"schema": {"type": "object"}}}}}
_ONE = "/{format}/{dtype}"
_FILE = "/{format}/{dtype}/files/{path:path}"


def make_router(services: HubServices, guard: Guard) -> APIRouter:
    """Return the routes below a version."""
    reader = guard.require(Role.READ)
    router = APIRouter(
        prefix="/adapters/{namespace}/{name}/versions/{selector}/formats",
        tags=["formats"],
        dependencies=[Depends(reader)],
    )
    _add_files(router, services, Depends(sends_files(reader, services.downloads_at_once)))
    Writer = Annotated[Principal, Depends(guard.require(Role.WRITE))]

    @router.get("", summary="In which forms a version can be had, and how those are made that are not there")
    @waits_for_store
    def list_formats(adapter: Name, selector: Selector) -> FormatList:
        return shelf.find_formats(services, resolve_named(services, adapter, selector))

    @router.put(_ONE, summary="Attach a derived format whose bytes were sent before; it is checked against the version")
    @holds_tensors
    def put_format(
        adapter: Name, selector: Selector, format_: Format, dtype: Dtype, body: FormatAttachment, caller: Writer
    ) -> AttachedFormat:
        return shelf.attach(services, resolve_named(services, adapter, selector), (format_, dtype), body, caller)

    @router.get(f"{_ONE}/signature", summary="The hub's signature of a derived format", responses=_BUNDLE, response_class=Response)
    def get_signature(
        adapter: Name, selector: Selector, format_: Format, dtype: Dtype, algorithm: Annotated[Algorithm, _ALGORITHM] = "ed25519"
    ) -> Response:
        bundle = shelf.find_signature(services, resolve_named(services, adapter, selector), (format_, dtype), algorithm)
        return Response(bundle, media_type=BUNDLE_TYPE)

    @router.delete(_ONE, summary="Forget a derived format", status_code=204)
    def delete_format(adapter: Name, selector: Selector, format_: Format, dtype: Dtype, caller: Writer) -> None:  # noqa: ARG001 - who may
        shelf.detach(services, resolve_named(services, adapter, selector), (format_, dtype))

    return router


def _add_files(router: APIRouter, services: HubServices, sending: params.Depends) -> None:
    @router.get(_FILE, dependencies=[sending], summary="A file of a derived format", responses=FILE_ANSWERS, response_class=Response)
    @waits_for_store
    def get_file(adapter: Name, selector: Selector, format_: Format, dtype: Dtype, path: str, request: Request) -> Response:
        version = resolve_named(services, adapter, selector)
        blob = shelf.find_file(services, version, (format_, dtype), path)
        shelf.note_use(services, version, (format_, dtype))
        return answer_blob(services.store, blob, request, services.direct_from_bytes)

    @router.head(_FILE, summary="What a file of a derived format is", responses=HEAD_ANSWERS, response_class=Response)
    def head_file(adapter: Name, selector: Selector, format_: Format, dtype: Dtype, path: str, request: Request) -> Response:
        return answer_head(shelf.find_file(services, resolve_named(services, adapter, selector), (format_, dtype), path), request.headers)
