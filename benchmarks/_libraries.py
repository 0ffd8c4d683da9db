"""BlackJAX, posteriors and Pyro on the problems of the comparisons, each as its users write it.

Every chain draws its own minibatches: with replacement, inside the jitted or vectorized step, but
Pyro's without, by the plate of the model.
"""

from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from _common import Array
from _problems import BATCH_SIZE, FRICTION, Problem, start

__all__ = ["BlackJAXChains", "EagerPyro", "PosteriorsChains", "jax_on"]


def jax_on(device: torch.device) -> Any:
    """The module of JAX, which goes to the processor where it has nothing else.

    :raises RuntimeError: where that is not the device that is asked for.
    """
    import jax

    if device.type != "cpu" and jax.default_backend() == "cpu":
        raise RuntimeError(f"JAX is installed without {device.type}")
    return jax


class BlackJAXChains:
    """Chains of BlackJAX, a jitted scan over steps.

    :param Problem problem: the problem.
    :param str algorithm: ``"SGLD"`` or ``"SGHMC"``; the latter is made of BlackJAX's gradient
        estimator and diffusion, since its own kernel draws momenta anew for every minibatch.
    :param int num_chains: number of chains.
    """

    def __init__(self, problem: Problem, algorithm: str, num_chains: int) -> None:
        import blackjax

        jax = jax_on(problem.device)
        inputs, labels = (jax.numpy.asarray(part.numpy(force=True)) for part in problem.arguments)
        log_likelihood = (
            _logistic_log_likelihood(jax)
            if problem.name == "logistic regression"
            else _network_log_likelihood(jax)
        )
        gradient = blackjax.sgmcmc.gradients.grad_estimator(
            partial(_log_prior, jax), log_likelihood, len(inputs)
        )
        if algorithm == "SGLD":
            sgld = blackjax.sgld(gradient)

            def update(key: Any, state: Any, batch: Any) -> Any:
                return (sgld.step(key, state[0], batch, problem.step_size),)

        else:
            diffusion = blackjax.sgmcmc.diffusions.sghmc(FRICTION)

            def update(key: Any, state: Any, batch: Any) -> Any:
                return diffusion(key, *state, gradient(state[0], batch), problem.step_size**0.5)

        def step(state: Any, key: Any) -> Any:
            batch_key, noise_key = jax.random.split(key)
            index = jax.random.randint(batch_key, (BATCH_SIZE,), 0, len(inputs))
            return update(noise_key, state, (inputs[index], labels[index]))

        def step_of_all(state: Any, key: Any) -> Any:
            if num_chains == 1:
                return step(state, key), None
            return jax.vmap(step)(state, jax.random.split(key, num_chains)), None

        def run(state: Any, key: Any, num_steps: int) -> Any:
            return jax.lax.scan(step_of_all, state, jax.random.split(key, num_steps))[0]

        position = {
            name: jax.numpy.asarray(value[0] if num_chains == 1 else value)
            for name, value in start(problem, num_chains).items()
        }
        num_parts = 1 if algorithm == "SGLD" else 2
        momentum = jax.tree.map(jax.numpy.zeros_like, position)
        self._state = (position, momentum)[:num_parts]
        self._key = jax.random.key(0)
        self._run = jax.jit(run, static_argnums=2)
        self._jax = jax
        self._num_chains = num_chains

    def advance(self, num_steps: int) -> None:
        """Take steps."""
        self._key, key = self._jax.random.split(self._key)
        self._state = self._jax.block_until_ready(self._run(self._state, key, num_steps))

    def params(self) -> dict[str, Array]:
        """Return the current parameters of the chains."""
        return {
            name: np.array(value[None] if self._num_chains == 1 else value)
            for name, value in self._state[0].items()
        }


class PosteriorsChains:
    """Chains of posteriors, vectorized by ``torch.vmap`` where there are several.

    :param Problem problem: the problem.
    :param str algorithm: ``"SGLD"`` or ``"SGHMC"``.
    :param int num_chains: number of chains.
    """

    def __init__(self, problem: Problem, algorithm: str, num_chains: int) -> None:
        import posteriors
        import tensordict

        inputs, labels = problem.arguments
        is_logistic = problem.name == "logistic regression"

        def log_posterior(params: Any, batch: Any) -> Any:
            rows, targets = batch
            if is_logistic:
                logits = rows @ params["weight"] + params["bias"]
                loss = torch.nn.functional.binary_cross_entropy_with_logits(
                    logits, targets.to(logits.dtype), reduction="sum"
                )
            else:
                hidden = torch.tanh(rows @ params["weight0"] + params["bias0"])
                logits = hidden @ params["weight1"] + params["bias1"]
                loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
            squares = sum(value.square().sum() for value in params.values())
            return -len(inputs) / BATCH_SIZE * loss - 0.5 * squares, torch.tensor([])

        if algorithm == "SGLD":
            transform = posteriors.sgmcmc.sgld.build(log_posterior, lr=problem.step_size)
        else:
            transform = posteriors.sgmcmc.sghmc.build(
                log_posterior, lr=problem.step_size**0.5, alpha=FRICTION, momenta=0.0
            )
        position = {
            name: torch.from_numpy(np.asarray(value)).to(inputs.device)
            for name, value in start(problem, num_chains).items()
        }
        self._inputs, self._labels = inputs, labels
        self._num_chains = num_chains
        if num_chains == 1:
            self._index_shape: tuple[int, ...] = (BATCH_SIZE,)
            self._state = transform.init({name: value[0] for name, value in position.items()})
            self._update = transform.update
        else:
            # States of plain dictionaries cannot be stacked, those of tensor dictionaries can.
            self._index_shape = (num_chains, BATCH_SIZE)
            batched = tensordict.TensorDict(position, batch_size=[num_chains])
            self._state = torch.stack([transform.init(one) for one in batched.unbind(0)])
            self._update = torch.vmap(
                partial(transform.update, inplace=False), randomness="different"
            )

    def advance(self, num_steps: int) -> None:
        """Take steps."""
        for _ in range(num_steps):
            index = torch.randint(len(self._inputs), self._index_shape, device=self._inputs.device)
            batch = self._inputs[index], self._labels[index]
            self._state, _ = self._update(self._state, batch)

    def params(self) -> dict[str, Array]:
        """Return the current parameters of the chains."""
        return {
            name: (value[None] if self._num_chains == 1 else value).cpu().numpy().copy()
            for name, value in self._state.params.items()
        }


class EagerPyro:
    """Chains of a Pyro model without any compiler, with Pyro's validation as it is by default.

    :param Problem problem: the problem.
    :param str algorithm: ``"SGLD"`` or ``"SGHMC"``.
    :param int num_chains: number of chains.
    """

    def __init__(self, problem: Problem, algorithm: str, num_chains: int) -> None:
        self._model, self._arguments = problem.model, problem.arguments
        self._step_size = problem.step_size**0.5
        # Langevin dynamics is what is left where nothing of the momentum stays.
        self._decay = 1.0 if algorithm == "SGLD" else FRICTION * self._step_size
        device = problem.arguments[0].device
        values = {
            name: torch.from_numpy(np.asarray(value)).to(device)
            for name, value in start(problem, num_chains).items()
        }
        self._params = [
            {name: value[chain].clone().requires_grad_() for name, value in values.items()}
            for chain in range(num_chains)
        ]
        self._momenta = [
            {name: torch.zeros_like(value) for name, value in params.items()}
            for params in self._params
        ]

    def advance(self, num_steps: int) -> None:
        """Take steps."""
        for _ in range(num_steps):
            for params, momenta in zip(self._params, self._momenta, strict=True):
                self._step(params, momenta)

    def params(self) -> dict[str, Array]:
        """Return the current parameters of the chains."""
        return {
            name: torch.stack([params[name] for params in self._params]).numpy(force=True)
            for name in self._params[0]
        }

    def _step(self, params: dict[str, torch.Tensor], momenta: dict[str, torch.Tensor]) -> None:
        conditioned = pyro.poutine.condition(self._model, data=params)
        log_joint = pyro.poutine.trace(conditioned).get_trace(*self._arguments).log_prob_sum()
        gradients = torch.autograd.grad(log_joint, list(params.values()))
        with torch.no_grad():
            for (name, param), gradient in zip(params.items(), gradients, strict=True):
                noise = (2 * self._decay) ** 0.5 * torch.randn_like(param)
                momentum = momenta[name]
                momentum.mul_(1 - self._decay).add_(self._step_size * gradient + noise)
                param += self._step_size * momentum


def _log_prior(jax: Any, params: Any) -> Any:
    return -0.5 * sum(jax.numpy.sum(jax.numpy.square(value)) for value in params.values())


def _logistic_log_likelihood(jax: Any) -> Any:
    def log_likelihood(params: Any, datum: Any) -> Any:
        row, label = datum
        logit = row @ params["weight"] + params["bias"]
        return label * logit - jax.numpy.logaddexp(0.0, logit)

    return log_likelihood


def _network_log_likelihood(jax: Any) -> Any:
    def log_likelihood(params: Any, datum: Any) -> Any:
        row, label = datum
        hidden = jax.numpy.tanh(row @ params["weight0"] + params["bias0"])
        return jax.nn.log_softmax(hidden @ params["weight1"] + params["bias1"])[label]

    return log_likelihood
