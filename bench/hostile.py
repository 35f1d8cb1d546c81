"""Damaged adapters at the hub's gate: none crashes it, none is accepted that safetensors or PEFT would read otherwise, each costs little.

    python -m bench.hostile                     100,000 damaged tensor files, configurations and manifests
    python -m bench.hostile --cases 2000 --seed 3

Each case is a sound adapter with one file damaged by seeded mutations, judged by the gate that every publication passes. What is accepted
is read again by the libraries that people use: safetensors must find the same tensors with the same bytes, and PEFT the same rank, base
model and targets. Seconds are of the processor; the twenty slowest cases are judged three times again, and the least of each counts:
what does not come again was not the case but a collection of this process's garbage, with all of PEFT and torch in it. Memory is what
one case allocated at its highest, traced for every ``--trace``-th case and, again, for the slowest.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peft import PeftConfig
from pydantic import ValidationError
from safetensors.numpy import load, save

import wegeft.method  # noqa: F401 - so that PEFT knows the method
from bench._mutations import mutate_json, mutate_weights
from hub.objects import MemoryStore
from hub.validate import AdapterFacts, check_version
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, FileEntry, Manifest, digest_of, make_manifest
from wegeft.contracts.errors import InvalidInput, WegeftError
from wegeft.contracts.tensors import read_tensors

MOST_MILLISECONDS = 50.0
MOST_MEBIBYTES = 64.0
WIDTH, RANK = 64, 4
MANIFEST = "manifest"
COMMON: dict[str, Any] = {
    "task_type": "CAUSAL_LM", "r": RANK, "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "org/base",
    "inference_mode": True,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "WEGEFT": {"peft_type": "WEGEFT", "wegeft_alpha": 8.0, "tied_modules": "type", **COMMON},
    "LORA": {"peft_type": "LORA", "lora_alpha": 8, "lora_dropout": 0.0, "rank_pattern": {}, "use_dora": False, **COMMON},
}
NAMES = {"WEGEFT": "base_model.wegeft_generators.{}.{}", "LORA": "base_model.model.model.layers.0.self_attn.{}.{}.weight"}
FACTORS = {"WEGEFT": {"phi": (WIDTH, RANK), "psi": (RANK, WIDTH)}, "LORA": {"lora_A": (RANK, WIDTH), "lora_B": (WIDTH, RANK)}}
Files = dict[str, bytes]


@dataclass(frozen=True)
class Case:
    """One file to judge: a sound adapter with this one damaged."""

    number: int
    kind: str
    path: str
    content: bytes
    files: Files
    """The adapter, the damaged file in its place."""


@dataclass
class Findings:
    """What the cases showed."""

    verdicts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: list[tuple[float, Case]] = field(default_factory=list)
    peak_mebibytes: float = 0.0

    def note_seconds(self, seconds: float, case: Case) -> None:
        self.slowest = sorted([*self.slowest, (seconds, case)], key=lambda entry: -entry[0])[:20]


def sound_files(kind: str) -> Files:
    """Return the files of a small adapter that the gate accepts."""
    rng = np.random.default_rng(0)
    factors = [(group, *factor) for group in CONFIGS[kind]["target_modules"] for factor in FACTORS[kind].items()]
    tensors = {NAMES[kind].format(group, factor): rng.normal(size=shape).astype(np.float32) for group, factor, shape in factors}
    return {CONFIG_FILE: json.dumps(CONFIGS[kind]).encode(), WEIGHTS_FILE: save(tensors, {"format": "pt"})}


def entries_of(files: Files) -> tuple[FileEntry, ...]:
    return tuple(FileEntry(path=path, digest=digest_of(content), size=len(content)) for path, content in files.items())


def make_cases(count: int, seed: int) -> Iterator[Case]:
    """Yield the cases: half of them weights, a third configurations, the rest manifests."""
    sound = {kind: sound_files(kind) for kind in CONFIGS}
    manifest = make_manifest(entries_of(sound["WEGEFT"]), {"org.wegeft.rank": str(RANK)}).to_bytes()
    for number in range(count):
        rng = random.Random(f"{seed}:{number}")
        kind, path = rng.choice(list(sound)), rng.choice((WEIGHTS_FILE,) * 3 + (CONFIG_FILE,) * 2 + (MANIFEST,))
        content = manifest if path == MANIFEST else sound[kind][path]
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            if is_sound(path, content):
                content = (mutate_weights if path == WEIGHTS_FILE else mutate_json)(rng, content)
        yield Case(number, kind, path, content, {**sound[kind], path: content})


def is_sound(path: str, content: bytes) -> bool:
    """Return whether a file can be damaged further by those who know its form."""
    try:
        end = 8 + int.from_bytes(content[:8], "little")
        return isinstance(json.loads(content[8:end] if path == WEIGHTS_FILE else content), dict)
    except (ValueError, RecursionError, OverflowError):
        return False


def judge(case: Case) -> AdapterFacts | None:
    """Return what the gate says of the case; None of a manifest that is read. Raise :class:`WegeftError` where it is refused."""
    if case.path == MANIFEST:
        try:
            Manifest.model_validate_json(case.content)
        except ValidationError as error:
            raise InvalidInput("not a manifest") from error
        return None
    store = MemoryStore()
    for content in case.files.values():
        store.put(digest_of(content), io.BytesIO(content))
    return check_version(store, entries_of(case.files))


def misreadings(case: Case, facts: AdapterFacts, folder: Path) -> Iterator[str]:
    """Yield how safetensors or PEFT read an accepted adapter otherwise than the gate did."""
    theirs, ours = load(case.files[WEIGHTS_FILE]), read_tensors(case.files[WEIGHTS_FILE])
    if contents_of(theirs) != contents_of(ours):
        yield "safetensors reads other tensors"
    if case.path == CONFIG_FILE:
        (folder / CONFIG_FILE).write_bytes(case.content)
        config = PeftConfig.from_pretrained(str(folder))
        if (config.peft_type, config.r, config.base_model_name_or_path) != (facts.method.upper(), facts.rank, facts.base_model):
            yield "PEFT reads another method, rank or base model"


def contents_of(tensors: dict[str, NDArray[Any]]) -> dict[str, tuple[object, ...]]:
    return {name: (array.shape, array.dtype.str, array.tobytes()) for name, array in tensors.items()}


def try_case(case: Case, findings: Findings, folder: Path) -> None:
    """Judge one case and note what it showed."""
    started = time.process_time()
    facts, verdict = None, "accepted"
    try:
        facts = judge(case)
    except WegeftError as error:
        verdict = f"refused ({error.code})"
        if error.http_status >= 500:
            findings.faults.append(f"case {case.number}: the gate answers {error.http_status}: {error}")
    except Exception as error:  # noqa: BLE001 - what the bench is for
        verdict = "crashed"
        findings.faults.append(f"case {case.number}: the gate crashed on {case.path}: {type(error).__name__}: {error}")
    findings.note_seconds(time.process_time() - started, case)
    findings.verdicts[f"{case.path}: {verdict}"] += 1
    if facts is not None:
        findings.faults += [f"case {case.number}: {fault}" for fault in checked_misreadings(case, facts, folder)]


def checked_misreadings(case: Case, facts: AdapterFacts, folder: Path) -> list[str]:
    """Return the misreadings; that a library cannot read what the gate accepted is one."""
    try:
        return list(misreadings(case, facts, folder))
    except Exception as error:  # noqa: BLE001 - what the bench is for
        return [f"accepted, and not readable: {type(error).__name__}: {error}"]


def traced_mebibytes(case: Case) -> float:
    """Return how much memory judging the case takes at its highest."""
    tracemalloc.start()
    try:
        judge(case)
    except Exception:  # noqa: BLE001 - counted by try_case
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak / 2**20


def parsed(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--trace", type=int, default=100, help="trace the memory of every so many cases")
    parser.add_argument("--save", type=Path, help="write the cases that showed a fault into this folder")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    arguments = parsed(given)
    findings = Findings()
    warnings.filterwarnings("ignore", "Unexpected keyword arguments")  # fields of other versions of PEFT, which it leaves out
    with TemporaryDirectory() as folder:
        for case in make_cases(arguments.cases, arguments.seed):
            known = len(findings.faults)
            try_case(case, findings, Path(folder))
            if arguments.save and len(findings.faults) > known:
                arguments.save.mkdir(parents=True, exist_ok=True)
                (arguments.save / f"{case.number}-{case.path}").write_bytes(case.content)
            if case.number % arguments.trace == 0:
                findings.peak_mebibytes = max(findings.peak_mebibytes, traced_mebibytes(case))
            if case.number % 10_000 == 9_999:
                print(f"{case.number + 1} of {arguments.cases}", file=sys.stderr)
    findings.peak_mebibytes = max([findings.peak_mebibytes, *(traced_mebibytes(case) for _, case in findings.slowest)])
    return tell(findings)


def seconds_again(case: Case) -> float:
    """Return the least processor seconds of three more judgements."""
    taken = []
    for _ in range(3):
        started = time.process_time()
        with suppress(Exception):  # counted by try_case
            judge(case)
        taken.append(time.process_time() - started)
    return min(taken)


def tell(findings: Findings) -> int:
    """Print what was found; return 1 where a limit is broken."""
    for verdict, count in sorted(findings.verdicts.items()):
        print(f"{count:8,} {verdict}")
    first, again = [seconds for seconds, _ in findings.slowest], [seconds_again(case) for _, case in findings.slowest]
    number = findings.slowest[again.index(max(again))][1].number
    print(f"\nslowest: case {number}, {1000 * max(again):.1f} ms of the processor, limit {MOST_MILLISECONDS:g}")
    print(f"  at first sight {1000 * first[0]:.1f} ms, case {findings.slowest[0][1].number}, which took {1000 * again[0]:.1f} ms again")
    print(f"most memory of a case: {findings.peak_mebibytes:.2f} MiB, limit {MOST_MEBIBYTES:g}")
    print(f"faults: {len(findings.faults)}")
    print("\n".join(f"  {fault}" for fault in findings.faults[:50]))
    is_slow = 1000 * max(again) > MOST_MILLISECONDS or findings.peak_mebibytes > MOST_MEBIBYTES
    return int(bool(findings.faults) or is_slow)


if __name__ == "__main__":
    sys.exit(main())
