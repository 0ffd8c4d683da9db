"""The copula recursion: its functions, its compiled loops, and its derivatives."""

import numpy as np
import pytest
import torch
from scipy.special import ndtr, ndtri

from pyro_ext.inference.martingale import copula_recursion as recursion
from tests.inference.martingale import copula_reference as reference

pytestmark = pytest.mark.usefixtures("float64")


def distributions(points, orders, bandwidth, evaluated):
    """Conditional distribution functions and log densities, distribution by distribution."""
    seen = recursion.predict_in_turn(points, orders, bandwidth).uniforms
    cdfs, log_density = recursion.normal_start(evaluated)
    shape = (len(orders), *cdfs.T.shape)
    rates = recursion.rates(1, len(points))
    cdfs, log_density = recursion.follow(
        cdfs.T.expand(shape), log_density.T.expand(shape), seen, rates, bandwidth
    )
    return cdfs.mT, log_density.mT


def test_vector_arithmetic_is_that_of_the_normal_law():
    from pyro_ext.inference.martingale import _copula_loops as loops

    u = np.concatenate([np.geomspace(1e-6, 0.5, 5000), 1 - np.geomspace(1e-6, 0.5, 5000)])
    score = np.array([loops.normal_quantile(value) for value in u])
    np.testing.assert_allclose(score, ndtri(u), atol=5e-12)
    w = np.linspace(-12, 12, 5001)
    bell = np.array([loops.exponential(-0.5 * value**2) for value in w])
    np.testing.assert_allclose(bell, np.exp(-0.5 * w**2), rtol=1e-14)
    cdf = [loops.normal_cdf(value, height) for value, height in zip(w, bell, strict=True)]
    np.testing.assert_allclose(cdf, ndtr(w), atol=1e-15)
    x = np.geomspace(1e-300, 1e300, 5001)
    log = np.array([loops.logarithm(value) for value in x])
    np.testing.assert_allclose(log, np.log(x), rtol=1e-14, atol=1e-15)


def test_loops_agree_with_numpy_in_three_dimensions():
    generator = torch.Generator().manual_seed(2)
    y = torch.randn(70, 3, generator=generator)
    points, rho = torch.randn(600, 3, generator=generator), torch.tensor([0.8, 0.6, 0.9])
    orders = recursion.observation_orders(70, 2, 0)
    cdfs, log_density = distributions(y, orders, rho, points)
    found = recursion.predict_in_turn(y, orders, rho)
    for distribution, order in enumerate(orders):
        expected = reference.recursion(y[order].numpy(), points.numpy(), rho.numpy())
        np.testing.assert_allclose(cdfs[distribution], expected[0], atol=1e-9)
        np.testing.assert_allclose(log_density[distribution, :, -1], np.log(expected[1]), atol=1e-8)
        np.testing.assert_allclose(found.log_density[distribution], expected[2], atol=1e-8)


def test_what_a_point_gets_does_not_depend_on_other_points():
    generator = torch.Generator().manual_seed(4)
    y, points = torch.randn(30, 2, generator=generator), torch.randn(1111, 2, generator=generator)
    rho, order = torch.tensor([0.8, 0.8]), torch.arange(30)[None]
    together = distributions(y, order, rho, points)[1]
    alone = torch.cat(
        [distributions(y, order, rho, point[None])[1] for point in points[500:530]], 1
    )
    torch.testing.assert_close(together[:, 500:530], alone, rtol=0, atol=1e-12)


def test_steps_with_gradients_are_those_of_the_loops():
    generator = torch.Generator().manual_seed(5)
    y, points = torch.randn(25, 2, generator=generator), torch.randn(9, 2, generator=generator)
    rho, order = torch.tensor([0.8, 0.6]), torch.arange(25)[None]
    cdfs, log_density = distributions(y, order, rho, points)
    cdfs_slow, log_slow = distributions(y, order, rho, points.clone().requires_grad_())
    assert log_slow.requires_grad
    torch.testing.assert_close(cdfs, cdfs_slow.detach(), rtol=0, atol=1e-11)
    torch.testing.assert_close(log_density, log_slow.detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dimension, num_covariates", [(1, 0), (3, 0), (1, 2)])
def test_gradient_of_the_prequential_likelihood(dimension, num_covariates):
    """Against central differences, with an outlier whose score is clipped."""
    generator = torch.Generator().manual_seed(6)
    y, x = torch.randn(45, dimension, generator=generator), torch.randn(45, 2, generator=generator)
    y[3, 0] = 5.3
    orders = recursion.observation_orders(45, 3, 1)
    number = dimension + num_covariates
    bandwidth = torch.linspace(0.6, 0.9, number)
    directions = torch.eye(number)

    def predicted(both):
        return recursion.predict_in_turn(
            y,
            orders,
            both[:dimension],
            directions[:, :dimension],
            covariates=x[:, :num_covariates],
            covariate_bandwidth=both[dimension:],
            covariate_directions=directions[:, dimension:],
        )

    step, gradient = 1e-5, predicted(bandwidth).gradient
    for position in range(number):
        above = predicted(bandwidth + step * directions[position]).log_density.sum(1)
        below = predicted(bandwidth - step * directions[position]).log_density.sum(1)
        torch.testing.assert_close(
            gradient[:, position], (above - below) / (2 * step), rtol=1e-6, atol=1e-5
        )


@pytest.mark.parametrize("num_threads", [2, 5, 64])
def test_threads_change_no_number(num_threads):
    generator = torch.Generator().manual_seed(5)
    y, points = torch.randn(30, 2, generator=generator), torch.randn(40, 2, generator=generator)
    rho, orders = torch.tensor([0.8, 0.7]), recursion.observation_orders(30, 7, 0)
    before = torch.get_num_threads()
    alone = (
        recursion.predict_in_turn(y, orders, rho, torch.eye(2)),
        distributions(y, orders, rho, points),
    )
    try:
        torch.set_num_threads(num_threads)
        shared = (
            recursion.predict_in_turn(y, orders, rho, torch.eye(2)),
            distributions(y, orders, rho, points),
        )
    finally:
        torch.set_num_threads(before)
    for one, other in zip(alone, shared, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
