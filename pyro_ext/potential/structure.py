"""Structure of a model: its plates and sites, and covers of its data by subsamples."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from pyro.distributions import ImproperUniform, Unit
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_ext.potential.evaluation import Record, bijection, innermost


@dataclass(frozen=True)
class Plate:
    """A plate of the model.

    :param str name: its name.
    :param int size: number of elements over all of the data.
    :param int subsample_size: number of elements that one run of the model sees.
    :param dim: the (negative) batch dimension it takes, ``None`` for a sequential plate.
    :param bool is_given: whether the model itself chooses the elements it sees, as in
        ``pyro.plate("data", 100, subsample=index)``.
    """

    name: str
    size: int
    subsample_size: int
    dim: int | None
    is_given: bool = False

    @property
    def is_subsampled(self) -> bool:
        """Tell whether a run of the model sees one part of the plate as well as any other."""
        return self.subsample_size < self.size and not self.is_given


@dataclass(frozen=True)
class Site:
    """A sample site of the model, described over all of the data.

    :param str name: its name.
    :param torch.Size shape: shape of its value, with every plate at full size.
    :param Constraint support: support of its distribution.
    :param int event_dim: number of event dimensions at the right of ``shape``.
    :param tuple plates: the vectorized plates it stands in.
    :param torch.Size unconstrained_shape: shape of its unconstrained value (latent sites).
    :param torch.dtype dtype: type of its value.
    :param torch.device device: device of its value.
    :param bool is_improper: whether its distribution is flat, without a density.
    :param bool is_masked: whether a mask hides some of it.
    :param bool is_conditioned: whether ``pyro.condition`` gave its value.
    :param bool is_untraced: whether Pyro draws it without a trace, as ``ConjugateReparam`` does.
    """

    name: str
    shape: torch.Size
    support: Constraint = field(repr=False)
    event_dim: int
    plates: tuple[Plate, ...]
    unconstrained_shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    is_improper: bool = False
    is_masked: bool = False
    is_conditioned: bool = False
    is_untraced: bool = False

    @property
    def is_subsampled(self) -> bool:
        """Tell whether the site stands in a subsampled plate."""
        return any(plate.is_subsampled for plate in self.plates)

    @property
    def dims(self) -> list[str | None]:
        """Plate names along the batch dimensions, ``None`` for a dimension without a plate."""
        batch_rank = len(self.shape) - self.event_dim
        names = {plate.dim: plate.name for plate in self.plates}
        return [names.get(position - batch_rank) for position in range(batch_rank)]


@dataclass(frozen=True)
class Structure:
    """Plates and sites of a model by name, in the order in which the model runs them."""

    plates: Mapping[str, Plate]
    latents: Mapping[str, Site]
    observed: Mapping[str, Site]
    factors: Mapping[str, Site]
    deterministic: Mapping[str, Site]
    transformed: Mapping[str, Site]  # data whose density stands at other sites
    discrete: Mapping[str, Any]  # distributions of the latent sites without a gradient

    @property
    def subsampled_plates(self) -> tuple[Plate, ...]:
        """The plates of which a run of the model sees a part."""
        return tuple(plate for plate in self.plates.values() if plate.is_subsampled)

    @property
    def data_size(self) -> int:
        """Size of the largest plate around an observed site or a factor, one without plates."""
        sites = (*self.observed.values(), *self.factors.values())
        sizes = [plate.size for site in sites for plate in site.plates]
        return max([1, *sizes])


def structure_of(
    records: Mapping[str, Record],
    given_plates: Collection[str] = (),
    constant: Collection[str] = (),
) -> Structure:
    """Read the structure of a model off the records of one run."""
    plates: dict[str, Plate] = {}
    latents: dict[str, Site] = {}
    observed: dict[str, Site] = {}
    factors: dict[str, Site] = {}
    deterministic: dict[str, Site] = {}
    transformed: dict[str, Site] = {}
    discrete: dict[str, Any] = {}
    for name, record in records.items():
        for frame in record.frames:
            is_given = frame.name in given_plates
            plate = Plate(frame.name, int(frame.full_size), int(frame.size), frame.dim, is_given)
            if plate.dim is None and plate.is_subsampled:
                raise ValueError(
                    f"site {name!r} stands in the sequential plate {plate.name!r}, which takes "
                    f"{plate.subsample_size} of {plate.size} elements; write a subsampled plate in "
                    f"its vectorized form, `with pyro.plate({plate.name!r}, ...) as index:`"
                )
            plates[plate.name] = plate
        if name in constant:
            group = observed if record.has_density and record.log_prob().any() else transformed
            group[name] = _site(name, record, plates)
        elif record.is_deterministic:
            deterministic[name] = _site(name, record, plates)
        elif record.is_latent:
            latents[name] = site = _site(name, record, plates)
            if _is_discrete(record):
                discrete[name] = record.fn
            for plate in site.plates:
                if plate.is_given and plate.subsample_size < plate.size:
                    raise ValueError(
                        f"site {name!r} is latent in the plate {plate.name!r}, of whose "
                        f"{plate.size} elements the model itself picks {plate.subsample_size} "
                        "(subsample=...); give the plate a subsample_size instead"
                    )
        elif record.is_observed:
            is_factor = isinstance(innermost(record.fn), Unit)
            (factors if is_factor else observed)[name] = _site(name, record, plates)
    return Structure(plates, latents, observed, factors, deterministic, transformed, discrete)


def _is_discrete(record: Record) -> bool:
    return bool(record.fn.has_enumerate_support or record.fn.support.is_discrete)


def _site(name: str, record: Record, plates: Mapping[str, Plate]) -> Site:
    event_dim = record.event_dim
    own = tuple(
        plates[frame.name]
        for frame in record.frames
        if frame.vectorized and (not record.is_deterministic or record.varies_in(frame, event_dim))
    )
    try:
        whole = record.whole_value()
    except RuntimeError as error:
        raise ValueError(
            f"site {name!r} has a value of shape {tuple(record.value.shape)}, which does not fit "
            f"its distribution, of shape {tuple(record.fn.batch_shape + record.fn.event_shape)}; "
            "in a plate that takes a subsample, take that of the data too, as in x[index]"
        ) from error
    shape = _full_shape(whole.shape, own, event_dim)
    unconstrained_shape = shape
    if record.is_latent and not _is_discrete(record):
        try:
            transform = bijection(record.fn.support)
        except NotImplementedError as error:
            raise ValueError(
                f"site {name!r} ({type(record.fn).__name__}) has the support "
                f"{record.fn.support}, to which no bijection is registered "
                "(torch.distributions.biject_to); reparameterize it, see pyro.infer.reparam"
            ) from error
        inner = transform.inverse_shape(record.value.shape)
        unconstrained_shape = _full_shape(inner, own, transform.domain.event_dim)
    return Site(
        name=name,
        shape=shape,
        support=record.fn.support,
        event_dim=event_dim,
        plates=own,
        unconstrained_shape=unconstrained_shape,
        dtype=record.value.dtype,
        device=record.value.device,
        is_improper=isinstance(innermost(record.fn), ImproperUniform),
        is_masked=bool(record.masks()),
        is_conditioned=record.is_conditioned,
        is_untraced=record.is_untraced,
    )


def _full_shape(shape: torch.Size, plates: tuple[Plate, ...], event_dim: int) -> torch.Size:
    """Shape with every subsampled plate at its full size."""
    full = list(shape)
    for plate in plates:
        if plate.is_subsampled and plate.dim is not None:
            full[plate.dim - event_dim] = plate.size
    return torch.Size(full)


@dataclass(frozen=True)
class Block:
    """One subsample of each subsampled plate.

    :param Mapping indices: elements of each plate; the last block wraps around to keep its size.
    :param Mapping weights: one for an element seen for the first time, else zero.
    :param Mapping firsts: one where this is the plate's first block, else zero.
    """

    indices: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    firsts: Mapping[str, Tensor]

    def is_new(self, site: Site) -> bool:
        """Tell whether this is the first block with its elements of a site."""
        own = {plate.name for plate in site.plates}
        return all(bool(first) for name, first in self.firsts.items() if name not in own)


def blocks(plates: Sequence[Plate], device: torch.device, dtype: torch.dtype) -> Iterator[Block]:
    """Subsamples that together hold every combination of elements once, in order."""
    for starts in product(*(range(0, p.size, p.subsample_size) for p in plates)):
        indices, weights, firsts = {}, {}, {}
        for plate, start in zip(plates, starts, strict=True):
            position = torch.arange(start, start + plate.subsample_size, device=device)
            indices[plate.name] = position % plate.size
            weights[plate.name] = (position < plate.size).to(dtype)
            firsts[plate.name] = torch.tensor(float(start == 0), dtype=dtype, device=device)
        yield Block(indices, weights, firsts)


def assemble(
    whole: dict[str, Tensor],
    part: Mapping[str, Tensor],
    block: Block,
    sites: Mapping[str, Site],
    event_dims: Mapping[str, int],
) -> None:
    """Write what one block gave for some sites into tensors over all of the data.

    Shapes: part (*leading, *batch, *event).
    """
    for name, value in part.items():
        plates = [plate for plate in sites[name].plates if plate.is_subsampled]
        if not plates:
            whole.setdefault(name, value)
            continue
        if name not in whole:
            shape = list(value.shape)
            for plate in plates:
                assert plate.dim is not None
                shape[plate.dim - event_dims[name]] = plate.size
            whole[name] = value.new_zeros(shape)
        targets = [
            (plate.dim - event_dims[name], block.indices[plate.name])
            for plate in plates
            if plate.dim is not None
        ]
        _write(whole[name], value, targets)


def _write(whole: Tensor, part: Tensor, targets: list[tuple[int, Tensor]]) -> Tensor:
    """Put a part where the indices of several dimensions meet, in place."""
    (dim, index), *rest = targets
    if rest:
        part = _write(whole.index_select(dim, index), part, rest)
    return whole.index_copy_(dim, index, part)
