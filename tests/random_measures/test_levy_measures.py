"""Lévy densities, tails, Laplace exponents and moments against quadrature and closed forms."""

import math

import mpmath
import numpy as np
import pytest
import torch

from pyro_ext.random_measures import (
    BetaPrimeProcess,
    CompletelyRandomMeasure,
    GeneralizedBFRYProcess,
    GeneralizedGammaProcess,
    ParetoMixtureProcess,
    ParetoProcess,
    StableBetaProcess,
)
from tests.random_measures.references import (
    ALL,
    BETA_PRIME,
    GAMMA,
    GENERALIZED_BFRY,
    NOTED,
    STABLE_BETA,
    beta_prime,
    exponent_in_closed_form,
    gamma,
    generalized_bfry,
    log_kappa_in_closed_form,
    stable_beta,
)

pytestmark = pytest.mark.usefixtures("float64")

EXTREMES = [1e-12, 1e-6, 0.03, 1.0, 40.0, 1e6, 1e12]
HYPERGEOMETRIC = [
    STABLE_BETA,
    GENERALIZED_BFRY,
    BETA_PRIME,
    stable_beta(2.0, 0.6, -0.3),
    generalized_bfry(0.3, 0.7, 3.5, 0.1),
    generalized_bfry(2.0, 0.1, 0.6, 5.0),
    beta_prime(0.3, 0.7, 6.3, 0.1),
    beta_prime(2.0, 0.1, 0.63, 5.0),
]


def close(value, expected, rel=1e-10):
    expected = torch.as_tensor(expected, dtype=value.dtype)
    torch.testing.assert_close(value, expected, rtol=rel, atol=rel)


def check_density(reference):
    measure, size = reference.measure(), 0.9 * np.logspace(-10, 3, 14)
    inside = measure.support.check(torch.from_numpy(size)).numpy()
    value = measure.log_levy_density(torch.from_numpy(size))
    close(value[inside], reference.log_density(size[inside]), 1e-8)
    assert (value[~inside] == -torch.inf).all()


@pytest.mark.parametrize(
    "reference",
    [GENERALIZED_BFRY, generalized_bfry(0.3, 0.0, 3.5, 5.0), generalized_bfry(2.0, 0.7, 0.9, 0.1)],
    ids=str,
)
def test_density_of_smallest_sizes(reference):
    r"""Where :math:`\gamma(k, cw)` is :math:`(cw)^k / k`, to the ends of the numbers."""
    mass, sigma, tau, cutoff = (
        reference.parameters[name] for name in ("mass", "discount", "tail_index", "cutoff")
    )
    power = tau - sigma
    constant = math.log(mass) + power * math.log(cutoff) - math.log(power) - math.lgamma(1 - sigma)
    for size in (1e-12, 1e-40, 1e-150, 1e-300):
        value = reference.measure().log_levy_density(size).item()
        expected = constant - (1 + sigma) * math.log(size)
        assert value == pytest.approx(expected, rel=0, abs=1e-10)


def check_laplace_exponent(reference):
    value = reference.measure().laplace_exponent(torch.tensor([0.0, *EXTREMES]))
    assert value[0] == 0.0
    close(value[1:].log(), [math.log(reference.exponent(t)) for t in EXTREMES])


@pytest.mark.parametrize("reference", HYPERGEOMETRIC, ids=str)
def test_laplace_exponent_in_closed_form(reference):
    points = [t for t in EXTREMES if t < 1e6 or reference.make is not STABLE_BETA.make]
    value = reference.measure().laplace_exponent(torch.tensor(points))
    close(value.log(), [math.log(exponent_in_closed_form(reference, t)) for t in points], 1e-12)


def check_moments(reference):
    measure = reference.measure()
    orders, tilts = [1.0, 2.0, 7.5, 300.0, 1e5], [1e-12, 0.7, 1e4, 1e12]
    if reference.make is ParetoProcess or reference in NOTED[-1:]:
        tilts = tilts[:3]  # beyond, nothing is left above the least size
    value = measure.log_kappa(torch.tensor(orders)[:, None], torch.tensor(tilts))
    expected = [[reference.log_kappa(n, u) for u in tilts] for n in orders]
    close(value, expected, 1e-10)


@pytest.mark.parametrize("reference", HYPERGEOMETRIC, ids=str)
def test_moments_in_closed_form(reference):
    tilts = [1e-3, 0.7, 30.0]
    for order in (1, 2, 7, 200):
        value = reference.measure().log_kappa(order, torch.tensor(tilts))
        close(value, [log_kappa_in_closed_form(reference, order, u) for u in tilts], 1e-12)


@pytest.mark.parametrize("reference", NOTED, ids=str)
def test_moments_are_derivatives_of_the_exponent(reference):
    r""":math:`\\kappa(n, u) = (-1)^{n-1} \\psi^{(n)}(u)`, by automatic differentiation."""
    measure, point = reference.measure(), torch.tensor(0.7, requires_grad=True)
    value = measure.laplace_exponent(point)
    for order in (1, 2, 3):
        (value,) = torch.autograd.grad(value, point, create_graph=True)
        close(((-1.0) ** (order - 1) * value).log(), measure.log_kappa(order, 0.7).item(), 1e-9)


def check_mean_and_variance(reference):
    measure = reference.measure()
    for order, value in ((1.0, measure.mean), (2.0, measure.variance)):
        parts = getattr(reference, "parts", (reference,))
        if all(part.at_infinity > order or part.is_bounded for part in parts):
            close(value.log(), reference.log_kappa(order, 0.0))
        else:
            assert value == torch.inf


def check_tail(reference):
    measure = reference.measure()
    sizes = [1e-12, 1e-5, 0.03, 0.7, 30.0, 1e5]
    inside = [x for x in sizes if x < getattr(measure.support, "upper_bound", math.inf)]
    value = measure.log_tail(torch.tensor(inside))
    # The reference has no subnormal tails.
    expected = torch.tensor([reference.log_tail(x) for x in inside])
    is_there = expected > -600.0
    close(value[is_there], expected[is_there])
    assert (value[~is_there] < -500.0).all()
    close(measure.tail(torch.tensor(inside)).log()[is_there], expected[is_there])


@pytest.mark.parametrize("reference", ALL, ids=str)
def test_against_reference(reference):
    """Functions of the measure against integrals of its density written out once more."""
    check_density(reference)
    check_laplace_exponent(reference)
    check_moments(reference)
    check_mean_and_variance(reference)
    check_tail(reference)


def test_tail_of_the_generalized_bfry_process_in_closed_form():
    eta, sigma, tau, c = (
        GENERALIZED_BFRY.parameters[n] for n in GENERALIZED_BFRY.parameters if n != "tilt"
    )
    for x in (1e-9, 0.4, 1.0, 50.0, 1e6):
        with mpmath.workdps(40):
            lower = mpmath.gammainc(tau - sigma, 0, c * x) * mpmath.mpf(x) ** -tau
            upper = mpmath.mpf(c) ** tau * mpmath.gammainc(-sigma, c * x)
            expected = eta / (tau * mpmath.gamma(1 - sigma)) * (lower + upper)
        value = GENERALIZED_BFRY.measure().log_tail(x)
        close(value, float(mpmath.log(expected)), 1e-12)


def test_superposition():
    first, second = gamma(2.0, 0.4, 1.5), stable_beta(2.0, 0.0, 1.5, 0.0, 3.0)
    third = generalized_bfry(1.0, 0.2, 1.3, 2.0)
    measure = first.measure() + second.measure() + third.measure()
    parts = (first, second, third)
    for t in (1e-7, 1.0, 1e6):
        close(measure.laplace_exponent(t).log(), math.log(sum(p.exponent(t) for p in parts)))
    logs = [p.log_kappa(4, 0.3) for p in parts]
    close(measure.log_kappa(4, 0.3), float(np.logaddexp.reduce(logs)))
    close(measure.log_tail(0.5), float(np.logaddexp.reduce([p.log_tail(0.5) for p in parts])))
    assert measure.index_at_zero == 0.4 and measure.index_at_infinity == 1.3
    assert measure.variance == torch.inf
    with pytest.raises(ValueError, match="two or more measures, got 1"):
        type(measure)(first.measure())


def test_slopes_of_tails_are_the_indices_far_out_at_both_ends():
    for measure, far in (
        (generalized_bfry(2.0, 0.4, 2.3, 1.0).measure(), 40.0),
        (beta_prime(2.0, 0.4, 2.3, 1.0).measure(), 1e5),
        (ParetoMixtureProcess(2.0, 0.4, 1.0, 2.0, 2.0, 2.3), 40.0),
    ):
        levels = torch.tensor([[1e-12, 1e-9], [far, 2.0 * far]])
        slopes = -measure.log_tail(levels).diff()[:, 0] / levels.log().diff()[:, 0]
        indices = [measure.index_at_zero, measure.index_at_infinity]
        close(slopes, indices, 1e-4)
        close(slopes, [0.4, 2.3], 1e-4)


def test_special_cases_of_the_discount():
    """Near a limit the values are near those of the limit, with no error from cancellation."""
    for make in (
        lambda s: gamma(2.0, s, 1.5),
        lambda s: stable_beta(2.0, s, 1.5),
        lambda s: beta_prime(1.5, s, 2.3, 1.2),
        lambda s: generalized_bfry(1.5, s, 2.3, 1.2),
    ):
        for small in (1e-14, 1e-9, 1e-6):
            for function in (
                lambda m: m.laplace_exponent(torch.tensor([1e-3, 1.0, 1e3])).log(),
                lambda m: m.log_kappa(torch.tensor([1.0, 2.0, 9.0]), 0.7),
                lambda m: m.log_tail(torch.tensor([1e-3, 0.5, 0.9])),
                lambda m: m.inverse_laplace_exponent(torch.tensor([0.1, 3.0])).log(),
            ):
                limit = function(make(0.0).measure())
                close(function(make(small).measure()), limit, 40.0 * small + 1e-12)


def test_discount_near_one():
    """The mass gathers in small weights, so that the exponent becomes linear."""
    for gap in (1e-4, 1e-8, 1e-12):
        measure = gamma(2.0, 1.0 - gap, 1.5).measure()
        close(measure.laplace_exponent(3.0), 6.0, 20.0 * gap)
        close(measure.mean, 2.0, gap)
        close(
            measure.log_kappa(3, 0.5),
            math.log(2.0 * gap * (1 + gap)) - 2 * math.log(2.0),
            1e-3 * gap + 1e-3,
        )
    for make in (stable_beta, generalized_bfry, beta_prime):
        reference = make(2.0, 1.0 - 1e-6, 1.5, *(() if make is stable_beta else (1.2,)))
        value = reference.measure().laplace_exponent(torch.tensor([0.1, 3.0]))
        assert value.isfinite().all() and (value > 0).all()


@pytest.mark.parametrize("reference", [GAMMA, *ALL], ids=str)
def test_float32(reference):
    wide = reference.measure()
    torch.set_default_dtype(torch.float32)
    narrow = reference.measure()
    assert narrow.dtype == torch.float32
    size = torch.tensor([0.2, 0.9])
    for function in (
        lambda m: m.laplace_exponent(size),
        lambda m: m.log_kappa(2, size),
        lambda m: m.log_tail(size),
        lambda m: m.mean,
        lambda m: m.inverse_laplace_exponent(0.01),
    ):
        value = function(narrow)
        if value.isinf().all():
            continue
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, function(wide).float(), rtol=1e-4, atol=1e-5)
    assert narrow.laplace_exponent(size.double()).dtype == torch.float64


@pytest.mark.parametrize("tail_index", [0.3, 1.0, 2.0, 7.5])
def test_exponents_of_pareto_weights_are_integrals_of_their_density(tail_index):
    """The closed form against quadrature, also where the shift itself underflows."""
    measure = ParetoProcess(*(torch.tensor(value).double() for value in (3.0, 0.5, tail_index)))
    log_shift = torch.tensor([-800.0, -30.0, -1.0, 0.0, 2.0, 40.0]).double()
    expected = CompletelyRandomMeasure._log_exponent(measure.expand((6,)), log_shift)
    torch.testing.assert_close(measure._log_exponent(log_shift), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("log_excess", [4.0, 20.0, 30.0, 40.0])
def test_a_steep_tail_is_a_tilt_at_the_cutoff(log_excess):
    """All of the mixing density is then at its sharp end, in less than nodes can resolve."""
    excess = torch.tensor(log_excess).double().exp()
    discount = torch.tensor(0.3).double()
    steep = GeneralizedBFRYProcess(1.0, discount, discount + excess)
    limit = GeneralizedGammaProcess(1.0 / excess, discount, 1.0)
    tolerance = {"rtol": 0.0, "atol": max(10.0 / float(excess), 1e-7)}
    for log_tilt in (-3.0, 0.0, 5.0):
        point = discount.new_tensor(log_tilt)
        order = discount.new_tensor(7.0)
        found = torch.stack([steep._log_exponent(point), steep._log_moment(order, point)])
        expected = torch.stack([limit._log_exponent(point), limit._log_moment(order, point)])
        torch.testing.assert_close(found, expected, **tolerance)


def test_beta_prime_weights_are_the_odds_of_stable_beta_weights():
    r"""The tail of odds is that of the weights, with :math:`\eta_0 = \eta \Gamma(c)`, in mass."""
    discount, concentration, mass = 0.4, 1.3, 1.5
    odds = BetaPrimeProcess(mass, discount, discount + concentration, 1.0)
    scale = math.gamma(concentration) * math.gamma(concentration + discount)
    other = StableBetaProcess(mass * scale / math.gamma(1 + concentration), discount, concentration)
    size = torch.logspace(-6, 6, 13)
    torch.testing.assert_close(
        odds.log_tail(size), other.log_tail(size / (1 + size)), rtol=1e-11, atol=1e-11
    )
