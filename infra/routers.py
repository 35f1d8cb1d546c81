"""Routers that gather other routers' routes without building them again."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter


class Gathering(APIRouter):
    """A router that takes in others' routes as they are, wherever it has nothing to add to them.

    FastAPI's own looks through everything below at each level of inclusion and builds each route anew there, its validators too: of a
    service's time to start, that was the larger part.
    """

    def include_router(self, router: APIRouter, **added: Any) -> None:
        """Add ``router``'s routes; with a prefix, tags, dependencies or anything else to add, as FastAPI does."""
        if added or self.prefix or self.tags or self.dependencies or self.responses or not self.include_in_schema:
            super().include_router(router, **added)
        else:
            self.routes.extend(router.routes)
