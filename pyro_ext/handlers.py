"""Handlers: what changes the way a Pyro model runs, from outside the model."""

from collections.abc import Callable, Mapping
from typing import Any, Self

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

__all__ = ["replace_observations"]


def replace_observations(
    model: Callable[..., Any], data: Mapping[str, Tensor]
) -> Callable[..., Any]:
    """Let a model observe other values than its own.

    The values are over all of the data. Inside a plate that subsamples, the model observes those of
    the elements that it looks at, which :func:`pyro.poutine.condition` leaves to the caller. Sites
    without a value here keep what they observe.

    :param model: a Pyro model. It takes its arguments as before.
    :param Mapping data: values by site, which becomes an observed one. They have the form of
        :meth:`Potential.observations() <pyro_ext.potential.Potential.observations>`: every plate at
        its full size, but one of which the model itself picks a part (``subsample=...``) with the
        elements it picks. **Shape:** ``(*batch, *event)`` each.
    :returns: the model that observes them.
    :raises ValueError: as it runs, for a name that is no site of the model or a deterministic one,
        and for values that do not have the size of a plate.

    Example::

        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x), subsample_size=2) as index:
        ...         return pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])
        >>> other = replace_observations(model, {"x": torch.full((5,), 3.0)})
        >>> other(torch.zeros(5))
        tensor([3., 3.])
    """
    replaced: Callable[..., Any] = _ReplaceObservations(data)(model)
    return replaced


class _ReplaceObservations(Messenger):
    """Gives observed sites the values of the elements that their plates look at."""

    def __init__(self, data: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.data = dict(data)
        self._indices: dict[str, Any] = {}
        self._given_plates: set[str] = set()
        self._met: set[str] = set()

    def __enter__(self) -> Self:
        self._indices, self._given_plates, self._met = {}, set(), set()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        if exception[0] is None and (unknown := sorted(set(self.data) - self._met)):
            raise ValueError(f"data names {unknown}, which are no sample sites of the model")

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if site_is_subsample(msg):
            if msg["value"] is not None:  # handlers outside of this one have yet to see it
                self._given_plates.add(name)
        elif name in self.data:
            if msg["infer"].get("_deterministic", False):
                raise ValueError(f"data names {name!r}, which is a deterministic site of the model")
            self._met.add(name)
            msg["value"] = self._seen_part(msg)
            msg["is_observed"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self._indices[msg["name"]] = msg["value"]

    def _seen_part(self, msg: Any) -> Tensor:
        name, value = msg["name"], self.data[msg["name"]]
        event_dim = len(msg["fn"].event_shape)
        for frame in msg["cond_indep_stack"]:
            dim = None if frame.dim is None else frame.dim - event_dim
            if dim is None or value.dim() < -dim or value.shape[dim] == 1:
                continue
            is_given = frame.name in self._given_plates
            wanted = frame.size if is_given else frame.full_size
            if value.shape[dim] != wanted:
                raise ValueError(
                    f"data[{name!r}] has shape {tuple(value.shape)}, wanted {wanted} elements "
                    f"along dimension {dim}, one for each of the plate {frame.name!r}"
                )
            if frame.size < frame.full_size and not is_given:
                value = value.index_select(dim, self._index(frame.name).to(value.device))
        return value

    def _index(self, plate: str) -> Tensor:
        if plate not in self._indices:
            raise ValueError(
                f"the plate {plate!r} subsamples and was made outside of the model; make it as the "
                "model runs"
            )
        index: Tensor = self._indices[plate]
        return index
