"""A pure function of one chain, run over many chains: plainly, through a graph, or compiled."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_ext._lib.row_draws import rows_at_once
from pyro_ext._lib.threads import threads_for
from pyro_ext.potential._graph_passes import constants_of
from pyro_ext.potential.compilation import compile_graph
from pyro_ext.potential.evaluation import CHANGES_DATA, IS_RANDOM, factorization_errors
from pyro_ext.potential.graph_capture import (
    CaptureError,
    Fallback,
    TensorFunction,
    capture,
    vectorize,
)

Backend = Literal["eager", "trace", "compile"]
KernelBackend = Backend | Literal["auto"]

_NO_VMAP = "an operation cannot be vectorized"
_ONE_BY_ONE = "running chains one by one"
_NUM_CHECKS = 4
_SPREADS = (0.3, 1.0, 3.0)
_NUM_TRIES = 20


def check_backend(backend: str, *others: str) -> None:
    """Raise where a backend is unknown."""
    known = (*others, *get_args(Backend))
    if backend not in known:
        raise ValueError(f"backend must be one of {known}, got {backend!r}")


class RandomPoints:
    """Points around a start and its mirror image, near and far, in pairs on opposite sides.

    What a graph has frozen shows at one of them: a branch taken on one side is not on the other.
    """

    def __init__(self, start: Tensor) -> None:
        self._start = start
        self.generator = torch.Generator().manual_seed(0)
        self._count = 0
        self._noise = torch.zeros_like(start)

    def __call__(self) -> Tensor:
        """The next point."""
        pair, is_second = divmod(self._count, 2)
        self._count += 1
        if is_second:
            self._noise = -self._noise
        else:
            noise = torch.randn(self._start.shape, generator=self.generator, device="cpu")
            self._noise = _SPREADS[pair % len(_SPREADS)] * noise.to(self._start)
        return (self._start if pair % 2 == 0 else -self._start) + self._noise


class BatchedFunction:
    """Runs a function of one chain's tensors over a leading dimension of chains.

    ``"eager"`` calls the function for one chain after the other. ``"trace"`` records it once as a
    graph, vectorizes the graph, and records the result for each number of chains. ``"compile"``
    compiles that record. A record is compared with the function at random points before it is used,
    and made anew when a tensor changes that it has frozen; where it cannot be made or does not
    agree, the next plainer way is taken, with one warning.

    :param function: maps tensors of one chain to tensors (in a tuple, list or dict).
    :param example: makes random arguments of one chain.
    :param str backend: ``"eager"``, ``"trace"`` or ``"compile"``.
    :param Sequence data: tensors that the function uses besides its arguments.
    :param Fallback fallback: shared by functions of one model: none is recorded where another could
        not be, and no warning is given twice.
    :ivar tuple given: further arguments, which calls leave out: values that others hold, with a
        leading dimension of chains, or of one where all of these share them. The function and what
        ``graph`` and ``one_by_one`` take have them last.
    """

    def __init__(
        self,
        function: TensorFunction,
        example: Callable[[], Sequence[Tensor]],
        backend: Backend,
        data: Sequence[Tensor] = (),
        fallback: Fallback | None = None,
    ) -> None:
        self.function = function
        self.example = example
        self.backend = backend
        self._data = list(data)
        self._fallback = fallback or Fallback()
        self._graph: GraphModule | None = None
        self._frozen: list[tuple[Tensor, int]] = []
        self._graphs: dict[int, TensorFunction] = {}
        self._compiled: dict[int, TensorFunction] = {}
        self._is_vectorizable = True
        self.given: tuple[Tensor, ...] = ()

    def __call__(self, *batched: Tensor) -> Any:
        """Run over chains; the arguments have a leading chain dimension."""
        num_chains = len(batched[0])
        batched = self._with_given(batched)
        graph = self.graph(num_chains)
        if graph is None:
            return self.one_by_one(*batched)
        with (
            torch.no_grad(),
            self._threads(batched),
        ):  # gradients are in the graph; parameters of a module need no others
            if self.backend == "compile":
                if num_chains not in self._compiled:
                    self._compiled[num_chains] = self._compile(graph, *batched)
                graph = self._compiled[num_chains]
            return graph(*batched)

    def one_by_one(self, *batched: Tensor, errors: dict[int, Exception] | None = None) -> Any:
        """Run over chains without any graph.

        :param batched: the arguments, with a leading chain dimension.
        :param dict errors: where it is given, a chain whose function raises gets NaN as its result,
            and the error is put there by the number of the chain, unless there is one already.
        """
        with torch.no_grad():
            return _loop(self.function, *batched, errors=errors)

    def over_any(self, *batched: Tensor) -> Any:
        """Run over any number of chains without making a record for that number.

        Of many chains it runs some at a time, so that little memory is in use. With ``given``
        values the number is one that comes again, and has a record.
        """
        if self.given:
            return self.interpreted(*batched)
        graph = self.single()
        if graph is None:
            return self.one_by_one(*batched)
        with torch.no_grad(), self._threads(batched):
            if self._is_vectorizable:
                try:
                    return torch.func.vmap(graph, chunk_size=_chunk_size(graph))(*batched)
                except RuntimeError as error:
                    self._is_vectorizable = False
                    self._fallback.warn(_NO_VMAP, _ONE_BY_ONE, error)
            return _loop(graph, *batched)

    def over_one(self, *batched: Tensor) -> Any:
        """Run over a single chain as :meth:`over_any` does, but vectorize nothing.

        To vectorize a graph costs more than a small graph itself. Results are equal up to rounding.
        """
        graph = None if self.given else self.single()
        if graph is None:
            return self.over_any(*batched)
        with torch.no_grad(), self._threads(batched):
            return _loop(graph, *batched)

    def interpreted(self, *batched: Tensor) -> Any:
        """Run over chains through the record for their number, whatever the backend."""
        graph = self.graph(len(batched[0])) or self.one_by_one
        with torch.no_grad(), self._threads(batched):
            return graph(*self._with_given(batched))

    def _with_given(self, batched: Sequence[Tensor]) -> tuple[Tensor, ...]:
        num_chains = len(batched[0])
        given = (value.expand(num_chains, *value.shape[1:]) for value in self.given)
        return (*batched, *given)

    def _threads(self, batched: Sequence[Tensor]) -> AbstractContextManager[None]:
        """One thread where neither arguments nor data are large."""
        most = max((tensor.numel() for tensor in self._data), default=0)
        return threads_for(max(len(batched[0]) * most, *(each.numel() for each in batched)))

    def over_first(self, first: Tensor, *shared: Tensor) -> Any:
        """Run over the rows of the first argument, which share the others; differentiable."""
        graph = self.single()
        if graph is None or len(first) == 1:
            return _stacked([(graph or self.function)(row, *shared) for row in first])
        return torch.func.vmap(graph, (0, *[None] * len(shared)))(first, *shared)

    def single(self) -> GraphModule | None:
        """The recorded function of one chain, or ``None`` where it has to run eagerly."""
        if self._fallback.is_eager:
            self.backend = "eager"
        if self.backend == "eager":
            return None
        if self._changed():
            self._graph = None
            self._graphs.clear()
            self._compiled.clear()
        if self._graph is None:
            try:
                self._graph = self._capture()
            except CaptureError as error:
                self.backend = "eager"
                self._fallback.is_eager = True
                self._fallback.warn(
                    "the model cannot be recorded as a graph",
                    "its chains run one by one in Python, which is slower. Write branches on "
                    "latent values with torch.where, or silence this by backend='eager'",
                    error,
                )
        return self._graph

    def graph(self, num_chains: int) -> TensorFunction | None:
        """The function recorded for a number of chains, or ``None`` where it has to run eagerly."""
        single = self.single()
        if single is None:
            return None
        if num_chains not in self._graphs:
            self._graphs[num_chains] = self._vectorize(single, num_chains)
        return self._graphs[num_chains]

    def _capture(self) -> GraphModule:
        arguments, expected = self._finite_example()
        if not outputs_agree(self._evaluate(arguments), expected):
            raise ValueError(IS_RANDOM)
        graph = capture(self.function, *arguments, series=True)
        is_right = self._is_right(graph, arguments, expected)
        if not is_right and graph.meta["is_series"]:  # derivatives that the model gives are lost
            graph = capture(self.function, *arguments)
            is_right = self._is_right(graph, arguments, expected)
        if not is_right:
            raise CaptureError(
                "the graph disagrees with the model at a random point: a Python branch or a number "
                "taken out of a tensor was frozen"
            )
        return graph

    def _is_right(self, graph: GraphModule, arguments: Sequence[Tensor], expected: Any) -> bool:
        """Tell whether a graph agrees with the function at these arguments and at random ones."""
        frozen = [*self._data, *constants_of(graph), *graph.meta["asked"]]
        tensors = {id(tensor): tensor for tensor in frozen}
        self._frozen = [(tensor, version_of(tensor)) for tensor in tensors.values()]
        verdicts = [self._verdict(graph, arguments, expected)]
        # Where a matrix cannot be factored, or only just, a point tells nothing.
        while verdicts.count(True) <= _NUM_CHECKS and len(verdicts) < _NUM_TRIES:
            arguments = self.example()
            verdicts.append(self._verdict(graph, arguments, self._evaluate(arguments)))
        if self._changed():
            raise ValueError(CHANGES_DATA)
        return False not in verdicts

    def _verdict(
        self, graph: GraphModule, arguments: Sequence[Tensor], expected: Any
    ) -> bool | None:
        """Tell whether a graph gives the function's result, ``None`` if that is undecided."""
        if expected is None:
            return None
        with torch.no_grad(), threads_for(arguments[0].numel()):
            try:
                result = graph(*arguments)
                return agree_but_for_rounding(lambda: graph(*arguments), result, expected)
            except (IndexError, RuntimeError):  # shapes that follow from values were frozen
                return False

    def _finite_example(self) -> tuple[Sequence[Tensor], Any]:
        """Arguments to record with: what fails there could not be recorded."""
        for _ in range(_NUM_TRIES):
            arguments = self.example()
            expected = self._evaluate(arguments)
            leaves = pytree.tree_leaves(expected)
            if expected is not None and all(bool(torch.isfinite(leaf).all()) for leaf in leaves):
                break
        return arguments, expected

    def _evaluate(self, arguments: Sequence[Tensor]) -> Any:
        """Result of the function itself, ``None`` where a matrix cannot be factored."""
        try:
            with torch.no_grad(), threads_for(arguments[0].numel()):
                return self.function(*arguments)
        except factorization_errors():
            return None

    def _vectorize(self, single: GraphModule, num_chains: int) -> TensorFunction:
        """Record the graph over chains, and compare two of them with the graph of one."""
        examples = [self.example() for _ in range(min(num_chains, 2))]
        examples += examples[:1] * (num_chains - len(examples))
        batched = [torch.stack(list(tensors)) for tensors in zip(*examples, strict=True)]
        try:
            with torch.no_grad(), threads_for(batched[0].numel()):
                graph = vectorize(single, *batched)
                pair = [tensor[:2] for tensor in batched]
                result = pytree.tree_map(lambda leaf: leaf[:2], graph(*batched))
                verdict = agree_but_for_rounding(
                    lambda: _loop(single, *pair), result, _loop(single, *pair)
                )
                if verdict is False:
                    raise CaptureError("the vectorized graph disagrees with that of one chain")
        except CaptureError as error:
            self._fallback.warn(_NO_VMAP, _ONE_BY_ONE, error)
            return lambda *arguments: _loop(single, *arguments)
        return graph

    def _compile(self, graph: TensorFunction, *batched: Tensor) -> TensorFunction:
        if not isinstance(graph, GraphModule):
            return graph
        try:
            with torch.no_grad():
                compiled = compile_graph(graph, *batched)
                result, expected = compiled(*batched), graph(*batched)
                verdict = agree_but_for_rounding(lambda: graph(*batched), result, expected)
        except Exception as error:
            self._fallback.warn("the potential cannot be compiled", "using its graph", error)
            return graph
        if verdict is False:
            self._fallback.warn(
                "the compiled potential disagrees", "using its graph", "other numbers"
            )
            return graph
        return compiled

    def _changed(self) -> bool:
        return any(version_of(tensor) != version for tensor, version in self._frozen)


def _chunk_size(graph: GraphModule) -> int:
    """Number of chains whose largest tensors take little memory together."""
    found = (node.meta.get("val") for node in graph.graph.nodes)
    return rows_at_once(
        max((each.numel() for each in found if isinstance(each, Tensor)), default=0)
    )


def version_of(tensor: Tensor) -> int:
    """Count the in-place changes of a tensor; an inference tensor does not count them."""
    return 0 if tensor.is_inference() else tensor._version


def _loop(
    function: TensorFunction, *batched: Tensor, errors: dict[int, Exception] | None = None
) -> Any:
    results = []
    failed: dict[int, Exception] = {}
    for row, arguments in enumerate(zip(*batched, strict=True)):
        try:
            results.append(function(*arguments))
        except Exception as error:
            if errors is None:
                raise
            failed[row] = error
    if errors is not None and failed:
        errors.update({row: error for row, error in failed.items() if row not in errors})
        if not results:
            raise next(iter(failed.values()))
        nan = pytree.tree_map(lambda leaf: torch.full_like(leaf, torch.nan), results[0])
        for row in failed:
            results.insert(row, nan)
    return _stacked(results)


def _stacked(results: Sequence[Any]) -> Any:
    """Results of the same structure as one, with a leading dimension."""
    leaves, spec = zip(*map(pytree.tree_flatten, results), strict=True)
    stacked = [torch.stack(list(parts)) for parts in zip(*leaves, strict=True)]
    return pytree.tree_unflatten(stacked, spec[0])


_ROUNDINGS = 8.0


def outputs_agree(actual: object, expected: object) -> bool:
    """Tell whether two results are equal but for rounding; the scale is that of each whole tensor.

    :param actual: tensors in any structure.
    :param expected: the same.
    """
    pairs = zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True)
    return all(_leaves_agree(one, other) for one, other in pairs)


def agree_but_for_rounding(
    again: Callable[[], Any], actual: object, expected: object, num_perturbed: int = 4
) -> bool | None:
    """Tell whether two results are equal but for rounding, as large as the function makes it.

    Results that are near each other agree. Others are measured by how far the function's result
    moves where each number that an operation takes is off by a rounding: as much as conditioning
    makes of it. What a branch does, or a frozen number, is more, unless the point tells nothing.

    :param again: computes one of the two results anew, of the same arguments.
    :param actual: tensors in any structure.
    :param expected: the same.
    :param int num_perturbed: most times that the result is computed with roundings.
    :returns: ``None`` where rounding decides whether the result is finite, so that nothing can be
        told.

    Example::

        >>> def difference():
        ...     return (1e6 + torch.tensor(0.3)) - 1e6
        >>> difference(), agree_but_for_rounding(difference, difference(), torch.tensor(0.3))
        (tensor(0.3125), True)
    """
    if outputs_agree(actual, expected):
        return True
    center = pytree.tree_leaves(again()) if num_perturbed else []
    pairs = list(zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True))
    spreads = [0.0] * len(center)
    for seed in range(num_perturbed):
        with _Perturbation(seed):
            perturbed = pytree.tree_leaves(again())
        for i, (leaf, other) in enumerate(zip(center, perturbed, strict=True)):
            finite = leaf.isfinite()
            if not torch.equal(finite, other.isfinite()):
                return None
            if leaf.is_floating_point() and finite.any():
                spreads[i] = max(spreads[i], float((leaf - other)[finite].abs().max()))
        bounds = (_ROUNDINGS * spread for spread in spreads)
        if all(_leaves_agree(*pair, bound) for pair, bound in zip(pairs, bounds, strict=True)):
            return True
    return False


def _leaves_agree(actual: Tensor, expected: Tensor, rounding: float = 0.0) -> bool:
    """Tell whether two tensors agree up to a fraction of the largest number and rounding."""
    if not expected.is_floating_point():
        return torch.equal(actual, expected)
    finite = torch.isfinite(expected)
    if not torch.equal(torch.isfinite(actual), finite):
        return False
    if not finite.any():
        return True
    tolerance = 1e-3 if expected.dtype != torch.float64 else 1e-8
    allowed = tolerance * (1.0 + expected[finite].abs().max()) + rounding
    return bool(((actual - expected)[finite].abs() <= allowed).all())


class _Perturbation(TorchDispatchMode):
    """Lets each operation take floating-point numbers that are off by a rounding."""

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = func._schema
        # Views and writes have to go to the tensor itself; whoever reads it takes other numbers.
        if not schema.is_mutable and all(r.alias_info is None for r in schema.returns):
            args, kwargs = pytree.tree_map_only(Tensor, self._perturbed, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _perturbed(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = torch.rand(
            tensor.shape, generator=self._generator, dtype=tensor.dtype, device="cpu"
        )
        eps = torch.finfo(tensor.dtype).eps
        return tensor * (1.0 + eps * (2.0 * noise - 1.0)).to(tensor.device)
