"""The models of ``_posterior_models.py`` in NumPyro: the same source with other libraries below it.

A function of that module is given globals in which NumPyro, its distributions and ``jax.numpy``
stand under the names of Pyro, its distributions and PyTorch. Two things are written anew: the loop
over times, which is one of JAX, and the hidden Markov model, a distribution that NumPyro lacks.
"""

from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any

import _posterior_models
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from _posteriors import Posterior
from jax.nn import log_softmax
from jax.scipy.special import logsumexp

__all__ = ["arguments_of", "model_of"]


class DiscreteHMM(dist.Distribution):
    """Hidden Markov model of discrete states, as Pyro's: the first state follows a transition.

    :param initial_logits: of the state before the first. **Shape:** ``(states,)``.
    :param transition_logits: by time, old and new state. **Shape:** ``(times, states, states)``.
    :param observation_dist: of an observation in each state.
    """

    def __init__(self, initial_logits: Any, transition_logits: Any, observation_dist: Any) -> None:
        self.initial_logits = log_softmax(initial_logits)
        self.transition_logits = log_softmax(transition_logits)
        self.observation_dist = observation_dist
        event_shape = (len(transition_logits), *observation_dist.event_shape)
        super().__init__((), event_shape)

    def log_prob(self, value: Any) -> Any:
        """Log probability of observations, with the states summed out."""
        of_states = jnp.expand_dims(value, -1 - self.observation_dist.event_dim)
        likelihoods = self.observation_dist.log_prob(of_states)

        def step(state: Any, inputs: Any) -> tuple[Any, None]:
            transition, likelihood = inputs
            return logsumexp(state[:, None] + transition, 0) + likelihood, None

        inputs = (self.transition_logits, likelihoods)
        return logsumexp(jax.lax.scan(step, self.initial_logits, inputs)[0])


def scan(step: Callable[[Any, Any], Any], state: Any, inputs: Any) -> Any:
    """Give the states after each input, as the function of that name in PyTorch does."""

    def twice(state: Any, each: Any) -> tuple[Any, Any]:
        after = step(state, each)
        return after, after

    return jax.lax.scan(twice, state, inputs)[1]


def _translated() -> dict[str, Any]:
    """Names of the module, with the other libraries and its functions bound to these."""
    names = vars(_posterior_models) | {
        "pyro": numpyro,
        "dist": SimpleNamespace(**vars(dist) | {"DiscreteHMM": DiscreteHMM}),
        "constraints": dist.constraints,
        "torch": SimpleNamespace(**vars(jnp) | {"tensor": jnp.array, "cat": jnp.concatenate}),
    }
    for name, value in vars(_posterior_models).items():
        if isinstance(value, FunctionType) and value.__module__ == _posterior_models.__name__:
            names[name] = FunctionType(value.__code__, names, name, value.__defaults__)
    names["scan"] = scan
    return names


_NAMES = _translated()


def model_of(posterior: Posterior) -> Callable[..., None]:
    """Give the model of a posterior in NumPyro."""
    model: Callable[..., None] = _NAMES[posterior.model.__name__]
    return model


def arguments_of(posterior: Posterior) -> tuple[Any, ...]:
    """Give the arguments of its model as arrays of JAX, which must have 64 bits turned on."""
    return tuple(jnp.asarray(argument.numpy()) for argument in posterior.arguments)
