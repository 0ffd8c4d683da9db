"""Tables of sizes of clusters: their distribution, exact draws, parts, distances and ranks."""

import math
from collections import Counter
from functools import partial

import numpy as np
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
    kolmogorov_smirnov,
    log_num_partitions,
    rank_size_band,
    rank_sizes,
    reweighted_kolmogorov_smirnov,
    split_frequencies,
)
from pyro_ext.random_measures.partition import ClusterCounts
from pyro_ext.random_measures.plots import plot_rank_sizes

pytestmark = pytest.mark.usefixtures("float64")


LAWS = {
    "Pitman-Yor": lambda: PitmanYor(0.3, 1.2),
    "generalized gamma": lambda: GeneralizedGammaProcess(1.0, 0.3, 1.0).normalize(),
    "generalized BFRY": lambda: GeneralizedBFRYProcess(1.5, 0.4, 1.3).normalize(),
    "beta prime": lambda: BetaPrimeProcess(3.0, 0.2, 0.8).normalize(),
    "Pareto mixture": lambda: ParetoMixtureProcess(1.5, 0.4, 1.0, 1.5, 2.0, 2.2).normalize(),
}


NOTHING = torch.zeros(2, 2, dtype=torch.long)
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
            fn = PitmanYor(parts[1], parts[0])
        else:
            fn = GeneralizedBFRYProcess(*parts).normalize()
        return FrequencyCounts(fn, number, len(table)).log_prob(table)

    found, expected = log_prob(values), log_prob([value.double() for value in values])
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(expected), rel=2e-7)


def test_tables_count_sizes():
    table = frequency_table(torch.tensor([3, 0, 1, 5, 1, 1, 3]), 5)
    assert table.tolist() == [[1, 3], [3, 2], [5, 1], [0, 0], [0, 0]]


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


def test_batches_have_the_laws_of_their_elements():
    fn = PitmanYor(torch.tensor([0.1, 0.6]), 1.0)
    counts = FrequencyCounts(fn, 40)
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
    "name", [pytest.param(n, marks=pytest.mark.slow if n in MIXED else ()) for n in LAWS]
)
def test_draws_have_their_probabilities(name):
    """A chi-squared test of 600 draws for each distribution, at a level of 1e-4."""
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
    fn = GeneralizedBFRYProcess(30.0, 0.3, 1.2).normalize()
    tables = FrequencyCounts(fn, 2_000).sample((40,))
    labels = fn.partition(2_000).sample((40,))
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


def test_parts_are_no_larger_than_the_whole():
    table = torch.tensor([[1, 40], [10, 6]])
    assert torch.equal(split_frequencies(table, 100, 1), table)


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


def samples(seed):
    generator = np.random.default_rng(seed)
    return generator.zipf(1.8, 80).clip(max=500), generator.zipf(2.2, 60).clip(max=500)


def differences(first, second):
    """Distribution functions at all sizes, by comparing all pairs."""
    points = np.unique(np.concatenate([first, second]))
    shares = [(values[:, None] <= points).mean(0) for values in (first, second)]
    return points, *shares


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("limits", [(1, np.inf), (1, 3), (4, np.inf)])
def test_distances_within_limits_are_those_of_all_pairs(seed, limits):
    first, second = samples(seed)
    tables = frequency_table(first), frequency_table(second)
    points, seen, foretold = differences(first, second)
    inside = (points >= limits[0]) & (points <= limits[1])
    gap = np.abs(seen - foretold)
    plain = kolmogorov_smirnov(*tables, *limits)
    assert float(plain) == pytest.approx(gap[inside].max(), abs=1e-12)
    inside &= (points <= min(first.max(), second.max())) & (foretold > 0) & (foretold < 1)
    inside &= points >= max(first.min(), second.min())
    expected = (gap[inside] / np.sqrt(foretold[inside] * (1 - foretold[inside]))).max()
    weighted = reweighted_kolmogorov_smirnov(*tables, *limits)
    assert float(weighted) == pytest.approx(expected, abs=1e-12)


def test_reweighting_is_by_the_prediction():
    """At one, the shares are 1/4 and 19/20."""
    other, wide = frequency_table([1, 2, 2, 3]), frequency_table([1] * 19 + [3])
    found = reweighted_kolmogorov_smirnov(other, wide)
    assert float(found) == pytest.approx(0.7 / (19 / 400) ** 0.5)
    found = reweighted_kolmogorov_smirnov(wide, other)
    assert float(found) == pytest.approx(0.7 / (3 / 16) ** 0.5)


def test_padding_and_order_of_rows_do_not_matter():
    first, second = samples(0)
    one, other = frequency_table(first), frequency_table(second)
    padded = frequency_table(second, 200)[torch.randperm(200)]
    for distance in (kolmogorov_smirnov, reweighted_kolmogorov_smirnov):
        assert distance(one, padded) == distance(one, other)
        assert distance(padded, one) == distance(other, one)


def test_without_common_sizes_the_distance_is_zero():
    one, other = frequency_table([1, 1]), frequency_table([5, 6])
    assert reweighted_kolmogorov_smirnov(one, other) == 0.0
    assert kolmogorov_smirnov(one, other) == 1.0
    assert kolmogorov_smirnov(one, other, 7) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frequency_table([0, 0]), "counts must contain a positive number"),
        (lambda: frequency_table([1, 2, 3], 2), "num_rows must be at least 3, .* got 2"),
        (
            lambda: FrequencyCounts(PitmanYor(0.3, 1.0), 5).log_prob(frequency_table([4], 2)),
            "value must contain num_samples = 5 samples, got .4",
        ),
        (
            lambda: split_frequencies(frequency_table([99, 1]), 101),
            "num_samples must be at most 100, got 101",
        ),
        *[
            (
                partial(distance, frequency_table([2, 1]), NOTHING),
                "predicted must contain at least one cluster",
            )
            for distance in (kolmogorov_smirnov, reweighted_kolmogorov_smirnov)
        ],
        (lambda: rank_size_band([], torch.ones(1).long()), "tables must be a list of tables, at l"),
    ],
)
def test_wrong_tables_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_ranks_are_those_of_sorted_sizes():
    first, _ = samples(1)
    ordered = np.sort(first)[::-1]
    ranks = torch.arange(1, 90)
    expected = torch.from_numpy(np.pad(ordered, (0, 9)).copy())
    assert torch.equal(rank_sizes(frequency_table(first, 60), ranks), expected)


def test_bands_are_quantiles_at_each_rank():
    draws = [np.random.default_rng(seed).zipf(2.0, 30).clip(max=100) for seed in range(40)]
    ranks = torch.tensor([1, 2, 30, 31])
    band = rank_size_band([frequency_table(draw) for draw in draws], ranks, prob=0.8)
    sizes = np.stack([np.pad(np.sort(draw)[::-1], (0, 1)) for draw in draws])[:, ranks - 1]
    for found, level in zip(band[1:], (0.1, 0.5, 0.9), strict=True):
        np.testing.assert_allclose(found, np.quantile(sizes, level, axis=0))


def test_plot_shows_bands_and_what_was_observed():
    first, second = samples(2)
    observed = frequency_table(first)
    axes = plot_rank_sizes(
        observed, {"model": [frequency_table(second), observed]}, colors={"model": "#112233"}
    )
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == {"model", "observed"} and len(axes.collections) == 1
    assert lines["model"].get_color() == "#112233"
    ranks, sizes = (np.asarray(part) for part in lines["observed"].get_data())
    np.testing.assert_array_equal(sizes, np.sort(first)[::-1][ranks.astype(int) - 1])
    assert ranks[0] == 1 and ranks[-1] == 80
