"""The checks of kernels refuse kernels that are wrong."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference import SGLD
from pyro_ext.testing.kernels import check_gaussian, check_kernel

X = torch.linspace(-1.0, 2.0, 20)
OPTIONS = {"step_size": 1e-3}


def model(x):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x), subsample_size=5) as index:
        pyro.sample("x", dist.Normal(loc.sum(), 1.0), obs=x[index])


class StrongNoise(SGLD):
    def _step(self, state, value_and_gradient, noise, **numbers):
        return super()._step(state, value_and_gradient, 2**0.5 * noise, **numbers)


class NoiseByNumberOfChains(SGLD):
    def _step(self, state, value_and_gradient, noise, **numbers):
        return super()._step(state, value_and_gradient, len(noise) * noise, **numbers)


class NoiseByBackend(SGLD):
    def _step(self, state, value_and_gradient, noise, **numbers):
        sign = -1.0 if self.backend == "eager" else 1.0
        return super()._step(state, value_and_gradient, sign * noise, **numbers)


class OneNoise(SGLD):
    """All chains have the noise of the first."""

    def _plan(self, chains, *args):
        first = chains.keys[:1].expand_as(chains.keys)
        return super()._plan(replace(chains, keys=first), *args)


class GlobalNoise(SGLD):
    def begin(self, numbers, seed, params=None):
        return super().begin(numbers, int(torch.randint(1000, ())), params)


class NoSeed(SGLD):
    def begin(self, numbers, seed, params=None):
        return super().begin(numbers, 0, params)


class Restarting(SGLD):
    """The noise depends on where a run was stopped."""

    def record(self, chains, steps):
        return super().record(replace(chains, keys=chains.keys + chains.step), steps)


class Contagious(SGLD):
    """A chain that is NaN makes all of them so."""

    def record(self, chains, steps):
        spread = 0.0 * chains.position.sum(0)
        state = chains.state._replace(position=chains.position + spread)
        return super().record(replace(chains, state=state), steps)


class Forgetful(SGLD):
    def __init__(self, model=None, *, temperature=1.0, **options):
        super().__init__(model, temperature=1.0, **options)


class WithGraph(SGLD):
    def __getstate__(self):
        return {**super().__getstate__(), "_potential": self.model}


class Lenient(SGLD):
    def __init__(self, model=None, *, temperature=1.0, **options):
        temperature = abs(temperature) if isinstance(temperature, float) else temperature
        super().__init__(model, temperature=temperature, **options)


class Stuck(SGLD):
    def sample(self, params):
        super().sample(params)
        return params


@pytest.mark.parametrize(
    ("check", "kernel_type", "message"),
    [
        ("draws", NoiseByNumberOfChains, "chain 0 alone and among others differ by"),
        ("draws", NoiseByBackend, "draws on 'eager' and 'trace' differ by"),
        ("draws", OneNoise, "draw the same|alone and among others"),
        ("draws", GlobalNoise, "two runs of one seed|generator"),
        ("draws", NoSeed, "seeds 0 and 1 draw the same"),
        ("draws", Restarting, "of a run that stopped on the way to step 2"),
        ("draws", Contagious, "chains beside one that is NaN"),
        ("settings", Forgetful, r"settings that are not the arguments.*temperature.*0\.5"),
        ("settings", WithGraph, "pickled before use carries its potential"),
        ("arguments", Lenient, r"wrong arguments:\n.*temperature=-1.0: taken without an error"),
        ("drivers", Stuck, "Pyro's driver repeats draws of 'loc'"),
    ],
)
def test_kernels_that_are_wrong(check, kernel_type, message):
    with pytest.raises(AssertionError, match=message):
        check_kernel(kernel_type, model, X, options=OPTIONS, checks=[check])


def test_noise_that_is_too_strong():
    check_gaussian(SGLD, options={"step_size": 0.1}, variance=1 / 0.95)
    with pytest.raises(AssertionError, match="the variance is .*, not 1.053: off by .*, with a"):
        check_gaussian(StrongNoise, options={"step_size": 0.1}, variance=1 / 0.95)
