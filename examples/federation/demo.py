"""The story that ``make demo-federation`` tells: three sites train one adapter, and neither a killed site nor a killed server stops them.

Every step is a command that you can run by hand; the demo prints it before it runs it. Stopped with Ctrl-C and started again, it goes on
with what is not told yet; ``--fresh`` begins anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from examples.arithmetic.demo import MODEL_FILE, fetch_model
from examples.federation.chapters import Chapters
from examples.federation.measure import BASE, measure
from examples.federation.split import FOLDER, split

ROOT = Path(__file__).resolve().parents[2]
JOB_FILE = Path(__file__).with_name("federated.yaml")
CENTRAL_FILE = ROOT / "examples" / "arithmetic" / "job.yaml"
ADAPTER = "demo/arithmetic-federated"
WGCTL = (sys.executable, "-m", "cli.main")
SITES = 3

os.environ["TQDM_DISABLE"] = "1"  # read when the libraries that load the model are imported
console = Console()


@dataclass
class Demo:
    """One run: where it keeps its files, and how long it trains."""

    folder: Path
    model: Path
    rounds: int
    steps: int
    """Of each site in each round."""
    chapters: Chapters
    sites: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What the commands see."""
        return environment_of(self.folder)

    def run(self, *arguments: str) -> None:
        """Print a wgctl command and run it before the reader's eyes."""
        console.print(f"[dim]$ wgctl {shlex.join(arguments)}[/dim]", soft_wrap=True)
        subprocess.run([*WGCTL, *arguments], env=self.environment, check=True)

    def read(self, *arguments: str) -> Any:
        """Run a wgctl command with ``--json`` and return what it answers."""
        command = [*WGCTL, *arguments, "--json"]
        return json.loads(subprocess.run(command, env=self.environment, check=True, stdout=subprocess.PIPE).stdout)

    def tell_story(self) -> None:
        """Federate, then train alone and on all rows, and compare."""
        files = split(self.folder)
        heading("Three sites with rows of their own, which never leave them")
        for name, file in files.items():
            console.print(f"{name}: {sum(1 for _ in file.open()):>3} rows, such as {_first_question(file)}", highlight=False)
        heading("Start the service and submit the federated job: it has no data sets")
        self.run("up", "--detach")
        job_id = str(self.chapters.once("job", self.submit))
        console.print(f"job {job_id}", highlight=False)
        heading("Invite the sites; each makes its own key, which never leaves it")
        for name in files:
            self.chapters.once(f"{name} is enrolled", partial(self.enrol, job_id, name))
        self.chapters.once("trained together", partial(self.federate, job_id, files))
        self.show_rounds(job_id)
        self.show_bytes(list(files))
        adapters = self.train_apart(files)
        self.show_figures(self.chapters.once("figures", partial(self.measure, adapters)))
        self.chapters.end()

    def submit(self) -> str:
        """Submit the federated job and return its id."""
        size = ("--set", f"federation.rounds={self.rounds}", "--set", f"max_steps={self.steps}", "--set", f"base_model={self.model}")
        return str(self.read("submit", str(JOB_FILE), *size, "--idempotency-key", "federated")["id"])

    def enrol(self, job_id: str, name: str) -> None:
        """Invite a site, and let it take up its invitation with a key of its own."""
        server = json.loads((self.folder / "home" / "service.json").read_text())["server"]
        token = self.read("federation", "invite", job_id, "--name", name, "--approve")["token"]
        home = str(self.home_of(name))
        self.run("site", "enrol", "--server", server, "--token", token, "--home", home, "--max-examples", "1000", "-y")

    def home_of(self, name: str) -> Path:
        """Return a site's own folder."""
        return self.folder / name

    def start(self, name: str, file: Path) -> None:
        """Start a site in the background; its output goes to a file."""
        command = [*WGCTL, "site", "run", "--home", str(self.home_of(name)), "--data", str(file), "--threads", "1", "--patience", "1h"]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.sites[name] = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def federate(self, job_id: str, files: dict[str, Path]) -> None:
        """Let the sites train, kill one of them and then the service, and bring both back."""
        heading("Train together; a site and then the service are killed on the way")
        for name, file in files.items():
            self.start(name, file)
        victim = list(files)[1]
        self.chapters.once("a site was killed", partial(self.kill_site, victim, files[victim]))
        self.chapters.once("the service was killed", self.kill_service)
        self.run("federation", "status", job_id, "--watch")
        for process in self.sites.values():
            process.wait(timeout=300)

    def kill_site(self, name: str, file: Path) -> None:
        """Kill a site in the middle of the second round, and start it again."""
        number = min(2, self.rounds)
        self.wait_for(name, number)
        self.sites[name].send_signal(signal.SIGKILL)
        self.sites[name].wait()
        console.print(f"[yellow]{name} was killed in round {number}, and is started again[/yellow]")
        time.sleep(3)
        self.start(name, file)

    def kill_service(self) -> None:
        """Kill the service in the middle of the last round, and start it again."""
        self.wait_for(next(iter(self.sites)), self.rounds)
        os.kill(json.loads((self.folder / "home" / "service.json").read_text())["pid"], signal.SIGKILL)
        console.print(f"[yellow]the service was killed in round {self.rounds}, and is started again[/yellow]")
        time.sleep(3)
        self.run("up", "--detach")

    def has_begun(self, name: str, number: int) -> bool:
        """Return whether a site has begun to train in a round."""
        log = (self.folder / f"{name}.log").read_text(errors="replace")
        _, _, rest = log.partition(f"round {number}: training from")
        return "step 1/" in rest

    def wait_for(self, name: str, number: int) -> None:
        """Wait until a site trains in a round; a site that ends before is a failure."""
        while not self.has_begun(name, number):
            for other, process in self.sites.items():
                if process.poll() is not None:
                    console.print((self.folder / f"{other}.log").read_text(), markup=False)
                    raise SystemExit(f"{other} ended before {name} trained in round {number}; its log is above")
            time.sleep(0.2)

    def show_rounds(self, job_id: str) -> None:
        """Print who was in which round, and who missed it and why."""
        heading("Every round: who sent, who was left out and why, its version")
        self.run("federation", "rounds", job_id)
        self.run("federation", "show", job_id, "--round", str(self.rounds))

    def show_bytes(self, names: list[str]) -> None:
        """Print what each site sent and received, from its own journal."""
        heading("What went over each site's line")
        table = Table("site", "rounds", "sent", "received", "rows sent")
        for name in names:
            rounds = self.home_of(name) / "rounds"
            answered = [path.with_name("update.json") for path in rounds.glob("*/receipt.json")]
            sent = [int(json.loads(path.read_text())["size"]) for path in answered]
            received = sum(path.stat().st_size for path in rounds.glob("start-*"))
            table.add_row(name, str(len(sent)), f"{sum(sent) / 1e6:.2f} MB", f"{received / 1e6:.2f} MB", "0")
        console.print(table)

    def train_apart(self, files: dict[str, Path]) -> dict[str, str]:
        """Train on each part alone and on all of it, as many steps as each site has made; return every adapter by what it is."""
        heading(f"The {self.rounds * self.steps} steps of a site: each alone, and on all rows in one place")
        adapters = {"federated": ADAPTER}
        parts = {f"{name} alone": file for name, file in files.items()} | {"centralised": CENTRAL_FILE.with_name("train.jsonl")}
        for what, file in parts.items():
            adapters[what] = f"demo/{what.replace(' ', '-')}"
            self.chapters.once(what, partial(self.run, *self.job(file, adapters[what])))
        return adapters

    def job(self, file: Path, adapter: str) -> list[str]:
        """Return the command that trains one adapter on one file, as sites train; started again, it goes on with the same job."""
        name = adapter.rpartition("/")[2]
        changes = {
            "datasets.0.path": file,
            "base_model": self.model,
            "max_steps": self.rounds * self.steps,
            "lr_scheduler": "constant",
            "name": name,
            "output.adapter": adapter,
            "evaluation.exact_match": "false",
            "test_datasets": "[]",  # all adapters are measured together at the end
        }
        given = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
        return ["submit", str(CENTRAL_FILE), "--wait", "--idempotency-key", name, *given]

    def measure(self, adapters: dict[str, str]) -> list[tuple[str, float, float]]:
        """Download every adapter, and measure the base model and all of them on the same held-out rows."""
        heading("Measure them on held-out questions of all kinds")
        folders = {what: self.folder / "adapters" / adapter.rpartition("/")[2] for what, adapter in adapters.items()}
        for what, folder in folders.items():
            shutil.rmtree(folder, ignore_errors=True)
            self.read("adapters", "download", adapters[what], "-o", str(folder))
        figures = []
        for what, loss, share in measure(self.model, folders):
            console.print(f"{what}: loss {loss:.3f}, exact match {share:.1%}", highlight=False)
            figures.append((what, loss, share))
        return figures

    def show_figures(self, figures: list[tuple[str, float, float]]) -> None:
        """Print what each adapter has learnt, beside what it was trained for."""
        heading("Loss and exact answers on held-out questions of all kinds")
        alone = self.rounds * self.steps
        table = Table("trained", "steps", "loss", "exact match")
        for what, loss, share in figures:
            steps = {BASE: "0", "federated": f"{self.rounds} rounds of {self.steps} at each of {SITES} sites"}.get(what, str(alone))
            table.add_row(what, steps, f"{loss:.3f}", f"{share:.1%}")
        console.print(table)

    def close(self) -> None:
        """End everything that was started."""
        for process in self.sites.values():
            if process.poll() is None:
                process.terminate()
        subprocess.run([*WGCTL, "down"], env=self.environment, check=False, stdout=subprocess.DEVNULL)


def _first_question(file: Path) -> str:
    with file.open(encoding="utf-8") as lines:
        return str(json.loads(next(lines))["messages"][0]["content"]).rpartition(": ")[2]


def heading(text: str) -> None:
    """Print the title of a chapter."""
    console.print()
    console.rule(f"[bold]{text}[/bold]", align="left")


def environment_of(folder: Path) -> dict[str, str]:
    """Return what the commands of the demo see: a home of their own, and a pool that needs no Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WEGEFT_")}
    return {**kept, "WEGEFT_HOME": str(folder / "home"), "WEGEFT_POOL": "inline", "HF_HUB_OFFLINE": "1"}


def begin(given: argparse.Namespace) -> Demo:
    """Return a story that goes on where the last run of the same one was stopped, or from the beginning."""
    folder, model = given.folder.absolute(), given.model.absolute()
    if folder != FOLDER and not (folder / "chapters.json").exists() and folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} holds something else, which the demo would remove")
    if (folder / "home").exists():
        # A run that was killed outright has left its service behind.
        subprocess.run([*WGCTL, "down"], env=environment_of(folder), check=False, stdout=subprocess.DEVNULL)
    if given.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    chapters = Chapters(folder, {"model": str(model), "rounds": given.rounds, "steps": given.steps})
    if chapters.is_going_on:
        console.print("Going on where the last run was stopped; --fresh begins anew.")
    return Demo(folder=folder, model=model, rounds=given.rounds, steps=given.steps, chapters=chapters)


def main() -> int:
    """Tell the story; return the exit status of the step that failed, or 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL_FILE, help="base model: a .gguf file or a folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of each site in each round")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where it keeps everything")
    parser.add_argument("--fresh", action="store_true", help="begin anew, even where the last run was stopped in the middle")
    given = parser.parse_args()
    began = time.monotonic()
    if given.model == MODEL_FILE:
        fetch_model()
    demo = begin(given)
    try:
        demo.tell_story()
    except KeyboardInterrupt:
        console.print("\nStopped; the same command goes on from here.")
        return 130
    except subprocess.CalledProcessError as error:
        console.print(f"[red]The step above ended with exit status {error.returncode}.[/red]")
        return int(error.returncode)
    finally:
        demo.close()
    console.print(f"\nDone in {time.monotonic() - began:.0f} s. The sites' journals and logs are in {os.path.relpath(demo.folder)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
