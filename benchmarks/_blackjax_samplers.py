"""Samplers of BlackJAX as its documentation and tests call them, each compiled as a whole.

Functions return one that takes a seed. All of them start as ours do, uniformly between -2 and 2, or
from the prior, and compute in double precision. Their settings are defaults where there are any.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from _common import Array

__all__ = ["Drawn", "JaxDensity", "adjusted", "chees", "pathfinder", "tempered", "unadjusted"]

Drawn = tuple[Array, int]
"""Draws ``(num_chains, num_draws, size)`` and the number of gradients, zero where none is known."""

JaxDensity = Callable[[Any], Any]

_TARGET = 0.9  # acceptance, as of the authors of the method
_STEP_SIZE = 0.1  # of Hamiltonian Monte Carlo, as in BlackJAX's tests
_NUM_LEAPFROGS, _NUM_MOVES, _ESS_THRESHOLD = 10, 10, 0.5
_CHEES_WARMUP = 1000
_NUM_PATHS = 4


def _chains(one: Callable[[Any], Any], num_chains: int) -> Callable[[int], Drawn]:
    """Compile chains that run side by side."""
    import jax

    run = jax.jit(jax.vmap(one))

    def drawn(seed: int) -> Drawn:
        positions, counts = run(jax.random.split(jax.random.PRNGKey(seed), num_chains))
        return np.asarray(positions), int(counts.sum())

    return drawn


def adjusted(
    density: JaxDensity, size: int, num_chains: int, num_steps: int
) -> Callable[[int], Drawn]:
    """Microcanonical sampling with an accept step, tuned by BlackJAX."""
    import blackjax
    import jax
    from blackjax.mcmc import adjusted_mclmc_dynamic as dynamic

    kernel = dynamic.build_kernel(dynamic.make_random_trajectory_length_fn(True))

    def one(key: Any) -> Any:
        start, tune, draw = jax.random.split(key, 3)
        position = jax.random.uniform(start, (size,), minval=-2.0, maxval=2.0)
        state, found, count = blackjax.adjusted_mclmc_find_L_and_step_size(
            kernel,
            density,
            num_steps,
            dynamic.init(position, density, start),
            tune,
            target=_TARGET,
        )

        def record(state: Any, key: Any) -> Any:
            state, info = kernel(
                key,
                state,
                density,
                found.step_size,
                inverse_mass_matrix=found.inverse_mass_matrix,
                integration_steps_params=(found.L / found.step_size,),
            )
            return state, (state.position, info.num_integration_steps)

        _, (positions, counts) = jax.lax.scan(record, state, jax.random.split(draw, num_steps))
        return positions, 2 * (count + counts.sum())  # two gradients a step of this integrator

    return _chains(one, num_chains)


def unadjusted(
    density: JaxDensity, size: int, num_chains: int, num_steps: int
) -> Callable[[int], Drawn]:
    """Microcanonical Langevin Monte Carlo, tuned by BlackJAX."""
    import blackjax
    import jax
    from blackjax.mcmc import mclmc

    kernel = mclmc.build_kernel()

    def one(key: Any) -> Any:
        start, tune, draw = jax.random.split(key, 3)
        position = jax.random.uniform(start, (size,), minval=-2.0, maxval=2.0)
        state, found, count = blackjax.mclmc_find_L_and_step_size(
            kernel, num_steps, mclmc.init(position, density, start), tune, density
        )

        def record(state: Any, key: Any) -> Any:
            settings = found.inverse_mass_matrix, found.L, found.step_size
            state, _ = kernel(key, state, density, *settings)
            return state, state.position

        _, positions = jax.lax.scan(record, state, jax.random.split(draw, num_steps))
        return positions, jax.numpy.asarray(2 * (count + num_steps))

    return _chains(one, num_chains)


def chees(
    density: JaxDensity, size: int, num_chains: int, num_draws: int, masses: str | None
) -> Callable[[int], Drawn]:
    """Hamiltonian Monte Carlo whose lengths many chains find together."""
    import blackjax
    import jax
    import optax

    warmup = blackjax.chees_adaptation(density, num_chains, mass_matrix_estimation=masses)
    optimizer = optax.adam(0.5, b1=0.0, b2=0.95)  # as in BlackJAX's tests

    @jax.jit
    def run(key: Any) -> Any:
        start, tune, draw = jax.random.split(key, 3)
        positions = jax.random.uniform(start, (num_chains, size), minval=-2.0, maxval=2.0)
        (states, found), info = warmup.run(
            tune, positions, _STEP_SIZE, optimizer, _CHEES_WARMUP, max_sampling_steps=num_draws
        )
        step = jax.vmap(blackjax.dynamic_hmc(density, **found).step)

        def record(states: Any, key: Any) -> Any:
            states, info = step(jax.random.split(key, num_chains), states)
            return states, (states.position, info.num_integration_steps)

        _, (drawn, counts) = jax.lax.scan(record, states, jax.random.split(draw, num_draws))
        return drawn.swapaxes(0, 1), counts.sum() + info.info.num_integration_steps.sum()

    def drawn(seed: int) -> Drawn:
        positions, count = run(jax.random.PRNGKey(seed))
        return np.asarray(positions), int(count)

    return drawn


def pathfinder(density: JaxDensity, size: int, num_draws: int) -> Callable[[int], Drawn]:
    """Draws of several paths, resampled by smoothed weights."""
    import blackjax
    import jax

    paths = blackjax.multipathfinder(density)

    @jax.jit
    def run(key: Any) -> Any:
        start, fit, draw = jax.random.split(key, 3)
        positions = jax.random.uniform(start, (_NUM_PATHS, size), minval=-2.0, maxval=2.0)
        state, _ = paths.init(fit, positions)
        return paths.sample(draw, state, num_draws)

    return lambda seed: (np.asarray(run(jax.random.PRNGKey(seed)))[None], 0)


def tempered(
    log_prior: JaxDensity,
    log_likelihood: JaxDensity,
    prior_scale: float,
    size: int,
    num_particles: int,
) -> Callable[[int], tuple[float, float]]:
    """Adaptive tempering, with Hamiltonian moves in units of the particles' variances.

    The function gives the log evidence and the share of the mode whose coordinates are positive.
    """
    import blackjax
    import jax
    from blackjax.smc import extend_params, resampling
    from blackjax.smc.tuning.from_particles import inverse_mass_matrix_from_particles

    def settings(particles: Any) -> Any:
        return extend_params(
            {
                "step_size": _STEP_SIZE,
                "inverse_mass_matrix": inverse_mass_matrix_from_particles(particles),
                "num_integration_steps": _NUM_LEAPFROGS,
            }
        )

    @jax.jit
    def run(key: Any) -> Any:
        start, moves = jax.random.split(key)
        particles = prior_scale * jax.random.normal(start, (num_particles, size))
        smc = blackjax.inner_kernel_tuning(
            blackjax.adaptive_tempered_smc,
            log_prior,
            log_likelihood,
            blackjax.hmc.build_kernel(),
            blackjax.hmc.init,
            resampling.systematic,
            lambda _key, state, _info: settings(state.particles),
            settings(particles),
            num_mcmc_steps=_NUM_MOVES,
            target_ess=_ESS_THRESHOLD,
        )

        def one(carry: Any) -> Any:
            number, state, total = carry
            state, info = smc.step(jax.random.fold_in(moves, number), state)
            return number + 1, state, total + info.log_likelihood_increment

        _, state, total = jax.lax.while_loop(
            lambda carry: carry[1].sampler_state.tempering_param < 1.0,
            one,
            (0, smc.init(particles), 0.0),
        )
        last = state.sampler_state
        return total, (last.weights * (last.particles.sum(-1) > 0)).sum()

    def drawn(seed: int) -> tuple[float, float]:
        total, share = run(jax.random.PRNGKey(seed))
        return float(total), float(share)

    return drawn
