"""The likelihood of a Pyro model whose observations have weights, for many draws."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_ext._checks import (
    check_callable,
    check_instance,
    check_mapping,
    check_number,
    check_sequence,
)
from pyro_ext.handlers import data_weights
from pyro_ext.potential._batched import Backend
from pyro_ext.potential._evaluation import (
    Evaluation,
    Record,
    factorization_errors,
    from_unconstrained,
)
from pyro_ext.potential._potential import Potential
from pyro_ext.potential._runner import InitStrategy, init_to_suggested
from pyro_ext.potential._structure import Plate, Site
from pyro_ext.potential._weighted_loss import Regularizer, WeightedLoss

__all__ = ["WeightedPotential", "plate_of"]


class WeightedPotential(WeightedLoss):
    r"""The negative log likelihood of a Pyro model with a weight for each observation.

    .. math:: L_w(\theta) = - \sum_i w_i \log p(y_i \mid \theta)

    The observations are the elements of a plate, and what stands in it counts by their weights:
    observed sites, and each ``pyro.factor``. A factor outside of the plate is a part of the prior.
    Parameters are unconstrained, and no log-Jacobian is added: a minimum is one in the model's own
    parameters. Where the plate subsamples, the loss of a minibatch is scaled as the model scales
    it.

    :param model: a Pyro model with its latent sites outside of the plate, and its observed sites in
        it.
    :param tuple args: its arguments.
    :param dict kwargs: its keyword arguments.
    :param str plate: name of the plate of the observations; it may be left out where the observed
        sites (or where there are none, the factors) have one plate in common.
    :param float prior_weight: weight of the negative log prior, which is no part of the loss
        without one.
    :param regularizer: a function of the values of the latent sites that is added to the loss.
    :param str backend: as of :class:`Potential`.
    :raises ValueError: where there is no such plate, an observed site stands outside of it or a
        latent one in it, or another plate subsamples.

    Example::

        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> loss = WeightedPotential(model, (torch.tensor([0.0, 4.0]),))
        >>> loss(torch.tensor([[1.0]]), torch.tensor([[0.75, 0.25]]))[1]
        tensor([[0.]])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        plate: str | None = None,
        prior_weight: float = 0.0,
        regularizer: Regularizer | None = None,
        backend: Backend = "trace",
    ) -> None:
        check_number("prior_weight", prior_weight, least=0)
        if regularizer is not None:
            check_callable("regularizer", regularizer)
        args = tuple(check_sequence("args", args, "the arguments of the model", 0))
        if kwargs is not None:
            check_mapping("kwargs", kwargs, "a dict of arguments of the model")
        self.potential = Potential(model, *args, backend=backend, **(kwargs or {}))
        self.plate = plate_of(self.potential, plate)
        observed = self.potential.observed_sites
        if outside := [name for name, site in observed.items() if self.plate not in site.plates]:
            raise ValueError(
                f"observed sites must stand in the plate {self.plate.name!r}, whose elements have "
                f"the weights; {outside} do not"
            )
        factors = self.potential.factors
        in_plate = [name for name, site in factors.items() if self.plate in site.plates]
        self._data = [*observed, *in_plate]
        self._prior = [*self.potential.sites, *(name for name in factors if name not in in_plate)]
        self.prior_weight = prior_weight
        self.regularizer = regularizer
        self._backend: Backend = backend
        leaves, self._tree = pytree.tree_flatten((self.potential.args, self.potential.kwargs))
        self._leaves = leaves
        size = self.plate.size
        self._places = [
            place
            for place, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == size
        ]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            start = self.potential.layout.flatten(self.potential.init())[0]
        super().__init__(
            self.potential.layout,
            start,
            size,
            self.plate.subsample_size if self.plate.is_subsampled else None,
            [leaves[place] for place in self._places],
            backend,
            [leaf for leaf in leaves if isinstance(leaf, Tensor)],
        )

    @property
    def sites(self) -> Mapping[str, Site]:
        """The latent sites of the model."""
        return self.potential.sites

    def with_rows(self, rows: Sequence[Tensor]) -> Self:
        """The same loss over other observations.

        :param Sequence rows: instead of the arguments that have as many rows as the plate has
            elements, in their order. **Shape:** ``(num_points, *event)`` each.
        :raises ValueError: where the size of the plate does not follow.
        """
        args, kwargs = self._arguments(rows)
        new = type(self)(
            self.potential.model,
            args,
            kwargs,
            plate=self.plate.name,
            prior_weight=self.prior_weight,
            regularizer=self.regularizer,
            backend=self._backend,
        )
        if rows and new.num_points != len(rows[0]):
            raise ValueError(
                f"model must take the size of the plate {self.plate.name!r} from its arguments: "
                f"with {len(rows[0])} rows the plate has {new.num_points} elements"
            )
        return new

    def start(
        self, draws: Sequence[int], seed: int, strategy: InitStrategy | None = None
    ) -> Tensor:
        """Where the searches for the minimum start.

        :param Sequence draws: numbers of the draws, on which alone each start depends.
        :param int seed: of all.
        :param strategy: one of :mod:`pyro.infer.autoguide.initialization`; without one as
            :meth:`Potential.init` has it.
        :returns: unconstrained. **Shape:** ``(len(draws), size)``.
        """
        values = self.potential.init_chains(draws, seed, strategy or init_to_suggested)
        return self.layout.flatten(values)

    def constrain(self, flat: Tensor) -> dict[str, Tensor]:
        """Values of the latent sites. **Shape:** ``(num_draws, size)`` to ``(num_draws, *event)``.

        :param Tensor flat: unconstrained values.
        """
        return self.potential.constrain(self.layout.unflatten(flat))

    def _value(self, flat: Tensor, weights: Tensor, *rest: Tensor) -> Tensor:
        num_indices = 0 if self.subsample_size is None else 1
        args, kwargs = self._arguments(rest[num_indices:])
        indices = dict(self.potential.whole_indices)
        if num_indices:
            indices[self.plate.name] = rest[0]
        choice = from_unconstrained(self.layout.unflatten(flat), indices)
        weighted = data_weights(self.plate.name, weights)(self.potential.model)
        try:
            records = Evaluation(choice, indices).run(weighted, args, kwargs)
            return self._loss(records)
        except factorization_errors():
            return torch.nan * flat.sum()

    def _arguments(self, rows: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the model with other rows."""
        leaves = list(self._leaves)
        for place, row in zip(self._places, rows, strict=True):
            leaves[place] = row
        args, kwargs = pytree.tree_unflatten(leaves, self._tree)
        return args, kwargs

    def _loss(self, records: Mapping[str, Record]) -> Tensor:
        loss = torch.stack([-records[name].scaled_log_prob().sum() for name in self._data])
        loss = loss.sum()
        if self.prior_weight:
            prior = torch.stack([records[name].scaled_log_prob().sum() for name in self._prior])
            loss = loss - self.prior_weight * prior.sum()
        if self.regularizer is not None:
            loss = loss + self.regularizer({name: records[name].value for name in self.sites})
        return loss


def plate_of(potential: Potential, name: str | None) -> Plate:
    """The plate whose elements are the observations.

    :param Potential potential: of the model and its data.
    :param str name: of the plate, where there are several.
    :raises ValueError: where there is no such plate, a latent site stands in it, or another plate
        subsamples.
    """
    observed = potential.observed_sites
    data = observed or {name: site for name, site in potential.factors.items() if site.plates}
    found = {plate.name: plate for site in data.values() for plate in site.plates}
    common = [p for p in found.values() if all(p in site.plates for site in data.values())]
    if name is not None:
        check_instance("plate", name, str, "the name of a plate")
        common = [found[name]] if name in found else []
    if len(common) != 1:
        raise ValueError(
            f"plate must name the plate of the observations, one of {sorted(found)}, got {name!r}"
        )
    (plate,) = common
    if others := [other.name for other in potential.subsampled_plates if other != plate]:
        raise ValueError(
            f"model must subsample in the plate {plate.name!r} alone, but it does in {others}"
        )
    for site_name, site in potential.sites.items():
        if plate in site.plates:
            raise ValueError(
                f"site {site_name!r} stands in the plate {plate.name!r} of the observations; "
                "latent values of single observations must be integrated out"
            )
    return plate
