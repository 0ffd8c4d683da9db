"""All over the parameters' range results are finite numbers of the right sign and order."""

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pyro_ext.random_measures import (
    BetaPrimeProcess,
    GeneralizedBFRYProcess,
    GeneralizedGammaProcess,
    ParetoProcess,
    PitmanYor,
    StableBetaProcess,
)

pytestmark = pytest.mark.usefixtures("float64")

# One fixture sets the type of all examples.
settings.register_profile(
    "measures",
    settings.get_profile("fixed"),
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SETTINGS = settings(settings.get_profile("measures"))


def log_uniform(low: float, high: float):
    return st.floats(low, high).map(lambda point: 10.0**point)


MASS = log_uniform(-3.0, 3.0)
DISCOUNT = st.one_of(st.just(0.0), st.floats(1e-12, 0.97), log_uniform(-12.0, -1.0))
TILT = st.one_of(st.just(0.0), log_uniform(-6.0, 6.0))
GAP = log_uniform(-1.5, 1.0)  # of the tail index from the discount


@st.composite
def gamma(draw):
    discount = draw(st.one_of(DISCOUNT, st.floats(-3.0, 0.0)))
    tilt = draw(TILT)
    return GeneralizedGammaProcess(draw(MASS), discount, tilt if discount > 1e-3 else tilt + 1e-3)


@st.composite
def stable_beta(draw):
    discount = draw(DISCOUNT)
    concentration = draw(GAP) - discount
    return StableBetaProcess(
        draw(MASS), discount, concentration, tilt=draw(TILT), scale=draw(log_uniform(-4.0, 4.0))
    )


@st.composite
def mixed(draw, make):
    discount = draw(DISCOUNT)
    return make(
        draw(MASS), discount, discount + draw(GAP), draw(log_uniform(-4.0, 4.0)), tilt=draw(TILT)
    )


@st.composite
def pareto(draw):
    return ParetoProcess(
        draw(MASS), draw(log_uniform(-4.0, 4.0)), draw(GAP), tilt=draw(log_uniform(-6.0, 2.0))
    )


@st.composite
def sums(draw):
    return draw(gamma()) + draw(mixed(GeneralizedBFRYProcess))


INFINITE = st.one_of(stable_beta(), mixed(BetaPrimeProcess), mixed(GeneralizedBFRYProcess), sums())
MEASURES = st.one_of(gamma(), pareto(), INFINITE)
PLACES = torch.logspace(-9, 9, 10, dtype=torch.float64)


@SETTINGS
@given(measure=MEASURES)
def test_functions(measure):
    inside = PLACES[measure.support.check(PLACES)]
    assert measure.log_levy_density(inside).isfinite().all()
    exponent = measure.laplace_exponent(PLACES)
    assert (exponent >= 0).all() and exponent.isfinite().all()
    # It rises, and falls when divided by its argument.
    assert (exponent.diff() >= -1e-12 * exponent[1:]).all()
    assert ((exponent / PLACES).diff() <= 1e-12 * (exponent / PLACES)[1:]).all()
    tail = measure.log_tail(PLACES)
    assert not tail.isnan().any() and (tail < torch.inf).all()
    assert (tail.exp().diff() <= 1e-12 * tail.exp()[:-1]).all()
    # Of moments, the logarithms are concave in logarithms of the tilt, and convex in the order.
    orders = torch.tensor([1.0, 2.0, 3.0, 30.0, 31.0, 32.0])
    moments = measure.log_kappa(orders, PLACES[:, None])
    assert moments.isfinite().all()
    bend = moments.unflatten(-1, (2, 3)).diff(dim=-1).diff(dim=-1)
    assert (bend >= -1e-9 * (1.0 + moments.abs().amax())).all()
    assert not measure.mean.isnan() and measure.mean > 0 and measure.variance > 0


@SETTINGS
@given(measure=MEASURES, rescale=log_uniform(-3.0, 3.0))
def test_scales(measure, rescale):
    other = measure.rescale(rescale)
    first, second = measure.log_kappa(2.0, rescale * PLACES), other.log_kappa(2.0, PLACES)
    shift = 2.0 * torch.tensor(rescale).log()
    torch.testing.assert_close(first + shift, second, rtol=1e-8, atol=1e-8)


@SETTINGS
@given(measure=st.one_of(gamma(), INFINITE), seed=st.integers(0, 1000))
def test_series(measure, seed):
    weights, times, lost = measure.series(3, seed=seed)
    assert weights.isfinite().all() and (weights >= 0).all()
    assert not times.isnan().any() and (times[1:] >= times[:-1]).all() and lost >= 0


@pytest.mark.slow
@SETTINGS
@given(
    measure=st.one_of(stable_beta(), mixed(BetaPrimeProcess), mixed(GeneralizedBFRYProcess)),
    number=st.integers(1, 10_000),
)
def test_finite_approximations(measure, number):
    fn = measure.finite(number)
    draws = fn.sample((5,))
    assert draws.isfinite().all() and (draws > 0).all()
    # A draw may round to the largest size, where the density has another limit.
    inside = draws < getattr(measure.support, "upper_bound", torch.inf)
    assert fn.log_prob(draws[inside]).isfinite().all()


@settings(SETTINGS, max_examples=3)
@given(measure=INFINITE)
def test_partitions(measure):
    # Of a measure that is next to nothing the auxiliary variable lies beyond double precision.
    assume(float(measure.laplace_exponent(torch.tensor(1e300))) > 20.0)
    fn = measure.normalize()
    values = torch.stack([fn.log_eppf(counts) for counts in ([3], [2, 1], [1, 1, 1])])
    assert values.isfinite().all()
    whole = (values + torch.tensor([1.0, 3.0, 1.0]).log()).logsumexp(0)
    assert whole.abs() < 1e-7


@SETTINGS
@given(
    discount=DISCOUNT,
    excess=log_uniform(-6.0, 4.0),
    counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=6).filter(sum),
)
def test_pitman_yor(discount, excess, counts):
    fn = PitmanYor(discount, excess - discount)
    assert fn.log_eppf(counts).isfinite() and fn.log_joint(counts, 0.3).isfinite()
    shares = fn.predictive(counts)
    assert (shares >= 0).all() and abs(shares.sum() - 1.0) < 1e-12


@pytest.mark.parametrize("concentration", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("discount", [0.0, 1e-320, 1e-100, 1e-14, 1e-9, 1e-5, 1e-3, 0.5])
def test_pitman_yor_with_small_discounts(discount, concentration):
    """The product of predictive probabilities, term by term."""
    counts = [3, 1, 2, 5]
    fn = PitmanYor(torch.tensor(discount, requires_grad=True), concentration)
    exact = sum(math.log(concentration + i * discount) for i in range(1, len(counts)))
    exact += sum(math.log(j - discount) for count in counts for j in range(1, count))
    exact -= sum(math.log(concentration + i) for i in range(1, sum(counts)))
    found = fn.log_eppf(counts)
    assert abs(found.item() - exact) < 1e-11 * max(1.0, abs(exact))
    (slope,) = torch.autograd.grad(found, fn.discount)
    expected = sum(i / (concentration + i * discount) for i in range(1, len(counts)))
    expected -= sum(1.0 / (j - discount) for count in counts for j in range(1, count))
    assert abs(slope.item() - expected) < 1e-6 * abs(expected)
