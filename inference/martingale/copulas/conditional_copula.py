"""Laws of a response given covariates, as the copula recursion learns them."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext.inference.martingale._numbers import uniforms
from pyro_ext.inference.martingale.copulas._copula_law import CopulaLaw, Future, table_places
from pyro_ext.inference.martingale.copulas._copula_recursion import follow, normal_start, rates
from pyro_ext.inference.martingale.copulas._covariates import Covariates, future_rows
from pyro_ext.inference.martingale.copulas._score_map import ScoreMap

__all__ = ["ConditionalCopula", "RegressionFit"]

_NUMBERS_AT_ONCE = 2**21
_PER_SCALE = 20.0  # places of the table; fewer than for a density, since each query has its own


class RegressionFit(NamedTuple):
    """What a regression has learned: its bandwidths, its data and what it saw of these."""

    x: Tensor
    y: Tensor
    covariates: Covariates
    loc: Tensor
    scale: Tensor
    bandwidth: Tensor
    covariate_bandwidth: Tensor
    orders: Tensor
    seen: Tensor
    log_predicted: Tensor


class ConditionalCopula(CopulaLaw):
    """Laws of a response given covariates.

    :class:`~pyro_ext.inference.CopulaRegression` learns them.

    Batch shape: ``(num_queries,)``, and ``(num_draws, num_queries)`` for populations. Densities and
    distribution functions are exact; quantiles and moments interpolate, with an error of up to
    1e-4 of probability where covariates leave little of the response open.
    """

    def __init__(self, fit: RegressionFit, x: Tensor) -> None:
        self._fit = fit
        self._loc, self._scale = fit.loc, fit.scale
        self._dtype, self._device = fit.y.dtype, fit.y.device
        queries = fit.covariates.standardized(x)
        self._kernel = fit.covariates.kernel(queries, fit.covariate_bandwidth)
        self._num_queries, self._future, self._table = len(queries), None, None
        self._own_shape = torch.Size((len(queries),))
        super().__init__(self._own_shape, torch.Size())

    def _table_places(self) -> Tensor:
        return table_places(float(self._fit.bandwidth[0]), _PER_SCALE)

    def _base(self, points: Tensor) -> tuple[Tensor, Tensor]:
        fit = self._fit
        group = len(points)
        pieces = []
        width = max(_NUMBERS_AT_ONCE // (group * len(fit.seen)), 1)
        for start in range(0, self._num_queries, width):
            part = points[:, start : start + width, 0].T.reshape(1, -1)
            cdfs, log_start = normal_start(part[..., None])
            shape = (len(fit.seen), 1, part.shape[1])
            cdfs, log_density = follow(
                cdfs.mT.expand(shape),
                log_start.mT.expand(shape),
                fit.seen,
                rates(1, len(fit.y)),
                fit.bandwidth,
                rows=fit.orders,
                kernel=self._kernel[:, start : start + width],
                group=group,
            )
            number = torch.tensor(float(len(fit.seen)), dtype=torch.float64)
            mean = cdfs.mean(0), log_density.logsumexp(0) - number.log()
            pieces.append(torch.stack([value.reshape(-1, group).T for value in mean]))
        cdfs, log_density = torch.cat(pieces, 2)[..., None]
        return cdfs, log_density

    def _resampled(self, cdfs: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        assert self._future is not None
        number = len(cdfs)
        shape = (cdfs.shape[1], 1, -1)
        done = self._added(
            cdfs[..., 0].permute(1, 2, 0).reshape(shape),
            log_density[..., 0].permute(1, 2, 0).reshape(shape),
            self._future,
            self._future.num_observed,
        )
        back = [
            value.reshape(len(value), self._num_queries, number).permute(2, 0, 1)[..., None]
            for value in done
        ]
        return back[0], back[1]

    def _added(
        self, cdfs: Tensor, log_density: Tensor, future: Future, size: int
    ) -> tuple[Tensor, Tensor]:
        """Add to populations what they have not got yet, some draws at a time.

        :param Tensor cdfs: points of a query side by side. **Shape:** ``(num_draws, 1, num_queries
            * num_points)``.
        """
        num_steps = future.size - size
        if num_steps == 0:
            return cdfs, log_density
        rate = rates(size + 1, future.size)
        group = cdfs.shape[-1] // self._num_queries
        done = []
        at_once = max(_NUMBERS_AT_ONCE // (2 * num_steps), 1)
        for start in range(0, len(future.keys), at_once):
            part = slice(start, start + at_once)
            keys = future.keys[part].cpu()
            numbers = uniforms(keys, 2 * size, 2 * future.size).reshape(-1, num_steps, 2)
            rows = future_rows(keys, numbers[..., 1], future.num_observed)
            done.append(
                follow(
                    cdfs[part],
                    log_density[part],
                    numbers[..., :1],
                    rate,
                    self._fit.bandwidth,
                    rows=rows,
                    kernel=self._kernel,
                    group=group,
                )
            )
        cdfs, log_density = (torch.cat(several) for several in zip(*done, strict=True))
        return cdfs, log_density

    def completed(
        self, keys: Tensor, num_observed: int, size: int, maps: ScoreMap
    ) -> "ConditionalCopula":
        """The laws of populations.

        :param Tensor keys: of the draws' random streams. **Shape:** ``(num_draws, 2)``.
        :param int num_observed: the number of observations in the data.
        :param int size: that each population has reached.
        :param maps: what turns these laws into theirs, draw by draw and query by query.
        """
        new = ConditionalCopula.__new__(ConditionalCopula)
        new.__dict__.update(self.__dict__)
        new._future = Future(keys, num_observed, size, maps)
        new._own_shape = new._batch_shape = torch.Size((len(keys), self._num_queries))
        return new
