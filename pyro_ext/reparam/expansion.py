r"""Matrices as products of matrices, with which samplers explore further.

[1] H. Kim, G. Nam, C. Yun, H. Yang, J. Lee (2025),
Parameter expanded stochastic gradient Markov chain Monte Carlo.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.reparam.reparam import Reparam
from torch import Tensor

from pyro_ext._lib import checks


class ExpansionReparam(Reparam):
    r"""Replaces a matrix by a product of matrices, whose factors are sampled instead [1].

    .. math:: W = P_1 \cdots P_c \, V \, Q_1 \cdots Q_d

    The middle factor :math:`V` has the original prior of the site. The entries of the square
    factors have the prior :math:`\text{Normal}(0, 1 / \sqrt{\lambda})`. This changes the prior of
    :math:`W`: it gets heavier tails. In chains, the square factors start as identity matrices, so
    that :math:`W = V`. A gradient step on the factors of :math:`W = X_1 \cdots X_e` moves :math:`W`
    along its gradient with the preconditioner
    :math:`\sum_i (X_{i+1:e}^\top X_{i+1:e}) \otimes (X_{1:i-1} X_{1:i-1}^\top)`, and draws of
    :math:`W` lie further apart.

    The site must have at least two event dimensions. The left factors mix the first, which is the
    output in the weights of :class:`torch.nn.Linear`, and the right factors mix the second. Further
    dimensions, as in convolution kernels, are not affected. The factors are sites named after the
    original one: for ``"weight"``, they are ``"weight.P1"``, ``"weight.V"``, ``"weight.Q1"`` and so
    on. The site itself becomes deterministic, and draws of :class:`~pyro_ext.inference.MCMC`
    include it in its original shape. Compare or average only the products of different draws, not
    their factors.

    It works with any kernel, including NUTS, and with SVI. Give the square factors less friction
    than the others, as in
    ``SGHMC(model, friction={"*.P?": 1.0, "*.Q?": 1.0, "default": 100.0})``.

    :param int left: :math:`c \ge 0`.
    :param int right: :math:`d \ge 0`. If both are zero, the model does not change.
    :param strength: :math:`\lambda`, a positive number, or ``"width"`` for the size of each square
        factor, which keeps its singular values near one whatever the width.
    :raises ValueError: if arguments are out of range or, when the model runs, if the site has fewer
        than two event dimensions or is observed.

    Example::

        >>> from pyro import poutine
        >>> def model():
        ...     return pyro.sample("weight", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
        >>> expanded = poutine.reparam(model, config={"weight": ExpansionReparam()})
        >>> trace = poutine.trace(expanded).get_trace()
        >>> {name: tuple(trace.nodes[name]["value"].shape) for name in trace.stochastic_nodes}
        {'weight.P1': (3, 3), 'weight.V': (3, 2), 'weight.Q1': (2, 2)}
    """

    def __init__(
        self, left: int = 1, right: int = 1, strength: float | Literal["width"] = "width"
    ) -> None:
        self.left = checks.integer("left", left, 0)
        self.right = checks.integer("right", right, 0)
        if strength != "width":
            strength = checks.number("strength", strength, above=0.0)
        self.strength = strength

    def apply(self, msg: Any) -> Any:
        """Replace a site by its factors.

        :param dict msg: the site, as Pyro's handler gives it.
        :returns: the site as a function of the factors.
        """
        if not self.left and not self.right:
            return msg
        name, fn, start = msg["name"], msg["fn"], msg["value"]
        if msg["is_observed"]:
            raise ValueError(f"site {name!r} is observed, and so has no factors to sample")
        if len(fn.event_shape) < 2:
            raise ValueError(
                f"site {name!r} must have at least two event dimensions to be a matrix, got "
                f"event_shape {tuple(fn.event_shape)}; see to_event"
            )
        rows, columns = fn.event_shape[:2]
        options: Any = {
            "like": fn.mean if start is None else start,
            "strength": self.strength,
            "batch_shape": fn.batch_shape,
            "is_initial": start is not None,
        }
        left = [square_factor(f"{name}.P{i + 1}", rows, **options) for i in range(self.left)]
        # A given start of the site is one of the middle factor between identity matrices.
        middle = pyro.sample(f"{name}.V", fn, obs=start, infer={"is_observed": False})
        right = [square_factor(f"{name}.Q{i + 1}", columns, **options) for i in range(self.right)]
        merged = merge_factors(left, middle, right, len(fn.event_shape))
        value = merged if start is None else start
        new_fn = dist.Delta(value, event_dim=len(fn.event_shape)).mask(False)
        return {"fn": new_fn, "value": value, "is_observed": True}


def square_factor(
    name: str,
    size: int,
    like: Tensor,
    strength: float | Literal["width"],
    batch_shape: tuple[int, ...] = (),
    *,
    is_initial: bool = False,
) -> Tensor:
    """Sample a square factor, whose chains start at an identity matrix.

    Shapes: returns (*batch_shape, size, size).
    """
    precision = float(size) if strength == "width" else strength
    scale = like.new_full((), precision).rsqrt()
    distribution = (
        dist.Normal(torch.zeros_like(scale), scale).expand((*batch_shape, size, size)).to_event(2)
    )
    identity = torch.eye(size, dtype=like.dtype, device=like.device).expand(distribution.shape())
    infer: Any = {"is_observed": False, "initial_value": identity}
    factor: Tensor = pyro.sample(
        name, distribution, obs=identity if is_initial else None, infer=infer
    )
    return factor


def merge_factors(
    left: Sequence[Tensor], middle: Tensor, right: Sequence[Tensor], event_dim: int = 2
) -> Tensor:
    r"""Multiply square factors and a middle factor.

    :param Sequence left: :math:`P_1, \ldots, P_c`. **Shape:** ``(*batch, m, m)``.
    :param Tensor middle: :math:`V`. **Shape:** ``(*batch, m, n, *rest)``.
    :param Sequence right: :math:`Q_1, \ldots, Q_d`. **Shape:** ``(*batch, n, n)``.
    :param int event_dim: number of dimensions of the middle factor after those of the batch.
    :returns: **Shape:** that of the middle factor.

    Example::

        >>> merge_factors([2.0 * torch.eye(3)], torch.ones(3, 2), [torch.eye(2)])[0]
        tensor([2., 2.])
    """
    middle = checks.as_tensor("middle", middle, "(*batch, m, n)")
    checks.integer("event_dim", event_dim, 2)
    left = [
        checks.as_tensor(f"left[{i}]", factor, "(*batch, m, m)", like=middle)
        for i, factor in enumerate(checks.sequence("left", left, "a list of square matrices", 0))
    ]
    right = [
        checks.as_tensor(f"right[{i}]", factor, "(*batch, n, n)", like=middle)
        for i, factor in enumerate(checks.sequence("right", right, "a list of square matrices", 0))
    ]
    product = middle
    if left:
        # Products of matrices take fewer operations than an einsum over all dimensions.
        columns = product if event_dim == 2 else product.flatten(product.dim() - event_dim + 1)
        product = (reduce(torch.matmul, left) @ columns).reshape(middle.shape)
    if right and event_dim == 2:
        product = product @ reduce(torch.matmul, right)
    elif right:
        # One product for all positions of the kernel, with the inputs as the columns.
        positions = product.flatten(product.dim() - event_dim + 2).mT
        mixed = (positions.flatten(-3, -2) @ reduce(torch.matmul, right)).reshape(positions.shape)
        # Left as a view, its layout would become that of all images after the convolution.
        product = mixed.mT.reshape(middle.shape)
        product = product.clone(memory_format=torch.contiguous_format)
    return product
