"""Filtering networks: what their outputs depend on, densities, and losses against exact ones."""

import math

import pytest
import torch
from pyro.distributions import Delta
from torch import nn

from pyro_ext.models.sets import (
    DiagonalNormal,
    FilteringNetwork,
    FilterOutput,
    RankOneNormal,
    anchored_filtering_loss,
    gaussian_mixtures,
    labeled_mixtures,
    minimum_filtering_loss,
    random_partitions,
)

NETWORKS = {
    "diagonal": lambda: FilteringNetwork(2, width=16, num_blocks=2, num_inducing=4),
    "anchored": lambda: FilteringNetwork(
        2, "rank_one", anchored=True, width=16, num_blocks=1, num_inducing=4
    ),
    "logits alone": lambda: FilteringNetwork(
        2, None, anchored=True, width=16, num_inducing=4, embedding=nn.Linear(2, 16)
    ),
}


@pytest.fixture(params=NETWORKS)
def network(request, float64):
    torch.manual_seed(0)
    return NETWORKS[request.param]()


def anchors(network, indices):
    return torch.tensor(indices) if network.anchored else None


# Networks ----------------------------------------------------------------------------------------


def test_permuted_points_have_permuted_logits_and_the_same_parameters(network):
    x, order = torch.randn(3, 20, 2), torch.randperm(20)
    anchor = anchors(network, [4, 0, 19])
    moved = None if anchor is None else order.argsort()[anchor]
    output, permuted = network(x, anchor=anchor), network(x[:, order], anchor=moved)
    torch.testing.assert_close(permuted.logits, output.logits[:, order], atol=1e-5, rtol=0)
    if output.parameters is not None:
        torch.testing.assert_close(permuted.parameters, output.parameters, atol=1e-5, rtol=0)
        torch.testing.assert_close(permuted.log_prob, output.log_prob[:, order])


def test_masked_points_have_no_influence(network):
    """Neither numbers nor NaN do, and the points that are left are as a set of their own."""
    x, mask = torch.randn(2, 12, 2), torch.rand(2, 12) < 0.6
    mask[:, 0] = True
    anchor = anchors(network, [0, 0])
    output = network(x, mask, anchor)
    for other in (1e3, math.nan):
        changed = network(x.masked_fill(~mask[..., None], other), mask, anchor)
        assert torch.equal(changed.logits[mask], output.logits[mask])
        if output.parameters is not None:
            assert torch.equal(changed.parameters, output.parameters)
    for row in range(2):
        alone = network(x[row, mask[row]], anchor=anchors(network, 0))
        torch.testing.assert_close(alone.logits, output.logits[row, mask[row]])


def test_a_point_and_an_empty_set(network):
    """A set of one point has an output; so has one that is all masked."""
    x = torch.randn(2, 1, 2)
    mask = torch.tensor([[True], [False]])
    output = network(x, mask, anchors(network, [0, 0]))
    assert bool(output.logits.isfinite().all())


def test_wrong_arguments_are_named(network):
    x, anchor = torch.randn(3, 7, 2), anchors(network, [0, 1, 2])
    with pytest.raises(ValueError, match=r"mask must have the shape \(3, 7\), got \(7,\)"):
        network(x, torch.ones(7, dtype=torch.bool), anchor)
    with pytest.raises(ValueError, match="anchor must be"):
        network(x, anchor=None if network.anchored else torch.zeros(3, dtype=torch.long))
    if network.anchored:
        for wrong in (torch.tensor([0, 1, 7]), torch.tensor([0, -1, 2]), torch.tensor(0)):
            with pytest.raises(ValueError, match="anchor must"):
                network(x, anchor=wrong)
    with pytest.raises(TypeError, match="density must be a name"):
        FilteringNetwork(2, nn.Linear(2, 2))


# Densities ---------------------------------------------------------------------------------------


def test_rank_one_normal_is_multivariate_normal(float64):
    torch.manual_seed(0)
    density, parameters = RankOneNormal(5), torch.randn(3, 11)
    loc, vector, variance = parameters.split((5, 5, 1), -1)
    covariance = nn.functional.softplus(variance)[..., None] * torch.eye(5)
    covariance = covariance + vector[..., None] * vector[..., None, :]
    x = 3.0 * torch.randn(40, 3, 5)
    exact = torch.distributions.MultivariateNormal(loc, covariance).log_prob(x)
    torch.testing.assert_close(density(parameters).log_prob(x), exact, atol=0, rtol=1e-4)
    # The least variance, 1e-6, is what is left; in exact covariances there is none.
    exact = torch.distributions.MultivariateNormal(loc, covariance + 1e-6 * torch.eye(5))
    torch.testing.assert_close(
        density(parameters).log_prob(x), exact.log_prob(x), atol=1e-6, rtol=0
    )


# Losses ------------------------------------------------------------------------------------------


def some_output(labels, density=True):
    log_prob = torch.randn(labels.shape) if density else None
    return FilterOutput(2.0 * torch.randn(labels.shape), None, log_prob)


def losses_written_out(output, labels):
    """The loss of each cluster of one set."""
    found = {}
    for label in labels.unique().tolist():
        target = (labels == label).to(output.logits)
        loss = nn.functional.binary_cross_entropy_with_logits(output.logits, target)
        found[label] = float(loss - output.log_prob[labels == label].mean())
    return found


def test_minimum_loss_is_the_least_of_all_clusters_and_anchors(float64):
    torch.manual_seed(0)
    labels = torch.randint(5, (15,))
    output = some_output(labels)
    expected = losses_written_out(output, labels)
    found = float(minimum_filtering_loss(output, labels))
    assert found == pytest.approx(min(expected.values()))
    anchored = [float(anchored_filtering_loss(output, labels, i)) for i in torch.arange(15)]
    assert anchored == pytest.approx([expected[label] for label in labels.tolist()])
    assert found == pytest.approx(min(anchored))
    assert float(minimum_filtering_loss(output, 40 - 7 * labels)) == pytest.approx(found)


def test_gradient_goes_through_the_least_loss_alone(float64):
    logits = torch.tensor([3.0, 3.0, -3.0, -3.0], requires_grad=True)
    log_prob = torch.zeros(4, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1])
    minimum_filtering_loss(FilterOutput(logits, None, log_prob), labels).backward()
    assert log_prob.grad.tolist() == [-0.5, -0.5, 0.0, 0.0]


# Sets --------------------------------------------------------------------------------------------


@pytest.mark.statistical
def test_half_of_the_other_clusters_are_there():
    """2.5 of 4 on average, of 4,000 sets; the false-alarm rate is 1e-6 (4.9 standard errors)."""
    torch.manual_seed(0)
    labels = random_partitions(4000, 400, max_clusters=4, concentration=20.0)
    number = (labels[..., None] == torch.arange(4)).any(1).sum(-1).double()
    assert abs(float(number.mean()) - 2.5) < 4.9 * math.sqrt(0.75 / 4000)
    assert bool((labels == 0).any(-1).all())


def test_sites_and_seeds_of_sets():
    from pyro import poutine

    torch.manual_seed(3)
    trace = poutine.trace(gaussian_mixtures).get_trace(3, (20, 30))
    assert {"weights", "kept", "labels", "loc", "scale", "x"} <= set(trace.nodes)
    assert bool(torch.as_tensor(trace.log_prob_sum()).isfinite())
    torch.manual_seed(3)
    x, labels = gaussian_mixtures(3, (20, 30))
    assert torch.equal(x, trace.nodes["_RETURN"]["value"][0])
    assert x.shape == (*labels.shape, 2)
    assert int(random_partitions(2, 9, max_clusters=1).max()) == 0


def test_clusters_of_labeled_mixtures_are_classes():
    torch.manual_seed(0)
    classes = torch.tensor([3] * 4 + [7] * 9 + [5] * 2)[torch.randperm(15)]
    points = torch.stack([classes.double(), torch.arange(15.0)], -1)
    x, labels = labeled_mixtures(points, classes, 50, 30, max_clusters=3)
    for found, its in zip(x[..., 0], labels, strict=True):
        pairs = {*zip(its.tolist(), found.tolist(), strict=True)}
        assert len(pairs) == len(its.unique()) == len(found.unique())
    assert len(x[..., 1].unique()) == 15
    with pytest.raises(ValueError, match="max_clusters must be at most the 3 classes, got 4"):
        labeled_mixtures(points, classes, 5, 30, max_clusters=4)


def test_a_density_of_ones_own():
    class Points(nn.Module):
        num_parameters = 2

        def forward(self, parameters):
            return Delta(parameters).to_event(1)

    output = FilteringNetwork(2, Points(), width=8, num_blocks=1, num_inducing=2)(torch.ones(4, 2))
    assert output.parameters.shape == (2,)
    assert DiagonalNormal(3).num_parameters == 6
