"""The page on divergences of pseudocoresets: its parts, and in full its claims."""

import pytest
import torch

from tests.inference.pseudocoresets.coreset_models import FITS_ARE_SHORT

pytest.importorskip("sklearn")

PAGE = "pseudocoreset-divergences"

pytestmark = [pytest.mark.slow, FITS_ARE_SHORT]


def test_training_sees_no_test_images(names):
    rows = torch.cat([names["whole"][0], names["test"][0]])
    assert len(rows.unique(dim=0)) == len(rows)


def test_coresets_weigh_as_much_as_all_data(names):
    for per_class in (1, 5):
        guide = names["coreset"](per_class, 0)
        assert float(guide.weights.sum()) == pytest.approx(names["NUM_TRAINING"])
        assert guide.pseudodata[1].bincount().tolist() == [per_class] * 10


def test_the_regression_is_exact(names):
    """What is left of the forward divergence, from conjugate posteriors written out."""
    x, y, noise = names["features"], names["targets"], names["NOISE"]
    guide = names["AutoPseudocoreset"](names["regression"], x, y, size=20, weights="scaled", seed=0)

    def posterior(rows, values, weights):
        precision = torch.eye(10).double() + (weights * rows.T) @ rows / noise**2
        mean = torch.linalg.solve(precision, (weights * rows.T) @ values / noise**2)
        return torch.distributions.MultivariateNormal(mean, precision_matrix=precision)

    of_all = posterior(x, y, torch.ones(len(x)).double())
    of_coreset = posterior(*guide.pseudodata, guide.weights.double())
    expected = torch.distributions.kl_divergence(of_all, of_coreset)
    found = names["ForwardKL"]().loss(names["regression"], guide)
    assert found == pytest.approx(float(expected), rel=1e-6)


def test_gains_have_the_sign_that_the_claims_say(names):
    seed = names["SEEDS"][0]
    results, scores = names["results"], names["CoresetScores"]
    before = dict(results)
    results["random", 1, seed] = [scores({}, 2.0), scores({}, 3.0)]
    for name, loss in (("forward", 1.0), ("Wasserstein", 2.25), ("reverse", 1.5)):
        results[name, 1, seed] = [scores({}, loss)]
    assert names["measured"]("nll", "random", 1)[seed] == pytest.approx(2.5)
    assert names["least_gain"]()[seed] == pytest.approx(0.25)
    results.update(before)
