"""Attention within sets: blocks that do not see the order of elements, nor padding."""

import torch
from torch import Tensor, nn

from pyro_ext._checks import check_integer
from pyro_ext.nn.attention import MAB, Scaling

__all__ = ["ISAB", "PMA", "SAB", "InducedSetAttention"]


class SAB(nn.Module):
    r"""Set attention block: elements of a set look at each other, :math:`\mathrm{MAB}(X, X)` [1].

    :param int in_features: number of features of an element.
    :param int width: number of features of an output, a multiple of ``num_heads``.
    :param int num_heads: number of heads.
    :param str scaling: as in :class:`MAB`.
    :param bool layer_norm: as in :class:`MAB`.
    :raises ValueError: for arguments out of range.

    [1] J. Lee, Y. Lee, J. Kim, A. R. Kosiorek, S. Choi, Y. W. Teh (2019),
    Set Transformer: a framework for attention-based permutation-invariant neural networks.

    Example::

        >>> SAB(3, 16, num_heads=4)(torch.zeros(5, 7, 3)).shape
        torch.Size([5, 7, 16])
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        num_heads: int = 8,
        *,
        scaling: Scaling = "width",
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        check_integer("in_features", in_features, 1)
        self.block = MAB(
            in_features, in_features, width, num_heads, scaling=scaling, layer_norm=layer_norm
        )

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Let the elements look at each other.

        :param Tensor inputs: **Shape:** ``(*batch, size, in_features)``.
        :param Tensor mask: bool, false for padding, whose outputs mean nothing. **Shape:**
            ``(*batch, size)``.
        :returns: **Shape:** ``(*batch, size, width)``.
        """
        inputs = _filled(inputs, mask)
        outputs: Tensor = self.block(inputs, inputs, key_mask=mask)
        return outputs


class InducedSetAttention(nn.Module):
    r"""Attention within a set by way of a second set, the inducing points [1].

    .. math:: H = \mathrm{MAB}(I, X), \qquad \text{output} = \mathrm{MAB}(X, H).

    Permuted elements :math:`X` give permuted outputs; the order of inducing points :math:`I` does
    not matter. :class:`ISAB` learns the inducing points. Where they are data, this is a
    function of a set given another one: noise :math:`X` becomes exchangeable features given a
    context :math:`I`, as in the generator of
    :class:`~pyro_ext.models.neural_processes.MPNP` [2].

    :param int in_features: number of features of an element.
    :param int inducing_features: number of features of an inducing point.
    :param int width: number of features of an output, a multiple of ``num_heads``.
    :param int num_heads: number of heads.
    :param str scaling: as in :class:`MAB`.
    :param bool layer_norm: as in :class:`MAB`.
    :raises ValueError: for arguments out of range.

    [1] J. Lee, Y. Lee, J. Kim, A. R. Kosiorek, S. Choi, Y. W. Teh (2019),
    Set Transformer: a framework for attention-based permutation-invariant neural networks.

    [2] H. Lee, E. Yun, G. Nam, E. Fong, J. Lee (2023),
    Martingale posterior neural processes.

    Example::

        >>> attention = InducedSetAttention(3, 2, 16, num_heads=4)
        >>> noise, context = torch.randn(5, 10, 3), torch.zeros(5, 7, 2)
        >>> attention(noise, context).shape
        torch.Size([5, 10, 16])
    """

    def __init__(
        self,
        in_features: int,
        inducing_features: int,
        width: int,
        num_heads: int = 8,
        *,
        scaling: Scaling = "width",
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        check_integer("in_features", in_features, 1)
        check_integer("inducing_features", inducing_features, 1)
        self.gather = MAB(
            inducing_features, in_features, width, num_heads, scaling=scaling, layer_norm=layer_norm
        )
        self.spread = MAB(
            in_features, width, width, num_heads, scaling=scaling, layer_norm=layer_norm
        )

    def forward(
        self,
        inputs: Tensor,
        inducing_points: Tensor,
        mask: Tensor | None = None,
        inducing_mask: Tensor | None = None,
    ) -> Tensor:
        """Let the elements look at each other by way of the inducing points.

        :param Tensor inputs: the elements. **Shape:** ``(*batch, size, in_features)``.
        :param Tensor inducing_points: **Shape:** ``(*batch, num_inducing, inducing_features)``.
        :param Tensor mask: bool, false for padding among the elements, whose outputs mean nothing.
            **Shape:** ``(*batch, size)``.
        :param Tensor inducing_mask: bool, false for padding among the inducing points.
            **Shape:** ``(*batch, num_inducing)``.
        :returns: **Shape:** ``(*batch, size, width)``.
        """
        inputs = _filled(inputs, mask)
        inducing_points = _filled(inducing_points, inducing_mask)
        gathered = self.gather(inducing_points, inputs, key_mask=mask)
        outputs: Tensor = self.spread(inputs, gathered, key_mask=inducing_mask)
        return outputs


class ISAB(nn.Module):
    r"""Induced set attention block: attention within a set in linear time [1].

    It is :class:`InducedSetAttention` with inducing points that are learned.

    :param int in_features: number of features of an element.
    :param int width: number of features of an output, a multiple of ``num_heads``.
    :param int num_inducing: number of inducing points.
    :param int num_heads: number of heads.
    :param str scaling: as in :class:`MAB`.
    :param bool layer_norm: as in :class:`MAB`.
    :raises ValueError: for arguments out of range.

    [1] J. Lee, Y. Lee, J. Kim, A. R. Kosiorek, S. Choi, Y. W. Teh (2019),
    Set Transformer: a framework for attention-based permutation-invariant neural networks.

    Example::

        >>> ISAB(3, 16, num_inducing=4)(torch.zeros(5, 7, 3)).shape
        torch.Size([5, 7, 16])
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        num_inducing: int,
        num_heads: int = 8,
        *,
        scaling: Scaling = "width",
        layer_norm: bool = True,
    ) -> None:
        check_integer("width", width, 1)
        super().__init__()
        check_integer("num_inducing", num_inducing, 1)
        self.attention = InducedSetAttention(
            in_features, width, width, num_heads, scaling=scaling, layer_norm=layer_norm
        )
        self.inducing_points = _learned_points(num_inducing, width)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Let the elements look at each other by way of the inducing points.

        :param Tensor inputs: **Shape:** ``(*batch, size, in_features)``.
        :param Tensor mask: bool, false for padding, whose outputs mean nothing. **Shape:**
            ``(*batch, size)``.
        :returns: **Shape:** ``(*batch, size, width)``.
        """
        outputs: Tensor = self.attention(inputs, self.inducing_points, mask)
        return outputs


class PMA(nn.Module):
    r"""Pooling by multihead attention: learned seeds look at a set, :math:`\mathrm{MAB}(S, X)` [1].

    The row-wise network that [1] has before it is left to the user; its code has none.

    :param int in_features: number of features of an element.
    :param int width: number of features of an output, a multiple of ``num_heads``.
    :param int num_seeds: number of outputs.
    :param int num_heads: number of heads.
    :param str scaling: as in :class:`MAB`.
    :param bool layer_norm: as in :class:`MAB`.
    :raises ValueError: for arguments out of range.

    [1] J. Lee, Y. Lee, J. Kim, A. R. Kosiorek, S. Choi, Y. W. Teh (2019),
    Set Transformer: a framework for attention-based permutation-invariant neural networks.

    Example::

        >>> PMA(3, 16, num_seeds=2)(torch.zeros(5, 7, 3)).shape
        torch.Size([5, 2, 16])
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        num_seeds: int = 1,
        num_heads: int = 8,
        *,
        scaling: Scaling = "width",
        layer_norm: bool = True,
    ) -> None:
        check_integer("width", width, 1)
        super().__init__()
        check_integer("in_features", in_features, 1)
        check_integer("num_seeds", num_seeds, 1)
        self.block = MAB(
            width, in_features, width, num_heads, scaling=scaling, layer_norm=layer_norm
        )
        self.seeds = _learned_points(num_seeds, width)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool a set.

        :param Tensor inputs: **Shape:** ``(*batch, size, in_features)``.
        :param Tensor mask: bool, false for padding. **Shape:** ``(*batch, size)``.
        :returns: **Shape:** ``(*batch, num_seeds, width)``.
        """
        outputs: Tensor = self.block(self.seeds, inputs, key_mask=mask)
        return outputs


def _learned_points(number: int, width: int) -> nn.Parameter:
    points = nn.Parameter(torch.empty(number, width))
    nn.init.xavier_uniform_(points)
    return points


def _filled(inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros for padding, so that not even a NaN in it reaches a gradient."""
    return inputs if mask is None else inputs.masked_fill(~mask[..., None], 0)
