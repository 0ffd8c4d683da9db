"""Log densities of a model split by point, each point with latent values of its own."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_ext._checks import check_sequence
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
from pyro_ext.potential.runner import ModelRunner, draw_from_prior
from pyro_ext.potential.structure import Plate, Site

__all__ = [
    "PointDensities",
    "PointPotential",
]

_NUM_CHECKS = 2


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
        shared = check_sequence("shared", shared, "a list of names of sites", 0)
        if unknown := set(shared) - set(whole.sites):
            raise ValueError(
                f"shared names {sorted(unknown)}, but the latent sites are {sorted(whole.sites)}"
            )
        self.model = model
        self.shared = frozenset(shared)
        self.sites: Mapping[str, Site] = whole.sites
        leaves, self._tree = pytree.tree_flatten((whole.args, whole.kwargs))
        self.plate = _plate_of_points(whole, leaves)
        self.num_points = self.plate.size
        self._leaves = leaves
        self._places = [i for i, leaf in enumerate(leaves) if _has_rows(leaf, self.num_points)]
        # As the model of a single point takes them.
        self.rows = [leaves[place].unsqueeze(1) for place in self._places]
        self._first = [row[0].clone() for row in self.rows]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self._runner = ModelRunner(model, *self._arguments(self._first))
            start = self._runner.initial(draw_from_prior)
        self._points = RandomPoints(start)
        self._next = 0
        fixed = [
            leaf
            for place, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor) and place not in self._places
        ]
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

    # Functions of one point ----------------------------------------------------------------------

    def _split(self, flat: Tensor, *row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log density of the prior, of shared sites, and of the point."""
        zero = flat.new_zeros(())
        sums = {"prior": zero, "shared": zero, "likelihood": zero}
        values = self.layout.unflatten(flat)
        try:
            for name, record in self._run(from_unconstrained(values, {}), row).items():
                if record.has_density:
                    part = self._part(name, record)
                    sums[part] = sums[part] + _log_density(record)
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

    # Helpers -------------------------------------------------------------------------------------

    def _arguments(self, row: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the model of a single point."""
        leaves = list(self._leaves)
        for place, value in zip(self._places, row, strict=True):
            leaves[place] = value
        args, kwargs = pytree.tree_unflatten(leaves, self._tree)
        return args, kwargs

    def _run(self, choice: Any, row: Sequence[Tensor]) -> dict[str, Record]:
        args, kwargs = self._arguments(row)
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


def _has_rows(leaf: Any, number: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == number


def _log_joint(whole: Potential, params: Mapping[str, Tensor]) -> Tensor:
    return -whole(params)[0]


def _log_density(record: Record) -> Tensor:
    total: Tensor = record.scaled_log_prob().sum()
    return total if record.log_jacobian is None else total + record.log_jacobian.sum()


def _plate_of_points(whole: Potential, leaves: Sequence[Any]) -> Plate:
    """The one plate around all observed sites that has the size of the data."""
    if whole.subsampled_plates:
        names = [plate.name for plate in whole.subsampled_plates]
        raise ValueError(f"model must not subsample, but it does in the plates {names}")
    sites = list(whole.observed_sites.values())
    common = [
        plate
        for plate in (sites[0].plates if sites else ())
        if all(plate in site.plates for site in sites)
        and any(_has_rows(leaf, plate.size) for leaf in leaves)
    ]
    if len(common) != 1:
        raise ValueError(
            "model must have its observed sites in one plate, with an argument that has as many "
            f"rows as the plate has elements, got {[plate.name for plate in common]}"
        )
    (plate,) = common
    for name, site in whole.sites.items():
        if plate in site.plates:
            raise ValueError(
                f"site {name!r} stands in the plate {plate.name!r} of the points; latent values "
                "must be those of a whole component: integrate those of single points out"
            )
    return plate
