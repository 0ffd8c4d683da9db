"""What the distributions share that a measure is the parameter of."""

from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution

from pyro_ext.random_measures._arguments import check_measure

if TYPE_CHECKING:
    from pyro_ext.random_measures._measure import CompletelyRandomMeasure

__all__ = ["MeasureLaw"]


class MeasureLaw(TorchDistribution):
    """Distribution of a number with the batch shape of a measure.

    Other tensors of this shape that a subclass stores are named in ``_tensors``.
    """

    arg_constraints: dict[str, Any] = {}
    measure: "CompletelyRandomMeasure"
    _tensors: tuple[str, ...] = ()

    def __init__(
        self, measure: "CompletelyRandomMeasure", validate_args: bool | None = None
    ) -> None:
        check_measure("measure", measure)
        self.measure = measure
        super().__init__(measure.batch_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """Sizes that weights of the measure can have."""
        return self.measure.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Repeat the distribution over a larger batch shape.

        :param torch.Size batch_shape: the new shape.
        :returns: the distribution of that shape.
        """
        new = self._get_checked_instance(type(self), _instance)  # type: ignore[no-untyped-call]
        shape = torch.Size(batch_shape)
        vars(new).update(vars(self), measure=self.measure.expand(shape))
        for name in self._tensors:
            setattr(new, name, getattr(self, name).expand(shape))
        super(MeasureLaw, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        return new
