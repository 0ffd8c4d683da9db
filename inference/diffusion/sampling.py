"""Sampling with a scheduler of diffusers: from noise to latents, all or part of the way."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_ext._lib import checks

Prediction = Callable[[Tensor, Tensor], Tensor]
"""Latents ``(batch, *event)`` and a timestep to what the network predicts of them."""


def check_scheduler(argument: str, scheduler: Any, *fields: str) -> None:
    """Refuse what does not have the fields of a scheduler of diffusers."""
    fields = ("config", *fields)
    missing = [field for field in fields if not hasattr(scheduler, field)]
    if missing or isinstance(scheduler, type):
        raise TypeError(
            f"{argument} must be a scheduler of diffusers with {', '.join(fields)}, got "
            + (
                f"{type(scheduler).__name__} without {', '.join(missing)}"
                if missing
                else "a class: make one of it"
            )
        )


@torch.no_grad()
def denoise(
    predict: Prediction,
    scheduler: Any,
    noise: Tensor,
    num_steps: int = 50,
    *,
    stop: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Take the steps of a scheduler from noise to a sample.

    :param predict: maps latents, of the shape of ``noise``, and a timestep, an integer tensor
        without dimensions, to the prediction that the scheduler expects. For a network with
        guidance, use :func:`guided_prediction`.
    :param scheduler: a scheduler of diffusers. It is copied, not changed.
    :param Tensor noise: standard normal. **Shape:** ``(batch, *event)``.
    :param int num_steps: number of steps of the scheduler.
    :param int stop: number of timesteps of the scheduler to go through; by default all. With zero,
        the result is the noise as the scheduler starts from it. Some schedulers have more timesteps
        than steps.
    :param torch.Generator generator: generator for schedulers that draw noise on the way.
    :returns: latents, of the shape of ``noise``, without a gradient.
    :raises TypeError: for a scheduler without the needed fields.
    :raises FloatingPointError: if the final latents are not finite.

    Example::

        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler(clip_sample=False)
        >>> def predict(z, t):  # data that are normal with a standard deviation of 0.1
        ...     a = scheduler.alphas_cumprod[t]
        ...     return (1 - a).sqrt() * z / (0.01 * a + 1 - a)
        >>> denoise(predict, scheduler, torch.randn(5000, 1)).std().round(decimals=1)
        tensor(0.1000)
    """
    checks.function("predict", predict, "a function of latents and a timestep")
    check_scheduler(
        "scheduler", scheduler, "set_timesteps", "scale_model_input", "step", "init_noise_sigma"
    )
    noise = checks.as_tensor("noise", noise, "(batch, ...)", finite=True)
    checks.optional(
        checks.instance, "generator", generator, torch.Generator, "a torch.Generator or None"
    )
    num_steps = checks.integer("num_steps", num_steps, 1)
    checks.optional(checks.integer, "stop", stop, 0)
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_steps, device=noise.device)
    if stop is not None and stop > len(scheduler.timesteps):
        raise ValueError(
            f"stop must be at most the {len(scheduler.timesteps)} timesteps of the scheduler, got "
            f"{stop}"
        )
    restart = getattr(predict, "restart", None)
    if restart is not None:  # guidance with a memory starts over
        restart()
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": generator} if takes_generator else {}
    latents: Tensor = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps[:stop]:
        output = predict(scheduler.scale_model_input(latents, t), t)
        latents = scheduler.step(output, t, latents, **options).prev_sample
    if not bool(latents.isfinite().all()):
        raise FloatingPointError(
            f"latents are not finite after {len(scheduler.timesteps[:stop])} steps, nor then is "
            "what predict returned on the way"
        )
    return latents
