"""The pages, through the real application: what they show, whom they let in, and what they do not let through."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from hub.web.sessions import proof_for
from hub.web.showing import show_ago, show_bytes, show_duration, show_number
from infra.database import reading
from orchestrator import ledger
from tests.orchestrator.paged import EVIL, Pages
from tests.orchestrator.samples import NOW, at, new_sqlite
from tests.orchestrator.serving import Site, now
from wegeft.contracts.adapter import WEIGHTS_FILE

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    engine = new_sqlite(tmp_path_factory.mktemp("pages") / "hub.db")
    pages = Pages(Site(engine))
    for number in range(3):
        pages.publish("demo/sums", f"job:{number}", rank=2 + number)
    pages.publish("demo/words", "round:x:1", base_model=f"/models/{EVIL}.gguf", method="lora", card="no front matter")
    for number in range(35):
        pages.publish(f"many/a{number:02}", f"job:many{number}")
    yield pages
    engine.dispose()


class _Markup(HTMLParser):
    """Collects what could run or lead away, and what a reader with a screen reader needs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def check_page(response: Any, status: int = 200) -> _Markup:
    """A page is safe and readable: nothing inline runs, every field has a name, one main heading, headers as they should be."""
    assert response.status_code == status, response.text[:2000]
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "no-store" in response.headers["cache-control"]
    assert EVIL not in response.text
    assert "<img src=x" not in response.text
    page = _Markup(response.text)
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
    assert all(script.get("src") == "/-/static/live.js" for script in page.all("script"))
    assert not page.all("style")
    assert len(page.all("h1")) == len(page.all("main")) == 1
    labelled = {label.get("for") for label in page.all("label")}
    for field in page.all("input"):
        is_hidden = field.get("type") == "hidden" or "hidden" in field
        assert is_hidden or field.get("id") in labelled, field
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    return page


def proof_in(response: Any) -> str:
    return re.findall(r'name="csrf" value="([0-9a-f]{64})"', response.text)[-1]


# Browsing


def test_the_front_page_lists_the_last_published_with_facets_and_pages(pages: Pages) -> None:
    with pages.visitor("read") as visitor:
        first = visitor.get("/")
        page = check_page(first)
        assert first.text.index("many/</span>a34") < first.text.index("many/</span>a33")
        assert "37 adapters" in first.text
        following = next(link["href"] for link in page.all("a") if link.get("rel") == "next")
        second = visitor.get(str(following))
        check_page(second)
        assert "sums" in second.text
        assert "a34" not in second.text
        assert "First page" in second.text


def test_search_and_filters_narrow_the_list_and_can_be_taken_back(pages: Pages) -> None:
    with pages.visitor("read") as visitor:
        found = visitor.get("/?search=demo+sums&tag=math&method=wegeft&metric=eval_loss%3C1")
        check_page(found)
        assert "1 adapter<" in found.text
        assert 'value="demo sums"' in found.text
        assert "/?search=demo+sums&amp;method=wegeft&amp;metric=eval_loss%3C1" in found.text  # without the tag
        check_page(visitor.get("/?search=nothing-like-this"))
        assert "Nothing is like this" in visitor.get("/?search=nothing-like-this").text
        assert "Nothing is like this" in visitor.get(f"/?search=zzz{EVIL}").text


def test_what_cannot_be_asked_is_told_all_at_once(pages: Pages) -> None:
    with pages.visitor("read") as visitor:
        answer = visitor.get("/?rank=x&metric=loss&order=downloads&after=nonsense")
        check_page(answer, 422)
        for field in ("rank", "metric", "order"):
            assert f"<code>{field}</code>" in answer.text


def test_a_namespace_an_adapter_and_a_version_have_pages(pages: Pages) -> None:
    with pages.visitor("write") as visitor:
        assert "2 adapters" in visitor.get("/DEMO").text
        check_page(visitor.get("/demo"))
        adapter = visitor.get("/demo/sums")
        check_page(adapter)
        for text in ("&lt;script&gt;alert(1)", "eval loss", "wgctl adapters download demo/sums@3", "HF_ENDPOINT=http://testserver", "mit"):
            assert text in adapter.text
        version = visitor.get("/demo/sums/versions/1")
        check_page(version)
        assert "Version 1" in version.text
        assert re.search(r'title="sha256:[0-9a-f]{64}"', version.text)
        check_page(visitor.get("/demo/words"))
        assert "No adapters here" in visitor.get("/nobody").text


def test_a_file_is_downloaded_through_the_api(pages: Pages) -> None:
    with pages.visitor("read") as visitor:
        answer = visitor.get(f"/demo/sums/versions/1/files/{WEIGHTS_FILE}", headers={"Range": "bytes=0-7"})
        assert (answer.status_code, len(answer.content)) == (206, 8)
        assert "attachment" in answer.headers["content-disposition"]
        assert visitor.get("/demo/sums/versions/1/files/missing").status_code == 404


# Who may


@pytest.mark.parametrize("path", ["/", "/demo", "/demo/sums", "/demo/sums/versions/1", "/-/jobs", "/-/federations", "/demo/sums?after=x"])
def test_who_has_not_signed_in_is_asked_to_and_comes_back(pages: Pages, path: str) -> None:
    with pages.visitor(None) as visitor:
        answer = visitor.get(path)
        assert answer.status_code == 303
        form = visitor.get(answer.headers["location"])
        check_page(form)
        fields = {"token": pages.site.tokens["read"], "csrf": proof_in(form), "next": path}
        signed_in = visitor.post("/-/sign-in", data=fields)
        assert (signed_in.status_code, signed_in.headers["location"]) == (303, path)
        cookie = signed_in.headers.get_list("set-cookie")[0]
        assert cookie.startswith("wegeft_session=wgt_")
        assert all(part in cookie for part in ("HttpOnly", "SameSite=strict", "Path=/"))
        assert "the reader" in visitor.get("/").text


def test_a_cookie_is_secure_behind_tls(pages: Pages) -> None:
    with pages.visitor(None) as visitor:
        form = visitor.get("/-/sign-in", headers={"X-Forwarded-Proto": "https"})
        assert "Secure" in form.headers["set-cookie"]


@pytest.mark.parametrize("token", ["", "x", "wgt_" + "0" * 12 + "_" + "0" * 64, EVIL])
def test_a_wrong_token_opens_nothing(pages: Pages, token: str) -> None:
    with pages.visitor(None) as visitor:
        form = visitor.get("/-/sign-in")
        answer = visitor.post("/-/sign-in", data={"token": token, "csrf": proof_in(form)})
        check_page(answer, 401)
        assert "wegeft_session" not in visitor.cookies
        assert len(token) < 2 or token not in answer.text


@pytest.mark.parametrize("following", ["//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)", "x", "/\n/x"])
def test_signing_in_never_leads_to_another_site(pages: Pages, following: str) -> None:
    with pages.visitor(None) as visitor:
        form = visitor.get("/-/sign-in", params={"next": following})
        answer = visitor.post("/-/sign-in", data={"token": pages.site.tokens["read"], "csrf": proof_in(form), "next": following})
        assert answer.headers["location"] == "/"


def test_a_token_that_is_revoked_signs_out_everywhere(pages: Pages) -> None:
    with pages.visitor(None) as visitor:
        visitor.cookies.set("wegeft_session", "wgt_" + "0" * 12 + "_" + "0" * 64)
        assert visitor.get("/").headers["location"].startswith("/-/sign-in")


def test_signing_out_forgets_the_token(pages: Pages) -> None:
    with pages.visitor("read") as visitor:
        answer = visitor.post("/-/sign-out", data={"csrf": proof_in(visitor.get("/"))})
        assert answer.status_code == 303
        assert 'wegeft_session=""' in answer.headers["set-cookie"]


# Changing things


def alias_form(visitor: TestClient, **changes: str) -> dict[str, str]:
    return {"csrf": proof_for(visitor.cookies["wegeft_session"]), "alias": "production", "version": "2", "expected": "0", **changes}


def test_an_alias_is_moved_by_compare_and_set(pages: Pages) -> None:
    with pages.visitor("write") as visitor:
        assert visitor.post("/demo/sums/aliases", data=alias_form(visitor)).status_code == 303
        assert visitor.post("/demo/sums/aliases", data=alias_form(visitor, version="3", expected="2")).status_code == 303
        lost = visitor.post("/demo/sums/aliases", data=alias_form(visitor, version="1", expected="2"))
        check_page(lost, 409)
        assert "points to 3 now" in lost.text
        assert "production" in visitor.get("/demo/sums/versions/3").text
        for wrong in ({"version": "x"}, {"version": ""}, {"alias": EVIL}, {"alias": ""}, {"alias": "latest"}, {"version": "99"}):
            answer = visitor.post("/demo/sums/aliases", data=alias_form(visitor, **wrong))
            check_page(answer, 404 if wrong.get("version") == "99" else 422)


def test_a_job_is_cancelled_from_its_page(pages: Pages) -> None:
    job_id = pages.add_job()
    with pages.visitor("write") as visitor:
        page = visitor.get(f"/-/jobs/{job_id}")
        assert visitor.post(f"/-/jobs/{job_id}/cancel", data={"csrf": proof_in(page)}).status_code == 303
        assert "Cancel the job" not in visitor.get(f"/-/jobs/{job_id}").text
    with reading(pages.site.engine) as connection:
        assert ledger.find(connection, job_id, now()).state == "cancelled"


def test_a_reader_sees_no_forms_and_the_api_refuses_them_all_the_same(pages: Pages) -> None:
    job_id = pages.add_job()
    with pages.visitor("read") as visitor:
        assert "aliases" not in {form.get("action") for form in _Markup(visitor.get("/demo/sums").text).all("form")}
        assert "Cancel the job" not in visitor.get(f"/-/jobs/{job_id}").text
        check_page(visitor.post("/demo/sums/aliases", data=alias_form(visitor)), 403)
        check_page(visitor.post(f"/-/jobs/{job_id}/cancel", data={"csrf": proof_in(visitor.get("/"))}), 403)


@pytest.mark.parametrize(
    ("headers", "proof"),
    [
        ({}, ""),
        ({}, "0" * 64),
        ({}, "é"),
        ({}, proof_for("another session's secret")),
        ({"Origin": "https://evil.example"}, None),
        ({"Origin": "null"}, None),
        ({"Sec-Fetch-Site": "cross-site"}, None),
        ({"Sec-Fetch-Site": "same-site"}, None),
    ],
)
@pytest.mark.parametrize("path", ["/demo/sums/aliases", "/-/sign-out", "/-/jobs/x/cancel", "/-/sign-in"])
def test_a_form_of_another_site_is_refused(pages: Pages, path: str, headers: dict[str, str], proof: str | None) -> None:
    with pages.visitor("admin") as visitor:
        visitor.cookies.set("wegeft_visit", "a" * 64)
        right = proof_for("a" * 64 if path == "/-/sign-in" else pages.site.tokens["admin"])
        fields = alias_form(visitor, csrf=right if proof is None else proof)
        check_page(visitor.post(path, data=fields, headers=headers), 403)


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{}", {"Content-Type": "application/json"}, 401),
        (b"a=" + b"x" * 20_000, FORM, 401),
        (b"&".join([b"a=1"] * 60), FORM, 422),
        (b"a=\xff", FORM, 422),
    ],
)
def test_what_is_no_form_is_refused(pages: Pages, content: bytes, headers: dict[str, str], status: int) -> None:
    """What is not even a short form needs a token, as everywhere."""
    with pages.visitor("admin") as visitor:
        check_page(visitor.post("/-/sign-out", content=content, headers=headers), status)


# Errors


def test_errors_are_pages_for_browsers_and_problems_for_programs(pages: Pages) -> None:
    with pages.visitor("read") as visitor:
        for path in (
            "/demo/missing",
            "/a/b/c/d/e",
            "/demo/sums/versions/99",
            "/-/static/x",
            "/-/jobs/nothing",
            f"/demo/sums/versions/1/{EVIL}",
        ):
            check_page(visitor.get(path), 404)
        check_page(visitor.get("/de--mo/x"), 422)
        check_page(visitor.post("/"), 405)
        for path, accept in (("/demo/missing", "*/*"), ("/api/v1/adapters/demo/missing", "text/html"), ("/api/x", "text/html")):
            headers = {"Accept": accept, "Authorization": f"Bearer {pages.site.tokens['read']}"}
            answer = visitor.get(path, headers=headers)
            assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_an_unexpected_error_is_a_page_that_tells_nothing(tmp_path: Path) -> None:
    engine = new_sqlite(tmp_path / "hub.db")
    pages = Pages(Site(engine))

    @pages.app.get("/-/broken")
    def broken() -> None:
        raise RuntimeError("a secret of ours")

    with TestClient(pages.app, headers=pages.headers) as visitor:
        answer = visitor.get("/-/broken")
    check_page(answer, 500)
    assert "secret of ours" not in answer.text
    assert answer.headers["x-request-id"] in answer.text
    engine.dispose()


def test_an_empty_hub_says_how_to_begin(tmp_path: Path) -> None:
    engine = new_sqlite(tmp_path / "hub.db")
    with Pages(Site(engine)).visitor("read") as visitor:
        for path in ("/", "/-/jobs", "/-/federations"):
            answer = visitor.get(path)
            check_page(answer)
            assert "wgctl submit" in answer.text
    engine.dispose()


def test_pages_do_not_stand_in_the_way_of_other_addresses(pages: Pages) -> None:
    with pages.visitor("read") as visitor:
        assert visitor.get("/healthz").json()["status"] == "ok"
        assert visitor.get("/metrics").status_code == 200
        assert visitor.get("/api/v1/openapi.json").json()["openapi"].startswith("3.")
        assert not any(path.startswith("/-/") or path == "/" for path in visitor.get("/api/v1/openapi.json").json()["paths"])


def test_values_are_shown_as_people_say_them() -> None:
    spans = [
        (0, "just now"),
        (59, "just now"),
        (60, "1 minute ago"),
        (7200, "2 hours ago"),
        (86_400 * 400, "1 year ago"),
        (-3600, "in 1 hour"),
    ]
    assert [show_ago(at(-seconds), NOW) for seconds, _ in spans] == [text for _, text in spans]
    assert [show_bytes(size) for size in (0, 1023, 1536, 3 << 30)] == ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]
    assert [show_duration(seconds) for seconds in (5, 65, 7300)] == ["5 s", "1 min 5 s", "2 h 1 min"]
    assert [show_number(value) for value in (3.0, 0.123456, 1234567.0)] == ["3", "0.12346", "1,234,567"]
