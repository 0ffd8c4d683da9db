"""Values that a Pyro model returns, and the density of its sample sites."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, Transform, biject_to

from pyro_ext.posterior.fixed_points import Noise

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
        for site, entry in self._trace().nodes.items():
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

    @property
    def model(self) -> Callable[[], Value]:
        """The model.

        :raises TypeError: for a value.
        """
        if self._model is None:
            raise TypeError(f"{self._value!r:.80} is no model")
        return self._model

    def draw(self) -> dict[str, Tensor]:
        """Values of the sites from their prior."""
        nodes = self._trace().nodes if self._model is not None else {}
        return {name: nodes[name]["value"].detach() for name in self.names}

    def fixed(self, noise: Noise) -> dict[str, Tensor]:
        """Values of the sites that do not depend on their prior."""
        values = {}
        for name, value in self.draw().items():
            transform = self.transforms[name]
            values[name] = transform(noise(name, transform.inverse_shape(value.shape)).to(value))
        return values

    def at(self, values: Mapping[str, Tensor]) -> tuple[Value, Tensor]:
        """What the model returns for values of its sites, and their log density.

        The density is that of the unconstrained values.
        """
        total = torch.zeros((), dtype=torch.float64)
        if self._model is None:
            return self._value, total
        sites = _Sites({name: values[name] for name in self.names})
        with torch.no_grad(), sites:
            returned = self._model()
            for name, transform in self.transforms.items():
                value = values[name]
                total = total + sites.laws[name].log_prob(value).sum()
                place = transform.inv(value)
                total = total + transform.log_abs_det_jacobian(place, value).sum()
        return returned, total

    def _trace(self) -> Any:
        with torch.no_grad():
            return poutine.trace(self.model).get_trace()


class _Sites(Messenger):
    """Gives sites their values, and keeps their laws, which is less work than a trace."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._values = values
        self.laws: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._values:
            msg["value"] = self._values[msg["name"]]
            self.laws[msg["name"]] = msg["fn"]
        msg["stop"] = True
