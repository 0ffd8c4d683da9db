"""Sparse weight averages: iterative magnitude pruning of the average of several particles."""

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from pyro_ext._lib import checks
from pyro_ext.checkpoint.files import CheckpointError, lock_of
from pyro_ext.inference.averaging.pruning import MagnitudePruner
from pyro_ext.inference.averaging.weight_averages import SWA, update_batch_norm
from pyro_ext.inference.training import ShuffledBatches, Trainer
from pyro_ext.inference.training.checkpoints import (
    comparable,
    read_training,
    write_training,
)
from pyro_ext.inference.training.fits import check_fits
from pyro_ext.posterior.identity import data_identity, differences
from pyro_ext.random import fresh_seed, spawn_seed

_SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4)


class SparseAverage(NamedTuple):
    """Result of a cycle of :class:`SparseWeightAveraging`.

    :ivar dict state: parameters and buffers of the average, as in ``state_dict``.
    :ivar dict masks: which weights are present, by name; empty in the first cycle.
    :ivar float sparsity: fraction of the prunable weights that have been pruned.
    :ivar list losses: the loss at each step of the cycle, averaged over particles.
    :ivar dict cut_off: number of outputs without any remaining weight, by name of the tensor, if
        there are any. These outputs are constant: a network with few others has collapsed.
    """

    state: dict[str, Tensor]
    masks: dict[str, Tensor]
    sparsity: float
    losses: list[float]
    cut_off: dict[str, int]


class SparseWeightAveraging:
    """Sparse weight averaging with multiple particles, SWAMP [1].

    In each cycle, several particles start from the same *ticket*: the weights after a few epochs,
    without the pruned ones. Each is trained with its own order of minibatches and averages its
    weights over the end of the cycle; the mean of these averages is the network of the cycle. Its
    smallest weights are pruned, and the next cycle starts from the ticket again. With one particle
    and no averages, ``num_particles=1, swa_start=1.0, swa_lr=0.0``, this is iterative magnitude
    pruning [2].

    The particles are trained as one network under :func:`torch.func.vmap`, so the network must not
    have branches that depend on data. The given network is not changed.

    :param torch.nn.Module module: the network, with its initial weights.
    :param Callable loss: maps outputs of the network and the other parts of a minibatch, besides
        inputs, to a scalar.
    :param int num_particles: number of particles.
    :param int ticket_epochs: number of epochs that train the ticket, at the optimizer's learning
        rate.
    :param int cycle_epochs: number of epochs of a cycle.
    :param float swa_start: start of averaging, as a fraction of the cycle's epochs. Each epoch that
        ends later gives a sample; with ``1.0``, only the weights at the end of the cycle count.
    :param float swa_lr: learning rate during averaging, to which it decreases before along a
        cosine.
    :param Callable optimizer: a function that makes an optimizer from a list of tensors, as for
        :class:`~pyro_ext.inference.Trainer`; the optimizer must work element by element.
    :param MagnitudePruner pruner: prunes the average. It is copied together with its masks, which
        apply from the first cycle on.
    :param float single_until: cycles with a lower sparsity use a single particle. This is the
        paper's SWAMP+, which saves time where averages gain little.
    :param int seed: seed of the orders of minibatches and of what the network draws.
    :raises TypeError: for arguments of a wrong type.
    :raises ValueError: for numbers out of range, or a pruner that fits no parameter.

    [1] M. Choi, H. Lee, G. Nam, J. Lee (2024),
    Sparse weight averaging with multiple particles for iterative magnitude pruning.

    [2] J. Frankle, G. K. Dziugaite, D. M. Roy, M. Carbin (2020),
    Linear mode connectivity and the lottery ticket hypothesis.

    Example::

        >>> x = torch.randn(64, 3)
        >>> network = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> swamp = SparseWeightAveraging(network, num_particles=2, cycle_epochs=2, seed=0)
        >>> batches = ShuffledBatches(x, (x[:, 0] > 0).long(), batch_size=16)
        >>> cycles = swamp.run(batches, num_cycles=3, progress=False)
        >>> [round(cycle.sparsity, 2) for cycle in cycles]
        [0.0, 0.2, 0.35]
        >>> network.load_state_dict(cycles[-1].state)
        <All keys matched successfully>
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[..., Tensor] = cross_entropy,
        *,
        num_particles: int = 4,
        ticket_epochs: int = 1,
        cycle_epochs: int = 10,
        swa_start: float = 0.75,
        swa_lr: float = 0.05,
        optimizer: Callable[[list[Any]], torch.optim.Optimizer] = _SGD,
        pruner: MagnitudePruner | None = None,
        single_until: float = 0.0,
        seed: int | None = None,
    ) -> None:
        checks.instance("module", module, nn.Module, "a module")
        checks.function("loss", loss)
        self.loss = loss
        self.num_particles = checks.integer("num_particles", num_particles, 1)
        self.ticket_epochs = checks.integer("ticket_epochs", ticket_epochs, 0)
        self.cycle_epochs = checks.integer("cycle_epochs", cycle_epochs, 1)
        self.swa_start = checks.number("swa_start", swa_start, least=0, most=1)
        self.swa_lr = checks.number("swa_lr", swa_lr, least=0)
        checks.function("optimizer", optimizer, "a function that makes an optimizer of tensors")
        probe = optimizer([torch.zeros((), requires_grad=True)])
        wanted = "a function that makes one of torch.optim"
        checks.instance("optimizer", probe, torch.optim.Optimizer, wanted)
        self.optimizer, self._groups = optimizer, probe.state_dict()["param_groups"]
        checks.number("the learning rate of optimizer", self._groups[0].get("lr"), above=0)
        if pruner is None:
            pruner = MagnitudePruner()
        checks.instance("pruner", pruner, MagnitudePruner, "a MagnitudePruner or None")
        self.pruner = copy.deepcopy(pruner)
        try:
            copy.deepcopy(pruner).step(module)
        except ValueError as error:
            raise ValueError(f"pruner must fit module: {error}") from None
        self.single_until = checks.number("single_until", single_until, least=0, most=1)
        self.seed = fresh_seed(seed)
        self.module = copy.deepcopy(module)

    def run(
        self,
        batches: ShuffledBatches,
        num_cycles: int = 10,
        *,
        checkpoint: str | Path | None = None,
        progress: bool = True,
    ) -> list[SparseAverage]:
        """Train and prune, cycle by cycle.

        :param ShuffledBatches batches: inputs, and whatever else the loss takes.
        :param int num_cycles: number of cycles; one more than the rounds of pruning.
        :param checkpoint: a folder, created if missing, from which a stopped run resumes with the
            same result. Loading it executes no code.
        :param bool progress: whether to show progress bars.
        :returns: the average after each cycle, from the densest to the sparsest.
        :raises TrainingDiverged: if a loss, a gradient or a weight is not finite.
        :raises CheckpointError: if the folder belongs to another run, or one of its files is
            damaged.
        """
        self._check_batches(batches)
        num_cycles = checks.integer("num_cycles", num_cycles, 1)
        checks.boolean("progress", progress)
        folder: Path | None = None
        if checkpoint is not None:
            checks.instance("checkpoint", checkpoint, (str, Path), "a path or None")
            folder = Path(checkpoint)
            folder.mkdir(parents=True, exist_ok=True)
        pruner = copy.deepcopy(self.pruner)
        cycles: list[SparseAverage] = []
        try:
            ticket, _ = self._stored(
                folder and folder / "ticket.safetensors",
                batches,
                lambda path: self._ticket(batches, path, progress),
            )
            for cycle in range(num_cycles):
                masks = pruner.masks
                is_single = pruner.sparsity() < self.single_until
                number = 1 if is_single else self.num_particles
                if empty := [name for name, mask in masks.items() if not mask.any()]:
                    warnings.warn(
                        f"no weight is left in {empty} at sparsity {pruner.sparsity():.4g}: use "
                        'fewer cycles, or a pruner with scope="layer"',
                        stacklevel=2,
                    )
                state, losses = self._stored(
                    folder and folder / f"cycle-{cycle:03d}.safetensors",
                    batches,
                    partial(self._cycle, batches, ticket, masks, number, cycle, progress),
                )
                cut_off = _cut_off(masks)
                cycles.append(SparseAverage(state, masks, pruner.sparsity(), losses, cut_off))
                if cycle + 1 < num_cycles:
                    pruner.step(self._network(state))
        except KeyboardInterrupt:
            warnings.warn(
                f"stopped after {len(cycles)} of {num_cycles} cycles, which are returned",
                stacklevel=2,
            )
        return cycles

    def ticket(self, batches: ShuffledBatches, *, progress: bool = True) -> dict[str, Tensor]:
        """Train the ticket from which :meth:`run` starts each cycle again.

        :param ShuffledBatches batches: as for :meth:`run`.
        :param bool progress: whether to show a progress bar.
        :returns: parameters and buffers, as in ``state_dict``.
        """
        self._check_batches(batches)
        checks.boolean("progress", progress)
        return self._ticket(batches, None, progress)[0]

    def particles(
        self,
        batches: ShuffledBatches,
        ticket: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        cycle: int = 0,
        *,
        progress: bool = True,
    ) -> dict[str, Tensor]:
        """Train the particles of a single cycle, to inspect paths between them or other masks.

        :param ShuffledBatches batches: as for :meth:`run`.
        :param Mapping ticket: parameters and buffers to start from, as from :meth:`ticket`.
        :param Mapping masks: which weights are present, by name of the parameter; by default all.
        :param int cycle: number of the cycle, which determines the orders of minibatches.
        :param bool progress: whether to show a progress bar.
        :returns: averaged parameters of each particle. **Shape:** ``(num_particles, *event)`` each.
        :raises ValueError: if ticket or masks have other names or shapes than the network.
        """
        self._check_batches(batches)
        own = self.module.state_dict()
        ticket = checks.tensors("ticket", ticket, own, finite=True)
        masks = {} if masks in (None, {}) else checks.tensors("masks", masks)
        for argument, given in (("ticket", ticket), ("masks", masks)):
            for name, tensor in given.items():
                if name not in own or own[name].shape != tensor.shape:
                    raise ValueError(
                        f"{argument} must hold tensors in the shapes of the module's, got "
                        f"{checks.shown(tensor)} for {name!r}"
                    )
        checks.integer("cycle", cycle, 0)
        checks.boolean("progress", progress)
        number = self.num_particles
        return self._trained(batches, ticket, masks, number, cycle, None, progress)[0].averages()

    def _check_batches(self, batches: Any) -> None:
        """Check that minibatches are of what network and loss take."""
        checks.instance("batches", batches, ShuffledBatches, "ShuffledBatches")
        check_fits("batches", self.module, self.loss, *batches.rows)

    def _ticket(
        self, batches: ShuffledBatches, path: Path | None, progress: bool
    ) -> tuple[dict[str, Tensor], list[float]]:
        start = self.module.state_dict()
        particles, losses = self._trained(batches, start, {}, 1, None, path, progress)
        first = {name: tensor[0] for name, tensor in particles.averages().items()}
        return {**start, **particles.buffers_of_first(), **first}, losses

    def _cycle(
        self,
        batches: ShuffledBatches,
        ticket: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        number: int,
        cycle: int,
        progress: bool,
        path: Path | None,
    ) -> tuple[dict[str, Tensor], list[float]]:
        """The average over particles, and the losses."""
        particles, losses = self._trained(batches, ticket, masks, number, cycle, path, progress)
        means = {name: tensor.mean(0) for name, tensor in particles.averages().items()}
        network = self._network({**ticket, **particles.buffers_of_first(), **means})
        network = update_batch_norm(network, batches.rows[0].tensor_split(len(batches)))
        return dict(network.state_dict()), losses

    def _trained(
        self,
        batches: ShuffledBatches,
        start: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        number: int,
        cycle: int | None,
        path: Path | None,
        progress: bool,
    ) -> tuple["_Particles", list[float]]:
        """Particles after a cycle, or after the ticket's epochs where there is no cycle."""
        is_ticket = cycle is None
        key = 0 if cycle is None else cycle + 1
        num_epochs = self.ticket_epochs if is_ticket else self.cycle_epochs
        first_sample = math.inf if is_ticket else self.swa_start * num_epochs
        num_steps = num_epochs * len(batches)
        particles = _Particles(self._network(start), masks, number, self.loss)

        def optimizer(tensors: list[Any]) -> torch.optim.Optimizer:
            made = self.optimizer(tensors)
            made.register_step_post_hook(after_step)
            return made

        def after_step(*_: object) -> None:
            epochs, rest = divmod(trainer.num_steps + 1, len(batches))
            particles.mask_()
            if rest == 0 and epochs > first_sample:
                particles.swa.collect(particles.named())

        def scheduler(made: Any) -> LambdaLR:
            ratio = self.swa_lr / made.param_groups[0]["lr"]
            num_falling = self.swa_start * num_steps
            return LambdaLR(made, partial(_cosine, ratio=ratio, num_steps=num_falling))

        trainer = Trainer(
            particles,
            optimizer,
            scheduler=None if is_ticket else scheduler,
            stateful=[particles.swa],
            identity=self._identity(batches),
            seed=spawn_seed(self.seed, key),
        )
        orders = [(copy.copy(batches), spawn_seed(self.seed, key, n)) for n in range(number)]

        def loss() -> Tensor:
            each = [own.batch(trainer.num_steps, seed) for own, seed in orders]
            value: Tensor = particles(*(torch.stack(rows) for rows in zip(*each, strict=True)))
            return value.sum()

        trainer.run(
            loss,
            num_steps,
            checkpoint=path,
            save_every=max(100, len(batches)),
            progress=progress,
            description="Ticket" if is_ticket else f"Cycle {key}",
        )
        if trainer.num_steps < num_steps:
            raise KeyboardInterrupt
        return particles, [value / number for value in trainer.losses]

    def _network(self, state: Mapping[str, Tensor]) -> nn.Module:
        """A copy of the network in a state."""
        network = copy.deepcopy(self.module)
        network.load_state_dict(state)
        return network

    def _identity(self, batches: ShuffledBatches) -> dict[str, Any]:
        """Describe the settings and data that a checkpoint is compared by."""
        tensors = {"module": dict(self.module.state_dict()), "masks": self.pruner.masks}
        names = ("ticket_epochs", "cycle_epochs", "swa_start", "swa_lr", "num_particles")
        identity: dict[str, Any] = comparable(
            {
                "batches": batches.identity(),
                "tensors": data_identity(tensors, "network"),
                "loss": self.loss,
                "optimizer": self._groups,
                "pruner": repr(self.pruner),
                "single_until": self.single_until,
                "seed": self.seed,
                **{name: getattr(self, name) for name in names},
            }
        )
        return identity

    def _stored(
        self,
        path: Path | None,
        batches: ShuffledBatches,
        train: Callable[[Path | None], tuple[dict[str, Tensor], list[float]]],
    ) -> tuple[dict[str, Tensor], list[float]]:
        """Read a training result from its file, or train, resuming where possible, and save it."""
        if path is None:
            return train(None)
        identity = self._identity(batches)
        if path.exists():
            known, found = read_training(path)
            if unlike := differences(known, identity):
                raise CheckpointError(f"{path} is of another run: {'; '.join(unlike[:5])}")
            return found["state"], found["losses"]
        unfinished = path.with_name(f"unfinished-{path.name}")
        state, losses = train(unfinished)
        write_training(path, identity, {"state": state, "losses": losses})
        for left in (unfinished, lock_of(unfinished)):
            left.unlink(missing_ok=True)
        return state, losses


class _Particles(nn.Module):
    """Several copies of a network as one, and an average of each."""

    def __init__(
        self,
        network: nn.Module,
        masks: Mapping[str, Tensor],
        number: int,
        loss: Callable[..., Tensor],
    ) -> None:
        super().__init__()
        weights, buffers = stack_module_state([network] * number)
        self._shared = network, loss  # in a tuple, so that it is not registered as a submodule
        self._names = list(weights), list(buffers)
        self._masks = [masks.get(name) for name in weights]
        self.weights = nn.ParameterList(
            nn.Parameter(weight.detach(), weight.requires_grad) for weight in weights.values()
        )
        for position, buffer in enumerate(buffers.values()):
            self.register_buffer(f"buffer{position}", buffer)
        self.swa = SWA()
        self.mask_()

    def forward(self, *rows: Tensor) -> Tensor:
        """The loss of each particle on rows of its own."""
        network, loss = self._shared

        def one(state: dict[str, Tensor], inputs: Tensor, *others: Tensor) -> Tensor:
            value: Tensor = loss(functional_call(network, state, (inputs,)), *others)
            return value

        state = self.named() | self._own_buffers()
        values: Tensor = vmap(one, randomness="different")(state, *rows)
        return values

    @torch.no_grad()
    def mask_(self) -> None:
        """Take out what is pruned."""
        for weight, mask in zip(self.weights, self._masks, strict=True):
            if mask is not None:
                weight *= mask

    def named(self) -> dict[str, Tensor]:
        """Weights of all particles by the network's names."""
        return dict(zip(self._names[0], self.weights, strict=True))

    def averages(self) -> dict[str, Tensor]:
        """Return the mean of each particle's samples, or its weights if it has no samples."""
        if self.swa.num_collected:
            return self.swa.weights()
        return {name: weight.detach() for name, weight in self.named().items()}

    def buffers_of_first(self) -> dict[str, Tensor]:
        """Buffers of the first particle."""
        return {name: buffer[0] for name, buffer in self._own_buffers().items()}

    def _own_buffers(self) -> dict[str, Tensor]:
        names = self._names[1]
        return {name: self.get_buffer(f"buffer{i}") for i, name in enumerate(names)}


def _cosine(step: int, ratio: float, num_steps: float) -> float:
    """The learning rate at a step, as a multiple of the first."""
    if step >= num_steps:
        return ratio
    return ratio + (1 - ratio) * (1 + math.cos(math.pi * step / num_steps)) / 2


def _cut_off(masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Number of outputs without weights, by name of the tensor, where there are any."""
    numbers = {n: int((~m.flatten(1).any(1)).sum()) for n, m in masks.items() if m.dim() > 1}
    return {name: number for name, number in numbers.items() if number}
