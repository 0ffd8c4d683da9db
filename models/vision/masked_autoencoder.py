"""Masked autoencoders with mean teachers: transformers that fill in hidden parts of images."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Unpack, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from pyro_ext._lib import checks
from pyro_ext.inference.training import ShuffledBatches, Trainer, TrainingOptions
from pyro_ext.inference.training.checkpoints import seed_of
from pyro_ext.inference.training.trainer import Optimizer
from pyro_ext.nn import MeanTeacher
from pyro_ext.random import fresh_seed

Patches = Literal["masked", "all"]

_MOMENTUM = 0.996  # the paper's
_MEMORY = 40  # of a teacher, at most this part of a training
_WARMUP = 0.05  # of a training, the part in which the learning rate rises


def _adamw(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """AdamW as in the paper, without decay of biases, norms and tokens."""
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.95))


class MaskedAutoencoderTerms(NamedTuple):
    """Mean squared errors of predictions, averaged over numbers and patches.

    :ivar Tensor reconstruction: error from the image, in hidden patches. A scalar.
    :ivar Tensor consistency: error from the prediction of a teacher; zero without one. A scalar.
    """

    reconstruction: Tensor
    consistency: Tensor


class MaskedAutoencoder(nn.Module):
    r"""A transformer that sees some of the patches of an image and predicts the others [1].

    The encoder sees only visible patches, with fixed positions and a class token. The decoder has a
    mask token in place of each hidden patch, and predicts all patches. In the Pyro model,
    :meth:`model`, hidden patches are normal around the prediction, and the choice of hidden patches
    is sampled. A mean teacher, which predicts the same patches from the same visible ones, gives
    the training of [2]. Use :meth:`fit`, or train by hand::

        teacher = MeanTeacher(autoencoder, momentum=0.99, num_steps=1000)
        model = consistency(teacher.teacher.model, ["patches"])(autoencoder.model)
        svi = SVI(model, autoencoder.guide, optimizer, Trace_ELBO())
        for step in range(1000):
            svi.step(images)
            teacher.update(step)

    The teacher's weights are those that [2] evaluates. Its gains over [1] are 0.2 to 0.6 points of
    accuracy after fine-tuning; short training may show no gain.

    Weights are drawn from PyTorch's generator; those of linear layers follow Xavier's uniform rule.

    :param Sequence image_shape: channels, height and width of an image.
    :param int patch_size: side length of a patch; it must divide height and width.
    :param int width: width of the encoder; like that of the decoder, a multiple of 4 and of the
        number of heads.
    :param int depth: number of blocks of the encoder.
    :param int num_heads: number of attention heads in the encoder.
    :param int decoder_width: width of the decoder.
    :param int decoder_depth: number of blocks of the decoder.
    :param int decoder_heads: number of attention heads in the decoder.
    :param float mask_ratio: fraction of the patches that is hidden, in ``(0, 1)``.
    :param float scale: standard deviation of a number in a hidden patch, in :meth:`model`.
    :param bool normalize: whether the predicted patches are centered and scaled, each by its own
        mean and deviation, as in the paper. If much of an image is empty, this predicts noise.
    :raises TypeError: for arguments of a wrong type.
    :raises ValueError: for sizes out of range or that do not divide each other.

    [1] K. He, X. Chen, S. Xie, Y. Li, P. Dollár, R. Girshick (2022), Masked autoencoders are
    scalable vision learners.

    [2] Y. Lee, J. Willette, J. Kim, J. Lee, S. J. Hwang (2023), Exploring the role of mean teachers
    in self-supervised masked auto-encoders.

    Example::

        >>> images = torch.rand(20, 1, 8, 8)
        >>> autoencoder = MaskedAutoencoder((1, 8, 8), patch_size=2)
        >>> teacher = autoencoder.fit(images, num_steps=2, batch_size=10, seed=0, progress=False)
        >>> teacher.features(images).shape, teacher.reconstruct(images, seed=0).shape
        (torch.Size([20, 48]), torch.Size([20, 1, 8, 8]))
    """

    encoder_positions: Tensor
    decoder_positions: Tensor

    def __init__(
        self,
        image_shape: Sequence[int],
        patch_size: int = 4,
        *,
        width: int = 48,
        depth: int = 3,
        num_heads: int = 4,
        decoder_width: int = 32,
        decoder_depth: int = 1,
        decoder_heads: int = 2,
        mask_ratio: float = 0.75,
        scale: float = 1.0,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.image_shape = checks.as_size("image_shape", image_shape)
        if len(self.image_shape) != 3 or not self.image_shape.numel():
            raise ValueError(
                f"image_shape must be channels, height and width, each >= 1, got {image_shape!r}"
            )
        self.patch_size = checks.integer("patch_size", patch_size, 1)
        channels, *sides = self.image_shape
        if any(side % patch_size for side in sides):
            raise ValueError(
                f"patch_size must divide height and width of image_shape={tuple(image_shape)}, "
                f"got {patch_size}"
            )
        self.grid = sides[0] // patch_size, sides[1] // patch_size
        self.num_patches = math.prod(self.grid)
        self.mask_ratio = checks.number("mask_ratio", mask_ratio, above=0, below=1)
        self.num_visible = math.floor(self.num_patches * (1 - mask_ratio) + 1e-9)
        if not 0 < self.num_visible < self.num_patches:
            raise ValueError(
                f"mask_ratio must leave visible and hidden ones of the {self.num_patches} patches, "
                f"got {mask_ratio}"
            )
        self.scale = checks.number("scale", scale, above=0)
        self.normalize = checks.boolean("normalize", normalize)
        size = channels * patch_size**2
        if normalize and size < 2:
            raise ValueError("normalize must be False for patches of one number, got True")
        for prefix, value, heads in (
            ("", width, checks.integer("num_heads", num_heads, 1)),
            ("decoder_", decoder_width, checks.integer("decoder_heads", decoder_heads, 1)),
        ):
            if checks.integer(f"{prefix}width", value, 4) % math.lcm(4, heads):
                raise ValueError(
                    f"{prefix}width must be a multiple of 4 and of {heads} heads, got {value}"
                )
        depth = checks.integer("depth", depth, 1)
        decoder_depth = checks.integer("decoder_depth", decoder_depth, 1)

        self.losses: list[float] = []
        """The loss of each step of the last training."""
        self.embedding = nn.Linear(size, width)
        self.class_token = nn.Parameter(torch.empty(width))
        self.encoder = nn.Sequential(
            *(_Block(width, num_heads) for _ in range(depth)), nn.LayerNorm(width)
        )
        self.decoder_embedding = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.empty(decoder_width))
        self.decoder = nn.Sequential(
            *(_Block(decoder_width, decoder_heads) for _ in range(decoder_depth)),
            nn.LayerNorm(decoder_width),
        )
        self.prediction = nn.Linear(decoder_width, size)
        for name, features in (("encoder", width), ("decoder", decoder_width)):
            positions = _positions(self.grid, features).to(self.class_token.dtype)
            self.register_buffer(f"{name}_positions", positions, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for token in (self.class_token, self.mask_token):
            nn.init.normal_(token, std=0.02)

    # Patches -------------------------------------------------------------------------------------

    def patchify(self, images: Tensor) -> Tensor:
        """Cut images into patches, row by row.

        :param Tensor images: **Shape:** ``(n, channels, height, width)``.
        :returns: **Shape:** ``(n, num_patches, channels * patch_size**2)``.
        """
        channels, rows, columns = self.image_shape[0], *self.grid
        cut = self._images(images).reshape(
            -1, channels, rows, self.patch_size, columns, self.patch_size
        )
        return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Reassemble images from patches.

        :param Tensor patches: **Shape:** ``(n, num_patches, channels * patch_size**2)``.
        :returns: **Shape:** ``(n, channels, height, width)``.
        """
        shape = f"(n, {self.num_patches}, {self.prediction.out_features})"
        patches = checks.as_tensor("patches", patches, shape)
        side = self.patch_size
        cut = patches.reshape(-1, *self.grid, side, side, self.image_shape[0])
        return cut.permute(0, 5, 1, 3, 2, 4).reshape(-1, *self.image_shape)

    def targets(self, images: Tensor) -> Tensor:
        """Return the patches to predict, which are centered and scaled with ``normalize``.

        :param Tensor images: as for :meth:`patchify`, like the result.
        """
        patches = self.patchify(images)
        if not self.normalize:
            return patches
        return (patches - patches.mean(-1, keepdim=True)) / _deviation(patches)

    def random_order(self, num_images: int, seed: int | None = None) -> Tensor:
        """Draw a random order of the patches of each image; the first ones are visible.

        :param int num_images: number of images.
        :param int seed: a number, or ``None`` for PyTorch's generator.
        :returns: indices of patches. **Shape:** ``(num_images, num_patches)``.
        """
        num_images = checks.integer("num_images", num_images, 1)
        generator = None if seed is None else torch.Generator().manual_seed(fresh_seed(seed))
        noise = torch.rand(num_images, self.num_patches, generator=generator, device="cpu")
        return noise.argsort(-1).to(self.mask_token.device)

    def visible(self, order: Tensor) -> Tensor:
        """Return a mask of the patches that an order leaves visible.

        :param Tensor order: **Shape:** ``(n, num_patches)``.
        :returns: booleans, true for visible patches. **Shape:** as the order.
        """
        return self._order(order).argsort(-1) < self.num_visible

    # The network ---------------------------------------------------------------------------------

    def encode(self, images: Tensor, order: Tensor | None = None) -> Tensor:
        """Compute the tokens of visible patches, after the last norm.

        :param Tensor images: **Shape:** ``(n, channels, height, width)``.
        :param Tensor order: order of the patches, or ``None`` if all are visible.
            **Shape:** ``(n, num_patches)``.
        :returns: the class token, and the tokens of patches in order.
            **Shape:** ``(n, 1 + num_visible, width)``.
        """
        tokens = self.embedding(self.patchify(images)) + self.encoder_positions[1:]
        if order is not None:
            order = self._order(order, len(tokens))
            tokens = _picked(tokens, order[:, : self.num_visible])
        first = (self.class_token + self.encoder_positions[0]).expand(len(tokens), 1, -1)
        encoded: Tensor = self.encoder(torch.cat([first, tokens], 1))
        return encoded

    def forward(self, images: Tensor, order: Tensor) -> Tensor:
        """Predict all patches from the visible ones.

        :param Tensor images: **Shape:** ``(n, channels, height, width)``.
        :param Tensor order: order of the patches. **Shape:** ``(n, num_patches)``.
        :returns: **Shape:** ``(n, num_patches, channels * patch_size**2)``.
        """
        order = self._order(order)
        tokens = self.decoder_embedding(self.encode(images, order))
        hidden = self.mask_token.expand(
            len(tokens), self.num_patches - self.num_visible, self.mask_token.shape[0]
        )
        patches = _picked(torch.cat([tokens[:, 1:], hidden], 1), order.argsort(-1))
        decoded = self.decoder(torch.cat([tokens[:, :1], patches], 1) + self.decoder_positions)
        # Of all tokens: PyTorch rounds a product with a part of them as weights have a gradient.
        predicted: Tensor = self.prediction(decoded)[:, 1:]
        return predicted

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Average the encoder's tokens over whole images, for a classifier.

        :param Tensor images: **Shape:** ``(n, channels, height, width)``.
        :returns: **Shape:** ``(n, width)``.
        """
        return self.encode(images)[:, 1:].mean(1)

    @torch.no_grad()
    def reconstruct(
        self, images: Tensor, order: Tensor | None = None, *, seed: int | None = None
    ) -> Tensor:
        """Fill in hidden patches by their predictions; visible patches are unchanged.

        With ``normalize``, predictions are scaled back with means and deviations of the hidden
        patches.

        :param Tensor images: **Shape:** ``(n, channels, height, width)``.
        :param Tensor order: order of the patches; by default random.
        :param int seed: seed of a random order.
        :returns: **Shape:** as the images.
        """
        checks.optional(checks.integer, "seed", seed, 0)
        patches = self.patchify(images)
        order = self.random_order(len(patches), seed) if order is None else self._order(order)
        predicted = self(images, order)
        if self.normalize:
            predicted = predicted * _deviation(patches) + patches.mean(-1, keepdim=True)
        return self.unpatchify(torch.where(self.visible(order)[..., None], patches, predicted))

    # Training ------------------------------------------------------------------------------------

    def terms(
        self,
        images: Tensor,
        order: Tensor,
        teacher: nn.Module | None = None,
        *,
        patches: Patches = "masked",
    ) -> MaskedAutoencoderTerms:
        """Compute the errors against the image and a teacher that sees the same patches.

        :param Tensor images: **Shape:** ``(n, channels, height, width)``.
        :param Tensor order: order of the patches, also for the teacher. **Shape:**
            ``(n, num_patches)``.
        :param teacher: a network like this one or a :class:`~pyro_ext.nn.MeanTeacher`; it gets no
            gradient.
        :param str patches: where to follow the teacher: in ``"masked"`` patches or in ``"all"``.
        :returns: a :class:`MaskedAutoencoderTerms`.
        """
        checks.choice("patches", patches, get_args(Patches))
        checks.optional(checks.instance, "teacher", teacher, nn.Module, "a network or None")
        prediction, is_hidden = self(images, order), ~self.visible(order)
        error = (prediction - self.targets(images)).square().mean(-1)
        reconstruction = error[is_hidden].mean()
        if teacher is None:
            return MaskedAutoencoderTerms(reconstruction, torch.zeros_like(reconstruction))
        with torch.no_grad():
            taught = teacher(images, order)
        difference = (prediction - taught).square().mean(-1)
        chosen = difference[is_hidden] if patches == "masked" else difference
        return MaskedAutoencoderTerms(reconstruction, chosen.mean())

    def fit(
        self,
        images: Tensor,
        num_steps: int,
        *,
        batch_size: int = 100,
        consistency: float = 1.0,
        patches: Patches = "masked",
        momentum: float | None = None,
        optimizer: Optimizer = _adamw,
        seed: int | None = None,
        **training: Unpack[TrainingOptions],
    ) -> "MaskedAutoencoder":
        """Train on images, with a mean teacher.

        The learning rate rises over the first 5% of the steps, then falls to zero along a cosine.

        :param Tensor images: images, preferably standardized, which learns faster than values
            between 0 and 1. **Shape:** ``(n, channels, height, width)``.
        :param int num_steps: number of steps. For the first few hundred, or for a thousand on
            images without much structure, it may predict no more than the mean of each pixel.
        :param int batch_size: number of images of a step.
        :param float consistency: weight of the error from the teacher; zero trains as in [1] of the
            class, with the same minibatches and masks.
        :param str patches: see :meth:`terms`.
        :param float momentum: momentum of the teacher, which rises to one along a cosine. By
            default the paper's .996; with fewer than 10,000 steps less, so that the teacher
            remembers a fortieth of the training. A longer memory would hold the student back.
        :param Callable optimizer: makes an optimizer from a list of parameters.
        :param int seed: seed of minibatches and masks; ``None`` takes the seed of the checkpoint if
            it exists, and otherwise one from PyTorch's generator.
        :param training: options of :class:`~pyro_ext.inference.training.TrainingOptions`.
        :returns: the teacher, a copy of this network with averaged weights. :attr:`losses` holds
            the loss of each step.
        :raises TrainingDiverged: if loss or gradient are not finite.
        """
        images = self._images(images)
        num_steps = checks.integer("num_steps", num_steps, 0)
        consistency = checks.number("consistency", consistency, least=0)
        checks.choice("patches", patches, get_args(Patches))
        if momentum is None:
            momentum = max(0.0, min(_MOMENTUM, 1.0 - _MEMORY / max(num_steps, 1)))
        teacher = MeanTeacher(self, momentum, num_steps=max(num_steps, 1))
        trainer = Trainer(
            self,
            optimizer,
            scheduler=partial(LambdaLR, lr_lambda=partial(_rate, num_steps)),
            stateful=[teacher],
            identity={
                "num_steps": num_steps,
                "consistency": consistency,
                "patches": patches,
                "momentum": momentum,
                "settings": self.extra_repr(),
            },
            seed=seed_of(seed, training.get("checkpoint")),
        )

        def follow() -> None:  # once the step is taken for good
            if trainer.num_steps > int(teacher.num_updates):
                teacher.update()

        def loss(batch: Tensor) -> Tensor:
            follow()
            order = self.random_order(len(batch))
            found = self.terms(batch, order, teacher if consistency else None, patches=patches)
            return found.reconstruction + consistency * found.consistency

        size = min(checks.integer("batch_size", batch_size, 1), len(images))
        self.losses = trainer.run(
            loss,
            num_steps,
            ShuffledBatches(images, batch_size=size),
            description="Masked autoencoder",
            **training,
        )
        follow()
        taught: MaskedAutoencoder = teacher.teacher  # type: ignore[assignment]
        return taught

    # As a Pyro model -----------------------------------------------------------------------------

    def model(
        self, images: Tensor, subsample_size: int | None = None, *, predict: bool = False
    ) -> Tensor:
        r"""The Pyro model: hidden patches are normal around their prediction from visible ones.

        The site ``noise`` orders the patches of each image and so determines which are visible, and
        ``patches`` holds the hidden ones. Up to a constant, the negative log density is the error
        of :meth:`terms` times the number of hidden numbers over :math:`2 \sigma^2`.

        :param Tensor images: **Shape:** ``(n, channels, height, width)``.
        :param int subsample_size: size of a random subset of the images that represents all.
        :param bool predict: whether ``patches`` is drawn rather than observed, as in
            ``Predictive(autoencoder.model, num_samples=8)(images, predict=True)``; visible patches
            are unchanged.
        :returns: the predictions. **Shape:** ``(n, num_patches, channels * patch_size**2)``.
        """
        checks.boolean("predict", predict)
        pyro.module("masked_autoencoder", self)
        images = self._images(images)
        of_images, of_patches = self._plates(images, subsample_size)
        with of_images as index, of_patches:
            order = self._noise(images).argsort(-1)
        images = images if subsample_size is None else images[index]
        prediction: Tensor = self(images, order)
        is_hidden: Any = ~self.visible(order)
        with of_images, of_patches, poutine.mask(mask=is_hidden):
            law = dist.Normal(prediction, self.scale).to_event(1)
            pyro.sample("patches", law, obs=None if predict else self.targets(images))
        return prediction

    def guide(
        self, images: Tensor, subsample_size: int | None = None, *, predict: bool = False
    ) -> None:
        """Sample the masks as in the model; there is nothing else to infer.

        :param Tensor images: as for :meth:`model`, like the other arguments.
        """
        checks.boolean("predict", predict)
        images = self._images(images)
        of_images, of_patches = self._plates(images, subsample_size)
        with of_images, of_patches:
            self._noise(images)

    def _plates(self, images: Tensor, subsample_size: int | None) -> tuple[Any, Any]:
        checks.optional(checks.integer, "subsample_size", subsample_size, 1)
        if subsample_size is not None and subsample_size > len(images):
            raise ValueError(
                f"subsample_size must be at most the {len(images)} images, got {subsample_size}"
            )
        of_images = pyro.plate("images", len(images), subsample_size=subsample_size, dim=-2)
        return of_images, pyro.plate("positions", self.num_patches, dim=-1)

    def _noise(self, images: Tensor) -> Tensor:
        noise: Tensor = pyro.sample("noise", dist.Uniform(images.new_zeros(()), 1.0))
        return noise

    # Arguments -----------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """Return the settings for the module's ``repr``."""
        return (
            f"image_shape={tuple(self.image_shape)}, patch_size={self.patch_size}, "
            f"mask_ratio={self.mask_ratio}, scale={self.scale}, normalize={self.normalize}"
        )

    def _images(self, images: Tensor) -> Tensor:
        shape = f"(n, {', '.join(map(str, self.image_shape))})"
        images = checks.as_tensor("images", images, shape, like=self.mask_token, finite=True)
        return images if images.is_floating_point() else images.to(self.mask_token.dtype)

    def _order(self, order: Tensor, num_images: int | None = None) -> Tensor:
        count = "n" if num_images is None else num_images
        shape = f"({count}, {self.num_patches})"
        order = checks.as_tensor("order", order, shape, kind="integers")
        try:
            is_order = bool((order.sort(-1).values.diff() == 1).all() and (order >= 0).all())
        except RuntimeError:  # a graph that is recorded knows no values
            return order
        if not is_order or int(order.max()) >= self.num_patches:
            raise ValueError(
                f"order must hold each of the numbers 0 to {self.num_patches - 1} once in a row, "
                f"got {order[0].tolist()!r:.80} in the first"
            )
        return order


class _Block(nn.Module):
    """A block of a vision transformer: norms come first, and a layer is four times as wide."""

    # PyTorch's layer takes other kernels in evaluation mode, so that teacher and student differ by
    # rounding where they are the same.
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.output_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projections, self.attention = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = self.projections(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.attention(attended.transpose(1, 2).flatten(2))
        output: Tensor = x + self.feedforward(self.output_norm(x))
        return output


def _positions(grid: tuple[int, int], features: int) -> Tensor:
    """Sines and cosines of rows and of columns, after zeros for the class token."""
    frequencies = 10_000.0 ** -torch.arange(0, 1, 4 / features, dtype=torch.float64)
    row, column = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (column, row)]
    found = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)
    return torch.cat([found.new_zeros(1, features), found])


def _picked(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens in another order, one for each image."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def _deviation(patches: Tensor) -> Tensor:
    return (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def _rate(num_steps: int, step: int) -> float:
    """The learning rate of a step, relative to the largest."""
    rising = math.ceil(_WARMUP * num_steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 + 0.5 * math.cos(math.pi * min((step - rising) / max(num_steps - rising, 1), 1.0))
