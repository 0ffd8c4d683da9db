"""How a Pyro model sees the points of its data, and new points drawn from it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine.util import site_is_subsample
from torch import Tensor

__all__ = ["ModelPoints", "draw_points", "points_of"]

_LEAST_BLOCK = 1024
_TOLERANCE = 1e-4


class ModelPoints(NamedTuple):
    """How a model sees the points of its data.

    :param str plate: name of the plate of the points.
    :param dict observed: for each observed site the place of the argument that it observes.
    :param dict latents: shapes of the latent sites.
    :param int block_size: how many points one run of the model gives.
    :param bool subsamples: whether the plate takes a subsample, of so many.
    """

    plate: str
    observed: dict[str, int]
    latents: dict[str, torch.Size]
    block_size: int
    subsamples: bool


def points_of(model: Callable[..., Any], data: tuple[Tensor, ...]) -> ModelPoints:
    """Find the plate of the points, what is observed in it, and how many points a run may have.

    :param model: a Pyro model.
    :param tuple data: its arguments, with a row for each point.
    :raises ValueError: where there is no such plate, a latent site stands in it, a site observes
        something else, or a point is not a function of its own rows.
    """
    number = len(data[0])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        nodes: dict[str, Any] = dict(poutine.trace(model).get_trace(*data).nodes)
        sites = {name: node for name, node in nodes.items() if _is_site(node)}
        observed = {name: node for name, node in sites.items() if node["is_observed"]}
        latents = {name: node for name, node in sites.items() if not node["is_observed"]}
        plate = _plate_of_points(observed, number)
        for name, node in latents.items():
            if any(frame.name == plate.name for frame in node["cond_indep_stack"]):
                raise ValueError(
                    f"site {name!r} is latent in the plate {plate.name!r} of the points, so that "
                    "new points would need values of it that no posterior has; integrate it out"
                )
        rows = torch.arange(number)
        if plate.size < number:
            rows = nodes[plate.name]["value"].cpu()
        places = {
            name: _place(name, node, plate, tuple(value[rows] for value in data))
            for name, node in observed.items()
        }
        values = {name: node["value"] for name, node in latents.items()}
        shapes = {name: value.shape for name, value in values.items()}
        points = ModelPoints(plate.name, places, shapes, plate.size, plate.size < number)
        for block_size in (max(number, _LEAST_BLOCK), plate.size):
            if points.subsamples and block_size > plate.size:
                continue
            found = points._replace(block_size=block_size)
            if _is_pointwise(model, data, values, found):
                return found
    raise ValueError(
        f"model gives a point of the plate {plate.name!r} another density where the rows of the "
        f"data are in another order; each must depend on its own row of the {number} only"
    )


def draw_points(
    model: Callable[..., Any],
    rows: tuple[Tensor, ...],
    latents: Mapping[str, Tensor],
    points: ModelPoints,
) -> tuple[Tensor, ...]:
    """Draw what a model observes at some rows of its arguments, given its latent values.

    :param model: a Pyro model.
    :param tuple rows: of the arguments. **Shape:** ``(num_rows, *event)`` each.
    :param Mapping latents: values of the latent sites.
    :param ModelPoints points: how the model sees points.
    :returns: the rows, in which what is observed is new. **Shape:** ``(block_size, *event)`` each.
    """
    nodes = _run(poutine.uncondition(model), rows, latents, points)
    values = [row[: points.block_size] for row in rows]
    for name, place in points.observed.items():
        values[place] = nodes[name]["value"].to(values[place])
    return tuple(values)


def _run(
    model: Callable[..., Any],
    rows: tuple[Tensor, ...],
    latents: Mapping[str, Tensor],
    points: ModelPoints,
) -> Mapping[str, Any]:
    given = dict(latents)
    if points.subsamples:
        given[points.plate] = torch.arange(points.block_size, device=rows[0].device)
    nodes: Mapping[str, Any] = poutine.trace(poutine.condition(model, given)).get_trace(*rows).nodes
    return nodes


def _is_site(node: Any) -> bool:
    return (
        node["type"] == "sample"
        and not site_is_subsample(node)
        and not node["infer"].get("_deterministic", False)
        and not isinstance(getattr(node["fn"], "base_dist", node["fn"]), Unit)
    )


def _plate_of_points(observed: Mapping[str, Any], number: int) -> Any:
    """The one plate around all observed sites that has the size of the data."""
    if not observed:
        raise ValueError("model must have observed sites, got none: give it the data to observe")
    stacks = [node["cond_indep_stack"] for node in observed.values()]
    common = [
        frame
        for frame in stacks[0]
        if frame.vectorized
        and frame.full_size == number
        and all(any(other.name == frame.name for other in stack) for stack in stacks)
    ]
    if len(common) != 1:
        raise ValueError(
            f"model must have its observed sites {sorted(observed)} in one plate of the size "
            f"{number} of the data, got {[frame.name for frame in common]}"
        )
    return common[0]


def _place(name: str, node: Mapping[str, Any], plate: Any, rows: tuple[Tensor, ...]) -> int:
    """Place of the argument that a site observes."""
    value = node["value"]
    if value.dim() + plate.dim - node["fn"].event_dim != 0:
        raise ValueError(
            f"site {name!r} must have the plate {plate.name!r} of the points as its first "
            f"dimension, got the shape {tuple(value.shape)}"
        )
    for place, row in enumerate(rows):
        if row.shape == value.shape and bool((row == value).all()):
            return place
    raise ValueError(
        f"site {name!r} observes none of the {len(rows)} tensors of the data as they are; give "
        "what it observes as an argument of the model"
    )


def _is_pointwise(
    model: Callable[..., Any],
    data: tuple[Tensor, ...],
    latents: Mapping[str, Tensor],
    points: ModelPoints,
) -> bool:
    """Whether points in another number and order have the densities that they had."""
    own_size = points._replace(block_size=min(points.block_size, len(data[0])))
    base = _log_densities(_run(model, data, latents, own_size), points)
    order = torch.arange(points.block_size).flip(0) % own_size.block_size
    try:
        rows = tuple(value[order] for value in data)
        if points.subsamples:
            # The rows of the subsample come first; the others fill the plate up.
            rest = torch.arange(points.block_size, len(data[0]))
            rows = tuple(value[torch.cat([order, rest])] for value in data)
        other = _log_densities(_run(model, rows, latents, points), points)
    except (RuntimeError, ValueError, IndexError):
        return False
    return all(
        len(other[name]) == points.block_size
        and torch.allclose(base[name][order], other[name], _TOLERANCE, _TOLERANCE, equal_nan=True)
        for name in base
    )


def _log_densities(nodes: Mapping[str, Any], points: ModelPoints) -> dict[str, Tensor]:
    densities = {}
    for name in points.observed:
        value = nodes[name]["fn"].log_prob(nodes[name]["value"])
        densities[name] = value.reshape(len(value), -1).sum(1)
    return densities
