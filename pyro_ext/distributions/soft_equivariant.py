"""A prior of weights that are nearly equivariant under several groups, to different degrees."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._lib import checks
from pyro_ext.distributions.bases import ParametricDistribution
from pyro_ext.groups import Group, TensorRep
from pyro_ext.groups.projector import check_groups, weight_blocks


class SoftEquivariantNormal(ParametricDistribution):
    r"""Normal prior of weights with mean zero that favors weights close to equivariance.

    The precision matrix of the weight :math:`W` of a linear map between two representations is

    .. math:: \Lambda = \sigma^{-2} I + \sum_g \lambda_g (I - P_g) ,

    where :math:`P_g` projects onto the maps that are equivariant under a group :math:`g`. Up to a
    constant, the negative log density is weight decay plus the penalty :math:`\sum_g \lambda_g
    \|W - P_g W\|^2 / 2` of [1]. So training as in [1] finds the mode of a posterior; this
    interpretation is ours. A group with strength zero has no effect, and as
    :math:`\lambda_g \to \infty`, only equivariant weights remain.

    The matrix consists of blocks, one for each pair of an output and an input tensor. All
    computations are exact and use these blocks, in float64.

    :param TensorRep rep_in: the representation of the map's input; ``None`` for vectors of
        ``rep_out`` themselves, such as biases.
    :param TensorRep rep_out: the representation of the map's output.
    :param Sequence groups: instances of :class:`~pyro_ext.groups.Group` that act on the same
        dimensions.
    :param strengths: :math:`\lambda_g \ge 0`. **Shape:** ``()`` or ``(*batch, num_groups)``.
    :param base_scale: :math:`\sigma`, the standard deviation of equivariant weights. **Shape:**
        ``(*batch)``.
    :raises ValueError: if numbers are out of range, or a group acts on other dimensions than the
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
        self._blocks = weight_blocks(rep_in, rep_out, self.groups, names)
        self.rep_in, self.rep_out = rep_in, rep_out
        strengths, base_scale = _as_tensors(
            checks.as_parameter("strengths", strengths),
            checks.as_parameter("base_scale", base_scale),
        )
        number = len(self.groups)
        strengths = strengths if strengths.dim() else strengths.expand(number)
        if strengths.shape[-1] != number:
            raise ValueError(
                f"strengths must be one number, or one for each of {number} groups, got the shape "
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
            self._blocks.event_shape,
            validate_args,
        )
        wide, scale = self.strengths.double(), self.base_scale.double()[..., None, None]
        self._precisions = [
            torch.eye(complement.shape[-1]).to(wide) / scale.square()
            + torch.einsum("...g,gij->...ij", wide, complement)
            for complement in self._blocks.complements(wide)
        ]
        # Values out of range, if they are not refused, give NaN and no error.
        self._factors = [torch.linalg.cholesky_ex(each).L for each in self._precisions]

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """All weights."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def __repr__(self) -> str:
        return f"SoftEquivariantNormal({self.rep_in} -> {self.rep_out}, {list(self.groups)})"

    @property
    def precision_matrix(self) -> Tensor:
        """Precision matrix of the flattened weight, as a full matrix; only for small weights.

        **Shape:** ``(*batch, size, size)``, where ``size`` is the number of elements of a weight.
        """
        size = self.event_shape.numel()
        found = self.base_scale.new_zeros(*self.batch_shape, size * size)
        indices = self._blocks.indices(self.base_scale)
        for index, precision in zip(indices, self._precisions, strict=True):
            places = (index[:, :, None] * size + index[:, None, :]).flatten()
            one = precision.to(found).flatten(-2)
            values = one.repeat(*[1] * (one.dim() - 1), len(index))
            found = found.index_copy(-1, places, values.expand(*self.batch_shape, -1))
        matrix: Tensor = found.unflatten(-1, (size, size))
        return matrix

    @property
    def mean(self) -> Tensor:
        """Zero."""
        return self.base_scale.new_zeros(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Marginal variances of the weights."""
        parts = []
        for index, factor in zip(self._blocks.indices(self.base_scale), self._factors, strict=True):
            identity = torch.eye(factor.shape[-1]).to(factor)
            inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
            own = inverse.square().sum(-2, keepdim=True).to(self.base_scale)
            parts.append(own.expand(*self.batch_shape, len(index), -1))
        return self._blocks.scatter(parts)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of weights. **Shape:** ``(*batch, *event)`` to ``(*batch)``."""
        if self._validate_args:
            self._validate_sample(value)
        size = self.event_shape.numel()
        found = torch.full_like(self.base_scale, -0.5 * size * _LOG_TWO_PI)
        for block, factor in zip(self._blocks.gather(value), self._factors, strict=True):
            log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1).to(value)
            whitened = block @ factor.to(value)
            found = found + block.shape[-2] * log_det - 0.5 * whitened.square().sum((-1, -2))
        return found

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with gradients with respect to strengths and scale."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.base_scale.dtype, device=self.base_scale.device)
        return self._blocks.scatter(
            [
                torch.linalg.solve_triangular(factor.to(noise), block, upper=False, left=False)
                for block, factor in zip(self._blocks.gather(noise), self._factors, strict=True)
            ]
        )

    def penalty(self, value: Tensor) -> Tensor:
        r"""The part of the negative log density due to the groups, :math:`\sum_g \lambda_g
        \|W - P_g W\|^2 / 2`.

        :param Tensor value: weights. **Shape:** ``(*batch, *event)``.
        :returns: **Shape:** ``(*batch)``.
        """  # noqa: D205
        return self._blocks.penalty(self._blocks.check("value", value), self.strengths)


_LOG_TWO_PI = 1.8378770664093453


def _as_tensors(*values: Any) -> list[Tensor]:
    """Tensors of one floating-point type, on one device; numbers follow the tensors."""
    given = [value for value in values if isinstance(value, Tensor)]
    device = given[0].device if given else None
    found = [value.dtype for value in given if value.is_floating_point()]
    dtype = max(found, key=lambda each: torch.finfo(each).bits, default=torch.get_default_dtype())
    return [torch.as_tensor(value, dtype=dtype, device=device) for value in values]
