"""The loop of training."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pyro_ext._lib import checks
from pyro_ext._lib.progress import progress_bar
from pyro_ext.checkpoint.files import CheckpointError, locked
from pyro_ext.inference.training._interrupts import Interrupts
from pyro_ext.inference.training._parameters import (
    are_finite,
    as_list,
    check_methods,
    check_no_closure,
    coalesce_gradients,
    copied,
    forms_of,
    gradients_of,
    named_tensors,
    worst_of,
)
from pyro_ext.inference.training._pyro_optimizer import PyroOptimizer
from pyro_ext.inference.training.batches import ShuffledBatches
from pyro_ext.inference.training.checkpoints import (
    comparable,
    joined,
    random_states,
    read_training,
    set_random_states,
    split,
    write_training,
)
from pyro_ext.inference.training.outcome import TrainingDiverged, warn_of_losses, warn_of_rows
from pyro_ext.posterior.identity import differences
from pyro_ext.random import fresh_seed, spawn_seed

__all__ = ["Loss", "Optimizer", "Parameters", "Trainer", "TrainingDiverged"]

Parameters = nn.Module | Mapping[str, Tensor] | Sequence[Tensor]
Optimizer = Callable[[list[Any]], torch.optim.Optimizer] | PyroOptim
Loss = Callable[..., Tensor | tuple[Tensor, Any]]

_ADAM = partial(torch.optim.Adam, lr=1e-3)


class Trainer:
    r"""Minimizes a loss with the steps of an optimizer.

    A loss is any function that returns a scalar with a gradient in the parameters: the loss of a
    network, ``ELBO.differentiable_loss``, a call of ``Trace_ELBO()(model, guide)``, or a function
    of a dict of tensors as in :mod:`torch.func`. A loss that computes its gradient in another way
    returns both, ``(value, gradients)``.

    :meth:`run` gives a :class:`~pyro_ext.inference.training.TrainingWarning` if training has
    failed: if, after a hundred steps or more, the loss is clearly no lower than at the beginning,
    allowing for its noise, or if rows were lost.

    A step that would lead to numbers that are not finite is not taken: parameters and buffers
    return to where loss and gradient were last finite, and
    :class:`~pyro_ext.inference.training.TrainingDiverged` says what was not finite, and where.
    Generators and buffers are also restored after any other error in a step. If a step fails during
    the update of the optimizer, the optimizer's moments are not restored: restart, or load a
    checkpoint. Ctrl-C ends :meth:`run` after the current step, with a warning, and sets
    ``interrupted``; a second Ctrl-C also ends the step.

    Training resumes where it stopped in the next call of :meth:`run` or :meth:`step` or, from a
    checkpoint, in another process. With the same number of threads it then takes the same course,
    bit for bit, as without the interruption. This includes draws from PyTorch's generators, but not
    from those of NumPy and Python.

    :param parameters: what to train: a module, of which all parameters that require a gradient are
        trained, or tensors in a mapping or sequence. They are changed in place.
    :param optimizer: a function that makes an optimizer of :mod:`torch.optim` from a list of
        tensors, or an optimizer of :mod:`pyro.optim`. It must not need a closure, as L-BFGS does.
    :param Callable scheduler: a function that makes a learning-rate scheduler from the optimizer,
        such as ``partial(CosineAnnealingLR, T_max=1000)``; it takes a step after each step of the
        optimizer.
    :param float max_norm: norm to which the gradient of all parameters together is clipped.
    :param float ema_decay: decay of an exponential moving average of the parameters, which starts
        at their initial values; :attr:`average` holds it.
    :param bool independent_rows: whether the first dimension of each parameter indexes independent
        problems, such as the members of an ensemble. The loss then returns one value per problem,
        the optimizer must work element by element, and a row that is not finite stops only itself.
    :param Sequence stateful: other objects that change during training and belong in a checkpoint:
        generators that the loss draws from, modules, and anything else with ``state_dict`` and
        ``load_state_dict``.
    :param Mapping identity: settings by name, as plain values, which must agree with those of a
        checkpoint. Settings of optimizer, schedule and parameters are compared in any case.
    :param int seed: seed of minibatches and of all draws from PyTorch's global generators, whose
        states are restored afterwards; ``None`` uses the generators as they are.
    :raises TypeError: for arguments of a wrong type.
    :raises ValueError: for numbers out of range, or if there is nothing to train.

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
        self._named = named_tensors(parameters)
        self._module = parameters if isinstance(parameters, nn.Module) else None
        self._is_mapping = isinstance(parameters, Mapping)
        checks.function("optimizer", optimizer, "a function that makes an optimizer of tensors")
        if scheduler is not None:
            checks.function("scheduler", scheduler, "a function that makes one of an optimizer")
            if isinstance(optimizer, PyroOptim):
                raise ValueError("scheduler must be None with one of pyro.optim, which has its own")
        self.max_norm = None if max_norm is None else checks.number("max_norm", max_norm, above=0)
        checks.instance("independent_rows", independent_rows, bool, "True or False")
        self.independent_rows = independent_rows
        if independent_rows and max_norm is not None:
            raise ValueError("max_norm must be None with independent_rows, which it would mix")
        self._stateful = as_list("stateful", stateful)
        for one in self._stateful:
            if not isinstance(one, torch.Generator):
                wanted = "hold what has a state_dict and load_state_dict"
                check_methods("stateful", one, wanted, "state_dict", "load_state_dict")
        self.seed = None if seed is None else fresh_seed(seed)
        self._batch_seed = self.seed
        self._stream: list[Tensor] | None = None
        self._is_seeded = False
        self._last: Tensor | None = None
        self._good: list[Tensor] = []
        self._good_buffers: list[Tensor] = []
        self.losses: list[float] = []
        """The loss of each step, before the step."""
        self.interrupted = False
        """Whether Ctrl-C ended the last run."""
        tensors = list(self._named.values())
        self.optimizer: Any = (
            PyroOptimizer(optimizer, tensors)
            if isinstance(optimizer, PyroOptim)
            else optimizer(tensors)
        )
        methods = ("step", "state_dict", "load_state_dict")
        check_methods("optimizer", self.optimizer, "make an optimizer", "zero_grad", *methods)
        check_no_closure(
            optimizer.pt_optim_constructor if isinstance(optimizer, PyroOptim) else self.optimizer
        )
        self.scheduler = None if scheduler is None else scheduler(self.optimizer)
        if scheduler is not None:
            check_methods("scheduler", self.scheduler, "make a scheduler", *methods)
        self._averaged: AveragedModel | None = None
        if ema_decay is not None:
            ema_decay = checks.number("ema_decay", ema_decay, least=0, below=1)
            self._averaged = AveragedModel(
                self._container(), multi_avg_fn=get_ema_multi_avg_fn(ema_decay)
            )
            self._averaged.update_parameters(self._container())
        if identity is not None:
            checks.mapping("identity", identity, "a dict of plain values by name")
        self._identity: dict[str, Any] = comparable(
            {
                "identity": identity or {},
                "parameters": forms_of(self._named),
                "optimizer": {
                    "kind": type(self.optimizer).__name__,
                    "groups": self.optimizer.state_dict()["param_groups"],
                },
                "scheduler": self.scheduler
                and {"kind": type(self.scheduler).__name__, "state": self.scheduler.state_dict()},
                "max_norm": self.max_norm,
                "ema_decay": ema_decay,
                "independent_rows": independent_rows,
                "stateful": [type(one).__name__ for one in self._stateful],
                "seed": self.seed,
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
        """Number of steps taken so far."""
        return len(self.losses)

    @property
    def average(self) -> Any:
        """Average of the parameters: a copy of the module, or tensors in their original form.

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

        :param Callable loss: returns a scalar, or a scalar and gradients in the form of the
            parameters.
        :param args: arguments of the loss.
        :returns: the loss before the step, which is also the last of :attr:`losses`.
        :raises TrainingDiverged: if loss, gradient or the result of the step is not finite.
        """
        checks.function("loss", loss)
        with self._randomness():
            return self._take_step(partial(loss, *args), "")

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
        """Take steps until ``num_steps`` have been taken in total.

        :param Callable loss: as for :meth:`step`.
        :param int num_steps: total number of steps, including those of earlier calls and of the
            checkpoint.
        :param batches: provides the arguments of the loss:
            :class:`~pyro_ext.inference.training.ShuffledBatches`, whose rows are the arguments; or
            a function of a seed, which is a new one at each step, whose result is the single
            argument. Without it, the loss has no argument.
        :param checkpoint: a file in which the training is saved along the way and at the end. If it
            exists, training resumes from it. Loading it executes no code.
        :param int save_every: number of steps between saves.
        :param bool progress: whether to show a progress bar.
        :param str description: text at the start of the progress bar.
        :returns: the losses of all steps, which are also in :attr:`losses`.
        :raises TrainingDiverged: as for :meth:`step`; the checkpoint stays as it was last saved.
        :raises CheckpointError: if the file is damaged, belongs to another training, or is being
            written.
        """
        checks.function("loss", loss)
        num_steps = checks.integer("num_steps", num_steps, 0)
        save_every = checks.integer("save_every", save_every, 1)
        checks.instance("progress", progress, bool, "True or False")
        checks.instance("description", description, str, "a string")
        if batches is not None and not isinstance(batches, ShuffledBatches):
            checks.function("batches", batches, "ShuffledBatches, or a function of a seed")
        identity: dict[str, Any] = {}
        start = self.num_steps
        if checkpoint is not None:
            checks.instance("checkpoint", checkpoint, (str, Path), "a path or None")
            checkpoint = Path(checkpoint)
            if isinstance(batches, ShuffledBatches):
                identity = {"batches": batches.identity()}
        with locked(checkpoint):
            if checkpoint is not None and checkpoint.exists():
                state = self._read(checkpoint, identity)
                if len(state["losses"]) > self.num_steps:
                    self._take_up(state, checkpoint)
            num_saved = self.num_steps
            bar = progress_bar(
                total=num_steps,
                initial=num_saved,
                desc=description,
                unit="step",
                disable=not progress,
            )
            self.interrupted = False
            with self._randomness(), bar, Interrupts() as interrupts:
                while self.num_steps < num_steps and not interrupts.are_pending:
                    if batches is not None and self._batch_seed is None:
                        self._batch_seed = fresh_seed(None)
                    try:
                        value = self._take_step(
                            lambda: loss(*self._batch(batches)),
                            f" of {num_steps}",
                            interrupts.held_back,
                        )
                    except KeyboardInterrupt:
                        self.interrupted = True
                        break
                    bar.set_postfix_str(f"loss {value:.4g}", refresh=False)
                    bar.update()
                    if checkpoint is not None and self.num_steps % save_every == 0:
                        self._write(checkpoint, identity)
                        num_saved = self.num_steps
                if checkpoint is not None and num_saved != self.num_steps:
                    self._write(checkpoint, identity)
        self.interrupted |= interrupts.are_pending  # it may have come in the last step
        if self.interrupted:
            warnings.warn(
                f"stopped after {self.num_steps} of {num_steps} steps, which are kept", stacklevel=2
            )
        elif self.num_steps > start:
            warn_of_losses(self.losses[start:])
            if self.independent_rows and self._last is not None:
                warn_of_rows(self._last)
        return self.losses

    def _batch(self, batches: "ShuffledBatches | Callable[[int], Any] | None") -> tuple[Any, ...]:
        """Arguments of the loss at the next step."""
        if batches is None:
            return ()
        assert self._batch_seed is not None
        if isinstance(batches, ShuffledBatches):
            return batches.batch(self.num_steps, self._batch_seed)
        return (batches(spawn_seed(self._batch_seed, 1, self.num_steps)),)

    def _take_step(
        self,
        loss: Loss,
        of: str,
        held_back: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> float:
        """Take a whole step, or none where anything is raised; the loss before it."""
        own = [one for one in self._stateful if isinstance(one, torch.Generator)]
        before = random_states(), [one.get_state() for one in own]
        try:
            value = self._gradient(loss, of)
            with held_back():
                self._update(value, of)
        except BaseException:
            set_random_states(before[0])
            for generator, its in zip(own, before[1], strict=True):
                generator.set_state(its)
            self._restore(parameters=False)
            raise
        return value

    def _gradient(self, loss: Loss, of: str) -> float:
        """Leave finite gradients at the parameters, and return the loss."""
        parameters = list(self._named.values())
        if not self._good:
            self._keep()
            self._good_buffers = copied([], self._buffers())
        for parameter in parameters:
            parameter.grad = None
        self.optimizer.zero_grad()  # it may hold more than the parameters, such as a learning rate
        result: Any = loss()
        is_pair = isinstance(result, tuple) and len(result) == 2
        value, gradients = result if is_pair else (result, None)
        # The last loss lives until there is another one, or its memory goes back to the system and
        # comes again at every step.
        self._last = value
        is_scalar = isinstance(value, Tensor) and value.numel() == 1
        if not (is_scalar or (self.independent_rows and isinstance(value, Tensor))):
            raise ValueError(f"loss must return a scalar tensor, got {checks.shown(value)}")
        number = float(value.detach().nanmean())
        if not self.independent_rows and not math.isfinite(number):
            self._diverge(f"the loss is {number}", of)
        if gradients is not None:
            wanted = gradients_of(gradients, self._named)
            for parameter, gradient in zip(parameters, wanted, strict=True):
                parameter.grad = gradient
        elif value.requires_grad:
            value.sum().backward()
        else:
            raise ValueError("loss must depend on the parameters, got a value without a gradient")
        if not self.independent_rows:
            norm = get_total_norm(coalesce_gradients(parameters))
            if not math.isfinite(float(norm)):
                worst = worst_of({name: p.grad for name, p in self._named.items()})
                self._diverge(f"the gradient of {worst}", of)
            if self.max_norm is not None:
                clip_grads_with_norm_(parameters, self.max_norm, norm)
            self._keep()
        return number

    def _update(self, value: float, of: str) -> None:
        """Let optimizer, schedule and average take a step."""
        schedule = self._schedule()
        try:
            self.optimizer.step()
            if not self.independent_rows:
                tensors = [parameter.detach() for parameter in self._named.values()]
                # The norm is fast, and may overflow where no number does.
                if not (bool(get_total_norm(tensors).isfinite()) or are_finite(tensors)):
                    self._diverge(f"after the update {worst_of(self._named)}", of)
            if isinstance(self.scheduler, ReduceLROnPlateau):
                self.scheduler.step(value)
            elif self.scheduler is not None:
                self.scheduler.step()
            if self._averaged is not None:
                self._averaged.update_parameters(self._container())
        except BaseException:
            self._restore()
            if self.scheduler is not None:
                self.scheduler.load_state_dict(schedule[0])
                for group, settings in zip(self.optimizer.param_groups, schedule[1], strict=True):
                    group.update(settings)
            raise
        self._good_buffers = copied(self._good_buffers, self._buffers())
        self.losses.append(value)

    def _schedule(self) -> tuple[Any, list[dict[str, Any]]]:
        """State of the scheduler, and the settings of the optimizer that it changes."""
        if self.scheduler is None:
            return None, []
        groups = [
            {n: v for n, v in g.items() if n != "params"} for g in self.optimizer.param_groups
        ]
        return self.scheduler.state_dict(), copy.deepcopy(groups)

    # What is not finite --------------------------------------------------------------------------

    def _buffers(self) -> list[Tensor]:
        return [] if self._module is None else list(self._module.buffers())

    def _keep(self) -> None:
        """Copy the parameters, at which loss and gradient are finite."""
        if not self.independent_rows:
            self._good = copied(self._good, list(self._named.values()))

    @torch.no_grad()
    def _restore(self, *, parameters: bool = True) -> None:
        """Put back good parameters, and the buffers after the last whole step."""
        pairs = list(zip(self._buffers(), self._good_buffers, strict=False))
        if parameters and not self.independent_rows:
            pairs += zip(self._named.values(), self._good, strict=True)
        for tensor, kept in pairs:
            tensor.copy_(kept)

    def _diverge(self, what: str, of: str) -> None:
        self._restore()
        raise TrainingDiverged(
            f"training diverged at step {self.num_steps + 1}{of}: {what}. Parameters are those at "
            "which loss and gradient were last finite. Look for data that are not finite or huge, "
            "use a smaller learning rate, or clip the gradient",
            self.losses,
        )

    # Random numbers ------------------------------------------------------------------------------

    @contextmanager
    def _randomness(self) -> Iterator[None]:
        """Draw from the trainer's own stream, where it has a seed."""
        if self.seed is None or self._is_seeded:
            yield
            return
        # Without a list of devices it warns where there are several.
        with torch.random.fork_rng(range(torch.accelerator.device_count())):
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

    # Checkpoints ---------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Save the training to a file, from which :meth:`load` resumes.

        The file is written completely or not at all.

        :param path: path of the file.
        :raises CheckpointError: if the file cannot be written.
        """
        checks.instance("path", path, (str, Path), "a path")
        self._write(Path(path), {})

    def load(self, path: str | Path) -> None:
        """Resume the training that was saved to a file.

        :param path: path of the file.
        :raises CheckpointError: if the file is damaged, or belongs to a training with other
            parameters or settings; the message names them.
        """
        checks.instance("path", path, (str, Path), "a path")
        self._take_up(self._read(Path(path), {}), Path(path))

    def _described(self, more: Mapping[str, Any]) -> dict[str, Any]:
        """Describe the settings and buffers that a checkpoint is compared by."""
        return {**self._identity, "buffers": forms_of(self._tensors()["buffers"]), **more}

    def _write(self, path: Path, more: Mapping[str, Any]) -> None:
        write_training(path, self._described(more), self._state())

    def _read(self, path: Path, more: Mapping[str, Any]) -> Any:
        """The state in a file, which is of this training."""
        found, state = read_training(path)
        own = self._described(more)
        for one, other in ((found, own), (own, found)):
            if "batches" not in other:
                one.pop("batches", None)
        if unlike := differences(found, own):
            raise CheckpointError(f"{path} is of another training: {'; '.join(unlike[:5])}")
        return state

    def _state(self) -> dict[str, Any]:
        """All that changes in training."""
        is_live = self.seed is None or self._is_seeded
        return {
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

    def _take_up(self, state: Any, path: Path) -> None:
        """Go on from the state in a file, or leave everything as it was where it does not fit."""
        before = joined(*split(self._state()))
        try:
            self._put(state)
        except Exception as error:
            self._put(before)
            raise CheckpointError(f"{path} is of another training: {error}") from error

    def _put(self, state: Any) -> None:
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
