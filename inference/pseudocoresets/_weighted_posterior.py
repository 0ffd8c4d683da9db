"""The posterior of weighted rows, as a function of the latent values, the weights and the rows."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_ext.inference.pseudocoresets._row_arguments import WeightedModel
from pyro_ext.inference.pseudocoresets._weighted_likelihood import WeightedLikelihood
from pyro_ext.potential import (
    Backend,
    BatchedFunction,
    Plate,
    Potential,
    value_and_gradient,
)

__all__ = [
    "Coreset",
    "DataPosterior",
    "Posteriors",
    "WeightedPosterior",
    "derivatives",
    "posteriors_of",
]

_ROWS_PER_BLOCK = 16384


class Coreset(NamedTuple):
    """Pseudo rows and their weights.

    :param tuple rows: a tensor for each row argument of the model. **Shape:** ``(size, *event)``.
    :param Tensor weights: **Shape:** ``(size,)``.
    """

    rows: tuple[Tensor, ...]
    weights: Tensor


class WeightedPosterior:
    r"""Negative log posterior density of a model over a fixed number of weighted rows.

    .. math:: U(z; u, w) = - \log p(\theta) - \sum_j w_j \log p(u_j | \theta)
              - \log |\det \partial \theta / \partial z| ,

    in unconstrained space, up to a constant, which is a density there thanks to the Jacobian. It
    can be differentiated in all of its arguments.

    :param model: the model.
    :param Coreset example: rows and weights, of the number that counts.
    :param str backend: as of :class:`~pyro_ext.potential.Potential`.
    :raises ValueError: where the model does not see all of the rows.
    """

    def __init__(self, model: WeightedModel, example: Coreset, backend: Backend) -> None:
        rows = [row.detach().clone() for row in example.rows]
        weights = example.weights.detach().clone()
        self.model = model
        self.size = len(weights)
        advice = (
            f"the model must take the size of the plate {model.plate!r} from its arguments and see "
            f"all of {self.size} rows, for example with subsample_size=min(batch_size, len(x))"
        )
        try:
            self.potential = Potential(model, weights, *rows, backend=backend)
        except (RuntimeError, ValueError) as error:
            error.add_note(advice)
            raise
        if self.potential.subsampled_plates:
            raise ValueError(f"size={self.size} does not fit: {advice}")
        self.layout = self.potential.layout
        start = self.layout.flatten(self.potential.init(seed=0))[0]
        generator = torch.Generator().manual_seed(0)

        def point() -> list[Tensor]:
            noise = torch.randn(start.shape, generator=generator).to(start)
            factor = (0.5 + torch.rand(self.size, generator=generator)).to(weights)
            return [start + 0.5 * noise, factor * weights, *rows]

        data = model.arguments.tensors
        self._value = BatchedFunction(self._negative_log_joint, point, backend, data)
        gradient = partial(value_and_gradient, self._negative_log_joint)
        self._gradient = BatchedFunction(gradient, point, backend, data)
        others = [
            name
            for name, site in self.potential.observed_sites.items()
            if all(plate.name != model.plate for plate in site.plates)
        ]
        self.likelihood = WeightedLikelihood(model, rows, others, point, backend)

    def value(self, flat: Tensor, coreset: Coreset) -> Tensor:
        """:math:`U`, differentiable. **Shape:** ``(size,)`` to a scalar."""
        function = self._value.single() or self._negative_log_joint
        result: Tensor = function(flat, coreset.weights, *coreset.rows)
        return result

    def values(self, flat: Tensor, coreset: Coreset) -> Tensor:
        """:math:`U` of each draw, differentiable in the coreset. **Shape:** ``(draws, size)``."""
        graph = self._value.single()
        arguments = (coreset.weights, *coreset.rows)
        if graph is None:
            return torch.stack([self._negative_log_joint(row, *arguments) for row in flat])
        in_dims = (0, *[None] * len(arguments))
        result: Tensor = torch.func.vmap(graph, in_dims)(flat, *arguments)
        return result

    def value_and_gradient(self, flat: Tensor, coreset: Coreset) -> tuple[Tensor, Tensor]:
        """:math:`U` of each draw and its gradient. **Shape:** ``(draws,)``, ``(draws, size)``."""
        graph = self._gradient.single()
        arguments = (coreset.weights, *coreset.rows)
        with torch.no_grad():
            if graph is None or len(flat) == 1:
                function = graph or self._gradient.function
                pairs = [function(row, *arguments) for row in flat]
                return torch.stack([one for one, _ in pairs]), torch.stack([g for _, g in pairs])
            in_dims = (0, *[None] * len(arguments))
            value, gradient = torch.func.vmap(graph, in_dims)(flat, *arguments)
        return value, gradient

    def log_likelihood(self, flat: Tensor, coreset: Coreset) -> Tensor:
        r"""Weighted log likelihood of each draw, differentiable in the coreset.

        :param Tensor flat: unconstrained. **Shape:** ``(draws, size)``.
        :param Coreset coreset: rows and weights.
        :returns: :math:`\sum_j w_j \log p(u_j | \theta)`. **Shape:** ``(draws,)``.
        """
        return -self.likelihood.values(flat.detach(), coreset.weights, coreset.rows)

    def _negative_log_joint(self, flat: Tensor, weights: Tensor, *rows: Tensor) -> Tensor:
        return self.potential.potential(self.layout.unflatten(flat), None, weights, *rows)


class DataPosterior:
    """The posterior of the data, a block of rows at a time.

    :param model: the model.
    :param Sequence rows: the data. **Shape:** ``(num_points, *event)`` each.
    :param int block_size: number of rows that the model sees at once; by default as many as do not
        take much memory.
    :param str backend: as of :class:`~pyro_ext.potential.Potential`.
    """

    def __init__(
        self,
        model: WeightedModel,
        rows: Sequence[Tensor],
        block_size: int | None,
        dtype: torch.dtype,
        backend: Backend,
    ) -> None:
        self.rows = tuple(rows)
        self.num_points = len(rows[0])
        size = min(block_size or _ROWS_PER_BLOCK, self.num_points)
        self._model, self._backend = model, backend
        self._minibatches: dict[int, WeightedPosterior] = {}
        self._weights = torch.ones(self.num_points, dtype=dtype, device=rows[0].device)
        self.posterior = WeightedPosterior(model, self._block(0, size), backend)
        self.block_size = size

    @property
    def blocks(self) -> list[Coreset]:
        """The data in blocks of one size; what fills up the last one has no weight."""
        size = self.block_size
        return [self._block(start, size) for start in range(0, self.num_points, size)]

    def value_and_gradient(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log density of each draw and its gradient. **Shape:** ``(draws, size)``."""
        blocks = self.blocks
        parts = [self.posterior.value_and_gradient(flat, block) for block in blocks]
        value = torch.stack([one for one, _ in parts]).sum(0)
        gradient = torch.stack([one for _, one in parts]).sum(0)
        if len(blocks) > 1:  # the prior counts once
            prior, slope = self.posterior.value_and_gradient(flat, self._nothing())
            value = value - (len(blocks) - 1) * prior
            gradient = gradient - (len(blocks) - 1) * slope
        return value, gradient

    def hessian(self, flat: Tensor) -> Tensor:
        """Second derivatives of the negative log density. **Shape:** ``(size,)``, to a matrix."""
        blocks = self.blocks
        parts = [_detached_hessian(self.posterior, flat, block) for block in blocks]
        hessian = torch.stack(parts).sum(0)
        if len(blocks) > 1:
            prior = _detached_hessian(self.posterior, flat, self._nothing())
            hessian = hessian - (len(blocks) - 1) * prior
        return hessian

    def log_likelihood(self, flat: Tensor, index: Tensor | None = None) -> Tensor:
        """Log likelihood of each draw over the data, or an estimate of it from some rows.

        :param Tensor flat: unconstrained. **Shape:** ``(draws, size)``.
        :param Tensor index: numbers of the rows; their likelihoods count for all.
        :returns: **Shape:** ``(draws,)``.
        """
        with torch.no_grad():
            if index is None:
                parts = [self.posterior.log_likelihood(flat, block) for block in self.blocks]
                return torch.stack(parts).sum(0)
            total = torch.zeros(len(flat), dtype=flat.dtype, device=flat.device)
            for some in index.split(self.block_size):
                weights = torch.full_like(self._weights[: len(some)], self.num_points / len(index))
                block = Coreset(tuple(row[some] for row in self.rows), weights)
                total = total + self._of_size(len(some)).log_likelihood(flat, block)
            return total

    def _of_size(self, size: int) -> "WeightedPosterior":
        """The posterior of so many rows, recorded once."""
        if size == self.block_size:
            return self.posterior
        if size not in self._minibatches:
            example = self._block(0, size)
            self._minibatches[size] = WeightedPosterior(self._model, example, self._backend)
        return self._minibatches[size]

    def _block(self, start: int, size: int) -> Coreset:
        index = torch.arange(start, start + size, device=self.rows[0].device)
        weights = (index < self.num_points).to(self._weights)
        if start + size <= self.num_points:
            return Coreset(tuple(row[start : start + size] for row in self.rows), weights)
        return Coreset(tuple(row[index % self.num_points] for row in self.rows), weights)

    def _nothing(self) -> Coreset:
        block = self._block(0, self.block_size)
        return block._replace(weights=torch.zeros_like(block.weights))


class Posteriors(Protocol):
    """The posteriors of a model that a surrogate stands for, such as those of a guide."""

    posterior: WeightedPosterior
    data: DataPosterior

    def __hash__(self) -> int: ...


def posteriors_of(
    whole: Potential, plate: Plate, model: WeightedModel, example: Coreset, backend: Backend
) -> tuple[WeightedPosterior, DataPosterior]:
    """The posteriors of a coreset and of the data.

    :param Potential whole: of the model and all of its data.
    :param Plate plate: the plate of the observations.
    :param WeightedModel model: the same model of weighted rows.
    :param Coreset example: rows and weights, of the number that counts.
    :param str backend: as of :class:`~pyro_ext.potential.Potential`.
    :raises ValueError: where the model does not see all of the rows.
    """
    posterior = WeightedPosterior(model, example, backend)
    block = plate.subsample_size if plate.is_subsampled else None
    rows = model.arguments.rows
    return posterior, DataPosterior(model, rows, block, whole.layout.dtype, backend)


def derivatives(
    posterior: WeightedPosterior, flat: Tensor, coreset: Coreset
) -> tuple[Tensor, Tensor]:
    """Gradient and second derivatives of the negative log density, differentiable again.

    :param WeightedPosterior posterior: the posterior.
    :param Tensor flat: unconstrained. **Shape:** ``(size,)``.
    :param Coreset coreset: rows and weights.
    :returns: **Shape:** ``(size,)`` and ``(size, size)``.
    """
    with torch.enable_grad():
        leaf = flat if flat.requires_grad else flat.detach().requires_grad_()
        value = posterior.value(leaf, coreset)
        (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
        if not gradient.requires_grad:
            return gradient, torch.zeros(len(flat), len(flat)).to(flat)
        basis = torch.eye(len(flat), dtype=flat.dtype, device=flat.device)
        hessian = _products(gradient, leaf, basis)
    return gradient, 0.5 * (hessian + hessian.mT)


def _products(gradient: Tensor, leaf: Tensor, vectors: Tensor) -> Tensor:
    """Products of second derivatives with each of some vectors."""
    try:
        (products,) = torch.autograd.grad(
            gradient,
            leaf,
            vectors,
            create_graph=True,
            is_grads_batched=True,
            allow_unused=True,
            materialize_grads=True,
        )
    except RuntimeError:  # an operation that cannot be vectorized
        rows = [
            torch.autograd.grad(
                gradient,
                leaf,
                vector,
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )[0]
            for vector in vectors
        ]
        return torch.stack(rows)
    return products


def _detached_hessian(posterior: WeightedPosterior, flat: Tensor, block: Coreset) -> Tensor:
    return derivatives(posterior, flat, block)[1].detach()
