"""Priors of partitions in closed form, which kernels need neither a model nor tensors for."""

import math
from collections.abc import Collection, Mapping
from functools import partial

import torch
from torch import Tensor

from pyro_ext.inference.partitions._hyperparameters import Hyperparameters
from pyro_ext.inference.partitions._recorded_hyperparameters import (
    RecordedHyperparameters,
    record,
)
from pyro_ext.inference.partitions._slice_sampling import Floats, slice_sample_log
from pyro_ext.potential import CaptureError
from pyro_ext.random_measures import GeneralizedGammaProcess, NormalizedRandomMeasure, PitmanYor
from pyro_ext.random_measures.cluster_counts import ClusterSizes

__all__ = ["ClosedPrior", "Law", "closed_prior"]

Law = NormalizedRandomMeasure | PitmanYor


class ClosedPrior:
    """Distribution of a partition with hyperparameters, for compiled loops.

    :param source: maps unconstrained hyperparameters to the law as a vector, or is the vector.
    :param bool has_tilt: whether there is an auxiliary variable.
    """

    def __init__(self, source: RecordedHyperparameters[Law] | Floats, has_tilt: bool) -> None:
        self._source = source
        self.has_tilt = has_tilt

    def log_density(self, values: Mapping[str, Tensor], counts: ClusterSizes) -> float:
        """Log density of the sites, unconstrained, of the partition and the auxiliary variable."""
        log_sites, law = self._at(values)
        return log_sites + _log_joint(counts, _log_tilt(values), law)

    def weights(self, values: Mapping[str, Tensor], number: int) -> tuple[Floats, Floats]:
        """Log factors of a partition's probability by sizes of clusters, and by their number."""
        from pyro_ext.inference.partitions._prior_loops import log_factors

        factors: tuple[Floats, Floats] = log_factors(self._at(values)[1], number, _log_tilt(values))
        return factors

    def move(
        self, state: Mapping[str, Tensor], counts: ClusterSizes, held: Collection[str]
    ) -> dict[str, Tensor]:
        """Move the auxiliary variable, and the sites but for those held."""
        moved = {}
        if self.has_tilt:
            _, law = self._at(state)
            moved["u"] = slice_sample_log(partial(_log_joint, counts, law=law), state["u"])
        if isinstance(self._source, RecordedHyperparameters):
            log_density = partial(_log_joint, counts, _log_tilt(moved))
            moved |= self._source.move(state, held, log_density)
        return moved

    def _at(self, values: Mapping[str, Tensor]) -> tuple[float, Floats]:
        """Log density of the sites, and the law as a vector."""
        if isinstance(self._source, RecordedHyperparameters):
            return self._source(self._source.place(values))
        return 0.0, self._source


def closed_prior(prior: Hyperparameters[Law]) -> ClosedPrior | None:
    """A prior for compiled loops, where it is in closed form and can be recorded."""
    from pyro_ext.inference.partitions._prior_loops import GENERALIZED_GAMMA

    if prior.names:
        recorded = record(prior, _vector)
        if recorded is None:
            return None
        _, example = recorded(recorded.example)
        return ClosedPrior(recorded, bool(example[0] == GENERALIZED_GAMMA))
    try:
        law = _vector(prior.at({})[0]).numpy()
    except CaptureError:
        return None
    return ClosedPrior(law, bool(law[0] == GENERALIZED_GAMMA))


def _log_joint(counts: ClusterSizes, log_tilt: float, law: Floats) -> float:
    """Log density of a partition, minus infinity where there is no such law."""
    from pyro_ext.inference.partitions import _prior_loops

    if not _prior_loops.in_range(law):
        return -math.inf
    sizes, times = counts.values.numpy(), counts.multiplicity.numpy()
    return float(_prior_loops.log_joint(law, sizes, times, log_tilt))


def _log_tilt(values: Mapping[str, Tensor]) -> float:
    return float(values["u"].log()) if "u" in values else math.nan


def _vector(law: Law) -> Tensor:
    """A law as compiled loops take it."""
    from pyro_ext.inference.partitions._prior_loops import GENERALIZED_GAMMA, PITMAN_YOR

    if isinstance(law, PitmanYor):
        kind, parameters = PITMAN_YOR, [law.discount, law.concentration]
    elif isinstance(law, NormalizedRandomMeasure) and isinstance(
        law.measure, GeneralizedGammaProcess
    ):
        measure = law.measure
        kind, parameters = GENERALIZED_GAMMA, [measure.mass, measure.discount, measure.tilt]
    else:
        raise CaptureError(f"{law!r:.80} is not in closed form")
    if law.batch_shape:
        raise CaptureError(f"{law!r:.80} has a batch shape")
    values = torch.stack(parameters).detach().double().cpu()
    return torch.cat([values.new_full((1,), kind), values])
