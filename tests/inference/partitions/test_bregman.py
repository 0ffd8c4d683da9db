"""Bregman generators: values by hand, the definition by autograd, and densities of families."""

import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference.partitions import (
    GaussianCovarianceGenerator,
    GaussianGenerator,
    ItakuraSaitoGenerator,
    MultinomialGenerator,
    PoissonGenerator,
)

pytestmark = pytest.mark.usefixtures("float64")

GENERATORS = [
    GaussianGenerator(),
    PoissonGenerator(),
    MultinomialGenerator(),
    ItakuraSaitoGenerator(),
    GaussianCovarianceGenerator(0.3),
]
EACH = pytest.mark.parametrize("generator", GENERATORS, ids=repr)


def means(generator, number):
    """Mean parameters of clusters of three points."""
    return generator.sufficient_statistics(torch.rand(number, 3, 2) + 0.1).mean(1)


@EACH
def test_definition(generator):
    """By the gradient that autograd finds, for many at once and one by one."""
    y, mean = means(generator, 5), means(generator, 5).requires_grad_()
    phi = generator.phi(mean)
    (gradient,) = torch.autograd.grad(phi.sum(), mean)
    expected = generator.phi(y) - phi - ((y - mean) * gradient).sum(-1)
    found = generator.divergence(y, mean)
    assert found.shape == (5,) and (found > 0).all()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(generator.divergence(y[2], mean[2]), expected[2])
    table = generator.divergence(y[:, None], mean)
    torch.testing.assert_close(table.diagonal(), expected)
    torch.testing.assert_close(generator.divergence(y, y), torch.zeros(5), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "generator, distribution",
    [
        (GaussianGenerator(), lambda mean: dist.Normal(mean, 1.0).to_event(1)),
        (PoissonGenerator(), lambda mean: dist.Poisson(mean).to_event(1)),
        (ItakuraSaitoGenerator(), lambda mean: dist.Exponential(1.0 / mean).to_event(1)),
        (MultinomialGenerator(), lambda mean: dist.Multinomial(6, mean / mean.sum())),
    ],
    ids=["normal", "poisson", "exponential", "multinomial"],
)
def test_divergences_are_log_densities(generator, distribution):
    """Up to what the point alone decides, and with a count for each of the six trials."""
    x = torch.tensor([2.0, 1.0, 3.0])
    first, second = torch.tensor([0.5, 1.2, 0.3]), torch.tensor([1.1, 0.2, 2.0])
    one = distribution(first)
    trials = 6 if isinstance(generator, MultinomialGenerator) else 1
    if trials == 6:
        first, second = first / first.sum(), second / second.sum()
    expected = one.log_prob(x) - distribution(second).log_prob(x)
    y = generator.sufficient_statistics(x)
    torch.testing.assert_close(y, x / trials)
    found = generator.divergence(y, second) - generator.divergence(y, first)
    torch.testing.assert_close(trials * found, expected)


def test_covariance_is_the_divergence_of_normals():
    generator = GaussianCovarianceGenerator(0.2)
    clusters = torch.randn(2, 7, 3) * torch.tensor([1.0, 2.0, 0.5]) + 1.0
    y, mean = generator.sufficient_statistics(clusters).mean(1)
    both = [
        dist.MultivariateNormal(x.mean(0), x.T.cov(correction=0) + 0.2 * torch.eye(3))
        for x in clusters
    ]
    expected = torch.distributions.kl_divergence(*both)
    torch.testing.assert_close(generator.divergence(y, mean), expected)


def test_zeros():
    assert PoissonGenerator().divergence(torch.zeros(2), torch.zeros(2)) == 0.0
    assert PoissonGenerator().divergence(torch.ones(2), torch.zeros(2)) == torch.inf
    first, second = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert MultinomialGenerator().divergence(first, first) == 0.0
    torch.testing.assert_close(
        MultinomialGenerator().divergence(first, 0.5 * (first + second)), torch.tensor(2.0).log()
    )


def test_points_that_a_family_does_not_have(subtests):
    for generator, value, wanted in [
        (GaussianGenerator(), torch.nan, "finite numbers"),
        (GaussianCovarianceGenerator(), torch.inf, "finite numbers"),
        (PoissonGenerator(), -1.0, "finite numbers >= 0"),
        (MultinomialGenerator(), -1.0, "finite numbers >= 0"),
        (MultinomialGenerator(), 0.0, "a count > 0 in each row"),
        (ItakuraSaitoGenerator(), 0.0, "finite numbers > 0"),
    ]:
        with subtests.test(generator=generator, value=value, wanted=wanted):
            x = torch.ones(4, 2)
            x[2] = value
            with pytest.raises(ValueError, match=rf"x must hold {wanted}.*in row 2"):
                generator.sufficient_statistics(x)
