"""The pages on martingale posteriors: their parts against exact answers.

That they run, briefly and in full, is asked of them with all tutorials.
"""

import math
import runpy
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext._pages import find_pages
from pyro_ext.reproduction import Report

TUTORIALS = Path(__file__).parents[2] / "tutorials"
PAGES = {"martingale_posteriors": 5, "copula_densities": 6}  # and how many claims they have


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
            names = runpy.run_path(str(TUTORIALS / f"{name}.py"), run_name="__main__")
            torch.set_default_dtype(default)
        found[name] = names, folder
    return found


@pytest.fixture
def mean_page(short_runs, float64):
    return short_runs["martingale_posteriors"][0]


@pytest.fixture
def copula_page(short_runs, float64):
    return short_runs["copula_densities"][0]


@pytest.mark.parametrize(("name", "num_claims"), PAGES.items())
def test_short_run_saves_a_report_and_figures(name, num_claims, short_runs):
    folder = short_runs[name][1]
    report = Report.load(folder)
    assert report.smoke and report.slug == name.replace("_", "-")
    (page,) = [page for page in find_pages(TUTORIALS) if page.path.stem == name]
    assert [claim.statement for claim in report.claims] == list(page.statements)
    assert len(report.claims) == num_claims
    assert all(path.stat().st_size > 10_000 for path in folder.glob("*.png"))


def test_columns_are_those_of_the_source(mean_page):
    from sklearn.datasets import load_wine

    source = load_wine()
    place = source.feature_names.index("malic_acid")
    expected = torch.tensor(source.data[:, place])
    torch.testing.assert_close(mean_page["column"](mean_page["wine"], "malic_acid"), expected)


def test_exact_variances(mean_page):
    """At a horizon of one they follow from the law of one observation."""
    n, scale = mean_page["n"], mean_page["SCALE"]
    spread = float(mean_page["few"].var(correction=0))
    one = {"Polya urn": spread, "normal": scale**2 * (1 + 1 / n), "plug-in": scale**2}
    for name, variance in one.items():
        found = mean_page["exact_variance"](name, n + 1)
        assert found == pytest.approx(variance / (n + 1) ** 2)


def test_exact_posterior_under_the_model(mean_page):
    """By the joint normal law of the observations, those of the page and those to come."""
    few, scale, horizon = mean_page["few"], mean_page["SCALE"], mean_page["HORIZON"]
    n, total = len(few), len(few) + horizon
    joint = 0.5**2 * torch.ones(total, total) + scale**2 * torch.eye(total)
    gain = torch.linalg.solve(joint[:n, :n], joint[:n, n:]).T
    mean = 12.0 + gain @ (few - 12.0)
    covariance = joint[n:, n:] - gain @ joint[:n, n:]
    assert mean_page["exact_mean"] == pytest.approx(float(few.sum() + mean.sum()) / total)
    assert mean_page["exact_sd"] == pytest.approx(math.sqrt(float(covariance.sum())) / total)


def test_distance_of_a_median_from_its_law(mean_page):
    """Of three values the median is each with the probabilities 1/4, 1/2 and 1/4."""
    values = torch.tensor([5.0, 1.0, 2.0])
    draws = torch.tensor([1.0, 2.0, 2.0, 5.0])
    assert mean_page["distance_to_exact"](draws, values) == pytest.approx(0.0)
    assert mean_page["distance_to_exact"](torch.full((4,), 5.0), values) == pytest.approx(0.75)
    # A value that comes twice has the probabilities of both.
    twice = torch.tensor([1.0, 1.0, 2.0])
    assert mean_page["distance_to_exact"](torch.ones(4), twice) == pytest.approx(0.25)


def test_functionals_of_logarithms_are_transformed_back(mean_page):
    """A normal law of the logarithms is a log-normal law, whose quantiles are known."""
    loc, scale = torch.tensor([3.0, 3.5]), torch.tensor([0.5, 1.0])
    found = mean_page["of_logarithms"](dist.Normal(loc, scale))
    law = dist.LogNormal(loc, scale)
    lower, median, upper = (law.icdf(torch.tensor(p)) for p in (0.25, 0.5, 0.75))
    torch.testing.assert_close(found["median"], median)
    torch.testing.assert_close(found["range"], upper - lower)
    torch.testing.assert_close(found["share above 100"], 1 - law.cdf(torch.tensor(100.0)))


@pytest.mark.statistical
def test_random_densities_average_to_the_predictive_law(copula_page):
    """The mixture's predictive density given a partition, which the library has in closed form.

    The mean of 2,000 draws is within five standard errors at seven points, where less than one
    seed in 100,000 fails but for the skewness of the draws.
    """
    x, concentration = copula_page["x"], torch.tensor(60.0)  # much weight on new clusters
    labels = (x > 0.7).long()
    pyro.set_rng_seed(0)
    points = torch.linspace(-1.5, 2.5, 7)
    laws = [copula_page["random_density"](labels, concentration) for _ in range(2000)]
    draws = torch.stack([law.log_prob(points).exp() for law in laws])
    mixture = copula_page["NRMMixture"](copula_page["prior"], copula_page["CLUSTER"])
    samples = {"assignment": labels[None], "concentration": concentration[None]}
    exact = mixture.predictive_log_prob(points[:, None], x[:, None], samples).exp()
    errors = (draws.mean(0) - exact) / (draws.std(0) / math.sqrt(len(draws)))
    assert errors.abs().max() < 5


def test_quantiles_of_a_mixture(copula_page):
    law = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([1.0, 0.0])),
        dist.Normal(torch.tensor([0.5, 0.0]), torch.tensor([0.7, 1.0])),
    )
    exact = dist.Normal(0.5, 0.7).icdf(torch.tensor(copula_page["LEVELS"]))
    torch.testing.assert_close(copula_page["quantiles_of"](law), exact, rtol=0, atol=1e-4)


def test_share_outside_a_band(copula_page):
    draws = torch.linspace(0, 1, 101)[:, None].expand(-1, 4)
    density = torch.tensor([0.5, 0.01, 0.99, 0.03])
    assert copula_page["share_outside"](draws, density) == 0.5


def test_usual_width(copula_page):
    """Of a law of bandwidth one half, whose steps are about twice as large as those of a mean."""
    values, run = copula_page["x"], copula_page["run"]
    law = copula_page["CopulaDensity"](0.5).fit(values)
    width, normal = copula_page["widths"](law, values, 60, 0)
    n = len(values)
    assert normal == pytest.approx(math.sqrt(n * (1 / n - 1 / (n + 60))), rel=0.02)
    draws = run(law, copula_page["Mean"](), values, horizon=60, seed=0).get_samples()["theta"]
    usual = float(law.variance.sqrt()) / math.sqrt(n)
    assert width == pytest.approx(float(draws.std()) / usual)
