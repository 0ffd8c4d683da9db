"""Checks of guides and of objects with draws: sites, training, draws and conversion."""

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.optim import PyroOptim
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_ext.diagnostics import to_arviz
from pyro_ext.testing.potential import _compare

__all__ = ["check_guide", "check_samples"]

Guide = Callable[..., Any]
Shapes = Mapping[str, torch.Size]


def check_guide(
    make: Callable[[], Guide],
    model: Callable[..., Any],
    *args: Any,
    loss: Any = None,
    num_steps: int = 3,
    num_samples: int = 8,
    seed: int = 0,
    random: bool = True,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Check a guide of a Pyro model.

    The guide must

    - sample the latent sites of the model, in their shapes and supports, and no observed sites;
    - train with :class:`~pyro.infer.SVI`;
    - draw with :class:`~pyro.infer.Predictive` and :func:`~pyro_ext.diagnostics.to_arviz`;
    - draw the same values after the same seed, and the same as another guide trained with the same
      seed;
    - have everything it has learned in its state dict, if it is a module.

    The check leaves the parameter store empty.

    :param make: a function that creates the guide, the same each time.
    :param model: the model. Mark auxiliary sites that only the guide has with
        ``infer={"is_auxiliary": True}``.
    :param args: arguments of model and guide.
    :param loss: a function that creates the loss of SVI. Default: :class:`~pyro.infer.Trace_ELBO`.
    :param int num_steps: number of training steps.
    :param int num_samples: number of draws.
    :param int seed: seed of training and draws.
    :param bool random: whether draws differ. Those of point estimates do not.
    :param options: keyword arguments of model and guide during training.
    :raises AssertionError: if a check fails; the message says which, and by how much.

    Example::

        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> check_guide(lambda: AutoNormal(model), model, torch.zeros(4))
    """
    losses, rows = [], []
    pyro.clear_param_store()
    try:
        for _ in range(2):
            with torch.random.fork_rng():
                guide = make()
                shapes = _check_sites(guide, model, args)
                torch.manual_seed(seed)
                optimizer = PyroOptim(torch.optim.Adam, {"lr": 1e-3})
                svi = SVI(model, guide, optimizer, loss=(loss or Trace_ELBO)())
                losses.append([svi.step(*args, **(options or {})) for _ in range(num_steps)])
                rows.append(_draws(guide, args, shapes, num_samples, seed))
                _check_readers(guide, model, args, shapes, num_samples)
                if isinstance(guide, nn.Module):
                    _check_state(make, guide, args, rows[-1], seed)
            pyro.clear_param_store()
    finally:
        pyro.clear_param_store()
    finite = torch.tensor(losses[0]).isfinite()
    assert bool(finite.all()), f"losses of SVI are not finite: {losses[0]}"
    assert losses[0] == losses[1], f"losses of one seed are {losses[0]} and {losses[1]}"
    for name, value in rows[0].items():
        _compare(f"draws of {name!r} by two guides of one seed", rows[1][name], value, 0.0)
    moved = any(len(value.unique(dim=0)) > 1 for value in rows[0].values())
    assert moved or not random, f"{num_samples} draws are all the same"


def _latents(trace: Any) -> dict[str, Any]:
    """Sample sites that are neither observed nor the indices of a subsample."""
    return {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not node["is_observed"] and not site_is_subsample(node)
    }


def _check_sites(guide: Guide, model: Callable[..., Any], args: tuple[Any, ...]) -> Shapes:
    """Shapes of the latent sites by name."""
    with torch.no_grad():
        trace = poutine.trace(guide).get_trace(*args)
        latents = _latents(poutine.trace(model).get_trace(*args))
    own = {n: s for n, s in _latents(trace).items() if not s["infer"].get("is_auxiliary")}
    missing, more = sorted(latents.keys() - own), sorted(own.keys() - latents)
    assert not missing, f"the guide lacks the sites {missing}"
    assert not more, f"the guide has sites that the model lacks: {more}"
    observed = [n for n in trace.observation_nodes if not site_is_subsample(trace.nodes[n])]
    assert not observed, f"the guide has observed sites: {observed}"
    for name, site in latents.items():
        value, shape = own[name]["value"], site["fn"].shape()
        assert value.shape == shape, f"{name!r} has the shape {tuple(value.shape)}, not {shape}"
        inside = site["fn"].support.check(value)
        assert bool(inside.all()), f"{name!r} is outside of its support: {value}"
    return {name: site["fn"].shape() for name, site in latents.items()}


def _draws(
    guide: Guide, args: tuple[Any, ...], names: Iterable[str], num_samples: int, seed: int
) -> dict[str, Tensor]:
    """Draws of the latent sites after a seed, which must be the same a second time."""
    rows = []
    for _ in range(2):
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            drawn = Predictive(guide, num_samples=num_samples)(*args)
        rows.append({name: drawn[name] for name in names})
    for name, value in rows[0].items():
        assert len(value) == num_samples, f"Predictive has {len(value)} draws of {name!r}"
        _compare(f"draws of {name!r} after one seed", rows[1][name], value, 0.0)
    return rows[0]


def _check_readers(
    guide: Guide, model: Callable[..., Any], args: tuple[Any, ...], shapes: Shapes, num_samples: int
) -> None:
    with torch.no_grad():
        predicted = Predictive(model, guide=guide, num_samples=num_samples)(*args)
    for name, value in predicted.items():
        assert bool(value.isfinite().all()), f"Predictive of the model draws {name!r}: {value}"
    posterior = to_arviz(guide, *args, model=model, num_samples=num_samples, seed=0).posterior
    for name, shape in shapes.items():
        assert name in posterior, f"to_arviz has no {name!r}, but {sorted(posterior)}"
        found, expected = posterior[name].shape, (1, num_samples, *shape)
        assert found == expected, f"to_arviz has {name!r} of shape {found}, not {expected}"


def _check_state(
    make: Callable[[], Guide],
    guide: Any,
    args: tuple[Any, ...],
    draws: Mapping[str, Tensor],
    seed: int,
) -> None:
    """A new guide with the state of this one draws the same."""
    state = {name: value.clone() for name, value in guide.state_dict().items()}
    pyro.clear_param_store()
    other: Any = make()
    with torch.no_grad(), poutine.block():
        other(*args)  # guides may make their parameters at the first call
    pyro.clear_param_store()
    other.load_state_dict(state)
    num_samples = len(next(iter(draws.values())))
    for name, value in _draws(other, args, draws, num_samples, seed).items():
        what = f"draws of {name!r} by a guide of the same state"
        _compare(what, value, draws[name], 0.0)


def check_samples(run: Any, *, names: set[str]) -> None:
    """Check the common interface of sampler drivers, after a run.

    :param run: an object with the ``get_samples``, ``summary`` and ``diagnostics`` of
        :class:`~pyro_ext.inference.MCMC`, which :func:`~pyro_ext.diagnostics.to_arviz` accepts.
    :param set names: names of the variables with real-valued draws.
    :raises AssertionError: if the results are inconsistent.

    Example::

        >>> from pyro_ext.inference import MCMC, SGLD
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> mcmc = MCMC(SGLD(model), num_samples=4, num_chains=2, progress=False)
        >>> check_samples(mcmc.run(), names={"x"})
    """
    flat, grouped = run.get_samples(), run.get_samples(group_by_chain=True)
    for samples in (flat, grouped):
        assert samples.keys() == names, f"there are draws of {sorted(samples)}, not {sorted(names)}"
    posterior = to_arviz(run).posterior
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run.summary()
    diagnosed = run.diagnostics()
    for name, value in grouped.items():
        _compare(f"draws of {name!r} with chains apart or not", flat[name], value.flatten(0, 1), 0)
        exported = torch.from_numpy(posterior[name].to_numpy()).to(value)
        _compare(f"draws of {name!r} in ArviZ", exported, value, 0.0)
        assert name in printed.getvalue(), f"the summary has no {name!r}"
        assert {"n_eff", "r_hat"} <= diagnosed[name].keys(), f"no diagnostics of {name!r}"
