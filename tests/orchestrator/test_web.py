"""The pages of jobs and federations: states, curves, logs, rounds and who was left out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.web.curve import Series, draw, thin
from tests.hub.test_web import check_page
from tests.orchestrator.paged import Pages
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.serving import Site


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[Pages]:
    engine = new_sqlite(tmp_path / "hub.db")
    yield Pages(Site(engine))
    engine.dispose()


def test_a_running_job_shows_its_progress_its_loss_and_the_end_of_its_log(pages: Pages) -> None:
    job_id = pages.add_job(hours=1, name="sums", labels={"team": "math"})
    pages.run_job()
    with pages.visitor("read") as visitor:
        page = visitor.get(f"/-/jobs/{job_id}")
        check_page(page)
        for text in ("running", "12", "team=math", "polyline", "training loss from 3 at step 1 to 0.25 at step 12", "held-out loss 0.5000"):
            assert text in page.text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;\ufffd[31m row 3 was cut" in page.text
        assert "live.js" in page.text
        live = visitor.get(f"/-/jobs/{job_id}/live")
        assert (live.status_code, live.headers["x-job-final"]) == (200, "0")
        assert "<html" not in live.text
        assert "polyline" in live.text


def test_a_job_that_failed_says_why_and_is_not_reloaded(pages: Pages) -> None:
    job_id = pages.add_job(hours=1)
    with pages.visitor("write") as visitor:
        visitor.headers["Authorization"] = f"Bearer {pages.site.tokens['write']}"
        visitor.post(f"/api/v1/jobs/{job_id}/cancel")
        page = visitor.get(f"/-/jobs/{job_id}")
    check_page(page)
    assert "cancelled" in page.text
    assert "live.js" not in page.text


def test_jobs_are_listed_by_state_and_page(pages: Pages) -> None:
    for number in range(31):
        pages.add_job(hours=number, name=f"job-{number}")
    with pages.visitor("read") as visitor:
        first = visitor.get("/-/jobs?state=queued")
        page = check_page(first)
        following = next(str(link["href"]) for link in page.all("a") if link.get("rel") == "next")
        second = visitor.get(following)
        check_page(second)
        assert ">job-0<" in first.text
        assert ">job-30<" in second.text
        assert "No job is failed" in visitor.get("/-/jobs?state=failed").text
        check_page(visitor.get("/-/jobs?state=nonsense"), 422)
        check_page(visitor.get("/-/jobs?after=nonsense"), 422)


def test_a_federation_shows_its_rounds_its_sites_and_who_was_left_out(pages: Pages) -> None:
    job_id = pages.add_federation()
    pages.add_job(name="not-federated")
    with pages.visitor("read") as visitor:
        listed = visitor.get("/-/federations")
        check_page(listed)
        assert job_id in listed.text
        assert "not-federated" not in listed.text
        page = visitor.get(f"/-/federations/{job_id}")
        check_page(page)
        shown = re.sub(r"\s+", " ", page.text)
        for text in (
            "Round 1",
            "Round 2, try 2",
            "not enough sites",
            "site-b-pseudonym",
            "declined",
            "must be 5 or less",
            "aggregation residual",
        ):
            assert text in shown
        assert "training loss from 1 at step 1 to 0.5 at step 2" in shown
        assert not re.search(r"site-[ab](?!-pseudonym)(?= |<)", shown.replace("--name site-a", ""))  # names are for the owner's commands
        check_page(visitor.get(f"/-/federations/{job_id}?before=x"), 422)
        check_page(visitor.get("/-/federations/nothing"), 404)


def test_a_job_page_reads_the_end_of_a_long_log(pages: Pages) -> None:
    job_id = pages.add_job(hours=1)
    pages.run_job(steps=250)
    bearer = pages.site.bearer("read")
    with pages.visitor(None) as client:
        page = client.get(f"/api/v1/jobs/{job_id}/events?last=3", headers=bearer).json()
        assert [record["sequence"] for record in page["records"]] == list(range(253, 256))
        assert len(client.get(f"/api/v1/jobs/{job_id}/events?last=1000", headers=bearer).json()["records"]) == 255
        assert client.get(f"/api/v1/jobs/{job_id}/events?last=0", headers=bearer).status_code == 422
        assert client.get("/api/v1/jobs/job-00000000000000000000000000/events?last=1", headers=bearer).status_code == 404
    with pages.visitor("read") as visitor:
        assert "step 1/100 " not in visitor.get(f"/-/jobs/{job_id}").text


def test_a_curve_is_drawn_within_its_frame_whatever_the_values() -> None:
    for points in ([(0, 1.0)], [(5, 0.0), (6, 0.0)], [(1, -1e9), (10_000_000, 1e9)], [(1, 1e-12), (2, 2e-12)]):
        curve = draw([Series(name="loss", points=tuple(points))])
        assert curve is not None
        for pair in curve.lines[0].path.split():
            x, y = map(float, pair.split(","))
            assert curve.left <= x <= curve.right
            assert curve.top <= y <= curve.bottom
        assert all(curve.left <= tick.at <= curve.right for tick in curve.columns)
    assert draw([Series(name="loss", points=())]) is None
    assert draw([Series(name="loss", points=((1, float("nan")),))]) is None


def test_many_points_are_thinned_and_keep_both_ends() -> None:
    points = [(step, float(step)) for step in range(10_001)]
    thinned = thin(points)
    assert len(thinned) <= 500
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])
