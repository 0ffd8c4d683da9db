"""Random partitions as distributions: enumeration, draws against the exact probabilities."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_ext.random_measures import DirichletProcess, PitmanYor
from pyro_ext.random_measures._urn import InverseExponent
from tests.random_measures.references import (
    GAMMA,
    NOTED,
    beta_prime,
    gamma,
    generalized_bfry,
    stable_beta,
)

pytestmark = pytest.mark.usefixtures("float64")


def label_vectors(number):
    """All canonical ones."""
    rows = [[0]]
    for _ in range(number - 1):
        rows = [[*row, label] for row in rows for label in range(max(row) + 2)]
    return torch.tensor(rows)


LAWS = {
    **{str(reference): lambda r=reference: r.measure().normalize() for reference in NOTED},
    "Dirichlet": lambda: DirichletProcess(1.7),
    "Pitman-Yor": lambda: PitmanYor(0.4, 1.3),
    "Pitman-Yor, negative": lambda: PitmanYor(0.6, -0.4),
    "gamma": lambda: gamma(2.0, 0.0, 1.5).measure().normalize(),
    "tilted": lambda: generalized_bfry(1.5, 0.4, 2.3, 1.2, 0.8).measure().normalize(),
    "no tail": lambda: beta_prime(1.5, 0.0, 0.7, 2.0).measure().normalize(),
    "steep": lambda: stable_beta(2.0, 0.6, -0.3).measure().normalize(),
}
# The others take quadrature inside of quadrature, or draw by it.
QUICK = (str(GAMMA), "Dirichlet", "Pitman-Yor", "Pitman-Yor, negative")
EVERY_LAW = pytest.mark.parametrize(
    "law",
    [
        pytest.param(make, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, make in LAWS.items()
    ],
)


@EVERY_LAW
def test_enumeration(law):
    partition, labels = law().partition(4), label_vectors(4)
    value = partition.log_prob(labels)
    assert value.shape == (15,)
    assert value.exp().sum().item() == pytest.approx(1.0, abs=1e-10)
    # The order of the samples and the names of the labels do not matter.
    some = labels[[1, 6, 9]]
    for other in (some.flip(-1), 7 - some):
        torch.testing.assert_close(partition.log_prob(other), value[[1, 6, 9]])


@pytest.mark.statistical
@EVERY_LAW
def test_draws(law):
    """A chi-square test over the fifteen partitions of four samples, in order.

    Each of 12 laws fails for one seed in a million, any of them for one in 80,000.
    """
    torch.manual_seed(0)
    law = law()
    number = 20_000 if isinstance(law, PitmanYor) or "Gamma" in repr(law)[:15] else 500
    partition, every = law.partition(4), label_vectors(4)
    draws = partition.sample((number,))
    assert draws.shape == (number, 4) and draws.dtype == torch.long
    count = Counter(map(tuple, draws.tolist()))
    expected = partition.log_prob(every).exp().numpy() * number
    observed = np.array([count[tuple(row)] for row in every.tolist()])
    assert observed.sum() == number  # all are canonical
    assert stats.chisquare(observed, expected, sum_check=False).pvalue > 1e-6


@pytest.mark.statistical
@pytest.mark.parametrize(
    "law, number",
    [
        (lambda: GAMMA.measure().normalize(), 300),
        (lambda: PitmanYor(0.4, 1.3), 2000),
        (lambda: DirichletProcess(3.0), 2000),
    ],
)
def test_number_of_clusters(law, number):
    """The mean for fifty samples; any of three fails for one seed in 580,000."""
    torch.manual_seed(0)
    law = law()
    draws = law.partition(50).sample((number,)).amax(-1).double() + 1.0
    expected = law.expected_cluster_counts(50).sum()
    assert abs(draws.mean() - expected) < 5.0 * draws.std() / math.sqrt(number)


@pytest.mark.statistical
@pytest.mark.parametrize("discount", [0.3, 0.6])
def test_power_law(discount):
    r"""Clusters grow as :math:`n^\sigma`, by the mean of logarithms at two sizes of one sample.

    The ratio of numbers of clusters differs from its limit by some percent, for all but a few
    seeds in a million.
    """
    torch.manual_seed(0)
    for law in (gamma(1.0, discount, 1.0).measure().normalize(), PitmanYor(discount, 1.0)):
        labels = law.partition(100_000).sample((8,))
        few, many = labels[:, :10_000].amax(-1) + 1.0, labels.amax(-1) + 1.0
        slope = (many.log() - few.log()).mean() / math.log(10.0)
        assert abs(slope - discount) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("reference", [NOTED[1], beta_prime(1.5, 0.0, 0.7, 2.0)], ids=str)
def test_interpolated_arrival_times(reference):
    """Against exact ones, also once a second block of draws reaches further."""
    measure = reference.measure()
    inverse = InverseExponent(measure)
    for high in (3.0, 6.0):
        targets = torch.linspace(-9.0, high, 301)
        expected = measure._inverse_exponent(targets)
        torch.testing.assert_close(inverse(targets), expected, rtol=0, atol=1e-6)


def test_exchangeable_for_one_sample():
    partition = PitmanYor(0.4, 1.3).partition(1)
    assert partition.log_prob(torch.tensor([3])).item() == 0.0
    assert torch.equal(partition.sample((3,)), torch.zeros(3, 1, dtype=torch.long))
    many = GAMMA.measure().normalize().partition(1)
    assert many.log_prob(torch.tensor([0])).item() == pytest.approx(0.0, abs=1e-11)


def test_shapes_and_batches():
    batch = gamma(torch.tensor(2.0), 0.4, 1.5).make(torch.tensor([[0.5], [5.0]]), 0.4, 1.5)
    partition = batch.normalize().partition(6)
    assert partition.batch_shape == (2, 1) and partition.event_shape == (6,)
    draws = partition.sample((3,))
    assert draws.shape == (3, 2, 1, 6)
    value = partition.log_prob(draws)
    assert value.shape == (3, 2, 1)
    for index, mass in enumerate((0.5, 5.0)):
        single = gamma(mass, 0.4, 1.5).measure().normalize().partition(6)
        expected = single.log_prob(draws[:, index])
        torch.testing.assert_close(value[:, index], expected, rtol=1e-9, atol=1e-9)
    wide = single.expand((4, 2))
    assert wide.sample((5,)).shape == (5, 4, 2, 6)
    assert wide.log_prob(torch.zeros(6, dtype=torch.long)).shape == (4, 2)
    both = PitmanYor(torch.tensor([0.0, 0.5]), 1.0).partition(5)
    assert both.log_prob(both.sample((3,))).shape == (3, 2)


def test_seeds():
    for law in (PitmanYor(0.4, 1.3), GAMMA.measure().normalize()):
        partition = law.partition(30)
        torch.manual_seed(3)
        first = partition.sample((5,))
        torch.manual_seed(3)
        assert torch.equal(partition.sample((5,)), first)
        assert not torch.equal(partition.sample((5,)), first)


def test_errors():
    partition = PitmanYor(0.4, 1.3).partition(3)
    for labels in (torch.tensor([0, -1, 1]), torch.tensor([0.5, 0.0, 0.0])):
        with pytest.raises(ValueError, match="within the support"):
            partition.log_prob(labels)
    with pytest.raises(ValueError):
        partition.log_prob(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="num_samples must"):
        PitmanYor(0.4, 1.3).partition(0)
