"""No route tells a stranger that a private adapter is there: collected from the application, so that a new route cannot forget it."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.orchestrator.hidden_world import ADAPTER, MISSING, HiddenWorld, make_world, publish, routes_of
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.serving import adapter_files, plain_spec
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, digest_of

NOBODYS = "sha256:" + "5" * 64
BODIES: dict[str, Any] = {
    "alias": {"version": 1},
    "protection": {"is_protected": True},
    "formats": {
        "files": [{"path": name, "digest": NOBODYS, "size": 1} for name in (CONFIG_FILE, WEIGHTS_FILE)],
        "base_model": "org/model",
        "largest_error": 0,
        "largest_error_layer": "x",
        "layers": 1,
        "made_by": "x",
    },
    "uploads": {"digest": NOBODYS, "size": 9 << 20},
    "visibility": {"visibility": "public"},
    "invitations": {"name": "site-a", "expires_in_seconds": 600},
}
"""A right body by the last word of a path, so that a request is refused for nothing else."""
OF_OTHERS = ("/attempts/", "/organisations/", "/tokens/", "/federation/")
"""Addresses that name no adapter and no job of a token's, and have tests of their own."""
NOT_FEDERATED = ("/federation", "/rounds", "/rounds/{number}", "/evidence", "/rounds/{number}/blobs/{digest}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HiddenWorld]:
    """A private adapter, and a stranger with a token that may write."""
    engine = new_sqlite(Path(tmp_path_factory.mktemp("private")) / "a.db")
    world = make_world(engine, reader=("mallory", "read"), fresh=("eve", "write"))
    yield world
    world.close()


def names(world: HiddenWorld, *, is_there: bool) -> dict[str, str]:
    """What stands for each parameter of a path: once what is hidden, and once what is not there."""
    namespace, name = (ADAPTER if is_there else MISSING).split("/")
    return {
        "namespace": namespace,
        "name": name,
        "model": namespace,
        "job_id": world.job_id if is_there else world.missing_job_id,
        "digest": world.digest if is_there else NOBODYS,
        "selector": "1",
        "revision": "main",
        "path": CONFIG_FILE,
        "alias": "production",
        "format": "lora",
        "dtype": "float32",
        "tag": "v1",
        "branch": "production",
        "kind": "read",
        "place": "main",
        "number": "1",
        "site": "site-a",
        "upload_id": world.upload_id if is_there else "5" * 32,
        "offset": "0",
    }


def fill(path: str, values: dict[str, str]) -> str:
    """The path with its parameters' values; fails for a parameter that nobody has said the meaning of."""
    is_site = "/sites/{name}" in path or "/invitations/{name}" in path
    is_metric = "/metrics/{name}" in path
    own = values | ({"name": "site-a"} if is_site else {"name": "loss"} if is_metric else {})

    def value(match: re.Match[str]) -> str:
        assert match[1] in own, f"a new route: say in names() what {match[1]} of {path} names"
        return own[match[1]]

    return re.sub(r"\{(\w+)(?::\w+)?\}", value, path)


def is_about(path: str) -> bool:
    """Whether an address names an adapter, a job or bytes."""
    return "{" in path and not any(part in path for part in OF_OTHERS)


def told(answer: Any, values: dict[str, str]) -> tuple[int, dict[str, str], str]:
    """What an answer tells, but for what it repeats of the question and what differs between any two answers."""
    text = answer.text
    for name in ("name", "job_id", "digest", "upload_id"):
        text = text.replace(values[name], "?")
    text = re.sub(r'"request_id": ?"[^"]*"', "", text)
    headers = {key: value for key, value in answer.headers.items() if key not in ("x-request-id", "content-length", "date")}
    return answer.status_code, {key: re.sub("|".join(map(re.escape, values.values())), "?", value) for key, value in headers.items()}, text


@pytest.mark.parametrize(("who", "is_whole"), [("stranger", True), ("stranger", False), ("reader", True), (None, True)])
def test_every_route_answers_as_if_nothing_were_there(world: HiddenWorld, who: str | None, is_whole: bool) -> None:
    """The same status, headers and body as for a name that nobody has used, whether or not the request is right."""
    client, asked = world.client(who), 0
    for method, path in routes_of(world.app):
        if not is_about(path):
            continue
        answers = []
        for is_there in (True, False):
            values = names(world, is_there=is_there)
            word = next((word for word in reversed(path.split("/")) if "{" not in word), "")
            body = BODIES.get("alias" if path.endswith("{alias}") else word) if is_whole else {"nonsense": True}
            query = {} if is_whole else {"limit": "x", "after": "x", "blobs": "x"}
            answers.append(told(client.request(method, fill(path, values), json=body, params=query), values))
        assert answers[0] == answers[1], f"{method} {path}"
        assert answers[0][0] >= 400, f"{method} {path} answers a stranger"
        asked += 1
    assert asked > 25


def test_the_owner_is_answered(world: HiddenWorld) -> None:
    """So that the walk above asks for what is there."""
    client, asked = world.client("ada"), 0
    for method, path in routes_of(world.app):
        is_asked = is_about(path) and not any(part in path for part in ("{model}", "{kind}")) and not path.endswith(NOT_FEDERATED)
        if is_asked and method in ("GET", "HEAD"):
            query = {"other": ADAPTER} if path.endswith("/diff") else {}
            answer = client.request(method, fill(path, names(world, is_there=True)), params=query)
            assert answer.status_code == 200, f"{method} {path}: {answer.text}"
            asked += 1
    assert asked > 15


LISTS = ["", "?search=secret", "?namespace=acme", "?method=wegeft", "?author=acme", "?order=updated", "?sort=lastModified", "?limit=1"]


@pytest.mark.parametrize("who", ["stranger", "reader"])
def test_no_list_shows_it(world: HiddenWorld, who: str) -> None:
    """Whatever it is searched by; the owner and the operator see it."""
    plain = sorted({path for method, path in routes_of(world.app) if method == "GET" and "{" not in path and path != "/metrics"})
    assert {"/api/v1/adapters", "/api/v1/jobs", "/api/models"} <= set(plain)
    secrets = (ADAPTER, world.job_id, world.digest.removeprefix("sha256:"))
    for path in plain:
        for query in LISTS if path in ("/api/v1/adapters", "/api/v1/jobs", "/api/models") else ("",):
            text = world.client(who).get(path + query).text
            assert not any(secret in text for secret in secrets), path + query
    assert "acme" not in world.client(who).get("/api/v1/adapters/facets").text
    assert "acme" in world.client("ada").get("/api/v1/adapters/facets").text
    for viewer in ("ada", "operator"):
        for path in ("/api/v1/adapters", "/api/v1/jobs", "/api/models"):
            assert ADAPTER in world.client(viewer).get(path).text


def test_bytes_are_told_of_by_nobody_who_knows_their_digest_alone(world: HiddenWorld) -> None:
    """Neither by asking, nor by sending them, nor by a job that names them as its data or its start."""
    stranger = world.client("stranger")
    assert stranger.head(f"/api/v1/blobs/{world.digest}").status_code == 404
    assert world.client("ada").head(f"/api/v1/blobs/{world.digest}").status_code == 200
    spec = plain_spec()
    problems = []
    for digest in (world.digest, NOBODYS):
        spec["datasets"][0]["path"] = digest
        answer = stranger.post("/api/v1/jobs", json={"spec": spec})
        problems.append((answer.status_code, answer.json()["detail"], answer.json()["problems"][0]["message"]))
    assert problems[0] == problems[1]
    sent = stranger.put(f"/api/v1/blobs/{world.digest}", content=world.files[WEIGHTS_FILE])
    other = bytes(reversed(world.files[WEIGHTS_FILE]))
    new = stranger.put(f"/api/v1/blobs/{digest_of(other)}", content=other)
    assert (sent.status_code, sent.json()["size"]) == (new.status_code, new.json()["size"]) == (201, len(other))


def test_a_federation_does_not_start_from_what_its_author_cannot_see(world: HiddenWorld) -> None:
    """It is refused as for bytes that were never there; the owner's is not refused for that."""
    federation = {"rounds": 1, "min_sites": 1, "start": {"config": digest_of(world.files[CONFIG_FILE]), "weights": world.digest}}
    spec = {key: value for key, value in plain_spec(federation=federation, output={"adapter": "local/fed"}).items() if key != "datasets"}
    unseen = "no such file was uploaded"
    found = {who: world.client(who).post("/api/v1/jobs", json={"spec": spec}).text.count(unseen) for who in ("fresh", "ada", "operator")}
    assert found == {"fresh": 2, "ada": 0, "operator": 0}


def test_nobody_else_publishes_there(world: HiddenWorld) -> None:
    """Neither a version nor an adapter of another name, and the refusals are alike."""
    stranger = world.client("stranger")
    answers = [stranger.post("/api/v1/jobs", json={"spec": plain_spec(output={"adapter": name})}) for name in (ADAPTER, MISSING)]
    assert [(answer.status_code, answer.json()["detail"]) for answer in answers] == [(403, "you may not publish there")] * 2


def test_making_it_public_and_private_again(world: HiddenWorld) -> None:
    """Its owner decides; readers see it, and then no more; a stranger cannot decide."""
    ada, stranger = world.client("ada"), world.client("stranger")
    address = f"/api/v1/adapters/{ADAPTER}"
    assert ada.put(f"{address}/visibility", json={"visibility": "public"}).json()["visibility"] == "public"
    assert stranger.get(address).status_code == 200
    assert stranger.get(f"/api/v1/jobs/{world.job_id}").status_code == 200
    assert stranger.get(f"/{ADAPTER}/resolve/main/{WEIGHTS_FILE}").content == world.files[WEIGHTS_FILE]
    assert stranger.put(f"{address}/visibility", json={"visibility": "private"}).status_code == 403
    assert stranger.put(f"{address}/aliases/mine", json={"version": 1}).status_code == 403
    assert stranger.post(f"/api/v1/jobs/{world.job_id}/cancel").status_code == 403
    assert ada.put(f"{address}/visibility", json={"visibility": "private"}).status_code == 200
    assert stranger.get(address).status_code == 404
    for body in ({"visibility": "secret"}, {}, {"visibility": "public", "extra": 1}):
        assert ada.put(f"{address}/visibility", json=body).status_code == 422


def test_what_is_everybodys_stays_so(world: HiddenWorld) -> None:
    """In a namespace without an owner every token does as its role says, as before, and nothing can be hidden."""
    publish(world.site, "local/sums", "job:local", world.files)
    assert world.client("reader").get("/api/v1/adapters/local/sums").json()["visibility"] == "public"
    assert world.client("stranger").put("/api/v1/adapters/local/sums/aliases/good", json={"version": 1}).status_code == 200
    hidden = world.client("operator").put("/api/v1/adapters/local/sums/visibility", json={"visibility": "private"})
    assert (hidden.status_code, hidden.json()["code"]) == (409, "conflict")
    asked = plain_spec(output={"visibility": "private"})
    assert world.client("ada").post("/api/v1/jobs", json={"spec": asked}).status_code == 409


def test_what_is_named_beside_the_path_is_hidden_too(world: HiddenWorld) -> None:
    """Comparing with it, and the family of a public one that was made of it."""
    parent = digest_of(world.files[WEIGHTS_FILE])
    public = publish(world.site, "open/child", "job:child", adapter_files(seed=9), started_from=(parent,))
    root = f"/api/v1/adapters/open/child/versions/{public}"
    stranger, ada = world.client("stranger"), world.client("ada")
    answers = [stranger.get(f"{root}/diff", params={"other": name}) for name in (ADAPTER, MISSING)]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].json()["detail"] == answers[1].json()["detail"]
    assert ada.get(f"{root}/diff", params={"other": ADAPTER}).status_code == 200
    assert ADAPTER in ada.get(f"{root}/lineage").text
    for path in ("lineage", "signature?kind=attestation"):
        answer = stranger.get(f"{root}/{path}")
        assert answer.status_code == 200
        assert ADAPTER not in answer.text
    payload = base64.b64decode(stranger.get(f"{root}/signature?kind=attestation").json()["dsseEnvelope"]["payload"])
    assert ADAPTER.encode() not in payload
