"""The guide against conjugate posteriors, as a guide among Pyro's, and what it refuses."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive, Trace_ELBO

from pyro_ext.inference import AutoAdjointSampler
from pyro_ext.inference.adjoint import ConstantNoise
from pyro_ext.testing.guides import check_guide
from tests.inference.models import assert_mean

COUNTS = torch.tensor([3.0, 5.0, 4.0])


def model(counts):
    """A gamma and a beta posterior, and a site that the data say nothing of."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    chance = pyro.sample("chance", dist.Beta(2.0, 3.0))
    pyro.sample("free", dist.Normal(torch.tensor([1.0, -100.0]), 3.0).to_event(1))
    with pyro.plate("data", len(counts)):
        pyro.sample("counts", dist.Poisson(rate), obs=counts)
    pyro.sample("successes", dist.Binomial(10, chance), obs=torch.tensor(3.0))


def made(**options):
    small = dict(hidden_features=(16,), num_draws=64, batch_size=32, num_time_steps=5)
    return AutoAdjointSampler(model, seed=0, **small | options)


def log_evidence():
    """Of the counts under a gamma prior, and of the successes under a beta prior."""
    gamma, counts = math.lgamma, COUNTS.tolist()
    poisson = gamma(14) - gamma(2) - 14 * math.log(4) - sum(gamma(x + 1) for x in counts)

    def log_beta(one, other):
        return gamma(one) + gamma(other) - gamma(one + other)

    return poisson + math.log(120) + log_beta(5, 10) - log_beta(2, 3)


EXACT = {"rate": (14 / 4, 14**0.5 / 4), "chance": (1 / 3, (50 / 225 / 16) ** 0.5)}


@pytest.mark.slow
@pytest.mark.statistical
def test_conjugate_posteriors():
    """Moments and evidence of 20,000 weighted draws, worth 19,000 and more.

    Within 4.5 standard errors: false-alarm rate 5e-5 for seven numbers. What the draws are without
    weights is not exact: within a tenth of a standard deviation.
    """
    guide = made(hidden_features=(64, 64), num_draws=512, batch_size=512, num_time_steps=40)
    guide.fit(COUNTS, num_steps=1500, progress=False)
    draws, log_weight = guide.sample(20_000, return_log_weight=True, seed=1)
    weight = log_weight.softmax(0)
    exact = EXACT | {"free": (torch.tensor([1.0, -100.0]), 3.0)}
    for name, (mean, deviation) in exact.items():
        values = draws[name]
        assert bool(((weight @ values - mean).abs() < 4.5 / 19_000**0.5 * deviation).all()), name
        assert bool(((values.mean(0) - mean).abs() < 0.1 * deviation).all()), name
    found = (weight @ (draws["rate"] - 3.5).square()).sqrt() / EXACT["rate"][1]
    assert abs(float(found) - 1.0) < 4.5 * (1.43 / 4 / 19_000 + 0.5 / 19_000) ** 0.5
    evidence = guide.evaluate(20_000, seed=1)
    assert evidence.effective_fraction > 0.95
    error = (1.0 / evidence.effective_fraction - 1.0) ** 0.5 / 20_000**0.5
    assert abs(evidence.log_normalizer - log_evidence()) < 4.5 * error
    assert log_evidence() - 0.05 < evidence.lower_bound < log_evidence()


@pytest.mark.statistical
def test_weights_without_training():
    """The evidence from the coordinates alone, within 4.5 standard errors: 7e-6."""
    guide = made().fit(COUNTS, num_steps=0, progress=False)
    _, log_weight = guide.sample(20_000, return_log_weight=True, seed=0)
    assert_mean((log_weight - log_evidence()).exp(), 1.0)


@pytest.mark.statistical
def test_the_bound_of_svi_is_that_of_the_weights():
    """Of 300 and 20,000 draws, within 4.5 standard errors: false-alarm rate 7e-6."""
    guide = made().fit(COUNTS, num_steps=100, progress=False)
    _, log_weight = guide.sample(20_000, return_log_weight=True, seed=0)
    torch.manual_seed(0)
    loss = Trace_ELBO(num_particles=300, vectorize_particles=True).loss(guide.model, guide, COUNTS)
    error = float(log_weight.std()) / 300**0.5
    assert abs(loss + float(log_weight.mean())) < 4.5 * error


@pytest.mark.slow
def test_it_is_a_guide():
    check_guide(lambda: made(num_draws=16), model, COUNTS)


def test_draws_by_site():
    guide = made()
    with pytest.raises(RuntimeError, match="the guide knows no data yet: call fit"):
        guide.sample(3)
    guide.fit(COUNTS, num_steps=3, progress=False)
    assert len(guide.losses) == 3 and guide.step() == guide.losses[-1]
    draws = guide.sample(7, seed=0)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        "rate": (7,),
        "chance": (7,),
        "free": (7, 2),
    }
    assert bool((draws["rate"] > 0).all()) and bool((draws["chance"] < 1).all())
    assert torch.equal(guide.sample(7, seed=0)["rate"], draws["rate"])
    predicted = Predictive(guide.model, guide=guide, num_samples=6, parallel=True)(COUNTS)
    assert len(predicted["rate"].flatten().unique()) == 6


def test_a_training_goes_on(tmp_path):
    whole = made().fit(COUNTS, num_steps=9, progress=False)
    made().fit(COUNTS, num_steps=4, checkpoint=tmp_path / "run", progress=False)
    again = made().fit(COUNTS, num_steps=9, checkpoint=tmp_path / "run", progress=False)
    assert again.fit(COUNTS.clone(), num_steps=9).fit(num_steps=9) is again
    with pytest.raises(ValueError, match="args must be those of the first call of the guide"):
        again.fit(COUNTS + 1.0, num_steps=10)
    assert again.losses == whole.losses
    assert torch.equal(again.sample(4, seed=0)["rate"], whole.sample(4, seed=0)["rate"])


def test_errors():
    def minibatches(counts):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(counts), subsample_size=2) as index:
            pyro.sample("counts", dist.Poisson(rate), obs=counts[index])

    with pytest.raises(ValueError, match=r"model must see all of its data, but.*\['data'\]"):
        AutoAdjointSampler(minibatches).fit(COUNTS, progress=False)
    with pytest.raises(ValueError, match="ema_decay must be None, since"):
        made(ema_decay=0.9)
    assert made(schedule=ConstantNoise(2.0)).schedule.sigma == 2.0
