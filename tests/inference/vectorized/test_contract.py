"""What a kernel of one's own has to keep to, and what the errors say where it does not."""

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference import MCMC, VectorizedKernel
from pyro_ext.inference.vectorized import Info


def model():
    pyro.sample("x", dist.Normal(0.0, 1.0))


class Reversed(NamedTuple):
    energy: torch.Tensor
    position: torch.Tensor


class Kernel(VectorizedKernel):
    def __init__(self, model=None, *, scale=1.0, **options):
        super().__init__(model, **options)
        self.width = scale

    def _init(self, position, keys):
        return Reversed(position[:, 0], position)

    def _step(self, state, function, noise, **schedules):
        return state, Info(function(state.position)[0])


def test_states_begin_with_the_position():
    with pytest.raises(TypeError, match="named tuple whose first field is position, got Reversed"):
        MCMC(Kernel(model), 2, progress=False).run()


def test_arguments_are_attributes_of_their_names():
    with pytest.raises(TypeError, match=r"Kernel must keep its arguments \['scale'\]"):
        Kernel(model).settings()
