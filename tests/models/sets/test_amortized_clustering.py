"""Clustering by passes: oracles, adversaries, batches, seeds, and training."""

import math
from functools import partial

import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.metrics import adjusted_rand_score

from pyro_ext.checkpoint import CheckpointError
from pyro_ext.inference.training import TrainingDiverged
from pyro_ext.models.sets import (
    AmortizedClusterer,
    FilteringNetwork,
    FilterOutput,
    gaussian_mixtures,
)
from pyro_ext.random_measures.cluster_counts import canonical_labels
from tests.killing import stopping


class Oracle(FilteringNetwork):
    """Takes the cluster of the first point that is left, or of the anchor.

    The clusters of points are what their first feature says, the second one is whatever.
    """

    def __init__(self, logit=10.0, **options):
        super().__init__(2, width=8, num_blocks=1, num_inducing=2, **options)
        self.logit = logit

    def forward(self, x, mask=None, anchor=None):
        first = mask.int().argmax(-1) if anchor is None else anchor
        truth = x[..., 0].round()
        mine = truth == truth.gather(-1, first[..., None])
        logits = torch.where(mine, self.logit, -10.0)
        parameters = torch.cat(
            [truth.gather(-1, first[..., None]), x.new_zeros(*first.shape, 3)], -1
        )
        return FilterOutput(logits, parameters, None)


class Adversary(FilteringNetwork):
    """Has logits of its own making."""

    def __init__(self, logits, **options):
        super().__init__(2, width=8, num_blocks=1, num_inducing=2, **options)
        self.logits = logits

    def forward(self, x, mask=None, anchor=None):
        return FilterOutput(self.logits(x), x.new_zeros(*x.shape[:-2], 4), None)


raw = partial(AmortizedClusterer, standardize=False)


def points_of(labels):
    return torch.stack([labels.float(), torch.randn(labels.shape)], -1)


def small(**options):
    torch.manual_seed(0)
    return FilteringNetwork(2, width=16, num_blocks=1, num_inducing=4, **options)


@pytest.mark.parametrize("anchored", [False, True])
def test_oracle_finds_all_clusters_in_as_many_passes(anchored):
    torch.manual_seed(0)
    labels = torch.randint(6, (40,))
    found = raw(Oracle(anchored=anchored)).cluster(points_of(labels), seed=0)
    assert torch.equal(found.labels, canonical_labels(labels))
    assert adjusted_rand_score(labels, found.labels) == 1.0
    assert int(found.num_passes) == 6 and not bool(found.failed)
    # Parameters and labels are in one order, that of first occurrence, in which no pass need be.
    assert torch.equal(found.parameters[found.labels, 0], labels.float())


def test_sets_of_different_sizes():
    """Each is as it is alone, padding has the label -1, and clusters that are not there zeros."""
    torch.manual_seed(0)
    labels, mask = torch.randint(5, (2, 3, 30)), torch.rand(2, 3, 30) < 0.5
    mask[..., 7] = True
    labels[1, 2] = 3
    x = points_of(labels)
    x[~mask] = math.nan
    clusterer = raw(Oracle())
    found = clusterer.cluster(x, mask)
    assert found.labels.shape == mask.shape and found.parameters.shape == (2, 3, 5, 4)
    assert bool((found.labels[~mask] == -1).all())
    for index in [(0, 0), (0, 2), (1, 1), (1, 2)]:
        alone = clusterer.cluster(x[index][mask[index]])
        number = len(labels[index][mask[index]].unique())
        assert torch.equal(found.labels[index][mask[index]], alone.labels)
        assert torch.equal(found.parameters[index][:number], alone.parameters)
        assert bool((found.parameters[index][number:] == 0).all())
        assert int(found.num_passes[index]) == int(alone.num_passes) == number
        torch.testing.assert_close(found.log_likelihood[index], alone.log_likelihood)


def test_log_likelihood_is_that_of_the_mixture():
    torch.manual_seed(0)
    labels = torch.randint(3, (20,))
    x = points_of(labels)
    found = raw(Oracle()).cluster(x)
    scale = math.log(2.0) + 1e-6  # softplus of zero
    total = torch.zeros(20)
    for label in labels.unique():
        normal = torch.distributions.Normal(torch.tensor([float(label), 0.0]), scale)
        weight = (labels == label).float().mean()
        total += weight * normal.log_prob(x).sum(-1).exp()
    torch.testing.assert_close(found.log_likelihood, total.log().mean())


ADVERSARIES = {
    "nothing": lambda x: torch.full(x.shape[:-1], -5.0),
    "everything": lambda x: torch.full(x.shape[:-1], 5.0),
    "zero": lambda x: torch.zeros(x.shape[:-1]),
    "one": lambda x: -x[..., 0].abs() - 1.0,
    "infinite": lambda x: torch.full(x.shape[:-1], -math.inf),
}


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("name", ADVERSARIES)
def test_any_network_comes_to_an_end(name, anchored):
    torch.manual_seed(0)
    clusterer = raw(Adversary(ADVERSARIES[name], anchored=anchored))
    found = clusterer.cluster(torch.randn(2, 9, 2), seed=0)
    number = 1 if name == "everything" else 9
    assert found.num_passes.tolist() == [number] * 2
    assert found.failed.tolist() == [name != "everything"] * 2
    assert [len(row.unique()) for row in found.labels] == [number] * 2
    short = clusterer.cluster(torch.randn(2, 9, 2), max_passes=4, seed=0)
    assert int(short.num_passes.max()) == min(number, 4) == int(short.labels.max()) + 1
    assert short.failed.tolist() == found.failed.tolist()


def test_logits_that_are_no_numbers_are_reported():
    clusterer = raw(Adversary(lambda x: torch.full(x.shape[:-1], math.nan)))
    with pytest.raises(ValueError, match="network must have logits that are numbers, got NaN"):
        clusterer.cluster(torch.randn(9, 2))


def test_last_pass_takes_what_is_left():
    labels = torch.arange(12) % 4
    found = raw(Oracle()).cluster(points_of(labels), max_passes=3)
    assert found.labels.tolist() == [0, 1, 2, 2] * 3
    assert bool(found.failed) and int(found.num_passes) == 3
    whole = raw(Oracle()).cluster(points_of(labels), max_passes=4)
    assert not bool(whole.failed)


def test_a_point_alone():
    for anchored in (False, True):
        found = AmortizedClusterer(small(anchored=anchored)).cluster(torch.zeros(1, 2))
        assert found.labels.tolist() == [0] and int(found.num_passes) == 1


def test_anchors_follow_the_seed():
    """A network without anchors draws nothing; the generator outside is left alone."""
    x = torch.randn(60, 2)
    for anchored in (False, True):
        clusterer = AmortizedClusterer(small(anchored=anchored))
        torch.manual_seed(3)
        state = torch.get_rng_state()
        found = [clusterer.cluster(x, seed=seed).labels for seed in (0, 0, *range(1, 8))]
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(found[0], found[1])
        assert all(torch.equal(found[0], other) for other in found) == (not anchored)


@pytest.mark.parametrize("anchored", [False, True])
def test_clusters_do_not_depend_on_units(anchored):
    """Of a network that takes what is within 0.7 of the largest; flowers in any units, moved."""
    x = torch.from_numpy(load_iris().data[:, :2])
    network = Adversary(lambda x: x[..., 0] - x[..., 0].max() + 0.7, anchored=anchored).double()
    clusterer = AmortizedClusterer(network)
    units = torch.tensor([1.0, 0.01, 100.0, 0.05, 3.0]).double()[:, None, None]
    sets = units * x + torch.tensor([0.0, 0.0, 0.0, 0.0, 1e4])[:, None, None]
    found = [clusterer.cluster(one, seed=0) for one in sets]
    first = found[0]
    assert 4 < len(first.labels.unique()) < 12
    for one, unit in zip(found, units.flatten(), strict=True):
        assert torch.equal(one.labels, first.labels)
        moved = one.log_likelihood + 2 * unit.log()
        torch.testing.assert_close(moved, first.log_likelihood, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(one.scale, unit * first.scale)
    seen = (x - first.loc) / first.scale
    weights = first.labels.bincount() / len(x)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights), network.density(first.parameters)
    )
    log_prob = mixture.log_prob(seen) - 2 * first.scale.log()
    torch.testing.assert_close(log_prob.mean(), first.log_likelihood)


def test_types_of_numbers():
    x = torch.randn(30, 2, dtype=torch.float64)
    for network in (small(), small().double()):
        found = AmortizedClusterer(network).cluster(x)
        assert found.parameters.dtype == next(network.parameters()).dtype
    as_array = AmortizedClusterer(network).cluster(x.numpy())
    assert torch.equal(as_array.labels, found.labels)
    without = AmortizedClusterer(small(density=None)).cluster(x)
    assert without.parameters is None and without.log_likelihood is None


def test_modes_of_the_network_stay():
    clusterer = AmortizedClusterer(small())
    for training in (True, False):
        clusterer.network.train(training)
        clusterer.cluster(torch.randn(5, 2))
        clusterer.fit(partial(gaussian_mixtures, 2, 9), 1, seed=0, progress=False)
        assert clusterer.network.training == training


def test_wrong_arguments_are_named():
    clusterer = AmortizedClusterer(small())
    x = torch.randn(3, 7, 2)
    for mask in (torch.ones(7, dtype=torch.bool), torch.arange(3)[:, None].expand(3, 7) > 0):
        with pytest.raises(ValueError, match="mask must"):
            clusterer.cluster(x, mask)
    for generator in (lambda: 3.0, lambda: (x,)):
        with pytest.raises(ValueError, match="generator must return points and labels"):
            clusterer.fit(generator, 1, progress=False)
    with pytest.raises(ValueError, match="points of generator must be finite"):
        clusterer.fit(lambda: (x * math.nan, torch.zeros(3, 7, dtype=int)), 1, progress=False)


# Training ----------------------------------------------------------------------------------------

TASKS = partial(gaussian_mixtures, 4, (10, 20), 2)


def parameters_of(clusterer):
    return torch.cat([p.detach().flatten() for p in clusterer.network.parameters()])


def test_training_goes_on_from_a_checkpoint(tmp_path):
    whole = AmortizedClusterer(small())
    losses = whole.fit(TASKS, 6, seed=0, progress=False)

    path = tmp_path / "training"
    with pytest.warns(UserWarning, match="stopped after 4 of 6 steps"):
        failing = stopping(TASKS, 5)
        AmortizedClusterer(small()).fit(failing, 6, seed=0, checkpoint=path, progress=False)
    again = AmortizedClusterer(small())
    assert again.fit(TASKS, 6, checkpoint=path, progress=False) == losses
    assert torch.equal(parameters_of(again), parameters_of(whole))
    with pytest.raises(CheckpointError, match="density_weight"):
        again.fit(TASKS, 6, density_weight=0.5, checkpoint=path, progress=False)


def test_what_is_not_finite_stops_training():
    clusterer = AmortizedClusterer(small())
    huge = partial(torch.optim.SGD, lr=1e30)
    with pytest.raises(TrainingDiverged):
        clusterer.fit(TASKS, 20, optimizer=huge, max_norm=None, seed=0, progress=False)
    assert bool(parameters_of(clusterer).isfinite().all())


@pytest.mark.slow
@pytest.mark.parametrize("anchored", [False, True])
def test_a_trained_network_clusters(anchored):
    torch.manual_seed(0)
    network = FilteringNetwork(2, width=32, num_blocks=1, num_inducing=8, anchored=anchored)
    clusterer = AmortizedClusterer(network)
    tasks = partial(gaussian_mixtures, 16, (30, 60), 3)
    adam = partial(torch.optim.Adam, lr=3e-3, fused=True)
    losses = clusterer.fit(tasks, 400, optimizer=adam, seed=0, progress=False)
    assert sum(losses[-20:]) < sum(losses[:20]) - 25
    x, labels = gaussian_mixtures(40, 60, 3)
    found = clusterer.cluster(x, seed=0)
    scores = [adjusted_rand_score(*pair) for pair in zip(labels, found.labels, strict=True)]
    assert sum(scores) / len(scores) > 0.75
    assert float(found.log_likelihood.median()) > -3.0
