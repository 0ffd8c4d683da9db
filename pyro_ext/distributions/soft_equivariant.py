"""Weights that are nearly equivariant under several groups, under each as much as it deserves."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._checks import as_parameter
from pyro_ext.distributions.bases import ParametricDistribution
from pyro_ext.groups import EquivariantProjector, Group, TensorRep
from pyro_ext.groups.projector import (
    at_blocks,
    check_groups,
    check_representations,
    weight_blocks,
)

__all__ = ["SoftEquivariantNormal"]


class SoftEquivariantNormal(ParametricDistribution):
    r"""Normal weights of mean zero that are the smaller, the farther they are from equivariance.

    The precision matrix of the weight :math:`W` of a linear map between two representations is

    .. math:: \Lambda = \sigma^{-2} I + \sum_g \lambda_g (I - P_g) ,

    where :math:`P_g` projects onto the maps that are equivariant under a group :math:`g`. Up to
    its normalization the density is that of the penalty :math:`\sum_g \lambda_g \|W - P_g W\|^2 /
    2` of [1], beside weight decay: the mode of a posterior is what [1] trains for. That reading is
    ours. A group with strength zero has no say, and as :math:`\lambda_g \to \infty` only
    equivariant weights are left.

    The matrix falls into blocks, one for each pair of an output and an input tensor, and all
    computations are exact and done in these, in float64.

    :param TensorRep rep_in: what the map takes; ``None`` for vectors of ``rep_out`` themselves,
        such as biases.
    :param TensorRep rep_out: what it makes.
    :param Sequence groups: of :class:`~pyro_ext.nn.equivariant.Group`, on the same dimensions.
    :param strengths: :math:`\lambda_g \ge 0`. **Shape:** ``()`` or ``(*batch, num_groups)``.
    :param base_scale: :math:`\sigma`, the standard deviation of equivariant weights. **Shape:**
        ``(*batch)``.
    :raises ValueError: for numbers out of range, or a group on other dimensions than those of the
        representations or the other groups.

    [1] H. Kim, H. Lee, H. Yang, J. Lee (2023),
    Regularizing towards soft equivariance under mixed symmetries.

    Example::

        >>> from pyro_ext.distributions import SoftEquivariantNormal
        >>> from pyro_ext.nn.equivariant import EmbeddedO2, O, TensorRep
        >>> vector = TensorRep({1: 1})
        >>> prior = SoftEquivariantNormal(vector, vector, [O(3), EmbeddedO2(0, 1)], [0.0, 1e4])
        >>> weight = prior.sample()
        >>> weight.shape, bool((weight[0, 0] - weight[1, 1]).abs() < 0.1)
        (torch.Size([3, 3]), True)
    """

    arg_constraints = {
        "strengths": constraints.independent(constraints.nonnegative, 1),
        "base_scale": constraints.positive,
    }
    has_rsample = True
    strengths: Tensor
    base_scale: Tensor

    def __init__(
        self,
        rep_in: TensorRep | None,
        rep_out: TensorRep,
        groups: Sequence[Group],
        strengths: Any,
        base_scale: Any = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.groups, names = check_groups(groups)
        event_shape = check_representations(rep_in, rep_out, self.groups, names)
        self.rep_in, self.rep_out = rep_in, rep_out
        strengths, base_scale = _as_tensors(
            as_parameter("strengths", strengths), as_parameter("base_scale", base_scale)
        )
        number = len(self.groups)
        strengths = strengths if strengths.dim() else strengths.expand(number)
        if strengths.shape[-1] != number:
            raise ValueError(
                f"strengths must be a number or one for each of {number} groups, got the shape "
                f"{tuple(strengths.shape)}"
            )
        try:
            batch_shape = torch.broadcast_shapes(strengths.shape[:-1], base_scale.shape)
        except RuntimeError:
            raise ValueError(
                "base_scale must have the batch shape of strengths, which has "
                f"{tuple(strengths.shape[:-1])}, got {tuple(base_scale.shape)}"
            ) from None
        super().__init__(
            {
                "strengths": strengths.expand(*batch_shape, number),
                "base_scale": base_scale.expand(batch_shape),
            },
            {"strengths": 1, "base_scale": 0},
            batch_shape,
            event_shape,
            validate_args,
        )
        orthogonal = all(group.is_orthogonal for group in self.groups)
        blocks = weight_blocks(rep_in, rep_out, self.groups[0].dim, orthogonal)
        self._indices = list(blocks.values())
        self._inverse = torch.cat([index.flatten() for index in self._indices]).argsort()
        self._precisions = [self._precision_of(*ranks) for ranks in blocks]
        # Values out of range, if they are not refused, give NaN and no error.
        self._factors = [torch.linalg.cholesky_ex(each).L for each in self._precisions]

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """All weights."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def __repr__(self) -> str:
        return f"SoftEquivariantNormal({self.rep_in} -> {self.rep_out}, {list(self.groups)})"

    def _precision_of(self, upper: int, lower: int) -> Tensor:
        """Precision of a block. **Shape:** ``(*batch, size, size)``."""
        strengths, scale = self.strengths.double(), self.base_scale.double()
        bases = [group.invariants(upper, lower).to(strengths) for group in self.groups]
        identity = torch.eye(len(bases[0])).to(strengths)
        complements = torch.stack([identity - basis @ basis.mT for basis in bases])
        soft = torch.einsum("...g,gij->...ij", strengths, complements)
        return identity / scale[..., None, None].square() + soft

    @property
    def precision_matrix(self) -> Tensor:
        """Precision of the flat weight, for small ones: all blocks are set into a full matrix.

        **Shape:** ``(*batch, size, size)`` of ``size`` numbers in a weight.
        """
        size = self.event_shape.numel()
        found = self.base_scale.new_zeros(*self.batch_shape, size * size)
        for index, precision in zip(self._indices, self._precisions, strict=True):
            places = (index[:, :, None] * size + index[:, None, :]).flatten().to(found.device)
            values = (
                precision.to(found).flatten(-2).repeat(*[1] * (precision.dim() - 2), len(index))
            )
            found = found.index_copy(-1, places, values.expand(*self.batch_shape, -1))
        return found.unflatten(-1, (size, size))

    @property
    def mean(self) -> Tensor:
        """Zero."""
        return self.base_scale.new_zeros(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Marginal variances of the weights."""
        parts = []
        for index, factor in zip(self._indices, self._factors, strict=True):
            identity = torch.eye(factor.shape[-1]).to(factor)
            inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
            own = inverse.square().sum(-2)
            parts.append(own.repeat(*[1] * (own.dim() - 1), len(index)))
        return self._assemble(parts).expand(self.batch_shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of weights. **Shape:** ``(*batch, *event)`` to ``(*batch)``."""
        if self._validate_args:
            self._validate_sample(value)
        flat = value.flatten(-len(self.event_shape))
        size = self.event_shape.numel()
        found = torch.full_like(self.base_scale, -0.5 * size * _LOG_TWO_PI)
        for index, factor in zip(self._indices, self._factors, strict=True):
            whitened = at_blocks(flat, index) @ factor.to(flat)
            log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            found = found + len(index) * log_det.to(flat) - 0.5 * whitened.square().sum((-1, -2))
        return found

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with gradients in strengths and scale."""
        shape = self._extended_shape(torch.Size(sample_shape))
        options: dict[str, Any] = dict(dtype=self.base_scale.dtype, device=self.base_scale.device)
        noise = torch.randn(shape, **options).flatten(-len(self.event_shape))
        return self._assemble(
            [
                torch.linalg.solve_triangular(
                    factor.to(noise), at_blocks(noise, index), upper=False, left=False
                ).flatten(-2)
                for index, factor in zip(self._indices, self._factors, strict=True)
            ]
        )

    def penalty(self, value: Tensor) -> Tensor:
        r"""The part of the negative log density that the groups ask for, :math:`\sum_g \lambda_g
        \|W - P_g W\|^2 / 2`.

        :param Tensor value: weights. **Shape:** ``(*batch, *event)``.
        :returns: **Shape:** ``(*batch)``.
        """  # noqa: D205
        projectors = [EquivariantProjector(self.rep_in, self.rep_out, g) for g in self.groups]
        residuals = torch.stack([each.residual(value) for each in projectors], -1)
        return (self.strengths * residuals).sum(-1)

    def _assemble(self, parts: list[Tensor]) -> Tensor:
        """Weights of their blocks, in the type of the parameters."""
        flat = torch.cat(parts, -1).to(self.base_scale.dtype)
        return flat.index_select(-1, self._inverse.to(flat.device)).unflatten(-1, self.event_shape)


_LOG_TWO_PI = 1.8378770664093453


def _as_tensors(*values: Any) -> list[Tensor]:
    """Tensors of one floating-point type, on one device; numbers follow the tensors."""
    given = [value for value in values if isinstance(value, Tensor)]
    device = given[0].device if given else None
    found = [value.dtype for value in given if value.is_floating_point()]
    dtype = max(found, key=lambda each: torch.finfo(each).bits, default=torch.get_default_dtype())
    return [torch.as_tensor(value, dtype=dtype, device=device) for value in values]
