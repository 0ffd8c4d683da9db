"""Graph capture: a pure tensor function recorded once, and vectorized over chains."""

import contextlib
import gc
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_ext.potential._graph_passes import (
    data_behind,
    drop_identities,
    fold_constants,
    join_products,
    mutates,
    recordable,
    rewrite,
    uses_strides,
)
from pyro_ext.potential._recorder import Recorder
from pyro_ext.potential._series import Series
from pyro_ext.potential.evaluation import without_validation

TensorFunction = Callable[..., Any]
# Where an error of a model's own line is not: Pyro, PyTorch, this package, and `contextlib`.
_LIBRARIES = (
    str(Path(pyro.__file__).parent),
    str(Path(torch.__file__).parent),
    str(Path(__file__).parents[1]),
)
_STDLIB = Path(contextlib.__file__).parent
_INDEX, _INDEX_PUT = torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default
_DEPENDS_ON_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def value_and_gradient(
    potential: Callable[..., Tensor], flat: Tensor, *rest: Tensor
) -> tuple[Tensor, Tensor]:
    """Value and gradient of a scalar function of a flat vector, as plain tensors."""
    with torch.enable_grad():
        leaf = flat.detach().requires_grad_()
        value = potential(leaf, *rest)
        (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


class Gradient:
    """The function that gives value and gradient of a scalar function of a flat vector."""

    def __init__(self, value: Callable[..., Tensor]) -> None:
        self.value = value

    def __call__(self, flat: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient; see :func:`value_and_gradient`."""
        return value_and_gradient(self.value, flat, *rest)


class CaptureError(RuntimeError):
    """A function could not be recorded as a graph."""


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Collect no cycles inside: with collection, recording a model takes up to a third longer."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@collection_paused()
def capture(function: TensorFunction, *example: Tensor, series: bool = False) -> GraphModule:
    """Record a function of tensors as a graph of tensor operations.

    Shapes, Python branches and every tensor that is not an argument are frozen in the graph. What
    Python asks of tensors that depend on no argument, such as the length of a loop, is frozen, too.

    :param function: the function; it may differentiate inside.
    :param example: arguments to record it with.
    :param bool series: whether what a loop in Python does at all of its steps may be done at once,
        which changes roundings; ``graph.meta["is_series"]`` is whether it is.
    :returns: the graph; ``graph.meta["asked"]`` holds the tensors that Python has asked.
    :raises CaptureError: where the function branches on a value, or uses what cannot be recorded.
    """
    data = _Data()
    try:
        with without_validation(), recordable():
            shorter = _as_series(function, *example, data=data) if series else None
            function = function if shorter is None else shorter
            graph = _record(function, *example, data=data)
            if mutates(graph):
                graph = _record_pure(graph, *example)
            if uses_strides(graph) and isinstance(function, Gradient):
                # Differentiating a write into a part of a tensor gives what cannot be vectorized.
                # To differentiate the record of the value, in which nothing is written, will do.
                value = _record_pure(function.value, *example)
                graph = _record(Gradient(value), *example)
    except Exception as error:
        first, *others = (str(error).strip() or type(error).__name__).splitlines()
        reason = f"{first} {others[0].strip()}" if others and first.endswith(":") else first
        raise CaptureError(f"{_line_of_user(error)}{reason}") from error
    rewrite(graph)
    drop_identities(graph)
    graph.meta |= {"asked": data.asked, "is_series": shorter is not None}
    return graph


def _as_series(function: TensorFunction, *example: Tensor, data: "_Data") -> TensorFunction | None:
    """A function that does at once what a long loop in Python does at all of its steps."""
    recorder = Recorder(*example)
    data.behind = recorder.behind
    try:
        with torch.no_grad(), recorder, data:
            result = (function.value if isinstance(function, Gradient) else function)(*example)
        with torch.no_grad():
            series = Series(recorder, result)
            series(*example)  # some operations take no leading dimension
    except Exception:  # whatever it is, the function itself may do
        return None
    finally:
        data.behind = data_behind
    data.asked += recorder.roots.values()
    return Gradient(series) if isinstance(function, Gradient) else series


class _Data(TorchDispatchMode):
    """Answers what Python asks of data while a function is recorded, and notes which data."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.asked: list[Tensor] = []
        self.behind: Callable[[Tensor], list[Tensor | None]] = data_behind

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (_INDEX, _INDEX_PUT):
            indices = [each if each is None else self._positions(each) for each in args[1]]
            args = (args[0], [part for each in indices for part in _listed(each)], *args[2:])
        elif _DEPENDS_ON_VALUES & set(function.tags):
            tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
            if self._are_data(tensors):
                with disable_proxy_modes_tracing():
                    return function(*args, **kwargs)
        return function(*args, **kwargs)

    def _positions(self, index: Tensor) -> Any:
        """Positions at which a mask is true, one tensor for each of its dimensions."""
        if index.dtype not in (torch.bool, torch.uint8) or not self._are_data([index]):
            return index
        with disable_proxy_modes_tracing():
            return list(index.nonzero().unbind(-1))

    def _are_data(self, tensors: Sequence[Tensor]) -> bool:
        """Tell whether tensors depend on no argument; those that they come from are noted."""
        roots = [root for tensor in tensors for root in self.behind(tensor)]
        if None in roots:
            return False
        self.asked += [root for root in roots if root is not None]
        return True


class PickedByNumber(TorchFunctionMode):
    """Takes elements at numbers in tensors, of which PyTorch would ask the values, as a graph can.

    It is for values that are discrete, such as those of other sites in a block of a sampler.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is not Tensor.__getitem__:
            return function(*args, **(kwargs or {}))
        tensor, index = args
        parts = index if isinstance(index, tuple) else (index,)
        is_number = [_is_number(part) for part in parts]
        count = sum(is_number)
        if not count or not all(is_number[:count]):
            return function(tensor, index)
        numbers = tuple(part.reshape(1) for part in parts[:count])
        return function(tensor, (*numbers, *parts[count:])).squeeze(0)


def _is_number(part: Any) -> bool:
    """Tell whether a part of an index is a tensor of a single whole number."""
    is_whole = isinstance(part, Tensor) and not part.is_floating_point()
    return is_whole and part.dim() == 0 and part.dtype != torch.bool


def _listed(index: Any) -> list[Any]:
    return index if isinstance(index, list) else [index]


def _record(
    function: TensorFunction, *example: Tensor, data: AbstractContextManager[Any] | None = None
) -> GraphModule:
    # Without a mode to share, the recorder makes one for each tensor, which takes as long as all
    # the rest.
    # Attention in one piece has no vectorized form; written out it has.
    with tracing(TracingContext(FakeTensorMode())), sdpa_kernel(SDPBackend.MATH):

        def run(*arguments: Tensor) -> Any:  # not a method, whose arguments would be miscounted
            with data or nullcontext():
                return function(*arguments)

        return make_fx(run)(*example)


def _record_pure(function: TensorFunction, *example: Tensor) -> GraphModule:
    """Record a function without operations that change tensors in place."""
    graph = function if isinstance(function, GraphModule) else _record(function, *example)
    graph = _record(torch.func.functionalize(graph), *example)
    rewrite(graph)
    return graph


@collection_paused()
def capture_abstract(function: TensorFunction, *example: Tensor) -> GraphModule:
    """Record a function on the shapes and types of its arguments, as one with a loop has to be.

    :param function: the function, which changes no tensor in place and asks for no number.
    :param example: arguments to take the shapes and types of.
    :returns: the graph.
    """
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # slow to import

    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)
    with torch.no_grad(), without_validation(), tracing(TracingContext(mode)):
        abstract = [mode.from_tensor(argument) for argument in example]
        return make_fx(lambda *arguments: function(*arguments))(*abstract)


def vectorize(graph: GraphModule, *example: Tensor) -> GraphModule:
    """Record a graph of one chain as a graph over a leading dimension of chains."""
    vectorized = capture(torch.func.vmap(graph), *example)
    join_products(vectorized)
    # Not before: some vectorized forms need all that they take to be vectorized.
    fold_constants(vectorized)
    return vectorized


def _line_of_user(error: Exception) -> str:
    """Say in which line of a model an error arose, the innermost outside of the libraries."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not (frame.filename.startswith(_LIBRARIES) or Path(frame.filename).parent == _STDLIB):
            return f"in `{frame.line}`, line {frame.lineno} of {Path(frame.filename).name}: "
    return ""


def warn_fallback(what: str, instead: str, reason: object) -> None:
    """Say once that a slower way is taken, and why."""
    first = str(reason).strip().split("\n\n")[0]  # a compiler's hints on debugging follow it
    warnings.warn(f"{what}; {instead}. Reason: {first}", stacklevel=3)


class Fallback:
    """Shared state of the functions of one model: whether it can be recorded, and past warnings."""

    def __init__(self, is_quiet: bool = False) -> None:
        self.is_eager = False
        self.is_quiet = is_quiet
        self._given: set[str] = set()

    def warn(self, what: str, instead: str, reason: object) -> None:
        """Warn as :func:`warn_fallback` does, unless that has been said."""
        if what not in self._given and not self.is_quiet:
            self._given.add(what)
            warn_fallback(what, instead, reason)
