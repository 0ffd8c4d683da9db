"""The page on scaling laws: its parts, and in full its claims."""

import pytest
import torch

from pyro_ext.models.scaling_laws import ScalingLaw
from pyro_ext.tutorials.papers._nsl_curves import measured_curves, sizes, widths
from tests.models.scaling_laws.exact import exact_log_prob

pytest.importorskip("mlxtend")
pytest.importorskip("sklearn")

PAGE = "nsl-pfn"
pytestmark = pytest.mark.slow


def test_sizes():
    assert (sizes()[0], sizes()[-1], len(sizes())) == (30, 4_000, 14)
    assert (widths()[0], widths()[-1], len(widths())) == (10, 3_000, 14)


def test_measured_errors_are_those_of_test_images(names):
    for seed in names["SEEDS"]:
        learning, descent = (names["curves"][seed][kind] for kind in ("learning", "descent"))
        assert learning.shape == (2, 14) and descent.shape == (1, 14)
        for values in (learning, descent):
            torch.testing.assert_close(1_000 * values, (1_000 * values).round())
            assert bool((values > 0.02).all()) and bool((values < 0.9).all())
        assert float(descent[0, 8]) > float(descent[0, 5]) > float(descent[0, 13])


def test_scores(names):
    truth = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    found = names["scores"](2.0 * truth, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), truth)
    assert found == pytest.approx({"LL": 2.5, "RMSLE": 0.6931472})
    even = (torch.arange(1_000) + 0.5) / 1_000
    assert names["coverage"](even, 0.9) == pytest.approx(0.9)


@pytest.mark.page
def test_full_run_meets_its_claims_but_some(full_run):
    """Curves are measured, and draws are the same with each run: it passes always or never.

    The network is above M2 by least squares on average, by less than was asked for.
    """
    claims = full_run.report.claims
    failed = [number for number, claim in enumerate(claims) if not claim.holds]
    assert failed == [0, 4, 6] and all(claims[number].reason for number in failed)
    assert sum(claims[0].values.values()) / 3 > 0.05
    assert full_run.returncode == 1


@pytest.mark.page
def test_exact_predictions_of_the_prior_do_not_meet_the_first_claim(full_run, float64):
    """It asks for 0.3 above M2, which the prior itself falls short of on the first seed."""
    x, y = sizes().double(), measured_curves(0)["learning"].double()
    place = 0.01 + 0.99 * (x - x[0]) / (x[-1] - x[0])
    exact, num_effective = exact_log_prob(place, y, 8, num_curves=100_000)
    law = ScalingLaw("M2").fit(x[:8].expand(18, 8), y[:, :8])
    spread = (law.predict(x[:8]) - y[:, :8]).square().mean(-1, keepdim=True).sqrt()
    by_law = torch.distributions.Normal(law.predict(x[8:]), spread).log_prob(y[:, 8:])
    is_known = num_effective > 10
    assert int(is_known.sum()) > 9
    assert float((exact - by_law)[is_known].mean()) < 0.3
