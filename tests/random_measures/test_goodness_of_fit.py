"""Distances of sizes of clusters, ranks and bands."""

import numpy as np
import pytest
import torch

from pyro_ext.random_measures import (
    frequency_table,
    kolmogorov_smirnov,
    rank_size_band,
    rank_sizes,
    reweighted_kolmogorov_smirnov,
)
from pyro_ext.random_measures.plots import plot_rank_sizes

pytestmark = pytest.mark.usefixtures("float64")


def samples(seed):
    generator = np.random.default_rng(seed)
    return generator.zipf(1.8, 80).clip(max=500), generator.zipf(2.2, 60).clip(max=500)


def differences(first, second):
    """Distribution functions at all sizes, by comparing all pairs."""
    places = np.unique(np.concatenate([first, second]))
    shares = [(values[:, None] <= places).mean(0) for values in (first, second)]
    return places, *shares


@pytest.mark.parametrize("seed", range(5))
def test_distance_is_that_of_scipy(seed):
    from scipy.stats import ks_2samp

    first, second = samples(seed)
    found = kolmogorov_smirnov(frequency_table(first), frequency_table(second))
    assert float(found) == pytest.approx(ks_2samp(first, second).statistic, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("limits", [(1, np.inf), (1, 3), (4, np.inf)])
def test_distances_within_limits_are_those_of_all_pairs(seed, limits):
    first, second = samples(seed)
    tables = frequency_table(first), frequency_table(second)
    places, seen, foretold = differences(first, second)
    inside = (places >= limits[0]) & (places <= limits[1])
    gap = np.abs(seen - foretold)
    plain = kolmogorov_smirnov(*tables, *limits)
    assert float(plain) == pytest.approx(gap[inside].max(), abs=1e-12)
    inside &= (places <= min(first.max(), second.max())) & (foretold > 0) & (foretold < 1)
    inside &= places >= max(first.min(), second.min())
    expected = (gap[inside] / np.sqrt(foretold[inside] * (1 - foretold[inside]))).max()
    weighted = reweighted_kolmogorov_smirnov(*tables, *limits)
    assert float(weighted) == pytest.approx(expected, abs=1e-12)


def test_reweighting_is_by_the_prediction():
    one, other = frequency_table([1, 1, 1, 2]), frequency_table([1, 2, 2, 3])
    found = reweighted_kolmogorov_smirnov(one, other)  # 1/2 over the root of 3/16 at one
    assert float(found) == pytest.approx(0.5 / (3 / 16) ** 0.5)
    back = reweighted_kolmogorov_smirnov(other, one)  # the same at one, where 3/4 is predicted
    assert float(back) == pytest.approx(0.5 / (3 / 16) ** 0.5)
    few = frequency_table([1] * 9 + [2, 2, 3])
    found = reweighted_kolmogorov_smirnov(other, few)  # at one, 1/4 against 3/4
    assert float(found) == pytest.approx(0.5 / (3 / 16) ** 0.5)
    wide = frequency_table([1] * 19 + [3])
    found = reweighted_kolmogorov_smirnov(other, wide)  # at one, 1/4 against 19/20
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


@pytest.mark.parametrize("distance", [kolmogorov_smirnov, reweighted_kolmogorov_smirnov])
def test_wrong_arguments_are_refused(distance):
    table = frequency_table([2, 1])
    with pytest.raises(ValueError, match="predicted must hold a cluster"):
        distance(table, torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="least must be at most most, got least=5 and most=3"):
        distance(table, table, 5, 3)


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
    with pytest.raises(ValueError, match="tables must be a list of tables, at least 1"):
        rank_size_band([], ranks)
    with pytest.raises(ValueError, match="prob must be a finite number > 0 and < 1, got 1.0"):
        rank_size_band([frequency_table([1])], ranks, prob=1.0)


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
