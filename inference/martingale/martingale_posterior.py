"""Martingale posteriors: draws of a functional of the population, which predictions complete."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext._lib.progress import progress_bar
from pyro_ext._lib.pyplot import axes_of
from pyro_ext.inference.martingale.convergence import (
    Drift,
    check_sizes,
    distances,
    largest_fraction,
    remaining_fractions,
    sufficient_size,
    surely_above,
)
from pyro_ext.inference.martingale.predictive_rule import (
    KnowsLimit,
    NeedsPreparation,
    PredictiveRule,
)
from pyro_ext.posterior.independent_draws import IndependentDraws
from pyro_ext.random import chain_keys, fresh_seed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUM_TRIED = 2

Values = dict[str, Tensor]


class _Batch(NamedTuple):
    """Draws that are finite, how they came about, and the numbers of the others."""

    samples: Values
    paths: Values  # on the data and at each check (num_checks + 1, num_draws, *event)
    left_out: list[int]


class MartingalePosterior(IndependentDraws):
    r"""The posterior of a functional of the population, without a prior [1].

    A rule predicts the next observation from the previous ones. Each draw completes the population:
    it draws the observations :math:`n + 1` to :math:`N`, each given the data and those drawn
    before, and then evaluates the functional on all :math:`N`. The uncertainty is about what has
    not been observed. With the predictive distribution of a Bayesian model this is the Bayesian
    posterior; with :class:`~pyro_ext.inference.PolyaUrn` it is the Bayesian bootstrap.

    The draws are independent. If the population is too small, their variance is too small, by the
    fraction :math:`n / N` for a mean. ``diagnostics()`` estimates this fraction, erring on the
    large side for a functional that jumps, and a warning says if it is too large.

    :param PredictiveRule predictive: the rule.
    :param functional: a function of populations. It takes a distribution with batch shape
        ``(num_draws,)``, which has ``mean``, ``variance`` and ``icdf`` like Pyro's distributions,
        or a :class:`~pyro_ext.inference.martingale.WeightedSample`, and returns a tensor or a dict
        of tensors. **Shape:** ``(num_draws, *event)`` each.
    :param int num_samples: number of draws.
    :param horizon: :math:`N - n`, the number of observations that complete the population;
        ``math.inf`` for the limit itself, if the rule knows it.
    :param int seed: determines each draw together with the draw's number, however the draws are
        batched, up to rounding. ``None`` takes a seed from PyTorch's generator, which
        :func:`pyro.set_rng_seed` sets.
    :param bool progress: whether to show a progress bar.
    :param int batch_size: number of draws made side by side; memory limits it.
    :param int num_checks: number of population sizes at which the functional is evaluated,
        including :math:`N / 2` and :math:`N`. With one, convergence is not checked.
    :param float tolerance: fraction of the posterior variance that may be missing without a
        warning.
    :param str name: name of the result, if the functional returns a tensor.

    [1] E. Fong, C. Holmes, S. G. Walker (2023), Martingale posterior distributions.

    Example::

        >>> from pyro_ext.inference.martingale import Mean, PolyaUrn
        >>> posterior = MartingalePosterior(PolyaUrn(), Mean(), 200, horizon=1000, progress=False)
        >>> posterior.run(torch.arange(10.0)).get_samples()["theta"].shape
        torch.Size([200])
    """

    def __init__(
        self,
        predictive: PredictiveRule,
        functional: Callable[[Any], Tensor | Mapping[str, Tensor]],
        num_samples: int = 1000,
        horizon: float = 5000,
        *,
        seed: int | None = None,
        progress: bool = True,
        batch_size: int = 200,
        num_checks: int = 6,
        tolerance: float = 0.05,
        name: str = "theta",
    ) -> None:
        super().__init__()
        checks.instance("predictive", predictive, PredictiveRule, "a PredictiveRule")
        checks.function("functional", functional, "a function of a population", or_class=False)
        checks.instance("name", name, str, "a string")
        self.num_samples = checks.integer("num_samples", num_samples, 1)
        if isinstance(horizon, float) and horizon == math.inf:
            if not isinstance(predictive, KnowsLimit):
                raise ValueError(
                    "horizon must be finite for a rule that does not know its limit, got inf for "
                    f"{type(predictive).__name__}"
                )
            self.horizon: float = math.inf
        else:
            self.horizon = checks.integer("horizon", horizon, 1)
        if seed is not None:
            fresh_seed(seed)
        self.batch_size = checks.integer("batch_size", batch_size, 1)
        self.num_checks = checks.integer("num_checks", num_checks, 1)
        self.tolerance = checks.number("tolerance", tolerance, above=0.0, most=1.0)
        self.predictive = predictive
        self.functional = functional
        self.seed = seed
        self.progress = progress
        self.name = name
        self._reset()

    def _reset(self, data: tuple[Tensor, ...] = ()) -> None:
        self.args = data
        self.interrupted = False
        self._samples = {}
        self._left_out = []
        self._paths: Values = {}
        self._num_observed = 0
        self._sizes: list[int] = []
        self._half = 0

    def run(self, *data: Tensor) -> Self:
        """Draw from the posterior.

        Ctrl-C ends the run and keeps the batches of draws that are complete. A draw whose
        functional is not finite is left out, with a warning.

        :param data: the observations, as the rule takes them. **Shape:** ``(n, *event)`` each.
        :returns: the posterior itself.
        :raises TypeError: if the data are not tensors, or the functional does not return one.
        :raises ValueError: if the data do not fit the rule, or the functional returns wrong shapes.
        :raises RuntimeError: if no draw is finite.
        """
        data = tuple(
            checks.as_tensor(f"data[{i}]", part, "(n, ...)") for i, part in enumerate(data)
        )
        self._reset(data)
        seed = fresh_seed(self.seed)
        rule = self.predictive
        if isinstance(rule, NeedsPreparation):
            rule = rule.prepare(data, seed)
        device = data[0].device if data and isinstance(data[0], Tensor) else None
        tried = min(_NUM_TRIED, self.num_samples)
        start = rule.begin(data, chain_keys(seed, range(tried), device))
        population = rule.population(start)
        try:
            on_data = self._evaluate(population, tried, None)
        except Exception as error:
            error.add_note(
                "functional was called with a distribution of the population, here a "
                f"{type(population).__name__}, and not with a tensor of observations"
            )
            raise
        on_data = {name: value[:1] for name, value in on_data.items()}
        self._num_observed = start.num_observed
        if self.horizon != math.inf:
            self._sizes, self._half = check_sizes(
                start.num_observed, start.num_observed + int(self.horizon), self.num_checks
            )
        batches: list[_Batch] = []
        total = -(-self.num_samples // self.batch_size)
        total *= 1 if self.horizon == math.inf else int(self.horizon)
        name, is_silent = type(self.predictive).__name__, not self.progress
        with progress_bar(total=total, desc=name, unit="step", disable=is_silent) as bar:
            try:
                for first in range(0, self.num_samples, self.batch_size):
                    members = range(first, min(first + self.batch_size, self.num_samples))
                    keys = chain_keys(seed, members, device)
                    batches.append(self._batch(rule, data, keys, on_data, members, bar.update))
            except KeyboardInterrupt:
                self.interrupted = True
        if batches:
            self._left_out = [number for batch in batches for number in batch.left_out]
            self._samples = {
                name: torch.cat([batch.samples[name] for batch in batches]) for name in on_data
            }
            self._paths = {
                name: torch.cat([batch.paths[name] for batch in batches], 1)
                for name in batches[0].paths
            }
            self._raise_or_warn()
        return self

    def diagnostics(self) -> dict[str, Any]:
        """Report the precision of the draws, and which draws were left out.

        :returns: for each name a dict with ``"standard_error"`` of the posterior mean, and
            ``"remaining_fraction"``, the fraction of the posterior variance that a larger
            population would add, or NaN if it is not known, **Shape:** ``(*event)`` each; and
            ``"left_out"``, the numbers of the draws whose functional was not finite.
        """
        samples = self.get_samples()
        fractions = self._fractions()
        result: dict[str, Any] = {}
        for name, value in samples.items():
            spread = value.double().var(0, correction=min(1, len(value) - 1))
            result[name] = {
                "standard_error": (spread / len(value)).sqrt(),
                "remaining_fraction": fractions[name],
            }
        return {**result, "left_out": list(self._left_out)}

    def drift(self) -> Drift:
        """Measure how far the functional moved as the populations grew.

        :func:`~pyro_ext.inference.martingale.plot_drift` plots it.
        """
        self.get_samples()
        if not self._paths:
            raise RuntimeError(
                "there are no checks of convergence: run with num_checks >= 2 and a finite horizon"
            )
        return Drift(
            torch.tensor([self._num_observed, *self._sizes]),
            {name: distances(path, 0) for name, path in self._paths.items()},
            {name: distances(path, -1) for name, path in self._paths.items()},
        )

    def _batch(
        self,
        rule: PredictiveRule,
        data: tuple[Tensor, ...],
        keys: Tensor,
        on_data: Values,
        members: range,
        advanced: Callable[[int], Any],
    ) -> _Batch:
        """Make some draws."""
        state = rule.begin(data, keys)
        path = [
            {name: value.expand(len(keys), *value.shape[1:]) for name, value in on_data.items()}
        ]
        if self.horizon == math.inf:
            assert isinstance(rule, KnowsLimit)
            path.append(self._evaluate(rule.limit(state), len(keys), on_data))
            advanced(1)
        for size in self._sizes:
            num_steps = size - state.size
            state = rule.advance(state, num_steps)
            path.append(self._evaluate(rule.population(state), len(keys), on_data))
            advanced(num_steps)
        last = path[-1]
        flat = torch.cat([value.reshape(len(keys), -1) for value in last.values()], 1)
        finite = flat.isfinite().all(1)
        left_out = [members[number] for number in (~finite).nonzero()[:, 0].tolist()]
        paths = {}
        if self._sizes and self.num_checks > 1:
            paths = {
                name: torch.stack([values[name][finite].double() for values in path])
                for name in last
            }
        return _Batch({name: value[finite] for name, value in last.items()}, paths, left_out)

    def _evaluate(self, population: Any, num_draws: int, like: Values | None) -> Values:
        # With gradients on: a functional may minimize a loss.
        return _named_values(self.functional(population), self.name, num_draws, like)

    def _fractions(self) -> Values:
        """Fraction of the variance that is missing, by name and element."""
        if self._paths:
            half = [self._num_observed, *self._sizes].index(self._half)
            sizes = self._half, self._sizes[-1]
            return {
                name: remaining_fractions(path, half, *sizes) for name, path in self._paths.items()
            }
        unknown = 0.0 if self.horizon == math.inf else math.nan
        return {
            name: value.new_full(value.shape[1:], unknown, dtype=torch.float64)
            for name, value in self._samples.items()
        }

    def _raise_or_warn(self) -> None:
        self._warn_of_left_out(
            "functional", "try it on the data, and see whether it exists for populations like them"
        )
        num_finite = len(next(iter(self._samples.values())))
        if not self._paths:
            return
        name, fraction = largest_fraction(self._fractions())
        if surely_above(fraction, self.tolerance, num_finite):
            size = sufficient_size(fraction, self.tolerance, self._sizes[-1])
            warnings.warn(
                f"horizon={self.horizon} is too short: about {fraction:.0%} of the posterior "
                f"variance of {name!r} is missing, more than tolerance={self.tolerance:g}; about "
                f"horizon={size - self._num_observed} would do",
                RuntimeWarning,
                stacklevel=3,
            )


def _named_values(found: Any, name: str, num_draws: int, like: Values | None) -> Values:
    """Name values of a functional, whose shapes ``(num_draws, *event)`` are as before."""
    values = dict(found) if isinstance(found, Mapping) else {name: found}
    if not values:
        raise ValueError("functional must return a tensor or a dict of some, got an empty dict")
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise TypeError(
                f"functional must return a tensor or a dict of tensors by name, got {value!r:.80} "
                f"for {key!r}"
            )
        shape = tuple(value.shape)
        if shape[:1] != (num_draws,):
            raise ValueError(
                "functional must return tensors of the shape (num_draws, *event), got the shape "
                f"{shape} of {key!r} for {num_draws} draws"
            )
    wanted = {key: tuple(value.shape[1:]) for key, value in (like or {}).items()}
    events = {key: tuple(value.shape[1:]) for key, value in values.items()}
    if like is not None and events != wanted:
        raise ValueError(
            "functional must return the names and shapes that it returns for the data alone, which "
            f"are {wanted}, got {events}"
        )
    return {key: value.detach() for key, value in values.items()}


def plot_drift(posterior: MartingalePosterior, ax: "Axes | None" = None) -> "Axes":
    """Plot how far a functional has moved as the population grew.

    Solid lines show the distance from the value on the data alone, and level off if the horizon is
    long enough; dashed lines show the distance from the value of the last population.

    :param MartingalePosterior posterior: a posterior that has run.
    :param ax: where to draw; by default a new figure.
    :returns: the axes.
    :raises RuntimeError: before a run, or without checks.
    :raises ImportError: if matplotlib is not installed; the message names the extra to install.

    Example::

        >>> from pyro_ext.inference.martingale import MartingalePosterior, Mean, PolyaUrn
        >>> posterior = MartingalePosterior(PolyaUrn(), Mean(), 100, 1000, progress=False)
        >>> plot_drift(posterior.run(torch.arange(10.0))).get_xscale()
        'log'
    """
    checks.instance("posterior", posterior, MartingalePosterior, "a MartingalePosterior")
    drift = posterior.drift()
    ax = axes_of("plot_drift", ax, (5.6, 3.6))
    sizes = drift.sizes.numpy()
    for name, from_data in drift.from_data.items():
        (line,) = ax.plot(sizes, from_data.cpu().numpy(), "o-", markersize=4, label=name)
        end = drift.to_end[name].cpu().numpy()
        ax.plot(sizes, end, "--", linewidth=1.0, color=line.get_color())
    ax.set(
        xscale="log",
        xlabel="size of the population",
        ylabel="mean absolute distance",
        title="from the data (solid), to the end (dashed)",
    )
    ax.set_ylim(bottom=0.0)
    ax.legend(edgecolor="none")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
