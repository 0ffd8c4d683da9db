"""Evidence and draws of a posterior, by particles that move from the prior to the posterior.

[1] P. Del Moral, A. Doucet, A. Jasra (2006), Sequential Monte Carlo samplers.

[2] H.-D. Dau, N. Chopin (2022), Waste-free sequential Monte Carlo.
"""

import math
import warnings
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext._lib.progress import progress_bar
from pyro_ext.checkpoint.folder import StageFolder
from pyro_ext.inference.hmc.transitions import hamiltonian_transition
from pyro_ext.inference.smc.particles import draw_index, effective_sample_size
from pyro_ext.inference.vectorized.backends import chosen_backend
from pyro_ext.posterior.convergence import ConvergenceWarning, print_summary, rank_diagnostics
from pyro_ext.posterior.fixed_points import model_at
from pyro_ext.posterior.identity import (
    continued,
    data_identity,
    density_identity,
    model_identity,
    versions,
)
from pyro_ext.potential import BatchedFunction, Potential, sum_out
from pyro_ext.potential.batched import Backend, KernelBackend
from pyro_ext.potential.enumeration import is_without_density
from pyro_ext.potential.evaluation import Evaluation, factorization_errors, from_unconstrained
from pyro_ext.potential.graph_capture import Gradient
from pyro_ext.potential.model_at_values import ModelAtValues
from pyro_ext.random import fresh_seed, seeded, spawn_seed

_HALVINGS = 60
# A quarter of a turn of a normal distribution, after which its energy is independent, too; more
# leapfrogs are for steps that are small since the covariance says little of the shape.
_LENGTH, _MOST_LEAPFROGS, _USUAL_LEAPFROGS = math.pi / 2.0, 32, 3
_TARGET = 0.8
_GAIN = 0.3
_EXPECTED_STAGES = 20
_OPERATIONS_PER_STEP = 30
_MOST_R_HAT = 1.05
_MOST_SPREAD = 1.0
_MOST_STAGES = 10_000


class TemperingSchedule(NamedTuple):
    """Temperatures of a run, and how particles move at each of them.

    :param Tensor temperatures: powers of the likelihood, of which the last is one. **Shape:**
        ``(n,)``.
    :param Tensor step_sizes: sizes of leapfrog steps in units of the factors. **Shape:** ``(n,)``.
    :param Tensor factors: factors of covariances. **Shape:** ``(n, size, size)``.
    """

    temperatures: Tensor
    step_sizes: Tensor
    factors: Tensor


class _State(NamedTuple):
    """State after a stage: of the search for a schedule, or of the runs with it.

    Shapes: particles (num_runs, num_particles, size), of which the search makes one run;
    log_evidences (num_runs,).
    """

    particles: Tensor
    log_evidences: Tensor
    schedule: TemperingSchedule
    is_chosen: bool
    num_stages: int


class TemperedPotential(Potential):
    r"""Negative log density :math:`U_b(z) = -\log p(z) - b \log L(z)` of a Pyro model.

    The prior :math:`p` is of the latent sites, in unconstrained space; the likelihood :math:`L` of
    the observed sites and of each ``pyro.factor``.

    :param model: a Pyro model with proper priors, which sees all of its data; discrete sites are
        summed out.
    :param args: its arguments.
    :param str backend: as of :class:`Potential`.
    :param kwargs: its keyword arguments.
    :raises ValueError: for a plate that subsamples, or a latent site whose density is not known
        apart from the likelihood, since a discrete one is summed out of it.
    """

    def __init__(
        self, model: Callable[..., Any], *args: Any, backend: Backend = "trace", **kwargs: Any
    ) -> None:
        summed = sum_out(model, *args, **kwargs)
        super().__init__(summed, *args, backend=backend, **kwargs)
        # Discrete sites are faster to draw than to sum out.
        self._drawn = self if summed is model else ModelAtValues(model, *args, **kwargs)
        if self.subsampled_plates:
            names = [plate.name for plate in self.subsampled_plates]
            raise ValueError(f"model must see all of its data, but it subsamples in {names}")
        records = self._records(self._start)
        if mixed := [name for name in self.sites if is_without_density(records[name].fn)]:
            raise ValueError(
                f"model must have a prior of {mixed} that does not depend on the discrete sites "
                "that are summed out: use the distribution with these summed out, such as "
                "MixtureSameFamily"
            )
        self.tempered = BatchedFunction(
            Gradient(self._tempered), self._tempered_example, backend, self._data, self._fallback
        )
        """Potential and gradient at positions, with a power for each chain."""
        self._log_likelihood = self.batched(self._likelihood, self._example)
        self._from_constrained = self.batched(self._runner.unconstrain, self._constrained_example)

    def likelihoods(self, flat: Tensor) -> Tensor:
        """Log likelihood, zero density for NaN. **Shape:** ``(n, size)`` to ``(n,)``."""
        values: Tensor = self._log_likelihood.over_any(flat)
        return torch.where(values.isnan(), -torch.inf, values)

    def prior_draws(self, number: int, seed: int) -> Tensor:
        """Draws from the prior, unconstrained. **Shape:** ``(number, size)``."""
        drawn = self._drawn.prior(number, seed, sites=())
        values = self.values_layout.flatten({name: drawn[name] for name in self.sites})
        flat: Tensor = self._from_constrained.over_any(values)
        return flat

    def _records(self, flat: Tensor) -> dict[str, Any]:
        indices = dict(self._runner.whole_indices)
        choice = from_unconstrained(self.layout.unflatten(flat), indices)
        return Evaluation(choice, indices).run(self.model, self.args, self.kwargs)

    def _split(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Log prior and log likelihood of one chain, of one run of the model."""
        prior = likelihood = flat.new_zeros(())
        try:
            for name, record in self._records(flat).items():
                if name in self.sites:
                    prior = prior + record.unconstrained_log_prob()
                elif record.has_density:
                    likelihood = likelihood + record.scaled_log_prob().sum()
        except factorization_errors():
            return prior, torch.nan * flat.sum()
        return prior, likelihood

    def _likelihood(self, flat: Tensor) -> Tensor:
        return self._split(flat)[1]

    def _tempered(self, flat: Tensor, temperature: Tensor) -> Tensor:
        prior, likelihood = self._split(flat)
        return -prior - temperature * likelihood

    def _tempered_example(self) -> list[Tensor]:
        (flat,) = self._example()
        return [flat, torch.rand((), generator=self._points.generator).to(flat)]

    def _constrained_example(self) -> list[Tensor]:
        return [self._constrained(*self._example())]


class TemperedSMC:
    r"""Estimates the evidence of a Pyro model and draws from its posterior, across modes [1].

    Particles start as draws from the prior and pass through the densities
    :math:`p(\theta) L(\theta)^b`, with powers :math:`b` that rise from zero to one. At each power,
    particles are weighted, resampled, and moved by Hamiltonian Monte Carlo in units of their
    covariance; all states of these chains become particles of the next power [2]. One run chooses
    powers, step sizes and covariances. Further runs, independent of it and of each other, then use
    these unchanged: their estimates of the evidence are unbiased, and their spread is its error. A
    run that chose its own powers would overestimate the evidence when particles move slowly.

    Priors must allow drawing from them. In many dimensions, or if the prior is far wider than the
    posterior, many powers are needed: use more particles or longer chains. A mode is lost if no
    particle is near it at small powers; disagreement between runs shows this.

    :param model: a Pyro model of continuous sites that sees all of its data. Discrete sites are
        summed out if the priors of other sites do not depend on them.
    :param int num_particles: number of particles of each run.
    :param int chain_length: number of states of each chain, at least two; a run has
        ``num_particles / chain_length`` chains at each power.
    :param int num_runs: number of independent runs for the estimate, at least two.
    :param float ess_threshold: fraction of effective particles that remain at each new power.
    :param str backend: as for :class:`~pyro_ext.inference.NUTS`.
    :param checkpoint: a folder to which the state is written after each power, and from which the
        same program continues after it was killed, with the same results.
    :param int seed: seed of all random numbers; ``None`` takes that of the checkpoint, or one from
        PyTorch's generator.
    :param bool progress: whether to show a progress bar.
    :ivar float log_evidence: logarithm of the estimated evidence; ``log_evidence_error`` is its
        standard error, from the spread of the runs. For an interval, multiply it by a quantile of
        Student's t with ``num_runs - 1`` degrees of freedom: by 2.8 for 95 % with five runs.
    :ivar Tensor log_evidences: estimates of the runs. **Shape:** ``(num_runs,)``.
    :ivar TemperingSchedule schedule: the schedule of the runs; pass it to another run to reuse it.
    :raises ValueError: for numbers out of range.

    Example::

        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> x = torch.tensor([1.0, 2.0])
        >>> smc = TemperedSMC(model, 500, seed=0, progress=False).run(x)
        >>> exact = dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + 1.0).log_prob(x)
        >>> abs(smc.log_evidence - float(exact)) < 0.1
        True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int = 1000,
        *,
        chain_length: int = 10,
        num_runs: int = 5,
        ess_threshold: float = 0.5,
        backend: KernelBackend = "auto",
        checkpoint: str | Path | None = None,
        seed: int | None = None,
        progress: bool = True,
    ) -> None:
        checks.function("model", model, "a Pyro model")
        checks.choice("backend", backend, ("auto", "eager", "trace", "compile"))
        self.model, self.backend = model, backend
        self.num_particles = checks.integer("num_particles", num_particles, 2)
        self.chain_length = checks.integer("chain_length", chain_length, 2)
        self.num_runs = checks.integer("num_runs", num_runs, 2)
        self.ess_threshold = checks.number("ess_threshold", ess_threshold, above=0, below=1)
        if num_particles % chain_length:
            raise ValueError(
                f"num_particles must be a multiple of chain_length = {chain_length}, got "
                f"{num_particles}"
            )
        self.checkpoint = checks.optional(
            checks.instance, "checkpoint", checkpoint, (str, Path), "a path or None"
        )
        self.seed = checks.optional(checks.integer, "seed", seed, 0)
        self.progress = checks.boolean("progress", progress)
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.potential: TemperedPotential | None = None
        self.schedule: TemperingSchedule | None = None
        self.log_evidences = torch.zeros(0)
        self.log_evidence = self.log_evidence_error = math.nan
        self._samples: dict[str, Tensor] = {}

    def run(self, *args: Any, schedule: TemperingSchedule | None = None, **kwargs: Any) -> Self:
        """Choose powers, and run with them.

        :param args: arguments of the model.
        :param TemperingSchedule schedule: the schedule of another run, instead of choosing one.
        :param kwargs: keyword arguments of the model.
        :raises CheckpointError: if the checkpoint belongs to another run, or is damaged.
        """
        if schedule is not None:
            checks.instance("schedule", schedule, TemperingSchedule, "a TemperingSchedule")
        self.args, self.kwargs = args, kwargs
        backend: Backend = "eager" if self.backend == "eager" else "trace"
        self.potential = potential = TemperedPotential(self.model, *args, backend=backend, **kwargs)
        size = potential.layout.size
        if schedule is not None and schedule.factors.shape[1:] != (size, size):
            raise ValueError(
                f"schedule must have factors of the shape (n, {size}, {size}), got "
                f"{tuple(schedule.factors.shape)}"
            )
        moves = (self.chain_length - 1) * _USUAL_LEAPFROGS
        chosen_backend(
            self.backend,
            potential.tempered,
            2 * _EXPECTED_STAGES * moves,
            _OPERATIONS_PER_STEP,
            potential.layout.device,
            None,
        )
        folder = None if self.checkpoint is None else StageFolder(self.checkpoint)
        with nullcontext() if folder is None else closing(folder):
            seed, state = self._found(folder, schedule)
            if state is None:
                state = self._start(seed, schedule)
            with progress_bar(desc="TemperedSMC", unit="move", disable=not self.progress) as bar:
                while not (state.is_chosen and state.num_stages == len(state.schedule[0])):
                    with seeded(spawn_seed(seed, int(state.is_chosen), 1 + state.num_stages)):
                        state = (self._run_stage if state.is_chosen else self._choose_stage)(
                            potential, state, bar
                        )
                    if not state.is_chosen and state.schedule.temperatures[-1] == 1.0:
                        state = self._start(seed, state.schedule)
                    if folder is not None:
                        _save(folder, state)
        particles, log_evidences, schedule, *_ = state
        self.schedule, self.log_evidences = schedule, log_evidences
        total = log_evidences.logsumexp(0) - math.log(self.num_runs)
        self.log_evidence = float(total)
        self.log_evidence_error = _jackknife_error(log_evidences)
        self._samples = potential.samples(potential.layout.unflatten(particles))
        self._warn(particles)
        return self

    @property
    def temperatures(self) -> Tensor:
        """Powers of the likelihood at which particles have moved. **Shape:** ``(n,)``."""
        if self.schedule is None:
            raise RuntimeError("there are no temperatures yet: call run(...) first")
        return self.schedule.temperatures

    def get_samples(self, group_by_chain: bool = False) -> dict[str, Tensor]:
        """Final particles, with one chain for each run.

        :param bool group_by_chain: whether to keep runs apart.
        :returns: by name. **Shape:** ``(num_runs * num_particles, *event)`` each, or
            ``(num_runs, num_particles, *event)``.
        :raises RuntimeError: before a run.
        """
        if not self._samples:
            raise RuntimeError("there are no draws yet: call run(...) first")
        if group_by_chain:
            return dict(self._samples)
        return {name: value.flatten(0, 1) for name, value in self._samples.items()}

    def summary(self, prob: float = 0.9) -> None:
        """Print the evidence, and the mean, standard deviation, interval and R-hat over runs.

        :param float prob: probability mass of the interval.
        :raises RuntimeError: before a run.
        """
        print_summary(self.get_samples(group_by_chain=True), prob=prob)
        print(f"log evidence {self.log_evidence:.2f} +- {self.log_evidence_error:.2f}")

    def _found(
        self, folder: StageFolder | None, schedule: TemperingSchedule | None
    ) -> tuple[int, _State | None]:
        """Seed and state of the run in a folder, if there is one, or raise if it is of another."""
        if folder is None:
            return fresh_seed(self.seed), None
        known = folder.description()
        before = {} if known is None else known["identity"].get("run", {})
        seed = fresh_seed(before.get("seed") if self.seed is None else self.seed)
        densities, _ = density_identity(model_at(self.model, self.args, self.kwargs), {})
        data = data_identity(list(self.args), "args") | data_identity(self.kwargs, "kwargs")
        identity = {
            "driver": type(self).__name__,
            "versions": versions(),
            "run": {
                "num_particles": self.num_particles,
                "chain_length": self.chain_length,
                "num_runs": self.num_runs,
                "ess_threshold": self.ess_threshold,
                "seed": seed,
            },
            "model": model_identity(self.model, self.potential) | {"log density": densities},
            "data": data | data_identity(schedule, "schedule"),
        }
        folder.describe({"identity": continued(known, identity, folder.folder)})
        found = folder.open()
        if found is None:
            return seed, None
        tensors, content = found
        powers = TemperingSchedule(*(tensors[name] for name in TemperingSchedule._fields))
        return seed, _State(tensors["particles"], tensors["log_evidences"], powers, **content)

    def _start(self, seed: int, schedule: TemperingSchedule | None) -> _State:
        """Draw particles from the prior, for runs with a schedule or to choose one."""
        assert self.potential is not None
        layout = self.potential.layout
        is_chosen, number = schedule is not None, self.num_runs * self.num_particles
        flat = self.potential.prior_draws(number, spawn_seed(seed, int(is_chosen), 0))
        none = torch.zeros(0, dtype=torch.float64, device=layout.device)
        if schedule is None:
            factors = none.new_zeros(0, layout.size, layout.size)
            schedule = TemperingSchedule(none, none, factors)
        particles = flat.reshape(self.num_runs if is_chosen else 1, -1, layout.size)
        return _State(particles, none.new_zeros(self.num_runs), schedule, is_chosen, 0)

    def _choose_stage(self, potential: TemperedPotential, state: _State, bar: Any) -> _State:
        """Choose the next power by all particles together, with a step size that adapts."""
        flat, schedule, number = state.particles[0], state.schedule, state.num_stages
        before = float(schedule.temperatures[-1]) if number else 0.0
        log_step = float(schedule.step_sizes[-1].log()) if number else 0.0
        likelihoods = potential.likelihoods(flat).double()
        if not bool((likelihoods > -torch.inf).any()):
            raise ValueError(
                f"the likelihood is zero at all of {len(flat)} particles of power "
                f"{before:.3g}: does the prior cover the data?"
            )
        temperature = self._next(likelihoods, before)
        if number == _MOST_STAGES or temperature == before:
            raise ValueError(
                f"powers do not rise above {before:.3g}: the likelihood differs by more than "
                "numbers can hold from one particle to the next; check the scales of prior "
                "and data"
            )
        log_weights = (temperature - before) * likelihoods
        factor = _factor(flat, log_weights)
        index = _resampled(log_weights[None], len(flat) // self.chain_length)[0]
        flat, log_step = self._moved(potential, flat[index], temperature, log_step, factor, bar)
        new = flat.new_tensor([[temperature], [math.exp(log_step)]], dtype=torch.float64)
        pairs = zip(schedule, (*new, factor[None]), strict=True)
        longer = TemperingSchedule(*(torch.cat(pair) for pair in pairs))
        return state._replace(particles=flat[None], schedule=longer, num_stages=number + 1)

    def _run_stage(self, potential: TemperedPotential, state: _State, bar: Any) -> _State:
        """Take all runs to the next power, side by side."""
        num_runs, number, size = state.particles.shape
        temperatures, step_sizes, factors = state.schedule
        stage = state.num_stages
        temperature = float(temperatures[stage])
        likelihoods = potential.likelihoods(state.particles.flatten(0, 1)).double()
        rise = temperature - (float(temperatures[stage - 1]) if stage else 0.0)
        log_weights = rise * likelihoods.reshape(num_runs, number)
        log_evidences = state.log_evidences + log_weights.logsumexp(-1) - math.log(number)
        index = _resampled(log_weights, number // self.chain_length)
        chains = state.particles.gather(1, index[..., None].expand(-1, -1, size)).flatten(0, 1)
        log_step = float(step_sizes[stage].log())
        moved, _ = self._moved(
            potential, chains, temperature, log_step, factors[stage], bar, adapts=False
        )
        particles = moved.reshape(num_runs, number, size)
        return state._replace(
            particles=particles, log_evidences=log_evidences, num_stages=stage + 1
        )

    def _next(self, likelihoods: Tensor, temperature: float) -> float:
        """Return the power up to which weights leave enough effective particles."""
        wanted = self.ess_threshold * len(likelihoods)

        def size(power: float) -> float:
            return float(effective_sample_size((power - temperature) * likelihoods))

        if size(1.0) >= wanted:
            return 1.0
        low, high = temperature, 1.0
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if size(middle) >= wanted else (low, middle)
        return low

    def _moved(
        self,
        potential: TemperedPotential,
        position: Tensor,
        temperature: float,
        log_step: float,
        factor: Tensor,
        bar: Any,
        adapts: bool = True,
    ) -> tuple[Tensor, float]:
        """Move chains, and return all of their states, chain by chain.

        Shapes: position (num_chains, size); returns (num_chains * chain_length, size).
        """
        powers = position.new_full((len(position),), temperature)

        def function(flat: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = potential.tempered(flat, powers)
            return value, gradient

        factor = factor.to(position)
        value, gradient = function(position)
        states = [position]
        for _ in range(self.chain_length - 1):
            jitter = 0.8 + 0.4 * torch.rand(len(position), 1).to(position)
            position, value, gradient, is_taken = hamiltonian_transition(
                position,
                value,
                gradient,
                torch.randn(position.shape).to(position),
                torch.rand(len(position)).log().to(position),
                function,
                factor,
                step_size=math.exp(log_step) * jitter,
                num_steps=min(max(round(_LENGTH * math.exp(-log_step)), 1), _MOST_LEAPFROGS),
            )
            if adapts:
                log_step += _GAIN * (float(is_taken.double().mean()) - _TARGET)
            states.append(position)
            bar.update()
        return torch.stack(states, 1).flatten(0, 1), log_step

    def _warn(self, particles: Tensor) -> None:
        """Say where runs do not agree."""
        spread = float(self.log_evidences.std())
        if not spread <= _MOST_SPREAD:
            warnings.warn(
                f"log evidences of the runs spread by {spread:.2g}, where at most {_MOST_SPREAD:g} "
                "is right: use more particles (num_particles) or longer chains (chain_length)",
                ConvergenceWarning,
                stacklevel=3,
            )
        r_hat = float(rank_diagnostics(particles).r_hat.max())
        if not r_hat <= _MOST_R_HAT:
            warnings.warn(
                f"the runs do not agree: R-hat over runs is {r_hat:.3g}, where at most "
                f"{_MOST_R_HAT} is right; some have lost a mode, or particles move too slowly: "
                "use more particles (num_particles) or longer chains (chain_length)",
                ConvergenceWarning,
                stacklevel=3,
            )


def _jackknife_error(log_evidences: Tensor) -> float:
    """Return the standard error of the log of the mean evidence, by leaving each run out.

    It is divided by the expected standard deviation of so few normal numbers of variance one.
    """
    number = len(log_evidences)
    others = log_evidences.repeat(number, 1)
    others.fill_diagonal_(-torch.inf)
    left_out = others.logsumexp(-1)
    expected = math.sqrt(2.0 / (number - 1)) * math.exp(
        math.lgamma(number / 2.0) - math.lgamma((number - 1) / 2.0)
    )
    return float(left_out.std()) * (number - 1) / math.sqrt(number) / expected


def _save(folder: StageFolder, state: _State) -> None:
    """Keep a state in place of the one before."""
    names = ("particles", "log_evidences")
    tensors = {name: getattr(state, name) for name in names} | state.schedule._asdict()
    folder.save(tensors, {"is_chosen": state.is_chosen, "num_stages": state.num_stages})


def _factor(flat: Tensor, log_weights: Tensor) -> Tensor:
    """Factor of the covariance of weighted particles. **Shape:** ``(size, size)``."""
    weights = log_weights.softmax(0)
    points = flat.double()
    centered = points - weights @ points
    covariance = (weights[:, None] * centered).mT @ centered
    # Shrunk as in Stan, by how many particles there are in effect.
    number = float(effective_sample_size(log_weights))
    variance = covariance.diagonal().clamp(min=torch.finfo(torch.float64).tiny)
    covariance = (number * covariance + 5.0 * variance.diag()) / (number + 5.0)
    scale = variance.sqrt()
    factor: Tensor = torch.linalg.cholesky(covariance / scale[:, None] / scale)
    return scale[:, None] * factor


def _resampled(log_weights: Tensor, number: int) -> Tensor:
    """Draw particles systematically. **Shape:** ``(num_runs, n)`` to ``(num_runs, number)``."""
    start = torch.rand(len(log_weights), 1).to(log_weights)
    uniforms = (torch.arange(number).to(log_weights) + start) / number
    return draw_index(log_weights, uniforms)
