"""Polya urns against enumeration, Dirichlet distributions and closed moments.

A statistical comparison allows 3.5 standard errors, or the 5e-4 level of a test: a false-alarm rate
of 5e-4 each, for a new seed.
"""

from collections import Counter

import pyro.distributions as dist
import pytest
import scipy.stats
import torch

from pyro_ext.inference.martingale.polya_urn import PolyaUrn
from pyro_ext.random import chain_keys
from pyro_ext.testing.moments import estimate_moment
from pyro_ext.testing.predictive_rules import check_predictive_rule

ALLOWED = 3.5
LEVEL = 5e-4
NUM_DRAWS = 20_000


def begin(rule: PolyaUrn, values: torch.Tensor, num_draws: int = NUM_DRAWS):
    return rule.begin((values,), chain_keys(0, range(num_draws)))


def all_paths(labels: tuple[int, ...], steps: int, concentration: float) -> dict:
    """Probability of each sequence of labels that urns may come to hold."""
    if not steps:
        return {labels: 1.0}
    result: Counter = Counter()
    total = len(labels) + concentration
    for label in range(max(labels) + 2):
        weight = labels.count(label) if label in labels else concentration
        if weight:
            for path, rest in all_paths((*labels, label), steps - 1, concentration).items():
                result[path] += weight / total * rest
    return result


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("size", "steps", "concentration"), [(3, 3, 0.0), (2, 4, 1.7), (1, 4, 0.4)]
)
def test_paths_against_enumeration(size, steps, concentration, float64):
    rule = PolyaUrn(dist.Normal(0.0, 1.0) if concentration else None, concentration)
    state = rule.advance(begin(rule, torch.randn(size)), steps)
    exact = all_paths(tuple(range(size)), steps, concentration)
    assert sum(exact.values()) == pytest.approx(1.0)
    found = Counter(map(tuple, state.value.labels.tolist()))
    assert found.keys() <= exact.keys()
    observed = [found[path] for path in exact]
    expected = [NUM_DRAWS * probability for probability in exact.values()]
    assert min(expected) > 5
    assert scipy.stats.chisquare(observed, expected).pvalue > LEVEL


@pytest.mark.statistical
def test_variance_of_a_weight(float64):
    rule = PolyaUrn()
    population = rule.population(rule.advance(begin(rule, torch.randn(10)), 190))
    assert population.is_shared and population.num_points == 10
    torch.testing.assert_close(population.weights * 200, (population.weights * 200).round())
    exact = 190 * 9 / (10**2 * 11 * 200)
    assert exact == pytest.approx(0.0077727, abs=5e-8)
    weight = population.weights[:, 3]
    assert abs(estimate_moment(weight).z_score(0.1)) < ALLOWED  # also the c.i.d. property
    assert abs(estimate_moment((weight - 0.1) ** 2).z_score(exact)) < ALLOWED


@pytest.mark.statistical
def test_limit_is_dirichlet(float64):
    rule = PolyaUrn()
    weights = rule.limit(begin(rule, torch.randn(10))).weights
    assert scipy.stats.kstest(weights[:, 0].numpy(), scipy.stats.beta(1, 9).cdf).pvalue > LEVEL
    product = estimate_moment(weights[:, 2] * weights[:, 7])
    assert abs(product.z_score(1 / 110)) < ALLOWED


@pytest.mark.statistical
@pytest.mark.parametrize("concentration", [0.5, 5.0])
def test_limit_with_a_base_measure_is_a_dirichlet_process(concentration, float64):
    rule = PolyaUrn(dist.Normal(3.0, 1.0), concentration)
    data = torch.linspace(-1.0, 2.0, 10)
    population = rule.limit(begin(rule, data, 5000))
    rest = population.weights[:, 10:]
    distribution = scipy.stats.beta(concentration, 10)
    assert scipy.stats.kstest(rest.sum(1).numpy(), distribution.cdf).pvalue > LEVEL
    sticks = rest / rest.sum(1, keepdim=True)
    squares = estimate_moment((sticks**2).sum(1))
    assert abs(squares.z_score(1 / (1 + concentration))) < ALLOWED
    relation = scipy.stats.pearsonr(rest.sum(1).numpy(), sticks[:, 0].numpy())
    assert relation.pvalue > LEVEL
    total = concentration + 10
    mean = (10 * 0.5 + concentration * 3) / total
    second = (float((data**2).sum()) + concentration * 10) / total
    draws = population.mean
    assert abs(estimate_moment(draws).z_score(mean)) < ALLOWED
    variance = (second - mean**2) / (total + 1)
    assert abs(estimate_moment((draws - mean) ** 2).z_score(variance)) < ALLOWED


def test_more_atoms_than_one_block_holds(float64):
    rule = PolyaUrn(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), 30.0)
    data = torch.randn(5, 2)
    check_predictive_rule(rule, data, num_steps=(1, 122, 0, 177))
    state = rule.advance(begin(rule, data, 4), 300)
    assert int(state.value.num_labels.max()) > 5 + 64
    points = rule.population(state).values[0]
    assert len(points[..., 0].unique()) == 5 + 4 * (points.shape[1] - 5)


def test_rows_of_several_tensors_stay_together():
    rule = PolyaUrn()
    x, y = torch.arange(5.0), torch.arange(5) * 2
    state = rule.advance(rule.begin((x, y), chain_keys(0, range(3))), 20)
    gap = rule.population(state).expectation(lambda x, y: (y - 2 * x).abs())
    assert torch.equal(gap, torch.zeros(3))


def test_errors(subtests):
    for make, error, message in [
        (lambda: PolyaUrn(concentration=1.0), ValueError, "must be 0 without a base_measure"),
        (
            lambda: begin(PolyaUrn(dist.Normal(0.0, 1.0), 1.0), torch.randn(3, 2), 1),
            ValueError,
            r"with the event \(\) of base_measure, got the shapes \[\(3, 2\)\]",
        ),
        (lambda: PolyaUrn().begin((), chain_keys(0, [0])), ValueError, "got none"),
        (lambda: PolyaUrn().begin(([1.0],), chain_keys(0, [0])), TypeError, r"data\[0\] must be"),
        (
            lambda: PolyaUrn().begin((torch.zeros(3), torch.zeros(4)), chain_keys(0, [0])),
            ValueError,
            r"data\[1\] has 4 rows, but data\[0\] 3",
        ),
    ]:
        with subtests.test(message), pytest.raises(error, match=message):
            make()
