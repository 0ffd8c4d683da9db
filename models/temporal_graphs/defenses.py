"""Defenses that make training robust to a poisoned stream of events.

[1] D. Lee, J. Lee, K. Shin (2024), Spear and shield: adversarial attacks and defense methods for
model-based link prediction on continuous-time dynamic graphs.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from pyro_ext._lib import checks
from pyro_ext.models.temporal_graphs.events import EventStream, check_stream

_SMALLEST_WEIGHT = 1e-3


class Defense:
    """Base class of defenses against events that an attack may have inserted; it does nothing.

    :ivar bool filters: whether :meth:`keep` leaves events out.
    :ivar float eta: weight of :func:`temporal_smoothness` in the loss.
    :ivar float theta: decay of the smoothness per unit of time.

    Example::

        >>> from pyro_ext.models.temporal_graphs import EventStream
        >>> Defense().weights(EventStream([0, 1], [1, 2], [0.0, 1.0])) is None
        True
    """

    filters = False
    eta = 0.0
    theta = 0.0

    def keep(self, logits: Tensor, embeddings: Tensor, progress: float = 1.0) -> Tensor:
        """Return a mask of the events of a batch to keep.

        :param Tensor logits: logits of the events. **Shape:** ``(n,)``.
        :param Tensor embeddings: embeddings of their sources and destinations. **Shape:**
            ``(2, n, size)``.
        :param float progress: completed fraction of the epochs; one after training.
        :returns: **Shape:** ``(n,)``, booleans.
        """
        logits, _ = _checked(logits, embeddings, progress)
        return torch.ones_like(logits, dtype=torch.bool)

    def weights(self, stream: EventStream) -> Tensor | None:
        """Return positive weights of the events in the loss, or ``None``.

        :param EventStream stream: all events of the training.
        :returns: **Shape:** ``(n,)``.
        """
        return None


class TShield(Defense):
    r"""T-SHIELD: leaves out events that the network finds implausible, and keeps nodes steady [1].

    In epoch :math:`e` of :math:`E`, an event is kept if its probability is at least

    .. math:: \tau_e = \tau_s + \tfrac12 (1 - \cos(\pi e / E)) (\tau_E - \tau_s),

    which starts low, since an untrained network finds everything implausible. An event that is left
    out enters no memory and is nobody's neighbor for the rest of the epoch. The loss also includes
    ``eta`` times :func:`temporal_smoothness`.

    A threshold that is too high runs away: when many events are left out, the network mostly learns
    negatives, which lowers all probabilities. Therefore at least a fraction ``min_kept`` of each
    batch is kept, the most plausible events, unlike in the paper.

    The default thresholds of the paper's code, from 0.6 to 0.9, are for networks trained for 100
    epochs; those here are for short training.

    :param float tau_start: :math:`\tau_s`, from 0 to 1.
    :param float tau_end: :math:`\tau_E`, from 0 to 1, which is also the threshold after training.
    :param float eta: weight of the smoothness; with zero, only the filter remains.
    :param float theta: decay of the smoothness per unit of time.
    :param str schedule: ``"cosine"``, ``"linear"`` or ``"fixed"``, which is :math:`\tau_E`
        throughout.
    :param float min_kept: smallest fraction of a batch to keep, from 0 to 1.

    [1] D. Lee, J. Lee, K. Shin (2024), Spear and shield: adversarial attacks and defense methods
    for model-based link prediction on continuous-time dynamic graphs.

    Example::

        >>> shield = TShield(0.0, 0.3)
        >>> [round(shield.threshold(e / 4), 3) for e in range(5)]
        [0.0, 0.044, 0.15, 0.256, 0.3]
        >>> logits = torch.tensor([2.0, -2.0, 0.0, -3.0])
        >>> shield.keep(logits, torch.zeros(2, 4, 8)).tolist()
        [True, False, True, False]
    """

    filters = True

    def __init__(
        self,
        tau_start: float = 0.0,
        tau_end: float = 0.3,
        eta: float = 0.1,
        theta: float = 1e-3,
        *,
        schedule: str = "cosine",
        min_kept: float = 0.5,
    ) -> None:
        self.tau_start = checks.number("tau_start", tau_start, least=0, most=1)
        self.tau_end = checks.number("tau_end", tau_end, least=0, most=1)
        self.eta = checks.number("eta", eta, least=0)
        self.theta = checks.number("theta", theta, least=0)
        checks.choice("schedule", schedule, ("cosine", "linear", "fixed"))
        self.schedule = schedule
        self.min_kept = checks.number("min_kept", min_kept, least=0, most=1)

    def threshold(self, progress: float) -> float:
        r"""Return :math:`\tau_e`.

        :param float progress: :math:`e / E`, from 0 to 1.
        """
        progress = checks.number("progress", progress, least=0, most=1)
        fraction = {
            "cosine": 0.5 * (1.0 - math.cos(math.pi * progress)),
            "linear": progress,
            "fixed": 1.0,
        }[self.schedule]
        return self.tau_start + fraction * (self.tau_end - self.tau_start)

    def keep(self, logits: Tensor, embeddings: Tensor, progress: float = 1.0) -> Tensor:
        """Keep events whose probability reaches the threshold; see :meth:`Defense.keep`."""
        probabilities = _checked(logits, embeddings, progress)[0].sigmoid()
        threshold = self.threshold(progress)
        if num_kept := math.ceil(self.min_kept * len(probabilities)):
            threshold = min(threshold, float(probabilities.topk(num_kept).values[-1]))
        return probabilities >= threshold


class CosineFilter(Defense):
    """A baseline for :class:`TShield`: leaves out events between nodes with dissimilar embeddings.

    It has no schedule.

    :param float threshold: an event is kept if the cosine between the embeddings of its nodes is at
        least this, from -1 to 1.

    Reference: A. Zhang, J. Ma (2020), Defending graph neural networks against adversarial attacks
    by cosine similarity, as D. Lee, J. Lee, K. Shin (2024) use it.

    Example::

        >>> pair = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.1], [0.0, 1.0]]])
        >>> CosineFilter(0.5).keep(torch.zeros(2), pair).tolist()
        [True, False]
    """

    filters = True

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = checks.number("threshold", threshold, least=-1, most=1)

    def keep(self, logits: Tensor, embeddings: Tensor, progress: float = 1.0) -> Tensor:
        """Keep events between similar nodes; see :meth:`Defense.keep`."""
        sources, destinations = _checked(logits, embeddings, progress)[1]
        return cosine_similarity(sources, destinations, dim=-1) >= self.threshold


class LowRankWeights(Defense):
    """A baseline for :class:`TShield`: weights events by a low-rank approximation of the graph.

    The matrix records which pairs of nodes have any event. The weight of an event is the
    approximation at its pair of nodes, at least 0.001; weights have mean one.

    :param int rank: number of singular values to keep.

    Reference: N. Entezari, S. Al-Sayouri, A. Darvishzadeh, E. Papalexakis (2020), All you need is
    low (rank), as D. Lee, J. Lee, K. Shin (2024) use it, with a rank of 50.

    Example::

        >>> from pyro_ext.models.temporal_graphs import EventStream
        >>> stream = EventStream([0, 1, 0, 3], [1, 2, 2, 4], [0.0, 1.0, 2.0, 3.0])
        >>> LowRankWeights(1).weights(stream)
        tensor([1.3327, 1.3327, 1.3327, 0.0020])
    """

    def __init__(self, rank: int = 50) -> None:
        self.rank = checks.integer("rank", rank, 1)

    def weights(self, stream: EventStream) -> Tensor:
        """See :meth:`Defense.weights`; raises unless there are more nodes than the rank."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.linalg import svds

        check_stream("stream", stream)
        if self.rank >= stream.num_nodes:
            raise ValueError(
                f"rank must be less than the {stream.num_nodes} nodes of the stream, got "
                f"{self.rank}"
            )
        sources, destinations = (
            stream.sources.numpy(force=True),
            stream.destinations.numpy(force=True),
        )
        rows, columns = np.r_[sources, destinations], np.r_[destinations, sources]
        shape = (stream.num_nodes, stream.num_nodes)
        graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape).tocsr()
        graph.data[:] = 1.0
        start = np.random.default_rng(0).normal(size=stream.num_nodes)  # the same every time
        left, values, right = svds(graph, k=self.rank, v0=start)
        found = ((left * values)[sources] * right.T[destinations]).sum(-1).clip(_SMALLEST_WEIGHT)
        weights = torch.as_tensor(found / found.mean(), device=stream.sources.device)
        return weights.to(torch.get_default_dtype())


def temporal_smoothness(
    embeddings: Tensor, previous: Tensor, lapse: Tensor, theta: float = 1e-3
) -> Tensor:
    r"""Negative mean cosine between embeddings of nodes and their previous embeddings [1].

    .. math:: -\frac1m \sum_i e^{-\theta \Delta_i} \cos(h_i, h_i')

    :param Tensor embeddings: :math:`h`. **Shape:** ``(n, size)``.
    :param Tensor previous: :math:`h'`, which gets no gradient. **Shape:** ``(n, size)``.
    :param Tensor lapse: :math:`\Delta`, the time since the previous embedding; NaN for nodes that
        occur for the first time, which do not count. **Shape:** ``(n,)``.
    :param float theta: :math:`\theta`, per unit of time.
    :returns: a number from -1 to 1; zero if all nodes are new.

    [1] D. Lee, J. Lee, K. Shin (2024), Spear and shield: adversarial attacks and defense methods
    for model-based link prediction on continuous-time dynamic graphs.

    Example::

        >>> h = torch.eye(2)
        >>> temporal_smoothness(h, h, torch.tensor([0.0, 10.0]), theta=0.0)
        tensor(-1.)
    """
    embeddings = checks.as_tensor("embeddings", embeddings, "(n, size)", finite=True)
    num, size = embeddings.shape
    previous = checks.as_tensor("previous", previous, f"({num}, {size})", finite=True)
    lapse = checks.as_tensor("lapse", lapse, f"({num},)", like=embeddings)
    theta = checks.number("theta", theta, least=0)
    seen = ~lapse.isnan()
    if bool((lapse[seen] < 0).any()):
        raise ValueError(f"lapse must be a time >= 0 or NaN, got {float(lapse[seen].min())}")
    cosines = cosine_similarity(embeddings[seen], previous[seen].detach(), dim=-1)
    return -((-theta * lapse[seen]).exp() * cosines).sum() / max(int(seen.sum()), 1)


def _checked(logits: Any, embeddings: Any, progress: float) -> tuple[Tensor, Tensor]:
    """Arguments of a filter, as tensors."""
    logits = checks.as_tensor("logits", logits, "(n,)", finite=True)
    shape = f"(2, {len(logits)}, size)"
    checks.number("progress", progress, least=0, most=1)
    return logits, checks.as_tensor("embeddings", embeddings, shape, finite=True)
