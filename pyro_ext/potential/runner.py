"""Runs of a Pyro model for one chain: each method is a function of tensors of that chain."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from types import MappingProxyType
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor
from torch.distributions import Independent, Normal

from pyro_ext._lib.threads import threads_for
from pyro_ext.potential.evaluation import (
    IS_RANDOM,
    NUM_TRIES,
    Choice,
    Evaluation,
    Record,
    bijection,
    bounds_of,
    factorization_errors,
    from_constrained,
    from_unconstrained,
    innermost,
    log_density,
    near_origin,
    non_finite_sites,
    restrict,
    retried,
    without_validation,
)
from pyro_ext.potential.layout import Layout
from pyro_ext.potential.model_checks import missed_gradients
from pyro_ext.potential.structure import Block, Plate, Site, assemble, blocks, structure_of

_MOST_COARSE = 10
_NOT_FINITE = (
    "the log density of site(s) {sites}, or its gradient, is not finite; observations must be in "
    "the support and no NaN, not even where they are masked"
)
_NO_GRADIENT = (
    "site {site!r} depends on the latent site {latent!r}, but its log density has no gradient in "
    "it: the model takes numbers out of tensors on the way (.item(), .detach(), torch.no_grad(), "
    "NumPy). Compute with operations of PyTorch, or in a torch.autograd.Function that has a "
    "backward, or take a kernel that needs no gradient, such as pyro.infer.RandomWalkKernel"
)

_NO_LATENT = "model has no latent site: every pyro.sample statement is observed, or there is none"
_ONLY_DISCRETE = (
    "model has discrete latent sites alone; with these summed out nothing is left to draw. Draw "
    "them by pyro_ext.inference.Gibbs([(EnumeratedSites(), names)]), or from their exact posterior "
    "by pyro.infer.infer_discrete"
)
SUMMED_OUT = "_summed_out"  # the factor in place of what depends on discrete sites

InitStrategy = Callable[[dict[str, Any]], Tensor]


def init_to_prior(site: dict[str, Any]) -> Tensor:
    """Initialize a site by a draw from its distribution, or near the origin where that is improper.

    :param dict site: a message of a Pyro sample site.
    :returns: a value in the support of the site.
    """
    try:
        value: Tensor = site["fn"].sample().detach()
    except NotImplementedError:
        value = near_origin(site["fn"])
    return value


def init_to_suggested(site: dict[str, Any]) -> Tensor:
    """Initialize a site where it asks for it, or to the median of a few draws from its prior.

    A site asks by ``infer={"initial_value": value}``, as factors of
    :class:`~pyro_ext.reparam.ExpansionReparam` do.

    :param dict site: a message of a Pyro sample site.
    :returns: a value in the support of the site.
    """
    suggested: Tensor | None = site["infer"].get("initial_value")
    value: Tensor = init_to_median(site) if suggested is None else suggested
    return value


def draw_from_prior(site: dict[str, Any]) -> Tensor:
    """Draw a site from its distribution."""
    try:
        value: Tensor = site["fn"].sample().detach()
    except NotImplementedError as error:
        raise ValueError(
            f"site {site['name']!r} cannot be drawn from its prior: "
            f"{type(site['fn']).__name__} does not sample"
        ) from error
    return value


def check_observations(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Tensor],
) -> None:
    """Raise if an observed value lies outside the support of its distribution at these values.

    Nothing is checked if the model has further latent sites, such as enumerated ones, or if
    rounding alone puts a parameter out of range.
    """
    evaluation = Evaluation(from_constrained(values, {}), {})
    try:
        # With validation on, since expanded distributions lose their own setting otherwise.
        records = evaluation.run(model, args, kwargs, validate=True)
    except ValueError:
        return
    known = [r.is_latent or r.is_observed or r.is_deterministic for r in records.values()]
    for name, record in records.items() if all(known) else ():
        if record.is_observed and not record.is_deterministic:
            _validate_observed(name, record)


def run_from_prior(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    indices: Mapping[str, Tensor] | None = None,
    validate: bool = False,
) -> Evaluation:
    """Run a model with latent values from their prior, and subsamples where they are given."""
    given = dict(indices or {})
    evaluation = Evaluation(_initializing(init_to_prior, {}, given), given)
    with torch.no_grad():
        evaluation.run(model, args, kwargs, validate)
    return evaluation


class ModelRunner:
    """Runs a model at flat latent values and subsamples of its plates."""

    def __init__(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.model = model
        self.args = args
        self.kwargs = kwargs
        # Whole plates get constant indices, sequential ones plain numbers: a graph cannot take
        # numbers out of tensors that it makes itself.
        self.whole_indices: dict[str, Any] = {}
        first = retried(self._run_from_prior)
        constant = self._constant_sites(first)
        self.structure = structure_of(first.records, first.given_plates, constant)
        if not self.structure.latents:
            raise ValueError(_ONLY_DISCRETE if SUMMED_OUT in self.structure.factors else _NO_LATENT)
        self.whole_indices = {
            name: first.indices[name] if plate.dim is not None else list(range(plate.size))
            for name, plate in self.structure.plates.items()
            if name in first.indices and not plate.is_subsampled and not plate.is_given
        }
        latents = self.structure.latents
        dtypes = {name: site.dtype for name, site in latents.items()}
        device = next(iter(latents.values())).device
        self.unconstrained = Layout(
            {name: site.unconstrained_shape for name, site in latents.items()}, dtypes, device
        )
        self.constrained = Layout(
            {name: site.shape for name, site in latents.items()}, dtypes, device
        )

    @property
    def plates(self) -> tuple[Plate, ...]:
        """The plates whose subsamples are arguments, in their order."""
        return self.structure.subsampled_plates

    def blocks(self) -> Iterator[Block]:
        """Subsamples that cover all of the data."""
        return blocks(self.plates, self.unconstrained.device, self.unconstrained.dtype)

    def by_plate(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Name tensors by the plates they belong to."""
        return dict(zip((plate.name for plate in self.plates), tensors, strict=True))

    # Functions of a flat unconstrained vector --------------------------------------------------

    def value(self, flat: Tensor, *indices: Tensor) -> Tensor:
        """Potential, a scalar, NaN where a matrix cannot be factored."""
        try:
            records = self._run_unconstrained(flat, indices)
            joint, names = joint_normal_density(flat, records, self.unconstrained)
            rest = {name: record for name, record in records.items() if name not in names}
            return -log_density(rest, start=joint)
        except factorization_errors():
            return math.nan * flat.sum()

    def weighted_value(self, flat: Tensor, *tensors: Tensor) -> Tensor:
        """Part of a block in the potential of all of the data; takes :meth:`block_tensors`."""
        num = len(self.plates)
        indices, weights, firsts = tensors[:num], tensors[num : 2 * num], tensors[2 * num :]
        try:
            records = self._run_unconstrained(flat, indices)
            return -log_density(records, self.by_plate(weights), self.by_plate(firsts))
        except factorization_errors():
            return math.nan * flat.sum()

    def block_tensors(self, block: Block) -> list[Tensor]:
        """A block as arguments of :meth:`weighted_value`."""
        return [
            mapping[plate.name]
            for mapping in (block.indices, block.weights, block.firsts)
            for plate in self.plates
        ]

    def constrain(self, flat: Tensor, *indices: Tensor) -> dict[str, Tensor]:
        """Values of the latent sites."""
        records = self._run_unconstrained(flat, indices)
        return {name: records[name].value for name in self.structure.latents}

    # Functions of a flat vector of constrained values --------------------------------------------

    def deterministic(self, flat: Tensor, *indices: Tensor) -> dict[str, Tensor]:
        """Values of the deterministic sites."""
        records = self._run_constrained(flat, indices)
        return {name: records[name].value for name in self.structure.deterministic}

    def pointwise(self, flat: Tensor, *indices: Tensor) -> dict[str, Tensor]:
        """Log likelihood of each observation, zero where it is masked."""
        records = self._run_constrained(flat, indices)
        with without_validation():
            logs = {name: records[name].masked_log_prob() for name in self.structure.observed}
        shapes = {name: records[name].fn.batch_shape for name in logs}
        return {
            name: value.expand(torch.broadcast_shapes(shapes[name], value.shape))
            for name, value in logs.items()
        }

    def counted(self, flat: Tensor, *indices: Tensor) -> dict[str, Tensor]:
        """Return masks of the elements that count at the masked observed sites."""
        records = self._run_constrained(flat, indices)
        sites = self.structure.observed.items()
        return {name: records[name].counted() for name, site in sites if site.is_masked}

    def unconstrain(self, flat: Tensor) -> Tensor:
        """Flat unconstrained vector over all of the data."""
        constrained = self.constrained.unflatten(flat)
        whole: dict[str, Tensor] = {}
        for block in self._latent_blocks():
            records = self._run(from_constrained(constrained, block.indices), block.indices)
            part, dims = {}, {}
            for name in self.structure.latents:
                transform = bijection(records[name].fn.support)
                part[name] = transform.inv(records[name].value)
                dims[name] = transform.domain.event_dim
            assemble(whole, part, block, self.structure.latents, dims)
        return self.unconstrained.flatten(whole)

    # Functions without an argument ----------------------------------------------------------------

    def observations(self) -> dict[str, Tensor]:
        """Observed values over all of the data, of the sites at which no latent site moves them."""
        with torch.random.fork_rng():
            first = retried(self._run_from_prior)
            again = retried(lambda: self._run_from_prior(first.indices)).records
            values = self.observed_at(self.typical_values(), resample=False)
        return {
            name: value
            for name, value in values.items()
            if _is_same(first.records[name].value, again[name].value)
        }

    def typical_values(self) -> dict[str, Tensor]:
        """Values of the latent sites from their prior, at which the model runs."""
        return retried(self.prior_draw)

    def prior_draw(
        self,
        strategy: InitStrategy = init_to_prior,
        given: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> dict[str, Tensor]:
        """Values of the latent sites over all of the data from a strategy, where none are given."""
        whole: dict[str, Tensor] = {}
        sites = self.structure.latents
        event_dims = {name: site.event_dim for name, site in sites.items()}
        with torch.no_grad():
            for block in self._latent_blocks():
                known = {name: whole[name] for name in whole if not block.is_new(sites[name])}
                known |= given
                records = self._run(_initializing(strategy, known, block.indices), block.indices)
                part = {name: records[name].value for name in sites}
                assemble(whole, part, block, sites, event_dims)
        return whole

    def initial(self, strategy: InitStrategy) -> Tensor:
        """A flat unconstrained vector at which the density and its gradient are finite.

        Of some that are so unlikely that their density is rounded to whole numbers, the likeliest.
        """
        reason = ""
        coarse: list[tuple[float, Tensor]] = []
        for _ in range(NUM_TRIES):
            try:
                with threads_for(self.unconstrained.size):
                    with torch.no_grad():
                        flat = self.unconstrain(self.constrained.flatten(self.prior_draw(strategy)))
                    density, at_fault = self._density_or_faults(flat, self.random_indices())
            except factorization_errors() as error:
                reason = str(error)
                continue
            if at_fault:
                reason = _NOT_FINITE.format(sites=at_fault)
                self._check_observed(flat)
                continue
            if abs(density) * torch.finfo(flat.dtype).eps < 1.0:
                return flat
            # There acceptance probabilities are 0 or 1, by chance: trajectories go nowhere.
            is_again = bool(coarse) and torch.equal(flat, coarse[-1][1])
            coarse.append((density, flat))
            if is_again or len(coarse) == _MOST_COARSE:
                break
        if coarse:
            return max(coarse, key=itemgetter(0))[1]
        raise ValueError(
            f"none of {NUM_TRIES} initial points will do: at the last one {reason}. If the data "
            "are right, look at the scale of the prior and at the initialization (init_strategy "
            "or initial_params)"
        )

    def validate(self, flat: Tensor, whole: bool) -> None:
        """Run the model with Pyro's checks where they are switched on, and twice at one point."""
        indices = self.random_indices()
        with torch.no_grad():
            first, second = (float(self.value(flat, *indices)) for _ in range(2))
            if not math.isclose(first, second, rel_tol=1e-3, abs_tol=1e-6):
                raise ValueError(IS_RANDOM)
            by_plate = self.by_plate(indices)
            values = self.unconstrained.unflatten(flat)
            if missed := missed_gradients(partial(self.run_at, by_plate), values):
                site, latent = missed[0]
                raise ValueError(_NO_GRADIENT.format(site=site, latent=latent))
            if dist.is_validation_enabled():
                self._validate(flat, by_plate)
            if whole:
                for block in self.blocks():
                    _, sites = self._density_or_faults(flat, list(block.indices.values()))
                    if sites:
                        raise ValueError(_NOT_FINITE.format(sites=sites))

    def _check_observed(self, flat: Tensor) -> None:
        """Raise where observed values that count lie outside of supports that do not move."""
        with torch.random.fork_rng(), torch.no_grad():
            indices = self.random_indices()
            self._validate_observed(self._run_unconstrained(flat, indices), self.by_plate(indices))

    def _validate(self, flat: Tensor, by_plate: Mapping[str, Tensor]) -> None:
        values = self.unconstrained.unflatten(flat)
        records = self._run(from_unconstrained(values, by_plate), by_plate, validate=True)
        for name in self.structure.observed:
            _validate_observed(name, records[name])

    def validate_observed(self) -> None:
        """Raise where observed values that count lie outside the support, in one subsample."""
        by_plate = self.by_plate(self.random_indices())
        with torch.no_grad():
            records = self._run(from_constrained(self.typical_values(), by_plate), by_plate)
            self._validate_observed(records, by_plate)

    def _validate_observed(
        self, records: Mapping[str, Record], by_plate: Mapping[str, Tensor]
    ) -> None:
        """Raise where observed values that count lie outside of supports that do not move.

        One moves whose bounds are others with other latent values.
        """
        others = retried(lambda: self._run_from_prior(by_plate)).records
        for name in self.structure.observed:
            bounds = (bounds_of(each[name].fn) for each in (records, others))
            if all(map(torch.equal, *bounds)):
                _validate_observed(name, records[name])

    def random_indices(self, generator: torch.Generator | None = None) -> list[Tensor]:
        """A subsample of each plate."""
        return [self.random_index(plate, generator) for plate in self.plates]

    def random_index(self, plate: Plate, generator: torch.Generator | None = None) -> Tensor:
        """A subsample of one plate."""
        index = torch.randperm(plate.size, generator=generator, device="cpu")[
            : plate.subsample_size
        ]
        return index.to(self.unconstrained.device)

    # Helpers --------------------------------------------------------------------------------------

    def _run(
        self,
        choice: Choice,
        indices: Mapping[str, Tensor],
        resample: bool | Collection[str] = False,
        validate: bool = False,
    ) -> dict[str, Record]:
        evaluation = Evaluation(choice, {**self.whole_indices, **indices}, resample=resample)
        return evaluation.run(self.model, self.args, self.kwargs, validate=validate)

    def _constant_sites(self, first: Evaluation) -> list[str]:
        """Names of reparameterized sites that are data: no latent site moves them."""
        records = first.records.items()
        names = [name for name, each in records if each.is_deterministic and not each.is_declared]
        if not names:
            return []
        second = retried(lambda: self._run_from_prior(first.indices)).records
        return [
            name for name in names if torch.equal(first.records[name].value, second[name].value)
        ]

    def _run_from_prior(self, indices: Mapping[str, Tensor] | None = None) -> Evaluation:
        return run_from_prior(self.model, self.args, self.kwargs, indices)

    def _density_or_faults(
        self, flat: Tensor, indices: Sequence[Tensor]
    ) -> tuple[float, list[str]]:
        """Log density, and the sites where it or its gradient is not finite."""
        with torch.enable_grad():
            leaf = flat.clone().requires_grad_()
            records = self._run_unconstrained(leaf, indices)
            for name, record in records.items():
                if record.is_latent and isinstance(innermost(record.fn), dist.Delta):
                    raise ValueError(
                        f"site {name!r} is a Delta that is not observed: there is nothing to draw. "
                        f"Write pyro.deterministic({name!r}, ...) for what other sites determine"
                    )
            total = log_density(records)
            (gradient,) = torch.autograd.grad(total, leaf, retain_graph=True)
            density = float(total.detach())
            if math.isfinite(density) and bool(torch.isfinite(gradient).all()):
                return density, []
            return density, non_finite_sites(records, leaf) or list(self.structure.latents)

    def _run_unconstrained(self, flat: Tensor, indices: Sequence[Tensor]) -> dict[str, Record]:
        return self.run_at(self.by_plate(indices), self.unconstrained.unflatten(flat))

    def run_at(
        self, by_plate: Mapping[str, Tensor], values: Mapping[str, Tensor]
    ) -> dict[str, Record]:
        """Records at unconstrained values of the latent sites."""
        return self._run(from_unconstrained(values, by_plate), by_plate)

    def _run_constrained(self, flat: Tensor, indices: Sequence[Tensor]) -> dict[str, Record]:
        by_plate = self.by_plate(indices)
        return self._run(from_constrained(self.constrained.unflatten(flat), by_plate), by_plate)

    def _latent_blocks(self) -> Iterator[Block]:
        """Blocks that cover the latent sites: one where no latent site is subsampled."""
        local = any(site.is_subsampled for site in self.structure.latents.values())
        for block in self.blocks():
            yield block
            if not local:
                return

    def is_depended_on(self, name: str) -> bool:
        """Tell whether another value of an observed site changes the densities of other sites."""
        by_plate = self.by_plate(self.random_indices())
        choice = from_constrained(self.typical_values(), by_plate)
        for _ in range(NUM_TRIES):
            before = self._run(choice, by_plate)
            after = self._run(choice, by_plate, resample=[name])
            if not torch.equal(before[name].value, after[name].value):
                break
        with without_validation():
            return any(
                not torch.equal(record.log_prob(), after[other].log_prob())
                for other, record in before.items()
                if other != name and record.has_density
            )

    def observed_at(
        self, latents: Mapping[str, Tensor], resample: bool | Collection[str]
    ) -> dict[str, Tensor]:
        """Observed values over all of the data, or new ones at values of the latent sites."""
        whole: dict[str, Tensor] = {}
        sites: Mapping[str, Site] = self.structure.observed
        if not resample:
            sites = {**sites, **self.structure.transformed}
        event_dims = {name: site.event_dim for name, site in sites.items()}
        for block in self.blocks():
            known = {name: whole[name] for name in whole if not block.is_new(sites[name])}
            choice = from_constrained({**latents, **known}, block.indices)
            with torch.no_grad():
                records = self._run(choice, block.indices, resample=resample)
            part = {name: records[name].whole_value() for name in sites}
            assemble(whole, part, block, sites, event_dims)
        return whole


def _initializing(
    strategy: InitStrategy, known: Mapping[str, Tensor], indices: Mapping[str, Tensor]
) -> Choice:
    given = from_constrained(known, indices)

    def choose(msg: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        choice = given(msg)
        if choice is not None:
            return choice
        try:
            return restrict(strategy(msg), msg, indices), None
        except NotImplementedError:  # Pyro's own strategies ask for a sample first
            return init_to_prior(msg), None

    return choose


def _is_same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _validate_observed(name: str, record: Record) -> None:
    """Raise where an observed value that counts lies outside the support."""
    if not record.is_validated:
        return
    try:
        allowed = record.fn.support.check(record.value)
    except (NotImplementedError, AttributeError):
        return
    counts = record.counted()
    counts = counts.flatten(counts.dim() - record.event_dim).all(-1) if record.event_dim else counts
    outside = ~allowed & counts
    if bool(outside.any()):
        value = record.value
        if outside.dim() < value.dim():  # of one event the first entry stands for all
            value = value.flatten(outside.dim())[..., 0]
        where = ""
        if outside.dim() and not any(frame.size < frame.full_size for frame in record.frames):
            rows = outside.reshape(len(outside), -1).any(1).nonzero().flatten().tolist()
            where = f" in row {rows[0]}" if len(rows) == 1 else f" in the rows {rows[:5]}"
        raise ValueError(
            f"site {name!r} has observed values outside the support of its distribution "
            f"{type(innermost(record.fn)).__name__}: they must be in {record.fn.support}, got "
            f"{value.expand_as(outside)[outside].flatten()[0].item():g}{where}"
        )


_LEAST_SITES = 2
_NORMALS = (dist.Normal, Normal)


@without_validation()
def joint_normal_density(
    flat: Tensor, records: Mapping[str, Record], layout: Layout
) -> tuple[Tensor | None, Collection[str]]:
    """Log density of the sites with normal priors that depend on no latent value, in one term.

    It is a sum over all of the flat vector, in which the elements of other sites count zero: most
    of a small network's step is theirs. Where it does not pay it is ``None``, with no names.
    """
    sizes = dict(zip(layout.shapes, layout.sizes, strict=True))
    names = {name for name, size in sizes.items() if _joins(records[name], flat, size)}
    if len(names) < _LEAST_SITES:
        return None, ()
    constant = flat.new_zeros(())
    locs, factors = [], []
    for name, size in sizes.items():
        if name not in names:
            locs.append(flat.new_zeros(size))
            factors.append(flat.new_zeros(size))
            continue
        normal, shape = _normal(records[name].fn), records[name].value.shape
        scale = normal.scale.expand(shape)
        locs.append(normal.loc.expand(shape).reshape(size))
        factors.append(scale.reciprocal().reshape(size))
        constant = constant - scale.log().sum() - size * 0.5 * math.log(2.0 * math.pi)
    standard = (flat - torch.cat(locs)) * torch.cat(factors)
    return constant - 0.5 * (standard * standard).sum(), names


def _normal(fn: Any) -> Any:
    """Normal distribution inside declared dimensions and expansions, ``None`` for others."""
    while isinstance(fn, Independent | ExpandedDistribution):
        fn = fn.base_dist
    return fn if type(fn) in _NORMALS else None


def _joins(record: Record, flat: Tensor, size: int) -> bool:
    """Tell whether a site's prior is normal, unscaled and independent of the latent values."""
    normal = _normal(record.fn)
    return (
        normal is not None
        and record.mask is None
        and isinstance(record.scale, int | float)
        and record.scale == 1
        and record.log_jacobian is None
        and not (record.args or record.kwargs)
        and record.value.numel() == size
        and {record.value.dtype, normal.loc.dtype, normal.scale.dtype} == {flat.dtype}
        and not (normal.loc.requires_grad or normal.scale.requires_grad)
    )
