"""The page on misspecified models: its parts against exact answers."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference import PosteriorBootstrap

PAGE = "misspecified-models"
pytestmark = pytest.mark.slow


def test_least_squares(parts):
    x, y = parts["uneven"](40, torch.Generator().manual_seed(0))
    best, of_model, sandwich = parts["least_squares"](x, y)
    design, response = x.numpy(), y.numpy()
    expected, *_ = np.linalg.lstsq(design, response, rcond=None)
    np.testing.assert_allclose(best, expected)
    residual = response - design @ expected
    bread = np.linalg.inv(design.T @ design)
    np.testing.assert_allclose(of_model, np.mean(residual**2) * bread)
    meat = sum(e**2 * np.outer(row, row) for e, row in zip(residual, design, strict=True))
    np.testing.assert_allclose(sandwich, bread @ meat @ bread)


def test_weighted_lines(parts):
    x, y = parts["uneven"](20, torch.Generator().manual_seed(1))
    weights = torch.rand(3, 20)
    for found, row in zip(parts["weighted_lines"](weights, x, y), weights.sqrt(), strict=True):
        expected, *_ = np.linalg.lstsq((row[:, None] * x).numpy(), (row * y).numpy(), rcond=None)
        np.testing.assert_allclose(found, expected)


def test_penalty_is_the_log_prior(parts):
    """But for a constant; with the prior of the model the draws are the same."""
    slopes = torch.tensor([0.5, -3.0])
    distribution = dist.StudentT(2.0, 0.0, 1.0)
    expected = (distribution.log_prob(torch.zeros(2)) - distribution.log_prob(slopes)).sum() / 7
    torch.testing.assert_close(parts["penalty"](7, {"slopes": slopes}), expected)
    (x, y), _ = parts["halves"](0)
    x = x[:, :2]
    prior = PosteriorBootstrap(
        parts["logistic"], 5, include_prior=True, seed=0, progress=False
    ).run(x, y)
    options = {"regularizer": lambda params: parts["penalty"](len(x), params)}
    own = PosteriorBootstrap(parts["logistic"], 5, seed=0, progress=False, **options).run(x, y)
    torch.testing.assert_close(
        own.get_samples()["slopes"], prior.get_samples()["slopes"], atol=1e-3, rtol=0
    )


def test_mode_and_deviations(parts):
    """By derivatives of the model's own joint density."""
    (x, y), _ = parts["halves"](0)
    x = x[:, :4]
    mode, deviations = parts["mode_and_deviations"](x, y)

    def energy(flat):
        values = {"slopes": flat[:-1], "intercept": flat[-1]}
        model = pyro.poutine.condition(parts["logistic"], values)
        return -pyro.poutine.trace(model).get_trace(x, y).log_prob_sum()

    flat = torch.cat([mode["slopes"][0], mode["intercept"]])
    gradient = torch.autograd.functional.jacobian(energy, flat)
    assert float(gradient.abs().max()) < 1e-3
    curvature = torch.autograd.functional.hessian(energy, flat)
    expected = torch.linalg.inv(curvature).diagonal()[:-1].sqrt()
    torch.testing.assert_close(deviations, expected, rtol=1e-3, atol=0)


def test_log_score(parts):
    """Two draws, one of which is certain and the other knows nothing."""
    draws = {"slopes": torch.tensor([[0.0], [100.0]]), "intercept": torch.zeros(2)}
    x, y = torch.tensor([[1.0], [-1.0]]), torch.tensor([1.0, 0.0])
    assert parts["log_score"](draws, x, y) == pytest.approx(np.log(0.75))


def test_heavy_columns(parts):
    from scipy.stats import kurtosis
    from sklearn.datasets import load_breast_cancer

    source = load_breast_cancer()
    expected = np.argsort(-kurtosis(source.data))[:10]
    assert set(parts["heavy"].tolist()) == set(expected.tolist())


def test_over_dispersed_counts(parts):
    """The page's truths: the mean of the counts, and an interval of draws."""
    assert parts["holds"](torch.linspace(0.0, 1.0, 101), 0.1)
    assert not parts["holds"](torch.linspace(0.0, 1.0, 101), 0.96)
    torch.testing.assert_close(parts["widths"](torch.linspace(0.0, 1.0, 101)), torch.tensor(0.9))


@pytest.mark.page
def test_full_run_meets_its_claims_but_one(full_run):
    failing = [claim for claim in full_run.report.claims if not claim.holds]
    assert len(failing) == 1 and "On 30 columns intervals" in failing[0].statement
    assert failing[0].reason and full_run.returncode == 1
