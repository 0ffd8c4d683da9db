"""Bijections of sets of nodes that ignore their order and padding, as Pyro transforms."""

import math
from abc import abstractmethod
from itertools import pairwise

import torch
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.distributions.transforms.spline import ConditionedSpline
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import Transform
from torch.nn.functional import softplus

from pyro_ext._lib import checks
from pyro_ext.nn import ISAB, MLP

_LEAST_SLOPE = 1e-3
_UNIT_SLOPE = math.log(math.expm1(1.0 - _LEAST_SLOPE))  # with which zeros make slopes of one


class SetNetwork(nn.Module):
    """Blocks of attention within a set, and a perceptron for each element.

    :param int in_features: number of features of an element.
    :param int out_features: number of outputs of an element.
    :param int width: of the blocks and the perceptron, a multiple of ``num_heads``.
    :param int num_blocks: number of blocks.
    :param int num_heads: number of heads.
    :param int num_inducing: number of inducing points.
    :param bool layer_norm: whether the blocks normalize.

    Example::

        >>> network = SetNetwork(2, 5, width=8, num_blocks=2)
        >>> network(torch.zeros(3, 7, 2)).shape
        torch.Size([3, 7, 5])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        width: int,
        num_blocks: int,
        num_heads: int = 1,
        num_inducing: int = 8,
        *,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        checks.integer("num_blocks", num_blocks, 1)
        widths = pairwise([in_features] + [width] * num_blocks)
        self.blocks = nn.ModuleList(
            ISAB(start, end, num_inducing, num_heads, layer_norm=layer_norm)
            for start, end in widths
        )
        self.head = MLP(width, [width], out_features, nn.ReLU)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the network.

        :param Tensor inputs: **Shape:** ``(*batch, num_nodes, in_features)``.
        :param Tensor mask: bool, false for padding. **Shape:** ``(*batch, num_nodes)``.
        :returns: **Shape:** ``(*batch, num_nodes, out_features)``.
        """
        for block in self.blocks:
            inputs = block(inputs, mask)
        outputs: Tensor = self.head(inputs)
        return outputs


class _NodeTransform(Transform):
    """A layer at a mask; it keeps the log determinant of the last value that it has mapped."""

    domain = constraints.independent(constraints.real, 2)
    codomain = constraints.independent(constraints.real, 2)
    bijective = True

    def __init__(self, layer: "NodeLayer", mask: Tensor) -> None:
        # Without Pyro's cache, which would give back what was computed without gradients.
        super().__init__()
        self.layer, self.mask = layer, mask
        self._last: tuple[Tensor, Tensor] | None = None

    def _call(self, x: Tensor) -> Tensor:
        y: Tensor
        y, log_det = self.layer(x, self.mask)
        self._last = x, log_det
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x: Tensor = self.layer.inverse(y, self.mask)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        last = self._last
        if last is not None and last[0] is x:
            if last[1].requires_grad or not torch.is_grad_enabled():
                return last[1]
        log_det: Tensor = self.layer(x, self.mask)[1]
        return log_det


class NodeLayer(ConditionalTransformModule):
    """A bijection of the features of nodes; given a mask, it is a transform of two event dims."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def condition(self, context: Tensor) -> Transform:
        """The transform for sets of nodes.

        :param Tensor context: bool, true for nodes and false for padding. **Shape:**
            ``(*batch, num_nodes)``.
        """
        return _NodeTransform(self, checks.as_tensor("context", context, kind="booleans"))

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Values, and log determinants over the nodes that there are.

        :param Tensor x: **Shape:** ``(*batch, num_nodes, dim)``.
        :param Tensor mask: **Shape:** ``(*batch, num_nodes)``.
        :returns: **Shape:** ``(*batch, num_nodes, dim)`` and ``(*batch)``.
        """

    @abstractmethod
    def inverse(self, y: Tensor, mask: Tensor) -> Tensor:
        """Return the inputs that are mapped to ``y``; arguments as for :meth:`forward`."""


class NodeActNorm(NodeLayer):
    r"""Scale and shift of each feature, and another scale of its mean over the nodes.

    .. math:: y_i = e^s (x_i + (e^c - 1) \bar x) + t, \qquad
              \log |\det| = n \sum_k s_k + \sum_k c_k

    Couplings move a node's feature given other features, and so can hardly make features whose
    mean is always zero of independent variables. A scale of the mean does. :math:`s = t = 0` to
    begin with.

    :param int dim: number of features.
    :param float mean_scale: :math:`e^c` to begin with.

    Example::

        >>> mask = torch.ones(2, dtype=torch.bool)
        >>> NodeActNorm(1, mean_scale=10.0).condition(mask)(torch.tensor([[1.0], [2.0]])).tolist()
        [[14.5], [15.5]]
    """

    def __init__(self, dim: int, mean_scale: float = 1.0) -> None:
        super().__init__()
        checks.integer("dim", dim, 1)
        log_mean_scale = math.log(checks.number("mean_scale", mean_scale, above=0))
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.log_mean_scale = nn.Parameter(torch.full((dim,), log_mean_scale))
        self.shift = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Values and log determinants."""
        x = x + torch.expm1(self.log_mean_scale) * _mean(x, mask)
        log_det = mask.sum(-1) * self.log_scale.sum() + self.log_mean_scale.sum()
        return x * self.log_scale.exp() + self.shift, log_det

    def inverse(self, y: Tensor, mask: Tensor) -> Tensor:
        """Return the inputs that are mapped to ``y``."""
        x: Tensor = (y - self.shift) * (-self.log_scale).exp()
        return x + torch.expm1(-self.log_mean_scale) * _mean(x, mask)


class NodeLinear(NodeLayer):
    """The same linear map of each node's features, which begins as a random rotation.

    :param int dim: number of features.

    Example::

        >>> mask = torch.ones(3, dtype=torch.bool)
        >>> rotation = NodeLinear(2).condition(mask)
        >>> x = torch.ones(3, 2)
        >>> torch.allclose(rotation.inv(rotation(x)), x, atol=1e-5)
        True
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        checks.integer("dim", dim, 1)
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(dim, dim)))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Values and log determinants."""
        return x @ self.weight, mask.sum(-1) * torch.linalg.slogdet(self.weight).logabsdet

    def inverse(self, y: Tensor, mask: Tensor) -> Tensor:
        """Return the inputs that are mapped to ``y``."""
        x: Tensor = torch.linalg.solve(self.weight, y, left=False)
        return x


class NodeSplineCoupling(NodeLayer):
    r"""Monotone splines of one half of the features given the other half of all nodes [1].

    The second half is moved first, then the first half given the transformed second half. The
    splines are rational-quadratic, those of :class:`pyro.distributions.transforms.Spline`, on
    :math:`[-T, T]` and the identity outside. Their networks begin with the identity.

    :param int dim: number of features, which is even.
    :param int num_bins: bins of each spline.
    :param float bound: :math:`T`.
    :param int width: of the networks.
    :param int num_blocks: blocks of attention of each.

    [1] C. Durkan, A. Bekasov, I. Murray, G. Papamakarios (2019), Neural spline flows.

    Example::

        >>> mask = torch.tensor([True, True, False])
        >>> coupling = NodeSplineCoupling(4, width=8).condition(mask)
        >>> x = torch.randn(3, 4)
        >>> torch.allclose(coupling(x), x, atol=1e-5)
        True
    """

    def __init__(
        self,
        dim: int,
        num_bins: int = 8,
        bound: float = 5.0,
        width: int = 32,
        num_blocks: int = 2,
    ) -> None:
        super().__init__()
        if checks.integer("dim", dim, 2) % 2:
            raise ValueError(f"dim must be even, got {dim}")
        self.num_moved, self.num_bins = dim // 2, checks.integer("num_bins", num_bins, 1)
        self.bound = checks.number("bound", bound, above=0)
        size = self.num_moved * (3 * num_bins - 1)
        networks = [SetNetwork(self.num_moved, size, width, num_blocks) for _ in range(2)]
        self.networks = nn.ModuleList(networks)
        for network in networks:
            for parameter in network.head[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Values and log determinants."""
        first, second = x.split(self.num_moved, -1)
        second, log_det = self._spline(0, first, second, mask)
        first, another = self._spline(1, second, first, mask)
        per_node = (log_det + another).sum(-1)
        return torch.cat([first, second], -1), torch.where(mask, per_node, 0.0).sum(-1)

    def inverse(self, y: Tensor, mask: Tensor) -> Tensor:
        """Return the inputs that are mapped to ``y``."""
        first, second = y.split(self.num_moved, -1)
        first, _ = self._spline(1, second, first, mask, inverse=True)
        second, _ = self._spline(0, first, second, mask, inverse=True)
        return torch.cat([first, second], -1)

    def _spline(
        self, index: int, given: Tensor, moved: Tensor, mask: Tensor, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        raw = self.networks[index](given, mask).unflatten(-1, (self.num_moved, -1))
        widths, heights, slopes = raw.split([self.num_bins, self.num_bins, self.num_bins - 1], -1)
        slopes = softplus(slopes + _UNIT_SLOPE) + _LEAST_SLOPE
        # Only splines of lines have a fourth parameter.
        spline = ConditionedSpline(
            (widths.softmax(-1), heights.softmax(-1), slopes, None), self.bound, "quadratic"
        )
        # Pyro's own least slope would make that at the bound .999, where it has to be one.
        found: tuple[Tensor, Tensor] = spline.spline_op(moved, inverse=inverse, min_derivative=0.0)
        return found


class EquivariantSplineFlow(NodeLayer):
    r"""Layers of scales, rotations and spline couplings, with a final layer of scales [1].

    :param int dim: number of features of a node, which must be even.
    :param int num_layers: number of layers of each kind; with zero, only the final scale remains.
    :param float mean_scale: initial scale of the mean over the nodes in the first layer.
    :param int num_bins: number of bins of each rational-quadratic spline.
    :param float bound: :math:`T`; outside of :math:`[-T, T]`, splines are the identity.
    :param int width: width of the networks.
    :param int num_blocks: number of attention blocks of each network.

    [1] T. Duan, J. Lee (2019),
    Graph embedding VAE: a permutation invariant model of graph structure.

    Example::

        >>> flow = EquivariantSplineFlow(4, width=8)
        >>> mask = torch.tensor([[True, True, True], [True, True, False]])
        >>> transform = flow.condition(mask)
        >>> x = torch.randn(2, 3, 4)
        >>> z = transform(x)
        >>> transform.log_abs_det_jacobian(x, z).shape
        torch.Size([2])
    """

    def __init__(
        self,
        dim: int,
        num_layers: int = 2,
        *,
        mean_scale: float = 1.0,
        num_bins: int = 8,
        bound: float = 5.0,
        width: int = 32,
        num_blocks: int = 2,
    ) -> None:
        super().__init__()
        checks.integer("num_layers", num_layers, 0)
        layers: list[nn.Module] = []
        for _ in range(num_layers):
            coupling = NodeSplineCoupling(dim, num_bins, bound, width, num_blocks)
            layers += [NodeActNorm(dim, 1.0 if layers else mean_scale), NodeLinear(dim), coupling]
        layers.append(NodeActNorm(dim, 1.0 if layers else mean_scale))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and log determinants."""
        total = x.new_zeros(())
        for layer in self.layers:
            x, log_det = layer(x, mask)
            total = total + log_det
        return x, total

    def inverse(self, y: Tensor, mask: Tensor) -> Tensor:
        """Return the inputs that are mapped to ``y``."""
        for layer in reversed(self.layers):
            assert isinstance(layer, NodeLayer)
            y = layer.inverse(y, mask)
        return y


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the nodes that there are. **Shape:** ``(*batch, 1, dim)``."""
    here = mask[..., None]
    total = torch.where(here, x, 0.0).sum(-2, keepdim=True)
    return total / here.sum(-2, keepdim=True).clamp(min=1)
