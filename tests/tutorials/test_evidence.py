"""The page on the evidence: its parts against exact answers."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import halfnorm, multivariate_normal, nbinom, pearsonr, poisson

PAGE = "evidence"
pytestmark = pytest.mark.slow


def test_exact_evidence_of_the_rates(parts):
    """SciPy's negative binomial probabilities have the chance of success b / (b + 1)."""
    expected = nbinom.logpmf(parts["counts"].numpy(), 0.5, 0.2 / 1.2).sum()
    assert parts["EXACT"] == pytest.approx(expected)


def test_log_mean_of_the_likelihood(parts):
    """The arithmetic and the harmonic mean over two draws."""
    draws = torch.stack([parts["counts"] + 0.5, parts["counts"] + 0.6])
    counts = parts["counts"].numpy()
    likelihoods = np.exp(poisson.logpmf(counts, draws.numpy()).sum(-1))
    mean, error = parts["log_mean"](draws, 1)
    assert mean == pytest.approx(math.log(likelihoods.mean()))
    assert error == pytest.approx(likelihoods.std(ddof=1) / 2**0.5 / likelihoods.mean())
    harmonic, _ = parts["log_mean"](draws[:, None], -1)
    assert harmonic == pytest.approx(-math.log((1 / likelihoods).mean()))


@pytest.mark.parametrize("width", [0.0, 0.3, 30.0])
def test_quadrature_of_the_noise(parts, width):
    x, y = parts["weight"], parts["sit_ups"]
    covariance = 1.0 + width**2 * np.outer(x, x)

    def joint(noise):
        normal = multivariate_normal(np.full(len(y), 5.0), covariance + noise**2 * np.eye(len(y)))
        return normal.pdf(y) * halfnorm.pdf(noise)

    expected, _ = quad(joint, 0.05, 5.0, points=[0.3, 0.5, 0.8], epsrel=1e-9, epsabs=0.0)
    assert parts["by_quadrature"](x, y, width) == pytest.approx(math.log(expected), abs=1e-4)


def test_columns_are_those_of_the_source(parts):
    """The first man has 191 pounds and 162 sit-ups."""
    from sklearn.datasets import load_linnerud

    pounds = load_linnerud(as_frame=True).target["Weight"]
    assert pearsonr(parts["weight"], pounds).statistic == pytest.approx(1.0)
    torch.testing.assert_close(parts["sit_ups"][0].exp(), torch.tensor(162.0))


def test_shares_of_modes(parts):
    places = torch.tensor([0.1, 0.2, 0.5, 0.9])
    torch.testing.assert_close(parts["shares"](places), torch.tensor([0.5, 0.25, 0.25]))
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(parts["shares"](places, weights), torch.tensor([0.3, 0.3, 0.4]))


def test_exact_shares_of_modes(parts):
    """By a coarser sum over the joint density of the speeds, with their full covariance."""
    times, speeds = parts["times"].numpy(), parts["speeds"].numpy()
    lags = times[:, None] - times
    middles = 0.02 + 0.96 * (np.arange(4000) + 0.5) / 4000
    logs = np.array(
        [
            multivariate_normal.logpdf(
                speeds, cov=25.0 * np.cos(2 * np.pi * each * lags) + 9.0 * np.eye(len(times))
            )
            for each in middles
        ]
    )
    masses = np.exp(logs - logs.max())
    modes = np.digitize(middles, [0.45, 0.78])
    expected = np.bincount(modes, masses) / masses.sum()
    np.testing.assert_allclose(parts["modes"]["exact"], expected, atol=1e-3)


@pytest.mark.page
def test_full_run_meets_its_claims(full_run):
    assert all(claim.holds for claim in full_run.report.claims) and full_run.returncode == 0
