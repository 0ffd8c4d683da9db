"""The page on bridge networks: its parts, and in full its claims."""

import pytest

pytest.importorskip("mlxtend")

PAGE = "bridge-network"
pytestmark = pytest.mark.slow


def test_costs(names):
    """Of heads and networks, by the sizes of their layers."""
    network, means = 784 * 100 + 100 * 100 + 100 * 10, names["means"]
    one, two = ((100 * kind * 64 + 64 * 10) / network for kind in (1, 2))
    assert means["one + 2 type I"]["cost"] == pytest.approx(1 + 2 * one)
    assert means["one + 1 type I"]["cost"] == pytest.approx(1 + one)
    assert means["DE-2 + 1 type II"]["cost"] == pytest.approx(2 + two)


def test_reference_ensembles_count_themselves(names):
    """Of all networks there is one ensemble, and of single ones the mean is one."""
    for row in names["results"].values():
        assert row["DE-5"]["DEE"] == pytest.approx(5.0)


@pytest.mark.page
@pytest.mark.statistical
def test_full_run_meets_its_claims_but_two_or_three(full_run):
    """Its draws are the same with each run of a processor, so it passes there always or never.

    Single networks are better at this scale, one of them for one seed; so may be a batch ensemble.
    """
    claims = full_run.report.claims
    failed = [claim for claim in claims if not claim.holds]
    assert len(claims) == 7 and all(claim.reason for claim in failed)
    words = ("batch ensemble of three", "distilled", "averaged")
    found = [word for word in words if any(word in claim.statement for claim in failed)]
    assert len(found) == len(failed) and found[-2:] == ["distilled", "averaged"]
    assert full_run.returncode == 1
