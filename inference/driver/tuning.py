"""Settings of stochastic-gradient kernels, found by short pilot runs.

No step is accepted or rejected, so that there is no acceptance rate to tune for. What takes its
place is the kernel Stein discrepancy of draws from the posterior, which sees both faults: the bias
of steps that are too large, and that chains do not arrive or mix where steps are too small. Runs of
candidate settings are compared by it, and the worse half is dropped again and again [1].

[1] J. Coullon, L. South, C. Nemeth (2023), Efficient and generalizable tuning strategies for
stochastic gradient MCMC.

A few draws are enough to see that chains have not arrived, and not to see that draws are twice too
wide: for that their configurational temperature is taken besides, from minibatches, which cost
little, and what it is off enters the score.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext._lib.progress import progress_bar
from pyro_ext.diagnostics.temperature import Temperature
from pyro_ext.inference.driver.end_of_run import temperatures_at
from pyro_ext.inference.driver.pilot_scores import scores
from pyro_ext.inference.sgmcmc import Chains, Schedule, SGMCMCKernel
from pyro_ext.posterior.starts import Start, check_start, first_values
from pyro_ext.random import fresh_seed

Grid = Mapping[str, Iterable[Any]]

_DEFAULT_FACTORS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_NOT_TUNED = ("backend", "init_strategy", "minibatches", "steps_per_sample", "temperature")
_FACTOR = 3.0
_MOST_ADDED = 8
_FAR = 9.0
_TEMPERATURE_DRAWS = 200
_FEWEST_FOR_TEMPERATURE = 4
_MOST_TEMPERATURE = 1.5
_LEAST_TEMPERATURE = 0.01
_ERRORS = 4.0


@dataclass(frozen=True)
class Trial:
    """Result of the pilot runs for one candidate.

    :param dict settings: its settings, those of the grid.
    :param float score: estimate of the squared discrepancy of its last draws from the posterior,
        and how far the logarithm of their temperature is off, beyond its noise. It may lie below
        zero where the draws are good; it is infinite where a chain has diverged.
    :param int num_steps: how many steps each of its chains took before it was dropped.
    :param float temperature: configurational temperature of its last draws, in units of the
        kernel's, of the site at which it is off most: draws of 4 are twice too wide.
    :param float noise: standard error of the score.
    :param float heat: what the temperature adds to the score.
    """

    settings: dict[str, Any]
    score: float
    num_steps: int
    temperature: float = math.nan
    noise: float = math.nan
    heat: float = 0.0


@dataclass(frozen=True)
class TuningResult:
    """Result of :func:`tune`.

    :param SGMCMCKernel kernel: a new kernel with the best settings.
    :param tuple trials: all candidates, the best first. Only scores of candidates that took equally
        many steps can be compared.
    :param bool interrupted: whether Ctrl-C ended the search early.
    """

    kernel: SGMCMCKernel
    trials: tuple[Trial, ...]
    interrupted: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """The best settings, those of the grid."""
        return self.trials[0].settings

    @property
    def tied(self) -> tuple[Trial, ...]:
        """The best trial, and others of as many steps whose scores differ by less than noise."""
        best = self.trials[0]
        return tuple(
            trial
            for trial in self.trials
            if trial is best
            or trial.num_steps == best.num_steps
            and trial.score - best.score < math.hypot(trial.noise, best.noise)
        )

    def table(self) -> Any:
        """Tabulate the trials.

        :returns: a data frame with a row for each trial, the best first, and a column for each
            setting, ``score``, ``num_steps``, ``temperature`` and ``noise``.
        """
        import pandas

        rows = [
            {
                **trial.settings,
                "score": trial.score,
                "num_steps": trial.num_steps,
                "temperature": trial.temperature,
                "noise": trial.noise,
            }
            for trial in self.trials
        ]
        return pandas.DataFrame(rows)


def tune(
    kernel: SGMCMCKernel,
    *args: Any,
    grid: Grid | None = None,
    num_steps: int = 1000,
    num_chains: int = 8,
    num_samples: int = 25,
    initial_params: Start | None = None,
    seed: int | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> TuningResult:
    r"""Choose settings of a stochastic-gradient kernel by pilot runs and successive halving [1].

    Every candidate runs for ``num_steps`` steps. The better half of them run on from where they are
    until they have taken twice as many, and so on, until one is left. What is compared is an
    unbiased estimate of the squared kernel Stein discrepancy, from draws in the later half of each
    run and gradients over all of the data there. All candidates see the same minibatches and noise.

    To this is added :math:`|\log (\hat T / T)|` beyond four standard errors, with an estimate
    :math:`\hat T` of the temperature of the draws of the site at which it is off most, by
    :func:`~pyro_ext.diagnostics.temperature.configurational_temperature`.

    A warning says where the best lies at an end of the grid, where its draws are too wide all the
    same, and where settings that are a factor of ten apart have scores within their noise.

    Coordinates enter the discrepancy in units of :math:`\sqrt{sd(z) / sd(\nabla \log p(z))}`, of
    which the median over the candidates is taken. In a normal posterior this is the posterior's own
    scale whether draws spread too much or too little, so that neither kind of fault sets the units.

    It looks at where chains get within the steps they have, and so finds settings for runs of about
    that length, or longer. It knows nothing of a mode that no candidate has found.

    The model's gradient is recorded anew for each candidate. A kernel with ``backend="compile"``
    is tried with ``"trace"``, which takes the same steps and does not wait for the compiler.

    :param SGMCMCKernel kernel: the kernel, which stays as it is.
    :param args: arguments of the model.
    :param Mapping grid: values to try by setting, such as
        ``{"step_size": [1e-4, 1e-3], "momentum_decay": [0.03, 0.1]}``; all combinations are
        candidates but those that the kernel refuses. A number as ``step_size`` rescales a schedule.
        By default the kernel's step size times 0.01, 0.03, 0.1, ..., 100, and on from there while
        the best is the smallest or largest.
    :param int num_steps: steps that all candidates take; the first half of them is warm-up.
    :param int num_chains: number of chains of each candidate.
    :param int num_samples: draws of each chain that enter a score. Each takes a gradient over all
        of the data, which with many data costs more than the steps. Few are enough: the
        temperature is taken from minibatches at 200 draws whatever their number.
    :param initial_params: where the chains start, as for :class:`~pyro_ext.inference.MCMC`.
    :param int seed: the same seed gives the same result; ``None`` takes one from PyTorch's
        generator.
    :param bool progress: whether to show a progress bar.
    :param kwargs: keyword arguments of the model.
    :returns: the best kernel, not set up yet, and how all candidates did. After Ctrl-C it is the
        best that is known, once all candidates have had their first run.
    :raises TypeError: if ``kernel`` is not a stochastic gradient kernel.
    :raises ValueError: for arguments out of range, an empty grid, a setting that the kernel does
        not have, or a value that it never takes.
    :raises RuntimeError: if the chains of all candidates diverge.

    [1] J. Coullon, L. South, C. Nemeth (2023), Efficient and generalizable tuning strategies for
    stochastic gradient MCMC.

    Example::

        >>> from pyro_ext.inference import SGLD
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x), subsample_size=20) as index:
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])
        >>> x = torch.linspace(-2.0, 2.0, 200)
        >>> grid = {"step_size": [1e-6, 1e-5, 1e-4, 1e-1]}
        >>> result = tune(SGLD(model), x, grid=grid, num_steps=200, seed=0, progress=False)
        >>> result.settings
        {'step_size': 0.0001}
        >>> [trial.num_steps for trial in result.trials]
        [400, 400, 200, 200]
    """
    _check(kernel, num_steps, num_chains, num_samples)
    check_start(initial_params, num_chains)
    seed = fresh_seed(seed)
    if grid is None and kernel.step_size is None:  # it goes by the number of data
        _kept_steps(kernel.schedule, num_steps, num_samples)
        measured = kernel.replace()
        measured.first_values = first_values(initial_params)
        measured.setup(0, *args, **kwargs)
        kernel = measured.replace(step_size=measured.schedule.max_step_size)
    values = _default_grid(kernel) if grid is None else _checked_grid(kernel, grid)
    candidates = _candidates(kernel, values)
    # How many candidates take part in each rung, and how many steps they have taken after it.
    rungs = [(len(candidates), num_steps)]
    while rungs[-1][0] > 2:
        rungs.append(((rungs[-1][0] + 1) // 2, 2 * rungs[-1][1]))
    for settings in candidates:
        for _, end in rungs:
            _kept_steps(_changed(kernel, settings).schedule, end, num_samples)

    search = _Search(kernel, num_chains, num_samples, initial_params, seed, args, kwargs)
    search.add(candidates)
    alive = list(range(len(candidates)))
    interrupted = False
    with progress_bar(
        desc=f"tune {type(kernel).__name__}", unit="step", disable=not progress
    ) as bar:
        bar.total = sum(count * end // 2 for count, end in rungs) + len(alive) * num_steps // 2
        try:
            for count, end in rungs:
                alive = alive[:count]
                if search.trials and len(alive) < 2:
                    break
                alive = search.run(alive, end, bar)
            last = rungs[-1][1]
            while grid is None and alive:
                beyond = _beyond(search.trials[alive[0]].settings, search.candidates)
                if beyond is None or _refusal(kernel, beyond) is not None:
                    break
                added = search.add([beyond])
                bar.total += last
                best, alive = alive[0], search.run([*added, alive[0]], last, bar)
                if best == alive[0]:
                    break
        except KeyboardInterrupt:
            if not search.trials:
                raise
            interrupted = True
        bar.total = bar.n

    order = sorted(search.trials, key=lambda number: _rank(search.trials[number]))
    trials = tuple(search.trials[number] for number in order)
    if not math.isfinite(trials[0].score):
        raise RuntimeError(
            f"all {len(candidates)} candidates diverged within {num_steps} steps: "
            "try smaller step sizes, or another start (init_strategy or initial_params)"
        )
    tried = {name: [each[name] for each in search.candidates] for name in values}
    tuned = search.pilots[order[0]].kernel.replace(backend=kernel.backend)
    result = TuningResult(tuned, trials, interrupted)
    messages = [*_edges(kernel, result.settings, tried), *_off(trials[0]), *_ties(result)]
    if messages:
        warnings.warn("\n".join(messages), stacklevel=2)
    return result


# What is tried ------------------------------------------------------------------------------------


def _check(kernel: SGMCMCKernel, num_steps: int, num_chains: int, num_samples: int) -> None:
    if not isinstance(kernel, SGMCMCKernel):
        raise TypeError(f"kernel must be an SGMCMCKernel, got {kernel!r:.80}")
    if kernel.temperature == 0.0:
        raise ValueError("kernel must have a positive temperature: at 0.0 it samples no posterior")
    checks.integer("num_steps", num_steps, 1)
    checks.integer("num_chains", num_chains, 1)
    checks.integer("num_samples", num_samples, 1)
    if num_chains * num_samples < 2:
        raise ValueError("num_chains times num_samples must be at least 2, to compare draws")


def _default_grid(kernel: SGMCMCKernel) -> dict[str, list[Any]]:
    sizes = [factor * kernel.schedule.step_size for factor in _DEFAULT_FACTORS]
    return {"step_size": [size for size in sizes if _refusal(kernel, {"step_size": size}) is None]}


def _checked_grid(kernel: SGMCMCKernel, grid: Grid) -> dict[str, list[Any]]:
    if not isinstance(grid, Mapping) or not grid:
        raise ValueError(f"grid must map settings to lists of values, got {grid!r:.80}")
    known = [name for name in kernel.settings() if name not in _NOT_TUNED]
    values = {}
    for name, entries in grid.items():
        if name not in known:
            raise ValueError(
                f"grid names {name!r}, but what can be tuned of {type(kernel).__name__} is {known}"
            )
        if isinstance(entries, str | Mapping) or not isinstance(entries, Iterable):
            raise ValueError(f"grid[{name!r}] must be a list of values, got {entries!r:.80}")
        values[name] = [e.item() if isinstance(e, np.generic | Tensor) else e for e in entries]
        if not values[name]:
            raise ValueError(f"grid[{name!r}] must hold at least one value, got {entries!r:.80}")
    return values


def _candidates(kernel: SGMCMCKernel, values: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """All combinations that the kernel takes; it must take each value in one of them."""
    combinations = [
        dict(zip(values, entries, strict=True)) for entries in product(*values.values())
    ]
    refusals = [_refusal(kernel, settings) for settings in combinations]
    taken = [s for s, refusal in zip(combinations, refusals, strict=True) if refusal is None]
    for settings, refusal in zip(combinations, refusals, strict=True):
        for name, value in settings.items():
            if not any(other[name] is value for other in taken):
                raise ValueError(
                    f"grid[{name!r}] holds {value!r}, which {type(kernel).__name__} takes in no "
                    f"combination: {refusal}"
                ) from refusal
    return taken


def _refusal(kernel: SGMCMCKernel, settings: Mapping[str, Any]) -> ValueError | None:
    try:
        _changed(kernel, settings)
    except ValueError as error:
        return error
    return None


def _changed(kernel: SGMCMCKernel, settings: Mapping[str, Any]) -> SGMCMCKernel:
    changes = dict(settings)
    step_size = changes.get("step_size")
    if isinstance(kernel.step_size, Schedule) and isinstance(step_size, int | float):
        changes["step_size"] = kernel.step_size.rescaled(step_size)
    return kernel.replace(**changes)


def _sampling_steps(schedule: Schedule, end: int) -> npt.NDArray[np.int64]:
    """Numbers of steps in the later half of a run that sample."""
    later = np.arange(end // 2, end)
    sampling: npt.NDArray[np.int64] = later[schedule.is_sampling(later)]
    return sampling


def _kept_steps(schedule: Schedule, end: int, num_samples: int) -> npt.NDArray[np.int64]:
    """Numbers of steps after which draws are kept: spread over the later half of a run."""
    sampling = _sampling_steps(schedule, end)
    if len(sampling) < num_samples:
        raise ValueError(
            f"num_steps must leave num_samples = {num_samples} steps that sample in the later half "
            f"of each run, but of the steps from {end // 2} to {end} {len(sampling)} sample"
        )
    indices = np.arange(1, num_samples + 1) * len(sampling) // num_samples - 1
    kept: npt.NDArray[np.int64] = sampling[indices] + 1
    return kept


def _beyond(
    settings: Mapping[str, Any], tried: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The next step size on, where that of the settings is the smallest or largest of all."""
    size, sizes = settings["step_size"], [each["step_size"] for each in tried]
    if len(sizes) >= len(_DEFAULT_FACTORS) + _MOST_ADDED or size not in (min(sizes), max(sizes)):
        return None
    return {"step_size": size / _FACTOR if size == min(sizes) else size * _FACTOR}


def _edges(
    kernel: SGMCMCKernel, settings: Mapping[str, Any], values: Mapping[str, list[Any]]
) -> Iterator[str]:
    """Warnings of the best settings that lie at an end of what was tried."""
    for name, entries in values.items():
        if len(set(entries)) < 3 or not all(isinstance(value, int | float) for value in entries):
            continue
        for edge, which, beyond, factor in (
            (min(entries), "smallest", "smaller", 1.0 / _FACTOR),
            (max(entries), "largest", "larger", _FACTOR),
        ):
            if settings[name] == edge:
                refusal = _refusal(kernel, {**settings, name: factor * edge})
                yield f"the best {name}, {edge!r}, is the {which} that was tried" + (
                    f": a {beyond} one may be better"
                    if refusal is None
                    else f", and {type(kernel).__name__} takes none that is {_FACTOR:g} times "
                    f"{beyond}: {refusal}"
                )


def _off(best: Trial) -> Iterator[str]:
    """Warning of the best draws, where even these are too wide or too narrow."""
    if 1.0 / _MOST_TEMPERATURE <= best.temperature <= _MOST_TEMPERATURE or best.heat <= 0.0:
        return
    spread = math.sqrt(max(best.temperature, _LEAST_TEMPERATURE))
    yield (
        f"draws of the best settings, {best.settings}, have the temperature {best.temperature:.2g} "
        f"where 1 is right, as if they were {spread:.2g} times as wide as the posterior: steps are "
        "too large, or the chains have not arrived; try smaller ones with a larger num_steps, "
        "larger minibatches, a control_variate or better starts (initial_params)"
    )


def _ties(result: TuningResult) -> Iterator[str]:
    """Warning of settings far apart whose scores the draws do not tell from each other."""
    for name in result.settings:
        values = [trial.settings[name] for trial in result.tied]
        if not all(isinstance(value, int | float) for value in values):
            continue
        if max(values) > _FAR * min(values):
            yield (
                f"scores of {name} from {min(values)!r} to {max(values)!r} differ by less than "
                f"their noise, {result.trials[0].noise:.2g}: take a larger num_samples or "
                "num_chains"
            )


# How it runs --------------------------------------------------------------------------------------


class _Pilot:
    """A candidate's kernel, set up, and its chains where they are."""

    def __init__(self, kernel: SGMCMCKernel, chains: Chains) -> None:
        self.kernel = kernel
        self.chains = chains
        self.temperatures: dict[str, Temperature] = {}

    def draw(self, end: int, num_samples: int) -> tuple[Tensor, Tensor]:
        """Run on to a step, and take the temperatures there.

        Shapes: returns (num_samples * num_chains, size) each.
        """
        schedule, num_chains = self.kernel.schedule, len(self.chains.position)
        steps = _kept_steps(schedule, end, num_samples)
        more = min(_sampling_steps(schedule, end).size, -(-_TEMPERATURE_DRAWS // num_chains))
        steps_of_all = np.union1d(steps, _kept_steps(schedule, end, more))
        self.chains, draws = self.kernel.record(self.chains, steps_of_all.tolist())
        potential = self.kernel.potential
        points = draws.position[torch.from_numpy(np.isin(steps_of_all, steps))].flatten(0, 1)
        self.temperatures = {}
        if not torch.isfinite(draws.position).all():
            return points.new_full(points.shape, math.nan), points
        if len(steps_of_all) >= _FEWEST_FOR_TEMPERATURE:
            by_chain = draws.position.transpose(0, 1)
            self.temperatures = temperatures_at(self.kernel, by_chain, num_chains)
        _, gradients = potential.full_value_and_grad(potential.layout.unflatten(points))
        return points, -potential.layout.flatten(gradients) / self.kernel.temperature


class _Search:
    """Candidates, their pilot runs, and the results so far."""

    def __init__(
        self,
        kernel: SGMCMCKernel,
        num_chains: int,
        num_samples: int,
        initial_params: Start | None,
        seed: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.candidates: list[dict[str, Any]] = []
        self.pilots: list[_Pilot] = []
        self.trials: dict[int, Trial] = {}
        self._draws: dict[int, tuple[Tensor, Tensor]] = {}
        self._num_chains, self._num_samples, self._seed = num_chains, num_samples, seed
        self._first_values = first_values(initial_params)
        self._arguments = args, kwargs
        self._kernel = plain = kernel.replace(
            backend="eager" if kernel.backend == "eager" else "trace"
        )
        if kernel.model is None and isinstance(initial_params, Mapping):
            plain.initial_params = {name: value[0] for name, value in initial_params.items()}
        self._set_up(plain)
        params = None
        if initial_params is not None:
            params = plain.start_from(initial_params, num_chains, seed, *args, **kwargs)
        self._position = plain.begin(range(num_chains), seed, params).position

    def _set_up(self, kernel: SGMCMCKernel) -> None:
        args, kwargs = self._arguments
        kernel.first_values = self._first_values
        kernel.setup(0, *args, **kwargs)

    def add(self, candidates: Sequence[dict[str, Any]]) -> list[int]:
        """Start candidates, all at one point and with one seed; returns their numbers."""
        first = len(self.candidates)
        for settings in candidates:
            pilot = _changed(self._kernel, settings)  # with the anchor, searched for once
            self._set_up(pilot)
            params = pilot.potential.layout.unflatten(self._position)
            chains = pilot.begin(range(self._num_chains), self._seed, params)
            self.candidates.append(settings)
            self.pilots.append(_Pilot(pilot, chains))
        return list(range(first, len(self.candidates)))

    def run(self, numbers: Sequence[int], end: int, bar: Any) -> list[int]:
        """Run candidates on to a step, where they are not there, and compare them."""
        for number in numbers:
            pilot = self.pilots[number]
            before = pilot.chains.step
            if before < end:
                self._draws[number] = pilot.draw(end, self._num_samples)
            bar.update(pilot.chains.step - before)
        judged = scores([self._draws[number] for number in numbers], self._num_chains)
        for number, (score, noise) in zip(numbers, judged, strict=True):
            temperature, heat = _heat(self.pilots[number])
            self.trials[number] = Trial(
                self.candidates[number], score + heat, end, temperature, noise, heat
            )
        alive = [n for n in numbers if math.isfinite(self.trials[n].score)]
        return sorted(alive, key=lambda number: self.trials[number].score)


# How it is judged ---------------------------------------------------------------------------------


def _rank(trial: Trial) -> tuple[bool, int, float]:
    """Key to sort trials by: those that ran longest have beaten the others."""
    return not math.isfinite(trial.score), -trial.num_steps, trial.score


def _heat(pilot: _Pilot) -> tuple[float, float]:
    """Temperature of the site at which it is off most, and its logarithm beyond its noise."""
    wanted, worst = pilot.kernel.temperature, (math.nan, -1.0)
    for found in pilot.temperatures.values():
        ratio = found.value / wanted
        bounded = max(ratio, _LEAST_TEMPERATURE)
        beyond = abs(math.log(bounded)) - _ERRORS * found.standard_error / (wanted * bounded)
        worst = max(worst, (ratio, max(beyond, 0.0)), key=lambda pair: pair[1])
    return worst[0], max(worst[1], 0.0)
