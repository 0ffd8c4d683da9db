"""Potentials trained as one function of stacked weights, and draws that go on from them."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext.inference import IVON, Trainer
from pyro_ext.inference.averaging import SWAG
from pyro_ext.inference.training import ShuffledBatches
from pyro_ext.models.molecules import RACE, MoleculeFrames, potential_loss

BATCH_SIZE, MAX_NORM = 25, 10.0
AMSGRAD = partial(torch.optim.Adam, amsgrad=True)


class Stack:
    """Networks of the same form as one function of stacked weights, and frames for each.

    :param networks: the networks, which are left as they are.
    :param frames: of each, as many for all, and of the same atoms.
    :param int seed: of the orders of the frames, one for each network.
    """

    def __init__(self, networks: Sequence[RACE], frames: Sequence[MoleculeFrames], seed: int):
        self.networks = [copy.deepcopy(one) for one in networks]
        self.species = tuple(frames[0].species.tolist())
        params, self.buffers = stack_module_state(self.networks)
        self.params = {k: v.detach().requires_grad_() for k, v in params.items()}
        generator = torch.Generator().manual_seed(seed)
        rows: list[tuple[Tensor, ...]] = []
        for network, own in zip(networks, frames, strict=True):
            order = torch.randperm(len(own.energies), generator=generator)
            energies = network.relative(self.species, own.energies)
            rows.append((own.positions[order].float(), energies[order], own.forces[order].float()))
        stacked = [torch.stack(one, 1) for one in zip(*rows, strict=True)]
        self.batches = ShuffledBatches(*stacked, batch_size=min(BATCH_SIZE, len(stacked[0])))

    def losses(self, kind: str, *batch: Tensor) -> Tensor:
        """Losses of the networks, each of its own frames, with one for each force.

        :param str kind: of :func:`~pyro_ext.models.molecules.potential_loss`.
        :param batch: positions, energies, forces. **Shape:** ``(b, num_networks, ...)``.
        :returns: **Shape:** ``(num_networks,)``.
        """

        def one(params: Any, buffers: Any, x: Tensor, energies: Tensor, forces: Tensor) -> Tensor:
            found = functional_call(self.networks[0], (params, buffers), (x, self.species))
            weight = len(self.species)
            return potential_loss(
                found, energies, forces, kind, force_weight=weight, densities=True
            )

        dims = (0, 0, 1, 1, 1)
        values: Tensor = torch.vmap(one, dims)(self.params, self.buffers, *batch)
        return values

    def clipped(self, kind: str, *batch: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Sum of :meth:`losses`, and its gradients, with a norm of 10 at most in each network."""
        total = self.losses(kind, *batch).sum()
        found = torch.autograd.grad(
            total, list(self.params.values()), allow_unused=True, materialize_grads=True
        )
        norms = torch.stack([g.flatten(1).square().sum(1) for g in found]).sum(0).sqrt()
        factors = (MAX_NORM / norms).clamp(max=1.0)
        return total.detach(), [g * factors.reshape(-1, *[1] * (g.dim() - 1)) for g in found]

    def trained(self) -> list[RACE]:
        """The networks with their weights."""
        for number, network in enumerate(self.networks):
            network.load_state_dict({k: v[number] for k, v in self.params.items()}, strict=False)
        return self.networks


def started(frames: MoleculeFrames, seed: int) -> RACE:
    """A network before training.

    :param MoleculeFrames frames: whose energies and forces it is centered at.
    :param int seed: of its weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = RACE(frames.species, channels=16)
    network.center(frames.species, frames.energies, frames.forces)
    return network


def fit(
    networks: Sequence[RACE],
    frames: Sequence[MoleculeFrames],
    kind: str,
    num_steps: int,
    seed: int = 0,
    lr: float = 1e-2,
) -> list[RACE]:
    """Networks after training by a loss.

    :param networks: where they start from.
    :param frames: of each.
    :param str kind: of :func:`~pyro_ext.models.molecules.potential_loss`.
    :param int num_steps: minibatches.
    :param int seed: of their order.
    :param float lr: of AMSGrad at the start; it falls to zero.
    """
    stack = Stack(networks, frames, seed)
    trainer = Trainer(
        stack.params,
        partial(AMSGRAD, lr=lr),
        scheduler=partial(CosineAnnealingLR, T_max=num_steps),
        seed=seed,
    )
    trainer.run(partial(stack.clipped, kind), num_steps, stack.batches, progress=False)
    return stack.trained()


def swag_draws(
    networks: Sequence[RACE], frames: Sequence[MoleculeFrames], num_steps: int, num_draws: int
) -> list[list[RACE]]:
    """Draws of SWAG for each network, which goes on from it with a constant learning rate."""
    stack = Stack(networks, frames, 1)
    averages = [SWAG(max_rank=20) for _ in networks]
    trainer = Trainer(stack.params, partial(AMSGRAD, lr=2e-3), seed=1)

    def loss(*batch: Tensor) -> tuple[Tensor, list[Tensor]]:
        if trainer.num_steps % 4 == 0:
            for number, one in enumerate(averages):
                one.collect({k: v[number].detach() for k, v in stack.params.items()})
        return stack.clipped("joint", *batch)

    trainer.run(loss, max(num_steps, 12), stack.batches, progress=False)
    found = []
    for number, (network, one) in enumerate(zip(stack.trained(), averages, strict=True)):
        with torch.random.fork_rng():
            torch.manual_seed(number)
            flat = torch.stack([one.distribution().sample() for _ in range(num_draws)])
        sizes = [p.numel() for p in network.parameters()]
        parts = zip(network.named_parameters(), flat.float().split(sizes, 1), strict=True)
        draws = {name: part.reshape(-1, *p.shape) for (name, p), part in parts}
        found.append(_with_weights(network, draws))
    return found


def ivon_draws(
    networks: Sequence[RACE], frames: Sequence[MoleculeFrames], num_steps: int, num_draws: int
) -> list[list[RACE]]:
    """Draws of IVON for each network, which goes on from it.

    Numbers are those of the paper, but that the curvature forgets within 50 steps.
    """
    stack = Stack(networks, frames, 2)
    settings: dict[str, Any] = dict(
        ess=48_000, hess_init=0.5, betas=(0.9, 0.98), weight_decay=0.0, clip_radius=1.0, seed=0
    )
    trainer = Trainer(stack.params, partial(IVON, lr=1e-3, **settings), seed=2)
    # The paper's loss is twice the negative log density.
    loss = trainer.optimizer.sampled(lambda *batch: 0.5 * stack.losses("joint", *batch).sum())
    trainer.run(loss, num_steps, stack.batches, progress=False)
    drawn = trainer.optimizer.draws(num_draws, seed=0)
    return [
        _with_weights(network, {k: v[:, n] for k, v in zip(stack.params, drawn, strict=True)})
        for n, network in enumerate(stack.trained())
    ]


def _with_weights(network: RACE, draws: dict[str, Tensor]) -> list[RACE]:
    """Networks with drawn weights, ``(num_draws, ...)`` by name."""
    found = []
    for number in range(len(next(iter(draws.values())))):
        found.append(copy.deepcopy(network))
        found[-1].load_state_dict({k: v[number] for k, v in draws.items()}, strict=False)
    return found
