"""What a kernel was made of: settings, copies with other settings, and travel between processes."""

import subprocess
import sys

import cloudpickle
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


def positions(kernel, *args):
    kernel.setup(0, *args)
    return kernel.advance(kernel.begin(range(2), seed=4), 6).position


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


def test_replace_checks_names_and_values():
    with pytest.raises(TypeError, match=r"SGLD has no setting \['friction'\].*step_size"):
        SGLD(normal_mean).replace(friction=1.0)
    with pytest.raises(ValueError, match="step_size"):
        SGLD(normal_mean).replace(step_size=-1.0)


def test_replace_keeps_the_start_of_a_potential_fn():
    kernel = SGLD(potential_fn=lambda z: z["x"].square().sum(), step_size=0.1)
    kernel.initial_params = {"x": torch.ones(2)}
    other = kernel.replace(step_size=0.2)
    other.setup(0)
    assert other.potential.layout.size == 2


@pytest.mark.slow
def test_a_kernel_on_a_closure_travels_to_another_process():
    scale = torch.tensor(3.0)

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, scale))
        pyro.sample("x", dist.Normal(loc, 1.0).expand([len(x)]).to_event(1), obs=x)

    x = torch.ones(10)
    kernel = SGHMC(model, step_size=0.05, friction=1.0)
    expected = positions(kernel, x)

    def there():
        torch.set_num_threads(1)
        kernel.setup(0, x)
        return kernel.advance(kernel.begin(range(2), seed=4), 6).position.tolist()

    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer)())"
    there.__module__ = model.__module__ = "__main__"
    result = subprocess.run(
        [sys.executable, "-c", code], input=cloudpickle.dumps(there), capture_output=True
    )
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.decode().strip() == str(expected.tolist())


def test_kernels_with_other_networks_are_told_apart():
    one, other = (L2E(normal_mean, kinetics=ResidualKinetics((4,), seed=seed)) for seed in (0, 1))
    assert kernel_identity(one) != kernel_identity(other)
