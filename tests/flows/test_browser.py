"""A person with a browser: signs in, searches, looks, moves an alias, follows a job, and signs out. Real Chromium, real HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.orchestrator.paged import Pages
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.serving import Site, listening

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
WIDTHS = (1280, 360)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pages, str, dict[str, str]]]:
    """Pages that are served, their address, and the addresses of things on them."""
    engine = new_sqlite(tmp_path_factory.mktemp("browser") / "hub.db")
    pages = Pages(Site(engine))
    for number in range(2):
        pages.publish("demo/sums", f"job:{number}")
    pages.publish("acme/a-name-that-is-so-long-that-no-phone-has-room-for-it-in-a-line", "job:x", base_model="/models/" + "deep/" * 30)
    federation = pages.add_federation()
    job_id = pages.add_job(hours=1, name="sums", labels={"team": "math"})
    pages.run_job()
    paths = {"job": f"/-/jobs/{job_id}", "federation": f"/-/federations/{federation}", "adapter": "/demo/sums"}
    with listening(pages.app) as url:
        yield pages, url, paths
    engine.dispose()


def watched(page: Page) -> list[str]:
    """Collect what must not happen: scripts of others that run, and anything that the policy refuses."""
    found: list[str] = []
    page.on("dialog", lambda dialog: (found.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: found.append(f"error: {error}"))
    page.on("console", lambda message: found.append(message.text) if "Content Security Policy" in message.text else None)
    return found


def sign_in(page: Page, url: str, token: str) -> None:
    page.goto(f"{url}/-/jobs")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Jobs").wait_for()


def test_a_person_signs_in_looks_around_moves_an_alias_and_cancels_a_job(browser: Browser, world: Any) -> None:
    pages, url, paths = world
    page = browser.new_context().new_page()
    wrong = watched(page)
    sign_in(page, url, pages.site.tokens["write"])
    page.get_by_role("link", name="Adapters", exact=True).click()
    page.get_by_label("Search by name, base model, tag or card").fill("demo sums")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="demo/sums").click()
    page.get_by_label("New alias").fill("production")
    page.get_by_label("Version", exact=True).fill("1")
    page.get_by_role("button", name="Set").click()
    page.get_by_label("Version for production").fill("2")
    page.get_by_role("button", name="Move").click()
    page.locator("#aliases").wait_for()
    assert "version 2" in str(page.locator("ul.aliases").text_content())
    page.goto(f"{url}{paths['job']}")
    assert page.get_by_role("img", name="Loss").is_visible()
    page.get_by_role("button", name="Cancel the job").click()
    page.get_by_role("status").filter(has_text="cancelling").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in").wait_for()
    page.goto(url)
    assert "/-/sign-in" in page.url
    assert wrong == []


def test_every_page_fits_a_phone_and_runs_nothing_that_others_wrote(browser: Browser, world: Any, tmp_path: Path) -> None:
    pages, url, paths = world
    page = browser.new_context().new_page()
    wrong = watched(page)
    sign_in(page, url, pages.site.tokens["read"])
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        for path in (
            "/",
            "/demo",
            "/acme",
            "/?search=nothing",
            "/-/jobs",
            "/-/federations",
            "/demo/sums/versions/1",
            "/x/y",
            *paths.values(),
        ):
            page.goto(f"{url}{path}")
            wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wider == 0, (path, width)
    assert wrong == []


def test_pages_work_without_scripts_and_by_keyboard(browser: Browser, world: Any) -> None:
    pages, url, paths = world
    page = browser.new_context(java_script_enabled=False).new_page()
    sign_in(page, url, pages.site.tokens["read"])
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    page.goto(f"{url}{paths['job']}")
    assert page.locator("noscript meta[http-equiv=refresh]").count() == 1 or page.locator("meta[http-equiv=refresh]").count() == 1
    page.goto(f"{url}/?search=sums")
    assert page.get_by_role("link", name="demo/sums").is_visible()
