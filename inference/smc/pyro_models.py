"""Sequential Monte Carlo over the latent sites of a Pyro model."""

import contextlib
import math
from collections.abc import Callable
from typing import Any, Self, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.smc.particles import (
    Particles,
    check_twist,
    check_weights,
    draw_index,
    effective_sample_size,
    initial_particles,
    resample,
    reweight,
)
from pyro_ext.posterior.independent_draws import IndependentDraws
from pyro_ext.random import fresh_seed, seeded


class _Stop(Exception):
    """Ends a model whose further sites are not wanted yet."""


class _GuideStep(Messenger):
    """Draws the first latent site that has no value yet, and ends there."""

    num_particles = 0

    def __init__(self, given: dict[str, Tensor]) -> None:
        super().__init__()
        self.given = given
        self.name: str | None = None
        self.value = self.log_prob = torch.zeros(())

    def _pyro_sample(self, msg: Any) -> None:
        if _is_latent(msg) and msg["name"] in self.given:
            msg["value"], msg["done"] = self.given[msg["name"]], True

    def _pyro_post_sample(self, msg: Any) -> None:
        if _is_latent(msg) and msg["name"] not in self.given:
            self.name, self.value = msg["name"], msg["value"]
            self.log_prob = _log_prob_of(msg, self.num_particles)
            raise _Stop


class _ModelStep(Messenger):
    """Goes past one latent site that is new, and what is observed after it."""

    num_particles = 0

    def __init__(self, given: dict[str, Tensor], old: set[str], num_observed: int) -> None:
        super().__init__()
        self.given, self.old, self.num_observed = given, old, num_observed
        self.name: str | None = None
        self.value = self.log_prob = self.log_likelihood = torch.zeros(())
        self.num_sites = 0
        self.is_stopped = False

    def _pyro_sample(self, msg: Any) -> None:
        if not _is_latent(msg):
            return
        if msg["name"] not in self.old:
            if self.name is not None:
                self.is_stopped = True
                raise _Stop
            self.name = msg["name"]
        if msg["name"] in self.given:
            msg["value"], msg["done"] = self.given[msg["name"]], True

    def _pyro_post_sample(self, msg: Any) -> None:
        if _is_latent(msg):
            if msg["name"] == self.name:
                self.value, self.log_prob = msg["value"], _log_prob_of(msg, self.num_particles)
        elif not site_is_subsample(msg):
            self.num_sites += 1
            if self.num_sites > self.num_observed:
                self.log_likelihood = self.log_likelihood + _log_prob_of(msg, self.num_particles)


def _is_latent(msg: Any) -> bool:
    """Tell whether a site is latent; raise if its plate subsamples."""
    if site_is_subsample(msg):
        if msg["fn"].subsample_size not in (None, msg["fn"].size):
            raise ValueError(f"model must not subsample its plates, got the plate {msg['name']!r}")
        return False
    return not msg["is_observed"]


def _log_prob_of(msg: Any, num_particles: int) -> Tensor:
    """Log density of a site for each particle. **Shape:** ``(num_particles,)``."""
    value = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
    value = scale_and_mask(value, msg["scale"], msg["mask"])
    if value.shape[:1] != (num_particles,):
        raise ValueError(
            "max_plate_nesting must be the number of batch dimensions of plates in the model, got "
            f"a log density of shape {tuple(value.shape)} for {num_particles} particles at site "
            f"{msg['name']!r}"
        )
    rows: Tensor = value.reshape(num_particles, -1).sum(-1)
    return rows


_StepT = TypeVar("_StepT", _GuideStep, _ModelStep)


class MarkovSMC(IndependentDraws):
    r"""Sequential Monte Carlo over the latent sites of a Pyro model, in the order of the sites.

    The model is a function that draws its latent sites one after the other, for example in a
    :func:`pyro.markov` loop, and observes data in between. Each latent site is a step: particles
    get a value, are weighted by what the model observes next, and are resampled before the next
    site. This applies :class:`pyro.infer.SMCFilter` to models that are not written with ``init``
    and ``step``, and estimates the evidence.

    Values come from the guide, or from the model if the guide has no such site. A twist
    :math:`\psi(x_{1:t})` stands for the density of all later observations: the intermediate targets
    are :math:`p(x_{1:t}, y_{1:t})\, \psi(x_{1:t})`, and the last one is the posterior.
    :attr:`samples` and :attr:`log_weights` are the particles. ``get_samples`` draws equally
    weighted ones, as many as there are particles; those with common ancestors are not independent.

    The model is rerun for each step, so that what it computes from its latent sites follows the
    particles. The run time is therefore quadratic in the number of steps; for hundreds of steps use
    :class:`~pyro_ext.inference.TwistedSMCFilter`. All particles are drawn at once, in a plate
    outside of the model, so a model that indexes must use :class:`~pyro.ops.indexing.Vindex`, as
    for parallel enumeration.

    :param Callable model: a Pyro model whose plates do not subsample.
    :param Callable guide: a Pyro model with the same arguments, which draws some of the latent
        sites in the order of the model.
    :param int num_particles: number of particles.
    :param int max_plate_nesting: number of batch dimensions of plates in the model.
    :param float ess_threshold: particles are resampled when their effective sample size falls below
        this fraction of their number.
    :param Callable twist: maps the values so far, a dict by site with a leading particle dimension,
        to :math:`\log \psi`. **Shape:** ``(num_particles,)``.
    :param int seed: seed of all draws; ``None`` takes one from PyTorch's generator.

    Example::

        >>> def random_walk(y):
        ...     x = torch.tensor(0.0)
        ...     for t in pyro.markov(range(len(y))):
        ...         x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
        ...         pyro.sample(f"y_{t}", dist.Normal(x, 1.0), obs=y[t])
        >>> smc = MarkovSMC(random_walk, num_particles=1000, seed=0).run(torch.tensor([1.0, 2.0]))
        >>> smc.log_weights.shape, sorted(smc.samples)
        (torch.Size([1000]), ['x_0', 'x_1'])
        >>> draws = smc.get_samples()["x_1"]  # of equal weight; their mean is 1.4
        >>> draws.shape, bool((draws.mean() - 1.4).abs() < 0.2)
        (torch.Size([1000]), True)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None = None,
        num_particles: int = 100,
        max_plate_nesting: int = 0,
        *,
        ess_threshold: float = 0.5,
        twist: Callable[[dict[str, Tensor]], Tensor] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        checks.function("model", model, "a Pyro model", or_class=False)
        checks.optional(checks.function, "guide", guide, "a Pyro model or None", or_class=False)
        checks.optional(checks.function, "twist", twist, "a function of values", or_class=False)
        self.model, self.guide, self.twist = model, guide, twist
        self.num_particles = checks.integer("num_particles", num_particles, 1)
        self.max_plate_nesting = checks.integer("max_plate_nesting", max_plate_nesting, 0)
        self.ess_threshold = checks.number("ess_threshold", ess_threshold, least=0, most=1)
        self.seed = fresh_seed(seed)
        self.samples: dict[str, Tensor] = {}
        """Weighted values of each latent site. **Shape:** ``(num_particles, *event)``."""
        self._particles: Particles | None = None

    @torch.no_grad()
    def run(self, *args: Any, **kwargs: Any) -> Self:
        """Take all steps.

        :param args: arguments of the model and the guide.
        :param kwargs: keyword arguments of the model and the guide.
        :returns: the object itself.
        :raises ValueError: if the model has no latent site, if its plates subsample or nest deeper
            than ``max_plate_nesting``, if the guide has another order, or if log densities are NaN.
        """
        values: dict[str, Tensor] = {}
        particles: Particles | None = None
        previous: Tensor | None = None
        num_observed, is_complete = 0, False
        with seeded(self.seed):
            while not is_complete:
                given, proposed = dict(values), None
                if self.guide is not None:
                    proposed = self._execute(self.guide, args, kwargs, _GuideStep(given))
                    if proposed.name is not None:
                        given[proposed.name] = proposed.value
                step = _ModelStep(given, set(values), num_observed)
                is_complete = not self._execute(self.model, args, kwargs, step).is_stopped
                if step.name is None:
                    raise ValueError("model must have a latent site, got one without")
                gain = step.log_likelihood.to(step.value.device).expand(self.num_particles)
                if proposed is not None and proposed.name == step.name:
                    gain = gain + step.log_prob - proposed.log_prob
                elif proposed is not None and proposed.name is not None and is_complete:
                    raise ValueError(
                        f"guide must have sites of the model in its order, got {proposed.name!r} "
                        f"where the model has {[*values, step.name]!r:.80}"
                    )
                values[step.name] = step.value
                num_observed = step.num_sites
                if self.twist is not None:
                    twist = torch.zeros_like(gain) if is_complete else self._twist_of(values)
                    gain = gain + twist
                    if previous is not None:
                        gain = torch.where(previous == -math.inf, -math.inf, gain - previous)
                    previous = twist
                if bool((gain.isnan() | (gain == math.inf)).any()):
                    raise ValueError(
                        f"model must have log densities that are not NaN and not infinite, got "
                        f"others after site {step.name!r}"
                    )
                gain = gain[None]
                if particles is None:
                    particles = initial_particles(1, self.num_particles, gain)
                particles = reweight(particles, gain)
                if not is_complete:
                    uniforms = torch.rand(gain.shape, dtype=torch.float64).to(gain.device)
                    index, particles = resample(particles, uniforms, self.ess_threshold)
                    values = {name: value[index[0]] for name, value in values.items()}
                    previous = None if previous is None else previous[index[0]]
            assert particles is not None
            uniforms = torch.rand(self.num_particles, dtype=torch.float64).to(gain.device)
            index = draw_index(particles.log_weights[0], uniforms)
        self.samples, self._particles = values, particles
        self._samples = {name: value[index] for name, value in values.items()}
        self.args, self.kwargs = args, kwargs
        return self

    def get_samples(self, group_by_chain: bool = False) -> dict[str, Tensor]:
        """Equally weighted draws, as many as there are particles.

        :param bool group_by_chain: whether to put a chain dimension of size one before the draws.
        :returns: by site. **Shape:** ``(num_particles, *event)`` each, or with one more dimension.
        :raises RuntimeError: before a run.
        :raises ValueError: if all weights are zero.
        """
        check_weights(self.log_weights)
        return super().get_samples(group_by_chain)

    @property
    def log_weights(self) -> Tensor:
        """Weights whose mean estimates the evidence. **Shape:** ``(num_particles,)``."""
        return self._done().proper_log_weights[0]

    @property
    def log_Z(self) -> Tensor:
        """Logarithm of the unbiased estimate of the evidence, a scalar."""
        return self._done().log_Z[0]

    @property
    def effective_sample_size(self) -> Tensor:
        """Effective sample size of the final weights, a scalar."""
        return effective_sample_size(self.log_weights)

    def _done(self) -> Particles:
        if self._particles is None:
            raise RuntimeError("there are no draws yet: call run(...) first, and let it draw")
        return self._particles

    def _execute(
        self, function: Callable[..., Any], args: Any, kwargs: Any, step: _StepT
    ) -> _StepT:
        """Run a model in the plate of particles until the step has what it looks for."""
        dim = -1 - self.max_plate_nesting
        step.num_particles = self.num_particles
        with contextlib.suppress(_Stop), poutine.block():
            with pyro.plate("particles", self.num_particles, dim=dim), step:
                function(*args, **kwargs)
        return step

    def _twist_of(self, values: dict[str, Tensor]) -> Tensor:
        assert self.twist is not None
        twist = self.twist(dict(values))
        check_twist(twist, self.num_particles)
        if bool((twist.isnan() | (twist == math.inf)).any()):
            raise ValueError(f"twist must return numbers below infinity after {[*values][-1]!r}")
        return twist
