"""Names, references, digests and manifests of adapters."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub.utils._validators import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from wegeft.contracts.adapter import (
    CARD_FILE,
    CONFIG_FILE,
    RESERVED_NAMES,
    WEIGHTS_FILE,
    AdapterName,
    AdapterRef,
    AliasMove,
    Descriptor,
    FileEntry,
    Manifest,
    check_alias,
    check_digest,
    check_segment,
    check_selector,
    digest_of,
    make_manifest,
)
from wegeft.contracts.errors import InvalidInput, InvalidReference

GOOD_SEGMENTS = ["a", "A", "0", "demo", "my-adapter", "my.adapter", "my_adapter", "Llama-3.2-1B", "a" * 96, "a.b-c_d"]
BAD_SEGMENTS = [
    "", " ", "a b", "-a", "a-", ".a", "a.", "_a", "a_", "a--b", "a..b", "a/b", "a\\b", "a\n", "\na", "a\x00", "ä", "名前", "a" * 97,
    "x.git", "..", ".", "~", "a%2Fb", "a@b", "a:b", "a+b", "a?b", "a#b", "\u202ea", "ａ", *sorted(RESERVED_NAMES), "API", "Docs",
]  # fmt: skip
GOOD_ALIASES = ["a", "production", "v1", "v1.2.3", "a-b_c.d", "a" * 64, "latest"]
BAD_ALIASES = ["", "1", "1a", "A", "aB", "-a", ".a", "a b", "a/b", "a\n", "a" * 65, "ä", "a@b", "a\x00"]


@pytest.mark.parametrize("text", GOOD_SEGMENTS)
def test_good_names_are_taken_as_they_are(text: str) -> None:
    assert check_segment(text) == text
    assert str(AdapterName.parse(f"{text}/{text}")) == f"{text}/{text}"


@pytest.mark.parametrize("text", BAD_SEGMENTS, ids=ascii)
def test_bad_names_are_refused_with_a_hint(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        check_segment(text)
    assert caught.value.problems[0].hint
    for whole in (f"{text}/ok", f"ok/{text}"):
        with pytest.raises(InvalidReference):
            AdapterName.parse(whole)


@given(st.text(max_size=30) | st.from_regex(r"[A-Za-z0-9._-]{1,12}/[A-Za-z0-9._-]{1,12}", fullmatch=True))
def test_what_we_take_for_a_name_hugging_face_takes_too(text: str) -> None:
    try:
        name = AdapterName.parse(text)
    except InvalidReference:
        return
    validate_repo_id(str(name))
    assert str(name) == text


@pytest.mark.parametrize("text", ["", "name", "a/b/c", "/", "a/", "/b", "a//b", "a/b/", " a/b", "a/b "])
def test_a_name_is_a_namespace_and_a_name(text: str) -> None:
    with pytest.raises(InvalidReference):
        AdapterName.parse(text)


@pytest.mark.parametrize(
    ("text", "selector", "number"),
    [
        ("demo/a", "latest", None),
        ("demo/a@latest", "latest", None),
        ("demo/a@3", "3", 3),
        ("demo/a@999999999", "999999999", 999_999_999),
        ("demo/a@production", "production", None),
        ("demo/a@v1.2", "v1.2", None),
    ],
)
def test_a_reference_selects_a_version(text: str, selector: str, number: int | None) -> None:
    ref = AdapterRef.parse(text)
    assert (ref.selector, ref.number) == (selector, number)
    assert AdapterRef.parse(str(ref)) == ref


@pytest.mark.parametrize(
    "text", ["demo/a@", "demo/a@0", "demo/a@03", "demo/a@-1", "demo/a@1.0", "demo/a@1000000000", "demo/a@3@4", "@3", "a@3"]
)
def test_a_malformed_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        AdapterRef.parse(text)


@pytest.mark.parametrize("text", ["١", "²", "1\n", "１"])
def test_only_plain_digits_are_a_number(text: str) -> None:
    with pytest.raises(InvalidReference):
        check_selector(text)


@pytest.mark.parametrize("text", GOOD_ALIASES)
def test_good_aliases_are_taken(text: str) -> None:
    assert check_alias(text) == check_selector(text) == text


@pytest.mark.parametrize("text", BAD_ALIASES, ids=ascii)
def test_bad_aliases_are_refused(text: str) -> None:
    with pytest.raises(InvalidReference, match="alias"):
        check_alias(text)


@given(st.text(max_size=70))
def test_nothing_is_both_a_number_and_an_alias(text: str) -> None:
    def is_alias() -> bool:
        try:
            check_alias(text)
        except InvalidReference:
            return False
        return True

    assert not (is_alias() and re.match(r"[0-9]", text))


@given(st.binary(max_size=50))
def test_a_digest_names_its_bytes(content: bytes) -> None:
    digest = digest_of(content)
    assert digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert check_digest(digest) == digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "0" * 64,
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 65,
        "sha256:" + "A" * 64,
        "SHA256:" + "0" * 64,
        digest_of(b"") + "\n",
    ],
)
def test_a_malformed_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference, match="digest"):
        check_digest(text)
    with pytest.raises(ValidationError, match="not a digest"):
        FileEntry(path="a", digest=text, size=0)


def entry(path: str, content: bytes) -> FileEntry:
    return FileEntry(path=path, digest=digest_of(content), size=len(content))


FILES = (entry(WEIGHTS_FILE, b"weights"), entry(CONFIG_FILE, b"{}"), entry(CARD_FILE, b"# hi"))


def test_media_types_follow_the_names() -> None:
    found = {item.path: item.media_type for item in (*FILES, entry("LICENSE", b""))}
    assert found == {
        WEIGHTS_FILE: "application/vnd.safetensors",
        CONFIG_FILE: "application/json",
        CARD_FILE: "text/markdown",
        "LICENSE": "application/octet-stream",
    }


def test_a_size_is_not_negative() -> None:
    with pytest.raises(ValidationError):
        FileEntry(path="a", digest=digest_of(b""), size=-1)


def test_a_manifest_is_one_whatever_the_order_of_files() -> None:
    one, other = make_manifest(FILES, {"b": "2", "a": "1"}), make_manifest(tuple(reversed(FILES)), {"a": "1", "b": "2"})
    assert one.to_bytes() == other.to_bytes()
    assert one.files == tuple(sorted(FILES, key=lambda item: item.path))


def test_a_manifest_needs_a_configuration() -> None:
    with pytest.raises(InvalidInput, match=CONFIG_FILE):
        make_manifest(FILES[:1], {})


@given(
    st.dictionaries(st.text(min_size=1, max_size=9), st.binary(max_size=9), max_size=5),
    st.dictionaries(st.text(max_size=9), st.text(max_size=9)),
)
def test_a_manifest_survives_the_wire_byte_by_byte(contents: dict[str, bytes], annotations: dict[str, str]) -> None:
    files = tuple(entry(path, content) for path, content in ({CONFIG_FILE: b"{}"} | contents).items())
    manifest = make_manifest(files, annotations)
    again = Manifest.model_validate_json(manifest.to_bytes())
    assert again == manifest
    assert again.to_bytes() == manifest.to_bytes()
    assert {item.path: item.digest for item in again.files} == {item.path: item.digest for item in files}


def test_a_manifest_is_what_the_oci_specification_asks_for() -> None:
    """image-spec 1.1, manifest.md: the required members, their types, and descriptors with a registered digest."""
    manifest: dict[str, Any] = json.loads(make_manifest(FILES, {"org.opencontainers.image.created": "2026-11-21T12:00:00Z"}).to_bytes())
    assert manifest["schemaVersion"] == 2
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert re.fullmatch(r"[\w.+-]+/[\w.+-]+", manifest["artifactType"])
    assert len(manifest["layers"]) >= 1
    for descriptor in (manifest["config"], *manifest["layers"]):
        assert re.fullmatch(r"[\w.+-]+/[\w.+-]+", descriptor["mediaType"])
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", descriptor["digest"])
        assert isinstance(descriptor["size"], int)
        assert all(isinstance(value, str) for value in descriptor["annotations"].values())
    assert [layer["annotations"]["org.opencontainers.image.title"] for layer in manifest["layers"]] == sorted(item.path for item in FILES)


@pytest.mark.parametrize("change", [{"schemaVersion": 1}, {"layers": None}, {"config": {}}, {"subject": {}}, {"annotations": {"a": 1}}])
def test_what_is_no_manifest_is_refused(change: dict[str, Any]) -> None:
    good = json.loads(make_manifest(FILES, {}).to_bytes())
    with pytest.raises(ValidationError):
        Manifest.model_validate(good | change)


@pytest.mark.parametrize("change", [lambda layer: [True] * 10_000, lambda layer: [layer] * 65], ids=["nonsense", "too many"])
def test_a_long_list_of_files_is_refused_in_one_problem(change: Callable[[object], list[object]]) -> None:
    good = json.loads(make_manifest(FILES, {}).to_bytes())
    with pytest.raises(ValidationError) as refusal:
        Manifest.model_validate_json(json.dumps(good | {"layers": change(good["layers"][0])}))
    assert refusal.value.error_count() == 1


def test_values_are_frozen() -> None:
    with pytest.raises(ValidationError):
        FILES[0].size = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        AdapterName.parse("a/b").name = "c"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="extra"):
        Descriptor.model_validate({"mediaType": "a/b", "digest": digest_of(b""), "size": 0, "urls": []})


@pytest.mark.parametrize("body", [{}, {"version": 0}, {"version": 10**9}, {"version": 1, "expected": -1}, {"version": 1, "force": True}])
def test_a_wrong_move_of_an_alias_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AliasMove.model_validate(body)
