"""The gate before publishing, fed with real files that PEFT and our method wrote, and with what is wrong in every way."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from hub.objects import MemoryStore
from hub.validate import MAX_TEXT_BYTES, AdapterFacts, check_version
from wegeft.contracts.adapter import CARD_FILE, CONFIG_FILE, JOB_FILE, METRICS_FILE, WEIGHTS_FILE, FileEntry, digest_of
from wegeft.contracts.errors import DigestMismatch, InvalidInput, InvalidTensors, WegeftError

Files = dict[str, bytes]
PREFIX = "base_model.wegeft_generators"

CONFIG: dict[str, Any] = {
    "peft_type": "WEGEFT",
    "r": 4,
    "wegeft_alpha": 8.0,
    "target_modules": ["q_proj", "v_proj"],
    "base_model_name_or_path": "org/base",
}


def tensors(**changes: Any) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for group in ("q_proj", "v_proj"):
        pairs[f"{PREFIX}.{group}.phi"] = np.full((16, 4), 0.5, np.float32)
        pairs[f"{PREFIX}.{group}.psi"] = np.full((4, 16), 0.25, np.float32)
    return pairs | changes


def files(**changes: bytes | None) -> Files:
    good: dict[str, bytes | None] = {
        CONFIG_FILE: json.dumps(CONFIG).encode(),
        WEIGHTS_FILE: save(tensors(), {"format": "pt"}),
        CARD_FILE: "# Größe\n".encode(),
        JOB_FILE: b'{"name": "demo"}',
        METRICS_FILE: b'{"eval_loss": 0.5}',
    }
    return {path: content for path, content in (good | changes).items() if content is not None}


def check(content: Files) -> AdapterFacts:
    store, entries = MemoryStore(), []
    for path, body in content.items():
        store.put(digest_of(body), io.BytesIO(body))
        entries.append(FileEntry(path=path, digest=digest_of(body), size=len(body)))
    return check_version(store, tuple(entries))


def refuse(content: Files, kind: type[WegeftError] = InvalidInput) -> str:
    with pytest.raises(kind) as caught:
        check(content)
    assert type(caught.value) is kind
    return str(caught.value)


def config(**changes: Any) -> Files:
    return files(**{CONFIG_FILE: json.dumps(CONFIG | changes).encode()})


def weights(found: dict[str, Any]) -> Files:
    return files(**{WEIGHTS_FILE: save(found)})


def test_a_sound_adapter_passes() -> None:
    assert check(files()) == AdapterFacts(method="wegeft", rank=4, base_model="org/base", parameters=4 * 4 * 16)


def test_the_optional_files_are_optional() -> None:
    check(files(**{CARD_FILE: None, JOB_FILE: None, METRICS_FILE: None}))


@pytest.mark.parametrize("path", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(path: str) -> None:
    assert f"{path}: the file is missing" in refuse(files(**{path: None}))


@pytest.mark.parametrize("path", ["adapter_model.bin", "../x", "model.pt", "README", "adapter_config.json ", "a/README.md"])
def test_any_other_file_is_refused(path: str) -> None:
    assert "not a publishable file" in refuse(files(**{path: b"x"}))


def test_bytes_that_are_not_stored_are_named() -> None:
    entries = tuple(FileEntry(path=path, digest=digest_of(body), size=len(body)) for path, body in files().items())
    with pytest.raises(InvalidInput) as caught:
        check_version(MemoryStore(), entries)
    assert {problem.path for problem in caught.value.problems} == set(files())


def test_a_wrong_size_is_named() -> None:
    store, body = MemoryStore(), b"{}"
    store.put(digest_of(body), io.BytesIO(body))
    with pytest.raises(InvalidInput) as caught:
        check_version(store, (FileEntry(path=CONFIG_FILE, digest=digest_of(body), size=3),))
    assert "the store has 2 bytes" in str(caught.value)


@pytest.mark.parametrize("path", [CONFIG_FILE, CARD_FILE, JOB_FILE, METRICS_FILE])
def test_a_text_that_is_too_large_is_refused_unread(path: str) -> None:
    assert "too large" in refuse(files(**{path: b" " * (MAX_TEXT_BYTES[path] + 1)}))


def test_weights_over_the_servers_limit_are_refused() -> None:
    store, body = MemoryStore(), files()[WEIGHTS_FILE]
    store.put(digest_of(body), io.BytesIO(body))
    with pytest.raises(InvalidInput) as caught:
        check_version(store, (FileEntry(path=WEIGHTS_FILE, digest=digest_of(body), size=len(body)),), max_weights_bytes=100)
    assert "at most 100" in str(caught.value)


NO_JSON_OBJECT = {
    "empty": b"",
    "an array": b"[]",
    "a number": b"7",
    "nonsense": b"{nonsense}",
    "cut": b'{"a": ',
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "a name twice": b'{"a": 1, "a": 2}',
    "a nested name twice": b'{"b": [{"a": 1, "a": 2}]}',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "a number beyond a double": b'{"a": 1e999}',
    "a whole number beyond a double": b'{"a": [1' + b"0" * 300 + b"]}",
    "a whole number beyond 64 bits": b'{"a": 9223372036854775808}',
    "a whole number far below zero": b'{"a": -9223372036854775808}',
    "a number of 10000 digits": b'{"a": ' + b"9" * 10_000 + b"}",
    "deep": b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}",
    "very deep": b'{"a": ' + b"[" * 200_000,
    "a lone surrogate": b'{"a": "\\ud800"}',
    "a pickle": b"\x80\x04\x95\x10\x00.",
}


@pytest.mark.parametrize("content", NO_JSON_OBJECT.values(), ids=NO_JSON_OBJECT)
@pytest.mark.parametrize("path", [CONFIG_FILE, JOB_FILE, METRICS_FILE])
def test_what_is_no_strict_json_object_is_refused(path: str, content: bytes) -> None:
    assert f"{path}: not acceptable JSON" in refuse(files(**{path: content}))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a\x00b", b"\x80\x04."])
def test_a_card_is_text(content: bytes) -> None:
    assert "not UTF-8 text" in refuse(files(**{CARD_FILE: content}))


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "peft_type"),
        ({"peft_type": None}, "peft_type"),
        ({"r": 0}, "r"),
        ({"r": 10**9}, "r"),
        ({"r": 4.0}, "r"),
        ({"r": True}, "r"),
        ({"r": "4"}, "r"),
        ({"wegeft_alpha": 0}, "wegeft_alpha"),
        ({"wegeft_alpha": -1}, "wegeft_alpha"),
        ({"wegeft_alpha": "8"}, "wegeft_alpha"),
        ({"target_modules": "(a+)+$"}, "target_modules"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": ["(a+)+$"]}, "target_modules.0"),
        ({"target_modules": ["a\n"]}, "target_modules.0"),
        ({"target_modules": None}, "target_modules"),
        ({"exclude_modules": ".*"}, "exclude_modules"),
        ({"rank_pattern": {"(a+)+": 4}}, "rank_pattern.(a+)+.[key]"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern.q_proj"),
        ({"tied_modules": [["(a+)+"]]}, "tied_modules"),
        ({"tied_modules": "everything"}, "tied_modules"),
        ({"modules_to_save": ["(a+)+"]}, "modules_to_save"),
        ({"auto_mapping": {"parent_library": "os", "base_model_class": "system"}}, "auto_mapping"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"transform": "both"}, "transform"),
        ({"input_dropout": 1}, "input_dropout"),
        ({"base_model_name_or_path": "a\nb"}, "base_model_name_or_path"),
        ({"base_model_name_or_path": ["a"]}, "base_model_name_or_path"),
        ({"a\x00b": 1}, "'a\\x00b'"),
    ],
    ids=str,
)
def test_a_configuration_is_refused_by_field(change: dict[str, Any], path: str) -> None:
    shown = refuse(config(**change))
    assert f"{CONFIG_FILE}: {path}" in shown
    assert "\x00" not in shown


@pytest.mark.parametrize("name", ["peft_type", "r", "wegeft_alpha", "target_modules", "base_model_name_or_path"])
def test_a_field_that_is_needed_is_named(name: str) -> None:
    rest = {key: value for key, value in CONFIG.items() if key != name}
    assert f"{CONFIG_FILE}: {name}: Field required" in refuse(files(**{CONFIG_FILE: json.dumps(rest).encode()}))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({f"{PREFIX}.q_proj.phi": np.ones((16, 4), np.float32)}, "q_proj: the generator has no psi"),
        ({f"{PREFIX}.q_proj.psi": np.ones((4, 16), np.float32)}, "q_proj: the generator has no phi"),
        (tensors(**{f"{PREFIX}.q_proj.phi": np.ones((4, 16), np.float32)}), "q_proj: phi and psi do not fit"),
        (tensors(**{f"{PREFIX}.q_proj.phi": np.ones((15, 4), np.float32)}), "q_proj: phi and psi do not fit"),
        (tensors(**{f"{PREFIX}.q_proj.phi": np.ones(64, np.float32)}), "q_proj: phi and psi do not fit"),
        (
            tensors(**{f"{PREFIX}.k.phi": np.ones((16, 8), np.float32), f"{PREFIX}.k.psi": np.ones((8, 16), np.float32)}),
            "k: the rank differs",
        ),
        (tensors(**{"base_model.model.lm_head.weight": np.ones((3, 3), np.float32)}), "does not belong to a generator"),
        (tensors(**{f"{PREFIX}.q_proj.rho": np.ones((3, 3), np.float32)}), "does not belong to a generator"),
        (tensors(**{f"{PREFIX}.(x).phi": np.ones((16, 4), np.float32)}), "does not belong to a generator"),
        (tensors(**{f"{PREFIX}.q_proj.phi": np.full((16, 4), np.nan, np.float32)}), "NaN"),
        (tensors(**{f"{PREFIX}.q_proj.phi": np.ones((16, 4), np.int32)}), "not an accepted type"),
    ],
)
def test_wrong_weights_are_refused(found: dict[str, Any], message: str) -> None:
    shown = refuse(weights(found), InvalidTensors)
    assert message in shown
    assert shown.startswith(WEIGHTS_FILE)


def test_a_pickle_in_the_place_of_weights_is_refused() -> None:
    assert "not a safetensors file" in refuse(
        files(**{WEIGHTS_FILE: b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os."}), InvalidTensors
    )


def test_a_rank_may_differ_where_the_configuration_says_so() -> None:
    pair = {f"{PREFIX}.up_proj.phi": np.ones((16, 2), np.float32), f"{PREFIX}.up_proj.psi": np.ones((2, 16), np.float32)}
    changed = json.dumps(CONFIG | {"rank_pattern": {"up_proj": 2}}).encode()
    check(files(**{CONFIG_FILE: changed, WEIGHTS_FILE: save(tensors(**pair))}))


def test_every_problem_of_every_file_is_told_at_once() -> None:
    content = config(r=0, wegeft_alpha=-1.0) | {WEIGHTS_FILE: save({f"{PREFIX}.q.phi": np.ones((2, 2), np.float32)}), METRICS_FILE: b"["}
    shown = refuse(content | {"model.pt": b"x"})
    for part in ("r:", "wegeft_alpha:", "no psi", METRICS_FILE, "model.pt"):
        assert part in shown


@pytest.mark.parametrize("path", [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, METRICS_FILE])
@pytest.mark.parametrize("harm", [lambda body: bytes([body[0] ^ 1]) + body[1:], lambda body: body[:-1] + bytes([body[-1] ^ 1])])
def test_rotten_bytes_are_the_stores_fault_and_not_the_publishers(path: str, harm: Callable[[bytes], bytes]) -> None:
    store, entries = MemoryStore(), []
    for name, body in files().items():
        store._blobs[digest_of(body)] = harm(body) if name == path else body
        entries.append(FileEntry(path=name, digest=digest_of(body), size=len(body)))
    with pytest.raises(DigestMismatch):
        check_version(store, tuple(entries))


@settings(max_examples=150)
@given(st.sampled_from(sorted(files())), st.integers(0, 10**9), st.binary(max_size=6), st.integers(0, 30))
def test_harmed_files_are_taken_or_refused_with_reasons(path: str, at: int, inserted: bytes, deleted: int) -> None:
    body = files()[path]
    at %= len(body)
    try:
        check(files(**{path: body[:at] + inserted + body[at + deleted :]}))
    except InvalidInput as error:
        assert error.problems[0].path.startswith(path)  # noqa: PT017 - either outcome is right


def test_what_the_method_writes_passes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Holds the gate and ``wegeft.method`` together: names of tensors, shapes, and every field of the configuration."""
    from peft import get_peft_model

    from tests.tiny_models import make_model
    from wegeft.method import WeGeFTConfig

    targets = ["q_proj", "up_proj"]
    choices: list[dict[str, Any]] = [{}, {"tied_modules": "layer"}, {"tied_modules": [targets]}, {"rank_pattern": {"up_proj": 2}}]
    for number, chosen in enumerate(choices):
        folder = tmp_path_factory.mktemp(f"adapter{number}")
        settings = WeGeFTConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", **chosen)
        model = get_peft_model(make_model(), settings)
        model.save_pretrained(folder)
        facts = check({path.name: path.read_bytes() for path in folder.iterdir()})
        assert facts.rank == 4
        assert facts.parameters == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
