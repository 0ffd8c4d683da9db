"""The MCMC driver: many chains, thinning, progress, and a posterior that ArviZ understands."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Self, get_args

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.infer.mcmc.util import diagnostics, print_summary
from torch import Tensor
from tqdm.auto import tqdm

from pyro_ext.inference._groups import (
    ChainDraws,
    Plan,
    Report,
    kept_steps,
    run_pyro_chain,
    run_sgmcmc_chains,
)
from pyro_ext.inference.sgmcmc import SGMCMCKernel
from pyro_ext.potential import FunctionPotential, Potential
from pyro_ext.random import fresh_seed

__all__ = ["MCMC", "ChainMethod"]

ChainMethod = Literal["vectorized", "sequential"]

_SECONDS_PER_LINE = 0.1


class MCMC:
    """Runs chains of a kernel and keeps their draws.

    :param MCMCKernel kernel: a kernel of :mod:`pyro_ext.inference`, or one of Pyro's such as
        :class:`~pyro.infer.NUTS`, whose chains run one after the other.
    :param int num_samples: draws to keep of each chain.
    :param int warmup_steps: steps before the first kept ones.
    :param int num_chains: number of chains.
    :param int thinning: steps between two kept draws. With a cyclical schedule only draws of a
        sampling stage are kept.
    :param dict initial_params: where the chains start, in constrained space; by default the kernel
        chooses. **Shape:** ``(num_chains, *event)`` each.
    :param str chain_method: ``"vectorized"`` takes each step for all chains at once,
        ``"sequential"`` runs one chain after the other.
    :param int seed: a chain's draws follow from the seed and its number, however many chains there
        are; ``None`` takes a seed from PyTorch's generator, which :func:`pyro.set_rng_seed` sets.
    :param bool progress: whether to show a progress bar.
    :raises TypeError: for a kernel that is none.
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
        warmup_steps: int = 0,
        num_chains: int = 1,
        thinning: int = 1,
        initial_params: Mapping[str, Tensor] | None = None,
        chain_method: ChainMethod = "vectorized",
        seed: int | None = None,
        progress: bool = True,
    ) -> None:
        if not isinstance(kernel, MCMCKernel):
            raise TypeError(f"kernel must be an MCMCKernel, got {kernel!r:.80}")
        for argument, value, least in (
            ("num_samples", num_samples, 1),
            ("warmup_steps", warmup_steps, 0),
            ("num_chains", num_chains, 1),
            ("thinning", thinning, 1),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{argument} must be an integer >= {least}, got {value!r}")
        if chain_method not in get_args(ChainMethod):
            raise ValueError(
                f"chain_method must be one of {get_args(ChainMethod)}, got {chain_method!r}"
            )
        if seed is not None:
            fresh_seed(seed)
        for name, start in (initial_params or {}).items():
            if not isinstance(start, Tensor) or start.shape[:1] != (num_chains,):
                got = tuple(start.shape) if isinstance(start, Tensor) else type(start).__name__
                raise ValueError(
                    f"initial_params[{name!r}] must be a tensor of shape (num_chains = "
                    f"{num_chains}, *event), got {got}"
                )
        self.kernel = kernel
        self.num_samples = num_samples
        self.warmup_steps = warmup_steps
        self.num_chains = num_chains
        self.thinning = thinning
        self.initial_params = initial_params
        self.chain_method = chain_method
        self.seed = seed
        self.progress = progress
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.stopped_chains: dict[int, dict[str, Any]] = {}
        self.interrupted = False
        self._potential: Potential | FunctionPotential | None = None
        self._chains: list[ChainDraws] = []
        self._samples: dict[str, Tensor] | None = None

    @property
    def model(self) -> Callable[..., Any] | None:
        """The Pyro model, ``None`` for a kernel with a ``potential_fn``."""
        return getattr(self.kernel, "model", None)

    @property
    def potential(self) -> Potential | None:
        """The potential of the model at the data of the last run, where the kernel has one."""
        return self._potential if isinstance(self._potential, Potential) else None

    def run(self, *args: Any, **kwargs: Any) -> Self:
        """Run the chains from their start.

        On Ctrl-C the run ends and keeps what has been drawn. A chain that leaves the finite numbers
        stops, with a warning, and is left out of the samples: ``stopped_chains`` holds its draws
        from before.

        :param args: arguments of the model.
        :param kwargs: keyword arguments of the model.
        :returns: the driver itself.
        :raises ValueError: where model, data or initial parameters don't fit.
        :raises RuntimeError: where all chains have left the finite numbers.
        """
        self.args, self.kwargs = args, kwargs
        self._samples = None
        self._chains, self.stopped_chains, self.interrupted = [], {}, False
        plan = Plan(self.warmup_steps, self.num_samples, self.thinning)
        seed = fresh_seed(self.seed)
        if isinstance(self.kernel, SGMCMCKernel):
            self._run_sgmcmc(self.kernel, seed, plan)
        else:
            self._run_pyro(seed, plan)
        self._set_aside_short_chains()
        return self

    def get_samples(self, group_by_chain: bool = False) -> dict[str, Tensor]:
        """Draws of the latent and deterministic sites, in constrained space.

        Deterministic sites in a plate that subsamples are left out: a draw sees a part of them.

        :param bool group_by_chain: keep chains apart.
        :returns: **Shape:** ``(num_chains, num_draws, *event)`` each, or with the chains
            concatenated, ``(num_chains * num_draws, *event)``.
        :raises RuntimeError: before a run.
        """
        if self._samples is None:
            self._samples = self._constrained(self._complete_chains())
        if group_by_chain:
            return dict(self._samples)
        return {name: value.flatten(0, 1) for name, value in self._samples.items()}

    def sample_statistics(self) -> dict[str, Tensor]:
        """Statistics of the step before each draw.

        For stochastic-gradient kernels these are ``lp``, the negative potential of the step's
        minibatch, ``step_size``, ``temperature`` and what the sampler adds; for Pyro's kernels
        ``step_size`` and ``diverging``.

        :returns: **Shape:** ``(num_chains, num_draws)`` each.
        """
        chains = self._complete_chains()
        return {
            name: torch.stack([chain.statistics[name] for chain in chains])
            for name in chains[0].statistics
        }

    def summary(self, prob: float = 0.9) -> None:
        """Print mean, standard deviation, median, interval, effective sample size and R-hat.

        :param float prob: probability mass of the interval.
        """
        print_summary(self.get_samples(group_by_chain=True), prob=prob)
        for number, stopped in self.stopped_chains.items():
            print(f"chain {number} is left out: {stopped['reason']}")

    def diagnostics(self) -> dict[str, Any]:
        """Effective sample size and split R-hat of each site, and what befell the chains.

        :returns: ``n_eff`` and ``r_hat`` by site; ``"stopped_chains"`` with step and reason by
            number of the chain; what the kernel reports, by chain.
        """
        result: dict[str, Any] = dict(diagnostics(self.get_samples(group_by_chain=True)))
        for number, chain in enumerate(self._chains):
            for name, value in chain.diagnostics.items():
                result.setdefault(name, {})[f"chain {number}"] = value
        result["stopped_chains"] = {
            number: {"step": stopped["step"], "reason": stopped["reason"]}
            for number, stopped in self.stopped_chains.items()
        }
        return result

    # How a run goes ----------------------------------------------------------------------------

    def _run_sgmcmc(self, kernel: SGMCMCKernel, seed: int, plan: Plan) -> None:
        num_steps = kept_steps(plan, kernel.schedule)[-1]
        params = self.initial_params
        if params is not None and kernel.model is None:
            kernel.initial_params = {name: value[0] for name, value in params.items()}
        kernel.setup(plan.warmup_steps, *self.args, **self.kwargs)
        self._potential = kernel.potential
        if params is not None:
            params = self._unconstrained_start(kernel.potential, params)

        def run_group(numbers: range, report: Report) -> tuple[list[ChainDraws], bool]:
            start = None
            if params is not None:
                start = {k: v[numbers.start : numbers.stop] for k, v in params.items()}
            return run_sgmcmc_chains(kernel, numbers, seed, start, plan, report)

        size = self.num_chains if self.chain_method == "vectorized" else 1
        self._run_groups(run_group, size, num_steps)

    def _run_pyro(self, seed: int, plan: Plan) -> None:
        self._potential = None
        params = self.initial_params

        def run_group(numbers: range, report: Report) -> tuple[list[ChainDraws], bool]:
            number = numbers.start
            start = None if params is None else {k: v[number] for k, v in params.items()}
            return run_pyro_chain(
                self.kernel, number, seed, start, plan, report, self.args, self.kwargs
            )

        self._run_groups(run_group, 1, plan.warmup_steps + plan.num_samples * plan.thinning)

    def _run_groups(
        self,
        run_group: Callable[[range, Report], tuple[list[ChainDraws], bool]],
        size: int,
        num_steps: int,
    ) -> None:
        """Run groups of chains one after the other, until all are done or Ctrl-C is pressed."""
        starts = range(0, self.num_chains, size)
        with self._progress(num_steps * len(starts)) as report:
            for start in starts:
                chains, self.interrupted = run_group(range(start, start + size), report)
                self._chains += chains
                if self.interrupted:
                    break

    def _unconstrained_start(
        self, potential: Potential | FunctionPotential, initial: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        if isinstance(potential, FunctionPotential):
            return dict(initial)
        sites = potential.sites
        if set(initial) != set(sites):
            raise ValueError(
                f"initial_params has the sites {sorted(initial)}, but the model has {sorted(sites)}"
            )
        for name, site in sites.items():
            if initial[name].shape[1:] != site.shape:
                raise ValueError(
                    f"initial_params[{name!r}] has shape {tuple(initial[name].shape)}, wanted "
                    f"(num_chains, *{tuple(site.shape)})"
                )
        params = potential.unconstrain(initial)
        for name, value in params.items():
            if not torch.isfinite(value).all():
                raise ValueError(
                    f"initial_params[{name!r}] lies outside the support {sites[name].support}"
                )
        return params

    @contextmanager
    def _progress(self, total: int) -> Iterator[Report]:
        # A bar that is never drawn is cheaper not made: its updates cost more than small steps.
        if not self.progress:
            yield lambda num_steps, line: None
            return
        with tqdm(total=total, desc=type(self.kernel).__name__, unit="step") as bar:
            shown = -math.inf

            def report(num_steps: int, line: Callable[[], Mapping[str, str] | None]) -> None:
                nonlocal shown
                now = time.monotonic()
                if now - shown > _SECONDS_PER_LINE or bar.n + num_steps >= total:
                    bar.set_postfix(line() or {}, refresh=False)
                    shown = now
                bar.update(num_steps)

            yield report

    # What a run leaves -------------------------------------------------------------------------

    def _set_aside_short_chains(self) -> None:
        longest = max(chain.num_draws for chain in self._chains) if self._chains else 0
        for number, chain in enumerate(self._chains):
            if chain.stopped_at is not None:
                reason = (
                    f"it left the finite numbers by step {chain.stopped_at}, after "
                    f"{chain.num_draws} kept draws"
                )
            elif chain.num_draws < longest:
                reason = f"the run was interrupted after {chain.num_draws} of its draws"
            else:
                continue
            samples = self._constrained([chain]) if chain.num_draws else {}
            self.stopped_chains[number] = {
                "step": chain.stopped_at,
                "reason": reason,
                "samples": {name: value[0] for name, value in samples.items()},
            }
        unstable = [n for n, chain in enumerate(self._chains) if chain.stopped_at is not None]
        if unstable and len(unstable) == len(self._chains):
            raise RuntimeError(
                f"all {len(unstable)} chains left the finite numbers, chain {unstable[0]} by "
                f"step {self._chains[unstable[0]].stopped_at}: take a smaller step_size, or "
                "another start (init_strategy or initial_params); stopped_chains holds the draws "
                "from before"
            )
        if unstable:
            warnings.warn(
                f"chains {unstable} of {len(self._chains)} left the finite numbers and are left "
                "out of the samples; a smaller step_size may help",
                RuntimeWarning,
                stacklevel=3,
            )

    def _complete_chains(self) -> list[ChainDraws]:
        chains = [
            chain
            for number, chain in enumerate(self._chains)
            if number not in self.stopped_chains and chain.num_draws
        ]
        if not chains:
            raise RuntimeError("there are no draws yet: call run(...) first, and let it draw")
        return chains

    def _constrained(self, chains: list[ChainDraws]) -> dict[str, Tensor]:
        draws = {
            name: torch.stack([chain.draws[name] for chain in chains]) for name in chains[0].draws
        }
        if isinstance(self._potential, FunctionPotential):
            return draws
        if isinstance(self._potential, Potential):
            samples = self._potential.constrain(draws)
            whole = self._potential.deterministic(samples)
            sites = self._potential.deterministic_sites
            return samples | {k: v for k, v in whole.items() if not sites[k].is_subsampled}
        transforms = getattr(self.kernel, "transforms", None) or {}
        return {
            name: transforms[name].inv(value) if name in transforms else value
            for name, value in draws.items()
        }
