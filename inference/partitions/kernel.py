"""What kernels over partitions share: their state, hyperparameters, and the auxiliary variable."""

import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_ext.inference.partitions._hyperparameters import Hyperparameters
from pyro_ext.inference.partitions._mixture import (
    ClusterSource,
    Integers,
    Law,
    Mixture,
    PriorSource,
    Situation,
)
from pyro_ext.inference.partitions._slice_sampling import slice_sample
from pyro_ext.random_measures import NormalizedRandomMeasure
from pyro_ext.random_measures._counts import ClusterSizes, canonical_labels, cluster_sizes

__all__ = ["PartitionKernel"]

_STARTS = ("prior", "one", "each")
_LARGEST_LOG = 690.0


class PartitionKernel(MCMCKernel):
    r"""Kernel over the partitions of data in a mixture whose parameters are integrated out.

    A state has the site ``"assignment"``, labels in the order of first occurrence; ``"u"``, the
    auxiliary variable, for a normalized measure; and the sites of ``prior`` and ``cluster`` by
    name. The log density of all of them and the data is the statistic ``"lp"`` of a draw.

    A subclass moves the labels. Then the auxiliary variable and the hyperparameters are moved one
    by one, by slice sampling of their unconstrained values.

    :param prior: a normalized measure, a Pitman-Yor or a Dirichlet process, or a Pyro model of no
        arguments that returns one; its sample sites are the hyperparameters.
    :param cluster: a conjugate cluster, or a Pyro model of no arguments that returns one.
    :param str init: the first partition: ``"prior"`` draws one, ``"one"`` puts all points into one
        cluster, ``"each"`` each into its own.
    """

    keeps_no_state = True

    def __init__(self, prior: PriorSource, cluster: ClusterSource, *, init: str = "prior") -> None:
        if init not in _STARTS:
            raise ValueError(f"init must be one of {_STARTS}, got {init!r}")
        self.prior, self.cluster, self.init = prior, cluster, init
        self.transforms: dict[str, Any] = {}
        self.held: frozenset[str] = frozenset()  # sites that another kernel moves
        self._mixture: Mixture | None = None
        self._initial: dict[str, Tensor] | None = None
        self._statistics: dict[str, float] = {}
        super().__init__()

    # What a subclass gives.

    @abstractmethod
    def _move(self, labels: Integers, situation: Situation) -> dict[str, float]:
        """Change labels in place, leaving their law given all else invariant.

        :returns: statistics of the step by name.
        """

    # The interface of a kernel.

    def setup(self, warmup_steps: int, x: Tensor) -> None:
        """Take the data.

        :param int warmup_steps: taken for the sake of the interface.
        :param Tensor x: the data. **Shape:** ``(n, d)``, or ``(n,)`` where ``d`` is one.
        """
        prior: Hyperparameters[Law] = Hyperparameters(self.prior, "prior")
        self._mixture = Mixture(prior, Hyperparameters(self.cluster, "cluster"), x)
        if self._initial is None:
            self._initial = self._draw_start(self._mixture)
        else:
            self._initial = self._check_start(self._mixture, self._initial)

    @property
    def initial_params(self) -> dict[str, Tensor]:
        """The state that chains start at."""
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
        mixture = self._checked()
        params = _with_tilt(mixture, params)
        situation = mixture.situation(params)
        law, labels = situation.law, canonical_labels(params["assignment"].long()).clone().numpy()
        moved = self._move(labels, situation)
        state = {name: params[name] for name in mixture.names}
        state["assignment"] = canonical_labels(torch.from_numpy(labels))
        counts = cluster_sizes(state["assignment"].bincount())
        if isinstance(law, NormalizedRandomMeasure):
            state["u"] = _move_tilt(law, counts, params["u"])
        state |= _move_sites(
            mixture.prior, self.held, state, lambda values: _log_prior(mixture, values, counts)
        )
        state |= _move_sites(
            mixture.cluster,
            self.held,
            state,
            lambda values: _log_data(mixture, values, state["assignment"]),
        )
        self._statistics = {
            "lp": _log_density(mixture, state, counts),
            "num_clusters": float(counts.number),
            **moved,
        }
        return state

    def cleanup(self) -> None:
        """Forget the data and where chains start."""
        self._mixture = self._initial = None

    def logging(self) -> "OrderedDict[str, str]":
        """Line of a progress bar: the statistics of the last step."""
        return OrderedDict((name, f"{value:.6g}") for name, value in self._statistics.items())

    def diagnostics(self) -> dict[str, Any]:
        """Nothing beyond the statistics of each draw."""
        return {}

    def statistics(self) -> dict[str, float]:
        """Statistics of the last step: log density, number of clusters, and rates of acceptance."""
        return dict(self._statistics)

    def settings(self) -> dict[str, Any]:
        """Arguments by name, which a run that goes on from a checkpoint must share."""
        return {"prior": self.prior, "cluster": self.cluster, "init": self.init}

    # Starts.

    def _checked(self) -> Mixture:
        if self._mixture is None:
            raise RuntimeError("setup must be called before sample")
        return self._mixture

    def _draw_start(self, mixture: Mixture) -> dict[str, Tensor]:
        state = {**mixture.prior.draw(), **mixture.cluster.draw()}
        law, _ = mixture.law(state)
        number = mixture.num_points
        if self.init == "prior":
            labels = law.partition(number).sample()
        else:
            labels = torch.zeros(number).long() if self.init == "one" else torch.arange(number)
        return _completed(mixture, {**state, "assignment": labels})

    def _check_start(self, mixture: Mixture, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
    state = _with_tilt(mixture, {**state, "assignment": canonical_labels(state["assignment"])})
    counts = cluster_sizes(state["assignment"].bincount())
    log_joint = _log_density(mixture, state, counts)
    if not log_joint > -math.inf:
        raise ValueError(
            f"the start has log density {log_joint}; choose another init, or hyperparameters "
            "whose prior allows it"
        )
    return state


def _with_tilt(mixture: Mixture, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state with an auxiliary variable, drawn given all else where it has none."""
    law, _ = mixture.law(state)
    if not isinstance(law, NormalizedRandomMeasure) or "u" in state:
        return state
    tilt = law.sample_tilt(state["assignment"].bincount())
    return {**state, "u": tilt.double().clamp(max=math.exp(_LARGEST_LOG))}


def _move_tilt(law: NormalizedRandomMeasure, counts: ClusterSizes, tilt: Tensor) -> Tensor:
    """Move the auxiliary variable, by slice sampling of its logarithm."""

    def log_density(place: Tensor) -> float:
        if place > _LARGEST_LOG:
            return -math.inf
        return float(law._log_joint(counts, place.squeeze(-1)) + place)

    with torch.no_grad():
        return slice_sample(log_density, tilt.double().log().reshape(1)).exp().reshape(())


def _move_sites(
    part: Hyperparameters[Any],
    held: Collection[str],
    state: Mapping[str, Tensor],
    log_density: Callable[[Mapping[str, Tensor]], float],
) -> dict[str, Tensor]:
    """Move the sites of prior or cluster one by one, by slice sampling of unconstrained values."""
    moved: dict[str, Tensor] = {}
    for name, transform in part.transforms.items():
        if name in held:
            continue
        value = state[name]
        start = transform.inv(value)

        def constrained(
            place: Tensor, transform: Any = transform, start: Tensor = start, value: Tensor = value
        ) -> Tensor:
            return transform(place.view(start.shape)).to(value)  # type: ignore[no-any-return]

        def along(place: Tensor, name: str = name) -> float:
            try:
                return log_density({**state, **moved, name: constrained(place)})
            except ValueError:
                # A place that rounds to the border of the parameters has no density.
                return -math.inf

        moved[name] = constrained(slice_sample(along, start.double().flatten()))
    return moved


def _log_prior(mixture: Mixture, values: Mapping[str, Tensor], counts: ClusterSizes) -> float:
    """Log density of the sites of the prior, unconstrained, and of the partition."""
    law, log_sites = mixture.law(values)
    with torch.no_grad():
        if isinstance(law, NormalizedRandomMeasure):
            log_partition = float(law._log_joint(counts, values["u"].log()))
        else:
            log_partition = float(law.log_eppf(counts.values, counts.multiplicity))
    return _number(log_sites + log_partition)


def _log_data(mixture: Mixture, values: Mapping[str, Tensor], labels: Tensor) -> float:
    """Log density of the sites of the cluster, unconstrained, and of the data."""
    compiled, log_sites = mixture.compiled(values)
    return _number(log_sites + mixture.log_data(compiled, labels.numpy()))


def _log_density(mixture: Mixture, state: Mapping[str, Tensor], counts: ClusterSizes) -> float:
    """Log density of a state, hyperparameters unconstrained, and the data."""
    log_prior = _log_prior(mixture, state, counts)
    return log_prior + _log_data(mixture, state, state["assignment"])


def _number(value: float) -> float:
    return -math.inf if math.isnan(value) else value
