r"""Layers whose nodes have different scales.

[1] H. Lee, F. Ayed, P. Jung, J. Lee, H. Yang, F. Caron (2023), Deep neural networks with dependent
weights: Gaussian process mixture limit, heavy tails, sparsity and compressibility.

[2] F. Caron, F. Ayed, P. Jung, H. Lee, J. Lee, H. Yang (2023), Over-parameterised shallow neural
networks with asymmetrical node scaling: global convergence guarantees and feature learning.
"""

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks


class NodeScale(nn.Module):
    r"""Multiply each node by its own factor, :math:`h_j \mapsto \sqrt{\lambda_j} h_j` [1, 2].

    Place it after the activation of a hidden layer, and initialize the next layer's weights with
    variance one by :func:`torch.nn.init.normal_`. Then the weights that leave node :math:`j` have
    the common variance :math:`\lambda_j`. Placed before the first layer, with every
    :math:`\lambda_j` equal to one over the number of inputs, it gives the neural tangent
    parameterization.

    :param Tensor variances: :math:`\lambda_j \geq 0`. **Shape:** ``(num_nodes,)``.
    :param bool learnable: whether the variances are a parameter. Otherwise they are a buffer, which
        is neither trained nor given a prior.
    :raises ValueError: if the variances are not a vector of finite, nonnegative numbers.

    Example::

        >>> scale = NodeScale(torch.tensor([4.0, 1.0, 0.25]))
        >>> scale(torch.ones(2, 3))
        tensor([[2.0000, 1.0000, 0.5000],
                [2.0000, 1.0000, 0.5000]])
        >>> scale.prune(0.5)
        >>> scale.variances
        tensor([4., 1., 0.])
    """

    variances: Tensor

    def __init__(self, variances: Tensor, *, learnable: bool = False) -> None:
        super().__init__()
        variances = checks.as_tensor("variances", variances, allow_empty=True)
        is_valid = (variances.isfinite() & (variances >= 0)).all()
        if variances.dim() != 1 or not len(variances) or not bool(is_valid):
            raise ValueError(
                f"variances must be a vector of finite numbers >= 0, got {variances!r:.80}"
            )
        variances = variances.detach().clone()
        if learnable:
            self.variances = nn.Parameter(variances)
        else:
            self.register_buffer("variances", variances)

    def forward(self, nodes: Tensor) -> Tensor:
        """Scale nodes.

        :param Tensor nodes: **Shape:** ``(*batch, num_nodes)``.
        :returns: **Shape:** that of ``nodes``.
        """
        # The root has no slope at zero, where a node that is pruned is to stay.
        is_pruned = self.variances == 0
        root = torch.where(is_pruned, 1.0, self.variances).sqrt()
        return nodes * torch.where(is_pruned, 0.0, root)

    @torch.no_grad()
    def prune(self, fraction: float) -> None:
        """Set the smallest variances to zero, which removes their nodes from the network.

        If the variances are learnable, their gradient is zero from then on.

        :param float fraction: the fraction of the nodes to remove.
        """
        self.variances *= largest_nodes(self.variances, fraction)

    def extra_repr(self) -> str:
        """Show the module's settings."""
        return f"{len(self.variances)}, learnable={isinstance(self.variances, nn.Parameter)}"


def largest_nodes(importance: Tensor, fraction: float) -> Tensor:
    r"""Mark the nodes that stay when the least important ones are pruned.

    Of :math:`p` nodes, :math:`\lfloor q p \rfloor` are pruned; in a tie, the last ones.

    :param Tensor importance: importance of the nodes, such as the variances :math:`\lambda_j` or
        :math:`\lambda_j \sum_k V_{kj}^2`. **Shape:** ``(*batch, num_nodes)``.
    :param float fraction: :math:`q`, the fraction of the nodes to prune.
    :returns: booleans, true for nodes that stay. **Shape:** that of ``importance``.
    :raises ValueError: for a fraction outside [0, 1), or NaN in the importance.

    Example::

        >>> largest_nodes(torch.tensor([0.1, 3.0, 0.2, 1.0]), 0.5)
        tensor([False,  True, False,  True])
    """
    importance = checks.as_tensor("importance", importance, "(*batch, num_nodes)")
    checks.number("fraction", fraction, least=0.0, below=1.0)
    if bool(importance.isnan().any()):
        raise ValueError(f"importance must not contain NaN, got {importance!r:.80}")
    # Rounding must not lose a node if the fraction is a whole number of nodes.
    num_pruned = int(fraction * importance.shape[-1] + 1e-9)
    order = importance.argsort(dim=-1, descending=True, stable=True)
    kept = order[..., : importance.shape[-1] - num_pruned]
    return torch.zeros_like(importance, dtype=torch.bool).scatter(-1, kept, True)


def zipf_weights(num_nodes: int, index: float) -> Tensor:
    r"""Weights that fall as a power of their rank, :math:`w_j = j^{-1/\alpha}`.

    :param int num_nodes: the number of weights.
    :param float index: :math:`\alpha`, in (0, 1); the smaller it is, the faster the weights fall.
    :returns: **Shape:** ``(num_nodes,)``, in the default dtype.

    Example::

        >>> zipf_weights(3, 0.5)
        tensor([1.0000, 0.2500, 0.1111])
    """
    checks.integer("num_nodes", num_nodes, 1)
    checks.number("index", index, above=0.0, below=1.0)
    return torch.arange(1, num_nodes + 1).to(torch.get_default_dtype()) ** (-1.0 / index)


def asymmetric_variances(weights: Tensor, symmetric_fraction: float) -> Tensor:
    r"""Variances of nodes as a mixture of equal and unequal parts [2].

    .. math:: \lambda_j = \frac{\gamma}{m} + (1 - \gamma) \frac{w_j}{\sum_k w_k} , \quad
              \sum_j \lambda_j = 1 .

    With :math:`\gamma = 1` it is the neural tangent parameterization.

    :param Tensor weights: any :math:`w_j \geq 0`, such as those of :func:`zipf_weights` or of a
        series of a completely random measure. **Shape:** ``(*batch, num_nodes)``.
    :param float symmetric_fraction: :math:`\gamma`, in [0, 1].
    :returns: :math:`\lambda_j`. **Shape:** that of ``weights``.
    :raises ValueError: for arguments out of range, or weights that are all zero.

    Example::

        >>> asymmetric_variances(torch.tensor([3.0, 1.0]), 0.5)
        tensor([0.6250, 0.3750])
    """
    weights = checks.as_tensor("weights", weights, "(*batch, num_nodes)")
    checks.number("symmetric_fraction", symmetric_fraction, least=0.0, most=1.0)
    if not (weights.dim() and bool((weights.isfinite() & (weights >= 0)).all())):
        raise ValueError(f"weights must be finite numbers >= 0, got {weights!r:.80}")
    total = weights.sum(-1, keepdim=True)
    if not bool((total > 0).all()):
        raise ValueError("weights must not all be zero")
    unequal = (1.0 - symmetric_fraction) * weights / total
    return symmetric_fraction / weights.shape[-1] + unequal
