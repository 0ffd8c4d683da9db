"""Finite approximations against their Lévy densities, and weights that were met."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from pyro_ext.distributions import BetaPrimeBFRY, GeneralizedBFRY, StableBetaBFRY, TiltedBFRY
from pyro_ext.random_measures import (
    DeterministicArrivals,
    ExponentialArrivals,
    GammaArrivals,
    GeneralizedGammaProcess,
    InverseGammaArrivals,
    LomaxArrivals,
    StableBetaProcess,
)
from pyro_ext.random_measures.arrivals import arrival_process
from pyro_ext.random_measures.finite import FiniteAtom, JumpDistribution
from tests.random_measures.references import (
    BETA_PRIME,
    GAMMA,
    GENERALIZED_BFRY,
    PARETO_MIXTURE,
    STABLE_BETA,
    Mixture,
    exp,
    gamma,
    generalized_bfry,
    levy_density,
    log_1m_exp,
    stable_beta,
)
from tests.random_measures.series_methods import gamma_law, lomax_law

pytestmark = pytest.mark.usefixtures("float64")


EVERY_REFERENCE = pytest.mark.parametrize(
    "reference", [GAMMA, STABLE_BETA, BETA_PRIME, GENERALIZED_BFRY], ids=str
)


@EVERY_REFERENCE
@pytest.mark.parametrize("order, tilt", [(1.0, 0.5), (3.0, 2.0), (2.5, 30.0)])
def test_density_and_moments(reference, order, tilt):
    fn = JumpDistribution(reference.measure(), order, tilt)
    constant = reference.log_kappa(order, tilt)
    sizes = 0.9 * np.logspace(-4, 0, 9)
    expected = reference.log_density(sizes) + order * np.log(sizes) - tilt * sizes - constant
    np.testing.assert_allclose(fn.log_prob(torch.from_numpy(sizes)), expected, rtol=0, atol=1e-8)
    first, second = (math.exp(reference.log_kappa(order + n, tilt) - constant) for n in (1, 2))
    assert fn.mean.item() == pytest.approx(first, rel=1e-9)
    assert fn.variance.item() == pytest.approx(second - first**2, rel=1e-8)


@pytest.mark.statistical
@EVERY_REFERENCE
def test_draws_of_met_weights(reference):
    """Mean of all draws and of their squares; any of eight fails for one seed in 200,000."""
    torch.manual_seed(0)
    fn = JumpDistribution(reference.measure(), 2.0, 0.7)
    draws = fn.sample((500 if reference is STABLE_BETA else 5000,))
    for power in (1.0, 2.0):
        values = draws**power
        expected = math.exp(reference.log_kappa(2.0 + power, 0.7) - reference.log_kappa(2.0, 0.7))
        error = values.std() / math.sqrt(len(draws))
        assert abs(values.mean() - expected) < 5.0 * error


def test_batches_and_errors():
    measure = GAMMA.measure()
    fn = JumpDistribution(measure, torch.tensor([[1.0], [2.0]]), torch.tensor([0.5, 1.0, 2.0]))
    assert fn.batch_shape == (2, 3) and fn.rsample((4,)).shape == (4, 2, 3)
    assert fn.mean[1, 2].item() == pytest.approx(JumpDistribution(measure, 2.0, 2.0).mean.item())
    assert fn.expand((5, 2, 3)).log_prob(torch.tensor(0.3)).shape == (5, 2, 3)


def inverse_gamma(concentration):
    def log_cdf(v):
        far = -exp(-v) - (concentration - 1) * v - special.gammaln(concentration)
        inside = np.log(np.maximum(special.gammaincc(concentration, exp(-v)), 1e-300))
        return np.where(v < -6.4, far, inside)

    return log_cdf


class Expected:
    """The arrival probability times the Lévy density over the number, as a density."""

    def __init__(self, reference, log_cdf, num_atoms):
        self.reference, self.log_cdf, self.num_atoms = reference, log_cdf, num_atoms
        low, high = -50.0, 400.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            is_less = self.integral(middle) < math.log(num_atoms)
            low, high = (middle, high) if is_less else (low, middle)
        self.log_level = low

    def integral(self, log_level, log_factor=np.zeros_like, order=0.0, corners=(), **limits):
        parts = getattr(self.reference, "parts", (self.reference,))
        values = [
            part.log_integral(
                lambda v: self.log_cdf(v + log_level) + log_factor(v),
                (-log_level, *corners),
                order=order,
                **limits,
            )
            for part in parts
        ]
        return float(np.logaddexp.reduce(values))

    def log_density(self, size):
        inner = self.log_cdf(np.log(size) + self.log_level)
        return self.reference.log_density(size) + inner - math.log(self.num_atoms)

    def mean(self):
        return math.exp(self.integral(self.log_level, lambda v: v, 1.0)) / self.num_atoms

    def cdf(self, size):
        rest = self.integral(self.log_level, corners=(math.log(size),), low=math.log(size))
        return 1.0 - math.exp(rest) / self.num_atoms

    def error(self, t):
        shift = math.log(t)
        inner = self.integral(self.log_level, lambda v: log_1m_exp(v + shift), corners=(-shift,))
        distance = math.exp(inner) / self.num_atoms
        return -self.num_atoms * math.log1p(-distance) - self.reference.exponent(t)


CASES = [
    (GAMMA, None, log_1m_exp, TiltedBFRY),
    (gamma(2.0, 0.0, 1.5), None, log_1m_exp, TiltedBFRY),
    (gamma(2.0, 0.4, 0.0), None, log_1m_exp, TiltedBFRY),
    (STABLE_BETA, None, lomax_law(1.5)[0], StableBetaBFRY),
    (stable_beta(3.0, 0.0, 2.0), None, lomax_law(2.0)[0], StableBetaBFRY),
    (stable_beta(2.0, 0.6, -0.3), None, log_1m_exp, None),
    (stable_beta(2.0, 0.4, 1.5, 3.0, 2.5), None, log_1m_exp, None),
    (generalized_bfry(1.5, 0.4, 2.3, 1.2, 0.8), None, log_1m_exp, None),
    (PARETO_MIXTURE, None, log_1m_exp, None),
    (levy_density(2.0, 0.4, 1.5), None, log_1m_exp, None),
    (GAMMA, GammaArrivals(3.0), gamma_law(3.0)[0], None),
    (GAMMA, LomaxArrivals(1.3), lomax_law(1.3)[0], None),
    (GENERALIZED_BFRY, LomaxArrivals(0.6), lomax_law(0.6)[0], None),
    (BETA_PRIME, InverseGammaArrivals(2.0), inverse_gamma(2.0), None),
    (STABLE_BETA, GammaArrivals(1.7), gamma_law(1.7)[0], None),
]


def name(value):
    return str(value) if hasattr(value, "measure") else None


@pytest.mark.parametrize(
    "reference, family, log_cdf, kind",
    [
        # Those without closed form take a second each; what they have in common with others is
        # looked at in test_conformance.
        pytest.param(*case, marks=() if case[3] or case[0] is GAMMA else pytest.mark.slow)
        for case in CASES
    ],
    ids=name,
)
def test_law(reference, family, log_cdf, kind):
    measure, expected = reference.measure(), Expected(reference, log_cdf, 12)
    fn = measure.finite(12, family=family)
    if kind is not None:
        assert isinstance(fn, kind)
    end = 0.98 * float(getattr(measure.support, "upper_bound", 40.0))
    sizes = np.array([1e-9, 1e-3, 0.05, 0.4, 0.7]) * end
    value = fn.log_prob(torch.from_numpy(sizes))
    np.testing.assert_allclose(value, expected.log_density(sizes), rtol=1e-8, atol=1e-8)
    cdf = fn.cdf(torch.from_numpy(sizes))
    np.testing.assert_allclose(cdf, [expected.cdf(x) for x in sizes], rtol=1e-9, atol=1e-11)
    if measure.mean.isfinite():
        assert fn.mean.item() == pytest.approx(expected.mean(), rel=1e-10)
    for t in (0.01, 1.0, 300.0):
        error = measure.finite_error(12, t, family=family).item()
        exponent = reference.exponent(t)
        assert error == pytest.approx(expected.error(t), abs=1e-9 * max(1.0, exponent))


@pytest.mark.slow
@pytest.mark.parametrize("reference", [GENERALIZED_BFRY, BETA_PRIME], ids=str)
def test_laws_of_scaled_weights(reference):
    r"""The base weight arrives exponentially, then is divided: an integral over the divisor."""
    measure, num_atoms, t = reference.measure(), 12, 0.7
    parameters = reference.parameters
    mass, sigma, tau = (parameters[n] for n in ("mass", "discount", "tail_index"))
    if reference is BETA_PRIME:
        base_mass, base_tilt, fn = mass * special.gamma(tau), 1.0, stats.gamma(tau)
    else:
        cutoff = parameters["cutoff"]
        base_mass, base_tilt = mass * cutoff ** (tau - sigma) / tau, cutoff
        fn = stats.beta(tau, 1.0)
    level = (sigma * num_atoms / base_mass + base_tilt**sigma) ** (1 / sigma)

    def inner(s):
        powers = (s + level) ** sigma - (s + base_tilt) ** sigma
        return powers / (level**sigma - base_tilt**sigma)

    nodes, weights = np.polynomial.legendre.leggauss(400)
    share = 0.5 * (nodes + 1)
    divisor = fn.ppf(share)
    transform = float((0.5 * weights * inner(t / divisor)).sum())
    expected = -num_atoms * math.log(transform) - reference.exponent(t)
    assert measure.finite_error(num_atoms, t).item() == pytest.approx(expected, abs=2e-5)
    finite = measure.finite(num_atoms)
    assert isinstance(finite, BetaPrimeBFRY if reference is BETA_PRIME else GeneralizedBFRY)
    mean_divided = float((0.5 * weights / divisor).sum())
    mean = sigma * (base_tilt ** (sigma - 1) - level ** (sigma - 1))
    mean = mean / (level**sigma - base_tilt**sigma) * mean_divided
    assert finite.mean.item() == pytest.approx(mean, rel=5e-3)


@pytest.mark.parametrize("discount", [0.3, 0.5, 0.7])
def test_order_of_convergence(discount):
    r"""The error falls as :math:`L^{-\min(1, (1 - \sigma) / \sigma)}` for fixed arguments.

    That of the truncation is :math:`L^{1 - 1 / \sigma}`; that of independent weights, of which the
    number is not Poisson, is :math:`\psi(t)^2 / 2 L`.
    """
    measure = gamma(2.0, discount, 1.5).measure()
    numbers = (10**4, 10**5)
    errors = [measure.finite_error(number, 1.0).item() for number in numbers]
    order = math.log10(errors[0] / errors[1])
    assert order == pytest.approx(min(1.0, (1 - discount) / discount), abs=0.12)
    exponent, level = measure.laplace_exponent(1.0), measure.inverse_laplace_exponent(1e4)
    truncated = measure.laplace_exponent(level + 1.0) - 1e4
    expected = -truncated + exponent.square() / 2e4
    assert errors[0] == pytest.approx(expected.item(), rel=2e-3)


def test_group_rule():
    measure = GAMMA.measure()
    for number in (10, 1000):
        fn = measure.finite(number, "group")
        level = (0.4 * number / 2.0) ** 2.5
        other = TiltedBFRY(0.4, level, 1.5)
        size = torch.logspace(-6, 1, 8)
        torch.testing.assert_close(fn.log_prob(size), other.log_prob(size))
    for reference in (gamma(2.0, 0.0, 1.5), gamma(2.0, -0.5, 1.5)):
        with pytest.raises(ValueError, match="discount of .* must be > 0 for the rule 'group'"):
            reference.measure().finite(10, "group")
    with pytest.raises(ValueError, match="rule must be 'exact', got 'group'"):
        STABLE_BETA.measure().finite(10, "group")


@pytest.mark.parametrize("reference", [GAMMA, STABLE_BETA, PARETO_MIXTURE], ids=str)
def test_deterministic_arrivals(reference):
    """The distribution of weights above the level that is exceeded that often."""
    measure, num_atoms = reference.measure(), 12
    fn = measure.finite(num_atoms, family=DeterministicArrivals())
    level = measure.inverse_tail(num_atoms)
    torch.manual_seed(0)
    draws = fn.sample((200,))
    assert (draws >= level * (1 - 1e-9)).all()
    assert fn.log_prob(0.9 * level) == -torch.inf
    size = 1.5 * level.item()
    expected = float(reference.log_density(np.array(size))) - math.log(num_atoms)
    assert fn.log_prob(torch.tensor(size)).item() == pytest.approx(expected, abs=1e-8)
    cdf = 1.0 - math.exp(reference.log_tail(size)) / num_atoms
    assert fn.cdf(torch.tensor(size)).item() == pytest.approx(cdf, abs=1e-10)
    if not isinstance(reference, Mixture):
        above = reference.log_integral(lambda v: v, (), 1.0, 1.0, low=math.log(level.item()))
        assert fn.mean.item() == pytest.approx(math.exp(above) / num_atoms, rel=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda s: stable_beta(2.0, s, -0.1),
        lambda s: generalized_bfry(1.5, s, 2.3, 1.2, 0.8),
        lambda s: levy_density(2.0, s, 1.5),
    ],
)
def test_gradients_of_draws(make):
    """Implicit gradients of inverted draws against differences with the same uniform numbers."""

    def draw(measure):
        torch.manual_seed(0)
        return measure.finite(12).rsample((10,)).log()

    discount, reference = torch.tensor(0.4, requires_grad=True), make(0.4)
    parameters = dict(reference.parameters)
    inner = parameters.get("parameters")
    if inner is None:
        parameters["discount"] = discount
    else:
        parameters["parameters"] = {**inner, "discount": discount}
    draws = draw(reference.make(**parameters))
    slopes = [torch.autograd.grad(d, discount, retain_graph=True)[0] for d in draws.unbind()]
    step = 1e-5
    high, low = draw(make(0.4 + step).measure()), draw(make(0.4 - step).measure())
    expected = (high - low) / (2 * step)
    torch.testing.assert_close(torch.stack(slopes), expected, rtol=1e-5, atol=1e-5)


def test_expand_and_types():
    measure = stable_beta(2.0, 0.6, -0.3).measure()
    fn = measure.finite(5).expand((3, 2))
    assert fn.batch_shape == (3, 2) and fn.rsample((4,)).shape == (4, 3, 2)
    assert fn.log_prob(torch.full((3, 2), 0.4)).shape == (3, 2)
    assert fn.mean.shape == fn.variance.shape == (3, 2)
    with pytest.raises(ValueError, match="within the support"):
        fn.log_prob(torch.tensor(1.5))
    torch.set_default_dtype(torch.float32)
    narrow = stable_beta(2.0, 0.6, -0.3).measure().finite(5)
    assert narrow.sample((3,)).dtype == narrow.mean.dtype == torch.float32
    assert narrow.log_prob(torch.tensor(0.4)).dtype == torch.float32


@pytest.mark.parametrize("concentration", [0.3, 0.4])
@pytest.mark.parametrize("reference", [GAMMA, STABLE_BETA], ids=str)
def test_a_family_with_infinitely_many_arrivals_is_refused(reference, concentration):
    measure, family = reference.measure(), GammaArrivals(concentration)
    for call in (
        lambda: measure.finite(12, family=family),
        lambda: measure.series(3, family),
        lambda: measure.lost_mass(3, family),
    ):
        with pytest.raises(ValueError, match="family must .* greater than the discount"):
            call()


@pytest.mark.parametrize("reference", [GAMMA, STABLE_BETA], ids=str)
def test_arrivals_of_a_power_little_above_the_discount(reference):
    """Integrals then reach far down, where weights arrive with a power less than one."""
    measure, time = reference.measure(), 3.0

    def integrand(point):
        density = measure.log_levy_density(torch.tensor(math.exp(point))).item() + point
        return special.gammainc(0.5, time * math.exp(point)) * math.exp(density)

    end = -1e-12 if reference is STABLE_BETA else 6.0
    ends = [-690.0, -300.0, -100.0, -30.0, -10.0, -3.0, -1.0, end]
    expected = sum(
        integrate.quad(integrand, *pair, limit=400, epsabs=1e-13, epsrel=1e-12)[0]
        for pair in itertools.pairwise(ends)
    )
    count = (
        arrival_process(measure, GammaArrivals(0.5)).log_count(torch.tensor(math.log(time))).exp()
    )
    assert count.item() == pytest.approx(expected, rel=1e-9)
    fn = measure.finite(12, family=GammaArrivals(0.5))
    assert fn.cdf(torch.tensor(1.0 - 1e-12 if reference is STABLE_BETA else 1e3)).item() == (
        pytest.approx(1.0, abs=1e-9)
    )


@pytest.mark.parametrize(
    "measure, family",
    [
        (StableBetaProcess(2.0, 0.4, 0.7), LomaxArrivals(0.7)),
        (GeneralizedGammaProcess(2.0, 0.4, 1.5), ExponentialArrivals()),
        (GeneralizedGammaProcess(2.0, 0.4, 1.5), GammaArrivals(1.0)),
    ],
    ids=["lomax", "exponential", "gamma"],
)
def test_a_family_in_closed_form_is_known_by_its_name(measure, family):
    """It is that which goes without a name, and has the density of the general quadrature."""
    fn, positions = measure.finite(50, family=family), torch.tensor([1e-6, 1e-2, 0.5, 0.99])
    assert type(fn) is type(measure.finite(50)) is not FiniteAtom
    general = FiniteAtom(measure, family, 50)
    torch.testing.assert_close(fn.log_prob(positions), general.log_prob(positions))
    others = [LomaxArrivals(0.8), GammaArrivals(2.0)]
    assert all(type(measure.finite(50, family=other)) is FiniteAtom for other in others)
    if isinstance(measure, StableBetaProcess):
        tilted = measure.exponential_tilt(1.0)
        assert type(tilted.finite(50, family=family)) is FiniteAtom
