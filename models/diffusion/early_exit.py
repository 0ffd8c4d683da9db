r"""Early exit: diffusion transformers that run fewer blocks where there is more noise.

Near pure noise, a few blocks predict the noise as well as all of them. With a fixed schedule, the
first :math:`n(t)` of :math:`L` blocks run at timestep :math:`t`, and the single final layer takes
what they return [1]:

.. math:: \epsilon^{(n)} = F(B_n(\dots B_1(h_0)), c)

Solvers and pipelines stay as they are. A schedule saves time at once, but to lose no quality, the
model must be tuned under its schedule, with
:class:`~pyro_ext.models.diffusion.AdaptiveScoreFineTuner`.

[1] T. Moon, M. Choi, E. Yun, J. Yoon, G. Lee, J. Cho, J. Lee (2024), A simple early exiting
framework for accelerated sampling in diffusion models.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.models.diffusion.exit_schedule import ExitSchedule

_Module = TypeVar("_Module", bound=nn.Module)
_Schedule = Callable[[Tensor], Tensor]


class EarlyExit:
    r"""Changes a module so that its blocks run by a schedule, until :meth:`EarlyExit.remove`.

    :meth:`wrap` does the same to a copy. The module keeps its class and its parameters, with the
    same names: it works in pipelines, and is trained and saved as before. Schedules are not saved
    with it. With all blocks in the schedule, its output is the same as before, bit for bit.

    Samples of one batch may have different timesteps, and each leaves after its own number of
    blocks. A block runs for all samples or, if none needs it any more, not at all. Three kinds of
    blocks are supported:

    - Those of a transformer, each of which receives what the previous one returned, one tensor or
      several.
    - Those of a U-ViT, where blocks of the second half merge the state with an earlier one by their
      ``skip_linear`` [1], which they do even if they do not run. The first half always runs, and
      schedules must not ask for less.
    - The analog in a U-Net of diffusers, with ``blocks="up_blocks"``: each pair of a residual block
      and an attention is a block. If a pair does not run, only the convolution that merges channels
      remains. The first residual block of each up block always runs, as does the rest of the
      network.

    :param module: for example ``pipeline.transformer``. Existing exits are replaced.
    :param schedule: an :class:`ExitSchedule`, or any function from a tensor of timesteps to as many
        integers.
    :param blocks: the attribute with the list of blocks; or several attributes, in the order in
        which they run, such as ``("transformer_blocks", "single_transformer_blocks")`` for Flux.
    :param str timestep: name of the timestep argument of ``module.forward``: a number, or one for
        each sample.
    :ivar schedule: the schedule.
    :ivar int num_blocks: number of blocks.
    :ivar int num_block_calls: number of blocks that have run so far, which you may reset to zero. A
        call for a batch counts once.
    :raises TypeError: for arguments of a wrong type.
    :raises ValueError: for blocks or arguments that the module does not have, or a schedule with
        too few or too many blocks.

    [1] F. Bao, S. Nie, K. Xue, Y. Cao, C. Li, H. Su, J. Zhu (2023), All are worth words: a ViT
    backbone for diffusion models.

    Example::

        >>> from pyro_ext.models.diffusion import digit_transformer_pipeline
        >>> pipeline = digit_transformer_pipeline(num_steps=0)
        >>> exits = EarlyExit(pipeline.transformer, ExitSchedule.linear(8, 4))
        >>> images = pipeline([7], num_inference_steps=20, output_type="pt").images
        >>> exits.num_block_calls, 20 * exits.num_blocks
        (120, 160)
    """

    def __init__(
        self,
        module: nn.Module,
        schedule: _Schedule,
        blocks: str | Sequence[str] = "transformer_blocks",
        *,
        timestep: str = "timestep",
    ) -> None:
        units, least = _checked(module, schedule, blocks, timestep)
        self.schedule, self.num_blocks, self.num_block_calls = schedule, len(units), 0
        self._least, self._timestep = least, timestep
        self._arguments = [*inspect.signature(module.forward).parameters]
        if isinstance(old := getattr(module, "early_exit", None), EarlyExit):
            old.remove()
        self._module = module
        self._gates = [
            _Gate(self, index, number == 0, part, left)
            for index, unit in enumerate(units)
            for number, (part, left) in enumerate(unit)
        ]
        # Pipelines look at the signature, which a wrapper keeps.
        run = functools.update_wrapper(functools.partial(self._run), module.forward)
        self._forwards = [(module, run), *((gate.module, gate) for gate in self._gates)]
        for one, _ in self._forwards:
            if "forward" in one.__dict__:
                raise ValueError(
                    "module must have the forward of its class, got another in "
                    f"{type(one).__name__}: make exits before hooks, as those of offloading"
                )
        for one, forward in self._forwards:
            one.__dict__["forward"] = forward
        module.__dict__["early_exit"] = self

    @classmethod
    def wrap(
        cls,
        module: _Module,
        schedule: _Schedule,
        blocks: str | Sequence[str] = "transformer_blocks",
        *,
        timestep: str = "timestep",
    ) -> _Module:
        """Copy a module, with exits in the attribute ``early_exit`` of the copy.

        :param module: the module, which is not changed.
        :param schedule: as for the class, like the other arguments.
        :param blocks: the attribute with the list of blocks, or several.
        :param str timestep: name of the timestep argument.

        Example::

            >>> from pyro_ext.models.diffusion import digit_transformer_pipeline
            >>> pipeline = digit_transformer_pipeline(num_steps=0)
            >>> schedule = ExitSchedule.linear(8, 4)
            >>> pipeline.transformer = EarlyExit.wrap(pipeline.transformer, schedule)
            >>> images = pipeline([7], num_inference_steps=20, output_type="pt").images
            >>> pipeline.transformer.early_exit.num_block_calls
            120
        """
        _checked(module, schedule, blocks, timestep)
        module = copy.deepcopy(module)
        cls(module, schedule, blocks, timestep=timestep)
        return module

    def remove(self) -> None:
        """Restore the module."""
        for module, forward in self._forwards:
            if module.__dict__.get("forward") is forward:
                del module.__dict__["forward"]
        if getattr(self._module, "early_exit", None) is self:
            del self._module.__dict__["early_exit"]

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's ``forward``, with the depth of each sample set by the schedule."""
        if torch.is_grad_enabled() and getattr(self._module, "is_gradient_checkpointing", False):
            raise ValueError(
                "module must run without gradient checkpointing, which runs blocks once more where "
                "their timestep is not known: call module.disable_gradient_checkpointing()"
            )
        given = dict(zip(self._arguments, args, strict=False)) | kwargs
        t = checks.as_tensor(self._timestep, given.get(self._timestep))
        if t.dim() > 1:
            raise ValueError(
                f"{self._timestep} must be a number, or one for each sample, got {checks.shown(t)}"
            )
        depths = checks.as_tensor("schedule", self.schedule(t), kind="integers")
        if depths.shape != t.shape:
            raise ValueError(
                f"schedule must return as many integers as timesteps, {(*t.shape,)}, got "
                f"{(*depths.shape,)}"
            )
        least, most = (int(depth) for depth in torch.aminmax(depths))
        _check_depths(least, most, self._least, self.num_blocks)
        token = _CALL.set(_Call(self, depths, least, most))
        try:
            return type(self._module).forward(self._module, *args, **kwargs)
        finally:
            _CALL.reset(token)


@dataclass
class _Call:
    """A call of a module under way: how deep each sample goes, and what the last block returned."""

    exits: EarlyExit
    depths: Tensor
    least: int
    most: int
    returned: Any = None


_CALL: ContextVar[_Call | None] = ContextVar("_CALL", default=None)
_Left = Callable[["_Gate", _Call, tuple[Any, ...], dict[str, Any]], Any]


class _Gate:
    """Forward of a block, which runs it for the samples that have not exited."""

    def __init__(
        self, exits: EarlyExit, index: int, counts: bool, module: nn.Module, left: _Left
    ) -> None:
        self.exits, self.index, self.counts = exits, index, counts
        self.module, self.left = module, left
        self.first = next(iter(inspect.signature(module.forward).parameters))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = _CALL.get()
        if call is None or call.exits is not self.exits:  # the block is called on its own
            return self._forward(*args, **kwargs)
        returned = None
        if self.index < call.most:
            self.exits.num_block_calls += self.counts
            returned = self._forward(*args, **kwargs)
        if self.index >= call.least:
            unchanged = self.left(self, call, args, kwargs)
            is_mixed = self.index < call.most
            returned = self._by_sample(call, returned, unchanged) if is_mixed else unchanged
        call.returned = returned
        return returned

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        return type(self.module).forward(self.module, *args, **kwargs)

    def state(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The first argument."""
        state: Tensor = args[0] if args else kwargs[self.first]
        return state

    def _by_sample(self, call: _Call, returned: Any, unchanged: Any) -> Any:
        if returned is None:  # the last block of SD3 returns no text states
            return None
        if not isinstance(returned, Tensor):
            pairs = zip(returned, unchanged, strict=True)
            return tuple(self._by_sample(call, *pair) for pair in pairs)
        if len(returned) != len(call.depths):
            raise ValueError(
                f"{self.exits._timestep} must have one entry for each of {len(returned)} samples, "
                f"got {len(call.depths)}"
            )
        stays = (call.depths > self.index).to(returned.device)
        return torch.where(stays.view(-1, *[1] * (returned.dim() - 1)), returned, unchanged)


# What a block that does not run returns -----------------------------------------------------------


def _passed(gate: _Gate, call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the output of the previous block."""
    if isinstance(call.returned, Tensor):
        return gate.state(args, kwargs)
    given = {id(value) for value in (*args, *kwargs.values())}
    if not all(id(value) in given for value in call.returned):
        raise ValueError(
            f"blocks must be given what the one before returned, which block {gate.index} is not"
        )
    return call.returned


def _merged(gate: _Gate, call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The state merged with an earlier one."""
    skip = kwargs["skip"] if "skip" in kwargs else args[1]
    both = torch.cat([gate.state(args, kwargs), skip], -1)
    norm: Any = getattr(gate.module, "skip_norm", nn.Identity())
    linear: Any = gate.module.skip_linear
    return linear(norm(both))


def _shortcut(gate: _Gate, call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute the shortcut branch of a residual block."""
    resnet: Any = gate.module
    x = gate.state(args, kwargs)
    return (x if resnet.conv_shortcut is None else resnet.conv_shortcut(x)) / (
        resnet.output_scale_factor
    )


def _unattended(gate: _Gate, call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The argument of an attention."""
    x = gate.state(args, kwargs)
    return x if kwargs.get("return_dict", True) else (x,)


def _checked(
    module: nn.Module, schedule: _Schedule, blocks: str | Sequence[str], timestep: str
) -> tuple[list[list[tuple[nn.Module, _Left]]], int]:
    """The blocks, and how many of them always run."""
    checks.instance("module", module, nn.Module, "a module")
    wanted = "an ExitSchedule or a function of timesteps"
    checks.function("schedule", schedule, wanted, or_class=False)
    names = [blocks] if isinstance(blocks, str) else blocks
    names = checks.sequence("blocks", names, "the name of an attribute, or several", 1, str)
    checks.instance("timestep", timestep, str, "the name of an argument of module.forward")
    arguments = list(inspect.signature(module.forward).parameters)
    if timestep not in arguments:
        raise ValueError(
            f"timestep must be an argument of module.forward, one of {arguments}, got {timestep!r}"
        )
    units = [unit for name in names for unit in _units(module, name)]
    if not units:
        raise ValueError(f"blocks must name modules, at least one, got {blocks!r} without any")
    merging = [index for index, ((_, left), *_) in enumerate(units) if left is _merged]
    least = max([1, *merging[:1]])
    if isinstance(schedule, ExitSchedule):
        _check_depths(min(schedule.depths), max(schedule.depths), least, len(units))
    return units, least


def _check_depths(least: int, most: int, lower: int, upper: int) -> None:
    if least < lower or most > upper:
        raise ValueError(
            f"schedule must ask for {lower} to {upper} blocks, got "
            f"{least if least < lower else most}"
        )


def _units(module: nn.Module, name: str) -> Iterator[list[tuple[nn.Module, _Left]]]:
    """Modules that run together or not, and what is left of each where it does not."""
    try:
        part = module.get_submodule(name)
    except AttributeError:
        raise ValueError(
            f"blocks must name a list of modules in {type(module).__name__}, got {name!r}"
        ) from None
    for block in part if isinstance(part, nn.ModuleList) else [part]:
        if isinstance(block, nn.ModuleList | nn.ModuleDict):
            raise ValueError(f"blocks must be modules that are called, got {name!r} of lists")
        if hasattr(block, "resnets"):
            yield from _pairs(block, name)
        else:
            merges = getattr(block, "skip_linear", None) is not None
            yield [(block, _merged if merges else _passed)]


def _pairs(block: Any, name: str) -> Iterator[list[tuple[nn.Module, _Left]]]:
    """Pairs of a residual block, but for the first one, and an attention."""
    attentions = getattr(block, "attentions", None) or []
    for number, (resnet, attention) in enumerate(zip_longest(block.resnets, attentions)):
        unit: list[tuple[nn.Module, _Left]] = []
        if number:
            changes_size = getattr(resnet, "upsample", 0) or getattr(resnet, "downsample", 0)
            if changes_size or not hasattr(resnet, "conv_shortcut"):
                raise ValueError(
                    f"blocks must have residual blocks as UNet2DModel has, got {name!r} with "
                    f"{type(resnet).__name__}"
                )
            unit.append((resnet, _shortcut))
        if attention is not None:
            unit.append((attention, _unattended))
        if unit:
            yield unit
