"""Quadratic Bezier curves between the weights of two networks."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.inference.averaging.weight_averages import check_statistics, update_batch_norm


class BezierPath(nn.Module):
    r"""A curve between the weights of two networks, bent by a trained control point [1].

    Every parameter follows :math:`P(r) = (1-r)^2 a + 2 r (1-r) c + r^2 b` for :math:`r` from 0 to
    1, where :math:`c` is its value in the module ``control``. The ends are frozen copies.
    Minimizing the loss at a new random position for each minibatch gives a path of low loss. An
    untrained path, whose control point is the mean of the ends, is a straight line. A parameter
    that is frozen and equal at both ends stays frozen.

    Buffers are those of the first network, except for batch norm statistics, which
    :meth:`module_at` estimates again.

    :param torch.nn.Module module_a: the network at :math:`r = 0`.
    :param torch.nn.Module module_b: a network with the same parameters, at :math:`r = 1`.
    :raises ValueError: if names or shapes of parameters differ.

    [1] T. Garipov, P. Izmailov, D. Podoprikhin, D. Vetrov, A. G. Wilson (2018),
    Loss surfaces, mode connectivity, and fast ensembling of DNNs.

    Example::

        >>> from pyro_ext.inference.training import Trainer
        >>> from torch.nn.functional import cross_entropy
        >>> x, y = torch.randn(64, 3), torch.arange(64) % 2
        >>> path = BezierPath(torch.nn.Linear(3, 2), torch.nn.Linear(3, 2))
        >>> losses = Trainer(path, seed=0).run(
        ...     lambda: cross_entropy(path(x, torch.rand(())), y), 10, progress=False)
        >>> path.weights(0.5)["weight"].shape, path.module_at(0.5)
        (torch.Size([2, 3]), Linear(in_features=3, out_features=2, bias=True))
    """

    def __init__(self, module_a: nn.Module, module_b: nn.Module) -> None:
        super().__init__()
        check_same_parameters(module_a, module_b, "module_b")
        self.module_a = copy.deepcopy(module_a)
        self.module_b = copy.deepcopy(module_b)
        self.control = copy.deepcopy(module_a)
        for name, control in self.control.named_parameters():
            a, b = (m.get_parameter(name) for m in (self.module_a, self.module_b))
            is_shared = not (a.requires_grad or b.requires_grad) and torch.equal(a, b)
            control.data.copy_((a.data + b.data) / 2)
            control.requires_grad_(not is_shared)
        self.module_a.requires_grad_(False)
        self.module_b.requires_grad_(False)

    def weights(self, r: Tensor | float) -> dict[str, Tensor]:
        """Compute the parameters on the curve, by name.

        :param r: positions between 0 and 1. **Shape:** ``batch_shape``, usually ``()``.
        :returns: tensors of shape ``(*batch_shape, *shape)``, with gradients in the control
            point and the positions.
        """
        r = checks.as_tensor("r", r, like=next(self.module_a.parameters()))
        if not bool(((r >= 0) & (r <= 1)).all()):
            raise ValueError(f"r must lie between 0 and 1, got {r.tolist()!r:.80}")
        found = {}
        for (name, control), a, b in zip(
            self.control.named_parameters(),
            self.module_a.parameters(),
            self.module_b.parameters(),
            strict=True,
        ):
            t = r.reshape(*r.shape, *(1 for _ in a.shape))
            found[name] = (1 - t) ** 2 * a + 2 * t * (1 - t) * control + t**2 * b
        return found

    def forward(self, inputs: Any, r: Tensor | float) -> Any:
        """Run the network with the weights at one position.

        :param inputs: inputs of the network.
        :param r: the position, a scalar.
        :returns: what the network returns.
        """
        r = checks.as_tensor("r", r, "()")
        return torch.func.functional_call(self.control, self.weights(r), (inputs,))

    def guide(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw a uniform position and the weights there: a guide for models with such sites.

        An example is :class:`~pyro_ext.nn.BayesianModule`. The position is the auxiliary site
        ``"r"``.

        :param args: arguments of the model, which are ignored.
        :param kwargs: keyword arguments of the model, which are ignored.
        :returns: the weights.

        Example::

            >>> from pyro_ext.nn import BayesianClassifier, BayesianModule
            >>> path = BezierPath(torch.nn.Linear(3, 2), torch.nn.Linear(3, 2))
            >>> model = BayesianClassifier(BayesianModule(torch.nn.Linear(3, 2)))
            >>> predictive = pyro.infer.Predictive(model, guide=path.guide, num_samples=8)
            >>> predictive(torch.randn(5, 3))["label"].shape
            torch.Size([8, 5])
        """
        zero = next(self.module_a.parameters()).new_zeros(())
        r = pyro.sample("r", dist.Uniform(zero, zero + 1), infer={"is_auxiliary": True})
        return {
            name: pyro.sample(name, dist.Delta(value, event_dim=value.dim()))
            for name, value in self.weights(r).items()
        }

    def module_at(self, r: Tensor | float = 0.5, batches: Iterable[Any] | None = None) -> nn.Module:
        """Make an ordinary network with the weights at a position, by default the midpoint.

        :param r: the position, a scalar.
        :param batches: minibatches of inputs, as for
            :func:`~pyro_ext.inference.averaging.update_batch_norm`; required for a network with
            batch normalization.
        :returns: a copy in evaluation mode.
        :raises ValueError: for a network with batch normalization without ``batches``.
        """
        return with_weights(self.control, self.weights(checks.as_tensor("r", r, "()")), batches)


def check_same_parameters(module: nn.Module, other: nn.Module, argument: str) -> None:
    """Check that two modules have parameters of the same names and shapes."""
    checks.instance("module_a", module, nn.Module, "a torch.nn.Module")
    checks.instance(argument, other, nn.Module, "a torch.nn.Module")
    wanted = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    found = {name: tuple(parameter.shape) for name, parameter in other.named_parameters()}
    if not wanted:
        raise ValueError(f"module_a must have parameters, got {type(module).__name__}")
    if wanted != found:
        name = next(n for n in {**wanted, **found} if wanted.get(n) != found.get(n))
        raise ValueError(
            f"{argument} must have the parameters of module_a, got {name!r} of the shape "
            f"{found.get(name)} in place of {wanted.get(name)}"
        )


@torch.no_grad()
def with_weights(
    module: nn.Module, weights: Mapping[str, Tensor], batches: Iterable[Any] | None
) -> nn.Module:
    """A copy of a module with other weights and their statistics, in evaluation mode."""
    check_statistics(module, batches)
    new = copy.deepcopy(module)
    for name, parameter in new.named_parameters():
        parameter.copy_(weights[name])
    return (new if batches is None else update_batch_norm(new, batches)).eval()
