"""Monitoring of convergence against closed forms of normal rules.

A statistical comparison allows 3.5 standard errors: a false-alarm rate of 5e-4 each, for a new
seed.
"""

import math
import warnings

import pytest
import torch
from scipy.special import polygamma

from pyro_ext.inference.martingale.functionals import Mean, Quantile
from pyro_ext.inference.martingale.gaussian import NormalPredictive, PlugInNormal
from pyro_ext.inference.martingale.martingale_posterior import MartingalePosterior, plot_drift
from pyro_ext.inference.martingale.polya_urn import PolyaUrn

ALLOWED = 3.5


def posterior(rule, num_samples: int, horizon: float, functional=None, **options):
    options = {"seed": 0, "progress": False, **options}
    return MartingalePosterior(rule, functional or Mean(), num_samples, horizon, **options)


def data(size: int = 10) -> torch.Tensor:
    return torch.linspace(-1.0, 2.0, size)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("rule", "horizon", "exact"),
    [
        (NormalPredictive(), 5, 10 / 15),  # from the data on, by less than a doubling
        (NormalPredictive(), 30, 10 / 40),
        (NormalPredictive(), 490, 10 / 500),
        (PlugInNormal(), 190, float(polygamma(1, 201) / polygamma(1, 11))),
        (PolyaUrn(), 190, 10 / 200),
    ],
    ids=["flat_5", "flat_30", "flat_490", "plug_in", "urn"],
)
def test_remaining_fraction(rule, horizon, exact, float64):
    number = 8000
    run = posterior(rule, number, horizon, tolerance=1.0, batch_size=2000).run(data())
    share = float(run.diagnostics()["theta"]["remaining_fraction"])
    # Logarithms of the two variances have the variance 2 / number each; a positive covariance of
    # the two makes that of the ratio smaller. Urns have slightly heavier tails than normal
    # distributions.
    odds, exact_odds = share / (1 - share), exact / (1 - exact)
    assert abs(math.log(odds / exact_odds)) < ALLOWED * math.sqrt(4 / number)
    if horizon == 5:
        assert share == pytest.approx(exact)  # all of the variance, seen once, tells nothing new


@pytest.mark.statistical
def test_drift(float64):
    number = 5000
    run = posterior(NormalPredictive(), number, 990, num_checks=4, tolerance=1.0).run(data())
    drift = run.drift()
    assert drift.sizes.tolist() == [10, 37, 136, 500, 1000]
    sizes = drift.sizes.double()
    for found, variance in (
        (drift.from_data["theta"], 1 / 10 - 1 / sizes),
        (drift.to_end["theta"], 1 / sizes - 1 / 1000),
    ):
        exact = (2 / math.pi * variance).sqrt()
        error = (variance * (1 - 2 / math.pi) / number).sqrt()
        assert bool(((found - exact).abs() <= ALLOWED * error).all())


def test_a_short_horizon_is_told(float64):
    with pytest.warns(RuntimeWarning, match="horizon=90 is too short: about 1") as record:
        posterior(NormalPredictive(), 2000, 90, functional=Mean(), name="mean").run(data())
    message = str(record[0].message)
    assert "'mean' is missing, more than tolerance=0.05; about horizon=" in message
    assert record[0].filename == __file__
    advised = int(message.split("about horizon=")[1].split()[0])
    assert 150 <= advised <= 250  # 10 / 0.05 - 10 = 190
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior(NormalPredictive(), 2000, 300).run(data())
        posterior(NormalPredictive(), 2000, 90, tolerance=0.2).run(data())
        posterior(NormalPredictive(), 2000, 90, num_checks=1).run(data())
        posterior(NormalPredictive(), 1, 90).run(data())
        for seed in range(20):  # too few draws to be sure of anything
            posterior(NormalPredictive(), 5, 490, seed=seed).run(data())
        posterior(NormalPredictive(), 2000, math.inf).run(data())


def test_the_share_is_that_of_each_element(float64):
    values = torch.stack([data(), torch.zeros(10)], 1)
    run = posterior(PolyaUrn(), 500, 290).run(values)
    share = run.diagnostics()["theta"]["remaining_fraction"]
    assert 0.0 < float(share[0]) < 0.05
    assert math.isnan(float(share[1]))  # an element without variance asks for nothing


def test_plot():
    run = posterior(PolyaUrn(), 100, 1000, functional=both, tolerance=1.0).run(data())
    ax = plot_drift(run)
    assert len(ax.lines) == 4
    assert ax.lines[0].get_xdata().tolist() == run.drift().sizes.tolist()
    with pytest.raises(RuntimeError, match="no checks of convergence"):
        plot_drift(posterior(PolyaUrn(), 10, 1000, num_checks=1).run(data()))


def both(population) -> dict[str, torch.Tensor]:
    return {"mean": population.mean, "median": Quantile(0.5)(population)}
