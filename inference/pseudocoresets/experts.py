"""Experts: runs of gradient descent on the data, whose checkpoints guide coresets."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.optim import SGD

from pyro_ext._lib import checks
from pyro_ext._lib.progress import progress_bar
from pyro_ext.checkpoint.files import CheckpointError, read_tensors, write_tensors
from pyro_ext.inference.pseudocoresets.coreset_rows import data_arguments
from pyro_ext.inference.training import Trainer
from pyro_ext.potential import Backend, InitStrategy, Layout, WeightedPotential, init_to_suggested
from pyro_ext.random import fresh_seed, spawn_seed

_FORMAT = "expert buffer 1"
_BATCH_SIZE = 64
_JUMP = 5.0
"""An epoch in which an expert moves so many times as far as in any other one is a jump."""


class ExpertBuffer:
    r"""Checkpoints of many runs of stochastic gradient descent on the data of a model [1, 2].

    Each run, called an expert, starts at its own latent values and descends the mean negative log
    likelihood of minibatches, in its own order. The prior is left out. Checkpoints are flat vectors
    of unconstrained latent values, one at the start and one after each epoch. ``collect`` makes a
    buffer, and ``load`` reads one.

    :param Tensor trajectories: the checkpoints. **Shape:** ``(num_experts, num_checkpoints,
        size)``.
    :param Mapping shapes: unconstrained shape of each latent site, in the order of the vectors.
    :param Tensor losses: mean loss of each epoch. **Shape:** ``(num_experts, num_checkpoints -
        1)``.
    :param int num_steps: number of steps of an epoch, if it is known.
    :param float learning_rate: learning rate of these steps, if it is known; with momentum, divided
        by one minus the momentum.
    :raises ValueError: for shapes that do not fit each other, values that are not finite, numbers
        out of range, or trajectories that jump. After the first epoch, an expert must not move more
        than five times as far in one epoch as in any other: pieces of different runs do not make an
        expert.

    [1] B. Kim, J. Choi, S. Lee, Y. Lee, J.-W. Ha, J. Lee (2022), On divergence measures for
    Bayesian pseudocoresets.

    [2] G. Cazenavette, T. Wang, A. Torralba, A. A. Efros, J.-Y. Zhu (2022), Dataset distillation by
    matching training trajectories.

    Example::

        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> buffer = ExpertBuffer.collect(
        ...     model, torch.ones(640), num_experts=3, num_epochs=4, seed=0, progress=False)
        >>> buffer.trajectories.shape, buffer.shapes, buffer.num_steps
        (torch.Size([3, 5, 1]), {'loc': torch.Size([])}, 10)
    """

    def __init__(
        self,
        trajectories: Tensor,
        shapes: Mapping[str, Sequence[int]],
        losses: Tensor,
        num_steps: int | None = None,
        learning_rate: float | None = None,
    ) -> None:
        checks.mapping("shapes", shapes, "a dict of shapes by site")
        self.shapes = {
            name: checks.as_size(f"shapes[{name!r}]", shape) for name, shape in shapes.items()
        }
        size = sum(shape.numel() for shape in self.shapes.values())
        trajectories = checks.as_tensor(
            "trajectories", trajectories, f"(num_experts, num_checkpoints, {size})"
        )
        checks.all_finite("trajectories", trajectories)
        wanted = str((len(trajectories), trajectories.shape[1] - 1))
        losses = checks.as_tensor("losses", losses, wanted, finite=True)
        if len(jumps := _jumps(trajectories).nonzero()):
            number, epoch = jumps[0].tolist()
            raise ValueError(
                f"trajectories must be one run of descent each: expert {number} moves in epoch "
                f"{epoch} more than {_JUMP:g} times as far as in any other one, got what looks "
                "like pieces of different runs"
            )
        self.num_steps = checks.optional(checks.integer, "num_steps", num_steps, 1)
        self.learning_rate = checks.optional(checks.number, "learning_rate", learning_rate, above=0)
        self.trajectories = trajectories
        self.losses = losses

    def __repr__(self) -> str:
        return (
            f"ExpertBuffer({self.num_experts} experts, {self.num_checkpoints} checkpoints of "
            f"{self.trajectories.shape[2]} values)"
        )

    @property
    def num_experts(self) -> int:
        """Number of experts."""
        return len(self.trajectories)

    @property
    def num_checkpoints(self) -> int:
        """Number of checkpoints of each expert, one more than the number of epochs."""
        return self.trajectories.shape[1]

    # Making --------------------------------------------------------------------------------------

    @classmethod
    def collect(
        cls,
        model: Callable[..., Any],
        *args: Any,
        num_experts: int = 20,
        num_epochs: int = 12,
        learning_rate: float = 0.05,
        batch_size: int | None = None,
        init_strategy: InitStrategy | None = None,
        plate: str | None = None,
        backend: Backend = "trace",
        seed: int | None = None,
        progress: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Train all experts at once.

        An expert whose values jump or do not stay finite is left out, with a warning that names it.
        Ctrl-C keeps the finished epochs, with a warning.

        :param model: a Pyro model, as for :class:`~pyro_ext.inference.AutoPseudocoreset`.
        :param args: arguments of the model: the data.
        :param int num_experts: number of experts. It does not change the first of them, up to
            rounding.
        :param int num_epochs: number of passes over the data. Observations that do not fill a
            minibatch are left out of a pass, different ones each time.
        :param float learning_rate: step size on the mean loss.
        :param int batch_size: size of the minibatches. By default that of the model, if it
            subsamples, and 64 otherwise, but at most the number of observations.
        :param init_strategy: where experts start, a function of a site as in
            :mod:`pyro.infer.autoguide.initialization`. For networks, use
            :func:`~pyro_ext.nn.init_to_module`. By default, experts start where
            :meth:`~pyro_ext.potential.Potential.init` starts chains.
        :param str plate: name of the plate of the observations, if the model has several plates.
        :param str backend: as for :class:`~pyro_ext.potential.Potential`.
        :param int seed: seed of starts and orders; ``None`` takes one from PyTorch's generator.
        :param bool progress: whether to show a progress bar.
        :param kwargs: keyword arguments of the model.
        :raises ValueError: for numbers out of range, data that are not finite, a model without such
            a plate or with other observations, or if no expert stays finite.
        """
        checks.optional(checks.function, "init_strategy", init_strategy)
        num_experts = checks.integer("num_experts", num_experts, 1)
        num_epochs = checks.integer("num_epochs", num_epochs, 1)
        checks.number("learning_rate", learning_rate, above=0)
        seed = fresh_seed(seed)
        args, kwargs = data_arguments(model, args, kwargs)
        whole = WeightedPotential(
            model,
            args,
            kwargs,
            plate=plate,
            backend=backend,
            init_strategy=init_strategy or init_to_suggested,
        )
        if not whole.rows:
            raise ValueError(
                "args must hold a tensor with a row for each of the "
                f"{whole.num_points} observations, got none"
            )
        size = _batch_size(whole, batch_size)
        loss = whole.with_rows([row[:size] for row in whole.rows])
        position = whole.start(range(num_experts), seed, init_strategy)
        trainer = Trainer([position], partial(SGD, lr=learning_rate), independent_rows=True)
        # Orders of an expert do not depend on the number of experts.
        generators = [
            torch.Generator().manual_seed(spawn_seed(seed, number, 2))
            for number in range(num_experts)
        ]
        start, epochs = position.clone(), []
        with progress_bar(total=num_epochs, desc="Experts", disable=not progress) as bar:
            try:
                for _ in range(num_epochs):
                    value = _epoch(loss, whole.rows, position, trainer, generators)
                    epochs.append((position.clone(), value))
                    bar.set_postfix(loss=f"{float(value.nanmean()):.4g}", refresh=False)
                    bar.update()
            except KeyboardInterrupt:
                if not epochs:
                    raise
                warnings.warn(
                    f"stopped after {len(epochs)} of {num_epochs} epochs, which are kept",
                    stacklevel=2,
                )
        checkpoints, losses = zip(*epochs, strict=True)
        trajectories = torch.stack([start, *checkpoints], 1)
        by_epoch = torch.stack(losses, 1)
        is_good = trajectories.isfinite().all(-1).all(-1) & ~_jumps(trajectories).any(1)
        if not bool(is_good.all()):
            bad = (~is_good).nonzero()[:, 0].tolist()
            what = f"the values of the experts {bad} did not stay finite, or jumped"
            if not bool(is_good.any()):
                raise ValueError(f"learning_rate={learning_rate} is too large: {what}")
            warnings.warn(
                f"{what}, and the buffer goes without them. A smaller learning rate may help",
                RuntimeWarning,
                stacklevel=2,
            )
        return cls(
            trajectories[is_good],
            whole.layout.shapes,
            by_epoch[is_good],
            num_steps=len(whole.rows[0]) // size,
            learning_rate=learning_rate,
        )

    # Using ---------------------------------------------------------------------------------------

    def check(self, layout: Layout) -> None:
        """Raise if the experts belong to another model.

        :param Layout layout: layout of the latent sites of a model.
        :raises ValueError: if names, order or shapes of the sites differ.
        """
        wanted = {name: tuple(shape) for name, shape in layout.shapes.items()}
        got = {name: tuple(shape) for name, shape in self.shapes.items()}
        if list(wanted.items()) != list(got.items()):
            raise ValueError(
                f"buffer must hold experts of the sites {wanted} of the model, got those of {got}"
            )

    def pick(self, layout: Layout) -> Tensor:
        """Checkpoints of a random expert, for a layout of the same sites."""
        self.check(layout)
        number = int(torch.randint(self.num_experts, ()))
        return self.trajectories[number].to(layout.device, layout.dtype)

    # Files ---------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Save the buffer to a safetensors file, which cannot execute code.

        :param path: path of the file.
        """
        content = {
            "format": _FORMAT,
            "sites": [[name, list(shape)] for name, shape in self.shapes.items()],
            "num_steps": self.num_steps,
            "learning_rate": self.learning_rate,
        }
        tensors = {"trajectories": self.trajectories, "losses": self.losses}
        write_tensors(Path(path), tensors, content)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str | None = None) -> Self:
        """Load a saved buffer.

        :param path: path of the file.
        :param device: where to put the tensors.
        :raises CheckpointError: if the file is damaged, or holds something else.
        """
        tensors, content, _ = read_tensors(Path(path))
        if content.get("format") != _FORMAT:
            raise CheckpointError(f"{path} holds no experts")
        moved = {name: value.to(device) for name, value in tensors.items()}
        return cls(
            moved["trajectories"],
            dict(content["sites"]),
            moved["losses"],
            content.get("num_steps"),
            content.get("learning_rate"),
        )


def _jumps(trajectories: Tensor) -> Tensor:
    """Epochs, but for the first, in which an expert moves much farther than in any other one."""
    moved = trajectories.diff(dim=1).norm(dim=-1)
    if moved.shape[1] < 3:
        return torch.zeros_like(moved, dtype=torch.bool)
    two = moved.topk(2, dim=1).values
    is_jump: Tensor = (moved > _JUMP * two[:, 1:]) & (moved == two[:, :1])
    is_jump[:, 0] = False
    return is_jump


def _epoch(
    loss: WeightedPotential,
    rows: Sequence[Tensor],
    position: Tensor,
    trainer: Trainer,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Take the steps of an epoch, in place; the mean loss of each expert on the way."""
    num_experts, size = len(position), loss.num_points
    orders = [
        torch.randperm(len(rows[0]), generator=generator, device="cpu") for generator in generators
    ]
    order = torch.stack(orders).to(position.device)
    weights = position.new_full((num_experts, size), 1.0 / size)
    num_batches = order.shape[1] // size
    total = torch.zeros(num_experts).to(position)

    def of_batch(number: int) -> tuple[Tensor, list[Tensor]]:
        index = order[:, number * size : (number + 1) * size]
        batch = [row[index] for row in rows]
        value, gradient = loss(position, weights, rows=batch, capacity=num_experts)
        total.add_(value / num_batches)
        return value, [gradient]

    for number in range(num_batches):
        trainer.step(of_batch, number)
    return total


def _batch_size(loss: WeightedPotential, batch_size: int | None) -> int:
    """Size of minibatches, which the model must see whole."""
    most = loss.subsample_size or loss.num_points
    if batch_size is None:
        return most if loss.subsample_size else min(_BATCH_SIZE, most)
    batch_size = checks.integer("batch_size", batch_size, 1)
    if batch_size > most:
        raise ValueError(
            f"batch_size must be at most the {most} observations that the model looks at, got "
            f"{batch_size}"
        )
    return batch_size
