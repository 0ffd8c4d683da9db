"""Nonparametric learning: each draw is the best fit to data with random weights."""

import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext._lib.executors import ExecutorError, run_tasks
from pyro_ext._lib.hints import refuses_moved
from pyro_ext._lib.progress import progress_bar
from pyro_ext.checkpoint.folder import DrawFolder
from pyro_ext.inference.martingale.nonparametric_learning.dirichlet_weights import (
    BootstrapWeights,
    EmpiricalBase,
)
from pyro_ext.inference.martingale.nonparametric_learning.weighted_fits import WeightedFits
from pyro_ext.inference.optimization import BatchLBFGS, Minimizer
from pyro_ext.posterior.fixed_points import fingerprint, model_at
from pyro_ext.posterior.identity import (
    continued,
    data_identity,
    density_identity,
    model_identity,
    versions,
)
from pyro_ext.posterior.independent_draws import IndependentDraws
from pyro_ext.potential import (
    Backend,
    InitStrategy,
    Potential,
    Regularizer,
    WeightedFunction,
    WeightedLoss,
    WeightedPotential,
    check_backend,
)
from pyro_ext.random import fresh_seed

_FIELDS = ("value", "gradient_norm", "converged", "num_steps")
_EQUAL = BootstrapWeights()
_FAILED = (
    "executor={} failed; draws made before are kept: get_samples() has them, and with "
    "checkpoint=... the same program continues from there"
)


class LossOptions(TypedDict, total=False):
    r"""Options of the loss that a :class:`~pyro_ext.inference.PosteriorBootstrap` minimizes.

    :param str plate: name of the plate of the observations, where a model has several.
    :param bool include_prior: whether the log prior of the model counts, as one observation does,
        :math:`g = - \log p(\theta) / n`.
    :param regularizer: :math:`g`, a function of the parameters by name, for example of a
        :math:`1 / n` th of a penalty.
    :param init_strategy: draws starts: one of :mod:`pyro.infer.autoguide.initialization`, without
        one that of :meth:`Potential.init() <pyro_ext.potential.Potential.init>`; for a ``loss_fn``
        a function without arguments that returns parameters.
    :param int subsample_size: number of observations in a minibatch of a ``loss_fn``.
    :param str backend: as of :class:`~pyro_ext.potential.Potential`.
    """

    plate: str | None
    include_prior: bool
    regularizer: Regularizer | None
    init_strategy: InitStrategy | None
    subsample_size: int | None
    backend: Backend


@refuses_moved
class PosteriorBootstrap(IndependentDraws):
    r"""The posterior of the best fit of a model, under a Dirichlet process for the data [1].

    The model need not be right. A draw is

    .. math:: \theta = \arg\min_\theta \; \sum_i w_i \, l(z_i, \theta)
              + \sum_k \tilde w_k \, l(\tilde z_k, \theta) + g(\theta) , \quad
              (w, \tilde w) \sim \text{Dirichlet}(1, \ldots, 1, \alpha / m, \ldots, \alpha / m) ,

    where :math:`l` is the negative log likelihood of an observation, and :math:`\tilde z` are
    :math:`m` atoms of a prior guess at the data's distribution. The weights sum to one. Without a
    prior guess, :math:`\alpha = 0`, this is the weighted likelihood bootstrap. The prior of the
    model has no part in it, unless ``include_prior`` says so.

    :param model: a Pyro model whose observations are the elements of a plate, with all latent sites
        outside of it; or ``None`` with a ``loss_fn``.
    :param int num_samples: number of draws.
    :param BootstrapWeights weights: how the weights are drawn, and the prior guess.
    :param loss_fn: a loss instead of a model: it maps parameters by name and the data to a loss for
        each observation, ``(n,)``.
    :param Minimizer optimizer: :class:`~pyro_ext.inference.BatchLBFGS` without one. A model that
        subsamples takes a :class:`~pyro_ext.inference.BatchOptimizer`, with a minibatch for each
        draw at each step.
    :param Mapping initial_params: where the fit with equal weights starts, in place of a drawn
        point. Constrained. **Shape:** ``(*event)`` each. Of a ``loss_fn`` it has to be there, and
        gives the shapes.
    :param int num_restarts: number of random starts of each draw, of which the lowest loss is kept,
        for losses with several minima. With none of them all draws start at one fit, that to the
        data with equal weights, in coordinates in which the loss has unit curvature there.
    :param int batch_size: number of draws that are fitted side by side, which memory bounds.
    :param Executor executor: where batches of draws are fitted: a pool of processes, or the
        executor of a Dask client or of MPI; by default here, one after the other. A batch that is
        lost with a worker is fitted again.
    :param checkpoint: a folder to which batches of draws are written as they are made, and from
        which a run that was killed goes on.
    :param int seed: of all that is random; ``None`` takes one from PyTorch's generator, or that of
        the checkpoint. Draws depend on it and on ``batch_size``, and not on the executor.
    :param bool progress: whether to show a progress bar.
    :param options: those of :class:`~pyro_ext.inference.martingale.LossOptions`.

    [1] E. Fong, S. Lyddon, C. Holmes (2019), Scalable nonparametric sampling from multimodal
    posteriors with the posterior bootstrap.

    Example::

        >>> def model(x, y):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
        >>> x = torch.linspace(0.5, 2.0, 40)
        >>> y = 3.0 * x + x * torch.randn(40)  # with a noise that the model doesn't have
        >>> posterior = PosteriorBootstrap(model, num_samples=100, seed=0, progress=False)
        >>> posterior.run(x, y).get_samples()["slope"].shape
        torch.Size([100])
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        num_samples: int = 1000,
        weights: BootstrapWeights = _EQUAL,
        *,
        loss_fn: Callable[..., Tensor] | None = None,
        optimizer: Minimizer | None = None,
        initial_params: Mapping[str, Tensor] | None = None,
        num_restarts: int = 0,
        batch_size: int | None = None,
        executor: Executor | None = None,
        checkpoint: str | Path | None = None,
        seed: int | None = None,
        progress: bool = True,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__()
        self.model = checks.optional(checks.function, "model", model, "a Pyro model")
        self.loss_fn = checks.optional(checks.function, "loss_fn", loss_fn)
        if (model is None) == (loss_fn is None):
            raise ValueError("give either a model or a loss_fn, got both or none")
        if loss_fn is not None and initial_params is None:
            raise ValueError("initial_params must give the parameters of a loss_fn, got none")
        self.num_samples = checks.integer("num_samples", num_samples, 1)
        checks.instance("weights", weights, BootstrapWeights, "BootstrapWeights")
        self.weights = weights
        wanted = "a BatchLBFGS or another Minimizer"
        checks.optional(checks.instance, "optimizer", optimizer, Minimizer, wanted)
        self.optimizer: Minimizer = optimizer or BatchLBFGS()
        self.initial_params = checks.optional(
            checks.tensors, "initial_params", initial_params, finite=True
        )
        self.num_restarts = checks.integer("num_restarts", num_restarts, 0)
        self.batch_size = checks.optional(checks.integer, "batch_size", batch_size, 1)
        wanted = "a concurrent.futures.Executor or None"
        self.executor = checks.optional(checks.instance, "executor", executor, Executor, wanted)
        self.checkpoint = checks.optional(
            checks.instance, "checkpoint", checkpoint, (str, Path), "a path or None"
        )
        if seed is not None:
            fresh_seed(seed)
        self.seed = seed
        self.progress = progress
        self.options = options
        self._check_options()
        self._fits: dict[str, Tensor] = {}
        self._last: tuple[list[Any], WeightedLoss] | None = None

    def _check_options(self) -> None:
        """Check the options of the loss, and that they fit a model or a function."""
        options = self.options
        if unknown := options.keys() - LossOptions.__annotations__.keys():
            raise TypeError(f"options must be those of LossOptions, got {sorted(unknown)}")
        of_model = {name: options[name] for name in ("include_prior", "plate") if options.get(name)}
        if self.loss_fn is not None and of_model:
            raise ValueError(f"include_prior and plate need a model, got a loss_fn and {of_model}")
        if self.loss_fn is None and options.get("subsample_size") is not None:
            raise ValueError(
                "subsample_size must be None without a loss_fn, got "
                f"{options['subsample_size']!r:.80}; a model subsamples by its plate"
            )
        for name in ("regularizer", "init_strategy"):
            checks.optional(checks.function, name, options.get(name))
        wanted = "the name of a plate"
        checks.optional(checks.instance, "plate", options.get("plate"), str, wanted)
        checks.optional(checks.integer, "subsample_size", options.get("subsample_size"), 1)
        check_backend(options.get("backend", "trace"))
        if self.num_restarts and self.loss_fn is not None and not options.get("init_strategy"):
            raise ValueError(
                f"num_restarts={self.num_restarts} needs an init_strategy that draws parameters of "
                "the loss_fn"
            )

    def __getstate__(self) -> dict[str, Any]:
        # Neither an executor nor recorded graphs can be sent.
        return {**self.__dict__, "executor": None, "_last": None}

    def run(self, *args: Any, **kwargs: Any) -> Self:
        """Draw from the posterior.

        On Ctrl-C the run ends and keeps the batches of draws that are complete. A draw whose fit
        is not finite is left out, with a warning.

        :param args: arguments of the model, or the data of the loss. **Shape:** ``(n, *event)``
            each.
        :param kwargs: keyword arguments of the model.
        :returns: the posterior itself.
        :raises ValueError: where model and data do not fit the settings.
        :raises CheckpointError: where the checkpoint is of another run, or damaged.
        :raises ExecutorError: where the executor fails; draws made before are kept.
        :raises RuntimeError: where no draw is finite.
        """
        self.args, self.kwargs, self.interrupted = args, kwargs, False
        self._samples, self._fits, self._left_out = {}, {}, []
        own = self._known_loss(args, kwargs)
        folder = None if self.checkpoint is None else DrawFolder(self.checkpoint)
        try:
            known = None if folder is None else folder.description()
            seed = fresh_seed(self.seed)
            if known is not None and self.seed is None:
                seed = int(known["identity"]["run"]["seed"])
            fits = self._fits_of(own, seed)
            if folder is not None:
                self._describe(folder, known, own, seed, fits)
                folder.open()
            self._draw(own, fits, seed, folder)
        finally:
            if folder is not None:
                folder.close()
        return self

    def diagnostics(self) -> dict[str, Any]:
        """Return the loss, gradient norm and convergence of each fit.

        :returns: ``"loss"`` at the end of each fit, ``"gradient_norm"`` there (largest element, in
            the coordinates of the search), ``"converged"`` and ``"num_steps"``, **Shape:**
            ``(num_samples,)`` each;
            ``"left_out"``, the numbers of draws that were not finite.
        """
        self.get_samples()
        fits = {("loss" if name == "value" else name): part for name, part in self._fits.items()}
        return {**fits, "left_out": list(self._left_out)}

    # What is minimized ---------------------------------------------------------------------------

    def _known_loss(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> WeightedLoss:
        """The loss of the run before, with its graphs, where this one has the same arguments."""
        own = [*args, *kwargs, *kwargs.values()]
        if self._last is not None:
            before = self._last[0]
            if len(before) == len(own) and all(a is b for a, b in zip(before, own, strict=True)):
                return self._last[1]
        loss = self._loss(args, kwargs)
        self._last = (own, loss)
        return loss

    def _loss(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> WeightedLoss:
        """The loss over the observations alone."""
        loss: WeightedLoss
        names = ("regularizer", "backend")
        options: Any = {name: value for name, value in self.options.items() if name in names}
        if self.loss_fn is not None:
            if kwargs:
                raise ValueError(f"kwargs must be empty for a loss_fn, got {sorted(kwargs)}")
            options["subsample_size"] = self.options.get("subsample_size")
            loss = WeightedFunction(self.loss_fn, args, self.initial_params, **options)
        else:
            if self.options.get("init_strategy") is not None:
                options["init_strategy"] = self.options["init_strategy"]
            plate = self.options.get("plate")
            loss = WeightedPotential(self.model, args, kwargs, plate=plate, **options)
            if self.options.get("include_prior"):
                loss.prior_weight = 1.0 / loss.num_points
        if loss.subsample_size is not None:
            if not self.optimizer.takes_minibatches:
                raise ValueError(
                    f"optimizer must take minibatches, as BatchOptimizer does, since the data are "
                    f"subsampled; got {type(self.optimizer).__name__}"
                )
            if self.num_restarts > 1:
                raise ValueError(
                    "num_restarts must be 0 or 1 with minibatches, whose losses differ; got "
                    f"{self.num_restarts}"
                )
        return loss

    def _fits_of(self, loss: WeightedLoss, seed: int) -> WeightedFits:
        """Draws of weights and atoms, and how they are fitted."""
        initial = None
        if self.initial_params is not None:
            values = {name: value[None] for name, value in self.initial_params.items()}
            if isinstance(loss, WeightedPotential):
                values = loss.potential.unconstrain(values)
            initial = loss.layout.flatten(values)[0]

        return WeightedFits(
            loss,
            self.weights,
            self.optimizer,
            initial,
            seed,
            num_samples=self.num_samples,
            num_restarts=self.num_restarts,
            init_strategy=self.options.get("init_strategy"),
            batch_size=self.batch_size,
        )

    # How a run goes ------------------------------------------------------------------------------

    def _draw(
        self, own: WeightedLoss, fits: WeightedFits, seed: int, folder: DrawFolder | None
    ) -> None:
        size, total = fits.batch_size, self.num_samples
        batches = [range(first, min(first + size, total)) for first in range(0, total, size)]
        found: dict[range, dict[str, Tensor]] = {}
        name, is_silent = type(self).__name__, not self.progress
        with progress_bar(total=total, desc=name, unit="draw", disable=is_silent) as bar:

            def take(members: range, part: dict[str, Tensor]) -> None:
                found[members] = part
                bar.update(len(members))

            def take_new(members: range, part: dict[str, Tensor]) -> None:
                if folder is not None:
                    folder.save(members, part)
                take(members, part)

            def arguments_of(members: range) -> tuple[range] | None:
                return None if members in found else (members,)

            try:
                for members in batches:
                    if folder is not None and (part := folder.load(members)) is not None:
                        take(members, part)
                missing = [members for members in batches if members not in found]
                if self.executor is None:
                    for members in missing:
                        take_new(members, fits.fit(members))
                elif missing:
                    work = _Batches(self, seed, fits)
                    failed = _FAILED.format(self.executor)
                    self.interrupted = run_tasks(
                        self.executor, work, missing, arguments_of, take_new, failed
                    )
            except KeyboardInterrupt:
                self.interrupted = True
            except ExecutorError:
                self._keep(own, found)
                raise
        self._keep(own, found)
        self._warn_of_left_out("the fit", "see whether the loss is finite where it starts")
        if self._fits and (num_open := int((~self._fits["converged"]).sum())):
            number = len(self._fits["converged"])
            message = f"{num_open} of {number} fits have not converged: give the optimizer more"
            warnings.warn(f"{message} steps", RuntimeWarning, stacklevel=3)

    def _keep(self, own: WeightedLoss, found: Mapping[range, dict[str, Tensor]]) -> None:
        """Take the draws of some batches for samples, in the order of their numbers.

        Deterministic sites are those of the observations alone, without the atoms of a draw.
        """
        parts = sorted(found.items(), key=lambda item: item[0].start)
        if not parts:
            return
        whole = {name: torch.cat([part[name] for _, part in parts]) for name in parts[0][1]}
        numbers = [number for members, _ in parts for number in members]
        finite = whole["value"].isfinite() & whole["position"].isfinite().all(-1)
        self._left_out = [number for number, kept in zip(numbers, finite, strict=True) if not kept]
        self._fits = {name: whole[name][finite] for name in _FIELDS}
        if bool(finite.any()):
            position = whole["position"][finite]
            if isinstance(own, WeightedPotential):
                self._samples = own.potential.samples(own.layout.unflatten(position))
            else:
                self._samples = own.constrain(position)

    def _describe(
        self,
        folder: DrawFolder,
        known: Mapping[str, Any] | None,
        loss: WeightedLoss,
        seed: int,
        fits: WeightedFits,
    ) -> None:
        """Write what the run is of, or raise where the folder is of another run."""
        potential: Potential | None = getattr(loss, "potential", None)
        settings = {**vars(self.weights)}
        base = settings.pop("base_measure")
        settings["include_prior"] = self.options.get("include_prior", False)
        settings["subsample_size"] = self.options.get("subsample_size")
        settings["num_restarts"] = self.num_restarts
        settings |= {"batch_size": fits.batch_size, "optimizer": repr(self.optimizer)}
        data = data_identity(list(self.args), "args") | data_identity(self.kwargs, "kwargs")
        data |= data_identity(self.initial_params or {}, "initial_params")
        data |= data_identity(base.atoms if isinstance(base, EmpiricalBase) else base, "base")
        model = model_identity(self.model or self.loss_fn, potential)
        if self.model is not None:
            point_of = model_at(self.model, self.args, self.kwargs)
            model["log density"] = density_identity(point_of, {})[0]
        eps = torch.finfo(loss.layout.dtype).eps
        identity = {
            "driver": type(self).__name__,
            "versions": versions(),
            "run": {"seed": seed},
            "settings": settings,
            "model": model,
            "data": data,
            "loss of the first draw": fingerprint(fits.example(), eps, scale=1.0),
        }
        folder.describe({"identity": continued(known, identity, folder.folder)})


class _Batches:
    """Fits batches of draws in a worker."""

    def __init__(self, posterior: PosteriorBootstrap, seed: int, fits: WeightedFits) -> None:
        self._posterior = posterior
        self._seed = seed
        # Found once, here: it takes a search, and another processor may round otherwise.
        self._center = fits.center
        self._fits: WeightedFits | None = None

    def setup(self) -> None:
        posterior = self._posterior
        loss = posterior._known_loss(posterior.args, posterior.kwargs)
        self._fits = posterior._fits_of(loss, self._seed)
        self._fits.center = self._center

    def run(self, members: range) -> dict[str, Tensor]:
        assert self._fits is not None
        return self._fits.fit(members)
