"""Warnings at the end of a run: divergences, chains that do not agree, draws too wide, ..."""

import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_ext.checkpoint.chains import Chunk, Reader, gather_chains, thinned
from pyro_ext.diagnostics.temperature import BATCHES, Temperature, configurational_temperature
from pyro_ext.inference.driver.moments import Moments, merge, moments_of
from pyro_ext.inference.sgmcmc import Minibatches, SGMCMCKernel
from pyro_ext.posterior.convergence import (
    ConvergenceWarning,
    RankDiagnostics,
    clusters_name,
    energy_fractions,
    is_constant,
    lasting_r_hat,
    num_clusters,
    rank_diagnostics,
)
from pyro_ext.potential import Potential
from pyro_ext.potential.control_variates import BatchedGradient, anchor_at, control

_STATISTICS = ("diverging", "energy", "tree_depth")
_FEWEST_DRAWS = 40
_MANY_CHAINS, _FEWEST_OF_MANY = 16, 10
_MOST_R_HAT = 1.01
_LEAST_SIZE = 100
_MOST_CHAINS_COUNTED = 4
_LEAST_ENERGY = 0.3
_MOST_ELEMENTS = 100  # whose draws are looked at
_MOST_NAMES = 3
_FALSE_ALARMS = 1e-3
_MOST_DRAWS = 400
_FEWEST_FOR_TEMPERATURE = 40
_FEWEST_OF_A_CHAIN = 4
_STEPS_PER_DRAW = 10
_MOST_RATIO = 1.5
_LEAST_RATIO = 1e-4


def warn_at_end(
    kernel: MCMCKernel,
    groups: Sequence[tuple[range, Reader]],
    numbers: Sequence[int],
    num_draws: int,
    num_steps: int,
    potential: Potential | None = None,
) -> None:
    """Give a warning for each thing that is wrong with a run."""
    if not numbers or not num_draws or not _is_random(kernel):
        return
    if isinstance(kernel, SGMCMCKernel):
        line = temperature_warning(kernel, groups, numbers, num_draws, num_steps)
        if line is not None:
            warnings.warn(line, stacklevel=3)
    statistics = gather_chains(_statistics_of(groups), numbers, num_draws)[1]
    slow = [_divergence_warning(statistics)]
    lines = [
        _bias_warning(kernel),
        _depth_warning(statistics, getattr(kernel, "max_tree_depth", math.inf)),
    ]
    are_many = len(numbers) >= _MANY_CHAINS
    if num_draws >= (_FEWEST_OF_MANY if are_many else _FEWEST_DRAWS):
        partitions = tuple(getattr(kernel, "partitions", ()))
        watched = _watched(groups, numbers, num_draws, partitions)
        found = {site: rank_diagnostics(draws) for site, draws in watched.items()}
        if are_many:
            found = {
                site: of._replace(r_hat=torch.minimum(of.r_hat, lasting_r_hat(watched[site])))
                for site, of in found.items()
            }
        lines.append(
            _r_hat_warning(
                {site: float(of.r_hat.max()) for site, of in found.items()},
                sum(len(of.r_hat) for of in found.values()),
            )
        )
        slow.append(_size_warning(found, len(numbers)))
        if num_draws >= _FEWEST_DRAWS:
            slow.append(_energy_warning(statistics, numbers))
    if any(slow):
        slow.append(_funnel_warning(potential))
    _warn([*lines, *slow])


def _is_random(kernel: MCMCKernel) -> bool:
    """Tell samplers from descents to a mode."""
    return not isinstance(kernel, SGMCMCKernel) or kernel.temperature > 0.0


def warn_of_moments(
    kernel: MCMCKernel,
    r_hats_of: Mapping[str, Tensor],
    diverging: Tensor | None,
    num_draws: int,
    potential: Potential | None,
) -> None:
    """Give the warnings of a run that kept no draws.

    Shapes: r_hats_of (*event) each; diverging (num_draws,), whether a draw comes after a
    divergence.
    """
    if not _is_random(kernel):
        return
    finite = {name: r_hat[r_hat.isfinite()] for name, r_hat in r_hats_of.items()}
    worst = {name: float(r_hat.max()) for name, r_hat in finite.items() if len(r_hat)}
    lines = [] if diverging is None else [_divergence_warning({"diverging": diverging})]
    if any(lines):
        lines.append(_funnel_warning(potential))
    if num_draws >= _FEWEST_DRAWS:
        lines.append(_r_hat_warning(worst, sum(map(len, finite.values()))))
    _warn(lines)


def _warn(lines: Sequence[str | None]) -> None:
    for line in lines:
        if line is not None:
            warnings.warn(line, ConvergenceWarning, stacklevel=4)


def _bias_warning(kernel: MCMCKernel) -> str | None:
    if not getattr(kernel, "is_biased", False):
        return None
    return (
        f"draws of {type(kernel).__name__} are biased, since no step is ever rejected: variances "
        "can be off by some percent, and by more where scales differ. Compare with MAMS or NUTS, "
        "which are exact"
    )


def _divergence_warning(statistics: Mapping[str, Tensor]) -> str | None:
    """Say what to warn of where transitions have diverged."""
    diverging = statistics.get("diverging")
    if diverging is None or not diverging.any():
        return None
    return (
        f"{_count(diverging)} of the draws come after a transition that diverged: chains did not "
        "get into narrow parts of the posterior, or came to an edge of its support, and the draws "
        "lack what is there. Take a larger target_accept_prob, reparameterize such sites "
        "(LocScaleReparam), or give sites distributions whose support is that of the density"
    )


def _depth_warning(statistics: Mapping[str, Tensor], most: float) -> str | None:
    """Say what to warn of where trajectories were cut off."""
    depth = statistics.get("tree_depth")
    if depth is None or not (depth >= most).any():
        return None
    return (
        f"{_count(depth >= most)} of the trajectories ended at max_tree_depth={most}, before they "
        "turned: draws cost more than they have to. Take more warmup_steps, sites of like scales, "
        "full_mass='low_rank', or a larger max_tree_depth"
    )


def _count(flags: Tensor) -> str:
    """Number and fraction of what is true."""
    return f"{int(flags.sum())} ({100.0 * float(flags.double().mean()):.2g}%)"


def _r_hat_warning(worst: Mapping[str, float], num_elements: int) -> str | None:
    """Say what to warn of where chains, or their halves, do not agree."""
    high = {site: value for site, value in worst.items() if value > _MOST_R_HAT}
    if not high:
        return None
    advice = "take more warmup_steps and thinning, or other starts (initial_params)"
    if num_elements >= _MOST_ELEMENTS // 2:
        advice += "; of weights and atoms that can be exchanged look at what they predict instead"
    values = {site: -value for site, value in high.items()}
    return (
        f"the chains do not agree: R-hat is {_named(values)}, where at most {_MOST_R_HAT} is "
        f"right; {advice}"
    )


def _size_warning(found: Mapping[str, RankDiagnostics], num_chains: int) -> str | None:
    """Say what to warn of where there are few effective draws."""
    wanted = _LEAST_SIZE * min(num_chains, _MOST_CHAINS_COUNTED)
    small = {
        site: size
        for site, of in found.items()
        if (size := float(torch.minimum(of.bulk, of.tail).min())) < wanted
    }
    if not small:
        return None
    return (
        f"there are few effective draws: {_named(small)}, where {wanted} are wanted, {_LEAST_SIZE} "
        "a chain, for means, intervals and R-hat to be trusted; take more num_samples or thinning, "
        "or reparameterize"
    )


def _energy_warning(statistics: Mapping[str, Tensor], numbers: Sequence[int]) -> str | None:
    """Say what to warn of where momenta change the energy by too little."""
    if "energy" not in statistics:
        return None
    fractions = energy_fractions(statistics["energy"])
    low = {f"chain {n}": value for n, value in zip(numbers, fractions.tolist(), strict=True)}
    low = {name: value for name, value in low.items() if value < _LEAST_ENERGY}
    if not low:
        return None
    return (
        f"energies change slowly: BFMI is {_named(low)}, where at least {_LEAST_ENERGY} is right, "
        "so that chains are slow between the middle and the tails; reparameterize sites with heavy "
        "tails or whose scale is another site, or take a longer warm-up"
    )


def _funnel_warning(potential: Potential | None) -> str | None:
    """Say which sites to reparameterize where chains are slow or diverge."""
    funnels = {} if potential is None else potential.funnels()
    if not funnels:
        return None
    names = list(funnels)[:_MOST_NAMES]
    more = f" and {len(funnels) - len(names)} more" if len(funnels) > len(names) else ""
    several = ", ".join(
        f"that of {site!r} on {', '.join(map(repr, funnels[site]))}" for site in names
    )
    config = ", ".join(f"{site!r}: LocScaleReparam(0.0)" for site in names)
    return (
        f"scales depend on other latent sites, {several}{more}: where data say little about a "
        "site, it forms a funnel with its scale, which chains hardly enter. Run the kernel on "
        f"pyro.poutine.reparam(model, config={{{config}}}), with LocScaleReparam of "
        "pyro.infer.reparam"
    )


def _named(values: Mapping[str, float]) -> str:
    """The smallest numbers, or largest where they are negative, with the names that they are at."""
    order = sorted(values, key=values.__getitem__)
    worst = ", ".join(f"{abs(values[name]):.3g} at {name!r}" for name in order[:_MOST_NAMES])
    more = len(order) - _MOST_NAMES
    return worst + (f" and beyond that at {more} more" if more > 0 else "")


# Which draws are looked at ------------------------------------------------------------------------


def _statistics_of(groups: Sequence[tuple[range, Reader]]) -> list[tuple[range, Reader]]:
    """Read the statistics alone."""

    def reader(read: Reader) -> Reader:
        def chunks() -> Iterator[Chunk]:
            for chunk in read():
                kept = {k: v for k, v in chunk.statistics.items() if k in _STATISTICS}
                rows = torch.zeros(len(chunk), len(chunk.valid))
                yield Chunk({"": rows}, kept, chunk.valid)

        return chunks

    return [(members, reader(read)) for members, read in groups]


def _watched(
    groups: Sequence[tuple[range, Reader]],
    numbers: Sequence[int],
    num_draws: int,
    partitions: Collection[str],
) -> dict[str, Tensor]:
    """Draws of elements that change, of each site those that seem worst and some others.

    Shapes: returns (num_chains, num_draws, num_elements) each.
    """
    picked = _picked(groups, numbers, num_draws, partitions)
    draws, _ = gather_chains(picked, numbers, num_draws)
    watched = {}
    for site, values in draws.items():
        changing = ~is_constant(values)
        if changing.any():
            watched[site] = values[..., changing]
    return watched


def _picked(
    groups: Sequence[tuple[range, Reader]],
    numbers: Sequence[int],
    num_draws: int,
    partitions: Collection[str],
) -> list[tuple[range, Reader]]:
    """Read a few elements of each site, flat, and how many clusters partitions have."""
    first = next(chunk for _, read in groups for chunk in read())
    sizes = {k: v[0, 0].numel() for k, v in first.samples.items() if v.is_floating_point()}
    columns = {site: torch.arange(size) for site, size in sizes.items() if size}
    if sum(sizes.values()) > _MOST_ELEMENTS:
        halves = moments_of_halves(groups, numbers, num_draws)
        most = max(_MOST_ELEMENTS // len(columns), 1)
        for site in columns:
            order = r_hats(halves[site]).flatten().argsort(descending=True).cpu()
            spread = torch.linspace(0, len(order) - 1, (most + 1) // 2).long()
            columns[site] = torch.cat([order[: most // 2], order[spread]]).unique()

    def reader(read: Reader) -> Reader:
        def chunks() -> Iterator[Chunk]:
            for chunk in read():
                values = {
                    site: chunk.samples[site].flatten(2)[..., of]
                    if chunk.samples[site].dim() > 2
                    else chunk.samples[site][..., None]
                    for site, of in columns.items()
                }
                for site in chunk.samples.keys() & partitions:
                    values[clusters_name(site)] = num_clusters(chunk.samples[site])[..., None]
                yield Chunk(values, {}, chunk.valid)

        return chunks

    return [(members, reader(read)) for members, read in groups]


def moments_of_halves(
    groups: Sequence[tuple[range, Reader]], numbers: Sequence[int], num_draws: int
) -> dict[str, Moments]:
    """Moments of both halves of each chain, of sites that hold real numbers, chunk by chunk.

    Shapes: returns (2 * num_chains, *event) each.
    """
    parts: dict[str, list[Moments]] = {}
    half = num_draws // 2
    for members, read in groups:
        columns = [column for column, number in enumerate(members) if number in numbers]
        for start in (0, num_draws - half) if columns else ():
            found: dict[str, Moments] = {}
            first = 0
            for chunk in read():
                rows = range(max(start - first, 0), min(start + half - first, len(chunk)))
                first += len(chunk)
                for name, value in chunk.samples.items() if len(rows) else ():
                    if not value.is_floating_point() or not value.numel():
                        continue
                    kept = value[rows.start : rows.stop, columns]
                    new = moments_of(kept, [len(rows)] * len(columns))
                    noise = (16.0 * torch.finfo(value.dtype).eps * new.mean).square()
                    squares = torch.where(new.squares > noise * len(rows), new.squares, 0.0)
                    new = new._replace(squares=squares)
                    found[name] = merge(found[name], new) if name in found else new
            for name, moments in found.items():
                parts.setdefault(name, []).append(moments)
    return {
        name: Moments(*(torch.cat(tensors) for tensors in zip(*moments, strict=True)))
        for name, moments in parts.items()
    }


def r_hats(halves: Moments) -> Tensor:
    """Split R-hat of the elements of a site, one for those that do not change."""
    num_draws = float(halves.num_draws[0])
    between = halves.mean.var(0)
    r_hat = ((num_draws - 1.0) / num_draws + between / halves.variance.mean(0)).sqrt()
    unchanged = between <= (1e-6 * halves.mean.mean(0)).square()
    return torch.where((halves.squares == 0).all(0) & unchanged, 1.0, r_hat)


def temperatures_of(
    kernel: SGMCMCKernel,
    groups: Sequence[tuple[range, Reader]],
    numbers: Sequence[int],
    num_draws: int,
    num_steps: int,
) -> dict[str, Temperature] | None:
    """Configurational temperatures of the draws of a run: of all sites by the name "", and of each.

    Each draw that is looked at takes the gradient of a minibatch there and at the mean of the
    draws, a control variate. There is one for ten steps of the run at most, and 400 in all.
    """
    num_chains = len(numbers)
    most = min(_MOST_DRAWS // max(num_chains, 1), num_steps // _STEPS_PER_DRAW, num_draws)
    if most < _FEWEST_OF_A_CHAIN or most * num_chains < _FEWEST_FOR_TEMPERATURE:
        return None
    potential = kernel.potential
    layout = potential.layout
    chosen = torch.linspace(0, num_draws - 1, most).long()
    names = list(layout.shapes)
    values, _ = gather_chains(thinned(groups, chosen, names), numbers, most)
    if set(values) != set(names):
        return None
    if isinstance(potential, Potential):
        values = potential.unconstrain(values)
    # A number that no chain has gives minibatches that no chain has seen.
    return temperatures_at(kernel, layout.flatten(values), max(numbers) + 1)


def temperatures_at(kernel: SGMCMCKernel, draws: Tensor, number: int) -> dict[str, Temperature]:
    """Configurational temperatures of draws, as ``temperatures_of`` has them.

    Shapes: draws (num_chains, num_draws, size).
    """
    potential = kernel.potential
    layout = potential.layout
    flat = draws.flatten(0, 1)
    minibatches = Minibatches(potential.subsampled_plates, [number], 0)
    rows = [index[:, 0].to(flat.device) for index in minibatches(0, len(flat))]
    gradient: BatchedGradient = potential.gradient.over_any
    if rows:  # less noise, for one gradient over all of the data
        anchor = anchor_at(potential, flat.mean(0))
        if bool(anchor.gradient.isfinite().all()):
            gradient = control(gradient, anchor)
    _, gradients = gradient(flat, *rows)
    is_finite = (flat.isfinite() & gradients.isfinite()).all(0)
    gradients = gradients.reshape(draws.shape)
    names = list(layout.shapes)
    parts = {"": list(range(layout.size)), **{name: list(layout.columns(name)) for name in names}}
    return {
        name: configurational_temperature(draws[..., columns], gradients[..., columns])
        for name, columns in parts.items()
        if columns and bool(is_finite[columns].all())
    }


def temperature_warning(
    kernel: SGMCMCKernel,
    groups: Sequence[tuple[range, Reader]],
    numbers: Sequence[int],
    num_draws: int,
    num_steps: int,
) -> str | None:
    """Say what to warn of where a temperature is off by a half, and by more than its noise."""
    from scipy.special import stdtrit  # slow to import

    temperatures = temperatures_of(kernel, groups, numbers, num_draws, num_steps)
    if not temperatures:
        return None
    wanted = kernel.temperature
    errors = float(stdtrit(BATCHES - 1, 1.0 - _FALSE_ALARMS / (2 * len(temperatures))))
    off = {
        name: found
        for name, found in temperatures.items()
        if not 1.0 / _MOST_RATIO <= found.value / wanted <= _MOST_RATIO
        and abs(found.value - wanted) > errors * found.standard_error
    }
    if not off:
        return None
    # That of all sites, or else of the one that is off most.
    site = "" if "" in off else max(off, key=lambda each: abs(math.log(_ratio(off[each], wanted))))
    found, ratio = off[site], _ratio(off[site], wanted)
    name = type(kernel).__name__ + (f" at {site!r}" if site else "")
    if ratio > 1.0:
        what = (
            f"the draws of {name} are too hot: their standard deviations are about "
            f"{math.sqrt(ratio):.2g} times too large"
        )
        advice = "take a smaller step_size, larger minibatches or a control_variate"
    else:
        spread = f"about {math.sqrt(ratio):.2g}" if ratio > 0.01 else "less than 0.1"
        what = (
            f"the draws of {name} are too cold: their standard deviations are {spread} times the "
            "posterior's"
        )
        advice = (
            "the chains have not moved far enough, which a larger step_size or more steps mend, or "
            "the sampler does not keep the posterior as it is, as L2E, whose draws are for "
            "predictions"
        )
    return (
        f"{what}. Their configurational temperature is {found.value:.2g} +- "
        f"{found.standard_error:.1g} where {wanted:g} is right; {advice}"
    )


def _ratio(found: Temperature, wanted: float) -> float:
    """Fraction of the temperature that is wanted; estimates may lie below zero."""
    return max(found.value / wanted, _LEAST_RATIO)
