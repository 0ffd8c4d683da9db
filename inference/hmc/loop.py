"""Transitions of many chains whose trajectories differ in length, without waiting for each other.

An iteration is a leapfrog step of each chain, wherever on its trajectory it is. A chain whose
trajectory has ended records its draw and begins the next one in the iteration after, so that a
long trajectory of one chain costs the others nothing.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_ext._lib.files import read_bytes
from pyro_ext.inference.hmc.adaptation import DualAveraging, updated
from pyro_ext.inference.hmc.masses import HamiltonianState
from pyro_ext.inference.hmc.trajectories import Outcome, Settings, Trajectories, where
from pyro_ext.inference.vectorized.compiled_loop import (
    CompiledLoop,
    arguments_of,
    compiled_loop,
)
from pyro_ext.potential import (
    BatchedFunction,
    CompiledGraph,
    agree_but_for_rounding,
    constants_of,
)
from pyro_ext.potential.compilation import keep_as, kept_as
from pyro_ext.random import uniform_each

_MAX_ROWS = 64
_NUMBERS_IN_ROWS = 1 << 15
_ITERATIONS_PER_CALL = 256
_STREAM_OF_CHOICES = 1
_NUM_CHECKS = 3
_NUM_PERTURBED = (0, 1, 4)
_SHORTER = 5.0  # logarithm of a factor
_MOST_KEPT = 16
_kept: OrderedDict[Any, tuple[list[Tensor], CompiledGraph]] = OrderedDict()
"""Frozen tensors and code of the last loops: one of many fits has the code of the first."""


class Inputs(NamedTuple):
    """Inputs of the iterations besides the state that they carry.

    :param Tensor uniforms: of leapfrog steps from ``first`` on.
        **Shape:** ``(num_iterations, num_chains, 4)``.
    :param Tensor first: leapfrog steps of each chain before them. **Shape:** ``(num_chains,)``.
    :param Tensor noise: momenta of the transitions. **Shape:** ``(num_rows, num_chains, size)``.
    :param Tensor factor: of the inverse mass matrices.
    :param Tensor mean_steps: as of :class:`~pyro_ext.inference.hmc.trajectories.Settings`.
    :param Tensor jitter: of step sizes, by transition. **Shape:** ``(num_rows, num_chains)``.
    :param Tensor num_transitions: how many of them each chain makes, a number.
    :param Tensor adapting: zero where step sizes stay, one where they go by acceptance rates, two
        where by symmetric ones.
    :param Tensor limit: largest number of iterations.
    :param Sequence given: what the gradient takes besides positions.
    """

    uniforms: Tensor
    first: Tensor
    noise: Tensor
    factor: Tensor
    mean_steps: Tensor
    jitter: Tensor
    num_transitions: Tensor
    adapting: Tensor
    limit: Tensor
    given: Sequence[Tensor] = ()


class Carried(NamedTuple):
    """State that an iteration receives and returns.

    :param Tensor iteration: a number.
    :param Tensor num_left: transitions that are left, of all chains.
    :param Tensor num_done: transitions of each chain. **Shape:** ``(num_chains,)``.
    :param Tensor is_fresh: whether a trajectory begins.
    :param Tensor num_leapfrogs: of each chain since it began.
    :param Outcome last: of each chain's last transition.
    :param DualAveraging search: for step sizes.
    :param tuple trajectory: where each chain is.
    :param Outcome draws: of the transitions, with a leading dimension.
    """

    iteration: Tensor
    num_left: Tensor
    num_done: Tensor
    is_fresh: Tensor
    num_leapfrogs: Tensor
    last: Outcome
    search: DualAveraging
    trajectory: Any
    draws: Outcome


class TransitionLoop:
    """Runs transitions, on each backend the same but for rounding.

    :param trajectories: of the sampler.
    :param BatchedFunction gradient: potential and gradient over chains.
    :param float target: acceptance rate to which step sizes adapt.
    :ivar dict errors: see :class:`~pyro_ext.inference.vectorized.loop.StepLoop`.
    """

    def __init__(
        self, trajectories: Trajectories, gradient: BatchedFunction, target: float
    ) -> None:
        self.errors: dict[int, Exception] | None = None
        self._trajectories = trajectories
        self._gradient = gradient
        self._target = target
        self._compiled: dict[Any, CompiledLoop[Carried, Inputs] | None] = {}
        self._compiled_of: Callable[..., Any] | None = None

    @staticmethod
    def max_rows(num_chains: int, size: int) -> int:
        """Number of transitions that one call makes at most; an iteration copies their draws."""
        return max(8, min(_MAX_ROWS, _NUMBERS_IN_ROWS // (num_chains * size)))

    def __call__(
        self,
        state: HamiltonianState,
        noise: Tensor,
        jitter: Tensor,
        num_transitions: int,
        adapting: int,
    ) -> tuple[HamiltonianState, Outcome]:
        """Make transitions, so many of each chain; returns also what each of them led to.

        Shapes: noise (num_rows, num_chains, size), of momenta; jitter (num_rows, num_chains).
        """
        keys, num_chains = state.keys, len(state.position)
        number, adapts = (torch.tensor(n, device=keys.device) for n in (num_transitions, adapting))
        given = [
            value.expand(num_chains, *value.shape[1:]).contiguous()
            for value in self._gradient.given
        ]

        def inputs_at(num_leapfrogs: Tensor, iteration: Tensor) -> Inputs:
            ahead = torch.arange(_ITERATIONS_PER_CALL, device=keys.device)
            steps = (num_leapfrogs + ahead[:, None]).flatten()
            every = keys.repeat(len(ahead), 1)
            uniforms = uniform_each(every, steps, stream=_STREAM_OF_CHOICES, dtype=noise.dtype)
            uniforms = uniforms.reshape(len(ahead), num_chains, -1)
            limit = iteration + _ITERATIONS_PER_CALL
            first = num_leapfrogs.clone()
            settings = state.factor, state.lengths.mean_steps
            return Inputs(uniforms, first, noise, *settings, jitter, number, adapts, limit, given)

        carried = self._begin(state, number * num_chains, len(noise))
        inputs = inputs_at(carried.num_leapfrogs, carried.iteration)
        with torch.no_grad():
            run = self._runner(carried, inputs)
            carried = run(carried, inputs)
            while int(carried.num_left) > 0:
                inputs = inputs_at(carried.num_leapfrogs, carried.iteration)
                carried = run(carried, inputs)
        last = {**carried.last._asdict(), "search": carried.search}
        after = state._replace(num_leapfrogs=carried.num_leapfrogs, **last)
        return after, Outcome(*(part[:num_transitions] for part in carried.draws))

    def _begin(self, state: HamiltonianState, num_left: Tensor, num_rows: int) -> Carried:
        last, none = state.outcome(), torch.zeros_like(state.num_leapfrogs)
        momentum = torch.zeros_like(last.position)
        return Carried(
            torch.zeros_like(num_left),
            num_left,
            none,
            torch.ones_like(none, dtype=torch.bool),
            state.num_leapfrogs,
            last,
            state.search,
            self._trajectories.start(last.position, last.value, last.gradient, momentum),
            Outcome(*(part.new_zeros(num_rows, *part.shape) for part in last)),
        )

    def _begun(self, carried: Carried, inputs: Inputs) -> Carried:
        """Begin the trajectories of chains that are between two."""
        last = carried.last
        num_rows, num_chains, size = inputs.noise.shape
        row = carried.num_done.clamp(max=num_rows - 1)
        momentum = inputs.noise.gather(0, row[None, :, None].expand(1, num_chains, size))[0]
        begun = self._trajectories.start(last.position, last.value, last.gradient, momentum)
        return carried._replace(trajectory=where(carried.is_fresh, begun, carried.trajectory))

    def _extended(
        self, function: Callable[..., Any], carried: Carried, inputs: Inputs
    ) -> tuple[Carried, tuple[Outcome, Tensor]]:
        """Take a leapfrog step of each chain; returns also outcomes and symmetric rates."""
        row = (carried.num_leapfrogs - inputs.first).clamp(max=len(inputs.uniforms) - 1)
        uniforms = inputs.uniforms.gather(0, row[None, :, None].expand(1, len(row), 4))[0]
        transition = carried.num_done.clamp(max=len(inputs.jitter) - 1)
        step_size = carried.search.log_step.exp() * inputs.jitter.gather(0, transition[None])[0]

        def at(position: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = function(position, *inputs.given)
            return value, gradient

        trajectory, ended, outcome, symmetric = self._trajectories.extend(
            carried.trajectory, at, uniforms, Settings(step_size, inputs.factor, inputs.mean_steps)
        )
        active = carried.num_done < inputs.num_transitions
        carried = carried._replace(
            iteration=carried.iteration + 1,
            is_fresh=ended | ~active,
            num_leapfrogs=carried.num_leapfrogs + active,
            trajectory=trajectory,
        )
        return carried, (outcome, symmetric)

    def _ended(
        self, carried: Carried, outcome: Outcome, symmetric: Tensor, inputs: Inputs
    ) -> Carried:
        """Record the draws of trajectories that have just ended, and adapt their step sizes."""
        last, search, row = carried.last, carried.search, carried.num_done
        ended = carried.is_fresh & (row < inputs.num_transitions)
        rows = torch.arange(len(inputs.noise), device=row.device)
        is_row = (rows[:, None] == row) & ended
        rate = torch.where(inputs.adapting < 2, outcome.acceptance_rate, symmetric)
        adapted = updated(search, rate, self._target)
        adapts = ended & (inputs.adapting > 0)
        return carried._replace(
            num_left=carried.num_left - ended.sum(),
            num_done=row + ended,
            last=where(ended, outcome, last),
            search=where(adapts, adapted, search),
            draws=Outcome(
                *(
                    torch.where(is_row.reshape(*is_row.shape, *(1,) * (n.dim() - 1)), n, old)
                    for n, old in zip(outcome, carried.draws, strict=True)
                )
            ),
        )

    # Iterations in Python, or inside one compiled graph -----------------------------------------

    def _runner(self, carried: Carried, inputs: Inputs) -> Callable[[Carried, Inputs], Carried]:
        num_chains = len(carried.num_done)
        graph = self._gradient.graph(num_chains)
        if graph is None:
            return partial(self._run, partial(self._gradient.one_by_one, errors=self.errors))
        if self._gradient.backend == "compile":
            if self._compiled_of is not graph:  # data have changed, or it is another run
                self._compiled, self._compiled_of = {}, graph
            key = tuple(inputs.factor.shape), tuple(inputs.noise.shape)
            if key not in self._compiled:
                self._compiled[key] = self._made(graph, carried, inputs)
            if (compiled := self._compiled[key]) is not None:
                return compiled
        return partial(self._run, graph)

    def _run(self, function: Callable[..., Any], carried: Carried, inputs: Inputs) -> Carried:
        # In Python, skip updates without effect: most iterations begin and end no trajectory.
        limit, number = int(inputs.limit), inputs.num_transitions
        has_ended = True
        while int(carried.num_left) > 0 and int(carried.iteration) < limit:
            if has_ended:
                carried = self._begun(carried, inputs)
            active = carried.num_done < number
            carried, ended = self._extended(function, carried, inputs)
            has_ended = bool((carried.is_fresh & active).any())
            if has_ended:
                carried = self._ended(carried, *ended, inputs)
        return carried

    def _made(
        self, graph: Callable[..., Any], carried: Carried, inputs: Inputs
    ) -> CompiledLoop[Carried, Inputs] | None:
        """Machine code, which another loop may have made where only frozen numbers differ."""
        if not isinstance(graph, GraphModule) or any(True for _ in graph.children()):
            return self._compile(graph, carried, inputs)
        shapes = [(each.shape, each.dtype) for each in arguments_of(carried, inputs)]
        settings = type(self._trajectories), vars(self._trajectories), self._target
        key = repr((settings, shapes, *_form(graph)))
        constants = constants_of(graph)
        if key in _kept:
            before, known = _kept[key]
            pairs = zip(before, constants, strict=True)
            renewed = known.with_constants({id(old): new for old, new in pairs})
            if renewed is not None:
                _kept.move_to_end(key)
                return CompiledLoop(renewed, carried)
        name = repr((key, torch.get_default_dtype(), _sources()))
        code = kept_as(name, constants, shapes)
        if code is None or not self._is_right(graph, CompiledLoop(code, carried), carried, inputs):
            compiled = self._compile(graph, carried, inputs)
            if compiled is None or not isinstance(compiled.code, CompiledGraph):
                return compiled
            code = compiled.code
            keep_as(name, code, constants)
        _kept[key] = constants, code
        if len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)
        return CompiledLoop(code, carried)

    def _compile(
        self, graph: Callable[..., Any], carried: Carried, inputs: Inputs
    ) -> CompiledLoop[Carried, Inputs] | None:
        def body(carried: Carried, inputs: Inputs) -> Carried:
            carried, ended = self._extended(graph, self._begun(carried, inputs), inputs)
            return self._ended(carried, *ended, inputs)

        return compiled_loop(
            "transitions",
            lambda carried, inputs: (carried.num_left > 0) & (carried.iteration < inputs.limit),
            body,
            carried,
            inputs,
            lambda loop: self._is_right(graph, loop, carried, inputs),
        )

    def _is_right(
        self,
        graph: Callable[..., Any],
        loop: CompiledLoop[Carried, Inputs],
        carried: Carried,
        inputs: Inputs,
    ) -> bool:
        """Tell whether a loop does what the graph does, at one of several points."""
        return any(
            self._agrees(graph, loop, carried, inputs, number, num_perturbed)
            for num_perturbed in _NUM_PERTURBED  # what costs little first
            for number in range(_NUM_CHECKS)
        )

    def _agrees(
        self,
        graph: Callable[..., Any],
        loop: CompiledLoop[Carried, Inputs],
        carried: Carried,
        inputs: Inputs,
        number: int,
        num_perturbed: int,
    ) -> bool:
        """Compare the loop with iterations in Python, along a trajectory of short steps."""
        # Of short steps, since rounding decides where longer ones end up, and which leaf is chosen.
        search = carried.search._replace(log_step=carried.search.log_step - _SHORTER)
        begun = carried._replace(search=search, num_leapfrogs=carried.num_leapfrogs + number)
        # No chain may complete its transitions: what it does after that is arbitrary.
        limited = inputs._replace(
            limit=carried.iteration + 3,
            num_transitions=torch.full_like(inputs.num_transitions, len(inputs.noise)),
        )
        expected = partial(self._run, graph, begun, limited)
        verdict = agree_but_for_rounding(expected, loop(begun, limited), expected(), num_perturbed)
        return verdict is not False


@cache
def _sources() -> str:
    """Digest of what the transitions are recorded from, which may change without a new version."""
    folder = Path(__file__).parent
    package = folder.parents[1]
    folders = (folder, folder.parent / "vectorized", package / "potential")
    files = [package / "random.py", *(file for each in folders for file in each.glob("*.py"))]
    return hashlib.sha256(b"".join(map(read_bytes, sorted(files)))).hexdigest()


def _form(graph: GraphModule) -> tuple[Any, ...]:
    """Describe all of a graph but the numbers that it has frozen."""
    constants = [(each.shape, each.dtype, each.stride()) for each in constants_of(graph)]
    return graph.code, constants
