"""Isotonic recalibration, and the calibration error of intervals."""

import pytest
import torch
from scipy.optimize import isotonic_regression
from torch.distributions import Normal

from pyro_ext.diagnostics import IsotonicRecalibrator
from pyro_ext.diagnostics.metrics import interval_calibration_error


def test_pairs_are_their_own_isotonic_regression():
    values = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    recalibrate = IsotonicRecalibrator(values)
    ordered = values.sort().values
    fractions = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    regression = torch.from_numpy(isotonic_regression(fractions.numpy()).x)
    torch.testing.assert_close(recalibrate(ordered), regression)
    assert recalibrate(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]
    torch.testing.assert_close(recalibrate.inverse(recalibrate(ordered)), ordered)


def test_overconfident_predictions_become_calibrated():
    generator = torch.Generator().manual_seed(0)
    held_out, new = 3.0 * torch.randn(2, 2000, generator=generator, dtype=torch.float64)
    cdf = Normal(torch.zeros((), dtype=torch.float64), 1.0).cdf
    before = interval_calibration_error(cdf(new))
    after = interval_calibration_error(IsotonicRecalibrator(cdf(held_out))(cdf(new)))
    assert before > 0.05
    assert after < 0.002


def test_calibrated_predictions_have_no_error():
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    assert interval_calibration_error(u) < 1e-6
    # All observations in the middle of their intervals: 19 levels, each of which holds all.
    levels = torch.arange(1, 20, dtype=torch.float64) / 20
    wanted = float((1 - levels).square().mean())
    assert interval_calibration_error(torch.full((5,), 0.5)) == pytest.approx(wanted)


def test_equal_values_share_their_place():
    recalibrate = IsotonicRecalibrator(torch.tensor([0.2, 0.2, 0.2, 0.8]))
    torch.testing.assert_close(
        recalibrate(torch.tensor([0.2, 0.8])), torch.tensor([0.375, 0.875], dtype=torch.float64)
    )


def test_values_that_are_rounded_to_the_ends_are_counted():
    values = torch.linspace(0.01, 0.99, 99)
    IsotonicRecalibrator(torch.cat([values, torch.tensor([1.0])]))
    with pytest.warns(RuntimeWarning, match="3 of 102 cdf_values are exactly 0 or 1"):
        IsotonicRecalibrator(torch.cat([values, torch.tensor([0.0, 1.0, 1.0])]))
