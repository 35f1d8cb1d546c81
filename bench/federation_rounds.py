"""How long a federation's rounds take when nothing is trained: ours, Flower's deployment, and NVFlare's simulator.

    python -m bench.federation_rounds --install /tmp/peers         # makes /tmp/peers/flower and /tmp/peers/nvflare, once
    python -m bench.federation_rounds --peers /tmp/peers           # all cells, an hour and more
    python -m bench.federation_rounds --cells 8x1 --rounds 10      # ours alone
    python -m bench.federation_rounds --peers /tmp/peers --systems ours flower --cells 8x1 --work 10 --rounds 4

Deployment against deployment: the service and each site are processes of their own, over HTTP on loopback, without TLS. Sites train
nothing (or sleep for ``--work`` seconds) and send noise, so that no payload is like another. Of each run the first round, which has
everybody's start in it, is left out; then a round lasts from its beginning to that of the next. CPU seconds are of all processes together.
The systems take turns in each of the ``--repeats``, so that what else the machine does hits all; read the ratios, which are paired within
a turn.

They do not do the same. Ours signs every request and receipt, checks every update before it counts, writes each step to SQLite and to
synced files at the server and in the sites' journals, publishes a version a round, and scores every site's contribution. Flower is as it
comes: state in memory, nothing signed or checked, a new process for each message, replies and work looked for every 3 s. NVFlare's
simulator is one process with threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from bench._flower_rounds import run_flower
from bench._nvflare_rounds import run_nvflare
from bench._our_rounds import run_ours
from bench._round_timing import Cell, Timing

FLOWER, NVFLARE = "flwr==1.42.0", "nvflare==2.9.0"
CELLS = ("2x0.1", "2x1", "2x16", "8x0.1", "8x1", "8x16", "32x0.1", "32x1", "32x16")
SYSTEMS = ("ours", "ours, generator_exact", "flower", "nvflare simulator")
_REQUIREMENTS = (
    "from importlib.metadata import requires\n"
    "for line in requires('flwr'):\n"
    "    if 'extra ==' not in line: print('certifi' if line.startswith('certifi') else line)\n"
    "    elif line.startswith('ray'): print(line.partition(';')[0])"
)
"""Flower's own and its simulation's, but for the date that it wants of certifi, which no index may have yet."""

Run = Callable[[Cell, Path], Timing]
"""Runs a cell on one system, with a folder for what it writes."""
Runs = dict[str, dict[str, list[Timing]]]
"""By cell and system, one timing a turn; fewer where a run did not get anywhere in its time."""


def install(folder: Path) -> None:
    """Make an environment for each peer."""
    for name in ("flower", "nvflare"):
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
    pip = [str(folder / "flower" / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", FLOWER], check=True)
    listed = subprocess.run([pip[0], "-c", _REQUIREMENTS], check=True, stdout=subprocess.PIPE, text=True).stdout
    subprocess.run([*pip, *dict.fromkeys(listed.splitlines())], check=True)
    subprocess.run([str(folder / "nvflare" / "bin" / "python"), *pip[1:], NVFLARE, "numpy"], check=True)


def runner(system: str, peers: Path | None) -> Run:
    """Return what runs a cell on a system."""
    match system, peers:
        case "ours", _:
            return run_ours
        case "ours, generator_exact", _:
            return lambda cell, folder: run_ours(cell, folder, "generator_exact")
        case "flower", Path():
            return lambda cell, folder: run_flower(cell, folder, peers / "flower")
        case "nvflare simulator", Path():
            return lambda cell, folder: run_nvflare(cell, folder, peers / "nvflare")
    raise SystemExit(f"{system} needs --peers FOLDER, made by --install FOLDER")


def parse_cell(text: str, options: argparse.Namespace) -> Cell:
    """Return the cell that ``8x1`` stands for."""
    sites, _, megabytes = text.partition("x")
    return Cell(sites=int(sites), megabytes=float(megabytes), rounds=options.rounds, work_seconds=options.work, limit_seconds=options.limit)


def run_all(cells: Sequence[Cell], options: argparse.Namespace, choose: Callable[[str, Path | None], Run] = runner) -> Runs:
    """Run everything in turns, and say how it goes; ``choose`` gives what runs a cell on a system."""
    found: Runs = {cell.name: {system: [] for system in options.systems} for cell in cells}
    for turn in range(options.repeats):
        for cell in cells:
            for system in options.systems if turn % 2 == 0 else reversed(options.systems):
                run_one(cell, system, choose(system, options.peers), found[cell.name][system])
    return found


def run_one(cell: Cell, system: str, run: Run, timings: list[Timing]) -> None:
    """Run one cell on one system, and keep its timing."""
    load = os.getloadavg()[0]
    folder = Path(tempfile.mkdtemp(prefix="rounds-"))
    try:
        timing = run(cell, folder)
    except (RuntimeError, subprocess.SubprocessError) as error:
        print(f"{cell.name}: {system}: {error}", file=sys.stderr, flush=True)
        return
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    timings.append(timing)
    said = f"{timing.seconds:.2f} s a round, {timing.cpu_seconds:.2f} s CPU, {len(timing.periods)} rounds, load {load:.1f}"
    print(f"{cell.name}: {system}: {said}", file=sys.stderr, flush=True)


def print_table(found: Runs) -> None:
    """Print a row for each cell and system."""
    print("| sites × payload | system | s/round | least-most | CPU s/round | heard, ms | begun, ms | s × ours | CPU × ours |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for cell, systems in found.items():
        for system, timings in systems.items():
            if timings:
                print(f"| {cell} | {system} | {' | '.join(figures(timings, systems))} |")


def figures(timings: Sequence[Timing], systems: Mapping[str, Sequence[Timing]]) -> list[str]:
    """Return a row's numbers: medians over all rounds of all turns, and of the paired ratios."""
    periods = [period for timing in timings for period in timing.periods]
    ours = systems.get("ours", ())
    pairs = list(zip(timings, ours, strict=False)) if len(ours) == len(timings) else []
    ratios = [
        f"{statistics.median(values):.1f}" if values else ""
        for values in ([one.seconds / own.seconds for one, own in pairs], [one.cpu_seconds / own.cpu_seconds for one, own in pairs])
    ]
    return [
        f"{statistics.median(periods):.2f}",
        f"{min(periods):.2f}-{max(periods):.2f}",
        f"{statistics.median(timing.cpu_seconds for timing in timings):.2f}",
        *(milliseconds([delay for timing in timings for delay in getattr(timing, what)]) for what in ("heard", "begun")),
        *ratios,
    ]


def milliseconds(delays: Sequence[float]) -> str:
    """Return the median, empty where nothing was marked."""
    return f"{1000 * statistics.median(delays):.0f}" if delays else ""


def parser_of(description: str | None, cells: Sequence[str], systems: Sequence[str], rounds: int) -> argparse.ArgumentParser:
    """Return the parser of what is timed: by default ``cells`` and so many ``rounds``, and of ``systems`` those that are there."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="where peers were made; without it ours alone is timed")
    parser.add_argument("--systems", nargs="+", choices=systems)
    parser.add_argument("--cells", nargs="+", default=list(cells), metavar="SITESxMB")
    parser.add_argument("--rounds", type=int, default=rounds, help="timed in each run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=float, default=0.0, metavar="SECONDS", help="of each site in each round")
    parser.add_argument("--limit", type=float, default=600.0, metavar="SECONDS", help="of one run; what was done until then counts")
    parser.add_argument("--json", action="store_true", help="print every timing instead of a table")
    return parser


def time_all(options: argparse.Namespace, systems: Sequence[str], peers: str, choose: Callable[[str, Path | None], Run] = runner) -> None:
    """Time what ``options`` ask for, of ``systems`` by default, and print it; ``peers``: what they are, with their versions."""
    options.systems = options.systems or [name for name in systems if options.peers or name.startswith("ours")]
    found = run_all([parse_cell(text, options) for text in options.cells], options, choose)
    if options.json:
        print(json.dumps({cell: {name: [asdict(one) for one in runs] for name, runs in row.items()} for cell, row in found.items()}))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {peers}\n")
    print_table(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time, and print."""
    parser = parser_of(__doc__, CELLS, SYSTEMS, rounds=10)
    parser.add_argument("--install", type=Path, metavar="FOLDER", help="make the peers' environments in FOLDER, and end")
    options = parser.parse_args(arguments)
    if options.install:
        install(options.install)
    else:
        time_all(options, SYSTEMS, f"{FLOWER}, {NVFLARE}")


if __name__ == "__main__":
    main()
