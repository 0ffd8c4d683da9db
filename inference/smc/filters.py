"""Twisted sequential Monte Carlo for state-space models with ``init`` and ``step`` methods."""

import inspect
import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.infer import SMCFilter
from pyro.infer.smcfilter import SMCFailed, SMCState
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.smc.particles import (
    Particles,
    check_twist,
    initial_particles,
    resample,
    reweight,
)


@runtime_checkable
class _Stepwise(Protocol):
    """A model or guide that is written in steps."""

    def init(self, state: SMCState, *args: Any, **kwargs: Any) -> Any:
        """Start."""

    def step(self, state: SMCState, *args: Any, **kwargs: Any) -> Any:
        """Take a step."""


class _NoGuide:
    """Leaves all sites to the model."""

    def init(self, *args: Any, **kwargs: Any) -> None:
        pass

    step = init


class TwistedSMCFilter(SMCFilter):
    r"""Pyro's :class:`~pyro.infer.SMCFilter` with an estimate of the evidence, and with twists.

    Model and guide are objects with methods ``init(state, ...)`` and ``step(state, ...)``, as in
    Pyro; the run time is linear in the number of steps. Without a guide, values are drawn from the
    model. A twist :math:`\psi` of the state stands for the density of all later observations: the
    intermediate targets are :math:`p(x_{1:t}, y_{1:t})\, \psi(x_{1:t})`. Its logarithm must be zero
    after the last step, or weights and evidence are not those of the model.

    :param model: has ``init`` and ``step``, and writes what it needs into the state.
    :param guide: has ``init`` and ``step``, and reads the state; optional.
    :param int num_particles: number of particles.
    :param int max_plate_nesting: number of batch dimensions of plates in the model.
    :param Callable twist: maps the state to :math:`\log \psi`. **Shape:** ``(num_particles,)``.
    :param float ess_threshold: particles are resampled when their effective sample size falls below
        this fraction of their number.

    Example::

        >>> class RandomWalk:
        ...     def init(self, state):
        ...         state["x"] = pyro.sample("x_0", dist.Normal(0.0, 1.0))
        ...         self.t = 0
        ...     def step(self, state, y):
        ...         self.t += 1
        ...         state["x"] = pyro.sample(f"x_{self.t}", dist.Normal(state["x"], 1.0))
        ...         pyro.sample(f"y_{self.t}", dist.Normal(state["x"], 1.0), obs=y)
        >>> pyro.set_rng_seed(0)
        >>> smc = TwistedSMCFilter(RandomWalk(), num_particles=1000)
        >>> smc.init()
        >>> smc.step(torch.tensor(1.0))
        >>> exact = dist.Normal(0.0, 3**0.5).log_prob(torch.tensor(1.0))
        >>> bool((smc.log_Z - exact).abs() < 0.1)
        True
    """

    def __init__(
        self,
        model: Any,
        guide: Any = None,
        num_particles: int = 100,
        max_plate_nesting: int = 0,
        *,
        twist: Callable[[SMCState], Tensor] | None = None,
        ess_threshold: float = 0.5,
    ) -> None:
        for name, value in (("model", model), ("guide", guide)):
            is_stepwise = isinstance(value, _Stepwise) and not inspect.isclass(value)
            if not is_stepwise and not (name == "guide" and value is None):
                raise TypeError(
                    f"{name} must be an object with the methods init and step, "
                    f"got {checks.shown(value)}"
                )
        checks.optional(checks.function, "twist", twist, "a function of the state", or_class=False)
        super().__init__(  # type: ignore[no-untyped-call]
            model,
            _NoGuide() if guide is None else guide,
            checks.integer("num_particles", num_particles, 1),
            checks.integer("max_plate_nesting", max_plate_nesting, 0),
            ess_threshold=checks.number("ess_threshold", ess_threshold, above=0, most=1),
        )
        self.twist = twist
        self._particles: Particles | None = None
        self._previous: Tensor | None = None

    @property
    def log_Z(self) -> Tensor:
        """Logarithm of the unbiased estimate of the evidence of the observations so far."""
        if self._particles is None:
            raise RuntimeError("there are no particles yet: call init first")
        return self._particles.log_Z[0]

    def init(self, *args: Any, **kwargs: Any) -> None:
        """Initialize the filter, discarding any earlier state.

        :param args: arguments of model and guide.
        :param kwargs: keyword arguments of model and guide.
        :raises pyro.infer.smcfilter.SMCFailed: if no particle has a positive density.
        """
        self.state = SMCState(self.num_particles)
        self._particles = self._previous = None
        super().init(*args, **kwargs)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _update_weights(self, model_trace: Any, guide_trace: Any) -> None:
        """Take the densities of a step into the weights."""
        model_trace = prune_subsample_sites(model_trace)
        guide_trace = prune_subsample_sites(guide_trace)
        model_trace.compute_log_prob()
        guide_trace.compute_log_prob()
        gain = torch.zeros(self.num_particles)
        for name, site in model_trace.nodes.items():
            if site["type"] == "sample" and (site["is_observed"] or name in guide_trace.nodes):
                gain = gain + self._rows(site["log_prob"])
                if name in guide_trace.nodes and not site["is_observed"]:
                    gain = gain - self._rows(guide_trace.nodes[name]["log_prob"])
        if self.twist is not None:
            twist = self.twist(self.state)
            check_twist(twist, self.num_particles)
            gain = gain + twist
            if self._previous is not None:
                gain = torch.where(self._previous == -math.inf, -math.inf, gain - self._previous)
            self._previous = twist
        if bool((gain.isnan() | (gain == math.inf)).any()):
            raise ValueError(
                "model and twist must have log densities that are not NaN and not infinite, got "
                "others at this step"
            )
        before = self._particles or initial_particles(1, self.num_particles, gain)
        self._particles = reweight(before, gain[None])
        if bool(self._particles.log_Z[0] == -math.inf):
            raise SMCFailed("no particle has a positive density after this step")
        self.state._log_weights = self._particles.log_weights[0].clone()

    def _maybe_importance_resample(self) -> None:
        """Resample where the effective sample size is low."""
        assert self._particles is not None
        log_weights = self._particles.log_weights
        uniforms = torch.rand(log_weights.shape, dtype=torch.float64).to(log_weights.device)
        index, self._particles = resample(self._particles, uniforms, self.ess_threshold)
        self.state._resample(index[0])  # makes weights zero, in place
        self.state._log_weights = self._particles.log_weights[0].clone()
        if self._previous is not None:
            self._previous = self._previous[index[0]]

    def _rows(self, log_prob: Tensor) -> Tensor:
        rows: Tensor = log_prob.reshape(self.num_particles, -1).sum(-1)
        return rows
