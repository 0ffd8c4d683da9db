"""Random partitions as distributions: enumeration, draws against the exact probabilities."""

import math

import pytest
import torch

from pyro_ext.random_measures import DirichletProcess, GeneralizedGammaProcess, PitmanYor
from pyro_ext.random_measures.partition import InverseExponent
from tests.random_measures.references import GAMMA, NOTED, beta_prime, gamma

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.statistical
@pytest.mark.parametrize("discount", [0.3, 0.6])
def test_power_law(discount):
    r"""Clusters grow as :math:`n^\sigma`, by the mean of logarithms at two sizes of one sample.

    The ratio of numbers of clusters differs from its limit by some percent, for all but a few
    seeds in a million.
    """
    torch.manual_seed(0)
    for fn in (gamma(1.0, discount, 1.0).measure().normalize(), PitmanYor(discount, 1.0)):
        labels = fn.partition(100_000).sample((8,))
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


@pytest.mark.parametrize(
    "measure",
    [
        DirichletProcess(1.0),
        DirichletProcess(torch.tensor([1.0, 2.0])),
        GeneralizedGammaProcess(2.0, 0.4, 1.5).normalize(),
        GeneralizedGammaProcess(torch.tensor([1.0, 2.0]), 0.4, 1.5).normalize(),
    ],
)
def test_empty_batches(measure):
    partition = measure.partition(4)
    draws = partition.sample((0,))
    assert draws.shape == (0, *measure.batch_shape, 4)
    found = partition.log_prob(draws)
    assert found.shape == (0, *measure.batch_shape)
    assert found.dtype == partition.log_prob(partition.sample((1,))).dtype


def test_seeds():
    for fn in (PitmanYor(0.4, 1.3), GAMMA.measure().normalize()):
        partition = fn.partition(30)
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
