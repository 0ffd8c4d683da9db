"""Losses along paths of weights, and the trace of a loss's Hessian."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext._lib.progress import progress_bar
from pyro_ext.inference.averaging.bezier_path import BezierPath, with_weights
from pyro_ext.random import fresh_seed

_NUMBERS_PER_CALL = 2**22


def path_losses(
    path: BezierPath,
    loss: Callable[[nn.Module], Tensor | float],
    positions: Tensor,
    batches: Iterable[Any] | None = None,
    *,
    progress: bool = False,
) -> Tensor:
    """Compute losses of the networks along a path; an untrained path is a straight line.

    :param BezierPath path: the path.
    :param Callable loss: maps a network in evaluation mode to a scalar.
    :param Tensor positions: positions between 0 and 1. **Shape:** ``(n,)``.
    :param batches: as for :meth:`~pyro_ext.inference.averaging.BezierPath.module_at`; they are
        iterated over at each position.
    :param bool progress: whether to show a progress bar.
    :returns: **Shape:** ``(n,)``.
    :raises ValueError: if a loss is not finite.

    Example::

        >>> x, y = torch.randn(64, 3), torch.arange(64) % 2
        >>> line = BezierPath(torch.nn.Linear(3, 2), torch.nn.Linear(3, 2))
        >>> losses = path_losses(
        ...     line, lambda net: torch.nn.functional.cross_entropy(net(x), y), torch.rand(5))
        >>> losses.shape
        torch.Size([5])
    """
    checks.instance("path", path, BezierPath, "a BezierPath")
    positions = checks.as_tensor("positions", positions, "(n,)", finite=True)
    weights = (path.weights(r) for r in positions)
    return _losses(path.control, weights, len(positions), loss, batches, progress)


class TraceEstimate(NamedTuple):
    """An estimate of a trace.

    :param float mean: mean over the probes.
    :param float standard_error: standard error of the mean.
    """

    mean: float
    standard_error: float


def hutchinson_trace(
    loss: Callable[[dict[str, Tensor]], Tensor],
    weights: Mapping[str, Tensor],
    num_probes: int = 100,
    *,
    seed: int | None = None,
) -> TraceEstimate:
    r"""Estimate the trace of a loss's Hessian with random sign vectors as probes [1].

    :math:`E\, v^\top H v = \text{tr} H`, with variance :math:`2 \sum_{i \ne j} H_{ij}^2`.

    :param Callable loss: maps a dict of weights to a scalar; see
        :func:`torch.func.functional_call`.
    :param Mapping weights: where to take the Hessian, tensors by name.
    :param int num_probes: number of probes, at least 2.
    :param int seed: seed of the signs; ``None`` takes one from PyTorch's generator.
    :raises ValueError: if a product with the Hessian is not finite.

    [1] M. F. Hutchinson (1990), A stochastic estimator of the trace of the influence matrix for
    Laplacian smoothing splines.

    Example::

        >>> quadratic = lambda w: 0.5 * (torch.tensor([1.0, 2.0, 3.0]) * w["x"] ** 2).sum()
        >>> hutchinson_trace(quadratic, {"x": torch.ones(3)}, 10, seed=0)
        TraceEstimate(mean=6.0, standard_error=0.0)
    """
    checks.function("loss", loss)
    weights = {n: w.detach() for n, w in checks.tensors("weights", weights, finite=True).items()}
    num_probes = checks.integer("num_probes", num_probes, 2)
    generator = torch.Generator().manual_seed(fresh_seed(seed))
    sizes = [w.numel() for w in weights.values()]
    product = torch.func.vjp(torch.func.grad(loss), weights)[1]

    def of_one(signs: Tensor) -> Tensor:
        parts = zip(weights.items(), signs.split(sizes), strict=True)
        probe = {name: sign.reshape(w.shape).to(w) for (name, w), sign in parts}
        (curvature,) = product(probe)
        return torch.stack([(probe[name] * curvature[name]).sum() for name in probe]).sum()

    found = []
    most = max(1, _NUMBERS_PER_CALL // sum(sizes))
    for start in range(0, num_probes, most):
        shape = (min(most, num_probes - start), sum(sizes))
        signs = torch.randint(2, shape, generator=generator, dtype=torch.int8, device="cpu") * 2 - 1
        signs = signs.to(next(iter(weights.values())).device)
        found.append(torch.vmap(of_one)(signs).double())
    values = torch.cat(found)
    checks.all_finite("loss", values)
    return TraceEstimate(float(values.mean()), float(values.std() / math.sqrt(num_probes)))


@torch.no_grad()
def _losses(
    module: nn.Module,
    weights: Iterable[Mapping[str, Tensor]],
    total: int,
    loss: Callable[[nn.Module], Tensor | float],
    batches: Iterable[Any] | None,
    progress: bool,
) -> Tensor:
    """Losses of copies of a module with other weights."""
    checks.function("loss", loss)
    checks.instance("progress", progress, bool, "True or False")
    found = []
    for one in progress_bar(
        weights, total=total, desc="Losses", unit="point", disable=not progress
    ):
        value = loss(with_weights(module, one, batches))
        found.append(checks.as_tensor("loss", value, "()").detach().cpu())
    losses = torch.stack(found)
    checks.all_finite("loss", losses)
    return losses
