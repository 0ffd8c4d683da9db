"""One run of a model at given latent values and subsamples, and what follows from its record."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine import block
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_ext.potential._distributions import (
    bijection,
    innermost,
    is_real,
    may_validate,
    without_checks,
)

__all__ = [
    "CHANGES_DATA",
    "IS_RANDOM",
    "Evaluation",
    "Record",
    "factorization_errors",
    "from_constrained",
    "from_unconstrained",
    "is_deterministic",
    "log_density",
    "non_finite_sites",
    "restrict",
    "without_validation",
]

IS_RANDOM = (
    "model gives two results at the same point: it draws random numbers of its own. Dropout in "
    "training mode? Call module.eval() first. A minibatch drawn by hand? Give its plate a "
    "subsample_size instead"
)
CHANGES_DATA = (
    "model changes its data or buffers as it runs (batch norm in training mode?); call "
    "module.eval() first"
)

Choice = Callable[[Any], "tuple[Tensor, Tensor | None] | None"]


@dataclass
class Record:
    """A sample statement as it was run.

    :param fn: its distribution.
    :param Tensor value: its value, constrained.
    :param args: positional arguments of the statement.
    :param kwargs: keyword arguments of the statement.
    :param scale: factor of its log density.
    :param mask: mask of its log density.
    :param frames: plates it stands in.
    :param bool is_observed: whether the model gave its value.
    :param bool is_latent: whether the evaluation gave its value.
    :param bool is_deterministic: whether it is a ``pyro.deterministic`` statement, or a site that a
        reparameterization has made a function of others.
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
    log_jacobian: Tensor | None
    is_validated: bool = True

    @property
    def event_dim(self) -> int:
        """Number of event dimensions of the value.

        ``pyro.deterministic`` declares all dimensions as event ones unless it is told otherwise;
        those at which the value varies with the plates around it are batch dimensions all the same.
        """
        declared = len(self.fn.event_shape)
        depth = max((-frame.dim for frame in self.frames if frame.vectorized), default=0)
        if self.is_deterministic and declared == self.value.dim():
            for event_dim in range(declared - depth, -1, -1):
                if all(self.varies_in(frame, event_dim) for frame in self.frames):
                    return event_dim
        return declared

    def varies_in(self, frame: Any, event_dim: int) -> bool:
        """Whether the value has a dimension for a vectorized plate; true of a sequential one."""
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


class Evaluation(Messenger):
    """Runs a model with chosen latent values and subsamples, and records its sample sites.

    :param choose: maps a sample message without a value to the value and the log-Jacobian, or to
        ``None`` where the site should draw from its distribution.
    :param dict indices: subsample of each plate by name; those of other plates are added to it.
    :param bool resample: let observed sites take chosen or new values instead of the observed ones.
    """

    def __init__(
        self, choose: Choice, indices: dict[str, Tensor], *, resample: bool = False
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
        if self.resample and msg["is_observed"] and not is_deterministic(msg):
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
            log_jacobian=self._chosen.get(name),
            is_validated=may_validate(msg["fn"]),
        )

    def run(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        validate: bool = False,
    ) -> dict[str, Record]:
        """Run the model, unseen by outer handlers, and return its records by site name."""
        with nullcontext() if validate else without_validation(), block(), self:
            try:
                model(*args, **kwargs)
            except Exception as error:
                place = "before its first site" if self._last is None else f"after {self._last}"
                error.add_note(f"Raised when the model ran, {place}")
                raise
        return self.records


def factorization_errors() -> tuple[type[Exception], ...]:
    """What is raised where a matrix cannot be factored, by GPyTorch too."""
    errors = sys.modules.get("linear_operator.utils.errors")
    others = () if errors is None else (errors.NanError, errors.NotPSDError)
    return (torch.linalg.LinAlgError, *others)


@contextmanager
def without_validation() -> Iterator[None]:
    """Switch off checks that branch on values: they can be neither captured nor vectorized."""
    with pyro.validation_enabled(False):
        yield


def from_unconstrained(values: Mapping[str, Tensor], indices: Mapping[str, Tensor]) -> Choice:
    """Give latent sites the images of unconstrained values.

    :param Mapping values: unconstrained values over all of the data, by site name.
    :param Mapping indices: subsample of each subsampled plate, by plate name.
    :returns: a choice for :class:`Evaluation`.
    """

    def choose(msg: Any) -> tuple[Tensor, Tensor | None] | None:
        if msg["name"] not in values:
            return None
        support = msg["fn"].support
        value = values[msg["name"]]
        if is_real(support):
            return _select(value, msg, indices, len(msg["fn"].event_shape)), None
        transform = bijection(support)
        unconstrained = _select(value, msg, indices, transform.domain.event_dim)
        constrained = transform(unconstrained)
        log_jacobian = transform.log_abs_det_jacobian(unconstrained, constrained)
        excess = log_jacobian.dim() - len(msg["fn"].batch_shape)
        return constrained, sum_rightmost(log_jacobian, max(excess, 0))

    return choose


def from_constrained(values: Mapping[str, Tensor], indices: Mapping[str, Tensor]) -> Choice:
    """Give latent sites values from their own support.

    :param Mapping values: constrained values over all of the data, by site name.
    :param Mapping indices: subsample of each subsampled plate, by plate name.
    :returns: a choice for :class:`Evaluation`.
    """

    def choose(msg: Any) -> tuple[Tensor, Tensor | None] | None:
        if msg["name"] not in values:
            return None
        value = values[msg["name"]]
        return _select(value, msg, indices, len(msg["fn"].event_shape)), None

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

    :param Mapping records: what an :class:`Evaluation` recorded.
    :param Mapping weights: weight of each element of a subsampled plate, by plate name.
    :param Mapping firsts: one for the first block of a subsampled plate, else zero, by plate name.
    :param Tensor start: what the densities are added to.
    :returns: a scalar.
    """
    total = start
    for record in records.values():
        terms = []
        if not record.is_deterministic:
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
    """Whether a site is a function of others: declared so, or made so by a reparameterization.

    :param msg: the message of a sample statement, or the node of a trace.
    """
    if msg["infer"].get("_deterministic", False):
        return True
    fn = msg["fn"]
    masked_out = getattr(fn, "_mask", None) is False
    return bool(msg["is_observed"] and masked_out and isinstance(innermost(fn), Delta))


def _subsampled_frames(frames: tuple[Any, ...]) -> list[Any]:
    return [frame for frame in frames if frame.vectorized and frame.size < frame.full_size]


def _subsample_scale(record: Record) -> float:
    scale = 1.0
    for frame in _subsampled_frames(record.frames):
        scale *= frame.full_size / frame.size
    return scale


def _select(value: Tensor, msg: Any, indices: Mapping[str, Tensor], event_dim: int) -> Tensor:
    """Rows of a value over all of the data that the subsample picks."""
    for frame in _subsampled_frames(msg["cond_indep_stack"]):
        if frame.name in indices:
            value = value.index_select(frame.dim - event_dim, indices[frame.name])
    return value


def restrict(value: Tensor, msg: Any, indices: Mapping[str, Tensor]) -> Tensor:
    """The subsample's part of a constrained value, which may be given over all of the data."""
    event_dim = len(msg["fn"].event_shape)
    for frame in _subsampled_frames(msg["cond_indep_stack"]):
        dim = frame.dim - event_dim
        is_whole = value.dim() >= -dim and value.shape[dim] == frame.full_size
        if is_whole and frame.name in indices:
            value = value.index_select(dim, indices[frame.name])
    return value


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
    """Names of the sites whose log density or log-Jacobian is not finite, or its gradient is not.

    :param Mapping records: what an :class:`Evaluation` recorded.
    :param Tensor leaf: what all latent values were computed from.
    """
    names = []
    for name, record in records.items():
        if record.is_deterministic:
            continue
        value = record.scaled_log_prob().sum()
        if record.log_jacobian is not None:
            value = value + record.log_jacobian.sum()
        if not torch.isfinite(value) or not _has_finite_gradient(value, leaf):
            names.append(name)
    return names


def _has_finite_gradient(value: Tensor, leaf: Tensor) -> bool:
    if not value.requires_grad:
        return True
    (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)
    return gradient is None or bool(torch.isfinite(gradient).all())
