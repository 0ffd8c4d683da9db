"""The Dirichlet distribution that stands for an ensemble, in numbers."""

import pytest
import torch
from torch.distributions import Dirichlet, kl_divergence

from pyro_ext.models.ensembles._dirichlet_proxy import (
    dirichlet_proxy,
    dirichlet_proxy_loss,
    student_concentration,
)

MEMBERS = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.6, 0.1, 0.3]], dtype=torch.float64)


def test_precision_and_concentration() -> None:
    proxy = dirichlet_proxy(MEMBERS.log())
    assert float(proxy.precision) == pytest.approx(22.7315, abs=1e-4)
    assert proxy.concentration.tolist() == pytest.approx([14.639, 5.546, 5.546], abs=1e-3)


def test_the_precision_of_many_draws_is_near_that_of_their_dirichlet_distribution() -> None:
    torch.manual_seed(0)
    wide = Dirichlet(torch.tensor([200.0, 300.0, 500.0], dtype=torch.float64))
    precision = dirichlet_proxy(wide.sample((4000,)).log()).precision
    assert float(precision) == pytest.approx(1000.0, rel=0.1)


def test_members_that_agree_leave_everything_finite() -> None:
    sure = torch.tensor([[60.0, 0.0, 0.0]]).log_softmax(-1).expand(3, 2, 3)
    logits = torch.zeros(2, 3, requires_grad=True)
    loss = dirichlet_proxy_loss(logits, sure)
    loss.sum().backward()
    assert logits.grad is not None
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


def test_the_loss_is_a_divergence_up_to_a_constant() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0], [3.0, 2.0, 2.0]], dtype=torch.float64)
    target = dirichlet_proxy(MEMBERS.log()).concentration
    students = Dirichlet(student_concentration(logits))
    # The divergence weighs the mean by the precision, the loss by the sum of the concentration,
    # which is larger by the number of classes.
    exact = kl_divergence(students, Dirichlet(target.expand(2, 3)))
    expected_log = (
        students.concentration.digamma() - students.concentration.sum(-1, keepdim=True).digamma()
    )
    mean, total = MEMBERS.mean(0), target.sum()
    loss = dirichlet_proxy_loss(logits, MEMBERS.log())
    correction = 3.0 * (mean * expected_log).sum(-1)
    difference = (loss * total + correction) - exact
    assert float(difference.diff().abs()) == pytest.approx(0.0, abs=1e-9)
