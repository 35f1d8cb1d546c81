"""Scores of fixed updates by the present arithmetic: whoever changes what comes out gives it the next number, and its own line here."""

from dataclasses import replace

import numpy as np
import pytest

from orchestrator.aggregate import SCORE_ARITHMETIC, Plan
from orchestrator.federation_files import write_state
from tests.orchestrator.aggregate.federations import a_state, members_of, put_together
from wegeft.contracts.federation_rules import Bulyan, Defence, FLTrust, GeneratorExact, GeometricMedian, Krum, MultiKrum, NormClip

KNOWN = {
    2: [
        (0.1565265430184143, 0.017445716619544287, 0.3303758879957664, 0.08421075104904768),
        (0.18890954677505373, 0.07027702105315219, 0.4294577923426757, 0.17707453542220153),
        (0.23917767171880458, -0.05938426898136023, 0.5493988845918807, 0.17811806687021098),
        (0.4153862384877274, 0.06345635095789068, 0.8341588817333554, 0.5605966466585398),
    ]
}
"""Weight, agreement, influence and contribution of four members, by the arithmetic's number; bits differ between machines."""


def test_known_updates_have_the_known_scores() -> None:
    state = a_state(5)
    outcome = put_together(Plan(rule=GeneratorExact(), defence=GeometricMedian()), state, members_of(state, 4, 5))
    found = [(outcome.weights[site], one.agreement, one.influence, one.contribution) for site, one in sorted(outcome.scores.items())]
    np.testing.assert_allclose(found, KNOWN[SCORE_ARITHMETIC], rtol=1e-9)


@pytest.mark.parametrize(
    "defence",
    [NormClip(max_norm=1.0), Krum(malicious=1), MultiKrum(malicious=1), GeometricMedian(), FLTrust(root="s-00"), Bulyan(malicious=1)],
)
def test_weights_that_are_given_give_what_they_gave(defence: Defence) -> None:
    state = a_state(5)
    plan, members = Plan(rule=GeneratorExact(), defence=defence), members_of(state, 7, 5, drift=0.1)
    found = put_together(plan, state, members)
    again = put_together(plan, state, [replace(member, weight=found.weights[member.site]) for member in members])
    assert write_state(again.state) == write_state(found.state)
    assert (again.weights, again.scores, again.measures) == (found.weights, found.scores, found.measures)
