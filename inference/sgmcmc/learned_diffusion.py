r"""Diffusion and curl as small networks that are applied to each parameter alike.

W. Gong, Y. Li, J. M. Hernandez-Lobato (2019), Meta-learning for stochastic gradient MCMC.
"""

import math

import torch
from torch import Tensor, nn

from pyro_ext._checks import check_integer, check_number
from pyro_ext.inference.sgmcmc.meta_sgmcmc import RecipeMatrices

__all__ = ["LearnedDiffusion"]


class _Layer(nn.Module):
    """A network with one hidden layer of tangents, that knows its derivatives by its inputs."""

    def __init__(
        self, num_inputs: int, num_hidden: int, output_scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()

        def normal(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(*shape, generator=generator))

        self.inner = normal(num_hidden, num_inputs, scale=1.0 / math.sqrt(num_inputs))
        self.bias = nn.Parameter(torch.zeros(num_hidden, 1))
        self.outer = normal(1, num_hidden, scale=output_scale / math.sqrt(num_hidden))
        self.constant = nn.Parameter(torch.zeros(1, 1))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Values ``(..., size)`` and derivatives ``(..., num_inputs, size)`` at inputs.

        :param Tensor inputs: **Shape:** ``(..., size)`` each.
        """
        features = torch.stack(torch.broadcast_tensors(*inputs), -2)
        inner, outer = self.inner.to(features), self.outer.to(features)
        hidden = torch.tanh(inner @ features + self.bias.to(features))
        values = outer @ hidden + self.constant.to(features)
        slopes = inner.mT @ (outer.mT * (1.0 - hidden.square()))
        return values.squeeze(-2), slopes


class LearnedDiffusion(nn.Module):
    r"""Learned curl and diffusion [1].

    With the mean energy :math:`u = U / N` and momentum :math:`p_i`,

    .. math:: Q_i = 1 + f_Q(u, p_i), \quad
              D_i = C \min(\max(Q_i^2 + f_D(u, p_i, \partial u / \partial \theta_i), 0), m) .

    The networks :math:`f_Q` and :math:`f_D` start near zero, and the sampler near SGHMC with
    friction :math:`C`.

    :param int num_hidden: hidden units of each network.
    :param float max_diffusion: :math:`m`; its product with the kernel's momentum decay should be
        at most one.
    :param float output_scale: factor of the last layers' initial weights.
    :param int seed: of the initial weights.
    :raises ValueError: for arguments out of range.

    [1] W. Gong, Y. Li, J. M. Hernandez-Lobato (2019), Meta-learning for stochastic gradient MCMC.

    Example::

        >>> matrices = LearnedDiffusion()(torch.zeros(1), torch.randn(5), torch.randn(5))
        >>> matrices.diffusion.shape
        torch.Size([5])
    """

    def __init__(
        self,
        num_hidden: int = 10,
        max_diffusion: float = 5.0,
        output_scale: float = 0.01,
        seed: int = 0,
    ) -> None:
        check_integer("seed", seed, 0)
        super().__init__()
        check_integer("num_hidden", num_hidden, 1)
        self.max_diffusion = check_number("max_diffusion", max_diffusion, above=0)
        check_number("output_scale", output_scale, least=0)
        generator = torch.Generator().manual_seed(seed)
        self.curl = _Layer(2, num_hidden, output_scale, generator)
        self.diffusion = _Layer(3, num_hidden, output_scale, generator)

    def forward(self, energy: Tensor, slope: Tensor, momentum: Tensor) -> RecipeMatrices:
        """Curl, diffusion and their derivatives.

        :param Tensor energy: mean energy. **Shape:** ``(..., 1)``.
        :param Tensor slope: its gradient. **Shape:** ``(..., size)``.
        :param Tensor momentum: **Shape:** ``(..., size)``.
        """
        added, by_input = self.curl(energy, momentum)
        curl = 1.0 + added
        by_energy, by_momentum = by_input.unbind(-2)
        more, slopes = self.diffusion(energy, momentum, slope)
        raw = curl.square() + more
        is_inside = (raw > 0) & (raw < self.max_diffusion)
        raw_by_momentum = 2.0 * curl * by_momentum + slopes.select(-2, 1)
        return RecipeMatrices(
            curl,
            raw.clamp(0.0, self.max_diffusion),
            by_energy * slope,
            by_momentum,
            torch.where(is_inside, raw_by_momentum, 0.0),
        )
