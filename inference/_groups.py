"""Groups of chains: the unit that a driver runs, here or elsewhere."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.infer.mcmc.util import initialize_model
from pyro.util import get_rng_state, set_rng_seed, set_rng_state
from torch import Tensor

from pyro_ext.inference.sgmcmc import Schedule, SGMCMCKernel

__all__ = ["ChainDraws", "Plan", "Report", "kept_steps", "run_pyro_chain", "run_sgmcmc_chains"]

_STEPS_PER_REPORT = 200


@dataclass(frozen=True)
class Plan:
    """How long chains run, and which of their steps are kept.

    :param int warmup_steps: steps before the first kept ones.
    :param int num_samples: draws to keep of each chain.
    :param int thinning: steps between two kept draws.
    """

    warmup_steps: int
    num_samples: int
    thinning: int


@dataclass
class ChainDraws:
    """What one chain gave.

    :param dict draws: unconstrained draws by site. **Shape:** ``(num_draws, *event)`` each.
    :param dict statistics: statistics of each draw. **Shape:** ``(num_draws,)`` each.
    :param int stopped_at: the step by which the chain left the finite numbers, else ``None``.
    :param Mapping diagnostics: what the kernel says of the whole chain.
    """

    draws: dict[str, Tensor]
    statistics: dict[str, Tensor]
    stopped_at: int | None
    diagnostics: Mapping[str, Any]

    @property
    def num_draws(self) -> int:
        """Number of draws kept."""
        return len(next(iter(self.draws.values())))


class Report(Protocol):
    """Hears of progress."""

    def __call__(self, num_steps: int, line: Callable[[], Mapping[str, str] | None]) -> None:
        """Take note of steps just taken, and of what would make a line of diagnostics."""


def kept_steps(plan: Plan, schedule: Schedule) -> list[int]:
    """Numbers of steps after which a draw is kept.

    A draw is kept every ``thinning`` steps after the warm-up, where its step samples.

    :raises ValueError: where no such step ever samples.
    """
    # Whether the candidates sample repeats itself after a period's worth of them.
    candidates = plan.warmup_steps + plan.thinning * np.arange(1, schedule.period + 1)
    sampling = schedule.is_sampling(candidates - 1)
    if not sampling.any():
        raise ValueError(
            f"no draw would be kept: after {plan.warmup_steps} warm-up steps, every "
            f"{plan.thinning}th step explores in a cycle of {schedule.period} steps; choose "
            "warmup_steps and thinning so that some of these steps fall into the sampling stage"
        )
    num_periods = -(-plan.num_samples // int(sampling.sum()))
    shifts = plan.thinning * schedule.period * np.arange(num_periods)
    steps = (shifts[:, None] + candidates[sampling]).ravel()
    return [int(step) for step in steps[: plan.num_samples]]


def run_sgmcmc_chains(
    kernel: SGMCMCKernel,
    numbers: range,
    seed: int,
    params: Mapping[str, Tensor] | None,
    plan: Plan,
    report: Report,
) -> tuple[list[ChainDraws], bool]:
    """Run chains of a stochastic-gradient kernel side by side.

    A chain that leaves the finite numbers keeps the draws from before; the others go on.

    :param SGMCMCKernel kernel: a kernel that has been set up.
    :param range numbers: numbers of the chains.
    :param int seed: a non-negative integer.
    :param Mapping params: unconstrained initial parameters, or ``None``.
    :param Plan plan: how long to run.
    :param Report report: hears of progress.
    :returns: what each chain gave, and whether the run was interrupted.
    """
    chains = kernel.begin(numbers, seed, params)
    stopped_at: list[int | None] = [None] * len(numbers)
    num_draws = [0] * len(numbers)
    positions: list[Tensor] = []
    statistics: list[dict[str, Tensor]] = []
    interrupted = False
    try:
        for target in kept_steps(plan, kernel.schedule):
            while chains.step < target:
                count = min(_STEPS_PER_REPORT, target - chains.step)
                chains = kernel.advance(chains, count)
                finite = torch.isfinite(chains.position).all(-1)
                finite &= torch.isfinite(chains.potential_energy)
                for column in torch.nonzero(~finite)[:, 0].tolist():
                    stopped_at[column] = stopped_at[column] or chains.step
                report(count, partial(kernel.describe, chains))
            if all(stopped is not None for stopped in stopped_at):
                break
            positions.append(chains.position.clone())
            statistics.append(kernel.statistics(chains))
            num_draws = [
                number + (stopped is None)
                for number, stopped in zip(num_draws, stopped_at, strict=True)
            ]
    except KeyboardInterrupt:
        interrupted = True
    layout = kernel.potential.layout
    stacked = chains.position.new_zeros((0, len(numbers), layout.size))
    if positions:
        stacked = torch.stack(positions)
    # An interrupt may fall between the two lists.
    statistics = statistics[: len(positions)]
    result = []
    for column, length in enumerate(num_draws):
        names = statistics[0] if statistics else {}
        result.append(
            ChainDraws(
                layout.unflatten(stacked[:length, column]),
                {
                    name: torch.stack([row[name][column] for row in statistics[:length]])
                    for name in names
                    if length
                },
                stopped_at[column],
                {},
            )
        )
    return result, interrupted


def run_pyro_chain(
    kernel: MCMCKernel,
    number: int,
    seed: int,
    params: Mapping[str, Tensor] | None,
    plan: Plan,
    report: Report,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> tuple[list[ChainDraws], bool]:
    """Run one chain of any of Pyro's kernels.

    :param MCMCKernel kernel: the kernel; it is set up here.
    :param int number: number of the chain.
    :param int seed: a non-negative integer.
    :param Mapping params: initial parameters of the chain in constrained space, or ``None``.
    :param Plan plan: how long to run.
    :param Report report: hears of progress.
    :param Sequence args: arguments of the model.
    :param Mapping kwargs: keyword arguments of the model.
    :returns: what the chain gave, and whether the run was interrupted.
    """
    rows: list[dict[str, Tensor]] = []
    step_sizes: list[float] = []
    interrupted = False
    with _seeded(seed, number):
        if params is not None:
            kernel.initial_params = _unconstrained(kernel, params, args, kwargs)
        kernel.setup(plan.warmup_steps, *args, **kwargs)
        try:
            current = kernel.initial_params
            for step in range(1, plan.warmup_steps + plan.num_samples * plan.thinning + 1):
                current = kernel.sample(current)
                if step == plan.warmup_steps:
                    kernel.end_warmup()
                report(1, kernel.logging)
                kept = step - plan.warmup_steps
                if kept > 0 and kept % plan.thinning == 0:
                    rows.append({name: value.detach().clone() for name, value in current.items()})
                    step_sizes.append(float(getattr(kernel, "step_size", float("nan"))))
        except KeyboardInterrupt:
            interrupted = True
        diagnostics = kernel.diagnostics() or {}
        kernel.cleanup()
    draws = {name: torch.stack([row[name] for row in rows]) for name in (rows[0] if rows else {})}
    statistics = {"step_size": torch.tensor(step_sizes[: len(rows)])}
    if "divergences" in diagnostics:
        diverging = torch.zeros(len(rows), dtype=torch.bool)
        for index in diagnostics["divergences"]:
            if index // plan.thinning < len(rows):
                diverging[index // plan.thinning] = True
        statistics["diverging"] = diverging
    return [ChainDraws(draws, statistics, None, diagnostics)], interrupted


@contextmanager
def _seeded(seed: int, number: int) -> Iterator[None]:
    """Seed the global generators for one chain, and put them back afterwards."""
    before = get_rng_state()
    words = np.random.SeedSequence(seed, spawn_key=(number, 1)).generate_state(1)
    try:
        set_rng_seed(int(words[0]))
        yield
    finally:
        set_rng_state(before)


def _unconstrained(
    kernel: MCMCKernel,
    params: Mapping[str, Tensor],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> dict[str, Tensor]:
    model: Callable[..., Any] | None = getattr(kernel, "model", None)
    if model is None:
        return dict(params)
    _, _, transforms, _ = initialize_model(model, tuple(args), dict(kwargs))
    return {name: transforms[name](value) for name, value in params.items()}
