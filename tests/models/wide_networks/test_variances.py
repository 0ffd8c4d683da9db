"""Variances of nodes against SciPy, and their limits against quadrature."""

import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats

from pyro_ext.models.wide_networks import (
    EqualJumps,
    bernoulli_variances,
    beta_variances,
    equal_variances,
    horseshoe_variances,
    inverse_gamma_variances,
    measure_variances,
    regularized_horseshoe_variances,
    scaled_variances,
)
from pyro_ext.potential import Potential
from pyro_ext.random_measures import (
    BetaPrimeProcess,
    GeneralizedBFRYProcess,
    GeneralizedGammaProcess,
)

pytestmark = pytest.mark.usefixtures("float64")

WIDTH = 10_000
LARGEST = {"beta": 1.0, "regularized horseshoe": 2.0}  # distributions with a bounded support


def all_laws():
    return {
        "inverse gamma": inverse_gamma_variances(3.0),
        "scaled": scaled_variances(dist.Gamma(2.0, 4.0)),
        "beta": beta_variances(2.0, 0.7),
        "horseshoe": horseshoe_variances(0.8),
        "regularized horseshoe": regularized_horseshoe_variances(0.8, 2.0),
        "generalized gamma": measure_variances(GeneralizedGammaProcess(1.5, 0.3, 2.0)),
        "gamma": measure_variances(GeneralizedGammaProcess(1.5, 0.0, 2.0)),
        "generalized BFRY": measure_variances(GeneralizedBFRYProcess(1.5, 0.2, 3.0, 1.2)),
        "beta prime": measure_variances(BetaPrimeProcess(1.5, 0.2, 3.0)),
        "with drift": measure_variances(GeneralizedGammaProcess(1.5, 0.3, 2.0), drift=0.6),
    }


NAMES = list(all_laws())


def nodes_and_weights(name, width):
    """Points with weights that integrate the density over logarithms or logits."""
    point = torch.linspace(-250.0, 60.0 if name not in LARGEST else 250.0, 20_001)
    step = point[1] - point[0]
    if name in LARGEST:
        # The logit takes the end of the support away; its complement keeps digits there.
        value = LARGEST[name] * point.sigmoid()
        slope = LARGEST[name] * point.sigmoid() * (-point).sigmoid()
        inside = (value > 1e-100) & (value < LARGEST[name])
    else:
        low = 0.6 / width if name == "with drift" else 0.0
        value, slope = low + point.exp(), point.exp()
        inside = value > low
    return value[inside], (slope * step)[inside]


@pytest.mark.parametrize("name", NAMES)
def test_the_sum_becomes_the_infinitely_divisible_variable(name):
    r"""With :math:`p \int (1 - e^{-t x}) f_p(x) dx` for the exponent, at a large width."""
    variances = all_laws()[name]
    value, weight = nodes_and_weights(name, WIDTH)
    mass = variances.distribution(WIDTH).log_prob(value).exp() * weight
    for t in (0.1, 1.0, 10.0):
        exponent = -WIDTH * torch.log1p((torch.expm1(-t * value) * mass).sum())
        expected = variances.laplace_exponent(torch.tensor(t))
        torch.testing.assert_close(exponent, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_many_small_variances_weigh_what_they_do_in_the_limit(name):
    variances = all_laws()[name]
    value, weight = nodes_and_weights(name, WIDTH)
    mass = WIDTH * variances.distribution(WIDTH).log_prob(value).exp() * weight
    for level in (0.1, 0.5):
        below = (value * mass)[value <= level].sum()
        torch.testing.assert_close(
            below, variances.mass_below(torch.tensor(level)), rtol=0.04, atol=0
        )
        above = mass[value > level].sum()
        torch.testing.assert_close(above, variances.tail(torch.tensor(level)), rtol=0.03, atol=2e-3)


def test_horseshoe_and_its_bounded_form_are_images_of_a_cauchy_variable():
    x = torch.tensor([1e-4, 0.3, 1.9, 50.0])
    width, scale, slab = 7, 0.8, 2.0
    # The density of (s C / p)^2 by that of the half-Cauchy C.
    root = x.sqrt() * width / scale
    density = 2.0 / math.pi / (1.0 + root**2) * width / scale / (2.0 * x.sqrt())
    torch.testing.assert_close(
        horseshoe_variances(scale).distribution(width).log_prob(x).exp(), density
    )
    bounded = x / (1.0 + x / slab)
    slope = 1.0 / (1.0 + x / slab) ** 2
    fn = regularized_horseshoe_variances(scale, slab).distribution(width)
    torch.testing.assert_close(fn.log_prob(bounded).exp(), density / slope)


def test_beta_and_inverse_gamma_are_those_of_scipy():
    x = torch.tensor([0.01, 0.2, 0.9])
    ours = beta_variances(2.0, 0.7).distribution(5).log_prob(x).numpy()
    assert ours == pytest.approx(stats.beta(2.0 * 0.7 / 5, 0.7).logpdf(x.numpy()))
    ours = inverse_gamma_variances(3.0).distribution(5).log_prob(x).numpy()
    assert ours == pytest.approx(stats.invgamma(3.0, scale=2.0 / 5).logpdf(x.numpy()))


def test_limits_of_the_spec():
    four = torch.tensor(4.0)
    assert float(horseshoe_variances().tail(four)) == pytest.approx(0.5)
    beta = beta_variances()
    assert (float(beta.mean), float(beta.variance)) == pytest.approx((1.0, 2 / 3))
    tail = integrate.quad(lambda x: 0.5 / x / math.sqrt(1.0 - x), 0.2, 1.0)[0]
    assert float(beta.tail(torch.tensor(0.2))) == pytest.approx(tail)
    below = integrate.quad(lambda x: 0.5 / math.sqrt(1.0 - x), 0.0, 0.2)[0]
    assert float(beta.mass_below(torch.tensor(0.2))) == pytest.approx(below)
    # Beyond the largest jump all mass is below.
    assert float(beta.mass_below(torch.tensor(3.0))) == pytest.approx(1.0)


def test_laws_without_jumps():
    for variances in (equal_variances(), inverse_gamma_variances()):
        t = torch.tensor([0.0, 0.5, 2.0])
        assert variances.laplace_exponent(t).tolist() == t.tolist()
        assert variances.tail(t).tolist() == [0.0] * 3 and variances.variance == 0
        assert variances.mass_below(t).tolist() == [1.0] * 3
        jumps, drift = variances.sample_jumps(4, 10)
        assert jumps.shape == (4, 0) and drift.tolist() == [1.0] * 4
    assert equal_variances().distribution(8).sample((3,)).tolist() == [1 / 8] * 3


def test_bernoulli_nodes_become_a_poisson_number():
    variances = bernoulli_variances(1.5)
    t = torch.tensor(0.7)
    probability = variances.distribution(WIDTH).probs
    finite = -WIDTH * torch.log1p(probability * torch.expm1(-t))
    torch.testing.assert_close(finite, variances.laplace_exponent(t), rtol=1e-3, atol=0)
    assert variances.tail(torch.tensor([0.5, 1.0])).tolist() == [1.5, 0.0]
    assert variances.mass_below(torch.tensor([0.5, 1.0])).tolist() == [0.0, 1.5]
    assert (float(variances.mean), float(variances.variance)) == (1.5, 1.5)


@pytest.mark.statistical
def test_equal_jumps_come_in_a_poisson_number():
    """Frequencies of 20,000 draws within 4.5 standard errors: less than 1 seed in 10,000 fails."""
    weights, arrivals, lost = EqualJumps(1.5, 0.5).series(12, seed=3, sample_shape=(20_000,))
    number = (weights > 0).sum(-1)
    for k in range(5):
        probability = stats.poisson(1.5).pmf(k)
        error = math.sqrt(probability * (1 - probability) / 20_000)
        assert float((number == k).double().mean()) == pytest.approx(probability, abs=4.5 * error)
    assert set(weights.unique().tolist()) == {0.0, 0.5}
    torch.testing.assert_close(lost, 0.5 * (1.5 - arrivals[:, -1]).clamp(min=0.0))
    # What a short series has not drawn is expected to come later.
    weights, _, lost = EqualJumps(1.5, 0.5).series(1, seed=3, sample_shape=(20_000,))
    total = weights.sum(-1) + lost
    assert float(total.mean()) == pytest.approx(0.75, abs=4.5 * float(total.std()) / 20_000**0.5)


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["beta", "gamma", "with drift"])
def test_jumps_and_the_rest_have_the_mean_of_the_sum(name):
    """Within 4.5 standard errors: less than 1 seed in 10,000 fails."""
    variances = all_laws()[name]
    for number in (1, 20):
        jumps, drift = variances.sample_jumps(2000, number, seed=5)
        total = jumps.sum(-1) + drift
        error = 4.5 * float(total.std()) / 2000**0.5
        assert jumps.shape == (2000, number)
        assert float(total.mean()) == pytest.approx(float(variances.mean), abs=error)
    again = variances.sample_jumps(2000, 20, seed=5)
    assert (again[0] == jumps).all() and (again[1] == drift).all()


def potential_of(fn):
    return Potential(lambda: pyro.sample("variance", fn))


@pytest.mark.parametrize(
    ("variances", "width", "mean"),
    [
        (beta_variances, 50, 1.0 / 1.02),
        (lambda: measure_variances(GeneralizedGammaProcess(1.0, 0.3, 1.0)), 400, 1.0),
        (regularized_horseshoe_variances, 400, 1.0),
    ],
    ids=["beta", "generalized gamma", "bounded"],
)
def test_posteriors_have_the_whole_law(variances, width, mean):
    """The mean of the sum, by quadrature in the coordinates in which samplers move."""
    point = torch.linspace(-700.0, 40.0, 3_001)
    potential = potential_of(variances().distribution(width))
    weights = (-potential({"variance": point})).softmax(0)
    found = width * (weights * potential.constrain({"variance": point})["variance"]).sum()
    assert float(found) == pytest.approx(mean, rel=0.01)


@pytest.mark.parametrize(
    ("variances", "width", "dtype", "share"),
    [
        (beta_variances, 50, torch.float32, 41),
        (beta_variances, 400, torch.float32, 90),
        (beta_variances, 400, torch.float64, 41),
        (lambda: measure_variances(GeneralizedGammaProcess(1.0, 0.0, 1.0)), 400, torch.float32, 78),
        (
            lambda: measure_variances(GeneralizedGammaProcess(1.0, 0.3, 1.0), drift=0.5),
            2000,
            torch.float32,
            4,
        ),
    ],
    ids=["beta", "wide beta", "wide beta in float64", "gamma", "drift"],
)
def test_laws_below_the_least_number_are_for_simulation(variances, width, dtype, share):
    torch.set_default_dtype(dtype)
    fn = variances().distribution(width)
    draws = fn.sample((500,))
    assert fn.log_prob(draws).isfinite().all() and fn.support.check(draws).all()
    if variances is beta_variances:
        least = torch.finfo(dtype).tiny
        assert stats.beta(0.5 / width, 0.5).cdf(least) == pytest.approx(share / 100, abs=0.006)
    with pytest.raises(ValueError, match=rf"variances must have at most 1% .* got {share}%;"):
        potential_of(fn)


@pytest.mark.parametrize("name", [*NAMES, "equal", "Bernoulli"])
def test_laws_can_be_sent_to_other_processes(name):
    others = {"equal": equal_variances(), "Bernoulli": bernoulli_variances()}
    variances = (all_laws() | others)[name]
    received = pickle.loads(pickle.dumps(variances))
    drawn = variances.distribution(20).sample((3,))
    fn = pickle.loads(pickle.dumps(received.distribution(20)))
    torch.testing.assert_close(fn.log_prob(drawn), variances.distribution(20).log_prob(drawn))


def test_supports_have_their_bounds():
    fn = all_laws()["with drift"].distribution(10)
    assert float(fn.support.lower_bound) == pytest.approx(0.06)
    assert (fn.sample((1000,)) > 0.06).all()
    fn = regularized_horseshoe_variances(100.0, 2.0).distribution(1)
    assert (float(fn.support.lower_bound), float(fn.support.upper_bound)) == (0.0, 2.0)
    assert fn.sample((1000,)).max() <= 2.0
    bounded = scaled_variances(dist.Beta(2.0, 3.0)).distribution(4).support
    assert float(bounded.upper_bound) == 0.25


def test_laws_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="the mean of base must be"):
        scaled_variances(dist.InverseGamma(0.5, 1.0))
    with pytest.raises(ValueError, match=r"measure must have no batch shape, got \(2,\)"):
        measure_variances(GeneralizedGammaProcess(torch.ones(2), 0.5, 1.0))
