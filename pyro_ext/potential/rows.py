"""The rows of a model's data: their plate, the arguments that carry them, and models of other rows.

A row of the data is an element of the plate around the observed sites. The arguments that have as
many rows as this plate has elements carry them, and can carry others: replaced, weighted, one by
one, each with latent values of its own, or drawn from the model.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_ext._lib import checks
from pyro_ext.handlers import data_weights
from pyro_ext.potential.arguments import arguments_by_name
from pyro_ext.potential.batched import (
    Backend,
    BatchedFunction,
    RandomPoints,
    agree_but_for_rounding,
)
from pyro_ext.potential.evaluation import (
    Evaluation,
    Record,
    bijection,
    factorization_errors,
    from_constrained,
    from_unconstrained,
)
from pyro_ext.potential.graph_capture import Fallback
from pyro_ext.potential.layout import Layout
from pyro_ext.potential.potential import Potential
from pyro_ext.potential.runner import ModelRunner, draw_from_prior, run_from_prior
from pyro_ext.potential.structure import Plate, Site, Structure, structure_of

_NUM_CHECKS = 2
_LEAST_BLOCK = 1024
_TOLERANCE = 1e-4


def plate_of(
    structure: Structure, name: str | None = None, sizes: Collection[int] | None = None
) -> Plate:
    """The plate whose elements are the observations, which no latent site may stand in.

    :param structure: of the model at its data.
    :param str name: of the plate, where observed sites have several in common.
    :param sizes: the sizes that it may have, which identify it if no name is given.
    """
    sites = structure.observed
    if not sites:
        sites = {name: site for name, site in structure.factors.items() if site.plates}
    if not sites:
        raise ValueError("model must have observed sites, got none: give it the data to observe")
    found = {plate.name: plate for site in sites.values() for plate in site.plates}
    common = [p for p in found.values() if all(p in site.plates for site in sites.values())]
    if name is not None:
        checks.instance("plate", name, str, "the name of a plate")
        common = [found[name]] if name in found else []
    elif sizes is not None:
        common = [plate for plate in common if plate.size in sizes]
    if len(common) != 1 and sizes is not None:
        raise ValueError(
            f"model must have its observed sites {sorted(sites)} in one plate with an argument "
            f"that has as many rows as the plate has elements, one of {sorted(sizes)}, got "
            f"{[plate.name for plate in common]}"
        )
    if not found:
        raise ValueError(
            f"model must have its observed sites {sorted(sites)} in a plate, as in `with "
            'pyro.plate("data", len(x)):`, got none'
        )
    if len(common) != 1:
        raise ValueError(
            f"plate must name the plate of the observations, one of {sorted(found)}, got {name!r}"
        )
    (plate,) = common
    if others := [other.name for other in structure.subsampled_plates if other != plate]:
        raise ValueError(
            f"model must subsample in the plate {plate.name!r} alone, but it does in {others}"
        )
    for site_name, site in structure.latents.items():
        if plate in site.plates:
            raise ValueError(
                f"site {site_name!r} stands in the plate {plate.name!r} of the observations; "
                "latent values of single observations must be integrated out"
            )
    return plate


def has_rows(value: Any, size: int | None = None) -> bool:
    """Tell whether an argument is a tensor with rows, ``size`` of them if that is given."""
    return isinstance(value, Tensor) and value.dim() > 0 and size in (None, len(value))


class RowArguments:
    """The arguments of a model, of which some have a row for each observation.

    :param model: a Pyro model.
    :param tuple args: its arguments.
    :param Mapping kwargs: its keyword arguments.
    :param int size: number of observations.
    :ivar tuple rows: the arguments with rows. **Shape:** ``(size, *event)`` each.

    Example::

        >>> arguments = RowArguments(lambda x, size: None, (torch.ones(3), 2), {}, 3)
        >>> arguments.names, arguments.fill([torch.zeros(1)])
        (['x'], ((tensor([0.]), 2), {}))
    """

    def __init__(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], size: int
    ) -> None:
        self._model = model
        self._leaves, self._tree = pytree.tree_flatten((args, dict(kwargs)))
        self._indices = [i for i, leaf in enumerate(self._leaves) if has_rows(leaf, size)]
        self.rows: tuple[Tensor, ...] = tuple(self._leaves[i] for i in self._indices)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors in the arguments."""
        return [leaf for leaf in self._leaves if isinstance(leaf, Tensor)]

    @property
    def names(self) -> list[str]:
        """Names of the arguments with rows, numbered where one holds several tensors."""
        args, kwargs = pytree.tree_unflatten(self._leaves, self._tree)
        named = arguments_by_name(self._model, args, kwargs)
        owners = [name for name, value in named for _ in pytree.tree_leaves(value)]
        chosen = [owners[i] for i in self._indices]
        return [
            name if chosen.count(name) == 1 else f"{name}_{chosen[:number].count(name)}"
            for number, name in enumerate(chosen)
        ]

    def fill(self, rows: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with other rows."""
        leaves = list(self._leaves)
        for index, row in zip(self._indices, rows, strict=True):
            leaves[index] = row
        args, kwargs = pytree.tree_unflatten(leaves, self._tree)
        return args, kwargs

    def are(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Tell whether other arguments are the same as these."""
        leaves, tree = pytree.tree_flatten((args, dict(kwargs)))
        return tree == self._tree and all(map(_is_same, leaves, self._leaves))


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        both = isinstance(one, Tensor) and isinstance(other, Tensor)
        return one is other or (both and one.shape == other.shape and torch.equal(one, other))
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    return one is other or bool(one == other)


class WeightedModel:
    """A model as a function of the weights of its observations and of their rows.

    :param model: a Pyro model.
    :param RowArguments arguments: its arguments.
    :param str plate: name of the plate of the observations.
    """

    def __init__(self, model: Callable[..., Any], arguments: RowArguments, plate: str) -> None:
        self.model, self.arguments, self.plate = model, arguments, plate

    def __call__(self, weights: Tensor, *rows: Tensor) -> Any:
        """Run the model."""
        args, kwargs = self.arguments.fill(rows)
        return data_weights(self.plate, weights)(self.model)(*args, **kwargs)


# Densities row by row ----------------------------------------------------------------------------


class PointDensities(NamedTuple):
    """Log densities at the latent values of each point. **Shape:** ``(num_points,)`` each.

    :param Tensor prior: of the latent values but for those of shared sites, unconstrained.
    :param Tensor shared: of the latent values of shared sites, unconstrained.
    :param Tensor likelihood: of the point.
    """

    prior: Tensor
    shared: Tensor
    likelihood: Tensor


class PointPotential:
    r"""Log densities of a Pyro model point by point, each point at latent values of its own.

    The points are the elements of the plate around the observed sites. Given the latent values they
    must be independent, each a function of its own rows of the arguments: of all tensors among them
    whose first dimension has the size of that plate. A mixture can then give every point the latent
    values of its own component.

    :param model: a Pyro model with continuous latent sites outside the plate of the points.
    :param args: arguments of the model.
    :param shared: names of latent sites whose values all components share.
    :param str backend: as of :class:`Potential`.
    :param kwargs: keyword arguments of the model.
    :raises ValueError: where there is no such plate, a latent site stands in it, or the likelihood
        of a point is not a function of its rows.

    Example::

        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("points", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> points = PointPotential(model, torch.tensor([0.0, 3.0]))
        >>> points(torch.tensor([[0.0], [3.0]])).likelihood
        tensor([-0.9189, -0.9189])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *args: Any,
        shared: Collection[str] = (),
        backend: Backend = "trace",
        **kwargs: Any,
    ) -> None:
        whole = Potential(model, *args, backend=backend, **kwargs)
        shared = checks.sequence("shared", shared, "a list of names of sites", 0)
        if unknown := set(shared) - set(whole.sites):
            raise ValueError(
                f"shared names {sorted(unknown)}, but the latent sites are {sorted(whole.sites)}"
            )
        self.model = model
        self.shared = frozenset(shared)
        self.sites: Mapping[str, Site] = whole.sites
        if whole.subsampled_plates:
            names = [plate.name for plate in whole.subsampled_plates]
            raise ValueError(f"model must not subsample, but it does in the plates {names}")
        leaves = pytree.tree_leaves((whole.args, whole.kwargs))
        sizes = {len(leaf) for leaf in leaves if has_rows(leaf)}
        self.plate = plate_of(whole.structure, sizes=sizes)
        self.num_points = self.plate.size
        self._arguments = RowArguments(model, whole.args, whole.kwargs, self.num_points)
        # As the model of a single point takes them.
        self.rows = [row.unsqueeze(1) for row in self._arguments.rows]
        self._first = [row[0].clone() for row in self.rows]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self._runner = ModelRunner(model, *self._arguments.fill(self._first))
            start = self._runner.initial(draw_from_prior)
        self._points = RandomPoints(start)
        self._next = 0
        fixed = [leaf for leaf in self._arguments.tensors if not has_rows(leaf, self.num_points)]
        fallback = Fallback()
        self._densities = BatchedFunction(self._split, self._example, backend, fixed, fallback)
        plain: Backend = "trace" if backend == "compile" else backend
        self._constrain, self._unconstrain = (
            BatchedFunction(function, example, plain, fixed, fallback)
            for function, example in (
                (self._runner.constrain, lambda: self._example()[:1]),
                (self._inverse, self._constrained_example),
            )
        )
        self._check(whole)

    @property
    def layout(self) -> Layout:
        """Order of the latent sites in a flat vector of unconstrained values."""
        return self._runner.unconstrained

    def __call__(self, flat: Tensor) -> PointDensities:
        """Log densities of all points.

        :param Tensor flat: latent values for each point, unconstrained, in the order of ``layout``.
            **Shape:** ``(num_points, size)``.
        """
        return PointDensities(*self._densities(flat, *self.rows))

    def constrain(self, flat: Tensor) -> dict[str, Tensor]:
        """Latent values by site. **Shape:** ``(num_rows, size)`` to ``(num_rows, *event)``."""
        values: dict[str, Tensor] = self._constrain.over_any(flat)
        return values

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """Flat unconstrained values, the inverse of :meth:`constrain`."""
        flat: Tensor = self._unconstrain.over_any(self._runner.constrained.flatten(values))
        return flat

    def draw(self, number: int, shared: Mapping[str, Tensor] | None = None) -> Tensor:
        """Draw latent values from the prior.

        :param int number: how many.
        :param Mapping shared: values of the shared sites, which are drawn too where not given.
        :returns: unconstrained. **Shape:** ``(number, size)``.
        """
        given = dict(shared or {})

        def strategy(site: dict[str, Any]) -> Tensor:
            value: Tensor | None = given.get(site["name"])
            return draw_from_prior(site) if value is None else value

        rows = [self._runner.prior_draw(strategy) for _ in range(number)]
        return self.unconstrain(
            {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        )

    # Functions of one point

    def _split(self, flat: Tensor, *row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log density of the prior, of shared sites, and of the point."""
        zero = flat.new_zeros(())
        sums = {"prior": zero, "shared": zero, "likelihood": zero}
        try:
            choice = from_unconstrained(self.layout.unflatten(flat), {})
            for name, record in self._run(choice, row).items():
                if record.has_density:
                    part = self._part(name, record)
                    sums[part] = sums[part] + record.unconstrained_log_prob()
        except factorization_errors():
            nan = torch.nan * flat.sum()
            return nan, nan, nan
        return sums["prior"], sums["shared"], sums["likelihood"]

    def _inverse(self, flat: Tensor) -> Tensor:
        values = self._runner.constrained.unflatten(flat)
        records = self._run(from_constrained(values, {}), self._first)
        return self.layout.flatten(
            {name: bijection(records[name].fn.support).inv(records[name].value) for name in values}
        )

    def _run(self, choice: Any, row: Sequence[Tensor]) -> dict[str, Record]:
        args, kwargs = self._arguments.fill(row)
        return Evaluation(choice, dict(self._runner.whole_indices)).run(self.model, args, kwargs)

    def _part(self, name: str, record: Record) -> str:
        if any(frame.name == self.plate.name for frame in record.frames):
            return "likelihood"
        return "shared" if name in self.shared else "prior"

    def _example(self) -> list[Tensor]:
        self._next = (self._next + 1) % self.num_points
        return [self._points(), *(row[self._next] for row in self.rows)]

    def _constrained_example(self) -> list[Tensor]:
        return [self._runner.constrained.flatten(self._runner.constrain(self._points()))]

    def _check(self, whole: Potential) -> None:
        """Compare the densities with those of the model at all of its points."""
        for _ in range(_NUM_CHECKS):
            flat = self._points()
            by_point = self(flat.expand(self.num_points, -1))
            summed = by_point.prior[0] + by_point.shared[0] + by_point.likelihood.sum()
            params = whole.layout.unflatten(flat[None])
            again = partial(_log_joint, whole, params)
            if agree_but_for_rounding(again, summed, again()) is False:
                raise ValueError(
                    f"model gives other densities for the points of the plate {self.plate.name!r} "
                    "one by one than for all of them: each must depend on its own rows of the "
                    f"arguments only, which are tensors with {self.num_points} rows"
                )


def _log_joint(whole: Potential, params: Mapping[str, Tensor]) -> Tensor:
    return -whole(params)[0]


# Rows drawn from the model -----------------------------------------------------------------------


@dataclass(frozen=True)
class DrawnRows:
    """Draws new rows of a model's data, given its latent values.

    :param model: a Pyro model.
    :param str plate: name of the plate of the rows.
    :param dict observed: for each observed site the index of the argument that it observes.
    :param dict latents: shapes of the latent sites.
    :param int block_size: how many rows one run of the model gives.
    :param bool subsamples: whether the plate takes a subsample, of so many.
    """

    model: Callable[..., Any]
    plate: str
    observed: dict[str, int]
    latents: dict[str, torch.Size]
    block_size: int
    subsamples: bool

    def draw(self, rows: tuple[Tensor, ...], latents: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Rows in which what the model observes is drawn from it.

        **Shape:** ``(num_rows, *event)`` each, and ``(block_size, *event)`` of what is returned.
        """
        records = self._run(rows, latents, resample=True)
        values = [row[: self.block_size] for row in rows]
        for name, index in self.observed.items():
            values[index] = records[name].value.to(values[index])
        return tuple(values)

    def log_densities(
        self, rows: tuple[Tensor, ...], latents: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Log density of each row, by observed site. **Shape:** ``(block_size,)`` each."""
        records = self._run(rows, latents)
        values = {name: records[name].log_prob() for name in self.observed}
        return {name: value.reshape(len(value), -1).sum(1) for name, value in values.items()}

    def _run(
        self, rows: tuple[Tensor, ...], latents: Mapping[str, Tensor], resample: bool = False
    ) -> dict[str, Record]:
        indices = {}
        if self.subsamples:
            indices[self.plate] = torch.arange(self.block_size, device=rows[0].device)
        evaluation = Evaluation(from_constrained(latents, indices), indices, resample=resample)
        return evaluation.run(self.model, rows, {})


def drawn_rows(model: Callable[..., Any], data: tuple[Tensor, ...]) -> DrawnRows:
    """Find the plate of the rows, what is observed in it, and how many rows a run may have."""
    number = len(data[0])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        first = run_from_prior(model, data, {}, validate=True)
        records, structure = first.records, structure_of(first.records, first.given_plates)
        plate = plate_of(structure, sizes=[number])
        index = torch.arange(number)
        if plate.subsample_size < number:
            index = first.indices[plate.name].cpu()
        rows = tuple(value[index] for value in data)
        values = {name: records[name].value for name in structure.latents}
        found = DrawnRows(
            model,
            plate.name,
            {
                name: _observed_argument(name, records[name], plate, rows)
                for name in structure.observed
            },
            {name: value.shape for name, value in values.items()},
            plate.subsample_size,
            plate.subsample_size < number,
        )
        if not found.subsamples:
            larger = replace(found, block_size=max(number, _LEAST_BLOCK))
            if _is_by_row(larger, data, values):
                return larger
        if _is_by_row(found, data, values):
            return found
    raise ValueError(
        f"model gives a row of the plate {plate.name!r} another density where the rows of the "
        f"data are in another order; each must depend on its own row of the {number} only"
    )


def _observed_argument(name: str, record: Record, plate: Plate, rows: tuple[Tensor, ...]) -> int:
    """Index of the argument that a site observes."""
    value = record.value
    if plate.dim is None or value.dim() + plate.dim - len(record.fn.event_shape) != 0:
        raise ValueError(
            f"site {name!r} must have the plate {plate.name!r} of the observations as its first "
            f"dimension, got the shape {tuple(value.shape)}"
        )
    for index, row in enumerate(rows):
        if row.shape == value.shape and bool((row == value).all()):
            return index
    raise ValueError(
        f"site {name!r} observes none of the {len(rows)} tensors of the data as they are; give "
        "what it observes as an argument of the model"
    )


def _is_by_row(drawn: DrawnRows, data: tuple[Tensor, ...], latents: Mapping[str, Tensor]) -> bool:
    """Check that rows keep their densities if their number and order change."""
    own_size = min(drawn.block_size, len(data[0]))
    base = replace(drawn, block_size=own_size).log_densities(data, latents)
    order = torch.arange(drawn.block_size).flip(0) % own_size
    # Those of a subsample come first; the others fill the plate up.
    rest = torch.arange(drawn.block_size, len(data[0])) if drawn.subsamples else order[:0]
    try:
        rows = tuple(value[torch.cat([order, rest])] for value in data)
        other = drawn.log_densities(rows, latents)
    except (RuntimeError, ValueError, IndexError):
        return False
    return all(
        len(other[name]) == drawn.block_size
        and torch.allclose(base[name][order], other[name], _TOLERANCE, _TOLERANCE, equal_nan=True)
        for name in base
    )
