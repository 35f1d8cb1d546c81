"""The story that ``make demo-federation`` tells: three sites train one adapter, and neither a killed site nor a killed server stops them.

Every step is a command that you can run by hand; the demo prints it before it runs it.
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
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from examples.arithmetic.demo import MODEL_FILE, fetch_model
from examples.federation.split import FOLDER, split

ROOT = Path(__file__).resolve().parents[2]
JOB_FILE = Path(__file__).with_name("federated.yaml")
CENTRAL_FILE = ROOT / "examples" / "arithmetic" / "job.yaml"
HELD_OUT = ROOT / "examples" / "arithmetic" / "heldout.jsonl"
ADAPTER = "demo/arithmetic-federated"
WGCTL = (sys.executable, "-m", "cli.main")

os.environ["TQDM_DISABLE"] = "1"  # read when the libraries that load the model are imported
console = Console()


@dataclass
class Demo:
    """One run: where it keeps its files, and how long it trains."""

    folder: Path
    model: Path
    rounds: int
    steps: int
    sites: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What the commands see: a home of their own, and a pool that needs no Ray."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WEGEFT_")}
        return {**kept, "WEGEFT_HOME": str(self.folder / "home"), "WEGEFT_POOL": "inline", "HF_HUB_OFFLINE": "1"}

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
        size = ("-o", f"federation.rounds={self.rounds}", "-o", f"max_steps={self.steps}", "-o", f"base_model={self.model}")
        job_id = str(self.read("submit", str(JOB_FILE), *size)["id"])
        console.print(f"job {job_id}", highlight=False)
        self.enrol(job_id, files)
        self.federate(job_id, files)
        self.show_rounds(job_id)
        self.show_bytes(list(files))
        self.compare(files)

    def enrol(self, job_id: str, files: dict[str, Path]) -> None:
        """Invite each site, and let it take up its invitation with a key of its own."""
        heading("Invite the sites; each makes its own key, which never leaves it")
        server = json.loads((self.folder / "home" / "service.json").read_text())["server"]
        for name in files:
            token = self.read("federation", "invite", job_id, "--name", name, "--approve")["token"]
            self.run(
                "site", "enrol", "--server", server, "--token", token, "--home", str(self.home_of(name)), "--max-examples", "1000", "-y"
            )

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
        self.wait_for(lambda: self.has_begun(victim, 2), f"{victim} trains in round 2")
        self.sites[victim].send_signal(signal.SIGKILL)
        self.sites[victim].wait()
        console.print(f"[yellow]{victim} was killed in round 2, and is started again[/yellow]")
        time.sleep(3)
        self.start(victim, files[victim])
        if self.rounds > 2:
            self.wait_for(lambda: self.has_begun("site-a", 3), "site-a trains in round 3")
            os.kill(json.loads((self.folder / "home" / "service.json").read_text())["pid"], signal.SIGKILL)
            console.print("[yellow]the service was killed in round 3, and is started again[/yellow]")
            time.sleep(3)
            self.run("up", "--detach")
        self.run("federation", "status", job_id, "--watch")
        for process in self.sites.values():
            process.wait(timeout=300)

    def has_begun(self, name: str, number: int) -> bool:
        """Return whether a site has begun to train in a round."""
        log = (self.folder / f"{name}.log").read_text(errors="replace")
        _, _, rest = log.partition(f"round {number}: training from")
        return "step 1/" in rest

    def wait_for(self, is_so: Callable[[], bool], what: str) -> None:
        """Wait until something is so; a site that ended before is a failure."""
        while not is_so():
            for name, process in self.sites.items():
                if process.poll() not in (None, 0):
                    console.print((self.folder / f"{name}.log").read_text(), markup=False)
                    raise SystemExit(f"{name} ended while waiting until {what}; its log is above")
            time.sleep(0.2)

    def show_rounds(self, job_id: str) -> None:
        """Print who was in which round, and who missed it and why."""
        heading("Every round: who sent, who was left out and why, and the version that it published")
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

    def compare(self, files: dict[str, Path]) -> None:
        """Train each part alone and all of it together for as many steps, and measure all adapters on the same held-out rows."""
        heading(f"The same {self.rounds * self.steps} steps alone, and on all rows in one place")
        adapters = {"federated": ADAPTER}
        for name, file in [*files.items(), ("all rows", CENTRAL_FILE.with_name("train.jsonl"))]:
            adapter = f"demo/{name.replace(' ', '-')}"
            console.print(f"[dim]$ wgctl {shlex.join(self.job(file, adapter))}[/dim]", soft_wrap=True)
            self.read(*self.job(file, adapter))
            adapters["centralised" if name == "all rows" else f"{name} alone"] = adapter
        folders = {}
        for what, adapter in adapters.items():
            folders[what] = self.folder / "adapters" / adapter.rpartition("/")[2]
            self.read("adapters", "download", adapter, "-o", str(folders[what]))
        heading("Held-out questions of all kinds")
        table = Table("trained", "loss", "exact match")
        for what, loss, share in measure(self.model, folders):
            table.add_row(what, f"{loss:.3f}", f"{share:.0%}")
        console.print(table)

    def job(self, file: Path, adapter: str) -> list[str]:
        """Return the command that trains one adapter on one file."""
        changes = {
            "datasets.0.path": file,
            "base_model": self.model,
            "max_steps": self.rounds * self.steps,
            "name": adapter.rpartition("/")[2],
            "output.adapter": adapter,
            "evaluation.exact_match": "false",
            "test_datasets": "[]",  # all adapters are measured together at the end
        }
        return ["submit", str(CENTRAL_FILE), "--wait", *[part for key, value in changes.items() for part in ("-o", f"{key}={value}")]]

    def close(self) -> None:
        """End everything that was started."""
        for process in self.sites.values():
            if process.poll() is None:
                process.terminate()
        subprocess.run([*WGCTL, "down"], env=self.environment, check=False, stdout=subprocess.DEVNULL)


def measure(model: Path, folders: dict[str, Path]) -> Iterator[tuple[str, float, float]]:
    """Yield the held-out loss of the base model and of each adapter, and the share of questions that they answer exactly."""
    from peft import PeftModel

    import wegeft.method  # noqa: F401 - importing it teaches PEFT the method
    from wegeft.contracts.job import DatasetSpec, EvaluationSpec
    from workers.answer_loss import AnswerLoss
    from workers.base_model import ModelRequest, default_cache, load_base_model
    from workers.data import read_rows
    from workers.evaluate import Answerer, held_out_score
    from workers.layout import find_layout
    from workers.matching import Matcher
    from workers.rendering import Renderer
    from workers.tokenization import Rules, encode, questions_of

    warnings.simplefilter("ignore", FutureWarning)  # PEFT 0.21 still asks transformers under an old name
    base = load_base_model(ModelRequest(base_model=str(model), cache=default_cache()))
    rows, renderer = read_rows(HELD_OUT, DatasetSpec(path=str(HELD_OUT))), Renderer(base.tokenizer, None)
    questions = questions_of(rows, renderer, len(rows))
    examples = encode(rows, renderer, Rules(sequence_len=128, excess="error", learns_inputs=False), "held-out rows").examples

    def figures(answering: Any) -> tuple[float, float]:
        loss = AnswerLoss(answering)
        layout = find_layout(answering, loss, examples)
        answers = Answerer(answering, base.tokenizer, 8, layout.can_pack).answer(questions, lambda: None)
        share = Matcher(EvaluationSpec()).share(answers, [question.expected for question in questions])
        return held_out_score(answering, loss, layout, examples, lambda: None).loss, share

    yield "not at all (base model)", *figures(base.model)
    for what, folder in folders.items():
        adapted = PeftModel.from_pretrained(base.model, folder)
        yield what, *figures(adapted)
        adapted.unload()


def _first_question(file: Path) -> str:
    with file.open(encoding="utf-8") as lines:
        return str(json.loads(next(lines))["messages"][0]["content"]).rpartition(": ")[2]


def heading(text: str) -> None:
    """Print the title of a chapter."""
    console.print()
    console.rule(f"[bold]{text}[/bold]", align="left")


@contextmanager
def telling(demo: Demo) -> Iterator[None]:
    """Clear what an earlier run left, and end what this one starts."""
    shutil.rmtree(demo.folder, ignore_errors=True)
    try:
        yield
    finally:
        demo.close()


def main() -> int:
    """Tell the story; return the exit status of the step that failed, or 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL_FILE, help="base model: a .gguf file or a folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="of each site in each round")
    given = parser.parse_args()
    began = time.monotonic()
    if given.model == MODEL_FILE:
        fetch_model()
    demo = Demo(folder=FOLDER, model=given.model.absolute(), rounds=given.rounds, steps=given.steps)
    try:
        with telling(demo):
            demo.tell_story()
    except subprocess.CalledProcessError as error:
        console.print(f"[red]The step above ended with exit status {error.returncode}.[/red]")
        return int(error.returncode)
    console.print(f"\nDone in {time.monotonic() - began:.0f} s. The sites' journals and logs are in {os.path.relpath(demo.folder)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
