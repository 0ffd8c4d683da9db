"""Checks of a Pyro model: the effects of handlers and Predictive on each of its sites."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import Predictive
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

from pyro_ext.random import seeded
from pyro_ext.testing.potential import _compare

__all__ = ["check_model"]

Model = Callable[..., Any]
_NUM_DRAWS = 20
_NUM_DEVIATIONS = 20.0  # of log densities, which no draw of a distribution is away from its others


def check_model(
    model: Model,
    *args: Any,
    seed: int = 0,
    num_samples: int = 2,
    tolerance: float = 1e-5,
    **kwargs: Any,
) -> set[str]:
    """Check that a model works with Pyro's handlers, at each of its sample sites.

    - The value of each unobserved site is a draw from its distribution, with the right support and
      shape, even if other sites are fixed.
    - ``replay``, ``condition``, ``do`` and posterior samples set the value of a site, with the same
      effect on the rest of the model.
    - ``mask`` and ``scale`` act on each density, and ``block`` hides each site.
    - :class:`~pyro.infer.Predictive` draws each unobserved site.
    - The densities of the sites add up to that of the model.

    Pass arguments with which everything that can be predicted is unobserved.

    :param model: a Pyro model that has the same sites in each run.
    :param args: positional arguments of the model.
    :param int seed: seed of all draws.
    :param int num_samples: number of draws of Predictive, at least two.
    :param float tolerance: allowed difference of densities, relative to their size.
    :param kwargs: keyword arguments of the model.
    :returns: names of the unobserved sites.
    :raises AssertionError: if a check fails; the message says which, and by how much.

    Example::

        >>> def model(n):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", n):
        ...         pyro.sample("x", dist.Normal(loc, 1.0))
        >>> sorted(check_model(model, 5))
        ['loc', 'x']
    """
    run = partial(_traced, args=args, kwargs=kwargs)
    one, other = run(model, seed), run(model, seed + 1)
    names = _unobserved(one)
    same = partial(_check_same, tolerance=tolerance)
    total = sum(float(part.sum()) for part in _densities(one).values())
    _compare("densities and their sum", one.log_prob_sum(), torch.tensor(total), tolerance)
    same("replay", run(poutine.replay(model, trace=one), seed + 2), one)
    for name in names:
        _check_draw(name, one, "a run")
    # All sites given: everything else follows from them, whatever is drawn besides.
    given = {name: other.nodes[name]["value"] for name in names}
    same("condition on all sites", run(poutine.condition(model, data=given), seed), other)
    for name in names:
        rest = {n: value for n, value in given.items() if n != name}
        last = run(poutine.condition(model, data=rest), seed)
        _check_draw(name, last, "condition on all other sites")
        _check_given(name, model, run, seed, given[name], same)
        shown = run(poutine.block(model, hide=[name]), seed)
        hidden = set(one.nodes) - set(shown.nodes)
        assert hidden == {name}, f"block of {name!r} hides {sorted(hidden)}"
    off = run(poutine.mask(model, mask=False), seed)
    for name, part in _densities(off).items():
        assert not bool(part.any()), f"mask leaves {name!r} a density of {float(part.sum()):g}"
    scaled = run(poutine.scale(poutine.replay(model, trace=one), scale=2.0), seed)
    for name, part in _densities(one).items():
        _compare(f"scale of {name!r}", _densities(scaled)[name], 2.0 * part, tolerance)
    _check_predictive(model, args, kwargs, one, names, num_samples, seed)
    return set(names)


def _traced(model: Model, seed: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    with seeded(seed), torch.no_grad():
        return poutine.trace(model).get_trace(*args, **kwargs)


def _is_sampled(node: Any) -> bool:
    return node["type"] == "sample" and not site_is_subsample(node)


def _unobserved(trace: Any) -> list[str]:
    """Names of sites that are drawn, in order."""
    return [n for n, node in trace.nodes.items() if _is_sampled(node) and not node["is_observed"]]


def _densities(trace: Any) -> dict[str, Tensor]:
    """Log densities by site, from distribution, value, scale and mask."""
    parts = {}
    with torch.no_grad():
        for name, node in trace.nodes.items():
            if _is_sampled(node):
                raw = node["fn"].log_prob(node["value"])
                parts[name] = torch.as_tensor(scale_and_mask(raw, node["scale"], node["mask"]))
    return parts


def _check_same(what: str, found: Any, expected: Any, *, tolerance: float) -> None:
    """Values, densities and results of two runs are the same."""
    missing = sorted(set(expected.nodes) ^ set(found.nodes))
    assert not missing, f"{what}: only one run has {missing}"
    densities = _densities(found)
    for name, part in _densities(expected).items():
        if not site_is_factor(expected.nodes[name]):  # its value is not a density of its own
            value, target = (trace.nodes[name]["value"] for trace in (found, expected))
            assert torch.equal(value, target), f"{what}: {name!r} is {value}, not {target}"
        _compare(f"{what}: densities of {name!r}", densities[name], part, tolerance)
    own, wanted = (trace.nodes["_RETURN"]["value"] for trace in (found, expected))
    if isinstance(own, Tensor) and isinstance(wanted, Tensor):
        _compare(f"{what}: results", own.double(), wanted.double(), tolerance)


def _check_draw(name: str, trace: Any, what: str) -> None:
    """A value is a draw from its distribution: in shape, in support and by its density."""
    fn, value = trace.nodes[name]["fn"], trace.nodes[name]["value"]
    assert value.shape == fn.shape(), f"{name!r} has shape {tuple(value.shape)}, not {fn.shape()}"
    inside = fn.support.check(value)
    assert bool(inside.all()), f"{name!r} is outside of its support: {value}"
    with seeded(0), torch.no_grad():
        others = torch.stack([fn.log_prob(fn.sample()).sum() for _ in range(_NUM_DRAWS)]).double()
        own = float(fn.log_prob(value).sum())
    mean, sd = float(others.mean()), float(others.std())
    assert own > mean - _NUM_DEVIATIONS * sd - 1e-3 * (1.0 + abs(mean)), (
        f"{name!r} is no draw from its distribution in {what}: its log density is {own:.4g}, and "
        f"that of draws {mean:.4g} +- {sd:.2g}"
    )


def _check_given(name: str, model: Model, run: Any, seed: int, value: Tensor, same: Any) -> None:
    """A value that is given counts, by ``condition`` as by ``do``."""
    conditioned = run(poutine.condition(model, data={name: value}), seed)
    node = conditioned.nodes[name]
    assert node["is_observed"], f"condition on {name!r} leaves it unobserved"
    assert torch.equal(node["value"], value), f"condition on {name!r} gives {node['value']}"
    rest = {n: conditioned.nodes[n]["value"] for n in _unobserved(conditioned)}
    intervened = run(poutine.do(poutine.condition(model, data=rest), data={name: value}), seed)
    intervened.nodes[name] = node  # there it is what would have been drawn
    same(f"do of {name!r}", intervened, conditioned)


def _check_predictive(
    model: Model,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    trace: Any,
    names: list[str],
    num_samples: int,
    seed: int,
) -> None:
    """Predictive draws each unobserved site, and takes each as a posterior sample."""

    def predicted(**options: Any) -> dict[str, Tensor]:
        with seeded(seed):
            drawn: dict[str, Tensor] = Predictive(model, **options)(*args, **kwargs)
        return drawn

    prior = predicted(num_samples=num_samples)
    for name in names:
        assert name in prior, f"Predictive has no {name!r}, but {sorted(prior)}"
        value, shape = prior[name], trace.nodes[name]["value"].shape
        # Predictive adds dimensions of size one for plates that a site is not in.
        assert len(value) == num_samples and value.numel() == num_samples * shape.numel(), (
            f"Predictive has {name!r} of shape {tuple(value.shape)}, for {tuple(shape)}"
        )
        samples = {name: value.reshape(num_samples, *shape)}
        posterior = predicted(posterior_samples=samples, return_sites=list(names))
        found = posterior[name].reshape(num_samples, *shape)
        assert torch.equal(found, samples[name]), f"posterior samples of {name!r} are not taken"
    every = {n: prior[n].reshape(num_samples, *trace.nodes[n]["value"].shape) for n in names}
    rest = predicted(posterior_samples=every)
    for name, value in rest.items():
        if not site_is_factor(trace.nodes[name]):
            _compare(f"Predictive of {name!r} given all sites", value, prior[name], 1e-5)
