"""Evidence of conjugate clusters, against quadrature, SciPy and enumeration."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from pyro_ext.distributions import (
    BernoulliCluster,
    GaussianCluster,
    KnownVarianceGaussianCluster,
    MultinomialCluster,
    PoissonCluster,
)
from pyro_ext.distributions._evidence import log_rising
from tests.distributions.clusters import (
    DATA,
    GAUSSIAN,
    PARAMETERS,
    SQUARE,
    X4,
    cluster_and_data,
    everything,
    gaussian,
    tensors,
)

pytestmark = pytest.mark.usefixtures("float64")


def scipy_log_prob(make, x):
    """Log density of each point from SciPy's distributions, with the parameters above."""
    first, *others = (np.array(value) for value in PARAMETERS[make])
    if make is GaussianCluster:
        precision, dof, scale = others
        df = dof - 1
        shape = scale * (precision + 1) / (precision * df)
        return np.array([stats.multivariate_t.logpdf(row, first, shape, df=df) for row in x])
    if make is KnownVarianceGaussianCluster:
        return stats.norm.logpdf(x, first, np.hypot(*others)).sum(-1)
    if make is MultinomialCluster:
        x = x.astype(int)
        return np.array([stats.dirichlet_multinomial.logpmf(r, first, r.sum()) for r in x])
    if make is BernoulliCluster:
        return stats.bernoulli.logpmf(x, first / (first + others[0])).sum(-1)
    return stats.nbinom.logpmf(x, first, others[0] / (1 + others[0])).sum(-1)


def gaussian_evidence(x, loc, r, a, b):
    """Over the logarithm of the precision and the standardized mean, by the trapezoidal rule."""
    log_precision = np.linspace(-20.0, 8.0, 701)[:, None]
    position = np.linspace(-14.0, 14.0, 701)
    precision = np.exp(log_precision)
    mean = loc + position / np.sqrt(r * precision)
    log_value = stats.gamma.logpdf(precision, a, scale=1 / b) + log_precision
    log_value = log_value + stats.norm.logpdf(position)
    for point in x:
        log_value = log_value + stats.norm.logpdf(point, mean, precision**-0.5)
    cell = (log_precision[1, 0] - log_precision[0, 0]) * (position[1] - position[0])
    return special.logsumexp(log_value) + math.log(cell)


@everything
def test_log_marginal_by_quadrature_of_the_parameters(make):
    """In one dimension, or in each where they are independent."""
    cluster, data = cluster_and_data(make)
    x = data.numpy()
    numbers = [np.array(value) for value in PARAMETERS[make]]
    if make is GaussianCluster:
        cluster = make(torch.tensor([0.3]), 0.6, 6.5, torch.tensor([[1.3]]))
        exact = gaussian_evidence(x[:, 0], 0.3, 0.6, 6.5 / 2, 1.3 / 2)
        data = data[:, :1]
    else:
        exact = 0.0
        for k in range(2):

            def integrand(value, k=k):
                one = [float(v[k]) for v in numbers]
                if make is KnownVarianceGaussianCluster:
                    prior = stats.norm.pdf(value, one[0], one[1])
                    return prior * stats.norm.pdf(x[:, k], value, one[2]).prod()
                if make is PoissonCluster:
                    # The square root of a rate takes the pole of its density away.
                    prior = stats.gamma.pdf(value**2, one[0], scale=1 / one[1]) * 2 * value
                    return prior * stats.poisson.pmf(x[:, k], value**2).prod()
                one = one if make is BernoulliCluster else [float(v) for v in numbers[0]]
                chance = math.sin(value) ** 2
                prior = stats.beta.pdf(chance, *one) * math.sin(2 * value)
                if make is BernoulliCluster:
                    return prior * stats.bernoulli.pmf(x[:, k], chance).prod()
                return prior * stats.binom.pmf(x[:, 0], x.sum(-1), chance).prod()

            ends = {KnownVarianceGaussianCluster: (-9.0, 9.0), PoissonCluster: (1e-9, 12.0)}
            low, high = ends.get(make, (1e-9, math.pi / 2 - 1e-9))
            value, _ = integrate.quad(integrand, low, high, epsabs=0, epsrel=1e-10, limit=200)
            exact += math.log(value)
        if make is MultinomialCluster:
            exact /= 2
    assert cluster.log_marginal(data).item() == pytest.approx(exact, abs=1e-7)


@everything
def test_log_prob_against_scipy_and_as_a_block_of_one(make):
    cluster, x = cluster_and_data(make)
    value = cluster.log_prob(x)
    np.testing.assert_allclose(value, scipy_log_prob(make, x.numpy()), rtol=1e-11)
    torch.testing.assert_close(cluster.log_marginal(x.unsqueeze(-2)), value)
    torch.testing.assert_close(cluster.block(1).log_prob(x.unsqueeze(-2)), value)


@everything
def test_log_marginal_is_the_chain_of_predictives(make):
    cluster, x = cluster_and_data(make)
    terms = [cluster.posterior(x[:size]).log_prob(x[size]) for size in range(len(x))]
    torch.testing.assert_close(cluster.log_marginal(x), sum(terms))
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(cluster.log_marginal(x[order]), cluster.log_marginal(x))


@everything
def test_posterior_of_a_posterior(make):
    cluster, x = cluster_and_data(make)
    at_once, in_turn = cluster.posterior(x), cluster.posterior(x[:1]).posterior(x[1:])
    assert type(at_once) is make
    for name in make.arg_constraints:
        torch.testing.assert_close(getattr(at_once, name), getattr(in_turn, name))
        unchanged = getattr(cluster.posterior(x[:0]), name)
        assert torch.equal(unchanged, getattr(cluster, name))


def rows_of_total(total, size):
    return [row for row in itertools.product(range(total + 1), repeat=size) if sum(row) == total]


def test_probabilities_of_blocks_sum_to_one():
    cluster, _ = cluster_and_data(BernoulliCluster)
    blocks = torch.tensor(list(itertools.product([0, 1], repeat=6))).view(-1, 3, 2)
    assert cluster.log_marginal(blocks).exp().sum().item() == pytest.approx(1.0, abs=1e-13)

    cluster = MultinomialCluster(torch.tensor([0.5, 1.7, 0.2]))
    pairs = itertools.product(rows_of_total(4, 3), rows_of_total(2, 3), [(0, 0, 0)])
    blocks = torch.tensor(list(pairs))
    assert cluster.log_marginal(blocks).exp().sum().item() == pytest.approx(1.0, abs=1e-13)

    cluster = PoissonCluster(torch.tensor([1.3]), 2.5)
    pairs = torch.cartesian_prod(torch.arange(60), torch.arange(60)).unsqueeze(-1)
    assert cluster.log_marginal(pairs).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@everything
def test_layout_of_statistics(make):
    cluster, data = cluster_and_data(make)
    x = data.numpy()
    zeros = np.zeros(len(x))
    factorials = special.gammaln(x + 1).sum(-1)
    base = {
        MultinomialCluster: special.gammaln(x.sum(-1) + 1) - factorials,
        PoissonCluster: -factorials,
    }.get(make, zeros)
    more = {
        GaussianCluster: (x[:, :, None] * x[:, None, :]).reshape(len(x), -1),
        KnownVarianceGaussianCluster: x**2,
    }.get(make, x[:, :0])
    exact = np.concatenate([zeros[:, None] + 1, base[:, None], x, more], -1)
    np.testing.assert_allclose(cluster.statistics(data), exact, rtol=1e-14, atol=1e-14)


def exact_gaussian_evidence(x, loc, r, nu, scale):
    """In arbitrary precision, with the determinant of two by two."""
    with mpmath.workdps(60):
        rows = [[mpmath.mpf(value) for value in row] for row in x]
        m, r, nu = len(rows), mpmath.mpf(r), mpmath.mpf(nu)
        start = [mpmath.mpf(value) for value in loc]
        new = [(r * start[k] + sum(row[k] for row in rows)) / (r + m) for k in range(2)]

        def entry(j, k):
            value = mpmath.mpf(scale[j][k]) + sum(row[j] * row[k] for row in rows)
            return value + r * start[j] * start[k] - (r + m) * new[j] * new[k]

        old = mpmath.mpf(scale[0][0]) * scale[1][1] - mpmath.mpf(scale[0][1]) ** 2
        determinant = entry(0, 0) * entry(1, 1) - entry(0, 1) ** 2
        value = -m * mpmath.log(mpmath.pi) + mpmath.log(r / (r + m))
        value += nu / 2 * mpmath.log(old) - (nu + m) / 2 * mpmath.log(determinant)
        for k in range(2):
            value += mpmath.loggamma((nu + m - k) / 2) - mpmath.loggamma((nu - k) / 2)
        return float(value)


FAR = (0.3, -0.5), 0.6, 6.5, SQUARE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (1e6, 1e6), (1e6, -3e5)])
def test_points_far_from_the_prior(shift, dtype):
    """The error is that of the data's own rounding; sums of squares would have lost all digits."""
    x = (torch.tensor(X4) + torch.tensor(shift)).to(dtype)
    exact = exact_gaussian_evidence(x.tolist(), *FAR)
    cluster = GaussianCluster(*map(torch.tensor, FAR))
    assert cluster.log_marginal(x.double()).item() == pytest.approx(exact, abs=1e-8)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-10
    assert cluster.log_marginal(x).item() == pytest.approx(exact, rel=tolerance)


@pytest.mark.parametrize("far", [(1e6, 2e6), (-1e5, 1e-3), (1e7, 1e7)])
def test_one_point_far_from_the_others(far):
    """Its square would hide those of the others, and with them the determinant."""
    x = torch.cat([torch.tensor(X4), torch.tensor([far])]).double()
    cluster = GaussianCluster(*map(torch.tensor, FAR))
    exact = exact_gaussian_evidence(x.tolist(), *FAR)
    assert cluster.log_marginal(x).item() == pytest.approx(exact, abs=1e-7)
    one = cluster.log_marginal(x[:1]).item()
    mask = torch.tensor([True, False, False, False, False])
    assert cluster.log_marginal(x, mask).item() == pytest.approx(one, abs=1e-12)


@gaussian
def test_identical_points(make):
    cluster, x = cluster_and_data(make)
    x = x[:1].expand(50, 2).clone().requires_grad_()
    value = cluster.log_marginal(x)
    (gradient,) = torch.autograd.grad(value, x)
    assert value.isfinite() and gradient.isfinite().all()


def test_ratios_of_gamma_functions():
    starts, numbers = [1e-8, 0.3, 19.9, 20.1, 1e3, 1e8, 1e14], [0.0, 0.5, 3.0, 1e6]
    start, number = torch.cartesian_prod(torch.tensor(starts), torch.tensor(numbers)).T
    with mpmath.workdps(40):
        exact = [
            float(mpmath.loggamma(mpmath.mpf(a) + x) - mpmath.loggamma(a))
            for a, x in zip(start.tolist(), number.tolist(), strict=True)
        ]
    value = log_rising(start, number)
    torch.testing.assert_close(value, torch.tensor(exact), rtol=4e-14, atol=2e-13)


@everything
def test_gradients(make):
    parameters = [value.requires_grad_() for value in tensors(make)]
    x = torch.tensor(DATA[make], requires_grad=make in GAUSSIAN)

    def evidence(x, *values, method="log_marginal"):
        if make is GaussianCluster:  # finite differences would leave the symmetric matrices
            values = (*values[:-1], (values[-1] + values[-1].mT) / 2)
        return getattr(make(*values, validate_args=False), method)(x)

    def of_points(x, *values):
        return evidence(x, *values, method="log_prob")

    assert torch.autograd.gradcheck(evidence, (x, *parameters))
    assert torch.autograd.gradcheck(of_points, (x, *parameters))


def test_compiled_samplers_take_one_cluster():
    cluster, _ = cluster_and_data(PoissonCluster)
    with pytest.raises(ValueError, match="compiled sampler needs one .*batch_shape \\(3,\\)"):
        cluster.expand((3,))._compiled_parameters()
