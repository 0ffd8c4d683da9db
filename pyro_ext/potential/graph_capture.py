"""Graph capture: a pure tensor function recorded once, and vectorized over chains."""

import contextlib
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyro_ext.potential._graph_passes import (
    drop_identities,
    fold_constants,
    join_products,
    mutates,
    recordable,
    rewrite,
    uses_strides,
)
from pyro_ext.potential.evaluation import without_validation

__all__ = [
    "CaptureError",
    "Fallback",
    "Gradient",
    "TensorFunction",
    "capture",
    "capture_abstract",
    "value_and_gradient",
    "vectorize",
    "warn_fallback",
]

TensorFunction = Callable[..., Any]
# Where an error of a model's own line is not: Pyro, PyTorch, this package, and `contextlib`.
_LIBRARIES = (
    str(Path(pyro.__file__).parent),
    str(Path(torch.__file__).parent),
    str(Path(__file__).parents[1]),
)
_STDLIB = Path(contextlib.__file__).parent


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


def capture(function: TensorFunction, *example: Tensor) -> GraphModule:
    """Record a function of tensors as a graph of tensor operations.

    Shapes, Python branches and every tensor that is not an argument are frozen in the graph.

    :param function: the function; it may differentiate inside.
    :param example: arguments to record it with.
    :returns: the graph.
    :raises CaptureError: where the function branches on a value, or uses what cannot be recorded.
    """
    try:
        with without_validation(), recordable():
            graph = _record(function, *example)
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
    return graph


def _record(function: TensorFunction, *example: Tensor) -> GraphModule:
    # Without a mode to share, the recorder makes one for each tensor, which takes as long as all
    # the rest.
    # Attention in one piece has no vectorized form; written out it has.
    with tracing(TracingContext(FakeTensorMode())), sdpa_kernel(SDPBackend.MATH):
        # It counts the arguments of what it is given, and miscounts those of a method.
        return make_fx(lambda *arguments: function(*arguments))(*example)


def _record_pure(function: TensorFunction, *example: Tensor) -> GraphModule:
    """Record a function without operations that change tensors in place."""
    graph = function if isinstance(function, GraphModule) else _record(function, *example)
    graph = _record(torch.func.functionalize(graph), *example)
    rewrite(graph)
    return graph


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
    """What functions of one model share: whether it can be recorded at all, and warnings given."""

    def __init__(self, is_quiet: bool = False) -> None:
        self.is_eager = False
        self.is_quiet = is_quiet
        self._given: set[str] = set()

    def warn(self, what: str, instead: str, reason: object) -> None:
        """Warn as :func:`warn_fallback` does, unless that has been said."""
        if what not in self._given and not self.is_quiet:
            self._given.add(what)
            warn_fallback(what, instead, reason)
