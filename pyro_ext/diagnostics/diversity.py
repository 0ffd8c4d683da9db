"""Diversity of posterior draws: in their predictions, in space, and along the path between two.

An ensemble benefits from draws that differ. :func:`pyro_ext.diagnostics.metrics.ambiguity` measures
the benefit; these functions show where the draws differ. They take NumPy arrays or torch tensors
and return tensors in double precision, through which no gradient flows.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.diagnostics.metrics import ArrayLike, as_numbers, as_probabilities

__all__ = ["consecutive_distances", "path_values", "pairwise_kl", "weight_singular_values"]

_POINTS_PER_CALL = 4096


def pairwise_kl(probabilities: ArrayLike) -> Tensor:
    r"""Kullback-Leibler divergence between the predictions of each pair of draws.

    It is averaged over the points,
    :math:`\frac{1}{n} \sum_i \sum_c p_s(c | x_i) \log \frac{p_s(c | x_i)}{p_t(c | x_i)}`, and
    infinite if draw :math:`t` excludes a class that draw :math:`s` does not.

    :param probabilities: predictive probabilities. **Shape:** ``(num_draws, n, classes)``.
    :returns: divergences, with draw ``s`` in rows and draw ``t`` in columns. **Shape:**
        ``(num_draws, num_draws)``.

    Example::

        >>> pairwise_kl(torch.tensor([[[0.5, 0.5]], [[0.25, 0.75]]])).round(decimals=4)
        tensor([[0.0000, 0.1438],
                [0.1308, 0.0000]], dtype=torch.float64)
    """
    draws = as_probabilities("probabilities", probabilities, averaged=False)
    num_draws, num_points, _ = draws.shape
    total = torch.zeros(num_draws, num_draws, dtype=torch.float64, device=draws.device)
    for some in draws.split(_POINTS_PER_CALL, 1):
        rows = some.double().flatten(1)
        is_zero = rows == 0
        logs = torch.where(is_zero, 0.0, rows.log())
        own = (rows * logs).sum(1, keepdim=True)
        excluded = rows @ is_zero.double().T
        total += own - rows @ logs.T + torch.where(excluded > 0, torch.inf, 0.0)
    # Rounding makes differences of equal numbers a little less than zero.
    return (total / num_points).clamp(min=0.0).fill_diagonal_(0.0)


def consecutive_distances(samples: Mapping[str, ArrayLike], *, relative: bool = False) -> Tensor:
    """Euclidean distance of each draw of a chain from the previous one, over all sites together.

    :param Mapping samples: draws by chain, as returned by ``get_samples(group_by_chain=True)``. For
        an expanded model, pass only the merged weights. **Shape:** ``(num_chains, num_draws,
        *event)`` each.
    :param bool relative: whether to divide by the norm of the previous draw.
    :returns: distances. **Shape:** ``(num_chains, num_draws - 1)``.
    :raises ValueError: if there are no sites, fewer than two draws, or shapes do not match.

    Example::

        >>> draws = {"loc": torch.tensor([[[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]]])}
        >>> consecutive_distances(draws)
        tensor([[5., 1.]], dtype=torch.float64)
    """
    checks.mapping("samples", samples, "a dict of draws by site")
    if not samples:
        raise ValueError("samples must contain at least one site, got none")
    rows: list[Tensor] = []
    for name, value in samples.items():
        tensor = as_numbers(f"samples[{name!r}]", value)
        if tensor.dim() < 2 or tensor.shape[1] < 2:
            raise ValueError(
                f"samples[{name!r}] must have the shape (num_chains, num_draws, *event) with at "
                f"least two draws; got {tuple(tensor.shape)}"
            )
        if rows and rows[0].shape[:2] != tensor.shape[:2]:
            raise ValueError(
                f"samples[{name!r}] must have the chains and draws of the sites before it, "
                f"{tuple(rows[0].shape[:2])}; got {tuple(tensor.shape[:2])}"
            )
        rows.append(tensor.double().reshape(*tensor.shape[:2], -1))
    flat = torch.cat(rows, -1)
    distances: Tensor = torch.linalg.vector_norm(flat[:, 1:] - flat[:, :-1], dim=-1)
    return distances / torch.linalg.vector_norm(flat[:, :-1], dim=-1) if relative else distances


def path_values(
    function: Callable[[dict[str, Tensor]], Tensor],
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    num_points: int = 21,
) -> tuple[Tensor, Tensor]:
    """Evaluate a function, such as a loss, along the straight path between two draws.

    A barrier along the path shows that the draws lie in different modes.

    :param Callable function: maps values by site, each with a leading dimension for the points on
        the path, to one value for each point, for instance ``lambda samples:
        potential.full(potential.unconstrain(samples))``.
    :param Mapping start: values by site. **Shape:** ``(*event)`` each.
    :param Mapping end: values by site. **Shape:** ``(*event)`` each.
    :param int num_points: the number of points on the path, including both ends.
    :returns: positions on the path from zero to one, and the values there. **Shape:**
        ``(num_points,)`` each.
    :raises ValueError: if the ends do not have the same sites and shapes, or the function returns a
        wrong shape.

    Example::

        >>> ends = {"w": torch.tensor([-1.0])}, {"w": torch.tensor([1.0])}
        >>> path_values(lambda samples: samples["w"].square().sum(-1), *ends, num_points=3)[1]
        tensor([1., 0., 1.], dtype=torch.float64)
    """
    checks.function("function", function)
    start, end = (
        checks.tensors(name, ends, finite=True) for name, ends in (("start", start), ("end", end))
    )
    checks.integer("num_points", num_points, 2)
    shapes = [{name: tuple(value.shape) for name, value in ends.items()} for ends in (start, end)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"end must have the sites and shapes of start, {shapes[0]}; got {shapes[1]}"
        )
    positions = torch.linspace(0.0, 1.0, num_points, dtype=torch.float64)
    path = {
        name: torch.lerp(value, end[name], positions.to(value).reshape(-1, *[1] * value.dim()))
        for name, value in start.items()
    }
    with torch.no_grad():
        values = function(path)
    if values.shape != (num_points,):
        raise ValueError(
            f"function must return the shape ({num_points},), one value for each point; got "
            f"{tuple(values.shape)}"
        )
    return positions, values.double()


def weight_singular_values(weight: ArrayLike) -> Tensor:
    """Singular values of draws of a weight matrix, in decreasing order.

    :param weight: draws of the matrix. Flatten the kernel of a convolution first, in two dimensions
        by ``weight.flatten(-3)``. **Shape:** ``(*batch, m, n)``.
    :returns: **Shape:** ``(*batch, min(m, n))``.
    :raises ValueError: for fewer than two dimensions.

    Example::

        >>> weight_singular_values(torch.tensor([[3.0, 0.0], [0.0, -4.0]]))
        tensor([4., 3.], dtype=torch.float64)
    """
    tensor = as_numbers("weight", weight)
    if tensor.dim() < 2:
        raise ValueError(f"weight must have at least two dimensions; got {tuple(tensor.shape)}")
    checks.all_finite("weight", tensor)
    values: Tensor = torch.linalg.svdvals(tensor.double())
    return values
