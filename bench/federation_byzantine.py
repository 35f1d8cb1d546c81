"""Attacks against defences in simulated federations of digits: what each costs in accuracy, and that nothing malformed is accepted.

    python -m bench.federation_byzantine                                  # minutes on two cores; goes on where it stopped
    python -m bench.federation_byzantine --defences none multi_krum --attacks gauge alie --rounds 2

Eleven sites, of which two are hostile (fewer than a quarter, and as many as bulyan can stand), each with its own Dirichlet share of the
labels, train a network that reads upright digits on digits turned by 90 degrees: a small one by a loop of the bench's own, or with
``--task vit`` a Vision Transformer by the workers'. Everything else is what ``wgctl federation simulate`` runs, the code of real rounds:
wire, gate, defence, rule. Accuracy under each defence is compared with that of the same defence without an attack, seed by seed, and with
that of the honest sites alone, who lack the rows of the hostile ones. Malformed attacks are for the gate: one defence is enough for them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bench._simulated_runs import ATTACKS_PAST_THE_GATE, TASKS, Figures, Run, complete, federation_of, paired, write_bars
from simulation.attacks import MALFORMED, Attack
from wegeft.contracts.federation_rules import least_sites
from wegeft.contracts.federation_spec import FederationSpec

SITES, HOSTILE = 11, 2
CLEAN, ABSENT = "no attack", "absent"
"""Everybody honest; and the hostile ones refused from the first round on, so that their rows are missing and nothing else."""
DEFENCES: dict[str, dict[str, object]] = {
    "none": {},
    "geometric_median": {"defence": {"name": "geometric_median"}},
    "multi_krum": {"defence": {"name": "multi_krum", "malicious": HOSTILE}},
    "norm_clip": {"defence": {"name": "norm_clip"}},
    "trimmed_mean": {"defence": {"name": "trimmed_mean", "beta": 0.2}},
    "coordinate_median": {"defence": {"name": "coordinate_median"}},
    "bulyan": {"defence": {"name": "bulyan", "malicious": HOSTILE}},
    "krum": {"defence": {"name": "krum", "malicious": HOSTILE}},
    "fltrust": {"defence": {"name": "fltrust", "root": "site-001"}},
    "factor_mean": {"rule": {"name": "factor_mean"}},
    "factor_mean, not aligned": {"rule": {"name": "factor_mean", "align": False}},
}
"""By name; the rule is generator_exact unless another is named."""
_WORST = "worst"
LIMIT_POINTS = 2.0
"""Of accuracy that the recommended defence may cost under any attack."""


def wanted(arguments: argparse.Namespace) -> Iterator[Run]:
    """Yield every run that is asked for, seed by seed, defence by defence, without an attack first."""
    past = [attack for attack in arguments.attacks if attack not in MALFORMED]
    for seed in arguments.seeds:
        for defence in arguments.defences if past else ():
            yield _run(f"{defence} | {CLEAN}", None, seed, arguments)
            yield _run(f"{defence} | {ABSENT}", Attack.NAN, seed, arguments)
            yield from (_run(f"{defence} | {attack}", attack, seed, arguments) for attack in past)
        for attack in (attack for attack in arguments.attacks if attack in MALFORMED):
            yield _run(f"{arguments.defences[0]} | {attack}", attack, seed, arguments)


def _run(label: str, attack: Attack | None, seed: int, arguments: argparse.Namespace) -> Run:
    defence, _, what = label.partition(" | ")
    section = DEFENCES[defence]
    least = least_sites(FederationSpec.model_validate_json(json.dumps({"min_sites": SITES, **section})).defence)
    return Run(
        label=label,
        seed=seed,
        sites=SITES,
        alpha=arguments.alpha,
        rounds=1 if what in MALFORMED else arguments.rounds,
        steps=arguments.steps,
        learning_rate=arguments.rate,
        federation=federation_of(min_sites=max(least, SITES - HOSTILE), **section),
        task=arguments.task,
        byzantine=None if attack is None else f"{HOSTILE}:{attack}",
    )


def _parts(run: Run) -> tuple[str, str]:
    defence, _, attack = run.label.partition(" | ")
    return defence, attack


def unattacked(done: Mapping[Run, Figures]) -> dict[str, float]:
    """Return the accuracy under each defence without an attack, in per cent; mean over the seeds."""
    found: dict[str, list[float]] = {}
    for run, figures in done.items():
        defence, attack = _parts(run)
        if attack == CLEAN:
            found.setdefault(defence, []).append(100 * figures.accuracy)
    return {defence: statistics.fmean(scores) for defence, scores in found.items()}


def losses(done: Mapping[Run, Figures], reference: str = CLEAN) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Return, for each defence and attack, the points of accuracy lost against the same defence without one, paired by seed.

    ``reference`` names what they are lost against.
    """
    scores: dict[str, dict[str, dict[int, float]]] = {}
    for run, figures in done.items():
        defence, attack = _parts(run)
        scores.setdefault(defence, {}).setdefault(attack, {})[run.seed] = 100 * figures.accuracy
    return {
        defence: {
            attack: paired(by_attack[reference], found)
            for attack, found in by_attack.items()
            if attack not in (CLEAN, ABSENT) and attack not in MALFORMED and by_attack[reference].keys() & found.keys()
        }
        for defence, by_attack in scores.items()
        if reference in by_attack
    }


def absences(done: Mapping[Run, Figures]) -> dict[str, tuple[float, float | None]]:
    """Return the points of accuracy that each defence loses where the hostile sites are absent, paired by seed."""
    renamed = {replace(run, label=run.label.replace(f"| {ABSENT}", "| gone")): figures for run, figures in done.items()}
    return {defence: found["gone"] for defence, found in losses(renamed).items() if "gone" in found}


def show(done: Mapping[Run, Figures]) -> list[str]:
    """Return the table in Markdown: rows are defences, the worst attack last, best defence first."""
    lost, absent = losses(done), absences(done)
    attacks = [attack for attack in ATTACKS_PAST_THE_GATE if any(attack in found for found in lost.values())]
    clean = unattacked(done)
    titles = [CLEAN, ABSENT, *attacks, _WORST]
    lines = [f"| defence | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    order = sorted(lost, key=lambda defence: (-floor_of(clean[defence], lost[defence]), defence))
    for defence in order:
        cells = [_cell(absent.get(defence)), *(_cell(lost[defence].get(attack)) for attack in attacks)]
        worst = max((points for points, _ in lost[defence].values()), default=0.0)
        lines.append(f"| {defence} | {clean[defence]:.1f} % | {' | '.join(cells)} | {0 - worst:+.1f} |")
    return lines


def floor_of(clean: float, lost: Mapping[str, tuple[float, float | None]]) -> float:
    """Return the accuracy under the worst attack, in points."""
    return clean - max((points for points, _ in lost.values()), default=0.0)


def _cell(lost: tuple[float, float | None] | None) -> str:
    if lost is None:
        return "-"
    points, error = lost
    return f"{0 - points:+.1f}" + ("" if error is None else f" ± {error:.1f}")


def conclude(done: Mapping[Run, Figures]) -> list[str]:
    """Return what the table says: the best defence, whether it keeps the promise, and what the gate let through."""
    lost = losses(done)
    clean = unattacked(done)
    said = []
    if lost:
        best = max(lost, key=lambda defence: floor_of(clean[defence], lost[defence]))
        worst = max((points for points, _ in lost[best].values()), default=0.0)
        kept = "yes" if worst <= LIMIT_POINTS else "NO"
        said.append(f"highest accuracy under its worst attack: {best}, {floor_of(clean[best], lost[best]):.1f} % ({0 - worst:+.1f} points)")
        said.append(f"at most {LIMIT_POINTS:g} points lost under every attack: {kept}")
        for defence, found in losses(done, ABSENT).items():
            attack, (points, _) = max(found.items(), key=lambda item: item[1][0], default=(CLEAN, (0.0, None)))
            said.append(f"against the honest sites alone {defence} loses most under {attack}: {0 - points:+.1f} points")
    malformed = {run: figures for run, figures in done.items() if _parts(run)[1] in MALFORMED}
    if malformed:
        accepted = sum(figures.hostile_accepted for figures in malformed.values())
        signed = sum(figures.hostile_accepted for run, figures in malformed.items() if _parts(run)[1] == Attack.SYBIL)
        sent = sum(figures.hostile_sent for figures in malformed.values())
        said.append(
            f"malformed updates: {sent - signed} sent, {accepted - signed} accepted; {signed} by the site whose own key a Sybil used"
        )
    return said


def _parsed(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--defences", nargs="+", choices=list(DEFENCES), default=list(DEFENCES))
    parser.add_argument("--attacks", nargs="+", type=Attack, choices=list(Attack), default=[*ATTACKS_PAST_THE_GATE, *sorted(MALFORMED)])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--task", choices=TASKS, default="network", help="network is quick; the others train by the workers' own loop")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of a site in a round")
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate")
    parser.add_argument("--alpha", type=float, default=1.0, help="of the Dirichlet shares; less is less alike")
    parser.add_argument("--results", type=Path, default=Path("bench-byzantine.jsonl"), help="where runs are appended and found again")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw accuracy under the worst attack there; needs matplotlib")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Do what is missing, and print."""
    arguments = _parsed(given)
    runs = list(wanted(arguments))
    done = complete(runs, arguments.results)
    if arguments.json:
        entries = [{"run": asdict(run), "figures": asdict(figures)} for run, figures in done.items()]
        print(json.dumps({"runs": entries, "conclusions": conclude(done)}, indent=2))
    elif done:
        print("\n".join([*show(done), "", *conclude(done), ""]))
        lost, clean = losses(done), unattacked(done)
        bars = [(defence, floor_of(clean[defence], found)) for defence, found in lost.items()]
        if bars:
            print(write_bars(sorted(bars, key=lambda bar: -bar[1]), "accuracy under the worst attack, %", arguments.plot))
    return 0 if all(run in done for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
