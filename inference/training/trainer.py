"""The loop of training."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pyro_ext._checks import (
    check_callable,
    check_instance,
    check_integer,
    check_mapping,
    check_number,
    shown,
)
from pyro_ext._progress import progress_bar
from pyro_ext.checkpoint.files import CheckpointError, read_tensors, write_tensors
from pyro_ext.inference.training._interrupts import Interrupts
from pyro_ext.inference.training._pyro_optimizer import PyroOptimizer
from pyro_ext.inference.training._state import (
    comparable,
    differences,
    joined,
    random_states,
    set_random_states,
    split,
)
from pyro_ext.inference.training.batches import ShuffledBatches
from pyro_ext.random import fresh_seed, spawn_seed

__all__ = ["Loss", "Optimizer", "Parameters", "Trainer", "TrainingDiverged"]

Parameters = nn.Module | Mapping[str, Tensor] | Sequence[Tensor]
Optimizer = Callable[[list[Any]], torch.optim.Optimizer] | PyroOptim
Loss = Callable[..., Tensor | tuple[Tensor, Any]]

_FORMAT = "training 1"
_ADAM = partial(torch.optim.Adam, lr=1e-3)


class TrainingDiverged(FloatingPointError):
    """A loss, a gradient or a parameter is not finite; the message says where, and what helps.

    Parameters and buffers are those at which loss and gradient were last finite.

    :param str message: what has happened.
    :param Sequence losses: the loss of each step before.
    """

    def __init__(self, message: str, losses: Sequence[float] = ()) -> None:
        super().__init__(message)
        self.losses = list(losses)


class Trainer:
    r"""Minimizes a loss by the steps of an optimizer.

    A loss is any function that returns a scalar with a gradient in the parameters: the loss of a
    network, ``ELBO.differentiable_loss``, a call of ``Trace_ELBO()(model, guide)``, a function of a
    dict of tensors as in :mod:`torch.func`. One that knows its gradient otherwise returns both,
    ``(value, gradients)``.

    A step that would make anything but finite numbers is not taken: parameters and buffers go back
    to where loss and gradient were last finite, and :class:`TrainingDiverged` says what was not
    finite, and where. Ctrl-C ends :meth:`run` after the step that is under way, with a warning;
    pressed again, it ends the step, too.

    A training goes on where it was, in the next call of :meth:`run` or :meth:`step` and, from a
    checkpoint, in another process. It then takes the same course, bit for bit, as one that was not
    interrupted. That takes in what draws from PyTorch's generators; NumPy's and Python's are not
    looked after.

    :param parameters: what is trained: a module, of which that is all parameters that require a
        gradient, or tensors in a mapping or sequence. They are changed in place.
    :param optimizer: makes an optimizer of :mod:`torch.optim` of a list of tensors, or is one of
        :mod:`pyro.optim`.
    :param Callable scheduler: makes a scheduler of the learning rate of the optimizer, such as
        ``partial(CosineAnnealingLR, T_max=1000)``; it takes a step after each of the optimizer.
    :param float max_norm: to which the norm of the gradient of all parameters together is clipped.
    :param float ema_decay: of an exponential moving average of the parameters, which starts at
        their first values; :attr:`average` holds it.
    :param bool independent_rows: whether the first dimension of each parameter counts problems that
        have nothing to do with each other, as the members of an ensemble. The loss then is one of
        each, the optimizer has to work element by element, and a row that is not finite stops
        nothing.
    :param Sequence stateful: what else changes along the way and belongs in a checkpoint:
        generators that the loss draws from, and modules or whatever has ``state_dict`` and
        ``load_state_dict``.
    :param Mapping identity: settings by name that a checkpoint is to have been made with, as plain
        values. Those of optimizer, schedule and parameters are compared anyway.
    :param int seed: of all draws from PyTorch's global generators, which are put back after, and of
        minibatches; ``None`` draws from the generators as they are.
    :raises TypeError: for arguments of a wrong type.
    :raises ValueError: for numbers out of range, or where there is nothing to train.

    Example::

        >>> from torch.nn.functional import mse_loss
        >>> x = torch.linspace(-1.0, 1.0, 100)[:, None]
        >>> network = torch.nn.Sequential(
        ...     torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> trainer = Trainer(network, ema_decay=0.99, max_norm=1.0, seed=0)
        >>> batches = ShuffledBatches(x, x.sin(), batch_size=32)
        >>> losses = trainer.run(
        ...     lambda x, y: mse_loss(network(x), y), 20, batches, progress=False)
        >>> len(losses), trainer.average(x).shape
        (20, torch.Size([100, 1]))
    """

    def __init__(
        self,
        parameters: Parameters,
        optimizer: Optimizer = _ADAM,
        *,
        scheduler: Callable[[Any], Any] | None = None,
        max_norm: float | None = None,
        ema_decay: float | None = None,
        independent_rows: bool = False,
        stateful: Sequence[Any] = (),
        identity: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        self._named = _named(parameters)
        self._module = parameters if isinstance(parameters, nn.Module) else None
        self._is_mapping = isinstance(parameters, Mapping)
        check_callable("optimizer", optimizer, "a function that makes an optimizer of tensors")
        if scheduler is not None:
            check_callable("scheduler", scheduler, "a function that makes one of an optimizer")
            if isinstance(optimizer, PyroOptim):
                raise ValueError("scheduler must be None with one of pyro.optim, which has its own")
        self.max_norm = None if max_norm is None else check_number("max_norm", max_norm, above=0)
        check_instance("independent_rows", independent_rows, bool, "True or False")
        self.independent_rows = independent_rows
        if independent_rows and max_norm is not None:
            raise ValueError("max_norm must be None with independent_rows, which it would mix")
        for one in _sequence("stateful", stateful):
            if not isinstance(one, torch.Generator) and not hasattr(one, "load_state_dict"):
                raise TypeError(f"stateful must hold what has a state_dict, got {shown(one)}")
        self._stateful = stateful
        self.seed = None if seed is None else fresh_seed(seed)
        self._batch_seed = self.seed
        self._stream: list[Tensor] | None = None
        self._is_seeded = False
        self._last: Tensor | None = None
        self._good: list[Tensor] = []
        self._good_buffers: list[Tensor] = []
        self.losses: list[float] = []
        """The loss of each step, before the step."""
        tensors = list(self._named.values())
        self.optimizer: Any = (
            PyroOptimizer(optimizer, tensors)
            if isinstance(optimizer, PyroOptim)
            else optimizer(tensors)
        )
        self.scheduler = None if scheduler is None else scheduler(self.optimizer)
        self._averaged: AveragedModel | None = None
        if ema_decay is not None:
            ema_decay = check_number("ema_decay", ema_decay, least=0, below=1)
            self._averaged = AveragedModel(
                self._container(), multi_avg_fn=get_ema_multi_avg_fn(ema_decay)
            )
            self._averaged.update_parameters(self._container())
        if identity is not None:
            check_mapping("identity", identity, "a dict of plain values by name")
        self._identity: dict[str, Any] = comparable(
            {
                "parameters": {n: [str(p.dtype), list(p.shape)] for n, p in self._named.items()},
                "optimizer": {
                    "kind": type(self.optimizer).__name__,
                    "groups": self.optimizer.state_dict()["param_groups"],
                },
                "scheduler": self.scheduler
                and {
                    "kind": type(self.scheduler).__name__,
                    "state": self.scheduler.state_dict(),
                },
                "max_norm": self.max_norm,
                "ema_decay": ema_decay,
                "seed": self.seed,
                **(identity or {}),
            }
        )

    def __repr__(self) -> str:
        return (
            f"Trainer({len(self._named)} tensors, {type(self.optimizer).__name__}, "
            f"{self.num_steps} steps)"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}  # what has a graph behind it can't be copied

    @property
    def num_steps(self) -> int:
        """Number of steps that have been taken."""
        return len(self.losses)

    @property
    def average(self) -> Any:
        """The average of the parameters: a copy of the module, or tensors in the form they came in.

        It is ``None`` without ``ema_decay``. Buffers of a module are those of the last step.
        """
        if self._averaged is None:
            return None
        if self._module is not None:
            return self._averaged.module
        values = [parameter.detach() for parameter in self._averaged.module.parameters()]
        return dict(zip(self._named, values, strict=True)) if self._is_mapping else values

    # Steps ---------------------------------------------------------------------------------------

    def step(self, loss: Loss, *args: Any) -> float:
        """Take one step.

        :param Callable loss: returns a scalar, or one and gradients in the form of the parameters.
        :param args: its arguments.
        :returns: the loss before the step, also the last of :attr:`losses`.
        :raises TrainingDiverged: where loss, gradient or what the step makes is not finite.
        """
        check_callable("loss", loss)
        with self._randomness():
            value = self._gradient(loss, args, "")
            self._update(value, "")
        return value

    def run(
        self,
        loss: Loss,
        num_steps: int,
        batches: "ShuffledBatches | Callable[[int], Any] | None" = None,
        *,
        checkpoint: str | Path | None = None,
        save_every: int = 100,
        progress: bool = True,
        description: str = "Training",
    ) -> list[float]:
        """Take steps until there have been so many in all.

        :param Callable loss: as of :meth:`step`.
        :param int num_steps: number of steps in all, those of earlier calls and of the checkpoint
            included.
        :param batches: what the loss is given: :class:`ShuffledBatches`, whose rows are its
            arguments; or a function of a seed, another one at each step, whose result is its
            argument. Without it the loss has no argument.
        :param checkpoint: a file in which the training is saved along the way and at the end, and
            from which it goes on where the file exists. It holds nothing that executes on load.
        :param int save_every: steps from one time that it is saved to the next.
        :param bool progress: whether to show a progress bar.
        :param str description: what the bar begins with.
        :returns: the losses of all steps, also :attr:`losses`.
        :raises TrainingDiverged: as :meth:`step`; a checkpoint stays as it was last saved.
        :raises CheckpointError: where the file is damaged or of another training.
        """
        check_callable("loss", loss)
        num_steps = check_integer("num_steps", num_steps, 0)
        save_every = check_integer("save_every", save_every, 1)
        check_instance("description", description, str, "a string")
        if batches is not None and not isinstance(batches, ShuffledBatches):
            check_callable("batches", batches, "ShuffledBatches, or a function of a seed")
        if checkpoint is not None:
            check_instance("checkpoint", checkpoint, (str, Path), "a path or None")
            if isinstance(batches, ShuffledBatches):
                self._identity["batches"] = batches.identity()
            if Path(checkpoint).exists():
                state = self._read(Path(checkpoint))
                if len(state["losses"]) > self.num_steps:
                    self._take_up(state)
        num_saved = self.num_steps
        bar = progress_bar(
            total=num_steps, initial=num_saved, desc=description, unit="step", disable=not progress
        )
        with self._randomness(), bar, Interrupts() as interrupts:
            while self.num_steps < num_steps and not interrupts.are_pending:
                before = self._draws_from()
                try:
                    value = self._gradient(loss, self._batch(batches), f" of {num_steps}")
                    with interrupts.held_back():
                        self._update(value, f" of {num_steps}")
                except KeyboardInterrupt:
                    set_random_states(before[0])
                    for generator, its in before[1]:
                        generator.set_state(its)
                    self._restore(parameters=False)
                    break
                bar.set_postfix_str(f"loss {value:.4g}", refresh=False)
                bar.update()
                if checkpoint is not None and self.num_steps % save_every == 0:
                    self.save(checkpoint)
                    num_saved = self.num_steps
            if checkpoint is not None and num_saved != self.num_steps:
                self.save(checkpoint)
        if self.num_steps < num_steps:
            warnings.warn(
                f"stopped after {self.num_steps} of {num_steps} steps, which are kept",
                stacklevel=2,
            )
        return self.losses

    def _batch(self, batches: "ShuffledBatches | Callable[[int], Any] | None") -> tuple[Any, ...]:
        """Arguments of the loss at the next step."""
        if batches is None:
            return ()
        if self._batch_seed is None:
            self._batch_seed = fresh_seed(None)
        if isinstance(batches, ShuffledBatches):
            return batches.batch(self.num_steps, self._batch_seed)
        return (batches(spawn_seed(self._batch_seed, 1, self.num_steps)),)

    def _gradient(self, loss: Loss, args: Sequence[Any], of: str) -> float:
        """Leave finite gradients at the parameters, and return the loss."""
        parameters = list(self._named.values())
        if not self._good:
            self._keep()
            self._good_buffers = _copied([], self._buffers())
        for parameter in parameters:
            parameter.grad = None
        self.optimizer.zero_grad()  # it may hold more than the parameters, such as a learning rate
        result = loss(*args)
        value, gradients = result if isinstance(result, tuple) else (result, None)
        # The last loss lives until there is another one, or its memory goes back to the system and
        # comes again at every step.
        self._last = value
        is_scalar = isinstance(value, Tensor) and value.numel() == 1
        if not (is_scalar or (self.independent_rows and isinstance(value, Tensor))):
            raise ValueError(f"loss must return a scalar tensor, got {shown(value)}")
        number = float(value.detach().nanmean())
        if not self.independent_rows and not math.isfinite(number):
            self._diverge(f"the loss is {number}", of)
        if gradients is not None:
            if isinstance(gradients, Mapping):
                gradients = [gradients[name] for name in self._named]
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
        elif value.requires_grad:
            value.sum().backward()
        else:
            raise ValueError("loss must depend on the parameters, got a value without a gradient")
        if not self.independent_rows:
            norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
            if not math.isfinite(float(norm)):
                self._diverge(f"the gradient of {self._worst(of_gradients=True)}", of)
            if self.max_norm is not None:
                clip_grads_with_norm_(parameters, self.max_norm, norm)
            self._keep()
        return number

    def _update(self, value: float, of: str) -> None:
        """Let optimizer, schedule and average take a step."""
        try:
            self.optimizer.step()
        except BaseException:
            self._restore()
            raise
        if not self.independent_rows:
            tensors = [parameter.detach() for parameter in self._named.values()]
            # The norm is fast, and may overflow where no number does.
            if not (bool(get_total_norm(tensors).isfinite()) or _are_finite(tensors)):
                self._diverge(f"after the update {self._worst(of_gradients=False)}", of)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(value)
        elif self.scheduler is not None:
            self.scheduler.step()
        if self._averaged is not None:
            self._averaged.update_parameters(self._container())
        self._good_buffers = _copied(self._good_buffers, self._buffers())
        self.losses.append(value)

    # What is not finite --------------------------------------------------------------------------

    def _buffers(self) -> list[Tensor]:
        return [] if self._module is None else list(self._module.buffers())

    def _keep(self) -> None:
        """Copy the parameters, at which loss and gradient are finite."""
        if not self.independent_rows:
            self._good = _copied(self._good, list(self._named.values()))

    @torch.no_grad()
    def _restore(self, *, parameters: bool = True) -> None:
        """Put back good parameters, and the buffers after the last whole step."""
        pairs = list(zip(self._buffers(), self._good_buffers, strict=False))
        if parameters and not self.independent_rows:
            pairs += zip(self._named.values(), self._good, strict=True)
        for tensor, kept in pairs:
            tensor.copy_(kept)

    def _worst(self, *, of_gradients: bool) -> str:
        """Describe the first parameter that is not finite, or whose gradient is not."""
        largest, name_of_largest = 0.0, ""
        for name, parameter in self._named.items():
            tensor = parameter.grad if of_gradients else parameter.detach()
            if tensor is None:
                continue
            is_bad = ~tensor.isfinite()
            if number := int(is_bad.sum()):
                first = float(tensor[is_bad].flatten()[0])
                return f"{name!r} is {first} in {number} of {tensor.numel()} elements"
            if (size := float(tensor.abs().max())) > largest:
                largest, name_of_largest = size, name
        return f"{name_of_largest!r} is as large as {largest:.3g}, and the norm overflows"

    def _diverge(self, what: str, of: str) -> None:
        self._restore()
        raise TrainingDiverged(
            f"training diverged at step {self.num_steps + 1}{of}: {what}. Parameters are those at "
            "which loss and gradient were last finite. Look for data that are not finite or huge, "
            "take a smaller learning rate, or clip the gradient",
            self.losses,
        )

    # Random numbers ------------------------------------------------------------------------------

    @contextmanager
    def _randomness(self) -> Iterator[None]:
        """Draw from the trainer's own stream, where it has a seed."""
        if self.seed is None or self._is_seeded:
            yield
            return
        with torch.random.fork_rng():
            if self._stream is None:
                torch.manual_seed(self.seed)
            else:
                set_random_states(self._stream)
            self._is_seeded = True
            try:
                yield
            finally:
                self._is_seeded = False
                self._stream = random_states()

    def _draws_from(self) -> tuple[list[Tensor], list[tuple[torch.Generator, Tensor]]]:
        """States of the generators that a loss may draw from."""
        own = [one for one in self._stateful if isinstance(one, torch.Generator)]
        return random_states(), [(one, one.get_state()) for one in own]

    # Checkpoints ---------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the training to a file, from which :meth:`load` goes on.

        The file is written whole or not at all.

        :param path: the file.
        :raises CheckpointError: where it cannot be written.
        """
        check_instance("path", path, (str, Path), "a path")
        is_live = self.seed is None or self._is_seeded
        tensors, plain = split(
            {
                **self._tensors(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler and self.scheduler.state_dict(),
                "stateful": [
                    one.get_state() if isinstance(one, torch.Generator) else one.state_dict()
                    for one in self._stateful
                ],
                "random": random_states() if is_live else self._stream,
                "batch_seed": self._batch_seed,
                "losses": torch.tensor(self.losses, dtype=torch.float64),
            }
        )
        content = {"format": _FORMAT, "identity": self._identity, "state": plain}
        write_tensors(Path(path), tensors, content)

    def load(self, path: str | Path) -> None:
        """Go on where the training was that wrote a file.

        :param path: the file.
        :raises CheckpointError: where the file is damaged, or of a training with other parameters
            or settings; the message names them.
        """
        check_instance("path", path, (str, Path), "a path")
        self._take_up(self._read(Path(path)))

    def _read(self, path: Path) -> Any:
        """The state in a file, which is of this training."""
        tensors, content, _ = read_tensors(path)
        if content.get("format") != _FORMAT:
            raise CheckpointError(f"{path} holds no training")
        found = {**content["identity"]}
        if "batches" not in self._identity:
            found.pop("batches", None)
        if unlike := differences(found, self._identity):
            raise CheckpointError(f"{path} is of another training: {'; '.join(unlike[:5])}")
        return joined(tensors, content["state"])

    def _take_up(self, state: Any) -> None:
        """Go on from a state."""
        with torch.no_grad():
            for group, own in self._tensors().items():
                for name, tensor in own.items():
                    tensor.copy_(state[group][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        for one, its in zip(self._stateful, state["stateful"], strict=True):
            one.set_state(its) if isinstance(one, torch.Generator) else one.load_state_dict(its)
        if self.seed is None or self._is_seeded:
            set_random_states(state["random"])
        else:
            self._stream = state["random"]
        self._batch_seed = state["batch_seed"]
        self.losses = state["losses"].tolist()
        self._good = []

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """Parameters, buffers and their averages by name."""
        buffers = {} if self._module is None else dict(self._module.named_buffers())
        averages: dict[str, Tensor] = {}
        if self._averaged is not None:
            averages = {
                **dict(self._averaged.named_parameters()),
                **dict(self._averaged.named_buffers()),
            }
        return {"parameters": self._named, "buffers": buffers, "averages": averages}

    def _container(self) -> nn.Module:
        """The module, or one whose parameters have the memory of the tensors."""
        if self._module is not None:
            return self._module
        return nn.ParameterList(nn.Parameter(p.detach(), False) for p in self._named.values())


def _are_finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _copied(into: list[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors, in the memory of others where they fit."""
    if [(t.shape, t.dtype) for t in into] != [(t.shape, t.dtype) for t in tensors]:
        return [tensor.detach().clone() for tensor in tensors]
    for kept, tensor in zip(into, tensors, strict=True):
        kept.copy_(tensor.detach())
    return into


def _named(values: Any) -> dict[str, Tensor]:
    """Tensors by name."""
    if isinstance(values, nn.Module):
        named: dict[str, Tensor] = {
            name: parameter
            for name, parameter in values.named_parameters()
            if parameter.requires_grad
        }
        if not named:
            raise ValueError(
                "parameters must hold what requires a gradient, got a module without: a guide "
                "makes its own at its first call"
            )
        return named
    pairs = dict(values) if isinstance(values, Mapping) else None
    if pairs is None:
        items = _sequence("parameters", values)
        pairs = {f"parameters[{number}]": value for number, value in enumerate(items)}
    if not pairs or not all(isinstance(value, Tensor) for value in pairs.values()):
        raise TypeError(
            f"parameters must be a module, or tensors in a dict or list, got {shown(values)}"
        )
    return pairs


def _sequence(argument: str, values: Any) -> list[Any]:
    if isinstance(values, Tensor | str) or not isinstance(values, Sequence):
        raise TypeError(f"{argument} must be a list, got {shown(values)}")
    return list(values)
