"""A job of images, from its file to an adapter that PEFT loads: prepared, sent, trained in this process, published and downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageClassification

from cli import jobs
from cli.narration import describe
from cli.preparation import prepare
from cli.submit import plan_of, send
from examples.digits.model import write_model
from orchestrator.admission import Policy
from orchestrator.scheduler import Scheduler, SchedulerThread
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.serving import Site, listening, now
from wegeft.client import Client
from wegeft.contracts.errors import InvalidData
from wegeft.contracts.training import Evaluation
from workers.pool import InlinePool

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """A service with one worker in this process."""
    engine = new_sqlite(tmp_path / "a.db")
    site = Site(engine, policy=Policy(allow_local_models=True))
    with listening(site.app()) as url, Client(url, site.tokens["write"]) as connected:
        thread = SchedulerThread(Scheduler(engine, InlinePool(), site.limits, url), now, tick_seconds=0.1)
        thread.start()
        try:
            yield connected
        finally:
            thread.close()
    engine.dispose()


def test_the_digits_become_a_version_that_peft_loads(client: Client, tmp_path: Path) -> None:
    """The example, cut short: it learns, says so everywhere, and its head travels with it."""
    model = write_model(tmp_path / "model")
    short = (f"base_model={model}", "max_steps=16", "eval_steps=8", "micro_batch_size=32", "resources.cpus=1")
    prepared = prepare((EXAMPLE / "job.yaml").read_text(), EXAMPLE, short)
    plan = plan_of(prepared)
    assert (plan.training_rows, plan.held_out_rows, plan.total_steps) == (1437, 360, 16)
    job = client.wait(client_job := send(client, prepared, "digits").id, 120)
    assert job.result is not None, job.error

    measured = [record.event for record in client.events(client_job).records if isinstance(record.event, Evaluation)]
    assert [event.step for event in measured] == [0, 8, 16, 16]
    assert measured[-1].metrics["accuracy"] > 0.3 > measured[0].metrics["accuracy"]
    assert f"accuracy {measured[-1].metrics['accuracy']:.1%}, macro f1" in describe(measured[-1])
    shown = jobs._measured(client, job)
    assert shown is not None
    assert f"accuracy {measured[-1].metrics['accuracy']:.1%}, macro f1" in shown
    assert shown.endswith(", at step 16")
    points = client.metric(client_job, "macro_f1")
    assert [point.step for point in points] == [0, 8, 16]
    version = client.download(job.result.ref, tmp_path / "adapter")
    assert version.metrics["macro_f1"] == points[-1].value
    assert version.metrics["accuracy_before"] == measured[0].metrics["accuracy"]

    fresh = AutoModelForImageClassification.from_pretrained(model, num_labels=10, ignore_mismatched_sizes=True)
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    assert loaded.peft_config["default"].modules_to_save == ["classifier"]
    with torch.no_grad():
        assert loaded(pixel_values=torch.zeros(2, 1, 8, 8)).logits.shape == (2, 10)


def test_a_label_that_was_not_named_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    """With its file in the archive."""
    names = "label_names=[" + ", ".join(f"'{digit}'" for digit in range(9)) + "]"
    with pytest.raises(InvalidData) as caught:
        prepare((EXAMPLE / "job.yaml").read_text(), EXAMPLE, (f"base_model={write_model(tmp_path)}", names))
    assert caught.value.problems[0].path.startswith("train.zip: 9/")
    assert caught.value.problems[0].message == "not one of label_names"
