"""Simulation-based calibration, which checks an inference on data with known parameters."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyro
import torch

from pyro_ext._lib import checks
from pyro_ext.checkpoint.folder import SimulationFolder
from pyro_ext.diagnostics._simulations import (
    DISTANCE,
    LOG_LIKELIHOOD,
    Experiment,
    Quantity,
    Ranks,
    run_simulations,
)
from pyro_ext.diagnostics._uniformity import ecdf_p_value, ecdf_statistic, holm
from pyro_ext.posterior.identity import continued
from pyro_ext.potential import Potential
from pyro_ext.random import fresh_seed


@dataclass(frozen=True)
class SBCResult:
    """Ranks of true values among draws from their posterior.

    With a correct posterior, each rank is uniform on ``0, ..., num_draws``. Mostly low ranks mean
    that the posterior lies too high, and mostly high ranks, too low. Ranks that pile up at both
    ends mean that it is too narrow; ranks that pile up in the middle, too wide.

    :param dict ranks: ranks by latent site and quantity. **Shape:** ``(num_simulations, *event)``.
    :param int num_draws: the number of draws among which each true value is ranked.
    :param simulations: indices of the simulations in ``ranks``. **Shape:** ``(num_simulations,)``.
    :param Mapping failures: tracebacks of the simulations that failed, by index.
    :param bool interrupted: whether Ctrl-C stopped the run before all simulations had finished.
    :param Mapping dims: names of the dimensions after the first, by site and quantity.

    Example::

        >>> ranks = np.random.default_rng(0).integers(0, 100, size=(200, 2))
        >>> result = SBCResult({"loc": ranks, "too_high": ranks[:, 0] // 2}, num_draws=99)
        >>> result.uniformity()["mean_rank"].round(2).to_list()
        [0.51, 0.54, 0.25]
        >>> result.is_calibrated(), result.is_calibrated(names=["loc"])
        (False, True)
    """

    ranks: Ranks
    num_draws: int
    simulations: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    failures: Mapping[int, str] = field(default_factory=dict)
    interrupted: bool = False
    dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.integer("num_draws", self.num_draws, 1)
        checks.mapping("ranks", self.ranks, "a dict of arrays by site or quantity")
        if not self.ranks:
            raise ValueError("ranks must contain at least one site or quantity, got none")
        for name, ranks in self.ranks.items():
            checks.instance(f"ranks[{name!r}]", ranks, np.ndarray, "a NumPy array of integers")
            if ranks.dtype.kind not in "iu" or not ((ranks >= 0) & (ranks <= self.num_draws)).all():
                raise ValueError(
                    f"ranks[{name!r}] must be integers from 0 to num_draws = {self.num_draws}, got "
                    f"{ranks!r:.80}"
                )
        if len({ranks.shape[:1] for ranks in self.ranks.values()}) > 1:
            shapes = {name: ranks.shape for name, ranks in self.ranks.items()}
            raise ValueError(
                f"ranks must have the shape (num_simulations, *event) each, got {shapes}"
            )

    def columns(
        self, names: Collection[str] | None = None, pool: bool | Collection[str] = False
    ) -> dict[str, npt.NDArray[np.int64]]:
        """Return the ranks of each scalar, or of all elements of a site together.

        :param Collection names: sites and quantities, by default all.
        :param pool: see :meth:`uniformity`.
        :returns: ranks by label such as ``"theta[0, 2]"``. **Shape:** ``(num_ranks,)`` each.
        :raises ValueError: for a name that has no ranks.
        """
        columns = {}
        chosen = self._known(names, "names")
        if not chosen:
            raise ValueError(f"names must contain at least one name, got {names!r}")
        pooled = self._known(pool, "pool") if not isinstance(pool, bool) else []
        for name in chosen:
            ranks = self.ranks[name]
            if pool is True or name in pooled or ranks.ndim == 1:
                columns[name] = ranks.ravel()
                continue
            for index in np.ndindex(ranks.shape[1:]):
                columns[f"{name}[{', '.join(map(str, index))}]"] = ranks[(slice(None), *index)]
        return columns

    def uniformity(
        self, names: Collection[str] | None = None, pool: bool | Collection[str] = False
    ) -> Any:
        """Test for each scalar whether its ranks are uniform.

        The test uses the whole empirical distribution function at once [1]. Its p-values are exact,
        and then adjusted for the number of rows by Holm's method.

        :param Collection names: sites and quantities to test, by default all.
        :param pool: treat the ranks of all elements of a site as one sample: ``True`` for all
            sites, or a list of names. This makes the test more powerful if the elements are
            independent given the data, as replicates are. Otherwise it makes the test invalid,
            because the ranks of dependent elements are similar.
        :returns: a data frame with the columns ``num_ranks``; ``mean_rank``, from 0 to 1, which is
            0.5 if calibrated and lower if the posterior lies too high; ``spread``, the root mean
            square distance of the ranks from their middle, relative to that of uniform ranks, which
            is 1 if calibrated and higher if the posterior is too narrow; ``statistic``,
            ``p_value`` and ``adjusted_p_value``.
        :raises ValueError: for a name that has no ranks.

        [1] T. Säilynoja, P.-C. Bürkner, A. Vehtari (2022), Graphical test for discrete uniformity
        and its applications in goodness-of-fit evaluation and multiple sample comparison.
        """
        import pandas

        columns = self.columns(names, pool)
        rows = []
        uniform_variance = self.num_draws * (self.num_draws + 2) / 12.0
        for ranks in columns.values():
            statistic = float(ecdf_statistic(ranks[:, None], self.num_draws)[0])
            variance = ((ranks - self.num_draws / 2.0) ** 2).mean()
            rows.append(
                {
                    "num_ranks": len(ranks),
                    "mean_rank": ranks.mean() / self.num_draws,
                    "spread": (variance / uniform_variance) ** 0.5,
                    "statistic": statistic,
                    "p_value": ecdf_p_value(statistic, len(ranks), self.num_draws),
                }
            )
        table = pandas.DataFrame(rows, index=list(columns))
        return table.assign(adjusted_p_value=holm(table["p_value"].to_numpy()))

    def coverage(
        self,
        probs: Sequence[float] = (0.5, 0.8, 0.9, 0.95),
        names: Collection[str] | None = None,
        pool: bool | Collection[str] = False,
    ) -> Any:
        r"""Compute how often central intervals of the posterior contained the true values.

        The probability of an interval between draws is a multiple of ``1 / (num_draws + 1)``: the
        largest multiple that does not exceed the requested probability.

        :param Sequence probs: probabilities of the intervals, in (0, 1).
        :param Collection names: sites and quantities, by default all.
        :param pool: see :meth:`uniformity`.
        :returns: a data frame with a row for each scalar and a column for each probability. The
            first row, ``"expected"``, has the exact probabilities of the intervals. A fraction
            deviates from these by about :math:`\sqrt{p (1 - p) / n}` by chance.
        :raises ValueError: for a probability out of range, or a name that has no ranks.
        """
        import pandas

        for prob in checks.sequence("probs", probs, "probabilities"):
            checks.number("probs", prob, above=0, below=1)
        total = self.num_draws + 1
        sizes = {}
        for prob in probs:
            most = int(prob * total + 1e-9)
            sizes[prob] = most - (most + total) % 2  # as many ranks are left out on either side
        rows = [[size / total for size in sizes.values()]]
        columns = self.columns(names, pool)
        for ranks in columns.values():
            from_middle = np.abs(2 * ranks - self.num_draws)
            rows.append([float((from_middle < size).mean()) for size in sizes.values()])
        return pandas.DataFrame(rows, index=["expected", *columns], columns=list(sizes))

    def is_calibrated(
        self,
        level: float = 0.01,
        names: Collection[str] | None = None,
        pool: bool | Collection[str] = False,
    ) -> bool:
        """Tell whether no test of :meth:`uniformity` rejects.

        :param float level: the probability of rejecting a calibrated inference.
        :param Collection names: sites and quantities to test, by default all.
        :param pool: see :meth:`uniformity`.
        """
        checks.number("level", level, above=0, below=1)
        return bool(self.uniformity(names, pool)["adjusted_p_value"].min() > level)

    def summary(
        self, names: Collection[str] | None = None, pool: bool | Collection[str] = False
    ) -> None:
        """Print the table of :meth:`uniformity` and the status of the simulations."""
        print(self.uniformity(names, pool).to_string(float_format="{:.3g}".format))
        finished = len(next(iter(self.ranks.values())))
        print(f"{finished} simulations, true values ranked among {self.num_draws} draws")
        if self.interrupted:
            print("interrupted before the rest of the simulations")
        if self.failures:
            print(f"{len(self.failures)} simulations failed, see failures: {list(self.failures)}")

    def _known(self, names: Collection[str] | None, argument: str) -> list[str]:
        if names is None:
            return list(self.ranks)
        wanted = checks.sequence(argument, names, "a list of names", 0)
        if set(wanted) - set(self.ranks):
            raise ValueError(
                f"{argument} must be a list of names among {list(self.ranks)}, got {names!r}"
            )
        return wanted


def sbc(
    model: Callable[..., Any],
    run_inference: Callable[..., Any],
    num_simulations: int = 100,
    *args: Any,
    quantities: Mapping[str, Quantity] | None = None,
    log_likelihood: bool = True,
    distance: bool = False,
    num_draws: int = 100,
    executor: Executor | None = None,
    checkpoint: str | Path | None = None,
    seed: int | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> SBCResult:
    """Check an inference by simulation-based calibration [1].

    Each simulation draws latent sites and data from the prior, over the full size of every plate,
    infers the latent sites from these data, and ranks their true values among the posterior draws.
    If the inference is exact, the ranks are uniform.

    Ranks of latent sites alone do not detect every error: an inference that returns the prior gives
    uniform ranks too. Ranks of quantities that depend on the data detect more [2], so the log
    likelihood of all data is ranked as well.

    :param model: a Pyro model with proper priors. Draws from the prior ignore any ``pyro.factor``.
    :param run_inference: a function of a model and its arguments that returns a posterior: a
        sampler that has run, a dict of draws, or a trained guide, as accepted by
        :func:`~pyro_ext.diagnostics.to_arviz`. The model passed to it observes the simulated data,
        whatever the arguments contain. The function should draw from the global generators, which
        are seeded: with a fixed seed of its own, all simulations would share their noise. It should
        create new kernels, guides and other objects with state each time; otherwise a simulation
        starts from what another has learned.
    :param int num_simulations: number of simulations.
    :param args: arguments of the model.
    :param Mapping quantities: further functions to rank, by name. They map one value of each
        latent, deterministic and observed site to a tensor of any fixed shape; the observed values
        are the simulated data.
    :param bool log_likelihood: whether to rank ``"log_likelihood"``.
    :param bool distance: whether to rank ``"distance"``, the distance of all latent sites together
        from a random point of the prior [3]. It detects wrong correlations even if the marginal of
        every site is right.
    :param int num_draws: the number of draws to rank among, evenly spaced among the posterior
        draws. Autocorrelated draws make ranks pile up at both ends, so thin them in the sampler.
    :param Executor executor: where simulations run: a process pool, or the executor of a Dask
        client whose workers have one thread each, since a process runs one simulation at a time. By
        default, simulations run one after the other in this process. Each simulation computes on
        one thread; if a worker dies, its simulation is run again.
    :param checkpoint: a folder to which ranks are written as simulations finish. Start the same
        program again to continue a run that was killed, or to add simulations.
    :param int seed: results depend on the seed and not on the executor; ``None`` takes one from
        PyTorch's generator, or that of the checkpoint.
    :param bool progress: whether to show a progress bar.
    :param kwargs: keyword arguments of the model.
    :returns: the ranks; after Ctrl-C, those of the simulations that had finished.
    :raises TypeError: if an argument has the wrong type.
    :raises ValueError: if numbers are out of range, if the model observes nothing or its prior
        cannot be drawn from, or for a thread pool, whose threads would share Pyro's global state.
    :raises CheckpointError: if the checkpoint belongs to another run or is damaged.
    :raises ExecutorError: if the executor fails.
    :raises RuntimeError: if all simulations fail. If only some fail, they are left out with a
        warning.

    [1] S. Talts, M. Betancourt, D. Simpson, A. Vehtari, A. Gelman (2018), Validating Bayesian
    inference algorithms with simulation-based calibration.

    [2] M. Modrák, A. H. Moon, S. Kim, P.-C. Bürkner, N. Huurre, K. Faltejsková, A. Gelman,
    A. Vehtari (2023), Simulation-based calibration checking for Bayesian computation: the choice of
    test quantities shapes sensitivity.

    [3] P. Lemos, A. Coogan, Y. Hezaveh, L. Perreault-Levasseur (2023), Sampling-based accuracy
    testing of posterior estimators for general inference.

    Example::

        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> def exact(model, x):  # the posterior is Normal(x / 2, 1 / sqrt(2))
        ...     x = pyro.poutine.trace(model).get_trace(x).nodes["x"]["value"]
        ...     return {"loc": x / 2 + torch.randn(100) / 2**0.5}
        >>> result = sbc(model, exact, 50, torch.zeros(()), seed=0, progress=False)
        >>> result.is_calibrated()
        True
    """
    checks.function("run_inference", run_inference)
    checks.integer("num_simulations", num_simulations, 1)
    checks.integer("num_draws", num_draws, 1)
    checks.optional(checks.mapping, "quantities", quantities, "a dict of functions by name")
    quantities = dict(quantities or {})
    for name, quantity in quantities.items():
        checks.function(f"quantities[{name!r}]", quantity)
    wanted = "a concurrent.futures.Executor or None"
    checks.optional(checks.instance, "executor", executor, Executor, wanted)
    if isinstance(executor, ThreadPoolExecutor):
        raise ValueError(
            "executor must run in processes, got a ThreadPoolExecutor, whose threads would share "
            "the global state of Pyro"
        )
    checks.optional(checks.instance, "checkpoint", checkpoint, (str, Path), "a path or None")
    folder = None if checkpoint is None else SimulationFolder(checkpoint)
    try:
        known = None if folder is None else folder.description()
        if known is not None and seed is None:
            seed = int(known["identity"]["run"]["seed"])
        experiment = Experiment(
            model=model,
            args=args,
            kwargs=kwargs,
            run_inference=run_inference,
            quantities=quantities,
            log_likelihood=log_likelihood,
            distance=checks.boolean("distance", distance),
            num_draws=num_draws,
            seed=fresh_seed(seed),
            params=pyro.get_param_store().get_state(),
            dtype=torch.get_default_dtype(),
        )
        with experiment.surroundings():
            potential = experiment.potential()
            _check_model(potential, quantities, experiment)
            if folder is not None:
                identity = continued(known, experiment.identity(potential), folder.folder)
                folder.describe({"identity": identity})
        outcomes, interrupted = run_simulations(
            experiment, potential, num_simulations, executor, folder, progress
        )
    finally:
        if folder is not None:
            folder.close()
    ordered = sorted(outcomes.items())
    failures = {number: text for number, text in ordered if isinstance(text, str)}
    finished = {number: ranks for number, ranks in ordered if not isinstance(ranks, str)}
    if not finished:
        if interrupted:
            raise KeyboardInterrupt
        raise RuntimeError(
            f"all {len(failures)} simulations failed, the first with\n"
            f"{next(iter(failures.values()))}"
        )
    if failures:
        number, text = next(iter(failures.items()))
        warnings.warn(
            f"{len(failures)} of {len(outcomes)} simulations failed and are left out, which biases "
            "the ranks unless the failures are unrelated to the data; "
            f"simulation {number} failed with {text.strip().splitlines()[-1]}",
            RuntimeWarning,
            stacklevel=2,
        )
    rows = list(finished.values())
    return SBCResult(
        ranks={name: np.stack([row[name] for row in rows]) for name in rows[0]},
        num_draws=num_draws,
        simulations=np.array(list(finished)),
        failures=failures,
        interrupted=interrupted,
        dims=_dims(potential, rows[0]),
    )


def _check_model(
    potential: Potential, quantities: Mapping[str, object], experiment: Experiment
) -> None:
    if not potential.observed_sites:
        raise ValueError(
            "model must observe its data, got no observed site: pass data of the right shape, "
            "as in sbc(model, run_inference, 100, x, y); simulated data replace them"
        )
    own = [
        name
        for name, is_ranked in (
            (LOG_LIKELIHOOD, experiment.log_likelihood),
            (DISTANCE, experiment.distance),
        )
        if is_ranked
    ]
    taken = {*potential.sites, *own}
    if clash := sorted(taken & set(quantities)):
        raise ValueError(f"quantities names {clash}, which are ranked already")
    for name in own:
        if name in potential.sites:
            raise ValueError(f"model has a site {name!r}: rename it, or pass {name}=False")
    potential.prior(1)  # raises where the prior cannot be drawn from


def _dims(potential: Potential, ranks: Ranks) -> dict[str, tuple[str, ...]]:
    """Names of dimensions: plates, unless a variable has that name, else numbers."""
    dims = {}
    for name, array in ranks.items():
        numbered = [f"{name}_dim_{number}" for number in range(array.ndim)]
        plates = list(potential.sites[name].dims) if name in potential.sites else []
        for position, plate in enumerate(plates):
            if plate is not None and plate not in ranks:
                numbered[position] = plate
        dims[name] = tuple(numbered)
    return dims
