"""Checks of a rule that predicts the next observation: its draws, and that it is a martingale."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.martingale.functionals import Expectation
from pyro_ext.inference.martingale.predictive_rule import (
    NeedsPreparation,
    PredictiveRule,
    Resampled,
)
from pyro_ext.random import chain_keys
from pyro_ext.testing.moments import estimate_moment
from pyro_ext.testing.potential import _compare

__all__ = ["check_martingale", "check_predictive_rule"]

_NUM_POINTS = 200  # that stand for a population which is a distribution


def check_predictive_rule(
    rule: PredictiveRule,
    *data: Tensor,
    num_steps: Sequence[int] = (1, 22, 0, 37),
    seed: int = 0,
    tolerance: float = 1e-6,
) -> None:
    """Check what the draws of a rule depend on.

    They follow from their keys alone: they are the same in one call of ``advance`` as in many, and
    alone as among others; a state can be advanced twice, with the same result; and draws of other
    keys are others.

    :param PredictiveRule rule: the rule.
    :param data: observations. **Shape:** ``(n, *event)`` each.
    :param Sequence num_steps: by how many observations populations grow, call by call.
    :param int seed: of the draws.
    :param float tolerance: by how much populations may differ, relative to one plus their size.
    :raises AssertionError: where a check fails; it says which and by how much.

    Example::

        >>> from pyro_ext.inference.martingale import PolyaUrn
        >>> check_predictive_rule(PolyaUrn(), torch.arange(5.0))
    """
    rule, data = _ready(rule, data, seed)
    lengths = [checks.integer("num_steps", length, 0) for length in num_steps]
    start = rule.begin(data, chain_keys(seed, range(3)))
    whole = rule.advance(start, sum(lengths))
    again = rule.advance(start, sum(lengths))
    parts = start
    for length in lengths:
        parts = rule.advance(parts, length)
    alone = rule.advance(rule.begin(data, chain_keys(seed, range(1, 2))), sum(lengths))
    size = start.num_observed + sum(lengths)
    sizes = [state.size for state in (whole, parts, alone)]
    assert sizes == [size] * 3, f"populations have the sizes {sizes}, {size} were asked for"
    steps = _steps(data)
    wanted = _means(rule, whole, steps)
    assert bool((wanted[0] != wanted[1]).any()), "draws of two keys are the same"
    _compare("draws of a state advanced twice", _means(rule, again, steps), wanted, tolerance)
    _compare("draws in many calls and in one", _means(rule, parts, steps), wanted, tolerance)
    _compare("draws alone and among others", _means(rule, alone, steps), wanted[1:2], tolerance)


def check_martingale(
    rule: PredictiveRule,
    *data: Tensor,
    functions: Sequence[Callable[..., Tensor]] | None = None,
    num_steps: Sequence[int] = (4, 46),
    num_draws: int = 20_000,
    seed: int = 0,
    allowed: float = 4.0,
) -> None:
    r"""Check that what a rule predicts is a martingale.

    Given the data, all later observations then have the distribution of the next one: they are
    conditionally identically distributed [1]. So for a function :math:`f` of an observation, with
    :math:`P_N f` its mean in a population of size :math:`N`, whether that is a distribution or all
    points,

    .. math::

        E\left[\frac{N\, P_N f - n\, P_n f}{N - n}\right]

    is the same for all :math:`N > n`. It is compared at the sizes, draw by draw.

    :param PredictiveRule rule: the rule.
    :param data: observations, few of them, so that a rule has much to learn. **Shape:** ``(n,
        *event)`` each.
    :param Sequence functions: of an observation, as
        :class:`~pyro_ext.inference.martingale.Expectation` takes them. By default smooth steps at
        the quartiles of each column of the data, from 0 to 1.
    :param Sequence num_steps: by how many observations populations grow, from size to size. A first
        size near the data's leaves more to see, and more noise.
    :param int num_draws: number of draws, whose root sets what can be seen.
    :param int seed: of the draws.
    :param float allowed: by how many standard errors the means may differ.
    :raises AssertionError: where they differ by more; it says at which sizes, and by how many.

    [1] P. Berti, L. Pratelli, P. Rigo (2004), Limit theorems for a class of identically distributed
    random variables.

    Example::

        >>> from pyro_ext.inference.martingale import NormalPredictive, PlugInNormal
        >>> y = torch.linspace(-1.0, 2.0, 4)
        >>> check_martingale(NormalPredictive(), y)
        >>> check_martingale(PlugInNormal(), y)  # its mean is one, its variance is not
        Traceback (most recent call last):
        ...
        AssertionError: means of function 0 over the first 50 observations after the data ...
    """
    rule, data = _ready(rule, data, seed)
    checks.sequence("num_steps", num_steps, "two numbers of steps or more")
    lengths = [checks.integer("num_steps", length, 1) for length in num_steps]
    if len(lengths) < 2:
        raise ValueError(f"num_steps must be two numbers of steps or more, got {num_steps!r}")
    checks.integer("num_draws", num_draws, 2)
    state = rule.begin(data, chain_keys(seed, range(num_draws)))
    num_observed = state.num_observed
    functions = _steps(data) if functions is None else functions
    on_data = num_observed * _means(rule, state, functions)
    first: Tensor | None = None
    for length in lengths:
        state = rule.advance(state, length)
        num_later = state.size - num_observed
        later = (state.size * _means(rule, state, functions) - on_data) / num_later
        if first is None:
            first = later
            continue
        for column, (mean, mean_first) in enumerate(zip(later.mT, first.mT, strict=True)):
            z_score = estimate_moment(mean - mean_first).z_score(0.0)
            assert abs(z_score) <= allowed, (
                f"means of function {column} over the first {num_later} observations after the "
                f"data and over the first {lengths[0]} differ by {z_score:.1f} standard errors, "
                f"more than {allowed:g}: {float(mean.mean()):.4g}, {float(mean_first.mean()):.4g}"
            )


def _ready(
    rule: PredictiveRule, data: tuple[Tensor, ...], seed: int
) -> tuple[PredictiveRule, tuple[Tensor, ...]]:
    """Check the arguments, and do a rule's work before the first draw."""
    checks.instance("rule", rule, PredictiveRule, "a PredictiveRule")
    if not data:
        raise ValueError("data must have at least one tensor, got none")
    data = tuple(checks.as_tensor(f"data[{i}]", part, "(n, ...)") for i, part in enumerate(data))
    if isinstance(rule, NeedsPreparation):
        rule = rule.prepare(data, seed)
    return rule, data


def _steps(data: tuple[Tensor, ...]) -> Sequence[Callable[..., Tensor]]:
    """Smooth steps at the quartiles of each column of the data."""

    def function(*values: Tensor) -> Tensor:
        columns = []
        for part, value in zip(data, values, strict=True):
            quartiles = part.quantile(part.new_tensor([0.25, 0.5, 0.75]), 0)
            scale = part.std(0) / 4.0
            steps = torch.stack([(value - quartile) / scale for quartile in quartiles], -1)
            columns.append(steps.sigmoid().reshape(*value.shape[: value.ndim - part.ndim + 1], -1))
        return torch.cat(columns, -1)

    return [function]


def _means(
    rule: PredictiveRule, state: Resampled, functions: Sequence[Callable[..., Tensor]]
) -> Tensor:
    """Means of the functions in each population. **Shape:** ``(num_draws, number)``."""
    population = rule.population(state)
    values = [Expectation(function, _NUM_POINTS)(population) for function in functions]
    return torch.cat([value.reshape(len(value), -1) for value in values], -1).double()
