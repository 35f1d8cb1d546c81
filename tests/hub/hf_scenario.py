"""What a person does with a hub, by huggingface_hub alone: run by each version of it that we support, in its own environment.

It is a program, not a test: it prints what it saw, and the tests compare. ``ADAPTER`` is a folder with an adapter in it.
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download

warnings.simplefilter("ignore")
API, ADAPTER, REPO = HfApi(), Path(os.environ["ADAPTER"]), "demo/uploaded"
CARD = b"---\nlibrary_name: peft\n---\nAbout it.\n"


def told(call, *arguments, **more):
    """Return the error that a call ends with, as its kind and its words."""
    try:
        call(*arguments, **more)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told
        return [type(error).__name__, str(error)]
    return ["", ""]


def hf(*words):
    """Run the command line; return its exit status and all that it printed."""
    command = [str(Path(sys.executable).with_name("hf")), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [done.returncode, done.stdout + done.stderr]


def names(revision=None):
    """Return a revision's files."""
    return sorted(API.list_repo_files(REPO, revision=revision))


def made_private():
    """Make a repository that nobody else sees, and delete it."""
    API.create_repo("demo/secret", private=True)
    is_private = API.model_info("demo/secret").private
    API.delete_repo("demo/secret")
    return is_private


def create():
    """Make the repository, twice."""
    url = API.create_repo(REPO)
    again = API.create_repo(REPO, exist_ok=True)
    info = API.model_info(REPO)
    return {
        "id": url.repo_id,
        "again": again.repo_id,
        "twice": told(API.create_repo, REPO)[0],
        "private": made_private(),
        "files": names(),
        "empty": [info.sha, API.repo_exists(REPO), told(hf_hub_download, REPO, "README.md")[0]],
    }


def upload():
    """Put a folder, a card and nothing new; each is a commit."""
    first = API.upload_folder(repo_id=REPO, folder_path=ADAPTER, commit_message="Upload model", commit_description="by hand")
    carded = API.upload_file(path_or_fileobj=CARD, path_in_repo="README.md", repo_id=REPO)
    same = API.upload_file(path_or_fileobj=CARD, path_in_repo="README.md", repo_id=REPO)
    commits = API.list_repo_commits(REPO)
    return {
        "oids": [first.oid, carded.oid, same.oid],
        "commits": [[commit.commit_id, commit.title, commit.message] for commit in commits],
        "authors": commits[0].authors,
        "files": [names(), names("1")],
        "card": Path(hf_hub_download(REPO, "README.md")).read_bytes() == CARD,
        "weights": {path.name: path.read_bytes().hex() for path in sorted(ADAPTER.iterdir())}
        == {path.name: path.read_bytes().hex() for path in sorted(Path(snapshot_download(REPO, revision=first.oid)).iterdir())},
    }


def compare_and_set(old):
    """Commit on a parent that is not the newest one any more, then on the newest."""
    add = [CommitOperationAdd("README.md", CARD + b"More.\n")]
    stale = told(API.create_commit, REPO, add, commit_message="late", parent_commit=old)
    done = API.create_commit(
        REPO, [CommitOperationAdd("README.md", CARD + b"More.\n")], commit_message="in time", parent_commit=API.model_info(REPO).sha
    )
    return {"stale": stale[0], "is_412": "412" in stale[1], "done": done.oid == API.model_info(REPO).sha}


def refusals():
    """What the gate and the doors refuse, in their words."""
    folder = Path(tempfile.mkdtemp())
    (folder / "training_args.bin").write_bytes(b"\x80\x04pickle")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_bytes(CARD)
    return {
        "pickle": told(API.upload_folder, repo_id=REPO, folder_path=folder),
        "config": told(API.upload_file, path_or_fileobj=b'{"peft_type": "LORA"}', path_in_repo="adapter_config.json", repo_id=REPO),
        "weights": told(API.upload_file, path_or_fileobj=b"\x80\x04}q\x00." * 30, path_in_repo="adapter_model.safetensors", repo_id=REPO),
        "yaml": told(API.upload_file, path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md", repo_id=REPO),
        "unknown": told(API.upload_file, path_or_fileobj=CARD, path_in_repo="README.md", repo_id="demo/never-made"),
        "delete_missing": told(API.delete_file, "metrics.json", REPO),
        "delete_needed": told(API.delete_file, "adapter_config.json", REPO),
        "branch": told(API.upload_file, path_or_fileobj=b"x", path_in_repo="README.md", repo_id=REPO, revision="stable"),
        "request": told(API.create_commit, REPO, [CommitOperationAdd("README.md", b"y")], commit_message="m", create_pr=True),
    }


def references():
    """Tags and branches, made, listed and deleted."""
    API.create_tag(REPO, tag="v1.0", revision="1", tag_message="the first")
    API.create_branch(REPO, branch="stable", revision="v1.0")
    refs = API.list_repo_refs(REPO)
    twice = [told(API.create_tag, REPO, tag="v1.0")[0], told(API.create_branch, REPO, branch="stable")[0]]
    API.create_tag(REPO, tag="v1.0", revision="1", exist_ok=True)
    API.create_branch(REPO, branch="stable", exist_ok=True)
    same = (
        API.model_info(REPO, revision="v1.0").sha == API.model_info(REPO, revision="stable").sha == API.model_info(REPO, revision="1").sha
    )
    API.delete_branch(REPO, branch="stable")
    API.delete_tag(REPO, tag="v1.0")
    return {
        "branches": sorted(ref.name for ref in refs.branches),
        "tags": sorted(ref.name for ref in refs.tags),
        "twice": twice,
        "same": same,
        "gone": [API.revision_exists(REPO, "v1.0"), API.revision_exists(REPO, "stable"), API.revision_exists(REPO, "1")],
        "moved": told(API.create_tag, REPO, tag="v1.0", revision="2")[1],
        "number": told(API.delete_tag, REPO, tag="1")[1],
    }


def command_line():
    """The same by ``hf``."""
    is_old = huggingface_hub.__version__.startswith("0.")
    repos = ["repo"] if is_old else ["repos"]
    uploaded = hf("upload", "demo/by-hand", str(ADAPTER))
    steps = [uploaded, hf(*repos, "tag", "create", "demo/by-hand", "v2", "-m", "second"), hf(*repos, "tag", "list", "demo/by-hand")]
    steps.append(hf(*repos, "tag", "delete", "demo/by-hand", "v2", "-y"))
    if not is_old:  # which has no such command
        steps.append(hf("models", "ls", "--author", "demo", "--filter", "lora", "--search", "hand"))
    return {"codes": [code for code, _ in steps], "shown": [shown for _, shown in steps]}


def closing(reader):
    """Look once more, delete a card, and delete the repository."""
    API.delete_file("README.md", REPO)
    expanded = API.model_info(REPO, expand=["author", "tags"])
    found = {
        "left": names(),
        "expanded": [expanded.author, expanded.sha, "peft" in expanded.tags],
        "listed": sorted(model.id for model in API.list_models(author="demo", filter=["peft"])),
        "none": [model.id for model in API.list_models(pipeline_tag="text-classification")],
        "as_reader": told(API.delete_repo, REPO, token=reader)[1],
    }
    API.delete_repo(REPO)
    return found | {"exists": API.repo_exists(REPO), "again": told(API.delete_repo, REPO)[0]}


made, uploaded = create(), upload()
answer = {
    "version": huggingface_hub.__version__,
    "whoami": API.whoami()["name"],
    "create": made,
    "upload": uploaded,
    "parent": compare_and_set(uploaded["oids"][0]),
    "refusals": refusals(),
    "references": references(),
    "command_line": command_line(),
    "closing": closing(os.environ["READER_TOKEN"]),
}
deleted = CommitOperationDelete("x/")
answer["folder"] = told(API.create_commit, "demo/by-hand", [deleted], commit_message="no folder")
print("ANSWER", json.dumps(answer))
