"""Stochastic representations: exact values of the losses, what is trained, and what is not."""

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Dirichlet, kl_divergence
from torch.nn.functional import cross_entropy

from pyro_ext.inference.averaging import SWAG
from pyro_ext.models.ensembles import (
    BalancedBatches,
    LearnableScales,
    StochasticRepresentations,
    dirichlet_distillation,
    distillation,
    weighted_distillation,
)

MEMBERS = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.6, 0.1, 0.3]], dtype=torch.float64)
LABELS = torch.tensor([0] * 20 + [1] * 8 + [2] * 4)


def make(norm=False, **options):
    torch.manual_seed(0)
    layers = [nn.Linear(3, 6), nn.BatchNorm1d(6) if norm else nn.Identity(), nn.Tanh()]
    extractor, swag, inputs = nn.Sequential(*layers), SWAG(), torch.randn(32, 3)
    for _ in range(4):
        named = extractor.named_parameters()
        swag.collect({name: p + 0.1 * torch.randn(p.shape) for name, p in named})
    head = options.pop("head", nn.Linear(6, 3))
    batches = [inputs] if norm else None
    model = StochasticRepresentations(
        extractor, swag, head, num_samples=5, batches=batches, seed=0, **options
    )
    return model, extractor, swag, inputs


def mutual_information(probabilities):
    entropies = [Categorical(p).entropy() for p in (probabilities.mean(0), probabilities)]
    return entropies[0] - entropies[1].mean(0)


def test_the_distance_to_the_dirichlet_distribution_of_three_members():
    """Of precision 22.7315 and concentration (14.639, 5.546, 5.546), at a temperature of two."""
    student = torch.tensor([0.3, -0.2, 0.1]).double()
    alpha = 1 + (student / 2).exp()
    expected = alpha.digamma() - alpha.sum().digamma()
    flat = Dirichlet(torch.ones(3).double())
    mean, total = torch.tensor([0.6, 0.2, 0.2]).double(), 14.639 + 2 * 5.546
    wanted = -(mean @ expected) + kl_divergence(Dirichlet(alpha), flat) / total
    found = dirichlet_distillation(student, 2 * MEMBERS.log(), 2.0)
    assert float(found) == pytest.approx(float(wanted), abs=1e-5)


def test_weights_have_a_mean_of_one():
    teachers, student = torch.randn(4, 6, 3), torch.zeros(6, 3)
    each = distillation(student, teachers, 2.0)
    weight = weighted_distillation(student, teachers, 2.0) / each
    assert float(weight.mean()) == pytest.approx(1.0)
    order = mutual_information(teachers.softmax(-1)).argsort()
    assert torch.equal(weight.argsort(descending=True), order)


def test_without_a_scale_all_representations_are_one():
    """The distillation loss is then an entropy, and at its minimum."""
    model, _, swag, inputs = make(scale=0.0)
    found = model.representations(inputs)
    for one in found[1:]:
        assert torch.equal(one, found[0])
    torch.testing.assert_close(model.extractors[0][0].weight, swag.weights()["0.weight"])
    logits = model.head(found)
    loss = distillation(logits[0], logits[1:], 2.0)
    entropy = Categorical(logits=logits[0] / 2.0).entropy()
    torch.testing.assert_close(loss, 4.0 * entropy)
    gradient = torch.autograd.grad(loss.sum(), model.head.weight)[0]
    assert float(gradient.abs().max()) < 1e-5


@pytest.mark.parametrize("variant", ["kd", "kd_weighted", "dirichlet", "none"])
def test_the_loss_is_what_the_docstring_says(variant):
    model, _, _, inputs = make(variant=variant, alpha=0.3, tau=1.5)
    logits = model.head(model.representations(inputs))
    each = [cross_entropy(one, LABELS) for one in logits]
    supervised = 0.5 * (each[0] + sum(each[1:]) / 5)
    losses = {
        "kd": distillation,
        "kd_weighted": weighted_distillation,
        "dirichlet": dirichlet_distillation,
    }
    wanted = supervised
    if variant in losses:
        wanted = 0.7 * supervised + 0.3 * losses[variant](logits[0], logits[1:], 1.5).mean()
    torch.testing.assert_close(model.loss(inputs, LABELS), wanted)


def test_no_gradient_goes_through_teachers():
    teachers = torch.randn(2, 4, 3, requires_grad=True)
    student = torch.randn(4, 3, requires_grad=True)
    for loss in (distillation, weighted_distillation, dirichlet_distillation):
        assert loss(student, teachers, 2.0).requires_grad
        assert (
            torch.autograd.grad(loss(student, teachers, 2.0).sum(), teachers, allow_unused=True)[0]
            is None
        )


def test_only_the_classifier_is_trained():
    """Bit for bit, statistics of batch normalization included; objects of the user are kept."""
    scales = LearnableScales(nn.Linear(6, 3))
    model, extractor, swag, inputs = make(norm=True, head=scales)
    parts = {"extractor": extractor, "scales": scales, "model": model}
    before = {n: copy.deepcopy(part.state_dict()) for n, part in parts.items()}
    batches = BalancedBatches(inputs, LABELS, batch_size=16)
    model.train()
    losses = model.fit(batches, 30, seed=0, progress=False)
    changed = {
        f"{name}.{key}"
        for name, part in parts.items()
        for key, value in part.state_dict().items()
        if not torch.equal(value, before[name][key])
    }
    assert changed == {"model.head.scales"} and len(losses) == 30
    assert extractor.training and not model.training
    assert model.predictive(inputs).probs.shape == (32, 3)


def test_statistics_of_batches_are_those_of_each_draw():
    model, _, _, inputs = make(norm=True)
    for extractor in model.extractors:
        hidden = extractor[0](inputs).mean(0)
        torch.testing.assert_close(extractor[1].running_mean, hidden)
    means = torch.stack([extractor[1].running_mean for extractor in model.extractors])
    assert bool((means.std(0) > 0).all())


def test_without_swag_a_classifier_is_retrained():
    extractor, inputs = nn.Sequential(nn.Linear(3, 6), nn.Tanh()), torch.randn(32, 3)
    model = StochasticRepresentations(extractor, None, nn.Linear(6, 3))
    wanted = cross_entropy(model.head(extractor(inputs)), LABELS)
    torch.testing.assert_close(model.loss(inputs, LABELS), wanted)


def test_a_killed_training_goes_on(tmp_path):
    def trained(num_steps, name):
        model, _, _, inputs = make()
        batches = BalancedBatches(inputs, LABELS, batch_size=16)
        noisy = lambda x: x + 0.1 * torch.randn_like(x)  # noqa: E731
        options = {"augment": noisy, "seed": 0, "progress": False}
        model.fit(batches, num_steps, checkpoint=tmp_path / name, **options)
        return model.head.weight

    whole = trained(20, "whole")
    trained(7, "part")
    assert torch.equal(trained(20, "part"), whole)


def test_a_head_that_is_frozen_is_refused():
    with pytest.raises(ValueError, match="head must have parameters that require"):
        make(head=nn.Linear(6, 3).requires_grad_(False))


def test_the_distance_is_a_divergence_from_the_dirichlet_distribution_up_to_a_constant():
    student = torch.tensor([[1.0, 0.0, -1.0], [3.0, 2.0, 2.0]]).double()
    alpha = 1 + (student / 2).exp()
    target = torch.tensor([14.639, 5.546, 5.546]).double()
    exact = kl_divergence(Dirichlet(alpha), Dirichlet(target.expand(2, 3)))
    # It weighs the mean by the precision, the loss by the sum of the concentration, which is larger
    # by the number of classes.
    expected_log = alpha.digamma() - alpha.sum(-1, keepdim=True).digamma()
    found = dirichlet_distillation(student, 2 * MEMBERS.log()[:, None].expand(3, 2, 3), 2.0)
    difference = found * target.sum() + 3 * (MEMBERS.mean(0) * expected_log).sum(-1) - exact
    assert float(difference.diff().abs()) == pytest.approx(0.0, abs=1e-3)


def test_members_that_agree_leave_everything_finite():
    sure = torch.tensor([60.0, 0.0, 0.0]).expand(3, 2, 3)
    student = torch.zeros(2, 3, requires_grad=True)
    loss = dirichlet_distillation(student, sure, 1.0)
    loss.sum().backward()
    assert loss.isfinite().all() and student.grad.isfinite().all()
