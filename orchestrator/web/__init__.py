"""The pages of jobs and federations, in the frame that the hub's pages have."""

from pathlib import Path

from fastapi import APIRouter

from hub.web import Frame
from infra.routers import Gathering
from orchestrator.web import federations, jobs

TEMPLATES = Path(__file__).parent / "templates"
"""For the frame to find."""
NAVIGATION = (("Jobs", jobs.PATH), ("Federations", federations.PATH))
"""What these pages add to the navigation: titles and paths."""


def make_router(frame: Frame) -> APIRouter:
    """Return the routes of the pages under ``/-/jobs`` and ``/-/federations``; ``frame`` knows :data:`TEMPLATES`."""
    router = Gathering()
    router.include_router(jobs.make_router(frame))
    router.include_router(federations.make_router(frame))
    return router
