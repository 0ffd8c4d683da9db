"""Segments of Pyro's kernels and of kernels written like them, one chain at a time."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import pyro
import torch
from pyro.infer import HMC
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.infer.mcmc.util import initialize_model
from pyro.ops import integrator
from pyro.util import get_rng_state, set_rng_seed, set_rng_state
from torch import Tensor

from pyro_ext._lib.executors import describe_error
from pyro_ext.checkpoint.chains import ChainStatus, Chunk
from pyro_ext.inference.driver.numbers import (
    generator_state,
    has_known_state,
    read_state,
    restore_generators,
    write_state,
)
from pyro_ext.inference.driver.segments import (
    ROWS_PER_CALL,
    GroupState,
    Plan,
    Report,
    Runner,
    Segment,
)
from pyro_ext.potential.arguments import named_arguments
from pyro_ext.potential.evaluation import factorization_errors, retried
from pyro_ext.potential.runner import check_observations
from pyro_ext.random import spawn_seed


def _statistics(kernel: MCMCKernel) -> dict[str, float]:
    """Numbers of the last step that are recorded with a draw."""
    own = getattr(kernel, "statistics", None)
    if own is not None:
        return dict(own())
    return {"step_size": float(getattr(kernel, "step_size", float("nan")))}


class PyroOptions(NamedTuple):
    """Settings of Pyro's driver that only its own kernels, and kernels written like them, have.

    :param disable_validation: whether steps run without checks of arguments and values; ``None``
        leaves that as it is.
    :param hook_fn: called after each step with kernel, unconstrained parameters, stage and number.
    :param transforms: maps to unconstrained space by site, in place of those of the kernel.
    :param bool is_single: whether there is one chain, whose number the stage then does not name.
    """

    disable_validation: bool | None
    hook_fn: Callable[[MCMCKernel, dict[str, Tensor], str, int], Any] | None
    transforms: Mapping[str, Any] | None
    is_single: bool


class PyroState(NamedTuple):
    """Numbers of a kernel between two segments, and those of the generators."""

    params: dict[str, Tensor]
    kernel: tuple[dict[str, Tensor], dict[str, Any]]
    generators: tuple[dict[str, Tensor], dict[str, Any]]


class PyroRunner(Runner):
    """Runs chains of any of Pyro's kernels, one by one.

    A kernel whose state is known, see ``numbers``, runs in segments. Any other runs a chain in one,
    since its state is its own. What a kernel returns from a method ``statistics`` is recorded with
    each draw.

    :param MCMCKernel kernel: the kernel.
    :param Plan plan: what the run is of.
    :param start: constrained initial parameters of all chains, or ``None``.
    :param PyroOptions options: what Pyro's driver takes besides.
    """

    def __init__(
        self,
        kernel: MCMCKernel,
        plan: Plan,
        start: Mapping[str, Tensor] | None,
        options: PyroOptions,
    ) -> None:
        super().__init__(kernel, plan)
        self.start = start
        self.options = options
        self._live: PyroState | None = None

    @property
    def has_segments(self) -> bool:
        """Tell whether the state of the kernel is known."""
        return has_known_state(self.kernel)

    def setup(self) -> None:
        """Nothing is prepared: a kernel is set up for each chain."""

    def num_steps(self, num_draws: int) -> int:
        """Return the number of steps that a number of draws takes."""
        return self.plan.warmup_steps + num_draws * self.plan.thinning

    def segment(self, state: GroupState, until: int, seconds: float, report: Report) -> Segment:
        """Continue until ``until`` draws have been made, or the time is up.

        An error ends the chain, and so do values that are not finite.
        """
        deadline = time.monotonic() + seconds
        rows: list[dict[str, Tensor]] = []
        statistics: list[dict[str, float]] = []
        step, sampler = state.step, state.sampler
        stopped_at, error = None, None
        is_ready = interrupted = False
        with own_generators():
            try:
                params = self._resume(state)
                is_ready = True
                while state.num_draws + len(rows) < until:
                    with stepping(self.options.disable_validation):
                        params = self.kernel.sample(params)
                    if not all(bool(value.isfinite().all()) for value in params.values()):
                        stopped_at = step + 1
                        break
                    if step + 1 == self.plan.warmup_steps:
                        self.kernel.end_warmup()
                    # From here to the end of the step a Ctrl-C must find step and draws together.
                    step_statistics = _statistics(self.kernel)
                    kept = step + 1 - self.plan.warmup_steps
                    row = {name: value.detach().clone() for name, value in params.items()}
                    sampler = self._snapshot(row) if self.has_segments else None
                    step += 1
                    if kept > 0 and kept % self.plan.thinning == 0:
                        statistics.append(step_statistics)
                        rows.append(row)
                    report(1, self.kernel.logging)
                    self._call_hook(params, step - 1, *state.members)
                    if self.has_segments and time.monotonic() > deadline:
                        break
            except KeyboardInterrupt:
                interrupted = True
            except Exception as caught:
                error, stopped_at = caught, step + is_ready
        # A kernel that could not be set up again has nothing to say.
        has_sampled = is_ready and step > self.plan.warmup_steps
        status = ChainStatus(
            state.num_draws + len(rows),
            stopped_at,
            dict(self.kernel.diagnostics() or {}) if has_sampled else state.chains[0].diagnostics,
            "" if error is None else describe_error(error),
        )
        chunk = self._chunk(rows, statistics, state.num_draws, status) if rows else None
        line = dict(self.kernel.logging() or {}) if is_ready and step else {}
        ends = interrupted or stopped_at is not None or status.num_draws >= until
        if ends or not self.has_segments:
            self.kernel.cleanup()
            self._live = None
        else:
            self._live = sampler
        after = GroupState(state.members, step, status.num_draws, (status,), sampler)
        return Segment(after, chunk, interrupted, line, error)

    def _chunk(
        self,
        rows: Sequence[dict[str, Tensor]],
        entries: Sequence[dict[str, float]],
        num_before: int,
        status: ChainStatus,
    ) -> Chunk:
        """Return the draws of a segment and their statistics, given the number of earlier draws."""
        statistics = {
            name: torch.tensor([entry[name] for entry in entries])[:, None] for name in entries[0]
        }
        divergences = status.diagnostics.get("divergences")
        if isinstance(divergences, list):
            diverging = torch.zeros(len(rows), dtype=torch.bool)
            for index in divergences:
                row = index // self.plan.thinning - num_before
                if 0 <= row < len(rows):
                    diverging[row] = True
            statistics["diverging"] = diverging[:, None]
        return Chunk(self._samples(rows), statistics, [len(rows)])

    def _resume(self, state: GroupState) -> dict[str, Tensor]:
        """Make the kernel what it was after the last segment; the parameters to go on from."""
        sampler: PyroState | None = state.sampler
        if sampler is None:
            (number,) = state.members
            set_rng_seed(spawn_seed(self.plan.seed, number, 1))
            if self.start is not None:
                start = {name: value[number] for name, value in self.start.items()}
                self.kernel.initial_params = self._unconstrained(start)
            with named_arguments(
                getattr(self.kernel, "model", None), self.plan.args, self.plan.kwargs
            ):
                self._setup()
            params: dict[str, Tensor] = self.kernel.initial_params
            # Quantities that cannot be recorded must fail before any step.
            self._samples([params])
            return params
        if self._live is not sampler:
            self.kernel.initial_params = {k: v.clone() for k, v in sampler.params.items()}
            self._setup()
            write_state(self.kernel, *sampler.kernel)
        restore_generators(*sampler.generators)
        return {name: value.clone() for name, value in sampler.params.items()}

    def _setup(self) -> None:
        """Set the kernel up as Pyro's driver does, and look at the data, which that does not."""
        if not isinstance(self.kernel, HMC):
            self.kernel.setup(self.plan.warmup_steps, *self.plan.args, **self.plan.kwargs)
            return
        is_checked = pyro.distributions.is_validation_enabled()
        with stepping(self.options.disable_validation):
            retried(
                lambda: self.kernel.setup(
                    self.plan.warmup_steps, *self.plan.args, **self.plan.kwargs
                )
            )
        _check_shapes(self.kernel)
        if is_checked and self.kernel.model is not None:
            values = self._constrained(self.kernel.initial_params)
            with own_generators(), torch.no_grad():
                check_observations(self.kernel.model, self.plan.args, self.plan.kwargs, values)

    def _call_hook(self, params: dict[str, Tensor], step: int, chain: int) -> None:
        """Call the hook after a step, with the words of Pyro's driver."""
        if self.options.hook_fn is None:
            return
        after_warmup = step - self.plan.warmup_steps
        stage, number = ("Warmup", step) if after_warmup < 0 else ("Sample", after_warmup)
        if not self.options.is_single:
            stage = f"{stage} [{chain}]"
        self.options.hook_fn(self.kernel, params, stage, number)

    def _snapshot(self, params: dict[str, Tensor]) -> PyroState:
        return PyroState(params, read_state(self.kernel), generator_state())

    def _samples(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Constrained draws and quantities, in whole blocks of rows as for other kernels."""
        lacking = -len(rows) % ROWS_PER_CALL
        padded = [*rows, *[rows[0]] * lacking]
        draws = {name: torch.stack([row[name] for row in padded]) for name in rows[0]}
        samples = self.recorded(self._constrained(draws))
        return {name: value[: len(rows), None].clone() for name, value in samples.items()}

    def _constrained(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        transforms = self.options.transforms
        if transforms is None:
            transforms = getattr(self.kernel, "transforms", None) or {}
        return {
            name: transforms[name].inv(value) if name in transforms else value
            for name, value in params.items()
        }

    def _unconstrained(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        model: Callable[..., Any] | None = getattr(self.kernel, "model", None)
        if model is None or getattr(self.kernel, "is_constrained", False):
            return dict(params)
        with stepping(self.options.disable_validation):
            # With parameters, whichever, it looks for no start of its own.
            _, _, transforms, trace = initialize_model(
                model, self.plan.args, dict(self.plan.kwargs), initial_params=params
            )
        start = {name: transforms[name](value) for name, value in params.items()}
        for name, value in start.items():
            wanted = transforms[name](trace.nodes[name]["value"]).shape
            if value.shape != wanted:
                raise ValueError(
                    f"initial_params[{name!r}] has shape {tuple(params[name].shape)} for each "
                    f"chain, which does not fit the site: in unconstrained space that has "
                    f"{tuple(wanted)}, and this {tuple(value.shape)}"
                )
            if not value.isfinite().all():
                raise ValueError(
                    f"initial_params[{name!r}] must be finite and within the support of the site, "
                    f"got {params[name]!r:.80} for a chain"
                )
        return start

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


def _check_shapes(kernel: HMC) -> None:
    """Raise where Pyro starts a site with fewer values than it has: these would stay tied."""
    trace: Any = getattr(kernel, "_prototype_trace", None)
    for name in () if trace is None else kernel.initial_params:
        value, fn = trace.nodes[name]["value"], trace.nodes[name]["fn"]
        if value.shape != (wanted := fn.batch_shape + fn.event_shape):
            raise ValueError(
                f"site {name!r} starts with a value of shape {tuple(value.shape)}, but its "
                f"distribution has the shape {tuple(wanted)}: inside of a plate, Pyro starts a "
                "reparameterized site before the plate has expanded it. Put poutine.reparam around "
                "the plate or the model, or expand the distribution"
            )


@contextmanager
def stepping(disable_validation: bool | None) -> Iterator[None]:
    """Validation as Pyro's driver sets it: steps that diverge would raise.

    A matrix that GPyTorch cannot factor is a divergence, as one of PyTorch is to Pyro.
    """
    with ExitStack() as stack:
        if disable_validation is not None:
            stack.enter_context(pyro.validation_enabled(not disable_validation))
        own = {"pyro_ext": lambda error: isinstance(error, factorization_errors())}
        stack.enter_context(mock.patch.dict(integrator._EXCEPTION_HANDLERS, own))
        yield


@contextmanager
def own_generators() -> Iterator[None]:
    """Put the global generators back afterwards."""
    before = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(before)
