"""A driver that keeps running moments instead of draws."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Self, Unpack

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_ext.inference.driver.driver import Driver, DriverOptions
from pyro_ext.inference.driver.end_of_run import warn_of_moments
from pyro_ext.inference.driver.moments import Moments, merge, moments_of, pool
from pyro_ext.inference.driver.segments import Segment
from pyro_ext.inference.driver.stores import FolderStore
from pyro_ext.posterior.starts import Start

_DIVERGING = "statistic:diverging"  # a name beside those of sites


class StreamingMCMC(Driver):
    """Runs chains of a kernel and keeps mean and variance of their draws, not the draws.

    It takes the memory of a draw however long it runs. With a ``checkpoint`` it goes on after it
    was killed, as :class:`~pyro_ext.inference.MCMC` does; its moments are then the same but for
    rounding. At its end it warns of divergences and of sites whose R-hat is above 1.01; what needs
    the draws, such as effective sample sizes, it can't see.

    :param MCMCKernel kernel: a kernel of :mod:`pyro_ext.inference`, or one of Pyro's.
    :param int num_samples: draws of each chain to take into account.
    :param int warmup_steps: steps before the first of these, by default as for
        :class:`~pyro_ext.inference.MCMC`.
    :param int num_chains: number of chains.
    :param int thinning: steps between two draws, by default as for that driver.
    :param initial_params: as for :class:`~pyro_ext.inference.MCMC`.
    :param options: what else that driver takes, up to ``quantities``.
    :raises TypeError: if ``kernel`` is not an MCMC kernel.
    :raises ValueError: for numbers out of range.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_ext.inference import SGLD
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        >>> mcmc = StreamingMCMC(SGLD(model, step_size=0.1), 1000, num_chains=2, progress=False)
        >>> mcmc.run().get_statistics()["x"]["mean"].shape
        torch.Size([3])
    """

    def __init__(
        self,
        kernel: MCMCKernel,
        num_samples: int,
        warmup_steps: int | None = None,
        num_chains: int = 1,
        thinning: int | None = None,
        initial_params: Start | None = None,
        **options: Unpack[DriverOptions],
    ) -> None:
        super().__init__(
            kernel, num_samples, warmup_steps, num_chains, thinning, initial_params, (), **options
        )
        self._moments: dict[range, dict[str, Moments]] = {}
        self._folder: FolderStore | None = None

    def run(self, *args: Any, **kwargs: Any) -> Self:
        """Run the chains, see :meth:`pyro_ext.inference.MCMC.run`."""
        super().run(*args, **kwargs)
        if not self.interrupted and any(self._moments.values()):
            moments = self._complete()
            number = int(next(iter(moments.values())).num_draws.min())
            r_hats, diverging = self._r_hats(moments), self._diverging()
            warn_of_moments(self.kernel, r_hats, diverging, number, self.potential)
        return self

    def get_statistics(self, group_by_chain: bool = False) -> dict[str, dict[str, Tensor]]:
        """Number, mean and variance of the draws of each site and quantity.

        Chains that stopped are left out.

        :param bool group_by_chain: keep chains apart.
        :returns: by name ``"count"``, ``"mean"`` and ``"variance"``, in double precision.
            **Shape:** ``(*event)`` each (of ``"count"`` ``()``), by chain with a leading dimension.
        :raises RuntimeError: before a run.
        """
        result = {}
        for name, moments in self._complete().items():
            chosen = moments if group_by_chain else pool(moments)
            parts = {"count": chosen.num_draws, "mean": chosen.mean, "variance": chosen.variance}
            result[name] = {k: v if group_by_chain else v[0] for k, v in parts.items()}
        return result

    def diagnostics(self) -> dict[str, Any]:
        """R-hat of each site and quantity, from the moments of whole chains, not split ones.

        :returns: ``"r_hat"`` by name, not a number for a single chain or what does not change; the
            number of ``"divergences"``, of kernels that have them; ``"stopped_chains"`` with step
            and reason by number of the chain.
        """
        r_hats = self._r_hats(self._complete())
        result: dict[str, Any] = {name: {"r_hat": r_hat} for name, r_hat in r_hats.items()}
        if (diverging := self._diverging()) is not None:
            result["divergences"] = int(diverging.sum())
        result["stopped_chains"] = {
            number: {"step": status.stopped_at, "reason": f"it {status.reason}"}
            for number, status in enumerate(self._statuses())
            if status.stopped_at is not None
        }
        return result

    @staticmethod
    def _r_hats(found: Mapping[str, Moments]) -> dict[str, Tensor]:
        """R-hat of whole chains."""
        r_hats = {}
        for name, moments in found.items():
            length = moments.num_draws.mean()
            within = moments.variance.mean(0)
            between = moments.mean.var(0) if len(moments.mean) > 1 else math.nan
            r_hats[name] = (((length - 1) / length * within + between) / within).sqrt()
        return r_hats

    def _diverging(self) -> Tensor | None:
        """Return a flag for each draw, as many of them true as diverged, in arbitrary order."""
        moments = self._complete(of_statistics=True).get(_DIVERGING)
        if moments is None:
            return None
        flags = torch.zeros(int(moments.num_draws.sum()), dtype=torch.bool)
        flags[: round(float((moments.num_draws * moments.mean).sum()))] = True
        return flags

    def _complete(self, *, of_statistics: bool = False) -> dict[str, Moments]:
        """Moments of the chains that go on and have draws, of sites or statistics."""
        statuses = self._statuses()
        rows: dict[str, list[Moments]] = {}
        for members in self._groups:
            columns = [
                column
                for column, number in enumerate(members)
                if statuses[number].stopped_at is None and statuses[number].num_draws
            ]
            for name, moments in self._moments.get(members, {}).items() if columns else ():
                if (name == _DIVERGING) != of_statistics:
                    continue
                rows.setdefault(name, []).append(Moments(*(part[columns] for part in moments)))
        if not rows and not of_statistics:
            raise RuntimeError(self._no_draws())
        return {
            name: Moments(*(torch.cat(parts) for parts in zip(*found, strict=True)))
            for name, found in rows.items()
        }

    # Where draws go ------------------------------------------------------------------------------

    def _open(self, folder: FolderStore | None) -> None:
        self._moments = {}
        self._folder = folder
        for members, more in ({} if folder is None else folder.more).items():
            parts: dict[str, dict[str, Tensor]] = {}
            for key, value in more.items():
                field, _, name = key.partition(":")
                parts.setdefault(name, {})[field] = value
            self._moments[members] = {name: Moments(**fields) for name, fields in parts.items()}

    def _keep(self, segment: Segment) -> None:
        known = self._moments.setdefault(segment.state.members, {})
        if (chunk := segment.chunk) is not None:
            values = dict(chunk.samples)
            if "diverging" in chunk.statistics:
                values[_DIVERGING] = chunk.statistics["diverging"]
            for name, value in values.items():
                new = moments_of(value, chunk.valid)
                known[name] = merge(known[name], new) if name in known else new
        if self._folder is not None:
            more = {
                f"{field}:{name}": value
                for name, moments in known.items()
                for field, value in moments._asdict().items()
            }
            self._folder.append(segment._replace(chunk=None), more)

    def _rounds(self) -> Iterator[int]:
        yield self.num_samples
