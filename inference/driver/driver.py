"""Base of the drivers: arguments, groups of chains, progress, checkpoints, interruption."""

import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self, TypedDict

from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor
from torch.distributions.transforms import Transform

from pyro_ext._lib import checks
from pyro_ext._lib.hints import OF_DRIVERS, refuse
from pyro_ext._lib.progress import progress_bar
from pyro_ext.checkpoint.chains import ChainStatus
from pyro_ext.checkpoint.files import CheckpointError
from pyro_ext.checkpoint.folder import CheckpointWriter
from pyro_ext.inference.driver.dispatch import Pace, run_elsewhere, run_here
from pyro_ext.inference.driver.numbers import check_state_is_known, usual_thinning, usual_warmup
from pyro_ext.inference.driver.pyro_kernels import PyroOptions, PyroRunner
from pyro_ext.inference.driver.segments import (
    GroupState,
    Plan,
    Report,
    Runner,
    Segment,
    silent,
)
from pyro_ext.inference.driver.stores import FolderStore
from pyro_ext.inference.driver.vectorized_kernels import VectorizedRunner
from pyro_ext.inference.vectorized import VectorizedKernel
from pyro_ext.posterior.draws import Context
from pyro_ext.posterior.identity import (
    Quantities,
    data_identity,
    density_identity,
    differences,
    kernel_at,
    kernel_identity,
    model_identity,
    versions,
)
from pyro_ext.posterior.starts import (
    Start,
    check_start,
    constrained_start,
    first_values,
    with_chain_axis,
)
from pyro_ext.potential import FunctionPotential, Potential
from pyro_ext.random import fresh_seed

ChainMethod = Literal["vectorized", "sequential"] | Executor

_METHODS = ("vectorized", "sequential")
_SECONDS_PER_LINE = 0.1


class DriverOptions(TypedDict, total=False):
    """Keyword arguments that all drivers take; :class:`~pyro_ext.inference.MCMC` has them."""

    chain_method: ChainMethod
    checkpoint: str | Path | None
    seed: int | None
    progress: bool
    group_size: int | None
    quantities: Quantities | None
    save_params: Sequence[str] | None
    disable_validation: bool | None
    disable_progbar: bool
    hook_fn: Callable[[MCMCKernel, dict[str, Tensor], str, int], Any] | None
    transforms: Mapping[str, Transform] | None


class Driver(ABC):
    """Runs groups of chains of a kernel, segment by segment.

    A subclass says with :meth:`_open` and :meth:`_keep` where draws go, and with :meth:`_rounds`
    when they are looked at.
    """

    def __init__(
        self,
        kernel: MCMCKernel,
        num_samples: int,
        warmup_steps: int | None,
        num_chains: int,
        thinning: int | None,
        initial_params: Start | None,
        extra_fields: Sequence[str],
        *,
        chain_method: ChainMethod = "vectorized",
        checkpoint: str | Path | None = None,
        seed: int | None = None,
        progress: bool = True,
        group_size: int | None = None,
        quantities: Quantities | None = None,
        save_params: Sequence[str] | None = None,
        disable_validation: bool | None = True,
        disable_progbar: bool = False,
        hook_fn: Callable[[MCMCKernel, dict[str, Tensor], str, int], Any] | None = None,
        transforms: Mapping[str, Transform] | None = None,
        **unknown: Any,
    ) -> None:
        refuse(type(self), unknown, OF_DRIVERS)
        if not isinstance(kernel, MCMCKernel):
            raise TypeError(f"kernel must be an MCMCKernel, got {kernel!r:.80}")
        self.num_samples = checks.integer("num_samples", num_samples, 1)
        self._is_usual_warmup = warmup_steps is None
        if warmup_steps is None:
            warmup_steps = usual_warmup(kernel, self.num_samples)
        self.warmup_steps = checks.integer("warmup_steps", warmup_steps, 0)
        self.num_chains = checks.integer("num_chains", num_chains, 1)
        if thinning is None:
            thinning = usual_thinning(kernel)
        self.thinning = checks.integer("thinning", thinning, 1)
        if group_size is not None:
            group_size = checks.integer("group_size", group_size, 1)
        # A tuple's "in" compares, and what a user may pass does not always allow that.
        is_method = isinstance(chain_method, str) and chain_method in _METHODS
        if not isinstance(chain_method, Executor) and not is_method:
            raise ValueError(
                f"chain_method must be one of {_METHODS} or a concurrent.futures.Executor, got "
                f"{chain_method!r:.80}"
            )
        if checkpoint is not None and not isinstance(checkpoint, str | Path):
            raise TypeError(f"checkpoint must be the path of a folder, got {checkpoint!r:.80}")
        if checkpoint is not None:
            check_state_is_known("checkpoint", kernel)
        is_vectorized = isinstance(kernel, VectorizedKernel) and not kernel.one_at_a_time
        if group_size not in (None, 1) and not is_vectorized:
            raise ValueError(
                f"group_size must be 1 for {type(kernel).__name__}, which runs one chain at a "
                f"time; got {group_size!r}"
            )
        if not _is_list_of_names(extra_fields):
            raise TypeError(f"extra_fields must be a list of names, got {extra_fields!r:.80}")
        if extra_fields and not isinstance(kernel, VectorizedKernel):
            raise ValueError(f"extra_fields {list(extra_fields)} need a kernel of pyro_ext")
        if quantities is not None and not isinstance(quantities, Mapping):
            raise TypeError(f"quantities must be functions by name, got {quantities!r:.80}")
        for name, function in (quantities or {}).items():
            if not callable(function):
                raise TypeError(f"quantities[{name!r}] must be callable, got {function!r:.80}")
        if save_params is not None and not _is_list_of_names(save_params):
            raise TypeError(f"save_params must be a list of names, got {save_params!r:.80}")
        if disable_validation not in (True, False, None):
            raise TypeError(
                f"disable_validation must be True, False or None, got {disable_validation!r:.80}"
            )
        if hook_fn is not None and not callable(hook_fn):
            raise TypeError(f"hook_fn must be callable, got {hook_fn!r:.80}")
        if transforms is not None and not isinstance(transforms, Mapping):
            raise TypeError(f"transforms must be transforms by site, got {transforms!r:.80}")
        if isinstance(kernel, VectorizedKernel):
            for name, value in (("hook_fn", hook_fn), ("transforms", transforms)):
                if value is not None:
                    raise TypeError(
                        f"{name} takes a kernel whose steps Python runs one by one, such as NUTS, "
                        f"and not {type(kernel).__name__}: {OF_DRIVERS[name]}"
                    )
        if seed is not None:
            fresh_seed(seed)
        initial_params = with_chain_axis(initial_params, self.num_chains)
        check_start(initial_params, self.num_chains)
        self.kernel = kernel
        self.initial_params = initial_params
        self.extra_fields = tuple(extra_fields)
        self.chain_method = chain_method
        self.checkpoint = checkpoint
        self.seed = seed
        self.progress = progress and not disable_progbar
        self.group_size = group_size
        self.quantities = dict(quantities or {})
        self.save_params = None if save_params is None else list(save_params)
        self.disable_validation = disable_validation
        self.hook_fn = hook_fn
        self.transforms = None if transforms is None else dict(transforms)
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.interrupted = False
        self._potential: Potential | FunctionPotential | None = None
        self._groups: list[range] = []
        self._states: dict[range, GroupState] = {}
        self._errors: dict[int, Exception] = {}

    @property
    def model(self) -> Callable[..., Any] | None:
        """The Pyro model, ``None`` for a kernel with a ``potential_fn``."""
        return getattr(self.kernel, "model", None)

    @property
    def potential(self) -> Potential | None:
        """The potential of the model at the data of the last run, where the kernel has one."""
        return self._potential if isinstance(self._potential, Potential) else None

    def run(self, *args: Any, **kwargs: Any) -> Self:
        """Run the chains from their start, or from where a checkpoint left them.

        On Ctrl-C the run ends and keeps what has been drawn. A chain that diverges or raises an
        error stops, with a warning, and is left out; the others go on.
        """
        self.args, self.kwargs = args, kwargs
        self.interrupted = False
        self._states, self._errors = {}, {}
        seed, description, writer = self._found()
        try:
            runner = self._make_runner(seed, description)
            self._groups = self._make_groups(description)
            folder = None
            if writer is not None:
                self._describe(writer, description, seed, runner)
                folder = FolderStore(writer, runner)
                found = ((members, folder.state(members)) for members in self._groups)
                self._states = {members: state for members, state in found if state is not None}
            self._open(folder)
            self._advance(runner)
        finally:
            if writer is not None:
                writer.close()
        self._raise_or_warn()
        return self

    # What a driver does with draws ---------------------------------------------------------------

    @abstractmethod
    def _open(self, folder: FolderStore | None) -> None:
        """Make ready for draws, those that an earlier run left in a folder among them."""

    @abstractmethod
    def _keep(self, segment: Segment) -> None:
        """Take what a segment gave."""

    @abstractmethod
    def _rounds(self) -> Iterator[int]:
        """Numbers of draws that all chains are brought to, one after the other."""

    # How a run goes ------------------------------------------------------------------------------

    def _found(self) -> tuple[int, dict[str, Any] | None, CheckpointWriter | None]:
        """Return the seed, and what the checkpoint holds."""
        if self.checkpoint is None:
            return fresh_seed(self.seed), None, None
        writer = CheckpointWriter(self.checkpoint)
        try:
            description = writer.description()
        except CheckpointError:
            writer.close()
            raise
        if description is None:
            return fresh_seed(self.seed), description, writer
        before = description["identity"].get("run", {})  # other folders have none, see _describe
        if self._is_usual_warmup:  # which may have been that of fewer samples
            self.warmup_steps = int(before.get("warmup_steps", self.warmup_steps))
        return (
            fresh_seed(before.get("seed") if self.seed is None else self.seed),
            description,
            writer,
        )

    def _make_runner(self, seed: int, description: Mapping[str, Any] | None = None) -> Runner:
        plan = Plan(
            self.warmup_steps,
            self.thinning,
            self.num_samples,
            seed,
            self.quantities,
            self.save_params,
            self.extra_fields,
            self.args,
            self.kwargs,
        )
        start = None
        if not isinstance(self.kernel, VectorizedKernel):
            self._potential = None
            if self.initial_params is not None:
                context = Context(self.model, self.args, self.kwargs)
                start = constrained_start(self.initial_params, self.num_chains, seed, context)
            is_single = self.num_chains == 1
            own = PyroOptions(self.disable_validation, self.hook_fn, self.transforms, is_single)
            return PyroRunner(self.kernel, plan, start, own)
        if self.kernel.model is None and isinstance(self.initial_params, Mapping):
            first = {name: value[0] for name, value in self.initial_params.items()}
            self.kernel.initial_params = first
        runner = VectorizedRunner(self.kernel, plan, first_values(self.initial_params))
        runner.backend = (description or {}).get("backend")
        runner.setup()
        self._potential = None if self.kernel.is_constrained else self.kernel.potential
        if self.initial_params is not None:
            runner.start = self.kernel.start_from(
                self.initial_params, self.num_chains, seed, *self.args, **self.kwargs
            )
        return runner

    def _make_groups(self, description: Mapping[str, Any] | None) -> list[range]:
        size = self.group_size
        if size is None:
            if description is not None:
                return [range(*bounds) for bounds in description["groups"]]
            kernel = self.kernel
            is_vectorized = isinstance(kernel, VectorizedKernel) and not kernel.one_at_a_time
            together = self.chain_method == "vectorized" and is_vectorized
            size = self.num_chains if together else 1
        starts = range(0, self.num_chains, size)
        return [range(start, min(start + size, self.num_chains)) for start in starts]

    def _describe(
        self,
        writer: CheckpointWriter,
        known: Mapping[str, Any] | None,
        seed: int,
        runner: Runner,
    ) -> None:
        """Write what the run is of, or raise where the checkpoint is of another run."""
        start = self._one_chain(runner.start)
        point_of = kernel_at(self.kernel, self.args, self.kwargs, start)
        densities, quantities = density_identity(point_of, self.quantities)
        identity = {
            "versions": versions(),
            "run": {
                "num_chains": self.num_chains,
                "warmup_steps": self.warmup_steps,
                "thinning": self.thinning,
                "seed": seed,
            },
            "kernel": kernel_identity(self.kernel),
            "model": model_identity(self.model, self._potential) | {"log density": densities},
            "data": self._data(),
            "recorded": {
                "quantities": quantities,
                "fields": list(self.extra_fields),
                **({} if self.save_params is None else {"sites": sorted(self.save_params)}),
            },
            "driver": type(self).__name__,
        }
        groups = [[members.start, members.stop] for members in self._groups]
        if known is not None:
            found = differences(known["identity"], identity)
            found += differences({"groups": known["groups"]}, {"groups": groups})
            if found:
                raise CheckpointError(
                    f"checkpoint={str(self.checkpoint)!r} is of another run: {'; '.join(found)}. "
                    "Continue with the same program, or name another folder"
                )
            identity = known["identity"]  # with the numbers as they were rounded at first
        dims = {}
        if self.potential is not None:
            whole = self.potential.deterministic_sites
            whole = {name: site for name, site in whole.items() if not site.is_subsampled}
            sites = {**self.potential.sites, **whole}
            dims = {name: site.dims for name, site in sites.items() if any(site.dims)}
        writer.describe(
            {
                "num_samples": self.num_samples,
                "backend": runner.backend,
                "groups": groups,
                "dims": dims,
                "partitions": list(getattr(self.kernel, "partitions", ())),
                "identity": identity,
            }
        )

    def _one_chain(self, start: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
        """Parameters of one chain of a kernel that has a function instead of a model."""
        if self.model is not None or getattr(self.kernel, "potential_fn", None) is None:
            return None
        if isinstance(self._potential, FunctionPotential):
            return self.kernel.initial_params  # type: ignore[no-any-return]
        if start is not None:
            return {name: value[0] for name, value in start.items()}
        return getattr(self.kernel, "initial_params", None)

    def _data(self) -> dict[str, str]:
        data = data_identity(list(self.args), "args") | data_identity(self.kwargs, "kwargs")
        if isinstance(self.initial_params, Mapping):
            data |= data_identity(dict(self.initial_params), "initial_params")
        return data

    def _advance(self, runner: Runner) -> None:
        pace = Pace()
        total = runner.num_steps(self.num_samples) * len(self._groups)
        done = sum(state.step for state in self._states.values())
        with self._progress(total, done, runner.note) as report:
            for until in self._rounds():
                arguments = runner, self._groups, self._states, until, self._take, pace, report
                if isinstance(self.chain_method, Executor):
                    self.interrupted = run_elsewhere(self.chain_method, *arguments)
                else:
                    self.interrupted = run_here(*arguments)
                if self.interrupted:
                    break

    def _take(self, segment: Segment) -> None:
        if segment.error is not None:
            self._errors.setdefault(segment.state.members.start, segment.error)
        self._keep(segment)

    @contextmanager
    def _progress(self, total: int, done: int, note: str) -> Iterator[Report]:
        # A bar that is never drawn is cheaper not made: its updates cost more than small steps.
        if not self.progress:
            yield silent
            return
        name = type(self.kernel).__name__
        with progress_bar(total=total, initial=done, desc=name, unit="step") as bar:
            shown = -math.inf
            bar.set_postfix_str(note)

            def report(num_steps: int, line: Callable[[], Mapping[str, str] | None]) -> None:
                nonlocal shown
                now = time.monotonic()
                if now - shown > _SECONDS_PER_LINE or bar.n + num_steps >= total:
                    bar.set_postfix(line() or {}, refresh=False)
                    shown = now
                bar.update(num_steps)

            yield report

    # What happened to the chains ----------------------------------------------------------------

    def _statuses(self) -> list[ChainStatus]:
        """Tell how far each chain is."""
        result: list[ChainStatus] = []
        for members in self._groups:
            state = self._states.get(members)
            result += state.chains if state is not None else [ChainStatus()] * len(members)
        return result

    def _no_draws(self) -> str:
        """Why there are no samples."""
        if self._states and all(status.stopped_at is not None for status in self._statuses()):
            return "all chains stopped: stopped_chains holds their draws and says why"
        return "there are no draws yet: call run(...) first, and let it draw"

    def _raise_or_warn(self) -> None:
        statuses = self._statuses()
        stopped = {n: status for n, status in enumerate(statuses) if status.stopped_at is not None}
        if not stopped:
            return
        reasons = "; ".join(
            f"chain {n} {status.reason}" for n, status in islice(stopped.items(), 3)
        )
        if len(stopped) > 3:
            reasons += f"; {len(stopped) - 3} more"
        diverged = any(not status.error for status in stopped.values())
        error = self._errors[min(self._errors)] if self._errors else None
        if len(stopped) < len(statuses):
            remedy = " (a smaller step_size may help)" if diverged else ""
            warnings.warn(
                f"chains {list(stopped)} of {len(statuses)} stopped and are left out of the "
                f"samples: {reasons}{remedy}",
                RuntimeWarning,
                stacklevel=3,
            )
        elif error is not None and all(s.error and s.stopped_at in (0, 1) for s in statuses):
            raise error  # nothing is lost, and the arguments are likely wrong
        else:
            remedy = (
                "Take a smaller step_size, or another start (init_strategy or initial_params); "
            )
            raise RuntimeError(
                f"all {len(stopped)} chains stopped: {reasons}. "
                f"{remedy if diverged else ''}stopped_chains holds the draws from before"
            ) from error


def _is_list_of_names(value: object) -> bool:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False
    return all(isinstance(name, str) for name in value)
