"""The prior of scaling curves: its parts, and the model against the fast sampler."""

import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

from pyro_ext.models.scaling_laws import (
    FAMILIES,
    prior,
    sample_scaling_curves,
    scaling_curve_prior,
    scaling_grid,
)

X = torch.linspace(0.01, 1.0, 40)


@pytest.fixture
def quiet(monkeypatch):
    """Without noise, so that hardly any curve is rejected."""
    monkeypatch.setattr(prior, "_NOISE_LOC", -40.0)


def test_the_law_with_an_inflection_solves_its_equation():
    x = X.double()
    for alpha, scale, exponent in ((0.3, 0.4, 0.5), (1.0, 0.37, 1.0), (4.0, 2.0, 2.0)):
        w = prior.inflected_law(x, *torch.tensor([alpha, scale, exponent]).double())
        f = scale * x**-exponent
        torch.testing.assert_close(w, f * (1 - w) ** alpha, rtol=1e-4, atol=1e-6)
        if alpha == 1.0:
            torch.testing.assert_close(w, f / (1 + f), rtol=1e-6, atol=0)


def test_curves_begin_and_end_where_they_are_told():
    y = torch.rand(5, 40)
    first, last = torch.rand(2, 5, 1)
    stretched = prior.between(y, first, last)
    assert torch.equal(stretched[:, :1], first) and torch.equal(stretched[:, -1:], last)
    again = prior.between(stretched, first, last)
    torch.testing.assert_close(again, stretched, rtol=1e-4, atol=1e-4)


@pytest.mark.statistical
def test_curves_without_noise(quiet):
    """Means of 3,000 draws, each bound is five standard errors: it fails for one seed in 10^6."""
    y = sample_scaling_curves(X.expand(3_000, 40), "down", num_context=10, seed=0)
    assert float(y.diff(dim=-1).max()) <= 1e-6
    assert float(y[:, 0].mean()) == pytest.approx(0.7, abs=5 * 0.289 / 3_000**0.5)
    assert float(y[:, -1].mean()) == pytest.approx(0.35, abs=5 * 0.26 / 3_000**0.5)


@pytest.mark.statistical
def test_noise_is_a_standard_deviation():
    """Its logarithm is normal, mean -4, deviation 1, on curves too high to be drawn again."""
    x = torch.linspace(0.9, 1.0, 60).expand(6_000, 60)
    y = sample_scaling_curves(x, "down", num_context=10, seed=0)
    spread = (y[:, 2:] - 2 * y[:, 1:-1] + y[:, :-2]).std(-1) / 6**0.5
    noise = spread[y.mean(-1) > 0.5].log()
    bound = 5.0 / len(noise) ** 0.5  # one seed in 10^6, but for the noise of the estimates
    assert float(noise.mean()) == pytest.approx(-4.0, abs=bound)
    assert float(noise.std()) == pytest.approx(1.0, abs=bound)


def test_breaks_come_before_the_cut():
    x = scaling_grid(400, 50, seed=0)
    lengths = 0.2 + 0.2 * torch.rand(400, 2, generator=torch.Generator().manual_seed(0))
    no, yes = torch.zeros(400, dtype=torch.bool), torch.ones(400, dtype=torch.bool)
    for num_context in (5, 25, 45):
        two = prior.break_points(x, lengths, num_context, yes, no)
        one = prior.break_points(x, lengths, num_context, no, no)
        rising = prior.break_points(x, lengths, num_context, yes, yes)
        assert bool((two[:, 0] <= two[:, 1]).all()) and int(two[:, 1].max()) <= num_context
        assert int(one[:, 0].max()) <= num_context and bool((one[:, 1] == 50).all())
        assert int(rising[:, 0].max()) <= num_context
        assert min(int(part.min()) for part in (two, one, rising)) >= 1
    assert bool((rising[:, 1] > 0).all())


def test_pieces_go_on_where_the_last_one_ended(quiet):
    """A jump between two points is no larger than the steepest of the three laws makes it."""
    x = torch.linspace(0.01, 1.0, 400).expand(200, 400).double()
    y = sample_scaling_curves(x, "down-down", num_context=200, seed=1)
    steps = y.diff(dim=-1)[:, 20:]
    assert float(steps.max()) <= 1e-9 and float(steps.min()) > -0.02


def test_a_rise(quiet):
    """It ends level only if drawn out over its own length."""
    x = torch.linspace(0.01, 1.0, 300).expand(200, 300).double()
    shares = {}
    for full in (False, True):
        y = sample_scaling_curves(x, "down-up-down", num_context=250, full_rise=full, seed=2)
        assert bool((y <= y[:, :1]).all()) and bool((y >= 0).all())
        shares[full] = float((y.diff(dim=-1) > 1e-7).any(-1).double().mean())
    assert min(shares.values()) > 0.95
    ends, rise = torch.tensor([[100, 200]]), torch.tensor([[2.0, 1.0, 0.5]]).double()
    for full in (False, True):
        risen = prior._rise(x[:1], ends, rise, full)
        length = x[0, 199] - x[0, 99]
        place = length / (length if full else x[0, 199])
        exact = 0.5 * length * stats.beta.cdf(float(place), 2.0, 2.0)
        assert float(risen[0, 199] - risen[0, 99]) == pytest.approx(float(exact))


@pytest.mark.statistical
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_and_the_sampler_have_one_distribution(family):
    """Seven features of 150 curves against 20,000 by Kolmogorov-Smirnov: one seed in 1,000."""
    num_context = 20
    torch.manual_seed(0)
    slow = torch.stack(
        [scaling_curve_prior(X, family, num_context=num_context) for _ in range(150)]
    )
    fast = sample_scaling_curves(X.expand(20_000, 40), family, num_context=num_context, seed=1)

    def features(y):
        change = y.diff(dim=-1)
        return [
            y[:, 0],
            y[:, 5],
            y[:, 20],
            y[:, -1],
            change.std(-1),
            change.max(-1).values,
            y[:, 20] - y[:, 30],
        ]

    for one, other in zip(features(slow), features(fast), strict=True):
        assert stats.ks_2samp(one.numpy(), other.numpy()).pvalue > 1e-3 / 7


@pytest.mark.statistical
def test_families_and_sites():
    """Frequencies of 20,000 families would be off for one seed in 10^6."""
    pyro.set_rng_seed(0)
    trace = poutine.trace(scaling_curve_prior).get_trace(X, num_context=20)
    again = poutine.replay(scaling_curve_prior, trace=trace)(X, num_context=20)
    assert again.shape == (40,)
    assert {"family", "noise", "y", "curve", "params_0"} <= set(trace.nodes)
    names = set()
    for _ in range(60):
        nodes = poutine.trace(scaling_curve_prior).get_trace(X, num_context=20).nodes
        names |= set(nodes)
        kept = nodes["curve"]["value"] + 0 * nodes["noise"]["value"]
        assert bool((nodes["y"]["value"] >= 0).all()) and kept.shape == (40,)
    assert {"breaks", "two_breaks", "rise", "params_2"} <= names


def test_types_and_order():
    x = scaling_grid(8, 30, spacing="mixed", seed=0).double()
    assert sample_scaling_curves(x, num_context=10, seed=3).dtype == torch.float64
    assert bool((x.diff(dim=-1) >= 0).all()) and float(x[:, 0].max()) == pytest.approx(0.01)


@pytest.mark.parametrize("handler", [poutine.condition, poutine.do])
def test_what_comes_after_a_given_site_follows_from_it(handler):
    """Noise that is given is that of the values, and a first value is that of the curve."""
    pyro.set_rng_seed(0)
    values = {"first_0": torch.tensor(1.1), "noise": torch.tensor(1e-6)}
    model = handler(scaling_curve_prior, data=values)
    curves = torch.stack([model(X, "down", num_context=20) for _ in range(5)])
    torch.testing.assert_close(curves[:, 0], torch.full((5,), 1.1), atol=1e-4, rtol=0)
    for family in FAMILIES:  # a curve that is given is allowed to be what none of the prior is
        trace = poutine.trace(handler(scaling_curve_prior, data={"curve": X - 5})).get_trace(
            X, family, num_context=20
        )
        y, noise = trace.nodes["_RETURN"]["value"], trace.nodes["noise"]["value"]
        assert bool(((y - (X - 5)).abs() < 10 * noise).all())


def test_a_given_noise_changes_no_earlier_site():
    """And the values are still those of an allowed curve."""
    for seed in range(5):
        nodes = []
        for data in ({}, {"noise": torch.tensor(0.05)}):
            pyro.set_rng_seed(seed)
            model = poutine.condition(scaling_curve_prior, data=data)
            nodes.append(poutine.trace(model).get_trace(X, "down-up-down", num_context=20).nodes)
        assert torch.equal(nodes[0]["curve"]["value"], nodes[1]["curve"]["value"])
        y = nodes[1]["y"]["value"]
        assert not torch.equal(nodes[0]["y"]["value"], y) and bool((y >= 0).all())
        assert bool((y <= y[0]).all())
