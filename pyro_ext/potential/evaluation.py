"""One run of a model at given latent values and subsamples, and what follows from its record."""

import copy
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import pyro
import torch
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine import block, runtime
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.reparam_messenger import ReparamMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, Independent, biject_to, constraints
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint
from torch.distributions.transforms import IndependentTransform

_TRANSPARENT = (Independent, ExpandedDistribution, MaskedDistribution)


def bijection(support: Constraint) -> Any:
    """Bijection from unconstrained space to a support, that of the components for a mixture's."""
    if isinstance(support, constraints.independent):
        base = bijection(support.base_constraint)
        return IndependentTransform(base, support.reinterpreted_batch_ndims)
    if isinstance(support, MixtureSameFamilyConstraint):
        return bijection(support.base_constraint)
    return biject_to(support)


def is_real(support: Constraint) -> bool:
    """Tell whether a support is already unconstrained."""
    while isinstance(support, constraints.independent | MixtureSameFamilyConstraint):
        support = support.base_constraint
    return support in (constraints.real, constraints.real_vector)


def innermost(fn: Any) -> Any:
    """Return the base distribution inside masks, expansions and declared event dimensions."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def bounds_of(fn: Any) -> list[Tensor]:
    """Tensors that the support of a distribution is made of, none where it is always the same."""
    support: Any = getattr(fn, "support", None)
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return [value for value in getattr(support, "__dict__", {}).values() if torch.is_tensor(value)]


def may_validate(fn: Any) -> bool:
    """Tell whether a distribution was made without ``validate_args=False``.

    If a global switch turned validation off, the attribute is zero or missing, not ``False``.
    """
    while True:
        if vars(fn).get("_validate_args") is False:
            return False
        # These wrappers leave checks to their base distribution, unlike transformed distributions.
        if not isinstance(fn, _TRANSPARENT):
            return True
        fn = fn.base_dist


def near_origin(fn: Any, radius: float = 2.0) -> torch.Tensor:
    """A value whose unconstrained image is uniform between ``-radius`` and ``radius``."""
    transform = bijection(fn.support)
    shape = transform.inverse_shape(fn.batch_shape + fn.event_shape)
    value: torch.Tensor = transform(torch.empty(shape).uniform_(-radius, radius))
    return value


def without_checks(fn: Any) -> Any:
    """Return the distribution without checks of values, even if it was made to validate them.

    The checks branch on values. A switch turns them off for distributions that a model makes as it
    runs, but not for those made earlier and then expanded, such as priors of a ``PyroSample``.
    """
    if not isinstance(fn, Distribution):
        return fn
    inner = {}
    for name, value in vars(fn).items():
        if isinstance(value, Distribution):
            unchecked = without_checks(value)
            if unchecked is not value:
                inner[name] = unchecked
    if not inner and not fn._validate_args:
        return fn
    unchecked = copy.copy(fn)
    vars(unchecked).update(inner)
    unchecked._validate_args = False
    return unchecked


IS_RANDOM = (
    "model gives two results at the same point: it draws random numbers of its own. Dropout in "
    "training mode? Call module.eval() first. A minibatch drawn by hand? Give its plate a "
    "subsample_size instead"
)
CHANGES_DATA = (
    "model changes its data or buffers as it runs (batch norm in training mode?); call "
    "module.eval() first"
)

NUM_TRIES = 100

T = TypeVar("T")
Choice = Callable[[Any], "tuple[Tensor, Tensor | None] | None"]


@dataclass
class Record:
    """A sample statement as it was run: its distribution and value, and what else Pyro knows of it.

    :param frames: plates it stands in.
    :param bool is_observed: whether the model gave its value.
    :param bool is_latent: whether the evaluation gave its value.
    :param bool is_deterministic: whether it is a ``pyro.deterministic`` statement, or a site that a
        reparameterization has made a function of others; the latter may have a density.
    :param bool is_declared: whether it is a ``pyro.deterministic`` statement.
    :param bool is_conditioned: whether ``pyro.condition`` gave its value.
    :param bool is_untraced: whether it is a draw that Pyro's traces leave out, as that of
        ``ConjugateReparam``.
    :param Tensor log_jacobian: log absolute determinant of the map from unconstrained space, with
        the batch shape of the site, where it is not zero.
    :param bool is_validated: whether values may be checked, which ``validate_args=False`` forbids.
    """

    fn: Any
    value: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    scale: Any
    mask: Any
    frames: tuple[Any, ...]
    is_observed: bool
    is_latent: bool
    is_deterministic: bool
    is_declared: bool
    is_conditioned: bool
    is_untraced: bool
    log_jacobian: Tensor | None
    is_validated: bool = True

    @property
    def event_dim(self) -> int:
        """Number of event dimensions of the value.

        By default ``pyro.deterministic`` declares all dimensions as event dimensions; those along
        which the value varies with an enclosing plate are batch dimensions nevertheless.
        """
        declared = len(self.fn.event_shape)
        depth = max((-frame.dim for frame in self.frames if frame.vectorized), default=0)
        if self.is_deterministic and declared == self.value.dim():
            for event_dim in range(declared - depth, -1, -1):
                if all(self.varies_in(frame, event_dim) for frame in self.frames):
                    return event_dim
        return declared

    def varies_in(self, frame: Any, event_dim: int) -> bool:
        """Tell whether the value varies over a plate; a sequential one always counts."""
        if not frame.vectorized:
            return True
        position = self.value.dim() + frame.dim - event_dim
        return bool(position >= 0 and self.value.shape[position] == frame.size)

    def whole_value(self) -> Tensor:
        """Value with all dimensions of its distribution, of which an observed one may lack some."""
        if self.is_deterministic:
            return self.value
        shape = self.fn.batch_shape + self.fn.event_shape
        return self.value.expand(torch.broadcast_shapes(shape, self.value.shape))

    @property
    def has_density(self) -> bool:
        """Tell whether it is a factor of the joint density."""
        return not self.is_deterministic or getattr(self.fn, "_mask", None) is not False

    def masks(self) -> list[tuple[Any, int]]:
        """All masks, each with the number of dimensions of the value right of it."""
        masks = [] if self.mask is None else [(self.mask, len(self.fn.event_shape))]
        fn = self.fn
        while hasattr(fn, "base_dist"):
            if getattr(fn, "_mask", None) is not None:
                masks.append((fn._mask, len(fn.event_shape)))
            fn = fn.base_dist
        return masks

    def counted(self) -> Tensor:
        """Return a mask of the elements of the whole value that no mask hides."""
        value = self.whole_value()
        result = torch.ones(value.shape, dtype=torch.bool, device=value.device)
        for mask, event_dim in self.masks():
            each = torch.as_tensor(mask, device=value.device)
            result = result & each.reshape(each.shape + (1,) * event_dim)
        return result

    def log_prob(self) -> Tensor:
        """Log density of each batch element, without scale and mask."""
        result: Tensor = self.fn.log_prob(self.value, *self.args, **self.kwargs)
        return result

    def masked_log_prob(self) -> Tensor:
        """Log density of each batch element, zero where masked, without scale."""
        result: Tensor = scale_and_mask(self.log_prob(), mask=self.mask)
        return result

    def scaled_log_prob(self) -> Tensor:
        """Log density of each batch element with scale and mask, as the joint density takes it."""
        result: Tensor = scale_and_mask(self.log_prob(), self.scale, self.mask)
        return result

    def unconstrained_log_prob(self) -> Tensor:
        """Log density in unconstrained space, summed over elements."""
        total = self.scaled_log_prob().sum()
        return total if self.log_jacobian is None else total + self.log_jacobian.sum()


class Evaluation(Messenger):
    """Runs a model with chosen latent values and subsamples, and records its sample sites.

    :param choose: maps a sample message without a value to the value and the log-Jacobian, or to
        ``None`` where the site should draw from its distribution.
    :param dict indices: elements of plates that subsample, by name; those that are drawn are added.
    :param resample: let observed sites take chosen or new values instead of the observed ones: all
        of them, or those named.
    """

    def __init__(
        self,
        choose: Choice,
        indices: dict[str, Tensor],
        *,
        resample: bool | Collection[str] = False,
    ) -> None:
        super().__init__()
        self.choose = choose
        self.indices = indices
        self.resample = resample
        self.records: dict[str, Record] = {}
        self.given_plates: set[str] = set()
        self._chosen: dict[str, Tensor | None] = {}
        self._resampled: set[str] = set()
        self._last: str | None = None

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        self._last = f"the {'plate' if site_is_subsample(msg) else 'site'} {name!r}"
        if site_is_subsample(msg):
            if msg["value"] is not None:
                self.given_plates.add(name)
            elif name in self.indices:
                msg["value"] = self.indices[name]
            return
        chosen = self.resample is True or (self.resample and name in self.resample)
        if chosen and msg["is_observed"] and not is_deterministic(msg):
            self._resampled.add(name)
            msg["is_observed"] = False
            msg["value"] = None
            msg["done"] = False
        if msg["value"] is None:
            choice = self.choose(msg)
            if choice is not None:
                msg["value"], self._chosen[name] = choice

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        if site_is_subsample(msg):
            self.indices[name] = msg["value"]
            return
        is_observed = msg["is_observed"] or name in self._resampled
        if name in self.records:
            raise ValueError(f"model has two sample sites named {name!r}; site names must differ")
        self.records[name] = Record(
            fn=without_checks(msg["fn"]),
            value=msg["value"],
            args=msg["args"],
            kwargs=msg["kwargs"],
            scale=msg["scale"],
            mask=msg["mask"],
            frames=tuple(msg["cond_indep_stack"]),
            is_observed=is_observed,
            is_latent=name in self._chosen and not is_observed,
            is_deterministic=is_deterministic(msg),
            is_declared=bool(msg["infer"].get("_deterministic", False)),
            is_conditioned=any(name in handler.data for handler in _handlers(ConditionMessenger)),
            is_untraced=bool(msg["infer"].get("_do_not_trace", False)),
            log_jacobian=self._chosen.get(name),
            is_validated=may_validate(msg["fn"]),
        )

    def run(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        validate: bool = False,
        around: Sequence[Messenger] = (),
    ) -> dict[str, Record]:
        """Run the model and return its records by site name."""
        with ExitStack() as stack:
            stack.enter_context(nullcontext() if validate else without_validation())
            for handler in (block(), *around, self):
                stack.enter_context(handler)
            try:
                model(*args, **kwargs)
            except Exception as error:
                where = "before its first site" if self._last is None else f"after {self._last}"
                error.add_note(f"Raised when the model ran, {where}")
                raise
        return self.records


def factorization_errors() -> tuple[type[Exception], ...]:
    """Return the errors raised if a matrix cannot be factored, including those of GPyTorch."""
    errors = sys.modules.get("linear_operator.utils.errors")
    others = () if errors is None else (errors.NanError, errors.NotPSDError)
    return (torch.linalg.LinAlgError, *others)


def retried(run: Callable[[], T]) -> T:
    """Call a random function, retrying if a matrix cannot be factored."""
    for _ in range(NUM_TRIES - 1):
        try:
            return run()
        except factorization_errors():
            continue
    return run()


@contextmanager
def without_validation() -> Iterator[None]:
    """Switch off checks that branch on values: they can be neither captured nor vectorized."""
    with pyro.validation_enabled(False):
        # Zero, which expanded copies keep, rather than False, which means validate_args=False.
        torch.distributions.Distribution.set_default_validate_args(0)  # type: ignore[arg-type]
        yield


def from_unconstrained(values: Mapping[str, Tensor], indices: Mapping[str, Tensor]) -> Choice:
    """Give latent sites the images of unconstrained values."""

    def choose(msg: Any) -> tuple[Tensor, Tensor | None] | None:
        if msg["name"] not in values:
            return None
        support = msg["fn"].support
        value = values[msg["name"]]
        if is_real(support):
            return restrict(value, msg, indices), None
        transform = bijection(support)
        unconstrained = _select(value, msg, indices, transform.domain.event_dim)
        constrained = transform(unconstrained)
        log_jacobian = transform.log_abs_det_jacobian(unconstrained, constrained)
        excess = log_jacobian.dim() - len(msg["fn"].batch_shape)
        return constrained, sum_rightmost(log_jacobian, max(excess, 0))

    return choose


def from_constrained(values: Mapping[str, Tensor], indices: Mapping[str, Tensor]) -> Choice:
    """Give latent sites values from their own support."""

    def choose(msg: Any) -> tuple[Tensor, Tensor | None] | None:
        if msg["name"] not in values:
            return None
        return restrict(values[msg["name"]], msg, indices), None

    return choose


@without_validation()
def log_density(
    records: Mapping[str, Record],
    weights: Mapping[str, Tensor] | None = None,
    firsts: Mapping[str, Tensor] | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Log joint density of a run in unconstrained space.

    Without weights a subsampled plate counts ``size / subsample_size`` for each of its elements, as
    Pyro scales it. With them, each element counts by its weight, and a site outside the plate by
    the entry of ``firsts``: over a cover of the data by blocks, of which one is the first, the
    densities then add up to that of all of the data.
    """
    total = start
    for record in records.values():
        terms = []
        if record.has_density:
            terms.append(record.scaled_log_prob())
        if record.log_jacobian is not None:
            terms.append(record.log_jacobian * _subsample_scale(record))
        for term in terms:
            if weights is not None and firsts is not None:
                term = _reweight(term, record, weights, firsts)
            total = term.sum() if total is None else total + term.sum()
    assert total is not None
    return total


def is_deterministic(msg: Any) -> bool:
    """Tell whether a site is a function of others, as declared or by a reparameterization."""
    if msg["infer"].get("_deterministic", False):
        return True
    fn = msg["fn"]
    if not (msg["is_observed"] and isinstance(innermost(fn), Delta)):
        return False
    # A point mass that counts is otherwise a density written by hand.
    is_masked_out = getattr(fn, "_mask", None) is False
    return is_masked_out or any(True for _ in _handlers(ReparamMessenger))


def _handlers(kind: type[Any]) -> Iterator[Any]:
    """Handlers of a kind through which the present statement goes."""
    return (handler for handler in runtime._PYRO_STACK if isinstance(handler, kind))


def _subsampled_frames(frames: tuple[Any, ...]) -> list[Any]:
    return [frame for frame in frames if frame.vectorized and frame.size < frame.full_size]


def _subsample_scale(record: Record) -> float:
    scale = 1.0
    for frame in _subsampled_frames(record.frames):
        scale *= frame.full_size / frame.size
    return scale


def _select(value: Tensor, msg: Any, indices: Mapping[str, Tensor], event_dim: int) -> Tensor:
    """The subsample's part of a value, which is one over all of the data or that part already."""
    for frame in _subsampled_frames(msg["cond_indep_stack"]):
        dim = frame.dim - event_dim
        is_whole = value.dim() >= -dim and value.shape[dim] == frame.full_size
        if is_whole and frame.name in indices:
            value = value.index_select(dim, indices[frame.name])
    return value


def restrict(value: Tensor, msg: Any, indices: Mapping[str, Tensor]) -> Tensor:
    """The subsample's part of a constrained value."""
    return _select(value, msg, indices, len(msg["fn"].event_shape))


def _reweight(
    term: Tensor, record: Record, weights: Mapping[str, Tensor], firsts: Mapping[str, Tensor]
) -> Tensor:
    frames = {frame.name: frame for frame in record.frames}
    for name, weight in weights.items():
        if name in frames:
            frame = frames[name]
            ratio = weight * (frame.size / frame.full_size)
            term = term * ratio.reshape((-1,) + (1,) * (-frame.dim - 1))
        else:
            term = term * firsts[name]
    return term


@without_validation()
def non_finite_sites(records: Mapping[str, Record], leaf: Tensor) -> list[str]:
    """Names of the sites whose log density, log-Jacobian or gradient is not finite."""
    names = []
    for name, record in records.items():
        if not record.has_density:
            continue
        value = record.unconstrained_log_prob()
        if not torch.isfinite(value) or not _has_finite_gradient(value, leaf):
            names.append(name)
    return names


def _has_finite_gradient(value: Tensor, leaf: Tensor) -> bool:
    if not value.requires_grad:
        return True
    (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)
    return gradient is None or bool(torch.isfinite(gradient).all())
