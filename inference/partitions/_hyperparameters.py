"""Values that a Pyro model returns, and the density of its sample sites."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import pyro.poutine as poutine
import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Distribution, Transform, biject_to

__all__ = ["Hyperparameters"]

Value = TypeVar("Value")


class Hyperparameters(Generic[Value]):
    """A value, or a Pyro model of no arguments that returns one.

    :param source: the value, or the model.
    :param str name: how the caller names it.
    :raises ValueError: for a model with a site that is discrete or observed.
    """

    def __init__(self, source: Value | Callable[[], Value], name: str) -> None:
        self._value: Any = None
        self._model: Callable[[], Value] | None = None
        self.transforms: dict[str, Transform] = {}
        # A distribution can be called too, for a draw.
        if not callable(source) or isinstance(source, Distribution):
            self._value = source
            return
        self._model = source
        for site, entry in self._trace({}).nodes.items():
            if entry["type"] != "sample" or entry["infer"].get("_deterministic"):
                continue
            if entry["is_observed"] or entry["fn"].has_enumerate_support:
                kind = "observed" if entry["is_observed"] else "discrete"
                raise ValueError(
                    f"{name} has the {kind} site {site!r}; its sites must be continuous latent ones"
                )
            self.transforms[site] = biject_to(entry["fn"].support)

    @property
    def names(self) -> list[str]:
        """Names of the sites."""
        return list(self.transforms)

    def draw(self) -> dict[str, Tensor]:
        """Values of the sites from their prior."""
        nodes = self._trace({}).nodes if self._model is not None else {}
        return {name: nodes[name]["value"].detach() for name in self.names}

    def at(self, values: Mapping[str, Tensor]) -> tuple[Value, Tensor]:
        """What the model returns for values of its sites, and their log density.

        The density is that of the unconstrained values.
        """
        if self._model is None:
            return self._value, torch.zeros((), dtype=torch.float64)
        trace = self._trace({name: values[name] for name in self.names})
        total = torch.zeros((), dtype=torch.float64)
        for name, transform in self.transforms.items():
            site, value = trace.nodes[name], values[name]
            total = total + site["fn"].log_prob(value).sum().double()
            place = transform.inv(value)
            jacobian = transform.log_abs_det_jacobian(place, value)
            total = total + sum_rightmost(jacobian, jacobian.dim()).double()
        returned: Value = trace.nodes["_RETURN"]["value"]
        return returned, total

    def _trace(self, values: Mapping[str, Tensor]) -> Any:
        assert self._model is not None
        model = poutine.condition(self._model, data=dict(values))
        with torch.no_grad():
            return poutine.trace(model).get_trace()
