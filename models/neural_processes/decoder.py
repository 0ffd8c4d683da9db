"""The decoder of neural processes: from a representation and an input to a normal law."""

from pyro.distributions import Normal
from torch import Tensor, nn
from torch.nn import functional

from pyro_ext._checks import check_integer
from pyro_ext.nn import MLP

__all__ = ["Decoder"]

_LEAST_SCALE = 0.1


class Decoder(nn.Module):
    r"""A network of three layers on representation and input, whose outputs are a normal law's.

    With outputs :math:`(\mu, s)` the law has the mean :math:`\mu` and the standard deviation
    :math:`\sigma = 0.1 + 0.9\, \mathrm{softplus}(s)`.

    The first layer is applied to representation and input apart, which gives the same numbers as
    on both side by side. Where all targets share a representation that is much less work.

    :param int representation_features: number of features of a representation.
    :param int x_dim: number of features of an input.
    :param int y_dim: number of features of an output.
    :param int width: width of the hidden layers.
    :param bool with_addition: whether there is a second representation, which enters the first
        layer without a bias, as the bootstrapped one of
        :class:`~pyro_ext.models.neural_processes.BNP` does.

    Example::

        >>> decoder = Decoder(16, 1, 2)
        >>> decoder(torch.zeros(5, 1, 16), torch.zeros(5, 9, 1)).mean.shape
        torch.Size([5, 9, 2])
    """

    def __init__(
        self,
        representation_features: int,
        x_dim: int,
        y_dim: int,
        width: int = 128,
        *,
        with_addition: bool = False,
    ) -> None:
        check_integer("x_dim", x_dim, 1)
        check_integer("width", width, 1)
        super().__init__()
        check_integer("representation_features", representation_features, 1)
        self.representation_features = representation_features
        self.y_dim = check_integer("y_dim", y_dim, 1)
        self.first = nn.Linear(representation_features + x_dim, width)
        self.addition: nn.Linear | None = None
        if with_addition:
            self.addition = nn.Linear(representation_features, width, bias=False)
        self.rest = MLP(width, [width], 2 * y_dim, nn.ReLU)

    def forward(
        self, representation: Tensor, inputs: Tensor, addition: Tensor | None = None
    ) -> Normal:
        """Predict at inputs. Leading dimensions broadcast.

        :param Tensor representation: **Shape:** ``(*batch, n, representation_features)``, or one
            row instead of ``n`` where it is the same for all.
        :param Tensor inputs: **Shape:** ``(*batch, n, x_dim)``.
        :param Tensor addition: the second representation. **Shape:** as the first.
        :returns: **Shape:** ``(*batch, n, y_dim)``.
        """
        weight = self.first.weight
        of_representation = weight[:, : self.representation_features]
        of_inputs = weight[:, self.representation_features :]
        hidden = functional.linear(representation, of_representation, self.first.bias)
        if addition is not None:
            assert self.addition is not None
            hidden = hidden + self.addition(addition)
        hidden = hidden + functional.linear(inputs, of_inputs)
        mean, raw = self.rest(functional.relu(hidden)).chunk(2, -1)
        scale = _LEAST_SCALE + (1 - _LEAST_SCALE) * functional.softplus(raw)
        # Its parameters are what they have to be, unless the network has left the finite numbers,
        # which the loss tells.
        return Normal(mean, scale, validate_args=False)
