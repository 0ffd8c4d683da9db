"""Normal priors in one term: the density is that of the sites, and only sites that may join do."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_ext.potential import Potential
from pyro_ext.potential.evaluation import log_density
from pyro_ext.potential.runner import ModelRunner, joint_normal_density

JOINED = {"matrix", "vector", "in_plate", "plain"}


class OwnNormal(dist.Normal):
    """A distribution of its own, which only looks like a normal one."""

    def log_prob(self, value: Tensor) -> Tensor:
        return 2.0 * super().log_prob(value)


def model() -> None:
    pyro.sample("matrix", dist.Normal(torch.tensor(0.3), 0.7).expand([3, 2]).to_event(2))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    pyro.sample("vector", dist.Normal(torch.arange(4.0), torch.arange(1.0, 5.0)).to_event(1))
    pyro.sample("depends", dist.Normal(0.0, scale).expand([2]).to_event(1))
    with pyro.plate("full", 3):
        pyro.sample("in_plate", dist.Normal(1.0, 2.0))
    with pyro.plate("sampled", 10, subsample_size=4):
        pyro.sample("local", dist.Normal(0.5, 2.0))
    with poutine.scale(scale=3.0):
        pyro.sample("scaled", dist.Normal(1.0, 2.0))
    with poutine.mask(mask=torch.tensor([True, False])), pyro.plate("two", 2):
        pyro.sample("masked", dist.Normal(1.0, 2.0))
    pyro.sample("own_mask", dist.Normal(torch.zeros(2), 1.0).mask(False).to_event(1))
    pyro.sample("own", OwnNormal(0.5, 2.0))
    pyro.sample("plain", dist.Normal(-1.0, 0.1))


@pytest.fixture
def run(float64: None) -> Any:
    runner = ModelRunner(model, (), {})
    flat = torch.linspace(-1.0, 1.5, runner.unconstrained.size).requires_grad_()
    return runner, flat, runner._run_unconstrained(flat, [torch.tensor([7, 1, 2, 5])])


def test_only_sites_that_may_join_do(run: Any) -> None:
    runner, flat, records = run
    _, names = joint_normal_density(flat, records, runner.unconstrained)
    assert set(names) == JOINED


def test_density_and_gradient_are_those_of_the_sites(run: Any) -> None:
    runner, flat, records = run
    joint, _ = joint_normal_density(flat, records, runner.unconstrained)
    expected = sum(records[name].log_prob().sum() for name in JOINED)
    torch.testing.assert_close(joint, expected)
    (gradient,) = torch.autograd.grad(joint, flat, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, flat, retain_graph=True)[0])
    torch.testing.assert_close(
        runner.value(flat, torch.tensor([7, 1, 2, 5])), -log_density(records)
    )


def test_a_single_site_is_left_alone() -> None:
    def single() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    runner = ModelRunner(single, (), {})
    flat = torch.zeros(3)
    records = runner._run_unconstrained(flat, [])
    assert joint_normal_density(flat, records, runner.unconstrained) == (None, ())


def test_sites_of_another_type_are_left_alone() -> None:
    def mixed() -> None:
        for name in "abc":
            pyro.sample(name, dist.Normal(torch.zeros(2), 1.0).to_event(1))
        double = torch.zeros(2, dtype=torch.float64)
        pyro.sample("double", dist.Normal(double, 1.0).to_event(1))

    runner = ModelRunner(mixed, (), {})
    flat = torch.full((8,), 0.3, dtype=torch.float64)
    records = runner._run_unconstrained(flat, [])
    assert set(joint_normal_density(flat, records, runner.unconstrained)[1]) <= {"double"}
    torch.testing.assert_close(runner.value(flat), -log_density(records))


def test_a_prior_scale_that_changes_is_seen() -> None:
    """The graph freezes the scale of a prior, and is made anew when it changes in place."""
    scale = torch.ones(2)

    def priors(scale: Tensor) -> None:
        pyro.sample("a", dist.Normal(torch.zeros(2), scale).to_event(1))
        pyro.sample("b", dist.Normal(torch.zeros(2), scale).to_event(1))

    potential = Potential(priors, scale)
    at = {"a": torch.ones(1, 2), "b": torch.ones(1, 2)}
    before = potential(at)
    scale.fill_(2.0)
    torch.testing.assert_close(potential(at), Potential(priors, scale)(at))
    assert not torch.allclose(before, potential(at))
