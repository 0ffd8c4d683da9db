"""A guide whose parameters are a small synthetic data set."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from pyro_ext._lib import checks
from pyro_ext.checkpoint.files import CheckpointError, read_tensors, write_tensors
from pyro_ext.inference.hmc import NUTS, LaplaceHMC
from pyro_ext.inference.mcmc import MCMC
from pyro_ext.inference.pseudocoresets.coreset_rows import (
    CoresetModel,
    data_arguments,
    initial_rows,
    observed_supports,
    row_arguments,
)
from pyro_ext.inference.pseudocoresets.learnable import (
    StandardizedAdam,
    check_may_change,
    column_spreads,
    label_argument,
    row_parameters,
    with_all_labels,
)
from pyro_ext.inference.pseudocoresets.posteriors import Coreset, posteriors_of
from pyro_ext.inference.pseudocoresets.spread_check import SpreadCheck
from pyro_ext.inference.training import Trainer
from pyro_ext.inference.training.trainer import Optimizer
from pyro_ext.posterior.identity import data_identity, differences
from pyro_ext.potential import Backend, Potential, Site
from pyro_ext.potential.arguments import as_tensors
from pyro_ext.potential.rows import WeightedModel, plate_of
from pyro_ext.random import fresh_seed, seeded

Weights = Literal["uniform", "scaled", "learned"]

_KERNEL = "a function that makes a kernel of a model"
_FORMAT = "pseudocoreset 2"
_MOST_LATENTS = 500
"""Number of latent values up to which second derivatives are cheap."""


class AutoPseudocoreset(PyroModule):
    r"""A guide whose parameters are a few weighted pseudo-observations [1].

    It is trained with a divergence, so that the posterior of its pseudo-observations :math:`u` with
    weights :math:`w`,

    .. math:: \pi_u(\theta) \propto p(\theta) \prod_{j \le m} p(u_j | \theta)^{w_j} ,

    is close to that of the data. Any kernel or guide can then run on ``condition()`` instead of the
    data. As a guide, it draws the latent sites from this posterior with a kernel.

    The observations are the elements of a plate. Each tensor argument with as many rows as the
    plate has elements becomes pseudo rows, one for each pseudo-observation. Integers and discrete
    observations, such as labels, keep their initial values; all others are learned. Observations of
    a continuous site stay in its support.

    Labels are learned, too, if ``learnable`` names them and their site has finite support, such as
    a Bernoulli or categorical site. A pseudo-observation :math:`u_j` then has a probability
    :math:`q_{jc}` for each class :math:`c`, and counts as one observation for each class, with
    weight :math:`w_j q_{jc}` and the same inputs. The class of the initial row starts with a
    probability of 0.9.

    :param model: a Pyro model whose observations are the elements of one plate, with all latent
        sites outside of it. It takes the size of the plate from its arguments.
    :param args: arguments of the model: the data. NumPy arrays and lists of numbers become tensors.
    :param int size: :math:`m`, the number of pseudo-observations.
    :param learnable: which row arguments are learned, by name in the model's signature or by number
        in the order of ``pseudodata``; by default all but labels and integers. Leave out arguments
        with a restricted range, such as totals of a binomial distribution.
    :param str weights: ``"learned"`` for positive weights that start at :math:`n / m` each, so that
        the coreset weighs as much as the data; ``"scaled"`` for weights that stay there; or
        ``"uniform"`` for weights of one, whose posterior is as wide as that of :math:`m` data.
    :param init: where pseudo rows start: ``"subset"`` for a random subset of the data, with classes
        as balanced as possible, or a function of the size and the row arguments that returns pseudo
        rows.
    :param str plate: name of the plate of the observations, if the model has several plates.
    :param kernel: a function that makes the kernel for the coreset posterior from a model without
        arguments. By default :class:`~pyro_ext.inference.LaplaceHMC` for at most 500 latent values,
        and :class:`~pyro_ext.inference.NUTS` for more.
    :param int num_samples: number of draws of the kernel; a call of the guide picks one of them.
    :param int warmup_steps: number of steps of the kernel before its draws.
    :param str backend: as for :class:`~pyro_ext.potential.Potential`.
    :param int seed: seed of the initial subset and of the draws; ``None`` takes one from PyTorch's
        generator.
    :param kwargs: keyword arguments of the model.
    :raises ValueError: for a size out of range, data that are not finite, a model without such a
        plate or row arguments, or an argument that cannot be learned.

    [1] D. Manousakas, Z. Xu, C. Mascolo, T. Campbell (2020), Bayesian pseudocoresets.

    Example::

        >>> from pyro_ext.inference.pseudocoresets import ForwardKL
        >>> def model(x, y):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
        >>> x = torch.linspace(0.0, 1.0, 500)
        >>> guide = AutoPseudocoreset(model, x, 2 * x, size=5, seed=0)
        >>> _ = guide.fit(ForwardKL(), num_steps=50, progress=False)
        >>> guide.losses[-1] < 0.1, [tuple(row.shape) for row in guide.pseudodata]
        (True, [(5,), (5,)])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *args: Any,
        size: int,
        learnable: Sequence[str | int] | None = None,
        weights: Weights = "learned",
        init: str | Callable[..., Any] = "subset",
        plate: str | None = None,
        kernel: Callable[[Callable[..., Any]], MCMCKernel] | None = None,
        num_samples: int = 200,
        warmup_steps: int = 200,
        backend: Backend = "trace",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=type(self).__name__)
        size = checks.integer("size", size, 1)
        checks.choice("weights", weights, get_args(Weights))
        if init != "subset" and not callable(init):
            raise ValueError(f"init must be 'subset' or a function, got {init!r:.80}")
        checks.optional(checks.function, "kernel", kernel, _KERNEL)
        self.num_samples = checks.integer("num_samples", num_samples, 1)
        self.warmup_steps = checks.integer("warmup_steps", warmup_steps, 0)
        self.size, self.weighting = size, weights
        args, kwargs = data_arguments(model, args, kwargs)
        self.args, self.kwargs = args, kwargs
        self._seed, self._is_seeded = fresh_seed(seed), seed is not None
        self._model = (model,)  # in a tuple, no submodule
        whole = Potential(model, *args, backend=backend, **kwargs)
        self.plate = plate_of(whole.structure, plate)
        num_points = self.plate.size
        if size > num_points:
            raise ValueError(f"size must be at most the {num_points} observations, got {size}")
        self.kernel = kernel or (LaplaceHMC if whole.layout.size <= _MOST_LATENTS else NUTS)
        self._arguments = row_arguments(model, whole.args, whole.kwargs, num_points)
        supports = observed_supports(whole, self._arguments.rows)
        start = initial_rows(self._arguments.rows, supports, size, init, self._seed)
        names, dtype = self._arguments.names, whole.layout.dtype
        parameters = row_parameters(learnable, names, supports, start, dtype)
        for name, row in zip(names, start, strict=True):
            if name in parameters:
                setattr(self, f"pseudo_{name}", parameters[name])
            else:
                self.register_buffer(f"pseudo_{name}", row)
        self.learnable = tuple(parameters)
        self._label = label_argument(self.learnable, names, supports, start)
        ratio = num_points / size if weights != "uniform" else 1.0
        factors = torch.full((size,), ratio, dtype=dtype, device=whole.layout.device)
        if weights == "learned":
            self.coreset_weights = PyroParam(factors, constraints.positive)
        else:
            self.register_buffer("coreset_weights", factors)
        weighted = WeightedModel(model, self._arguments, self.plate.name)
        self.posterior, self.data = posteriors_of(
            whole, self.plate, weighted, self.coreset(), backend
        )
        potential = self.posterior.potential
        check_may_change(weighted, potential, parameters, self._label, start, factors)
        self.losses: list[float] = []
        self._trainer: tuple[Any, Any, Trainer] | None = None
        self._spread_check = SpreadCheck(_MOST_LATENTS)
        self._draws: tuple[Any, dict[str, Tensor]] | None = None

    # What the coreset is -------------------------------------------------------------------------

    @property
    def model(self) -> Callable[..., Any]:
        """The model."""
        return self._model[0]

    @property
    def pseudodata(self) -> tuple[Tensor, ...]:
        """Pseudo rows, in the order of the model's row arguments. **Shape:** ``(size, *event)``.

        Probabilities of ``label_values`` replace learned labels. **Shape:**
        ``(size, num_classes)``.
        """
        return tuple(row.detach().clone() for row in self._own().rows)

    @property
    def label_values(self) -> Tensor | None:
        """The classes whose probabilities are learned. **Shape:** ``(num_classes, *event)``."""
        return None if self._label is None else self._label.values.clone()

    @property
    def weights(self) -> Tensor:
        """Weights of the pseudo-observations. **Shape:** ``(size,)``."""
        return self._own().weights.detach().clone()

    def coreset(self) -> Coreset:
        """Rows and weights that the model sees, differentiable in the parameters.

        If labels are learned, each pseudo row appears once for each class.
        """
        own = self._own()
        return own if self._label is None else with_all_labels(own, self._label)

    def condition(self, model: Callable[..., Any] | None = None) -> CoresetModel:
        """Make a model without arguments that observes the weighted pseudo-observations.

        It holds copies of them, weighted by :func:`~pyro_ext.handlers.data_weights`.

        :param model: a model with the arguments and the plate of the guide's model, for example one
            with another prior; by default the guide's own model.
        """
        checks.optional(checks.function, "model", model, "a Pyro model")
        weighted = WeightedModel(model or self.model, self._arguments, self.plate.name)
        # Copy without param statements: in a call of the guide these would add the tensors to the
        # parameter store, or replace them by another guide's parameters there.
        with pyro.settings.context(module_local_params=True):
            rows, weights = self.coreset()
        copies = tuple(row.detach().clone() for row in rows)
        return CoresetModel(weighted, copies, weights.detach().clone())

    # Training ------------------------------------------------------------------------------------

    def step(self, divergence: ELBO, optimizer: Optimizer | None = None) -> float:
        """Take one step down a divergence.

        The state of the optimizer is kept between calls as long as both arguments stay the same.

        :param pyro.infer.ELBO divergence: for example :class:`~pyro_ext.inference.ForwardKL`.
        :param optimizer: as for :meth:`fit`.
        :returns: the loss before the step.
        :raises TrainingDiverged: if loss or gradient are not finite.
        """
        trainer = self._trainer_of(divergence, optimizer)
        self.losses.append(trainer.step(self._loss_of, divergence))
        return self.losses[-1]

    def fit(
        self,
        divergence: ELBO,
        num_steps: int = 1000,
        *,
        optimizer: Optimizer | None = None,
        seed: int | None = None,
        progress: bool = True,
    ) -> Self:
        """Train the coreset; ``losses`` collects the loss before each step.

        Ctrl-C keeps whole steps. At the end, :meth:`check_spread` warns if the posterior is not
        that of the data.

        :param pyro.infer.ELBO divergence: for example :class:`~pyro_ext.inference.ForwardKL`.
        :param int num_steps: number of steps.
        :param optimizer: a function that makes an optimizer from a list of parameters, such as
            ``partial(Adam, lr=0.01)``, or an optimizer of :mod:`pyro.optim`. By default Adam, with
            steps of 0.005 standard deviations of each column of the data.
        :param int seed: seed of the surrogate's draws; ``None`` takes them from PyTorch's
            generator.
        :param bool progress: whether to show a progress bar.
        :returns: the guide itself.
        :raises TypeError: if ``divergence`` or ``optimizer`` has another type.
        :raises TrainingDiverged: if loss or gradient are not finite; the coreset is left as it was
            when they last were.
        """
        num_steps = checks.integer("num_steps", num_steps, 1)
        trainer = self._trainer_of(divergence, optimizer)
        before = trainer.num_steps
        try:
            with seeded(seed):
                trainer.run(
                    partial(self._loss_of, divergence),
                    before + num_steps,
                    progress=progress,
                    description=type(divergence).__name__,
                )
        finally:
            self.losses += trainer.losses[before:]
        if trainer.num_steps == before + num_steps:
            self._spread_check(self, getattr(divergence, "surrogate", None), 3)
        return self

    def check_spread(self) -> dict[str, Tensor] | None:
        """Compare the posterior of the coreset with that of the data, and warn if they differ.

        Both are approximated by Laplace approximations in unconstrained space. There is a warning
        if a standard deviation is more than twice or less than half that of the data, or a mean is
        off by more than two of the data's standard deviations. Posteriors are skipped if they have
        more than 500 latent values or several modes, or if their log density is not concave at the
        mode.

        :returns: ratios of standard deviations by site, or ``None`` if the posterior is skipped.
            **Shape:** ``(*event)`` each, in unconstrained space.

        Example::

            >>> def model(x):
            ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            ...     with pyro.plate("data", len(x)):
            ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
            >>> guide = AutoPseudocoreset(model, torch.ones(900), size=9, seed=0)
            >>> round(float(guide.check_spread()["loc"]), 2)
            1.0
        """
        return self._spread_check(self, None, 3)

    def check_model(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Raise if a loss is given another model or other data than the guide."""
        if model != self.model:  # each access to a bound method makes another object
            raise ValueError(f"model must be that of the guide, {self.model!r:.80}")
        args, kwargs = data_arguments(model, *as_tensors(model, args, kwargs))
        if (args or kwargs) and not self._arguments.are(args, kwargs):
            raise ValueError("args must be those that the guide was made with, got others")

    def pyro_parameters(self) -> AbstractContextManager[Any]:
        """A context in which parameters become ``pyro.param`` statements as they are used."""
        context: AbstractContextManager[Any] = self._pyro_context
        return context

    def named_pyro_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Unconstrained parameters by their names in Pyro's parameter store."""
        for name, parameter in self.named_parameters():
            yield f"{self._pyro_name}.{name.removesuffix('_unconstrained')}", parameter

    # Drawing -------------------------------------------------------------------------------------

    def sample_posterior(
        self,
        num_samples: int | None = None,
        *,
        kernel: Callable[[Callable[..., Any]], MCMCKernel] | None = None,
        warmup_steps: int | None = None,
        progress: bool = False,
        **options: Any,
    ) -> MCMC:
        """Run a kernel on the coreset.

        :param int num_samples: number of draws of each chain; by default the guide's.
        :param kernel: a function that makes a kernel from a model; by default the guide's.
        :param int warmup_steps: number of steps before the draws; by default the guide's.
        :param bool progress: whether to show a progress bar.
        :param options: further arguments of :class:`~pyro_ext.inference.MCMC`.
        :returns: the finished run.
        """
        checks.optional(checks.function, "kernel", kernel, _KERNEL)
        made = (kernel or self.kernel)(self.condition())
        number = self.num_samples if num_samples is None else num_samples
        warmup = self.warmup_steps if warmup_steps is None else warmup_steps
        options = {"seed": self._seed, "progress": progress, **options}
        return MCMC(made, number, warmup, **options).run()

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw the latent sites from the coreset posterior.

        The kernel runs at the first call, and again after the coreset has changed; each call picks
        one of its draws at random.

        :param args: arguments of the model, which are ignored.
        :param kwargs: keyword arguments of the model, which are ignored.
        :returns: values by site.
        """
        return _pick_draw(self._cached_draws(), self.posterior.potential.sites)

    # Files ---------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Save pseudo rows and weights to a safetensors file, which cannot execute code.

        :param path: path of the file.
        """
        content = {"format": _FORMAT, "seed": self._seed, "identity": self._identity()}
        write_tensors(Path(path), self._tensors(), content)

    def load(self, path: str | Path) -> Self:
        """Load a saved coreset into a guide of the same size and arguments.

        A guide made without a seed takes the seed of the file, and then gives the same draws.

        :param path: path of the file.
        :returns: the guide itself.
        :raises CheckpointError: if the file is damaged, belongs to a coreset of another kind or of
            other data, or has another seed than the guide was given.
        """
        tensors, content, _ = read_tensors(Path(path))
        wanted, got = (
            {name: (tuple(value.shape), value.dtype) for name, value in each.items()}
            for each in (self._tensors(), tensors)
        )
        if content.get("format") != _FORMAT or got != wanted:
            raise CheckpointError(f"{path} holds no coreset of {wanted}, but {got}")
        own = {"seed": self._seed if self._is_seeded else content["seed"], **self._identity()}
        if unlike := differences({"seed": content["seed"], **content["identity"]}, own):
            raise CheckpointError(f"{path} is of another coreset: {'; '.join(unlike[:5])}")
        self._seed = content["seed"]
        with torch.no_grad():
            for name, value in tensors.items():
                self._set(name, value)
        return self

    # Helpers -------------------------------------------------------------------------------------

    def _own(self) -> Coreset:
        """Return the parameters as a coreset; learned labels are probabilities of the classes."""
        rows = tuple(getattr(self, f"pseudo_{name}") for name in self._arguments.names)
        weights: Any = self.coreset_weights
        return Coreset(rows, weights)

    def _identity(self) -> dict[str, str]:
        """Describe the settings and data that a file is compared by."""
        settings = {"plate": self.plate.name, "weighting": self.weighting}
        return settings | data_identity((self.args, self.kwargs), "data")

    def _tensors(self) -> dict[str, Tensor]:
        """Pseudo rows and weights by name."""
        names = [f"pseudo_{name}" for name in self._arguments.names]
        rows = dict(zip(names, self.pseudodata, strict=True))
        return {**rows, "coreset_weights": self.weights}

    def _set(self, name: str, value: Tensor) -> None:
        """Give a parameter or a buffer another value, in place."""
        if name in self._pyro_params:
            constraint, _ = self._pyro_params[name]
            parameter = getattr(self, f"{name}_unconstrained")
            value = transform_to(constraint).inv(value.to(parameter.device))
            parameter.copy_(value)
        else:
            getattr(self, name).copy_(value)

    def _trainer_of(self, divergence: ELBO, optimizer: Optimizer | None) -> Trainer:
        """The trainer of earlier steps, where the divergence and the optimizer are the same."""
        if self._trainer is not None:
            known, made_of, trainer = self._trainer
            if known is divergence and made_of is optimizer:
                return trainer
        checks.instance("divergence", divergence, ELBO, "one such as ForwardKL(), an ELBO")
        if not list(self.parameters()):
            raise ValueError(
                "guide has nothing to learn: name row arguments in learnable, or pass "
                "weights='learned'"
            )
        if optimizer is None:
            trainer = Trainer(self, partial(StandardizedAdam, spreads=self._spreads()))
        else:
            trainer = Trainer(self, optimizer)
        self._trainer = divergence, optimizer, trainer
        return trainer

    def _loss_of(self, divergence: Any) -> Tensor:
        loss: Tensor = divergence.differentiable_loss(self.model, self, *self.args, **self.kwargs)
        return loss

    def _spreads(self) -> list[Tensor]:
        """Units of the default steps for each parameter, in unconstrained space."""
        names = [f"pseudo_{name}" for name in self._arguments.names]
        rows = dict(zip(names, self._arguments.rows, strict=True))
        if self._label is not None:
            del rows[names[self._label.position]]
        spreads = []
        for name, (constraint, _) in self._pyro_params.items():
            own = getattr(self, f"{name}_unconstrained").detach()
            if name not in rows:
                spreads.append(torch.ones_like(own[0]))
                continue
            values = transform_to(constraint).inv(rows[name])
            # An observation of the data may be at the edge of its support.
            spreads.append(column_spreads(values if bool(values.isfinite().all()) else own))
        return spreads

    def _cached_draws(self) -> dict[str, Tensor]:
        """Draws from the posterior of the coreset as it is."""
        tensors = [*self.parameters(), *self.buffers()]
        state = [(id(tensor), tensor._version) for tensor in tensors]
        if self._draws is None or self._draws[0] != state:
            with pyro.poutine.block(), torch.enable_grad():
                samples = self.sample_posterior().get_samples()
            sites = self.posterior.potential.sites
            self._draws = (state, {name: samples[name] for name in sites})
        return self._draws[1]


def _pick_draw(draws: Mapping[str, Tensor], sites: Mapping[str, Site]) -> dict[str, Tensor]:
    """Sample latent sites from draws, one of which is picked at random, in a Pyro guide."""
    number = len(next(iter(draws.values())))
    index = pyro.sample(
        "_pseudocoreset_draw",
        dist.Categorical(logits=torch.zeros(number)),
        infer={"is_auxiliary": True},
    )
    result = {}
    for name, site in sites.items():
        batch = len(site.shape) - site.event_dim
        # A plate of draws stands left of the plates of the site.
        own = index.reshape(index.shape[: max(index.dim() - batch, 0)])
        with ExitStack() as stack:
            for plate in site.plates:
                stack.enter_context(pyro.plate(plate.name, plate.size, dim=plate.dim))
            chosen = dist.Delta(draws[name][own.to(draws[name].device)], event_dim=site.event_dim)
            result[name] = pyro.sample(name, chosen)
    return result
