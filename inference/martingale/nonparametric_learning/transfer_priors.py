r"""Priors of networks that were trained before, as penalties and as parts of a potential.

[1] X. Li, Y. Grandvalet, F. Davoine (2018), Explicit inductive bias for transfer learning with
convolutional networks.

[2] R. Shwartz-Ziv, M. Goldblum, H. Souri, S. Kapoor, C. Zhu, Y. LeCun, A. G. Wilson (2022),
Pre-train your loss: easy Bayesian transfer learning with informative priors.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import LowRankMultivariateNormal

from pyro_ext._checks import check_instance, check_number, check_sequence, check_tensors

__all__ = ["L2SP", "SWAGPrior"]

_BACKBONE = "backbone."
_HEAD = "head."


class L2SP:
    r"""Independent normal priors around the pretrained parameters, and around zero in the head [1].

    .. math:: -\log p(\phi, W) = \frac{|\phi - \phi^*|^2}{2 s^2} + \frac{|W|^2}{2 s'^2}
              + \text{const}

    It maps parameters by name, as :class:`~pyro_ext.inference.NPTL` has them, to that number, with
    the constant left out.

    :param torch.nn.Module backbone: the pretrained network, with :math:`\phi^*`.
    :param float scale: :math:`s`.
    :param float head_scale: :math:`s'`.
    :raises ValueError: for scales that are not positive.

    Example::

        >>> prior = L2SP(torch.nn.Linear(2, 2), scale=0.1, head_scale=1.0)
        >>> head = {"head.weight": torch.ones(1, 2)}
        >>> backbone = torch.nn.Linear(2, 2).requires_grad_(False)
        >>> moved = {f"backbone.{n}": p for n, p in backbone.named_parameters()}
        >>> prior({**moved, **head}).shape
        torch.Size([])
    """

    def __init__(self, backbone: nn.Module, scale: float, head_scale: float = 1.0) -> None:
        check_instance("backbone", backbone, nn.Module, "a torch.nn.Module")
        self.center = {
            _BACKBONE + name: value.detach().clone() for name, value in backbone.named_parameters()
        }
        self.scale = check_number("scale", scale, above=0)
        self.head_scale = check_number("head_scale", head_scale, above=0)

    def __call__(self, params: Mapping[str, Tensor]) -> Tensor:
        """Negative log density, but for a constant.

        :param Mapping params: parameters by name. **Shape:** ``(*event)`` each.
        :returns: a scalar.
        :raises ValueError: for parameters that are neither those of the backbone nor of the head.
        """
        _check_names(params, self.center)
        terms = []
        for name, value in params.items():
            if name in self.center:
                terms.append(((value - self.center[name]) / self.scale).square().sum())
            else:
                terms.append((value / self.head_scale).square().sum())
        return 0.5 * torch.stack(terms).sum()


class SWAGPrior:
    r"""A normal prior that was learned from a path of the earlier training [2].

    .. math:: \phi \sim N\bigl(\bar\phi, \; s \, (\tfrac12 \operatorname{diag}(v) +
              \tfrac1{2 (K - 1)} D D^\top)\bigr) , \quad W \sim N(0, s'^2)

    with mean and variances of snapshots, and the deviations of :math:`K` of them. It maps
    parameters by name to the negative log density, but for a constant.

    :param Sequence snapshots: parameters of the backbone by name, at several times of its training;
        parameters alone, without the statistics that a ``state_dict()`` holds beside them.
    :param float scale: :math:`s`, by which the covariance is larger than that of the path.
    :param float head_scale: :math:`s'`.
    :param float least_variance: what is added to each variance, since steps of a descent have to be
        smaller than it.
    :raises ValueError: for fewer than two snapshots, or scales that are not positive.

    Example::

        >>> path = [{"weight": torch.randn(2, 2)} for _ in range(5)]
        >>> prior = SWAGPrior(path, scale=10.0)
        >>> prior({"backbone.weight": torch.zeros(2, 2), "head.bias": torch.zeros(1)}).shape
        torch.Size([])
    """

    def __init__(
        self,
        snapshots: Sequence[Mapping[str, Tensor]],
        scale: float = 1.0,
        head_scale: float = 1.0,
        least_variance: float = 1e-3,
    ) -> None:
        snapshots = check_sequence("snapshots", snapshots, "a list of dicts of parameters", 2)
        snapshots = [check_tensors("snapshots", part, snapshots[0]) for part in snapshots]
        check_number("scale", scale, above=0)
        self.head_scale = check_number("head_scale", head_scale, above=0)
        check_number("least_variance", least_variance, above=0)
        self._names = list(snapshots[0])
        rows = torch.stack([self._flat(snapshot, "") for snapshot in snapshots]).detach()
        mean = rows.mean(0)
        deviations = (rows - mean) / (2.0 * (len(rows) - 1)) ** 0.5
        variance = 0.5 * rows.var(0) + least_variance
        self.law = LowRankMultivariateNormal(
            mean, scale**0.5 * deviations.mT, scale * variance, validate_args=False
        )

    def __call__(self, params: Mapping[str, Tensor]) -> Tensor:
        """Negative log density, but for a constant.

        :param Mapping params: parameters by name. **Shape:** ``(*event)`` each.
        :returns: a scalar.
        :raises ValueError: for parameters that are neither those of the backbone nor of the head.
        """
        _check_names(params, {_BACKBONE + name for name in self._names})
        heads = [(value / self.head_scale).square().sum()
                 for name, value in params.items() if name.startswith(_HEAD)]  # fmt: skip
        own: Tensor = -self.law.log_prob(self._flat(params, _BACKBONE))
        return own + 0.5 * torch.stack(heads).sum() if heads else own

    def _flat(self, params: Mapping[str, Tensor], prefix: str) -> Tensor:
        return torch.cat([params[prefix + name].reshape(-1) for name in self._names])


def _check_names(params: Mapping[str, Tensor], backbone: Collection[str]) -> None:
    own = {name for name in params if not name.startswith(_HEAD)}
    if own != set(backbone):
        raise ValueError(
            f"params must be those of the head (named {_HEAD!r}...) and of the backbone that the "
            f"prior was made of; {sorted(own - set(backbone))} are others, and "
            f"{sorted(set(backbone) - own)} are missing"
        )
