"""What a kernel was made of: settings, copies with other settings, and travel between processes."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference import L2E, SGHMC, SGLD, PolynomialSchedule
from pyro_ext.inference.sgmcmc import ResidualKinetics
from pyro_ext.posterior.identity import kernel_identity


def normal_mean(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x), subsample_size=5) as index:
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])


def test_a_schedule_is_given_back_as_it_was():
    schedule = PolynomialSchedule(0.1)
    kernel = SGLD(normal_mean, step_size=schedule)
    assert kernel.settings()["step_size"] is schedule and kernel.schedule is schedule
    assert kernel.replace(step_size=0.2).schedule.step_size == 0.2


def test_the_default_decay_fits_any_step_size():
    """With friction 100, the former default, no step size above 0.01 was allowed."""
    for step_size in (1e-4, 0.02, 0.5):
        kernel = SGHMC(normal_mean, step_size=step_size)
        assert (kernel.friction, kernel.momentum_decay) == (None, 0.1)


def test_friction_and_momentum_decay_put_each_other_out():
    kernel = SGHMC(normal_mean, step_size=0.1, friction=2.0)
    decaying = kernel.replace(momentum_decay=0.3)
    assert (decaying.friction, decaying.momentum_decay) == (None, 0.3)
    assert decaying.replace(step_size=0.2).momentum_decay == 0.3
    again = decaying.replace(friction=4.0)
    assert (again.friction, again.momentum_decay) == (4.0, None)
    with pytest.raises(ValueError, match="not both"):
        kernel.replace(friction=1.0, momentum_decay=0.1)


def test_replace_keeps_the_start_of_a_potential_fn():
    kernel = SGLD(potential_fn=lambda z: z["x"].square().sum(), step_size=0.1)
    kernel.initial_params = {"x": torch.ones(2)}
    other = kernel.replace(step_size=0.2)
    other.setup(0)
    assert other.potential.layout.size == 2


def test_kernels_with_other_networks_are_told_apart():
    one, other = (L2E(normal_mean, kinetics=ResidualKinetics((4,), seed=seed)) for seed in (0, 1))
    assert kernel_identity(one) != kernel_identity(other)
