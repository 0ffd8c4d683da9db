"""Models whose discrete sites are summed out."""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.ops.contract import contract_to_tensor
from pyro.ops.packed import pack
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._lib import checks
from pyro_ext.potential._rounds import LONG, RoundsRing
from pyro_ext.potential.evaluation import (
    Evaluation,
    Record,
    factorization_errors,
    from_constrained,
    retried,
    without_validation,
)
from pyro_ext.potential.runner import SUMMED_OUT, init_to_prior

Model = Callable[..., Any]


def sum_out(model: Model, *args: Any, **kwargs: Any) -> Model:
    """Return a model with the same continuous sites, and the discrete ones summed out.

    What depends on discrete sites, by its parameters, its observed value, its mask or its scale,
    becomes one factor, in which they are enumerated in parallel, as Pyro's HMC does it. Continuous
    sites among it keep their names, without a density of their own. A model without discrete latent
    sites is returned as it is.

    A mask hides what is observed, but never the distribution that a discrete site is summed out
    with, so that steps of a series that a mask hides count one. Pyro counts each of their values
    once, which multiplies its density by their number, and lets the values of a hidden step decide
    about the steps that follow as if all were equally likely.

    The terms of the factor are compared with runs of the model at fixed values of the discrete
    sites, so that a model that cannot be enumerated in parallel is refused.

    :param model: a Pyro model that sees all of its data.
    :param args: arguments of the model.
    :param kwargs: keyword arguments of the model.
    :returns: the model.
    :raises ValueError: beside a discrete site for a plate that subsamples, for a continuous site
        whose support depends on the discrete one, and for a dependence that enumeration in parallel
        cannot follow, such as a sum over a plate or a step before those that ``pyro.markov`` keeps.

    Example::

        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         sign = pyro.sample("sign", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(loc * (2 * sign - 1), 1.0), obs=x)
        >>> x = torch.tensor([1.0, -2.0])
        >>> sorted(pyro.poutine.trace(sum_out(model, x)).get_trace(x).stochastic_nodes)
        ['data', 'loc']
    """
    checks.function("model", model, "a Pyro model")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        try:
            runs = [retried(partial(_assigned, model, args, kwargs)) for _ in range(_NUM_CHECKS)]
        except Exception:  # whoever runs the model next says what is wrong
            return model
        records, indices = runs[0]
        if not indices:
            return model
        plan = _plan_of(records)
        for records, indices in runs:
            _check(model, plan, records, indices, args, kwargs)
    return partial(_summed_out, model, plan)


def full_conditional(
    model: Model, site: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[[], Tensor]:
    """Log probabilities of the values of a discrete site given all else, but for a constant.

    :param model: a Pyro model in which all other latent sites are conditioned on values, which may
        change between calls.
    :param str site: the site.
    :param tuple args: arguments of the model.
    :param Mapping kwargs: keyword arguments of the model.
    :returns: a function without arguments. **Shape:** ``(num_values, *plates)``.
    :raises ValueError: where elements of the site depend on each other given all else.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        runs = [_assigned(model, args, kwargs) for _ in range(_NUM_CHECKS)]
        plan = _plan_of(runs[0][0])
        for records, indices in runs:
            _check(model, plan, records, indices, args, kwargs)
    plates = [frame for frame in runs[0][0][site].frames if frame.vectorized]
    if math.prod(frame.size for frame in plates) != runs[0][1][site].numel():
        raise ValueError(f"site {site!r} has dimensions that are no plates")

    def log_probabilities() -> Tensor:
        _, terms = _enumerated(model, plan, args, kwargs)
        # Its own dimension is the first one that is not a plate's.
        (own,) = {s for term in terms.packed.values() for s in term._pyro_dims} - set(terms.sizes)
        common = terms.plates[site]
        order = own + "".join(s for s in terms.packed[site]._pyro_dims if s in common)
        return contract(terms.packed, terms.plates, set(), common, terms.sizes, order)

    return log_probabilities


def _plan_of(records: Mapping[str, Record]) -> "_Plan":
    """Read from a run what enumeration has to know of a model."""
    frames = [frame for record in records.values() for frame in record.frames]
    vectorized = [frame for frame in frames if frame.vectorized]
    if subsampled := sorted({frame.name for frame in vectorized if frame.size < frame.full_size}):
        raise ValueError(
            "model must see all of its data where discrete sites are summed out, but it "
            f"subsamples in {subsampled}"
        )
    ranks = [len(record.fn.batch_shape) for record in records.values() if record.has_density]
    return _Plan(
        max(0, *(-frame.dim for frame in vectorized), *ranks),
        {name: each.value.shape for name, each in records.items() if each.is_declared},
        {frame.name: frame.size for frame in set(frames) if not frame.vectorized},
    )


class _Plan(NamedTuple):
    """Structure of a model, from a run without enumeration.

    :param int depth: number of dimensions of plates.
    :param shapes: of the values of deterministic sites.
    :param loops: sizes of the sequential plates.
    """

    depth: int
    shapes: Mapping[str, torch.Size]
    loops: Mapping[str, int]


def _summed_out(model: Model, plan: _Plan, *args: Any, **kwargs: Any) -> Any:
    """Run a model with a factor in place of what depends on its discrete sites."""
    result, terms = _enumerated(model, plan, args, kwargs)
    pyro.factor(SUMMED_OUT, terms.contracted())
    return result


class _Terms(NamedTuple):
    """Log densities that depend on enumerated sites, by site, with what their dimensions are.

    :param packed: with dimensions that carry names, those of plates and of enumerated sites.
    :param raw: with enumerated dimensions left of ``depth`` dimensions of plates.
    :param dims: the site that is enumerated along each (negative) dimension of a raw one.
    :param plates: symbols of the plates around each.
    :param sizes: of the plates, by symbol.
    """

    packed: dict[str, Any]
    raw: dict[str, Tensor]
    dims: dict[str, dict[int, str]]
    plates: dict[str, frozenset[str]]
    sizes: dict[str, int]

    def contracted(self) -> Tensor:
        """Log of the sum over all values of the enumerated sites."""
        symbols = {symbol for term in self.packed.values() for symbol in term._pyro_dims}
        return contract(
            self.packed, self.plates, symbols - set(self.sizes), frozenset(), self.sizes, ""
        )


def _enumerated(
    model: Model, plan: _Plan, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, _Terms]:
    """Run a model with its discrete sites enumerated, and hide what depends on them."""
    recorder, hidden, depth = TraceMessenger(), _Dependents(plan), plan.depth
    with hidden, EnumMessenger(first_available_dim=-1 - depth), recorder, _Configured(plan):
        result = model(*args, **kwargs)
    trace = recorder.trace
    trace.symbolize_dims()
    symbols = trace.plate_to_symbol
    nodes: Any = trace.nodes
    owners = {
        _symbol(node, node["infer"]["_enumerate_dim"]): name
        for name, node in nodes.items()
        if node["type"] == "sample" and node["infer"].get("_enumerate_dim") is not None
    }
    terms = _Terms({}, {}, {}, {}, {})
    for name in hidden.names:
        node = nodes[name]
        if node["infer"].get("_deterministic"):
            continue
        fn, mask = hidden.continuous.get(name, (node["fn"], node["mask"]))
        if node["infer"].get("_enumerate_dim") is not None:
            fn, mask = _unmasked(fn), None
        log_prob = fn.log_prob(node["value"], *node["args"], **node["kwargs"])
        log_prob = scale_and_mask(log_prob, node["scale"], mask)
        frames = [frame for frame in node["cond_indep_stack"] if frame.vectorized]
        terms.sizes.update({symbols[frame.name]: frame.size for frame in frames})
        terms.plates[name] = frozenset(symbols[frame.name] for frame in frames)
        terms.raw[name] = log_prob
        terms.dims[name] = {
            dim: owners[_symbol(node, dim)]
            for dim in range(-log_prob.dim(), -depth)
            if log_prob.shape[dim] > 1 and _symbol(node, dim) in owners
        }
        # A copy, since its dimensions are named on the tensor itself.
        terms.packed[name] = pack(log_prob + 0.0, node["infer"]["_dim_to_symbol"])
    return result, terms


def _symbol(node: Any, dim: int) -> str | None:
    """Name of a dimension of a site."""
    symbol: str | None = node["infer"]["_dim_to_symbol"].get(dim)
    return symbol


def _unmasked(fn: Any) -> Any:
    """A distribution without masks of its own."""
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    return fn


class _Configured(Messenger):
    """Marks all discrete sites to be enumerated in parallel, whatever else they are marked as.

    Loops over sequential plates count in plain numbers, since graphs cannot read tensors.
    """

    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        self._plan = plan

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._plan.loops:
            msg["value"] = list(range(self._plan.loops[msg["name"]]))
        elif _is_summed_out(msg):
            marks = {"enumerate": "parallel", "num_samples": None, "expand": False}
            msg["infer"] = {**msg["infer"], **marks}


def _is_summed_out(msg: Any) -> bool:
    """Tell whether a site is latent, and its values can be counted."""
    return bool(
        not (msg["is_observed"] or site_is_subsample(msg)) and msg["fn"].has_enumerate_support
    )


class _Dependents(Messenger):
    """Hides enumerated sites and those that depend on them; of continuous ones, the densities."""

    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        self.names: list[str] = []
        self.continuous: dict[str, tuple[Any, Any]] = {}
        """Distributions and masks."""
        self._depth, self._shapes = plan.depth, plan.shapes

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        is_enumerated = msg["infer"].get("_enumerate_dim") is not None
        if not is_enumerated and not self._depends(msg):
            return
        self.names.append(msg["name"])
        if is_enumerated or msg["is_observed"] or msg["infer"].get("_deterministic"):
            msg["stop"] = True
            return
        self.continuous[msg["name"]] = msg["fn"], msg["mask"]
        msg["fn"], msg["mask"] = _WithoutDensity(msg["name"], msg["fn"], self._depth), None

    def _depends(self, msg: Any) -> bool:
        """Tell whether a site has dimensions that are those of enumerated sites."""
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        if name in self._shapes:
            return bool(value.shape != self._shapes[name])
        shapes = [fn.batch_shape, *(getattr(msg[part], "shape", ()) for part in ("mask", "scale"))]
        if value is not None:
            shapes.append(value.shape[: value.dim() - len(fn.event_shape)])
        return any(size > 1 for shape in shapes for size in shape[: -self._depth or None])


# The terms of the factor, compared with the model itself ------------------------------------------

_NUM_CHECKS = 2


def _assigned(
    model: Model, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Record], dict[str, Tensor]]:
    """Run a model at random values of its latent sites, uniform ones of discrete sites.

    The second result is the index in its support of each element of a discrete site.
    """
    indices: dict[str, Tensor] = {}

    def choose(msg: Any) -> tuple[Tensor, None]:
        if not _is_summed_out(msg):
            return init_to_prior(msg), None
        fn = msg["fn"]
        support = fn.enumerate_support(expand=False)
        index = torch.randint(len(support), fn.batch_shape, device=support.device)
        indices[msg["name"]] = index
        return support.reshape(len(support), *fn.event_shape)[index], None

    records = Evaluation(choose, {}).run(model, args, kwargs)
    return records, indices


def _check(
    model: Model,
    plan: _Plan,
    records: Mapping[str, Record],
    indices: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    """Raise where the terms at certain values of the discrete sites are not those of the model."""
    found: list[_Terms] = []
    continuous = {n: r.value for n, r in records.items() if r.is_latent and n not in indices}
    evaluation = Evaluation(from_constrained(continuous, {}), {})
    try:
        outer = evaluation.run(
            lambda: found.append(_enumerated(model, plan, args, kwargs)[1]), (), {}
        )
        (terms,) = found
        terms.contracted()
    except factorization_errors():  # a matter of these values
        return
    except Exception as error:
        raise ValueError(
            f"model cannot be run with the discrete sites {sorted(indices)} enumerated in parallel "
            f"({type(error).__name__}: {error}). {_REMEDY}"
        ) from error
    with without_validation():
        for name, record in records.items():
            if record.is_deterministic:
                continue
            if name in indices:
                record = without_mask(record)
            expected = record.scaled_log_prob()
            if name in terms.raw:
                owners = [*terms.dims[name].values()]
                value = _at(terms.raw[name], terms.dims[name], plan.depth, indices)
            elif name in outer:
                owners = []
                value = outer[name].scaled_log_prob()
            else:
                value = expected.new_full((), math.nan)
            if not _is_close(value, expected):
                raise ValueError(
                    f"site {name!r} depends on the discrete sites {owners or sorted(indices)} in "
                    "a way that enumeration in parallel cannot follow: by a sum over a plate, "
                    "outside of their plate, or after more steps than pyro.markov keeps (its "
                    f"argument history). {_REMEDY}"
                )


_REMEDY = (
    "Write the model without branches on their values (torch.where, indices) and with what depends "
    "on them inside of their plates, or draw them as a block of pyro_ext.inference.Gibbs"
)


def _at(term: Tensor, dims: Mapping[int, str], depth: int, indices: Mapping[str, Tensor]) -> Tensor:
    """Select a log density at values of the discrete sites. Shapes: returns those of plates."""
    position: list[Any] = []
    for dim in range(-term.dim(), 0):
        size = term.shape[dim]
        if dim in dims:
            index = indices[dims[dim]]
            position.append(index.reshape((1,) * (depth - index.dim()) + index.shape))
        elif dim >= -depth and size > 1:
            position.append(torch.arange(size, device=term.device).reshape(-1, *(1,) * (-dim - 1)))
        else:
            position.append(torch.zeros((), dtype=torch.long, device=term.device))
    return term[tuple(position)] if position else term


def without_mask(record: Record) -> Record:
    """The record of a site that is summed out with its whole distribution."""
    return replace(record, fn=_unmasked(record.fn), mask=None)


def _is_close(value: Tensor, expected: Tensor) -> bool:
    """Compare a log density with the expected one, whose shape it must not exceed."""
    try:
        value, wide = torch.broadcast_tensors(value, expected)
    except RuntimeError:
        return False
    is_larger = wide.numel() > expected.numel()
    return not is_larger and torch.allclose(value, wide, rtol=1e-3, atol=1e-3, equal_nan=True)


def is_without_density(fn: Any) -> bool:
    """Tell whether the density of a site is part of the factor of discrete ones."""
    return isinstance(fn, _WithoutDensity)


class _WithoutDensity(TorchDistribution):
    """Shape and support of a continuous site, whose density is part of the factor.

    It draws as if the discrete sites had their first values.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, name: str, base: Any, depth: int) -> None:
        batch_shape = base.batch_shape[max(0, len(base.batch_shape) - depth) :]
        super().__init__(batch_shape, base.event_shape, validate_args=False)
        self._base = base
        bounds = [value for value in vars(base.support).values() if isinstance(value, Tensor)]
        if any(bound.dim() > depth + len(self.event_shape) for bound in bounds):
            raise ValueError(
                f"site {name!r} is continuous, and its support depends on a discrete one, which "
                "cannot be summed out then"
            )

    @property
    def support(self) -> Any:
        """Of the values."""
        return self._base.support

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values."""
        values: Tensor = self._base.sample(sample_shape)
        for _ in range(len(self._base.batch_shape) - len(self.batch_shape)):
            values = values.select(len(sample_shape), 0)
        return values

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero."""
        return value.new_zeros(value.shape[: value.dim() - len(self.event_shape)])


def contract(
    terms: Mapping[str, Any],
    plates: Mapping[str, frozenset[str]],
    summed: set[str],
    common: frozenset[str],
    sizes: Mapping[str, int],
    order: str,
) -> Tensor:
    """Sum discrete sites out of a product of densities, and multiply over all but some plates."""
    tree: OrderedDict[frozenset[str], list[Any]] = OrderedDict()
    for name, term in terms.items():
        tree.setdefault(plates[name], []).append(term)
    own = {symbol for term in terms.values() for symbol in term._pyro_dims} & summed
    kind: Any = RoundsRing if len(own) >= LONG else LogRing
    result = contract_to_tensor(tree, own, common, ring=kind({}, dict(sizes)))
    positions = [result._pyro_dims.index(symbol) for symbol in order]
    value: Tensor = result.permute(positions)
    return value
