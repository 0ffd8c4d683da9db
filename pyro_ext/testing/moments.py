"""Stationary moments of a sampler's pure step function, for comparison with exact answers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Estimate", "estimate_moment", "simulate"]


class Estimate(NamedTuple):
    """A mean over independent chains and its standard error.

    :param float value: the mean.
    :param float standard_error: its standard error.
    """

    value: float
    standard_error: float

    def z_score(self, exact: float) -> float:
        """Distance from an exact answer in standard errors."""
        return (self.value - exact) / self.standard_error


def simulate(
    step: Callable[..., tuple[Any, Any]],
    state: Any,
    gradient: Callable[[Tensor], Tensor],
    num_steps: int,
    *,
    generator: torch.Generator,
    gradient_noise: float = 0.0,
    **hyperparameters: Any,
) -> Any:
    """Take steps of a sampler with a given gradient, plus noise.

    :param step: pure step of a sampler, as in :mod:`pyro_ext.inference.sgmcmc`.
    :param state: its state; the first entry is the position. **Shape:** ``(num_chains, size)``.
    :param gradient: gradient of the potential at positions.
    :param int num_steps: number of steps.
    :param torch.Generator generator: source of the noise.
    :param float gradient_noise: variance of normal noise added to the gradient.
    :param hyperparameters: keyword arguments of the step.
    :returns: the state after the last step.
    """
    position = state[0]
    numbers = {
        name: torch.as_tensor(value, dtype=position.dtype)
        for name, value in hyperparameters.items()
    }

    def draw() -> Tensor:
        return torch.randn(position.shape, generator=generator, dtype=position.dtype)

    def value_and_gradient(where: Tensor) -> tuple[Tensor, Tensor]:
        noisy = gradient(where)
        if gradient_noise:
            noisy = noisy + gradient_noise**0.5 * draw()
        return where.new_zeros(where.shape[:-1]), noisy

    for _ in range(num_steps):
        state, _ = step(state, value_and_gradient, draw(), **numbers)
    return state


def estimate_moment(products: Tensor) -> Estimate:
    """Mean of a moment over independent chains.

    :param Tensor products: values of the moment, which are first averaged within each chain.
        **Shape:** ``(num_chains, ...)``.
    :returns: mean and standard error over chains.

    Example::

        >>> estimate_moment(torch.tensor([[1.0], [3.0]])).value
        2.0
    """
    means = products.reshape(len(products), -1).mean(-1)
    return Estimate(float(means.mean()), float(means.std() / len(means) ** 0.5))
