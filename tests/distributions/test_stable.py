"""Stable distributions and their tilts against closed forms, series and Laplace transforms."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import special, stats
from torch.distributions import kl_divergence
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_ext.distributions import PositiveStable, TiltedStable, _stable
from pyro_ext.testing.distributions import check_divergence

pytestmark = pytest.mark.usefixtures("float64")


def test_levy_law():
    points = torch.logspace(-12, 12, 49)
    fn = PositiveStable(0.5)
    exact = -1.5 * points.log() - 1 / (4 * points) - math.log(2 * math.sqrt(math.pi))
    torch.testing.assert_close(fn.log_prob(points), exact, rtol=1e-13, atol=1e-13)
    exact = torch.from_numpy(special.erfc(0.5 / points.sqrt().numpy()))
    torch.testing.assert_close(fn.cdf(points), exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("stability", [0.01, 0.1, 0.3, 0.6, 0.9, 0.99])
def test_density_is_the_alternating_series(stability):
    with mpmath.workdps(80):
        s = mpmath.mpf(stability)
        for point in (0.5, 0.9, 1.1, 2.0, 20.0, 1e6, 1e12):
            x = mpmath.mpf(point)
            if x**-s > 3 or (point < 1.0 and stability > 0.8):
                continue  # there the terms grow beyond the digits
            total, order, size = mpmath.mpf(0), 0, mpmath.mpf(1)
            while order < 30 or (size > mpmath.mpf(10) ** -40 and order < 20_000):
                order += 1
                size = mpmath.gamma(s * order + 1) / mpmath.factorial(order) * x ** (-s * order)
                total -= (-1) ** order * mpmath.sin(mpmath.pi * s * order) * size
            exact = mpmath.log(total / (mpmath.pi * x))
            value = PositiveStable(stability).log_prob(torch.tensor(point)).item()
            assert abs(value - exact) < 2e-11 * max(1, abs(exact)), point


# Stability, value, distribution function, density by mpmath to 30 digits: Zolotarev's integral in
# Gaussian panels that end wherever the exponent is one of many numbers.
DIGITS = [
    (0.1, 1.5, 0.4041259430824638, 0.024602945799402583),
    (0.5, 2, 0.6170750774519738, 0.08801633169107487),
    (0.9, 10, 0.985240938656318, 0.0014799762318781857),
    (0.95, 3, 0.9734063056949289, 0.01231084240381297),
    (0.95, 10, 0.9935758066720091, 0.0006800683101121233),
    (0.97, 4, 0.989437714586148, 0.0033978070043857197),
    (0.98, 20, 0.9988680065954898, 5.847594124032931e-05),
    (0.99, 1.5, 0.9804785951795755, 0.03701715145568944),
    (0.99, 2, 0.9899906765429225, 0.009762635997960373),
    (0.99, 3, 0.9949310478192652, 0.002499160112097622),
    (0.99, 10, 0.9988555268437188, 0.00012599348180583855),
    (0.99, 1000, 0.9999892122695838, 1.06911418697506e-08),
    (0.995, 4, 0.9983175258722533, 0.0005576896736832058),
    (0.999, 1.3, 0.9966867710487961, 0.010936821383134235),
    (0.999, 100, 0.9999898461891025, 1.0246446651885699e-07),
    (0.9999, 1.001, 0.9410167426833169, 32.628988072431646),
    (0.9999, 2, 0.9998999984620824, 9.997730483361599e-05),
    (0.9999, 10000, 0.9999999899892059, 1.0010794904272867e-12),
    (0.999999, 0.999999, 0.909478901594238, 7398.212176429556),
    (0.999999, 1.01, 0.9999000506543493, 0.009988903292434346),
    (0.999999, 2, 0.9999989999998455, 9.999977316640023e-07),
]


def test_distribution_function_and_density_at_all_stabilities(subtests):
    for stability, value, share, density in DIGITS:
        with subtests.test(stability=stability, value=value):
            fn, point = PositiveStable(stability), torch.tensor(value)
            assert abs(fn.cdf(point).item() - share) < 1e-10
            assert fn.log_prob(point).exp().item() == pytest.approx(density, rel=1e-9)


@pytest.mark.parametrize(
    "mass, tilt", [(1.0, 1e-4), (1.0, 1.0), (3.0, 0.2), (20.0, 50.0), (1.0, 1e4)]
)
def test_inverse_gaussian(mass, tilt):
    fn = TiltedStable(mass, 0.5, tilt)
    mean, shape = mass / (2 * math.sqrt(tilt)), mass**2 / 2
    exact = stats.invgauss(mean / shape, scale=shape)
    assert fn.mean.item() == pytest.approx(exact.mean())
    assert fn.variance.item() == pytest.approx(exact.var())
    points = exact.ppf(np.array([1e-8, 1e-3, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999]))
    value = fn.log_prob(torch.from_numpy(points)).numpy()
    np.testing.assert_allclose(value, exact.logpdf(points), rtol=1e-12, atol=1e-12)
    value = fn.cdf(torch.from_numpy(points)).numpy()
    np.testing.assert_allclose(value, exact.cdf(points), atol=1e-12)


CASES = [(s, power) for s in (0.05, 0.3, 0.7, 0.95) for power in (0.01, 0.9, 1.5, 30.0, 1e4)]


@pytest.mark.parametrize(
    "stability, power", [(0.05, 0.9), (0.3, 0.01), (0.3, 30.0), (0.7, 1.5), (0.95, 1e4)]
)
def test_tilted_density_and_cdf_have_the_laplace_transform(stability, power):
    tilt = 2.0
    mass = power / tilt**stability
    fn = TiltedStable(mass, stability, tilt)
    mean, deviation = fn.mean.item(), fn.variance.sqrt().item()
    low = math.log(mean) - (10 * deviation / mean if power > 20 else 60 + 40 / stability)
    high = math.log(max(mean + 60 * deviation, 40 / tilt))
    point = torch.linspace(max(low, -700.0), high, 4001)
    x = point.exp()
    weight = fn.log_prob(x) + point
    for t in (0.0, 0.3 / mean, 2.0 / mean):
        exact = math.exp(-mass * ((t + tilt) ** stability - tilt**stability))
        value = torch.trapezoid((weight - t * x).exp(), point).item()
        assert value == pytest.approx(exact, rel=1e-7), t
    # The distribution function has the density for a derivative.
    inner = x[weight > weight.max() - 12.0].requires_grad_()
    (slope,) = torch.autograd.grad(fn.cdf(inner).sum(), inner)
    torch.testing.assert_close(slope, fn.log_prob(inner).exp(), rtol=1e-6, atol=0)


@pytest.mark.statistical
def test_draws_of_the_tilted_law():
    """Two comparisons of each of 23 cases at 4.5 standard errors: one seed in 3,000 fails any."""
    for stability, power in [*CASES, (0.01, 10.0), (0.99, 1e4), (0.5, 1e6)]:
        torch.manual_seed(0)
        tilt = power ** (1 / stability) if stability > 0.06 else 1.0
        mass = power / tilt**stability
        fn = TiltedStable(mass, stability, tilt)
        draws = fn.sample((100_000,))
        assert (draws > 0).all() and draws.isfinite().all()
        root = math.sqrt(len(draws))
        case = (stability, power)
        assert abs((draws.mean() - fn.mean) / fn.variance.sqrt() * root) < 4.5, case
        t = 1 / fn.mean.item()
        powers = (t + tilt) ** stability - tilt**stability
        transform = (-t * draws).exp()
        error = (transform.mean() - math.exp(-mass * powers)) / transform.std() * root
        assert abs(error) < 4.5, case


def test_the_lowered_envelope_of_angles():
    """The ratio of envelope and density is at least one at every angle, spread and stability."""
    point = torch.linspace(-25.0, 30.0, 2_000)
    angle, rest = math.pi * torch.sigmoid(point), math.pi * torch.sigmoid(-point)
    spread = torch.cat([torch.logspace(-6, 6, 61), torch.tensor([0.1, 0.5 / math.pi])])[:, None]
    for edge in (1e-6, 1e-3, 0.1, 0.3, 0.5):
        for stability in (edge, 1.0 - edge):
            stability = torch.full_like(spread, stability)
            power = spread / (stability * (1.0 - stability))
            _, log_ratio, _ = _stable.angle_ratio(angle, rest, power, stability)
            reached = (spread < 1.0) | (spread * angle.square() < 1_400.0)
            assert log_ratio[reached].min() > 0.0


def test_divergences():
    check_divergence(TiltedStable(2.0, 0.4, 3.0), TiltedStable(2.0, 0.4, 1.0))
    p, q = TiltedStable(1.0, 0.4, 3.0), PositiveStable(0.4)
    assert kl_divergence(p, q).item() == pytest.approx(0.6 * 3**0.4)
    assert kl_divergence(p, p).item() == 0.0
    with pytest.raises(NotImplementedError, match="equal mass and stability"):
        kl_divergence(TiltedStable(1.0, 0.4, 3.0), TiltedStable(2.0, 0.4, 3.0))


LATENT = {PositiveStable: lambda s: (s,), TiltedStable: lambda s: (1.3, s, 0.8)}


@pytest.mark.parametrize(
    "make", [PositiveStable, pytest.param(TiltedStable, marks=pytest.mark.slow)]
)
def test_searches_for_nodes_are_one_operation_each(make):
    """Written out they were a hundred times the graph."""

    def density(stability, point):
        return make(*LATENT[make](stability), validate_args=False).log_prob(point).sum()

    graph = make_fx(torch.func.grad(density))(torch.tensor(0.4), torch.tensor([0.3, 2.0]))
    assert len(graph.graph.nodes) < 1_000
