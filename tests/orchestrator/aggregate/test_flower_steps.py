"""Whole rounds give what Flower's own strategies gave, run by flower_steps.py, on the same updates."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from orchestrator.aggregate import Contribution, FederationState, Plan, new_edit
from tests.orchestrator.aggregate.federations import put_together
from wegeft.algebra import from_rows
from wegeft.contracts.federation_rules import FactorMean, ServerOptimiser

FOUND = json.loads(Path(__file__).with_name("flower_steps.json").read_text(encoding="utf-8"))


def member(index: int, moved: dict[str, Any], examples: int) -> Contribution:
    tensors = {f"x.{part}": np.array(values) for part, values in moved.items()}
    return Contribution(site=f"s-{index}", examples=examples, load=lambda: tensors, rank=None)


@pytest.mark.parametrize("run", FOUND["runs"], ids=lambda run: "-".join([run["name"], *map(str, run["options"].values())]))
def test_rounds_go_where_flowers_go(run: dict[str, Any]) -> None:
    optimiser: ServerOptimiser = TypeAdapter(ServerOptimiser).validate_python({"name": run["name"].lower(), **run["options"]})
    start = {part: np.array(values) for part, values in run["start"].items()}
    state = FederationState(edits={"x": new_edit(from_rows(p=start["phi"].T, q=start["psi"], scale=1.0))})
    for number, expected in enumerate(run["rounds"], start=1):
        members = [member(index, *sent) for index, sent in enumerate(zip(expected["moved"], expected["examples"], strict=True))]
        plan = Plan(rule=FactorMean(align=False), server_optimizer=optimiser, round=number)
        state = put_together(plan, state, members).state
        pair = state.edits["x"].pair
        np.testing.assert_allclose(pair.p.T, expected["after"]["phi"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(pair.q, expected["after"]["psi"], rtol=0, atol=1e-6)
