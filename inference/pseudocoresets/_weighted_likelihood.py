"""The likelihood of weighted rows, as a function of the latent values, the weights and the rows."""

from collections.abc import Callable, Sequence
from functools import partial

import pyro
import torch
from torch import Tensor

from pyro_ext.inference.pseudocoresets._row_arguments import WeightedModel
from pyro_ext.potential import Backend, BatchedFunction, WeightedPotential, value_and_gradient

__all__ = ["WeightedLikelihood"]


class WeightedLikelihood:
    r"""Negative log likelihood of weighted rows at unconstrained latent values.

    .. math:: L(z; u, w) = - \sum_j w_j \log p(u_j | \theta(z))

    :param WeightedModel model: the model.
    :param Sequence rows: rows of the number that counts. **Shape:** ``(size, *event)`` each.
    :param Sequence others: names of the observed sites that are no rows, and no part of it.
    :param point: makes random latent values, weights and rows.
    :param str backend: as of :class:`~pyro_ext.potential.Potential`.
    """

    def __init__(
        self,
        model: WeightedModel,
        rows: Sequence[Tensor],
        others: Sequence[str],
        point: Callable[[], Sequence[Tensor]],
        backend: Backend,
    ) -> None:
        args, kwargs = model.arguments.fill(rows)
        rows_alone = pyro.poutine.block(model.model, hide=list(others)) if others else model.model
        value = WeightedPotential(
            rows_alone, args, kwargs, plate=model.plate, backend=backend
        ).value
        data = model.arguments.tensors
        self._value = BatchedFunction(value, point, backend, data)
        self._gradient = BatchedFunction(partial(value_and_gradient, value), point, backend, data)

    def values(self, flat: Tensor, weights: Tensor, rows: Sequence[Tensor]) -> Tensor:
        """:math:`L` of each draw, differentiable in all arguments.

        :param Tensor flat: unconstrained. **Shape:** ``(draws, size)``.
        :param Tensor weights: **Shape:** ``(num_rows,)``.
        :param Sequence rows: **Shape:** ``(num_rows, *event)`` each.
        :returns: **Shape:** ``(draws,)``.
        """
        graph = self._value.single()
        arguments = (weights, *rows)
        if graph is None or len(flat) == 1:
            function = graph or self._value.function
            return torch.stack([function(row, *arguments) for row in flat])
        in_dims = (0, *[None] * len(arguments))
        result: Tensor = torch.func.vmap(graph, in_dims)(flat, *arguments)
        return result

    def gradient(self, flat: Tensor, weights: Tensor, rows: Sequence[Tensor]) -> Tensor:
        """Gradient of :math:`L` in the latent values of each draw, without a graph behind it.

        Arguments are those of ``values``. **Shape:** ``(draws, size)``.
        """
        graph = self._gradient.single()
        arguments = (weights, *rows)
        with torch.no_grad():
            if graph is None or len(flat) == 1:
                function = graph or self._gradient.function
                return torch.stack([function(row, *arguments)[1] for row in flat])
            in_dims = (0, *[None] * len(arguments))
            gradient: Tensor = torch.func.vmap(graph, in_dims)(flat, *arguments)[1]
        return gradient

    def differentiable_gradient(
        self, flat: Tensor, weights: Tensor, rows: Sequence[Tensor]
    ) -> Tensor:
        """The same gradient as a function that can be differentiated in all arguments."""
        # The record of a gradient would not do: what a backward pass saves is detached in it.
        with torch.enable_grad():
            leaf = flat if flat.requires_grad else flat.detach().requires_grad_()
            total = self.values(leaf, weights, rows).sum()
            (gradient,) = torch.autograd.grad(total, leaf, create_graph=True)
        return gradient
