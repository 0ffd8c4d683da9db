r"""Kinetic gradients as small networks that are applied to each parameter alike.

A network sees nine numbers of a parameter, each divided by its root mean square over the site that
the parameter belongs to: its gradient, its value, six moving averages of its gradient, and its
momentum. It gives two numbers :math:`o_\alpha, o_\beta`. Since it is one network for all
parameters, it is applied to models of any size.

S. Kim, S. Jung, S. Kim, J. Lee (2024), Learning to explore for stochastic gradient MCMC.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pyro_ext._checks import check_integer, check_number, check_sequence
from pyro_ext.checkpoint.files import read_tensors, write_tensors
from pyro_ext.inference.sgmcmc.l2e import KineticGradients

__all__ = ["ElementwiseNetwork", "LearnedKinetics", "ResidualKinetics", "pretrained_kinetics"]

_DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
_NUM_OUTPUTS = 2
_PRETRAINED = "l2e.safetensors"


class ElementwiseNetwork(nn.Module):
    """A multilayer perceptron that maps features of an element to outputs, for each element alike.

    Between the layers are rectified linear units. Its parameters may have a leading dimension, for
    a network of its own for each chain.

    :param Sequence sizes: numbers of features, of hidden units in each layer, and of outputs.
    :param float output_scale: factor of the last layer's initial weights.
    :param int seed: of the initial weights.
    """

    def __init__(self, sizes: Sequence[int], output_scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for number, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            scale = output_scale if number == len(sizes) - 2 else 1.0
            weight = torch.randn(fan_out, fan_in, generator=generator) / math.sqrt(fan_in)
            self.weights.append(nn.Parameter(scale * weight))
            self.biases.append(nn.Parameter(torch.zeros(fan_out, 1)))

    def forward(self, features: Tensor) -> Tensor:
        """Apply it. **Shape:** ``(..., num_features, size)`` to ``(..., num_outputs, size)``."""
        values = features
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if number:
                values = values.relu()
            values = weight.to(features) @ values + bias.to(features)
        return values


class _Kinetics(nn.Module):
    """What both parametrizations share: the network, and their files."""

    def __init__(
        self,
        hidden_sizes: Sequence[int],
        decays: Sequence[float],
        force_scale: float,
        velocity_scale: float,
        output_scale: float,
        seed: int,
    ) -> None:
        super().__init__()
        check_integer("seed", seed, 0)
        hidden_sizes = check_sequence("hidden_sizes", hidden_sizes, "a list of numbers of units", 0)
        decays = check_sequence("decays", decays, "a list of numbers", 0)
        self.hidden_sizes = tuple(check_integer("hidden_sizes", n, 1) for n in hidden_sizes)
        self.decays = tuple(check_number("decays", decay, least=0, below=1) for decay in decays)
        self.force_scale = check_number("force_scale", force_scale, least=0)
        self.velocity_scale = check_number("velocity_scale", velocity_scale, above=0)
        self.output_scale = check_number("output_scale", output_scale, least=0)
        self.seed = seed
        sizes = (len(self.decays) + 3, *self.hidden_sizes, _NUM_OUTPUTS)
        self.network = ElementwiseNetwork(sizes, output_scale, seed)

    def _outputs(self, features: Tensor, normalized_momentum: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.network(torch.cat([features, normalized_momentum.unsqueeze(-2)], -2))
        return outputs.select(-2, 0), outputs.select(-2, 1)

    def _options(self) -> dict[str, Any]:
        """Arguments of the constructor by name."""
        names = ("hidden_sizes", "decays", "force_scale", "velocity_scale", "seed")
        return {name: getattr(self, name) for name in names}

    def save(self, path: str | Path, **about: Any) -> None:
        """Write it to a file of the format safetensors.

        :param path: the file.
        :param about: further facts to keep in the file, values that JSON can hold.
        """
        content = {"type": type(self).__name__, "options": self._options(), "about": about}
        write_tensors(Path(path), self.state_dict(), content)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote; nothing in the file is executed.

        :param path: the file.
        :raises CheckpointError: where the file is missing, cut or changed.
        :raises ValueError: where it holds something else.
        """
        tensors, content, _ = read_tensors(Path(path))
        if content.get("type") != cls.__name__:
            raise ValueError(f"{path} holds {content.get('type')!r}, wanted a {cls.__name__}")
        kinetics = cls(**content["options"])
        kinetics.load_state_dict(tensors)
        return kinetics


class LearnedKinetics(_Kinetics):
    r"""Kinetic gradients as published [1].

    :math:`\alpha = s_\alpha o_\alpha`, :math:`\beta = s_\beta o_\beta`. With the published
    scales a network that is not trained moves nothing: its first thousands of updates in training
    are for its outputs to grow. :class:`ResidualKinetics` starts from dynamics that work.

    The authors' runs have friction 0.1, step size :math:`h = \sqrt{m / 50000}` with a multiplier
    :math:`m` from 0.5 to 5, and noise of variance :math:`0.2 \nu` with :math:`\nu` from 0.001 to 1,
    which is a temperature of :math:`\nu / h`.

    :param Sequence hidden_sizes: numbers of hidden units, with rectified linear units.
    :param Sequence decays: weight of the past in each moving average of the gradient.
    :param float force_scale: :math:`s_\alpha`.
    :param float velocity_scale: :math:`s_\beta`.
    :param int seed: of the initial weights.
    :raises ValueError: for arguments out of range.

    [1] S. Kim, S. Jung, S. Kim, J. Lee (2024),
    Learning to explore for stochastic gradient MCMC.

    Example::

        >>> kinetics = LearnedKinetics()
        >>> sum(parameter.numel() for parameter in kinetics.parameters())
        1442
        >>> kinetics(torch.randn(8, 5), torch.randn(5), torch.randn(5)).velocity.shape
        torch.Size([5])
    """

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (32, 32),
        decays: Sequence[float] = _DECAYS,
        force_scale: float = 1e-3,
        velocity_scale: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__(hidden_sizes, decays, force_scale, velocity_scale, 1.0, seed)

    def forward(
        self, features: Tensor, momentum: Tensor, normalized_momentum: Tensor
    ) -> KineticGradients:
        """Kinetic gradients of each element.

        :param Tensor features: **Shape:** ``(..., 2 + num_averages, size)``.
        :param Tensor momentum: **Shape:** ``(..., size)``.
        :param Tensor normalized_momentum: **Shape:** ``(..., size)``.
        """
        force, velocity = self._outputs(features, normalized_momentum)
        velocity = self.velocity_scale * velocity
        return KineticGradients(self.force_scale * force, velocity, velocity)


class ResidualKinetics(_Kinetics):
    r"""Kinetic gradients as what a network adds to those of a normalized momentum.

    With :math:`\bar r` for the momentum divided by its root mean square over its site,

    .. math:: \beta = s_\beta (\bar r + o_\beta), \quad
              \alpha + C \beta = C (r + s_\alpha o_\alpha) .

    Momentum decays as in SGHMC, towards :math:`-s_\alpha o_\alpha` instead of zero. A network that
    starts near zero gives dynamics that are nearly those of SGHMC once the momentum is as large as
    noise makes it, with steps :math:`s_\beta` times as long, and that are no faster before. This
    parametrization is ours, for training with a small budget; the dynamics are those of
    :class:`LearnedKinetics`.

    :param Sequence hidden_sizes: numbers of hidden units, with rectified linear units.
    :param Sequence decays: weight of the past in each moving average of the gradient.
    :param float force_scale: :math:`s_\alpha`.
    :param float velocity_scale: :math:`s_\beta`.
    :param float output_scale: factor of the last layer's initial weights.
    :param int seed: of the initial weights.
    :raises ValueError: for arguments out of range.
    """

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (32, 32),
        decays: Sequence[float] = _DECAYS,
        force_scale: float = 3.0,
        velocity_scale: float = 1.0,
        output_scale: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__(hidden_sizes, decays, force_scale, velocity_scale, output_scale, seed)

    def forward(
        self, features: Tensor, momentum: Tensor, normalized_momentum: Tensor
    ) -> KineticGradients:
        """Kinetic gradients of each element; shapes as of :class:`LearnedKinetics`."""
        force, velocity = self._outputs(features, normalized_momentum)
        return KineticGradients(
            torch.zeros_like(momentum),
            momentum + self.force_scale * force,
            self.velocity_scale * (normalized_momentum + velocity),
        )

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"output_scale": self.output_scale}


def pretrained_kinetics() -> ResidualKinetics:
    """The kinetic gradients that ship with the package.

    ``python -m tools.pretrain_l2e`` trains them, from its seed and on the tasks that it lists.

    Example::

        >>> pretrained_kinetics().hidden_sizes
        (16,)
    """
    return ResidualKinetics.load(Path(__file__).with_name(_PRETRAINED))
