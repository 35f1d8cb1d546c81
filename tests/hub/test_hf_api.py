"""The Hugging Face dialect, asked by their own unmodified clients in their own processes, with HF_ENDPOINT set and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hub.s3 import S3Access, open_store
from tests.hub.broken_wire import broken_wire
from tests.hub.hf_clients import Endpoint, ask, new_endpoint, write_adapter
from tests.hub.serving import CONFIG, WEIGHTS
from tests.servers import S3Server
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, AliasMove


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Holds demo/arithmetic, of two versions and an alias, and demo/words; for tests that change nothing."""
    with new_endpoint(tmp_path_factory.mktemp("hf")) as endpoint:
        endpoint.hub.publish("job:1", weights=WEIGHTS[::-1])
        endpoint.hub.publish("job:2")
        endpoint.hub.publish("job:3", "demo/words", base_model="org/other@abc", rank=16)
        endpoint.hub.move("production", AliasMove(version=1))
        yield endpoint


def test_a_snapshot_is_downloaded_whole(endpoint: Endpoint) -> None:
    found = endpoint.run("""
folder = Path(snapshot_download("demo/arithmetic"))
answer = {path.name: path.read_bytes().hex() for path in folder.iterdir()}, folder.name
""")
    files, commit = found
    assert files == {CONFIG_FILE: CONFIG.hex(), WEIGHTS_FILE: WEIGHTS.hex()}
    assert len(commit) == 40


def test_a_revision_is_a_number_an_alias_a_commit_or_main(endpoint: Endpoint) -> None:
    found = endpoint.run(f"""
def read(revision):
    return Path(hf_hub_download("demo/arithmetic", "{WEIGHTS_FILE}", revision=revision)).read_bytes().hex()
commit = model_info("demo/arithmetic", revision="1").sha
answer = [read(revision) for revision in ("1", "production", commit, "2", "main", "latest")]
""")
    old, new = WEIGHTS[::-1].hex(), WEIGHTS.hex()
    assert found == [old, old, old, new, new, new]


def test_what_is_in_the_cache_is_not_fetched_again_and_works_offline(endpoint: Endpoint) -> None:
    program = 'answer = sorted(path.name for path in Path(snapshot_download("demo/words")).iterdir())'
    online = endpoint.run(program)
    assert endpoint.run(program, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9") == online == [CONFIG_FILE, WEIGHTS_FILE]


def test_models_are_listed_searched_and_filtered(endpoint: Endpoint) -> None:
    found = endpoint.run("""
def ids(**wanted):
    return [model.id for model in list_models(**wanted)]
answer = [ids(), ids(limit=1), ids(search="WORDS"), ids(author="demo"), ids(author="nobody"), ids(filter=["peft", "wegeft"]),
          ids(filter="base_model:adapter:org/other"), ids(filter=["rank:16"]), ids(filter="unknown:tag"), ids(sort="last_modified")]
""")
    both, words = ["demo/arithmetic", "demo/words"], ["demo/words"]
    assert found[:9] == [both, both[:1], words, both, [], both, words, words, []]
    assert sorted(found[9]) == both


def test_a_model_describes_itself(endpoint: Endpoint) -> None:
    found = endpoint.run(f"""
api = HfApi()
info = model_info("demo/words", files_metadata=True)
tree = list(api.list_repo_tree("demo/words", expand=True))
paths = api.get_paths_info("demo/words", ["{CONFIG_FILE}", "missing"])
refs = list_repo_refs("demo/arithmetic")
answer = dict(
    id=info.id, author=info.author, private=info.private, tags=info.tags, library=info.library_name, config=info.config,
    files={{s.rfilename: [s.size, s.lfs.sha256] for s in info.siblings}}, tree={{f.path: [f.size, f.lfs.sha256] for f in tree}},
    paths=[f.path for f in paths], year=info.created_at.year, last=tree[0].last_commit.oid == info.sha,
    branches={{b.name: b.target_commit for b in refs.branches}}, tags_of_refs={{t.name: t.target_commit for t in refs.tags}},
    file=api.file_exists("demo/words", "{CONFIG_FILE}"), no_file=api.file_exists("demo/words", "config.json"),
    repo=api.repo_exists("demo/words"), no_repo=api.repo_exists("demo/unknown"), no_revision=api.revision_exists("demo/words", "9"),
)
""")
    assert (found["id"], found["author"], found["private"], found["library"], found["year"]) == ("demo/words", "demo", False, "peft", 2026)
    assert found["tags"] == ["peft", "wegeft", "rank:16", "base_model:org/other", "base_model:adapter:org/other"]
    assert found["config"] == {"peft": {"base_model_name_or_path": "org/other@abc"}}
    assert found["files"] == found["tree"]
    assert found["files"][WEIGHTS_FILE][0] == len(WEIGHTS)
    assert found["paths"] == [CONFIG_FILE]
    assert set(found["tags_of_refs"]) == {"1", "2"}
    assert found["branches"] == {"main": found["tags_of_refs"]["2"], "production": found["tags_of_refs"]["1"]}
    claims = ("last", "file", "repo", "no_file", "no_repo", "no_revision")
    assert [found[claim] for claim in claims] == [True] * 3 + [False] * 3


def test_what_is_missing_is_the_error_that_clients_know(endpoint: Endpoint) -> None:
    found = endpoint.run("""
def name_of(call, *arguments, **more):
    try:
        call(*arguments, **more)
    except Exception as error:
        return type(error).__name__
answer = [
    name_of(hf_hub_download, "demo/unknown", "x"), name_of(hf_hub_download, "demo/words", "x"),
    name_of(hf_hub_download, "demo/words", "x", revision="nowhere"), name_of(hf_hub_download, "demo/words", "x", revision="refs/pr/1"),
    name_of(hf_hub_download, "gpt2", "config.json"), name_of(model_info, "gpt2"), name_of(model_info, "demo/words", revision="refs/pr/1"),
    name_of(snapshot_download, "demo/words", revision="f" * 40),
]
""")
    assert found == [
        "RepositoryNotFoundError", "RemoteEntryNotFoundError", "RevisionNotFoundError", "RevisionNotFoundError",
        "RepositoryNotFoundError", "RepositoryNotFoundError", "RevisionNotFoundError", "RevisionNotFoundError",
    ]  # fmt: skip


def test_a_token_is_known_or_refused_in_words(endpoint: Endpoint) -> None:
    found = endpoint.run('HfApi().auth_check("demo/words"); answer = [whoami()["name"], whoami()["auth"]["accessToken"]["role"]]')
    assert found == ["read", "read"]
    program = """
try:
    answer = whoami()
except Exception as error:
    answer = str(error)
"""
    assert "Invalid" in endpoint.run(program, role="hf_wrong")
    downloading = program.replace("whoami()", 'snapshot_download("demo/words", force_download=True)')
    refusal = endpoint.run(downloading, role="hf_wrong", HF_HOME=str(endpoint.home / "other"))
    assert "401" in refusal or "Invalid credentials" in refusal


def test_the_command_line_works(endpoint: Endpoint) -> None:
    program = """
import subprocess, sys
hf = str(Path(sys.executable).with_name("hf"))
done = subprocess.run([hf, "download", "demo/arithmetic", "--revision", "production", "--quiet"], capture_output=True, text=True)
answer = [done.returncode, done.stdout + done.stderr]
"""
    code, shown = endpoint.run(program)
    assert code == 0, shown


_PEFT = """
import sys, torch, wegeft.method
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
base, tokens = os.environ["BASE"], torch.tensor([[3, 4, 5, 6, 7]])
def plain():
    return AutoModelForCausalLM.from_pretrained(base)
def logits(adapter, **more):
    return PeftModel.from_pretrained(plain(), adapter, **more)(tokens).logits
local, untouched = logits(os.environ["ADAPTER"]), plain()(tokens).logits
PeftModel.from_pretrained(plain(), os.environ["ADAPTER"]).push_to_hub("demo/real")
served, numbered = logits("demo/real"), logits("demo/real", revision="1")
automatic = AutoPeftModelForCausalLM.from_pretrained("demo/real")(tokens).logits
lora = get_peft_model(plain(), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=True, task_type="CAUSAL_LM"))
torch.nn.init.normal_(dict(lora.named_parameters())["base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"])
lora.push_to_hub("demo/lora", commit_message="by PEFT")
pushed, adapted = lora(tokens).logits, AutoModelForCausalLM.from_pretrained("demo/lora")(tokens).logits
same = [torch.equal(other, local) for other in (served, numbered, automatic, untouched)]
answer = same, torch.equal(pushed, adapted), torch.equal(pushed, untouched), list_repo_commits("demo/lora")[0].title
"""


@pytest.mark.slow
def test_peft_pushes_an_adapter_and_loads_it_by_its_name(tmp_path: Path) -> None:
    """By ``PeftModel``, of our method and of LoRA; and by ``Auto…`` classes, which find the base model from the adapter."""
    import torch
    from peft import get_peft_model

    from tests.tiny_models import make_model
    from wegeft.method import WeGeFTConfig

    make_model().save_pretrained(tmp_path / "base")
    model = get_peft_model(make_model(), WeGeFTConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".phi"):
                parameter.normal_(std=0.5)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    with new_endpoint(tmp_path) as endpoint:
        found = endpoint.run(_PEFT, "write", BASE=str(tmp_path / "base"), ADAPTER=str(tmp_path / "adapter"))
    assert found == [[True, True, True, False], True, False, "by PEFT"]


def test_no_token_is_ever_sent_to_the_object_store(tmp_path: Path, s3_server: S3Server) -> None:
    """Of all that goes over the wire to a real S3 server while a client uploads and downloads, nothing has a token in it."""
    with broken_wire(s3_server.ports[0]) as wire:
        access = S3Access(endpoint=f"http://127.0.0.1:{wire.port}", access_key=s3_server.access_key, secret_key=s3_server.secret_key)
        with new_endpoint(tmp_path, open_store(f"s3://{s3_server.new_bucket()}", access)) as endpoint:
            found = endpoint.run(_ROUND, "write", ADAPTER=str(write_adapter(tmp_path / "adapter")))
            token = endpoint.hub.tokens["write"]
            answers = [ask(endpoint, method, f"/demo/stored/resolve/main/{WEIGHTS_FILE}") for method in ("HEAD", "GET")]
    sent = b"".join(wire.requests)
    assert found == {CONFIG_FILE: True, WEIGHTS_FILE: True}
    assert b"PUT /" in sent
    assert b"GET /" in sent
    assert b"Bearer" not in sent
    assert token.encode() not in sent
    assert token.rpartition("_")[2].encode() not in sent
    assert [answer.status_code for answer in answers] == [200, 200]


_ROUND = """
create_repo("demo/stored")
upload_folder(repo_id="demo/stored", folder_path=os.environ["ADAPTER"])
folder = Path(snapshot_download("demo/stored"))
answer = {path.name: path.read_bytes() == (Path(os.environ["ADAPTER"]) / path.name).read_bytes() for path in folder.iterdir()}
"""


# The wire


RESOLVE = f"/demo/arithmetic/resolve/main/{WEIGHTS_FILE}"


def test_a_head_is_answered_by_ourselves_with_the_commit(endpoint: Endpoint) -> None:
    head, got = ask(endpoint, "HEAD", RESOLVE), ask(endpoint, "GET", RESOLVE)
    assert head.status_code == got.status_code == 200
    assert got.content == WEIGHTS
    for answer in (head, got):
        assert "location" not in answer.headers
        assert "x-xet-hash" not in answer.headers
        assert len(answer.headers["x-repo-commit"]) == 40
        assert answer.headers["etag"] == answer.headers["x-linked-etag"]
        assert len(answer.headers["etag"]) == 66
        assert answer.headers["content-length"] == answer.headers["x-linked-size"] == str(len(WEIGHTS))
    assert head.headers["cache-control"] == "private, no-cache"
    commit = head.headers["x-repo-commit"]
    pinned = ask(endpoint, "HEAD", RESOLVE.replace("main", commit))
    assert pinned.headers["cache-control"].endswith("immutable")
    assert ask(endpoint, "GET", RESOLVE, headers={"Range": "bytes=5-9"}).content == WEIGHTS[5:10]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("HEAD", "/demo/arithmetic/resolve/main/config.json", 404, "EntryNotFound"),
        ("GET", "/demo/arithmetic/resolve/main/..%2F..%2Fsecret", 404, "EntryNotFound"),
        ("GET", "/demo/arithmetic/resolve/0/config.json", 404, "RevisionNotFound"),
        ("GET", "/demo/arithmetic/resolve/x%0Ay/config.json", 404, "RevisionNotFound"),
        ("GET", f"/demo/arithmetic/resolve/{'0' * 40}/config.json", 404, "RevisionNotFound"),
        ("GET", "/demo/unknown/resolve/main/config.json", 404, "RepoNotFound"),
        ("GET", "/de--mo/unknown/resolve/main/config.json", 404, "RepoNotFound"),
        ("GET", "/api/models/demo/unknown", 404, "RepoNotFound"),
        ("GET", "/api/models/demo/unknown/refs", 404, "RepoNotFound"),
        ("GET", "/api/models/demo/unknown/tree/main", 404, "RepoNotFound"),
        ("GET", "/api/models?sort=createdAt", 400, None),
        ("GET", "/api/models?cursor=x", 400, None),
        ("GET", "/api/models?limit=0", 400, None),
        ("GET", "/api/models/demo/arithmetic/tree/main/sub", 404, "EntryNotFound"),
    ],
)
def test_errors_carry_a_code_and_one_line(endpoint: Endpoint, method: str, path: str, status: int, code: str | None) -> None:
    answer = ask(endpoint, method, path)
    assert (answer.status_code, answer.headers.get("x-error-code")) == (status, code)
    if code:
        assert answer.headers["x-error-message"]
    assert ("x-repo-commit" in answer.headers) == (code == "EntryNotFound" and "/resolve/" in path)


@pytest.mark.parametrize(
    "path", ["/api/models", "/api/models/demo/arithmetic", "/api/whoami-v2", RESOLVE, "/gpt2/resolve/main/config.json"]
)
def test_nobody_reads_without_a_token(endpoint: Endpoint, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer hf_wrong"}):
        answer = ask(endpoint, "GET", path, role="", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["x-error-message"] == "Invalid credentials in Authorization header"


def test_lists_come_in_pages(endpoint: Endpoint) -> None:
    first = ask(endpoint, "GET", "/api/models?limit=1&search=demo")
    link = first.links["next"]["url"]
    assert link.startswith(endpoint.url)
    second = ask(endpoint, "GET", link.removeprefix(endpoint.url))
    assert [first.json()[0]["id"], second.json()[0]["id"]] == ["demo/arithmetic", "demo/words"]
    assert "next" not in second.links


@pytest.mark.parametrize("body", [b"\xff", "&".join(f"paths={number}" for number in range(1100)).encode()])
def test_a_wrong_form_is_refused(endpoint: Endpoint, body: bytes) -> None:
    assert ask(endpoint, "POST", "/api/models/demo/words/paths-info/main", content=body).status_code == 400
