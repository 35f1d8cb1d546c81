import sys
from tests.hub import test_direct
from tests.hub.test_direct import *  # noqa
import pytest
@pytest.mark.parametrize("v", ["hf-0.36.2","hf-1.33.0"])
def test_old(direct, v):
    direct.hub.publish(weights=LONG)
    check_snapshot(direct, f"/tmp/venvs/{v}/bin/python")
