"""Fine-tuning of diffusion models under a schedule of exits."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.inference.diffusion import noise_prediction_loss
from pyro_ext.inference.diffusion.sampling import check_scheduler
from pyro_ext.inference.training import ShuffledBatches, Trainer, TrainingOptions
from pyro_ext.models.diffusion.early_exit import EarlyExit

_ADAMW = partial(torch.optim.AdamW, lr=1e-5, weight_decay=0.0)


class AdaptiveScoreFineTuner:
    r"""Tunes a copy of a diffusion model to predict noise at the exits of its schedule.

    .. math:: \frac1B \sum_i \Bigl(\frac{L}{n(t_i)}\Bigr)^p \frac1d
        \Vert \epsilon_i - \epsilon^{(n(t_i))}(x_{t_i}, t_i, y_i) \Vert^2,
        \qquad t_i \sim \mathrm{Uniform}

    The embedding of the timestep is not trained, and the result is an average over the steps [1].
    Only the prediction of the noise is tuned: channels for a learned variance have no loss. Modes
    and dropout are those of the module. For classifier-free guidance, leave out some of the classes
    or prompts in the arguments of :meth:`step`, or let the module do it in training mode.

    :param module: for example ``pipeline.transformer``; it is not changed.
    :param scheduler: a scheduler of diffusers, with ``alphas_cumprod``.
    :param schedule: as for :class:`EarlyExit`, like ``blocks`` and ``timestep``.
    :param blocks: the attribute with the list of blocks, or several.
    :param float weight_power: :math:`p`; above zero, timesteps with fewer blocks have more weight.
    :param Sequence freeze: names of submodules, anywhere in the module, that are not trained.
    :param optimizer: as for :class:`~pyro_ext.inference.Trainer`, like ``seed``.
    :param float ema_decay: decay of the average. It remembers about ``1 / (1 - ema_decay)`` steps;
        after fewer steps, the average is hardly tuned.
    :param int seed: seed of timesteps, noise and minibatches.
    :param str timestep: name of the timestep argument of ``module.forward``.
    :raises TypeError: for arguments of a wrong type.
    :raises ValueError: as for :class:`EarlyExit`, or if a name in ``freeze`` does not exist.

    [1] T. Moon, M. Choi, E. Yun, J. Yoon, G. Lee, J. Cho, J. Lee (2024), A simple early exiting
    framework for accelerated sampling in diffusion models.

    Example::

        >>> from pyro_ext.models.diffusion import ExitSchedule, digit_images
        >>> from pyro_ext.models.diffusion import digit_transformer_pipeline
        >>> pipeline = digit_transformer_pipeline(num_steps=0)
        >>> tuner = AdaptiveScoreFineTuner(
        ...     pipeline.transformer, pipeline.scheduler, ExitSchedule.linear(8, 4),
        ...     ema_decay=0.99, seed=0)
        >>> images, digits = digit_images()
        >>> losses = tuner.run(ShuffledBatches(images, digits, batch_size=4), 2, progress=False)
        >>> pipeline.transformer = tuner.average
        >>> pipeline([7], num_inference_steps=2, output_type="pt").images.shape
        torch.Size([1, 1, 8, 8])
    """

    def __init__(
        self,
        module: nn.Module,
        scheduler: Any,
        schedule: Callable[[Tensor], Tensor],
        blocks: str | Sequence[str] = "transformer_blocks",
        *,
        weight_power: float = 0.0,
        freeze: Sequence[str] = ("timestep_embedder",),
        optimizer: Any = _ADAMW,
        ema_decay: float = 0.9999,
        seed: int | None = None,
        timestep: str = "timestep",
    ) -> None:
        check_scheduler("scheduler", scheduler, "alphas_cumprod")
        if "num_train_timesteps" not in scheduler.config:
            raise TypeError("scheduler must have num_train_timesteps in its config, got none")
        self.scheduler, self._timestep = scheduler, timestep
        self.weight_power = checks.number("weight_power", weight_power, least=0)
        checks.number("ema_decay", ema_decay, least=0, below=1)
        names = checks.sequence("freeze", freeze, "names of submodules", 0, str)
        checks.instance("module", module, nn.Module, "a module")
        found = [name for name, _ in module.named_modules() if name.rpartition(".")[2] in names]
        if missing := set(names) - {name.rpartition(".")[2] for name in found}:
            raise ValueError(f"freeze must name submodules of module, got {sorted(missing)}")
        self.module = EarlyExit.wrap(module, schedule, blocks, timestep=timestep).requires_grad_()
        for name in found:
            self.module.get_submodule(name).requires_grad_(False)
        self.trainer = Trainer(
            self.module,
            optimizer,
            ema_decay=ema_decay,
            seed=seed,
            identity={"weight_power": self.weight_power},
        )

    @property
    def average(self) -> Any:
        """The tuned module: the average over the steps, with its own exits."""
        return self.trainer.average

    def step(self, x: Tensor, *conditions: Any, **named: Any) -> float:
        """Take one step.

        :param Tensor x: data, images or latents. **Shape:** ``(batch, *event)``.
        :param conditions: further arguments of the module, such as classes, in the order of its
            arguments without data and timestep.
        :param named: further arguments by name.
        :returns: the loss before the step.
        :raises TrainingDiverged: if something is not finite.
        """
        return self.trainer.step(partial(self.loss, **named), x, *conditions)

    def run(
        self, batches: ShuffledBatches, num_steps: int, **training: Unpack[TrainingOptions]
    ) -> list[float]:
        """Take steps until ``num_steps`` have been taken in total.

        :param ShuffledBatches batches: minibatches of data and conditions, see :meth:`step`.
        :param int num_steps: total number of steps.
        :param training: options of :class:`~pyro_ext.inference.training.TrainingOptions`.
        :returns: the losses of all steps.
        :raises TrainingDiverged: as for :meth:`step`.
        """
        checks.instance("batches", batches, ShuffledBatches, "ShuffledBatches")
        description = "Fine-tuning"
        return self.trainer.run(self.loss, num_steps, batches, description=description, **training)

    def loss(self, x: Tensor, *conditions: Any, **named: Any) -> Tensor:
        """Compute the loss at random timesteps, with a gradient.

        :param Tensor x: data, as for :meth:`step`.
        :param conditions: as for :meth:`step`.
        :param named: as for :meth:`step`.
        """
        checks.instance("x", x, Tensor, "a tensor")
        if not (x.is_floating_point() and x.dim() > 1 and x.numel()):
            raise ValueError(f"x must be a batch of floating-point numbers, got {checks.shown(x)}")
        checks.has_values("x", x)
        checks.all_finite("x", x)
        x = x.to(next(self.module.parameters()))
        exits: Any = self.module.early_exit
        _, *names = inspect.signature(self.module.forward).parameters
        names.remove(self._timestep)
        if len(conditions) > len(names):
            raise ValueError(
                f"conditions must be at most {len(names)}, for {names}, got {len(conditions)}"
            )
        given = dict(zip(names, conditions, strict=False)) | named
        num_timesteps = self.scheduler.config["num_train_timesteps"]
        t = torch.randint(num_timesteps, x.shape[:1], device=x.device)
        weights = (exits.num_blocks / exits.schedule(t)) ** self.weight_power

        def predict(z: Tensor, t: Tensor) -> Tensor:
            output = self.module(z, **{self._timestep: t}, **given)
            prediction: Tensor = output if isinstance(output, Tensor) else output[0]
            return prediction[:, : x.shape[1]]

        noise = torch.randn_like(x)
        return noise_prediction_loss(predict, self.scheduler, x, t, noise, weights)
