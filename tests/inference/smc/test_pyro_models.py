"""Pyro models against the forward algorithm and the Kalman filter."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from torch.distributions import Normal

from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import MarkovSMC
from tests.inference.models import assert_mean

pytestmark = pytest.mark.usefixtures("float64")

INIT = [0.6, 0.4]
TRANS = [[0.9, 0.1], [0.3, 0.7]]
LOCS = [-1.0, 1.0]
Y = [0.3, 1.2, -0.7, 0.9, 1.4]


def hidden_markov(y):
    trans, locs = torch.tensor(TRANS), torch.tensor(LOCS)
    probs = torch.tensor(INIT)
    for t in pyro.markov(range(len(y))):
        state = pyro.sample(f"x_{t}", dist.Categorical(probs))
        pyro.sample(f"y_{t}", dist.Normal(locs[state], 1.0), obs=y[t])
        probs = trans[state]


def messages(y):
    """Filtered and future log densities of each state, by the forward and backward algorithms."""
    log_trans = torch.tensor(TRANS).log()
    log_like = Normal(torch.tensor(LOCS), 1.0).log_prob(y[:, None])
    forward, backward = [torch.tensor(INIT).log() + log_like[0]], [torch.zeros(2)]
    for t in range(1, len(y)):
        forward.append((forward[-1][:, None] + log_trans).logsumexp(0) + log_like[t])
        backward.append((log_trans + log_like[-t] + backward[-1]).logsumexp(-1))
    return torch.stack(forward), torch.stack(backward[::-1])


@pytest.mark.statistical
@pytest.mark.parametrize("ess_threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("with_guide", [False, True])
def test_hidden_markov_model(ess_threshold, with_guide):
    """Evidence and marginals of 100 runs within 4.5 standard errors; 36 numbers, rate 6e-4."""
    y = torch.tensor(Y)
    forward, backward = messages(y)

    def guide(y):
        probs = torch.tensor([0.3, 0.7])
        for t in pyro.markov(range(len(y))):
            state = pyro.sample(f"x_{t}", dist.Categorical(probs))
            probs = torch.tensor([[0.6, 0.4], [0.5, 0.5]])[state]

    estimates, masses = [], []
    for seed in range(100):
        smc = MarkovSMC(
            hidden_markov, guide if with_guide else None, 20, ess_threshold=ess_threshold, seed=seed
        ).run(y)
        weights = smc.log_weights.exp()
        estimates.append(smc.log_Z.exp())
        masses.append(torch.stack([(weights * smc.samples[f"x_{t}"]).mean() for t in range(5)]))
    found = torch.cat([torch.stack(estimates)[:, None], torch.stack(masses)], -1)
    joint = (forward + backward).exp()
    assert_mean(found, torch.cat([joint[:1].sum(-1), joint[:, 1]]))


def test_best_guide_and_twist_have_no_variance():
    y = torch.tensor(Y)
    forward, backward = messages(y)
    log_like = Normal(torch.tensor(LOCS), 1.0).log_prob(y[:, None])

    def guide(y):
        log_probs = torch.tensor(INIT).log()
        for t in pyro.markov(range(len(y))):
            logits = log_probs + log_like[t] + backward[t]
            state = pyro.sample(f"x_{t}", dist.Categorical(logits=logits))
            log_probs = torch.tensor(TRANS).log()[state]

    def twist(values):
        t = len(values) - 1
        return backward[t][values[f"x_{t}"]]

    for ess_threshold in (0.0, 1.0):
        smc = MarkovSMC(
            hidden_markov, guide, 7, ess_threshold=ess_threshold, twist=twist, seed=0
        ).run(y)
        log_evidence = forward[-1].logsumexp(-1)
        torch.testing.assert_close(smc.log_Z, log_evidence, atol=1e-12, rtol=0)
        torch.testing.assert_close(smc.log_weights, log_evidence.expand(7), atol=1e-12, rtol=0)
        assert float(smc.effective_sample_size) == pytest.approx(7.0)


@pytest.mark.statistical
def test_evidence_with_a_wrong_twist_and_without_data_between():
    """Of 200 runs within 4.5 standard errors: rate 1e-5 each.

    Twists that are no densities, of particles before they are resampled, would make the first six
    times as large; the second is that of a normal sum.
    """

    def twist(values):
        return 1.0 * list(values.values())[-1]

    def chain(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Normal(x, 1.0))
        w = pyro.sample("w", dist.Normal(z, 1.0))
        pyro.sample("y", dist.Normal(w, 1.0), obs=y)
        pyro.sample("last", dist.Normal(w, 1.0))

    y, one = torch.tensor(Y), torch.tensor(1.5)
    for model, data, options, log_evidence in (
        (
            hidden_markov,
            y,
            {"ess_threshold": 1.0, "twist": twist},
            messages(y)[0][-1].logsumexp(-1),
        ),
        (chain, one, {}, Normal(0.0, 2.0).log_prob(one)),
    ):
        runs = [MarkovSMC(model, None, 10, seed=n, **options).run(data) for n in range(200)]
        assert_mean(torch.stack([(run.log_Z - log_evidence).exp() for run in runs]), 1.0)


def linear(y):
    """What is carried over is computed from a site, and only right if it follows its particle."""
    carried = torch.tensor(0.0)
    for t in pyro.markov(range(len(y))):
        x = pyro.sample(f"x_{t}", dist.Normal(carried, 0.5))
        carried = 0.9 * x
        pyro.sample(f"y_{t}", dist.Normal(x, 0.3), obs=y[t])


def kalman(y):
    """Log evidence, and the filtered mean at the end."""
    mean, variance, total = 0.0, 0.0, 0.0
    for value in y.tolist():
        mean, variance = 0.9 * mean, 0.81 * variance + 0.25
        spread = variance + 0.09
        total -= 0.5 * ((value - mean) ** 2 / spread + math.log(2 * math.pi * spread))
        gain = variance / spread
        mean, variance = mean + gain * (value - mean), (1 - gain) * variance
    return total, mean


@pytest.mark.statistical
@pytest.mark.parametrize("with_guide", [False, True])
def test_linear_gaussian_model(with_guide):
    """Evidence and last mean of 100 runs within 4.5 standard errors: rate 3e-5."""
    y = torch.tensor([0.5, 0.9, 0.2, -0.4, -1.0, -0.6])

    def guide(y):
        carried = torch.tensor(0.0)
        for t in pyro.markov(range(len(y))):
            x = pyro.sample(f"x_{t}", dist.Normal(0.5 * carried + 0.5 * y[t], 0.5))
            carried = 0.9 * x

    log_evidence, mean = kalman(y)
    found = []
    for seed in range(100):
        smc = MarkovSMC(linear, guide if with_guide else None, 100, seed=seed).run(y)
        ratio = (smc.log_Z - log_evidence).exp()
        found.append([ratio, (smc.log_weights - log_evidence).exp() @ smc.samples["x_5"] / 100])
    assert_mean(torch.tensor(found), torch.tensor([1.0, mean]))


def test_one_particle_has_the_density_of_its_path():
    """Against Pyro's own trace, with plates, masks, scales and factors."""

    def model(y):
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        with pyro.plate("series", 3), poutine.scale(scale=2.0):
            x = pyro.sample("x", dist.Normal(0.0, scale))
            with poutine.mask(mask=torch.tensor([True, False, True])):
                pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        pyro.factor("energy", -scale.square().sum(-1))
        z = pyro.sample("z", dist.Normal(x.sum(-1, keepdim=True), 1.0))
        pyro.sample("w", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    y = torch.tensor([0.1, 0.2, 0.3])
    smc = MarkovSMC(model, num_particles=1, max_plate_nesting=1, seed=1).run(y)
    assert list(smc.samples) == ["scale", "x", "z"] and smc.samples["x"].shape == (1, 3)
    data = {name: value[0] for name, value in smc.samples.items()}
    trace = poutine.trace(pyro.condition(model, data)).get_trace(y)
    trace.compute_log_prob()
    expected = sum(trace.nodes[name]["log_prob"].sum() for name in ("y", "energy", "w"))
    torch.testing.assert_close(smc.log_Z, expected, atol=1e-10, rtol=0)


def test_draws_have_seeds_and_go_to_predictive():
    y = torch.tensor(Y)
    one, other = (MarkovSMC(linear, num_particles=30, seed=4).run(y) for _ in range(2))
    for name, value in one.samples.items():
        assert torch.equal(value, other.samples[name])
    draws = one.get_samples()
    assert all(value.shape == (30,) for value in draws.values())
    assert {float(value) for value in draws["x_2"]} <= set(one.samples["x_2"].tolist())
    predicted = Predictive(linear, draws, return_sites=["x_4", "y_4"])(y)
    assert torch.equal(predicted["x_4"].flatten(), draws["x_4"])


@pytest.mark.slow
def test_draws_go_to_arviz():
    y = torch.tensor(Y)
    smc = MarkovSMC(linear, num_particles=30, seed=4).run(y)
    smc.summary()
    assert to_arviz(smc, y, model=linear).posterior["x_3"].shape == (1, 30)


def test_handlers_outside_do_not_see_particles():
    with poutine.trace() as outer:
        MarkovSMC(linear, num_particles=3, seed=0).run(torch.tensor(Y))
    assert list(outer.trace.nodes) == []


def test_errors():
    y = torch.tensor(Y)

    def subsampled(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5, subsample_size=2) as index:
            pyro.sample("y", dist.Normal(x, 1.0), obs=y[index])

    def nothing(y):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y[0])

    def not_a_number(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("nan", x * math.nan)

    def deep(y):
        with pyro.plate("plate", 3, dim=-2):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x.sum(0), 1.0), obs=y[0])

    def other_site(y):
        pyro.sample("nonsense", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="model must not subsample its plates, got .* 'data'"):
        MarkovSMC(subsampled, max_plate_nesting=1).run(y)
    with pytest.raises(ValueError, match="model must have a latent site"):
        MarkovSMC(nothing).run(y)
    with pyro.validation_enabled(False):
        with pytest.raises(ValueError, match="model must have log densities that are not NaN"):
            MarkovSMC(not_a_number).run(y)
    with pytest.raises(ValueError, match="max_plate_nesting must be the number of batch dim"):
        MarkovSMC(deep).run(y)
    with pytest.raises(ValueError, match="guide must have sites of the model .* 'nonsense'"):
        MarkovSMC(linear, other_site).run(y)
    with pytest.raises(ValueError, match="twist must return a tensor of the shape .100,., got"):
        MarkovSMC(linear, twist=lambda values: 0.0).run(y)
    with pytest.raises(ValueError, match="twist must return numbers below infinity after 'x_0'"):
        MarkovSMC(linear, twist=lambda values: torch.full((100,), torch.nan)).run(y)
    with pytest.raises(RuntimeError, match="there are no draws yet"):
        MarkovSMC(linear).get_samples()


def test_guide_of_some_sites():
    """Sites that the guide lacks come from the model."""

    def guide(y):
        pyro.sample("x_2", dist.Normal(y[2], 0.5))

    y = torch.tensor(Y)
    smc = MarkovSMC(linear, guide, 4000, seed=0).run(y)
    assert float(smc.log_Z) == pytest.approx(kalman(y)[0], abs=0.1)


def test_what_has_no_weight_is_not_drawn():
    def model():
        x = pyro.sample("x", dist.Uniform(torch.tensor(0.0), 1.0))
        pyro.factor("forbidden", torch.where(x < 2.0, -math.inf, 0.0))

    smc = MarkovSMC(model, num_particles=5, seed=0).run()
    assert smc.log_Z == -math.inf
    with pytest.raises(ValueError, match="log_weights must have a particle with a positive weight"):
        smc.get_samples()
