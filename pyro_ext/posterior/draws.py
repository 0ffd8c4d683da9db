"""Draws of a posterior of any kind, as arrays with leading dimensions of chains and draws."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from pyro.infer import MCMC as PyroMCMC
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.guide import GuideMessenger
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.potential import Potential
from pyro_ext.potential.evaluation import Evaluation, from_constrained
from pyro_ext.potential.model_at_values import ModelAtValues
from pyro_ext.potential.structure import assemble, blocks
from pyro_ext.random import fresh_seed

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

_WRAPPERS = (InitMessenger, BlockMessenger)
_KINDS = (
    "a sampler with get_samples (of Pyro or of this package), the folder of a checkpoint, a dict "
    "of arrays by site, or a guide"
)


@runtime_checkable
class Sampler(Protocol):
    """An object that has drawn from a posterior, for example :class:`pyro_ext.inference.MCMC`.

    The following attributes are optional and used if they exist: ``model``, ``args`` and ``kwargs``
    of the last run, with ``None`` for a model without a density; ``potential``, a
    :class:`~pyro_ext.potential.Potential` of that model and data, or ``None`` to create one;
    ``chain_numbers``, the indices of the chains in the samples if some are left out;
    ``partitions``, the names of variables that are label vectors; and ``sample_statistics()``,
    which returns statistics of the sampler by name, each of shape ``(num_chains, num_draws)``.
    """

    def get_samples(self, group_by_chain: bool = False) -> Mapping[str, Tensor]:
        """Constrained draws by site. **Shape:** ``(num_chains, num_draws, *event)`` by chain."""
        ...


@dataclass(frozen=True)
class Context:
    """The model that a posterior belongs to.

    :param model: the Pyro model, if it is known.
    :param tuple args: its positional arguments.
    :param dict kwargs: its keyword arguments.
    :param potential: that model at its data, such as a ``Potential``, if there is
        one already.
    """

    model: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    potential: ModelAtValues | None = None


def to_array(value: Any, argument: str) -> npt.NDArray[Any]:
    """Return a tensor or an array as an array on the CPU; a tensor there shares its memory."""
    if isinstance(value, Tensor):
        checks.has_values(argument, value)
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
        return np.asarray(value.numpy())
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{argument} must be a tensor or an array of numbers, got {value!r:.80}")
    return array


def check_names(argument: str, value: Any) -> list[str]:
    """Return names."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{argument} must be a name or a list of names, got {value!r:.80}")
    return list(names)


def context_of(
    posterior: object, model: Callable[..., Any] | Potential | None, args: tuple[Any, ...]
) -> Context:
    """The model and its arguments: those that are given, else those the posterior remembers."""
    own = _remembered(posterior)
    if model is None and not args:
        return own
    if isinstance(model, Potential):
        if args:
            raise ValueError("model is a Potential, which has its own arguments; got others too")
        return Context(model.model, model.args, model.kwargs, model)
    if model is not None and not callable(model):
        raise TypeError(f"model must be callable or a Potential, got {model!r:.80}")
    kwargs, args = {} if args else own.kwargs, args or own.args
    model = model if model is not None else own.model
    if model is None and (isinstance(posterior, Mapping | Sampler)):
        raise ValueError("got arguments of a model, but no model: pass it as model=...")
    return Context(model, args, kwargs)


def draws_of(
    posterior: Any,
    context: Context,
    potential: ModelAtValues | None,
    num_samples: int,
    group_by_chain: bool,
    seed: int | None,
) -> Arrays:
    """Draws of each variable.

    Shapes: returns (num_chains, num_draws, *event) each.
    """
    by_chain = True
    values: Mapping[str, Any]
    if isinstance(posterior, Mapping):
        values, by_chain = posterior, group_by_chain
    elif isinstance(posterior, Sampler):
        values = posterior.get_samples(group_by_chain=True)
    else:
        draw = functools.partial(_draw_guide, posterior, context, potential)
        values, by_chain = _repeat(draw, num_samples, seed), False
    if not values:
        raise ValueError("posterior has no variables")
    return with_chains(values, by_chain, "posterior")


def with_chains(values: Mapping[str, Any], by_chain: bool, argument: str) -> Arrays:
    """Return arrays with leading dimensions of chains and draws, the same in all of them.

    Shapes: values (num_chains, num_draws, *event) each, or (num_draws, *event); returns
    (num_chains, num_draws, *event) each.
    """
    wanted = "(num_chains, num_draws, *event)" if by_chain else "(num_draws, *event)"
    arrays: Arrays = {}
    leading: tuple[int, ...] | None = None
    for name, value in values.items():
        if not isinstance(name, str):
            raise TypeError(f"the names in {argument} must be strings, got {name!r:.80}")
        array = to_array(value, f"{argument}[{name!r}]")
        own = array.shape[: 2 if by_chain else 1]
        if len(own) < (2 if by_chain else 1) or 0 in own:
            raise ValueError(
                f"{argument}[{name!r}] has shape {array.shape}, wanted {wanted} with at least one "
                "draw"
            )
        if leading not in (None, own):
            raise ValueError(
                f"{argument}[{name!r}] has shape {array.shape}, wanted {wanted} with the leading "
                f"dimensions {leading} of the variables before it"
            )
        leading = own
        arrays[name] = array if by_chain else array[None]
    return arrays


def statistics_of(posterior: Any, num_chains: int, num_draws: int) -> Arrays:
    """Return statistics of the sampler at each draw, if it keeps any.

    Shapes: returns (num_chains, num_draws) each.
    """
    if isinstance(posterior, PyroMCMC):
        return _pyro_statistics(posterior, num_chains, num_draws)
    if not hasattr(posterior, "sample_statistics"):
        return {}
    statistics = {}
    for name, value in posterior.sample_statistics().items():
        argument = f"posterior.sample_statistics()[{name!r}]"
        statistics[name] = follow_chains(to_array(value, argument), num_chains, num_draws, argument)
    return statistics


def follow_chains(
    array: npt.NDArray[Any], num_chains: int, num_draws: int, argument: str
) -> npt.NDArray[Any]:
    """Part the draws of an array into the chains of the posterior, unless they are.

    Shapes: array (num_chains, num_draws, *event), or (num_chains * num_draws, *event) with one
    chain after the other; returns (num_chains, num_draws, *event).
    """
    if array.shape[:2] == (num_chains, num_draws):
        return array
    if array.shape[:1] == (num_chains * num_draws,):
        return array.reshape(num_chains, num_draws, *array.shape[1:])
    raise ValueError(
        f"{argument} has shape {array.shape}, wanted a value for each draw of the posterior: "
        f"({num_chains}, {num_draws}, ...) or ({num_chains * num_draws}, ...)"
    )


def _remembered(posterior: object) -> Context:
    if isinstance(posterior, PyroMCMC):
        if posterior._samples is None:
            raise ValueError("posterior has no draws yet: call its run method first")
        model = getattr(posterior.kernel, "model", None)
        return Context(model, tuple(posterior._args or ()), posterior._kwargs or {})
    if isinstance(posterior, Sampler):
        model = getattr(posterior, "model", None)
        potential = getattr(posterior, "potential", None)
        # Where discrete sites are summed out, the potential is that of another model.
        is_own = getattr(potential, "model", model) is model
        return Context(
            model,
            tuple(getattr(posterior, "args", ())),
            getattr(posterior, "kwargs", {}),
            potential if is_own else None,
        )
    if isinstance(posterior, AutoGuide | GuideMessenger):
        return Context(_without_wrappers(posterior.model))
    if isinstance(posterior, Mapping) or callable(posterior):
        return Context()
    raise TypeError(f"posterior must be {_KINDS}; got {posterior!r:.80}")


def _without_wrappers(model: Any) -> Any:
    """Return the model an automatic guide was made of.

    The guide wraps it in its initial values, and users hide sites from the guide that they sum out.
    """
    call = getattr(model, "func", None)
    if isinstance(call, functools.partial) and isinstance(next(iter(call.args), 0), _WRAPPERS):
        return _without_wrappers(call.args[1])
    return model


def _pyro_statistics(posterior: PyroMCMC, num_chains: int, num_draws: int) -> Arrays:
    """Divergences of each chain, where the kernel notes them.

    ``posterior.diagnostics()`` would compute effective sample sizes as well, and asks for four
    draws at least.
    """
    diagnostics: list[dict[str, Any]] = [chain or {} for chain in posterior._diagnostics]
    if any("divergences" not in chain for chain in diagnostics):
        return {}
    diverging = np.zeros((num_chains, num_draws), dtype=bool)
    for row, chain in zip(diverging, diagnostics, strict=True):
        row[np.asarray(chain["divergences"], dtype=np.int64)] = True
    return {"diverging": diverging}


def _repeat(
    draw: Callable[[], dict[str, Tensor]], num_samples: int, seed: int | None
) -> dict[str, Tensor]:
    """Draws under a seed, one after the other. **Shape:** ``(num_samples, *event)`` each."""
    seed = fresh_seed(seed)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        rows = [draw() for _ in range(num_samples)]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _draw_guide(
    guide: Callable[..., Any], context: Context, potential: ModelAtValues | None
) -> dict[str, Tensor]:
    """Make one draw from a guide: of the latent sites for all of the data, or of all its sites.

    A guide over a subsampled plate runs once for each block of the plate; sites that do not vary
    with the plate keep the values they had before.
    """
    if potential is None:
        records = Evaluation(lambda message: None, {}).run(guide, context.args, context.kwargs)
        return {name: record.value for name, record in records.items()}
    sites = potential.sites
    event_dims = {name: site.event_dim for name, site in sites.items()}
    auxiliary: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}
    for block in blocks(potential.subsampled_plates, potential.values_layout.device, torch.float32):
        known = {name: whole[name] for name in whole if not block.is_new(sites[name])}
        indices = dict(block.indices)
        evaluation = Evaluation(from_constrained(auxiliary | known, indices), indices)
        records = evaluation.run(guide, context.args, context.kwargs)
        part = {name: record.value for name, record in records.items() if name in sites}
        assemble(whole, part, block, sites, event_dims)
        if not any(sites[name].is_subsampled for name in part):
            break
        for name, record in records.items():
            if name not in sites and not any(f.name in block.indices for f in record.frames):
                auxiliary[name] = record.value
    return whole
