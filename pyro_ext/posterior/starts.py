"""Starting points of chains: from values, a guide, an earlier run, or around a mode."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pyro_ext.checkpoint import Checkpoint
from pyro_ext.posterior.draws import Context, Sampler, draws_of
from pyro_ext.posterior.modes import Laplace, dispersed_starts, laplace_at
from pyro_ext.posterior.paths import NUM_SAMPLES, find_paths
from pyro_ext.potential import FunctionPotential, InitStrategy, Potential, bijection

Start: TypeAlias = Mapping[str, Tensor] | Sampler | Callable[..., Any] | str | Path
"""Values by site, a run with draws, a guide, ``"laplace"``, ``"pathfinder"``, or a folder."""

_APPROXIMATIONS = ("laplace", "pathfinder")


def check_start(start: Start | None, num_chains: int) -> None:
    """Raise an error if initial parameters have a wrong type or number."""
    if start is None or isinstance(start, Sampler | str | Path):
        return
    if not isinstance(start, Mapping):
        if not callable(start):
            raise TypeError(
                "initial_params must be a dict of tensors, a guide, a run with get_samples, "
                f"'laplace', or the folder of a checkpoint, got {start!r:.80}"
            )
        return
    for name, value in start.items():
        if not isinstance(value, Tensor) or value.shape[:1] != (num_chains,):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"initial_params[{name!r}] must be a tensor of shape (num_chains = {num_chains}, "
                f"*event), got {got}"
            )


def with_chain_axis(start: Start | None, num_chains: int) -> Start | None:
    """Values for one chain with a leading dimension of chains, which may be left out."""
    if num_chains != 1 or not isinstance(start, Mapping):
        return start
    values = start.values()
    if not all(isinstance(v, Tensor) for v in values) or all(v.shape[:1] == (1,) for v in values):
        return start
    return {name: value.unsqueeze(0) for name, value in start.items()}


def first_values(start: Start | None) -> dict[str, Tensor] | None:
    """Return the values at which the first chain starts, if known without the density.

    Shapes: returns (*event) each.
    """
    if isinstance(start, str | Path) and start not in _APPROXIMATIONS:
        start = Checkpoint(start)
    if isinstance(start, Sampler):
        start = _last_draws(start.get_samples(group_by_chain=True), 1)
    return {k: v[0] for k, v in start.items()} if isinstance(start, Mapping) else None


def strategy_at(
    values: Mapping[str, Tensor] | None,
    params: Mapping[str, Tensor] | None,
    otherwise: InitStrategy,
) -> InitStrategy:
    """Strategy for a start given in constrained space, or else in unconstrained space.

    Values of a wrong shape raise an error later, when the chains start.
    """

    def strategy(site: dict[str, Any]) -> Tensor:
        name, fn = site["name"], site["fn"]
        if values is not None and name in values and values[name].shape == _whole_shape(site):
            if not bool(bijection(fn.support).inv(values[name]).isfinite().all()):
                raise ValueError(f"initial_params[{name!r}] lies outside the support {fn.support}")
            return values[name]
        if params is not None and values is None and name in params:
            value: Tensor = bijection(fn.support)(params[name])
            return value
        return otherwise(site)

    return strategy


def _whole_shape(site: Mapping[str, Any]) -> torch.Size:
    """Shape of the value of a site where all plates are whole."""
    shape = list(site["fn"].batch_shape + site["fn"].event_shape)
    for frame in site["cond_indep_stack"]:
        if frame.vectorized:
            shape[frame.dim - len(site["fn"].event_shape)] = frame.full_size
    return torch.Size(shape)


def constrained_start(
    start: Start,
    num_chains: int,
    seed: int,
    context: Context,
    potential: Potential | None = None,
    find_laplace: Callable[[str], Laplace] | None = None,
) -> dict[str, Tensor]:
    """Initial values of the latent sites.

    Shapes: returns (num_chains, *event) each.
    """
    if isinstance(start, Mapping):
        return dict(start)
    if start in _APPROXIMATIONS:
        return _approximate(str(start), potential, find_laplace, context, num_chains, seed)
    if isinstance(start, str | Path):
        start = Checkpoint(start)
    if isinstance(start, Sampler):
        values = _last_draws(start.get_samples(group_by_chain=True), num_chains)
    else:
        try:
            drawn = draws_of(start, context, potential, num_chains, False, seed)
        except Exception as error:
            error.add_note(f"Raised when initial_params were drawn from {start!r:.80}")
            raise
        values = {name: torch.as_tensor(array[0]) for name, array in drawn.items()}
    if potential is None:
        return values
    return {name: value for name, value in values.items() if name in potential.sites}


def unconstrained_start(
    potential: Potential | FunctionPotential, initial: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Map initial values to unconstrained space.

    Shapes: initial (num_chains, *event) each.
    """
    if isinstance(potential, FunctionPotential):
        return dict(initial)
    sites = potential.sites
    if set(initial) != set(sites):
        raise ValueError(
            f"initial_params has the sites {sorted(initial)}, but the model has {sorted(sites)}"
        )
    for name, site in sites.items():
        if initial[name].shape[1:] != site.shape:
            raise ValueError(
                f"initial_params[{name!r}] has shape {tuple(initial[name].shape)}, wanted "
                f"(num_chains, *{tuple(site.shape)})"
            )
    params = potential.unconstrain(initial)
    for name, value in params.items():
        if not torch.isfinite(value).all():
            raise ValueError(
                f"initial_params[{name!r}] lies outside the support {sites[name].support}"
            )
    return params


def _approximate(
    name: str,
    potential: Potential | None,
    find_laplace: Callable[[str], Laplace] | None,
    context: Context,
    num_chains: int,
    seed: int,
) -> dict[str, Tensor]:
    """Draws of a Laplace approximation with twice its standard deviations, or along paths."""
    argument = f"initial_params={name!r}"
    if find_laplace is None or potential is None:
        if context.model is None:
            raise ValueError(
                f"{argument} needs a kernel with a model whose latent sites are all continuous, "
                "got one without a model: give values by site instead"
            )
        potential = Potential(context.model, *context.args, **context.kwargs)
    if name == "pathfinder":
        paths = find_paths(potential, seed, num_samples=max(NUM_SAMPLES, num_chains))
        return potential.constrain(
            potential.layout.unflatten(paths.without_replacement(num_chains, seed))
        )
    if find_laplace is not None:
        laplace = find_laplace(argument)
    else:
        values = potential.init_chains(range(1), 0)
        laplace = laplace_at(potential, potential.layout.flatten(values)[0], argument)
    return potential.constrain(dispersed_starts(potential, laplace, range(num_chains), seed))


def _last_draws(samples: Mapping[str, Tensor], num_chains: int) -> dict[str, Tensor]:
    """One draw for each chain: the last of its own, or else spread over the later half of all."""
    values = {}
    for name, value in samples.items():
        if len(value) == num_chains:
            values[name] = value[:, -1]
            continue
        late = value[:, value.shape[1] // 2 :].transpose(0, 1).flatten(0, 1)
        indices = torch.linspace(0, len(late) - 1, num_chains).round().long()
        values[name] = late[indices.flip(0)]
    return values
