"""Tables of sizes of clusters: their law, exact draws, and parts of them."""

import math
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare, hypergeom, ks_2samp

from pyro_ext.random_measures import (
    BetaPrimeProcess,
    DirichletProcess,
    FrequencyCounts,
    GeneralizedBFRYProcess,
    GeneralizedGammaProcess,
    ParetoMixtureProcess,
    PitmanYor,
    frequency_table,
    log_num_partitions,
    split_frequencies,
)
from pyro_ext.random_measures.partition import ClusterCounts

pytestmark = pytest.mark.usefixtures("float64")

LAWS = {
    "Pitman-Yor": lambda: PitmanYor(0.3, 1.2),
    "generalized gamma": lambda: GeneralizedGammaProcess(1.0, 0.3, 1.0).normalize(),
    "generalized BFRY": lambda: GeneralizedBFRYProcess(1.5, 0.4, 1.3).normalize(),
    "beta prime": lambda: BetaPrimeProcess(3.0, 0.2, 0.8).normalize(),
    "Pareto mixture": lambda: ParetoMixtureProcess(1.5, 0.4, 1.0, 1.5, 2.0, 2.2).normalize(),
}
MIXED = ("Pareto mixture", "beta prime", "generalized BFRY")  # their draws take quadrature


def partitions(number, most=None):
    """All ways to write a number as a sum."""
    if number == 0:
        yield []
    for first in range(min(number, most or number), 0, -1):
        for rest in partitions(number - first, first):
            yield [first, *rest]


@pytest.mark.parametrize("name", ["Pitman-Yor", "generalized BFRY"])
def test_large_terms_cancel_before_they_are_rounded(name):
    """A table of 3,700,000 samples; the log probability is a difference of millions."""
    sizes = 1_000_000 // (torch.arange(60) + 2)
    table, number = frequency_table(sizes), int(sizes.sum())
    values = [torch.tensor(value, dtype=torch.float32) for value in (1.5, 0.4, 1.3)]

    def log_prob(parts):
        if name == "Pitman-Yor":
            law = PitmanYor(parts[1], parts[0])
        else:
            law = GeneralizedBFRYProcess(*parts).normalize()
        return FrequencyCounts(law, number, len(table)).log_prob(table)

    found, expected = log_prob(values), log_prob([value.double() for value in values])
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(expected), rel=2e-7)


def test_tables_count_sizes():
    table = frequency_table(torch.tensor([3, 0, 1, 5, 1, 1, 3]), 5)
    assert table.tolist() == [[1, 3], [3, 2], [5, 1], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("counts", "match"),
    [
        ([[1, 2]], "counts must have the shape"),
        ([1.5], "counts must be a vector of nonnegative integers"),
        ([-1, 2], "counts must be a vector of nonnegative integers"),
        ([0, 0], "counts must hold a positive number"),
    ],
)
def test_what_are_no_counts_is_refused(counts, match):
    with pytest.raises(ValueError, match=match):
        frequency_table(torch.tensor(counts))


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="num_rows must be at least 3, .* got 2"):
        frequency_table([1, 2, 3], 2)


@pytest.mark.parametrize("counts", [[4], [2, 2], [3, 2, 2, 1, 1], [1] * 7])
def test_number_of_partitions_is_that_of_enumeration(counts):
    """Label vectors in the order of first occurrence, one for each partition."""

    def labels(number, used=0):
        if number == 0:
            yield ()
            return
        for label in range(used + 1):
            for rest in labels(number - 1, max(used, label + 1)):
                yield (label, *rest)

    wanted = sorted(counts)
    number = sum(sorted(Counter(row).values()) == wanted for row in labels(sum(counts)))
    table = frequency_table(counts, 6)
    assert float(log_num_partitions(table)) == pytest.approx(math.log(number), abs=1e-12)


@pytest.mark.parametrize("name", LAWS)
def test_probabilities_of_all_tables_sum_to_one(name):
    counts = FrequencyCounts(LAWS[name](), 5)
    tables = torch.stack([frequency_table(row, 2) for row in partitions(5)])
    assert counts.event_shape == (2, 2)
    log_probs = counts.log_prob(tables)
    assert log_probs.shape == (7,)
    assert float(log_probs.exp().sum()) == pytest.approx(1.0, abs=1e-9)


def test_probabilities_are_those_of_ewens():
    """Ewens' sampling formula of the Dirichlet process."""
    mass, sizes = 1.7, [5, 2, 2, 1, 1, 1]
    number = sum(sizes)
    expected = math.lgamma(number + 1.0) + math.lgamma(mass) - math.lgamma(mass + number)
    for size, times in Counter(sizes).items():
        expected += times * math.log(mass / size) - math.lgamma(times + 1.0)
    found = FrequencyCounts(DirichletProcess(mass), number).log_prob(frequency_table(sizes, 4))
    assert float(found) == pytest.approx(expected, abs=1e-12)


def test_tables_of_another_number_of_samples_are_refused():
    with pytest.raises(ValueError, match="value must be of num_samples = 5 samples, got .4"):
        FrequencyCounts(PitmanYor(0.3, 1.0), 5).log_prob(frequency_table([4], 2))
    with pytest.raises(TypeError, match="measure must be a normalized measure"):
        FrequencyCounts(GeneralizedGammaProcess(1.0, 0.3, 1.0), 5)


def test_batches_have_the_laws_of_their_elements():
    law = PitmanYor(torch.tensor([0.1, 0.6]), 1.0)
    counts = FrequencyCounts(law, 40)
    draws = counts.sample((3,))
    assert draws.shape == (3, 2, 8, 2) and bool((draws.prod(-1).sum(-1) == 40).all())
    each = [
        FrequencyCounts(PitmanYor(sigma, 1.0), 40).log_prob(draws[:, column])
        for column, sigma in enumerate((0.1, 0.6))
    ]
    torch.testing.assert_close(counts.log_prob(draws), torch.stack(each, -1))
    one = FrequencyCounts(PitmanYor(0.1, 1.0), 40).expand((3,))
    assert one.sample().shape == (3, 8, 2) and one.log_prob(draws[:, 0]).shape == (3,)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in MIXED else ()) for n in LAWS],
)
def test_draws_have_their_probabilities(name):
    """A chi-squared test of 600 draws for each law, at a level of 1e-4."""
    counts = FrequencyCounts(LAWS[name](), 5)
    tables = torch.stack([frequency_table(row, 2) for row in partitions(5)])
    expected = counts.log_prob(tables).exp()
    seen = Counter(tuple(draw.flatten().tolist()) for draw in counts.sample((600,)))
    numbers = torch.tensor([float(seen[tuple(table.flatten().tolist())]) for table in tables])
    order = expected.argsort()
    rare = order[expected[order].cumsum(0) * 600 < 10]
    common = [index for index in range(len(tables)) if index not in set(rare.tolist())]
    found = [*numbers[common].tolist(), *([float(numbers[rare].sum())] if len(rare) else [])]
    wanted = [*expected[common].tolist(), *([float(expected[rare].sum())] if len(rare) else [])]
    total = sum(wanted)
    assert sum(found) == 600
    assert chisquare(found, [600 * value / total for value in wanted]).pvalue > 1e-4


@pytest.mark.statistical
def test_long_draws_are_like_those_of_labels():
    """Numbers of clusters and largest sizes of 40 draws of each; level 1e-4 for each of the two."""
    law = GeneralizedBFRYProcess(30.0, 0.3, 1.2).normalize()
    tables = FrequencyCounts(law, 2_000).sample((40,))
    labels = law.partition(2_000).sample((40,))
    assert bool((tables.prod(-1).sum(-1) == 2_000).all())
    others = [frequency_table(row.bincount()) for row in labels]
    numbers = tables[..., 1].sum(-1), torch.stack([table[:, 1].sum() for table in others])
    largest = tables[..., 0].amax(-1), torch.stack([table[-1, 0] for table in others])
    for first, second in (numbers, largest):
        assert ks_2samp(first.numpy(), second.numpy()).pvalue > 1e-4


def test_seeds_give_the_same_draws():
    counts = FrequencyCounts(LAWS["beta prime"](), 50)
    torch.manual_seed(3)
    first = counts.sample((2,))
    torch.manual_seed(3)
    assert torch.equal(first, counts.sample((2,)))


@pytest.mark.statistical
def test_parts_are_hypergeometric():
    """The size of the larger of two clusters in 2,000 parts; a chi-squared test at level 1e-4."""
    table = torch.tensor([[3, 1], [7, 1]])
    generator = torch.Generator().manual_seed(0)
    seeds = torch.randint(2**31, (2_000,), generator=generator).tolist()
    sizes = Counter()
    for seed in seeds:
        part = split_frequencies(table, 9, seed)
        assert int(part.prod(-1).sum()) == 9
        sizes[int(part[-1, 0])] += 1
    probabilities = {size: hypergeom(10, 7, 9).pmf(size) for size in (6, 7)}
    expected = [2_000 * probabilities[size] for size in (6, 7)]
    assert set(sizes) == {6, 7}
    assert chisquare([sizes[6], sizes[7]], expected).pvalue > 1e-4


def test_parts_follow_their_seed_and_are_no_larger_than_the_whole():
    table = torch.tensor([[1, 40], [10, 6]])
    assert torch.equal(split_frequencies(table, 50, 1), split_frequencies(table, 50, 1))
    assert torch.equal(split_frequencies(table, 100, 1), table)
    with pytest.raises(ValueError, match="num_samples must be at most 100, got 101"):
        split_frequencies(table, 101)


def test_the_last_stretch_is_cut_after_its_first_points():
    """Weights that are new have their first point where they start, and the others later ones."""
    starts = torch.tensor([0.0, 2.0, 1.0, 3.0])
    is_new = torch.tensor([False, True, True, True])
    more = torch.tensor([0, 5, 0, 0])
    for number, expected in ((1, [0, 0, 1, 0]), (2, [0, 1, 1, 0])):
        kept = ClusterCounts._earliest(starts, more, is_new, 2.5, number)
        assert kept.tolist() == expected
    # Of all points but one, that of the last weight is missing, whose start is the latest.
    assert ClusterCounts._earliest(starts, more, is_new, 2.5, 7).tolist() == [0, 6, 1, 0]
    assert ClusterCounts._earliest(starts, more, is_new, 2.5, 8).tolist() == [0, 6, 1, 1]
