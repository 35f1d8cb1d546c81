"""The HTTP API of long files: sent in parts, gone on with by any process, and named by a commit afterwards."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response

from hub.adapter_uploads import AdapterUploads
from hub.named_adapter import Name
from hub.services import HubServices
from infra.auth import Guard, Principal, Role
from infra.bodies import reads_whole_files, streams_body, waits_for_store
from infra.description import BINARY
from wegeft.contracts.training import BlobView
from wegeft.contracts.uploads import AdapterUploadRequest, AdapterUploadView

UploadId = Annotated[str, Path(max_length=32)]


def make_router(services: HubServices, guard: Guard) -> APIRouter:
    """Return the routes below ``/adapters``."""
    router = APIRouter(prefix="/adapters/{namespace}/{name}/uploads", tags=["uploads"])
    writer = guard.require(Role.WRITE)

    def desk(adapter: Name, caller: Annotated[Principal, Depends(writer)]) -> AdapterUploads:
        return AdapterUploads(services=services, adapter=adapter, caller=caller)

    _add_states(router, desk)
    _add_bytes(router, desk, writer)
    return router


def _add_states(router: APIRouter, desk: Callable[..., AdapterUploads]) -> None:
    Desk = Annotated[AdapterUploads, Depends(desk)]

    @router.post(
        "",
        status_code=201,
        summary="Begin to send a file in parts, or go on; 200 where it was begun before or is there",
        responses={200: {"description": "It was begun before, or is there", "model": AdapterUploadView}},
    )
    @waits_for_store
    def post_upload(body: AdapterUploadRequest, uploads: Desk, response: Response) -> AdapterUploadView:
        view, is_new = uploads.open(body)
        response.status_code = 201 if is_new else 200
        return view

    @router.get("/{upload_id}", summary="How far an upload is, and where its next parts are put")
    @waits_for_store
    def get_upload(upload_id: UploadId, uploads: Desk) -> AdapterUploadView:
        return uploads.look(upload_id)

    @router.delete("/{upload_id}", status_code=204, summary="Forget an upload, and what has come of it")
    @waits_for_store
    def delete_upload(upload_id: UploadId, uploads: Desk) -> None:
        uploads.abandon(upload_id)


def _add_bytes(router: APIRouter, desk: Callable[..., AdapterUploads], writer: Callable[..., Principal]) -> None:
    Desk = Annotated[AdapterUploads, Depends(desk)]
    Writer = Annotated[Principal, Depends(writer)]

    @router.put("/{upload_id}/parts/{offset}/{digest}", summary="Send the next part", openapi_extra={"requestBody": BINARY})
    @streams_body
    def put_part(
        upload_id: UploadId,
        offset: Annotated[int, Path(ge=0)],
        digest: str,
        uploads: Desk,
        caller: Writer,  # noqa: ARG001 - whose share
        request: Request,
    ) -> AdapterUploadView:
        return uploads.receive(upload_id, (offset, digest), request)

    @router.post("/{upload_id}/finish", status_code=201, summary="Put the parts together, and verify the whole")
    @reads_whole_files
    def finish_upload(upload_id: UploadId, uploads: Desk, caller: Writer) -> BlobView:  # noqa: ARG001 - whose share
        return uploads.finish(upload_id)
