"""What copula rules with covariates share: their scale, their kernel, and their future."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext._checks import as_tensor, check_finite
from pyro_ext.inference.martingale._data import check_data
from pyro_ext.inference.martingale._numbers import uniforms
from pyro_ext.inference.martingale.copulas._bandwidth_fit import spread
from pyro_ext.inference.martingale.copulas._copula_law import standardization
from pyro_ext.inference.martingale.copulas._copula_recursion import log_covariate_kernel

__all__ = ["Covariates", "check_pairs", "check_queries", "future_rows"]
__all__ += ["joint_bandwidths", "observed_covariates"]

START = 0.8
_WEIGHTS = 1


class Covariates(NamedTuple):
    """Covariates of the data.

    :param Tensor scores: standardized. **Shape:** ``(n, num_covariates)``.
    :param Tensor loc: **Shape:** ``(num_covariates,)``.
    :param Tensor scale: **Shape:** ``(num_covariates,)``.
    :param bool is_vector: whether they were given as vectors.
    """

    scores: Tensor
    loc: Tensor
    scale: Tensor
    is_vector: bool

    def standardized(self, queries: Tensor) -> Tensor:
        """Rows of covariates on the scale of the scores. **Shape:** ``(num_queries, ...)``."""
        queries = check_queries("x", queries)
        if queries.dim() == 2 and queries.shape[1] != len(self.loc):
            raise ValueError(
                f"x must have {len(self.loc)} columns, as the data have, got the shape "
                f"{tuple(queries.shape)}"
            )
        if queries.dim() == 1 and len(self.loc) != 1:
            raise ValueError(
                f"x must have the shape (num_queries, {len(self.loc)}), got {tuple(queries.shape)}"
            )
        rows = queries.detach().cpu().double().reshape(len(queries), -1)
        return (rows - self.loc) / self.scale

    def kernel(self, queries: Tensor, bandwidth: Tensor) -> Tensor:
        """Kernel of observations and standardized queries. **Shape:** ``(n, num_queries)``."""
        log_kernel = torch.zeros(len(self.scores), len(queries), dtype=torch.float64)
        for column in range(len(self.loc)):
            log_kernel += log_covariate_kernel(
                queries[:, column], self.scores[:, column, None], bandwidth[column]
            )
        return log_kernel.exp()


def check_pairs(data: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Check that data are covariates and a response, as ``(x, y)``.

    :raises ValueError: where they are not.
    """
    if len(data) != 2:
        raise ValueError(f"data must be two tensors, x and y, got {len(data)}")
    check_data(data)
    x, y = data
    if x.dim() > 2 or y.dim() != 1:
        raise ValueError(
            "data must be x of the shape (n,) or (n, num_covariates) and y of the shape (n,), got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    return x, y


def check_queries(argument: str, queries: Tensor) -> Tensor:
    """Check covariates at which predictions are wanted.

    :raises ValueError: where they do not fit.
    """
    queries = as_tensor(argument, queries)
    if queries.dim() not in (1, 2) or not len(queries):
        got = tuple(queries.shape)
        raise ValueError(
            f"{argument} must be a tensor of the shape (num_queries,) or (num_queries, "
            f"num_covariates), got {got}"
        )
    check_finite(argument, queries)
    return queries


def observed_covariates(x: Tensor, standardize: bool) -> Covariates:
    """Covariates of the data, on the scale of scores."""
    rows = x.detach().cpu().double().reshape(len(x), -1)
    loc, scale = standardization(rows, standardize, "x")
    return Covariates((rows - loc) / scale, loc, scale, x.dim() == 2)


def joint_bandwidths(
    bandwidth: Tensor | None,
    covariate_bandwidth: Tensor | None,
    num_covariates: int,
    is_shared: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """How free parameters make the bandwidths of a response and of covariates.

    :returns: ``base`` and ``directions``, so that the bandwidths are ``base + free @ directions``,
        that of the response first, and where the free parameters start. **Shape:** ``(1 +
        num_covariates,)``, ``(num_free, 1 + num_covariates)`` and ``(num_free,)``.
    """
    base = torch.zeros(1 + num_covariates, dtype=torch.float64)
    rows = []
    unit = torch.eye(1 + num_covariates, dtype=torch.float64)
    if bandwidth is None:
        rows.append(unit[0])
    else:
        base[0] = spread("bandwidth", bandwidth, 1)[0]
    if covariate_bandwidth is not None:
        base[1:] = spread("covariate_bandwidth", covariate_bandwidth, num_covariates)
    elif is_shared:
        rows.append(unit[1:].sum(0))
    else:
        rows.extend(unit[1:])
    directions = torch.stack(rows) if rows else torch.zeros(0, 1 + num_covariates).double()
    return base, directions, torch.full((len(rows),), START, dtype=torch.float64)


def future_rows(keys: Tensor, picks: Tensor, num_observed: int) -> Tensor:
    """Rows of the data whose covariates come next, by the Bayesian bootstrap.

    Each draw has weights of its own from a flat Dirichlet law, and rows are picked by them: in law
    the Polya urn, without its history.

    :param Tensor keys: of the draws' random streams. **Shape:** ``(num_draws, 2)``.
    :param Tensor picks: uniform numbers. **Shape:** ``(num_draws, num_steps)``.
    :param int num_observed: number of rows.
    :returns: **Shape:** ``(num_draws, num_steps)``.
    """
    weights = -uniforms(keys.cpu(), 0, num_observed, stream=_WEIGHTS).log()
    reached = weights.cumsum(1)
    rows = torch.searchsorted(reached, (picks * reached[:, -1:]).contiguous())
    return rows.clamp(max=num_observed - 1)
