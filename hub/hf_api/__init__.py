"""The Hugging Face dialect: with ``HF_ENDPOINT`` set to us, their unmodified clients list, download, upload and name adapters.

The rules that the clients hold us to: a HEAD is answered by ourselves, with the commit and a tag; errors are told in
``X-Error-Code`` and ``X-Error-Message``; files come in the commit itself; a revision is ``main``, a version's number, an alias, a tag,
or a commit of 40 hex digits. docs/huggingface.md says what all of it means here.
"""

from fastapi import APIRouter

from hub.hf_api import files, models, references, repositories, uploads
from hub.hf_api.dialect import HfRoute, make_doors
from hub.services import HubServices
from infra.auth import Guard

__all__ = ["make_router"]


def make_router(services: HubServices, guard: Guard) -> APIRouter:
    """Return the routes of the dialect, from the root."""
    router = APIRouter(route_class=HfRoute, include_in_schema=False)
    doors = make_doors(services, guard)
    for part in (models, references, repositories, uploads, files):
        router.include_router(part.make_router(doors))
    return router
