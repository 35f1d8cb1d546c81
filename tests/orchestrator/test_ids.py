"""Names of jobs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ids import check_job_id, make_job_id
from tests.orchestrator.samples import NOW, at
from wegeft.contracts.errors import JobNotFound


@given(st.binary(min_size=10, max_size=10))
def test_an_id_is_one(entropy: bytes) -> None:
    """Whatever the entropy, the name passes its own check and differs from one of other entropy."""
    job_id = make_job_id(NOW, entropy)
    assert check_job_id(job_id) == job_id
    assert len(job_id) == 30
    assert make_job_id(NOW, bytes(b ^ 1 for b in entropy)) != job_id


@given(st.integers(0, 10**9), st.integers(1, 10**9), st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_ids_sort_by_time(start: int, later: int, first: bytes, second: bytes) -> None:
    """A later job has a greater name, whatever the entropy."""
    assert make_job_id(at(start), first) < make_job_id(at(start + later), second)


def test_entropy_of_another_length_is_refused() -> None:
    """Less of it would make two jobs meet."""
    with pytest.raises(ValueError, match="needs 10 bytes of entropy, got 9"):
        make_job_id(NOW, b"123456789")


@pytest.mark.parametrize(
    "text", ["", "job-", "job-" + "0" * 25, "job-" + "0" * 27, "job-" + "O" * 26, "job-" + "0" * 26 + "\n", "../" * 10, "\0"]
)
def test_what_is_no_id_is_no_job(text: str) -> None:
    """A malformed name is answered as any that is not there."""
    with pytest.raises(JobNotFound):
        check_job_id(text)
