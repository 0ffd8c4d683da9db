"""Weights in blocks: their moments, their distribution, and concentrations next to zero."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import biject_to, kl_divergence

from pyro_ext.distributions import BlockDirichlet
from pyro_ext.testing.potential import check_potential


def posterior_blocks(num_points: int, concentration: float, num_blocks: int) -> BlockDirichlet:
    """Blocks of observed points, and as many blocks of pseudo ones."""
    size = num_points / num_blocks
    concentrations = [size] * num_blocks + [concentration / num_blocks] * num_blocks
    return BlockDirichlet(torch.tensor(concentrations), [int(size)] * 2 * num_blocks)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("num_blocks", "variance", "pseudo_variance"),
    [(100, 8.1156e-5, 8.1826e-6), (10, 7.4455e-6, 8.1156e-7)],
)
def test_moments_of_weights(num_blocks: int, variance: float, pseudo_variance: float) -> None:
    """The exact Dirichlet over 2 x 100 points and its aggregate over 2 x 10 blocks."""
    fn = posterior_blocks(100, 10.0, num_blocks)
    assert fn.event_shape == (200,)
    torch.testing.assert_close(fn.mean[:100], torch.full((100,), 1.0 / 110.0))
    torch.testing.assert_close(fn.mean[100:], torch.full((100,), 0.1 / 110.0))
    assert float(fn.variance[0]) == pytest.approx(variance, rel=1e-4)
    assert float(fn.variance[150]) == pytest.approx(pseudo_variance, rel=1e-4)


@pytest.mark.statistical
@pytest.mark.usefixtures("float64")
def test_draws_have_the_moments_and_the_marginals() -> None:
    """Six means and variances within 5 standard errors, two KS tests: false-alarm rate 1e-4."""
    torch.manual_seed(0)
    fn = BlockDirichlet(torch.tensor([2.0, 0.3, 0.01]), [2, 1, 3])
    draws = fn.sample((20_000,))
    torch.testing.assert_close(draws.sum(-1), torch.ones(20_000))
    assert torch.equal(draws[:, 0], draws[:, 1]) and torch.equal(draws[:, 3], draws[:, 5])
    error = (fn.variance / 20_000).sqrt()
    assert ((draws.mean(0) - fn.mean).abs() < 5 * error).all()
    squares = (draws - fn.mean).square()
    assert ((squares.mean(0) - fn.variance).abs() < 5 * squares.std(0) / 20_000**0.5).all()
    assert stats.kstest(draws[:, 0] * 2, stats.beta(2.0, 0.31).cdf).pvalue > 4e-5
    assert stats.kstest(draws[:, 2], stats.beta(0.3, 2.01).cdf).pvalue > 4e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_concentrations_next_to_zero(dtype: torch.dtype) -> None:
    """A tiny one leaves nearly all weight on one block, and no draw is NaN."""
    fn = BlockDirichlet(torch.full((50,), 1e-6, dtype=dtype))
    draws = fn.sample((200,))
    assert draws.dtype == dtype and bool(draws.isfinite().all())
    torch.testing.assert_close(draws.sum(-1), torch.ones(200, dtype=dtype))
    assert float(draws.max(-1).values.mean()) > 0.99
    assert len(draws.argmax(-1).unique()) > 30


@pytest.mark.usefixtures("float64")
def test_density_is_that_of_the_totals() -> None:
    fn = BlockDirichlet(torch.tensor([[2.0, 0.7], [1.0, 3.0]]), [2, 3])
    weights = fn.sample()
    totals = torch.stack([weights[:, :2].sum(-1), weights[:, 2:].sum(-1)], -1)
    expected = dist.Dirichlet(fn.concentration).log_prob(totals)
    torch.testing.assert_close(fn.log_prob(weights), expected)
    single = BlockDirichlet(torch.tensor([2.0, 0.7, 1.5]))
    value = single.sample()
    torch.testing.assert_close(
        single.log_prob(value), dist.Dirichlet(single.concentration).log_prob(value)
    )


@pytest.mark.parametrize("sizes", [[1, 2, 3], [1.7, 2.2], [1, 0]])
def test_bad_sizes(sizes: Any) -> None:
    with pytest.raises(ValueError, match="sizes must be 2 integers >= 1"):
        BlockDirichlet(torch.ones(2), sizes)


def test_unequal_weights_in_a_block_have_no_density() -> None:
    fn = BlockDirichlet(torch.ones(2), [2, 1], validate_args=True)
    with pytest.raises(ValueError, match="equal inside each block"):
        fn.log_prob(torch.tensor([0.5, 0.3, 0.2]))


@pytest.mark.usefixtures("float64")
def test_a_latent_site_moves_in_the_totals() -> None:
    """The unconstrained density integrates to one, and the totals have their mean under it."""
    fn = BlockDirichlet(torch.tensor([3.0, 1.5]), [2, 3])
    transform = biject_to(fn.support)
    assert transform.inverse_shape(torch.Size([5])) == (1,)
    assert transform.forward_shape(torch.Size([7, 1])) == (7, 5)
    point = torch.linspace(-40.0, 40.0, 40_001)[:, None]
    weights = transform(point)
    density = (fn.log_prob(weights) + transform.log_abs_det_jacobian(point, weights)).exp()
    assert float(torch.trapezoid(density, point[:, 0])) == pytest.approx(1.0, abs=1e-8)
    mean = torch.trapezoid(density[:, None] * weights, point, dim=0)
    torch.testing.assert_close(mean, fn.mean, atol=1e-8, rtol=0)
    middle = weights[15_000:25_000]
    torch.testing.assert_close(transform(transform.inv(middle)), middle)


def test_a_potential_records_a_latent_site() -> None:
    def model() -> None:
        weights = pyro.sample("weights", BlockDirichlet(torch.tensor([3.0, 1.0, 2.0]), [2, 2, 1]))
        pyro.sample("y", dist.Categorical(weights), obs=torch.tensor(4))

    potential = check_potential(model)
    start = potential.init(3, seed=0)
    assert start["weights"].shape == (3, 2)
    weights = potential.constrain(start)["weights"]
    assert torch.equal(weights[:, 0], weights[:, 1]) and torch.equal(weights[:, 2], weights[:, 3])


@pytest.mark.usefixtures("float64")
def test_entropy_and_divergence_are_those_of_the_totals() -> None:
    one = BlockDirichlet(torch.tensor([[2.0, 0.3], [1.0, 4.0]]), [2, 3])
    other = BlockDirichlet(torch.tensor([1.0, 1.0]), [2, 3])
    totals = dist.Dirichlet(one.concentration), dist.Dirichlet(other.concentration)
    torch.testing.assert_close(one.entropy(), totals[0].entropy())
    torch.testing.assert_close(kl_divergence(one, other), kl_divergence(*totals))
    with pytest.raises(NotImplementedError, match="equal sizes"):
        kl_divergence(one, BlockDirichlet(torch.ones(2), [3, 2]))
