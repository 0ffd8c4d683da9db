"""The page on the supervised not-MIWAE: its parts, and in full its claims."""

import pytest
import torch

from tests.pages import check_short_report

PAGE = "supnotmiwae"
pytestmark = pytest.mark.slow


def test_short_run_saves_a_report_and_figures(short_run):
    _, folder = short_run
    check_short_report(folder, PAGE, 6, {"imputations"})


def test_large_values_are_missing(short_run):
    """Observed values are standardized; those that were removed are larger."""
    names, _ = short_run
    for seed in (0, 1, 2):
        train, test = names["data"][seed]
        for part in (train, test):
            valid = torch.arange(names["NUM_STEPS"]) < part.lengths[:, None]
            assert not part.mask[~valid].any() and not part.hidden[~valid].any()
            assert torch.equal(part.mask | part.hidden, valid[..., None].expand_as(part.mask))
            assert float(part.x[part.hidden].mean() - part.x[part.mask].mean()) > 0.8
        assert abs(float(train.x[train.mask].mean())) < 0.3


def test_errors_are_those_of_removed_cells(short_run):
    names, _ = short_run
    test = names["data"][0][1]
    assert names["rmse"](torch.where(test.hidden, test.x + 2.0, 0.0), test) == pytest.approx(2.0)


@pytest.mark.page
def test_full_run_meets_its_claims_but_two(full_run):
    """The first two are near their bounds, which rounding on another machine may pass.

    Networks that see the mask are ahead of those that see imputed values.
    """
    claims = full_run.report.claims
    mean = [sum(claim.values.values()) / len(claim.values) for claim in claims]
    assert mean[0] < 0.7 and claims[0].measured < 0.8
    assert mean[1] < 0.75 and claims[1].measured < 0.78
    assert claims[2].holds and claims[3].holds
    assert all(claim.reason for claim in claims[4:]) and not claims[5].holds
    assert full_run.returncode == 1
