"""The MCMC driver: many chains, thinning, progress bars, checkpoints, and draws for ArviZ."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Self, Unpack

from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.infer.mcmc.util import select_samples
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.checkpoint.chains import Chunk, complete_chains, gather_chain, gather_chains
from pyro_ext.inference.driver.driver import ChainMethod, Driver, DriverOptions
from pyro_ext.inference.driver.early_stopping import EarlyStopping
from pyro_ext.inference.driver.end_of_run import warn_at_end
from pyro_ext.inference.driver.numbers import check_state_is_known
from pyro_ext.inference.driver.segments import Segment
from pyro_ext.inference.driver.stores import FolderStore, MemoryStore
from pyro_ext.posterior.convergence import (
    clusters_name,
    num_clusters,
    print_summary,
    site_diagnostics,
)
from pyro_ext.posterior.starts import Start

__all__ = ["MCMC", "ChainMethod"]


class MCMC(Driver):
    """Runs chains of a kernel and keeps their draws.

    :param MCMCKernel kernel: a kernel of :mod:`pyro_ext.inference`, or one of Pyro's own, such as
        :class:`~pyro.infer.HMC`, whose chains run one after the other.
    :param int num_samples: number of draws to keep from each chain.
    :param int warmup_steps: number of steps before the first kept draw. By default, kernels that
        adapt take as many as ``num_samples``, and :class:`~pyro_ext.inference.NUTS` with default
        options at most 400, :class:`~pyro_ext.inference.MEADS` and
        :class:`~pyro_ext.inference.MCLMC` at least 1,000; other kernels take none.
    :param int num_chains: number of chains.
    :param int thinning: keep every ``thinning``-th draw; by default every tenth of ``MEADS`` and
        ``MCLMC``, whose steps take one gradient each, and every one of other kernels. With a
        cyclical schedule, only draws from sampling stages are kept.
    :param initial_params: where the chains start; by default the kernel chooses. Values in
        constrained space, **Shape:** ``(num_chains, *event)`` each, where a single chain may omit
        the chain dimension; a guide, from which each chain's start is drawn; ``"laplace"``, for
        draws from a Laplace approximation with its standard deviations doubled; ``"pathfinder"``,
        for draws of :func:`~pyro_ext.posterior.pathfinder`; or an earlier run, or the folder of its
        checkpoint, from whose last draws the chains continue.
    :param chain_method: ``"vectorized"`` takes each step for all chains at once, ``"sequential"``
        runs one chain after the other, and an :class:`~concurrent.futures.Executor` (a process
        pool, or the executor of a Dask cluster or of MPI) runs groups of chains in its workers.
    :param checkpoint: a folder to which draws and states are written during the run, so that few
        of them stay in memory. If the run is killed, start the same program again: the run resumes
        and gives the same draws. A larger ``num_samples`` extends the run.
        :class:`~pyro_ext.checkpoint.Checkpoint` and :func:`~pyro_ext.diagnostics.to_arviz` open it.
    :param int seed: determines the draws of a chain together with the chain's number, no matter how
        many chains there are and where they run. ``None`` takes the seed of the checkpoint, or else
        draws one from PyTorch's generator, which :func:`pyro.set_rng_seed` sets.
    :param bool progress: whether to show a progress bar.
    :param int group_size: number of chains that take each step together; by default all of them if
        they are vectorized, and one otherwise.
    :param Sequence save_params: names of the sites to keep; by default all.
    :param bool disable_validation: whether Pyro's kernels run without validating arguments and
        values, as under Pyro's driver; with validation, a step that diverges raises an error.
        Observed values are checked before the first step in any case. ``None`` leaves Pyro's
        setting as it is. Kernels of :mod:`pyro_ext.inference` check once, before the first step.
    :param bool disable_progbar: Pyro's name for ``progress=False``.
    :param hook_fn: for Pyro's kernels, called after each step with the kernel, the unconstrained
        parameters, ``"Warmup"`` or ``"Sample"``, and the number of the step.
    :param dict transforms: for Pyro's kernels, maps from the support of each site to unconstrained
        space, by site. Their inverses map draws back, instead of the kernel's own.
    :param dict quantities: functions whose values are recorded with each draw, by name. Each maps a
        dict of site values, including deterministic sites, to a tensor.
    :param Sequence extra_fields: fields of the sampler's state to record with each draw, such as
        ``"momentum"`` of :class:`~pyro_ext.inference.SGHMC`; :meth:`get_extra_fields` returns them.
    :param EarlyStopping early_stopping: when to stop before all samples are drawn. It supports the
        same kernels as a checkpoint, because chains pause at each check.
    :raises TypeError: if ``kernel`` is not an MCMC kernel, or for an unknown argument.
    :raises ValueError: for numbers out of range.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_ext.inference import SGHMC
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x), subsample_size=20) as index:
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])
        >>> kernel = SGHMC(model, step_size=0.02, friction=5.0)
        >>> mcmc = MCMC(kernel, num_samples=50, warmup_steps=50, num_chains=4, progress=False)
        >>> mcmc.run(torch.randn(200)).get_samples(group_by_chain=True)["loc"].shape
        torch.Size([4, 50])
    """

    def __init__(
        self,
        kernel: MCMCKernel,
        num_samples: int,
        warmup_steps: int | None = None,
        num_chains: int = 1,
        thinning: int | None = None,
        initial_params: Start | None = None,
        *,
        extra_fields: Sequence[str] = (),
        early_stopping: EarlyStopping | None = None,
        **options: Unpack[DriverOptions],
    ) -> None:
        super().__init__(
            kernel,
            num_samples,
            warmup_steps,
            num_chains,
            thinning,
            initial_params,
            extra_fields,
            **options,
        )
        if early_stopping is not None and not isinstance(early_stopping, EarlyStopping):
            raise TypeError(
                f"early_stopping must be an EarlyStopping or None, got {early_stopping!r:.80}"
            )
        if early_stopping is not None:
            check_state_is_known("early_stopping", kernel)
        self.early_stopping = early_stopping
        self._limit = self.num_samples
        self._store: MemoryStore | FolderStore = MemoryStore()
        self._watched = MemoryStore()
        self._chosen: tuple[list[int], int] = ([], 0)
        self._gathered: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None

    def run(self, *args: Any, **kwargs: Any) -> Self:
        """Run the chains from their start, or from where a checkpoint left them.

        Ctrl-C ends the run and keeps the draws made so far. A chain that diverges or raises an
        error stops with a warning and is left out of the samples; ``stopped_chains`` holds its
        earlier draws and the reason. If no chain gets through its first step, the error is raised.

        At the end, the run gives a :class:`~pyro_ext.posterior.ConvergenceWarning` for each of
        these: divergences; trajectories that were cut off; and, with at least 40 draws, sites with
        a rank-normalized split R-hat above 1.01, sites with a bulk or tail effective sample size
        below 100 per chain or 400 in all, and a BFMI below 0.3. Runs of 16 chains or more are
        judged from 10 draws on, and differences between their chains count in R-hat only if they
        last from the first half to the second. If chains diverge or are slow, it names the sites
        to reparameterize. It also warns if the draws of a stochastic-gradient kernel are too
        wide or too narrow, as measured by
        :func:`~pyro_ext.diagnostics.temperature.configurational_temperature`.

        :param args: arguments of the model.
        :param kwargs: keyword arguments of the model.
        :returns: the driver itself.
        :raises ValueError: if the model, the data or the initial parameters don't fit.
        :raises CheckpointError: if the checkpoint belongs to another run, or is damaged.
        :raises ExecutorError: if an executor fails; draws made before are kept.
        :raises RuntimeError: if all chains have stopped.
        """
        super().run(*args, **kwargs)
        if not self.interrupted:
            num_steps = max(state.step for state in self._states.values())
            readers = self._readers(self._store)
            warn_at_end(self.kernel, readers, *self._choose(), num_steps, self.potential)
        return self

    @property
    def num_draws(self) -> int:
        """Number of draws of each chain that the samples hold."""
        return self._choose()[1]

    @property
    def chain_numbers(self) -> tuple[int, ...]:
        """Numbers of the chains that the samples hold, in order."""
        return tuple(self._choose()[0])

    @property
    def partitions(self) -> tuple[str, ...]:
        """Names of the sites that are label vectors of partitions, for ``to_arviz``."""
        return tuple(getattr(self.kernel, "partitions", ()))

    @property
    def _args(self) -> Any:
        raise AttributeError(
            "arviz.from_pyro takes Pyro's own MCMC, and would see one minibatch in place of the "
            "data; convert this run with pyro_ext.diagnostics.to_arviz(mcmc)"
        )

    @property
    def stopped_chains(self) -> dict[int, dict[str, Any]]:
        """Chains left out of the samples: ``step``, ``reason`` and ``samples``, by chain number."""
        result = {}
        chosen, _ = self._choose()
        for members in self._groups:
            state = self._states.get(members)
            for column, status in enumerate(state.chains if state is not None else ()):
                number = members[column]
                if number in chosen:
                    continue
                if status.stopped_at is not None:
                    reason = f"it {status.reason}, after {status.num_draws} kept draws"
                else:
                    reason = f"the run was interrupted after {status.num_draws} of its draws"
                result[number] = {
                    "step": status.stopped_at,
                    "reason": reason,
                    "samples": gather_chain(partial(self._store.chunks, members), column),
                }
        return result

    def get_samples(
        self, group_by_chain: bool = False, num_samples: int | None = None
    ) -> dict[str, Tensor]:
        """Draws of the latent and deterministic sites, in constrained space, and of quantities.

        Deterministic sites inside a subsampled plate are left out, since a draw sees only part of
        them. Pyro's own kernels record latent sites only; ``Predictive`` and
        :func:`~pyro_ext.diagnostics.to_arviz` compute the deterministic ones.

        :param bool group_by_chain: keep chains apart.
        :param int num_samples: resample this many draws with replacement, from each chain or from
            all of them together, as Pyro's driver does.
        :returns: **Shape:** ``(num_chains, num_draws, *event)`` each, or with the chains
            concatenated, ``(num_chains * num_draws, *event)``.
        :raises RuntimeError: before a run, or if all chains have stopped.
        """
        if not isinstance(group_by_chain, bool):
            raise TypeError(
                f"group_by_chain must be True or False, got {group_by_chain!r:.80}; pass a number "
                "of draws as num_samples=..."
            )
        if num_samples is not None:
            num_samples = checks.integer("num_samples", num_samples, 1)
        selected: dict[str, Tensor] = select_samples(self._gather()[0], num_samples, group_by_chain)
        return dict(selected)

    def sample_statistics(self) -> dict[str, Tensor]:
        """Statistics of the step that led to each draw.

        For stochastic-gradient kernels these are ``lp``, which is the negative potential on the
        step's minibatch, ``step_size``, ``temperature`` and what the sampler adds; for Pyro's
        kernels, ``step_size`` and ``diverging``.

        :returns: **Shape:** ``(num_chains, num_draws)`` each.
        """
        _, statistics = self._gather()
        return {k: v for k, v in statistics.items() if k not in self.extra_fields}

    def get_extra_fields(self, group_by_chain: bool = False) -> dict[str, Tensor]:
        """Values of the ``extra_fields`` of the sampler's state at each draw.

        :param bool group_by_chain: keep chains apart.
        :returns: in the order of the flat vector of unconstrained parameters.
            **Shape:** ``(num_chains, num_draws, size)``, or ``(num_chains * num_draws, size)``.
        """
        _, statistics = self._gather()
        fields = {name: statistics[name] for name in self.extra_fields}
        if group_by_chain:
            return fields
        return {name: value.flatten(0, 1) for name, value in fields.items()}

    def summary(self, prob: float = 0.9) -> None:
        """Print mean, standard deviation, median, interval, effective sample size and R-hat.

        Sites of integers are left out; for cluster labels, the number of clusters is summarized
        instead. The number of divergences, if the kernel records them, and the chains that stopped
        are printed below the table.

        :param float prob: probability mass of the interval.
        """
        checks.number("prob", prob, above=0, below=1)
        print_summary(self._numbers(), prob=prob)
        if (divergences := self._divergences()) is not None:
            print(f"Number of divergences: {sum(map(len, divergences.values()))}")
        for number, stopped in self.stopped_chains.items():
            print(f"chain {number} is left out: {stopped['reason']}")

    def diagnostics(self) -> dict[str, Any]:
        r"""Effective sample size and split R-hat of each site, and what happened to the chains.

        An effective sample size is capped at :math:`S \log_{10} S`, for :math:`S` draws. Draws that
        alternate around their mean reach this cap: the usual formula would give them a huge or
        negative size.

        :returns: ``n_eff`` and ``r_hat`` for each site of real numbers and each number of clusters;
            ``"divergences"``, the numbers of the draws that follow a divergence, by chain;
            ``"stopped_chains"``, step and reason by chain number; and whatever else the kernel
            reports, by chain.
        """
        numbers = self._numbers() if self.num_draws or not self.stopped_chains else {}
        result: dict[str, Any] = dict(site_diagnostics(numbers))
        for number, status in enumerate(self._statuses()):
            for name, value in status.diagnostics.items():
                result.setdefault(name, {})[f"chain {number}"] = value
        if (divergences := self._divergences()) is not None:
            result.setdefault("divergences", divergences)
        result["stopped_chains"] = {
            number: {"step": stopped["step"], "reason": stopped["reason"]}
            for number, stopped in self.stopped_chains.items()
        }
        return result

    def _numbers(self) -> dict[str, Tensor]:
        """Draws of the sites that hold real numbers, and numbers of clusters."""
        samples = self.get_samples(group_by_chain=True)
        clusters = {
            clusters_name(name): num_clusters(samples[name])
            for name in self.partitions
            if name in samples
        }
        real = {name: value for name, value in samples.items() if value.is_floating_point()}
        return real | clusters

    def _divergences(self) -> dict[str, list[int]] | None:
        """Numbers of the draws that come after a divergence, where the kernel notes them."""
        diverging = self.sample_statistics().get("diverging") if self.num_draws else None
        if diverging is None:
            return None
        return {
            f"chain {number}": row.nonzero().flatten().tolist()
            for number, row in zip(self.chain_numbers, diverging, strict=True)
        }

    # Where draws go ------------------------------------------------------------------------------

    def _open(self, folder: FolderStore | None) -> None:
        self._store = MemoryStore() if folder is None else folder
        self._watched = MemoryStore()
        self._gathered = None
        self._limit = self.num_samples
        if folder is not None and self.early_stopping is not None:
            for members in self._states:
                for chunk in folder.chunks(members):
                    self._watch(members, chunk)

    def _keep(self, segment: Segment) -> None:
        self._store.append(segment)
        self._gathered = None
        if self.early_stopping is not None and segment.chunk is not None:
            self._watch(segment.state.members, segment.chunk)

    def _watch(self, members: range, chunk: Chunk) -> None:
        assert self.early_stopping is not None
        chosen = Chunk(self.early_stopping.pick(chunk.samples), {}, chunk.valid)
        self._watched.add(members, chosen)

    def _rounds(self) -> Iterator[int]:
        stopping = self.early_stopping
        if stopping is not None:
            for until in range(stopping.interval, self.num_samples, stopping.interval):
                yield until
                numbers, length = complete_chains(self._statuses(), until)
                groups = self._readers(self._watched)
                if length and stopping.is_satisfied(gather_chains(groups, numbers, length)[0]):
                    self._limit = until
                    return
        yield self.num_samples

    def _readers(self, store: MemoryStore | FolderStore) -> list[Any]:
        return [(members, partial(store.chunks, members)) for members in self._groups]

    def _choose(self) -> tuple[list[int], int]:
        if not self._groups:
            return [], 0
        return complete_chains(self._statuses(), self._limit)

    def _gather(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if self._gathered is None:
            numbers, length = self._choose()
            if not length:
                raise RuntimeError(self._no_draws())
            self._gathered = gather_chains(self._readers(self._store), numbers, length)
        return self._gathered
