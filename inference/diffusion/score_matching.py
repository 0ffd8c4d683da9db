"""Scores of noisy data, learned by denoising or taken from a diffusion model."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from pyro_ext._lib import checks
from pyro_ext.inference.diffusion.sampling import check_scheduler


class NoiseConditionalScore(nn.Module):
    r"""Scores at several noise levels, from one network that does not know the level [1].

    At level :math:`\sigma_i`, the score of the noisy data is
    :math:`s(x, \sigma_i) = f(x) / \sigma_i`. Levels form a geometric sequence from the largest to
    the smallest. The network is trained by denoising score matching [2]: pass :meth:`loss` to
    :class:`~pyro_ext.inference.Trainer`.

    :param torch.nn.Module network: maps data ``(n, *event)`` to the same shape.
    :param float largest: the first noise level, which is the largest standard deviation.
    :param float smallest: the last noise level.
    :param int num_levels: number of levels.
    :ivar Tensor levels: the levels. **Shape:** ``(num_levels,)``.
    :raises ValueError: for levels out of range.

    [1] Y. Song, S. Ermon (2020), Improved techniques for training score-based generative models.

    [2] P. Vincent (2011), A connection between score matching and denoising autoencoders.

    Example::

        >>> from pyro_ext.inference import Trainer
        >>> from pyro_ext.inference.training import ShuffledBatches
        >>> x = 0.5 * torch.randn(500, 2)
        >>> model = NoiseConditionalScore(torch.nn.Linear(2, 2), 1.0, 0.5, num_levels=3)
        >>> losses = Trainer(model, seed=0).run(
        ...     model.loss, 10, ShuffledBatches(x, batch_size=100), progress=False)
        >>> model.levels, model.score(x, level=2).shape
        (tensor([1.0000, 0.7071, 0.5000]), torch.Size([500, 2]))
    """

    levels: Tensor

    def __init__(
        self, network: nn.Module, largest: float = 1.0, smallest: float = 0.01, num_levels: int = 10
    ) -> None:
        super().__init__()
        checks.instance("network", network, nn.Module, "a torch.nn.Module")
        largest = checks.number("largest", largest, above=0.0)
        smallest = checks.number("smallest", smallest, above=0.0, most=largest)
        num_levels = checks.integer("num_levels", num_levels, 1)
        self.network = network
        exponents = torch.linspace(0.0, 1.0, num_levels, dtype=torch.float64)
        levels = largest * (smallest / largest) ** exponents
        self.register_buffer("levels", levels.to(torch.get_default_dtype()))

    def loss(self, x: Tensor) -> Tensor:
        r"""Compute the denoising score matching loss, weighted by :math:`\sigma_i^2`.

        .. math:: \tfrac12 \mathbb{E} \lVert f(x + \sigma_i \epsilon) + \epsilon \rVert^2

        A level for each row and the noise are drawn from PyTorch's global generator.

        :param Tensor x: data. **Shape:** ``(n, *event)``.
        :returns: the sum over the elements of a row, averaged over rows; a scalar.
        """
        x = _as_data(x, next(self.parameters(), None))
        level = torch.randint(len(self.levels), x.shape[:1], device=x.device)
        noise = torch.randn_like(x)
        sigma = self.levels[level].to(x).reshape(-1, *[1] * (x.dim() - 1))
        error: Tensor = self.network(x + sigma * noise) + noise
        return error.square().sum() / (2 * len(x))

    def score(self, x: Tensor, level: int = 1) -> Tensor:
        """Compute the gradient of the log density of data with noise of one level.

        :param Tensor x: **Shape:** ``(n, *event)``.
        :param int level: index of the level; by default the second largest. Another level only
            rescales the score, since the network is the same.
        :returns: **Shape:** as ``x``.
        :raises ValueError: for a level out of range, or for batch norm or dropout in training mode,
            where the score of a row would depend on other rows or be random.
        """
        level = checks.integer("level", level, 0)
        if level >= len(self.levels):
            raise ValueError(f"level must be below {len(self.levels)}, got {level}")
        x = _as_data(x, next(self.parameters(), None))
        _check_mode("network", self.network)
        found: Tensor = self.network(x) / self.levels[level].to(x)
        return found


class DiffusersScore:
    r"""Score of images at one time of a diffusion model from ``diffusers``.

    With :math:`\bar\alpha_t` from the scheduler and the predicted noise :math:`\epsilon`, it is the
    score of the scaled image :math:`x_t = \sqrt{\bar\alpha_t}\, x`,

    .. math:: s(x) = -\epsilon(\sqrt{\bar\alpha_t}\, x, t) \big/ \sqrt{1 - \bar\alpha_t} ;

    times :math:`\sqrt{\bar\alpha_t}`, it is the score in :math:`x` of images with noise of standard
    deviation ``sigma``.

    :param unet: a ``UNet2DModel``, or anything with the same call, ``unet(x, timestep).sample``.
    :param scheduler: its scheduler, with ``alphas_cumprod`` and ``prediction_type="epsilon"``; it
        is only read.
    :param int timestep: :math:`t`, below ``num_train_timesteps``.
    :param Mapping conditioning: further arguments of the model for one image, such as
        ``encoder_hidden_states`` or ``class_labels``. **Shape:** ``(1, ...)`` each.
    :ivar float sigma: :math:`\sqrt{(1 - \bar\alpha_t) / \bar\alpha_t}`, on the scale of images.
    :raises TypeError: for a scheduler without ``alphas_cumprod``, such as one for flow matching.
    :raises ValueError: for a scheduler with another prediction type, a time that it does not have,
        or a model with batch norm or dropout in training mode.

    Example::

        >>> from diffusers import DDPMScheduler, UNet2DModel
        >>> unet = UNet2DModel(
        ...     8, 1, 1, block_out_channels=(4, 4), norm_num_groups=2, attention_head_dim=2,
        ...     down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
        >>> score = DiffusersScore(unet.eval(), DDPMScheduler(), timestep=100)
        >>> round(score.sigma, 3), score(torch.zeros(3, 1, 8, 8)).shape
        (0.342, torch.Size([3, 1, 8, 8]))
    """

    def __init__(
        self,
        unet: Callable[..., Any],
        scheduler: Any,
        timestep: int,
        conditioning: Mapping[str, Tensor] | None = None,
    ) -> None:
        checks.function("unet", unet, "a UNet of diffusers", or_class=False)
        _check_mode("unet", unet)
        check_scheduler("scheduler", scheduler, "alphas_cumprod")
        kind = scheduler.config.get("prediction_type", "epsilon")
        if kind != "epsilon":
            raise ValueError(
                "scheduler must predict 'epsilon', the noise, got a "
                f"{type(scheduler).__name__} whose prediction_type is {kind!r}"
            )
        remaining = scheduler.alphas_cumprod
        timestep = checks.integer("timestep", timestep, 0)
        if timestep >= len(remaining):
            raise ValueError(
                f"timestep must be below {len(remaining)}, the scheduler's num_train_timesteps, "
                f"got {timestep}"
            )
        self.conditioning = (
            {}
            if conditioning is None
            else checks.tensors("conditioning", conditioning, finite=True)
        )
        self.unet, self.timestep = unet, timestep
        self._alpha = float(remaining[timestep])
        self.sigma = ((1.0 - self._alpha) / self._alpha) ** 0.5

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the score.

        :param Tensor x: images as the model knows them, mostly from -1 to 1.
            **Shape:** ``(n, channels, height, width)``.
        :returns: **Shape:** as ``x``.
        """
        x = checks.as_tensor("x", _as_data(x), "(n, channels, height, width)")
        each = {
            name: value.to(x.device).expand(len(x), *value.shape[1:])
            for name, value in self.conditioning.items()
        }
        noise = self.unet(self._alpha**0.5 * x, self.timestep, **each).sample
        # Some models predict variances, too, in more channels.
        found: Tensor = -noise[:, : x.shape[1]] / (1.0 - self._alpha) ** 0.5
        return found


def _as_data(x: Any, like: Tensor | None = None) -> Tensor:
    """Take rows of floating-point numbers, in the type of a network's parameters."""
    rows = checks.as_tensor("x", x, "(n, ...)", finite=True, like=like)
    if not rows.is_floating_point():
        raise TypeError(f"x must hold floating-point numbers, got {checks.shown(x)}")
    return rows


def _check_mode(argument: str, module: Any) -> None:
    """Check that outputs of a row depend on that row alone."""
    for name, layer in module.named_modules() if isinstance(module, nn.Module) else ():
        if layer.training and (
            isinstance(layer, _BatchNorm) or isinstance(layer, _DropoutNd) and layer.p > 0
        ):
            raise ValueError(
                f"{argument} must be in evaluation mode, got {name!r} ({type(layer).__name__}) in "
                f"training mode; call {argument}.eval()"
            )
