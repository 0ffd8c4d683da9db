"""The potential of a plain function of parameters, with the surface that kernels need."""

from collections.abc import Callable, Mapping

from torch import Tensor

from pyro_ext._checks import check_callable, check_tensors
from pyro_ext.potential._batched import Backend, BatchedFunction, RandomPoints, check_backend
from pyro_ext.potential._capture import Gradient
from pyro_ext.potential._layout import Layout
from pyro_ext.potential._structure import Plate

__all__ = ["FunctionPotential"]


class FunctionPotential:
    """A potential given as a function of one chain's unconstrained parameters.

    :param potential_fn: maps a dict of tensors to a scalar.
    :param Mapping params: parameters with a leading chain dimension, for their shapes and types.
    :param str backend: as for :class:`~pyro_ext.potential.Potential`.
    :raises ValueError: where the function does not return a scalar.
    """

    subsampled_plates: tuple[Plate, ...] = ()
    data_size = 1

    def __init__(
        self,
        potential_fn: Callable[[dict[str, Tensor]], Tensor],
        params: Mapping[str, Tensor],
        backend: Backend = "trace",
    ) -> None:
        check_backend(backend)
        check_callable("potential_fn", potential_fn)
        params = check_tensors("params", params, finite=True)
        first = next(iter(params.values()))
        self.layout = Layout(
            {name: value.shape[1:] for name, value in params.items()},
            {name: value.dtype for name, value in params.items()},
            first.device,
        )
        self.layout.check(params, "initial_params")
        self._potential_fn = potential_fn
        self._start = self.layout.flatten(params)[0].detach()
        value = self._value(self._start)
        if not isinstance(value, Tensor) or value.dim() != 0:
            raise ValueError(f"potential_fn must return a scalar tensor, got {value!r:.80}")
        self._points = RandomPoints(self._start)
        self.value = BatchedFunction(self._value, self._example, backend)
        self.gradient = BatchedFunction(Gradient(self._value), self._example, backend)

    def full_value_and_grad(self, params: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Potential and its gradient for each chain, as of :class:`Potential`."""
        self.layout.check(params, "params")
        value, gradient = self.gradient.over_any(self.layout.flatten(params).detach())
        return value, self.layout.unflatten(gradient)

    def _value(self, flat: Tensor) -> Tensor:
        return self._potential_fn(self.layout.unflatten(flat))

    def _example(self) -> list[Tensor]:
        return [self._points()]
