"""The page on the supervised not-MIWAE: its parts, and in full its claims."""

import pytest
import torch

PAGE = "supnotmiwae"
pytestmark = pytest.mark.slow


def test_large_values_are_missing(names):
    """Observed values are standardized; those that were removed are larger."""
    for seed in (0, 1, 2):
        train, test = names["data"][seed]
        for part in (train, test):
            valid = torch.arange(names["NUM_STEPS"]) < part.lengths[:, None]
            assert not part.mask[~valid].any() and not part.hidden[~valid].any()
            assert torch.equal(part.mask | part.hidden, valid[..., None].expand_as(part.mask))
            assert float(part.x[part.hidden].mean() - part.x[part.mask].mean()) > 0.8
        assert abs(float(train.x[train.mask].mean())) < 0.3


def test_errors_are_those_of_removed_cells(names):
    test = names["data"][0][1]
    assert names["rmse"](torch.where(test.hidden, test.x + 2.0, 0.0), test) == pytest.approx(2.0)


@pytest.mark.page
def test_full_run_meets_its_claims_but_one(full_run):
    """After so many epochs the classifier relies on generated values without ObsDropout, too."""
    failed = [n for n, claim in enumerate(full_run.report.claims) if not claim.holds]
    assert failed == [3] and full_run.returncode == 1
