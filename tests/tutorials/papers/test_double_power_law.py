"""The page on partitions with two power laws: its parts, a short run, and in full its claims."""

import math

import pytest
import torch
from scipy.special import gammaln

PAGE = "double-power-law"
pytestmark = pytest.mark.slow


@pytest.fixture
def double():
    """Float64, which the page computes in and puts back at its end."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_levels_are_where_the_indices_are_reached(names, double):
    """The slope of the mean numbers is within a fourth of a standard error of the index."""
    for measure_of, small, large in names["STEEP"].values():
        measure = measure_of(1.0)
        for level, ratio, index in ((small / 1e3, 1e3, 0.4), (large, 2.0, 2.3)):
            tails = measure.tail(torch.tensor([level, level * ratio]))
            fraction = float(tails[1] / tails[0])
            slope = -math.log(fraction)
            deviation = math.sqrt((1.0 - fraction) / (4_000 * fraction))
            assert abs(slope - index * math.log(ratio)) < 0.25 * deviation


def test_fits_of_one_power_law_are_their_closed_forms(names, double):
    """Density of a Pitman-Yor process at the mode, from its formula, with the prior."""
    found = names["fits"]["news_words"]["Pitman-Yor"]
    mode = names["mode_of"](found)
    theta, sigma = float(mode["concentration"]), float(mode["discount"])
    sizes, numbers = names["TABLES"]["news_words"].double().numpy().T
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
    energy = found.potential(found.potential.layout.unflatten(found.laplace.mode[None]))
    assert -float(energy) == pytest.approx(value, rel=1e-10)


def test_scores_are_zero_for_the_data_themselves(names, double):
    table = names["TABLES"]["news_words"]
    found = names["score"](table, [table, table])
    assert found[:4] == (0.0, 0.0, 0.0, 0.0) and found.largest == float(table[:, 0].max())


def test_predictions_have_as_many_samples_as_the_data(names):
    number = names["number_of"](names["TABLES"]["news_words"])
    for model in names["MODELS"]:
        tables = names["predictions"]["news_words", model]
        assert len(tables) == 4
        assert all(int(table.prod(-1).sum()) == number for table in tables)


def test_chains_start_far_apart_and_far_from_the_truth(names):
    """Starts span their ranges, and each has a parameter that is wrong by a factor of 1.6."""
    starts = names["starts"](8)
    for name, (low, high) in names["RANGES"].items():
        assert float(starts[name].max() / starts[name].min()) == pytest.approx(
            (high / low) ** 0.875
        )
    factors = [(starts[name] / true).log().abs() for name, true in names["TRUTH"].items()]
    assert float(torch.stack(factors).amax(0).min()) > math.log(1.6)


def test_agreement_tells_chains_that_are_apart(names):
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(4, 200, generator=generator).exp()
    rhat = float(names["agreement"]({"mass": draws}).split()[1].rstrip(","))
    apart = draws * torch.tensor([1.0, 1.0, 1.0, 20.0])[:, None]
    assert rhat < 1.02
    assert float(names["agreement"]({"mass": apart, "excess": draws}).split()[1].rstrip(",")) > 1.2


def test_distances_are_judged_at_both_ends(names, double):
    """Posteriors that are right pass; those twice too wide, twice too narrow or elsewhere do not.

    At a level of 1e-3 with 18 degrees of freedom.
    """
    generator = torch.Generator().manual_seed(1)

    def probability(scale, shift):
        squared = []
        for _ in range(6):
            noise = torch.randn(3, 400, generator=generator)
            truth = torch.randn(3, generator=generator)  # from the posterior, of unit variance
            names_of = list(names["TRUTH"])
            draws = dict(zip(names_of, (scale * noise + shift).exp(), strict=True))
            values = dict(zip(names_of, truth.exp().tolist(), strict=True))
            squared.append(names["squared_distance"](draws, values))
        return names["either_end"](squared)

    assert probability(1.0, 0.0) > 1e-3
    for scale, shift in ((2.5, 0.0), (0.4, 0.0), (1.0, 3.0)):
        assert probability(scale, shift) < 1e-3, (scale, shift)
