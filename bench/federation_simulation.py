"""Seconds of a simulated round when sites train nothing: ``wgctl federation simulate`` against Flower's simulation, both on Ray.

    python -m bench.federation_rounds --install ../peers       # once: an environment with Flower and its Ray
    python -m bench.federation_simulation --peers ../peers     # minutes on two cores
    python -m bench.federation_simulation --cells 8x1 --systems ours --repeats 1

A driver hands sites to actors of one core each, as many as there are cores; a site reads what it starts from and answers with noise in
float32 generators of the size that the cell says, new each time; the driver puts the answers together. Of each run the first round, in
which the actors start, is left out; then a round lasts from its beginning to that of the next. CPU seconds are of all processes together,
Ray's included. The systems take turns in each of the ``--repeats``; read the ratios, which are paired within a turn.

They do not do the same. Ours offers, signs, checks and closes every round by the code of a real service, scores every site's contribution
and writes a record, so that a simulation shows what a deployment would do. Flower's messages pass through its in-memory state, which the
server application and the runtime ask again and again, and FedAvg averages arrays. Neither keeps anything on disk here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench._flower_rounds import simulate_flower
from bench._our_simulation import simulate_ours
from bench.federation_rounds import FLOWER, Run, parser_of, time_all

CELLS = ("8x0.1", "8x1", "20x0.1", "20x1")
SYSTEMS = ("ours", "ours, generator_exact", "flower")


def simulator(system: str, peers: Path | None) -> Run:
    """Return what simulates a cell on a system."""
    match system, peers:
        case "ours", _:
            return simulate_ours
        case "ours, generator_exact", _:
            return lambda cell, folder: simulate_ours(cell, folder, "generator_exact")
        case "flower", Path():
            return lambda cell, folder: simulate_flower(cell, folder, peers / "flower")
    raise SystemExit(f"{system} needs --peers FOLDER, made by python -m bench.federation_rounds --install FOLDER")


def main(arguments: Sequence[str] | None = None) -> None:
    """Time, and print."""
    options = parser_of(__doc__, CELLS, SYSTEMS, rounds=30).parse_args(arguments)
    time_all(options, SYSTEMS, f"{FLOWER} with its Ray", simulator)


if __name__ == "__main__":
    main()
