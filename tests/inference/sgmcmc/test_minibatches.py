"""Minibatches: shuffled epochs or independent ones, which follow from seed, chain and step."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference import MCMC, SGLD
from pyro_ext.inference.sgmcmc import IndependentMinibatches, Minibatches
from pyro_ext.potential import Plate

PLATES = (Plate("rows", 10, 3, -1), Plate("columns", 6, 2, -2))


def test_an_epoch_takes_each_element_at_most_once():
    rows, columns = Minibatches(PLATES, range(4), seed=0)(0, 9)
    assert rows.shape == (9, 4, 3) and columns.shape == (9, 4, 2)
    for chain in range(4):
        for epoch in range(3):
            taken = rows[3 * epoch : 3 * epoch + 3, chain].flatten().tolist()
            assert len(set(taken)) == 9 and set(taken) <= set(range(10))
            taken = columns[3 * epoch : 3 * epoch + 3, chain].flatten().tolist()
            assert sorted(taken) == list(range(6))


each_source = pytest.mark.parametrize("source", [Minibatches, IndependentMinibatches])


@each_source
def test_epochs_chains_plates_and_seeds_differ(source):
    rows, columns = source(PLATES, range(2), seed=0)(0, 6)
    assert not torch.equal(rows[:3, 0], rows[3:, 0])
    assert not torch.equal(rows[:, 0], rows[:, 1])
    assert not torch.equal(rows, source(PLATES, range(2), seed=1)(0, 6)[0])


@each_source
def test_batches_do_not_depend_on_the_other_chains_nor_on_how_many_are_asked_for(source):
    whole = source(PLATES, range(5), seed=7)(0, 200)
    alone = source(PLATES, range(3, 4), seed=7)
    pieces = [alone(start, 40) for start in (160, 0, 80, 40, 120)]
    order = [1, 3, 2, 4, 0]
    for number in range(2):
        joined = torch.cat([pieces[point][number] for point in order])
        assert torch.equal(joined[:, 0], whole[number][:, 3])


def test_each_element_is_taken_equally_often():
    rows, _ = Minibatches(PLATES, range(1), seed=3)(0, 9000)
    counts = torch.bincount(rows.flatten(), minlength=10).double()
    # 3,000 epochs leave out one element each: 2,700 times each, standard deviation 16.
    assert (counts - 2700).abs().max() < 5 * 16.5


def test_independent_subsets_are_uniform_and_do_not_know_of_each_other():
    """Of ten elements three: each element in 3/10 of 9,000 steps, each pair of steps alike."""
    rows, _ = IndependentMinibatches(PLATES, range(1), seed=3)(0, 9000)
    taken = torch.nn.functional.one_hot(rows[:, 0], 10).sum(1)
    assert int(taken.max()) == 1 and bool((taken.sum(-1) == 3).all())
    # Standard deviations of the counts: (9,000 * 0.3 * 0.7)^(1/2) = 43.
    assert (taken.sum(0) - 2700).abs().max() < 5 * 43.5
    for lag in (1, 64):
        both = (taken[lag:] * taken[:-lag]).sum(0)
        assert (both - 0.09 * (9000 - lag)).abs().max() < 5 * 27.1


@pytest.mark.statistical
@pytest.mark.filterwarnings("ignore:the draws of SGLD are too hot")
def test_the_variance_under_independent_minibatches(float64):
    """That of an autoregression with noise of the gradient, exactly; shuffled ones widen less.

    Mean squares of 200 chains, within 4.5 standard errors: one false alarm in 100,000 seeds.
    """
    x = torch.linspace(-2.0, 2.0, 20)
    step_size, size = 0.02, 2

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x), subsample_size=size) as index:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])

    curvature = len(x) + 0.01
    noise = len(x) ** 2 / size * (1.0 - size / len(x)) * float(x.var())
    exact = (2.0 + step_size * noise) / (curvature * (2.0 - step_size * curvature))
    found = {}
    for source in (Minibatches, IndependentMinibatches):
        kernel = SGLD(model, step_size=step_size, minibatches=source)
        options = {"num_chains": 200, "thinning": 13, "seed": 0, "progress": False}
        mcmc = MCMC(kernel, 40, 40, **options).run(x)
        squares = mcmc.get_samples(group_by_chain=True)["loc"].square().mean(1)
        found[source] = float(squares.mean())
        error = float(squares.std()) / 200**0.5
    assert abs(found[IndependentMinibatches] - exact) < 4.5 * error
    assert found[Minibatches] < exact - 10.0 * error
