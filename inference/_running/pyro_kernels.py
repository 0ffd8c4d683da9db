"""Legs of Pyro's kernels and of kernels written like them, one chain at a time."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.infer import HMC
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.infer.mcmc.util import initialize_model
from pyro.util import get_rng_state, set_rng_seed, set_rng_state
from torch import Tensor

from pyro_ext.checkpoint.chains import ChainStatus, Chunk
from pyro_ext.inference._running.legs import (
    ROWS_PER_CALL,
    GroupState,
    Leg,
    Quantities,
    Report,
    with_quantities,
)
from pyro_ext.inference._running.numbers import (
    generator_state,
    read_numbers,
    restore_generators,
    write_numbers,
)
from pyro_ext.inference._running.plan import Plan
from pyro_ext.potential._arguments import named_arguments

__all__ = ["PyroRunner", "has_known_state"]


def has_known_state(kernel: MCMCKernel) -> bool:
    """Whether a chain can be stopped between two steps and go on elsewhere."""
    return isinstance(kernel, HMC) or bool(getattr(kernel, "keeps_no_state", False))


def _statistics(kernel: MCMCKernel) -> dict[str, float]:
    """Numbers of the last step that are recorded with a draw."""
    own = getattr(kernel, "statistics", None)
    if own is not None:
        return dict(own())
    return {"step_size": float(getattr(kernel, "step_size", float("nan")))}


class PyroState(NamedTuple):
    """Numbers of a kernel between two legs, and those of the generators."""

    params: dict[str, Tensor]
    kernel: tuple[dict[str, Tensor], dict[str, Any]]
    generators: tuple[dict[str, Tensor], dict[str, Any]]


class PyroRunner:
    """Runs chains of any of Pyro's kernels, one by one.

    A kernel whose numbers are known, :class:`~pyro.infer.HMC` and :class:`~pyro.infer.NUTS`, runs
    in legs, and so does one that has none beside its parameters, with an attribute
    ``keeps_no_state``. Any other runs a chain in one, since its state is its own. What a kernel
    returns from a method ``statistics`` is recorded with each draw.

    :param MCMCKernel kernel: the kernel.
    :param Plan plan: which steps are kept.
    :param int seed: a non-negative integer.
    :param start: constrained initial parameters of all chains, or ``None``.
    :param Mapping quantities: further functions of a draw to record.
    :param tuple args: arguments of the model.
    :param Mapping kwargs: keyword arguments of the model.
    """

    def __init__(
        self,
        kernel: MCMCKernel,
        plan: Plan,
        seed: int,
        start: Mapping[str, Tensor] | None,
        quantities: Quantities,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        self.kernel = kernel
        self.plan = plan
        self.seed = seed
        self.start = start
        self.quantities = quantities
        self.args = args
        self.kwargs = kwargs
        self._live: PyroState | None = None

    @property
    def has_legs(self) -> bool:
        """Whether the state of the kernel is known."""
        return has_known_state(self.kernel)

    def setup(self) -> None:
        """Nothing is prepared: a kernel is set up for each chain."""

    def begin(self, members: range) -> GroupState:
        """State of a chain before its first step."""
        return GroupState(members, 0, 0, (ChainStatus(),), None)

    def num_steps(self, num_draws: int) -> int:
        """Return the number of steps that so many draws take."""
        return self.plan.warmup_steps + num_draws * self.plan.thinning

    def leg(self, state: GroupState, until: int, seconds: float, report: Report) -> Leg:
        """Run on until there are so many draws, or the time is over."""
        deadline = time.monotonic() + seconds
        rows: list[dict[str, Tensor]] = []
        statistics: list[dict[str, float]] = []
        step, sampler = state.step, state.sampler
        interrupted = False
        with _own_generators():
            try:
                params = self._resume(state)
                while state.num_draws + len(rows) < until:
                    params = self.kernel.sample(params)
                    if step + 1 == self.plan.warmup_steps:
                        self.kernel.end_warmup()
                    # From here to the end of the step a Ctrl-C must find step and draws together.
                    step_statistics = _statistics(self.kernel)
                    kept = step + 1 - self.plan.warmup_steps
                    row = {name: value.detach().clone() for name, value in params.items()}
                    sampler = self._snapshot(row) if self.has_legs else None
                    step += 1
                    if kept > 0 and kept % self.plan.thinning == 0:
                        statistics.append(step_statistics)
                        rows.append(row)
                    report(1, self.kernel.logging)
                    if self.has_legs and time.monotonic() > deadline:
                        break
            except KeyboardInterrupt:
                interrupted = True
        return self._leg(state, step, sampler, rows, statistics, interrupted, until)

    def _leg(
        self,
        state: GroupState,
        step: int,
        sampler: PyroState | None,
        rows: Sequence[dict[str, Tensor]],
        recorded: Sequence[dict[str, float]],
        interrupted: bool,
        until: int,
    ) -> Leg:
        (before,) = state.chains
        diagnostics: Mapping[str, Any] = before.diagnostics
        if step > self.plan.warmup_steps:
            diagnostics = self.kernel.diagnostics() or {}
        chunk = None
        if rows:
            statistics = {
                name: torch.tensor([entry[name] for entry in recorded])[:, None]
                for name in recorded[0]
            }
            if "divergences" in diagnostics:
                diverging = torch.zeros(len(rows), dtype=torch.bool)
                for index in diagnostics["divergences"]:
                    row = index // self.plan.thinning - state.num_draws
                    if 0 <= row < len(rows):
                        diverging[row] = True
                statistics["diverging"] = diverging[:, None]
            chunk = Chunk(self._samples(rows), statistics, [len(rows)])
        num_draws = state.num_draws + len(rows)
        line = dict(self.kernel.logging() or {}) if step else {}
        if num_draws >= until or interrupted or not self.has_legs:
            self.kernel.cleanup()
            sampler_is_live = None
        else:
            sampler_is_live = sampler
        self._live = sampler_is_live
        status = ChainStatus(num_draws, None, dict(diagnostics))
        after = GroupState(state.members, step, num_draws, (status,), sampler)
        return Leg(after, chunk, interrupted, line)

    def _resume(self, state: GroupState) -> dict[str, Tensor]:
        """Make the kernel what it was after the last leg; returns the parameters to go on from."""
        sampler: PyroState | None = state.sampler
        if sampler is None:
            (number,) = state.members
            words = np.random.SeedSequence(self.seed, spawn_key=(number, 1)).generate_state(1)
            set_rng_seed(int(words[0]))
            if self.start is not None:
                start = {name: value[number] for name, value in self.start.items()}
                self.kernel.initial_params = self._unconstrained(start)
            with named_arguments(getattr(self.kernel, "model", None), self.args, self.kwargs):
                self.kernel.setup(self.plan.warmup_steps, *self.args, **self.kwargs)
            params: dict[str, Tensor] = self.kernel.initial_params
            return params
        if self._live is not sampler:
            self.kernel.initial_params = {k: v.clone() for k, v in sampler.params.items()}
            self.kernel.setup(self.plan.warmup_steps, *self.args, **self.kwargs)
            if isinstance(self.kernel, HMC):
                write_numbers(self.kernel, *sampler.kernel)
        restore_generators(*sampler.generators)
        return {name: value.clone() for name, value in sampler.params.items()}

    def _snapshot(self, params: dict[str, Tensor]) -> PyroState:
        numbers = read_numbers(self.kernel) if isinstance(self.kernel, HMC) else ({}, {})
        return PyroState(params, numbers, generator_state())

    def _samples(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Constrained draws and quantities, in whole blocks of rows as for other kernels."""
        lacking = -len(rows) % ROWS_PER_CALL
        padded = [*rows, *[rows[0]] * lacking]
        draws = {name: torch.stack([row[name] for row in padded]) for name in rows[0]}
        transforms = getattr(self.kernel, "transforms", None) or {}
        samples = {
            name: transforms[name].inv(value) if name in transforms else value
            for name, value in draws.items()
        }
        samples = with_quantities(samples, self.quantities)
        return {name: value[: len(rows), None].clone() for name, value in samples.items()}

    def _unconstrained(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        model: Callable[..., Any] | None = getattr(self.kernel, "model", None)
        if model is None:
            return dict(params)
        _, _, transforms, _ = initialize_model(model, self.args, dict(self.kwargs))
        return {name: transforms[name](value) for name, value in params.items()}

    def save(self, state: GroupState) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Express the sampler's state as tensors and plain values."""
        sampler: PyroState = state.sampler
        kernel_tensors, kernel_tree = sampler.kernel
        generator_tensors, generator_content = sampler.generators
        tensors = {f"params.{name}": value for name, value in sampler.params.items()}
        tensors |= {f"kernel.{name}": value for name, value in kernel_tensors.items()}
        tensors |= {f"generators.{name}": value for name, value in generator_tensors.items()}
        return tensors, {"kernel": kernel_tree, "generators": generator_content}

    def load(
        self, members: range, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
    ) -> PyroState:
        """Make the sampler's state of what :meth:`save` gave."""
        parts: dict[str, dict[str, Tensor]] = {"params": {}, "kernel": {}, "generators": {}}
        for name, value in tensors.items():
            prefix, _, rest = name.partition(".")
            parts[prefix][rest] = value
        return PyroState(
            parts["params"],
            (parts["kernel"], content["kernel"]),
            (parts["generators"], content["generators"]),
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what belongs to this process."""
        return self.__dict__ | {"_live": None}


@contextmanager
def _own_generators() -> Iterator[None]:
    """Put the global generators back afterwards."""
    before = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(before)
