"""Base of kernels over partitions: their state, hyperparameters, and the auxiliary variable."""

import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.partitions._slice_sampling import LARGEST_LOG
from pyro_ext.inference.partitions.hyperparameters import Process
from pyro_ext.inference.partitions.mixtures import Mixture, PriorSource
from pyro_ext.posterior.fixed_points import PointOf
from pyro_ext.random_measures import NormalizedRandomMeasure
from pyro_ext.random_measures.cluster_counts import canonical_labels, cluster_sizes

AnyMixture = TypeVar("AnyMixture", bound=Mixture)
Moved: TypeAlias = tuple[dict[str, Tensor], dict[str, float]]
FirstPartition: TypeAlias = str | Tensor | Callable[..., Tensor]


class PartitionKernel(MCMCKernel, Generic[AnyMixture]):
    r"""Base class of kernels over the partitions of data in a mixture.

    A state has the site ``"assignment"``, labels in the order of first occurrence; ``"u"``, the
    auxiliary variable, for a normalized measure; and the sites of ``prior`` and of the clusters by
    name. The log density of all of them and the data is the sample statistic ``"lp"``.

    A step moves the points, and then the auxiliary variable and the sites one by one, by slice
    sampling of their unconstrained values. :class:`ConjugateKernel` and
    :class:`~pyro_ext.inference.partitions.AuxiliaryGibbs` define the clusters.

    :param prior: a normalized measure, a Pitman-Yor process, a Dirichlet process, or a Pyro model
        without arguments that returns one of these; its sample sites are the hyperparameters.
    :param init: the first partition: ``"prior"`` draws one, ``"one"`` puts all points into one
        cluster, and ``"each"`` puts each point into its own. Or pass labels, **Shape:** ``(n,)``,
        or a function of the data that returns labels; it is called for each chain with that chain's
        random numbers.
    """

    keeps_no_state = True
    adapted: tuple[str, ...] = ()  # attributes that the warm-up sets, which a checkpoint keeps
    starts: tuple[str, ...] = ("prior", "one", "each")
    partitions = ("assignment",)
    _setting_names: tuple[str, ...] = ("prior", "init")

    def __init__(self, prior: PriorSource, *, init: FirstPartition = "prior") -> None:
        if isinstance(init, str):
            checks.choice("init", init, self.starts)
        elif not callable(init) or isinstance(init, type):
            init = checks.as_tensor("init", init, "(n,)", kind="integers")
        if not isinstance(prior, Process) and (isinstance(prior, type) or not callable(prior)):
            raise TypeError(
                "prior must be or return a normalized measure, a PitmanYor or a DirichletProcess, "
                f"got {checks.shown(prior)}"
            )
        self.prior, self.init = prior, init
        self.transforms: dict[str, Any] = {}
        self.held: frozenset[str] = frozenset()  # sites that another kernel moves
        self._mixture: AnyMixture | None = None
        self._initial: dict[str, Tensor] | None = None
        self._statistics: dict[str, float] = {}
        super().__init__()

    # What a subclass gives.

    @abstractmethod
    def _move_points(self, state: Mapping[str, Tensor]) -> Moved:
        """Move the labels, and what belongs to the clusters of points, given all else."""

    @abstractmethod
    def _mixture_of(self, *args: Any, **kwargs: Any) -> AnyMixture:
        """The mixture at some data."""

    # The interface of a kernel.

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Set the data.

        :param int warmup_steps: unused; part of the interface.
        :param args: the data, as the class describes.
        :param kwargs: the data by keyword.
        """
        self._mixture = mixture = self._mixture_of(*args, **kwargs)
        if self._initial is None:
            init = self.init(*args, **kwargs) if callable(self.init) else self.init
            self._initial = _completed(mixture, self._draw_start(mixture, init))
        else:
            self._initial = self._check_start(mixture, self._initial)

    def fixed_points(self, *args: Any, **kwargs: Any) -> PointOf:
        """Return the log density at fixed states, for checkpoints to compare.

        :param args: the data.
        :param kwargs: the data by keyword.
        """
        return self._mixture_of(*args, **kwargs).at

    @property
    def mixture(self) -> AnyMixture:
        """The mixture at the data.

        :raises RuntimeError: before ``setup``.
        """
        if self._mixture is None:
            raise RuntimeError("setup must be called before sample")
        return self._mixture

    @property
    def initial_params(self) -> dict[str, Tensor]:
        """The state from which chains start."""
        if self._initial is None:
            raise RuntimeError("there are no initial parameters before setup")
        return self._initial

    @initial_params.setter
    def initial_params(self, params: Mapping[str, Tensor] | None) -> None:
        self._initial = None if params is None else dict(params)

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take one step.

        :param dict params: the state.
        :returns: the next state.
        """
        mixture = self.mixture
        own = [name for name in ("assignment", "u", *mixture.names) if name in params]
        state = _with_auxiliary(mixture, {name: params[name] for name in own})
        state["assignment"] = canonical_labels(state["assignment"].long())
        points, moved = self._move_points(state)
        state |= points
        state["assignment"] = canonical_labels(state["assignment"])
        counts = cluster_sizes(state["assignment"].bincount())
        state |= mixture.move_prior(state, counts, self.held)
        state |= mixture.move_clusters(state, self.held)
        self._statistics = {
            "lp": mixture.log_prior(state, counts) + mixture.log_clusters(state),
            "num_clusters": float(counts.number),
            **moved,
        }
        return state

    def cleanup(self) -> None:
        """Forget the data and the state from which chains start."""
        self._mixture = self._initial = None

    def logging(self) -> "OrderedDict[str, str]":
        """Line of a progress bar: the statistics of the last step."""
        return OrderedDict((name, f"{value:.6g}") for name, value in self._statistics.items())

    def diagnostics(self) -> dict[str, Any]:
        """Return nothing beyond the statistics of each draw."""
        return {}

    def statistics(self) -> dict[str, float]:
        """Statistics of the last step: log density, number of clusters, and acceptance rates."""
        return dict(self._statistics)

    def settings(self) -> dict[str, Any]:
        """Arguments by name, which must stay the same for a run to resume from a checkpoint."""
        return {name: getattr(self, name) for name in self._setting_names}

    # Starts.

    def _draw_start(self, mixture: AnyMixture, init: str | Tensor) -> dict[str, Tensor]:
        state = mixture.prior.draw()
        number = mixture.num_points
        if not isinstance(init, str):
            labels = checks.as_tensor("init", init, f"({number},)", kind="integers").long().cpu()
        elif init == "prior":
            process, _ = mixture.process(state)
            labels = process.partition(number).sample()
        elif init == "each":
            labels = torch.arange(number)
        else:
            labels = torch.zeros(number, dtype=torch.long)
        return {**state, **mixture.draw_clusters(labels), "assignment": labels}

    def _check_start(self, mixture: AnyMixture, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        lacking = {"assignment", *mixture.names} - set(params)
        if lacking:
            raise ValueError(f"initial_params lacks the sites {sorted(lacking)}")
        labels = torch.as_tensor(params["assignment"])
        if labels.shape != (mixture.num_points,) or bool((labels != labels.floor()).any()):
            raise ValueError(
                f"initial_params['assignment'] must be {mixture.num_points} integers, got shape "
                f"{tuple(labels.shape)}"
            )
        state = {name: torch.as_tensor(params[name]) for name in mixture.names}
        if "u" in params:
            state["u"] = torch.as_tensor(params["u"]).double()
        return _completed(mixture, {**state, "assignment": labels.long()})


def _completed(mixture: Mixture, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state with canonical labels and an auxiliary variable where there is one."""
    state = _with_auxiliary(mixture, {**state, "assignment": canonical_labels(state["assignment"])})
    counts = cluster_sizes(state["assignment"].bincount())
    log_joint = mixture.log_prior(state, counts) + mixture.log_clusters(state)
    if not log_joint > -math.inf:
        raise ValueError(
            f"the start has log density {log_joint}; choose another init, or hyperparameters "
            "whose prior allows it"
        )
    return state


def _with_auxiliary(mixture: Mixture, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state with an auxiliary variable, drawn given all else where it has none."""
    if "u" in state or not mixture.has_auxiliary(state):
        return state
    process, _ = mixture.process(state)
    assert isinstance(process, NormalizedRandomMeasure)
    u = process.sample_auxiliary(state["assignment"].bincount())
    return {**state, "u": u.double().clamp(max=math.exp(LARGEST_LOG))}
