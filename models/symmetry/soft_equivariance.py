r"""Networks that discover which of several groups are symmetries of the data.

[1] H. Kim, H. Lee, H. Yang, J. Lee (2023),
Regularizing toward soft equivariance under mixed symmetries.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext._lib import checks
from pyro_ext.groups.projector import check_groups
from pyro_ext.inference.training import ShuffledBatches, Trainer
from pyro_ext.nn.equivariant import (
    EquivariantBilinear,
    GatedNonlinearity,
    Group,
    SoftEquivariantLinear,
    TensorRep,
    equivariance_residuals,
)

_LARGEST_SIZE = 128  # of the tensors by which groups are compared


class EquivarianceTuner:
    r"""Sets the strength of each group by how well the weights satisfy its symmetry [1].

    While the network trains with the initial strengths, :meth:`update` receives the residuals from
    time to time, and keeps them whenever one of them is below its kept value. Then :meth:`adjust`
    divides, :math:`\lambda_g \leftarrow \lambda_g / (r_g / \min_{g'} r_{g'})^p`, with the minimum
    over groups whose strength is not zero. The group that is satisfied best keeps its strength, and
    the others get much less.

    If the first group of the list contains all others, its strength should be zero: while it is
    enforced, nothing can be learned about the others.

    :param strengths: initial strengths, :math:`\lambda_g \ge 0`. **Shape:** ``(num_groups,)``.
    :ivar Tensor strengths: current strengths.
    :ivar Tensor residuals: the kept residuals, or ``None``.
    :raises ValueError: for negative strengths, or if all of them are zero.

    Example::

        >>> tuner = EquivarianceTuner([0.0, 10.0, 10.0, 10.0])
        >>> tuner.update([9.0, 1.0, 2.0, 4.0])
        >>> tuner.adjust(power=2.0)
        tensor([ 0.0000, 10.0000,  2.5000,  0.6250])
    """

    def __init__(self, strengths: Any) -> None:
        found = checks.as_tensor("strengths", strengths, "(num_groups)", finite=True)
        if bool((found < 0).any()) or not bool((found > 0).any()):
            raise ValueError(f"strengths must be >= 0 and not all zero, got {found.tolist()!r:.80}")
        found = found.detach().clone()
        self._first = found if found.is_floating_point() else found.to(torch.get_default_dtype())
        self.strengths = self._first.clone()
        self.residuals: Tensor | None = None

    def update(self, residuals: Any) -> None:
        """Keep residuals if any of them is smaller than its kept value.

        :param residuals: residuals of all groups at one time. **Shape:** ``(num_groups,)``.
        :raises ValueError: for residuals that are negative or not finite.
        """
        found = checks.as_tensor("residuals", residuals, f"({len(self._first)})", like=self._first)
        found = found.detach().to(self._first.dtype).clone()
        checks.all_finite("residuals", found)
        if bool((found < 0).any()):
            raise ValueError(f"residuals must be >= 0, got {found.tolist()!r:.80}")
        if self.residuals is None or bool((found < self.residuals).any()):
            self.residuals = found

    def adjust(self, power: float = 2.0) -> Tensor:
        r"""Set the strengths, starting from the initial ones.

        :param float power: :math:`p`.
        :returns: the strengths. **Shape:** ``(num_groups,)``.
        :raises ValueError: before :meth:`update` was called.
        """
        checks.number("power", power, least=0.0)
        if self.residuals is None:
            raise ValueError("adjust needs residuals, got none: call update before")
        least = self.residuals[self._first > 0].min()
        ratio = torch.where(self.residuals == least, 1.0, self.residuals / least)
        self.strengths = torch.where(self._first > 0, self._first / ratio**power, 0.0)
        return self.strengths


class SoftEMLPFit(NamedTuple):
    """Result of training.

    :param list losses: mean squared error and penalty of each step.
    :param Tensor strengths: final strengths. **Shape:** ``(num_groups,)``.
    :param Tensor residuals: residuals from which they were set. **Shape:** ``(num_groups,)``.
    """

    losses: list[float]
    strengths: Tensor
    residuals: Tensor


class SoftEMLP(nn.Module):
    r"""A network between tensors that may break symmetries, at a penalty [1].

    Each block is a :class:`~pyro_ext.nn.SoftEquivariantLinear`, plus a tenth of an
    :class:`~pyro_ext.nn.EquivariantBilinear`, and a :class:`~pyro_ext.nn.GatedNonlinearity`; a
    linear layer makes the outputs. Weights are free, and only their residuals distinguish groups.
    With ``soft_gates=False`` and projected weights, the network is equivariant up to rounding.

    In [1], products are those of tensors of the input, read as maps. Here they are all products of
    two tensors, summed over axes in pairs.

    :param TensorRep rep_in: type of the inputs.
    :param TensorRep rep_out: type of the outputs.
    :param Sequence groups: candidate groups, first the one that contains the others.
    :param hidden: type of the features of a block, or their number, which is shared among tensors
        of rank zero to two.
    :param int num_blocks: number of blocks.
    :param bool soft_gates: whether gates have the term that breaks symmetries.
    :raises ValueError: for groups that do not act on the representations; names their positions.

    Example::

        >>> from pyro_ext.nn.equivariant import EmbeddedO2, O, TensorRep
        >>> groups = [O(3), EmbeddedO2(0, 1), EmbeddedO2(1, 2)]
        >>> network = SoftEMLP(TensorRep({0: 2, 1: 2}), TensorRep({2: 1}), groups, hidden=30)
        >>> fit = network.fit(torch.randn(40, 8), torch.randn(40, 9), num_steps=4, progress=False)
        >>> fit.strengths[0].item(), network(torch.randn(3, 8)).shape
        (0.0, torch.Size([3, 9]))
    """

    def __init__(
        self,
        rep_in: TensorRep,
        rep_out: TensorRep,
        groups: Sequence[Group],
        hidden: TensorRep | int = 128,
        *,
        num_blocks: int = 3,
        soft_gates: bool = True,
    ) -> None:
        super().__init__()
        checks.integer("num_blocks", num_blocks, 1)
        checks.boolean("soft_gates", soft_gates)
        self.groups, _ = check_groups(groups)
        dim = self.groups[0].dim
        if not isinstance(hidden, TensorRep):
            hidden = TensorRep.uniform(checks.integer("hidden", hidden, 1), dim)
        self.rep_in, self.rep_out, self.hidden = rep_in, rep_out, hidden
        self.linears, self.bilinears, self.gates = (nn.ModuleList() for _ in range(3))
        for _ in range(num_blocks):
            gate = GatedNonlinearity(hidden, dim, soft=soft_gates)
            self.linears.append(SoftEquivariantLinear(rep_in, gate.rep_in, self.groups))
            self.bilinears.append(EquivariantBilinear(gate.rep_in, self.groups[0]))
            self.gates.append(gate)
            rep_in = hidden
        self.output = SoftEquivariantLinear(rep_in, rep_out, self.groups)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs to outputs.

        :param Tensor x: **Shape:** ``(*batch, num_inputs)``.
        :returns: **Shape:** ``(*batch, num_outputs)``.
        """
        for linear, bilinear, gate in zip(self.linears, self.bilinears, self.gates, strict=True):
            x = linear(x)
            x = gate(x + 0.1 * bilinear(x))
        outputs: Tensor = self.output(x)
        return outputs

    def fit(
        self,
        x: Any,
        y: Any,
        strengths: Any = None,
        *,
        num_steps: int = 2000,
        power: float = 2.0,
        batch_size: int = 200,
        learning_rate: float = 1e-3,
        weight_decay: float = 2e-5,
        seed: int = 0,
        progress: bool = True,
    ) -> SoftEMLPFit:
        r"""Train with Adam; an :class:`EquivarianceTuner` sets the strengths once during training.

        The loss is the mean squared error over rows and outputs plus :math:`\sum_g \lambda_g r_g`.
        Residuals are summed over layers, so larger networks need smaller strengths. The learning
        rate falls to zero along a cosine.

        Compare the result with a network without penalties. If targets respect only one of the
        groups, residuals may differ little when the strengths are set, and false groups then keep
        most of theirs: for :math:`a_x b_x + a_y b_y + 2 a_z b_z + \sin a_z` of 200 pairs of
        vectors, they kept 61 to 64% with the defaults, and the test error was four times that of an
        ordinary network. With ``hidden=30``, a tenth of the strength reduced the error but hardly
        separated the groups any better (two seeds); neither did setting the strengths later (one
        seed).

        :param Tensor x: inputs. **Shape:** ``(n, num_inputs)``.
        :param Tensor y: targets. **Shape:** ``(n, num_outputs)``.
        :param strengths: initial strengths; by default zero for the first group and the mean
            variance of the targets for the others, or for a single group. **Shape:**
            ``(num_groups,)``.
        :param int num_steps: number of optimizer steps. The strengths are set after a quarter of
            them, from residuals of the second half of that quarter.
        :param float power: power of the tuner; zero leaves the strengths as they are.
        :param int batch_size: size of minibatches.
        :param float learning_rate: learning rate of the first step.
        :param float weight_decay: factor of half the squared weights of linear layers. Those of
            soft gates count once.
        :param int seed: seed of minibatches.
        :param bool progress: whether to show a progress bar.
        :returns: losses, strengths and residuals.
        :raises ValueError: without strengths, if the first group does not contain the others.
        """
        dim = self.groups[0].dim
        like = self.output.weight
        x = checks.as_tensor("x", x, f"(n, {self.rep_in.size(dim)})", like=like, finite=True).to(
            like
        )
        y = checks.as_tensor(
            "y", y, f"({len(x)}, {self.rep_out.size(dim)})", like=like, finite=True
        ).to(like)
        checks.integer("num_steps", num_steps, 2)
        checks.number("power", power, least=0.0)
        checks.number("weight_decay", weight_decay, least=0.0)
        checks.boolean("progress", progress)
        if strengths is None:
            first, *others = self.groups
            if not all(_holds(first, other) for other in others):
                raise ValueError(
                    "groups must begin with one that holds the others, whose strength is zero, or "
                    f"strengths be given, got {list(self.groups)!r:.120}"
                )
            strengths = y.var(0, correction=0).mean().clamp(min=1e-6).repeat(len(self.groups))
            strengths[0] *= len(self.groups) == 1
        strengths = checks.as_tensor("strengths", strengths, f"({len(self.groups)})", like=like)
        tuner = EquivarianceTuner(strengths)
        batch_size = min(checks.integer("batch_size", batch_size, 1), len(x))
        batches = ShuffledBatches(x, y, batch_size=batch_size)
        linears = [*self.linears, self.output]
        soft = [gate.weight for gate in self.gates if isinstance(gate.weight, Tensor)]

        def loss(inputs: Tensor, targets: Tensor) -> Tensor:
            found = mse_loss(self(inputs), targets)
            for linear in linears:
                found = found + linear.penalty(tuner.strengths)
                decay = linear.weight.square().sum() + linear.bias.square().sum()
                found = found + 0.5 * weight_decay * decay
            for weight in soft:
                found = found + weight.square().sum()
            return found

        trainer = Trainer(
            self,
            partial(torch.optim.Adam, lr=checks.number("learning_rate", learning_rate, above=0.0)),
            scheduler=partial(CosineAnnealingLR, T_max=num_steps),
            seed=seed,
        )
        turn = min(max(num_steps // 4, 1), num_steps - 1)
        for step in torch.linspace(turn / 2, turn, 20).long().unique().tolist():
            trainer.run(loss, step, batches, progress=progress)
            with torch.no_grad():
                tuner.update(equivariance_residuals(self))
            if trainer.interrupted:
                break
        else:
            tuner.adjust(power)
            trainer.run(loss, num_steps, batches, progress=progress)
        assert tuner.residuals is not None
        return SoftEMLPFit(list(trainer.losses), tuner.strengths, tuner.residuals)


def _holds(whole: Group, part: Group) -> bool:
    """Tell whether the low-rank invariants of a group are also invariants of a part of it."""
    for upper, lower in ((1, 0), (2, 0), (1, 1), (3, 0)):
        if whole.dim ** (upper + lower) <= _LARGEST_SIZE:
            kept, own = whole.invariants(upper, lower), part.invariants(upper, lower)
            if bool(((kept - own @ (own.mT @ kept)).abs() > 1e-4).any()):
                return False
    return True
