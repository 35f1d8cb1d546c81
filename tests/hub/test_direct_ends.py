"""Uploads to the store itself that are given up while their sender goes on: nothing is left that nobody knows of."""

from __future__ import annotations

from typing import Any

from hub import catalog
from infra.database import reading
from tests.hub.hf_clients import ask
from tests.hub.serving import NOW
from tests.hub.test_direct import API, Direct, begin, direct, finish, put
from tests.hub.test_direct_lengths import CONTENT, Overtaken, overtaken

__all__ = ["direct", "overtaken"]


def give_up(direct: Direct, view: dict[str, Any]) -> int:
    return ask(direct, "DELETE", f"{API}/uploads/{view['id']}", "write").status_code


def counted(direct: Direct) -> int:
    with reading(direct.hub.engine) as connection:
        return catalog.count_staged(connection, "demo", NOW)


def test_whoever_looks_at_an_upload_that_is_being_given_up_gets_no_addresses(overtaken: Overtaken, direct: Direct) -> None:
    """What came by them would count nowhere, and no collection would find it."""
    view, answers = begin(direct, CONTENT), list[int]()
    overtaken.after_discard = lambda: answers.append(ask(direct, "GET", f"{API}/uploads/{view['id']}", "write").status_code)
    assert (give_up(direct, view), answers) == (204, [404])
    assert (direct.objects(), counted(direct)) == ([], 0)


def test_whoever_begins_anew_what_is_being_given_up_has_it(overtaken: Overtaken, direct: Direct) -> None:
    view, begun = begin(direct, CONTENT), list[dict[str, Any]]()
    overtaken.after_discard = lambda: begun.append(begin(direct, CONTENT))
    assert give_up(direct, view) == 204
    assert counted(direct) == len(CONTENT)
    put(begun[0]["addresses"][0], CONTENT)
    assert finish(direct, begun[0]).status_code == 201
    assert counted(direct) == len(CONTENT)
