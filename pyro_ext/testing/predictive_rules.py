"""Checks of a rule that predicts the next observation: its draws and the martingale property."""

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
    """Check that the draws of a rule depend only on their keys.

    They must be the same in one call of ``advance`` or in several, and alone or among others.
    Advancing a state twice must give the same result, and different keys different draws.

    :param PredictiveRule rule: the rule.
    :param data: observations. **Shape:** ``(n, *event)`` each.
    :param Sequence num_steps: the number of observations that each call adds to populations.
    :param int seed: seed of the draws.
    :param float tolerance: allowed difference of populations, relative to one plus their size.
    :raises AssertionError: if a check fails; the message says which, and by how much.

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
    r"""Check that the predictions of a rule are a martingale.

    Given the data, all later observations must have the distribution of the next one: they are
    conditionally identically distributed [1]. So for a function :math:`f` of an observation and its
    mean :math:`P_N f` in a population of size :math:`N`, which may be a distribution or a set of
    points,

    .. math::

        E\left[\frac{N\, P_N f - n\, P_n f}{N - n}\right]

    is the same for all :math:`N > n`. The check compares several sizes, draw by draw.

    :param PredictiveRule rule: the rule.
    :param data: observations. Pass only a few, so that the rule has much to learn. **Shape:**
        ``(n, *event)`` each.
    :param Sequence functions: functions of an observation, as in
        :class:`~pyro_ext.inference.martingale.Expectation`. Default: smooth steps from 0 to 1 at
        the quartiles of each column of the data.
    :param Sequence num_steps: the number of observations by which populations grow from each size
        to the next. A first size close to that of the data shows larger effects, with more noise.
    :param int num_draws: number of draws; precision grows with its square root.
    :param int seed: seed of the draws.
    :param float allowed: allowed difference of the means, in standard errors.
    :raises AssertionError: if they differ by more; the message says at which sizes and by how much.

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
        raise ValueError(f"num_steps must have at least two numbers of steps, got {num_steps!r}")
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
