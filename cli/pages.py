"""The web pages of a service, put together from those of its parts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Literal

from fastapi import APIRouter

from hub.web import Frame, adapters, make_signing_in_router
from hub.web.frame import NavigationEntry
from orchestrator import web

Part = Literal["hub", "orchestrator"]


def make_frame(clock: Callable[[], datetime], only: Part | None) -> Frame:
    """Return the frame of all pages, or of those of one part."""
    hub = () if only == "orchestrator" else (("Adapters", "/"),)
    jobs = () if only == "hub" else web.NAVIGATION
    entries = tuple(NavigationEntry(title=title, path=path) for title, path in (*hub, *jobs))
    return Frame(clock=clock, navigation=entries, templates=(web.TEMPLATES,))


def make_pages(frame: Frame, only: Part | None) -> list[APIRouter]:
    """Return the routes of pages, for the end of all routes: a namespace can be called almost anything."""
    routers = [make_signing_in_router(frame)]
    if only != "hub":
        routers.append(web.make_router(frame))
    if only != "orchestrator":
        routers.append(adapters.make_router(frame))
    return routers
