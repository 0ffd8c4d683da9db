"""The pages on nonparametric learning: their parts against exact answers.

That they run, briefly and in full, is asked of them with all tutorials, but for the full run of the
page that has a failing claim.
"""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext._pages import find_pages
from pyro_ext.handlers import data_weights
from pyro_ext.inference import PosteriorBootstrap
from pyro_ext.reproduction import Report

TUTORIALS = Path(__file__).parents[2] / "tutorials"
PAGES = {"nonparametric_learning": 7, "misspecified_models": 11}  # and how many claims they have


@pytest.fixture(scope="module")
def short_runs(tmp_path_factory):
    """Names of each page after a short run, and the folder that it saved in."""
    found = {}
    for name in PAGES:
        folder = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYRO_EXT_SMOKE", "1")
            patch.setenv("PYRO_EXT_FIGURES", str(folder))
            patch.delenv("PYRO_EXT_SEEDS", raising=False)
            default = torch.get_default_dtype()
            try:
                names = runpy.run_path(str(TUTORIALS / f"{name}.py"), run_name="__main__")
            finally:
                torch.set_default_dtype(default)
                pyro.clear_param_store()
        found[name] = names, folder
    return found


@pytest.fixture
def parts(short_runs, float64):
    return short_runs["nonparametric_learning"][0]


@pytest.fixture
def wrong(short_runs, float64):
    return short_runs["misspecified_models"][0]


@pytest.mark.parametrize(("name", "num_claims"), PAGES.items())
def test_short_run_saves_a_report_and_figures(name, num_claims, short_runs):
    folder = short_runs[name][1]
    report = Report.load(folder)
    assert report.smoke and report.slug == name.replace("_", "-")
    (page,) = [page for page in find_pages(TUTORIALS) if page.path.stem == name]
    assert [claim.statement for claim in report.claims] == list(page.statements)
    assert len(report.claims) == num_claims
    assert all(path.stat().st_size > 10_000 for path in folder.glob("*.png"))


def test_exact_moments_of_a_mean(parts):
    assert parts["exact_moments"](0.0) == pytest.approx((3.75, 1.4375))
    assert parts["exact_moments"](2.0) == pytest.approx((2.5, 1.3233333))


def test_distance_in_standard_errors(parts):
    """Draws with the exact mean and variance, shifted by three standard errors."""
    draws = torch.linspace(-1.0, 1.0, 101)
    draws = draws * (1.4375 / draws.var(correction=0)).sqrt() + 3.75
    assert parts["distance"](draws, 0.0) < 1e-6
    shifted = draws + 3.0 * (1.4375 / 101) ** 0.5
    assert parts["distance"](shifted, 0.0) == pytest.approx(3.0)


def test_mixture_has_two_minima(parts):
    """On a fine grid of the two locations, with the other order left out."""
    grid = torch.linspace(-6.0, 6.0, 121)
    places = torch.cartesian_prod(grid, grid)
    law = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(len(places), 1, 2)), dist.Normal(places[:, None], 0.7)
    )
    loss = -law.log_prob(parts["clusters"]).mean(-1).reshape(121, 121)
    inner = loss[1:-1, 1:-1]
    shifts = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]
    lowest = torch.stack([loss[1 + a : 120 + a, 1 + b : 120 + b] for a, b in shifts]).amin(0)
    rows, columns = (inner < lowest).nonzero(as_tuple=True)
    found = torch.stack([grid[1 + rows], grid[1 + columns]], -1)
    found = found[found[:, 0] < found[:, 1]]
    torch.testing.assert_close(found, torch.tensor([[-4.0, 2.0], [-2.0, 4.0]]), atol=0.05, rtol=0)


def test_weighted_posterior(parts):
    """By quadrature of the weighted model's density, with its prior."""
    weighted = data_weights("data", parts["weights"])(parts["normal"])
    places = torch.linspace(2.0, 8.0, 601)
    densities = []
    for place in places:
        model = pyro.poutine.condition(weighted, {"mean": place})
        densities.append(pyro.poutine.trace(model).get_trace(parts["y"]).log_prob_sum())
    density = torch.stack(densities).softmax(0)
    mean = float((density * places).sum())
    assert parts["exact_mean"] == pytest.approx(mean, abs=1e-3)
    variance = float((density * (places - mean).square()).sum())
    assert parts["exact_sd"] == pytest.approx(variance**0.5, rel=1e-3)


def test_least_squares(wrong):
    x, y = wrong["uneven"](40, torch.Generator().manual_seed(0))
    best, of_model, sandwich = wrong["least_squares"](x, y)
    design, response = x.numpy(), y.numpy()
    expected, *_ = np.linalg.lstsq(design, response, rcond=None)
    np.testing.assert_allclose(best, expected)
    residual = response - design @ expected
    bread = np.linalg.inv(design.T @ design)
    np.testing.assert_allclose(of_model, np.mean(residual**2) * bread)
    meat = sum(e**2 * np.outer(row, row) for e, row in zip(residual, design, strict=True))
    np.testing.assert_allclose(sandwich, bread @ meat @ bread)


def test_weighted_lines(wrong):
    x, y = wrong["uneven"](20, torch.Generator().manual_seed(1))
    weights = torch.rand(3, 20)
    for found, row in zip(wrong["weighted_lines"](weights, x, y), weights.sqrt(), strict=True):
        expected, *_ = np.linalg.lstsq((row[:, None] * x).numpy(), (row * y).numpy(), rcond=None)
        np.testing.assert_allclose(found, expected)


def test_penalty_is_the_log_prior(wrong):
    """But for a constant; with the prior of the model the draws are the same."""
    slopes = torch.tensor([0.5, -3.0])
    law = dist.StudentT(2.0, 0.0, 1.0)
    expected = (law.log_prob(torch.zeros(2)) - law.log_prob(slopes)).sum() / 7
    torch.testing.assert_close(wrong["penalty"](7, {"slopes": slopes}), expected)
    x, y = wrong["x"][:, :2], wrong["y_half"]
    prior = PosteriorBootstrap(
        wrong["logistic"], 5, include_prior=True, seed=0, progress=False
    ).run(x, y)
    options = {"regularizer": lambda params: wrong["penalty"](len(x), params)}
    own = PosteriorBootstrap(wrong["logistic"], 5, seed=0, progress=False, **options).run(x, y)
    torch.testing.assert_close(
        own.get_samples()["slopes"], prior.get_samples()["slopes"], atol=1e-3, rtol=0
    )


def test_mode_and_deviations(wrong):
    """By derivatives of the model's own joint density."""
    x, y = wrong["x"][:, :4], wrong["y_half"]
    mode, deviations = wrong["mode_and_deviations"](x, y)

    def energy(flat):
        values = {"slopes": flat[:-1], "intercept": flat[-1]}
        model = pyro.poutine.condition(wrong["logistic"], values)
        return -pyro.poutine.trace(model).get_trace(x, y).log_prob_sum()

    flat = torch.cat([mode["slopes"][0], mode["intercept"]])
    gradient = torch.autograd.functional.jacobian(energy, flat)
    assert float(gradient.abs().max()) < 1e-3
    curvature = torch.autograd.functional.hessian(energy, flat)
    expected = torch.linalg.inv(curvature).diagonal()[:-1].sqrt()
    torch.testing.assert_close(deviations, expected, rtol=1e-3, atol=0)


def test_log_score(wrong):
    """Two draws, one of which is certain and the other knows nothing."""
    draws = {"slopes": torch.tensor([[0.0], [100.0]]), "intercept": torch.zeros(2)}
    x, y = torch.tensor([[1.0], [-1.0]]), torch.tensor([1.0, 0.0])
    assert wrong["log_score"](draws, x, y) == pytest.approx(np.log(0.75))


def test_heavy_columns(wrong):
    from scipy.stats import kurtosis
    from sklearn.datasets import load_breast_cancer

    source = load_breast_cancer()
    expected = np.argsort(-kurtosis(source.data))[:10]
    assert set(wrong["heavy"].tolist()) == set(expected.tolist())
    assert [source.feature_names[place] for place in wrong["ERRORS"]] == [
        "concavity error",
        "smoothness error",
        "fractal dimension error",
        "symmetry error",
        "compactness error",
    ]
    assert kurtosis(source.data)[wrong["ERRORS"]].min() > 5


def test_over_dispersed_counts(wrong):
    """The page's truths: the mean of the counts, and an interval of draws."""
    assert wrong["holds"](torch.linspace(0.0, 1.0, 101), 0.1)
    assert not wrong["holds"](torch.linspace(0.0, 1.0, 101), 0.96)
    torch.testing.assert_close(wrong["widths"](torch.linspace(0.0, 1.0, 101)), torch.tensor(0.9))


@pytest.mark.slow
@pytest.mark.full_run
def test_full_run_of_the_page_with_a_failing_claim(tmp_path):
    environment = os.environ | {"PYRO_EXT_FIGURES": str(tmp_path), "MPLBACKEND": "Agg"}
    environment.pop("PYRO_EXT_SMOKE", None)
    result = subprocess.run(
        [sys.executable, str(TUTORIALS / "misspecified_models.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    report = Report.load(tmp_path)
    failing = [claim for claim in report.claims if not claim.holds]
    assert len(failing) == 1 and "On 30 columns intervals" in failing[0].statement
    assert failing[0].reason and result.returncode == 1, result.stderr[-2000:]
