"""Reading a version's files: what there are, and their bytes."""

from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request, Response

from hub.catalog import Repository
from hub.hf_api.dialect import Doors, HfRoute, refusal
from hub.hf_api.revisions import resolve
from hub.hf_views import EMPTY_COMMIT, commit_of, hex_of, tree_entry
from hub.named_adapter import Name
from hub.objects import ObjectStore
from hub.services import HubServices
from hub.serving import ServedBlob, answer_blob, answer_head
from hub.signature_files import KINDS, signature_files
from infra.bodies import sends_files, waits_for_store
from wegeft.contracts.adapter import FileEntry, VersionView
from wegeft.contracts.errors import AdapterNotFound, FileNotFoundInVersion, InvalidRequest

_MAX_PATHS = 1000
_ROOT = "/api/models/{namespace}/{name}"
_FILE = "/{namespace}/{name}/resolve/{revision}/{path:path}"


def make_router(doors: Doors) -> APIRouter:
    """Return the routes that list and serve files."""
    router = APIRouter(route_class=HfRoute, dependencies=[Depends(doors.reader)])
    router.include_router(_tree_router(doors.services))
    sending = Depends(sends_files(doors.reader, doors.services.downloads_at_once))
    router.include_router(_file_router(doors.services), dependencies=[sending])
    return router


def _tree_router(services: HubServices) -> APIRouter:
    router = APIRouter(route_class=HfRoute)

    @router.get(f"{_ROOT}/tree/{{place:path}}")
    def list_tree(adapter: Name, place: str, expand: bool = False) -> list[dict[str, Any]]:
        revision, _, folder = place.partition("/")
        version = resolve(services, adapter, revision)
        if folder:
            raise FileNotFoundInVersion("there are no folders", path=str(adapter), value=folder)
        return [tree_entry(entry, version, is_expanded=expand) for entry, version in _files_of(services, version)]

    @router.post(f"{_ROOT}/paths-info/{{revision:path}}")
    def list_paths(adapter: Name, revision: str, form: Annotated[dict[str, list[str]], Depends(_form)]) -> list[dict[str, Any]]:
        version, wanted = resolve(services, adapter, revision), set(form.get("paths", []))
        is_expanded = form.get("expand", ["false"])[0].lower() == "true"
        return [
            tree_entry(entry, version, is_expanded=is_expanded) for entry, version in _files_of(services, version) if entry.path in wanted
        ]

    return router


def _files_of(services: HubServices, found: VersionView | Repository) -> list[tuple[FileEntry, VersionView]]:
    match found:
        case VersionView():
            beside = [file.entry for file in signature_files(services, found)]
            return [(entry, found) for entry in (*found.manifest.files, *beside)]
        case Repository():
            return []


async def _form(request: Request) -> dict[str, list[str]]:
    try:
        return parse_qs((await request.body()).decode(), max_num_fields=_MAX_PATHS + 10)
    except ValueError as error:
        raise InvalidRequest("not a form, or too many paths", path="body", hint=f"at most {_MAX_PATHS} paths") from error


def _file_router(services: HubServices) -> APIRouter:
    router = APIRouter(route_class=HfRoute)

    @router.head(_FILE)
    @router.get(_FILE)
    @waits_for_store
    def get_file(adapter: Name, revision: str, path: str, request: Request) -> Response:
        found = resolve(services, adapter, revision)
        if isinstance(found, Repository):
            return refusal(FileNotFoundInVersion(path=found.adapter, value=path), request, EMPTY_COMMIT)
        return _answer_file(services, found, path, request)

    @router.get("/api/models/{model}")
    @router.head("/{model}/resolve/{revision}/{path:path}")
    @router.get("/{model}/resolve/{revision}/{path:path}")
    def refuse_without_namespace(model: str) -> Response:
        """Base models of old have no namespace; a client must hear that they are not here."""
        raise AdapterNotFound(path="model", value=model)

    return router


def _answer_file(services: HubServices, version: VersionView, path: str, request: Request) -> Response:
    commit = commit_of(version)
    store: ObjectStore = services.store
    entry = next((entry for entry in version.manifest.files if entry.path == path), None)
    beside = [file for file in signature_files(services, version) if file.entry.path == path] if path in KINDS else []
    if beside:
        entry, store = beside[0].entry, beside[0].store
    if entry is None:
        return refusal(FileNotFoundInVersion(path=version.ref, value=path), request, commit)
    blob = ServedBlob(
        digest=entry.digest,
        size=entry.size,
        media_type=entry.media_type,
        file_name=entry.path,
        is_immutable=request.path_params["revision"] in (commit, str(version.version)),
        tag=hex_of(entry),
    )
    # HEAD always answers itself: clients that follow it elsewhere take their token with them, and miss these headers there.
    if request.method == "HEAD":
        answer = answer_head(blob, request.headers)
    else:
        answer = answer_blob(store, blob, request, services.direct_from_bytes)
    answer.headers.update({"X-Repo-Commit": commit, "X-Linked-ETag": blob.etag, "X-Linked-Size": str(entry.size)})
    return answer
