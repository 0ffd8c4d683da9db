"""Completion of images: pixels as points of a function from the plane to grey levels."""

from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_ext._checks import as_tensor, check_integer, shown
from pyro_ext.models.neural_processes.batch import Batch
from pyro_ext.models.neural_processes.splits import number_between, split_batch
from pyro_ext.random import fresh_seed

__all__ = ["ImageTasks"]


@dataclass(frozen=True)
class ImageTasks:
    """Images of which some pixels are given and others are asked for.

    Inputs are the places of pixels, rows and columns from -1 to 1; outputs are the images' own
    numbers. Pixels and images are drawn without replacement, as long as there are enough images.

    :param Tensor images: **Shape:** ``(num_images, height, width)``, or with a last dimension of
        channels.
    :param int num_tasks: number of images in a batch.
    :param tuple num_context: the least and the largest number of pixels that are given; the number
        is drawn uniformly for each batch.
    :param int num_target: number of pixels that are asked for; by default all others.
    :raises ValueError: for arguments out of range.

    Example::

        >>> from pyro_ext.datasets import load_digits
        >>> images = load_digits().train_inputs.reshape(-1, 8, 8)
        >>> tasks = ImageTasks(images, num_tasks=4, num_context=(10, 10))
        >>> batch = tasks(seed=0)
        >>> batch.context_inputs.shape, batch.target_outputs.shape
        (torch.Size([4, 10, 2]), torch.Size([4, 54, 1]))
    """

    images: Tensor
    _: KW_ONLY
    num_tasks: int = 16
    num_context: tuple[int, int] = (3, 30)
    num_target: int | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        object.__setattr__(
            self,
            "images",
            as_tensor("images", self.images, "(num_images, height, width, ...)", finite=True),
        )
        if not isinstance(self.num_context, tuple) or len(self.num_context) != 2:
            raise TypeError(
                f"num_context must be a pair of integers, got {shown(self.num_context)}"
            )
        if self.images.dim() not in (3, 4) or not self.images.numel():
            raise ValueError(
                "images must have the shape (num_images, height, width) or (num_images, height, "
                f"width, channels), got {tuple(self.images.shape)}"
            )
        if not self.images.is_floating_point():
            raise ValueError(f"images must be of a floating type, got {self.images.dtype}")
        check_integer("num_tasks", self.num_tasks, 1)
        least, most = self.num_context
        check_integer("num_context[0]", least, 0)
        check_integer("num_context[1]", most, least)
        room = self.num_pixels - most
        if self.num_target is not None:
            check_integer("num_target", self.num_target, 1)
        if room < (self.num_target or 1):
            raise ValueError(
                f"num_context must leave {self.num_target or 1} of {self.num_pixels} pixels to ask "
                f"for, got {self.num_context}"
            )

    @property
    def num_pixels(self) -> int:
        """Number of pixels of an image."""
        return self.images.shape[1] * self.images.shape[2]

    @property
    def places(self) -> Tensor:
        """Inputs of all pixels, row by row. **Shape:** ``(num_pixels, 2)``."""
        height, width = self.images.shape[1:3]
        rows, columns = (torch.linspace(-1, 1, size) for size in (height, width))
        return torch.cartesian_prod(rows, columns).to(self.images)

    def __call__(self, seed: int | None = None) -> Batch:
        """Draw a batch of tasks.

        :param int seed: the same seed gives the same tasks; ``None`` takes one from PyTorch's
            generator.
        """
        generator = np.random.default_rng(fresh_seed(seed))
        num_images = len(self.images)
        chosen = generator.choice(num_images, self.num_tasks, replace=num_images < self.num_tasks)
        num_context = number_between(generator, *self.num_context)
        num_target = self.num_target or self.num_pixels - num_context
        uniform = generator.random((self.num_tasks, self.num_pixels))
        order = torch.from_numpy(uniform.argsort(1)[:, : num_context + num_target])
        return self.batch(torch.from_numpy(chosen), order, num_context)

    def batch(self, chosen: Tensor, pixels: Tensor, num_context: int) -> Batch:
        """Make the tasks of certain images and pixels.

        :param Tensor chosen: numbers of images. **Shape:** ``(num_tasks,)``.
        :param Tensor pixels: numbers of pixels, those of the context first. **Shape:**
            ``(num_tasks, n)``.
        :param int num_context: number of pixels that are given.
        """
        device = self.images.device
        chosen, pixels = chosen.to(device), pixels.to(device)
        values = self.images[chosen].flatten(1, 2)
        values = values if values.dim() == 3 else values[..., None]
        outputs = values.gather(1, pixels[..., None].expand(-1, -1, values.shape[-1]))
        return split_batch(self.places[pixels], outputs, num_context)
