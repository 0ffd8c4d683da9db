"""The posterior of weighted rows, as a function of the latent values, the weights and the rows."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import pyro
import torch
from torch import Tensor

from pyro_ext.potential import Backend, BatchedFunction, Plate, Potential, WeightedPotential
from pyro_ext.potential.graph_capture import Gradient
from pyro_ext.potential.rows import WeightedModel

_ROWS_PER_BLOCK = 16384


class Coreset(NamedTuple):
    """Pseudo rows and their weights.

    :param tuple rows: a tensor for each row argument of the model. **Shape:** ``(size, *event)``.
    :param Tensor weights: **Shape:** ``(size,)``.
    """

    rows: tuple[Tensor, ...]
    weights: Tensor

    def detached(self) -> "Coreset":
        """Return the coreset without gradients."""
        return Coreset(tuple(row.detach() for row in self.rows), self.weights.detach())


class RowDensity:
    """A negative log density of weighted rows, for many draws of the latent values."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        example: Callable[[], Sequence[Tensor]],
        backend: Backend,
        data: Sequence[Tensor],
    ) -> None:
        self._value = BatchedFunction(function, example, backend, data)
        self._gradient = BatchedFunction(Gradient(function), example, backend, data)

    def value(self, flat: Tensor, coreset: Coreset) -> Tensor:
        """Density of one draw, differentiable in all arguments, a scalar."""
        function = self._value.single() or self._value.function
        result: Tensor = function(flat, coreset.weights, *coreset.rows)
        return result

    def values(self, flat: Tensor, coreset: Coreset) -> Tensor:
        """Density of each draw, differentiable in all arguments."""
        result: Tensor = self._value.over_first(flat, coreset.weights, *coreset.rows)
        return result

    def value_and_gradient(self, flat: Tensor, coreset: Coreset) -> tuple[Tensor, Tensor]:
        """Density and gradient in the latent values of each draw, without a graph behind them."""
        with torch.no_grad():
            value, gradient = self._gradient.over_first(flat, coreset.weights, *coreset.rows)
        return value, gradient

    def differentiable_gradient(self, flat: Tensor, coreset: Coreset) -> Tensor:
        """The same gradient as a function that can be differentiated in all arguments."""
        # The record of a gradient would not do: what a backward pass saves is detached in it.
        with torch.enable_grad():
            leaf = flat if flat.requires_grad else flat.detach().requires_grad_()
            total = self.values(leaf, coreset).sum()
            (gradient,) = torch.autograd.grad(total, leaf, create_graph=True)
        return gradient


class WeightedPosterior(RowDensity):
    r"""Negative log posterior density of a model over a fixed number of weighted rows.

    .. math:: U(z; u, w) = - \log p(\theta) - \sum_j w_j \log p(u_j | \theta)
              - \log |\det \partial \theta / \partial z| ,

    in unconstrained space, up to a constant, which is a density there thanks to the Jacobian. It
    can be differentiated in all of its arguments.
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
            if "subsample_size" in str(error):
                raise ValueError(f"size={self.size} does not fit: {advice}") from error
            error.add_note(advice)
            raise
        if self.potential.subsampled_plates:
            raise ValueError(f"size={self.size} does not fit: {advice}")
        self.layout = self.potential.layout
        start = self.layout.flatten(self.potential.init(seed=0))[0]
        generator = torch.Generator().manual_seed(0)

        def point() -> list[Tensor]:
            noise = torch.randn(start.shape, generator=generator, device="cpu").to(start)
            factor = (0.5 + torch.rand(self.size, generator=generator, device="cpu")).to(weights)
            return [start + 0.5 * noise, factor * weights, *rows]

        data = model.arguments.tensors
        super().__init__(self._negative_log_joint, point, backend, data)
        outside = [
            name
            for name, site in self.potential.observed_sites.items()
            if all(plate.name != model.plate for plate in site.plates)
        ]
        args, kwargs = model.arguments.fill(rows)
        rows_alone = pyro.poutine.block(model.model, hide=outside) if outside else model.model
        loss = WeightedPotential(rows_alone, args, kwargs, plate=model.plate, backend=backend)
        self.likelihood = RowDensity(loss.value, point, backend, data)

    def log_likelihood(self, flat: Tensor, coreset: Coreset) -> Tensor:
        r"""Weighted log likelihood of each draw, differentiable in the coreset."""
        return -self.likelihood.values(flat.detach(), coreset)

    def _negative_log_joint(self, flat: Tensor, weights: Tensor, *rows: Tensor) -> Tensor:
        return self.potential.potential(self.layout.unflatten(flat), None, weights, *rows)


class DataPosterior:
    """The posterior of the data, a block of rows at a time."""

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
        value, gradient = self._summed(lambda block: self.posterior.value_and_gradient(flat, block))
        return value, gradient

    def hessian(self, flat: Tensor) -> Tensor:
        """Second derivatives of the negative log density. **Shape:** ``(size,)``, to a matrix."""
        (hessian,) = self._summed(
            lambda block: (derivatives(self.posterior, flat, block)[1].detach(),)
        )
        return hessian

    def log_likelihood(self, flat: Tensor, batch_size: int | None = None) -> Tensor:
        """Log likelihood of each draw over the data, or an estimate of it from random rows."""
        with torch.no_grad():
            if batch_size is None or batch_size >= self.num_points:
                parts = [self.posterior.log_likelihood(flat, block) for block in self.blocks]
                return torch.stack(parts).sum(0)
            return self.estimate(flat, torch.randperm(self.num_points)[:batch_size].to(flat.device))

    def estimate(self, flat: Tensor, index: Tensor) -> Tensor:
        """Unbiased estimate of the log likelihood of each draw from some of the rows."""
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

    def _summed(self, function: Callable[[Coreset], Sequence[Tensor]]) -> list[Tensor]:
        """Sum a function of negative log densities over all blocks, counting the prior once."""
        blocks = self.blocks
        total = [torch.stack(parts).sum(0) for parts in zip(*map(function, blocks), strict=True)]
        if len(blocks) > 1:  # the prior counts once
            nothing = blocks[0]._replace(weights=torch.zeros_like(blocks[0].weights))
            priors = function(nothing)
            total = [
                part - (len(blocks) - 1) * prior for part, prior in zip(total, priors, strict=True)
            ]
        return total


class Posteriors(Protocol):
    """The posteriors of a model that a surrogate stands for, such as those of a guide."""

    posterior: WeightedPosterior
    data: DataPosterior

    def __hash__(self) -> int: ...


class CoresetGuide(Posteriors, Protocol):
    """A guide that has a coreset of its own, such as an ``AutoPseudocoreset``."""

    size: int

    @property
    def weighting(self) -> str:
        """Weighting of the pseudo rows."""

    def coreset(self) -> Coreset:
        """Rows and weights, differentiable in the parameters of the guide."""


def posteriors_of(
    whole: Potential, plate: Plate, model: WeightedModel, example: Coreset, backend: Backend
) -> tuple[WeightedPosterior, DataPosterior]:
    """The posteriors of a coreset and of the data."""
    posterior = WeightedPosterior(model, example, backend)
    block = plate.subsample_size if plate.is_subsampled else None
    rows = model.arguments.rows
    return posterior, DataPosterior(model, rows, block, whole.layout.dtype, backend)


def derivatives(
    posterior: WeightedPosterior, flat: Tensor, coreset: Coreset
) -> tuple[Tensor, Tensor]:
    """Gradient and second derivatives of the negative log density, differentiable again."""
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
    options = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
    try:
        (products,) = torch.autograd.grad(gradient, leaf, vectors, is_grads_batched=True, **options)
    except RuntimeError:  # an operation that cannot be vectorized
        rows = [torch.autograd.grad(gradient, leaf, vector, **options)[0] for vector in vectors]
        return torch.stack(rows)
    return products
