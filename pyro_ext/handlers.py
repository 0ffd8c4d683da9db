"""Handlers, which change how a Pyro model runs without changing the model."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from pyro.distributions import Delta
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_ext._consistency import consistency
from pyro_ext._lib import checks

__all__ = [
    "consistency",
    "data_weights",
    "obs_dropout",
    "purify",
    "replace_observations",
    "subsample_instances",
]


def replace_observations(
    model: Callable[..., Any], data: Mapping[str, Tensor]
) -> Callable[..., Any]:
    """Make a model observe other values than its own.

    Pass values for all of the data. In a plate that subsamples, the model observes the values of
    the elements in the subsample; :func:`pyro.poutine.condition` leaves this selection to the
    caller. Sites without a value here keep their observations.

    :param model: a Pyro model. It takes its arguments as before.
    :param Mapping data: values by site; these sites become observed. They have the form of
        :meth:`Potential.observations() <pyro_ext.potential.Potential.observations>`: every plate
        has its full size, except a plate whose elements the model itself picks
        (``subsample=...``), which has just these elements. **Shape:** ``(*batch, *event)`` each.
    :returns: the model that observes them.
    :raises ValueError: when the model runs, if a name is not a site of the model or is a
        deterministic site, or values do not have the size of a plate.

    Example::

        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x), subsample_size=2) as index:
        ...         return pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])
        >>> other = replace_observations(model, {"x": torch.full((5,), 3.0)})
        >>> other(torch.zeros(5))
        tensor([3., 3.])
    """
    checks.function("model", model, "a Pyro model")
    data = checks.tensors("data", data)
    replaced: Callable[..., Any] = _ReplaceObservations(data)(model)
    return replaced


def data_weights(plate: str, weights: Tensor) -> "_DataWeights":
    """Multiply the log density of each observation in a plate by a weight.

    This is a handler: wrap a model in it, as in ``data_weights("data", weights)(model)``, or use it
    as a context manager. The weights multiply any scale of the observed sites in the plate. If the
    plate subsamples, they are those of the subsample. Latent sites keep their densities, even in
    the plate.

    Weights of one do not change the model. With weights from a Dirichlet distribution, multiplied
    by their number, the maximum of the weighted likelihood is a draw of the weighted likelihood
    bootstrap, see :class:`~pyro_ext.inference.PosteriorBootstrap`.

    :param str plate: name of the plate.
    :param Tensor weights: a weight for each element of the whole plate, even if the plate
        subsamples. **Shape:** ``(size,)``.
    :returns: the handler.
    :raises ValueError: for weights of another shape or, when the model runs, if they do not have
        the size of the plate, or no observed site is in a plate with this name.

    Example::

        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> weighted = data_weights("data", torch.tensor([0.0, 3.0]))(model)
        >>> trace = pyro.poutine.trace(weighted).get_trace(torch.tensor([5.0, 1.0]))
        >>> trace.nodes["x"]["scale"]
        tensor([0., 3.])
    """
    checks.instance("plate", plate, str, "the name of a plate")
    return _DataWeights(plate, checks.as_tensor("weights", weights, "(size,)"))


def obs_dropout(
    sites: Sequence[str], rate: float, generator: torch.Generator | None = None
) -> "_ObsDropout":
    """Hide random observed entries from the part of a model that uses certain masks [1].

    This is a handler for training: wrap a model in it, as in ``obs_dropout(["seen"], 0.3)(model)``,
    or use it as a context manager. The sites are masks that the model names, as in
    ``seen = pyro.deterministic("seen", mask, event_dim=2)``, with ``True`` or one for observed
    entries. Code after such a site sees each observed entry with probability ``1 - rate``; code
    that used the mask before sees all of them. To predict, run the model without the handler.

    A network that learns from series whose gaps are filled by a model then cannot rely on observed
    entries alone; it must also use the filled ones. Each element of the plates around a site has
    its own mask, and so has each particle of an ELBO with ``vectorize_particles=True``.

    :param Sequence sites: names of the sites.
    :param float rate: the probability of hiding an observed entry, from 0 to 1.
    :param generator: the generator of the masks. Default: PyTorch's global one.
    :returns: the handler.
    :raises ValueError: for a rate out of range or, when the model runs, if a name is not a site or
        is a latent site, or values are not a mask.

    [1] S. Kim, H. Kim, E. Yun, H. Lee, J. Lee, J. Lee (2023), Probabilistic imputation for
    time-series classification with missing data.

    Example::

        >>> def model(x, mask):
        ...     with pyro.plate("data", len(x)):
        ...         seen = pyro.deterministic("seen", mask, event_dim=1)
        ...         return torch.where(seen, x, 0.0)
        >>> generator = torch.Generator().manual_seed(0)
        >>> in_training = obs_dropout(["seen"], 0.5, generator)(model)
        >>> in_training(torch.ones(2, 4), torch.tensor([[True] * 4, [False] * 4]))
        tensor([[0., 1., 0., 0.],
                [0., 0., 0., 0.]])
    """
    sites = checks.sequence("sites", sites, "a list of names of sites", kind=str)
    rate = checks.number("rate", rate, least=0.0, most=1.0)
    checks.optional(
        checks.instance, "generator", generator, torch.Generator, "a torch.Generator or None"
    )
    return _ObsDropout(sites, rate, generator)


def purify(
    purifier: Callable[[Tensor], Tensor], sites: Sequence[str], event_dim: int | None = None
) -> "_Purify":
    """Purify the observations or inputs of a model before the model uses them.

    This is a handler: wrap a model in it, as in ``purify(purifier, ["x"])(model)``, or use it as a
    context manager. The sites are observed sites, or inputs that the model names, as in
    ``x = pyro.deterministic("x", x, event_dim=3)``. Code after such a site sees the purified
    values. Put other handlers that set the values of sites, such as :func:`pyro.poutine.condition`,
    inside this one.

    The purifier gets the elements that the model sees, which in a subsampled plate are only the
    subsample, with all plate dimensions flattened into one. If it is random, each run of the model
    draws anew. This is right for predictions; give a sampler data that were purified once.

    :param Callable purifier: a function that maps values ``(n, *event)`` to the same shape, such as
        an :class:`~pyro_ext.models.diffusion.AdaptiveScorePurifier`.
    :param Sequence sites: names of the sites.
    :param int event_dim: the number of rightmost dimensions that form one value for the purifier.
        Default: those of the event of each site. You must pass it, 3 for images, if the whole value
        is a single event, such as an input named without ``event_dim`` or a single image.
    :returns: the handler.
    :raises ValueError: when the model runs, if a name is not a site or is a latent site, if
        ``event_dim`` is missing or too large, or if the purifier changes a shape.

    Example::

        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         x = pyro.deterministic("x", x, event_dim=1)
        ...         return pyro.sample("label", dist.Bernoulli(logits=x.sum(-1)))
        >>> clipped = purify(lambda x: x.clamp(0.0, 1.0), ["x"])(model)
        >>> trace = pyro.poutine.trace(clipped).get_trace(torch.tensor([[0.5, 9.0]]))
        >>> trace.nodes["label"]["fn"].logits
        tensor([1.5000])
    """
    checks.function("purifier", purifier, "a function of tensors", or_class=False)
    sites = checks.sequence("sites", sites, "a list of names of sites", kind=str)
    event_dim = checks.optional(checks.integer, "event_dim", event_dim, 0)
    return _Purify(purifier, sites, event_dim)


def subsample_instances(
    plate: str, rate: float, generator: torch.Generator | None = None
) -> "_SubsampleInstances":
    """Subsample the elements of a plate at random, without scaling up their densities.

    This is a handler for training: wrap a model in it, as in ``subsample_instances("instances",
    0.5)(model)``, or use it as a context manager. In each run, the plate gets another subset of
    ``max(1, round(rate * size))`` elements, in their original order. To predict, run the model
    without the handler. Pyro's own subsampling represents all elements of a plate and scales
    densities up. If the elements are the instances of a bag with one label, that would be wrong:
    the subset is a bag of its own [1], and densities of sites in the plate, observed or latent,
    count once. Other plates, such as one over bags, subsample and scale as usual. A guide with
    sites in the plate needs the handler too.

    A plate has a single subset, even if it is crossed with other plates. For bags of different
    sizes in one tensor, use :func:`~pyro_ext.models.sets.subsample_bags`.

    :param str plate: name of the plate of instances, which the model creates when it runs.
    :param float rate: the fraction of instances to keep, in ``(0, 1]``.
    :param generator: the generator of the subsets. Default: PyTorch's global one.
    :returns: the handler.
    :raises ValueError: for a rate out of range or, when the model runs, if there is no such plate,
        it is empty, or it subsamples itself.

    [1] S. Keum, S. Kim, S. Lee, J. Lee (2023), Slot-Mixup with subsampling: a simple regularization
    for WSI classification.

    Example::

        >>> def model(x, label):
        ...     with pyro.plate("instances", len(x)) as index:
        ...         bag = x[index]
        ...     pyro.sample("label", dist.Bernoulli(logits=bag.max()), obs=label)
        >>> generator = torch.Generator().manual_seed(0)
        >>> in_training = subsample_instances("instances", 0.4, generator)(model)
        >>> trace = pyro.poutine.trace(in_training).get_trace(torch.randn(5), torch.tensor(1.0))
        >>> len(trace.nodes["instances"]["value"]), trace.nodes["label"]["scale"]
        (2, 1.0)
    """
    checks.instance("plate", plate, str, "the name of a plate")
    rate = checks.number("rate", rate, above=0.0, most=1.0)
    checks.optional(
        checks.instance, "generator", generator, torch.Generator, "a torch.Generator or None"
    )
    return _SubsampleInstances(plate, rate, generator)


class _NamesParts(Messenger):
    """Is about sites or plates of some names, all of which the model has to have."""

    _missing: str  # the error, of the list of names

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = frozenset(names)
        self._met: set[str] = set()

    def __enter__(self) -> Self:
        self._met = set()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        if exception[0] is None and (missing := sorted(self.names - self._met)):
            raise ValueError(self._missing.format(missing))


class _SeesSubsamples(_NamesParts):
    """Knows which elements the plates of a model look at, as it runs."""

    def __enter__(self) -> Self:
        self._indices: dict[str, Any] = {}
        super().__enter__()
        return self

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self._indices[msg["name"]] = msg["value"]

    def _index(self, plate: str) -> Tensor:
        if plate not in self._indices:
            raise ValueError(
                f"the plate {plate!r} subsamples and was created outside of the model; create it "
                "inside"
            )
        index: Tensor = self._indices[plate]
        return index


class _DataWeights(_SeesSubsamples):
    """Scales observed sites of a plate, element by element."""

    _missing = "the model has no observed site in a plate named {0[0]!r}"

    def __init__(self, plate: str, weights: Tensor) -> None:
        super().__init__([plate])
        self.plate = plate
        self.weights = weights

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] or msg["infer"].get("_deterministic", False):
            return
        for frame in msg["cond_indep_stack"]:
            if frame.name == self.plate:
                self._met.add(self.plate)
                msg["scale"] = msg["scale"] * self._seen_weights(frame)

    def _seen_weights(self, frame: Any) -> Tensor:
        """Weights of the elements that a site sees, along the dimension of the plate."""
        if len(self.weights) != frame.full_size:
            raise ValueError(
                f"weights must hold {frame.full_size} numbers, one for each element of the plate "
                f"{self.plate!r}, got {len(self.weights)}"
            )
        if not frame.vectorized:
            # Pyro counts the turns of a sequential plate from one.
            return self.weights[self._index(self.plate)[(frame.counter - 1) % frame.size]]
        weights = self.weights
        # A plate at its full size may see its elements in another order.
        if frame.size < frame.full_size or self.plate in self._indices:
            weights = weights.index_select(0, self._index(self.plate).to(weights.device))
        return weights.reshape((-1,) + (1,) * (-frame.dim - 1))


class _ChangesObserved(_NamesParts):
    """Gives observed sites and inputs of some names other values."""

    _missing = "sites names {}, which are no sample sites of the model"

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name not in self.names or site_is_subsample(msg):
            return
        if not msg["is_observed"]:
            raise ValueError(f"sites names {name!r}, which is a latent site of the model")
        self._met.add(name)
        msg["value"] = self._changed(msg)
        if msg["infer"].get("_deterministic", False):
            msg["fn"] = Delta(msg["value"], event_dim=len(msg["fn"].event_shape)).mask(False)

    def _changed(self, msg: Any) -> Tensor:
        """The other value."""
        raise NotImplementedError


class _ObsDropout(_ChangesObserved):
    """Hides entries of masks at random."""

    def __init__(
        self, sites: Sequence[str], rate: float, generator: torch.Generator | None
    ) -> None:
        super().__init__(sites)
        self.rate, self.generator = rate, generator

    def _changed(self, msg: Any) -> Tensor:
        mask: Tensor = msg["value"]
        if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(
                f"sites names {msg['name']!r}, which must be a mask of True and False or of ones "
                f"and zeros, got {checks.shown(mask)}"
            )
        # Plates outside of the handler have not yet been added to the site's message.
        sizes = {frame.dim: frame.size for frame in msg["cond_indep_stack"] if frame.vectorized}
        for frame in _PYRO_STACK:
            if isinstance(frame, IndepMessenger) and frame.dim is not None:
                sizes[frame.dim] = frame.size
        plates = [sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0)]
        event = [1] * len(msg["fn"].event_shape)
        mask = mask.expand(torch.broadcast_shapes(mask.shape, (*plates, *event)))
        device = None if self.generator is None else self.generator.device
        noise = torch.rand(mask.shape, generator=self.generator, device=device or mask.device)
        # Noise is below one: the rate one hides all, and the rate zero nothing.
        return mask * (noise.to(mask.device) >= self.rate)


class _Purify(_ChangesObserved):
    """Replaces the values of observed sites and inputs by their purified versions."""

    def __init__(
        self, purifier: Callable[[Tensor], Tensor], sites: Sequence[str], event_dim: int | None
    ) -> None:
        super().__init__(sites)
        self.purifier, self.event_dim = purifier, event_dim

    def _changed(self, msg: Any) -> Tensor:
        name, value = msg["name"], msg["value"]
        event_dim = len(msg["fn"].event_shape) if self.event_dim is None else self.event_dim
        if self.event_dim is None and event_dim == value.dim():
            raise ValueError(
                f"event_dim must say how many dimensions of {name!r} form one value, 3 for images, "
                f"since the whole value is one event; got None for {checks.shown(value)}"
            )
        if event_dim > value.dim():
            raise ValueError(
                f"event_dim must be at most the number of dimensions of {name!r}, got {event_dim} "
                f"for {checks.shown(value)}"
            )
        rows = value.reshape(-1, *value.shape[value.dim() - event_dim :])
        purified = self.purifier(rows)
        if purified.shape != rows.shape:
            raise ValueError(
                f"purifier must keep the shape of values {tuple(rows.shape)}, "
                f"got {checks.shown(purified)}"
            )
        changed: Tensor = purified.reshape(value.shape)
        return changed


class _SubsampleInstances(_NamesParts):
    """Picks elements of a plate, and takes back the scale that it gives its sites for that."""

    _missing = "the model makes no plate named {0[0]!r} with a size as it runs"

    def __init__(self, plate: str, rate: float, generator: torch.Generator | None) -> None:
        super().__init__([plate])
        self.plate = plate
        self.rate = rate
        self.generator = generator

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        # An automatic guide runs its model within itself, and Pyro installs no handler twice.
        handled: Callable[..., Any] = Messenger.__call__(copy.copy(self), fn)
        return handled

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["name"] == self.plate:
            self._met.add(self.plate)
            msg["value"] = self._subset(msg)
        for frame in msg["cond_indep_stack"]:
            if frame.name == self.plate:
                msg["scale"] = msg["scale"] * frame.size / frame.full_size

    def _subset(self, msg: Any) -> Tensor:
        size, own_size = msg["fn"].size, msg["fn"].subsample_size
        if not size:
            raise ValueError(f"the plate {self.plate!r} must have elements, got none")
        num_kept = max(1, round(self.rate * size))
        # A guide that Pyro makes has plates of the size that the model kept.
        if msg["value"] is not None or own_size not in (None, num_kept):
            raise ValueError(
                f"the plate {self.plate!r} must not subsample itself, got "
                + (f"subsample_size={own_size}" if msg["value"] is None else "a subsample")
                + f" of {size}"
            )
        device = None if self.generator is None else self.generator.device
        order = torch.randperm(size, generator=self.generator, device=device)
        return order[:num_kept].sort().values.to(msg["fn"].device)


class _ReplaceObservations(_SeesSubsamples):
    """Gives observed sites the values of the elements that their plates look at."""

    _missing = "data names {}, which are no sample sites of the model"

    def __init__(self, data: Mapping[str, Tensor]) -> None:
        super().__init__(data)
        self.data = dict(data)

    def __enter__(self) -> Self:
        self._given_plates: set[str] = set()
        super().__enter__()
        return self

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
