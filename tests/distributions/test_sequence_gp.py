"""Gaussian processes over padded sequences, against normal distributions of their beginnings."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyro_ext.distributions import CauchyGP, PaddedMultivariateNormal
from pyro_ext.models import time_series


@pytest.mark.usefixtures("float64")
def test_covariances_of_the_cauchy_kernel():
    gram = CauchyGP(length=7.0, scale=1.005, jitter=1e-3).covariance(100)
    torch.testing.assert_close(gram.diagonal(), torch.full((100,), 1.006))
    assert float(gram[3, 10]) == pytest.approx(0.5025) and float(gram[14, 0]) == pytest.approx(
        0.201
    )
    assert float(torch.linalg.eigvalsh(gram)[0]) >= 0.001
    assert time_series.CauchyGP is CauchyGP


@pytest.mark.usefixtures("float64")
def test_density_is_that_of_the_beginning():
    lengths = torch.tensor([5, 3, 1, 0])
    prior = CauchyGP().prior(lengths, 5)
    z = prior.sample((2,))
    by_step = prior.log_prob_by_step(z)
    for i, length in enumerate(lengths.tolist()):
        for end in range(1, length + 1):
            gram = CauchyGP().covariance(end)
            expected = MultivariateNormal(torch.zeros(end), gram).log_prob(z[:, i, :end])
            torch.testing.assert_close(by_step[:, i, :end].sum(-1), expected)
        assert bool((by_step[:, i, length:] == 0).all())
    torch.testing.assert_close(prior.log_prob(z), by_step.sum(-1))
    torch.testing.assert_close(prior.variance, torch.full((4, 5), 1.006))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types(dtype):
    """Factors are computed in float64, which small jitters need."""
    prior = CauchyGP(length=50.0, jitter=1e-8).prior(torch.tensor([100]), 100, dtype)
    assert prior.sample().dtype == prior.log_prob(torch.zeros(1, 100, dtype=dtype)).dtype == dtype
    assert PaddedMultivariateNormal(torch.eye(3, dtype=torch.int64)).sample().dtype == torch.float32


@pytest.mark.statistical
@pytest.mark.usefixtures("float64")
def test_draws_have_the_covariance():
    """Entries of 20,000 draws within five standard errors; false alarms 1e-5."""
    torch.manual_seed(0)
    gram = CauchyGP().covariance(4)
    draws = CauchyGP().prior(torch.tensor(2), 4).sample((20_000,))
    error = ((gram**2 + gram.diagonal()[:, None] * gram.diagonal()) / len(draws)).sqrt()
    assert bool(((draws.T @ draws / len(draws) - gram).abs() < 5 * error).all())


def test_arguments_are_checked():
    factor = torch.eye(3)
    for arguments, message in (
        ((torch.ones(3, 2),), "scale_tril must have the shape"),
        ((factor, torch.tensor(4)), "lengths must be from 0 to 3, got from 4 to 4"),
        ((factor.expand(2, 3, 3), torch.tensor([1, 2, 3])), "lengths must broadcast"),
    ):
        with pytest.raises(ValueError, match=message):
            PaddedMultivariateNormal(*arguments)
    for size in (1, 2, 4):
        with pytest.raises(ValueError, match=rf"value must have .*3\), got \({size},\)"):
            PaddedMultivariateNormal(factor).log_prob(torch.zeros(size))
    with pytest.raises(ValueError, match="jitter must be larger, got 1e-30.* of 300 steps"):
        # All ones, exactly: no factor in whatever order LAPACK adds.
        CauchyGP(length=1e20, scale=1.0, jitter=1e-30).prior(torch.tensor(300), 300)
