"""An adjoint sampler of the posterior of a Pyro model, as a guide."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np
import torch
import torch.utils._pytree as pytree
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._lib import checks
from pyro_ext.distributions.bases import expanded
from pyro_ext.inference.adjoint.control import ControlNetwork
from pyro_ext.inference.adjoint.matching import Evidence, MatchingOptions
from pyro_ext.inference.adjoint.noise import ConstantNoise, NoiseSchedule
from pyro_ext.inference.adjoint.samplers import AdjointSampler
from pyro_ext.posterior.modes import minimum, whitening_factor
from pyro_ext.potential import Backend, InitStrategy, Potential, check_backend
from pyro_ext.random import seeded


class AutoAdjointSampler(AutoContinuous):
    r"""A guide that samples the posterior of a Pyro model by a learned diffusion [1].

    It is an :class:`~pyro_ext.inference.AdjointSampler` whose energy is the negative log joint
    density in unconstrained space, in coordinates that give the posterior unit covariance near its
    mode. The first call finds the mode and the second derivatives there, so use it for models with
    at most a few hundred latent values.

    ``fit`` trains the guide, ``sample`` returns draws by site and their importance weights, and
    ``evaluate`` says how far they can be trusted. As a guide, it draws the latent sites and works
    with :class:`~pyro.infer.Predictive`. The density of its draws is unknown, but that of a whole
    simulation is known. With it, :class:`~pyro.infer.Trace_ELBO` is the bound of ``evaluate``, and
    :class:`~pyro.infer.SVI` trains the guide by differentiating through the simulation, usually
    more slowly than ``fit``.

    :param model: a Pyro model with continuous latent sites, which sees all of its data.
    :param NoiseSchedule schedule: noise of the diffusion in these coordinates. For a posterior with
        separate modes, it must cover all of them.
    :param hidden_features: widths of the layers of the control network.
    :param str backend: how the potential runs, see :class:`~pyro_ext.potential.Potential`.
    :param init_loc_fn: where the search for the mode starts, one of
        :mod:`pyro.infer.autoguide.initialization`.
    :param options: as for :class:`~pyro_ext.inference.AdjointSampler`, except ``ema_decay``.

    [1] A. Havens et al. (2025),
    Adjoint sampling: highly scalable diffusion samplers via adjoint matching.

    Example::

        >>> def model(x):
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Poisson(rate), obs=x)
        >>> guide = AutoAdjointSampler(model, hidden_features=(16,), num_draws=256, seed=0)
        >>> guide = guide.fit(torch.tensor([3.0, 5.0, 4.0]), num_steps=100, progress=False)
        >>> draws, log_weight = guide.sample(4000, return_log_weight=True, seed=0)
        >>> draws["rate"].shape, round(float(log_weight.softmax(0) @ draws["rate"]), 1)
        (torch.Size([4000]), 3.5)
    """

    loc: Tensor
    factor: Tensor

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        schedule: NoiseSchedule | None = None,
        hidden_features: Sequence[int] = (64, 64),
        backend: Backend = "trace",
        init_loc_fn: InitStrategy = init_to_median,
        **options: Unpack[MatchingOptions],
    ) -> None:
        checks.function("model", model, "a Pyro model")
        checks.function("init_loc_fn", init_loc_fn)
        check_backend(backend)
        super().__init__(model, init_loc_fn)  # type: ignore[no-untyped-call]
        self.schedule = ConstantNoise(1.5) if schedule is None else schedule
        self.options = options
        if options.get("ema_decay") is not None:
            raise ValueError(
                "ema_decay must be None, since the state of a guide is that of its network, got "
                f"{options['ema_decay']!r}"
            )
        # What is wrong with the options, before there are data.
        with torch.random.fork_rng():
            network = ControlNetwork(1, hidden_features)
        AdjointSampler(_untouched, network, self.schedule, **options)
        self.hidden_features = tuple(hidden_features)
        self._made_of = (model, backend, init_loc_fn)
        self._potential: Potential | None = None
        self._data: Any = None
        self._sampler: AdjointSampler | None = None

    # Training ------------------------------------------------------------------------------------

    def fit(
        self,
        *args: Any,
        num_steps: int = 2000,
        checkpoint: str | Path | None = None,
        progress: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Train until ``num_steps`` steps have been taken in total.

        :param args: arguments of the model; a later call without any uses those of the first.
        :param int num_steps: total number of optimizer steps, including those of earlier calls.
        :param checkpoint: a file; if it exists, training resumes from it.
        :param bool progress: whether to show a progress bar.
        :param kwargs: keyword arguments of the model.
        :returns: the guide itself.
        :raises ValueError: for a model that has discrete latent sites, or that subsamples its data.
        :raises TrainingDiverged: if something is not finite.
        """
        num_steps = checks.integer("num_steps", num_steps, 0)
        if self._potential is None:
            self._setup_prototype(*args, **kwargs)
        elif (args or kwargs) and not _are_same((args, kwargs), self._data):
            raise ValueError("args must be those of the first call of the guide, got others")
        self.sampler.fit(num_steps, checkpoint=checkpoint, progress=progress)
        return self

    def step(self) -> float:
        """Take one step of the optimizer.

        :returns: the loss before the step.
        """
        return self.sampler.step()

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        return self.sampler.losses

    @property
    def sampler(self) -> AdjointSampler:
        """The sampler of unconstrained values in the guide's coordinates.

        :raises RuntimeError: before the guide knows the data.
        """
        if self._sampler is None:
            raise RuntimeError("the guide knows no data yet: call fit(*args) first")
        return self._sampler

    @property
    def potential(self) -> Potential:
        """The negative log joint density in unconstrained space."""
        if self._potential is None:
            raise RuntimeError("the guide knows no data yet: call fit(*args) first")
        return self._potential

    # Drawing -------------------------------------------------------------------------------------

    def sample(
        self,
        num_samples: int,
        *,
        return_log_weight: bool = False,
        num_time_steps: int | None = None,
        seed: int | None = None,
    ) -> Any:
        """Draw the latent sites.

        :param int num_samples: number of draws.
        :param bool return_log_weight: whether to return log importance weights, too. The mean
            weight is an estimate of the evidence of the model.
        :param int num_time_steps: number of steps of the simulation; by default as in training.
        :param int seed: seed of the draws.
        :returns: values by site, **Shape:** ``(num_samples, *event)`` each, or a pair of these and
            log weights, **Shape:** ``(num_samples,)``.
        """
        x, log_weight = self.sampler.sample(
            num_samples, return_log_weight=True, num_time_steps=num_time_steps, seed=seed
        )
        checks.instance("return_log_weight", return_log_weight, bool, "True or False")
        values = self.potential.constrain(self.potential.layout.unflatten(self._unconstrained(x)))
        return (values, log_weight + self._log_volume()) if return_log_weight else values

    def evaluate(
        self, num_samples: int, *, num_time_steps: int | None = None, seed: int | None = None
    ) -> Evidence:
        """Estimate the evidence of the model, and the quality of draws as importance samples.

        :param int num_samples: number of draws.
        :param int num_time_steps: number of steps of the simulation; by default as in training.
        :param int seed: seed of the draws.
        """
        found = self.sampler.evaluate(num_samples, num_time_steps=num_time_steps, seed=seed)
        volume = float(self._log_volume())
        return found._replace(
            log_normalizer=found.log_normalizer + volume, lower_bound=found.lower_bound + volume
        )

    def get_posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution:
        """Distribution of the unconstrained values, whose density is that of whole simulations."""
        return _Diffusion(self)

    def _unpack_latent(self, latent: Tensor) -> Iterator[tuple[Any, Tensor]]:
        # The potential need not have the sites in the order of the trace.
        values = self.potential.layout.unflatten(latent)
        batch = latent.shape[:-1]
        parts = [values[name].reshape(*batch, -1) for name in self._unconstrained_shapes]
        joined = torch.cat(parts, -1)
        yield from super()._unpack_latent(joined)  # type: ignore[no-untyped-call]

    # Helpers -------------------------------------------------------------------------------------

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)  # type: ignore[no-untyped-call]
        model, backend, init_loc_fn = self._made_of
        potential = Potential(model, *args, backend=backend, init_strategy=init_loc_fn, **kwargs)
        if plates := [plate.name for plate in potential.subsampled_plates]:
            raise ValueError(f"model must see all of its data, but it subsamples in {plates}")
        layout = potential.layout
        start = layout.flatten(potential.init_chains(range(1), 0, init_loc_fn))[0]
        mode = minimum(potential, start)
        hessian = torch.autograd.functional.hessian(
            lambda flat: potential.potential(layout.unflatten(flat)), mode
        )
        assert isinstance(hessian, Tensor)
        if not bool(hessian.isfinite().all()):
            raise ValueError("model has no finite second derivatives at its mode")
        resolution = layout.size * torch.finfo(layout.dtype).eps
        self.register_buffer("loc", mode)
        self.register_buffer("factor", whitening_factor(hessian, resolution))
        with seeded(self.options.get("seed")):
            network = ControlNetwork(layout.size, self.hidden_features, self.schedule.scale)
        self.control = network.to(layout.device, layout.dtype)
        self._potential, self._data = potential, (args, kwargs)
        self._sampler = AdjointSampler(self._energy, self.control, self.schedule, **self.options)

    def _energy(self, x: Tensor) -> Tensor:
        value: Tensor = _Energy.apply(self._unconstrained(x), self.potential)  # type: ignore[no-untyped-call]
        return value

    def _unconstrained(self, x: Tensor) -> Tensor:
        return self.loc + x @ self.factor.mT

    def _log_volume(self) -> Tensor:
        volume: Tensor = torch.linalg.slogdet(self.factor)[1]
        return volume


def _are_same(one: Any, other: Any) -> bool:
    """Tell whether two sets of arguments are equal."""
    (leaves, spec), (others, other_spec) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    return spec == other_spec and all(map(_is_same, leaves, others))


def _is_same(leaf: Any, other: Any) -> bool:
    """Tell whether two leaves are equal, for tensors also in layout, device and dtype."""
    if leaf is other or not (isinstance(leaf, Tensor) and isinstance(other, Tensor)):
        return leaf is other or np.array_equal(leaf, other)
    kinds = [(x.layout, x.device, x.dtype) for x in (leaf, other)]
    return kinds[0] == kinds[1] and torch.equal(leaf.to_dense(), other.to_dense())


def _untouched(x: Tensor) -> Tensor:
    """An energy that is never asked."""
    raise NotImplementedError


class _Energy(torch.autograd.Function):
    """Potentials of many rows, whose gradients come with them."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, potential: Potential) -> Tensor:
        value, gradient = potential.gradient.over_any(flat.detach())
        ctx.save_for_backward(gradient)
        result: Tensor = value
        return result

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return outer[0][:, None] * gradient, None


class _Diffusion(TorchDistribution):
    """Draws of a guide; their log density is that of the simulations they come from."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, guide: AutoAdjointSampler) -> None:
        self._guide = guide
        self._drawn: tuple[Tensor, Tensor] | None = None
        super().__init__(event_shape=guide.loc.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Draws that are independent of each other."""
        return expanded(self, _instance, torch.Size(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Simulate."""
        guide, shape = self._guide, torch.Size(sample_shape) + self.batch_shape
        x, log_ratio = guide.sampler.simulate(shape.numel())
        log_density = guide.sampler.reference_log_prob(x) + log_ratio - guide._log_volume()
        value = guide._unconstrained(x).reshape(shape + self.event_shape)
        self._drawn = value, log_density.reshape(shape)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the last simulation."""
        if self._drawn is None or self._drawn[0] is not value:
            raise NotImplementedError("only simulations of a controlled diffusion have a density")
        return self._drawn[1]
