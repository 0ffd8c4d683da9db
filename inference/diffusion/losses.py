"""The loss for training diffusion models."""

from typing import Any

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.diffusion.sampling import Prediction, check_scheduler


def noise_prediction_loss(
    predict: Prediction,
    scheduler: Any,
    x: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    r"""Weighted mean squared error of the predicted noise, at noisy data.

    .. math:: \frac1B \sum_i w_i \frac1d \Vert \epsilon_i
        - \epsilon_\theta(\sqrt{\bar\alpha_{t_i}} x_i + \sqrt{1 - \bar\alpha_{t_i}} \epsilon_i, t_i)
        \Vert^2

    If the scheduler's ``prediction_type`` is ``v_prediction`` or ``sample``, that is the target
    instead.

    :param predict: maps noisy data and timesteps of shape ``(batch,)`` to the prediction, with the
        gradient that is needed.
    :param scheduler: a scheduler of diffusers. Only its ``alphas_cumprod`` and prediction type
        matter: in training, every scheduler adds noise in the same way.
    :param Tensor x: data, images or latents. **Shape:** ``(batch, *event)``.
    :param Tensor timesteps: integers below ``num_train_timesteps``. **Shape:** ``(batch,)``.
    :param Tensor noise: standard normal. **Shape:** as ``x``.
    :param Tensor weights: :math:`w`, by default ones. **Shape:** ``(batch,)``.
    :returns: the loss, a scalar.
    :raises TypeError: for a scheduler without the needed fields.
    :raises ValueError: for shapes that do not fit, or an unknown prediction type.

    Example::

        >>> from diffusers import DDIMScheduler
        >>> x, noise = torch.ones(6, 1, 8, 8), torch.randn(6, 1, 8, 8)
        >>> t = torch.randint(1000, (6,))
        >>> float(noise_prediction_loss(lambda z, t: noise, DDIMScheduler(), x, t, noise))
        0.0
    """
    checks.function("predict", predict, "a function of noised data and timesteps")
    check_scheduler("scheduler", scheduler, "alphas_cumprod")
    x = checks.as_tensor("x", x, "(batch, ...)")
    timesteps = checks.as_tensor("timesteps", timesteps, "(batch,)", kind="integers")
    noise = checks.as_tensor("noise", noise, "(batch, ...)")
    weights = checks.optional(checks.as_tensor, "weights", weights, "(batch,)")
    if noise.shape != x.shape:
        raise ValueError(f"noise must have the shape of x, {(*x.shape,)}, got {(*noise.shape,)}")
    for name, row in (("timesteps", timesteps), ("weights", weights)):
        if row is not None and row.shape != x.shape[:1]:
            raise ValueError(f"{name} must have the shape {(*x.shape[:1],)}, got {(*row.shape,)}")
    num_timesteps = scheduler.config.num_train_timesteps
    if not bool(((timesteps >= 0) & (timesteps < num_timesteps)).all()):
        raise ValueError(
            f"timesteps must be from 0 to {num_timesteps - 1}, got {int(timesteps.min())} to "
            f"{int(timesteps.max())}"
        )
    # Schedulers for few steps have an add_noise for these, which is another one.
    alphas = scheduler.alphas_cumprod.to(x)[timesteps].reshape(-1, *[1] * (x.dim() - 1))
    signal, spread = alphas.sqrt(), (1.0 - alphas).sqrt()
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind == "epsilon":
        target = noise
    elif kind == "v_prediction":
        target = signal * noise - spread * x
    elif kind == "sample":
        target = x
    else:
        raise ValueError(
            "scheduler must predict 'epsilon', 'v_prediction' or 'sample', its prediction_type is "
            f"{kind!r}"
        )
    output = predict(signal * x + spread * noise, timesteps)
    if output.shape != x.shape:
        raise ValueError(
            f"predict must return the shape of x, {(*x.shape,)}, got {(*output.shape,)}"
        )
    losses = (output - target).square().flatten(1).mean(1)
    return losses.mean() if weights is None else torch.dot(losses, weights.to(losses)) / len(x)
