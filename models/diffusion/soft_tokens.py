"""New words for a text-to-image pipeline, learned from images and their rewards."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.checkpoint.files import check_folder_of, digest_of, write_bytes
from pyro_ext.inference import Trainer
from pyro_ext.inference.diffusion import encode_prompts, noise_prediction_loss
from pyro_ext.inference.training import ShuffledBatches, TrainingOptions
from pyro_ext.inference.training.trainer import Optimizer

_ADAMW = partial(torch.optim.AdamW, lr=5e-3, weight_decay=0.0)


class WeightedImages(NamedTuple):
    """Images to learn from, and their weights.

    :param Tensor indices: indices of the images. **Shape:** ``(num_kept,)``.
    :param Tensor weights: weights of at least zero, with mean one. **Shape:** ``(num_kept,)``.
    """

    indices: Tensor
    weights: Tensor


def reward_weights(rewards: Tensor, num_kept: int) -> WeightedImages:
    r"""Select the images with the largest rewards, weighted by :math:`r_i - \min_j r_j`.

    Rewards are known at best up to a constant, and those fitted to labels may be negative; weights
    must not be. If all rewards are equal, so are the weights.

    :param Tensor rewards: rewards of all images. **Shape:** ``(num_images,)``.
    :param int num_kept: number of images to keep.
    :raises ValueError: for more images to keep than there are.

    Example::

        >>> reward_weights(torch.tensor([0.9, -0.1, 0.4, 0.4]), 2)
        WeightedImages(indices=tensor([0, 2]), weights=tensor([1.3333, 0.6667]))
    """
    rewards = checks.as_tensor("rewards", rewards, "(num_images,)", finite=True)
    if checks.integer("num_kept", num_kept, 1) > len(rewards):
        raise ValueError(f"num_kept must be at most the {len(rewards)} images, got {num_kept}")
    index = rewards.argsort(descending=True, stable=True)[:num_kept]
    weight = rewards[index] - rewards.min()
    total = weight.mean()
    return WeightedImages(index, weight / total if total > 0 else torch.ones_like(weight))


class SoftToken:
    r"""A new token of a tokenizer, with its own trainable embedding :math:`v`.

    Tokenizer and text encoder are copied. The copies only differ by one more token, and one more
    row in the table of embeddings.

    :param tokenizer: tokenizer of a pipeline of diffusers.
    :param text_encoder: text encoder of the pipeline, a model of transformers.
    :param str init: prompt whose embedding, averaged over its tokens, is the initial value.
    :param str token: name of the token in prompts.
    :ivar vector: :math:`v`, a parameter. **Shape:** ``(width,)``.
    :raises ValueError: for a name that the tokenizer already knows as a word, or an initial prompt
        that it does not know.

    Example::

        >>> from pyro_ext.models.diffusion import digit_pipeline
        >>> pipeline = digit_pipeline(num_steps=0)
        >>> token = SoftToken(pipeline.tokenizer, pipeline.text_encoder, "odd")
        >>> token.encode(["<hfi>", "odd <hfi>"]).shape
        torch.Size([2, 8, 32])
        >>> token.pipeline(pipeline)("<hfi>", num_inference_steps=2, output_type="pt").images.shape
        torch.Size([1, 1, 8, 8])
    """

    def __init__(self, tokenizer: Any, text_encoder: Any, init: str, token: str = "<hfi>") -> None:
        if inspect.isclass(tokenizer) or not hasattr(tokenizer, "add_tokens"):
            raise TypeError(f"tokenizer must be one of transformers, got {checks.shown(tokenizer)}")
        checks.instance("text_encoder", text_encoder, nn.Module, "a text encoder of transformers")
        checks.instance("init", init, str, "a prompt")
        checks.instance("token", token, str, "the name of a token")
        self.token = token
        self.tokenizer = copy.deepcopy(tokenizer)
        unknown = self.tokenizer.unk_token_id
        rows, own = self.tokenizer([init, token], add_special_tokens=False)["input_ids"]
        is_word = len(own) == 1 and own[0] != unknown
        if not token.strip() or is_word or token in self.tokenizer.get_vocab():
            raise ValueError(f"token must be one that the tokenizer does not have, got {token!r}")
        if token[0].isalnum() or token[-1].isalnum():  # "art" would be found in "cart"
            raise ValueError(
                f"token must be no part of other words, as '<{token}>' is none, got {token!r}"
            )
        if not rows or unknown in rows:
            raise ValueError(f"init must be a prompt that the tokenizer knows, got {init!r}")
        self.tokenizer.add_tokens([token])
        self.row: int = self.tokenizer.convert_tokens_to_ids(token)
        encoder: Any = copy.deepcopy(text_encoder).eval()
        size = len(encoder.get_input_embeddings().weight)
        if size < len(self.tokenizer):
            with torch.random.fork_rng(devices=[]):  # the new row is drawn, and then replaced
                encoder.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        encoder.requires_grad_(False)
        table = encoder.get_input_embeddings().weight
        self.vector = nn.Parameter(table[rows].mean(0))
        self._encoder = encoder

    @property
    def text_encoder(self) -> Any:
        """The text encoder, with the current embedding in its table."""
        with torch.no_grad():
            self._encoder.get_input_embeddings().weight[self.row] = self.vector
        return self._encoder

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts, with a gradient in the embedding.

        :param prompts: strings, which may contain the name of the token.
        :returns: **Shape:** ``(num_prompts, length, width)``.
        :raises ValueError: as for :func:`~pyro_ext.inference.diffusion.encode_prompts`.
        """
        with self._inserted():
            return encode_prompts(self.tokenizer, self._encoder, prompts)

    def prompt(self, prompt: str | None = None) -> str:
        """Return a prompt after checking that it contains the token; by default the token alone.

        :param str prompt: a prompt.
        :raises ValueError: for a prompt without the token, or one that cannot be encoded.
        """
        prompt = self.token if prompt is None else prompt
        checks.instance("prompt", prompt, str, "a prompt or None")
        if self.token not in prompt:
            raise ValueError(f"prompt must have the token {self.token!r} in it, got {prompt!r}")
        with torch.no_grad():
            self.encode([prompt])
        return prompt

    @contextmanager
    def _inserted(self) -> Iterator[None]:
        """Put the embedding into what the table gives for the token."""

        def insert(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            return torch.where((args[0] == self.row)[..., None], self.vector, output)

        handle = self._encoder.get_input_embeddings().register_forward_hook(insert)
        try:
            yield
        finally:
            handle.remove()

    def pipeline(self, pipeline: Any) -> Any:
        """Copy a pipeline so that it knows the token; everything else is shared with the original.

        :param pipeline: the pipeline whose tokenizer and text encoder were given.
        :returns: a pipeline of the same class.
        """
        if not (hasattr(pipeline, "tokenizer") and hasattr(pipeline, "text_encoder")):
            raise TypeError(
                f"pipeline must have a tokenizer and a text_encoder, got {type(pipeline).__name__}"
            )
        new = copy.copy(pipeline)
        new.tokenizer, new.text_encoder = copy.deepcopy((self.tokenizer, self.text_encoder))
        return new

    def save(self, path: str | Path) -> None:
        """Save the embedding as a textual inversion file.

        Load it with ``pipeline.load_textual_inversion(path)`` of diffusers.

        :param path: path of the file, which should end in ``.safetensors``.
        :raises CheckpointError: if it cannot be written.
        """
        from safetensors.torch import save

        checks.instance("path", path, (str, Path), "a path")
        path = Path(path)
        check_folder_of(path)
        write_bytes(path, save({self.token: self.vector.detach().cpu().contiguous()}))


class RewardWeightedInversion:
    r"""Textual inversion [1] of images weighted by their rewards [2].

    .. math:: L(v) = \frac1K \sum_i w_i \, \mathbb{E}_{t, \epsilon}
        \Vert \epsilon - \epsilon_\theta(x_{i,t}, t, c(v)) \Vert^2

    in the embedding :math:`v` of a token, with weights of mean one and uniform :math:`t`. Without
    weights, this is textual inversion. No network changes.

    :param torch.nn.Module unet: a network of diffusers; it is copied.
    :param scheduler: a scheduler of diffusers, with ``alphas_cumprod``.
    :param SoftToken token: the token to train.
    :param Tensor latents: :math:`x`, images in the form that ``unet`` takes. **Shape:**
        ``(K, *event)``.
    :param Tensor weights: :math:`w`, numbers of at least zero, which are scaled to mean one.
        Images with weight zero are left out. **Shape:** ``(K,)``.
    :param str prompt: prompt that contains the token, by default the token alone.
    :param int batch_size: number of images of a step.
    :param optimizer: as for :class:`~pyro_ext.inference.Trainer`. Weight decay would pull the
        embedding to zero.
    :param int seed: as for :class:`~pyro_ext.inference.Trainer`.
    :raises TypeError: for arguments of a wrong type.
    :raises ValueError: for negative weights, or shapes that do not fit.

    [1] R. Gal, Y. Alaluf, Y. Atzmon, O. Patashnik, A. H. Bermano, G. Chechik, D. Cohen-Or (2023),
    An image is worth one word: personalizing text-to-image generation using textual inversion.

    [2] S. Kim, S. Jung, B. Kim, M. Choi, J. Shin, J. Lee (2024), Safeguard text-to-image diffusion
    models with human feedback inversion.

    Example::

        >>> from pyro_ext.models.diffusion import digit_images, digit_pipeline
        >>> pipeline = digit_pipeline(num_steps=0)
        >>> token = SoftToken(pipeline.tokenizer, pipeline.text_encoder, "odd")
        >>> images, digits = digit_images()
        >>> inversion = RewardWeightedInversion(
        ...     pipeline.unet, pipeline.scheduler, token, images[:20], digits[:20], seed=0)
        >>> len(inversion.run(2, progress=False))
        2
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler: Any,
        token: SoftToken,
        latents: Tensor,
        weights: Any = None,
        *,
        prompt: str | None = None,
        batch_size: int = 4,
        optimizer: Optimizer = _ADAMW,
        seed: int | None = None,
    ) -> None:
        checks.instance("unet", unet, nn.Module, "a network of diffusers")
        checks.instance("token", token, SoftToken, "a SoftToken")
        like = next(unet.parameters(), None)
        latents = checks.as_tensor("latents", latents, "(num_images, ...)", finite=True, like=like)
        if weights is None:
            weights = latents.new_ones(len(latents))
        weights = checks.as_tensor("weights", weights, f"({len(latents)},)", finite=True)
        weights = weights.to(latents.device, torch.double)
        if float(weights.min()) < 0 or not float(weights.sum()) > 0:
            raise ValueError(f"weights must be >= 0 and not all zero, got {weights.tolist()!r:.80}")
        self.latents = latents[weights > 0]
        positive = weights[weights > 0]
        self.weights = (positive / positive.mean()).to(latents)
        self.prompt = token.prompt(prompt)
        size = min(checks.integer("batch_size", batch_size, 1), len(self.latents))
        self._batches = ShuffledBatches(self.latents, self.weights, batch_size=size)
        self.token, self.scheduler = token, scheduler
        self.unet = copy.deepcopy(unet).requires_grad_(False).eval()
        self._trainer = Trainer(
            {token.token: token.vector},
            optimizer,
            seed=seed,
            identity={"prompt": self.prompt, "unet": digest_of(self.unet.state_dict())},
        )
        noise = torch.zeros_like(self.latents[:1])  # says now what does not fit
        with torch.no_grad():
            self.loss(noise, torch.zeros(1, dtype=torch.long, device=noise.device), noise)

    def loss(
        self, x: Tensor, timesteps: Tensor, noise: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Compute the loss at given noise.

        :param Tensor x: latents. **Shape:** ``(batch, *event)``.
        :param Tensor timesteps: integers. **Shape:** ``(batch,)``.
        :param Tensor noise: **Shape:** as ``x``.
        :param Tensor weights: by default ones. **Shape:** ``(batch,)``.
        :returns: a scalar.
        """
        x = checks.as_tensor("x", x, like=self.latents)
        noise = checks.as_tensor("noise", noise, like=self.latents)
        states = self.token.encode([self.prompt])

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            each = states.expand(len(noisy), *states.shape[1:])
            prediction: Tensor = self.unet(noisy, t, encoder_hidden_states=each)[0]
            return prediction

        return noise_prediction_loss(predict, self.scheduler, x, timesteps, noise, weights)

    def step(self) -> float:
        """Take one step.

        :returns: the loss before the step.
        :raises TrainingDiverged: if a loss or gradient is not finite.
        """
        return self.run(self._trainer.num_steps + 1, progress=False)[-1]

    def run(self, num_steps: int, **training: Unpack[TrainingOptions]) -> list[float]:
        """Take steps up to a total of ``num_steps``; Ctrl-C stops after the current one.

        :param int num_steps: total number of steps, including those of earlier calls.
        :param training: options of :class:`~pyro_ext.inference.training.TrainingOptions`.
        :returns: the loss of each step.
        :raises TrainingDiverged: if a loss or gradient is not finite; the embedding is left as it
            was when both last were.
        """
        return self._trainer.run(
            self._loss, num_steps, self._batches, description="inversion", **training
        )

    def _loss(self, latents: Tensor, weights: Tensor) -> Tensor:
        total = self.scheduler.config.num_train_timesteps
        timesteps = torch.randint(total, (len(latents),), device=latents.device)
        return self.loss(latents, timesteps, torch.randn_like(latents), weights)
