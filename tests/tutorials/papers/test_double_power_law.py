"""The page on partitions with two power laws: its parts, a short run, and in full its claims."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from scipy.special import gammaln

from pyro_ext.potential import Potential

PAGE = "double-power-law"
pytestmark = pytest.mark.slow


def test_fits_of_one_power_law_are_their_closed_forms(parts):
    """Density of a Pitman-Yor process at the mode, from its formula, with the prior."""
    _, mode = parts["fits"]["Pitman-Yor"]
    theta, sigma = float(mode["concentration"]), float(mode["discount"])
    table = parts["TABLES"]["news_words"]
    sizes, numbers = table.double().numpy().T
    total, kinds = float((sizes * numbers).sum()), float(numbers.sum())
    value = gammaln(theta / sigma + kinds) - gammaln(theta / sigma + 1.0)
    value += (kinds - 1.0) * math.log(sigma) + gammaln(theta + 1.0) - gammaln(theta + total)
    value += float((numbers * (gammaln(sizes - sigma) - gammaln(1.0 - sigma))).sum())
    value += gammaln(total + 1.0) - float(
        (numbers * gammaln(sizes + 1.0) + gammaln(numbers + 1.0)).sum()
    )
    # Log-normal prior of theta and the Jacobians of the logarithm and the logit.
    value += -0.5 * ((math.log(theta) - 5.0) / 3.0) ** 2 - math.log(3.0 * math.sqrt(2 * math.pi))
    value += math.log(sigma * (1.0 - sigma))
    potential = Potential(parts["MODELS"]["Pitman-Yor"].with_scaled_tilt, table, backend="eager")
    energy = potential({name: row[None] for name, row in potential.unconstrain(mode).items()})
    assert -float(energy) == pytest.approx(value, rel=1e-10)


def test_scores_are_zero_for_the_data_themselves(parts):
    table = parts["TABLES"]["news_words"]
    found = parts["score"](table, [table, table])
    assert found == {"reweighted KS": 0.0, "largest count": float(table[:, 0].max())}


def test_predictions_have_as_many_samples_as_the_data(names):
    number = int(names["TABLES"]["news_words"].prod(-1).sum())
    for model in names["MODELS"]:
        tables = names["drawn"]["news_words", model, 0]
        assert len(tables) == 4
        assert all(int(table.prod(-1).sum()) == number for table in tables)


def test_chains_start_far_apart(names):
    """Starts span their ranges, each in another order."""
    for name, (low, high) in names["RANGES"].items():
        start = names["STARTS"][name]
        spread = (high / low) ** (1.0 - 1.0 / len(start))
        assert float(start.max() / start.min()) == pytest.approx(spread)


def test_agreement_tells_chains_that_are_apart(names):
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(4, 200, generator=generator).exp()
    apart = draws * torch.tensor([1.0, 1.0, 1.0, 20.0])[:, None]
    assert names["worst_rhat"]({"mass": draws}) < 1.02
    assert names["worst_rhat"]({"mass": apart, "excess": draws}) > 1.2


def test_distances_are_in_the_covariance_of_the_logarithms(parts):
    """Against SciPy's Mahalanobis distance."""
    generator = torch.Generator().manual_seed(1)
    draws = {name: torch.randn(4, 50, generator=generator).exp() for name in parts["TRUTH"]}
    values = dict(zip(draws, (2.0, 0.5, 1.0), strict=True))
    logs = torch.stack([draws[name].flatten().log() for name in values]).numpy()
    truth, precision = np.log(list(values.values())), np.linalg.inv(np.cov(logs))
    distance = mahalanobis(logs.mean(-1), truth, precision)
    assert parts["squared_distance"](draws, values) == pytest.approx(distance**2, rel=1e-10)
