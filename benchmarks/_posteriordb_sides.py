"""One sampler on one posterior: ``python _posteriordb_sides.py SIDE NAME OUT``.

The file ``OUT`` gets the draws of four chains, the standard output what they cost, as JSON: CPU
seconds until the last draw, imports counted (``first``), and of the same call once more
(``again``, not of nutpie), gradients in the warm-up and after it, divergent draws, and warnings.

Peers compute the density of the same model by NumPyro and JAX in double
precision. NumPyro and BlackJAX take 1,000 steps of warm-up, as their
introductions do; nutpie and ours have a number of their own.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from _posteriors import POSTERIORS, Posterior

Array = npt.NDArray[Any]
Found = dict[str, Any]

NUM_CHAINS, NUM_SAMPLES, PEERS_WARMUP = 4, 1000, 1000


def cpu() -> float:
    """CPU seconds of this process and of its children."""
    return sum(os.times()[:4])


_LOADED = cpu()  # with PyTorch and Pyro, which peers read the models by and which is not theirs


# Ours ---------------------------------------------------------------------------------------------


def ours(posterior: Posterior, **options: Any) -> Found:
    """Draw by the shortest call, and by the same again."""
    from pyro_ext.inference import MCMC, NUTS
    from pyro_ext.potential import Potential

    num_leapfrogs = 0

    class Counted(NUTS):
        """NUTS that says how many gradients its trajectories took."""

        def _record(self, chains: Any, targets: Any) -> Any:
            nonlocal num_leapfrogs
            after, draws = super()._record(chains, targets)
            num_leapfrogs = int(after.state.num_leapfrogs.sum())
            return after, draws

    torch.set_default_dtype(torch.float64)
    arguments = posterior.arguments

    def run(seed: int) -> Any:
        kernel = Counted(posterior.model, **options)
        mcmc = MCMC(kernel, NUM_SAMPLES, num_chains=NUM_CHAINS, seed=seed, progress=False)
        return mcmc.run(*arguments)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mcmc = run(0)
    first = cpu()
    statistics, draws = mcmc.sample_statistics(), mcmc.get_samples(group_by_chain=True)
    sampling = int(statistics["n_steps"].sum())
    warmup = num_leapfrogs - sampling
    before = cpu()
    run(1)
    again = cpu() - before
    potential = Potential(posterior.model, *arguments, backend="eager")
    sites = {name: draws[name].flatten(0, 1) for name in potential.layout.shapes}
    positions = [
        x.reshape(NUM_CHAINS, NUM_SAMPLES, -1) for x in potential.unconstrain(sites).values()
    ]
    return {
        "positions": torch.cat(positions, -1).numpy(),
        "parameters": {k: v.numpy() for k, v in posterior.parameters(draws).items()},
        "first": first,
        "again": again,
        "warmup": warmup,
        "sampling": sampling,
        "diverging": int(statistics["diverging"].sum()),
        "warnings": sorted({str(each.message) for each in caught}),
    }


# Peers --------------------------------------------------------------------------------------------


def numpyro(posterior: Posterior) -> Found:
    """NUTS of NumPyro, chains side by side."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from _numpyro_posteriors import arguments_of, model_of
    from numpyro import infer
    from numpyro.infer.util import unconstrain_fn

    model, arguments = model_of(posterior), arguments_of(posterior)
    mcmc = infer.MCMC(
        infer.NUTS(model),
        num_warmup=PEERS_WARMUP,
        num_samples=NUM_SAMPLES,
        num_chains=NUM_CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )

    def run(seed: int) -> Any:
        mcmc.run(jax.random.PRNGKey(seed), *arguments, extra_fields=("num_steps", "diverging"))
        return jax.block_until_ready((mcmc.get_samples(), mcmc.get_extra_fields()))

    draws, fields = run(0)
    first = cpu() - _LOADED
    before = cpu()
    run(1)
    again = cpu() - before
    sites = {name: draws[name] for name in mcmc.last_state.z}
    free = jax.vmap(lambda values: unconstrain_fn(model, arguments, {}, values))(sites)
    mcmc.warmup(jax.random.PRNGKey(0), *arguments, extra_fields=("num_steps",), collect_warmup=True)
    positions = [np.asarray(x).reshape(NUM_CHAINS, NUM_SAMPLES, -1) for x in free.values()]
    return {
        "positions": np.concatenate(positions, -1),
        "first": first,
        "again": again,
        "warmup": int(mcmc.get_extra_fields()["num_steps"].sum()),
        "sampling": int(fields["num_steps"].sum()),
        "diverging": int(fields["diverging"].sum()),
    }


def _density(posterior: Posterior) -> tuple[Callable[[Any], Any], Array]:
    """Log density over a flat vector, by JAX, and uniform starts."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from _numpyro_posteriors import arguments_of, model_of
    from jax.flatten_util import ravel_pytree
    from numpyro.infer.util import initialize_model

    keys = jax.random.split(jax.random.PRNGKey(0), NUM_CHAINS)
    made = [
        initialize_model(key, model_of(posterior), model_args=arguments_of(posterior))
        for key in keys
    ]
    flat = [ravel_pytree(each.param_info.z) for each in made]
    unravel, potential = flat[0][1], made[0].potential_fn
    return lambda x: -potential(unravel(x)), np.stack([np.asarray(x) for x, _ in flat])


def nutpie(posterior: Posterior, **options: Any) -> Found:
    """NUTS of nutpie, once: its seconds would count what calls from Rust into Python take."""
    import jax
    import nutpie

    density, starts = _density(posterior)
    both = jax.jit(jax.value_and_grad(density))

    def make_density() -> Callable[[Array], tuple[float, Array]]:
        def value_and_gradient(x: Array) -> tuple[float, Array]:
            value, gradient = both(x)
            return float(value), np.asarray(gradient, dtype=np.float64)

        return value_and_gradient

    def make_expand(*seeds: int) -> Callable[[Array], dict[str, Array]]:
        return lambda x: {"x": np.asarray(x, dtype=np.float64)}

    size = starts.shape[1]
    model = nutpie.compiled_pyfunc.from_pyfunc(
        size, make_density, make_expand, [np.dtype("float64")], [(size,)], ["x"]
    )
    settings = {"draws": NUM_SAMPLES, "chains": NUM_CHAINS, "cores": 1, "progress_bar": False}

    trace = nutpie.sample(model, seed=0, **settings, **options)
    return {
        "positions": trace.posterior["x"].values,
        "first": cpu() - _LOADED,
        "warmup": int(trace.warmup_sample_stats["n_steps"].sum()),
        "sampling": int(trace.sample_stats["n_steps"].sum()),
        "diverging": int(trace.sample_stats["diverging"].sum()),
    }


def blackjax(posterior: Posterior) -> Found:
    """NUTS of BlackJAX, adapted in Stan's windows, each stage compiled once for all chains."""
    import blackjax
    import jax

    density, starts = _density(posterior)
    window = blackjax.window_adaptation(blackjax.nuts, density)

    @jax.jit
    def warm(keys: Any, starts: Any) -> Any:
        def one(key: Any, start: Any) -> Any:
            (state, parameters), info = window.run(key, start, num_steps=PEERS_WARMUP)
            return state, parameters, info.info.num_integration_steps.sum()

        return jax.vmap(one)(keys, starts)

    @jax.jit
    def draw(keys: Any, states: Any, parameters: Any) -> Any:
        def one(key: Any, state: Any, parameters: Any) -> Any:
            step = blackjax.nuts(density, **parameters).step

            def record(state: Any, key: Any) -> Any:
                state, info = step(key, state)
                return state, (state.position, info.num_integration_steps, info.is_divergent)

            return jax.lax.scan(record, state, jax.random.split(key, NUM_SAMPLES))[1]

        return jax.vmap(one)(keys, states, parameters)

    def run(seed: int) -> Any:
        keys = jax.random.split(jax.random.PRNGKey(seed), 2 * NUM_CHAINS)
        states, parameters, warmup = warm(keys[:NUM_CHAINS], starts)
        return jax.block_until_ready((warmup, *draw(keys[NUM_CHAINS:], states, parameters)))

    warmup, positions, num_steps, diverging = run(0)
    first = cpu() - _LOADED
    before = cpu()
    run(1)
    return {
        "positions": np.asarray(positions),
        "first": first,
        "again": cpu() - before,
        "warmup": int(warmup.sum()),
        "sampling": int(num_steps.sum()),
        "diverging": int(diverging.sum()),
    }


SIDES: dict[str, tuple[Callable[..., Found], dict[str, Any]]] = {
    "pyro_ext": (ours, {}),
    "pyro_ext, diagonal": (ours, {"full_mass": False}),
    "NumPyro": (numpyro, {}),
    "nutpie, low rank": (nutpie, {"low_rank_modified_mass_matrix": True}),
    "nutpie, diagonal": (nutpie, {}),
    "BlackJAX": (blackjax, {}),
}


def main(side: str, name: str, out: str) -> None:
    """Measure one side."""
    function, options = SIDES[side]
    found = function(POSTERIORS[name], **options)
    np.savez(out, positions=found.pop("positions"), **found.pop("parameters", {}))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
