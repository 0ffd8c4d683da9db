"""Handlers: what changes the way a Pyro model runs, from outside the model."""

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
    :raises ValueError: when it runs, for a name that is not a site of the model or is a
        deterministic site, and for values that do not have the size of a plate.

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
    """Give each observation in a plate a weight: its log density counts so many times.

    It is a handler, for use around a model or as a context: ``data_weights("data",
    weights)(model)``. Observed sites in the plate count by the weights of the elements that the
    plate looks at, on top of any scale: of a plate that subsamples, those of the subsample. Latent
    sites keep their densities, those in the plate too.

    Weights of one leave the model as it is. With weights from a Dirichlet distribution, times their
    number, the maximum of the weighted likelihood is a draw of the weighted likelihood bootstrap:
    :class:`~pyro_ext.inference.PosteriorBootstrap`.

    :param str plate: name of the plate.
    :param Tensor weights: a weight for each element of the whole plate, also of one that
        subsamples. **Shape:** ``(size,)``.
    :returns: the handler.
    :raises ValueError: for weights of another shape; as the model runs, where they do not have the
        size of the plate, or no observed site stands in a plate of that name.

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
    """Hide entries that were observed from what comes after some masks of a model [1].

    It is a handler, for use around a model or as a context, in training: ``obs_dropout(["seen"],
    0.3)(model)``. Sites are masks that the model names, as ``seen = pyro.deterministic("seen",
    mask, event_dim=2)`` does, with ``True`` or one where there is an observation. What comes after
    sees each of these with probability ``1 - rate``; what has used the mask before knows them all.
    Run the model as it is to predict.

    What learns from series whose gaps are filled by a model then can't rely on observed entries
    alone, and has to make use of the model's.
    Each element of the plates that a site stands in has a mask of its own, and so has each particle
    of an ELBO with ``vectorize_particles=True``.

    :param Sequence sites: names of the sites.
    :param float rate: probability with which an observed entry is hidden, from 0 to 1.
    :param generator: which the masks are drawn from, by default PyTorch's global one.
    :returns: the handler.
    :raises ValueError: for a rate out of range; when the model runs, for a name that is not a site
        or is a latent one, and for values that are not a mask.

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
    """Purify what a model observes at some of its sites, before the model goes on.

    It is a handler, for use around a model or as a context: ``purify(purifier, ["x"])(model)``.
    Sites are observed ones, or inputs that the model names, as ``x = pyro.deterministic("x", x,
    event_dim=3)`` does: what comes after sees what the purifier makes of them. Other handlers that
    give sites their values, such as :func:`pyro.poutine.condition`, belong inside.

    The purifier gets the elements that the model sees, only the subsample of a subsampled plate,
    with all plate dimensions flattened into one. If it is random, each run of the model draws
    again: right for predictions, while a sampler should be given data that were purified once.

    :param Callable purifier: maps values ``(n, *event)`` to the same shape, such as an
        :class:`~pyro_ext.models.diffusion.AdaptiveScorePurifier`.
    :param Sequence sites: names of the sites.
    :param int event_dim: how many dimensions on the right belong to one value of the purifier, by
        default those of the event of each site. It is needed, 3 for images, where all of a value
        is one event: an input named without ``event_dim``, a single image.
    :returns: the handler.
    :raises ValueError: when the model runs, for a name that is not a site or is a latent one, if
        ``event_dim`` is missing or too large, and if the purifier changes a shape.

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
    """Let a plate look at a random part of its elements, without a factor for those left out.

    It is a handler, for use around a model or as a context, in training: ``subsample_instances(
    "instances", 0.5)(model)``. At each run the plate gets another subset of ``max(1, round(rate *
    size))`` elements, in their order; run the model as it is to predict. Pyro's own plates that
    subsample stand for all elements and scale densities up. Where the elements are the instances of
    a bag that has one label, there is nothing to stand for: the part is a bag of its own [1], and
    densities of sites in the plate, observed or latent, count once. Other plates, such as one of
    the bags, subsample and scale as always. A guide with sites in the plate needs the handler, too.

    A plate has one subset, whatever other plates it is crossed with. For bags of different sizes
    in one tensor there is :func:`~pyro_ext.models.sets.subsample_bags`.

    :param str plate: name of the plate of instances, which the model makes as it runs.
    :param float rate: fraction of instances that are kept, in ``(0, 1]``.
    :param generator: which the subsets are drawn from, by default PyTorch's global one.
    :returns: the handler.
    :raises ValueError: for a rate out of range; as the model runs, where there is no such plate,
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
                f"the plate {plate!r} subsamples and was made outside of the model; make it as the "
                "model runs"
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
                f"sites names {msg['name']!r}, which must be a mask, of True and False or of one "
                f"and zero, got {checks.shown(mask)}"
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
                f"event_dim must say which dimensions of {name!r} are one value, 3 for images, as "
                f"all of it is one event, got None for {checks.shown(value)}"
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
